//! The worker: a thread with one member of the group and the tasks that the group gave it. This page is the
//! commit protocol.
//!
//! ```text
//! poll ─► step tasks, produce what they hand over ─► … ─► the epoch is due:
//!   flush every task that moved ─► produce ─► commit(fence, offsets + metadata)
//!     Ok       state layers are committed; checkpoints that are due begin, beside the next epochs
//!     Aborted  this epoch's layers are dropped, the tasks read again from the last commit
//!     Fenced, Unknown   everything is dropped; a new member reads the committed offsets again
//! ```
//! Invariant: a partition is given up only after its epoch is committed or dropped.
//! Invariant: a transaction always carries an offset, so that it is fenced (rule R4).

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::log::{CommitError, Event, Fence, LogError, Member, Outgoing};
use crate::planted::{Fault, planted};
use crate::record::{Run, TopicPartition};

use super::assignment::Waiting;
use super::checkpointing::{Wait, begin_checkpoint, finish_checkpoint, hurry};
use super::expired::{EpochExpired, ExpiredWindow};
use super::meta::MetaEntry;
use super::recovery::Task;
use super::run::{Shared, TRANSACTION_TIMEOUT};
use super::slot::Slot;
use super::start::StartStep;
use super::until_end::UntilEnd;
use super::versions::VersionStart;
use super::{EngineError, Outputs, Result};

/// A worker that has nothing to do looks up this often.
const POLL_MAX: Duration = Duration::from_millis(100);

/// Aborts in a row that are nothing special: rebalances. From here on each is said, and followed by a pause.
const ABORTS_NOTED: u32 = 4;
const ABORT_PAUSE: Duration = Duration::from_millis(200);

/// Why a worker's member can't go on.
pub enum Ended {
    /// The topology was asked to stop, or has come to the end it was to come to.
    Stopped,
    /// Another took over: join anew.
    Fenced(String),
    /// A commit's outcome is unknown, or the producer can't go on: join anew.
    Rejoin(String),
}

pub(super) struct Epoch {
    began: Instant,
    records: u64,
    bytes: u64,
    /// Rows that failed a check with `otherwise: warn`; shown once they are committed.
    warned: BTreeMap<Arc<str>, u64>,
    /// Named once they are committed.
    expired: EpochExpired,
}

pub struct Worker {
    pub(super) shared: Arc<Shared>,
    pub(super) member: Box<dyn Member>,
    /// Among the workers of this process.
    pub(super) index: usize,
    fence: Option<Fence>,
    pub(super) slots: BTreeMap<TopicPartition, Slot>,
    pub(super) waiting: BTreeMap<TopicPartition, Waiting>,
    pub(super) epoch: Option<Epoch>,
    /// What was polled and is not yet handled.
    events: VecDeque<Event>,
    pub(super) last_commit: Instant,
    /// Epochs that were aborted since the last commit.
    aborts: u32,
    outputs: Outputs,
}

impl Worker {
    pub fn new(shared: &Arc<Shared>, index: usize) -> Result<Self> {
        let member = shared.log.member(&shared.member_options(index))?;
        Ok(Self {
            member,
            index,
            fence: None,
            slots: BTreeMap::new(),
            waiting: BTreeMap::new(),
            epoch: None,
            events: VecDeque::new(),
            last_commit: shared.machine.now(),
            aborts: 0,
            outputs: Outputs::default(),
            shared: Arc::clone(shared),
        })
    }

    /// One turn. `Some`: the topology is stopped, or this member can't go on, and is done with.
    pub fn step(&mut self) -> Result<Option<Ended>> {
        let outcome = match self.turn() {
            Err(EngineError::Log(error)) => self.failed(error),
            outcome => outcome,
        };
        let ended = match outcome {
            Ok(None) => return Ok(None),
            Ok(Some(ended)) => Ok(ended),
            Err(EngineError::Log(LogError::Fenced(why))) => Ok(Ended::Rejoin(why)),
            Err(error) => Err(error),
        };
        self.end(&ended)?;
        ended.map(Some)
    }

