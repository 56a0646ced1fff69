//! Which window a row is in, and when a window is closed. Assignment only: what a window holds is state.
//!
//! Invariant: windows tile the time line, before 1970 too: every event time is in exactly one.

use super::{EVENT_TIME_MAX, EVENT_TIME_MIN, Watermark};
use crate::record::Micros;

/// Windows of one size, side by side: `[start, start + size)`, with a start at `offset` and every size from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Tumble {
    size: Micros,
    offset: Micros,
}

impl Tumble {
    /// `size` and `offset` are in microseconds.
    pub fn new(size: Micros, offset: Micros) -> Result<Self, WindowError> {
        if !(1..=EVENT_TIME_MAX - EVENT_TIME_MIN).contains(&size) {
            return Err(WindowError { size });
        }
        Ok(Self { size, offset: offset.rem_euclid(size) })
    }

    pub fn size(&self) -> Micros {
        self.size
    }

    /// In `0..size`.
    pub fn offset(&self) -> Micros {
        self.offset
    }

    /// The start of the window that holds an event time (between [`EVENT_TIME_MIN`] and [`EVENT_TIME_MAX`]).
    pub fn start(&self, event_time: Micros) -> Micros {
        debug_assert!((EVENT_TIME_MIN..=EVENT_TIME_MAX).contains(&event_time), "decoding bounds event times");
        event_time - (event_time - self.offset).rem_euclid(self.size)
    }

    /// The first moment after the window that holds an event time.
    pub fn end(&self, event_time: Micros) -> Micros {
        self.start(event_time) + self.size
    }
}

/// Whether a window takes no more rows: its end plus grace is at or before the watermark. The one rule by
/// which rows are late and windows emit.
pub fn is_closed(window_end: Micros, grace: Micros, watermark: Watermark) -> bool {
    window_end.saturating_add(grace) <= watermark
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a window of {size} µs cannot be: give it a size above zero and below 10,000 years")]
pub struct WindowError {
    pub size: Micros,
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::{WATERMARK_MAX, WATERMARK_MIN};
    use super::*;

    const HOUR: Micros = 3_600_000_000;

    #[test]
    fn starts_are_floored_before_1970_too() {
        let hourly = Tumble::new(HOUR, 0).unwrap();
        assert_eq!(hourly.start(0), 0);
        assert_eq!(hourly.start(HOUR - 1), 0);
        assert_eq!(hourly.start(HOUR), HOUR);
        assert_eq!(hourly.start(-1), -HOUR);
        assert_eq!(hourly.start(-HOUR), -HOUR);
        assert_eq!(hourly.end(-1), 0);
        let shifted = Tumble::new(HOUR, HOUR / 4).unwrap();
        assert_eq!(shifted.start(0), HOUR / 4 - HOUR);
        assert_eq!(shifted.start(HOUR / 4), HOUR / 4);
    }

    #[test]
    fn sizes_that_cannot_be_are_refused() {
        assert!(Tumble::new(0, 0).is_err());
        assert!(Tumble::new(-1, 0).is_err());
        assert!(Tumble::new(i64::MAX, 0).is_err());
    }

    #[test]
    fn a_window_closes_exactly_at_its_end_plus_grace() {
        assert!(!is_closed(100, 10, 109));
        assert!(is_closed(100, 10, 110));
        assert!(!is_closed(100, 10, WATERMARK_MIN));
        assert!(is_closed(100, 10, WATERMARK_MAX));
        assert!(!is_closed(100, i64::MAX, EVENT_TIME_MAX));
    }

    proptest! {
        #[test]
        fn every_time_is_in_exactly_one_window(
            time in EVENT_TIME_MIN..=EVENT_TIME_MAX,
            size in prop_oneof![1i64..=10, 1i64..=EVENT_TIME_MAX - EVENT_TIME_MIN, Just(HOUR)],
            offset in any::<i64>(),
        ) {
            let tumble = Tumble::new(size, offset).unwrap();
            let start = tumble.start(time);
            prop_assert!(start <= time && time < start + size);
            prop_assert_eq!(tumble.end(time), start + size);
            prop_assert_eq!((i128::from(start) - i128::from(offset)).rem_euclid(i128::from(size)), 0);
        }
    }
}
