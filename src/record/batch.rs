//! Columns of rows with what the system must know of each row.
//!
//! Invariant: every system column has exactly `rows.num_rows()` entries.

use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, ArrowPrimitiveType, AsArray, BooleanArray, PrimitiveArray, RecordBatch,
    RecordBatchOptions, UInt32Array,
};
use arrow::buffer::ScalarBuffer;
use arrow::compute::{self, FilterPredicate};
use arrow::datatypes::{Int64Type, SchemaRef, UInt32Type};
use arrow::error::ArrowError;

use super::{Micros, Origin};

/// Rows on their way through operators. `rows` holds the user's columns only.
#[derive(Clone, Debug)]
pub struct Batch {
    pub rows: RecordBatch,
    /// Event time of each row.
    pub time: ScalarBuffer<Micros>,
    /// +1 adds a row, −1 takes back an equal one sent before; `None`: every row is +1.
    pub weight: Option<ScalarBuffer<i64>>,
    /// Where each row came from; only in ingest tasks, where rows are still records.
    pub source: Option<SourceRows>,
}

/// The provenance of source rows: which record of which run each row is.
#[derive(Clone, Debug)]
pub struct SourceRows {
    pub origin: Origin,
    /// A number for the origin that is the same in every run: its place in the sorted list of the
    /// topology's (topic, partition). Ties in event time are broken by (origin, offset).
    pub origin_index: u32,
    /// Index of the record in the run that is being processed.
    pub record: ScalarBuffer<u32>,
    pub offset: ScalarBuffer<i64>,
    /// The origin's watermark once this record had moved it: what lateness is decided against.
    pub watermark: ScalarBuffer<Micros>,
}

impl Batch {
    pub fn num_rows(&self) -> usize {
        self.rows.num_rows()
    }
    pub fn schema(&self) -> SchemaRef {
        self.rows.schema()
    }
    pub fn weight(&self, row: usize) -> i64 {
        self.weight.as_ref().map_or(1, |weight| weight[row])
    }

    /// Keeps the rows for which `keep` is true; null counts as false.
    pub fn filter(&self, keep: &BooleanArray) -> Result<Batch, ArrowError> {
        if keep.null_count() == 0 && keep.true_count() == keep.len() {
            return Ok(self.clone());
        }
        let filter = compute::FilterBuilder::new(keep).optimize().build();
        let columns = self.rows.columns().iter().map(|column| filter.filter(column));
        let columns: Vec<ArrayRef> = columns.collect::<Result<_, _>>()?;
        let options = RecordBatchOptions::new().with_row_count(Some(filter.count()));
        Ok(Batch {
            rows: RecordBatch::try_new_with_options(self.rows.schema(), columns, &options)?,
            time: sift::<Int64Type>(&filter, &self.time)?,
            weight: self.weight.as_ref().map(|weight| sift::<Int64Type>(&filter, weight)).transpose()?,
            source: match &self.source {
                None => None,
                Some(source) => Some(SourceRows {
                    origin: source.origin.clone(),
                    origin_index: source.origin_index,
                    record: sift::<UInt32Type>(&filter, &source.record)?,
                    offset: sift::<Int64Type>(&filter, &source.offset)?,
                    watermark: sift::<Int64Type>(&filter, &source.watermark)?,
                }),
            },
        })
    }

    /// The rows at `indices`, in that order.
    pub fn take(&self, indices: &[u32]) -> Result<Batch, ArrowError> {
        let index_array = UInt32Array::from(indices.to_vec());
        let columns: Vec<ArrayRef> = self
            .rows
            .columns()
            .iter()
            .map(|column| compute::take(column, &index_array, None))
            .collect::<Result<_, _>>()?;
        let options = RecordBatchOptions::new().with_row_count(Some(indices.len()));
        Ok(Batch {
            rows: RecordBatch::try_new_with_options(self.rows.schema(), columns, &options)?,
            time: pick(&self.time, indices),
            weight: self.weight.as_ref().map(|weight| pick(weight, indices)),
            source: self.source.as_ref().map(|source| SourceRows {
                origin: source.origin.clone(),
                origin_index: source.origin_index,
                record: pick(&source.record, indices),
                offset: pick(&source.offset, indices),
                watermark: pick(&source.watermark, indices),
            }),
        })
    }

    /// The same rows under other columns: what a projection yields.
    pub fn with_columns(&self, schema: SchemaRef, columns: Vec<ArrayRef>) -> Result<Batch, ArrowError> {
        let options = RecordBatchOptions::new().with_row_count(Some(self.num_rows()));
        Ok(Batch {
            rows: RecordBatch::try_new_with_options(Arc::clone(&schema), columns, &options)?,
            time: self.time.clone(),
            weight: self.weight.clone(),
            source: self.source.clone(),
        })
    }
}

fn sift<T: ArrowPrimitiveType>(
    filter: &FilterPredicate,
    values: &ScalarBuffer<T::Native>,
) -> Result<ScalarBuffer<T::Native>, ArrowError> {
    let kept = filter.filter(&PrimitiveArray::<T>::new(values.clone(), None))?;
    Ok(kept.as_primitive::<T>().values().clone())
}

fn pick<T: arrow::datatypes::ArrowNativeType>(values: &ScalarBuffer<T>, indices: &[u32]) -> ScalarBuffer<T> {
    indices.iter().map(|&index| values[index as usize]).collect()
}
