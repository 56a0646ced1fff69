//! Each rule of the protocol, by the failure that it prevents: with the rule broken by a planted fault the failure
//! comes, and without the fault it does not.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::create_sources;
use super::feed::{FIRST_SECOND, Happening, Record, planned};
use super::outcome::Outcome;
use super::process::Process;
use super::world::{Settings, World};
use crate::engine::{OffsetMetadata, TopicNames};
use crate::log::memory::Faults;
use crate::log::{Log, Outgoing};
use crate::planted::{Fault, plant, set_wall_clock};
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
const NEVER: &str = "1000d";
const DAY: i64 = 86_400;

/// A scenario in which a test says what happens.
struct Scene(Arc<World>);

impl Scene {
    fn new(more: &str, idle_after: &str, settings: Settings) -> Self {
        let text = TOPOLOGY.replace("{more}", more).replace("{idle_after}", idle_after);
        // Long epochs take long to come to an end.
        let ticks_max = if settings.epoch.is_zero() { 4_000 } else { 60_000 };
        let settings = Settings { ticks_max, ..settings };
        let world = World::new(&planned(&text), settings, Vec::new(), 1, true);
        create_sources(&world.log, &[("numbers", 2)]);
        Self(world)
    }

    /// A record comes: key, number, seconds of event time.
    fn comes(&self, partition: i32, key: &str, number: i64, at: i64) {
        self.comes_stamped(partition, key, number, at, at);
    }

