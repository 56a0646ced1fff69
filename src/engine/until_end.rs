//! The ends that `run --until-end` goes to, and whether the topology is there (rule R10).
//!
//! Nothing is asked of the processes: what the group has committed says how far all of them are, whoever holds a
//! partition, and whichever of them run to their ends or for ever. Level by level: once every source is committed
//! past its end, the ends of the exchanges below are looked up; once those are committed past, the next ones.
//!
//! Invariant: once a process has found the topology done, none of its workers tells an end any more.
//! Invariant: ends are compared with committed positions, not with offsets of records: transaction markers are gaps.
//! Invariant: a partition that is added after the start is not waited for.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, RwLock, RwLockReadGuard};
use std::time::{Duration, Instant};

use crate::log::{Log, LogError};
use crate::plan::{Plan, StageInput};
use crate::planted::{Fault, planted};
use crate::record::TopicPartition;
use crate::time::WATERMARK_MAX;

use super::Result;
use super::offsets::OffsetMetadata;
use super::topics::TopicNames;

/// The committed offsets are looked up this often at most.
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// Tasks that are new to their process tell their watermark again, when the exchange's end may be known already. So
/// the ends are looked up again; not for ever, since other processes may go on writing.
const LOOKS_AGAIN: u32 = 2;

pub struct UntilEnd {
    /// Tasks at their ends send the end-of-input watermark, and the topology is done when that has come everywhere.
    pub close: bool,
    /// Of the sources.
    ends: BTreeMap<TopicPartition, i64>,
    telling: RwLock<()>,
    way: Mutex<Way>,
    done: AtomicBool,
}

/// How far the topology is known to be.
struct Way {
    /// The exchanges of the levels that are still to come.
    levels: Vec<Vec<TopicPartition>>,
    /// What must be committed before the next level is looked at.
    ends: BTreeMap<TopicPartition, i64>,
    /// `ends` are those of exchanges.
    keyed: bool,
    /// Of all levels.
    exchanges: Vec<TopicPartition>,
    looks_left: u32,
    looked: Option<Instant>,
}

impl UntilEnd {
    /// The sources' last stable ends as they are now.
    pub fn new(plan: &Plan, names: &TopicNames, log: &dyn Log, close: bool) -> Result<Self> {
        let (mut ends, mut to_commit) = (BTreeMap::new(), BTreeMap::new());
        let mut levels: Vec<Vec<TopicPartition>> = Vec::new();
        let mut level_of: Vec<usize> = Vec::new();
        for (stage, spec) in plan.stages.iter().enumerate() {
            let topic = names.input_topic(plan, stage);
            let partitions =
                (0..names.count(&topic)).map(|number| TopicPartition::new(Arc::clone(&topic), number));
            match &spec.input {
                StageInput::Source(_) => {
                    level_of.push(0);
                    for partition in partitions {
                        let bounds = log.bounds(&partition)?;
                        // Of an empty partition nothing is ever committed.
                        if bounds.start < bounds.end {
                            to_commit.insert(partition.clone(), bounds.end);
                        }
                        ends.insert(partition, bounds.end);
                    }
                }
                StageInput::Exchange { upstream } => {
                    let level = 1 + upstream.iter().map(|&stage| level_of[stage]).max().unwrap_or(0);
                    level_of.push(level);
                    levels.resize_with(levels.len().max(level), Vec::new);
                    levels[level - 1].extend(partitions);
                }
            }
        }
        levels.reverse();
        let exchanges = levels.concat();
        let way =
            Way { levels, ends: to_commit, keyed: false, exchanges, looks_left: LOOKS_AGAIN, looked: None };
        Ok(Self {
            close,
            ends,
            telling: RwLock::default(),
            way: Mutex::new(way),
            done: AtomicBool::new(false),
        })
    }

    /// Whether a source's partition is read to its end.
    pub fn reached(&self, partition: &TopicPartition, position: i64) -> bool {
        self.ends.get(partition).is_some_and(|&end| position >= end)
    }

    /// Whether it is a source's partition that was there at the start.
    pub fn has_end(&self, partition: &TopicPartition) -> bool {
        self.ends.contains_key(partition)
    }

    pub fn is_done(&self) -> bool {
        self.done.load(Ordering::Acquire)
    }

    /// Kept while ends are told in a commit, so that nobody finds the topology done meanwhile: what an earlier run has
    /// committed may say so, while what is told anew lies in the exchanges unread. `None`: it is done, or somebody is
    /// looking, and nothing is told now.
    pub fn tell(&self) -> Option<RwLockReadGuard<'_, ()>> {
        let telling = self.telling.try_read().ok()?;
        (!self.is_done()).then_some(telling)
    }

    /// Looks up what is committed, unless somebody did so just now.
    pub fn look(&self, log: &dyn Log, names: &TopicNames, now: Instant) -> Result<bool> {
        let Ok(_nobody_tells) = self.telling.try_write() else { return Ok(self.is_done()) };
        let Ok(mut way) = self.way.try_lock() else { return Ok(self.is_done()) };
        if self.is_done() || way.looked.is_some_and(|looked| now - looked < LOOK_EVERY) {
            return Ok(self.is_done());
        }
        let passed = loop {
            match self.has_passed(&way, log, names) {
                Ok(true) if planted(Fault::EndsAtSources) => break Ok(true),
                Ok(true) => {}
                Ok(false) => break Ok(false),
                Err(error) => break Err(error),
            }
            let level = match way.levels.pop() {
                Some(level) => level,
                None if way.looks_left > 0 => {
                    way.looks_left -= 1;
                    way.exchanges.clone()
                }
                None => break Ok(true),
            };
            match self.next_ends(&level, log) {
                Ok(ends) => (way.ends, way.keyed) = (ends, true),
                Err(error) => {
                    way.levels.push(level);
                    break Err(error);
                }
            }
        };
        way.looked = Some(now);
        match passed {
            Ok(done) => {
                self.done.store(done, Ordering::Release);
                Ok(done)
            }
            // Brokers that are away are waited for by those who read.
            Err(super::EngineError::Log(LogError::Unreachable { .. })) => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn has_passed(&self, way: &Way, log: &dyn Log, names: &TopicNames) -> Result<bool> {
        let partitions: Vec<TopicPartition> = way.ends.keys().cloned().collect();
        if partitions.is_empty() {
            return Ok(true);
        }
        let committed = log.committed_so_far(&names.group, &partitions, Duration::ZERO)?;
        for ((partition, end), committed) in way.ends.iter().zip(committed) {
            let Some(committed) = committed.filter(|committed| committed.offset >= *end) else {
                return Ok(false);
            };
            // The source is at its end; that its end was told as well is what an exchange shows.
            if self.close
                && way.keyed
                && OffsetMetadata::parse(&committed.metadata, partition)?.watermark() != WATERMARK_MAX
            {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// What was committed above is in the exchanges by now, but its transactions' markers may be on their way: so all
    /// that is written counts.
    fn next_ends(&self, level: &[TopicPartition], log: &dyn Log) -> Result<BTreeMap<TopicPartition, i64>> {
        let ends = log.written_ends(level)?;
        let mut next = BTreeMap::new();
        for (partition, end) in level.iter().zip(ends) {
            if self.close || log.bounds(partition)?.start < end {
                next.insert(partition.clone(), end);
            }
        }
        Ok(next)
    }
}
