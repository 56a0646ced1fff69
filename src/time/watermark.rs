//! The watermark of one origin: the highest event time read so far, less what records may be out of order.
//!
//! It moves record by record, so where a batch ends cannot show in it.

use super::{RestoreError, WATERMARK_MIN, Watermark};
use crate::record::Micros;

const VERSION: u8 = 1;

/// Follows one origin's event times.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WatermarkTracker {
    /// [`WATERMARK_MIN`] before the first record.
    max_event_time: Micros,
    out_of_orderness: Micros,
}

impl WatermarkTracker {
    /// `out_of_orderness` is in microseconds; a negative one counts as none.
    pub fn new(out_of_orderness: Micros) -> Self {
        Self { max_event_time: WATERMARK_MIN, out_of_orderness: out_of_orderness.max(0) }
    }

    /// A tracker that goes on from a watermark that was committed with an offset.
    pub fn resume(out_of_orderness: Micros, watermark: Watermark) -> Self {
        let mut tracker = Self::new(out_of_orderness);
        if watermark != WATERMARK_MIN {
            tracker.max_event_time = watermark.saturating_add(tracker.out_of_orderness);
        }
        tracker
    }

    /// Takes in a record's event time; returns the watermark once this record has moved it.
    pub fn observe(&mut self, event_time: Micros) -> Watermark {
        self.max_event_time = self.max_event_time.max(event_time);
        self.watermark()
    }

    pub fn watermark(&self) -> Watermark {
        self.max_event_time.saturating_sub(self.out_of_orderness)
    }

    /// The highest event time so far, if there was a record.
    pub fn max_event_time(&self) -> Option<Micros> {
        (self.max_event_time != WATERMARK_MIN).then_some(self.max_event_time)
    }

    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = vec![VERSION];
        bytes.extend(self.max_event_time.to_le_bytes());
        bytes.extend(self.out_of_orderness.to_le_bytes());
        bytes
    }

    pub fn from_bytes(bytes: &[u8]) -> Result<Self, RestoreError> {
        let damaged = |detail: String| RestoreError { what: "watermark of an origin", detail };
        let Some((&VERSION, rest)) = bytes.split_first() else {
            return Err(damaged(format!("it does not begin with version {VERSION}")));
        };
        let Some((max_event_time, out_of_orderness)) =
            rest.split_first_chunk::<8>().and_then(|(first, rest)| Some((first, rest.first_chunk::<8>()?)))
        else {
            return Err(damaged(format!("{} bytes", bytes.len())));
        };
        if rest.len() != 16 {
            return Err(damaged(format!("{} bytes", bytes.len())));
        }
        Ok(Self {
            max_event_time: Micros::from_le_bytes(*max_event_time),
            out_of_orderness: Micros::from_le_bytes(*out_of_orderness),
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::{EVENT_TIME_MAX, EVENT_TIME_MIN};
    use super::*;

    #[test]
    fn it_is_the_highest_time_less_the_allowance() {
        let mut tracker = WatermarkTracker::new(10);
        assert_eq!(tracker.watermark(), WATERMARK_MIN);
        assert_eq!(tracker.max_event_time(), None);
        assert_eq!(tracker.observe(100), 90);
        assert_eq!(tracker.observe(95), 90);
        assert_eq!(tracker.observe(-5), 90);
        assert_eq!(tracker.observe(111), 101);
        assert_eq!(tracker.max_event_time(), Some(111));
    }

    #[test]
    fn damaged_bytes_are_refused() {
        let bytes = WatermarkTracker::new(5).to_bytes();
        assert!(WatermarkTracker::from_bytes(&[]).is_err());
        assert!(WatermarkTracker::from_bytes(&bytes[..16]).is_err());
        assert!(WatermarkTracker::from_bytes(&[bytes.as_slice(), &[0]].concat()).is_err());
        let mut other = bytes;
        other[0] = 9;
        assert!(WatermarkTracker::from_bytes(&other).is_err());
    }

    proptest! {
        #[test]
        fn it_is_a_function_of_the_prefix_and_never_goes_back(
            times in prop::collection::vec(EVENT_TIME_MIN..=EVENT_TIME_MAX, 1..50),
            out_of_orderness in prop_oneof![0i64..1_000_000_000_000, Just(i64::MAX)],
            cuts in prop::collection::vec(any::<bool>(), 50),
        ) {
            let mut whole = WatermarkTracker::new(out_of_orderness);
            let mut cut = WatermarkTracker::new(out_of_orderness);
            let mut last = WATERMARK_MIN;
            for (index, &time) in times.iter().enumerate() {
                let highest = times[..=index].iter().copied().fold(i64::MIN, i64::max);
                let watermark = whole.observe(time);
                prop_assert_eq!(watermark, highest.saturating_sub(out_of_orderness));
                prop_assert!(watermark >= last);
                last = watermark;
                // Stopped and started again anywhere, from either form, it goes on the same.
                prop_assert_eq!(cut.observe(time), watermark);
                cut = if cuts[index] {
                    WatermarkTracker::resume(out_of_orderness, watermark)
                } else {
                    WatermarkTracker::from_bytes(&cut.to_bytes()).unwrap()
                };
            }
        }
    }
}
