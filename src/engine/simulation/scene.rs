//! A scene: a small topology in the simulated world, in which a test says what happens, one turn after the other.

use std::sync::Arc;
use std::time::Duration;

use super::create_sources;
use super::feed::{FIRST_SECOND, Happening, Record, planned};
use super::outcome::Outcome;
use super::process::Process;
use super::settings::Settings;
use super::world::World;
use crate::engine::{OffsetMetadata, TopicNames};
use crate::log::Log;
use crate::planted::{Fault, plant};
use crate::record::TopicPartition;

/// One source of two partitions; `{more}` stands for what a scenario needs besides.
const TOPOLOGY: &str = "
name: ruled
{more}
sources:
  numbers:
    topic: numbers
    format: json
    columns: {k: varchar, v: bigint, at: timestamp_s}
    event_time: at
    watermark: {out_of_orderness: 0s, idle_after: {idle_after}}
views:
  copy: select k, v from numbers
  minutely: |
    select window_start, window_end, k, count(*) as n, sum(v) as total, first(v) as first_v
    from tumble(numbers, at, interval '1 minute') group by window_start, window_end, k
  hourly: |
    select window_start, sum(total) as total, sum(n) as n
    from tumble(minutely, window_start, interval '1 hour') group by window_start
sinks:
  copy: {topic: {name: ruled.copy}}
  minutely: {topic: {name: ruled.minutely, key: [k, window_start, window_end]}}
  hourly: {topic: {name: ruled.hourly, key: [window_start]}}
";
pub const NEVER: &str = "1000d";

#[derive(Clone)]
pub struct Scene(pub Arc<World>);

impl Scene {
    pub fn new(more: &str, idle_after: &str, settings: Settings) -> Self {
        let text = TOPOLOGY.replace("{more}", more).replace("{idle_after}", idle_after);
        // Long epochs take long to come to an end.
        let ticks_max = if settings.epoch.is_zero() { 4_000 } else { 60_000 };
        let settings = Settings { ticks_max, ..settings };
        let world = World::new(&planned(&text), settings, Vec::new(), 1, true);
        create_sources(&world.log, &[("numbers", 2)]);
        Self(world)
    }

    /// A record comes: key, number, seconds of event time.
    pub fn comes(&self, partition: i32, key: &str, number: i64, at: i64) {
        self.comes_stamped(partition, key, number, at, at);
    }

    pub fn comes_stamped(&self, partition: i32, key: &str, number: i64, at: i64, stamped: i64) {
        let (at, stamped) = (FIRST_SECOND + at, FIRST_SECOND + stamped);
        let value = Some(format!(r#"{{"k":"{key}","v":{number},"at":{at}}}"#));
        let records = vec![Record { value, timestamp_ms: stamped * 1000 }];
        self.0.happens(Happening::Records { to: TopicPartition::new("numbers", partition), records });
    }

    pub fn start(&self, host: usize) -> Arc<Process> {
        self.0.start_host(host).unwrap()
    }

    /// A process on each host.
    pub fn start_all(&self) -> Vec<Arc<Process>> {
        (0..self.0.settings.hosts).map(|host| self.start(host)).collect()
    }

    /// All of them take turns, and their checkpoints are written.
    pub fn work_all(&self, processes: &[Arc<Process>], turns: usize) {
        for _ in 0..turns {
            processes.iter().for_each(|process| self.work(process, 1));
        }
    }

    /// The process takes turns, ten milliseconds each, and its checkpoints are written.
    pub fn work(&self, process: &Arc<Process>, turns: usize) {
        for _ in 0..turns {
            self.turn(process);
            while process.has_jobs() && !process.is_crashed() {
                process.do_job();
            }
        }
    }

    /// One turn, and nothing beside it.
    pub fn turn(&self, process: &Arc<Process>) {
        self.0.advance(Duration::from_millis(10));
        self.0.step(process, 0);
    }

    pub fn pass(&self, seconds: u64) {
        self.0.advance(Duration::from_secs(seconds));
    }

    /// The process is gone, with all that it has not flushed, and the group forgets it.
    pub fn kill(&self, process: &Arc<Process>) {
        process.crash();
        self.0.tidy();
        self.pass(60);
    }

    /// Reads to the end, closes all windows, and tells what has come.
    pub fn end(self) -> Result<Outcome, String> {
        if self.0.failure().is_none() {
            self.0.close();
        }
        self.give_up()?;
        Ok(Outcome::read(&self.0.log, &self.0.plan, true))
    }

    /// Ends all processes where they stand; the error says what has failed until then.
    pub fn give_up(&self) -> Result<(), String> {
        let failure = self.0.failure();
        self.0.end_all();
        println!("{}", self.0.take_trace().join("\n"));
        failure.map_or(Ok(()), Err)
    }

    pub fn position(&self, topic: &str, partition: i32) -> Option<(i64, OffsetMetadata)> {
        let partition = TopicPartition::new(topic, partition);
        let group = TopicNames::of(&self.0.plan).group;
        let position = self.0.log.committed(&group, std::slice::from_ref(&partition)).unwrap().remove(0)?;
        Some((position.offset, OffsetMetadata::parse(&position.metadata, &partition).unwrap()))
    }

    pub fn committed(&self, topic: &str, partition: i32) -> (i64, OffsetMetadata) {
        self.position(topic, partition).unwrap()
    }

    /// The first offsets that the partitions of a topic still hold.
    pub fn starts(&self, topic: &str) -> Vec<i64> {
        let partitions = 0..self.0.log.partitions(topic).unwrap().unwrap();
        partitions
            .map(|number| self.0.log.bounds(&TopicPartition::new(topic, number)).unwrap().start)
            .collect()
    }
}

/// Holds without the fault, and does not with it.
pub fn only_with_the_rule(fault: Fault, scenario: impl Fn() -> Result<(), String>) {
    scenario().unwrap_or_else(|why| panic!("with the rule kept: {why}"));
    let planted = plant(fault);
    let outcome = scenario();
    drop(planted);
    let why = outcome.expect_err("with the rule broken, nothing is wrong");
    println!("{fault:?}: {why}");
}

pub fn values(outcome: &Outcome, topic: &str) -> Vec<String> {
    outcome.refined[topic].clone()
}

pub fn equal<T: PartialEq + std::fmt::Debug>(what: &str, found: T, expected: T) -> Result<(), String> {
    if found == expected { Ok(()) } else { Err(format!("{what}: {found:?} instead of {expected:?}")) }
}