    fn end(&mut self, ended: &Result<Ended>) -> Result<()> {
        match ended {
            Ok(Ended::Stopped) => {
                self.finish_checkpoints(Wait::Briefly)?;
                for (partition, slot) in &self.slots {
                    if let Task::Keyed(task) = &slot.task {
                        self.shared.progress.open_windows(partition, task.open_windows()?);
                    }
                }
                self.member.leave()?;
            }
            _ => {
                // What is not committed is dropped with the tasks; the transaction is aborted so that nobody
                // waits for it to time out. A member that is fenced can't, and need not.
                if self.epoch.take().is_some() {
                    let _ = self.member.abort();
                }
                let finished = self.finish_checkpoints(Wait::Briefly);
                for partition in self.slots.keys() {
                    self.shared.forget(partition);
                }
                self.slots.clear();
                if ended.is_err() {
                    let _ = self.member.leave();
                } else {
                    finished?;
                }
            }
        }
        Ok(())
    }

    /// Polls once and handles what has come.
    fn turn(&mut self) -> Result<Option<Ended>> {
        if self.shared.must_stop() {
            let ended = if self.epoch.is_some() { self.commit()? } else { None };
            return Ok(Some(ended.unwrap_or(Ended::Stopped)));
        }
        if self.is_done()? {
            let ended = if self.epoch.is_some() { self.commit()? } else { None };
            return Ok(Some(ended.unwrap_or(Ended::Stopped)));
        }
        if self.events.is_empty() {
            self.events.extend(self.member.poll(self.poll_timeout())?);
        }
        while let Some(event) = self.events.pop_front() {
            if let Some(ended) = self.handle(event)? {
                return Ok(Some(ended));
            }
        }
        let waiting = self.to_try_again();
        if !waiting.is_empty() {
            // As for an assignment: recovering may take longer than an open transaction lives.
            if self.epoch.is_some()
                && let Some(ended) = self.commit()?
            {
                return Ok(Some(ended));
            }
            self.adopt(waiting)?;
        }
        self.watch_idle()?;
        self.watch_drift()?;
        self.shared.sources.watch(&self.shared.machine)?;
        self.watch_until_end()?;
        self.watch_markers()?;
        self.finish_checkpoints(Wait::No)?;
        if self.is_due() { self.commit() } else { Ok(None) }
    }

    /// The topology is where `run --until-end` goes to. Nobody asks before what is here is there.
    fn is_done(&mut self) -> Result<bool> {
        let Some(until_end) = &self.shared.until_end else { return Ok(false) };
        let is_before = |(partition, slot): (&TopicPartition, &Slot)| {
            slot.is_dirty() || until_end.has_end(partition) && !slot.end_committed
        };
        // A crashed member's offsets may have to be waited for, longer than an open transaction lives.
        let busy = self.fence.is_none() || self.epoch.is_some() || self.slots.iter().any(is_before);
        if until_end.is_done() || busy {
            return Ok(until_end.is_done());
        }
        until_end.look(&*self.shared.log, &self.shared.names, self.shared.machine.now())
    }

    fn poll_timeout(&self) -> Duration {
        match &self.epoch {
            None => POLL_MAX.min(self.shared.settings.epoch),
            Some(epoch) => {
                self.shared.settings.epoch.saturating_sub(self.shared.since(epoch.began)).min(POLL_MAX)
            }
        }
    }

    fn is_due(&self) -> bool {
        let settings = &self.shared.settings;
        self.epoch.as_ref().is_some_and(|epoch| {
            // One that only moves positions past markers gathers nothing by waiting, and a run to its end waits for it.
            let bare = epoch.records == 0 && self.shared.until_end.is_some();
            bare || self.shared.since(epoch.began) >= settings.epoch
                || epoch.records >= settings.epoch_rows
                || epoch.bytes >= settings.epoch_bytes
        })
    }

