//! Looks at a topology's lag, one after the other: the last one whole, rates over the last seconds, and a point a look
//! for charts.
//!
//! Rates are those of the whole group, since they come from what it has committed.
//!
//! Invariant: memory is bounded: one report, and [`POINTS_MAX`] points of a few numbers.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::LagReport;
use crate::engine::Counters;

/// Rates are measured over at least this long, once there are looks that far back.
const RATE_WINDOW: Duration = Duration::from_secs(9);
/// About half an hour of looks, 5 s apart.
const POINTS_MAX: usize = 360;

/// By topic: the offset that it grows from.
pub type Ends = BTreeMap<Arc<str>, i64>;

/// A topology as it was at a moment.
#[derive(Debug)]
pub struct Look {
    /// Milliseconds since 1970.
    pub at_ms: i64,
    pub report: LagReport,
    /// The sum of the partitions' ends, by the topic of a sink.
    pub sink_ends: Ends,
    pub rates: Rates,
}

/// What happens a second. A name that is absent was not there at two looks.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Rates {
    /// Records of a source by their outcome: read, refined, filtered, late, dead.
    pub sources: BTreeMap<Arc<str>, [f64; 5]>,
    /// Offsets of an input topic that the group has committed, and that were appended.
    pub inputs: BTreeMap<Arc<str>, (f64, f64)>,
    /// Offsets that were appended to a sink's topic.
    pub sinks: BTreeMap<Arc<str>, f64>,
}

/// One place of a chart.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Point {
    pub at_ms: i64,
    pub read_per_second: Option<f64>,
    pub lag_records: i64,
    /// Age of the oldest unread record.
    pub lag_seconds: Option<f64>,
}

/// What two looks are compared by.
#[derive(Debug)]
struct Sample {
    at: Instant,
    sources: BTreeMap<Arc<str>, Counters>,
    /// Sums of positions and of ends.
    inputs: BTreeMap<Arc<str>, (i64, i64)>,
    sinks: Ends,
}

#[derive(Debug, Default)]
pub struct History {
    latest: Option<Arc<Look>>,
    samples: VecDeque<Sample>,
    points: VecDeque<Point>,
    failure: Option<(i64, String)>,
}

impl History {
    pub fn look(&mut self, at: Instant, at_ms: i64, report: LagReport, sink_ends: Ends) {
        let sample = Sample::new(at, &report, sink_ends.clone());
        // One sample beyond the window stays, so that there is always one to compare with.
        while self.samples.get(1).is_some_and(|second| at.duration_since(second.at) >= RATE_WINDOW) {
            self.samples.pop_front();
        }
        let rates = self.samples.front().map(|before| sample.since(before)).unwrap_or_default();
        self.samples.push_back(sample);
        let read = rates.sources.values().map(|source| source[0]);
        let point = Point {
            at_ms,
            read_per_second: (!rates.sources.is_empty()).then(|| read.sum()),
            lag_records: report.lag_records(),
            lag_seconds: report.oldest_unread_seconds(),
        };
        if self.points.len() == POINTS_MAX {
            self.points.pop_front();
        }
        self.points.push_back(point);
        self.failure = None;
        self.latest = Some(Arc::new(Look { at_ms, report, sink_ends, rates }));
    }

    pub fn failed(&mut self, at_ms: i64, why: String) {
        self.failure = Some((at_ms, why));
    }

    pub fn latest(&self) -> Option<Arc<Look>> {
        self.latest.clone()
    }

    /// When the last look failed, and why; none once one has succeeded again.
    pub fn failure(&self) -> Option<(i64, String)> {
        self.failure.clone()
    }

    /// The oldest first.
    pub fn points(&self) -> Vec<Point> {
        self.points.iter().copied().collect()
    }
}

impl Sample {
    fn new(at: Instant, report: &LagReport, sinks: Ends) -> Self {
        let (mut sources, mut inputs) = (BTreeMap::<_, Counters>::new(), BTreeMap::<_, (i64, i64)>::new());
        for partition in &report.partitions {
            if let Some(source) = &partition.source {
                let sum = sources.entry(Arc::clone(source)).or_default();
                partition.counters.iter().for_each(|counters| sum.add(counters));
            }
            let (position, end) = inputs.entry(Arc::clone(&partition.topic)).or_default();
            *position += partition.position();
            *end += partition.end;
        }
        Self { at, sources, inputs, sinks }
    }

    fn since(&self, before: &Sample) -> Rates {
        let seconds = self.at.duration_since(before.at).as_secs_f64();
        if seconds <= 0.0 {
            return Rates::default();
        }
        // What was reset or made anew goes back: nothing was done in it.
        let signed = |new: i64, old: i64| (new - old).max(0) as f64 / seconds;
        let counted = |new: u64, old: u64| new.saturating_sub(old) as f64 / seconds;
        let source = |(name, new): (&Arc<str>, &Counters)| {
            let old = before.sources.get(name)?;
            let rates = [
                counted(new.read, old.read),
                counted(new.refined, old.refined),
                counted(new.filtered, old.filtered),
                counted(new.late, old.late),
                counted(new.dead, old.dead),
            ];
            Some((Arc::clone(name), rates))
        };
        let input = |(name, new): (&Arc<str>, &(i64, i64))| {
            let old = before.inputs.get(name)?;
            Some((Arc::clone(name), (signed(new.0, old.0), signed(new.1, old.1))))
        };
        let sink =
            |(name, new): (&Arc<str>, &i64)| Some((Arc::clone(name), signed(*new, *before.sinks.get(name)?)));
        Rates {
            sources: self.sources.iter().filter_map(source).collect(),
            inputs: self.inputs.iter().filter_map(input).collect(),
            sinks: self.sinks.iter().filter_map(sink).collect(),
        }
    }
}
