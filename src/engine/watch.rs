//! What a worker looks after between records: origins that are silent, far ahead or at their ends, and positions past
//! transaction markers.
//!
//! Invariant: what others are to know of it is told in an epoch that is begun for it, never beside one.

use std::time::Duration;

use crate::log::LogError;
use crate::planted::{Fault, planted};

use super::Result;
use super::recovery::Task;
use super::slot::Slot;
use super::worker::Worker;

/// How long all must be quiet before a position past transaction markers is worth an epoch of its own.
const SETTLE: Duration = Duration::from_secs(1);

impl Worker {
    /// Declares origins idle that are caught up and silent for their source's `idle_after`.
    pub(super) fn watch_idle(&mut self) -> Result<()> {
        if self.shared.until_end.is_some() {
            return Ok(()); // an end is set: nobody waits for what comes after it
        }
        let mut begin = false;
        for (partition, slot) in &mut self.slots {
            let Task::Ingest(task) = &mut slot.task else { continue };
            let silent = self.shared.since(slot.last_record) >= task.idle_after();
            // One that is paused may have records that it was not given.
            let at_end = slot.caught_up && !slot.paused;
            if !(at_end && silent) || task.is_idle() || task.exchanges().is_empty() {
                continue;
            }
            // This process may have stood still, or its reader lag behind: what is there counts, not what has come.
            let behind = match self.shared.log.bounds(partition) {
                Ok(bounds) => bounds.end > task.offset(),
                Err(LogError::Unreachable { .. }) => true,
                Err(error) => return Err(error.into()),
            };
            if behind && !planted(Fault::IdleUnlooked) {
                slot.last_record = self.shared.machine.now();
                continue;
            }
            task.set_idle();
            begin = true;
        }
        if begin { self.begin() } else { Ok(()) }
    }

    pub(super) fn watch_drift(&mut self) -> Result<()> {
        self.shared.others.watch(&self.shared.machine);
        for (partition, slot) in &mut self.slots {
            let Task::Ingest(task) = &slot.task else { continue };
            let max_drift = self.shared.plan.max_drift;
            let now = self.shared.machine.now();
            let paused =
                self.shared.drift.must_pause(partition, task.watermark(), slot.caught_up, max_drift, now);
            if paused != slot.paused {
                let partition = std::slice::from_ref(partition);
                match paused {
                    true => self.member.pause(partition)?,
                    false => self.member.resume(partition)?,
                }
                slot.paused = paused;
                slot.last_record = now;
            }
        }
        Ok(())
    }

    /// An end that is reached without a record to commit needs an epoch of its own to be told in.
    pub(super) fn watch_until_end(&mut self) -> Result<()> {
        let Some(until_end) = &self.shared.until_end else { return Ok(()) };
        let pending =
            self.slots.iter().any(|(partition, slot)| !slot.ended_told && slot.at_end(partition, until_end));
        if pending { self.begin() } else { Ok(()) }
    }

    /// Transaction markers behind the last record are no lag: a position past them is committed once all is
    /// quiet. Such an epoch writes no record, so it makes no marker that would have to be passed.
    pub(super) fn watch_markers(&mut self) -> Result<()> {
        let quiet = self.slots.values().all(|slot| slot.caught_up);
        // A run to the end ends by such positions, so it takes no time over them.
        let settled = self.shared.until_end.is_some() || self.shared.since(self.last_commit) > SETTLE;
        if self.epoch.is_none() && quiet && settled && self.slots.values().any(Slot::is_dirty) {
            return self.begin();
        }
        Ok(())
    }
}
