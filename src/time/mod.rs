//! Event time: how far each origin has come, how far a set of them has, and which window a row is in.
//!
//! Invariant: pure functions of what they are told. There is no clock here: that an origin is idle is a
//! record like any other, and a watermark is a function of the records before it.
//! Invariant: a watermark never goes back.

mod origins;
mod watermark;
mod window;

pub use origins::OriginSet;
pub use watermark::WatermarkTracker;
pub use window::{Tumble, WindowError, is_closed};

use crate::record::Micros;

/// No record at or before this event time is still expected.
pub type Watermark = Micros;

/// −∞: nothing is known yet.
pub const WATERMARK_MIN: Watermark = i64::MIN;
/// +∞: the input has ended.
pub const WATERMARK_MAX: Watermark = i64::MAX;

/// The earliest event time: 0001-01-01T00:00:00Z.
pub const EVENT_TIME_MIN: Micros = -62_135_596_800_000_000;
/// The latest event time: 9999-12-31T23:59:59.999999Z.
pub const EVENT_TIME_MAX: Micros = 253_402_300_799_999_999;

/// An event time as ISO 8601, or its number where no calendar has it.
pub fn iso8601(time: Micros) -> String {
    chrono::DateTime::from_timestamp_micros(time)
        .map_or_else(|| time.to_string(), |time| time.to_rfc3339_opts(chrono::SecondsFormat::AutoSi, true))
}

/// Bytes that were to restore a part of this room, but can't.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the stored {what} cannot be read ({detail}); it is damaged or of another version: replay the topology"
)]
pub struct RestoreError {
    pub what: &'static str,
    pub detail: String,
}
