//! `connect pause` and `connect resume`: a command goes into the control topic, and is done once.

use std::time::{Duration, Instant};

use crate::connect::{read_status, send};
use crate::log::Log;
use crate::tool::{Printer, Result, ToolError};

pub use crate::connect::Command;

/// A connector that runs has done it by then.
const DONE_WITHIN: Duration = Duration::from_secs(5);
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// Sends the command, and waits for a moment until it is done.
pub fn command(log: &dyn Log, name: &str, what: Command, out: &mut Printer) -> Result<()> {
    let paused = what == Command::Pause;
    let done = || -> Result<bool> {
        let tasks = read_status(log, name)?.ok_or_else(|| {
            ToolError::input_with_help(
                format!("no connector '{name}' has run here: there is no topic '{name}.connect'"),
                "name it as `connect run` does; `headwater connect status` lists all",
            )
        })?;
        Ok(tasks.iter().all(|(status, _)| status.paused == paused))
    };
    let word = if paused { "paused" } else { "resumed" };
    if done()? {
        return out.line(&format!("{name} is {word} already"));
    }
    send(log, name, what)?;
    let asked = Instant::now();
    while asked.elapsed() < DONE_WITHIN {
        std::thread::sleep(LOOK_EVERY);
        if done()? {
            return out.line(&format!("{name} is {word}"));
        }
    }
    out.line(&format!("{name} does not run now; it is {word} when it starts"))
}
