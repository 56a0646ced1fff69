//! Windows whose state was gone, past their `retention`, when rows came for them: the live run leaves the rows
//! out, and a replay has them (rule R12).
//!
//! Invariant: a window is named in the meta topic by the transaction that counts the rows, so who compares a replay
//! with the live run after that can tell these windows from a difference.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::operator::Expired;
use crate::plan::{Plan, Work};
use crate::planted::note;
use crate::record::{Micros, Origin};

/// A window that rows of one origin came too late for. Written once for each window and origin: rows and offsets
/// are those of the last epoch that had any.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExpiredWindow {
    pub view: Arc<str>,
    pub window_end: Micros,
    pub topic: Arc<str>,
    pub partition: i32,
    pub rows: i64,
    /// The records that the rows were made of lie between these offsets; −1 where the rows are another view's.
    pub first_offset: i64,
    pub last_offset: i64,
}

impl ExpiredWindow {
    fn new(origin: Origin, expired: Expired) -> Self {
        Self {
            view: expired.view,
            window_end: expired.window_end,
            topic: origin.topic,
            partition: origin.partition,
            rows: expired.rows,
            first_offset: expired.first_offset,
            last_offset: expired.last_offset,
        }
    }
}

/// What expired in one epoch.
#[derive(Default)]
pub struct EpochExpired(BTreeMap<(Arc<str>, Micros, Origin), ExpiredWindow>);

impl EpochExpired {
    pub fn add(&mut self, origin: Origin, expired: Expired) {
        note("rows come for windows that are past their retention");
        let key = (Arc::clone(&expired.view), expired.window_end, origin.clone());
        let window = ExpiredWindow::new(origin, expired);
        let add = |sum: &mut ExpiredWindow| {
            sum.rows += window.rows;
            sum.first_offset = sum.first_offset.min(window.first_offset);
            sum.last_offset = sum.last_offset.max(window.last_offset);
        };
        self.0.entry(key).and_modify(add).or_insert(window);
    }

    pub fn windows(&self) -> impl Iterator<Item = &ExpiredWindow> {
        self.0.values()
    }

    /// Says which rows are missing now.
    pub fn report(&self) {
        for window in self.windows() {
            tracing::warn!(
                "state_expired: {} rows of {}/{} (offsets {}..={}) came for a window of view '{}' (end {}) that is \
                 past retention; the next replay repairs it",
                window.rows,
                window.topic,
                window.partition,
                window.first_offset,
                window.last_offset,
                window.view,
                crate::time::iso8601(window.window_end)
            );
        }
    }
}

/// The windows of a sink that rows are missing in, its own and those that are made of others'.
#[derive(Clone, Debug, Default)]
pub struct ExpiredWindows {
    /// Ends of the windows that rows came too late for.
    ends: Vec<Micros>,
    /// Of the sink's own windows.
    size: Micros,
}

impl ExpiredWindows {
    pub fn of(plan: &Plan, sink: usize, expired: &[ExpiredWindow]) -> Self {
        let (views, size) = aggregates(plan, sink);
        let of_sink = expired.iter().filter(|window| views.contains(&&*window.view));
        let mut ends: Vec<Micros> = of_sink.map(|window| window.window_end).collect();
        ends.sort_unstable();
        ends.dedup();
        Self { ends, size }
    }

    /// Whether a window lacks rows. One made of other windows' results takes each by the last moment of it.
    pub fn contains(&self, window_end: Micros) -> bool {
        let next = self.ends.partition_point(|&end| end <= window_end.saturating_sub(self.size));
        self.ends.get(next).is_some_and(|&end| end <= window_end)
    }
}

/// The views with windows that a sink's rows come through, and the size of the last one's.
fn aggregates(plan: &Plan, sink: usize) -> (Vec<&str>, Micros) {
    let nodes = plan.stages_of(sink).into_iter().flat_map(|stage| &plan.stages[stage].nodes);
    let specs: Vec<_> = nodes
        .filter_map(|node| match &node.work {
            Work::FinalAggregate(spec) => Some(spec),
            _ => None,
        })
        .collect();
    (specs.iter().map(|spec| &*spec.view).collect(), specs.first().map_or(0, |spec| spec.size))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_lacks_rows_if_it_holds_the_end_of_one_that_does() {
        let hours = ExpiredWindows { ends: vec![60, 3660], size: 3600 };
        assert!(hours.contains(3600) && hours.contains(7200));
        assert!(!hours.contains(0) && !hours.contains(10_800));
        let minutes = ExpiredWindows { ends: vec![60, 180], size: 60 };
        let lacking: Vec<i64> =
            (0..5).map(|minute| minute * 60).filter(|&end| minutes.contains(end)).collect();
        assert_eq!(lacking, [60, 180]);
    }
}
