//! Records as they lie in a topic, and Arrow batches as operators see them.
//!
//! Invariant: nothing here knows Kafka or files. Event times are microseconds since 1970-01-01 UTC;
//! a record's own timestamp is milliseconds, as Kafka keeps it.

mod batch;
mod raw;
mod types;

pub use batch::{Batch, SourceRows};
pub use raw::{Header, Origin, OwnedRecord, RecordRef, Records, Run, TopicPartition, VecRecords};
pub use types::{Column, JSON_METADATA, TYPE_METADATA, Type, TypeError, is_json};

/// The event time of a record or a watermark, in microseconds since 1970-01-01 UTC.
pub type Micros = i64;