    fn comes_stamped(&self, partition: i32, key: &str, number: i64, at: i64, stamped: i64) {
        let (at, stamped) = (FIRST_SECOND + at, FIRST_SECOND + stamped);
        let value = Some(format!(r#"{{"k":"{key}","v":{number},"at":{at}}}"#));
        let records = vec![Record { value, timestamp_ms: stamped * 1000 }];
        self.0.happens(Happening::Records { to: TopicPartition::new("numbers", partition), records });
    }

    fn start(&self, host: usize) -> Arc<Process> {
        self.0.start_host(host).unwrap()
    }

    /// The process takes turns, ten milliseconds each, and its checkpoints are written.
    fn work(&self, process: &Arc<Process>, turns: usize) {
        for _ in 0..turns {
            self.0.advance(Duration::from_millis(10));
            self.0.step(process, 0);
            while process.has_jobs() && !process.is_crashed() {
                process.do_job();
            }
        }
    }

    /// Turns until the group has come so far in the source's first partition.
    fn work_until(&self, process: &Arc<Process>, topic: &str, offset: i64) {
        let partition = TopicPartition::new(topic, 0);
        let group = TopicNames::of(&self.0.plan).group;
        for _ in 0..50 {
            let position = self.0.log.committed(&group, std::slice::from_ref(&partition)).unwrap().remove(0);
            if position.is_some_and(|position| position.offset >= offset) {
                return;
            }
            self.work(process, 1);
        }
        panic!("{partition} does not come to {offset}");
    }

    fn pass(&self, seconds: u64) {
        self.0.advance(Duration::from_secs(seconds));
    }

    /// Reads to the end, closes all windows, and tells what has come.
    fn end(self) -> Result<Outcome, String> {
        if self.0.failure().is_none() {
            self.0.close();
        }
        let failure = self.0.failure();
        self.0.end_all();
        println!("{}", self.0.take_trace().join("\n"));
        match failure {
            Some(why) => Err(why),
            None => Ok(Outcome::read(&self.0.log, &self.0.plan, true)),
        }
    }

    fn committed(&self, topic: &str, partition: i32) -> (i64, OffsetMetadata) {
        let partition = TopicPartition::new(topic, partition);
        let group = TopicNames::of(&self.0.plan).group;
        let position =
            self.0.log.committed(&group, std::slice::from_ref(&partition)).unwrap().remove(0).unwrap();
        (position.offset, OffsetMetadata::parse(&position.metadata, &partition).unwrap())
    }
}

/// Holds without the fault, and does not with it.
fn only_with_the_rule(fault: Fault, scenario: impl Fn() -> Result<(), String>) {
    scenario().unwrap_or_else(|why| panic!("with the rule kept: {why}"));
    let planted = plant(fault);
    let outcome = scenario();
    drop(planted);
    let why = outcome.expect_err("with the rule broken, nothing is wrong");
    println!("{fault:?}: {why}");
}

fn values(outcome: &Outcome, topic: &str) -> Vec<String> {
    outcome.refined[topic].clone()
}

fn equal<T: PartialEq + std::fmt::Debug>(what: &str, found: T, expected: T) -> Result<(), String> {
    if found == expected { Ok(()) } else { Err(format!("{what}: {found:?} instead of {expected:?}")) }
}

/// A process stands still with an epoch open, past its session; another one takes its partitions and goes on. The first
/// wakes, is given a new assignment, and must not commit what it had under that one's fence.
#[test]
fn r1_zombie_commit() {
    only_with_the_rule(Fault::ZombieCommit, || {
        let scene = Scene::new(
            "",
            NEVER,
            Settings { hosts: 2, epoch: Duration::from_secs(14), ..Settings::default() },
        );
        let zombie = scene.start(0);
        scene.work(&zombie, 3);
        (0..5).for_each(|number| scene.comes(0, "a", number, number));
        scene.work(&zombie, 1);
        // Its epoch is open. Its session ends, its transaction does not.
        scene.pass(11);
        let other = scene.start(1);
        scene.work(&other, 4);
        other.stop.store(true, Ordering::Relaxed);
        scene.work(&other, 2);
        equal("the other one's offset", scene.committed("numbers", 0).0, 5)?;
        scene.work(&zombie, 10);
        let outcome = scene.end()?;
        equal("records copied", values(&outcome, "ruled.copy").len(), 5)
    });
}

/// A partition comes back to a machine whose checkpoint lies below what was trimmed since: a copy must be taken.
#[test]
fn r2_old_checkpoint() {
    only_with_the_rule(Fault::OldCheckpoint, || {
        let scene = Scene::new("", NEVER, Settings { hosts: 2, ..Settings::default() });
        let (old, mut second) = (scene.start(0), 0);
        let mut more = |process: &Arc<Process>, records: i64| {
            for _ in 0..records {
                second += 1;
                (0..2).for_each(|partition| scene.comes(partition, "a", second, second % 50));
                scene.work(process, 4);
            }
        };
        more(&old, 3);
        old.crash();
        scene.0.tick();
        scene.pass(60);
        let next = scene.start(1);
        scene.work(&next, 4);
        more(&next, 20);
        next.crash();
        scene.0.tick();
        let trimmed = (0..4).any(|number| {
            let partition = TopicPartition::new("ruled.exchange.minutely", number);
            scene.0.log.bounds(&partition).unwrap().start > 20
        });
        assert!(trimmed, "nothing was trimmed, so nothing could be missing");
        scene.pass(60);
        let outcome = scene.end()?;
        let expected = format!(r#""n":46,"total":{}"#, 2 * (1..=23).sum::<i64>());
        let windows = values(&outcome, "ruled.minutely");
        equal("the window holds all", windows.iter().any(|window| window.contains(&expected)), true)
    });
}

/// On a cold start one origin runs a year ahead; the other has not been heard of.
#[test]
fn r3_cold_start() {
    only_with_the_rule(Fault::OriginsUndeclared, || {
        let scene = Scene::new("retention: 1m", NEVER, Settings::default());
        let process = scene.start(0);
        (0..5).for_each(|number| scene.comes(0, "a", number, 365 * DAY + number * 600));
        scene.work(&process, 20);
        (0..5).for_each(|number| scene.comes(1, "b", number, number * 600));
        scene.work(&process, 20);
        let outcome = scene.end()?;
        equal("rows expired", outcome.expired, 0)?;
        equal("windows", values(&outcome, "ruled.minutely").len(), 10)
    });
}

/// All origins are idle. That is no reason to close what none of them has reached.
#[test]
fn r4_nobody_is_active() {
    only_with_the_rule(Fault::NobodyActiveClosesAll, || {
        let scene = Scene::new("retention: 1m", "1s", Settings::default());
        let process = scene.start(0);
        (0..2).for_each(|partition| scene.comes(partition, "a", 1, 0));
        scene.work(&process, 20);
        scene.pass(5);
        scene.work(&process, 20);
        assert!(scene.committed("numbers", 0).1.idle && scene.committed("numbers", 1).1.idle);
        (0..2).for_each(|partition| scene.comes(partition, "a", 1, 10));
        scene.work(&process, 20);
        let outcome = scene.end()?;
        equal("rows expired", outcome.expired, 0)?;
        equal("windows", values(&outcome, "ruled.minutely").len(), 1)
    });
}

/// An origin goes idle. Without a record that says so, nobody is released from waiting for it.
#[test]
fn r4_idleness_is_a_record() {
    only_with_the_rule(Fault::IdleUnrecorded, || {
        let scene = Scene::new("", "1s", Settings::default());
        let process = scene.start(0);
        scene.comes(1, "a", 1, 0);
        (0..5).for_each(|number| scene.comes(0, "a", 1, number * 100));
        scene.work(&process, 20);
        scene.pass(5);
        scene.comes(0, "a", 1, 500);
        scene.work(&process, 20);
        let written = super::outcome::read(&scene.0.log, "ruled.minutely").len();
        scene.end()?;
        equal("windows closed while one origin is idle", written > 3, true)
    });
}

/// The same records, live and days later: a clock on the wall would decide otherwise.
#[test]
fn r5_days_later() {
    only_with_the_rule(Fault::WallClockDecides, || {
        let at = |day: i64| {
            set_wall_clock((FIRST_SECOND + day * DAY) * 1_000_000);
            let scene = Scene::new("", NEVER, Settings::default());
            scene.comes(0, "a", 1, 0);
            scene.comes_stamped(0, "a", 2, 3 * DAY, 0);
            scene.comes(0, "a", 3, 10);
            scene.end()
        };
        let (live, later) = (at(0)?, at(10)?);
        equal("dead letters", later.dead.len(), live.dead.len())?;
        equal("refined", later.refined, live.refined)
    });
}

/// A window is corrected: what was emitted is taken back from the view above before the right result is added.
#[test]
fn r6_a_correction_replaces() {
    only_with_the_rule(Fault::LostRetraction, || {
        let scene = Scene::new("", "1s", Settings::default());
        let process = scene.start(0);
        scene.comes(0, "a", 10, 0);
        scene.comes(0, "a", 1, 200);
        scene.comes(1, "a", 0, 0);
        scene.work(&process, 20);
        scene.pass(5);
        scene.work(&process, 20);
        // The origin that was idle wakes: its row belongs to a window that is closed.
        scene.comes(1, "a", 5, 30);
        scene.work(&process, 20);
        let outcome = scene.end()?;
        let hours = values(&outcome, "ruled.hourly");
        equal("the hour's total", hours.iter().any(|hour| hour.contains(r#""total":16,"n":4"#)), true)
    });
}

/// An epoch is aborted and done again: its rows are folded once.
#[test]
fn r7_rows_are_folded_once() {
    only_with_the_rule(Fault::AbortKeepsEpoch, || {
        let scene = Scene::new("", NEVER, Settings::default());
        let process = scene.start(0);
        (0..4).for_each(|number| scene.comes(0, "a", 1, number));
        scene.work_until(&process, "numbers", 4);
        scene.0.log.set_faults(Faults { aborts: 1.0, ..Faults::default() });
        scene.work(&process, 3);
        scene.0.log.set_faults(Faults::default());
        scene.work(&process, 10);
        let outcome = scene.end()?;
        let windows = values(&outcome, "ruled.minutely");
        equal("the window's count", windows.iter().all(|window| window.contains(r#""n":4"#)), true)
    });
}

/// A checkpoint holds what is committed, and nothing else: the epoch is aborted between the two.
#[test]
fn r7_no_checkpoint_of_what_is_not_committed() {
    only_with_the_rule(Fault::CheckpointBeforeCommit, || {
        let scene = Scene::new("", NEVER, Settings::default());
        let process = scene.start(0);
        scene.work(&process, 3);
        (0..4).for_each(|number| scene.comes(0, "a", 1, number));
        scene.0.log.set_faults(Faults { aborts: 1.0, ..Faults::default() });
        scene.work(&process, 3);
        scene.0.log.set_faults(Faults::default());
        scene.work(&process, 10);
        scene.comes(0, "a", 1, 5);
        scene.work(&process, 10);
        let outcome = scene.end()?;
        equal("records copied", values(&outcome, "ruled.copy").len(), 5)?;
        let windows = values(&outcome, "ruled.minutely");
        equal("the window's count", windows.iter().any(|window| window.contains(r#""n":5"#)), true)
    });
}

/// A source ends with a transaction's marker, at which no record lies: the end is a position.
#[test]
fn r10_an_end_is_a_position() {
    only_with_the_rule(Fault::EndsByRecords, || {
        let scene = Scene::new("", NEVER, Settings::default());
        scene.comes(0, "a", 1, 0);
        let mut upstream = scene.0.log.transactor("upstream", Duration::from_secs(10)).unwrap();
        upstream.begin().unwrap();
        let value = format!(r#"{{"k":"a","v":2,"at":{FIRST_SECOND}}}"#);
        let record = Outgoing {
            value: Some(value.as_bytes()),
            timestamp_ms: Some(FIRST_SECOND * 1000),
            ..Outgoing::default()
        };
        upstream.produce(&TopicPartition::new("numbers", 1), &[record]).unwrap();
        upstream.commit().unwrap();
        let outcome = scene.end()?;
        equal("records copied", values(&outcome, "ruled.copy").len(), 2)
    });
}

/// Records of one event time come from two origins, in either order: which is first does not depend on that.
#[test]
fn r11_ties_have_an_order() {
    only_with_the_rule(Fault::TiesByArrival, || {
        let first_of = |order: [i32; 2]| {
            let scene = Scene::new("", NEVER, Settings::default());
            let process = scene.start(0);
            for partition in order {
                scene.comes(partition, "a", i64::from(partition), 5);
                scene.work(&process, 20);
            }
            Ok::<_, String>(values(&scene.end()?, "ruled.minutely"))
        };
        equal("the first", first_of([0, 1])?, first_of([1, 0])?)
    });
}

/// What an epoch has counted is dropped with it.
#[test]
fn r12_each_record_counts_once() {
    only_with_the_rule(Fault::CountersOutliveAbort, || {
        let scene = Scene::new("", NEVER, Settings::default());
        let process = scene.start(0);
        scene.work(&process, 3);
        (0..4).for_each(|number| scene.comes(0, "a", 1, number));
        scene.0.log.set_faults(Faults { aborts: 1.0, ..Faults::default() });
        scene.work(&process, 3);
        scene.0.log.set_faults(Faults::default());
        scene.work(&process, 10);
        let outcome = scene.end()?;
        equal("records read", outcome.counters.read, 4)?;
        equal("records refined", outcome.counters.refined, 4)
    });
}

/// One partition is far ahead of another that has nothing to read: nobody waits for that one.
#[test]
fn r14_nobody_waits_for_who_can_not_move() {
    only_with_the_rule(Fault::WaitForAll, || {
        let more = "max_drift: 1m";
        let short = Faults { short_reads: 1.0, short_read_max: 1, ..Faults::default() };
        let scene = Scene::new(more, NEVER, Settings { log: short, ..Settings::default() });
        scene.comes(1, "a", 0, 0);
        (0..20).for_each(|number| scene.comes(0, "a", number, number * 600));
        let outcome = scene.end()?;
        equal("records copied", values(&outcome, "ruled.copy").len(), 21)
    });
}
