//! `headwater verify`.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

use super::Global;
use crate::tool::{self, Result};

/// Prove that a replay gives what the live run gave, row for row
#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  headwater verify topologies/flights/flights.yaml

It replays up to what the live run has committed and compares the last value of each key with the refined topics.
Exit code 1 and the differing keys, if there are any. The topology may be running meanwhile.")]
pub struct Verify {
    /// The topology's file
    #[arg(value_name = "TOPOLOGY")]
    file: PathBuf,
    /// How many differing rows to print for each view
    #[arg(long, value_name = "COUNT", default_value_t = 20)]
    show: usize,
    /// How long to wait for the keyed tasks to come past the cut
    #[arg(long, value_name = "DURATION", default_value = "30s", value_parser = humantime::parse_duration)]
    patience: Duration,
}

impl Verify {
    pub fn run(self, global: &Global) -> Result<()> {
        let config = global.load_config()?;
        tool::verify::verify_file(&config, &self.file, self.show, self.patience, &mut global.printer())
    }
}
