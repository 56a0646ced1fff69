//! The first half of the aggregate: decides which rows are late, and adds up an epoch's rows by group.
//!
//! Invariant: a row is late by its own origin's watermark as it stood once the row's record had moved it (rule
//! R6: rows that are no records any more are never late here).
//! Invariant: nothing is remembered past the flush.

use std::sync::Arc;

use arrow::array::{ArrayRef, Int64Array, RecordBatch};
use arrow::datatypes::SchemaRef;

use super::super::accumulator::{Places, place_rows};
use super::super::evaluate::{Evaluated, by_halves, reject, slice, truths, values, values_where};
use super::super::{AggregateSpec, Function, Input, LateRow, Operator, Output, Result};
use super::calls::{Argument, Calls};
use super::keys::Keys;
use super::{closes_at, exchange_schema, group_columns, key_columns, row_time, window_ends};
use crate::record::{Batch, Micros};

/// Well below what an exchange takes as one message.
const STATE_BYTES_MAX: usize = 256 << 10;

pub struct PartialAggregate {
    spec: Arc<AggregateSpec>,
    schema: SchemaRef,
    keys: Keys,
    calls: Calls,
    /// Of each group's rows.
    offsets: Vec<Offsets>,
    /// The group of each row of the batch at hand.
    groups: Vec<u32>,
    needs_places: bool,
    /// Whether a call's state grows with the values of a group.
    grows: bool,
}

#[derive(Clone, Copy)]
struct Offsets {
    first: i64,
    last: i64,
}

/// Rows of a batch that are not late, with their expressions evaluated.
struct Admitted {
    batch: Batch,
    groups: Vec<ArrayRef>,
    ends: Int64Array,
    arguments: Vec<Argument>,
    late: Vec<LateRow>,
}

impl PartialAggregate {
    pub fn new(spec: Arc<AggregateSpec>) -> Result<Self> {
        Ok(Self {
            schema: exchange_schema(&spec),
            keys: Keys::new(&spec)?,
            calls: Calls::new(&spec)?,
            offsets: Vec::new(),
            groups: Vec::new(),
            needs_places: spec
                .calls
                .iter()
                .any(|call| matches!(call.function, Function::First | Function::Last)),
            grows: spec.calls.iter().any(|call| match call.function {
                Function::CountDistinct => true,
                Function::Min | Function::Max | Function::First | Function::Last => spec.changes,
                Function::Count | Function::Sum | Function::Avg => false,
            }),
            spec,
        })
    }

    /// A group's state is one row in the exchange, which takes no rows without bounds: where states grow with their
    /// values, few rows are taken at a time, and a state that has become large is handed over before the epoch ends.
    fn process_in_pieces(&mut self, batch: &Batch, out: &mut Output) -> Result<()> {
        let bytes = batch.rows.get_array_memory_size().max(1);
        let most = (batch.num_rows().saturating_mul(STATE_BYTES_MAX) / bytes).max(1);
        let mut start = 0;
        while start < batch.num_rows() {
            let length = most.min(batch.num_rows() - start);
            self.process_whole(&slice(batch, start, length), out)?;
            if self.calls.largest() > STATE_BYTES_MAX {
                self.flush(out)?;
            }
            start += length;
        }
        Ok(())
    }

    fn process_whole(&mut self, batch: &Batch, out: &mut Output) -> Result<()> {
        let spec = Arc::clone(&self.spec);
        let mut bad_rows = Vec::new();
        let Output { late, taken, .. } = out;
        by_halves(
            batch,
            &mut |piece| admit(&spec, piece),
            &mut |_, admitted| {
                let mut admitted = admitted?;
                late.append(&mut admitted.late);
                self.accumulate(&admitted, taken)
            },
            &mut |row, error| {
                bad_rows.push((row, error.to_string()));
                Ok(())
            },
        )?;
        for (row, message) in bad_rows {
            reject(out, batch, row, "expression", &spec.view, message)?;
        }
        Ok(())
    }

    fn accumulate(&mut self, admitted: &Admitted, taken: &mut Vec<u32>) -> Result<()> {
        let batch = &admitted.batch;
        if batch.num_rows() == 0 {
            return Ok(());
        }
        let spec = &self.spec;
        self.keys.number(&key_columns(spec, &admitted.ends, &admitted.groups), &mut self.groups)?;
        self.calls.grow(self.keys.len());
        let places: Option<Places> =
            self.needs_places.then(|| place_rows(&spec.view, &spec.order, batch)).transpose()?;
        let weights = batch.weight.as_deref();
        self.calls.update(&self.groups, weights, &admitted.arguments, places.as_ref())?;

        let first = if batch.source.is_some() { i64::MAX } else { -1 };
        self.offsets.resize(self.keys.len(), Offsets { first, last: -1 });
        if let Some(source) = &batch.source {
            for (&group, &offset) in self.groups.iter().zip(source.offset.iter()) {
                let offsets = &mut self.offsets[group as usize];
                offsets.first = offset.min(offsets.first);
                offsets.last = offset.max(offsets.last);
            }
            taken.extend_from_slice(&source.record);
        }
        Ok(())
    }
}

