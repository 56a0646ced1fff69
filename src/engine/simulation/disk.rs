//! A process's state directory in memory, which loses at a crash what was not flushed.
//!
//! ```text
//! journal ─► flush ─► record {offset, journal} ─► flush ─► rows ─► flush ─► record {offset} ─► flush
//! ```
//! The steps are those of the store on a disk; each is an edge, at which the process may crash or be stopped.
//! Invariant: what survives a crash is what was flushed and a prefix of what was written since.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use super::process::Process;
use crate::log::memory::Dice;
use crate::planted::{Fault, planted};
use crate::state::{Change, MemoryStore, Result, StateError, Store, Visitor, copy_after};

type Rows = BTreeMap<Vec<u8>, Vec<u8>>;
type Changes = Vec<(Vec<u8>, Option<Vec<u8>>)>;

#[derive(Clone, Debug, Default)]
struct Record {
    offset: Option<i64>,
    fingerprint: Option<String>,
    /// The journal is to be redone.
    redo: bool,
    copy: Option<String>,
}

enum Write {
    Row(Vec<u8>, Option<Vec<u8>>),
    Record(Record),
    Journal(Changes),
    Empty,
}

/// What lies on the disk of one task.
#[derive(Clone, Default)]
struct Image {
    rows: Rows,
    record: Record,
    journal: Changes,
}

impl Image {
    fn take(&mut self, write: Write) {
        match write {
            Write::Row(key, Some(value)) => {
                self.rows.insert(key, value);
            }
            Write::Row(key, None) => {
                self.rows.remove(&key);
            }
            Write::Record(record) => self.record = record,
            Write::Journal(journal) => self.journal = journal,
            Write::Empty => self.rows.clear(),
        }
    }
}

#[derive(Default)]
struct Contents {
    tasks: BTreeMap<String, (Image, Vec<Write>)>,
    open: BTreeSet<String>,
}

#[derive(Clone, Default)]
pub struct Disk(Arc<Mutex<Contents>>);

impl Disk {
    fn contents(&self) -> MutexGuard<'_, Contents> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the disk holds once its process is gone.
    pub fn crash(&self, dice: &mut Dice) {
        let mut contents = self.contents();
        contents.open.clear();
        for (flushed, written) in contents.tasks.values_mut() {
            let kept = if dice.once_in(2) { 0 } else { dice.under(written.len() as u64 + 1) };
            for write in written.drain(..).take(kept as usize) {
                flushed.take(write);
            }
        }
    }

    /// The disk of another machine, with what was flushed here: as a copy of it would have.
    pub fn copied(&self) -> Self {
        let contents = self.contents();
        let tasks = contents.tasks.iter();
        let tasks = tasks.map(|(name, (flushed, _))| (name.clone(), (flushed.clone(), Vec::new()))).collect();
        Self(Arc::new(Mutex::new(Contents { tasks, open: BTreeSet::new() })))
    }

    pub fn open(&self, process: &Arc<Process>, task: &str) -> Result<DiskStore> {
        process.edge("opens a store")?;
        if !self.contents().open.insert(task.to_owned()) {
            return Err(StateError::InUse { place: task.to_owned() });
        }
        let image = self.contents().tasks.entry(task.to_owned()).or_default().0.clone();
        let store = DiskStore {
            disk: self.clone(),
            process: Arc::downgrade(process),
            task: task.to_owned(),
            seen: MemoryStore::new(),
            record: Mutex::new(image.record.clone()),
        };
        store.recover(image)?;
        Ok(store)
    }
}

pub struct DiskStore {
    disk: Disk,
    process: Weak<Process>,
    task: String,
    /// The rows as this process sees them: written, flushed or not.
    seen: MemoryStore,
    record: Mutex<Record>,
}

impl DiskStore {
    fn recover(&self, image: Image) -> Result<()> {
        let rows: Vec<_> = image.rows.iter().map(|(key, value)| (&key[..], Some(&value[..]))).collect();
        self.seen.fill(&rows)?;
        if image.record.redo {
            self.write_rows(&borrowed(&image.journal))?;
            self.flush()?;
            self.write_record(Record { redo: false, ..image.record })?;
        } else if image.record.offset.is_none() {
            self.write(Write::Empty)?;
            self.seen.clear("")?;
        }
        Ok(())
    }

