//! `headwater replay`: a topology's records from offset zero into a new version of its lake tables.
//!
//! Invariant: a table's new version becomes visible only when every row of it is written; a replay that
//! fails or is killed leaves the old version as it was.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::config::Config;
use crate::engine::{
    EngineError, Progress, ReplayOptions, ReplayReport, ReplaySink, SinkWriter, TopicNames, replay,
};
use crate::lake::{
    FinishedPart, Lake, LakeError, Manifest, NewVersion, OffsetRange, PartWriter, PartitionBy, RunInfo,
    TableSpec,
};
use crate::log::Log;
use crate::objects::Location;
use crate::plan::{LakePartition, Late, Plan};
use crate::record::{Batch, TopicPartition};
use crate::serve::text;

use super::cluster;
use super::watch::counters;
use super::{Printer, Stop, ToolError, topology_file};

const BAR_EVERY: Duration = Duration::from_millis(100);

/// What the command line says of a replay.
pub struct Options {
    pub lake: Option<String>,
    pub late: String,
    pub threads: Option<usize>,
}

/// `as-live`, `all`, or a duration.
pub fn parse_late(text: &str) -> Result<Late, ToolError> {
    match text {
        "as-live" => Ok(Late::AsLive),
        "all" => Ok(Late::All),
        duration => humantime::parse_duration(duration)
            .map(|duration| Late::AtLeast(i64::try_from(duration.as_micros()).unwrap_or(i64::MAX)))
            .map_err(|_| {
                ToolError::input_with_help(
                    format!("--late {duration}: '{duration}' is neither as-live, all, nor a duration"),
                    "a duration is like 24h or 90m",
                )
            }),
    }
}

#[derive(Serialize)]
struct Published<'a> {
    view: &'a str,
    table: &'a str,
    version: u64,
    rows: u64,
    bytes: u64,
    files: usize,
    digest: String,
    duckdb: &'a str,
}

/// Replays the topology of a file, with a progress bar where a person watches.
pub fn replay_file(
    config: &Config,
    file: &Path,
    options: &Options,
    out: &mut Printer,
) -> Result<(), ToolError> {
    let plan = topology_file::load(file)?;
    let late = parse_late(&options.late)?;
    let stop = Stop::on_signals()?;
    let cluster = cluster::open(config)?;
    let data = &config.data_dir;
    let lake = options.lake.clone().or_else(|| config.lake.url.clone());
    let replay = LakeReplay {
        lake: Location::new(lake.unwrap_or_else(|| data.join("lake").display().to_string()), &config.s3),
        late,
        late_text: options.late.clone(),
        threads: options.threads.unwrap_or_else(|| config.worker.thread_count()),
        state_budget: config.state.budget as usize,
        scratch: data.join(format!("scratch-{}", std::process::id())),
    };
    let started = Instant::now();
    let progress = Progress::default();
    let total = records_held(&plan, &*cluster.log)?;
    let report = with_bar(total, &progress, || {
        replay_into_lake(&plan, &cluster.log, &replay, &progress, &stop.flag())
    });
    let _ = std::fs::remove_dir_all(&replay.scratch); // emptied at the next start in any case
    let report = report?;
    print_report(&report, started.elapsed().as_secs_f64(), out)?;
    out.flush()
}

/// Upper bound of the records to read: transaction markers count as well.
fn records_held(plan: &Plan, log: &dyn Log) -> Result<u64, ToolError> {
    let mut total = 0;
    for (topic, count) in TopicNames::sources(plan, log)? {
        for partition in 0..count {
            let bounds = log.bounds(&TopicPartition::new(Arc::clone(&topic), partition))?;
            total += (bounds.end - bounds.start).max(0) as u64;
        }
    }
    Ok(total)
}

