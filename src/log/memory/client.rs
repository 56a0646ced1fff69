//! Readers, producers and members of the log in memory.
//!
//! Invariant: a poll never waits: what is there is there.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use super::{Cluster, MemoryLog};
use crate::log::{
    CommitError, Event, Fence, LogError, Member, MemberOptions, Outgoing, Position, Producer, Reader, Result,
    Transactor,
};
use crate::planted::{Fault, note, planted};
use crate::record::{Run, TopicPartition, VecRecords};

/// The most records of one run.
const RUN: usize = 500;

struct Reading {
    position: i64,
    reported: Option<i64>,
}

pub(super) struct MemoryReader {
    log: MemoryLog,
    reading: BTreeMap<TopicPartition, Reading>,
    paused: BTreeSet<TopicPartition>,
}

impl MemoryReader {
    pub fn new(log: MemoryLog) -> Self {
        Self { log, reading: BTreeMap::new(), paused: BTreeSet::new() }
    }

    fn start(&mut self, partition: &TopicPartition, offset: i64) -> Result<()> {
        check(&mut self.log.cluster(), partition, offset)?;
        self.reading.insert(partition.clone(), Reading { position: offset, reported: None });
        Ok(())
    }

    fn release(&mut self, partitions: &[TopicPartition]) {
        for partition in partitions {
            self.reading.remove(partition);
            self.paused.remove(partition);
        }
    }
}

fn check(cluster: &mut Cluster, partition: &TopicPartition, offset: i64) -> Result<()> {
    let held = cluster.partition(partition)?;
    if held.holds(offset) {
        return Ok(());
    }
    let bounds = held.bounds();
    Err(LogError::OutOfRange { partition: partition.clone(), offset, start: bounds.start, end: bounds.end })
}

impl Reader for MemoryReader {
    fn assign(&mut self, from: &[(TopicPartition, i64)]) -> Result<()> {
        self.reading.clear();
        self.paused.clear();
        from.iter().try_for_each(|(partition, offset)| self.start(partition, *offset))
    }

    fn poll(&mut self, _timeout: Duration) -> Result<Vec<Event>> {
        let mut cluster = self.log.cluster();
        let mut events = Vec::new();
        for (partition, reading) in &mut self.reading {
            if self.paused.contains(partition) {
                continue;
            }
            check(&mut cluster, partition, reading.position)?;
            let empty_reads = cluster.faults.empty_reads;
            if cluster.dice.falls(empty_reads) {
                continue;
            }
            let short_reads = cluster.faults.short_reads;
            let short = cluster.dice.falls(short_reads);
            let most = if cluster.faults.short_read_max == 0 { 3 } else { cluster.faults.short_read_max };
            let limit = if short { 1 + (cluster.dice.next() % most) as usize } else { RUN };
            let held = cluster.partition(partition)?;
            let (records, position) = held.read(reading.position, limit);
            reading.position = position;
            if let Some(last) = records.last() {
                let next = last.offset + 1;
                events.push(Event::Run(Run {
                    partition: partition.clone(),
                    records: Box::new(VecRecords(records)),
                    next,
                }));
            }
            if position >= held.bounds().end && reading.reported != Some(position) {
                reading.reported = Some(position);
                events.push(Event::End { partition: partition.clone(), position });
            }
        }
        Ok(events)
    }

    fn pause(&mut self, partitions: &[TopicPartition]) -> Result<()> {
        self.paused.extend(partitions.iter().cloned());
        Ok(())
    }

    fn resume(&mut self, partitions: &[TopicPartition]) -> Result<()> {
        self.paused.retain(|partition| !partitions.contains(partition));
        Ok(())
    }
}

pub(super) struct MemoryProducer(pub MemoryLog);

