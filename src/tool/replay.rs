//! `headwater replay`: a topology's records from offset zero into a new version of its lake tables.
//!
//! Invariant: a table's new version becomes visible only when every row of it is written; a replay that
//! fails or is killed leaves the old version as it was.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};

use crate::engine::{EngineError, Progress, ReplayOptions, ReplayReport, ReplaySink, SinkWriter, replay};
use crate::lake::{
    FinishedPart, Lake, LakeError, Manifest, NewVersion, OffsetRange, PartWriter, PartitionBy, RunInfo,
    TableSpec,
};
use crate::log::Log;
use crate::plan::{LakePartition, Late, Plan};
use crate::record::Batch;

/// How to replay into a lake. Sizes in bytes.
pub struct LakeReplay {
    pub lake: String,
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
