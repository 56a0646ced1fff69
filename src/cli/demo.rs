//! `headwater demo`.

use clap::Args;

use super::Global;
use crate::tool::{self, Result};

/// See it work: a month of real flights, live, verified, and replayed into Parquet; takes under a minute
#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  headwater demo

It keeps everything in .headwater/demo, which it wipes when it starts, and serves its own embedded broker there.")]
pub struct Demo {}

impl Demo {
    pub fn run(self, global: &Global) -> Result<()> {
        tool::demo::demo(&global.load_config()?, &mut global.printer())
    }
}
