//! `headwater verify`: the live run's refined topics against a replay to the same cut, bit for bit.
//!
//! The cut R is what the group has committed of the sources. A window is compared if it is closed by the
//! watermark of every origin at R, idleness ignored: no record after R can change it, so it does not matter
//! whether the topology is running meanwhile. Compared is the last value of each key (protocol rule R8).
//!
//! Invariant: the replay's rows are encoded by the encoder of the live run.

use std::collections::{BTreeMap, HashMap};
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use arrow::array::{Array, TimestampMicrosecondArray};
use serde::Serialize;

use crate::config::Config;
use crate::engine::{
    EngineError, OffsetMetadata, Progress, ReplayOptions, ReplaySink, SinkEncoder, SinkWriter, TopicNames,
    replay,
};
use crate::log::{Log, LogError, Span, read_spans};
use crate::plan::{Late, Plan, SinkPlan, StageInput};
use crate::record::{Batch, Micros, TopicPartition};
use crate::serve::text;
use crate::time::{WATERMARK_MIN, is_closed};

use super::cluster;
use super::{Printer, Stop, ToolError};

/// What a key's last refined record holds; `None`: it was deleted.
type Live = HashMap<Vec<u8>, Option<Vec<u8>>>;

/// How a view compares.
#[derive(Debug, Default, Serialize)]
pub struct ViewReport {
    pub view: String,
    pub topic: String,
    /// Rows that were compared and are equal.
    pub equal: u64,
    pub differing: u64,
    /// Rows that the replay has and the live run will have once their window closes.
    pub pending: u64,
    /// Live rows of windows that are not closed for every origin at the cut; of a view without windows, all,
    /// where the live run has gone on meanwhile.
    pub not_compared: u64,
    /// The first differing rows.
    pub differences: Vec<Difference>,
}

#[derive(Debug, Serialize)]
pub struct Difference {
    pub key: String,
    pub live: Option<String>,
    pub replay: Option<String>,
}

#[derive(Debug, Serialize)]
pub struct VerifyReport {
    /// Records read by the replay, up to the cut.
    pub records: u64,
    /// The least watermark of all origins at the cut, in microseconds; `None` before the first.
    pub watermark: Option<Micros>,
    pub views: Vec<ViewReport>,
    /// Rows that the live run could not apply because their window was past retention; a replay has them.
    pub state_expired: u64,
}

impl VerifyReport {
    pub fn is_equal(&self) -> bool {
        self.views.iter().all(|view| view.differing == 0)
    }
}

/// How to verify. Sizes in bytes.
pub struct VerifyOptions {
    pub threads: usize,
    pub state_budget: usize,
    pub scratch: Option<std::path::PathBuf>,
    /// How long to wait for the keyed tasks to come past the cut.
    pub patience: Duration,
    /// Differences that are kept whole, for each view.
    pub differences_max: usize,
}

