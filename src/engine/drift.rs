//! Reading origins in step: who is too far ahead of the slowest is paused (rule R14), whichever process reads it.
//! How far the others are is in what they commit: the watermark rides beside each offset.
//!
//! Invariant: nobody waits for an origin that can't move: one that is caught up, paused itself, or has not
//! moved within [`PATIENCE`].

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::log::Log;
use crate::plan::{Plan, StageInput};
use crate::planted::{Fault, planted};
use crate::record::{Micros, TopicPartition};
use crate::time::WATERMARK_MIN;

use super::Result;
use super::machine::{Job, Machine};
use super::offsets::OffsetMetadata;
use super::topics::TopicNames;

const PATIENCE: Duration = Duration::from_secs(30);
/// How often the origins of other processes are looked at.
const OTHERS_EVERY: Duration = Duration::from_secs(1);
/// How often it is asked whether a source has got more partitions.
const PARTITIONS_EVERY: Duration = Duration::from_secs(10);

#[derive(Clone)]
struct Pace {
    watermark: Micros,
    /// It stands at its end: nothing unread.
    caught_up: bool,
    paused: bool,
    /// This process reads it.
    own: bool,
    moved: Instant,
}

impl Pace {
    fn set(&mut self, watermark: Micros, caught_up: bool, now: Instant) {
        if self.watermark != watermark || self.caught_up != caught_up {
            self.moved = now;
        }
        (self.watermark, self.caught_up) = (watermark, caught_up);
    }
}

/// How far each origin has come, as far as this process knows.
#[derive(Clone, Default)]
pub struct Drift {
    paces: Arc<Mutex<BTreeMap<TopicPartition, Pace>>>,
}

impl Drift {
    /// Reports an origin; returns whether it must pause.
    pub fn must_pause(
        &self,
        origin: &TopicPartition,
        watermark: Micros,
        caught_up: bool,
        max_drift: Micros,
        now: Instant,
    ) -> bool {
        let mut paces = self.lock();
        let fresh = Pace { watermark, caught_up, paused: false, own: true, moved: now };
        let pace = paces.entry(origin.clone()).or_insert(fresh);
        pace.set(watermark, caught_up, now);
        pace.own = true;
        let slowest = paces
            .iter()
            .filter(|(other, pace)| {
                if planted(Fault::WaitForAll) {
                    return *other != origin;
                }
                let moves = now - pace.moved < PATIENCE || planted(Fault::PatienceWithoutEnd);
                *other != origin && !pace.caught_up && !pace.paused && moves
            })
            .map(|(_, pace)| pace.watermark)
            .min();
        let paused = slowest.is_some_and(|slowest| watermark > slowest.saturating_add(max_drift));
        if let Some(pace) = paces.get_mut(origin) {
            pace.paused = paused;
        }
        paused
    }

    pub fn remove(&self, origin: &TopicPartition) {
        self.lock().remove(origin);
    }

    /// What is known of an origin that another process reads.
    fn other(&self, origin: TopicPartition, watermark: Micros, caught_up: bool, now: Instant) {
        let mut paces = self.lock();
        let fresh = Pace { watermark, caught_up, paused: false, own: false, moved: now };
        let pace = paces.entry(origin).or_insert(fresh);
        if !pace.own {
            pace.set(watermark, caught_up, now);
        }
    }

    /// The highest watermark among this process's origins; `None`: it reads none.
    fn fastest(&self) -> Option<Micros> {
        self.lock().values().filter(|pace| pace.own).map(|pace| pace.watermark).max()
    }