impl Producer for MemoryProducer {
    fn produce(&mut self, to: &TopicPartition, records: &[Outgoing<'_>]) -> Result<()> {
        let mut cluster = self.0.cluster();
        records.iter().try_for_each(|record| cluster.append(to, record, None))
    }

    fn flush(&mut self, _timeout: Duration) -> Result<()> {
        Ok(())
    }
}

/// Transactions outside any group; no faults fall here.
pub(super) struct MemoryTransactor {
    log: MemoryLog,
    id: String,
    incarnation: u64,
    /// The first record that was refused in the open transaction.
    refused: Option<LogError>,
    timeout_ms: i64,
}

impl MemoryTransactor {
    pub fn start(log: MemoryLog, id: &str, timeout: Duration) -> Self {
        let incarnation = log.cluster().start_transactions(id);
        let timeout_ms = i64::try_from(timeout.as_millis()).unwrap_or(i64::MAX / 2);
        Self { log, id: id.to_owned(), incarnation, refused: None, timeout_ms }
    }

    fn decide(&self, commit: bool) -> Result<()> {
        let mut cluster = self.log.cluster();
        let transactional = cluster.transactional.entry(self.id.clone()).or_default();
        if transactional.incarnation != self.incarnation {
            return Err(LogError::Fenced(self.id.clone()));
        }
        if let Some(open) = transactional.open.take() {
            cluster.decide(open, commit);
        }
        Ok(())
    }
}

impl Transactor for MemoryTransactor {
    fn begin(&mut self) -> Result<()> {
        self.refused = None;
        let mut cluster = self.log.cluster();
        let (transaction, ends_ms) = (cluster.next_id(), cluster.now_ms.saturating_add(self.timeout_ms));
        let transactional = cluster.transactional.entry(self.id.clone()).or_default();
        if transactional.incarnation != self.incarnation {
            return Err(LogError::Fenced(self.id.clone()));
        }
        transactional.open = Some(transaction);
        transactional.ends_ms = ends_ms;
        Ok(())
    }

    fn produce(&mut self, to: &TopicPartition, records: &[Outgoing<'_>]) -> Result<()> {
        let mut cluster = self.log.cluster();
        let state = cluster.transactional.get(&self.id);
        let open = state.filter(|state| state.incarnation == self.incarnation).map(|state| state.open);
        match open {
            None => Err(LogError::Fenced(self.id.clone())),
            Some(None) => Err(LogError::Abort(format!("{to}: no transaction is open"))),
            Some(open) => {
                let appended = records.iter().try_for_each(|record| cluster.append(to, record, open));
                appended.or_else(|error| {
                    self.refused.get_or_insert(error);
                    Ok(())
                })
            }
        }
    }

    fn commit(&mut self) -> Result<(), CommitError> {
        match self.refused.take() {
            Some(refused) => Err(CommitError::Refused(refused)),
            None => self.decide(true).map_err(|error| CommitError::Fenced(error.to_string())),
        }
    }

    fn abort(&mut self) -> Result<()> {
        self.refused = None;
        self.decide(false)
    }
}

/// What a fence of this log holds.
struct Membership {
    incarnation: u64,
    generation: i32,
}

pub(super) struct MemoryMember {
    log: MemoryLog,
    options: MemberOptions,
    reader: MemoryReader,
    /// Of the membership; a new one after the session was lost.
    incarnation: u64,
    /// Of the transactional producer.
    producer: u64,
    /// The first record that was refused in the open transaction.
    refused: Option<String>,
    owned: BTreeSet<TopicPartition>,
    /// The generation of the last fence that was handed out.
    generation: i32,
    crashed: bool,
}

impl MemoryMember {
    pub fn join(log: MemoryLog, options: MemberOptions) -> Result<Self> {
        let mut cluster = log.cluster();
        for topic in &options.topics {
            cluster.topic(topic)?;
        }
        let incarnation = cluster.start_transactions(&options.instance);
        drop(cluster);
        let reader = MemoryReader::new(log.clone());
        let member = Self {
            log,
            options,
            reader,
            incarnation,
            producer: incarnation,
            refused: None,
            owned: BTreeSet::new(),
            generation: 0,
            crashed: false,
        };
        member.enter();
        Ok(member)
    }

    fn enter(&self) {
        let mut cluster = self.log.cluster();
        let now_ms = cluster.now_ms;
        let session_ms = i64::try_from(self.options.session_timeout.as_millis()).unwrap_or(i64::MAX / 2);
        let (topics, instance) = (self.options.topics.clone(), &self.options.instance);
        cluster.group(&self.options.group).join(instance, self.incarnation, topics, session_ms, now_ms);
    }

