//! `headwater broker`.

use std::net::SocketAddr;

use clap::Args;

use super::Global;
use crate::tool::cluster::PREFERRED_ADDRESS;
use crate::tool::{self, Result, Stop};

const EXAMPLES: &str = "\
Commands start the embedded broker by themselves, each for its own time. Start it here to keep it up between
commands, or for other Kafka clients:
  headwater broker &
  headwater topic list";

/// Serve the embedded broker until Ctrl-C
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct Broker {
    /// Where to listen; another free port if this one is taken
    #[arg(long, value_name = "ADDRESS", default_value_t = PREFERRED_ADDRESS)]
    listen: SocketAddr,
}

impl Broker {
    pub fn run(self, global: &Global) -> Result<()> {
        let stop = Stop::on_signals()?;
        tool::broker::serve(&global.load_config()?, self.listen, &stop, &mut global.printer())
    }
}
