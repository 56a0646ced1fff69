//! The commit protocol of a connector: one member, and the tasks that the group gave it.
//!
//! ```text
//! poll ─► ask the sources of tasks, produce what they hand over ─► … ─► the epoch is due:
//!   produce positions ─► commit(fence, offsets of the control topic)
//!     Ok       positions count; the sources hear of them
//!     Aborted  the epoch is dropped, sources are opened anew at the committed positions
//!     Fenced, Unknown   everything is dropped; a new member reads the control topic again
//! ```
//! Invariant: a source is never asked while a batch of it is neither in the open transaction nor dropped.
//! Invariant: a transaction always carries an offset of the control topic, so that it is fenced (rule R4).

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::codec::partition_for_key;
use crate::engine::letters;
use crate::log::{CommitError, Event, Fence, Log, LogError, Member, MemberOptions, Outgoing};
use crate::planted::{Fault, planted};
use crate::record::{Header, TopicPartition};

use super::control::{COMMAND, Command, control_topic, dead_topic, group, recall};
use super::progress::{Progress, Tally};
use super::source::{Batch, Budget, Class, Letter, Phase, Positions, Source, SourceError};
use super::task::{Task, apply, outgoing};
use super::{ConnectError, Result};

const SESSION_TIMEOUT: Duration = Duration::from_secs(10);
const TRANSACTION_TIMEOUT: Duration = Duration::from_secs(15);
const EPOCH: Duration = Duration::from_millis(200);
const EPOCH_BYTES: usize = 8 << 20;
const POLL_MAX: Duration = Duration::from_millis(100);
/// A quiet task says that it is alive.
const HEARTBEAT: Duration = Duration::from_secs(10);
/// Nobody else has the tasks by then, unless another process runs.
const UNASSIGNED_MAX: Duration = Duration::from_secs(20);
const ABORTS_NOTED: u32 = 4;

/// Makes a task's source at committed positions.
pub type Opener = dyn Fn(i32, &Positions) -> Result<Box<dyn Source>, SourceError> + Send + Sync;

/// A topic that a connector writes.
#[derive(Clone, Debug)]
pub struct Stream {
    pub topic: Arc<str>,
    pub partitions: i32,
}

/// What the runner needs of a connector.
pub struct Job {
    pub name: String,
    pub streams: Vec<Stream>,
    pub dead_partitions: i32,
    pub max_reject_ratio: f64,
    pub instance: String,
    pub until_caught_up: bool,
    pub open: Box<Opener>,
    /// Waits for others.
    pub pause: Box<dyn Fn(Duration) + Send + Sync>,
}

/// Why a member can't go on.
#[derive(Debug)]
pub enum Ended {
    Stopped,
    CaughtUp,
    Fenced(String),
    Rejoin(String),
}

struct Epoch {
    began: Instant,
    bytes: usize,
}

pub struct Runner {
    job: Arc<Job>,
    log: Arc<dyn Log>,
    member: Box<dyn Member>,
    fence: Option<Fence>,
    tasks: BTreeMap<i32, Task>,
    epoch: Option<Epoch>,
    batch: Batch,
    progress: Progress,
    aborts: u32,
    joined: Instant,
}

impl Runner {
    pub fn join(job: &Arc<Job>, log: &Arc<dyn Log>, progress: &Progress, now: Instant) -> Result<Self> {
        let member = log.member(&MemberOptions {
            group: group(&job.name),
            instance: format!("headwater.connect.{}.{}", job.name, job.instance),
            topics: vec![control_topic(&job.name)],
            session_timeout: SESSION_TIMEOUT,
            transaction_timeout: TRANSACTION_TIMEOUT,
        })?;
        Ok(Self {
            job: Arc::clone(job),
            log: Arc::clone(log),
            member,
            fence: None,
            tasks: BTreeMap::new(),
            epoch: None,
            batch: Batch::default(),
            progress: progress.clone(),
            aborts: 0,
            joined: now,
        })
    }

