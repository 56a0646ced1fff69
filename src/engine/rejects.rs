//! The share of rejects among the last records, against `max_reject_ratio`.

use std::collections::VecDeque;

const RECORDS: usize = 1000;
/// Fewer say nothing.
const RECORDS_MIN: usize = 100;

#[derive(Clone, Default)]
pub struct RejectWindow {
    recent: VecDeque<bool>,
    rejected: usize,
}

impl RejectWindow {
    pub fn observe(&mut self, rejected: bool) {
        if self.recent.len() == RECORDS {
            if !rejected && self.rejected == 0 {
                return; // one of a thousand that are alike
            }
            if self.recent.pop_front() == Some(true) {
                self.rejected -= 1;
            }
        }
        self.recent.push_back(rejected);
        self.rejected += usize::from(rejected);
    }

    pub fn exceeds(&self, ratio_max: f64) -> bool {
        self.recent.len() >= RECORDS_MIN && self.rejected as f64 > ratio_max * self.recent.len() as f64
    }

    /// Rejects, and records.
    pub fn counts(&self) -> (usize, usize) {
        (self.rejected, self.recent.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_thousand_count() {
        let mut window = RejectWindow::default();
        let mut observe = |rejected: bool, times: usize| {
            (0..times).for_each(|_| window.observe(rejected));
            (window.counts(), window.exceeds(0.5))
        };
        assert_eq!(observe(true, 99), ((99, 99), false), "too few to say");
        assert_eq!(observe(true, 1), ((100, 100), true));
        assert_eq!(observe(false, 100), ((100, 200), false), "half is not more than half");
        assert_eq!(observe(false, 5_000), ((0, 1000), false));
        assert_eq!(observe(true, 501), ((501, 1000), true));
        assert_eq!(observe(false, 499), ((501, 1000), true));
        assert_eq!(observe(false, 1), ((500, 1000), false));
    }
}
