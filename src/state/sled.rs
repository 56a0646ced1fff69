//! The durable store: tasks of one worker process share one sled database. The only file that names sled.
//!
//! sled's batches are atomic, but large ones make its memory and disk grow without bound, so a checkpoint is
//! made atomic by a redo journal instead, written in small batches, each followed by a collection of garbage:
//! ```text
//! journal pieces ─► flush ─► record {offset, journal} ─► flush ─► rows ─► flush ─► record {offset} ─► flush
//!                                                      │                                  └─► drop the pieces
//!                                                      └ from here on the step is done: opening redoes it
//! ```
//! Invariant: a batch has at most 500 operations and a value at most 4,000 bytes; a longer value lies in pieces.
//! Invariant: without an offset in the record there are no rows: opening drops what `fill` left.
//! Invariant: pieces that the record does not name are no part of the state.

use std::collections::BTreeSet;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use sled::{Db, IVec, Tree};
use xxhash_rust::xxh3::Xxh3;

use super::packing::{pack, unpack};
use super::{Change, Result, StateError, Store, Visitor, debug_assert_ascending, scan_bounds};

const OPERATIONS_PER_BATCH: usize = 500;
/// Each collection frees at most 512 objects; a batch over that many pages leaves some thousands.
const COLLECTIONS_PER_BATCH: usize = 32;
const VALUE_BYTES_MAX: usize = 4_000;
/// sled fills this and somewhat more, however little state there is to keep hot: the layers above do that too.
const CACHE_BYTES: u64 = 64 << 20;
/// sled lets go of its lock on a thread of its own a moment after the last handle is dropped.
const LOCK_ATTEMPTS: usize = 100;
const LOCK_PAUSE: Duration = Duration::from_millis(50);

/// Keys of a task's control tree: the record, the journal's pieces, the pieces of long values.
const RECORD: &[u8] = b"r";
const JOURNAL: u8 = b'j';
const LONG_VALUE: u8 = b'v';
/// The last byte of a value in the rows tree: the value itself is before it, or lies in pieces.
const INLINE: u8 = 0;
const IN_PIECES: u8 = 1;

/// One process's state directory.
#[derive(Clone)]
pub struct StateDir {
    db: Db,
    place: String,
    open: Arc<Mutex<BTreeSet<String>>>,
}

impl StateDir {
    pub fn open(path: &Path) -> Result<Self> {
        let place = path.display().to_string();
        std::fs::create_dir_all(path).map_err(|error| StateError::from_error(&place, &error))?;
        let config = sled::Config::new().path(path).cache_capacity(CACHE_BYTES).flush_every_ms(None);
        let mut attempt = 0;
        let db = loop {
            attempt += 1;
            match config.open() {
                Ok(db) => break db,
                Err(error) if !error.to_string().contains("could not acquire lock") => {
                    return Err(from_sled(&place, error));
                }
                Err(_) if attempt == LOCK_ATTEMPTS => return Err(StateError::InUse { place }),
                Err(_) => std::thread::sleep(LOCK_PAUSE),
            }
        };
        Ok(Self { db, place, open: Arc::default() })
    }

