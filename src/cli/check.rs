//! `headwater check`.

use std::path::PathBuf;

use clap::Args;

use super::Global;
use crate::tool::{self, Result};

/// Validate topology files without starting anything
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  headwater check topologies/*/*.yaml")]
pub struct Check {
    /// The topologies' files
    #[arg(value_name = "TOPOLOGY", required = true)]
    files: Vec<PathBuf>,
}

impl Check {
    pub fn run(self, global: &Global) -> Result<()> {
        let mut out = global.printer();
        let outcome = tool::check::check(&self.files, &mut out);
        out.flush()?;
        outcome
    }
}
