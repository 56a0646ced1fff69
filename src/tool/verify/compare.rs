//! A view's refined topic against what the replay gave: the last value of each key, or, without keys, how often
//! each value stands there, less how often it was taken back.
//!
//! A record that an earlier version of the topology may have written is compared too, but does not have to be
//! what this version makes of its source.

use std::collections::HashMap;
use std::ops::ControlFlow;

use super::collect::{Count, Replayed, ReplayedRows, window_column};
use super::{Difference, ViewReport};
use crate::engine::{ExpiredWindows, Since, is_retraction};
use crate::log::{Log, LogError, Span, read_spans};
use crate::plan::{Correction, SinkPlan};
use crate::planted::{Fault, planted};
use crate::record::Micros;
use crate::time::is_closed;

/// What a key's last refined record holds.
struct Last {
    /// `None`: the key was deleted.
    value: Option<Vec<u8>>,
    /// No earlier version of the topology wrote it.
    owed: bool,
}

/// A refined topic.
#[derive(Default)]
pub struct Live {
    by_key: HashMap<Vec<u8>, Last>,
    /// By value, without keys. `all`: those that this version may have written; `owed`: those that it has.
    counts: HashMap<Vec<u8>, Count>,
    /// Records without keys that are of an earlier version.
    earlier: u64,
}

impl Live {
    pub fn read(
        log: &dyn Log,
        sink: &SinkPlan,
        topic: &str,
        since: Option<&Since>,
    ) -> Result<Self, LogError> {
        let mut live = Self::default();
        let keyed = sink.topic.as_ref().is_some_and(|topic| !topic.key.is_empty());
        let retracts = sink.correction() == Correction::Retract;
        let spans = Span::of_topic(log, topic)?.unwrap_or_default();
        read_spans(log, &spans, &|| false, &mut |run| {
            let partition = run.partition.partition;
            for index in 0..run.records.len() {
                let record = run.records.get(index);
                let owed = since.is_none_or(|since| since.wrote(partition, record.offset));
                let value = record.value.map(<[u8]>::to_vec);
                if keyed {
                    let key = record.key.unwrap_or_default().to_vec();
                    if planted(Fault::VerifyFirstValue) && live.by_key.contains_key(&key) {
                        continue;
                    }
                    live.by_key.insert(key, Last { value, owed });
                } else if let Some(value) = value {
                    if since.is_some_and(|since| !since.may_have_written(partition, record.offset)) {
                        live.earlier += 1;
                        continue;
                    }
                    let count = live.counts.entry(value).or_default();
                    let weight = if retracts && is_retraction(&run.records.headers(index)) { -1 } else { 1 };
                    count.all += weight;
                    count.owed += if owed { weight } else { 0 };
                }
            }
            Ok::<_, LogError>(ControlFlow::Continue(()))
        })?;
        live.counts.retain(|_, count| count.all != 0);
        Ok(live)
    }
}

/// A key or a value, what the live run has of it and what the replay has.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Differing {
    key: Vec<u8>,
    live: Option<Vec<u8>>,
    replay: Option<Vec<u8>>,
    window_end: Option<Micros>,
}

impl From<Differing> for Difference {
    fn from(row: Differing) -> Self {
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        Self { key: text(row.key), live: row.live.map(text), replay: row.replay.map(text) }
    }
}

/// What is known of a sink's windows at the cut.
pub struct Windows {
    /// Of all origins.
    pub watermark: Micros,
    /// The live run has gone on since.
    pub moved: bool,
    pub expired: ExpiredWindows,
}

pub fn compare(
    sink: &SinkPlan,
    live: Live,
    replayed: ReplayedRows,
    windows: &Windows,
    differences_max: usize,
) -> ViewReport {
    let mut report = ViewReport { earlier_version: live.earlier, ..ViewReport::default() };
    // Without a window, which rows came before the cut nothing tells once the live run has gone on.
    let closed = |end: Option<Micros>| {
        end.map_or(!windows.moved, |end| {
            is_closed(end, sink.grace, windows.watermark) || planted(Fault::VerifyOpenWindows)
        })
    };
    let mut differing = by_key(sink, live.by_key, replayed.by_key, closed, &mut report);
    differing.extend(by_count(sink, live.counts, replayed.counts, closed, &mut report));
    differing.sort();
    let (expired, differing): (Vec<_>, Vec<_>) = differing
        .into_iter()
        .partition(|row| row.window_end.is_some_and(|end| windows.expired.contains(end)));
    (report.expired, report.differing) = (expired.len() as u64, differing.len() as u64);
    let first = |rows: Vec<Differing>| rows.into_iter().take(differences_max).map(Difference::from).collect();
    (report.expired_rows, report.differences) = (first(expired), first(differing));
    report
}

