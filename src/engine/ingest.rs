//! The ingest task: one partition of a source topic, from bytes to rows, watermarks and partial aggregates.
//!
//! Order per record: decode → event time → `max_ahead` → checks → watermark moves → per view: filter → late?
//! → operator.
//!
//! Invariant: every record read is counted as exactly one of dead, refined, late, filtered.
//! Invariant: what a record does depends on the records of its own partition before it and on nothing else.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};

use arrow::array::{Array, TimestampMicrosecondArray};
use arrow::datatypes::TimeUnit;

use crate::codec::json::JsonDecoder;
use crate::operator::{Check, Operator, Output, SharedState};
use crate::plan::Plan;
use crate::planted::{self, Fault, planted};
use crate::record::{Batch, Micros, Origin, OwnedRecord, RecordRef, Run, SourceRows};
use crate::state::{MemoryStore, TaskState};
use crate::time::{WATERMARK_MIN, WatermarkTracker};

use super::offsets::{Counters, OffsetMetadata};
use super::pipeline::{ExchangePort, Passed, Pipeline};
use super::rejects::RejectWindow;
use super::{EngineError, Outputs, Result};

/// A record that can't be processed, with its provenance.
#[derive(Clone, Debug)]
pub struct DeadRecord {
    pub source: Origin,
    pub record: OwnedRecord,
    /// Where it failed: `decode`, `event_time`, `check`, or a view's name.
    pub stage: String,
    /// A stable code.
    pub reason: String,
    pub message: String,
}

/// A record that one or more window views called late.
#[derive(Clone, Debug)]
pub struct LateRecord {
    pub source: Origin,
    pub record: OwnedRecord,
    pub views: Vec<Arc<str>>,
    pub watermark: Micros,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    Filtered,
    Late,
    Refined,
    Dead,
    /// Dead, with a letter that was redriven since: nothing but its watermark counts here.
    Redriven,
}

/// What a record is besides its bytes.
struct Head {
    offset: i64,
    timestamp_ms: i64,
    is_tombstone: bool,
}

/// What an abort goes back to.
#[derive(Clone)]
struct Position {
    offset: i64,
    tracker: WatermarkTracker,
    counters: Counters,
    idle: bool,
    rejects: RejectWindow,
}

pub struct IngestTask {
    plan: Arc<Plan>,
    stage: usize,
    source: usize,
    origin: Origin,
    origin_index: u32,
    /// Offsets of this partition whose dead letters were redriven.
    redriven: Arc<BTreeSet<i64>>,
    decoder: JsonDecoder,
    checks: Option<Check>,
    pipeline: Pipeline,
    now: Position,
    committed: Position,
    /// The watermark that the exchanges have been told, and whether that the origin is idle. What is committed with
    /// the offset was told in the same transaction, by whoever had the partition.
    told: (Option<Micros>, bool),
    told_committed: (Option<Micros>, bool),
    /// Records came in this epoch: their rows, if there are any, have ended what was told of its idleness.
    woke: bool,
    passed: Passed,
}

impl IngestTask {
    /// `offset` and `metadata`: where the group stands; `None` for a partition never committed.
    pub fn new(
        plan: &Arc<Plan>,
        stage: usize,
        source: usize,
        origin: Origin,
        origin_index: u32,
        offset: i64,
        metadata: Option<&OffsetMetadata>,
    ) -> Result<Self> {
        let spec = &plan.sources[source];
        let watermark = metadata.map_or(WATERMARK_MIN, OffsetMetadata::watermark);
        let position = Position {
            offset,
            tracker: WatermarkTracker::resume(spec.out_of_orderness, watermark),
            counters: metadata.and_then(|metadata| metadata.counters).unwrap_or_default(),
            idle: metadata.is_some_and(|metadata| metadata.idle) && !planted(Fault::WakeForgotten),
            rejects: RejectWindow::default(),
        };
        let told = (Some(watermark).filter(|watermark| *watermark != WATERMARK_MIN), position.idle);
        let (checks, pipeline) = Self::operators(plan, stage, source)?;
        Ok(Self {
            decoder: JsonDecoder::new(&spec.read),
            plan: Arc::clone(plan),
            stage,
            source,
            origin,
            origin_index,
            redriven: Arc::default(),
            checks,
            pipeline,
            told,
            told_committed: told,
            committed: position.clone(),
            now: position,
            woke: false,
            passed: Passed::default(),
        })
    }

