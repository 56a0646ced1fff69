//! What the coordinator knows of one transactional id, as it lies in the metadata log.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::fault::Fault;
use super::metadata::Committed;

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
    /// When its phase last changed; 0 where a version has written it that did not say.
    #[serde(default)]
    pub updated_ms: i64,
    pub partitions: BTreeSet<(String, i32)>,
    /// Where each of them ended when the commit was decided: a batch behind that is none of this transaction. A
    /// power cut may leave one of the next, whose beginning was not synced.
    #[serde(default)]
    pub ends: Vec<i64>,
    pub offsets: Vec<PendingOffset>,
}

impl Transaction {
    pub fn admit(&self, producer_id: i64, epoch: i16) -> Result<(), Fault> {
        if self.producer_id != producer_id {
            return Err(Fault::InvalidProducerIdMapping);
        }
        if self.epoch != epoch {
            return Err(Fault::ProducerFenced);
        }
        Ok(())
    }

    pub fn ending(&self) -> bool {
        matches!(self.phase, Phase::Committing | Phase::Aborting)
    }

    /// Whether it can be forgotten: nothing is open, and nothing was heard since.
    pub fn is_idle_since(&self, since_ms: i64) -> bool {
        self.phase != Phase::Open && !self.ending() && self.updated_ms < since_ms
    }

    pub fn open(&mut self, now_ms: i64) {
        if self.phase != Phase::Open {
            self.phase = Phase::Open;
            self.began_ms = now_ms;
            self.updated_ms = now_ms;
            self.partitions.clear();
            self.ends.clear();
            self.offsets.clear();
        }
    }
}
