//! One task's store: rows in one sled tree, its record, journal and long values in another.
//!
//! A step is made atomic by a redo journal:
//! ```text
//! journal pieces ─► flush ─► record {offset, journal} ─► flush ─► rows ─► flush ─► record {offset} ─► flush
//!                                                      │                                  └─► drop the pieces
//!                                                      └ from here on the step is done: opening redoes it
//! ```
//! Invariant: a value has at most 4,000 bytes, for sled's disk grows with longer ones; a longer value lies in
//! pieces.
//! Invariant: without an offset in the record there are no rows: opening drops what `fill` left.
//! Invariant: pieces that the record does not name are no part of the state.

use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError, RwLock, RwLockReadGuard};

use serde::{Deserialize, Serialize};
use sled::{IVec, Tree};
use xxhash_rust::xxh3::{Xxh3, xxh3_64};

use super::super::packing::{pack, unpack};
use super::super::{
    Change, Result, StateError, Store, Visitor, copy_after, debug_assert_ascending, scan_bounds,
};
use super::{Batcher, Claim, StateDir, from_sled, lock, rows_name};

const VALUE_BYTES_MAX: usize = 4_000;

/// Keys of a task's control tree: the record, the journal's pieces, the pieces of long values.
const RECORD: &[u8] = b"r";
const JOURNAL: u8 = b'j';
const LONG_VALUE: u8 = b'v';
/// The last byte of a value in the rows tree: the value itself is before it, or lies in pieces.
const INLINE: u8 = 0;
const IN_PIECES: u8 = 1;

/// One task's store in a [`StateDir`].
pub struct SledStore {
    shared: RwLock<Shared>,
    /// The last step that was begun, done or failed: a journal's pieces are never mixed with another step's.
    writer: Mutex<u64>,
    /// Whether any value may lie in pieces; if not, changes need not look for pieces to drop.
    long_values: AtomicBool,
    control: Tree,
    dir: StateDir,
    name: String,
    place: String,
    _claim: Claim,
    #[cfg(test)]
    after_step: Option<Box<dyn Fn(Step) + Send + Sync>>,
}

struct Shared {
    rows: Tree,
    record: Record,
    fault: Option<StateError>,
}

/// What makes a step whole: the one value that says which offset the rows are at.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct Record {
    version: u32,
    offset: Option<i64>,
    fingerprint: Option<String>,
    /// Counts `clear`s: rows of an older generation are garbage.
    generation: u64,
    /// Counts steps: journal pieces of another step are garbage.
    step: u64,
    /// The journal to redo, until its changes are safe in the rows.
    journal: Option<Journal>,
    /// The copy that equals the rows.
    #[serde(default)]
    copy: Option<String>,
}

impl Record {
    /// 2: groups of closed windows lie many in a value.
    const VERSION: u32 = 2;

    fn other_format(&self) -> String {
        format!("its format is version {}, and this program reads {}", self.version, Self::VERSION)
    }
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Journal {
    pieces: u32,
    checksum: u64,
}

/// The steps of `apply`, for tests that crash after each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::state) enum Step {
    JournalWritten,
    JournalDurable,
    Recorded,
    Committed,
    RowsWritten,
    RowsDurable,
    JournalDone,
    JournalDropped,
}

impl SledStore {
    pub(super) fn open(dir: &StateDir, name: &str, place: String, claim: Claim) -> Result<Self> {
        let control = dir.tree(format!("control {name}"), &place)?;
        let (record, fault) = match control.get(RECORD).map_err(|error| from_sled(&place, error))? {
            None => (Record::default(), None),
            Some(bytes) => match serde_json::from_slice::<Record>(&bytes) {
                Ok(record) if record.version == Record::VERSION => (record, None),
                Ok(record) => (Record::default(), Some(record.other_format())),
                Err(error) => (Record::default(), Some(format!("its commit record: {error}"))),
            },
        };
        let rows = dir.tree(rows_name(name, record.generation), &place)?;
        let long_values = control.scan_prefix([LONG_VALUE]).next().is_some();
        let mut store = SledStore {
            dir: dir.clone(),
            writer: Mutex::new(record.step),
            shared: RwLock::new(Shared { rows, record, fault: None }),
            long_values: AtomicBool::new(long_values),
            control,
            name: name.to_string(),
            place,
            _claim: claim,
            #[cfg(test)]
            after_step: None,
        };
        store.recover(fault)?;
        Ok(store)
    }

