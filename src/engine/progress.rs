//! How far each task has come, for whoever watches: the demo, `/metrics`, the lag table.
//!
//! Invariant: what is shown is committed; an epoch that aborts never shows.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::record::{Micros, TopicPartition};

use super::offsets::Counters;
use super::start::{RecoveryTook, Start, StartStep};
use crate::state::{Checkpoints, RequestCounts};

/// The durations of this many commits are kept for watchers that look up now and then.
const COMMITS_KEPT: usize = 4096;

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
    pub derived_dead: u64,
    /// Windows (each with its key) that are open; counted when the task stops, as counting reads all of them.
    pub open_windows: Option<u64>,
    pub state_bytes: usize,
    /// The last checkpoint's offset, bytes and seconds.
    pub checkpoint: Option<(i64, usize, f64)>,
    /// How it came to this process; none for what needs no recovery.
    pub recovery: Option<RecoveryTook>,
}

/// Shared between the workers that write it and the watchers that read it.
#[derive(Clone, Default)]
pub struct Progress {
    inner: Arc<Mutex<Inner>>,
}

#[derive(Default)]
struct Inner {
    tasks: BTreeMap<TopicPartition, TaskProgress>,
    /// What partitions that this process has given up had come to.
    left: BTreeMap<TopicPartition, Counters>,
    commits: u64,
    aborts: u64,
    /// When the last epoch was aborted, and why.
    last_abort: Option<(Instant, String)>,
    /// Seconds that each of the last commits took, the oldest first.
    commit_seconds: VecDeque<f64>,
    last_commit: Option<Instant>,
    warned: BTreeMap<Arc<str>, u64>,
    /// What this process has counted itself, by source: partitions that come and go don't show in it.
    processed: BTreeMap<Arc<str>, Counters>,
    /// Rows that this process found expired, by stage.
    expired: BTreeMap<Arc<str>, u64>,
    /// Rows that a view failed on in this process, by stage.
    derived_dead: BTreeMap<Arc<str>, u64>,
    start: Start,
    checkpoints: u64,
    /// Where checkpoints are copied to, which counts what it is asked for.
    copies: Option<Arc<Checkpoints>>,
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
    /// The same with the partitions that have left this process, as they were then: it never falls.
    pub fn counters_kept(&self) -> Counters {
        self.read(|inner| {
            let mut last = inner.left.clone();
            for (partition, task) in &inner.tasks {
                let known = last.entry(partition.clone()).or_default();
                if known.read <= task.counters.read {
                    *known = task.counters;
                }
            }
            let mut sum = Counters::default();
            last.values().for_each(|counters| sum.add(counters));
            sum
        })
    }
    /// (commits, aborts, seconds that the last commit took)
    pub fn commits(&self) -> (u64, u64, f64) {
        let last = |inner: &Inner| inner.commit_seconds.back().copied().unwrap_or(0.0);
        self.read(|inner| (inner.commits, inner.aborts, last(inner)))
    }
    /// Seconds that the commits after the first `seen` took, and how many commits there are now. Of a long
    /// silence only the last ones are known.
    pub fn commit_seconds_since(&self, seen: u64) -> (Vec<f64>, u64) {
        self.read(|inner| {
            let fresh = usize::try_from(inner.commits.saturating_sub(seen)).unwrap_or(usize::MAX);
            let skipped = inner.commit_seconds.len().saturating_sub(fresh);
            (inner.commit_seconds.iter().skip(skipped).copied().collect(), inner.commits)
        })
    }
    /// How long ago this process committed; `None`: it never has.
    pub fn commit_age(&self) -> Option<Duration> {
        self.read(|inner| inner.last_commit.map(|at| at.elapsed()))
    }
    /// How long ago this process aborted an epoch, and why; `None`: it never has.
    pub fn last_abort(&self) -> Option<(Duration, String)> {
        self.read(|inner| inner.last_abort.as_ref().map(|(at, why)| (at.elapsed(), why.clone())))
    }
    /// What this process has counted since it began, by source. Unlike [`Self::counters`] it never goes back.
    pub fn processed(&self) -> BTreeMap<Arc<str>, Counters> {
        self.read(|inner| inner.processed.clone())
    }
    /// Rows that this process found expired since it began, by stage.
    pub fn expired(&self) -> BTreeMap<Arc<str>, u64> {
        self.read(|inner| inner.expired.clone())
    }
    /// Derived rows that a view failed on in this process since it began, by stage.
    pub fn derived_dead(&self) -> BTreeMap<Arc<str>, u64> {
        self.read(|inner| inner.derived_dead.clone())
    }
    /// Rows that failed a check with `otherwise: warn`, by check.
    pub fn warned(&self) -> BTreeMap<Arc<str>, u64> {
        self.read(|inner| inner.warned.clone())
    }

