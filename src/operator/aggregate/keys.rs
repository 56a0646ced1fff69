//! From groups' keys to group numbers, without an allocation per row.
//!
//! Integers that lie close together are their own place in a table (`dense.rs`). All other keys go through a hash
//! table over their bytes: there a row costs a place in memory that is not in the nearest cache, so the table holds
//! what tells keys apart itself.
//!
//! Invariant: numbers are given from 0 in the order in which keys are first seen.

use std::hash::{BuildHasher, Hasher};

use arrow::array::{ArrayRef, AsArray, UInt32Array};
use arrow::compute::{concat, take};
use arrow::datatypes::{DataType, Int64Type};
use arrow::row::{RowConverter, Rows, SortField};
use foldhash::fast::FixedState;
use hashbrown::HashTable;
use hashbrown::hash_table::Entry;

use super::super::{AggregateSpec, Result};
use super::dense::Dense;
use super::other_groups;
use crate::record::Micros;

pub(super) struct Keys {
    converter: RowConverter,
    /// The rows of the batch at hand.
    rows: Rows,
    dense: Dense,
    /// Whether `dense` can't have all keys since the last clearing, and `table` has them.
    is_hashed: bool,
    table: HashTable<Slot>,
    bytes: Vec<u8>,
    /// Where each group's key ends in `bytes`; the last groups may have no bytes yet.
    key_ends: Vec<usize>,
    /// The key columns of groups that have no bytes yet.
    unwritten: Vec<Vec<ArrayRef>>,
    window_ends: Vec<Micros>,
}

impl Keys {
    pub(super) fn new(spec: &AggregateSpec) -> Result<Self> {
        Self::of(other_groups(spec).map(|group| spec.groups[group].field.data_type().clone()))
    }

    /// `others`: the types of the key columns but the window's end.
    fn of(others: impl Iterator<Item = DataType>) -> Result<Self> {
        let types = std::iter::once(DataType::Int64).chain(others);
        let converter = RowConverter::new(types.map(SortField::new).collect())?;
        let rows = converter.empty_rows(0, 0);
        Ok(Self {
            converter,
            rows,
            dense: Dense::default(),
            is_hashed: false,
            table: HashTable::new(),
            bytes: Vec::new(),
            key_ends: Vec::new(),
            unwritten: Vec::new(),
            window_ends: Vec::new(),
        })
    }

    pub(super) fn len(&self) -> usize {
        self.window_ends.len()
    }

    /// Sets `groups` to the group number of each row of the key columns.
    pub(super) fn number(&mut self, columns: &[ArrayRef], groups: &mut Vec<u32>) -> Result<()> {
        groups.clear();
        if !self.is_hashed {
            if self.dense.place(columns, self.len()) {
                return self.number_placed(columns, groups);
            }
            self.hash_all()?;
        }
        self.rows.clear();
        self.converter.append(&mut self.rows, columns)?;
        let ends = columns[0].as_primitive::<Int64Type>();
        for (row, &end) in self.rows.iter().zip(ends.values()) {
            let key = row.data();
            let slot = Slot { digest: Digest::of(key), group: self.key_ends.len() as u32 };
            let (bytes, key_ends) = (&self.bytes, &self.key_ends);
            let same = |other: &Slot| {
                other.digest == slot.digest
                    && (slot.digest.is_whole() || stored(bytes, key_ends, other.group) == key)
            };
            let hash = |slot: &Slot| slot.digest.hash(|| stored(bytes, key_ends, slot.group));
            match self.table.entry(slot.digest.hash(|| key), same, hash) {
                Entry::Occupied(entry) => groups.push(entry.get().group),
                Entry::Vacant(entry) => {
                    let group = slot.group;
                    entry.insert(slot);
                    self.bytes.extend_from_slice(key);
                    self.key_ends.push(self.bytes.len());
                    self.window_ends.push(end);
                    groups.push(group);
                }
            }
        }
        Ok(())
    }

    /// The same for rows that `dense` has found places for: only new groups' keys are looked at.
    fn number_placed(&mut self, columns: &[ArrayRef], groups: &mut Vec<u32>) -> Result<()> {
        let mut added = Vec::new();
        self.dense.number(self.len() as u32, groups, &mut added);
        if added.is_empty() {
            return Ok(());
        }
        let added = UInt32Array::from(added);
        let columns: Vec<ArrayRef> =
            columns.iter().map(|column| take(column, &added, None)).collect::<Result<_, _>>()?;
        self.window_ends.extend_from_slice(columns[0].as_primitive::<Int64Type>().values());
        self.unwritten.push(columns);
        Ok(())
    }

    /// Gives all groups their bytes.
    fn write(&mut self) -> Result<()> {
        for columns in self.unwritten.drain(..) {
            self.rows.clear();
            self.converter.append(&mut self.rows, &columns)?;
            for row in self.rows.iter() {
                self.bytes.extend_from_slice(row.data());
                self.key_ends.push(self.bytes.len());
            }
        }
        Ok(())
    }