#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    #[error("topology '{0}' has committed nothing yet; run it first: headwater run FILE --until-end")]
    NothingCommitted(String),
    #[error(
        "{partition}: the keyed task has not come past the cut within {waited} s: {behind} exchange records \
         wait; is the topology running? Finish it with: headwater run FILE --until-end"
    )]
    NotDrained { partition: TopicPartition, waited: u64, behind: u64 },
    #[error(
        "{partition}: the log begins at offset {start}, but the topology began at {first}; what is gone can't be \
         replayed"
    )]
    Gone { partition: TopicPartition, start: i64, first: i64 },
    #[error(transparent)]
    Log(#[from] LogError),
    #[error(transparent)]
    Engine(#[from] EngineError),
}

/// Verifies the topology of a file and prints what was found; a difference is exit code 1.
pub fn verify_file(
    config: &Config,
    file: &Path,
    differences_max: usize,
    patience: Duration,
    out: &mut Printer,
) -> Result<(), ToolError> {
    let plan = crate::plan::load(file)?;
    let stop = Stop::on_signals()?;
    let cluster = cluster::open(config)?;
    let scratch = config.data_dir.join(format!("scratch-{}", std::process::id()));
    let options = VerifyOptions {
        threads: config.worker.thread_count(),
        state_budget: config.state.budget as usize,
        scratch: Some(scratch.clone()),
        patience,
        differences_max,
    };
    let report = verify(&plan, &cluster.log, &options, &Progress::default(), &stop.flag());
    let _ = std::fs::remove_dir_all(&scratch); // emptied at the next start in any case
    let report = report?;
    print_report(&report, out)?;
    out.flush()?;
    match report.is_equal() {
        true => Ok(()),
        false => Err(ToolError::Reported { exit_code: 1 }),
    }
}

pub fn print_report(report: &VerifyReport, out: &mut Printer) -> Result<(), ToolError> {
    if out.json() {
        return report.views.iter().try_for_each(|view| out.object(view));
    }
    let cut = report.watermark.map_or("none yet".to_owned(), text::time);
    out.line(&format!(
        "replayed {} records to the live run's cut (watermark {cut})",
        text::number(report.records)
    ))?;
    for view in &report.views {
        let verdict = match (view.equal, view.differing, view.pending + view.not_compared) {
            (0, 0, 1..) => "NOTHING COMPARED YET",
            (_, 0, _) => "EQUAL",
            _ => "DIFFERENT",
        };
        out.line(&format!(
            "{verdict}  {}: {} rows equal, {} differ, {} pending (their windows are open), {} not compared",
            view.topic,
            text::number(view.equal),
            text::number(view.differing),
            text::number(view.pending),
            text::number(view.not_compared)
        ))?;
        for difference in &view.differences {
            out.line(&format!("  key    {}", difference.key))?;
            out.line(&format!("  live   {}", difference.live.as_deref().unwrap_or("no row")))?;
            out.line(&format!("  replay {}", difference.replay.as_deref().unwrap_or("no row")))?;
        }
    }
    if report.state_expired > 0 {
        out.line(&format!(
            "{} rows came to the live run after their window's retention (state_expired); a replay has them",
            text::number(report.state_expired)
        ))?;
    }
    Ok(())
}

/// Replays to the cut and compares every view that has a topic.
pub fn verify(
    plan: &Plan,
    log: &Arc<dyn Log>,
    options: &VerifyOptions,
    progress: &Progress,
    stop: &AtomicBool,
) -> Result<VerifyReport, VerifyError> {
    let cut = Cut::take(plan, &**log)?;
    let state_expired = cut.wait_for_keyed(plan, &**log, options.patience)?;
    let collected = Collected::new(plan);
    let bounded = ReplayOptions {
        late: Late::AsLive,
        until: cut.offsets.clone(),
        threads: options.threads,
        state_budget: options.state_budget,
        scratch: options.scratch.clone(),
    };
    let replayed = replay(plan, log, &bounded, &collected, progress, stop)?;
    let rows = collected.rows.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
    let mut views = Vec::new();
    for (sink, replayed) in plan.sinks.iter().zip(rows) {
        let Some(topic) = &sink.topic else { continue };
        let live = read_live(&**log, &topic.topic, !topic.key.is_empty())?;
        // The live run has gone on: which rows without a window came before the cut, nothing tells.
        let moved = Cut::take(plan, &**log)?.offsets != cut.offsets;
        let cut = (cut.watermark, moved);
        let mut view = compare(sink, live, replayed, cut, options.differences_max);
        view.view = sink.view.to_string();
        view.topic = topic.topic.to_string();
        views.push(view);
    }
    Ok(VerifyReport {
        records: replayed.counters.read,
        watermark: (cut.watermark != WATERMARK_MIN).then_some(cut.watermark),
        views,
        state_expired,
    })
}

/// What the group has committed of the sources.
struct Cut {
    offsets: BTreeMap<TopicPartition, i64>,
    /// The least of all origins' watermarks.
    watermark: Micros,
}

impl Cut {
    fn take(plan: &Plan, log: &dyn Log) -> Result<Self, VerifyError> {
        let names = TopicNames::of(plan);
        let meta = crate::engine::MetaRecord::read(plan, log)?;
        let Some(meta) = meta else { return Err(VerifyError::NothingCommitted(plan.name.to_string())) };
        meta.check(plan)?;
        let mut cut = Self { offsets: BTreeMap::new(), watermark: Micros::MAX };
        for (topic, count) in TopicNames::sources(plan, log)? {
            let partitions: Vec<_> =
                (0..count).map(|partition| TopicPartition::new(Arc::clone(&topic), partition)).collect();
            let committed = log.committed(&names.group, &partitions)?;
            for (partition, committed) in partitions.into_iter().zip(committed) {
                let start = log.bounds(&partition)?.start;
                let began = meta.first_offsets.get(&*topic).and_then(|first| first.get(&partition.partition));
                let first = began.copied().unwrap_or(0);
                if start > first {
                    return Err(VerifyError::Gone { partition, start, first });
                }
                let watermark = match &committed {
                    None => WATERMARK_MIN,
                    Some(position) => OffsetMetadata::parse(&position.metadata, &partition)?.watermark(),
                };
                cut.watermark = cut.watermark.min(watermark);
                cut.offsets.insert(partition, committed.map_or(start, |position| position.offset));
            }
        }
        Ok(cut)
    }

    /// Waits until every keyed task has committed past the exchange records of the cut, stage by stage; yields
    /// how many rows they could not apply.
    fn wait_for_keyed(&self, plan: &Plan, log: &dyn Log, patience: Duration) -> Result<u64, VerifyError> {
        let names = TopicNames::of(plan);
        let mut expired = 0;
        for (stage, spec) in plan.stages.iter().enumerate() {
            let StageInput::Exchange { .. } = spec.input else { continue };
            let topic = names.input_topic(plan, stage);
            let count = log.partitions(&topic)?.unwrap_or(0);
            for partition in 0..count {
                let partition = TopicPartition::new(Arc::clone(&topic), partition);
                let end = log.bounds(&partition)?.end;
                let began = Instant::now();
                loop {
                    let committed = log.committed(&names.group, std::slice::from_ref(&partition))?;
                    let committed = committed.into_iter().next().flatten();
                    let offset = committed.as_ref().map_or(0, |position| position.offset);
                    let behind = records_between(log, &partition, offset, end)?;
                    if behind == 0 {
                        if let Some(position) = committed {
                            expired += OffsetMetadata::parse(&position.metadata, &partition)?.expired;
                        }
                        break;
                    }
                    if began.elapsed() > patience {
                        return Err(VerifyError::NotDrained {
                            partition,
                            waited: patience.as_secs(),
                            behind,
                        });
                    }
                    std::thread::sleep(Duration::from_millis(100));
                }
            }
        }
        Ok(expired)
    }
}

/// Records in `from..until`: transaction markers there are none.
fn records_between(
    log: &dyn Log,
    partition: &TopicPartition,
    from: i64,
    until: i64,
) -> Result<u64, LogError> {
    let span = Span { partition: partition.clone(), from, to: until };
    let mut found = 0;
    read_spans(log, &[span], &|| false, &mut |run| {
        found += run.records.len() as u64;
        Ok::<_, LogError>(ControlFlow::Continue(()))
    })?;
    Ok(found)
}

/// The last value of each key; without keys, each value counts by how often it stands there (as its key).
fn read_live(log: &dyn Log, topic: &str, keyed: bool) -> Result<Live, LogError> {
    let mut live = Live::new();
    let mut counts: HashMap<Vec<u8>, u64> = HashMap::new();
    let spans = Span::of_topic(log, topic)?.unwrap_or_default();
    read_spans(log, &spans, &|| false, &mut |run| {
        for index in 0..run.records.len() {
            let record = run.records.get(index);
            let value = record.value.map(<[u8]>::to_vec);
            match (keyed, value) {
                (true, value) => {
                    live.insert(record.key.unwrap_or_default().to_vec(), value);
                }
                (false, Some(value)) => *counts.entry(value).or_default() += 1,
                (false, None) => {}
            }
        }
        Ok::<_, LogError>(ControlFlow::Continue(()))
    })?;
    for (value, count) in counts {
        live.insert(value, Some(count.to_string().into_bytes()));
    }
    Ok(live)
}

/// A row of the replay: its encoded value and the end of its window, where it has one.
struct Replayed {
    value: Vec<u8>,
    window_end: Option<Micros>,
}

type ReplayedRows = HashMap<Vec<u8>, Replayed>;

fn compare(
    sink: &SinkPlan,
    mut live: Live,
    replayed: ReplayedRows,
    (watermark, moved): (Micros, bool),
    differences_max: usize,
) -> ViewReport {
    let mut report = ViewReport::default();
    let closed = |end: Option<Micros>| end.map_or(!moved, |end| is_closed(end, sink.grace, watermark));
    let mut differing = Vec::new();
    for (key, row) in replayed {
        match live.remove(&key) {
            Some(Some(value)) if value == row.value => match closed(row.window_end) {
                true => report.equal += 1,
                false => report.not_compared += 1,
            },
            Some(Some(value)) => match closed(row.window_end) {
                true => differing.push((key, Some(value), Some(row.value))),
                false => report.not_compared += 1,
            },
            Some(None) | None => match closed(row.window_end) {
                true => differing.push((key, None, Some(row.value))),
                false => report.pending += 1,
            },
        }
    }
    for (key, value) in live {
        let Some(value) = value else { continue };
        match closed(live_window_end(sink, &value)) {
            true => differing.push((key, Some(value), None)),
            false => report.not_compared += 1,
        }
    }
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

/// The column that a row's window can be told by, and how far before the window's end it lies.
fn window_column(sink: &SinkPlan) -> Option<(usize, Micros)> {
    sink.window_end.map(|column| (column, 0)).or(sink.window_start)
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

/// Keeps the replay's rows as the live run would have produced them.
struct Collected<'a> {
    plan: &'a Plan,
    rows: Mutex<Vec<ReplayedRows>>,
}

impl<'a> Collected<'a> {
    fn new(plan: &'a Plan) -> Self {
        Self { plan, rows: Mutex::new(plan.sinks.iter().map(|_| HashMap::new()).collect()) }
    }
}

impl ReplaySink for Collected<'_> {
    fn writer<'a>(&'a self, _task: usize) -> Result<Box<dyn SinkWriter + 'a>, EngineError> {
        let encoders: Result<Vec<_>, _> =
            self.plan.sinks.iter().map(|sink| SinkEncoder::new(sink, 1)).collect();
        let rows = self.plan.sinks.iter().map(|_| HashMap::new()).collect();
        Ok(Box::new(Collector { into: self, encoders: encoders?, rows, counts: HashMap::new() }))
    }
}

