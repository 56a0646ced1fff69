//! How a partition's beginning moves: DeleteRecords, and retention by time and by size.
//!
//! Invariant: the new start is in the metadata log before a file below it is deleted.

use std::io;

use super::config::TopicConfig;
use super::fault::Fault;
use super::partition::Partition;
use super::segment::Segment;
use super::{lock, now_ms};

/// A producer that has been silent for this long is forgotten (Kafka's `producer.id.expiration.ms`).
const PRODUCER_SILENCE_MS: i64 = 24 * 3600 * 1000;

impl Partition {
    /// Moves the start up (-1: to the end) and returns it.
    pub fn delete_before(&self, offset: i64) -> Result<i64, Fault> {
        let mut log = lock(&self.log);
        let offset = if offset == -1 { log.end } else { offset };
        if offset < 0 || offset > log.end {
            return Err(Fault::OffsetOutOfRange);
        }
        log.start = log.start.max(offset);
        Ok(log.start)
    }

    /// Moves the start past what retention says is over; `Some` is the new start.
    pub fn expire(&self, config: &TopicConfig) -> Result<Option<i64>, Fault> {
        self.expire_at(config, now_ms())
    }

    pub(super) fn expire_at(&self, config: &TopicConfig, now_ms: i64) -> Result<Option<i64>, Fault> {
        let mut log = lock(&self.log);
        log.producers.forget_silent(now_ms - PRODUCER_SILENCE_MS);
        let expired = |segment: &Segment| {
            config.retention_ms >= 0 && segment.max_timestamp_ms < now_ms.saturating_sub(config.retention_ms)
        };
        if let Some(newest) = log.segments.last() {
            let age_ms = now_ms - newest.since_ms;
            let old = age_ms > config.segment_ms
                || (config.delete && expired(newest))
                || (config.compact && age_ms > config.max_compaction_lag_ms);
            if !newest.is_empty() && old {
                self.roll(&mut log, now_ms)?;
            }
        }
        if !config.delete {
            return Ok(None);
        }
        let stable = log.producers.stable_offset(log.end);
        let mut bytes: u64 = log.segments.iter().map(|segment| segment.size).sum();
        let mut start = log.start;
        for pair in log.segments.windows(2) {
            bytes -= pair[0].size;
            let too_large = u64::try_from(config.retention_bytes).is_ok_and(|most| bytes >= most);
            if !(expired(&pair[0]) || too_large) || pair[1].base_offset > stable {
                break;
            }
            start = start.max(pair[1].base_offset);
        }
        let moved = start > log.start;
        log.start = start;
        Ok(moved.then_some(start))
    }

    /// Deletes the segments that lie wholly below the start; the start must be in the metadata log before.
    pub fn drop_segments(&self) -> io::Result<()> {
        // One that is being compacted goes at a later tick.
        let Ok(mut cleaning) = self.cleaning.try_lock() else { return Ok(()) };
        self.finish(&mut cleaning)?;
        let dropped: Vec<Segment> = {
            let mut log = lock(&self.log);
            let start = log.start;
            log.producers.forget_before(start);
            let last = log.segments.len().saturating_sub(1);
            let below =
                log.segments.iter().skip(1).take_while(|next| next.base_offset <= start).count().min(last);
            log.segments.drain(..below).collect()
        };
        let remove = |segment: &Segment| match self.disk.remove(&segment.path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            removed => removed,
        };
        dropped.iter().try_for_each(remove)
    }

    /// Whether segments lie wholly below the start.
    pub fn has_leftovers(&self) -> bool {
        let log = lock(&self.log);
        log.segments.get(1).is_some_and(|second| second.base_offset <= log.start)
    }
}