    /// The steps of this process's start that its workers have come to, with seconds from the start of `run` to the
    /// slowest worker's.
    pub fn start(&self) -> Vec<(StartStep, f64)> {
        self.read(|inner| inner.start.steps())
    }
    /// Checkpoints that this process has written.
    pub fn checkpoints(&self) -> u64 {
        self.read(|inner| inner.checkpoints)
    }
    /// What this process has asked the object store of its checkpoints for.
    pub fn copy_requests(&self) -> RequestCounts {
        self.read(|inner| {
            inner.copies.as_ref().map_or_else(RequestCounts::default, |copies| copies.requests())
        })
    }

    pub(crate) fn set(&self, partition: &TopicPartition, task: TaskProgress) {
        self.write(|inner| {
            let before = inner.tasks.get(partition);
            let checkpoint = before.and_then(|before| before.checkpoint);
            let recovery = task.recovery.or(before.and_then(|before| before.recovery));
            // A task that is new here brings counts that another process has made.
            let (counted, expired, derived_dead) = before.map_or((Counters::default(), 0, 0), |before| {
                let expired = task.expired.saturating_sub(before.expired);
                let derived_dead = task.derived_dead.saturating_sub(before.derived_dead);
                (task.counters.since(&before.counters), expired, derived_dead)
            });
            if let Some(source) = &task.source {
                inner.processed.entry(Arc::clone(source)).or_default().add(&counted);
            }
            if task.role == TaskRole::Keyed {
                *inner.expired.entry(Arc::clone(&task.stage)).or_default() += expired;
                *inner.derived_dead.entry(Arc::clone(&task.stage)).or_default() += derived_dead;
            }
            inner.tasks.insert(partition.clone(), TaskProgress { checkpoint, recovery, ..task });
        });
    }
    pub(crate) fn checkpointed(&self, partition: &TopicPartition, offset: i64, bytes: usize, seconds: f64) {
        self.write(|inner| {
            inner.checkpoints += 1;
            if let Some(task) = inner.tasks.get_mut(partition) {
                task.checkpoint = Some((offset, bytes, seconds));
            }
        });
    }
    pub(crate) fn reached(&self, step: StartStep, worker: usize, seconds: f64) {
        self.write(|inner| inner.start.reached(step, worker, seconds));
    }
    pub(crate) fn recovered(&self, partition: &TopicPartition, took: RecoveryTook) {
        self.write(|inner| {
            if let Some(task) = inner.tasks.get_mut(partition) {
                task.recovery = Some(took);
            }
        });
    }
    pub(crate) fn copies_to(&self, copies: &Arc<Checkpoints>) {
        self.write(|inner| inner.copies = Some(Arc::clone(copies)));
    }
    pub(crate) fn open_windows(&self, partition: &TopicPartition, open: u64) {
        self.write(|inner| {
            if let Some(task) = inner.tasks.get_mut(partition) {
                task.open_windows = Some(open);
            }
        });
    }
    pub(crate) fn remove(&self, partition: &TopicPartition) {
        self.write(|inner| {
            if let Some(task) = inner.tasks.remove(partition) {
                inner.left.insert(partition.clone(), task.counters);
            }
        });
    }
    pub(crate) fn committed(&self, seconds: f64) {
        self.write(|inner| {
            inner.commits += 1;
            inner.last_commit = Some(Instant::now());
            if inner.commit_seconds.len() == COMMITS_KEPT {
                inner.commit_seconds.pop_front();
            }
            inner.commit_seconds.push_back(seconds);
        });
    }
    pub(crate) fn aborted(&self, why: &str) {
        self.write(|inner| {
            inner.aborts += 1;
            inner.last_abort = Some((Instant::now(), why.to_owned()));
        });
    }
    pub(crate) fn warn(&self, counts: &BTreeMap<Arc<str>, u64>) {
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
