//! min, max, first and last over changes: any value may be taken back, so all are kept with their weights.
//!
//! Invariant: no entry has weight 0; entries are in order, so equal multisets have equal bytes.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, BinaryBuilder};
use arrow::datatypes::DataType;

use super::extreme::{Aim, ValueBytes};
use super::{Accumulator, Function, Result, Rows, failed};

/// What `encode` puts beside a place and a value.
const ENTRY_BYTES: usize = 16;

/// From (place, value) to weight; places are empty for min and max.
type Weighted = BTreeMap<(Vec<u8>, Vec<u8>), i64>;

pub(super) struct Multiset {
    view: Arc<str>,
    aim: Aim,
    values: ValueBytes,
    groups: Vec<Weighted>,
    /// Bytes of each group's state, the most it had.
    sizes: Vec<usize>,
}

impl Multiset {
    pub(super) fn new(view: Arc<str>, function: Function, argument: DataType) -> Result<Self> {
        let (aim, values) = (Aim::of(function), ValueBytes::new(&argument)?);
        Ok(Self { view, aim, values, groups: Vec::new(), sizes: Vec::new() })
    }

    fn add(&mut self, group: usize, place: &[u8], value: &[u8], weight: i64) {
        if weight == 0 {
            return;
        }
        match self.groups[group].entry((place.to_vec(), value.to_vec())) {
            Entry::Vacant(entry) => {
                entry.insert(weight);
                self.sizes[group] += ENTRY_BYTES + place.len() + value.len();
            }
            Entry::Occupied(mut entry) => {
                *entry.get_mut() += weight;
                if *entry.get() == 0 {
                    entry.remove();
                }
            }
        }
    }

    /// Adds what `encode` wrote; `None` if the bytes are not its.
    fn merge_one(&mut self, group: usize, mut bytes: &[u8]) -> Option<()> {
        while !bytes.is_empty() {
            let (place, rest) = split_sized(bytes)?;
            let (value, rest) = split_sized(rest)?;
            let (weight, rest) = rest.split_first_chunk::<8>()?;
            self.add(group, place, value, i64::from_be_bytes(*weight));
            bytes = rest;
        }
        Some(())
    }

    fn value(&self, group: u32) -> Option<&[u8]> {
        let mut present = self.groups[group as usize].iter().filter(|(_, weight)| **weight > 0);
        let entry = if self.aim.better == Ordering::Less { present.next() } else { present.next_back() };
        entry.map(|((_, value), _)| value.as_slice())
    }
}

/// Entries one after the other: length and bytes of the place, of the value, the weight.
fn encode(entries: &Weighted, bytes: &mut Vec<u8>) {
    for ((place, value), weight) in entries {
        for part in [place, value] {
            bytes.extend_from_slice(&(part.len() as u32).to_be_bytes());
            bytes.extend_from_slice(part);
        }
        bytes.extend_from_slice(&weight.to_be_bytes());
    }
}

fn split_sized(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (length, rest) = bytes.split_first_chunk::<4>()?;
    rest.split_at_checked(u32::from_be_bytes(*length) as usize)
}

impl Accumulator for Multiset {
    fn grow(&mut self, groups: usize) {
        self.groups.resize_with(groups, Weighted::default);
        self.sizes.resize(groups, 0);
    }

    fn update(&mut self, rows: &Rows<'_>) -> Result<()> {
        let Some(argument) = rows.argument else { return Ok(()) };
        let encoded = self.values.encode(argument)?;
        if self.aim.by_place {
            let Some(places) = rows.places else {
                return Err(failed(&self.view, "first and last need the places of their rows"));
            };
            rows.for_each(|row, group, weight| {
                self.add(group, places.get(row), encoded.row(row).data(), weight);
            });
        } else {
            let nulls = argument.logical_nulls();
            rows.for_each(|row, group, weight| {
                if nulls.as_ref().is_none_or(|nulls| nulls.is_valid(row)) {
                    self.add(group, &[], encoded.row(row).data(), weight);
                }
            });
        }
        Ok(())
    }

    fn merge(&mut self, groups: &[u32], states: &[ArrayRef]) -> Result<()> {
        let encoded = states[0].as_binary::<i32>();
        for (row, &group) in groups.iter().enumerate() {
            if self.merge_one(group as usize, encoded.value(row)).is_none() {
                return Err(failed(&self.view, "the state of a min, max, first or last is damaged"));
            }
        }
        Ok(())
    }

    fn states(&self, groups: &[u32]) -> Result<Vec<ArrayRef>> {
        let mut encoded = BinaryBuilder::new();
        let mut bytes = Vec::new();
        for &group in groups {
            bytes.clear();
            encode(&self.groups[group as usize], &mut bytes);
            encoded.append_value(&bytes);
        }
        Ok(vec![Arc::new(encoded.finish())])
    }

    fn results(&self, groups: &[u32]) -> Result<ArrayRef> {
        self.values.decode(groups.iter().map(|&group| self.value(group)))
    }

    fn largest(&self) -> usize {
        self.sizes.iter().copied().max().unwrap_or(0)
    }

    fn clear(&mut self) {
        self.groups.clear();
        self.sizes.clear();
    }
}