/// Tells late rows from the others and evaluates these; late rows' arguments are not evaluated.
fn admit(spec: &AggregateSpec, piece: &Batch) -> Evaluated<Result<Admitted>> {
    let groups: Vec<ArrayRef> =
        spec.groups.iter().map(|group| values(&group.expr, piece)).collect::<Evaluated<_>>()?;
    let (batch, groups, ends, late) = match set_late_aside(spec, piece, groups) {
        Ok(admitted) => admitted,
        Err(error) => return Ok(Err(error)),
    };
    let mut arguments = Vec::with_capacity(spec.calls.len());
    // Constants may fail where there is no row to blame.
    for call in spec.calls.iter().filter(|_| batch.num_rows() > 0) {
        let filter = call.filter.as_ref().map(|filter| truths(filter, &batch)).transpose()?;
        let values = match (&call.argument, &filter) {
            (Some(argument), Some(filter)) => Some(values_where(argument, &batch, filter)?),
            (Some(argument), None) => Some(values(argument, &batch)?),
            (None, _) => None,
        };
        arguments.push(Argument { values, filter });
    }
    Ok(Ok(Admitted { batch, groups, ends, arguments, late }))
}

type Aside = (Batch, Vec<ArrayRef>, Int64Array, Vec<LateRow>);

fn set_late_aside(spec: &AggregateSpec, piece: &Batch, groups: Vec<ArrayRef>) -> Result<Aside> {
    let ends = window_ends(spec, &groups)?;
    let mut late = Vec::new();
    let Some(source) = &piece.source else { return Ok((piece.clone(), groups, ends, late)) };
    let is_late =
        |window_end, watermark| spec.grace < Micros::MAX && closes_at(spec, window_end) <= watermark;
    let mut pairs = ends.values().iter().zip(source.watermark.iter());
    if !pairs.any(|(&window_end, &watermark)| is_late(window_end, watermark)) {
        return Ok((piece.clone(), groups, ends, late));
    }
    let mut admitted = Vec::new();
    for (row, (&window_end, &watermark)) in ends.values().iter().zip(source.watermark.iter()).enumerate() {
        if is_late(window_end, watermark) {
            let (record, view) = (source.record[row], Arc::clone(&spec.view));
            late.push(LateRow { record, view, window_end, watermark });
        } else {
            admitted.push(row as u32);
        }
    }
    let indices = arrow::array::UInt32Array::from(admitted.clone());
    let take = |column: &ArrayRef| arrow::compute::take(column, &indices, None);
    let groups: Vec<ArrayRef> = groups.iter().map(take).collect::<Result<_, _>>()?;
    let ends = window_ends(spec, &groups)?;
    Ok((piece.take(&admitted)?, groups, ends, late))
}

impl Operator for PartialAggregate {
    fn process(&mut self, _input: Input, batch: &Batch, out: &mut Output) -> Result<()> {
        if self.grows { self.process_in_pieces(batch, out) } else { self.process_whole(batch, out) }
    }

    fn advance(&mut self, _to: Micros, _out: &mut Output) -> Result<()> {
        Ok(())
    }

    fn flush(&mut self, out: &mut Output) -> Result<()> {
        if self.keys.len() == 0 {
            return Ok(());
        }
        let order: Vec<u32> = (0..self.keys.len() as u32).collect();
        let mut columns = group_columns(&self.spec, &self.keys.columns()?)?;
        columns.extend(self.calls.states(&order)?);
        let offsets = |of: fn(&Offsets) -> i64| Int64Array::from_iter_values(self.offsets.iter().map(of));
        columns.push(Arc::new(offsets(|offsets| offsets.first)));
        columns.push(Arc::new(offsets(|offsets| offsets.last)));
        out.batches.push(Batch {
            rows: RecordBatch::try_new(Arc::clone(&self.schema), columns)?,
            time: order.iter().map(|&group| row_time(self.keys.window_end(group))).collect(),
            weight: None,
            source: None,
        });
        self.keys.clear();
        self.calls.clear();
        self.offsets.clear();
        Ok(())
    }
}
