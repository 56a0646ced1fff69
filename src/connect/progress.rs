//! How far a connector is: counted when its transactions commit, kept in the control topic, shared with who looks on.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use serde::{Deserialize, Serialize};

/// What a task has done since the connector began.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tally {
    pub records: u64,
    pub dead: u64,
    /// Read of the source.
    pub bytes: u64,
}

impl Tally {
    pub fn add(&mut self, other: &Tally) {
        self.records += other.records;
        self.dead += other.dead;
        self.bytes += other.bytes;
    }
}

/// A task, as its last commit left it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TaskProgress {
    pub phase: String,
    pub tally: Tally,
    pub lag_bytes: u64,
    /// Tried again, and why.
    pub trouble: Option<String>,
}

#[derive(Debug, Default)]
struct Inner {
    tasks: BTreeMap<i32, TaskProgress>,
    commits: u64,
    commit_seconds: f64,
    last_commit: Option<Instant>,
    retries: u64,
}

/// Clones share it.
#[derive(Clone, Debug, Default)]
pub struct Progress(Arc<Mutex<Inner>>);

impl Progress {
    pub fn set(&self, task: i32, progress: TaskProgress) {
        self.inner().tasks.insert(task, progress);
    }
    pub fn remove(&self, task: i32) {
        self.inner().tasks.remove(&task);
    }
    pub fn committed(&self, seconds: f64) {
        let mut inner = self.inner();
        inner.commits += 1;
        inner.commit_seconds += seconds;
        inner.last_commit = Some(Instant::now());
    }
    pub fn retried(&self) {
        self.inner().retries += 1;
    }

    /// Of the tasks that this process has.
    pub fn tasks(&self) -> BTreeMap<i32, TaskProgress> {
        self.inner().tasks.clone()
    }
    /// Of this process: commits, and the seconds that they took.
    pub fn commits(&self) -> (u64, f64) {
        let inner = self.inner();
        (inner.commits, inner.commit_seconds)
    }
    pub fn last_commit(&self) -> Option<Instant> {
        self.inner().last_commit
    }
    pub fn retries(&self) -> u64 {
        self.inner().retries
    }
    pub fn sum(&self) -> Tally {
        let mut sum = Tally::default();
        self.inner().tasks.values().for_each(|task| sum.add(&task.tally));
        sum
    }

    /// Numbers are whole whoever panicked.
    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
