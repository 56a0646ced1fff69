//! A task that is new here: where its partition stands, the best checkpoint below, and the muted fold between.
//!
//! Invariant: a task goes on at the committed offset with exactly the state that the log up to there gives.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::log::{Bounds, Event, Log, LogError, Position};
use crate::plan::{Plan, StageInput};
use crate::planted::{Fault, note, planted};
use crate::record::TopicPartition;
use crate::state::{Checkpoints, RecoveredFrom, StateError, TaskState, recover};
use crate::time::WATERMARK_MAX;

use super::ingest::IngestTask;
use super::keyed::{KeyedTask, SetAside};
use super::machine::Machine;
use super::offsets::OffsetMetadata;
use super::redriven::Redriven;
use super::start::RecoveryTook;
use super::topics::TopicNames;
use super::versions::VersionStart;
use super::{EngineError, Outputs, Result, lock};

/// Records folded between two looks at the memory that the fold takes.
const FOLD_POLL: Duration = Duration::from_millis(50);
/// Kafka allows far fewer partitions a topic than this many bits count.
const PARTITION_BITS: u32 = 20;

pub enum Task {
    Ingest(Box<IngestTask>),
    Keyed(Box<KeyedTask>),
}

/// A task, ready to go on where its partition stands.
pub struct Recovered {
    pub task: Task,
    /// What this version of the topology has to say of its beginning here.
    pub version_start: Option<VersionStart>,
    /// None for what needs no recovery.
    pub took: Option<RecoveryTook>,
}

/// What tasks are made from.
pub struct Recovery<'a> {
    pub plan: &'a Arc<Plan>,
    pub names: &'a TopicNames,
    pub log: &'a dyn Log,
    pub machine: &'a dyn Machine,
    pub checkpoints: Option<&'a Checkpoints>,
    /// Bytes of uncommitted-to-disk state at which a fold checkpoints.
    pub state_budget: usize,
    /// Originals that are not to be counted again, where the topology reads from its beginning once more.
    pub redriven: &'a Redriven,
    /// Looked at during the fold, which may take long.
    pub must_stop: &'a dyn Fn() -> bool,
    /// The topology had committed something before this process came.
    pub has_run: bool,
    /// This run is itself one that ends the topology for good, perhaps one that was killed before it was done.
    pub closing: bool,
}

