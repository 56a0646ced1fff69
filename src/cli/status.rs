//! `headwater status`.

use std::path::PathBuf;

use clap::Args;

use super::Global;
use crate::plan;
use crate::tool::{Result, status};

/// One screen about a topology: version, sources, counters, lag, topics
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  headwater status topologies/flights/flights.yaml")]
pub struct Status {
    /// The topology's file
    #[arg(value_name = "TOPOLOGY")]
    file: PathBuf,
}

impl Status {
    pub fn run(self, global: &Global) -> Result<()> {
        let plan = plan::load(&self.file)?;
        let cluster = global.open_cluster()?;
        let mut out = global.printer();
        let json = out.json();
        status::status(&plan, &*cluster.log, &mut out, json)?;
        out.flush()
    }
}
