//! `headwater lag`.

use std::io::IsTerminal;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

use super::Global;
use crate::tool::{Result, Stop, lag, topology_file};

/// How far a topology is behind, partition by partition, and who holds its watermark back
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  headwater lag topologies/flights/flights.yaml
  headwater lag topologies/flights/flights.yaml --watch
  headwater lag topologies/flights/flights.yaml --json | jq 'select(.lag_records > 1000)'

It reads what the group has committed, so it works from anywhere, whether the topology runs or not. --watch also \
says how fast it reads and when it will have caught up, from the rates of the last minute; - where its lag does not \
shrink.")]
pub struct Lag {
    /// The topology's file
    #[arg(value_name = "TOPOLOGY")]
    file: PathBuf,
    /// Look again every INTERVAL [default: 2s] until Ctrl-C: redrawn on a terminal, else one after the other
    #[arg(long, value_name = "INTERVAL", num_args = 0..=1, default_missing_value = "2s", value_parser = lag::interval)]
    watch: Option<Duration>,
}

impl Lag {
    pub fn run(self, global: &Global) -> Result<()> {
        let plan = topology_file::load(&self.file)?;
        let cluster = global.open_cluster()?;
        let mut out = global.printer();
        match self.watch {
            None => lag::once(&plan, &*cluster.log, &mut out),
            Some(interval) => {
                let stop = Stop::on_signals()?;
                let redraw = std::io::stdout().is_terminal();
                lag::watch(&plan, &*cluster.log, interval, redraw, &stop, &mut out)
            }
        }
    }
}
