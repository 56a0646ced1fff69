//! Raw records: the bytes and the provenance of what a partition holds.
//!
//! Invariant: a [`Run`] holds records of ONE partition, with offsets strictly ascending. Offsets may have
//! gaps (transaction markers, aborted records, compaction); `next` is the position after the run.

use std::fmt;
use std::sync::Arc;

/// One partition of one topic. Cheap to clone.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TopicPartition {
    pub topic: Arc<str>,
    pub partition: i32,
}

impl TopicPartition {
    pub fn new(topic: impl Into<Arc<str>>, partition: i32) -> Self {
        Self { topic: topic.into(), partition }
    }
}

impl fmt::Display for TopicPartition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.topic, self.partition)
    }
}

/// The source partition that a row came from.
pub type Origin = TopicPartition;

/// A record header, as Kafka has it: a name and bytes that may be null.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    pub name: String,
    pub value: Option<Vec<u8>>,
}

impl Header {
    pub fn text(name: impl Into<String>, value: impl Into<String>) -> Self {
        Self { name: name.into(), value: Some(value.into().into_bytes()) }
    }
}

/// A record borrowed from a [`Run`]. `timestamp_ms` is the record's log timestamp, −1 where there is none.
#[derive(Clone, Copy, Debug)]
pub struct RecordRef<'a> {
    pub offset: i64,
    pub timestamp_ms: i64,
    pub key: Option<&'a [u8]>,
    pub value: Option<&'a [u8]>,
}

/// A record that owns its bytes: what is produced, kept or compared.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OwnedRecord {
    pub offset: i64,
    pub timestamp_ms: i64,
    pub key: Option<Vec<u8>>,
    pub value: Option<Vec<u8>>,
    pub headers: Vec<Header>,
}

/// Records of one partition in offset order, wherever their bytes lie (librdkafka's buffers, or a `Vec`).
pub trait Records: Send {
    fn len(&self) -> usize;
    fn get(&self, index: usize) -> RecordRef<'_>;
    /// Headers are copied out only for the few records that need them (dead and late ones).
    fn headers(&self, index: usize) -> Vec<Header>;

    fn is_empty(&self) -> bool {
        self.len() == 0
    }
    /// Bytes of all keys and values.
    fn bytes(&self) -> usize {
        let bytes = |part: Option<&[u8]>| part.map_or(0, <[u8]>::len);
        (0..self.len()).map(|index| self.get(index)).map(|at| bytes(at.key) + bytes(at.value)).sum()
    }
    fn to_owned(&self, index: usize) -> OwnedRecord {
        let record = self.get(index);
        OwnedRecord {
            offset: record.offset,
            timestamp_ms: record.timestamp_ms,
            key: record.key.map(<[u8]>::to_vec),
            value: record.value.map(<[u8]>::to_vec),
            headers: self.headers(index),
        }
    }
}

/// [`Records`] over owned records: the in-memory log's and the tests'.
pub struct VecRecords(pub Vec<OwnedRecord>);

impl Records for VecRecords {
    fn len(&self) -> usize {
        self.0.len()
    }
    fn get(&self, index: usize) -> RecordRef<'_> {
        let record = &self.0[index];
        RecordRef {
            offset: record.offset,
            timestamp_ms: record.timestamp_ms,
            key: record.key.as_deref(),
            value: record.value.as_deref(),
        }
    }
    fn headers(&self, index: usize) -> Vec<Header> {
        self.0[index].headers.clone()
    }
}

/// A run of records of one partition, in order.
pub struct Run {
    pub partition: TopicPartition,
    pub records: Box<dyn Records>,
    /// The position after the run: the offset to read next, and to commit once the run is processed.
    pub next: i64,
}

impl Run {
    /// The records below `offset`; all of them where the run ends there or before.
    pub fn until(self, offset: i64) -> Run {
        if self.next <= offset {
            return self;
        }
        let length = (0..self.records.len()).take_while(|&at| self.records.get(at).offset < offset).count();
        Run {
            partition: self.partition,
            records: Box::new(Prefix { of: self.records, length }),
            next: offset,
        }
    }
}

/// The first records of others.
struct Prefix {
    of: Box<dyn Records>,
    length: usize,
}

impl Records for Prefix {
    fn len(&self) -> usize {
        self.length
    }
    fn get(&self, index: usize) -> RecordRef<'_> {
        assert!(index < self.length, "record {index} of {}", self.length);
        self.of.get(index)
    }
    fn headers(&self, index: usize) -> Vec<Header> {
        self.of.headers(index)
    }
}