    /// Leaves the originals of redriven letters as dead as they were.
    pub fn skipping(mut self, redriven: Arc<BTreeSet<i64>>) -> Self {
        self.redriven = redriven;
        self
    }

    fn operators(plan: &Plan, stage: usize, source: usize) -> Result<(Option<Check>, Pipeline)> {
        let spec = &plan.sources[source];
        let checks = match spec.checks.is_empty() {
            true => None,
            false => Some(Check::new(spec.checks.clone(), Arc::clone(&spec.name))),
        };
        // Nothing in an ingest stage keeps state past an epoch; the watermark rides with the offset.
        let state: SharedState = Arc::new(Mutex::new(TaskState::new(Box::new(MemoryStore::default()))));
        Ok((checks, Pipeline::new(&plan.stages[stage], &state)?))
    }

    pub fn exchanges(&self) -> &[ExchangePort] {
        self.pipeline.exchanges()
    }
    pub fn stage(&self) -> usize {
        self.stage
    }
    pub fn source(&self) -> usize {
        self.source
    }
    pub fn idle_after(&self) -> std::time::Duration {
        std::time::Duration::from_micros(self.plan.sources[self.source].idle_after.max(0) as u64)
    }
    pub fn offset(&self) -> i64 {
        self.now.offset
    }
    pub fn watermark(&self) -> Micros {
        self.now.tracker.watermark()
    }
    pub fn counters(&self) -> &Counters {
        &self.now.counters
    }
    pub fn is_idle(&self) -> bool {
        self.now.idle
    }
    /// Whether there is anything to commit.
    pub fn is_dirty(&self) -> bool {
        self.now.offset != self.committed.offset || self.now.idle != self.committed.idle
    }

    pub fn step(&mut self, run: &Run, outputs: &mut Outputs) -> Result<()> {
        let count = run.records.len();
        self.now.idle = false;
        self.woke = true;
        let mut outcomes = vec![Outcome::Filtered; count];
        let batch = self.decode(run, &mut outcomes, outputs)?;
        self.passed.clear();
        if batch.num_rows() > 0 {
            let batch = self.check(run, batch, &mut outcomes, outputs)?;
            if batch.num_rows() > 0 {
                self.pipeline.push(&batch, &mut self.passed)?;
            }
        }
        self.settle(run, &mut outcomes, outputs);
        self.count(&outcomes, &outputs.dead)?;
        debug_assert!(run.next >= self.now.offset, "a run never goes back");
        self.now.offset = run.next;
        outputs.take_rows(&mut self.passed);
        Ok(())
    }

    /// The position moved without records: transaction markers, aborted records.
    pub fn skip_to(&mut self, position: i64) {
        if planted(Fault::EndsByRecords) {
            return;
        }
        self.now.offset = self.now.offset.max(position);
    }

    /// Nothing has come for `idle_after`: this origin holds nobody back until it wakes.
    pub fn set_idle(&mut self) {
        self.now.idle = true;
    }

    /// The epoch ends: partial aggregates, then the watermark that they were admitted under.
    pub fn flush(&mut self, outputs: &mut Outputs) -> Result<()> {
        self.passed.clear();
        self.pipeline.flush(&mut self.passed)?;
        outputs.take_rows(&mut self.passed);
        let watermark = self.watermark();
        let (told, told_idle) = self.told;
        let woke = std::mem::take(&mut self.woke) && !planted(Fault::IdleAgainUntold);
        let still_idle = told_idle && self.now.idle && !woke;
        if told != Some(watermark) && watermark != WATERMARK_MIN || told_idle && !still_idle {
            outputs.watermark = Some(watermark);
        }
        outputs.idle = self.now.idle && !still_idle;
        self.told = (Some(watermark), self.now.idle);
        Ok(())
    }

    pub fn metadata(&self) -> OffsetMetadata {
        let mut metadata = OffsetMetadata::new(self.watermark());
        metadata.idle = self.now.idle;
        metadata.counters = Some(self.now.counters);
        metadata
    }

    pub fn commit(&mut self) {
        self.committed = self.now.clone();
        self.told_committed = self.told;
    }

    /// Back to the last commit; the operators' epoch is dropped with them.
    pub fn abort(&mut self) -> Result<i64> {
        let counters = self.now.counters;
        self.now = self.committed.clone();
        if planted(Fault::CountersOutliveAbort) {
            self.now.counters = counters;
        }
        self.told = self.told_committed;
        self.woke = false;
        self.decoder.finish();
        (self.checks, self.pipeline) = Self::operators(&self.plan, self.stage, self.source)?;
        Ok(self.now.offset)
    }

