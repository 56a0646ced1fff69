//! From groups' keys to group numbers: a hash table over bytes, without an allocation per row.
//!
//! A row costs a place in memory that is not in the nearest cache, so the table holds what tells keys apart itself.
//!
//! Invariant: numbers are given from 0 in the order in which keys are first seen.

use std::hash::{BuildHasher, Hasher};

use arrow::array::{ArrayRef, AsArray};
use arrow::datatypes::{DataType, Int64Type};
use arrow::row::{RowConverter, Rows, SortField};
use foldhash::fast::FixedState;
use hashbrown::HashTable;
use hashbrown::hash_table::Entry;

use super::super::{AggregateSpec, Result};
use super::other_groups;
use crate::record::Micros;

pub(super) struct Keys {
    converter: RowConverter,
    /// The rows of the batch at hand.
    rows: Rows,
    table: HashTable<Slot>,
    bytes: Vec<u8>,
    /// Where each group's key ends in `bytes`.
    key_ends: Vec<usize>,
    window_ends: Vec<Micros>,
}

impl Keys {
    pub(super) fn new(spec: &AggregateSpec) -> Result<Self> {
        let others = other_groups(spec).map(|group| spec.groups[group].field.data_type().clone());
        let types = std::iter::once(DataType::Int64).chain(others);
        let converter = RowConverter::new(types.map(SortField::new).collect())?;
        let rows = converter.empty_rows(0, 0);
        Ok(Self {
            converter,
            rows,
            table: HashTable::new(),
            bytes: Vec::new(),
            key_ends: Vec::new(),
            window_ends: Vec::new(),
        })
    }

    pub(super) fn len(&self) -> usize {
        self.key_ends.len()
    }

    /// Sets `groups` to the group number of each row of the key columns.
    pub(super) fn number(&mut self, columns: &[ArrayRef], groups: &mut Vec<u32>) -> Result<()> {
        self.rows.clear();
        self.converter.append(&mut self.rows, columns)?;
        let ends = columns[0].as_primitive::<Int64Type>();
        groups.clear();
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

    pub(super) fn key(&self, group: u32) -> &[u8] {
        stored(&self.bytes, &self.key_ends, group)
    }

    pub(super) fn window_end(&self, group: u32) -> Micros {
        self.window_ends[group as usize]
    }

    /// All groups in the order of their keys.
    pub(super) fn sorted(&self) -> Vec<u32> {
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
        groups.into_iter().map(|(_, _, group)| group).collect()
    }

    /// The key columns, from keys.
    pub(super) fn decode<'a>(&self, keys: impl Iterator<Item = &'a [u8]>) -> Result<Vec<ArrayRef>> {
        let parser = self.converter.parser();
        let rows: Vec<_> = keys.map(|key| parser.parse(key)).collect();
        Ok(self.converter.convert_rows(rows)?)
    }

    pub(super) fn clear(&mut self) {
        self.table.clear();
        self.bytes.clear();
        self.key_ends.clear();
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