    fn alive(&self) -> Result<()> {
        if self.crashed {
            return Err(LogError::Other {
                what: format!("member '{}'", self.options.instance),
                detail: "its process has crashed; join anew".to_owned(),
            });
        }
        Ok(())
    }

    /// Counts a step and lets its fault fall.
    fn step(&mut self) -> Result<()> {
        self.alive()?;
        let mut cluster = self.log.cluster();
        cluster.steps += 1;
        let step = Some(cluster.steps);
        if cluster.faults.rebalance_at == step {
            cluster.group(&self.options.group).rebalance();
        }
        if cluster.faults.crash_at == step {
            self.crashed = true;
        }
        if cluster.faults.fence_at == step {
            cluster.group(&self.options.group).leave(&self.options.instance, self.incarnation);
        }
        drop(cluster);
        self.alive()
    }

    fn fenced(&self) -> LogError {
        LogError::Fenced(format!("instance '{}'", self.options.instance))
    }

    /// Ends the open transaction; an error when the producer is fenced.
    fn decide(&self, commit: bool) -> Result<()> {
        let mut cluster = self.log.cluster();
        let transactional = cluster.transactional.entry(self.options.instance.clone()).or_default();
        if transactional.incarnation != self.producer {
            return Err(self.fenced());
        }
        if let Some(open) = transactional.open.take() {
            cluster.decide(open, commit);
        }
        Ok(())
    }

    fn check_fence(&self, fence: &Fence) -> std::result::Result<(), CommitError> {
        let Some(membership) = fence.0.downcast_ref::<Membership>() else {
            return Err(CommitError::Aborted("its fence is of another log".to_owned()));
        };
        let mut cluster = self.log.cluster();
        let producer = cluster.transactional.get(&self.options.instance).map(|state| state.incarnation);
        if producer != Some(self.producer) {
            return Err(CommitError::Fenced("a newer producer has this transactional id".to_owned()));
        }
        let group = cluster.group(&self.options.group);
        if !group.is_member(&self.options.instance, membership.incarnation) {
            return Err(CommitError::Fenced("not a member any more".to_owned()));
        }
        if group.generation != membership.generation {
            let text = format!(
                "the group is at generation {}, the fence at {}",
                group.generation, membership.generation
            );
            // The last fence handed out: the group has moved on, and the next poll says where to.
            let latest = membership.generation == self.generation;
            return Err(if latest { CommitError::Aborted(text) } else { CommitError::Fenced(text) });
        }
        Ok(())
    }
}

impl Member for MemoryMember {
    fn poll(&mut self, timeout: Duration) -> Result<Vec<Event>> {
        self.alive()?;
        let mut events = self.reader.poll(timeout)?;
        let mut cluster = self.log.cluster();
        let (now_ms, partitions) = (cluster.now_ms, cluster.all_partitions());
        let next_id = cluster.next_id();
        let group = cluster.group(&self.options.group);
        let instance = &self.options.instance;
        if !group.is_member(instance, self.incarnation) {
            if group.members.contains_key(instance) {
                return Err(self.fenced());
            }
            // The session timed out: everything is lost, and it joins again.
            drop(cluster);
            self.incarnation = next_id;
            self.enter();
            let lost: Vec<TopicPartition> = std::mem::take(&mut self.owned).into_iter().collect();
            if !lost.is_empty() {
                events.push(Event::Lost(lost));
            }
            return Ok(events);
        }
        if let Some(told) = group.poll(instance, now_ms, &partitions) {
            let membership = Membership { incarnation: self.incarnation, generation: told.generation };
            self.generation = told.generation;
            self.owned.extend(told.added.iter().cloned());
            events.push(Event::Assigned { partitions: told.added, fence: Fence(Arc::new(membership)) });
            if !told.revoked.is_empty() {
                events.push(Event::Revoked(told.revoked));
            }
        }
        Ok(events)
    }

    fn start(&mut self, partition: &TopicPartition, offset: i64) -> Result<()> {
        self.alive()?;
        self.reader.start(partition, offset)
    }

