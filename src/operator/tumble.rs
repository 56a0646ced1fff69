//! `tumble`: puts each row into its window of fixed size.
//!
//! Invariant: window_start ≤ time < window_end = window_start + size, also before 1970.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, BooleanArray, PrimitiveArray};
use arrow::datatypes::TimestampMicrosecondType;

use super::evaluate::{failed, reject};
use super::{Input, Operator, Output, Result, TumbleSpec};
use crate::record::{Batch, Micros};

/// 0001-01-01T00:00:00Z.
const YEAR_1: Micros = -62_135_596_800_000_000;
/// 10000-01-01T00:00:00Z.
const YEAR_10000: Micros = 253_402_300_800_000_000;

/// Appends window_start and window_end. A row without a time, or whose window is not inside years 1 to 9999,
/// is rejected.
pub struct Tumble {
    spec: TumbleSpec,
}

impl Tumble {
    pub fn new(spec: TumbleSpec) -> Self {
        Self { spec }
    }

    fn window_start(&self, time: Micros) -> Option<Micros> {
        let since_offset = time.checked_sub(self.spec.offset)?;
        let start = time.checked_sub(since_offset.checked_rem_euclid(self.spec.size)?)?;
        let end = start.checked_add(self.spec.size)?;
        (start >= YEAR_1 && end <= YEAR_10000).then_some(start)
    }
}

impl Operator for Tumble {
    fn process(&mut self, _input: Input, batch: &Batch, out: &mut Output) -> Result<()> {
        let spec = &self.spec;
        let column = batch.rows.column(spec.time_column);
        let Some(times) = column.as_primitive_opt::<TimestampMicrosecondType>() else {
            return Err(failed(&spec.view, "the time column of tumble is not a timestamp in microseconds"));
        };
        let starts: Vec<Option<Micros>> =
            times.iter().map(|time| time.and_then(|time| self.window_start(time))).collect();

        let mut placed = batch.clone();
        let mut kept_starts = starts.clone();
        if starts.contains(&None) {
            for (row, _) in starts.iter().enumerate().filter(|(_, start)| start.is_none()) {
                let message = if times.is_null(row) {
                    "the time column is null: the row is in no window".to_string()
                } else {
                    format!("the window of time {} µs is outside years 1 to 9999", times.value(row))
                };
                reject(out, batch, row, "expression", &spec.view, message)?;
            }
            placed =
                batch.filter(&starts.iter().map(|start| Some(start.is_some())).collect::<BooleanArray>())?;
            kept_starts.retain(Option::is_some);
        }
        if placed.num_rows() == 0 {
            return Ok(());
        }
        let window_start: Vec<Micros> = kept_starts.into_iter().flatten().collect();
        let window_end: Vec<Micros> = window_start.iter().map(|start| start + spec.size).collect();
        let mut columns = placed.rows.columns().to_vec();
        for (values, place) in [(window_start, columns.len()), (window_end, columns.len() + 1)] {
            let array = PrimitiveArray::<TimestampMicrosecondType>::from(values);
            columns.push(
                Arc::new(array.with_data_type(spec.output.field(place).data_type().clone())) as ArrayRef
            );
        }
        let time = placed.rows.column(spec.time_column).as_primitive::<TimestampMicrosecondType>();
        placed.time = time.values().clone();
        out.batches.push(placed.with_columns(Arc::clone(&spec.output), columns)?);
        Ok(())
    }

    fn advance(&mut self, _to: Micros, _out: &mut Output) -> Result<()> {
        Ok(())
    }

    fn flush(&mut self, _out: &mut Output) -> Result<()> {
        Ok(())
    }
}
