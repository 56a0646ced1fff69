//! What a topology remembers of itself, in the compacted topic `<topology>.meta`.
//!
//! ```text
//! topology                          what its state is, and where it began
//! version/ID                        what a version writes
//! start/TOPIC/PARTITION/OFFSET      where a version began in a partition
//! source/TOPIC                      which topic has the name, as long as offsets of it are committed
//! expired/VIEW/END/TOPIC/PARTITION  a window that rows of an origin came too late for, past its retention
//! ```
//! Invariant: the first record is in the topology's first transaction, so a topology that has committed
//! anything has one.

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use serde::{Deserialize, Serialize};

use crate::log::{Log, Span, read_spans};
use crate::plan::Plan;
use crate::record::TopicPartition;

use super::expired::ExpiredWindow;
use super::topics::TopicNames;
use super::versions::{TopologyVersion, VersionStart};
use super::{EngineError, Result, check_format};

const TOPOLOGY_KEY: &str = "topology";
const VERSION_KEY: &str = "version/";
const START_KEY: &str = "start/";
const SOURCE_KEY: &str = "source/";
const EXPIRED_KEY: &str = "expired/";
const VERSION: u32 = 1;

/// A record of the meta topic: key and value.
pub type MetaEntry = (Vec<u8>, Vec<u8>);

/// All that the meta topic holds.
#[derive(Clone, Debug)]
pub struct Meta {
    pub topology: MetaRecord,
    pub versions: BTreeMap<String, TopologyVersion>,
    /// The key of the version that was taken up last.
    newest: Option<String>,
    /// The ids of the source topics by name.
    pub sources: BTreeMap<String, String>,
    /// In the order in which they were written.
    pub starts: Vec<VersionStart>,
    /// In the order in which they were written; one of a window and origin may stand there again.
    pub expired: Vec<ExpiredWindow>,
}

/// What a topology's state is, and was from its beginning.
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

    pub fn entry(&self) -> Result<MetaEntry> {
        Ok((TOPOLOGY_KEY.into(), bytes(self)?))
    }

    fn parse(bytes: &[u8], partition: &TopicPartition) -> Result<Self> {
        check_format(bytes, "version", VERSION, || format!("the topology's record in {partition}"))?;
        parse(bytes, partition)
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

/// Which topic has a source's name.
#[derive(Serialize, Deserialize)]
pub(super) struct SourceTopic {
    pub topic: String,
    pub id: String,
}

impl SourceTopic {
    pub fn entry(&self) -> Result<MetaEntry> {
        Ok((format!("{SOURCE_KEY}{}", self.topic).into(), bytes(self)?))
    }
}

impl TopologyVersion {
    pub fn entry(&self) -> Result<MetaEntry> {
        Ok((format!("{VERSION_KEY}{}", self.version).into(), bytes(self)?))
    }
}

impl VersionStart {
    pub fn entry(&self) -> Result<MetaEntry> {
        let key = format!("{START_KEY}{}/{}/{}", self.topic, self.partition, self.offset);
        Ok((key.into(), bytes(self)?))
    }
}

impl ExpiredWindow {
    pub fn entry(&self) -> Result<MetaEntry> {
        let Self { view, window_end, topic, partition, .. } = self;
        Ok((format!("{EXPIRED_KEY}{view}/{window_end}/{topic}/{partition}").into(), bytes(self)?))
    }
}

impl Meta {
    /// What the topology's meta topic holds; `None` where it has never committed.
    pub fn read(plan: &Plan, log: &dyn Log) -> Result<Option<Self>> {
        let names = TopicNames::of(plan);
        if log.partitions(&names.meta)?.is_none() {
            return Ok(None);
        }
        let span = Span::of(log, TopicPartition::new(names.meta, 0))?;
        let mut entries: Vec<MetaEntry> = Vec::new();
        read_spans(log, std::slice::from_ref(&span), &|| false, &mut |run| {
            for index in 0..run.records.len() {
                let record = run.records.get(index);
                if let (Some(key), Some(value)) = (record.key, record.value) {
                    entries.push((key.to_vec(), value.to_vec()));
                }
            }
            Ok::<_, EngineError>(ControlFlow::Continue(()))
        })?;
        Self::parse(entries, &span.partition)
    }

    /// The version that was taken up last.
    pub fn newest(&self) -> Option<&TopologyVersion> {
        self.versions.get(self.newest.as_ref()?)
    }

    fn parse(entries: Vec<MetaEntry>, partition: &TopicPartition) -> Result<Option<Self>> {
        let mut topology = None;
        let (mut versions, mut newest) = (BTreeMap::new(), None);
        let mut starts: Vec<VersionStart> = Vec::new();
        let mut expired = Vec::new();
        let mut sources = BTreeMap::new();
        for (key, value) in entries {
            let Ok(key) = String::from_utf8(key) else { continue };
            if key == TOPOLOGY_KEY {
                topology = Some(MetaRecord::parse(&value, partition)?);
            } else if key.starts_with(VERSION_KEY) {
                let version: TopologyVersion = parse(&value, partition)?;
                newest = Some(version.version.clone());
                versions.insert(version.version.clone(), version);
            } else if key.starts_with(SOURCE_KEY) {
                let source: SourceTopic = parse(&value, partition)?;
                sources.insert(source.topic, source.id);
            } else if key.starts_with(START_KEY) {
                let start: VersionStart = parse(&value, partition)?;
                // As compaction would: the newest record of a key.
                starts.retain(|other| {
                    (&other.topic, other.partition, other.offset)
                        != (&start.topic, start.partition, start.offset)
                });
                starts.push(start);
            } else if key.starts_with(EXPIRED_KEY) {
                expired.push(parse(&value, partition)?);
            }
        }
        Ok(topology.map(|topology| Self { topology, versions, newest, sources, starts, expired }))
    }
}

fn bytes(value: &impl Serialize) -> Result<Vec<u8>> {
    serde_json::to_vec(value).map_err(|error| EngineError::internal(error.to_string()))
}

fn parse<T: serde::de::DeserializeOwned>(bytes: &[u8], partition: &TopicPartition) -> Result<T> {
    serde_json::from_slice(bytes)
        .map_err(|error| EngineError::internal(format!("{partition}: unreadable record: {error}")))
}
