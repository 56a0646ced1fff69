//! `headwater test`.

use std::path::PathBuf;

use clap::Args;

use super::Global;
use crate::tool::{self, Result};

/// Run the unit tests of topologies: records in, rows expected, no cluster
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  headwater test topologies                            every *_test.yaml below the folder
  headwater test topologies/flights/flights_test.yaml

A test file, beside flights.yaml as flights_test.yaml:
  cases:
    - name: cancelled flights do not count
      input:
        departures:
          - {origin: EWR, carrier: UA, dep_delay: 4, sched_dep: 2013-01-01T05:15:00Z}
          - {origin: EWR, carrier: UA, dep_delay: null, sched_dep: 2013-01-01T05:30:00Z}
      expect:
        refined:
          hourly_delay:
            - {window_start: 2013-01-01T05:00:00Z, window_end: 2013-01-01T06:00:00Z, origin: EWR, carrier: UA, flights: 1, delay: 4}

All keys: headwater schema --tests. Exit codes: 1 a case failed, 2 a file is wrong.")]
pub struct Test {
    /// Test files, topologies with a test file beside them, or folders
    #[arg(value_name = "PATH", required = true)]
    paths: Vec<PathBuf>,
}

impl Test {
    pub fn run(self, global: &Global) -> Result<()> {
        let data = global.load_config()?.data_dir;
        let was_there = data.exists();
        let scratch = data.join(format!("test-{}", std::process::id()));
        let outcome = tool::topology_test::test(&self.paths, &scratch, &mut global.printer());
        // What a test kept is of no use any more; nothing is lost where it can't be removed.
        let _ = std::fs::remove_dir_all(&scratch);
        if !was_there {
            let _ = std::fs::remove_dir(&data);
        }
        outcome
    }
}