    /// What this member's tasks have committed, also once it has left.
    pub fn tally(&self) -> Tally {
        let mut sum = Tally::default();
        self.tasks.values().for_each(|task| sum.add(task.tally()));
        sum
    }

    /// Goes as far as a commit does before it commits, and stands still there.
    #[cfg(all(test, feature = "planted-faults"))]
    pub fn produce_positions(&mut self) -> Result<()> {
        for task in self.tasks.values() {
            let records = task.control_records(&self.job.instance);
            self.member.produce(&task.partition, &outgoing(&records))?;
        }
        Ok(())
    }

    /// One turn. `Some`: this member is done with.
    pub fn step(&mut self, now: Instant, stop: bool) -> Result<Option<Ended>> {
        let outcome = match self.turn(now, stop) {
            Err(ConnectError::Log(error)) => self.failed(error),
            outcome => outcome,
        };
        let ended = match outcome {
            Ok(None) => return Ok(None),
            Ok(Some(ended)) => Ok(ended),
            Err(ConnectError::Log(LogError::Fenced(why))) => Ok(Ended::Rejoin(why)),
            Err(error) => Err(error),
        };
        let leaves = matches!(ended, Ok(Ended::Stopped | Ended::CaughtUp) | Err(_));
        if self.epoch.take().is_some() {
            // So that nobody waits for it to time out; who is fenced can't, and need not.
            let _ = self.member.abort();
        }
        self.tasks.keys().for_each(|task| self.progress.remove(*task));
        if leaves {
            let left = self.member.leave();
            if ended.is_ok() {
                left?;
            }
        }
        ended.map(Some)
    }

    fn turn(&mut self, now: Instant, stop: bool) -> Result<Option<Ended>> {
        if stop {
            return Ok(Some(self.commit(now)?.unwrap_or(Ended::Stopped)));
        }
        for event in self.member.poll(self.poll_timeout(now))? {
            if let Some(ended) = self.handle(event, now)? {
                return Ok(Some(ended));
            }
        }
        for task in self.tasks.keys().copied().collect::<Vec<_>>() {
            if let Some(ended) = self.ask(task, now)? {
                return Ok(Some(ended));
            }
        }
        if self.is_due(now)
            && let Some(ended) = self.commit(now)?
        {
            return Ok(Some(ended));
        }
        self.end(now)
    }

    /// Whether this is where `--until-caught-up` goes to.
    fn end(&mut self, now: Instant) -> Result<Option<Ended>> {
        if !self.job.until_caught_up {
            return Ok(None);
        }
        if self.tasks.is_empty() {
            let waited = now.saturating_duration_since(self.joined);
            let elsewhere = self.fence.is_some() && waited > UNASSIGNED_MAX;
            return if elsewhere { Err(ConnectError::Elsewhere(self.job.name.clone())) } else { Ok(None) };
        }
        if self.tasks.values().any(Task::is_paused) {
            return Err(ConnectError::Paused(self.job.name.clone()));
        }
        if self.tasks.values().any(|task| task.phase != Phase::CaughtUp) {
            return Ok(None);
        }
        Ok(Some(self.commit(now)?.unwrap_or(Ended::CaughtUp)))
    }

    fn poll_timeout(&self, now: Instant) -> Duration {
        match self.tasks.values().any(|task| task.is_busy(now)) {
            true => Duration::ZERO,
            false => POLL_MAX,
        }
    }

    fn is_due(&self, now: Instant) -> bool {
        let due =
            |epoch: &Epoch| now.saturating_duration_since(epoch.began) >= EPOCH || epoch.bytes >= EPOCH_BYTES;
        // An epoch of whole files that are read to their ends gains nothing by waiting.
        let quiet = || !self.tasks.values().any(|task| task.is_busy(now));
        let stale =
            |task: &Task| task.has_handled() || now.saturating_duration_since(task.last_commit) >= HEARTBEAT;
        self.epoch.as_ref().is_some_and(|epoch| due(epoch) || quiet()) || self.tasks.values().any(stale)
    }

