//! A view's refined topic against what the replay gave: the last value of each key, or, without keys, how often
//! each value stands there.
//!
//! A record that an earlier version of the topology may have written is compared too, but does not have to be
//! what this version makes of its source.

use std::collections::HashMap;
use std::ops::ControlFlow;

use super::collect::{Count, Replayed, ReplayedRows, window_column};
use super::{Difference, ViewReport};
use crate::engine::Since;
use crate::log::{Log, LogError, Span, read_spans};
use crate::plan::SinkPlan;
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
    pub fn read(log: &dyn Log, topic: &str, keyed: bool, since: Option<&Since>) -> Result<Self, LogError> {
        let mut live = Self::default();
        let spans = Span::of_topic(log, topic)?.unwrap_or_default();
        read_spans(log, &spans, &|| false, &mut |run| {
            let partition = run.partition.partition;
            for index in 0..run.records.len() {
                let record = run.records.get(index);
                let owed = since.is_none_or(|since| since.wrote(partition, record.offset));
                let value = record.value.map(<[u8]>::to_vec);
                if keyed {
                    live.by_key.insert(record.key.unwrap_or_default().to_vec(), Last { value, owed });
                } else if let Some(value) = value {
                    if since.is_some_and(|since| !since.may_have_written(partition, record.offset)) {
                        live.earlier += 1;
                        continue;
                    }
                    let count = live.counts.entry(value).or_default();
                    count.all += 1;
                    count.owed += u64::from(owed);
                }
            }
            Ok::<_, LogError>(ControlFlow::Continue(()))
        })?;
        Ok(live)
    }
}

/// A key or a value, what the live run has of it and what the replay has.
type Differing = (Vec<u8>, Option<Vec<u8>>, Option<Vec<u8>>);

/// `watermark`: of all origins at the cut; `moved`: the live run has gone on since the cut.
pub fn compare(
    sink: &SinkPlan,
    live: Live,
    replayed: ReplayedRows,
    (watermark, moved): (Micros, bool),
    differences_max: usize,
) -> ViewReport {
    let mut report = ViewReport { earlier_version: live.earlier, ..ViewReport::default() };
    let closed = |end: Option<Micros>| end.map_or(!moved, |end| is_closed(end, sink.grace, watermark));
    let mut differing = by_key(sink, live.by_key, replayed.by_key, closed, &mut report);
    differing.extend(by_count(live.counts, replayed.counts, moved, &mut report));
    report.differing = differing.len() as u64;
    differing.sort();
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    report.differences = differing
        .into_iter()
        .take(differences_max)
        .map(|(key, live, replay)| Difference {
            key: text(key),
            live: live.map(text),
            replay: replay.map(text),
        })
        .collect();
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
        let closed = closed(row.window_end);
        match live.remove(&key) {
            Some(Last { value: Some(value), .. }) if value == row.value => match closed {
                true => report.equal += 1,
                false => report.not_compared += 1,
            },
            Some(Last { value: Some(value), owed }) => match (closed, owed || row.owed) {
                (false, _) => report.not_compared += 1,
                (true, false) => report.earlier_version += 1,
                (true, true) => differing.push((key, Some(value), Some(row.value))),
            },
            deleted @ (Some(Last { value: None, .. }) | None) => {
                match (closed, row.owed || deleted.is_some_and(|deleted| deleted.owed)) {
                    (false, _) => report.pending += 1,
                    (true, false) => report.earlier_version += 1,
                    (true, true) => differing.push((key, None, Some(row.value))),
                }
            }
        }
    }
    for (key, last) in live {
        let Some(value) = last.value else { continue };
        match (closed(live_window_end(sink, &value)), last.owed) {
            (false, _) => report.not_compared += 1,
            (true, false) => report.earlier_version += 1,
            (true, true) => differing.push((key, Some(value), None)),
        }
    }
    differing
}

/// The live run must have each row as often as the replay, as far as this version wrote it.
fn by_count(
    mut live: HashMap<Vec<u8>, Count>,
    replayed: HashMap<Vec<u8>, Count>,
    moved: bool,
    report: &mut ViewReport,
) -> Vec<Differing> {
    if moved {
        // Which rows came before the cut, nothing tells.
        report.not_compared += live.values().map(|count| count.all).sum::<u64>();
        return Vec::new();
    }
    let mut differing = Vec::new();
    let text = |count: u64| (count > 0).then(|| count.to_string().into_bytes());
    for (value, replayed) in replayed {
        let live = live.remove(&value).unwrap_or_default();
        if live.owed <= replayed.all && replayed.owed <= live.all {
            report.equal += live.all.min(replayed.all);
            report.earlier_version += live.all.saturating_sub(replayed.all);
        } else {
            differing.push((value, text(live.all), text(replayed.all)));
        }
    }
    for (value, live) in live {
        match live.owed {
            0 => report.earlier_version += live.all,
            _ => differing.push((value, text(live.all), None)),
        }
    }
    differing
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