    fn handle(&mut self, event: Event) -> Result<Option<Ended>> {
        match event {
            Event::Run(run) => {
                self.take(&run)?;
                Ok(None)
            }
            Event::End { partition, position } => {
                if let Some(slot) = self.slots.get_mut(&partition) {
                    slot.caught_up = true;
                    slot.skip_to(position);
                }
                Ok(None)
            }
            Event::Assigned { partitions, fence } => {
                // Partitions that are kept go on under the new fence.
                self.fence = Some(fence);
                if planted(Fault::RebalanceAborts)
                    && self.epoch.is_some()
                    && let Some(ended) = self.roll_back("the group rebalances")?
                {
                    return Ok(Some(ended));
                }
                // Recovering a task may take longer than an open transaction lives.
                if !partitions.is_empty()
                    && self.epoch.is_some()
                    && let Some(ended) = self.commit()?
                {
                    return Ok(Some(ended));
                }
                if !partitions.is_empty() {
                    self.shared.reached(StartStep::Assigned, self.index);
                    self.adopt(partitions)?;
                }
                Ok(None)
            }
            Event::Revoked(partitions) => {
                if self.epoch.is_some()
                    && let Some(ended) = self.commit()?
                {
                    return Ok(Some(ended));
                }
                self.give_up(&partitions)?;
                Ok(None)
            }
            // Under the fault, the epoch goes on until it is committed.
            Event::Lost(_) if planted(Fault::ZombieCommit) && self.epoch.is_some() => Ok(None),
            Event::Lost(partitions) => {
                // First, so that rolling back does not start to read again what is another's by now.
                self.give_up(&partitions)?;
                if self.epoch.is_some() { self.roll_back("partitions were lost") } else { Ok(None) }
            }
        }
    }

    pub(super) fn begin(&mut self) -> Result<()> {
        if self.epoch.is_none() {
            self.member.begin()?;
            let began = self.shared.machine.now();
            self.epoch = Some(Epoch {
                began,
                records: 0,
                bytes: 0,
                warned: BTreeMap::new(),
                expired: EpochExpired::default(),
            });
        }
        Ok(())
    }

    fn take(&mut self, run: &Run) -> Result<()> {
        if !self.slots.contains_key(&run.partition) {
            return Ok(()); // given up since it was fetched
        }
        self.begin()?;
        let Some(slot) = self.slots.get_mut(&run.partition) else { return Ok(()) };
        slot.caught_up = false;
        slot.last_record = self.shared.machine.now();
        slot.step(run, &mut self.outputs)?;
        let warned = std::mem::take(&mut self.outputs.warned);
        let expired = std::mem::take(&mut self.outputs.expired);
        slot.publisher.publish(&mut self.outputs, &mut *self.member)?;
        if let Some(epoch) = &mut self.epoch {
            epoch.records += run.records.len() as u64;
            epoch.bytes += run.records.bytes() as u64;
            for (check, rows) in warned {
                *epoch.warned.entry(check).or_default() += rows;
            }
            expired.into_iter().for_each(|(origin, expired)| epoch.expired.add(origin, expired));
        }
        Ok(())
    }

    /// Ends the epoch. `Some`: this member can't go on.
    fn commit(&mut self) -> Result<Option<Ended>> {
        match self.try_commit() {
            Ok(()) => Ok(None),
            // Whatever is to come after this commit, partitions that come or go, comes after an abort as well.
            Err(Failure::Engine(EngineError::Log(error))) => self.failed(error),
            Err(Failure::Engine(error)) => Err(error),
            Err(Failure::Commit(CommitError::Aborted(why))) => self.roll_back(&why),
            Err(Failure::Commit(CommitError::Refused(error))) => Err(self.named(error)),
            Err(Failure::Commit(CommitError::Fenced(why))) => Ok(Some(self.fenced(self.epoch.as_ref(), why))),
            Err(Failure::Commit(error @ CommitError::Unknown(_))) => {
                Ok(Some(Ended::Rejoin(error.to_string())))
            }
        }
    }

