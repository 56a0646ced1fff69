//! How far behind a topology is, partition by partition, and which origin holds each keyed stage back.
//!
//! Everything comes from the log: the group's committed offsets, the metadata beside them, and the ends. So it
//! works while nothing runs, and shows what is committed, never what a worker hopes for.
//!
//! Two clocks, because event time alone says nothing of historic data and log time nothing of windows:
//! - `event`: how far the partition's watermark is behind the furthest watermark of the topology's origins;
//! - `log`: how long ago the oldest unread record was appended; 0 when all is read.
//!
//! Invariant: lag counts to the last stable offset. Where only transaction markers follow, it is 0.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde::{Serialize, Serializer};

use super::{Pace, Result, text};
use crate::engine::{Counters, OffsetMetadata, TopicNames};
use crate::log::{Bounds, Event, Log, LogError, Position};
use crate::plan::{Plan, StageInput};
use crate::record::{Micros, TopicPartition};
use crate::time::{WATERMARK_MAX, WATERMARK_MIN};

/// How long the oldest unread records are waited for; a partition that has not answered has no log lag.
/// A run that has ended leaves its last transaction to the brokers for a moment.
const DECIDED_WITHIN: Duration = Duration::from_secs(1);
const PROBE_PATIENCE: Duration = Duration::from_secs(5);
const PROBE_POLL: Duration = Duration::from_millis(50);

/// How far one partition is behind.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PartitionLag {
    pub stage: Arc<str>,
    /// Name of the source; an exchange's partition has none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source: Option<Arc<str>>,
    pub topic: Arc<str>,
    pub partition: i32,
    /// `None`: nothing of it is committed yet.
    pub committed: Option<i64>,
    pub start: i64,
    /// The last stable offset.
    pub end: i64,
    pub lag_records: i64,
    #[serde(serialize_with = "as_time")]
    pub watermark: Option<Micros>,
    /// It has come to the end of its input, for good: the topology was closed.
    pub ended: bool,
    /// Behind the furthest watermark of the origins; `None` before the first.
    pub lag_seconds_event: Option<f64>,
    /// Age of the oldest unread record; `None` where it has no timestamp or did not answer in time.
    pub lag_seconds_log: Option<f64>,
    pub idle: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub counters: Option<Counters>,
    pub state_expired: u64,
    pub derived_dead: u64,
    pub open_windows: u64,
    /// Why the topology can't go on from here.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
}

/// Why a keyed stage's watermark is where it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum HoldReason {
    /// Nothing was read of an origin: no window closes before.
    NothingRead,
    /// The origin has the lowest watermark of those that are not idle.
    Lowest,
    /// All origins are idle: the furthest one counts.
    AllIdle,
}

/// The origin that holds a keyed stage's watermark back.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Hold {
    pub stage: Arc<str>,
    pub reason: HoldReason,
    pub topic: Arc<str>,
    pub partition: i32,
    #[serde(serialize_with = "as_time")]
    pub watermark: Option<Micros>,
    /// Behind the furthest origin of this stage.
    pub behind_seconds: Option<f64>,
    /// Other origins with the same reason.
    pub others: usize,
}

#[derive(Clone, Debug, PartialEq)]
pub struct LagReport {
    pub topology: Arc<str>,
    pub group: String,
    pub partitions: Vec<PartitionLag>,
    /// One for each keyed stage whose origins exist and that has not ended.
    pub holds: Vec<Hold>,
    /// Exchanges that do not exist yet.
    pub missing: Vec<Arc<str>>,
    /// From looks before this one; `None` at the first.
    pub pace: Option<Pace>,
}

/// The lag of a topology as of now.
pub fn lag(plan: &Plan, log: &dyn Log) -> Result<LagReport> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    lag_at(plan, log, now.as_millis() as i64)
}

/// The lag with ages counted from `now_ms`, milliseconds since 1970.
pub fn lag_at(plan: &Plan, log: &dyn Log, now_ms: i64) -> Result<LagReport> {
    let mut names = TopicNames::of(plan);
    names.partitions = TopicNames::sources(plan, log)?;
    let mut missing = Vec::new();
    for exchange in names.exchanges.clone().into_iter().flatten() {
        match log.partitions(&exchange)? {
            Some(count) => {
                names.partitions.insert(exchange, count);
            }
            None => missing.push(exchange),
        }
    }
    let mut partitions = Vec::new();
    let mut seen = BTreeSet::new();
    for stage in 0..plan.stages.len() {
        let topic = names.input_topic(plan, stage);
        let count = names.count(&topic);
        if count == 0 || !seen.insert(Arc::clone(&topic)) {
            continue;
        }
        let asked: Vec<_> =
            (0..count).map(|number| TopicPartition::new(Arc::clone(&topic), number)).collect();
        let committed = log.committed_so_far(&names.group, &asked, DECIDED_WITHIN)?;
        for (partition, committed) in asked.into_iter().zip(committed) {
            let bounds = log.bounds(&partition)?;
            partitions.push(PartitionLag::new(plan, stage, partition, committed, bounds));
        }
    }
    probe_log_time(&mut partitions, log, now_ms)?;
    let origins = partitions.iter().filter(|partition| partition.source.is_some());
    let furthest = origins.filter_map(|partition| partition.watermark).max();
    for partition in &mut partitions {
        partition.lag_seconds_event = behind(furthest, partition.watermark);
    }
    let holds = (0..plan.stages.len()).filter_map(|stage| hold(plan, &names, stage, &partitions)).collect();
    let (topology, group) = (Arc::clone(&plan.name), names.group);
    Ok(LagReport { topology, group, partitions, holds, missing, pace: None })
}

