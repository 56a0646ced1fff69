//! Each rule of the protocol, by the failure that it prevents: with the rule broken by a planted fault the failure
//! comes, and without the fault it does not. Rules R2, R4 and R14 have files of their own; R8 is `verify`'s, and its
//! scenarios are in `tool/verify/tests.rs`.

mod checkpoints;
mod drift;
mod idleness;

use std::sync::atomic::Ordering;
use std::time::Duration;

use super::feed::FIRST_SECOND;
use super::scene::{NEVER, Scene, equal, only_with_the_rule, values};
use super::world::Settings;
use crate::log::memory::Faults;
use crate::log::{Log, Outgoing};
use crate::planted::{Fault, set_wall_clock};
use crate::record::TopicPartition;

const DAY: i64 = 86_400;

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
