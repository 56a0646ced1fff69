//! The worker's checkpoints: begun right after a commit, written beside the next epochs.
//!
//! Invariant: the exchange is trimmed only below the second-newest copy in the object store (rule R2).

use std::sync::Arc;
use std::time::Instant;

use super::super::recovery::{Task, task_name};
use super::super::run::Shared;
use super::super::{EngineError, Result, lock};
use super::{Slot, Worker};
use crate::record::TopicPartition;

impl Worker<'_> {
    /// Begins the checkpoints that are due: right after a commit, and written beside the next epochs.
    pub(super) fn begin_checkpoints(&mut self) -> Result<()> {
        let (interval, budget) = (self.shared.settings.checkpoint_interval, self.shared.task_budget());
        for (partition, slot) in &mut self.slots {
            let Task::Keyed(task) = &slot.task else { continue };
            let bytes = lock(task.state())?.memory_bytes();
            let over = bytes > budget;
            if over && bytes > 2 * budget && slot.checkpoint.is_some() {
                // Memory is bounded: wait for the writer rather than fold further.
                finish_checkpoint(self.shared, partition, slot, true)?;
            }
            let due = slot.last_checkpoint.elapsed() >= interval;
            if slot.checkpoint.is_some() || !(over || due && bytes > 0) {
                continue;
            }
            slot.last_checkpoint = Instant::now();
            let Task::Keyed(task) = &slot.task else { continue };
            let writer = lock(task.state())?.begin_checkpoint(task.offset());
            let (checkpoints, log) = (self.shared.checkpoints.clone(), Arc::clone(&self.shared.log));
            let (name, fingerprint) = (task_name(partition), self.shared.plan.fingerprint.clone());
            let partition = partition.clone();
            slot.checkpoint = Some(std::thread::spawn(move || {
                let stats = writer.write()?;
                if let Some(checkpoints) = checkpoints {
                    writer.upload(&checkpoints, &name, &fingerprint)?;
                    checkpoints.prune(&name, 2)?;
                    // Records below the second-newest copy are never folded again (rule R2).
                    let copies = checkpoints.list(&name)?;
                    if let [.., second, _] = copies[..]
                        && let Err(error) = log.delete_before(&[(partition.clone(), second)])
                    {
                        tracing::warn!(
                            "{partition} could not be trimmed, which is tried again later: {error}"
                        );
                    }
                }
                Ok(stats)
            }));
        }
        Ok(())
    }

    pub(super) fn finish_checkpoints(&mut self, wait: bool) -> Result<()> {
        for (partition, slot) in &mut self.slots {
            finish_checkpoint(self.shared, partition, slot, wait)?;
        }
        Ok(())
    }
}

/// Takes a checkpoint that has been written off the slot; `wait`: also one that is still being written.
pub(super) fn finish_checkpoint(
    shared: &Shared,
    partition: &TopicPartition,
    slot: &mut Slot,
    wait: bool,
) -> Result<()> {
    if !slot.checkpoint.as_ref().is_some_and(|writer| wait || writer.is_finished()) {
        return Ok(());
    }
    let (Some(writer), Task::Keyed(task)) = (slot.checkpoint.take(), &slot.task) else { return Ok(()) };
    let written = writer
        .join()
        .map_err(|_| EngineError::internal(format!("{partition}: writing a checkpoint panicked")))?;
    let mut state = lock(task.state())?;
    match written {
        Ok(stats) => {
            state.finish_checkpoint();
            let seconds = slot.last_checkpoint.elapsed().as_secs_f64();
            shared.progress.checkpointed(partition, stats.offset, stats.bytes, seconds);
            Ok(())
        }
        Err(error) => {
            state.fail_checkpoint();
            Err(error.into())
        }
    }
}