impl PartitionLag {
    fn new(
        plan: &Plan,
        stage: usize,
        partition: TopicPartition,
        committed: Option<Position>,
        bounds: Bounds,
    ) -> Self {
        let stage = &plan.stages[stage];
        let source = match stage.input {
            StageInput::Source(source) => Some(Arc::clone(&plan.sources[source].name)),
            StageInput::Exchange { .. } => None,
        };
        let offset = committed.as_ref().map(|position| position.offset);
        let mut problem = match offset {
            Some(offset) if offset < bounds.start => {
                let gone = bounds.start - offset;
                Some(format!("{gone} offsets that were not read are gone (retention, or DeleteRecords)"))
            }
            Some(offset) if offset > bounds.end => {
                Some("the topic is shorter than what was read of it; was it made anew?".to_string())
            }
            _ => None,
        };
        let metadata = committed.map(|position| OffsetMetadata::parse(&position.metadata, &partition));
        let metadata = metadata.transpose().unwrap_or_else(|error| {
            problem = Some(error.to_string());
            None
        });
        let watermark = metadata.as_ref().map(OffsetMetadata::watermark);
        Self {
            stage: Arc::clone(&stage.name),
            source,
            topic: partition.topic,
            partition: partition.partition,
            committed: offset,
            start: bounds.start,
            end: bounds.end,
            lag_records: (bounds.end - offset.unwrap_or(bounds.start).max(bounds.start)).max(0),
            watermark: watermark.filter(|&at| at != WATERMARK_MIN && at != WATERMARK_MAX),
            ended: watermark == Some(WATERMARK_MAX),
            lag_seconds_event: None,
            lag_seconds_log: None,
            idle: metadata.as_ref().is_some_and(|metadata| metadata.idle),
            counters: metadata.as_ref().and_then(|metadata| metadata.counters),
            state_expired: metadata.as_ref().map_or(0, |metadata| metadata.expired),
            derived_dead: metadata.as_ref().map_or(0, |metadata| metadata.derived_dead),
            open_windows: metadata.as_ref().map_or(0, |metadata| metadata.open_windows),
            problem,
        }
    }

    pub fn name(&self) -> TopicPartition {
        TopicPartition::new(Arc::clone(&self.topic), self.partition)
    }

    /// Where reading goes on.
    pub fn position(&self) -> i64 {
        self.committed.unwrap_or(self.start).max(self.start)
    }
}