    fn handle(&mut self, event: Event, now: Instant) -> Result<Option<Ended>> {
        match event {
            // Its own records come back, too: they are passed over, and make no epoch.
            Event::Run(run) => {
                if let Some(task) = self.tasks.get_mut(&run.partition.partition) {
                    task.consumed = run.next;
                    for record in (0..run.records.len()).map(|index| run.records.get(index)) {
                        let key = record.key.filter(|key| key.starts_with(COMMAND.as_bytes()));
                        if let (Some(key), Some(command)) = (key, record.value.and_then(Command::read)) {
                            task.handle(key.to_vec(), command);
                        }
                    }
                }
            }
            Event::End { partition, position } => {
                if let Some(task) = self.tasks.get_mut(&partition.partition) {
                    task.consumed = task.consumed.max(position);
                }
            }
            Event::Assigned { partitions, fence } => {
                self.fence = Some(fence);
                // Reading the control topic may take longer than an open transaction lives.
                if !partitions.is_empty()
                    && let Some(ended) = self.commit(now)?
                {
                    return Ok(Some(ended));
                }
                for partition in partitions {
                    self.adopt(partition, now)?;
                }
            }
            Event::Revoked(partitions) => {
                if let Some(ended) = self.commit(now)? {
                    return Ok(Some(ended));
                }
                self.give_up(&partitions)?;
            }
            Event::Lost(_) if planted(Fault::ZombieCommit) && self.epoch.is_some() => {}
            Event::Lost(partitions) => {
                // First, so that rolling back does not open again what is another's by now.
                self.give_up(&partitions)?;
                if self.epoch.is_some() {
                    return self.roll_back("partitions were lost");
                }
            }
        }
        Ok(None)
    }

    fn adopt(&mut self, partition: TopicPartition, now: Instant) -> Result<()> {
        let remembered = recall(&*self.log, &self.job.name, &partition, &*self.job.pause)?;
        self.member.start(&partition, remembered.offset)?;
        let task = Task::new(partition.clone(), remembered, now);
        self.progress.set(partition.partition, task.progress());
        self.tasks.insert(partition.partition, task);
        Ok(())
    }

    fn give_up(&mut self, partitions: &[TopicPartition]) -> Result<()> {
        for partition in partitions {
            self.tasks.remove(&partition.partition);
            self.progress.remove(partition.partition);
        }
        self.joined = Instant::now();
        Ok(self.member.release(partitions)?)
    }

    fn begin(&mut self, now: Instant) -> Result<()> {
        if self.epoch.is_none() {
            self.member.begin()?;
            self.epoch = Some(Epoch { began: now, bytes: 0 });
        }
        Ok(())
    }

    /// Asks one task's source for a batch, and puts it into the transaction.
    fn ask(&mut self, number: i32, now: Instant) -> Result<Option<Ended>> {
        let bytes = EPOCH_BYTES.saturating_sub(self.epoch.as_ref().map_or(0, |epoch| epoch.bytes));
        let Some(task) = self.tasks.get_mut(&number) else { return Ok(None) };
        if bytes == 0 || !task.is_ready(now) {
            return Ok(None);
        }
        self.batch.clear();
        match next(task, number, &self.job, &mut self.batch, Budget { now, bytes }) {
            Ok(phase) => {
                task.went_well();
                // Who looks on is told that it has caught up.
                task.open.dirty |= phase == Phase::CaughtUp && task.phase != phase;
                task.phase = phase;
            }
            Err(error) => return self.source_failed(number, error, now),
        }
        if self.batch.is_empty() {
            return if task.open.dirty { self.begin(now).map(|()| None) } else { Ok(None) };
        }
        if planted(Fault::StepSplit) {
            task.open.positions.extend(self.batch.take_positions());
            task.open.dirty = true;
            self.begin(now)?;
            if let Some(ended) = self.commit(now)? {
                return Ok(Some(ended));
            }
        }
        self.begin(now)?;
        self.publish(number)?;
        Ok(None)
    }

