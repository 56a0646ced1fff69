//! The transaction coordinator.
//!
//! # How a transaction commits
//! 1. The partitions it wrote to are synced.
//! 2. `Committing`, with its partitions and group offsets, goes to the metadata log and is synced: this decides.
//! 3. A marker is written to each partition (consumers see the records from here on), and synced.
//! 4. The offsets and `Committed` go to the metadata log as one frame; then the client is answered.
//!
//! After a crash, `Committing` and `Aborting` are carried on from step 3, which is idempotent. An abort needs
//! no sync: a lost marker leaves an open transaction that the coordinator does not know, and that is aborted
//! at start. What timeouts and starts do is in `transaction_recovery.rs`.
//!
//! Invariant: a transaction is `Open` before a partition takes its batches, and a partition takes them only
//! while it is.
//! Invariant: the epoch is raised by a new instance (InitProducerId) and by a timeout, never by EndTxn: clients
//! of this protocol version go on with the epoch they have.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};

use super::cluster::{Cluster, Topic};
use super::fault::Fault;
use super::group::NAME_BYTES_MAX;
use super::metadata::Change;
use super::partition::Partition;
use super::transaction::{PendingOffset, Phase, Transaction};
use super::{lock, now_ms};

/// Kafka's `transaction.max.timeout.ms`.
const TIMEOUT_MS_MAX: i32 = 900_000;
/// Each stays in memory for the week that it is remembered for.
const IDS_MAX: usize = 50_000;
/// The last epoch that is handed out; the one above it only aborts.
const EPOCH_MAX: i16 = i16::MAX - 1;

impl Cluster {
    fn transaction(&self, id: &str) -> Option<Arc<Mutex<Transaction>>> {
        lock(&self.transactions).get(id).cloned()
    }

    pub(super) fn store(&self, id: &str, state: &Transaction) -> Result<u64, Fault> {
        Ok(self.metadata.write(vec![Change::Transaction { id: id.to_owned(), state: state.clone() }])?)
    }

    /// A transactional producer starts: its predecessor's open transaction is aborted and its epoch fenced.
    /// `current` is what the client believes to be, where it goes on after an error.
    pub fn init_transactions(
        &self,
        id: &str,
        timeout_ms: i32,
        current: Option<(i64, i16)>,
    ) -> Result<(i64, i16), Fault> {
        if id.is_empty() || id.len() > NAME_BYTES_MAX {
            return Err(Fault::InvalidRequest);
        }
        if !(1..=TIMEOUT_MS_MAX).contains(&timeout_ms) {
            return Err(Fault::InvalidTransactionTimeout);
        }
        let held = match self.transaction(id) {
            Some(held) => held,
            None => {
                if lock(&self.transactions).len() >= IDS_MAX {
                    tracing::warn!(
                        "there are {IDS_MAX} transactional ids, and none more is taken; an unused one is forgotten after 7 days"
                    );
                    return Err(Fault::PolicyViolation);
                }
                let producer_id = self.new_producer_id()?;
                let fresh = Arc::new(Mutex::new(Transaction {
                    producer_id,
                    epoch: -1,
                    raised_from: None,
                    phase: Phase::Empty,
                    timeout_ms,
                    began_ms: 0,
                    updated_ms: now_ms(),
                    partitions: BTreeSet::new(),
                    ends: Vec::new(),
                    offsets: Vec::new(),
                }));
                lock(&self.transactions).entry(id.to_owned()).or_insert(fresh).clone()
            }
        };
        let mut state = lock(&held);
        if state.epoch >= 0
            && let Some(current) = current
        {
            let raised = state.raised_from == Some(current);
            if raised && state.epoch <= EPOCH_MAX {
                // Its answer was lost, or the disk failed half way.
                self.carry_on(id, &mut state)?;
                self.metadata.sync_all()?;
                return Ok((state.producer_id, state.epoch));
            }
            if !raised && current != (state.producer_id, state.epoch) {
                return Err(Fault::ProducerFenced);
            }
        }
        self.carry_on(id, &mut state)?;
        let mut next = state.clone();
        next.epoch = next.epoch.saturating_add(1);
        next.raised_from = current;
        next.timeout_ms = timeout_ms;
        if state.phase == Phase::Open {
            // Raised before the abort: the marker carries the new epoch and so fences the old one everywhere.
            self.abort_raised(id, &mut state, &mut next)?;
        }
        if next.epoch > EPOCH_MAX {
            next.producer_id = self.new_producer_id()?;
            next.epoch = 0;
        }
        next.phase = Phase::Empty;
        next.updated_ms = now_ms();
        next.partitions.clear();
        next.ends.clear();
        next.offsets.clear();
        let position = self.store(id, &next)?;
        // Durable before the new instance may write: a power cut must not revive the old one.
        self.metadata.sync(position)?;
        *state = next;
        Ok((state.producer_id, state.epoch))
    }

