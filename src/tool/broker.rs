//! `broker`: the embedded broker by itself, for more than one command or for other Kafka clients.

use std::net::SocketAddr;
use std::time::Duration;

use serde::Serialize;

use crate::broker::{Attached, attach};
use crate::config::Config;

use super::{Printer, Result, Stop, ToolError};

const LOOK_FOR_STOP: Duration = Duration::from_millis(100);

#[derive(Serialize)]
struct Serving<'a> {
    address: String,
    data_dir: &'a std::path::Path,
}

/// Serves `data_dir`'s broker until stopped; an error where another process serves it already.
pub fn serve(config: &Config, listen: SocketAddr, stop: &Stop, out: &mut Printer) -> Result<()> {
    let directory = config.data_dir.join("broker");
    let broker = match attach(&directory, listen)? {
        Attached::Own(broker) => broker,
        Attached::Running(address) => {
            return Err(ToolError::input_with_help(
                format!("another process serves {} already, at {address}", directory.display()),
                format!("use that one with --brokers {address}, or another folder with --data-dir"),
            ));
        }
    };
    let address = broker.address().to_string();
    if out.json() {
        out.object(&Serving { address, data_dir: &directory })?;
    } else {
        out.line(&format!("serving {} at {address}; Ctrl-C stops it", directory.display()))?;
    }
    out.flush()?;
    while !stop.is_set() {
        std::thread::sleep(LOOK_FOR_STOP);
    }
    Ok(())
}