impl Recovery<'_> {
    /// Makes the task of a partition that the group has assigned to this worker.
    pub fn task(&self, partition: &TopicPartition) -> Result<Recovered> {
        let before = self.stands_at(partition)?;
        let error = match self.task_at(partition, &before) {
            Err(EngineError::Cancelled) => return Err(EngineError::Cancelled),
            Err(error @ EngineError::State(StateError::InUse { .. })) => return Err(error),
            Err(error) => error,
            Ok(recovered) => return Ok(recovered),
        };
        // Another member, which has the partition by now, may have moved on from what was asked for, and trimmed it.
        match self.stands_at(partition) {
            // That its end has moved says nothing: others write to it all the time.
            Ok((now, bounds)) if (&now, bounds.start) != (&before.0, before.1.start) => {
                let why = format!("{partition} was taken over by another member: {error}");
                Err(EngineError::Log(LogError::Fenced(why)))
            }
            _ => Err(error),
        }
    }

    /// The group's committed position, and what the log holds.
    fn stands_at(&self, partition: &TopicPartition) -> Result<(Option<Position>, Bounds)> {
        let committed = self.log.committed(&self.names.group, std::slice::from_ref(partition))?;
        Ok((committed.into_iter().next().flatten(), self.log.bounds(partition)?))
    }

    fn task_at(&self, partition: &TopicPartition, at: &(Option<Position>, Bounds)) -> Result<Recovered> {
        let (committed, bounds) = (at.0.as_ref(), at.1);
        let stage = self.stage_of(partition)?;
        if committed.is_none() && self.has_run && !planted(Fault::ExpiredOffsetsBeginAnew) {
            self.require_offsets()?;
        }
        let metadata = match committed {
            Some(position) => Some(OffsetMetadata::parse(&position.metadata, partition)?),
            None => None,
        };
        let mut took = None;
        let task = match self.plan.stages[stage].input {
            StageInput::Source(source) => {
                let offset = self.source_offset(partition, committed, bounds)?;
                let index = origin_index(self.plan, partition);
                let origin = partition.clone();
                let task =
                    IngestTask::new(self.plan, stage, source, origin, index, offset, metadata.as_ref())?;
                Task::Ingest(Box::new(task.skipping(self.redriven.of(partition))))
            }
            StageInput::Exchange { .. } => {
                let (task, recovery) = self.keyed(partition, stage, bounds, committed, metadata.as_ref())?;
                took = Some(recovery);
                Task::Keyed(Box::new(task))
            }
        };
        let stands = match &task {
            Task::Ingest(task) => (task.offset(), task.watermark()),
            Task::Keyed(task) => (task.offset(), task.watermark()),
        };
        let earlier = metadata.as_ref().map(|metadata| metadata.version.as_deref());
        let version_start = VersionStart::here(self.plan, self.log, partition, stands, earlier)?;
        Ok(Recovered { task, version_start, took })
    }

    /// A partition without an offset is a new one, unless the whole group has none: then they have expired, and
    /// reading would begin anew above state that is old (rule R2).
    fn require_offsets(&self) -> Result<()> {
        let stages = 0..self.plan.stages.len();
        let topics: BTreeSet<_> = stages.map(|stage| self.names.input_topic(self.plan, stage)).collect();
        let partitions: Vec<TopicPartition> = topics
            .iter()
            .flat_map(|topic| {
                (0..self.names.count(topic)).map(|at| TopicPartition::new(Arc::clone(topic), at))
            })
            .collect();
        let group = &self.names.group;
        if self.log.committed_so_far(group, &partitions, Duration::ZERO)?.iter().any(Option::is_some)
            // The first of all may be on its way.
            || self.log.committed(group, &partitions)?.iter().any(Option::is_some)
        {
            return Ok(());
        }
        Err(EngineError::OffsetsExpired {
            topology: self.plan.name.to_string(),
            group: self.names.group.clone(),
        })
    }

    fn stage_of(&self, partition: &TopicPartition) -> Result<usize> {
        (0..self.plan.stages.len())
            .find(|&stage| self.names.input_topic(self.plan, stage) == partition.topic)
            .ok_or_else(|| EngineError::internal(format!("{partition} belongs to no stage")))
    }

    fn source_offset(
        &self,
        partition: &TopicPartition,
        committed: Option<&Position>,
        bounds: Bounds,
    ) -> Result<i64> {
        let Some(position) = committed else { return Ok(bounds.start) };
        let gone = |why| EngineError::OffsetGone {
            partition: partition.clone(),
            committed: position.offset,
            start: bounds.start,
            end: bounds.end,
            why,
        };
        if position.offset < bounds.start {
            return Err(gone(
                "records that were not read yet are gone (retention, or the topic was made anew)",
            ));
        }
        if position.offset > bounds.end {
            return Err(gone("the topic is shorter than what was read of it (it was made anew?)"));
        }
        Ok(position.offset)
    }

    fn keyed(
        &self,
        partition: &TopicPartition,
        stage: usize,
        bounds: Bounds,
        committed: Option<&Position>,
        metadata: Option<&OffsetMetadata>,
    ) -> Result<(KeyedTask, RecoveryTook)> {
        let offset = committed.map_or(0, |position| position.offset);
        if committed.is_none() && bounds.start > 0 {
            return Err(EngineError::OffsetGone {
                partition: partition.clone(),
                committed: 0,
                start: bounds.start,
                end: bounds.end,
                why: "the group's offsets are gone, but its exchange was trimmed",
            });
        }
        if offset < bounds.start || offset > bounds.end {
            return Err(EngineError::OffsetGone {
                partition: partition.clone(),
                committed: offset,
                start: bounds.start,
                end: bounds.end,
                why: "the exchange does not hold it",
            });
        }
        // Asked here, once the producer has ended what its predecessor left open: before that, the answer waits.
        if !self.closing && metadata.is_some_and(|metadata| metadata.watermark() == WATERMARK_MAX) {
            return Err(EngineError::Closed(self.plan.name.to_string()));
        }
        let name = task_name(partition);
        let began = self.machine.now();
        let store = self.machine.store(&name)?;
        let fingerprint = &self.plan.fingerprint;
        let recovered = recover(&name, &*store, self.checkpoints, fingerprint, bounds.start, offset)?;
        for warning in &recovered.warnings {
            tracing::warn!("{partition}: a checkpoint could not be used: {warning}");
        }
        let from = match recovered.from {
            RecoveredFrom::Local => "the local checkpoint",
            RecoveredFrom::Copy => "a copy of a checkpoint",
            RecoveredFrom::Log => "the log alone",
        };
        note(&format!("a task recovers from {from}"));
        tracing::info!("{partition}: recovered from {from} at {}, folding to {offset}", recovered.offset);
        let loaded = self.machine.now();
        let state = Arc::new(Mutex::new(TaskState::new(store)));
        let aside = metadata.map_or_else(SetAside::default, |metadata| SetAside {
            expired: metadata.expired,
            derived_dead: metadata.derived_dead,
        });
        let mut task = KeyedTask::new(self.plan, stage, partition.clone(), state, recovered.offset, aside)?;
        let mut took = RecoveryTook::default();
        if recovered.offset < offset && !planted(Fault::FoldNotMuted) {
            took.folded = self.fold(&mut task, partition, offset)?;
        }
        task.count_from(aside);
        took.load_seconds = loaded.saturating_duration_since(began).as_secs_f64();
        took.fold_seconds = self.machine.now().saturating_duration_since(loaded).as_secs_f64();
        tracing::info!(
            "{partition}: ready at {offset}: opening or loading its state took {:.3} s, folding {} records {:.3} s",
            took.load_seconds,
            took.folded,
            took.fold_seconds
        );
        Ok((task, took))
    }

    /// Folds up to the committed offset, muted: its output is in the topics already. The records folded.
    fn fold(&self, task: &mut KeyedTask, partition: &TopicPartition, until: i64) -> Result<u64> {
        let mut reader = self.log.reader()?;
        if planted(Fault::OldCheckpoint) || planted(Fault::FoldsWhatIsLeft) {
            task.skip_to(self.log.bounds(partition)?.start);
        }
        reader.assign(&[(partition.clone(), task.offset())])?;
        let mut muted = Outputs::default();
        let mut folded = 0;
        while task.offset() < until {
            if (self.must_stop)() {
                return Err(EngineError::Cancelled);
            }
            for event in reader.poll(FOLD_POLL)? {
                match event {
                    Event::Run(run) => {
                        let run = run.until(until);
                        if !run.records.is_empty() {
                            folded += run.records.len() as u64;
                            task.step(&run, &mut muted)?;
                        }
                        task.skip_to(run.next.min(until));
                    }
                    Event::End { position, .. } => task.skip_to(position.min(until)),
                    _ => {}
                }
                muted.clear();
            }
            // As epochs do: what operators hold before it is in the state is not in its bytes.
            task.flush(&mut muted)?;
            muted.clear();
            task.commit()?;
            if lock(task.state())?.memory_bytes() > self.state_budget && task.offset() < until {
                let offset = task.offset();
                lock(task.state())?.checkpoint(offset)?;
            }
        }
        task.flush(&mut muted)?;
        task.commit()?;
        Ok(folded)
    }
}

/// A number for an origin that is the same in every run: topics in name order, then the partition. Partitions
/// that are added later do not move the others.
pub fn origin_index(plan: &Plan, origin: &TopicPartition) -> u32 {
    let mut topics: Vec<_> = plan.sources.iter().map(|source| &*source.topic).collect();
    topics.sort_unstable();
    topics.dedup();
    let topic = topics.iter().position(|topic| *topic == &*origin.topic).unwrap_or(topics.len());
    ((topic as u32) << PARTITION_BITS) | origin.partition as u32
}

/// A task's name in the state directory and the object store.
pub fn task_name(partition: &TopicPartition) -> String {
    format!("{}-{}", partition.topic, partition.partition)
}
