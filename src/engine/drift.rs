//! Reading origins in step: who is too far ahead of the slowest is paused (rule R14).
//!
//! Invariant: nobody waits for an origin that can't move: one that is caught up, paused itself, or has not
//! moved within [`PATIENCE`].

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::planted::{Fault, planted};
use crate::record::{Micros, TopicPartition};

const PATIENCE: Duration = Duration::from_secs(30);

#[derive(Clone)]
struct Pace {
    watermark: Micros,
    /// It stands at its end: nothing unread.
    caught_up: bool,
    paused: bool,
    moved: Instant,
}

/// How far each origin that this process reads has come.
#[derive(Clone, Default)]
pub struct Drift {
    paces: Arc<Mutex<BTreeMap<TopicPartition, Pace>>>,
}

impl Drift {
    /// Reports an origin; returns whether it must pause.
    pub fn must_pause(
        &self,
        origin: &TopicPartition,
        watermark: Micros,
        caught_up: bool,
        max_drift: Micros,
        now: Instant,
    ) -> bool {
        let mut paces = self.paces.lock().unwrap_or_else(PoisonError::into_inner);
        let fresh = Pace { watermark, caught_up, paused: false, moved: now };
        let pace = paces.entry(origin.clone()).or_insert(fresh);
        if pace.watermark != watermark || pace.caught_up != caught_up {
            pace.moved = now;
        }
        (pace.watermark, pace.caught_up) = (watermark, caught_up);
        let slowest = paces
            .iter()
            .filter(|(other, pace)| {
                if planted(Fault::WaitForAll) {
                    return *other != origin;
                }
                *other != origin && !pace.caught_up && !pace.paused && now - pace.moved < PATIENCE
            })
            .map(|(_, pace)| pace.watermark)
            .min();
        let paused = slowest.is_some_and(|slowest| watermark > slowest.saturating_add(max_drift));
        if let Some(pace) = paces.get_mut(origin) {
            pace.paused = paused;
        }
        paused
    }

    pub fn remove(&self, origin: &TopicPartition) {
        self.paces.lock().unwrap_or_else(PoisonError::into_inner).remove(origin);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_one_ahead_waits_for_one_that_can_move() {
        let now = Instant::now();
        let (drift, a, b) = (Drift::default(), TopicPartition::new("in", 0), TopicPartition::new("in", 1));
        assert!(!drift.must_pause(&a, 1000, false, 100, now), "alone");
        assert!(!drift.must_pause(&b, 0, false, 100, now), "the slowest");
        assert!(drift.must_pause(&a, 1000, false, 100, now), "too far ahead");
        assert!(!drift.must_pause(&b, 950, false, 100, now), "it moves on");
        assert!(!drift.must_pause(&a, 1000, false, 100, now), "near enough again");
        assert!(!drift.must_pause(&b, 0, true, 100, now), "nothing to read");
        assert!(!drift.must_pause(&a, 1000, false, 100, now), "nobody waits for an end");
    }
}
