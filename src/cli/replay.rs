//! `headwater replay`.

use std::path::PathBuf;

use clap::Args;

use super::Global;
use crate::tool::{self, Result};

/// Replay a topology from offset zero into new versions of its lake tables
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  headwater replay topologies/flights/flights.yaml               the rows that the live run has
  headwater replay topologies/flights/flights.yaml --late 24h    the daily correction: late rows get their place
  headwater replay topologies/flights/flights.yaml --lake /data/lake

A table's new version becomes visible when all of it is written; until then, and if the replay is killed, readers
see the old one.")]
pub struct Replay {
    /// The topology's file
    #[arg(value_name = "TOPOLOGY")]
    file: PathBuf,
    /// Where to begin: only `earliest` is built
    #[arg(long, value_name = "OFFSET", default_value = "earliest", value_parser = ["earliest"])]
    from: String,
    /// Where to stop: only `now`, the ends at the start, is built
    #[arg(long, value_name = "OFFSET", default_value = "now", value_parser = ["now"])]
    until: String,
    /// The lake's folder [default: lake.url of the config, else lake/ in the data directory]
    #[arg(long, value_name = "URL")]
    lake: Option<String>,
    /// as-live: late rows stay out; a duration: each window waits at least that long; all: no row is late
    #[arg(long, value_name = "as-live|DURATION|all", default_value = "as-live")]
    late: String,
    /// Threads that read, and as many for each keyed stage [default: one a core]
    #[arg(long, value_name = "COUNT")]
    threads: Option<usize>,
}

impl Replay {
    pub fn run(self, global: &Global) -> Result<()> {
        let options = tool::replay::Options { lake: self.lake, late: self.late, threads: self.threads };
        tool::replay::replay_file(&global.load_config()?, &self.file, &options, &mut global.printer())
    }
}
