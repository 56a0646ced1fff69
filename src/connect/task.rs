//! One task of a connector: its source, what it has committed, and what its open epoch adds to that.
//!
//! Invariant: what an epoch adds counts only once its transaction is committed.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::engine::RejectWindow;
use crate::log::{Outgoing, Position};
use crate::record::TopicPartition;

use super::control::{Command, OffsetMark, POSITION, Remembered, TASK, TaskStatus};
use super::progress::{Tally, TaskProgress};
use super::source::{Phase, Positions, Source};

const RETRY_FIRST: Duration = Duration::from_millis(500);
const RETRY_MAX: Duration = Duration::from_secs(60);

/// What is to be tried again, and when.
pub(super) struct Trouble {
    pub why: String,
    pub until: Instant,
}

pub(super) struct Task {
    pub partition: TopicPartition,
    /// `None` while it is to be opened at the committed positions.
    pub source: Option<Box<dyn Source>>,
    pub phase: Phase,
    pub trouble: Option<Trouble>,
    failures: u32,
    pub committed: Positions,
    status: TaskStatus,
    rejects: RejectWindow,
    /// Where the control topic is read on.
    pub consumed: i64,
    pub open: Adds,
    pub last_commit: Instant,
}

/// What the open epoch adds.
#[derive(Default)]
pub(super) struct Adds {
    pub positions: BTreeMap<String, Option<Vec<u8>>>,
    pub tally: Tally,
    pub rejects: Option<RejectWindow>,
    pub dirty: bool,
    /// Commands that are done with it, by key.
    handled: Vec<Vec<u8>>,
    paused: Option<bool>,
}

impl Task {
    pub fn new(partition: TopicPartition, remembered: Remembered, now: Instant) -> Self {
        let mut task = Self {
            partition,
            source: None,
            phase: Phase::More,
            trouble: None,
            failures: 0,
            committed: remembered.positions,
            status: remembered.status,
            rejects: RejectWindow::default(),
            consumed: remembered.offset,
            open: Adds::default(),
            last_commit: now,
        };
        remembered.commands.into_iter().for_each(|(key, command)| task.handle(key, command));
        task
    }

    /// Does a command; it counts with the epoch.
    pub fn handle(&mut self, key: Vec<u8>, command: Command) {
        self.open.paused = Some(command == Command::Pause);
        self.open.handled.push(key);
        self.open.dirty = true;
    }

    /// Something is to be committed though the source has nothing.
    pub fn has_handled(&self) -> bool {
        !self.open.handled.is_empty()
    }

    pub fn is_paused(&self) -> bool {
        self.open.paused.unwrap_or(self.status.paused)
    }

    /// There may be more at once.
    pub fn is_busy(&self, now: Instant) -> bool {
        self.phase == Phase::More && self.is_ready(now)
    }

    pub fn tally(&self) -> &Tally {
        &self.status.tally
    }

    /// The rejects among the last records, those of the open epoch included.
    pub fn rejects(&mut self) -> &mut RejectWindow {
        self.open.rejects.get_or_insert_with(|| self.rejects.clone())
    }

    /// Whether the source may be asked.
    pub fn is_ready(&self, now: Instant) -> bool {
        !self.is_paused() && self.trouble.as_ref().is_none_or(|trouble| trouble.until <= now)
    }

    /// It failed: another source is opened in a while, longer each time.
    pub fn fail(&mut self, why: String, now: Instant) {
        self.source = None;
        let pause = RETRY_FIRST.saturating_mul(1 << self.failures.min(16)).min(RETRY_MAX);
        self.failures += 1;
        self.phase = Phase::Waiting;
        self.trouble = Some(Trouble { why, until: now + pause });
    }

    pub fn went_well(&mut self) {
        self.failures = 0;
        self.trouble = None;
    }

    pub fn phase_name(&self) -> &'static str {
        if self.is_paused() {
            return "paused";
        }
        match (&self.trouble, self.phase) {
            (Some(_), _) => "retrying",
            (None, Phase::More) => "reading",
            (None, Phase::Waiting) => "waiting",
            (None, Phase::CaughtUp) => "caught up",
        }
    }

    fn lag_bytes(&self) -> u64 {
        self.source.as_ref().map_or(self.status.lag_bytes, |source| source.lag_bytes())
    }

    fn next_status(&self, instance: &str) -> TaskStatus {
        let mut tally = self.status.tally.clone();
        tally.add(&self.open.tally);
        TaskStatus {
            phase: self.phase_name().to_owned(),
            tally,
            lag_bytes: self.lag_bytes(),
            paused: self.is_paused(),
            instance: instance.to_owned(),
            ..TaskStatus::new(self.status.epoch + 1)
        }
    }

    /// What the epoch writes into the control topic.
    pub fn control_records(&self, instance: &str) -> Vec<(Vec<u8>, Option<Vec<u8>>)> {
        let position = |(key, value): (&String, &Option<Vec<u8>>)| {
            (format!("{POSITION}{key}").into_bytes(), value.clone())
        };
        let status = serde_json::to_vec(&self.next_status(instance)).unwrap_or_default();
        let task = (TASK.as_bytes().to_vec(), Some(status));
        let handled = self.open.handled.iter().map(|key| (key.clone(), None));
        self.open.positions.iter().map(position).chain(handled).chain([task]).collect()
    }

    /// What the group's offset of the control topic becomes with the epoch.
    pub fn offset(&self) -> Position {
        Position { offset: self.consumed, metadata: OffsetMark::text(self.status.epoch + 1) }
    }

    /// The epoch's transaction is committed.
    pub fn commit(&mut self, instance: &str, now: Instant) {
        self.status = self.next_status(instance);
        let adds = std::mem::take(&mut self.open);
        apply(&mut self.committed, adds.positions);
        if let Some(rejects) = adds.rejects {
            self.rejects = rejects;
        }
        self.last_commit = now;
    }

    /// The epoch is dropped: another source is opened at the committed positions.
    pub fn abort(&mut self) {
        // Commands were read, and will not be read again: they go into the next epoch.
        let Adds { handled, paused, .. } = std::mem::take(&mut self.open);
        self.open = Adds { dirty: !handled.is_empty(), handled, paused, ..Adds::default() };
        self.source = None;
        self.phase = Phase::More;
    }

    pub fn progress(&self) -> TaskProgress {
        TaskProgress {
            phase: self.phase_name().to_owned(),
            tally: self.status.tally.clone(),
            lag_bytes: self.lag_bytes(),
            trouble: self.trouble.as_ref().map(|trouble| trouble.why.clone()),
        }
    }
}

pub(super) fn apply(positions: &mut Positions, updates: BTreeMap<String, Option<Vec<u8>>>) {
    for (key, value) in updates {
        match value {
            Some(value) => positions.insert(key, value),
            None => positions.remove(&key),
        };
    }
}

/// As the member takes them.
pub(super) fn outgoing(records: &[(Vec<u8>, Option<Vec<u8>>)]) -> Vec<Outgoing<'_>> {
    records
        .iter()
        .map(|(key, value)| Outgoing { key: Some(key), value: value.as_deref(), ..Outgoing::default() })
        .collect()
}
