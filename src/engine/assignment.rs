//! Partitions come to a worker and go: recovering their tasks, and letting go of them.
//!
//! Invariant: a partition is given up only after its epoch is committed or dropped (`worker.rs` sees to that).

use std::sync::Arc;
use std::time::Duration;

use crate::log::LogError;
use crate::record::TopicPartition;
use crate::state::StateError;

use super::checkpointing::{Wait, finish_checkpoint, hurry};
use super::recovery::Recovery;
use super::slot::Slot;
use super::worker::Worker;
use super::{EngineError, Result};

/// How long a worker waits for another one in this process to let go of a partition that it has lost.
const HAND_OVER_MAX: Duration = Duration::from_secs(30);

/// And how often it asks: a process that was stopped in between has not waited at all.
const HAND_OVER_TRIES: u32 = 100;

/// How long brokers may be away that are asked where a partition stands: as long as those that are read from.
const OUTAGE_MAX: Duration = Duration::from_secs(60);
const OUTAGE_TRIES: u32 = 3;

impl Worker {
    pub(super) fn adopt(&mut self, partition: TopicPartition) -> Result<()> {
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
        let (since, tries) = self.waiting.get(&partition).copied().unwrap_or((shared.machine.now(), 0));
        let recovered = match recovery.task(&partition) {
            Err(error) if is_waited_for(&error, shared.since(since), tries) => {
                if matches!(error, EngineError::Log(_)) {
                    tracing::warn!("{partition} can't be taken over yet, which is tried again: {error}");
                }
                self.waiting.insert(partition, (since, tries + 1));
                return Ok(());
            }
            recovered => recovered?,
        };
        self.waiting.remove(&partition);
        let slot = Slot::new(&shared, &partition, recovered.task, recovered.version_start)?;
        self.member.start(&partition, slot.offset())?;
        self.report(&partition, &slot);
        if let Some(took) = recovered.took {
            shared.progress.recovered(&partition, took);
        }
        self.slots.insert(partition, slot);
        Ok(())
    }

    /// A member that was put out of the group learns of it at its next poll, when others own its partitions.
    pub(super) fn adopt_waiting(&mut self) -> Result<()> {
        let waiting: Vec<TopicPartition> = self.waiting.keys().cloned().collect();
        for partition in waiting {
            match self.adopt(partition) {
                Err(EngineError::Cancelled) => break,
                adopted => adopted?,
            }
        }
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

/// Whether a partition that can't be taken over may be had later.
fn is_waited_for(error: &EngineError, waited: Duration, tries: u32) -> bool {
    match error {
        EngineError::State(StateError::InUse { .. }) => waited < HAND_OVER_MAX || tries < HAND_OVER_TRIES,
        EngineError::Log(LogError::Unreachable { .. }) => waited < OUTAGE_MAX || tries < OUTAGE_TRIES,
        _ => false,
    }
}