fn by_key(
    sink: &SinkPlan,
    mut live: HashMap<Vec<u8>, Last>,
    replayed: HashMap<Vec<u8>, Replayed>,
    closed: impl Fn(Option<Micros>) -> bool,
    report: &mut ViewReport,
) -> Vec<Differing> {
    let mut differing = Vec::new();
    for (key, row) in replayed {
        let window_end = row.window_end;
        let closed = closed(window_end);
        match live.remove(&key) {
            Some(Last { value: Some(value), .. }) if value == row.value => match closed {
                true => report.equal += 1,
                false => report.not_compared += 1,
            },
            Some(Last { value: Some(value), owed }) => match (closed, owed || row.owed) {
                (false, _) => report.not_compared += 1,
                (true, false) => report.earlier_version += 1,
                (true, true) => {
                    differing.push(Differing { key, live: Some(value), replay: Some(row.value), window_end })
                }
            },
            deleted @ (Some(Last { value: None, .. }) | None) => {
                match (closed, row.owed || deleted.is_some_and(|deleted| deleted.owed)) {
                    (false, _) => report.pending += 1,
                    (true, false) => report.earlier_version += 1,
                    (true, true) => {
                        differing.push(Differing { key, live: None, replay: Some(row.value), window_end })
                    }
                }
            }
        }
    }
    for (key, last) in live {
        let Some(value) = last.value else { continue };
        let window_end = live_window_end(sink, &value);
        match (closed(window_end), last.owed) {
            (false, _) => report.not_compared += 1,
            (true, false) => report.earlier_version += 1,
            (true, true) => differing.push(Differing { key, live: Some(value), replay: None, window_end }),
        }
    }
    differing
}

/// The live run must have each row as often as the replay, as far as this version wrote it.
fn by_count(
    sink: &SinkPlan,
    mut live: HashMap<Vec<u8>, Count>,
    replayed: HashMap<Vec<u8>, Count>,
    closed: impl Fn(Option<Micros>) -> bool,
    report: &mut ViewReport,
) -> Vec<Differing> {
    let mut differing = Vec::new();
    let rows = |count: i64| count.unsigned_abs();
    for (value, replayed) in replayed {
        let live = live.remove(&value).unwrap_or_default();
        if !closed(replayed.window_end) {
            report.not_compared += rows(live.all);
            // Of a view without windows, the cut tells nothing of what is missing.
            report.pending += replayed.window_end.map_or(0, |_| rows((replayed.all - live.all).max(0)));
        } else if live.owed <= replayed.all && replayed.owed <= live.all {
            report.equal += rows(live.all.min(replayed.all));
            report.earlier_version += rows((live.all - replayed.all).max(0));
        } else {
            let (live, replay) = (times(live.all), times(replayed.all));
            differing.push(Differing { key: value, live, replay, window_end: replayed.window_end });
        }
    }
    for (value, live) in live {
        let window_end = live_window_end(sink, &value);
        match (closed(window_end), live.owed) {
            (false, _) => report.not_compared += rows(live.all),
            (true, 0) => report.earlier_version += rows(live.all),
            (true, _) => {
                differing.push(Differing { key: value, live: times(live.all), replay: None, window_end })
            }
        }
    }
    differing
}

/// How often a row stands there.
fn times(count: i64) -> Option<Vec<u8>> {
    match count {
        0 => None,
        1.. => Some(count.to_string().into_bytes()),
        _ => Some(format!("{count}: taken back more often than written").into_bytes()),
    }
}

/// The window's end of a refined record that only the live run has, from its value.
fn live_window_end(sink: &SinkPlan, value: &[u8]) -> Option<Micros> {
    let (column, before_end) = window_column(sink)?;
    let name = sink.schema.field(column).name();
    let value: serde_json::Value = serde_json::from_slice(value).ok()?;
    let time = value.get(name)?.as_str()?;
    let time = chrono::DateTime::parse_from_rfc3339(time).ok()?;
    Some(time.timestamp_micros().saturating_add(before_end))
}
