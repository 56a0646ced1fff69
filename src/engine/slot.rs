//! A task in a worker, of either kind, with what belongs to it there.
//!
//! Invariant: what differs between the two kinds of task under the commit protocol is told apart here.

use std::sync::Arc;
use std::time::Instant;

use crate::log::Position;
use crate::plan::Plan;
use crate::planted::{Fault, planted};
use crate::record::{Run, TopicPartition};

use super::checkpointing::Writing;
use super::progress::{TaskProgress, TaskRole};
use super::publish::Publisher;
use super::recovery::Task;
use super::run::Shared;
use super::until_end::UntilEnd;
use super::versions::VersionStart;
use super::{Outputs, Result, lock};

pub struct Slot {
    pub task: Task,
    pub publisher: Publisher,
    /// The reader stands at the end of the partition.
    pub caught_up: bool,
    pub paused: bool,
    pub last_record: Instant,
    pub last_checkpoint: Instant,
    pub checkpoint: Option<Writing>,
    /// The end that the run goes to is reached and told: by a commit, and where the topology ends for good in the
    /// exchanges, too.
    pub ended_told: bool,
    /// … in a transaction that is committed.
    pub end_committed: bool,
    /// This version of the topology begins here: to be written in the transaction of the first commit.
    pub version_start: Option<VersionStart>,
    version: String,
}

impl Slot {
    pub fn new(
        shared: &Shared,
        partition: &TopicPartition,
        task: Task,
        version_start: Option<VersionStart>,
    ) -> Result<Self> {
        let exchanges = match &task {
            Task::Ingest(task) => task.exchanges(),
            Task::Keyed(task) => task.exchanges(),
        };
        let publisher = Publisher::new(&shared.plan, &shared.names, partition, exchanges)?;
        let now = shared.machine.now();
        Ok(Self {
            task,
            publisher,
            caught_up: false,
            paused: false,
            last_record: now,
            last_checkpoint: now,
            checkpoint: None,
            ended_told: false,
            end_committed: false,
            version_start,
            version: shared.plan.version.clone(),
        })
    }

    pub fn offset(&self) -> i64 {
        match &self.task {
            Task::Ingest(task) => task.offset(),
            Task::Keyed(task) => task.offset(),
        }
    }

    /// What is committed for the partition.
    pub fn position(&self) -> Position {
        let mut metadata = match &self.task {
            Task::Ingest(task) => task.metadata(),
            Task::Keyed(task) => task.metadata(),
        };
        metadata.version = Some(self.version.clone());
        let unread = i64::from(
            planted(Fault::OffsetOffByOne) && matches!(self.task, Task::Ingest(_)) && self.offset() > 0,
        );
        Position { offset: self.offset() - unread, metadata: metadata.to_text() }
    }

    /// Whether there is anything to commit that the last commit does not hold.
    pub fn is_dirty(&self) -> bool {
        match &self.task {
            Task::Ingest(task) => task.is_dirty(),
            Task::Keyed(task) => task.is_dirty(),
        }
    }

    /// Whether the task has come to its end in a run that goes to one.
    pub fn at_end(&self, partition: &TopicPartition, until_end: &UntilEnd) -> bool {
        match &self.task {
            Task::Ingest(task) => until_end.reached(partition, task.offset()),
            Task::Keyed(task) => until_end.close && task.has_ended(),
        }
    }

    pub fn step(&mut self, run: &Run, outputs: &mut Outputs) -> Result<()> {
        match &mut self.task {
            Task::Ingest(task) => task.step(run, outputs),
            Task::Keyed(task) => task.step(run, outputs),
        }
    }

    pub fn skip_to(&mut self, position: i64) {
        match &mut self.task {
            Task::Ingest(task) => task.skip_to(position),
            Task::Keyed(task) => task.skip_to(position),
        }
    }

    pub fn flush(&mut self, outputs: &mut Outputs) -> Result<()> {
        match &mut self.task {
            Task::Ingest(task) => task.flush(outputs),
            Task::Keyed(task) => task.flush(outputs),
        }
    }

    pub fn commit(&mut self, offset_sent: bool) -> Result<()> {
        if offset_sent {
            self.version_start = None;
        }
        self.publisher.committed();
        match &mut self.task {
            Task::Ingest(task) => {
                task.commit();
                Ok(())
            }
            Task::Keyed(task) => task.commit(),
        }
    }

    /// Back to the last commit, whose offset is returned.
    pub fn abort(&mut self) -> Result<i64> {
        self.publisher.forget();
        match &mut self.task {
            Task::Ingest(task) => task.abort(),
            Task::Keyed(task) => task.abort(),
        }
    }

    pub fn progress(&self, plan: &Plan) -> TaskProgress {
        match &self.task {
            Task::Ingest(task) => TaskProgress {
                role: TaskRole::Ingest,
                stage: Arc::clone(&plan.stages[task.stage()].name),
                source: Some(Arc::clone(&plan.sources[task.source()].name)),
                offset: task.offset(),
                watermark: task.watermark(),
                idle: task.is_idle(),
                counters: *task.counters(),
                expired: 0,
                derived_dead: 0,
                open_windows: None,
                state_bytes: 0,
                checkpoint: None,
                recovery: None,
            },
            Task::Keyed(task) => TaskProgress {
                role: TaskRole::Keyed,
                stage: Arc::clone(&plan.stages[task.stage()].name),
                source: None,
                offset: task.offset(),
                watermark: task.watermark(),
                idle: false,
                counters: Default::default(),
                expired: task.metadata().expired,
                derived_dead: task.metadata().derived_dead,
                open_windows: None,
                state_bytes: lock(task.state()).map_or(0, |state| state.memory_bytes()),
                checkpoint: None,
                recovery: None,
            },
        }
    }
}
