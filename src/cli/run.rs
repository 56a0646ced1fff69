//! `headwater run`.

use std::path::PathBuf;

use clap::Args;

use super::Global;
use crate::tool::run::End;
use crate::tool::{self, Result};

/// Run a topology live: records in, refined records out, exactly once
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  headwater run topologies/flights/flights.yaml               until Ctrl-C: it commits and leaves the group
  headwater run topologies/flights/flights.yaml --until-end   after what the topics hold now

Start it on more machines to scale out: the group shares the partitions.")]
pub struct Run {
    /// The topology's file
    #[arg(value_name = "TOPOLOGY")]
    file: PathBuf,
    /// Stop, committed, after what the source topics held at the start
    #[arg(long)]
    until_end: bool,
    /// With --until-end: nothing comes after it, so every window closes; the topology can't go on afterwards
    #[arg(long, requires = "until_end")]
    close: bool,
}

impl Run {
    pub fn run(self, global: &Global) -> Result<()> {
        let end = match (self.until_end, self.close) {
            (false, _) => End::None,
            (true, false) => End::UntilEnd,
            (true, true) => End::Close,
        };
        tool::run::run(&global.load_config()?, &self.file, end, &mut global.printer())
    }
}
