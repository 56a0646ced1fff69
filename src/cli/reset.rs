//! `headwater reset`.

use std::path::PathBuf;

use clap::Args;

use super::Global;
use crate::tool::reset::{self, ResetOptions, ResetTo};
use crate::tool::{Result, run, topology_file};

/// Set where a topology goes on; its processes must be stopped
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  headwater reset topologies/flights/flights.yaml --to earliest --dry-run
  headwater reset topologies/flights/flights.yaml --to 2h

State belongs to the offsets that it was folded from: a topology with keyed stages can only begin anew
(--to earliest), which also deletes its exchange topics and its state. Refined records that it has written stay.")]
pub struct Reset {
    /// The topology's file
    #[arg(value_name = "TOPOLOGY")]
    file: PathBuf,
    /// earliest, latest, a duration back (2h) or a time (2026-01-31T12:00:00Z)
    #[arg(long, value_name = "WHERE")]
    to: String,
    /// Other machines' state directories of this topology are deleted
    #[arg(long)]
    elsewhere_cleared: bool,
    /// Only say what would be done
    #[arg(long)]
    dry_run: bool,
}

impl Reset {
    pub fn run(self, global: &Global) -> Result<()> {
        let plan = topology_file::load(&self.file)?;
        let to = ResetTo::parse(&self.to, chrono::Utc::now().timestamp_millis())?;
        let config = global.load_config()?;
        let settings = run::options(&config, run::End::None);
        let options = ResetOptions {
            to,
            state_dir: settings.state_dir,
            checkpoints: settings.checkpoints,
            // Copies that stay in the data directory are no other machine's.
            elsewhere_cleared: self.elsewhere_cleared || config.state.url.is_none(),
            dry_run: self.dry_run,
        };
        let cluster = global.open_cluster()?;
        let mut out = global.printer();
        let json = out.json();
        reset::reset(&plan, &*cluster.log, &options, &mut out, json)?;
        out.flush()
    }
}