    fn is_own(&self, origin: &TopicPartition) -> bool {
        self.lock().get(origin).is_some_and(|pace| pace.own)
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<TopicPartition, Pace>> {
        self.paces.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The source partitions of a topology as other processes read them, looked at from time to time.
pub struct Others {
    view: Arc<View>,
    /// When the last look began, and the look while it lasts.
    look: Mutex<(Option<Instant>, Option<Job<()>>)>,
}

/// Source partitions from outside: whoever reads them commits how far they are.
struct View {
    drift: Drift,
    log: Arc<dyn Log>,
    group: String,
    topics: Vec<Arc<str>>,
    origins: Mutex<Origins>,
    max_drift: Micros,
}

#[derive(Default)]
struct Origins {
    all: Vec<TopicPartition>,
    asked: Option<Instant>,
}

impl Others {
    pub fn new(plan: &Plan, names: &TopicNames, log: &Arc<dyn Log>, drift: &Drift) -> Self {
        let mut topics = Vec::new();
        for (stage, spec) in plan.stages.iter().enumerate() {
            let StageInput::Source(_) = spec.input else { continue };
            topics.push(names.input_topic(plan, stage));
        }
        let (drift, log, group) = (drift.clone(), Arc::clone(log), names.group.clone());
        let view = View { drift, log, group, topics, origins: Mutex::default(), max_drift: plan.max_drift };
        Self { view: Arc::new(view), look: Mutex::default() }
    }

    /// Begins a look beside the caller's work if one is due. Nobody waits for it: the log may be away.
    pub fn watch(&self, machine: &Arc<dyn Machine>) {
        // Another worker of this process is about it.
        let Ok(mut look) = self.look.try_lock() else { return };
        let now = machine.now();
        let looks = look.1.as_ref().is_some_and(|look| !look.is_finished());
        let rests = look.0.is_some_and(|began| now.saturating_duration_since(began) < OTHERS_EVERY);
        if looks || rests || planted(Fault::OthersUnwatched) {
            return;
        }
        if !self.view.may_have_grown(now) && self.view.others().is_empty() {
            return;
        }
        let (view, of) = (Arc::clone(&self.view), Arc::clone(machine));
        let begun = Job::start(&**machine, move || {
            if let Err(error) = view.look(of.now()) {
                tracing::debug!("how far other processes are could not be read: {error}");
            }
        });
        *look = (Some(now), Some(begun));
    }
}

impl View {
    fn origins(&self) -> MutexGuard<'_, Origins> {
        self.origins.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn others(&self) -> Vec<TopicPartition> {
        self.origins().all.iter().filter(|origin| !self.drift.is_own(origin)).cloned().collect()
    }

    fn may_have_grown(&self, now: Instant) -> bool {
        let asked = self.origins().asked;
        asked.is_none_or(|asked| now.saturating_duration_since(asked) >= PARTITIONS_EVERY)
    }

    /// Learns of partitions that were added.
    fn ask_partitions(&self, now: Instant) -> Result<()> {
        let mut all = Vec::new();
        for topic in &self.topics {
            let partitions = 0..self.log.partitions(topic)?.unwrap_or(0);
            all.extend(partitions.map(|partition| TopicPartition::new(Arc::clone(topic), partition)));
        }
        *self.origins() = Origins { all, asked: Some(now) };
        Ok(())
    }

    fn look(&self, now: Instant) -> Result<()> {
        let Some(fastest) = self.drift.fastest() else { return Ok(()) };
        if self.may_have_grown(now) {
            self.ask_partitions(now)?;
        }
        let others = self.others();
        if others.is_empty() {
            return Ok(());
        }
        let committed = self.log.committed_so_far(&self.group, &others, Duration::ZERO)?;
        for (origin, position) in others.into_iter().zip(committed) {
            let (offset, watermark, idle) = match position {
                None => (0, WATERMARK_MIN, false),
                Some(position) => {
                    let metadata = OffsetMetadata::parse(&position.metadata, &origin)?;
                    (position.offset, metadata.watermark(), metadata.idle)
                }
            };
            // Only of one that somebody here might wait for does it matter whether it has unread records.
            let slow = fastest > watermark.saturating_add(self.max_drift);
            let caught_up = idle || !slow || self.log.bounds(&origin)?.end <= offset;
            let caught_up = caught_up && !planted(Fault::OthersNeverCaughtUp);
            self.drift.other(origin, watermark, caught_up, now);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::log::memory::MemoryLog;
    use crate::log::{Outgoing, Position, TopicSpec};

    const PLAN: &str = "{name: t, max_drift: 100s, sources: {s: {topic: in, format: json, columns: {at: timestamp}, \
                        event_time: at}}, views: {v: select at from s}, sinks: {v: {topic: {name: out}}}}";

    #[test]
    fn the_one_ahead_waits_for_what_another_process_has_not_read() {
        let memory = MemoryLog::new();
        let log: Arc<dyn Log> = Arc::new(memory.clone());
        let topic = TopicSpec { name: "in".into(), partitions: 2, config: BTreeMap::new() };
        log.create_topics(&[topic]).unwrap();
        let (a, b) = (TopicPartition::new("in", 0), TopicPartition::new("in", 1));
        let mut producer = log.producer().unwrap();
        let record = Outgoing { value: Some(b"{}"), ..Outgoing::default() };
        producer.produce(&b, &[record; 10]).unwrap();
        producer.flush(Duration::from_secs(5)).unwrap();
        let plan = crate::plan::parse(PLAN, "t.yaml").unwrap();
        let names = TopicNames::prepare(&plan, &*log, None).unwrap();
        let drift = Drift::default();
        let others = Others::new(&plan, &names, &log, &drift).view;
        let (began, second) = (Instant::now(), 1_000_000);
        let pause = |now| drift.must_pause(&a, 1000 * second, false, plan.max_drift, now);
        let commit = |offset, watermark: Micros, idle| {
            let mut metadata = OffsetMetadata::new(watermark);
            metadata.idle = idle;
            let position = Position { offset, metadata: metadata.to_text() };
            log.commit_offsets(&names.group, &[(b.clone(), position)]).unwrap();
        };
        assert!(!pause(began), "nothing is known of the other");
        others.look(began).unwrap();
        assert!(pause(began), "it has committed nothing yet");
        commit(3, 800 * second, false);
        others.look(began).unwrap();
        assert!(pause(began), "200 s behind");
        commit(4, 950 * second, false);
        others.look(began).unwrap();
        assert!(!pause(began), "near enough");
        commit(10, 800 * second, false);
        others.look(began).unwrap();
        assert!(!pause(began), "it has read all");
        commit(3, 800 * second, true);
        others.look(began).unwrap();
        assert!(!pause(began), "idle");
        commit(3, 800 * second, false);
        others.look(began).unwrap();
        assert!(pause(began + PATIENCE / 2));
        others.look(began + PATIENCE * 2).unwrap();
        assert!(!pause(began + PATIENCE * 2), "nobody waits for one that does not move");
        // A partition that is added later, with records that the other process has yet to read.
        memory.add_partitions("in", 3);
        producer.produce(&TopicPartition::new("in", 2), &[record; 10]).unwrap();
        producer.flush(Duration::from_secs(5)).unwrap();
        others.look(began + PATIENCE * 3).unwrap();
        assert!(pause(began + PATIENCE * 3), "it has committed nothing of the new one");
        let added = Position { offset: 10, metadata: OffsetMetadata::new(0).to_text() };
        log.commit_offsets(&names.group, &[(TopicPartition::new("in", 2), added)]).unwrap();
        others.look(began + PATIENCE * 3).unwrap();
        assert!(!pause(began + PATIENCE * 3));
        // It comes over to this process, which knows better.
        assert!(!drift.must_pause(&b, 990 * second, false, plan.max_drift, began));
        others.look(began).unwrap();
        assert!(!pause(began));
    }

    #[test]
    fn the_one_ahead_waits_for_one_that_can_move() {
        let now = Instant::now();
        let (drift, a, b) = (Drift::default(), TopicPartition::new("in", 0), TopicPartition::new("in", 1));
        assert!(!drift.must_pause(&a, 1000, false, 100, now), "alone");
        assert!(!drift.must_pause(&b, 0, false, 100, now), "the slowest");
        assert!(drift.must_pause(&a, 1000, false, 100, now), "too far ahead");
        assert!(!drift.must_pause(&b, 950, false, 100, now), "it moves on");
        assert!(!drift.must_pause(&a, 1000, false, 100, now), "near enough again");
        assert!(!drift.must_pause(&b, 0, true, 100, now), "nothing to read");
        assert!(!drift.must_pause(&a, 1000, false, 100, now), "nobody waits for an end");
    }
}
