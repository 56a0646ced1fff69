//! `count(distinct x)`, exact: the set of a group's values.
//!
//! Over changes any value may be taken back, so each is kept with its weight; otherwise once it is there it stays.
//! Zeros are one value whatever their sign, and so are all NaNs, as in SQL.
//!
//! Invariant: no entry has weight 0; entries are in order, so equal sets have equal bytes.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, ArrowPrimitiveType, AsArray, BinaryBuilder, Int64Array};
use arrow::datatypes::{DataType, Float32Type, Float64Type};

use super::extreme::ValueBytes;
use super::{Accumulator, Result, Rows, failed};

/// What `encode` puts beside a value, at most.
const ENTRY_BYTES: usize = 12;

type Weighted = BTreeMap<Vec<u8>, i64>;

pub(super) struct Distinct {
    view: Arc<str>,
    values: ValueBytes,
    changes: bool,
    groups: Vec<Weighted>,
    /// Bytes of each group's state, the most it had.
    sizes: Vec<usize>,
}

impl Distinct {
    pub(super) fn new(view: Arc<str>, argument: DataType, changes: bool) -> Result<Self> {
        Ok(Self { view, values: ValueBytes::new(&argument)?, changes, groups: Vec::new(), sizes: Vec::new() })
    }

    fn add(&mut self, group: usize, value: &[u8], weight: i64) {
        let set = &mut self.groups[group];
        if !self.changes {
            if !set.contains_key(value) {
                set.insert(value.to_vec(), 1);
                self.sizes[group] += ENTRY_BYTES + value.len();
            }
            return;
        }
        match set.entry(value.to_vec()) {
            _ if weight == 0 => {}
            Entry::Vacant(entry) => {
                entry.insert(weight);
                self.sizes[group] += ENTRY_BYTES + value.len();
            }
            Entry::Occupied(mut entry) => {
                *entry.get_mut() += weight;
                if *entry.get() == 0 {
                    entry.remove();
                }
            }
        }
    }

    /// Entries one after the other: the value's length and bytes, over changes the weight.
    fn encode(&self, entries: &Weighted, bytes: &mut Vec<u8>) {
        for (value, weight) in entries {
            bytes.extend_from_slice(&(value.len() as u32).to_be_bytes());
            bytes.extend_from_slice(value);
            if self.changes {
                bytes.extend_from_slice(&weight.to_be_bytes());
            }
        }
    }

    /// Adds what `encode` wrote; `None` if the bytes are not its.
    fn merge_one(&mut self, group: usize, mut bytes: &[u8]) -> Option<()> {
        while !bytes.is_empty() {
            let (length, rest) = bytes.split_first_chunk::<4>()?;
            let (value, mut rest) = rest.split_at_checked(u32::from_be_bytes(*length) as usize)?;
            let mut weight = 1;
            if self.changes {
                let (encoded, after) = rest.split_first_chunk::<8>()?;
                (weight, rest) = (i64::from_be_bytes(*encoded), after);
            }
            self.add(group, value, weight);
            bytes = rest;
        }
        Some(())
    }
}

impl Accumulator for Distinct {
    fn grow(&mut self, groups: usize) {
        self.groups.resize_with(groups, Weighted::default);
        self.sizes.resize(groups, 0);
    }

    fn update(&mut self, rows: &Rows<'_>) -> Result<()> {
        let Some(argument) = rows.argument else { return Ok(()) };
        if !self.changes {
            rows.only_added(&self.view)?;
        }
        let argument = one_zero_and_nan(argument);
        let encoded = self.values.encode(&argument)?;
        let nulls = argument.logical_nulls();
        rows.for_each(|row, group, weight| {
            if nulls.as_ref().is_none_or(|nulls| nulls.is_valid(row)) {
                self.add(group, encoded.row(row).data(), weight);
            }
        });
        Ok(())
    }

    fn merge(&mut self, groups: &[u32], states: &[ArrayRef]) -> Result<()> {
        let encoded = states[0].as_binary::<i32>();
        for (row, &group) in groups.iter().enumerate() {
            if self.merge_one(group as usize, encoded.value(row)).is_none() {
                return Err(failed(&self.view, "the state of a count(distinct …) is damaged"));
            }
        }
        Ok(())
    }

    fn states(&self, groups: &[u32]) -> Result<Vec<ArrayRef>> {
        let mut encoded = BinaryBuilder::new();
        let mut bytes = Vec::new();
        for &group in groups {
            bytes.clear();
            self.encode(&self.groups[group as usize], &mut bytes);
            encoded.append_value(&bytes);
        }
        Ok(vec![Arc::new(encoded.finish())])
    }

    fn results(&self, groups: &[u32]) -> Result<ArrayRef> {
        let counts = groups
            .iter()
            .map(|&group| self.groups[group as usize].values().filter(|weight| **weight > 0).count() as i64);
        Ok(Arc::new(Int64Array::from_iter_values(counts)))
    }

    fn largest(&self) -> usize {
        self.sizes.iter().copied().max().unwrap_or(0)
    }

    fn clear(&mut self) {
        self.groups.clear();
        self.sizes.clear();
    }
}

/// Floats in one spelling.
fn one_zero_and_nan(values: &ArrayRef) -> ArrayRef {
    fn spelled<T: ArrowPrimitiveType>(values: &ArrayRef, spell: impl Fn(T::Native) -> T::Native) -> ArrayRef {
        Arc::new(values.as_primitive::<T>().unary::<_, T>(spell))
    }
    match values.data_type() {
        DataType::Float64 => {
            spelled::<Float64Type>(values, |value| if value.is_nan() { f64::NAN } else { value + 0.0 })
        }
        DataType::Float32 => {
            spelled::<Float32Type>(values, |value| if value.is_nan() { f32::NAN } else { value + 0.0 })
        }
        _ => Arc::clone(values),
    }
}