    fn try_commit(&mut self) -> Result<(), Failure> {
        let began = self.shared.machine.now();
        let mut offsets = Vec::new();
        let shared = Arc::clone(&self.shared);
        let until_end = shared.until_end.as_ref();
        let telling = until_end.and_then(UntilEnd::tell);
        for (partition, slot) in &mut self.slots {
            slot.flush(&mut self.outputs)?;
            let at_end = until_end.is_some_and(|until_end| slot.at_end(partition, until_end));
            let told_now = at_end && !slot.ended_told && telling.is_some();
            let told = self.outputs.watermark.is_some() || self.outputs.idle;
            let dirty = slot.is_dirty() || told_now || told;
            slot.publisher.publish(&mut self.outputs, &mut *self.member)?;
            if let (true, Some(until_end)) = (told_now, until_end) {
                if until_end.close {
                    slot.publisher.publish_end(&mut *self.member)?;
                }
                slot.ended_told = true;
            }
            if dirty {
                offsets.push((partition.clone(), slot.position()));
            }
        }
        if offsets.is_empty() {
            let any = self.slots.iter().next();
            offsets.extend(any.map(|(partition, slot)| (partition.clone(), slot.position())));
        }
        // An epoch without a record is one that declares an origin idle, among others.
        if planted(Fault::UnfencedIdle) && self.epoch.as_ref().is_some_and(|epoch| epoch.records == 0) {
            offsets.clear();
        }
        if planted(Fault::CheckpointBeforeCommit) {
            for (partition, slot) in &mut self.slots {
                slot.commit(true)?;
                begin_checkpoint(&self.shared, partition, slot)?;
            }
        }
        let mut meta = Some(self.shared.meta()?).filter(|meta| !meta.is_empty());
        let mut entries: Vec<MetaEntry> = meta.as_ref().map_or_else(Vec::new, |meta| meta.to_vec());
        let starts = offsets.iter().filter_map(|(partition, _)| self.slots[partition].version_start.as_ref());
        entries.extend(starts.map(VersionStart::entry).collect::<Result<Vec<_>>>()?);
        if let Some(epoch) = self.epoch.as_ref().filter(|_| !planted(Fault::ExpiredUnnamed)) {
            entries.extend(epoch.expired.windows().map(ExpiredWindow::entry).collect::<Result<Vec<_>>>()?);
        }
        remember(&self.shared.names.meta, &mut *self.member, &entries)?;
        let committed = match (&self.fence, self.slots.is_empty()) {
            (Some(fence), false) => self.member.commit(fence, &offsets),
            // Everything was given up since the epoch began.
            _ => Err(CommitError::Aborted("no partition is left to commit".into())),
        };
        committed.map_err(Failure::Commit)?;
        if let Some(meta) = &mut meta {
            meta.clear();
        }
        drop(meta);
        if let Some(epoch) = self.epoch.take() {
            self.shared.progress.warn(&epoch.warned);
            epoch.expired.report();
        }
        self.last_commit = self.shared.machine.now();
        self.aborts = 0;
        self.shared.reached(StartStep::Committed, self.index);
        self.shared.progress.committed(self.shared.since(began).as_secs_f64());
        for (partition, slot) in &mut self.slots {
            slot.commit(offsets.iter().any(|(sent, _)| sent == partition))?;
            slot.end_committed = slot.ended_told;
        }
        for (partition, slot) in &self.slots {
            self.report(partition, slot);
        }
        for (partition, slot) in &mut self.slots {
            begin_checkpoint(&self.shared, partition, slot)?;
        }
        Ok(())
    }

    /// What to do when the log fails under an epoch.
    fn failed(&mut self, error: LogError) -> Result<Option<Ended>> {
        match error {
            LogError::Abort(why) => self.roll_back(&why),
            LogError::Fenced(why) => Ok(Some(self.fenced(self.epoch.as_ref(), why))),
            // One that stood still may learn of what others did to its partitions before it learns that it lost them.
            LogError::OutOfRange { partition, start, .. } if self.is_anothers(&partition, start)? => {
                Ok(Some(Ended::Rejoin(format!("{partition} was read on by another member"))))
            }
            error => Err(self.named(error)),
        }
    }