    fn record(&self) -> MutexGuard<'_, Record> {
        self.record.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn edge(&self, what: &str) -> Result<()> {
        match self.process.upgrade() {
            Some(process) => process.edge(what),
            None => Err(StateError::Io { place: self.task.clone(), detail: "its process is gone".into() }),
        }
    }

    fn write(&self, write: Write) -> Result<()> {
        self.edge("writes")?;
        if let Some((_, written)) = self.disk.contents().tasks.get_mut(&self.task) {
            written.push(write);
        }
        Ok(())
    }

    fn flush(&self) -> Result<()> {
        self.edge("flushes")?;
        if let Some((flushed, written)) = self.disk.contents().tasks.get_mut(&self.task) {
            written.drain(..).for_each(|write| flushed.take(write));
        }
        self.edge("has flushed")
    }

    fn write_rows(&self, changes: &[Change<'_>]) -> Result<()> {
        self.edge("writes rows")?;
        if let Some((_, written)) = self.disk.contents().tasks.get_mut(&self.task) {
            let rows = changes.iter().map(|(key, value)| Write::Row(key.to_vec(), value.map(<[u8]>::to_vec)));
            written.extend(rows);
        }
        self.seen.fill(changes)
    }

    fn write_record(&self, record: Record) -> Result<()> {
        self.write(Write::Record(record.clone()))?;
        self.flush()?;
        *self.record() = record;
        Ok(())
    }
}

fn borrowed(changes: &Changes) -> Vec<Change<'_>> {
    changes.iter().map(|(key, value)| (&key[..], value.as_deref())).collect()
}

impl Store for DiskStore {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>> {
        self.seen.get(key)
    }

    fn scan(&self, from: &[u8], to: &[u8], visit: Visitor<'_>) -> Result<()> {
        self.seen.scan(from, to, visit)
    }

    fn apply(&self, changes: &[Change<'_>], offset: i64) -> Result<()> {
        let mut done = Record { redo: false, ..self.record().clone() };
        done.copy = copy_after(done.copy, done.offset, changes, offset);
        done.offset = Some(offset);
        if changes.is_empty() {
            self.flush()?;
            return self.write_record(done);
        }
        if planted(Fault::TornCheckpoint) {
            self.write_rows(changes)?;
            self.flush()?;
            return self.write_record(done);
        }
        let owned = changes.iter().map(|(key, value)| (key.to_vec(), value.map(<[u8]>::to_vec))).collect();
        self.write(Write::Journal(owned))?;
        self.flush()?;
        self.write(Write::Record(Record { redo: true, ..done.clone() }))?;
        self.flush()?;
        self.write_rows(changes)?;
        self.flush()?;
        self.write_record(done)?;
        self.write(Write::Journal(Vec::new()))
    }

    fn offset(&self) -> Option<i64> {
        self.record().offset
    }

    fn fingerprint(&self) -> Option<String> {
        self.record().fingerprint.clone()
    }

    fn clear(&self, fingerprint: &str) -> Result<()> {
        self.write_record(Record { fingerprint: Some(fingerprint.to_owned()), ..Record::default() })?;
        self.write(Write::Empty)?;
        self.seen.clear(fingerprint)
    }

    fn fill(&self, changes: &[Change<'_>]) -> Result<()> {
        self.write_rows(changes)
    }

    fn copy(&self) -> Option<String> {
        self.record().copy.clone()
    }

    fn set_copy(&self, identity: &str) -> Result<()> {
        let record = self.record().clone();
        self.write_record(Record { copy: Some(identity.to_owned()), ..record })
    }

    fn check(&self) -> Result<()> {
        Ok(())
    }
}

impl Drop for DiskStore {
    fn drop(&mut self) {
        // One that is gone has nothing open, and its successor may have opened this.
        if self.process.upgrade().is_some_and(|process| !process.is_crashed()) {
            self.disk.contents().open.remove(&self.task);
        }
    }
}
