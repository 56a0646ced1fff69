//! `headwater lag`: how far a topology is behind, once or again and again.

use std::io::Write;
use std::time::{Duration, Instant};

use super::{Printer, Result, Stop};
use crate::engine::EngineError;
use crate::log::{Log, LogError};
use crate::plan::Plan;
use crate::serve::{LagReport, PaceMeter, ServeError, lag};

const LOOK_EVERY: Duration = Duration::from_millis(50);
/// Back to the upper left corner; clear what is right of a line's end, and what is below.
const HOME: &str = "\x1b[H";
const CLEAR_LINE: &str = "\x1b[K";
const CLEAR_BELOW: &str = "\x1b[J";
const CLEAR_ALL: &str = "\x1b[2J";

/// Prints the lag as of now.
pub fn once(plan: &Plan, log: &dyn Log, out: &mut Printer) -> Result<()> {
    let json = out.json();
    lag(plan, log)?.print(out, json)?;
    out.flush()
}

/// Prints the lag every `interval` until `stop` is set. On a terminal (`redraw`) each takes the place of the last;
/// else they are blocks with an empty line between, or with `--json` sets of objects, each ending in a summary.
pub fn watch(
    plan: &Plan,
    log: &dyn Log,
    interval: Duration,
    redraw: bool,
    stop: &Stop,
    out: &mut Printer,
) -> Result<()> {
    let mut meter = PaceMeter::default();
    let mut first = true;
    while !stop.is_set() {
        let began = Instant::now();
        match lag(plan, log) {
            Ok(mut report) => {
                report.pace = meter.look(Instant::now(), &report);
                show(&report, redraw && !out.json(), first, out)?;
                first = false;
            }
            // Whoever watches wants to see it come back.
            Err(error) if !first && is_outage(&error) => tracing::warn!("{error}; looking again"),
            Err(error) => return Err(error.into()),
        }
        while began.elapsed() < interval && !stop.is_set() {
            std::thread::sleep(LOOK_EVERY.min(interval.saturating_sub(began.elapsed())));
        }
    }
    Ok(())
}

fn is_outage(error: &ServeError) -> bool {
    let (ServeError::Log(error) | ServeError::Engine(EngineError::Log(error))) = error else { return false };
    matches!(error, LogError::Unreachable { .. } | LogError::Stalled { .. })
}

fn show(report: &LagReport, redraw: bool, first: bool, out: &mut Printer) -> Result<()> {
    let mut block = Vec::new();
    let json = out.json();
    report.print(&mut block, json)?;
    let text = String::from_utf8_lossy(&block);
    let screen = match (redraw, first) {
        (false, true) => text.into_owned(),
        (false, false) if json => text.into_owned(),
        (false, false) => format!("\n{text}"),
        (true, _) => {
            let lines: String = text.lines().map(|line| format!("{line}{CLEAR_LINE}\n")).collect();
            format!("{}{HOME}{lines}{CLEAR_BELOW}", if first { CLEAR_ALL } else { "" })
        }
    };
    out.write_all(screen.as_bytes()).map_err(super::status::output_error)?;
    out.flush()
}

/// `--watch`'s interval.
pub fn interval(text: &str) -> std::result::Result<Duration, String> {
    match humantime::parse_duration(text) {
        Ok(interval) if interval > Duration::ZERO => Ok(interval),
        _ => Err("no duration above 0 (2s, 1m); the topology's file stands before --watch".to_owned()),
    }
}
