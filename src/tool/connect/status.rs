//! `connect status`: how far connectors are, from what they committed; it works whether they run or not.

use serde::Serialize;

use crate::connect::{TaskStatus, read_status};
use crate::log::Log;
use crate::serve::text::{duration, number, time_ms};
use crate::tool::{Printer, Result, ToolError};

const CONTROL: &str = ".connect";

#[derive(Serialize)]
struct Status<'a> {
    connector: &'a str,
    task: usize,
    #[serde(flatten)]
    status: &'a TaskStatus,
    committed_at: String,
}

/// Tells of one connector, or of all that have a control topic.
pub fn status(log: &dyn Log, name: Option<&str>, now_ms: i64, out: &mut Printer) -> Result<()> {
    let names: Vec<String> = match name {
        Some(name) => vec![name.to_owned()],
        None => {
            let topics = log.topics()?;
            topics.iter().filter_map(|topic| topic.name.strip_suffix(CONTROL)).map(str::to_owned).collect()
        }
    };
    let mut rows = Vec::new();
    for name in &names {
        let Some(tasks) = read_status(log, name)? else {
            return Err(ToolError::input_with_help(
                format!("no connector '{name}' has run here: there is no topic '{name}{CONTROL}'"),
                "name it as `connect run` does; `headwater connect status` lists all",
            ));
        };
        for (task, (status, at_ms)) in tasks.iter().enumerate() {
            if out.json() {
                out.object(&Status { connector: name, task, status, committed_at: time_ms(*at_ms) })?;
                continue;
            }
            let age = duration(now_ms.saturating_sub(*at_ms).max(0) as f64 / 1000.0);
            let ago = if status.epoch == 0 { "never".to_owned() } else { format!("{age} ago") };
            let numbers = [status.tally.records, status.tally.dead, status.tally.bytes, status.lag_bytes];
            let mut row = vec![name.clone(), task.to_string(), status.phase.clone()];
            row.extend(numbers.map(number));
            row.push(ago);
            rows.push(row);
        }
    }
    if out.json() {
        return Ok(());
    }
    let header = ["connector", "task", "phase", "records", "dead", "bytes", "lag bytes", "committed"];
    out.table(&header, &rows)
}
