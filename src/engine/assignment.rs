//! Partitions come to a worker and go: recovering their tasks, and letting go of them.
//!
//! Invariant: a partition is given up only after its epoch is committed or dropped (`worker.rs` sees to that).

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::log::{LogError, OUTAGE_MAX};
use crate::record::TopicPartition;
use crate::state::StateError;

use super::checkpointing::{Wait, finish_checkpoint, hurry};
use super::recovery::Recovery;
use super::slot::Slot;
use super::start::StartStep;
use super::worker::Worker;
use super::{EngineError, Result};

/// How long a worker waits for another one in this process to let go of a partition that it has lost.
const HAND_OVER_MAX: Duration = Duration::from_secs(30);

/// And how often it asks: a process that was stopped in between has not waited at all.
const HAND_OVER_TRIES: u32 = 100;

/// Brokers that are asked where a partition stands may be gone for as long as those that are read from, and for so many tries.
const OUTAGE_TRIES: u32 = 3;
/// Each try may take as long as a question does, and what this worker has is worked on in between.
const OUTAGE_PAUSE: Duration = Duration::from_secs(5);

/// A partition that can't be taken over yet: another worker of this process, which learns at its next poll that it has
/// lost it, has not let go of its state; or no broker says where it stands.
#[derive(Clone, Copy)]
pub(super) struct Waiting {
    since: Instant,
    tries: u32,
    not_before: Instant,
}

impl Worker {
    /// Takes partitions over. Where no broker answers for one, the others wait with it: each would be asked for as long.
    pub(super) fn adopt(&mut self, partitions: Vec<TopicPartition>) -> Result<()> {
        let mut partitions = partitions.into_iter();
        while let Some(partition) = partitions.next() {
            // A fold may take minutes; what was asked for meanwhile is to stop.
            if self.shared.must_stop() {
                return Ok(());
            }
            let error = match self.adopt_one(&partition) {
                Ok(()) => continue,
                Err(EngineError::Cancelled) => return Ok(()),
                Err(error) => error,
            };
            let waiting = self.waited(&partition);
            let patient = self.shared.since(waiting.since) < OUTAGE_MAX || waiting.tries < OUTAGE_TRIES;
            if !(patient && matches!(error, EngineError::Log(LogError::Unreachable { .. }))) {
                return Err(error);
            }
            tracing::warn!("{partition} can't be taken over yet, which is tried again: {error}");
            let not_before = self.shared.machine.now() + OUTAGE_PAUSE;
            self.waiting.insert(partition, Waiting { tries: waiting.tries + 1, not_before, ..waiting });
            for partition in partitions.by_ref() {
                let waiting = self.waited(&partition);
                self.waiting.insert(partition, Waiting { not_before, ..waiting });
            }
        }
        if self.waiting.is_empty() {
            self.shared.reached(StartStep::Recovered, self.index);
        }
        Ok(())
    }

    /// Those that wait, and are to be tried by now.
    pub(super) fn to_try_again(&self) -> Vec<TopicPartition> {
        let now = self.shared.machine.now();
        let due = self.waiting.iter().filter(|(_, waiting)| waiting.not_before <= now);
        due.map(|(partition, _)| partition.clone()).collect()
    }

    fn waited(&self, partition: &TopicPartition) -> Waiting {
        let now = self.shared.machine.now();
        self.waiting.get(partition).copied().unwrap_or(Waiting { since: now, tries: 0, not_before: now })
    }

    fn adopt_one(&mut self, partition: &TopicPartition) -> Result<()> {
        let shared = Arc::clone(&self.shared);
        let recovery = Recovery {
            plan: &shared.plan,
            names: &shared.names,
            log: &*shared.log,
            machine: &*shared.machine,
            checkpoints: shared.checkpoints.as_deref(),
            state_budget: shared.task_budget(),
            redriven: &shared.redriven,
            must_stop: &|| shared.must_stop(),
            has_run: shared.has_run,
            closing: shared.settings.until_end && shared.settings.close,
        };
        let waiting = self.waited(partition);
        let recovered = match recovery.task(partition) {
            Err(EngineError::State(StateError::InUse { .. }))
                if shared.since(waiting.since) < HAND_OVER_MAX || waiting.tries < HAND_OVER_TRIES =>
            {
                self.waiting.insert(partition.clone(), Waiting { tries: waiting.tries + 1, ..waiting });
                return Ok(());
            }
            recovered => recovered?,
        };
        self.waiting.remove(partition);
        let slot = Slot::new(&shared, partition, recovered.task, recovered.version_start)?;
        self.member.start(partition, slot.offset())?;
        self.report(partition, &slot);
        if let Some(took) = recovered.took {
            shared.progress.recovered(partition, took);
        }
        self.slots.insert(partition.clone(), slot);
        Ok(())
    }

    pub(super) fn give_up(&mut self, partitions: &[TopicPartition]) -> Result<()> {
        partitions.iter().filter_map(|partition| self.slots.get(partition)).for_each(hurry);
        for partition in partitions {
            self.waiting.remove(partition);
            if let Some(mut slot) = self.slots.remove(partition) {
                finish_checkpoint(&self.shared, partition, &mut slot, Wait::Briefly)?;
            }
            self.shared.forget(partition);
        }
        self.member.release(partitions)?;
        Ok(())
    }

    /// Whether the group has come further in a partition than this worker, which has not the records from `start` on.
    pub(super) fn is_anothers(&self, partition: &TopicPartition, start: i64) -> Result<bool> {
        let shared = &self.shared;
        let committed = shared.log.committed(&shared.names.group, std::slice::from_ref(partition))?;
        Ok(committed.into_iter().flatten().any(|position| position.offset >= start))
    }
}