    /// Bytes to rows with their event times and the watermark as of each; rejects become dead letters.
    fn decode(&mut self, run: &Run, outcomes: &mut [Outcome], outputs: &mut Outputs) -> Result<Batch> {
        let spec = &self.plan.sources[self.source];
        let count = run.records.len();
        let redriven = |offset| !self.redriven.is_empty() && self.redriven.contains(&offset);
        let mut heads = Vec::with_capacity(count);
        for (index, outcome) in outcomes.iter_mut().enumerate() {
            let RecordRef { offset, timestamp_ms, value, .. } = run.records.get(index);
            heads.push(Head { offset, timestamp_ms, is_tombstone: value.is_none() });
            match value {
                // A tombstone on a stream deletes nothing: it is filtered.
                None => self.decoder.push_null(),
                Some(value) => {
                    if let Err(reject) = self.decoder.push(value) {
                        if redriven(offset) {
                            *outcome = Outcome::Redriven;
                            continue;
                        }
                        *outcome = Outcome::Dead;
                        outputs.dead.push(DeadRecord {
                            source: run.partition.clone(),
                            record: run.records.to_owned(index),
                            stage: "decode".into(),
                            reason: reject.reason.into(),
                            message: reject.message,
                        });
                    }
                }
            }
        }
        let rows = self.decoder.finish();
        let times = match spec.event_time {
            None => None,
            Some(column) => {
                let times = rows.column(column).as_any().downcast_ref::<TimestampMicrosecondArray>();
                let found = rows.column(column).data_type();
                Some(times.cloned().ok_or_else(|| {
                    EngineError::internal(format!(
                        "the event time is of type {found}, not {:?}",
                        TimeUnit::Microsecond
                    ))
                })?)
            }
        };
        let (mut time, mut watermark, mut offset) =
            (Vec::with_capacity(count), Vec::with_capacity(count), Vec::with_capacity(count));
        let mut kept: Vec<u32> = Vec::with_capacity(count);
        for (index, (record, outcome)) in heads.iter().zip(outcomes.iter_mut()).enumerate() {
            if matches!(outcome, Outcome::Dead | Outcome::Redriven) || record.is_tombstone {
                continue;
            }
            let log_time = record.timestamp_ms.saturating_mul(1000);
            let event_time = match &times {
                None => Some(log_time),
                Some(times) => times.is_valid(index).then(|| times.value(index)),
            };
            let dead = |reason: &str, message: String| DeadRecord {
                source: run.partition.clone(),
                record: run.records.to_owned(index),
                stage: "event_time".into(),
                reason: reason.into(),
                message,
            };
            let ahead = |event_time: Micros| {
                let decides = planted::wall_clock(Fault::WallClockDecides).unwrap_or(log_time);
                record.timestamp_ms >= 0 && event_time > decides.saturating_add(spec.max_ahead)
            };
            if redriven(record.offset) {
                *outcome = Outcome::Redriven;
                if let Some(event_time) = event_time.filter(|&event_time| !ahead(event_time)) {
                    self.now.tracker.observe(event_time);
                }
                continue;
            }
            let Some(event_time) = event_time else {
                *outcome = Outcome::Dead;
                outputs.dead.push(dead("no_event_time", "the event time is null or missing".into()));
                continue;
            };
            if ahead(event_time) {
                *outcome = Outcome::Dead;
                let ahead = humantime_micros(event_time.saturating_sub(log_time));
                let message =
                    format!("the event time is {ahead} ahead of the record's timestamp (max_ahead)");
                outputs.dead.push(dead("too_far_ahead", message));
                continue;
            }
            kept.push(index as u32);
            time.push(event_time);
            let own = self.now.tracker.observe(event_time);
            watermark.push(planted::furthest(Fault::LateAtWrongOrigin, own));
            offset.push(record.offset);
        }
        let rows = match kept.len() == count {
            true => rows,
            false => {
                let indices = arrow::array::UInt32Array::from(kept.clone());
                arrow::compute::take_record_batch(&rows, &indices)?
            }
        };
        let source = SourceRows {
            origin: self.origin.clone(),
            origin_index: self.origin_index,
            record: kept.into(),
            offset: offset.into(),
            watermark: watermark.into(),
        };
        Ok(Batch { rows, time: time.into(), weight: None, source: Some(source) })
    }