    /// Moves all groups to the hash table.
    fn hash_all(&mut self) -> Result<()> {
        self.write()?;
        self.is_hashed = true;
        self.dense.clear();
        let (bytes, key_ends) = (&self.bytes, &self.key_ends);
        let hash = |slot: &Slot| slot.digest.hash(|| stored(bytes, key_ends, slot.group));
        for group in 0..key_ends.len() as u32 {
            let slot = Slot { digest: Digest::of(stored(bytes, key_ends, group)), group };
            self.table.insert_unique(hash(&slot), slot, hash);
        }
        Ok(())
    }

    /// Of a group that has been [sorted](Self::sorted).
    pub(super) fn key(&self, group: u32) -> &[u8] {
        stored(&self.bytes, &self.key_ends, group)
    }

    pub(super) fn window_end(&self, group: u32) -> Micros {
        self.window_ends[group as usize]
    }

    /// All groups in the order of their keys.
    pub(super) fn sorted(&mut self) -> Result<Vec<u32>> {
        self.write()?;
        if !self.is_hashed {
            return Ok(self.dense.sorted());
        }
        // Nearly every pair is told apart by its window and the next 16 bytes, which stand here side by side.
        let mut groups: Vec<(Micros, u128, u32)> = (0..self.len() as u32)
            .map(|group| {
                let own = self.key(group).get(WINDOW_PREFIX_BYTES..).unwrap_or_default();
                let mut first = [0; 16];
                let length = own.len().min(first.len());
                first[..length].copy_from_slice(&own[..length]);
                (self.window_end(group), u128::from_be_bytes(first), group)
            })
            .collect();
        groups.sort_unstable_by(|left, right| {
            let first = (left.0, left.1).cmp(&(right.0, right.1));
            first.then_with(|| self.key(left.2).cmp(self.key(right.2)))
        });
        Ok(groups.into_iter().map(|(_, _, group)| group).collect())
    }

    /// The key columns of all groups, by number.
    pub(super) fn columns(&mut self) -> Result<Vec<ArrayRef>> {
        if self.key_ends.is_empty() && !self.unwritten.is_empty() {
            let pieces =
                |column: usize| self.unwritten.iter().map(|piece| &*piece[column]).collect::<Vec<_>>();
            let columns = (0..self.unwritten[0].len()).map(|column| concat(&pieces(column)));
            return Ok(columns.collect::<Result<_, _>>()?);
        }
        self.write()?;
        self.decode((0..self.len() as u32).map(|group| self.key(group)))
    }

    /// The key columns, from keys.
    pub(super) fn decode<'a>(&self, keys: impl Iterator<Item = &'a [u8]>) -> Result<Vec<ArrayRef>> {
        let parser = self.converter.parser();
        let rows: Vec<_> = keys.map(|key| parser.parse(key)).collect();
        Ok(self.converter.convert_rows(rows)?)
    }

    pub(super) fn clear(&mut self) {
        self.dense.clear();
        self.is_hashed = false;
        self.table.clear();
        self.bytes.clear();
        self.key_ends.clear();
        self.unwritten.clear();
        self.window_ends.clear();
    }
}

/// An entry of the table.
struct Slot {
    digest: Digest,
    group: u32,
}

/// What a key is told from others by: its length, and three words of it, which hold all of one that is no longer.
#[derive(PartialEq)]
struct Digest {
    words: [u64; 3],
    length: u32,
}

impl Digest {
    fn of(key: &[u8]) -> Self {
        let word = |at: usize| {
            key.get(at..).and_then(|key| key.first_chunk()).map_or(0, |word| u64::from_ne_bytes(*word))
        };
        let last = word(key.len().saturating_sub(WORD));
        let words = match key.len() > 2 * WORD {
            true => [word(0), word(WORD), last],
            false => [word(0), last, 0],
        };
        Self { words, length: key.len() as u32 }
    }

    /// Whether nothing of the key is left out. The words of a short one overlap.
    fn is_whole(&self) -> bool {
        (WORD..=3 * WORD).contains(&(self.length as usize))
    }

    /// Of the key; the same in every run.
    fn hash<'a>(&self, key: impl FnOnce() -> &'a [u8]) -> u64 {
        let mut hasher = FixedState::default().build_hasher();
        match self.is_whole() {
            true => self.words.iter().for_each(|&word| hasher.write_u64(word)),
            false => hasher.write(key()),
        }
        hasher.finish()
    }
}

const WORD: usize = size_of::<u64>();

fn stored<'a>(bytes: &'a [u8], key_ends: &[usize], group: u32) -> &'a [u8] {
    let group = group as usize;
    let start = if group == 0 { 0 } else { key_ends[group - 1] };
    &bytes[start..key_ends[group]]
}

/// What the keys of a window's groups begin with.
pub(super) const WINDOW_PREFIX_BYTES: usize = 9;

