//! The topology of the soak and of the recovery: a million keys whose window stays open, windows that open and
//! close, and records that pass through.
//!
//! Event time begins at the start of a window of 30 days, whatever the wall says, so that it never closes.

use std::time::Duration;

use super::Result;
use super::paced::{self, now_us};
use super::place::Place;

/// A whole number of 30 days since 1970.
const START_MS: i64 = 655 * 30 * 86_400_000;
/// A tenth of the records passes through.
pub const PASSING_PRICE: i64 = 900_100;
pub const PASSING: &str = "passing";
pub const CLOSING: &str = "closing";
const STANDING: &str = "standing";

/// The windows that open and close.
#[derive(Clone, Copy, Debug)]
pub struct Closing {
    pub size: Duration,
    /// `channel` has 100 values, `bidder` 10,000.
    pub key: &'static str,
}

/// What is taken off the wall's time for event time.
pub fn shift_ms() -> i64 {
    now_us() / 1000 - START_MS
}

pub fn topic(place: &Place, of: &str) -> String {
    format!("{}.{of}", place.prefix)
}

pub fn create_topics(place: &Place, partitions: i32, source_kept_s: Option<u64>) -> Result<()> {
    place.create(&[&topic(place, "bids")], partitions, source_kept_s)?;
    let refined = [PASSING, CLOSING, STANDING].map(|of| topic(place, of));
    place.create(&refined.each_ref().map(String::as_str), partitions, Some(60))
}

pub fn topology(place: &Place, closing: Closing) -> String {
    let aggregates = "count(*) as bids, sum(price) as total, max(price) as highest";
    let (key, size_ms) = (closing.key, closing.size.as_millis());
    let out = |of: &str| topic(place, of);
    paced::source(&place.prefix, &topic(place, "bids"), "30s")
        + &format!(
            "views:
  {PASSING}: select auction, price, sent_us from bids where price >= {PASSING_PRICE}
  {STANDING}: |
    select window_start, window_end, auction, {aggregates}
    from tumble(bids, date_time, interval '30 days')
    group by window_start, window_end, auction
  {CLOSING}: |
    select window_start, window_end, {key}, {aggregates}
    from tumble(bids, date_time, interval '{size_ms} milliseconds')
    group by window_start, window_end, {key}
sinks:
  {PASSING}: {{topic: {{name: {}, format: json}}}}
  {STANDING}: {{topic: {{name: {}, format: json, key: [auction, window_start]}}}}
  {CLOSING}: {{topic: {{name: {}, format: json, key: [{key}, window_start]}}}}
",
            out(PASSING),
            out(STANDING),
            out(CLOSING),
        )
}
