//! Connectors on the log in memory: the runtime's rules with a scripted source, and folders that change meanwhile.
//!
//! Time is handed in: a wait for others moves it on.

mod folders;
#[cfg(feature = "planted-faults")]
mod rules;

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::log::memory::MemoryLog;
use crate::log::{Event, Log, TopicSpec};
use crate::record::{OwnedRecord, TopicPartition};

use super::control::{control_topic, dead_topic, read_status};
use super::progress::Progress;
use super::runner::{Ended, Job, Opener, Runner, Stream};
use super::source::{Batch, Budget, Phase, Positions, Source, SourceError};
use super::{ConnectError, Result};

const NAME: &str = "c";
const TOPIC: &str = "data";
const PARTITIONS: i32 = 3;
/// Far more than any scenario takes.
const STEPS_MAX: usize = 20_000;
const TICK: Duration = Duration::from_millis(50);

/// A log with a connector's topics, and its time.
#[derive(Clone)]
struct World {
    log: MemoryLog,
    began: Instant,
    first_ms: i64,
}

impl World {
    fn new() -> Self {
        let log = MemoryLog::new();
        let spec = |name: String, partitions| TopicSpec { name, partitions, config: Default::default() };
        let topics =
            [spec(TOPIC.into(), PARTITIONS), spec(control_topic(NAME), 1), spec(dead_topic(NAME), 1)];
        log.create_topics(&topics).unwrap();
        let first_ms = log.time_ms();
        Self { log, began: Instant::now(), first_ms }
    }

    fn now(&self) -> Instant {
        self.began + Duration::from_millis((self.log.time_ms() - self.first_ms) as u64)
    }

    fn pass(&self, time: Duration) {
        self.log.set_time_ms(self.log.time_ms() + time.as_millis() as i64);
    }

    fn job(&self, instance: &str, open: Box<Opener>) -> Arc<Job> {
        let world = self.clone();
        Arc::new(Job {
            name: NAME.into(),
            streams: vec![Stream { topic: TOPIC.into(), partitions: PARTITIONS }],
            dead_partitions: 1,
            max_reject_ratio: 1.0,
            instance: instance.into(),
            until_caught_up: true,
            open,
            pause: Box::new(move |time| world.pass(time)),
        })
    }

    fn join(&self, job: &Arc<Job>) -> Result<Runner> {
        let log: Arc<dyn Log> = Arc::new(self.log.clone());
        Runner::join(job, &log, &Progress::default(), self.now())
    }

    /// Takes turns until it is caught up. A member that can't go on is followed by another; one whose process is gone
    /// ends with the error.
    fn finish(&self, job: &Arc<Job>) -> Result<()> {
        let mut runner = self.join(job)?;
        for _ in 0..STEPS_MAX {
            self.pass(TICK);
            match runner.step(self.now(), false)? {
                None => {}
                Some(Ended::Fenced(_) | Ended::Rejoin(_)) => runner = self.join(job)?,
                Some(Ended::CaughtUp | Ended::Stopped) => return Ok(()),
            }
        }
        panic!("it did not catch up");
    }

    /// All that is committed in a topic.
    fn records(&self, topic: &str) -> Vec<OwnedRecord> {
        let mut records = Vec::new();
        for partition in 0..self.log.partitions(topic).unwrap().unwrap() {
            let mut reader = self.log.reader().unwrap();
            reader.assign(&[(TopicPartition::new(topic, partition), 0)]).unwrap();
            'partition: loop {
                for event in reader.poll(Duration::ZERO).unwrap() {
                    match event {
                        Event::Run(run) => {
                            records.extend((0..run.records.len()).map(|index| run.records.to_owned(index)));
                        }
                        Event::End { .. } => break 'partition,
                        _ => {}
                    }
                }
            }
        }
        records
    }

    fn values(&self) -> Vec<String> {
        let text = |record: OwnedRecord| String::from_utf8(record.value.unwrap()).unwrap();
        self.records(TOPIC).into_iter().map(text).collect()
    }

    fn committed(&self) -> u64 {
        read_status(&self.log, NAME).unwrap().unwrap()[0].0.tally.records
    }
}

/// Hands over numbers, a few a step; its position is how many.
struct Script {
    next: u64,
    end: u64,
    step: u64,
    told: Arc<Mutex<Vec<u64>>>,
    world: World,
}

impl Script {
    fn opener(world: &World, end: u64, told: &Arc<Mutex<Vec<u64>>>) -> Box<Opener> {
        let (world, told) = (world.clone(), Arc::clone(told));
        Box::new(move |_, at: &Positions| {
            let next = at.get("at").map_or(0, |text| std::str::from_utf8(text).unwrap().parse().unwrap());
            Ok(Box::new(Script { next, end, step: 3, told: Arc::clone(&told), world: world.clone() }))
        })
    }
}

impl Source for Script {
    fn next(&mut self, batch: &mut Batch, _: Budget) -> Result<Phase, SourceError> {
        if self.next == self.end {
            return Ok(Phase::CaughtUp);
        }
        for number in self.next..(self.next + self.step).min(self.end) {
            batch.push(0, None, number.to_string().as_bytes(), number);
            self.next = number + 1;
        }
        batch.position("at", Some(self.next.to_string().into_bytes()));
        Ok(Phase::More)
    }

    /// Rule C3: what it is told of can be read by everybody.
    fn committed(&mut self, positions: &Positions) -> Result<(), SourceError> {
        let at: u64 =
            positions.get("at").map_or(0, |text| std::str::from_utf8(text).unwrap().parse().unwrap());
        let committed = self.world.committed();
        if at > committed {
            return Err(SourceError::input("C3", format!("told of {at}, and {committed} are committed"), ""));
        }
        self.told.lock().unwrap().push(at);
        Ok(())
    }

    fn lag_bytes(&self) -> u64 {
        self.end - self.next
    }
}