/// The first bytes of all keys of windows that end at `window_end`.
pub(super) fn window_prefix(window_end: Micros) -> [u8; WINDOW_PREFIX_BYTES] {
    let mut prefix = [1; WINDOW_PREFIX_BYTES];
    prefix[1..].copy_from_slice(&(window_end as u64 ^ 1 << 63).to_be_bytes());
    prefix
}

/// The end of the window in a key.
pub(super) fn key_window_end(key: &[u8]) -> Option<Micros> {
    let bytes = key.get(1..WINDOW_PREFIX_BYTES)?.first_chunk::<8>()?;
    Some((u64::from_be_bytes(*bytes) ^ 1 << 63) as Micros)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::sync::Arc;

    use arrow::array::{Array, Int64Array, UInt8Array, UInt64Array};
    use proptest::prelude::*;

    use super::*;

    const TYPES: [DataType; 3] = [DataType::Int64, DataType::UInt8, DataType::UInt64];

    fn keys() -> Keys {
        Keys::of(TYPES.into_iter()).expect("types that sort")
    }

    fn columns(rows: &[(i64, Option<i64>, u8)]) -> Vec<ArrayRef> {
        vec![
            Arc::new(rows.iter().map(|row| Some(row.0)).collect::<Int64Array>()),
            Arc::new(rows.iter().map(|row| row.1).collect::<Int64Array>()),
            Arc::new(rows.iter().map(|row| Some(row.2)).collect::<UInt8Array>()),
            Arc::new(rows.iter().map(|row| row.1.map(|key| key as u64)).collect::<UInt64Array>()),
        ]
    }

    #[test]
    fn keys_that_lie_close_together_are_not_hashed() {
        let mut keys = keys();
        let mut number = |rows: &[(i64, Option<i64>, u8)]| {
            let mut groups = Vec::new();
            keys.number(&columns(rows), &mut groups).expect("numbers");
            (groups, keys.is_hashed)
        };
        let at = i64::MAX;
        assert_eq!(
            number(&[(10, Some(at), 1), (20, Some(at), 1), (10, Some(at), 1)]),
            (vec![0, 1, 0], false)
        );
        assert_eq!(number(&[(20, Some(at - 9), 0), (20, Some(at), 1)]), (vec![2, 1], false), "it has grown");
        assert_eq!(number(&[]), (vec![], false));
        assert_eq!(number(&[(20, Some(0), 1), (20, Some(at), 1)]), (vec![3, 1], true), "too far away");
        assert_eq!(number(&[(20, Some(at - 9), 0)]), (vec![2], true));
    }

    proptest! {
        /// However keys lie, each has the number that it has had since it was first seen.
        #[test]
        fn numbers_are_given_in_the_order_of_first_sight(
            batches in prop::collection::vec(
                (
                    prop_oneof![Just(0i64), Just(i64::MAX - 3), Just(i64::MIN), any::<i64>(), -300..300i64],
                    prop_oneof![Just(1u64), Just(40), Just(1 << 20), Just(1 << 40)],
                    prop::bool::weighted(0.1),
                    prop::collection::vec((0..3i64, any::<u64>(), any::<u8>()), 0..40),
                ),
                0..8,
            ),
            clear_after in 0..8usize,
        ) {
            let mut keys = keys();
            let (mut seen, mut order) = (BTreeMap::new(), Vec::new());
            for (number, (first, spread, nulls, rows)) in batches.into_iter().enumerate() {
                let rows: Vec<_> = rows
                    .into_iter()
                    .map(|(window, key, more)| {
                        let key = first.wrapping_add((key % spread) as i64);
                        (window * 10, Some(key).filter(|key| !nulls || key % 2 == 0), more)
                    })
                    .collect();
                let mut groups = Vec::new();
                keys.number(&columns(&rows), &mut groups).unwrap();
                let expected: Vec<u32> = rows
                    .iter()
                    .map(|row| {
                        *seen.entry(*row).or_insert_with(|| {
                            order.push(*row);
                            order.len() as u32 - 1
                        })
                    })
                    .collect();
                prop_assert_eq!(groups, expected);
                prop_assert_eq!(keys.len(), order.len());
                // Before the groups have bytes, and when they do.
                for _ in 0..2 {
                    for (column, expected) in keys.columns().unwrap().iter().zip(columns(&order)) {
                        prop_assert_eq!(column.to_data(), expected.to_data());
                    }
                    if number % 2 == 0 {
                        let sorted = keys.sorted().unwrap();
                        prop_assert_eq!(sorted.len(), order.len());
                        prop_assert!(sorted.is_sorted_by_key(|&group| keys.key(group)));
                    }
                }
                prop_assert!(order.iter().zip(&keys.window_ends).all(|(row, &end)| row.0 == end));
                if number == clear_after {
                    keys.clear();
                    seen.clear();
                    order.clear();
                }
            }
        }
    }
}
