//! Which dead letters were redriven: `<topology>.redriven`, by the places of their original records (rule R12).
//!
//! A redriven record is read again at its new place, so whoever reads the original once more (a replay, or a run
//! that began anew) must leave it as dead as it was; else it would count twice.
//!
//! Invariant: an entry is written in the transaction that its record is produced in.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::log::{Log, Span, TopicSpec, read_spans};
use crate::record::{Origin, TopicPartition};

use super::topics::{redriven_topic, spec};
use super::{EngineError, Result, check_format};

const VERSION: u32 = 1;

/// The original's place: the entry's key.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Key {
    topic: String,
    partition: i32,
    offset: i64,
}

/// An entry of the topic.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RedriveEntry {
    pub version: u32,
    /// The dead letter's place in `<topology>.dead`.
    pub dead_partition: i32,
    pub dead_offset: i64,
    /// How often the record had died.
    pub attempt: u32,
    /// The record went back with another key or value.
    pub edited: bool,
}

impl RedriveEntry {
    pub fn new(dead_partition: i32, dead_offset: i64, attempt: u32, edited: bool) -> Self {
        Self { version: VERSION, dead_partition, dead_offset, attempt, edited }
    }

    /// Key and value of the record that says that the original at `offset` was redriven.
    pub fn to_record(&self, origin: &Origin, offset: i64) -> Result<(Vec<u8>, Vec<u8>)> {
        let key = Key { topic: origin.topic.to_string(), partition: origin.partition, offset };
        let failed = |error: serde_json::Error| EngineError::internal(error.to_string());
        Ok((serde_json::to_vec(&key).map_err(failed)?, serde_json::to_vec(self).map_err(failed)?))
    }
}

/// The originals that were redriven.
#[derive(Clone, Debug, Default)]
pub struct Redriven(BTreeMap<Origin, Arc<BTreeSet<i64>>>);

impl Redriven {
    /// The topic that entries go to, to be created before the first one.
    pub fn topic(topology: &str) -> TopicSpec {
        spec(&redriven_topic(topology), 1, &[("cleanup.policy", "compact".into())])
    }

    /// As committed now; empty where nothing was ever redriven.
    pub fn read(topology: &str, log: &dyn Log) -> Result<Self> {
        let topic = redriven_topic(topology);
        let mut found: BTreeMap<Origin, BTreeSet<i64>> = BTreeMap::new();
        let spans = Span::of_topic(log, &topic)?.unwrap_or_default();
        read_spans(log, &spans, &|| false, &mut |run| {
            for index in 0..run.records.len() {
                let record = run.records.get(index);
                let unreadable = |detail: String| EngineError::ForeignRedriven {
                    partition: run.partition.clone(),
                    offset: record.offset,
                    detail,
                };
                let key: Key = serde_json::from_slice(record.key.unwrap_or_default())
                    .map_err(|error| unreadable(error.to_string()))?;
                let offsets = found.entry(TopicPartition::new(key.topic, key.partition)).or_default();
                let Some(value) = record.value else {
                    offsets.remove(&key.offset);
                    continue;
                };
                let what = || format!("the entry in {} at offset {}", run.partition, record.offset);
                check_format(value, "version", VERSION, what)?;
                let _: RedriveEntry =
                    serde_json::from_slice(value).map_err(|error| unreadable(error.to_string()))?;
                offsets.insert(key.offset);
            }
            Ok::<_, EngineError>(ControlFlow::Continue(()))
        })?;
        Ok(Self(found.into_iter().map(|(origin, offsets)| (origin, Arc::new(offsets))).collect()))
    }

    /// Those of one partition.
    pub fn of(&self, origin: &Origin) -> Arc<BTreeSet<i64>> {
        self.0.get(origin).cloned().unwrap_or_default()
    }

    pub fn contains(&self, origin: &Origin, offset: i64) -> bool {
        self.0.get(origin).is_some_and(|offsets| offsets.contains(&offset))
    }
}