    fn release(&mut self, partitions: &[TopicPartition]) -> Result<()> {
        self.alive()?;
        self.reader.release(partitions);
        self.owned.retain(|partition| !partitions.contains(partition));
        let mut cluster = self.log.cluster();
        cluster.group(&self.options.group).release(&self.options.instance, self.incarnation, partitions);
        Ok(())
    }

    fn pause(&mut self, partitions: &[TopicPartition]) -> Result<()> {
        self.reader.pause(partitions)
    }

    fn resume(&mut self, partitions: &[TopicPartition]) -> Result<()> {
        self.reader.resume(partitions)
    }

    fn begin(&mut self) -> Result<()> {
        self.step()?;
        self.refused = None;
        let mut cluster = self.log.cluster();
        let transaction = cluster.next_id();
        let timeout_ms = i64::try_from(self.options.transaction_timeout.as_millis()).unwrap_or(i64::MAX / 2);
        let ends_ms = cluster.now_ms.saturating_add(timeout_ms);
        let transactional = cluster.transactional.entry(self.options.instance.clone()).or_default();
        if transactional.incarnation != self.producer {
            return Err(self.fenced());
        }
        if transactional.open.is_some() {
            return Err(LogError::Abort("a transaction is open already".to_owned()));
        }
        transactional.open = Some(transaction);
        transactional.ends_ms = ends_ms;
        Ok(())
    }

    fn produce(&mut self, to: &TopicPartition, records: &[Outgoing<'_>]) -> Result<()> {
        self.step()?;
        let mut cluster = self.log.cluster();
        let transactional = cluster.transactional.get(&self.options.instance);
        let Some(open) =
            transactional.filter(|state| state.incarnation == self.producer).map(|state| state.open)
        else {
            return Err(self.fenced());
        };
        if open.is_none() {
            return Err(LogError::Abort(format!("{to}: no transaction is open")));
        }
        let failed = cluster.faults.failed_produce;
        let outcome = if cluster.dice.falls(failed) {
            note("records are refused");
            Err(LogError::Abort(format!("{to}: so the dice fell")))
        } else {
            records.iter().try_for_each(|record| cluster.append(to, record, open))
        };
        if let Err(error) = &outcome {
            self.refused = Some(error.to_string());
        }
        outcome
    }

    fn commit(&mut self, fence: &Fence, offsets: &[(TopicPartition, Position)]) -> Result<(), CommitError> {
        self.step().map_err(|error| CommitError::Unknown(error.to_string()))?;
        let unfenced = offsets.is_empty() && planted(Fault::UnfencedIdle);
        if offsets.is_empty() && !unfenced {
            return Err(CommitError::Aborted("it has no offsets, so nothing would fence it".to_owned()));
        }
        if let Some(refused) = &self.refused {
            return Err(CommitError::Aborted(refused.clone()));
        }
        if !unfenced {
            self.check_fence(fence)?;
        }
        let mut cluster = self.log.cluster();
        let faults = cluster.faults.clone();
        if cluster.dice.falls(faults.aborts) {
            note("a commit is aborted");
            return Err(CommitError::Aborted("so the dice fell".to_owned()));
        }
        let lost_aborted = cluster.dice.falls(faults.lost_aborted);
        let lost_committed = cluster.dice.falls(faults.lost_committed);
        if !lost_aborted {
            cluster.group(&self.options.group).offsets.extend(offsets.iter().cloned());
        }
        drop(cluster);
        self.decide(!lost_aborted).map_err(|error| CommitError::Fenced(error.to_string()))?;
        if lost_aborted || lost_committed {
            note(if lost_aborted { "a commit is lost" } else { "the answer to a commit is lost" });
            return Err(CommitError::Unknown("the answer was lost".to_owned()));
        }
        Ok(())
    }

    fn abort(&mut self) -> Result<()> {
        self.alive()?;
        self.refused = None;
        self.decide(false)
    }

    fn leave(&mut self) -> Result<()> {
        self.alive()?;
        let owned: Vec<TopicPartition> = std::mem::take(&mut self.owned).into_iter().collect();
        self.reader.release(&owned);
        self.log.cluster().group(&self.options.group).leave(&self.options.instance, self.incarnation);
        Ok(())
    }
}
