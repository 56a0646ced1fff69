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
//! at start.
//!
//! Invariant: a transaction is `Open` before a partition takes its batches, and a partition takes them only
//! while it is.
//! Invariant: the epoch is raised by a new instance (InitProducerId) and by a timeout, never by EndTxn: clients
//! of this protocol version go on with the epoch they have.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};

use serde::{Deserialize, Serialize};

use super::cluster::{Cluster, Topic};
use super::fault::Fault;
use super::metadata::{Change, Committed};
use super::partition::Partition;
use super::{lock, now_ms};

/// Kafka's `transaction.max.timeout.ms`.
const TIMEOUT_MS_MAX: i32 = 900_000;
/// The last epoch that is handed out; the one above it only aborts.
const EPOCH_MAX: i16 = i16::MAX - 1;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Phase {
    Empty,
    Open,
    Committing,
    Aborting,
    Committed,
    Aborted,
}

/// A group offset that becomes the group's when the transaction commits.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PendingOffset {
    pub group: String,
    pub topic: String,
    pub partition: i32,
    pub committed: Committed,
}

/// The state of one transactional id.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Transaction {
    pub producer_id: i64,
    pub epoch: i16,
    /// The (producer, epoch) that the last InitProducerId named, so that its repetition gets the same answer.
    pub raised_from: Option<(i64, i16)>,
    pub phase: Phase,
    pub timeout_ms: i32,
    pub began_ms: i64,
    pub partitions: BTreeSet<(String, i32)>,
    pub offsets: Vec<PendingOffset>,
}

impl Transaction {
    fn admit(&self, producer_id: i64, epoch: i16) -> Result<(), Fault> {
        if self.producer_id != producer_id {
            return Err(Fault::InvalidProducerIdMapping);
        }
        if self.epoch != epoch {
            return Err(Fault::ProducerFenced);
        }
        Ok(())
    }

    fn ending(&self) -> bool {
        matches!(self.phase, Phase::Committing | Phase::Aborting)
    }

    fn open(&mut self, now_ms: i64) {
        if self.phase != Phase::Open {
            self.phase = Phase::Open;
            self.began_ms = now_ms;
            self.partitions.clear();
            self.offsets.clear();
        }
    }
}

impl Cluster {
    fn transaction(&self, id: &str) -> Option<Arc<Mutex<Transaction>>> {
        lock(&self.transactions).get(id).cloned()
    }

