//! `headwater status`.

use std::path::PathBuf;

use clap::Args;

use super::Global;
use crate::tool::{Result, status, topology_file};

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
        let plan = topology_file::load(&self.file)?;
        let cluster = global.open_cluster()?;
        let mut out = global.printer();
        let json = out.json();
        status::status(&plan, &*cluster.log, &mut out, json)?;
        out.flush()
    }
}