struct Collector<'a> {
    into: &'a Collected<'a>,
    encoders: Vec<Option<SinkEncoder>>,
    rows: Vec<ReplayedRows>,
    /// Rows without a key, by sink and value.
    counts: HashMap<(usize, Vec<u8>), u64>,
}

impl SinkWriter for Collector<'_> {
    fn write(&mut self, sink: usize, batch: &Batch) -> Result<(), EngineError> {
        let Some(encoder) = &mut self.encoders[sink] else { return Ok(()) };
        let windows = window_column(&self.into.plan.sinks[sink]).and_then(|(column, before_end)| {
            let column = batch.rows.column(column).as_any().downcast_ref::<TimestampMicrosecondArray>();
            Some((column?, before_end))
        });
        let (rows, counts, mut row) = (&mut self.rows[sink], &mut self.counts, 0);
        encoder.encode(batch, |refined| {
            let window_end = windows
                .filter(|(times, _)| times.is_valid(row))
                .map(|(times, before_end)| times.value(row).saturating_add(before_end));
            row += 1;
            let value = refined.value.unwrap_or_default().to_vec();
            match refined.key {
                Some(key) => {
                    rows.insert(key.to_vec(), Replayed { value, window_end });
                }
                None => *counts.entry((sink, value)).or_default() += 1,
            }
        })
    }

    fn finish(self: Box<Self>) -> Result<(), EngineError> {
        let mut all = self.into.rows.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        for (sink, rows) in self.rows.into_iter().enumerate() {
            all[sink].extend(rows);
        }
        for ((sink, value), count) in self.counts {
            let row = all[sink].entry(value).or_insert(Replayed { value: b"0".to_vec(), window_end: None });
            let before: u64 =
                std::str::from_utf8(&row.value).ok().and_then(|text| text.parse().ok()).unwrap_or(0);
            row.value = (before + count).to_string().into_bytes();
        }
        Ok(())
    }
}