/// Reads the oldest unread record of each partition that is behind, for its timestamp. A partition with nothing
/// but transaction markers left turns out not to be behind.
fn probe_log_time(partitions: &mut [PartitionLag], log: &dyn Log, now_ms: i64) -> Result<()> {
    let mut unread = BTreeMap::new();
    for (index, partition) in partitions.iter_mut().enumerate() {
        match partition.lag_records {
            0 => partition.lag_seconds_log = Some(0.0),
            _ => {
                unread.insert(partition.name(), index);
            }
        }
    }
    if unread.is_empty() {
        return Ok(());
    }
    let from: Vec<_> =
        unread.iter().map(|(partition, &index)| (partition.clone(), partitions[index].position())).collect();
    let mut reader = log.reader()?;
    reader.assign(&from)?;
    let deadline = Instant::now() + PROBE_PATIENCE;
    while !unread.is_empty() && Instant::now() < deadline {
        let events = match reader.poll(PROBE_POLL) {
            Ok(events) => events,
            // Trimmed since its bounds were read: the next look will know.
            Err(LogError::OutOfRange { .. }) => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        for event in events {
            match event {
                Event::Run(run) if !run.records.is_empty() => {
                    let Some(index) = unread.remove(&run.partition) else { continue };
                    let timestamp_ms = run.records.get(0).timestamp_ms;
                    partitions[index].lag_seconds_log =
                        (timestamp_ms >= 0).then(|| now_ms.saturating_sub(timestamp_ms).max(0) as f64 / 1e3);
                    reader.pause(&[run.partition])?;
                }
                Event::End { partition, position } => {
                    let Some(&index) = unread.get(&partition) else { continue };
                    if position >= partitions[index].end {
                        unread.remove(&partition);
                        partitions[index].lag_records = 0;
                        partitions[index].lag_seconds_log = Some(0.0);
                    }
                }
                _ => {}
            }
        }
    }
    Ok(())
}

/// The origin that a keyed stage waits for, by the rules of its watermark (R3, R4).
fn hold(plan: &Plan, names: &TopicNames, stage: usize, partitions: &[PartitionLag]) -> Option<Hold> {
    let topics = names.origin_set(plan, stage);
    let input = names.input_topic(plan, stage);
    let mut own = partitions.iter().filter(|at| at.topic == input).peekable();
    if own.peek().is_some() && own.all(|at| at.ended) {
        return None;
    }
    let origins: Vec<_> =
        partitions.iter().filter(|at| topics.iter().any(|(topic, _)| *topic == at.topic)).collect();
    let of = |wanted: &dyn Fn(&PartitionLag) -> bool| -> Vec<&PartitionLag> {
        origins.iter().copied().filter(|origin| wanted(origin)).collect()
    };
    let furthest = origins.iter().filter_map(|origin| origin.watermark).max();
    let waiting = of(&|origin| origin.watermark.is_none() && !origin.idle);
    let active = of(&|origin| origin.watermark.is_some() && !origin.idle);
    let (reason, held, others) = if let Some(first) = waiting.first() {
        (HoldReason::NothingRead, *first, waiting.len() - 1)
    } else if let Some(lowest) = active.iter().min_by_key(|origin| origin.watermark) {
        let same = active.iter().filter(|origin| origin.watermark == lowest.watermark).count();
        (HoldReason::Lowest, *lowest, same - 1)
    } else {
        let highest = origins.iter().max_by_key(|origin| origin.watermark)?;
        (HoldReason::AllIdle, *highest, origins.len() - 1)
    };
    Some(Hold {
        stage: Arc::clone(&plan.stages[stage].name),
        reason,
        topic: Arc::clone(&held.topic),
        partition: held.partition,
        watermark: held.watermark,
        behind_seconds: behind(furthest, held.watermark),
        others,
    })
}

fn behind(furthest: Option<Micros>, watermark: Option<Micros>) -> Option<f64> {
    Some(furthest?.saturating_sub(watermark?).max(0) as f64 / 1e6)
}

impl LagReport {
    pub fn lag_records(&self) -> i64 {
        self.partitions.iter().map(|partition| partition.lag_records).sum()
    }

    /// Age of the oldest unread record, over all partitions; `None` where it is not known of any.
    pub fn oldest_unread_seconds(&self) -> Option<f64> {
        self.partitions.iter().filter_map(|partition| partition.lag_seconds_log).reduce(f64::max)
    }

    /// The counters of all origins, as committed.
    pub fn counters(&self) -> Counters {
        let mut sum = Counters::default();
        self.partitions
            .iter()
            .filter_map(|partition| partition.counters.as_ref())
            .for_each(|one| sum.add(one));
        sum
    }

    /// One line that says how it stands, with the topology's name.
    pub fn summary(&self) -> String {
        format!("{}: {}", self.topology, self.standing())
    }

    /// One line that says how it stands.
    pub fn standing(&self) -> String {
        let behind: Vec<_> = self.partitions.iter().filter(|partition| partition.lag_records > 0).collect();
        let records = text::count(self.lag_records() as u64, "record");
        let of = text::count(self.partitions.len() as u64, "partition");
        let state = if self.partitions.iter().all(|partition| partition.committed.is_none()) {
            format!("nothing committed yet, {records} to read in {of}")
        } else if behind.is_empty() {
            format!("caught up in {of}")
        } else {
            let oldest = behind.iter().filter_map(|partition| partition.lag_seconds_log).reduce(f64::max);
            let age =
                oldest.map(|oldest| format!("; the oldest unread record is {} old", text::duration(oldest)));
            format!("{records} behind in {} of {of}{}", behind.len(), age.unwrap_or_default())
        };
        let problems = self.partitions.iter().filter(|partition| partition.problem.is_some()).count() as u64;
        match problems {
            0 => state,
            _ => format!("{state}; {} can't go on", text::count(problems, "partition")),
        }
    }

    /// As a table, or as one JSON object a line: each partition, each hold, and the summary.
    pub fn print(&self, out: &mut dyn Write, json: bool) -> Result<()> {
        if json { self.print_json(out) } else { self.print_text(out) }
    }

    fn print_text(&self, out: &mut dyn Write) -> Result<()> {
        writeln!(out, "{}", self.summary())?;
        if let Some(pace) = &self.pace {
            let rate = |rate: f64| text::number(rate.max(0.0).round() as u64);
            let (committed, arriving) = (rate(pace.committed_per_second), rate(pace.arriving_per_second));
            let eta = text::or_none(pace.eta_seconds, |seconds| text::duration(seconds.ceil()));
            writeln!(out, "reads {committed}/s, {arriving}/s arrive; caught up in {eta}")?;
        }
        let header = [
            "STAGE",
            "TOPIC",
            "PARTITION",
            "COMMITTED",
            "END",
            "LAG",
            "LOG LAG",
            "WATERMARK",
            "EVENT LAG",
            "IDLE",
            "READ",
            "REFINED",
            "FILTERED",
            "LATE",
            "DEAD",
            "EXPIRED",
        ];
        let rows: Vec<_> = self.partitions.iter().map(row).collect();
        if !rows.is_empty() {
            writeln!(out)?;
            text::table(out, &header, &rows)?;
        }
        if !self.holds.is_empty() || !self.missing.is_empty() {
            writeln!(out)?;
        }
        for hold in &self.holds {
            writeln!(out, "{hold}")?;
        }
        for exchange in &self.missing {
            writeln!(out, "topic {exchange} does not exist yet: the topology has not run")?;
        }
        for partition in &self.partitions {
            if let Some(problem) = &partition.problem {
                writeln!(out, "problem: {}: {problem}", partition.name())?;
            }
        }
        Ok(())
    }

    fn print_json(&self, out: &mut dyn Write) -> Result<()> {
        #[derive(Serialize)]
        #[serde(tag = "type", rename_all = "snake_case")]
        enum Line<'a> {
            Partition(&'a PartitionLag),
            Hold(&'a Hold),
            Summary {
                /// Milliseconds since 1970.
                at: i64,
                topology: &'a str,
                group: &'a str,
                lag_records: i64,
                counters: Counters,
                committed_per_second: Option<f64>,
                arriving_per_second: Option<f64>,
                eta_seconds: Option<f64>,
                text: String,
            },
        }
        let partitions = self.partitions.iter().map(Line::Partition);
        let at = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let summary = Line::Summary {
            at: at.as_millis() as i64,
            topology: &self.topology,
            group: &self.group,
            lag_records: self.lag_records(),
            counters: self.counters(),
            committed_per_second: self.pace.map(|pace| pace.committed_per_second),
            arriving_per_second: self.pace.map(|pace| pace.arriving_per_second),
            eta_seconds: self.pace.and_then(|pace| pace.eta_seconds),
            text: self.summary(),
        };
        for line in partitions.chain(self.holds.iter().map(Line::Hold)).chain([summary]) {
            serde_json::to_writer(&mut *out, &line).map_err(std::io::Error::from)?;
            writeln!(out)?;
        }
        Ok(())
    }
}

fn row(partition: &PartitionLag) -> Vec<String> {
    let counter = |value: fn(&Counters) -> u64| {
        text::or_none(partition.counters.as_ref(), |counters| value(counters).to_string())
    };
    vec![
        partition.stage.to_string(),
        partition.topic.to_string(),
        partition.partition.to_string(),
        text::or_none(partition.committed, |offset| offset.to_string()),
        partition.end.to_string(),
        partition.lag_records.to_string(),
        text::or_none(partition.lag_seconds_log, text::duration),
        if partition.ended { "ended".to_owned() } else { text::or_none(partition.watermark, text::time) },
        text::or_none(partition.lag_seconds_event, text::duration),
        if partition.idle { "idle" } else { text::NONE }.to_string(),
        counter(|counters| counters.read),
        counter(|counters| counters.refined),
        counter(|counters| counters.filtered),
        counter(|counters| counters.late),
        counter(|counters| counters.dead),
        match partition.source {
            Some(_) => text::NONE.to_string(),
            None => partition.state_expired.to_string(),
        },
    ]
}

impl std::fmt::Display for Hold {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { stage, topic, partition, .. } = self;
        let others = match self.others {
            0 => String::new(),
            others => format!(" and {others} more"),
        };
        let at = text::or_none(self.watermark, text::time);
        match self.reason {
            HoldReason::NothingRead => {
                write!(
                    f,
                    "{stage}: waits for {topic}/{partition}{others}: nothing read yet, so no window closes"
                )
            }
            HoldReason::Lowest => {
                let behind = text::or_none(self.behind_seconds, text::duration);
                write!(
                    f,
                    "{stage}: held at {at} by {topic}/{partition}{others}, {behind} behind the furthest origin"
                )
            }
            HoldReason::AllIdle => {
                write!(f, "{stage}: all origins are idle; {topic}/{partition} is furthest, at {at}")
            }
        }
    }
}

fn as_time<S: Serializer>(micros: &Option<Micros>, serializer: S) -> Result<S::Ok, S::Error> {
    micros.map(text::time).serialize(serializer)
}
