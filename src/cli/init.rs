//! `headwater init`.

use std::path::PathBuf;

use clap::Args;

use super::Global;
use crate::tool::{self, Result};

/// Write a commented topology, its tests, a config and a few records to start from; nothing is overwritten
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  headwater init my-project")]
pub struct Init {
    /// Where to write them
    #[arg(value_name = "DIR", default_value = ".")]
    directory: PathBuf,
}

impl Init {
    pub fn run(self, global: &Global) -> Result<()> {
        let mut out = global.printer();
        tool::init::init(&self.directory, &mut out)?;
        out.flush()
    }
}