    /// Aborts what is open, as `next`, whose epoch is raised already. Once that is decided, `state` is `next` also
    /// where the rest fails: whoever has the old epoch must not commit what may be aborted in part.
    pub(super) fn abort_raised(
        &self,
        id: &str,
        state: &mut Transaction,
        next: &mut Transaction,
    ) -> Result<(), Fault> {
        let outcome = self.end(id, next, false);
        if outcome.is_ok() || next.ending() {
            *state = next.clone();
        }
        outcome
    }

    /// Takes partitions into the transaction, opening it if need be.
    pub fn add_partitions(
        &self,
        id: &str,
        producer_id: i64,
        epoch: i16,
        partitions: &[(String, i32)],
    ) -> Result<(), Fault> {
        let held = self.transaction(id).ok_or(Fault::InvalidProducerIdMapping)?;
        let mut state = lock(&held);
        state.admit(producer_id, epoch)?;
        if state.ending() {
            return Err(Fault::ConcurrentTransactions);
        }
        let mut next = state.clone();
        next.open(now_ms());
        next.partitions.extend(partitions.iter().cloned());
        if next != *state {
            self.store(id, &next)?;
            *state = next;
        }
        for (topic, index) in partitions {
            if let Some(partition) = self.partition(topic, *index) {
                partition.register(producer_id, epoch);
            }
        }
        Ok(())
    }

    /// Offsets that become the group's when the transaction commits; the group has been checked.
    pub fn add_offsets(
        &self,
        id: &str,
        producer_id: i64,
        epoch: i16,
        offsets: Vec<PendingOffset>,
    ) -> Result<(), Fault> {
        let held = self.transaction(id).ok_or(Fault::InvalidProducerIdMapping)?;
        let mut state = lock(&held);
        state.admit(producer_id, epoch)?;
        match state.phase {
            Phase::Open => {}
            Phase::Committing | Phase::Aborting => return Err(Fault::ConcurrentTransactions),
            _ => return Err(Fault::InvalidTransactionState),
        }
        let mut next = state.clone();
        let key = |offset: &PendingOffset| (offset.group.clone(), offset.topic.clone(), offset.partition);
        let keys: Vec<_> = offsets.iter().map(key).collect();
        next.offsets.retain(|older| !keys.contains(&key(older)));
        next.offsets.extend(offsets);
        self.store(id, &next)?;
        *state = next;
        // The transaction can't end meanwhile, so nobody misses them; and a full disk leaves none behind.
        let mut pending = lock(&self.pending);
        pending.extend(keys.into_iter().map(|key| (key, producer_id)));
        Ok(())
    }

    /// EndTxn. A repetition (its answer was lost) gets the same answer.
    pub fn end_transaction(&self, id: &str, producer_id: i64, epoch: i16, commit: bool) -> Result<(), Fault> {
        let held = self.transaction(id).ok_or(Fault::InvalidProducerIdMapping)?;
        let mut state = lock(&held);
        state.admit(producer_id, epoch)?;
        match (state.phase, commit) {
            (Phase::Open, _) => self.end(id, &mut state, commit),
            (Phase::Committing, true) | (Phase::Aborting, false) => self.finish(id, &mut state),
            (Phase::Committed, true) | (Phase::Aborted | Phase::Empty, false) => Ok(()),
            _ => Err(Fault::InvalidTransactionState),
        }
    }

