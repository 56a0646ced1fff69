//! One partition in memory: records and markers by offset, and the last stable offset.
//!
//! Invariant: a marker and an aborted record take up an offset and are never read.

use std::collections::{BTreeMap, VecDeque};

use crate::log::Bounds;
use crate::record::OwnedRecord;

pub(super) type Transaction = u64;

enum Entry {
    Record {
        record: OwnedRecord,
        open: Option<Transaction>,
    },
    /// A transaction's marker, or a record that was aborted.
    Gap,
}

#[derive(Default)]
pub(super) struct Partition {
    start: i64,
    entries: VecDeque<Entry>,
    /// The first offset of each open transaction.
    open: BTreeMap<Transaction, i64>,
}

impl Partition {
    pub fn end(&self) -> i64 {
        self.start + self.entries.len() as i64
    }

    pub fn bounds(&self) -> Bounds {
        let stable = self.open.values().min().copied().unwrap_or(self.end());
        Bounds { start: self.start, end: stable.max(self.start) }
    }

    /// Whether `offset` may be read from: the end itself may.
    pub fn holds(&self, offset: i64) -> bool {
        (self.start..=self.end()).contains(&offset)
    }

    pub fn append(&mut self, mut record: OwnedRecord, transaction: Option<Transaction>) {
        record.offset = self.end();
        if let Some(transaction) = transaction {
            self.open.entry(transaction).or_insert(record.offset);
        }
        self.entries.push_back(Entry::Record { record, open: transaction });
    }

    /// Decides a transaction and appends its marker, if it wrote here.
    pub fn decide(&mut self, transaction: Transaction, commit: bool) {
        if self.open.remove(&transaction).is_none() {
            return;
        }
        for entry in &mut self.entries {
            match entry {
                Entry::Record { open, .. } if *open == Some(transaction) => {
                    if commit {
                        *open = None;
                    } else {
                        *entry = Entry::Gap;
                    }
                }
                _ => {}
            }
        }
        self.entries.push_back(Entry::Gap);
    }

    /// Stable records from `offset` on, at most `limit`, and the position after what was looked at.
    pub fn read(&self, offset: i64, limit: usize) -> (Vec<OwnedRecord>, i64) {
        let end = self.bounds().end;
        let (mut found, mut position) = (Vec::new(), offset);
        while position < end && found.len() < limit {
            if let Some(Entry::Record { record, .. }) = self.entry(position) {
                found.push(record.clone());
            }
            position += 1;
        }
        (found, position)
    }

    fn entry(&self, offset: i64) -> Option<&Entry> {
        usize::try_from(offset - self.start).ok().and_then(|index| self.entries.get(index))
    }

    pub fn offset_at(&self, timestamp_ms: i64) -> Option<i64> {
        let end = self.bounds().end;
        (self.start..end).find(|offset| match self.entry(*offset) {
            Some(Entry::Record { record, .. }) => record.timestamp_ms >= timestamp_ms,
            _ => false,
        })
    }

    pub fn delete_before(&mut self, offset: i64) {
        while self.start < offset.min(self.bounds().end) {
            self.entries.pop_front();
            self.start += 1;
        }
    }
}