    /// Opens one task's store, new or as it was left. Only one handle to a task may be open at a time.
    pub fn task(&self, name: &str) -> Result<SledStore> {
        let place = format!("{} (task {name})", self.place);
        let claim = Claim::new(self, name, &place)?;
        let control = self.tree(format!("control {name}"), &place)?;
        let (record, fault) = match control.get(RECORD).map_err(|error| from_sled(&place, error))? {
            None => (Record::default(), None),
            Some(bytes) => match serde_json::from_slice::<Record>(&bytes) {
                Ok(record) if record.version == Record::VERSION => (record, None),
                Ok(record) => (Record::default(), Some(format!("its format is version {}", record.version))),
                Err(error) => (Record::default(), Some(format!("its commit record: {error}"))),
            },
        };
        let rows = self.tree(rows_name(name, record.generation), &place)?;
        let long_values = control.scan_prefix([LONG_VALUE]).next().is_some();
        let mut store = SledStore {
            dir: self.clone(),
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

    /// Deletes a task's state from this directory.
    pub fn remove(&self, name: &str) -> Result<()> {
        let place = format!("{} (task {name})", self.place);
        let _claim = Claim::new(self, name, &place)?;
        // The record goes first: rows without a record are dropped when the task is opened.
        let dropped = self.db.drop_tree(format!("control {name}")).and_then(|_| self.db.flush());
        dropped.map_err(|error| from_sled(&place, error))?;
        self.drop_rows(name, None, &place)
    }

    /// The names of the tasks that have state here.
    pub fn tasks(&self) -> Vec<String> {
        let names = self.db.tree_names();
        let texts = names.iter().filter_map(|name| std::str::from_utf8(name).ok());
        texts.filter_map(|name| name.strip_prefix("control ").map(str::to_string)).collect()
    }

    fn tree(&self, name: String, place: &str) -> Result<Tree> {
        self.db.open_tree(name).map_err(|error| from_sled(place, error))
    }

    /// Drops the task's row trees, but for the one of generation `kept`.
    fn drop_rows(&self, name: &str, kept: Option<u64>, place: &str) -> Result<()> {
        let kept = kept.map(|generation| rows_name(name, generation));
        for tree in self.db.tree_names() {
            let task = std::str::from_utf8(&tree).ok().and_then(|tree| tree.strip_prefix("rows "));
            let of_this_task =
                task.and_then(|task| task.split_once(' ')).is_some_and(|(_, task)| task == name);
            if of_this_task && kept.as_deref().is_none_or(|kept| kept.as_bytes() != &tree[..]) {
                self.db.drop_tree(&tree).map_err(|error| from_sled(place, error))?;
            }
        }
        self.db.flush().map_err(|error| from_sled(place, error))?;
        Ok(())
    }
}

fn rows_name(task: &str, generation: u64) -> String {
    format!("rows {generation} {task}")
}

/// A task's name while a store of it is open.
struct Claim {
    open: Arc<Mutex<BTreeSet<String>>>,
    name: String,
}

impl Claim {
    fn new(dir: &StateDir, name: &str, place: &str) -> Result<Self> {
        if !lock(&dir.open).insert(name.to_string()) {
            return Err(StateError::InUse { place: place.to_string() });
        }
        Ok(Self { open: Arc::clone(&dir.open), name: name.to_string() })
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        lock(&self.open).remove(&self.name);
    }
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
}

impl Record {
    const VERSION: u32 = 1;
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Journal {
    pieces: u32,
    checksum: u64,
}

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

/// The steps of `apply`, for tests that crash after each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Step {
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
        Ok((xxhash_rust::xxh3::xxh3_64(&bytes) == journal.checksum).then_some(bytes))
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

#[cfg(test)]
impl SledStore {
    /// Calls `after_step` after each step of `apply`: a test copies the directory there, as a crash leaves it.
    pub(super) fn after_each_step(&mut self, after_step: impl Fn(Step) + Send + Sync + 'static) {
        self.after_step = Some(Box::new(after_step));
    }
}

#[cfg(test)]
impl StateDir {
    /// Damages a byte of the journal that a task left; false if it left none.
    pub(super) fn damage_journal(&self, task: &str) -> bool {
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
        let committed = Record { offset: Some(offset), step: *step, ..self.shared().record.clone() };
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

    fn check(&self) -> Result<()> {
        self.shared().fault.clone().map_or(Ok(()), Err)
    }
}

/// Writes to one tree in batches that sled can stomach.
struct Batcher<'a> {
    tree: &'a Tree,
    place: &'a str,
    batch: sled::Batch,
    operations: usize,
}

impl<'a> Batcher<'a> {
    fn new(tree: &'a Tree, place: &'a str) -> Self {
        Self { tree, place, batch: sled::Batch::default(), operations: 0 }
    }

    fn insert(&mut self, key: &[u8], value: &[u8]) -> Result<()> {
        self.batch.insert(key, value);
        self.count()
    }

    fn remove(&mut self, key: &[u8]) -> Result<()> {
        self.batch.remove(key);
        self.count()
    }

    fn count(&mut self) -> Result<()> {
        self.operations += 1;
        if self.operations < OPERATIONS_PER_BATCH { Ok(()) } else { self.write() }
    }

    fn write(&mut self) -> Result<()> {
        self.operations = 0;
        let batch = std::mem::take(&mut self.batch);
        self.tree.apply_batch(batch).map_err(|error| from_sled(self.place, error))?;
        collect_garbage();
        Ok(())
    }

    fn finish(mut self) -> Result<()> {
        if self.operations > 0 { self.write() } else { Ok(()) }
    }
}

/// Frees the pages that a batch has replaced. sled leaves them to its epoch collector, which does a little each
/// time a thread enters an epoch; a batch enters one once, however much it replaces, so garbage would pile up
/// (70 MB with each checkpoint of 50,000 keys out of a million).
fn collect_garbage() {
    for _ in 0..COLLECTIONS_PER_BATCH {
        crossbeam_epoch::pin().flush();
    }
}

fn journal_key(step: u64, piece: u32) -> Vec<u8> {
    [&[JOURNAL], &step.to_be_bytes()[..], &piece.to_be_bytes()[..]].concat()
}

/// The prefix of the pieces of one key's value; the length keeps it from being a prefix of another key's.
fn piece_prefix(key: &[u8]) -> Vec<u8> {
    [&[LONG_VALUE], &key.len().to_be_bytes()[..], key].concat()
}

fn from_sled(place: &str, error: sled::Error) -> StateError {
    match error {
        sled::Error::Io(error) => StateError::from_error(place, &error),
        sled::Error::Corruption { .. } => {
            StateError::Corrupt { place: place.to_string(), detail: error.to_string() }
        }
        other => StateError::from_error(place, &other),
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