    pub(super) fn carry_on(&self, id: &str, state: &mut Transaction) -> Result<(), Fault> {
        if state.ending() { self.finish(id, state) } else { Ok(()) }
    }

    /// The transaction's partitions that still exist, and where each ended when its commit was decided.
    fn members(&self, state: &Transaction) -> Vec<(Arc<Topic>, Arc<Partition>, i64)> {
        let ends = state.ends.iter().copied().chain(std::iter::repeat(i64::MAX));
        let located = |((topic, index), end): (&(String, i32), i64)| {
            let (topic, partition) = self.locate(topic, *index).ok()?;
            Some((topic, partition, end))
        };
        state.partitions.iter().zip(ends).filter_map(located).collect()
    }

    /// Steps 1 and 2, then [`Self::finish`].
    pub(super) fn end(&self, id: &str, state: &mut Transaction, commit: bool) -> Result<(), Fault> {
        let mut next = state.clone();
        next.phase = if commit { Phase::Committing } else { Phase::Aborting };
        if commit {
            let end = |(topic, index): &(String, i32)| {
                self.partition(topic, *index).map_or(i64::MAX, |partition| partition.bounds().end)
            };
            next.ends = next.partitions.iter().map(end).collect();
            let partitions: Vec<_> = self.members(state).into_iter().map(|(_, p, _)| p).collect();
            Cluster::sync(&partitions)?;
        }
        let position = self.store(id, &next)?;
        *state = next;
        if commit {
            self.metadata.sync(position)?;
        }
        self.finish(id, state)
    }

    /// Steps 3 and 4.
    pub(super) fn finish(&self, id: &str, state: &mut Transaction) -> Result<(), Fault> {
        let commit = state.phase == Phase::Committing;
        if commit {
            // Also where the decision was written but its sync failed: the markers must not come before it.
            self.metadata.sync_all()?;
        }
        let members = self.members(state);
        for (topic, partition, end) in &members {
            partition.end_transaction(
                state.producer_id,
                state.epoch,
                commit.then_some(*end),
                &topic.config,
            )?;
        }
        if commit {
            let partitions: Vec<_> = members.into_iter().map(|(_, partition, _)| partition).collect();
            Cluster::sync(&partitions)?;
        }
        let mut next = state.clone();
        next.phase = if commit { Phase::Committed } else { Phase::Aborted };
        next.updated_ms = now_ms();
        next.partitions.clear();
        next.ends.clear();
        let offsets = std::mem::take(&mut next.offsets);
        let pending: Vec<_> =
            offsets.iter().map(|o| (o.group.clone(), o.topic.clone(), o.partition)).collect();
        let known = |offset: &PendingOffset| self.topic(&offset.topic).is_some();
        let change = |offset: PendingOffset| Change::Offset {
            group: offset.group,
            topic: offset.topic,
            partition: offset.partition,
            committed: offset.committed,
        };
        let mut changes: Vec<Change> = match commit {
            true => offsets.into_iter().filter(known).map(change).collect(),
            false => Vec::new(),
        };
        changes.push(Change::Transaction { id: id.to_owned(), state: next.clone() });
        self.metadata.write(changes)?;
        for key in pending {
            lock(&self.pending).remove(&key);
        }
        *state = next;
        Ok(())
    }

    /// Whether an open transaction holds an offset of this group and partition.
    pub fn offset_pending(&self, group: &str, topic: &str, partition: i32) -> bool {
        lock(&self.pending).contains_key(&(group.to_owned(), topic.to_owned(), partition))
    }
}

#[cfg(test)]
mod tests;
