//! A group's state as bytes: the state columns in arrow's row encoding.
//!
//! As a value of the task's state it stands behind a version byte and its CRC-32C.

use arrow::array::ArrayRef;
use arrow::datatypes::DataType;
use arrow::row::{Row, RowConverter, Rows, SortField};

use super::super::accumulator::state_fields;
use super::super::evaluate::failed;
use super::super::{AggregateSpec, Result};
use super::calls::Calls;

/// Of a value of the state, before its CRC-32C.
pub(super) const VERSION: u8 = 1;
/// Bytes of both.
pub(super) const HEAD: usize = 5;

/// What is behind the head of a value, if the value is whole.
pub(super) fn opened(value: &[u8]) -> Option<&[u8]> {
    let (head, rest) = value.split_at_checked(HEAD)?;
    (head[0] == VERSION && head[1..] == crc32c::crc32c(rest).to_le_bytes()).then_some(rest)
}

pub(super) struct StateCodec {
    view: std::sync::Arc<str>,
    converter: RowConverter,
    /// The row of a group to which nothing was added.
    empty: Vec<u8>,
    /// The rows at hand.
    rows: Rows,
}

impl StateCodec {
    pub(super) fn new(spec: &AggregateSpec) -> Result<Self> {
        let types = spec.calls.iter().flat_map(|call| state_fields(spec, call));
        let types = types.map(|field| field.data_type().clone()).chain([DataType::Int64]);
        let converter = RowConverter::new(types.map(SortField::new).collect())?;
        let mut calls = Calls::new(spec)?;
        calls.grow(1);
        let empty = converter.convert_columns(&calls.states(&[0])?)?.row(0).data().to_vec();
        let rows = converter.empty_rows(0, 0);
        Ok(Self { view: spec.view.clone(), converter, empty, rows })
    }

    /// One row a group, in order; `None` where nothing is left of the group.
    pub(super) fn encode(&mut self, columns: &[ArrayRef]) -> Result<impl Iterator<Item = Option<&[u8]>>> {
        self.rows.clear();
        self.converter.append(&mut self.rows, columns)?;
        let empty = &self.empty;
        Ok(self.rows.iter().map(move |row| Some(row.data()).filter(|data| data != empty)))
    }

    /// Sets `value` to the value that holds the row.
    pub(super) fn close(row: &[u8], value: &mut Vec<u8>) {
        value.clear();
        value.push(VERSION);
        value.extend_from_slice(&crc32c::crc32c(row).to_le_bytes());
        value.extend_from_slice(row);
    }

    /// The row in a value, checked.
    pub(super) fn open<'a>(&self, value: &'a [u8]) -> Result<&'a [u8]> {
        opened(value).ok_or_else(|| {
            let what = "the state of a group is damaged or of another version of headwater; delete the state \
                        directory, so that it is rebuilt from a checkpoint copy or the log";
            failed(&self.view, what)
        })
    }

    /// The state columns of rows.
    pub(super) fn decode<'a>(&self, rows: impl Iterator<Item = &'a [u8]>) -> Result<Vec<ArrayRef>> {
        let parser = self.converter.parser();
        let rows: Vec<Row<'_>> = rows.map(|row| parser.parse(row)).collect();
        Ok(self.converter.convert_rows(rows)?)
    }
}
