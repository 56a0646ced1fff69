//! How fast a topology catches up, from looks at its lag one after the other.
//!
//! A topology has caught up when its sources are read; what lies in exchanges follows within an epoch or two.
//! So rates and the time left are the sources', and the exchanges' only once the sources are read.
//!
//! Invariant: a rate is between two looks at the same partition; one that came or went says nothing.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use serde::Serialize;

use super::{LagReport, PartitionLag};
use crate::record::TopicPartition;

/// Rates are measured over this long.
const WINDOW: Duration = Duration::from_secs(60);
/// Looks nearer to each other are not kept.
const STEP: Duration = Duration::from_secs(1);

/// Records a second, and how long that takes to catch up.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Pace {
    /// Offsets that the group has committed, a second.
    pub committed_per_second: f64,
    /// Offsets that were appended, a second.
    pub arriving_per_second: f64,
    /// Until nothing is left to read; `None`: it does not get less.
    pub eta_seconds: Option<f64>,
}

/// Where one partition stands: position and last stable offset.
type Place = (i64, i64);

/// Keeps looks to compare the next one with.
#[derive(Debug, Default)]
pub struct PaceMeter {
    looks: VecDeque<(Instant, BTreeMap<TopicPartition, Place>)>,
}

impl PaceMeter {
    /// The pace since the oldest look within the last minute; `None` at the first look.
    pub fn look(&mut self, now: Instant, report: &LagReport) -> Option<Pace> {
        let places: BTreeMap<TopicPartition, Place> =
            report.partitions.iter().map(|at| (at.name(), (at.position(), at.end))).collect();
        // One look beyond the window stays, so that there is always one to compare with.
        while self.looks.get(1).is_some_and(|(at, _)| now.duration_since(*at) >= WINDOW) {
            self.looks.pop_front();
        }
        let pace = self.looks.front().and_then(|(at, before)| {
            let seconds = now.duration_since(*at).as_secs_f64();
            (seconds > 0.0).then(|| pace(report, before, &places, seconds))
        });
        if self.looks.back().is_none_or(|(at, _)| now.duration_since(*at) >= STEP) {
            self.looks.push_back((now, places));
        }
        pace
    }
}

fn pace(
    report: &LagReport,
    before: &BTreeMap<TopicPartition, Place>,
    now: &BTreeMap<TopicPartition, Place>,
    seconds: f64,
) -> Pace {
    // Of the partitions that `which` names: records to read, and offsets committed and appended a second.
    let rates = |which: &dyn Fn(&PartitionLag) -> bool| {
        let (mut lag, mut committed, mut arrived) = (0, 0, 0);
        for at in report.partitions.iter().filter(|at| which(at)) {
            lag += at.lag_records;
            let name = at.name();
            if let (Some(old), Some(new)) = (before.get(&name), now.get(&name)) {
                committed += new.0 - old.0;
                arrived += new.1 - old.1;
            }
        }
        (lag as f64, committed as f64 / seconds, arrived as f64 / seconds)
    };
    let (lag, committed, arriving) = rates(&|at| at.source.is_some());
    let left = match lag {
        0.0 => rates(&|at| at.source.is_none()),
        lag => (lag, committed, arriving),
    };
    let eta_seconds = match left {
        (0.0, ..) => Some(0.0),
        (lag, committed, arriving) if committed > arriving => Some(lag / (committed - arriving)),
        _ => None,
    };
    Pace { committed_per_second: committed, arriving_per_second: arriving, eta_seconds }
}
