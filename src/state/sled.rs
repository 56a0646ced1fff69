//! The durable store: the tasks of one process share one sled database. Only this file and its folder name sled.
//!
//! sled's batches are atomic, but large ones make its memory and disk grow without bound. So nothing relies on
//! them: `store` makes a checkpoint atomic by a journal, written in small batches that each pay for their garbage.
//! Invariant: a batch has at most 500 operations.

mod store;

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use sled::{Db, Tree};

use super::{Result, StateError};

pub use store::SledStore;
#[cfg(test)]
pub(super) use store::Step;

const OPERATIONS_PER_BATCH: usize = 500;
/// Each collection frees at most 512 objects; a batch over that many pages leaves some thousands.
const COLLECTIONS_PER_BATCH: usize = 32;
/// sled fills this and somewhat more, however little state there is to keep hot: the layers above do that too.
const CACHE_BYTES: u64 = 64 << 20;
/// sled lets go of its lock on a thread of its own a moment after the last handle is dropped.
const LOCK_ATTEMPTS: usize = 100;
const LOCK_PAUSE: Duration = Duration::from_millis(50);

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
        SledStore::open(self, name, place, claim)
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

fn from_sled(place: &str, error: sled::Error) -> StateError {
    match error {
        sled::Error::Io(error) => StateError::from_error(place, &error),
        // sled says so of files that it can't make sense of.
        sled::Error::Corruption { .. } | sled::Error::Unsupported(_) | sled::Error::ReportableBug(_) => {
            let detail = "its files do not read back as they were written".to_string();
            StateError::Corrupt { place: place.to_string(), detail }
        }
        other => StateError::from_error(place, &other),
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
