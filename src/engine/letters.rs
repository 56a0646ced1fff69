//! Dead and late letters: the headers that say where a record came from and why it is here.
//!
//! Invariant: reasons are stable codes; only messages are for people alone.

use crate::record::Header;

use super::{DeadRecord, LateRecord};

// Of dead letters, by the names that Kafka Connect gives them.
pub const DEAD_TOPIC: &str = "__connect.errors.topic";
pub const DEAD_PARTITION: &str = "__connect.errors.partition";
pub const DEAD_OFFSET: &str = "__connect.errors.offset";
pub const DEAD_STAGE: &str = "__connect.errors.stage";
pub const DEAD_MESSAGE: &str = "__connect.errors.exception.message";
/// How often the record was tried: 1 at first, more by every redrive.
pub const ATTEMPT: &str = "headwater.attempt";

// Of late records.
pub const LATE_TOPIC: &str = "headwater.source.topic";
pub const LATE_PARTITION: &str = "headwater.source.partition";
pub const LATE_OFFSET: &str = "headwater.source.offset";
const LATE_VIEWS: &str = "headwater.views";
const LATE_WATERMARK: &str = "headwater.watermark";

/// Of both.
pub const REASON: &str = "headwater.reason";

/// What a death puts behind the record's own headers, in this order.
pub const OF_DEATH: [&str; 7] =
    [DEAD_TOPIC, DEAD_PARTITION, DEAD_OFFSET, DEAD_STAGE, DEAD_MESSAGE, REASON, ATTEMPT];

pub(super) fn dead_headers(letter: &DeadRecord) -> Vec<Header> {
    let attempt = letter.record.headers.iter().rev().find(|header| header.name == ATTEMPT);
    let attempt: u32 = attempt
        .and_then(|header| std::str::from_utf8(header.value.as_deref()?).ok()?.parse().ok())
        .map_or(1, |attempt: u32| attempt + 1);
    let values = [
        letter.source.topic.to_string(),
        letter.source.partition.to_string(),
        letter.record.offset.to_string(),
        letter.stage.to_string(),
        letter.message.to_string(),
        letter.reason.to_string(),
        attempt.to_string(),
    ];
    OF_DEATH.into_iter().zip(values).map(|(name, value)| Header::text(name, value)).collect()
}

pub(super) fn late_headers(record: &LateRecord) -> Vec<Header> {
    vec![
        Header::text(LATE_TOPIC, &*record.source.topic),
        Header::text(LATE_PARTITION, record.source.partition.to_string()),
        Header::text(LATE_OFFSET, record.record.offset.to_string()),
        Header::text(LATE_VIEWS, record.views.join(",")),
        Header::text(LATE_WATERMARK, crate::time::iso8601(record.watermark)),
        Header::text(REASON, "late"),
    ]
}
