//! What a topology remembers of itself, in the compacted topic `<topology>.meta`.
//!
//! Invariant: the first record is in the topology's first transaction, so a topology that has committed
//! anything has one.

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use serde::{Deserialize, Serialize};

use crate::log::{Log, Span, read_spans};
use crate::plan::Plan;
use crate::record::TopicPartition;

use super::topics::TopicNames;
use super::{EngineError, Result};

pub const META_KEY: &[u8] = b"topology";
const VERSION: u32 = 1;

/// One version of a topology.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MetaRecord {
    pub version: u32,
    pub topology: String,
    pub fingerprint: String,
    /// The plan's canonical text, for saying what has changed.
    pub description: String,
    pub stages: Vec<String>,
    /// Partition counts of the exchanges: frozen.
    pub exchanges: BTreeMap<String, i32>,
    /// Where this version began reading: topic → offset by partition.
    pub first_offsets: BTreeMap<String, BTreeMap<i32, i64>>,
}

impl MetaRecord {
    pub fn new(plan: &Plan, names: &TopicNames, log: &dyn Log) -> Result<Self> {
        let mut first_offsets: BTreeMap<String, BTreeMap<i32, i64>> = BTreeMap::new();
        for (topic, count) in TopicNames::sources(plan, log)? {
            for partition in 0..count {
                let bounds = log.bounds(&TopicPartition::new(std::sync::Arc::clone(&topic), partition))?;
                first_offsets.entry(topic.to_string()).or_default().insert(partition, bounds.start);
            }
        }
        let exchanges = names.exchanges.iter().flatten();
        Ok(Self {
            version: VERSION,
            topology: plan.name.to_string(),
            fingerprint: plan.fingerprint.clone(),
            description: plan.description.clone(),
            stages: plan.stages.iter().map(|stage| stage.name.to_string()).collect(),
            exchanges: exchanges.map(|topic| (topic.to_string(), names.count(topic))).collect(),
            first_offsets,
        })
    }

    pub fn to_bytes(&self) -> Result<Vec<u8>> {
        serde_json::to_vec(self).map_err(|error| EngineError::internal(error.to_string()))
    }

    /// The newest record of the topology's meta topic; `None` where it has never committed.
    pub fn read(plan: &Plan, log: &dyn Log) -> Result<Option<Self>> {
        let names = TopicNames::of(plan);
        if log.partitions(&names.meta)?.is_none() {
            return Ok(None);
        }
        let span = Span::of(log, TopicPartition::new(names.meta, 0))?;
        let mut newest = None;
        read_spans(log, std::slice::from_ref(&span), &|| false, &mut |run| {
            for index in 0..run.records.len() {
                let record = run.records.get(index);
                if record.key == Some(META_KEY) && record.value.is_some() {
                    newest = record.value.map(<[u8]>::to_vec);
                }
            }
            Ok::<_, EngineError>(ControlFlow::Continue(()))
        })?;
        newest.map(|bytes| Self::parse(&bytes, &span.partition)).transpose()
    }

    fn parse(bytes: &[u8], partition: &TopicPartition) -> Result<Self> {
        let record: Self = serde_json::from_slice(bytes)
            .map_err(|error| EngineError::internal(format!("{partition}: unreadable record: {error}")))?;
        if record.version != VERSION {
            let found = record.version;
            return Err(EngineError::internal(format!(
                "{partition}: written by another version of headwater (format {found}, this one reads {VERSION})"
            )));
        }
        Ok(record)
    }

    /// Refuses a plan whose state would mean something else than what this topology has stored.
    pub fn check(&self, plan: &Plan) -> Result<()> {
        if self.fingerprint == plan.fingerprint {
            return Ok(());
        }
        Err(EngineError::FingerprintChanged {
            topology: plan.name.to_string(),
            changes: crate::plan::diff(&self.description, &plan.description).join("\n"),
        })
    }
}
