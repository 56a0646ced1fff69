//! `tumble`: puts each row into its window of fixed size.
//!
//! Invariant: window_start ≤ time < window_end = window_start + size, also before 1970.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, PrimitiveArray, TimestampMicrosecondArray};
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

    /// The rows that have a window, and the start of each one's.
    fn place(
        &self,
        batch: &Batch,
        times: &TimestampMicrosecondArray,
        out: &mut Output,
    ) -> Result<Option<(Batch, Vec<Micros>)>> {
        let mut starts = Vec::with_capacity(times.len());
        let mut outside = Vec::new();
        // Neighbours are mostly in one window, which spares a division.
        let mut window = 0..0;
        for (row, &time) in times.values().iter().enumerate() {
            if !window.contains(&time) {
                window = self.window_start(time).map_or(0..0, |start| start..start + self.spec.size);
            }
            if window.is_empty() || times.is_null(row) {
                outside.push(row);
            } else {
                starts.push(window.start);
            }
        }
        if outside.is_empty() {
            return Ok((!starts.is_empty()).then(|| (batch.clone(), starts)));
        }
        for &row in &outside {
            let message = if times.is_null(row) {
                "the time column is null: the row is in no window".to_string()
            } else {
                format!("the window of time {} µs is outside years 1 to 9999", times.value(row))
            };
            reject(out, batch, row, "expression", &self.spec.view, message)?;
        }
        if starts.is_empty() {
            return Ok(None);
        }
        let mut keep = vec![true; batch.num_rows()];
        outside.into_iter().for_each(|row| keep[row] = false);
        Ok(Some((batch.filter(&keep.into())?, starts)))
    }
}

impl Operator for Tumble {
    fn process(&mut self, _input: Input, batch: &Batch, out: &mut Output) -> Result<()> {
        let spec = &self.spec;
        let column = batch.rows.column(spec.time_column);
        let Some(times) = column.as_primitive_opt::<TimestampMicrosecondType>() else {
            return Err(failed(&spec.view, "the time column of tumble is not a timestamp in microseconds"));
        };
        let Some((placed, window_start)) = self.place(batch, times, out)? else { return Ok(()) };
        let window_end: Vec<Micros> = window_start.iter().map(|start| start + spec.size).collect();
        let mut columns = placed.rows.columns().to_vec();
        for (values, place) in [(window_start, columns.len()), (window_end, columns.len() + 1)] {
            let array = PrimitiveArray::<TimestampMicrosecondType>::from(values);
            columns.push(
                Arc::new(array.with_data_type(spec.output.field(place).data_type().clone())) as ArrayRef
            );
        }
        let time = placed.rows.column(spec.time_column).as_primitive::<TimestampMicrosecondType>();
        let time = time.values().clone();
        out.batches.push(Batch { time, ..placed.with_columns(Arc::clone(&spec.output), columns)? });
        Ok(())
    }

    fn advance(&mut self, _to: Micros, _out: &mut Output) -> Result<()> {
        Ok(())
    }

    fn flush(&mut self, _out: &mut Output) -> Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use arrow::datatypes::{Field, Schema};
    use proptest::prelude::*;

    use super::super::testing::{records, schema, source_rows, timestamp};
    use super::*;

    fn tumble(size: Micros, offset: Micros) -> Tumble {
        let window = |name: &str| Arc::new(Field::new(name, timestamp(), false));
        let input = schema();
        let fields = input.fields().iter().cloned();
        let fields: Vec<_> = fields.chain([window("window_start"), window("window_end")]).collect();
        let output = Arc::new(Schema::new(fields));
        Tumble::new(TumbleSpec { view: "hourly".into(), time_column: 1, size, offset, output })
    }

    fn windows(operator: &mut Tumble, moments: &[Option<Micros>]) -> (Vec<(Micros, Micros)>, Output) {
        let mut out = Output::default();
        let rows: Vec<_> = moments.iter().map(|&moment| (None, moment)).collect();
        operator.process(0, &source_rows(&rows), &mut out).unwrap();
        let times = |batch: &Batch, column: usize| {
            batch.rows.column(column).as_primitive::<TimestampMicrosecondType>().values().to_vec()
        };
        let windows = out.batches.iter().flat_map(|batch| times(batch, 2).into_iter().zip(times(batch, 3)));
        (windows.collect(), out)
    }

    #[test]
    fn windows_before_1970_and_with_an_offset() {
        let moments = [Some(0), Some(-1), Some(99), Some(100), Some(-101)];
        let (found, out) = windows(&mut tumble(100, 0), &moments);
        assert_eq!(found, [(0, 100), (-100, 0), (0, 100), (100, 200), (-200, -100)]);
        assert_eq!(&out.batches[0].time[..], [0, -1, 99, 100, -101]);
        assert_eq!(windows(&mut tumble(100, 30), &[Some(29), Some(30)]).0, [(-70, 30), (30, 130)]);
    }

    #[test]
    fn a_row_in_no_window_is_rejected() {
        let moments = [Some(5), None, Some(i64::MAX), Some(i64::MIN), Some(YEAR_10000), Some(YEAR_1 - 1)];
        let (found, out) = windows(&mut tumble(100, 0), &moments);
        assert_eq!(found, [(0, 100)]);
        assert_eq!(records(&out.batches), [10]);
        let rejected: Vec<_> = out.rejected.iter().filter_map(|row| row.record).collect();
        assert_eq!(rejected, [11, 12, 13, 14, 15]);
        assert!(out.rejected[0].message.contains("null"));
        assert!(out.rejected[1].message.contains("years 1 to 9999"));
    }

    proptest! {
        #[test]
        fn a_window_holds_its_row(moment in YEAR_1 / 2..YEAR_10000 / 2, size in 1i64..1 << 50, offset in -(1i64 << 50)..1 << 50) {
            let (found, _) = windows(&mut tumble(size, offset), &[Some(moment)]);
            let (start, end) = found[0];
            prop_assert!(start <= moment && moment < end && end - start == size);
            prop_assert_eq!((start - offset).rem_euclid(size), 0);
        }
    }
}