    /// Whole steps before the error are committed; the batch that failed is dropped.
    fn source_failed(&mut self, number: i32, error: SourceError, now: Instant) -> Result<Option<Ended>> {
        self.batch.clear();
        if let Some(ended) = self.commit(now)? {
            return Ok(Some(ended));
        }
        let Some(task) = self.tasks.get_mut(&number) else { return Ok(None) };
        if error.class != Class::Retry {
            return Err(error.into());
        }
        tracing::warn!("connector '{}' tries again: {error}", self.job.name);
        task.fail(error.to_string(), now);
        self.progress.retried();
        self.progress.set(number, task.progress());
        Ok(None)
    }

    fn publish(&mut self, number: i32) -> Result<()> {
        let Some(task) = self.tasks.get_mut(&number) else { return Ok(()) };
        for outcome in self.batch.outcomes() {
            let window = task.rejects();
            window.observe(outcome.is_some());
            if let Some(letter) = outcome.filter(|_| window.exceeds(self.job.max_reject_ratio)) {
                let (rejected, of) = window.counts();
                let (connector, last) = (self.job.name.clone(), letter.message.clone());
                return Err(ConnectError::TooManyRejects { connector, rejected, of, last });
            }
        }
        for (stream, to) in self.job.streams.iter().enumerate() {
            let mut placed: Vec<Vec<Outgoing<'_>>> = Vec::new();
            placed.resize_with(usize::try_from(to.partitions).unwrap_or(1).max(1), Vec::new);
            for record in self.batch.records().filter(|record| record.stream == stream) {
                let place = match record.key {
                    Some(key) => partition_for_key(key, to.partitions) as usize,
                    None => (record.group % placed.len() as u64) as usize,
                };
                let value = Some(record.value);
                placed[place].push(Outgoing { key: record.key, value, ..Outgoing::default() });
            }
            for (partition, records) in (0..).zip(&placed).filter(|(_, records)| !records.is_empty()) {
                self.member.produce(&TopicPartition::new(Arc::clone(&to.topic), partition), records)?;
            }
        }
        let letters = self.batch.letters();
        if !letters.is_empty() {
            let topic = dead_topic(&self.job.name);
            let to = TopicPartition::new(topic, number % self.job.dead_partitions.max(1));
            let headers: Vec<Vec<Header>> = letters.iter().map(letter_headers).collect();
            let records: Vec<Outgoing<'_>> = letters
                .iter()
                .zip(&headers)
                .map(|(letter, headers)| Outgoing {
                    value: Some(&letter.bytes),
                    headers,
                    ..Outgoing::default()
                })
                .collect();
            self.member.produce(&to, &records)?;
        }
        task.open.tally.records += self.batch.len() as u64;
        task.open.tally.dead += letters.len() as u64;
        task.open.tally.bytes += self.batch.source_bytes;
        if let Some(epoch) = &mut self.epoch {
            epoch.bytes += self.batch.bytes();
        }
        task.open.dirty = true;
        task.open.positions.extend(self.batch.take_positions());
        Ok(())
    }

    /// Ends the epoch; without one, nothing but a heartbeat that is due is committed.
    fn commit(&mut self, now: Instant) -> Result<Option<Ended>> {
        let stale =
            |task: &Task| task.has_handled() || now.saturating_duration_since(task.last_commit) >= HEARTBEAT;
        if self.epoch.is_none() && !self.tasks.values().any(stale) {
            return Ok(None);
        }
        match self.try_commit(now) {
            Ok(()) => Ok(None),
            Err(Failure::Connect(ConnectError::Log(error))) => self.failed(error),
            Err(Failure::Connect(error)) => Err(error),
            Err(Failure::Commit(CommitError::Aborted(why))) => self.roll_back(&why),
            Err(Failure::Commit(CommitError::Refused(error))) => Err(self.named(error)),
            Err(Failure::Commit(CommitError::Fenced(why))) => Ok(Some(Ended::Fenced(why))),
            Err(Failure::Commit(error @ CommitError::Unknown(_))) => {
                Ok(Some(Ended::Rejoin(error.to_string())))
            }
        }
    }