    fn check(
        &mut self,
        run: &Run,
        batch: Batch,
        outcomes: &mut [Outcome],
        outputs: &mut Outputs,
    ) -> Result<Batch> {
        let Some(checks) = &mut self.checks else { return Ok(batch) };
        let mut output = Output::default();
        checks.process(0, &batch, &mut output)?;
        for rejected in output.rejected {
            let Some(record) = rejected.record else { continue };
            reject(run, record, "check", rejected.reason, rejected.message, outcomes, outputs);
        }
        for (name, rows) in output.warned {
            *outputs.warned.entry(name).or_default() += rows;
        }
        match output.batches.len() {
            0 => Ok(batch.take(&[])?),
            1 => Ok(output.batches.remove(0)),
            _ => Err(EngineError::internal("a check handed on more than one batch".into())),
        }
    }

    /// Each record's one outcome, from what the views did with it.
    fn settle(&mut self, run: &Run, outcomes: &mut [Outcome], outputs: &mut Outputs) {
        for rejected in std::mem::take(&mut self.passed.rejected) {
            if let Some(record) = rejected.record {
                let place = rejected.place.to_string();
                reject(run, record, &place, rejected.reason, rejected.message, outcomes, outputs);
            }
        }
        for record in self.passed.taken.drain(..) {
            let outcome = &mut outcomes[record as usize];
            if *outcome != Outcome::Dead {
                *outcome = Outcome::Refined;
            }
        }
        let mut late: BTreeMap<u32, LateRecord> = BTreeMap::new();
        for row in self.passed.late.drain(..) {
            let outcome = &mut outcomes[row.record as usize];
            if *outcome == Outcome::Filtered {
                *outcome = Outcome::Late;
            }
            let entry = late.entry(row.record).or_insert_with(|| LateRecord {
                source: run.partition.clone(),
                record: run.records.to_owned(row.record as usize),
                views: Vec::new(),
                watermark: row.watermark,
            });
            if !entry.views.contains(&row.view) {
                entry.views.push(row.view);
            }
        }
        outputs.late.extend(late.into_values());
    }

    fn count(&mut self, outcomes: &[Outcome], dead: &[DeadRecord]) -> Result<()> {
        let counters = &mut self.now.counters;
        counters.read += outcomes.len() as u64;
        let ratio_max = self.plan.sources[self.source].max_reject_ratio;
        for outcome in outcomes {
            match outcome {
                Outcome::Filtered => counters.filtered += 1,
                Outcome::Late => counters.late += 1,
                Outcome::Refined => counters.refined += 1,
                Outcome::Dead => counters.dead += 1,
                Outcome::Redriven => {
                    counters.dead += 1;
                    continue; // a reject of an earlier reading
                }
            }
            self.now.rejects.observe(*outcome == Outcome::Dead);
            if *outcome == Outcome::Dead && self.now.rejects.exceeds(ratio_max) {
                let (rejected, of) = self.now.rejects.counts();
                return Err(EngineError::TooManyRejects {
                    partition: self.origin.clone(),
                    rejected,
                    of,
                    ratio_max,
                    reasons: reasons(dead, &self.origin),
                });
            }
        }
        Ok(())
    }
}

fn reject(
    run: &Run,
    record: u32,
    stage: &str,
    reason: String,
    message: String,
    outcomes: &mut [Outcome],
    outputs: &mut Outputs,
) {
    let outcome = &mut outcomes[record as usize];
    if *outcome == Outcome::Dead {
        return; // one dead letter a record: the first failure names it
    }
    *outcome = Outcome::Dead;
    outputs.dead.push(DeadRecord {
        source: run.partition.clone(),
        record: run.records.to_owned(record as usize),
        stage: stage.into(),
        reason,
        message,
    });
}

/// The last rejects of a partition.
fn reasons(dead: &[DeadRecord], of: &Origin) -> Vec<String> {
    const SHOWN: usize = 3;
    let of_this = dead.iter().rev().filter(|dead| dead.source == *of).take(SHOWN);
    let line = |dead: &DeadRecord| {
        format!("offset {}: {} ({}): {}", dead.record.offset, dead.reason, dead.stage, dead.message)
    };
    let mut lines: Vec<String> = of_this.map(line).collect();
    lines.reverse();
    lines
}

/// Micros as people write durations, to the second.
fn humantime_micros(micros: Micros) -> String {
    humantime::format_duration(std::time::Duration::from_secs((micros.max(0) / 1_000_000) as u64)).to_string()
}