    /// Completes or forgets what a crash interrupted.
    fn recover(&mut self, mut fault: Option<String>) -> Result<()> {
        let record = self.shared().record.clone();
        if let Some(journal) = &record.journal {
            match self.read_journal(record.step, journal)? {
                Some(bytes) => match unpack(&bytes) {
                    Some(changes) => {
                        self.write_rows(&changes)?;
                        self.flush()?;
                        self.write_record(Record { journal: None, ..record.clone() })?;
                    }
                    None => fault = Some("its journal can not be read".to_string()),
                },
                None => fault = Some("its journal is not what was written".to_string()),
            }
        }
        if let Some(detail) = fault {
            let mut shared = self.shared.write().unwrap_or_else(PoisonError::into_inner);
            shared.fault = Some(StateError::Corrupt { place: self.place.clone(), detail });
            shared.record.offset = None;
            return Ok(());
        }
        if record.offset.is_none() && !self.shared().rows.is_empty() {
            return self.empty(record.fingerprint, record.step);
        }
        self.drop_prefix(&[JOURNAL])?;
        self.dir.drop_rows(&self.name, Some(record.generation), &self.place)
    }

    fn write_journal(&self, changes: &[Change<'_>], step: u64) -> Result<Journal> {
        let mut batcher = Batcher::new(&self.control, &self.place);
        let mut hasher = Xxh3::new();
        let mut pieces = 0;
        let mut packed = Vec::new();
        let mut write = |piece: &[u8]| {
            hasher.update(piece);
            batcher.insert(&journal_key(step, pieces), piece)?;
            pieces += 1;
            Ok(())
        };
        for &change in changes {
            pack(change, &mut packed);
            let whole = packed.len() - packed.len() % VALUE_BYTES_MAX;
            packed[..whole].chunks(VALUE_BYTES_MAX).try_for_each(&mut write)?;
            packed.drain(..whole);
        }
        if !packed.is_empty() {
            write(&packed)?;
        }
        batcher.finish()?;
        Ok(Journal { pieces, checksum: hasher.digest() })
    }

    /// The journal's bytes, or `None` if they are not what was written.
    fn read_journal(&self, step: u64, journal: &Journal) -> Result<Option<Vec<u8>>> {
        let mut bytes = Vec::new();
        for piece in 0..journal.pieces {
            match self.control.get(journal_key(step, piece)).map_err(|error| self.error(error))? {
                Some(piece) => bytes.extend_from_slice(&piece),
                None => return Ok(None),
            }
        }
        Ok((xxh3_64(&bytes) == journal.checksum).then_some(bytes))
    }

    fn write_rows(&self, changes: &[Change<'_>]) -> Result<()> {
        debug_assert_ascending(changes);
        let rows = self.shared().rows.clone();
        let mut rows = Batcher::new(&rows, &self.place);
        let mut stored = Vec::new();
        for &(key, value) in changes {
            if self.long_values.load(Ordering::Relaxed) {
                self.drop_prefix(&piece_prefix(key))?;
            }
            let Some(value) = value else {
                rows.remove(key)?;
                continue;
            };
            stored.clear();
            if value.len() < VALUE_BYTES_MAX {
                stored.extend_from_slice(value);
                stored.push(INLINE);
            } else {
                let pieces = self.write_pieces(key, value)?;
                stored.extend_from_slice(&pieces.to_be_bytes());
                stored.push(IN_PIECES);
            }
            rows.insert(key, &stored)?;
        }
        rows.finish()
    }

    fn write_pieces(&self, key: &[u8], value: &[u8]) -> Result<u32> {
        self.long_values.store(true, Ordering::Relaxed);
        let mut batcher = Batcher::new(&self.control, &self.place);
        let mut pieces = 0_u32;
        for piece in value.chunks(VALUE_BYTES_MAX) {
            let mut piece_key = piece_prefix(key);
            piece_key.extend_from_slice(&pieces.to_be_bytes());
            batcher.insert(&piece_key, piece)?;
            pieces += 1;
        }
        batcher.finish()?;
        Ok(pieces)
    }

    /// The value that a row of the rows tree stands for.
    fn value(&self, key: &[u8], stored: &IVec) -> Result<Vec<u8>> {
        let damaged =
            |detail: &str| StateError::Corrupt { place: self.place.clone(), detail: detail.to_string() };
        match stored.split_last() {
            Some((&INLINE, value)) => Ok(value.to_vec()),
            Some((&IN_PIECES, count)) => {
                let count = count.try_into().map_err(|_| damaged("a row has no count of its pieces"))?;
                let mut value = Vec::new();
                let mut found = 0;
                for piece in self.control.scan_prefix(piece_prefix(key)) {
                    value.extend_from_slice(&piece.map_err(|error| self.error(error))?.1);
                    found += 1;
                }
                if found != u32::from_be_bytes(count) {
                    return Err(damaged("pieces of a long value are missing"));
                }
                Ok(value)
            }
            _ => Err(damaged("a row is of no known kind")),
        }
    }

    /// Makes the record durable, and true for readers.
    fn write_record(&self, record: Record) -> Result<()> {
        let record = Record { version: Record::VERSION, ..record };
        self.put_record(&record)?;
        self.flush()?;
        self.shared.write().unwrap_or_else(PoisonError::into_inner).record = record;
        Ok(())
    }

    fn put_record(&self, record: &Record) -> Result<()> {
        let bytes =
            serde_json::to_vec(record).map_err(|error| StateError::from_error(&self.place, &error))?;
        self.control.insert(RECORD, bytes).map_err(|error| self.error(error))?;
        Ok(())
    }

    /// Starts a new generation without rows or offset. The record is durable before anything is dropped.
    fn empty(&self, fingerprint: Option<String>, step: u64) -> Result<()> {
        // A damaged record does not say which generations exist, so the new one is above all of them.
        let names = self.dir.db.tree_names();
        let generations = names.iter().filter_map(|name| {
            let (generation, task) =
                std::str::from_utf8(name).ok()?.strip_prefix("rows ")?.split_once(' ')?;
            generation.parse::<u64>().ok().filter(|_| task == self.name)
        });
        let generation = generations.max().unwrap_or(0) + 1;
        let rows = self.dir.tree(rows_name(&self.name, generation), &self.place)?;
        self.write_record(Record { fingerprint, generation, step, ..Record::default() })?;
        {
            let mut shared = self.shared.write().unwrap_or_else(PoisonError::into_inner);
            shared.rows = rows;
            shared.fault = None;
        }
        self.drop_prefix(&[JOURNAL])?;
        self.drop_prefix(&[LONG_VALUE])?;
        self.long_values.store(false, Ordering::Relaxed);
        self.dir.drop_rows(&self.name, Some(generation), &self.place)
    }

    fn drop_prefix(&self, prefix: &[u8]) -> Result<()> {
        let mut batcher = Batcher::new(&self.control, &self.place);
        for key in self.control.scan_prefix(prefix).keys() {
            batcher.remove(&key.map_err(|error| self.error(error))?)?;
        }
        batcher.finish()
    }

    fn flush(&self) -> Result<()> {
        self.dir.db.flush().map_err(|error| self.error(error))?;
        Ok(())
    }

    fn shared(&self) -> RwLockReadGuard<'_, Shared> {
        self.shared.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn error(&self, error: sled::Error) -> StateError {
        from_sled(&self.place, error)
    }

    fn done(&self, _step: Step) {
        #[cfg(test)]
        if let Some(after_step) = &self.after_step {
            after_step(_step);
        }
    }
}

impl Store for SledStore {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>> {
        let stored = self.shared().rows.get(key).map_err(|error| self.error(error))?;
        stored.map(|stored| self.value(key, &stored)).transpose()
    }

    fn scan(&self, from: &[u8], to: &[u8], visit: Visitor<'_>) -> Result<()> {
        let Some(bounds) = scan_bounds(from, to) else { return Ok(()) };
        let rows = self.shared().rows.clone();
        for row in rows.range::<&[u8], _>(bounds) {
            let (key, stored) = row.map_err(|error| self.error(error))?;
            let flow = match stored.split_last() {
                Some((&INLINE, value)) => visit(&key, value),
                _ => visit(&key, &self.value(&key, &stored)?),
            };
            if flow == ControlFlow::Break(()) {
                break;
            }
        }
        Ok(())
    }

    fn apply(&self, changes: &[Change<'_>], offset: i64) -> Result<()> {
        let mut step = lock(&self.writer);
        self.check()?;
        *step += 1;
        let mut committed = Record { step: *step, ..self.shared().record.clone() };
        committed.copy = copy_after(committed.copy, committed.offset, changes, offset);
        committed.offset = Some(offset);
        if changes.is_empty() {
            // `fill` may have written rows, and they must be there before the offset is.
            self.flush()?;
            return self.write_record(committed);
        }
        let journal = self.write_journal(changes, committed.step)?;
        self.done(Step::JournalWritten);
        self.flush()?;
        self.done(Step::JournalDurable);
        self.put_record(&Record { journal: Some(journal), version: Record::VERSION, ..committed.clone() })?;
        self.done(Step::Recorded);
        self.flush()?;
        self.done(Step::Committed);
        self.write_rows(changes)?;
        self.done(Step::RowsWritten);
        self.flush()?;
        self.done(Step::RowsDurable);
        self.write_record(committed)?;
        self.done(Step::JournalDone);
        self.drop_prefix(&[JOURNAL])?;
        self.done(Step::JournalDropped);
        Ok(())
    }

    fn offset(&self) -> Option<i64> {
        self.shared().record.offset
    }

    fn fingerprint(&self) -> Option<String> {
        self.shared().record.fingerprint.clone()
    }

    fn clear(&self, fingerprint: &str) -> Result<()> {
        let step = lock(&self.writer);
        self.empty(Some(fingerprint.to_string()), *step)
    }

    fn fill(&self, changes: &[Change<'_>]) -> Result<()> {
        let _writer = lock(&self.writer);
        assert!(self.offset().is_none(), "only a store without an offset is filled");
        self.write_rows(changes)
    }

    fn copy(&self) -> Option<String> {
        self.shared().record.copy.clone()
    }

    fn set_copy(&self, identity: &str) -> Result<()> {
        let _writer = lock(&self.writer);
        let record = self.shared().record.clone();
        self.write_record(Record { copy: Some(identity.to_string()), ..record })
    }

    fn check(&self) -> Result<()> {
        self.shared().fault.clone().map_or(Ok(()), Err)
    }
}

fn journal_key(step: u64, piece: u32) -> Vec<u8> {
    [&[JOURNAL], &step.to_be_bytes()[..], &piece.to_be_bytes()[..]].concat()
}

/// The prefix of the pieces of one key's value; the length keeps it from being a prefix of another key's.
fn piece_prefix(key: &[u8]) -> Vec<u8> {
    [&[LONG_VALUE], &key.len().to_be_bytes()[..], key].concat()
}

#[cfg(test)]
impl SledStore {
    /// Calls `after_step` after each step of `apply`: a test copies the directory there, as a crash leaves it.
    pub(in crate::state) fn after_each_step(&mut self, after_step: impl Fn(Step) + Send + Sync + 'static) {
        self.after_step = Some(Box::new(after_step));
    }
}

#[cfg(test)]
impl StateDir {
    /// Damages a byte of the journal that a task left; false if it left none.
    pub(in crate::state) fn damage_journal(&self, task: &str) -> bool {
        let control = self.db.open_tree(format!("control {task}")).unwrap();
        let Some(piece) = control.scan_prefix([JOURNAL]).next() else { return false };
        let (key, value) = piece.unwrap();
        let mut damaged = value.to_vec();
        damaged[0] ^= 1;
        control.insert(key, damaged).unwrap();
        self.db.flush().unwrap();
        true
    }
}
