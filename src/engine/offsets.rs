//! What rides beside a committed offset, as its metadata: the watermark, idleness, and the counters of
//! promise 3. So they move in the same transaction as the offset, and a reader of the group sees them.

use serde::{Deserialize, Serialize};

use crate::record::Micros;
use crate::time::WATERMARK_MIN;

use super::{EngineError, Result, check_format};

const FORMAT: u32 = 1;

/// Every record read is exactly one of these: read = refined + filtered + late + dead.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Counters {
    pub read: u64,
    pub refined: u64,
    pub filtered: u64,
    pub late: u64,
    pub dead: u64,
}

impl Counters {
    pub fn add(&mut self, other: &Counters) {
        self.read += other.read;
        self.refined += other.refined;
        self.filtered += other.filtered;
        self.late += other.late;
        self.dead += other.dead;
    }
    /// What was counted after `before`.
    pub fn since(&self, before: &Counters) -> Counters {
        Counters {
            read: self.read.saturating_sub(before.read),
            refined: self.refined.saturating_sub(before.refined),
            filtered: self.filtered.saturating_sub(before.filtered),
            late: self.late.saturating_sub(before.late),
            dead: self.dead.saturating_sub(before.dead),
        }
    }
    pub fn balanced(&self) -> bool {
        self.read == self.refined + self.filtered + self.late + self.dead
    }
}

/// The metadata of one committed offset.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OffsetMetadata {
    #[serde(rename = "v")]
    format: u32,
    /// The version of the topology that committed it; absent where the offset was set by other means.
    #[serde(rename = "t", default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// The task's watermark; absent before the first one.
    #[serde(rename = "w", default, skip_serializing_if = "Option::is_none")]
    watermark: Option<Micros>,
    #[serde(rename = "i", default, skip_serializing_if = "std::ops::Not::not")]
    pub idle: bool,
    /// An ingest task's.
    #[serde(rename = "c", default, skip_serializing_if = "Option::is_none")]
    pub counters: Option<Counters>,
    /// A keyed task's rows that came after their window's `retention`.
    #[serde(rename = "x", default, skip_serializing_if = "is_zero")]
    pub expired: u64,
    /// A keyed task's rows that a view failed on: dead letters, though no records of a source.
    #[serde(rename = "d", default, skip_serializing_if = "is_zero")]
    pub derived_dead: u64,
    /// A keyed task's windows that are open.
    #[serde(rename = "o", default, skip_serializing_if = "is_zero")]
    pub open_windows: u64,
}

fn is_zero(count: &u64) -> bool {
    *count == 0
}

impl OffsetMetadata {
    pub fn new(watermark: Micros) -> Self {
        Self {
            format: FORMAT,
            version: None,
            watermark: (watermark != WATERMARK_MIN).then_some(watermark),
            idle: false,
            counters: None,
            expired: 0,
            derived_dead: 0,
            open_windows: 0,
        }
    }

    pub fn watermark(&self) -> Micros {
        self.watermark.unwrap_or(WATERMARK_MIN)
    }

    pub fn to_text(&self) -> String {
        // Serialising plain numbers can't fail.
        serde_json::to_string(self).unwrap_or_default()
    }

    /// `partition` is for the error.
    pub fn parse(text: &str, partition: &crate::record::TopicPartition) -> Result<Self> {
        check_format(text.as_bytes(), "v", FORMAT, || {
            format!("the metadata of the committed offset of {partition}")
        })?;
        serde_json::from_str(text).map_err(|error| EngineError::ForeignOffset {
            partition: partition.clone(),
            detail: format!("its metadata is {text:?}: {error}"),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::TopicPartition;

    #[test]
    fn metadata_survives_and_foreign_metadata_is_refused() {
        let partition = TopicPartition::new("in", 0);
        let mut metadata = OffsetMetadata::new(17);
        metadata.counters = Some(Counters { read: 3, refined: 1, filtered: 1, late: 1, dead: 0 });
        let text = metadata.to_text();
        assert_eq!(OffsetMetadata::parse(&text, &partition).unwrap(), metadata);
        let none = OffsetMetadata::new(WATERMARK_MIN);
        assert_eq!(OffsetMetadata::parse(&none.to_text(), &partition).unwrap().watermark(), WATERMARK_MIN);
        for foreign in ["", "hello", r#"{"v":2}"#, r#"{"v":1,"z":1}"#] {
            let error = OffsetMetadata::parse(foreign, &partition).unwrap_err();
            assert!(error.to_string().contains("in/0"), "{error}");
        }
    }
}
