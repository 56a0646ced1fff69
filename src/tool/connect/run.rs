//! `connect run`: connectors live, each in a thread of its own.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::config::Config;
use crate::connect::{self, ConnectError, Connector, Options, Progress, Report, Tally};
use crate::serve::text::count;
use crate::tool::cluster;
use crate::tool::{Printer, Result, Stop, ToolError};

/// How often a run says where it is.
const REPORT_EVERY: Duration = Duration::from_secs(10);
const LOOK_EVERY: Duration = Duration::from_millis(50);

#[derive(Serialize)]
struct Moment<'a> {
    connector: &'a str,
    phase: &'a str,
    #[serde(flatten)]
    tally: &'a Tally,
    lag_bytes: u64,
}

/// Runs the connectors of files until a signal, or until each has read all that its source has.
pub fn run(config: &Config, files: &[PathBuf], until_caught_up: bool, out: &mut Printer) -> Result<()> {
    let mut connectors: BTreeMap<String, Connector> = BTreeMap::new();
    for file in files {
        let connector = Connector::load(file)?;
        let name = connector.name.clone();
        if connectors.insert(name.clone(), connector).is_some() {
            return Err(ToolError::input_with_help(
                format!("two connectors are named '{name}'"),
                "give one of them another: name:",
            ));
        }
    }
    let stop = Stop::on_signals()?;
    let cluster = cluster::open(config)?;
    if !out.json() {
        let broker = if config.brokers.is_none() { "the embedded broker" } else { "Kafka" };
        for connector in connectors.values() {
            let (name, topic) = (&connector.name, connector.topic());
            out.line(&format!(
                "connector '{name}' writes to the topic {topic} on {broker} at {}",
                cluster.address
            ))?;
        }
        out.flush()?;
    }
    let options = Options { data_dir: config.data_dir.clone(), until_caught_up };
    let watched: Vec<(&Connector, Progress)> =
        connectors.values().map(|connector| (connector, Progress::default())).collect();
    let mut closed = None;
    let outcomes: Vec<(&str, Result<Report, ConnectError>)> = std::thread::scope(|scope| {
        let running: Vec<_> = watched
            .iter()
            .map(|(connector, progress)| {
                let (log, options, flag, watched) = (&cluster.log, &options, stop.flag(), &watched);
                let several = watched.len() > 1;
                let run = move || {
                    let outcome = connect::run(connector, log, options, progress, &flag);
                    // The others go on: it is said now, and is the command's error once all have ended.
                    if let (true, Err(error)) = (several, &outcome) {
                        tracing::error!("connector '{}' has stopped: {error}", connector.name);
                    }
                    outcome
                };
                (*connector, scope.spawn(run))
            })
            .collect();
        let mut reported = Instant::now();
        while running.iter().any(|(_, thread)| !thread.is_finished()) {
            std::thread::sleep(LOOK_EVERY);
            if reported.elapsed() >= REPORT_EVERY {
                reported = Instant::now();
                if let Err(error) = report(&watched, out).and_then(|()| out.flush()) {
                    stop.set();
                    closed.get_or_insert(error);
                }
            }
        }
        let panicked = |name: &str| {
            let source = std::io::Error::other("it panicked; what is committed is safe");
            Err(ConnectError::Io { what: format!("connector '{name}'"), source })
        };
        running
            .into_iter()
            .map(|(connector, thread)| {
                let name = connector.name.as_str();
                (name, thread.join().unwrap_or_else(|_| panicked(name)))
            })
            .collect()
    });
    if let Some(closed) = closed {
        return Err(closed);
    }
    finish(outcomes, until_caught_up, out)
}

fn report(watched: &[(&Connector, Progress)], out: &mut Printer) -> Result<()> {
    for (connector, progress) in watched {
        let tasks = progress.tasks();
        let Some(task) = tasks.values().next() else { continue };
        let tally = progress.sum();
        if out.json() {
            let (connector, phase) = (connector.name.as_str(), task.phase.as_str());
            out.object(&Moment { connector, phase, tally: &tally, lag_bytes: task.lag_bytes })?;
            continue;
        }
        let trouble = task.trouble.as_ref().map(|why| format!(": {why}")).unwrap_or_default();
        out.line(&format!("{}  {}  {}{trouble}", connector.name, counted(&tally), task.phase))?;
    }
    Ok(())
}

fn counted(tally: &Tally) -> String {
    format!("{}  {}", count(tally.records, "record"), count(tally.dead, "dead letter"))
}

/// What each has done; the first that failed is the command's error.
fn finish(
    outcomes: Vec<(&str, Result<Report, ConnectError>)>,
    until_caught_up: bool,
    out: &mut Printer,
) -> Result<()> {
    let mut failed = None;
    for (name, outcome) in outcomes {
        match outcome {
            Ok(report) if out.json() => {
                let phase = if report.caught_up { "caught up" } else { "stopped" };
                out.object(&Moment { connector: name, phase, tally: &report.tally, lag_bytes: 0 })?;
            }
            Ok(report) => {
                let why = if report.caught_up { "caught up" } else { "stopped" };
                out.line(&format!(
                    "{name}  {}  {why} and committed after {}",
                    counted(&report.tally),
                    count(report.commits, "commit")
                ))?;
                if report.tally.dead > 0 {
                    out.line(&format!(
                        "  what could not be read, with file and line: headwater topic tail {} --from-beginning --json",
                        connect::dead_topic(name)
                    ))?;
                }
                if until_caught_up && !report.caught_up {
                    failed.get_or_insert(ToolError::Failed {
                        message: format!("connector '{name}' was stopped before it had read all"),
                        help: Some("what is committed stays: the same command goes on from there".to_owned()),
                    });
                }
            }
            Err(error) => {
                failed.get_or_insert(error.into());
            }
        }
    }
    out.flush()?;
    failed.map_or(Ok(()), Err)
}
