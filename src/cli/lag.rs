//! `headwater lag`.

use std::path::PathBuf;

use clap::Args;

use super::Global;
use crate::tool::{Result, ToolError};
use crate::{plan, serve};

/// How far a topology is behind, partition by partition, and who holds its watermark back
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  headwater lag topologies/flights/flights.yaml
  headwater lag topologies/flights/flights.yaml --json | jq 'select(.behind > 1000)'

It reads what the group has committed, so it works from anywhere, whether the topology runs or not.")]
pub struct Lag {
    /// The topology's file
    #[arg(value_name = "TOPOLOGY")]
    file: PathBuf,
}

impl Lag {
    pub fn run(self, global: &Global) -> Result<()> {
        let plan = plan::load(&self.file)?;
        let cluster = global.open_cluster()?;
        let mut out = global.printer();
        let json = out.json();
        let report = serve::lag(&plan, &*cluster.log).map_err(ToolError::from)?;
        report.print(&mut out, json).map_err(ToolError::from)?;
        out.flush()
    }
}
