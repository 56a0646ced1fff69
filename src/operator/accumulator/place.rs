//! A row's place in the total order (rule R11), as bytes that sort as the order does.

use arrow::array::ArrayRef;
use arrow::row::{RowConverter, SortField};

use super::super::Order;
use super::{Result, failed};
use crate::record::Batch;

/// The places of a batch's rows.
pub(in super::super) struct Places {
    bytes: Vec<u8>,
    ends: Vec<usize>,
}

impl Places {
    pub(super) fn get(&self, row: usize) -> &[u8] {
        let start = if row == 0 { 0 } else { self.ends[row - 1] };
        &self.bytes[start..self.ends[row]]
    }
}

/// Event time; then (origin, offset) of source rows, or the row key and the whole row of derived ones.
pub(in super::super) fn place_rows(view: &str, order: &Order, batch: &Batch) -> Result<Places> {
    let mut places = Places { bytes: Vec::new(), ends: Vec::with_capacity(batch.num_rows()) };
    match order {
        Order::Source => {
            let Some(source) = &batch.source else {
                return Err(failed(view, "rows that are ordered by origin and offset have no origin"));
            };
            for (&time, &offset) in batch.time.iter().zip(source.offset.iter()) {
                places.bytes.extend_from_slice(&sortable(time));
                places.bytes.extend_from_slice(&source.origin_index.to_be_bytes());
                places.bytes.extend_from_slice(&sortable(offset));
                places.ends.push(places.bytes.len());
            }
        }
        Order::RowKey(columns) => {
            let all = batch.rows.columns();
            let ordered: Vec<ArrayRef> =
                columns.iter().map(|&column| &all[column]).chain(all).cloned().collect();
            let fields = ordered.iter().map(|column| SortField::new(column.data_type().clone())).collect();
            let rows = RowConverter::new(fields)?.convert_columns(&ordered)?;
            for (row, &time) in batch.time.iter().enumerate() {
                places.bytes.extend_from_slice(&sortable(time));
                places.bytes.extend_from_slice(rows.row(row).data());
                places.ends.push(places.bytes.len());
            }
        }
    }
    Ok(places)
}

/// Big-endian bytes that sort as the number does.
fn sortable(number: i64) -> [u8; 8] {
    (number as u64 ^ 1 << 63).to_be_bytes()
}
