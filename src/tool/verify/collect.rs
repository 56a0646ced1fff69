//! The rows of the replay, as the live run would have produced them.
//!
//! Invariant: they are encoded by the encoder of the live run.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use arrow::array::{Array, TimestampMicrosecondArray};

use crate::engine::{EngineError, ReplaySink, Since, SinkEncoder, SinkWriter};
use crate::plan::{Plan, SinkPlan};
use crate::record::{Batch, Micros};

/// A row of the replay: its encoded value and the end of its window, where it has one.
pub struct Replayed {
    pub value: Vec<u8>,
    pub window_end: Option<Micros>,
    /// The version of the topology that is compared wrote it, not an earlier one.
    pub owed: bool,
}

/// Equal rows without a key: how many were written more than taken back.
#[derive(Clone, Copy, Default)]
pub struct Count {
    pub all: i64,
    pub owed: i64,
    /// Of the replay's rows, where they have a window.
    pub window_end: Option<Micros>,
}

/// What the replay gave one sink.
#[derive(Default)]
pub struct ReplayedRows {
    pub by_key: HashMap<Vec<u8>, Replayed>,
    /// By value; of a sink without a key.
    pub counts: HashMap<Vec<u8>, Count>,
}

/// Keeps the replay's rows.
pub struct Collected<'a> {
    plan: &'a Plan,
    /// By sink: from where on its view is what the plan says.
    since: &'a [Option<Since>],
    rows: Mutex<Vec<ReplayedRows>>,
}

impl<'a> Collected<'a> {
    pub fn new(plan: &'a Plan, since: &'a [Option<Since>]) -> Self {
        Self { plan, since, rows: Mutex::new(plan.sinks.iter().map(|_| ReplayedRows::default()).collect()) }
    }

    pub fn into_rows(self) -> Vec<ReplayedRows> {
        self.rows.into_inner().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ReplaySink for Collected<'_> {
    fn writer<'a>(&'a self, _task: usize) -> Result<Box<dyn SinkWriter + 'a>, EngineError> {
        let encoders: Result<Vec<_>, _> =
            self.plan.sinks.iter().map(|sink| SinkEncoder::new(sink, 1)).collect();
        let rows = self.plan.sinks.iter().map(|_| ReplayedRows::default()).collect();
        Ok(Box::new(Collector { into: self, encoders: encoders?, rows }))
    }
}

struct Collector<'a> {
    into: &'a Collected<'a>,
    encoders: Vec<Option<SinkEncoder>>,
    rows: Vec<ReplayedRows>,
}

impl SinkWriter for Collector<'_> {
    fn write(&mut self, sink: usize, batch: &Batch) -> Result<(), EngineError> {
        let Some(encoder) = &mut self.encoders[sink] else { return Ok(()) };
        let (plan, since) = (&self.into.plan.sinks[sink], self.into.since[sink].as_ref());
        let windows = window_column(plan).and_then(|(column, before_end)| {
            let column = batch.rows.column(column).as_any().downcast_ref::<TimestampMicrosecondArray>();
            Some((column?, before_end))
        });
        let (rows, mut row) = (&mut self.rows[sink], 0);
        encoder.encode(batch, |refined| {
            let window_end = windows
                .filter(|(times, _)| times.is_valid(row))
                .map(|(times, before_end)| times.value(row).saturating_add(before_end));
            let owed = since.is_none_or(|since| match (window_end, &batch.source) {
                (Some(end), _) => since.owes_window(end, plan.grace),
                (None, Some(source)) => since.owes_record(&source.origin, source.offset[row]),
                (None, None) => false,
            });
            row += 1;
            let value = refined.value.unwrap_or_default().to_vec();
            match refined.key {
                Some(key) => {
                    rows.by_key.insert(key.to_vec(), Replayed { value, window_end, owed });
                }
                None => {
                    let count = rows.counts.entry(value).or_default();
                    count.all += 1;
                    count.owed += i64::from(owed);
                    count.window_end = window_end;
                }
            }
        })
    }

    fn finish(self: Box<Self>) -> Result<(), EngineError> {
        let mut all = self.into.rows.lock().unwrap_or_else(PoisonError::into_inner);
        for (all, own) in all.iter_mut().zip(self.rows) {
            all.by_key.extend(own.by_key);
            for (value, count) in own.counts {
                let sum = all.counts.entry(value).or_default();
                sum.all += count.all;
                sum.owed += count.owed;
                sum.window_end = count.window_end;
            }
        }
        Ok(())
    }
}

/// The column that a row's window can be told by, and how far before the window's end it lies.
pub fn window_column(sink: &SinkPlan) -> Option<(usize, Micros)> {
    sink.window_end.map(|column| (column, 0)).or(sink.window_start)
}
