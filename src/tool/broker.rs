//! `broker`: the embedded broker by itself, for more than one command or for other Kafka clients.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use serde::Serialize;

use crate::broker::{Attached, Broker, BrokerError, Options, attach};

use super::cluster::PREFERRED_ADDRESS;
use super::{Printer, Result, Stop, ToolError};

const LOOK_FOR_STOP: Duration = Duration::from_millis(100);

#[derive(Serialize)]
struct Serving<'a> {
    address: String,
    data_dir: &'a Path,
}

/// Serves a folder's broker until stopped; an error where another process serves it already, or listens on
/// the address that was asked for.
pub fn serve(directory: &Path, listen: Option<SocketAddr>, stop: &Stop, out: &mut Printer) -> Result<()> {
    let served = |address: String| {
        ToolError::input_with_help(
            format!("another process serves {} already{address}", directory.display()),
            "use that one with --brokers, or serve another folder with --data",
        )
    };
    let attached = match listen {
        None => attach(directory, PREFERRED_ADDRESS)?,
        Some(listen) => match Broker::start(&Options { listen, data_dir: directory.to_owned() }) {
            Err(BrokerError::Locked { .. }) => return Err(served(String::new())),
            started => Attached::Own(started?),
        },
    };
    let broker = match attached {
        Attached::Own(broker) => broker,
        Attached::Running(address) => return Err(served(format!(", at {address}"))),
    };
    let address = broker.address().to_string();
    if out.json() {
        out.object(&Serving { address, data_dir: directory })?;
    } else {
        out.line(&format!("serving {} at {address}; Ctrl-C stops it", directory.display()))?;
    }
    out.flush()?;
    while !stop.is_set() {
        std::thread::sleep(LOOK_FOR_STOP);
    }
    Ok(())
}
