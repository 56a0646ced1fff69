//! The contract between a connector's runtime and its sources.
//!
//! Invariant: a batch holds whole steps: records, letters, and the positions after them. A step never depends on one
//! that comes later.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::time::Instant;

use crate::record::Header;

/// What a source has to know to go on: key to JSON.
pub type Positions = BTreeMap<String, Vec<u8>>;

/// What one call may use.
#[derive(Clone, Copy, Debug)]
pub struct Budget {
    pub now: Instant,
    /// Of records; a step may be larger than what is left.
    pub bytes: usize,
}

/// Where a source stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// There is more to be had at once.
    More,
    /// What is there is not whole yet: a file's last line, for example.
    Waiting,
    /// All that there was is handed over.
    CaughtUp,
}

/// One task's source: called by its runtime only, never concurrently. It is called on the member's thread, and may
/// stand still there for as long as an open transaction lives, less a commit.
pub trait Source: Send {
    /// Appends whole steps to the batch; returns soon also where there is nothing. After an error it is not called
    /// again: the runtime opens another at the committed positions.
    fn next(&mut self, batch: &mut Batch, budget: Budget) -> Result<Phase, SourceError>;

    /// Everything up to here is in a committed transaction.
    fn committed(&mut self, _positions: &Positions) -> Result<(), SourceError> {
        Ok(())
    }

    /// What is known to be there and is not handed over, in bytes.
    fn lag_bytes(&self) -> u64;
}

/// What an error asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// It may go away by itself: tried again, for ever.
    Retry,
    /// What the user gave is wrong: stop.
    Input,
    /// Something is lost: stop, and never jump.
    Gap,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{place}: {what}")]
pub struct SourceError {
    pub class: Class,
    pub what: String,
    /// A file, with its line where there is one.
    pub place: String,
    pub remedy: Option<String>,
}

impl SourceError {
    pub fn input(place: impl fmt::Display, what: impl Into<String>, remedy: impl Into<String>) -> Self {
        let remedy = Some(remedy.into());
        Self { class: Class::Input, what: what.into(), place: place.to_string(), remedy }
    }
    pub fn retry(place: impl fmt::Display, what: impl Into<String>) -> Self {
        Self { class: Class::Retry, what: what.into(), place: place.to_string(), remedy: None }
    }
}

/// What can't be made a record: kept with its bytes.
#[derive(Clone, Debug)]
pub struct Letter {
    pub bytes: Vec<u8>,
    /// A stable code.
    pub reason: &'static str,
    pub message: String,
    /// Where it was, for the letter's headers.
    pub place: Vec<Header>,
    /// Of records before it in the batch.
    before: usize,
}

struct Span {
    stream: usize,
    key: Option<Range<usize>>,
    value: Range<usize>,
    group: u64,
}

/// A record in a batch.
#[derive(Clone, Copy, Debug)]
pub struct Placed<'a> {
    /// By index into the connector's streams.
    pub stream: usize,
    pub key: Option<&'a [u8]>,
    pub value: &'a [u8],
    /// Records without a key that have this in common keep their order: they go to one partition.
    pub group: u64,
}

/// What a source hands over: one arena, and where in it each record lies.
#[derive(Default)]
pub struct Batch {
    bytes: Vec<u8>,
    records: Vec<Span>,
    letters: Vec<Letter>,
    positions: BTreeMap<String, Option<Vec<u8>>>,
    /// What was read of the source, whatever became of it.
    pub source_bytes: u64,
}

impl Batch {
    pub fn push(&mut self, stream: usize, key: Option<&[u8]>, value: &[u8], group: u64) {
        let mut put = |part: &[u8]| {
            let start = self.bytes.len();
            self.bytes.extend_from_slice(part);
            start..self.bytes.len()
        };
        let (key, value) = (key.map(&mut put), put(value));
        self.records.push(Span { stream, key, value, group });
    }

    pub fn reject(&mut self, bytes: Vec<u8>, reason: &'static str, message: String, place: Vec<Header>) {
        let before = self.records.len();
        self.letters.push(Letter { bytes, reason, message, place, before });
    }

    /// Where the source stands after what was pushed so far; a value without bytes is forgotten.
    pub fn position(&mut self, key: impl Into<String>, value: Option<Vec<u8>>) {
        self.positions.insert(key.into(), value);
    }

    pub fn records(&self) -> impl Iterator<Item = Placed<'_>> {
        self.records.iter().map(|span| Placed {
            stream: span.stream,
            key: span.key.clone().map(|key| &self.bytes[key]),
            value: &self.bytes[span.value.clone()],
            group: span.group,
        })
    }

    pub fn letters(&self) -> &[Letter] {
        &self.letters
    }

    /// Record or letter, in the order of the source; of a letter its place.
    pub fn outcomes(&self) -> impl Iterator<Item = Option<&Letter>> {
        let mut letters = self.letters.iter().peekable();
        let mut handed = 0;
        std::iter::from_fn(move || {
            if let Some(letter) = letters.next_if(|letter| letter.before <= handed) {
                return Some(Some(letter));
            }
            handed += 1;
            (handed <= self.records.len()).then_some(None)
        })
    }

    pub fn take_positions(&mut self) -> BTreeMap<String, Option<Vec<u8>>> {
        std::mem::take(&mut self.positions)
    }

    pub fn len(&self) -> usize {
        self.records.len()
    }
    pub fn bytes(&self) -> usize {
        self.bytes.len()
    }
    /// Nothing in it has to be committed.
    pub fn is_empty(&self) -> bool {
        self.records.is_empty() && self.letters.is_empty() && self.positions.is_empty()
    }

    pub fn clear(&mut self) {
        self.bytes.clear();
        self.records.clear();
        self.letters.clear();
        self.positions.clear();
        self.source_bytes = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outcomes_come_in_the_order_of_the_source() {
        let mut batch = Batch::default();
        let reject = |batch: &mut Batch| batch.reject(Vec::new(), "x", "bad".into(), Vec::new());
        reject(&mut batch);
        batch.push(0, None, b"a", 0);
        batch.push(0, Some(b"k"), b"b", 0);
        reject(&mut batch);
        let bad: Vec<bool> = batch.outcomes().map(|outcome| outcome.is_some()).collect();
        assert_eq!(bad, [true, false, false, true]);
        let records: Vec<_> = batch.records().map(|record| (record.key, record.value)).collect();
        assert_eq!(records, [(None, &b"a"[..]), (Some(&b"k"[..]), &b"b"[..])]);
    }
}