    fn try_commit(&mut self, now: Instant) -> Result<(), Failure> {
        let began = Instant::now();
        self.begin(now)?;
        let stale = |task: &Task| now.saturating_duration_since(task.last_commit) >= HEARTBEAT;
        let due = |task: &Task| task.open.dirty || stale(task);
        let mut offsets = Vec::new();
        let mut sent = Vec::new();
        for (number, task) in self.tasks.iter_mut().filter(|(_, task)| due(task)) {
            if planted(Fault::AckBeforeCommit) {
                let mut positions = task.committed.clone();
                apply(&mut positions, task.open.positions.clone());
                acknowledge(task.source.as_deref_mut(), &positions).map_err(ConnectError::Source)?;
            }
            let records = task.control_records(&self.job.instance);
            self.member.produce(&task.partition, &outgoing(&records)).map_err(ConnectError::Log)?;
            offsets.push((task.partition.clone(), task.offset()));
            sent.push(*number);
        }
        match &self.fence {
            Some(fence) if !offsets.is_empty() => {
                self.member.commit(fence, &offsets).map_err(Failure::Commit)?;
            }
            // Everything was given up since the epoch began.
            _ => return Err(Failure::Commit(CommitError::Aborted("no task is left to commit".into()))),
        }
        self.epoch = None;
        self.aborts = 0;
        self.progress.committed(began.elapsed().as_secs_f64());
        for number in sent {
            let Some(task) = self.tasks.get_mut(&number) else { continue };
            task.commit(&self.job.instance, now);
            self.progress.set(number, task.progress());
            let Task { source, committed, .. } = task;
            acknowledge(source.as_deref_mut(), committed).map_err(ConnectError::Source)?;
        }
        Ok(())
    }

    fn failed(&mut self, error: LogError) -> Result<Option<Ended>> {
        match error {
            LogError::Abort(why) => self.roll_back(&why),
            LogError::Fenced(why) => Ok(Some(Ended::Fenced(why))),
            error => Err(self.named(error)),
        }
    }

    fn named(&self, error: LogError) -> ConnectError {
        match error {
            error @ LogError::TooLarge { .. } => {
                ConnectError::TooLarge { connector: self.job.name.clone(), error }
            }
            error => error.into(),
        }
    }

    /// Drops the epoch: sources are opened again at the committed positions.
    fn roll_back(&mut self, why: &str) -> Result<Option<Ended>> {
        self.aborts += 1;
        match self.aborts {
            ..ABORTS_NOTED => tracing::info!("the epoch was aborted and is done again: {why}"),
            aborts => {
                tracing::warn!("the epoch was aborted {aborts} times in a row and is done again: {why}");
            }
        }
        self.epoch = None;
        self.tasks.values_mut().for_each(Task::abort);
        match self.member.abort() {
            Ok(()) => Ok(None),
            Err(LogError::Fenced(why)) => Ok(Some(Ended::Fenced(why))),
            Err(error) => Ok(Some(Ended::Rejoin(error.to_string()))),
        }
    }
}

fn next(
    task: &mut Task,
    number: i32,
    job: &Job,
    batch: &mut Batch,
    budget: Budget,
) -> Result<Phase, SourceError> {
    let source = match &mut task.source {
        Some(source) => source,
        empty => empty.insert((job.open)(number, &task.committed)?),
    };
    source.next(batch, budget)
}

fn acknowledge(source: Option<&mut (dyn Source + '_)>, positions: &Positions) -> Result<(), SourceError> {
    source.map_or(Ok(()), |source| source.committed(positions))
}

fn letter_headers(letter: &Letter) -> Vec<Header> {
    let mut headers = letter.place.clone();
    headers.push(Header::text(letters::DEAD_STAGE, "source"));
    headers.push(Header::text(letters::DEAD_MESSAGE, letter.message.clone()));
    headers.push(Header::text(letters::REASON, letter.reason));
    headers.push(Header::text(letters::ATTEMPT, "1"));
    headers
}

enum Failure {
    Connect(ConnectError),
    Commit(CommitError),
}

impl<E: Into<ConnectError>> From<E> for Failure {
    fn from(error: E) -> Self {
        Self::Connect(error.into())
    }
}
