//! A group's state as a value of the task's state.
//!
//! A version byte, the CRC-32C of what follows, then the state columns in arrow's row encoding.

use arrow::array::ArrayRef;
use arrow::datatypes::DataType;
use arrow::row::{Row, RowConverter, SortField};

use super::super::accumulator::state_fields;
use super::super::evaluate::failed;
use super::super::{AggregateSpec, Result};
use super::calls::Calls;

const VERSION: u8 = 1;
const HEAD: usize = 5;

pub(super) struct StateCodec {
    view: std::sync::Arc<str>,
    converter: RowConverter,
    /// The value of a group to which nothing was added.
    empty: Vec<u8>,
}

impl StateCodec {
    pub(super) fn new(spec: &AggregateSpec) -> Result<Self> {
        let types = spec.calls.iter().flat_map(|call| state_fields(spec, call));
        let types = types.map(|field| field.data_type().clone()).chain([DataType::Int64]);
        let converter = RowConverter::new(types.map(SortField::new).collect())?;
        let mut calls = Calls::new(spec)?;
        calls.grow(1);
        let empty = value(converter.convert_columns(&calls.states(&[0])?)?.row(0));
        Ok(Self { view: spec.view.clone(), converter, empty })
    }

    /// One value a row; `None` where nothing is left of the group.
    pub(super) fn encode(&self, columns: &[ArrayRef]) -> Result<Vec<Option<Vec<u8>>>> {
        let rows = self.converter.convert_columns(columns)?;
        Ok(rows.iter().map(value).map(|value| (value != self.empty).then_some(value)).collect())
    }

    /// The row in a value, checked.
    pub(super) fn open<'a>(&self, value: &'a [u8]) -> Result<&'a [u8]> {
        let opened = value
            .split_at_checked(HEAD)
            .filter(|(head, row)| head[0] == VERSION && head[1..] == crc32c::crc32c(row).to_le_bytes());
        opened.map(|(_, row)| row).ok_or_else(|| {
            let what = "the state of a group is damaged or of another version of headwater; delete the state \
                        directory, so that it is rebuilt from a checkpoint copy or the log";
            failed(&self.view, what)
        })
    }

    /// The state columns of rows that `open` returned.
    pub(super) fn decode<'a>(&self, rows: impl Iterator<Item = &'a [u8]>) -> Result<Vec<ArrayRef>> {
        let parser = self.converter.parser();
        let rows: Vec<Row<'_>> = rows.map(|row| parser.parse(row)).collect();
        Ok(self.converter.convert_rows(rows)?)
    }
}

fn value(row: Row<'_>) -> Vec<u8> {
    let row = row.data();
    let mut value = Vec::with_capacity(HEAD + row.len());
    value.push(VERSION);
    value.extend_from_slice(&crc32c::crc32c(row).to_le_bytes());
    value.extend_from_slice(row);
    value
}
