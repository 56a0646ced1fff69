//! min and max; first and last, which are the value at the least and the greatest place.
//!
//! Values and places are compared as sortable bytes, so every sortable type will do; NaN sorts as in arrow's
//! total order.
//!
//! Invariant: min and max pass over nulls; the value of first and last may be null.

use std::cmp::Ordering;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, BinaryBuilder, new_null_array};
use arrow::datatypes::DataType;
use arrow::row::{RowConverter, SortField};

use super::{Accumulator, Function, Result, Rows, failed};
use crate::planted::{Fault, planted};

/// A column's values as sortable bytes.
pub(super) struct ValueBytes {
    converter: RowConverter,
    null: Vec<u8>,
}

impl ValueBytes {
    pub(super) fn new(data_type: &DataType) -> Result<Self> {
        let converter = RowConverter::new(vec![SortField::new(data_type.clone())])?;
        let null = converter.convert_columns(&[new_null_array(data_type, 1)])?.row(0).data().to_vec();
        Ok(Self { converter, null })
    }

    pub(super) fn encode(&self, values: &ArrayRef) -> Result<arrow::row::Rows> {
        Ok(self.converter.convert_columns(std::slice::from_ref(values))?)
    }

    /// `None` decodes to null.
    pub(super) fn decode<'a>(&self, values: impl Iterator<Item = Option<&'a [u8]>>) -> Result<ArrayRef> {
        let parser = self.converter.parser();
        let mut rows = self.converter.empty_rows(0, 0);
        values.for_each(|value| rows.push(parser.parse(value.unwrap_or(&self.null))));
        Ok(self.converter.convert_rows(&rows)?.swap_remove(0))
    }
}

/// Which end of the order a function takes, and whether it is the order of values or of places.
#[derive(Clone, Copy)]
pub(super) struct Aim {
    pub(super) better: Ordering,
    pub(super) by_place: bool,
}

impl Aim {
    pub(super) fn of(function: Function) -> Self {
        Self {
            better: match function {
                Function::Min | Function::First => Ordering::Less,
                _ => Ordering::Greater,
            },
            by_place: matches!(function, Function::First | Function::Last),
        }
    }
}

#[derive(Default)]
struct Best {
    set: bool,
    /// Empty for min and max.
    place: Vec<u8>,
    value: Vec<u8>,
}

pub(super) struct Extreme {
    view: Arc<str>,
    aim: Aim,
    values: ValueBytes,
    best: Vec<Best>,
}

impl Extreme {
    pub(super) fn new(view: Arc<str>, function: Function, argument: DataType) -> Result<Self> {
        Ok(Self { view, aim: Aim::of(function), values: ValueBytes::new(&argument)?, best: Vec::new() })
    }

    fn offer(&mut self, group: usize, place: &[u8], value: &[u8]) {
        let best = &mut self.best[group];
        let better = || {
            if self.aim.by_place && planted(Fault::TiesByArrival) {
                let time = size_of::<i64>(); // what a place begins with
                return place[..time].cmp(&best.place[..time]) == self.aim.better;
            }
            let by_place = place.cmp(best.place.as_slice());
            by_place.then_with(|| value.cmp(best.value.as_slice())) == self.aim.better
        };
        if !best.set || better() {
            best.set = true;
            best.place.clear();
            best.place.extend_from_slice(place);
            best.value.clear();
            best.value.extend_from_slice(value);
        }
    }

    fn value(&self, group: u32) -> Option<&[u8]> {
        let best = &self.best[group as usize];
        best.set.then_some(best.value.as_slice())
    }
}

impl Accumulator for Extreme {
    fn grow(&mut self, groups: usize) {
        self.best.resize_with(groups, Best::default);
    }

    fn update(&mut self, rows: &Rows<'_>) -> Result<()> {
        let Some(argument) = rows.argument else { return Ok(()) };
        rows.only_added(&self.view)?;
        let encoded = self.values.encode(argument)?;
        if self.aim.by_place {
            let Some(places) = rows.places else {
                return Err(failed(&self.view, "first and last need the places of their rows"));
            };
            rows.for_each(|row, group, _| self.offer(group, places.get(row), encoded.row(row).data()));
        } else {
            let nulls = argument.logical_nulls();
            rows.for_each(|row, group, _| {
                if nulls.as_ref().is_none_or(|nulls| nulls.is_valid(row)) {
                    self.offer(group, &[], encoded.row(row).data());
                }
            });
        }
        Ok(())
    }

    fn merge(&mut self, groups: &[u32], states: &[ArrayRef]) -> Result<()> {
        if self.aim.by_place {
            let places = states[0].as_binary::<i32>();
            let encoded = self.values.encode(&states[1])?;
            for (row, &group) in groups.iter().enumerate().filter(|(row, _)| places.is_valid(*row)) {
                self.offer(group as usize, places.value(row), encoded.row(row).data());
            }
        } else {
            let nulls = states[0].logical_nulls();
            let encoded = self.values.encode(&states[0])?;
            for (row, &group) in groups.iter().enumerate() {
                if nulls.as_ref().is_none_or(|nulls| nulls.is_valid(row)) {
                    self.offer(group as usize, &[], encoded.row(row).data());
                }
            }
        }
        Ok(())
    }

    fn states(&self, groups: &[u32]) -> Result<Vec<ArrayRef>> {
        let values = self.results(groups)?;
        if !self.aim.by_place {
            return Ok(vec![values]);
        }
        let mut places = BinaryBuilder::new();
        for &group in groups {
            let best = &self.best[group as usize];
            places.append_option(best.set.then_some(&best.place));
        }
        Ok(vec![Arc::new(places.finish()), values])
    }

    fn results(&self, groups: &[u32]) -> Result<ArrayRef> {
        self.values.decode(groups.iter().map(|&group| self.value(group)))
    }

    fn clear(&mut self) {
        self.best.clear();
    }
}
