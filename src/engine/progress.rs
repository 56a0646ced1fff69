//! How far each task has come, for whoever watches: the demo, `/metrics`, the lag table.
//!
//! Invariant: what is shown is committed; an epoch that aborts never shows.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use crate::record::{Micros, TopicPartition};

use super::offsets::Counters;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TaskRole {
    Ingest,
    Keyed,
}

/// One task as of its last commit.
#[derive(Clone, Debug)]
pub struct TaskProgress {
    pub role: TaskRole,
    pub stage: Arc<str>,
    /// Name of the source, for an ingest task.
    pub source: Option<Arc<str>>,
    pub offset: i64,
    pub watermark: Micros,
    pub idle: bool,
    pub counters: Counters,
    pub expired: u64,
    /// Windows (each with its key) that are open; counted when the task stops, as counting reads all of them.
    pub open_windows: Option<u64>,
    pub state_bytes: usize,
    /// The last checkpoint's offset, bytes and seconds.
    pub checkpoint: Option<(i64, usize, f64)>,
}

/// Shared between the workers that write it and the watchers that read it.
#[derive(Clone, Default)]
pub struct Progress {
    inner: Arc<Mutex<Inner>>,
}

#[derive(Default)]
struct Inner {
    tasks: BTreeMap<TopicPartition, TaskProgress>,
    commits: u64,
    aborts: u64,
    commit_seconds_last: f64,
    warned: BTreeMap<Arc<str>, u64>,
}

impl Progress {
    pub fn tasks(&self) -> BTreeMap<TopicPartition, TaskProgress> {
        self.read(|inner| inner.tasks.clone())
    }
    /// The counters of all ingest tasks in this process.
    pub fn counters(&self) -> Counters {
        self.read(|inner| {
            let mut sum = Counters::default();
            inner.tasks.values().for_each(|task| sum.add(&task.counters));
            sum
        })
    }
    /// (commits, aborts, seconds that the last commit took)
    pub fn commits(&self) -> (u64, u64, f64) {
        self.read(|inner| (inner.commits, inner.aborts, inner.commit_seconds_last))
    }
    /// Rows that failed a check with `otherwise: warn`, by check.
    pub fn warned(&self) -> BTreeMap<Arc<str>, u64> {
        self.read(|inner| inner.warned.clone())
    }

    pub(super) fn set(&self, partition: &TopicPartition, task: TaskProgress) {
        self.write(|inner| {
            let checkpoint = inner.tasks.get(partition).and_then(|before| before.checkpoint);
            inner.tasks.insert(partition.clone(), TaskProgress { checkpoint, ..task });
        });
    }
    pub(super) fn checkpointed(&self, partition: &TopicPartition, offset: i64, bytes: usize, seconds: f64) {
        self.write(|inner| {
            if let Some(task) = inner.tasks.get_mut(partition) {
                task.checkpoint = Some((offset, bytes, seconds));
            }
        });
    }
    pub(super) fn open_windows(&self, partition: &TopicPartition, open: u64) {
        self.write(|inner| {
            if let Some(task) = inner.tasks.get_mut(partition) {
                task.open_windows = Some(open);
            }
        });
    }
    pub(super) fn remove(&self, partition: &TopicPartition) {
        self.write(|inner| {
            inner.tasks.remove(partition);
        });
    }
    pub(super) fn committed(&self, seconds: f64) {
        self.write(|inner| {
            inner.commits += 1;
            inner.commit_seconds_last = seconds;
        });
    }
    pub(super) fn aborted(&self) {
        self.write(|inner| inner.aborts += 1);
    }
    pub(super) fn warn(&self, counts: &BTreeMap<Arc<str>, u64>) {
        if counts.is_empty() {
            return;
        }
        self.write(|inner| {
            for (check, rows) in counts {
                *inner.warned.entry(Arc::clone(check)).or_default() += rows;
            }
        });
    }

    fn read<T>(&self, read: impl FnOnce(&Inner) -> T) -> T {
        read(&self.inner.lock().unwrap_or_else(std::sync::PoisonError::into_inner))
    }
    fn write(&self, write: impl FnOnce(&mut Inner)) {
        write(&mut self.inner.lock().unwrap_or_else(std::sync::PoisonError::into_inner));
    }
}
