//! `headwater broker`.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::Args;

use super::Global;
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
    /// Where to listen [default: 127.0.0.1:9092, or a free port if that is taken]
    #[arg(long, value_name = "HOST:PORT")]
    listen: Option<SocketAddr>,
    /// Where its topics lie [default: broker/ in the data directory, where the other commands find it]
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
}

impl Broker {
    pub fn run(self, global: &Global) -> Result<()> {
        let stop = Stop::on_signals()?;
        let data = match self.data {
            Some(data) => data,
            None => global.load_config()?.data_dir.join("broker"),
        };
        tool::broker::serve(&data, self.listen, &stop, &mut global.printer())
    }
}