/// Shows a bar on a terminal's stderr while `work` runs; nothing where nobody watches.
pub fn with_bar<T: Send>(total: u64, progress: &Progress, work: impl FnOnce() -> T + Send) -> T {
    let style = "{bar:30} {human_pos}/{human_len} records  {per_sec}  ETA {eta}";
    let bar = indicatif::ProgressBar::new(total);
    if let Ok(style) = indicatif::ProgressStyle::with_template(style) {
        bar.set_style(style);
    }
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let (bar, done) = (&bar, &done);
        scope.spawn(move || {
            while !done.load(Ordering::Acquire) {
                bar.set_position(progress.counters().read);
                std::thread::sleep(BAR_EVERY);
            }
            bar.finish_and_clear();
        });
        let result = work();
        done.store(true, Ordering::Release);
        result
    })
}

fn print_report(report: &LakeReport, seconds: f64, out: &mut Printer) -> Result<(), ToolError> {
    if !out.json() {
        out.line(&format!("{}  in {seconds:.1} s", counters(&report.replay.counters)))?;
    }
    for (partition, (from, _)) in &report.replay.offsets {
        if *from > 0 && !out.json() {
            out.line(&format!(
                "note: {partition} begins at offset {from}: what was before is gone from the topic and not in this version"
            ))?;
        }
    }
    for (view, manifest, query) in &report.tables {
        if out.json() {
            out.object(&Published {
                view,
                table: &manifest.table,
                version: manifest.version,
                rows: manifest.rows,
                bytes: manifest.bytes,
                files: manifest.files.len(),
                digest: manifest.digest.to_string(),
                duckdb: query,
            })?;
        } else {
            out.line(&format!(
                "{} is now version {}: {} rows in {} files, digest {}",
                manifest.table,
                manifest.version,
                text::number(manifest.rows),
                manifest.files.len(),
                manifest.digest
            ))?;
            out.line(&format!("read it with DuckDB:\n  {query}"))?;
        }
    }
    Ok(())
}

/// How to replay into a lake. Sizes in bytes.
pub struct LakeReplay {
    pub lake: Location,
    pub late: Late,
    /// As the user wrote it, for the manifests.
    pub late_text: String,
    pub threads: usize,
    pub state_budget: usize,
    pub scratch: PathBuf,
}

/// What a replay has published.
#[derive(Debug)]
pub struct LakeReport {
    pub replay: ReplayReport,
    /// View, its new version, and the query that reads exactly it.
    pub tables: Vec<(Arc<str>, Manifest, String)>,
}

