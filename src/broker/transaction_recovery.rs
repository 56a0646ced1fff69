//! What the coordinator does by itself: transactions that time out, that could not be ended, those that a crash or a
//! power cut left, and transactional ids that nobody uses any more.
//!
//! Invariant: an id is forgotten only while no request works with it, and never with a transaction open.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};

use super::cluster::Cluster;
use super::fault::Fault;
use super::transaction::{Phase, Transaction};
use super::{lock, now_ms};

/// Kafka's `transactional.id.expiration.ms`.
const ID_EXPIRATION_MS: i64 = 7 * 24 * 3600 * 1000;

impl Cluster {
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
            // What fails is carried on by the next ticks.
            let _ = self.fence(&id, &mut state);
        }
    }

    /// Raises the epoch, so that the producer that has it is refused, and aborts what it has open.
    fn fence(&self, id: &str, state: &mut Transaction) -> Result<(), Fault> {
        let mut next = state.clone();
        next.epoch = next.epoch.saturating_add(1);
        next.raised_from = None;
        if next.phase == Phase::Open {
            return self.abort_raised(id, state, &mut next);
        }
        self.store(id, &next)?;
        *state = next;
        Ok(())
    }

    /// Ends what was decided but could not be carried out, the disk being full for example.
    pub fn carry_transactions_on(&self) {
        let all: Vec<_> =
            lock(&self.transactions).iter().map(|(id, held)| (id.clone(), held.clone())).collect();
        for (id, held) in all {
            let Ok(mut state) = held.try_lock() else { continue };
            if state.ending() && self.finish(&id, &mut state).is_ok() {
                tracing::info!(transactional_id = id, "ended a transaction that could not be ended before");
            }
        }
    }

    /// Forgets transactional ids that were not used for a week. Whoever comes back with one begins anew.
    pub fn expire_transactional_ids(&self) {
        self.expire_transactional_ids_at(now_ms());
    }

    pub(super) fn expire_transactional_ids_at(&self, now_ms: i64) {
        let mut expired = Vec::new();
        let mut transactions = lock(&self.transactions);
        transactions.retain(|id, held| {
            // A request that works with it, or waits to, holds it too.
            let kept = Arc::strong_count(held) > 1
                || !held.try_lock().is_ok_and(|state| state.is_idle_since(now_ms - ID_EXPIRATION_MS));
            if !kept {
                expired.push(id.clone());
            }
            kept
        });
        // Under the lock: an id that comes back now must not be forgotten after it has been stored.
        if !expired.is_empty() {
            tracing::info!(ids = expired.len(), "forgot transactional ids that were not used for 7 days");
            self.metadata.forget_transactions(&expired);
        }
    }

    /// At start: ends what was being ended, keeps open transactions open (hidden, until their producer comes
    /// back or they time out), and aborts those in partitions that no transaction here knows.
    pub(super) fn recover_transactions(&self, power_was_gone: bool) -> Result<(), Fault> {
        let stored = self.metadata.read(|image| image.transactions.clone());
        let mut known = BTreeSet::new();
        for (id, mut state) in stored {
            self.carry_on(&id, &mut state)?;
            if state.updated_ms == 0 {
                state.updated_ms = now_ms();
            }
            if power_was_gone {
                // The end of what was acknowledged may be lost: neither the transaction may go on, nor may its
                // producer be told that one which nobody remembers had been committed.
                self.fence(&id, &mut state)?;
            }
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
        self.expire_transactional_ids();
        for (name, topic) in self.topics() {
            for (index, partition) in topic.partitions.iter().enumerate() {
                for (producer_id, epoch) in partition.open_transactions() {
                    if !known.contains(&(name.clone(), index as i32, producer_id)) {
                        partition.end_transaction(producer_id, epoch, None, &topic.config)?;
                    }
                }
            }
        }
        Ok(())
    }
}
