//! `headwater reset --to`: where a topology goes on reading.
//!
//! The offsets of a topology without keyed stages can be set freely. State belongs to offsets: a topology with
//! keyed stages can only begin anew, with its exchanges, its state and its memory of itself deleted.
//!
//! Invariant: nothing is touched while a member of the group lives; the broker refuses to set offsets then, and
//! setting them comes first.
//! Invariant: a reset that breaks off leaves marked offsets, which `run` refuses by name; doing it again
//! completes it.

#[cfg(test)]
mod tests;

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Serialize;

use super::ToolError;
use super::dead_letters::Filters;
use crate::engine::{EngineError, Meta, MetaRecord, OffsetMetadata, TopicNames, accept_sources};
use crate::log::{Log, LogError, Position};
use crate::objects::Location;
use crate::plan::{Plan, StageInput};
use crate::record::TopicPartition;
use crate::serve::text;
use crate::state::{Checkpoints, StateDir, StateError};
use crate::time::WATERMARK_MIN;

/// Beside the offsets of a reset that has begun; no metadata that `run` takes.
const MARK: &str = "headwater reset has begun and was not completed";

pub type Result<T, E = ResetError> = std::result::Result<T, E>;

#[derive(Debug, thiserror::Error)]
pub enum ResetError {
    #[error("'{0}' is neither earliest, latest, a duration back (2h) nor a time (2026-01-31T12:00:00Z)")]
    BadTarget(String),
    #[error(
        "topology '{topology}' has keyed stages ({stages}), and their state belongs to the offsets that it was \
         folded from: moved offsets would leave windows counted twice or in part. It can begin anew with: headwater \
         reset --to earliest, which also deletes its exchange topics and its state; or run the file under a new name"
    )]
    Keyed { topology: String, stages: String },
    #[error(
        "checkpoints of topology '{topology}' are copied to {place}, so other machines may hold its state in their \
         state directories, and an old one there would be taken for new later. Delete the directory \
         '{directory}' on every other machine, then say that it is done"
    )]
    Elsewhere { topology: String, place: String, directory: String },
    #[error(
        "the offsets of group '{group}' can't be set: {source}; stop every process of the topology first (one that \
         was killed, or left over TLS or SASL, counts as alive for 10 s more)"
    )]
    Offsets { group: String, source: LogError },
    #[error(transparent)]
    Log(#[from] LogError),
    #[error(transparent)]
    Engine(#[from] EngineError),
    #[error(transparent)]
    State(#[from] StateError),
    #[error("cannot write the output: {0}")]
    Output(#[from] io::Error),
}

impl From<ResetError> for ToolError {
    fn from(error: ResetError) -> Self {
        match error {
            ResetError::Log(error) => error.into(),
            ResetError::Engine(error) => error.into(),
            ResetError::Output(error) => super::status::output_error(error),
            ResetError::BadTarget(_) | ResetError::Keyed { .. } | ResetError::Elsewhere { .. } => {
                ToolError::input(error.to_string())
            }
            other => ToolError::Failed { message: other.to_string(), help: None },
        }
    }
}

/// Where to go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ResetTo {
    /// The first records that the topics still hold.
    Earliest,
    /// After the last records that they hold now.
    Latest,
    /// The first record whose log timestamp is at or after this, milliseconds since 1970.
    At(i64),
}

impl ResetTo {
    /// `now_ms`: what a duration counts back from.
    pub fn parse(text: &str, now_ms: i64) -> Result<Self> {
        match text {
            "earliest" => Ok(Self::Earliest),
            "latest" => Ok(Self::Latest),
            other => match Filters::since(other, now_ms) {
                Ok(since) => Ok(Self::At(since)),
                Err(_) => Err(ResetError::BadTarget(other.to_string())),
            },
        }
    }
}

#[derive(Clone, Debug)]
pub struct ResetOptions {
    pub to: ResetTo,
    /// As `run` has it: the topology's own folder is in it.
    pub state_dir: PathBuf,
    /// Where `run` copies checkpoints to.
    pub checkpoints: Option<Location>,
    /// The user says that no other machine holds state of the topology.
    pub elsewhere_cleared: bool,
    /// Only say what would be done.
    pub dry_run: bool,
}

/// What a reset does, or has done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ResetReport {
    pub topology: Arc<str>,
    pub dry_run: bool,
    pub offsets: Vec<MovedOffset>,
    pub deleted_topics: Vec<String>,
    /// Tasks whose state in the state directory is deleted.
    pub deleted_tasks: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct MovedOffset {
    pub topic: Arc<str>,
    pub partition: i32,
    /// `None`: nothing was committed.
    pub from: Option<i64>,
    pub to: i64,
}

/// Sets where the topology goes on, and says what was done: as text, or as one JSON object.
pub fn reset(
    plan: &Plan,
    log: &dyn Log,
    options: &ResetOptions,
    out: &mut dyn Write,
    json: bool,
) -> Result<()> {
    let report = apply(plan, log, options)?;
    if json {
        serde_json::to_writer(&mut *out, &report).map_err(io::Error::from)?;
        writeln!(out)?;
        return Ok(());
    }
    print(plan, &report, out)
}

/// Does it.
pub fn apply(plan: &Plan, log: &dyn Log, options: &ResetOptions) -> Result<ResetReport> {
    let meta = Meta::read(plan, log)?.map(|meta| meta.topology);
    let keyed: Vec<&str> = plan
        .stages
        .iter()
        .filter(|stage| matches!(stage.input, StageInput::Exchange { .. }))
        .map(|stage| &*stage.name)
        .collect();
    // What the file says now, and what the topology was when it ran.
    let exchanges = exchanges(plan, log, meta.as_ref())?;
    let offsets = targets(plan, log, options.to)?;
    let mut report = ResetReport {
        topology: Arc::clone(&plan.name),
        dry_run: options.dry_run,
        offsets,
        deleted_topics: Vec::new(),
        deleted_tasks: Vec::new(),
    };
    if keyed.is_empty() && exchanges.is_empty() {
        if !options.dry_run {
            commit(plan, log, &report.offsets, &OffsetMetadata::new(WATERMARK_MIN).to_text())?;
            accept_sources(plan, log)?;
        }
        return Ok(report);
    }
    if options.to != ResetTo::Earliest {
        let topology = plan.name.to_string();
        let stages = if keyed.is_empty() { "before the file was changed".into() } else { keyed.join(", ") };
        return Err(ResetError::Keyed { topology, stages });
    }
    let directory = options.state_dir.join(&*plan.name);
    if let (Some(place), false) = (&options.checkpoints, options.elsewhere_cleared) {
        return Err(ResetError::Elsewhere {
            topology: plan.name.to_string(),
            place: place.url.clone(),
            directory: directory.display().to_string(),
        });
    }
    let meta_topic = TopicNames::of(plan).meta.to_string();
    report.deleted_topics = exchanges;
    if log.partitions(&meta_topic)?.is_some() {
        report.deleted_topics.push(meta_topic);
    }
    if !options.dry_run || directory.is_dir() {
        begin_anew(plan, log, options, &directory, &mut report)?;
    }
    Ok(report)
}

/// Everything but the sources and the refined topics goes, and the offsets begin again.
fn begin_anew(
    plan: &Plan,
    log: &dyn Log,
    options: &ResetOptions,
    directory: &Path,
    report: &mut ResetReport,
) -> Result<()> {
    // Held by every process that runs on it: opening it shows that none does.
    let state = StateDir::open(directory)?;
    report.deleted_tasks = state.tasks();
    if options.dry_run {
        return Ok(());
    }
    // Refused while a member lives. From here on `run` refuses until all is done.
    let here = |offset: &MovedOffset| MovedOffset { to: offset.from.unwrap_or(offset.to), ..offset.clone() };
    commit(plan, log, &report.offsets.iter().map(here).collect::<Vec<_>>(), MARK)?;
    log.delete_topics(&report.deleted_topics)?;
    report.deleted_tasks.iter().try_for_each(|task| state.remove(task))?;
    if let Some(location) = &options.checkpoints {
        Checkpoints::open(location, &plan.name)?.clear()?;
    }
    let names = TopicNames::prepare(plan, log, None)?;
    let mut all = report.offsets.clone();
    for exchange in names.exchanges.iter().flatten() {
        let fresh = |partition| MovedOffset { topic: Arc::clone(exchange), partition, from: None, to: 0 };
        all.extend((0..names.count(exchange)).map(fresh));
    }
    commit(plan, log, &all, &OffsetMetadata::new(WATERMARK_MIN).to_text())
}

/// The exchange topics that exist.
fn exchanges(plan: &Plan, log: &dyn Log, meta: Option<&MetaRecord>) -> Result<Vec<String>> {
    let of_plan = TopicNames::of(plan).exchanges.into_iter().flatten().map(|topic| topic.to_string());
    let mut topics: Vec<String> =
        of_plan.chain(meta.iter().flat_map(|meta| meta.exchanges.keys().cloned())).collect();
    topics.sort();
    topics.dedup();
    let mut existing = Vec::new();
    for topic in topics {
        if log.partitions(&topic)?.is_some() {
            existing.push(topic);
        }
    }
    Ok(existing)
}

fn targets(plan: &Plan, log: &dyn Log, to: ResetTo) -> Result<Vec<MovedOffset>> {
    let group = TopicNames::of(plan).group;
    let mut offsets = Vec::new();
    for (topic, count) in TopicNames::sources(plan, log)? {
        let partitions: Vec<_> =
            (0..count).map(|number| TopicPartition::new(Arc::clone(&topic), number)).collect();
        let committed = log.committed(&group, &partitions)?;
        for (partition, committed) in partitions.into_iter().zip(committed) {
            let bounds = log.bounds(&partition)?;
            let to = match to {
                ResetTo::Earliest => bounds.start,
                ResetTo::Latest => bounds.end,
                ResetTo::At(time) => log.offset_at(&partition, time)?.unwrap_or(bounds.end),
            };
            let from = committed.map(|position| position.offset);
            offsets.push(MovedOffset { topic: partition.topic, partition: partition.partition, from, to });
        }
    }
    Ok(offsets)
}

fn commit(plan: &Plan, log: &dyn Log, offsets: &[MovedOffset], metadata: &str) -> Result<()> {
    let group = TopicNames::of(plan).group;
    let positions: Vec<_> = offsets
        .iter()
        .map(|offset| {
            let partition = TopicPartition::new(Arc::clone(&offset.topic), offset.partition);
            (partition, Position { offset: offset.to, metadata: metadata.to_string() })
        })
        .collect();
    log.commit_offsets(&group, &positions).map_err(|source| ResetError::Offsets { group, source })
}

fn print(plan: &Plan, report: &ResetReport, out: &mut dyn Write) -> Result<()> {
    let would = if report.dry_run { "would be " } else { "" };
    for MovedOffset { topic, partition, from, to } in &report.offsets {
        let from = text::or_none(*from, |from| from.to_string());
        writeln!(out, "{topic}/{partition}: {from} -> {to}")?;
    }
    for topic in &report.deleted_topics {
        writeln!(out, "topic {topic} {would}deleted")?;
    }
    if !report.deleted_tasks.is_empty() {
        let tasks = text::count(report.deleted_tasks.len() as u64, "task");
        writeln!(out, "state of {tasks} {would}deleted")?;
    }
    let kept: Vec<_> =
        plan.sinks.iter().filter_map(|sink| Some(sink.topic.as_ref()?.topic.to_string())).collect();
    if !kept.is_empty() {
        let kept = kept.join(", ");
        writeln!(
            out,
            "kept: {kept}, the dead and the late topic; what is read again is written to them again"
        )?;
    }
    Ok(())
}
