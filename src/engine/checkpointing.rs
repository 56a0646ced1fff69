//! Checkpoints of a worker's tasks: begun right after a commit, written and uploaded beside the next epochs.
//!
//! Invariant: an exchange is trimmed only below the second-newest copy in the object store (rule R2).

use std::sync::Arc;
use std::time::Duration;

use crate::log::Log;
use crate::objects::Patience;
use crate::planted::{Fault, note, planted};
use crate::record::TopicPartition;
use crate::state::{CheckpointStats, StateError};

use super::machine::Job;
use super::recovery::{Task, task_name};
use super::run::Shared;
use super::slot::Slot;
use super::{EngineError, Result, lock};

/// Who gives a partition up, or stops, waits this long for a copy on its way; the next owner folds what it lacks.
const COPY_GRACE: Duration = Duration::from_secs(5);
/// Copies that are kept of a task's checkpoints, and as many must be there before anything is trimmed.
const COPIES: usize = 2;
/// A worker whose memory is full waits for a copy as long as each of its requests takes no longer than this.
const REQUEST_GRACE: Duration = Duration::from_secs(10);

/// A checkpoint that is being written and copied beside the epochs.
pub struct Writing {
    job: Job<Result<CheckpointStats, StateError>>,
    /// Of the job, with the object store.
    patience: Patience,
}

/// Begins a checkpoint of what has just been committed, if one is due.
pub fn begin_checkpoint(shared: &Shared, partition: &TopicPartition, slot: &mut Slot) -> Result<()> {
    let (interval, budget) = (shared.settings.checkpoint_interval, shared.task_budget());
    let Task::Keyed(task) = &slot.task else { return Ok(()) };
    let (bytes, behind) = {
        let state = lock(task.state())?;
        (state.memory_bytes(), state.is_behind())
    };
    let over = bytes > budget && !planted(Fault::BudgetIgnored);
    if over {
        note("state is over its budget");
    }
    if over && bytes > 2 * budget && slot.checkpoint.is_some() {
        note("a checkpoint is waited for, since state is over twice its budget");
        // Memory is bounded: wait for the writer rather than fold further, but not for a store that hangs.
        if let Some(writing) = &slot.checkpoint {
            writing.patience.each_at_most(REQUEST_GRACE);
        }
        finish_checkpoint(shared, partition, slot, Wait::ToTheEnd)?;
    }
    let due = shared.since(slot.last_checkpoint) >= interval;
    if slot.checkpoint.is_some() || !(over || due && behind) {
        return Ok(());
    }
    slot.last_checkpoint = shared.machine.now();
    let Task::Keyed(task) = &slot.task else { return Ok(()) };
    let writer = lock(task.state())?.begin_checkpoint(task.offset());
    let patience = Patience::new();
    let checkpoints = shared.checkpoints.as_ref().map(|copies| copies.with_patience(&patience));
    let log = Arc::clone(&shared.log);
    let (name, fingerprint) = (task_name(partition), shared.plan.fingerprint.clone());
    let partition = partition.clone();
    let job = Job::start(&*shared.machine, move || {
        let stats = writer.write()?;
        let Some(checkpoints) = checkpoints else { return Ok(stats) };
        // What is not copied is neither lost nor trimmed; an outage of the object store stops nobody.
        let copied =
            writer.upload(&checkpoints, &name, &fingerprint).and_then(|_| checkpoints.prune(&name, COPIES));
        match copied {
            Ok(kept) => trim(&*log, &partition, &kept),
            Err(error) => {
                tracing::warn!(
                    "{partition}: the checkpoint at {} is on this machine only, the next one is copied again: {error}",
                    stats.offset
                );
                if planted(Fault::TrimmedUncopied) {
                    trim(&*log, &partition, &[stats.offset; COPIES]);
                }
            }
        }
        Ok(stats)
    });
    slot.checkpoint = Some(Writing { job, patience });
    Ok(())
}

/// Deletes the records below the second-newest copy, which are never folded again (rule R2). `copies`: the newest ones
/// that can be read.
fn trim(log: &dyn Log, partition: &TopicPartition, copies: &[i64]) {
    let [oldest, .., newest] = *copies else { return };
    let below = if planted(Fault::TrimmedToNewest) { newest } else { oldest };
    if let Err(error) = log.delete_before(&[(partition.clone(), below)]) {
        tracing::warn!("{partition} could not be trimmed, which is tried again later: {error}");
    }
}

/// What to do about a checkpoint that is still being written.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Wait {
    No,
    /// For what is durable here; the copy is given up soon.
    Briefly,
    ToTheEnd,
}

/// Gives a copy that is on its way a little time. Of several slots all are hurried first, then waited for.
pub fn hurry(slot: &Slot) {
    if let Some(writing) = &slot.checkpoint {
        writing.patience.at_most(COPY_GRACE);
    }
}

/// Takes a checkpoint that has been written off the slot, waiting for it if told to.
pub fn finish_checkpoint(
    shared: &Shared,
    partition: &TopicPartition,
    slot: &mut Slot,
    wait: Wait,
) -> Result<()> {
    if !slot.checkpoint.as_ref().is_some_and(|writing| wait != Wait::No || writing.job.is_finished()) {
        return Ok(());
    }
    if wait == Wait::Briefly {
        hurry(slot);
    }
    let (Some(writing), Task::Keyed(task)) = (slot.checkpoint.take(), &slot.task) else { return Ok(()) };
    let written = writing
        .job
        .wait()
        .ok_or_else(|| EngineError::internal(format!("{partition}: writing a checkpoint panicked")))?;
    let mut state = lock(task.state())?;
    match written {
        Ok(stats) => {
            state.finish_checkpoint();
            let seconds = shared.since(slot.last_checkpoint).as_secs_f64();
            shared.progress.checkpointed(partition, stats.offset, stats.bytes, seconds);
            Ok(())
        }
        Err(error) => {
            state.fail_checkpoint();
            Err(error.into())
        }
    }
}