    /// Who is fenced was replaced by another, unless its own transaction was open for longer than Kafka allows: then
    /// Kafka has ended it in its name.
    fn fenced(&self, epoch: Option<&Epoch>, why: String) -> Ended {
        match epoch.map(|epoch| self.shared.since(epoch.began)) {
            Some(open) if open >= TRANSACTION_TIMEOUT => Ended::Rejoin(format!(
                "its transaction was open for {} s, and Kafka ends one after {} s (was this process or the broker \
                 stopped, or is the machine overloaded?): {why}",
                open.as_secs(),
                TRANSACTION_TIMEOUT.as_secs()
            )),
            _ => Ended::Fenced(why),
        }
    }

    /// Names the source record of a dead or late letter that its topic refused.
    fn named(&self, error: LogError) -> EngineError {
        if let LogError::TooLarge { to, bytes, .. } = &error
            && [&self.shared.names.dead, &self.shared.names.late].contains(&&to.topic)
            && let Some((source, offset)) =
                self.slots.values().find_map(|slot| slot.publisher.letter_of(*bytes))
        {
            return EngineError::LetterTooLarge { source_partition: source.clone(), offset, error };
        }
        error.into()
    }

    /// Drops the epoch: tasks and state go back to the last commit and read on from there (rule R7). `Some`: the
    /// producer can't even abort.
    fn roll_back(&mut self, why: &str) -> Result<Option<Ended>> {
        self.aborts += 1;
        if self.aborts < ABORTS_NOTED {
            tracing::info!("the epoch was aborted and is done again: {why}");
        } else {
            tracing::warn!("the epoch was aborted {} times in a row and is done again: {why}", self.aborts);
            self.shared.machine.pause(ABORT_PAUSE * (self.aborts - ABORTS_NOTED + 1).min(10));
        }
        self.shared.progress.aborted(why);
        self.outputs.clear();
        let epoch = self.epoch.take();
        // What was read before goes on from before: it will be read again.
        self.events.retain(|event| !matches!(event, Event::Run(_) | Event::End { .. }));
        match self.member.abort() {
            Ok(()) => {}
            Err(LogError::Fenced(why)) => return Ok(Some(self.fenced(epoch.as_ref(), why))),
            Err(error) => return Ok(Some(Ended::Rejoin(error.to_string()))),
        }
        for (partition, slot) in &mut self.slots {
            let offset = slot.abort()?;
            slot.caught_up = false;
            slot.ended_told = slot.end_committed;
            match self.member.start(partition, offset) {
                Err(LogError::Fenced(why)) => return Ok(Some(Ended::Fenced(why))),
                // The group took the partition away meanwhile, of which the next poll would tell.
                Err(error @ LogError::Other { .. }) => return Ok(Some(Ended::Rejoin(error.to_string()))),
                started => started?,
            }
        }
        Ok(None)
    }

    fn finish_checkpoints(&mut self, wait: Wait) -> Result<()> {
        if wait == Wait::Briefly {
            self.slots.values().for_each(hurry);
        }
        for (partition, slot) in &mut self.slots {
            finish_checkpoint(&self.shared, partition, slot, wait)?;
        }
        Ok(())
    }

    pub(super) fn report(&self, partition: &TopicPartition, slot: &Slot) {
        self.shared.progress.set(partition, slot.progress(&self.shared.plan));
    }
}

/// Writes into the topology's meta topic.
fn remember(topic: &Arc<str>, member: &mut dyn Member, entries: &[MetaEntry]) -> Result<()> {
    if entries.is_empty() {
        return Ok(());
    }
    let records: Vec<Outgoing<'_>> = entries
        .iter()
        .map(|(key, value)| Outgoing { key: Some(key), value: Some(value), ..Outgoing::default() })
        .collect();
    Ok(member.produce(&TopicPartition::new(Arc::clone(topic), 0), &records)?)
}

enum Failure {
    Engine(EngineError),
    Commit(CommitError),
}

impl<E: Into<EngineError>> From<E> for Failure {
    fn from(error: E) -> Self {
        Self::Engine(error.into())
    }
}
