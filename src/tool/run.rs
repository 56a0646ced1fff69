//! `headwater run`: a topology live.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::config::Config;
use crate::engine::{self, Progress, RunOptions, RunReport, TaskRole};
use crate::objects::Location;
use crate::plan::{Plan, StageInput};
use crate::serve::{Server, Watched, text};
use crate::time::WATERMARK_MIN;

use super::cluster::{self, Cluster};
use super::watch::{counters, watermark};
use super::{Printer, Result, Stop, ToolError, outage, topology_file};

/// How often a run says where it is.
const REPORT_EVERY: Duration = Duration::from_secs(10);
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// When a run ends by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// Never: it runs until it is stopped.
    None,
    /// After what the sources hold at the start; windows stay open.
    UntilEnd,
    /// There too, and for good: every window closes.
    Close,
}

/// The engine's settings from the config.
pub fn options(config: &Config, end: End) -> RunOptions {
    let copies = || config.data_dir.join("checkpoints").display().to_string();
    let copies = Location::new(config.state.url.clone().unwrap_or_else(copies), &config.s3);
    RunOptions {
        threads: config.worker.thread_count(),
        epoch: config.worker.epoch,
        epoch_rows: config.worker.epoch_rows as u64,
        epoch_bytes: config.worker.epoch_bytes,
        checkpoint_interval: config.worker.checkpoint_interval,
        state_budget: config.state.budget as usize,
        state_dir: config.data_dir.join("state"),
        checkpoints: Some(copies),
        until_end: end != End::None,
        close: end == End::Close,
    }
}

#[derive(Serialize)]
struct Moment {
    topology: String,
    read: u64,
    refined: u64,
    filtered: u64,
    late: u64,
    dead: u64,
    watermark: Option<String>,
    commits: u64,
}

/// Runs the topology of a file until a signal, or to the ends that its sources have now.
pub fn run(config: &Config, file: &Path, end: End, out: &mut Printer) -> Result<()> {
    let plan = Arc::new(topology_file::load(file)?);
    let stop = Stop::on_signals()?;
    let cluster = cluster::open(config)?;
    if !out.json() {
        let broker = if config.brokers.is_none() { "the embedded broker" } else { "Kafka" };
        out.line(&format!("topology '{}' runs on {broker} at {}", plan.name, cluster.address))?;
        let keyed = plan.stages.iter().any(|stage| matches!(stage.input, StageInput::Exchange { .. }));
        if keyed && config.state.url.is_none() {
            out.line("checkpoints stay on this machine; to go on elsewhere set state.url to a bucket, or a folder all machines mount")?;
        }
        out.flush()?;
    }
    let progress = Progress::default();
    let watched_here =
        Watched { plan: Arc::clone(&plan), log: Arc::clone(&cluster.log), progress: progress.clone() };
    let served = Server::start_or_warn(&config.http.listen, Arc::new(watched_here));
    if let (Some(server), false) = (&served, out.json()) {
        out.line(&format!("the page is at http://{}/", server.address()))?;
        out.flush()?;
    }
    let report = watched(&plan, &cluster, config, end, &progress, &stop, out)?;
    finish(&plan, &report, &progress, out)?;
    if end != End::None && !report.reached_end {
        return Err(ToolError::Failed {
            message: "stopped before the ends that the sources had at the start".to_owned(),
            help: Some("what is committed stays: the same command goes on from there".to_owned()),
        });
    }
    Ok(())
}

/// Runs in a thread of its own and reports meanwhile.
fn watched(
    plan: &Arc<Plan>,
    cluster: &Cluster,
    config: &Config,
    end: End,
    progress: &Progress,
    stop: &Stop,
    out: &mut Printer,
) -> Result<RunReport> {
    let options = &options(config, end);
    std::thread::scope(|scope| {
        let flag = stop.flag();
        let running = scope.spawn(move || {
            let run = || engine::run(plan, &cluster.log, options, progress, &flag);
            outage::run_through(config.kafka_outage, progress, &flag, run)
        });
        let mut reported = Instant::now();
        let mut closed = None;
        while !running.is_finished() {
            std::thread::sleep(LOOK_EVERY);
            if reported.elapsed() >= REPORT_EVERY {
                reported = Instant::now();
                if let Err(error) = report(plan, progress, out).and_then(|()| out.flush()) {
                    stop.set();
                    closed.get_or_insert(error);
                }
            }
        }
        let outcome = running.join().map_err(|_| ToolError::Failed {
            message: "the topology panicked; what is committed is safe".to_owned(),
            help: None,
        })?;
        match closed {
            Some(error) => Err(error),
            None => Ok(outcome?),
        }
    })
}

fn report(plan: &Plan, progress: &Progress, out: &mut Printer) -> Result<()> {
    let (sum, watermark) = (progress.counters_kept(), watermark(progress));
    if !out.json() {
        return out.line(&format!("{}  watermark {}", counters(&sum), text::watermark(watermark)));
    }
    out.object(&Moment {
        topology: plan.name.to_string(),
        read: sum.read,
        refined: sum.refined,
        filtered: sum.filtered,
        late: sum.late,
        dead: sum.dead,
        watermark: (watermark != crate::time::WATERMARK_MIN).then(|| text::watermark(watermark)),
        commits: progress.commits().0,
    })
}

fn finish(plan: &Plan, run: &RunReport, progress: &Progress, out: &mut Printer) -> Result<()> {
    report(plan, progress, out)?;
    if !out.json() {
        let open: u64 = progress.tasks().values().filter_map(|task| task.open_windows).sum();
        let why = if run.reached_end { "reached the ends" } else { "stopped" };
        out.line(&format!("{why} and committed after {} commits", text::number(run.commits)))?;
        if open > 0 {
            let windows = if open == 1 { "window stays" } else { "windows stay" };
            let origins = progress.tasks().into_iter().filter(|(_, task)| task.role == TaskRole::Ingest);
            let lowest = origins.min_by_key(|(_, task)| task.watermark).map(|(origin, task)| {
                match task.watermark == WATERMARK_MIN {
                    true => format!(": nothing has come in {origin} yet"),
                    false => format!("; the lowest one is that of {origin}"),
                }
            });
            out.line(&format!(
                "{} {windows} open until more records move the watermark{}",
                text::number(open),
                lowest.unwrap_or_default()
            ))?;
        }
    }
    out.flush()
}
