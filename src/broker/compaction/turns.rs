//! When a partition is compacted again after that has failed: later and later, so that a disk that stays full is
//! neither worn by attempts nor its operator by the same line each second.

use std::io;

use super::super::config::TopicConfig;
use super::super::lock;
use super::super::partition::Partition;

const PAUSE_MS: i64 = 1_000;
/// So long after the disk has room again, at the latest, it goes on.
const PAUSE_MS_MAX: i64 = 60_000;

/// Attempts that failed, one after the other.
#[derive(Default)]
pub(super) struct Failures {
    times: u32,
    again_ms: i64,
}

/// What came of a partition's turn.
#[derive(Debug)]
pub enum Turn {
    /// It failed a short while ago.
    Waits,
    /// It worked, or there was nothing to do; after so many failures.
    Done {
        failures: u32,
    },
    Failed {
        error: io::Error,
        times: u32,
        pause_s: i64,
    },
}

impl Partition {
    /// Compacts, unless that failed a short while ago.
    pub fn compact_in_turn(&self, config: &TopicConfig, now_ms: i64) -> Turn {
        if now_ms < lock(&self.cleaning).failures.again_ms {
            return Turn::Waits;
        }
        let outcome = self.compact(config);
        let failures = &mut lock(&self.cleaning).failures;
        match outcome {
            Ok(_) => Turn::Done { failures: std::mem::take(failures).times },
            Err(error) => {
                let pause_ms =
                    PAUSE_MS.checked_shl(failures.times).unwrap_or(PAUSE_MS_MAX).clamp(1, PAUSE_MS_MAX);
                failures.times = failures.times.saturating_add(1);
                failures.again_ms = now_ms.saturating_add(pause_ms);
                Turn::Failed { error, times: failures.times, pause_s: pause_ms / 1_000 }
            }
        }
    }
}