#[derive(Debug, thiserror::Error)]
pub enum ReplayError {
    #[error("no sink of topology '{0}' has a lake table; add to a sink: lake: {{table: NAME}}")]
    NoTable(String),
    #[error(transparent)]
    Engine(#[from] EngineError),
    #[error(transparent)]
    Lake(#[from] LakeError),
}

/// Replays into new versions of the tables of all sinks that have one.
pub fn replay_into_lake(
    plan: &Plan,
    log: &Arc<dyn Log>,
    options: &LakeReplay,
    progress: &Progress,
    stop: &AtomicBool,
) -> Result<LakeReport, ReplayError> {
    if plan.sinks.iter().all(|sink| sink.lake.is_none()) {
        return Err(ReplayError::NoTable(plan.name.to_string()));
    }
    let started = chrono::Utc::now();
    let lake = Lake::open(&options.lake)?;
    let tables = Tables::begin(plan, &lake)?;
    let bounded = ReplayOptions {
        late: options.late,
        until: BTreeMap::new(),
        threads: options.threads,
        state_budget: options.state_budget,
        scratch: Some(options.scratch.clone()),
    };
    let report = match replay(plan, log, &bounded, &tables, progress, stop) {
        Ok(report) => report,
        Err(error) => {
            tables.abandon()?;
            return Err(error.into());
        }
    };
    let mut offsets: BTreeMap<String, BTreeMap<i32, OffsetRange>> = BTreeMap::new();
    for (partition, &(from, until)) in &report.offsets {
        let topic = offsets.entry(partition.topic.to_string()).or_default();
        topic.insert(partition.partition, OffsetRange { from, until });
    }
    let counters = &report.counters;
    let counts = BTreeMap::from([
        ("read".to_string(), counters.read),
        ("refined".to_string(), counters.refined),
        ("filtered".to_string(), counters.filtered),
        ("late".to_string(), counters.late),
        ("dead".to_string(), counters.dead),
    ]);
    let info = RunInfo {
        topology: plan.name.to_string(),
        fingerprint: plan.fingerprint.clone(),
        late: options.late_text.clone(),
        offsets,
        counts,
        started,
        ended: chrono::Utc::now(),
    };
    let mut published = Vec::new();
    for (view, manifest) in tables.publish(plan, &info)? {
        let query = crate::lake::duckdb_query(&manifest, lake.url());
        published.push((view, manifest, query));
    }
    Ok(LakeReport { replay: report, tables: published })
}

/// The new versions being written, by sink.
struct Tables {
    versions: Vec<Option<NewVersion>>,
    finished: Mutex<Vec<Vec<FinishedPart>>>,
}

impl Tables {
    fn begin(plan: &Plan, lake: &Lake) -> Result<Self, LakeError> {
        let mut versions = Vec::new();
        for sink in &plan.sinks {
            versions.push(match &sink.lake {
                None => None,
                Some(table) => Some(lake.begin(TableSpec {
                    path: table.table.clone(),
                    schema: Arc::clone(&sink.schema),
                    partition_by: table.partition_by.iter().map(partition_by).collect(),
                })?),
            });
        }
        let finished = Mutex::new(plan.sinks.iter().map(|_| Vec::new()).collect());
        Ok(Self { versions, finished })
    }

    fn publish(self, plan: &Plan, info: &RunInfo) -> Result<Vec<(Arc<str>, Manifest)>, LakeError> {
        let finished = self.finished.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
        let mut published = Vec::new();
        for ((sink, version), parts) in plan.sinks.iter().zip(self.versions).zip(finished) {
            if let Some(version) = version {
                published.push((Arc::clone(&sink.view), version.publish(parts, info.clone())?));
            }
        }
        Ok(published)
    }

    fn abandon(self) -> Result<(), LakeError> {
        self.versions.into_iter().flatten().try_for_each(NewVersion::abandon)
    }
}

fn partition_by(partition: &LakePartition) -> PartitionBy {
    match partition {
        LakePartition::Column(column) => PartitionBy::Column(column.clone()),
        LakePartition::Date(column) => PartitionBy::Date(column.clone()),
    }
}

impl ReplaySink for Tables {
    fn writer<'a>(&'a self, task: usize) -> Result<Box<dyn SinkWriter + 'a>, EngineError> {
        let mut parts = Vec::new();
        for version in &self.versions {
            parts.push(match version {
                None => None,
                Some(version) => Some(version.writer(task).map_err(failed)?),
            });
        }
        Ok(Box::new(TableWriter { tables: self, parts }))
    }
}

struct TableWriter<'a> {
    tables: &'a Tables,
    parts: Vec<Option<PartWriter>>,
}

impl SinkWriter for TableWriter<'_> {
    fn write(&mut self, sink: usize, rows: &Batch) -> Result<(), EngineError> {
        if (0..rows.weight.as_ref().map_or(0, |_| rows.num_rows())).any(|row| rows.weight(row) < 0) {
            return Err(EngineError::Sink("a replay took back a row; please report it".to_owned()));
        }
        match &mut self.parts[sink] {
            Some(part) => part.write(&rows.rows).map_err(failed),
            None => Ok(()),
        }
    }

    fn finish(self: Box<Self>) -> Result<(), EngineError> {
        for (sink, part) in self.parts.into_iter().enumerate() {
            if let Some(part) = part {
                let finished = part.finish().map_err(failed)?;
                let mut all = self.tables.finished.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
                all[sink].push(finished);
            }
        }
        Ok(())
    }
}

fn failed(error: LakeError) -> EngineError {
    EngineError::Sink(error.to_string())
}