    fn store(&self, id: &str, state: &Transaction) -> Result<u64, Fault> {
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
        if id.is_empty() {
            return Err(Fault::InvalidRequest);
        }
        if !(1..=TIMEOUT_MS_MAX).contains(&timeout_ms) {
            return Err(Fault::InvalidTransactionTimeout);
        }
        let held = match self.transaction(id) {
            Some(held) => held,
            None => {
                let producer_id = self.new_producer_id()?;
                let fresh = Arc::new(Mutex::new(Transaction {
                    producer_id,
                    epoch: -1,
                    raised_from: None,
                    phase: Phase::Empty,
                    timeout_ms,
                    began_ms: 0,
                    partitions: BTreeSet::new(),
                    offsets: Vec::new(),
                }));
                lock(&self.transactions).entry(id.to_owned()).or_insert(fresh).clone()
            }
        };
        let mut state = lock(&held);
        if state.epoch >= 0
            && let Some(current) = current
        {
            if state.raised_from == Some(current) {
                return Ok((state.producer_id, state.epoch));
            }
            if current != (state.producer_id, state.epoch) {
                return Err(Fault::ProducerFenced);
            }
        }
        self.carry_on(id, &mut state)?;
        let mut next = state.clone();
        next.epoch += 1;
        if state.phase == Phase::Open {
            // Raised before the abort: the marker carries the new epoch and so fences the old one everywhere.
            self.end(id, &mut next, false)?;
        }
        if next.epoch > EPOCH_MAX {
            next.producer_id = self.new_producer_id()?;
            next.epoch = 0;
        }
        next.phase = Phase::Empty;
        next.raised_from = current;
        next.timeout_ms = timeout_ms;
        next.partitions.clear();
        next.offsets.clear();
        let position = self.store(id, &next)?;
        // Durable before the new instance may write: a power cut must not revive the old one.
        self.metadata.sync(position)?;
        *state = next;
        Ok((state.producer_id, state.epoch))
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
        for offset in offsets {
            lock(&self.pending).insert(key(&offset), producer_id);
            next.offsets.retain(|older| key(older) != key(&offset));
            next.offsets.push(offset);
        }
        self.store(id, &next)?;
        *state = next;
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

    fn carry_on(&self, id: &str, state: &mut Transaction) -> Result<(), Fault> {
        if state.ending() { self.finish(id, state) } else { Ok(()) }
    }

    fn members(&self, state: &Transaction) -> Vec<(Arc<Topic>, Arc<Partition>)> {
        state.partitions.iter().filter_map(|(topic, index)| self.locate(topic, *index).ok()).collect()
    }

    /// Steps 1 and 2, then [`Self::finish`].
    fn end(&self, id: &str, state: &mut Transaction, commit: bool) -> Result<(), Fault> {
        let mut next = state.clone();
        next.phase = if commit { Phase::Committing } else { Phase::Aborting };
        if commit {
            let partitions: Vec<_> =
                self.members(state).into_iter().map(|(_, partition)| partition).collect();
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
    fn finish(&self, id: &str, state: &mut Transaction) -> Result<(), Fault> {
        let commit = state.phase == Phase::Committing;
        let members = self.members(state);
        for (topic, partition) in &members {
            partition.end_transaction(state.producer_id, state.epoch, commit, &topic.config)?;
        }
        self.appended.notify_waiters();
        if commit {
            let partitions: Vec<_> = members.into_iter().map(|(_, partition)| partition).collect();
            Cluster::sync(&partitions)?;
        }
        let mut next = state.clone();
        next.phase = if commit { Phase::Committed } else { Phase::Aborted };
        next.partitions.clear();
        let offsets = std::mem::take(&mut next.offsets);
        for offset in &offsets {
            lock(&self.pending).remove(&(offset.group.clone(), offset.topic.clone(), offset.partition));
        }
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
        *state = next;
        Ok(())
    }

    /// Whether an open transaction holds an offset of this group and partition.
    pub fn offset_pending(&self, group: &str, topic: &str, partition: i32) -> bool {
        lock(&self.pending).contains_key(&(group.to_owned(), topic.to_owned(), partition))
    }

    /// Aborts transactions that have been open for longer than they may, and fences their producers.
    pub fn time_transactions_out(&self) {
        let now_ms = now_ms();
        let all: Vec<_> =
            lock(&self.transactions).iter().map(|(id, held)| (id.clone(), held.clone())).collect();
        for (id, held) in all {
            // One that is busy is not forgotten: the next tick sees it.
            let Ok(mut state) = held.try_lock() else { continue };
            if state.phase != Phase::Open || now_ms - state.began_ms < i64::from(state.timeout_ms) {
                continue;
            }
            tracing::warn!(transactional_id = id, "aborted a transaction that was open for too long");
            let mut next = state.clone();
            next.epoch += 1;
            next.raised_from = None;
            if self.end(&id, &mut next, false).is_ok() || next.ending() {
                *state = next;
            }
        }
    }

    /// At start: ends what was being ended, keeps open transactions open (hidden, until their producer comes
    /// back or they time out), and aborts those in partitions that no transaction here knows.
    pub(super) fn recover_transactions(&self) -> Result<(), Fault> {
        let stored = self.metadata.read(|image| image.transactions.clone());
        let mut known = BTreeSet::new();
        for (id, mut state) in stored {
            self.carry_on(&id, &mut state)?;
            if state.phase == Phase::Open {
                for (topic, index) in &state.partitions {
                    known.insert((topic.clone(), *index, state.producer_id));
                    if let Some(partition) = self.partition(topic, *index) {
                        partition.register(state.producer_id, state.epoch);
                    }
                }
                for offset in &state.offsets {
                    let key = (offset.group.clone(), offset.topic.clone(), offset.partition);
                    lock(&self.pending).insert(key, state.producer_id);
                }
            }
            lock(&self.transactions).insert(id, Arc::new(Mutex::new(state)));
        }
        for (name, topic) in self.topics() {
            for (index, partition) in topic.partitions.iter().enumerate() {
                for (producer_id, epoch) in partition.open_transactions() {
                    if !known.contains(&(name.clone(), index as i32, producer_id)) {
                        partition.end_transaction(producer_id, epoch, false, &topic.config)?;
                    }
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::super::batch::tests::batch;
    use super::super::config::TopicConfig;
    use super::*;

    fn cluster(folder: &std::path::Path) -> Cluster {
        let cluster = Cluster::open(folder).unwrap();
        if cluster.topic("t").is_none() {
            cluster.create_topic("t", 2, Default::default(), false).unwrap();
        }
        cluster
    }

    fn send(cluster: &Cluster, producer: (i64, i16), sequence: i32, index: i32) -> Result<i64, Fault> {
        let records = batch((producer.0, producer.1, sequence), true, &[1_000]);
        let config = TopicConfig::new(Default::default()).unwrap();
        let partition = cluster.partition("t", index).unwrap();
        partition.append(Bytes::from(records), &config).map(|appended| appended.base_offset)
    }

    fn offset(at: i64) -> PendingOffset {
        let committed = Committed { offset: at, leader_epoch: -1, metadata: "m".into() };
        PendingOffset { group: "g".into(), topic: "t".into(), partition: 0, committed }
    }

    fn committed(cluster: &Cluster) -> Option<i64> {
        cluster
            .metadata
            .read(|image| image.offsets.get("g").and_then(|of| of.get(&("t".into(), 0))).map(|c| c.offset))
    }

    fn bounds(cluster: &Cluster, index: i32) -> (i64, i64) {
        let bounds = cluster.partition("t", index).unwrap().bounds();
        (bounds.stable, bounds.end)
    }

    #[test]
    fn records_and_offsets_appear_together_and_the_epoch_stays() {
        let folder = tempfile::tempdir().unwrap();
        let cluster = cluster(folder.path());
        let (id, epoch) = cluster.init_transactions("x", 1000, None).unwrap();
        for round in 0..3 {
            cluster.add_partitions("x", id, epoch, &[("t".into(), 0), ("t".into(), 1)]).unwrap();
            send(&cluster, (id, epoch), round, 0).unwrap();
            cluster.add_offsets("x", id, epoch, vec![offset(i64::from(round))]).unwrap();
            assert!(cluster.offset_pending("g", "t", 0));
            let before = (round > 0).then(|| i64::from(round) - 1);
            assert_eq!((committed(&cluster), bounds(&cluster, 0).0), (before, i64::from(round) * 2));
            cluster.end_transaction("x", id, epoch, true).unwrap();
            cluster.end_transaction("x", id, epoch, true).unwrap();
            assert_eq!(committed(&cluster), Some(i64::from(round)));
            assert_eq!(bounds(&cluster, 0), (i64::from(round) * 2 + 2, i64::from(round) * 2 + 2));
            assert!(!cluster.offset_pending("g", "t", 0));
        }
        assert_eq!(bounds(&cluster, 1), (0, 0), "a partition without records gets no marker");
    }

    #[test]
    fn a_new_instance_aborts_its_predecessor_and_fences_it() {
        let folder = tempfile::tempdir().unwrap();
        let cluster = cluster(folder.path());
        let (id, old) = cluster.init_transactions("x", 1000, None).unwrap();
        cluster.add_partitions("x", id, old, &[("t".into(), 0)]).unwrap();
        send(&cluster, (id, old), 0, 0).unwrap();
        cluster.add_offsets("x", id, old, vec![offset(9)]).unwrap();
        let (same, new) = cluster.init_transactions("x", 1000, None).unwrap();
        assert_eq!((same, new), (id, old + 1));
        assert_eq!((bounds(&cluster, 0), committed(&cluster)), ((2, 2), None));
        assert_eq!(cluster.partition("t", 0).unwrap().aborted(0, 2).len(), 1);
        assert_eq!(cluster.end_transaction("x", id, old, true), Err(Fault::ProducerFenced));
        assert_eq!(cluster.add_partitions("x", id, old, &[]), Err(Fault::ProducerFenced));
        assert_eq!(send(&cluster, (id, old), 1, 0), Err(Fault::InvalidProducerEpoch));
        assert_eq!(send(&cluster, (id, old), 0, 1), Err(Fault::InvalidTransactionState));
        cluster.add_partitions("x", id, new, &[("t".into(), 0)]).unwrap();
        assert_eq!(send(&cluster, (id, new), 0, 0), Ok(2));
    }

    #[test]
    fn an_open_transaction_stays_hidden_over_a_crash_until_it_times_out() {
        let folder = tempfile::tempdir().unwrap();
        let first = cluster(folder.path());
        let (id, epoch) = first.init_transactions("x", 1, None).unwrap();
        first.add_partitions("x", id, epoch, &[("t".into(), 0)]).unwrap();
        send(&first, (id, epoch), 0, 0).unwrap();
        drop(first);
        let second = cluster(folder.path());
        assert_eq!(bounds(&second, 0), (0, 1));
        std::thread::sleep(std::time::Duration::from_millis(5));
        second.time_transactions_out();
        assert_eq!(bounds(&second, 0), (2, 2));
        assert_eq!(second.end_transaction("x", id, epoch, true), Err(Fault::ProducerFenced));
    }

    #[test]
    fn a_decision_that_was_made_is_carried_out_after_a_crash() {
        for phase in [Phase::Committing, Phase::Aborting] {
            let folder = tempfile::tempdir().unwrap();
            let first = cluster(folder.path());
            let (id, epoch) = first.init_transactions("x", 1000, None).unwrap();
            first.add_partitions("x", id, epoch, &[("t".into(), 0), ("t".into(), 1)]).unwrap();
            send(&first, (id, epoch), 0, 0).unwrap();
            send(&first, (id, epoch), 0, 1).unwrap();
            first.add_offsets("x", id, epoch, vec![offset(5)]).unwrap();
            // The crash comes after the decision and the first of two markers.
            let mut state = first.metadata.read(|image| image.transactions["x"].clone());
            state.phase = phase;
            first.store("x", &state).unwrap();
            let config = TopicConfig::new(Default::default()).unwrap();
            let commit = phase == Phase::Committing;
            first.partition("t", 0).unwrap().end_transaction(id, epoch, commit, &config).unwrap();
            drop(first);
            let second = cluster(folder.path());
            assert_eq!((bounds(&second, 0), bounds(&second, 1)), ((2, 2), (2, 2)));
            assert_eq!(second.partition("t", 1).unwrap().aborted(0, 2).is_empty(), commit);
            assert_eq!(committed(&second), commit.then_some(5));
        }
    }

    #[test]
    fn a_transaction_that_the_coordinator_does_not_know_is_aborted_at_start() {
        let folder = tempfile::tempdir().unwrap();
        let first = cluster(folder.path());
        first.partition("t", 0).unwrap().register(99, 0);
        send(&first, (99, 0), 0, 0).unwrap();
        drop(first);
        assert_eq!(bounds(&cluster(folder.path()), 0), (2, 2));
    }

    #[test]
    fn a_repeated_init_gets_the_same_answer_and_a_stale_one_is_fenced() {
        let folder = tempfile::tempdir().unwrap();
        let cluster = cluster(folder.path());
        let first = cluster.init_transactions("x", 1000, None).unwrap();
        let second = cluster.init_transactions("x", 1000, Some(first)).unwrap();
        assert_eq!(cluster.init_transactions("x", 1000, Some(first)), Ok(second));
        cluster.init_transactions("x", 1000, None).unwrap();
        assert_eq!(cluster.init_transactions("x", 1000, Some(second)), Err(Fault::ProducerFenced));
        assert_eq!(cluster.init_transactions("x", 0, None), Err(Fault::InvalidTransactionTimeout));
    }

    #[test]
    fn producer_ids_are_not_handed_out_again_after_a_restart() {
        let folder = tempfile::tempdir().unwrap();
        let first = cluster(folder.path());
        let seen: Vec<i64> = (0..5).map(|_| first.new_producer_id().unwrap()).collect();
        drop(first);
        let next = cluster(folder.path()).new_producer_id().unwrap();
        assert!(seen.iter().all(|id| *id < next));
    }
}
