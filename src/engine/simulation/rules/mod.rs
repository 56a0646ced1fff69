//! Each rule of the protocol, by the failure that it prevents: with the rule broken by a planted fault the failure
//! comes, and without the fault it does not. Rules R2, R4 and R14 have files of their own; R8 is `verify`'s, and its
//! scenarios are in `tool/verify/tests.rs`.

mod checkpoints;
mod drift;
mod idleness;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::feed::FIRST_SECOND;
use super::scene::{NEVER, Scene, equal, only_with_the_rule, values};
use super::settings::Settings;
use crate::engine::TopicNames;
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

/// Processes between whom the partitions are shared.
fn shared_by(processes: usize) -> Settings {
    Settings { hosts: processes, closers: processes, ..Settings::default() }
}

/// Holds with the rule and not without it, in one process and across two.
fn alone_and_together(fault: Fault, scenario: impl Fn(usize) -> Result<(), String>) {
    only_with_the_rule(fault, || scenario(1));
    only_with_the_rule(fault, || scenario(2));
}

/// On a cold start one origin runs a year ahead; the other has not been heard of.
#[test]
fn r3_cold_start() {
    alone_and_together(Fault::OriginsUndeclared, |processes| {
        let scene = Scene::new("retention: 1m", NEVER, shared_by(processes));
        let all = scene.start_all();
        (0..5).for_each(|number| scene.comes(0, "a", number, 365 * DAY + number * 600));
        scene.work_all(&all, 20);
        (0..5).for_each(|number| scene.comes(1, "b", number, number * 600));
        scene.work_all(&all, 20);
        let outcome = scene.end()?;
        equal("rows expired", outcome.expired, 0)?;
        equal("windows", values(&outcome, "ruled.minutely").len(), 10)
    });
}

/// The same records, live and days later, by all clocks that there are: one on the wall would decide otherwise.
#[test]
fn r5_days_later() {
    alone_and_together(Fault::WallClockDecides, |processes| {
        let at = |day: i64| {
            set_wall_clock((FIRST_SECOND + day * DAY) * 1_000_000);
            let scene = Scene::new("", NEVER, shared_by(processes));
            scene.comes(0, "a", 1, 0);
            scene.comes_stamped(0, "a", 2, 3 * DAY, 0);
            scene.comes(0, "a", 3, 10);
            scene.pass((day * DAY) as u64);
            let all = scene.start_all();
            scene.work_all(&all, 20);
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
    alone_and_together(Fault::LostRetraction, |processes| {
        let scene = Scene::new("", "1s", shared_by(processes));
        let all = scene.start_all();
        scene.work_all(&all, 5);
        scene.comes(0, "a", 10, 0);
        scene.comes(0, "a", 1, 200);
        scene.comes(1, "a", 0, 0);
        scene.work_all(&all, 20);
        scene.pass(5);
        scene.work_all(&all, 20);
        // The origin that was idle wakes: its row belongs to a window that is closed.
        scene.comes(1, "a", 5, 30);
        scene.work_all(&all, 20);
        let outcome = scene.end()?;
        let hours = values(&outcome, "ruled.hourly");
        equal("the hour's total", hours.iter().any(|hour| hour.contains(r#""total":16,"n":4"#)), true)
    });
}

/// The last minute of an hour waits for its grace, and so does the hour: its row is written once, whole.
#[test]
fn r6_no_stage_closes_too_early() {
    alone_and_together(Fault::GraceNotHeldBack, |processes| {
        let scene = Scene::new("grace: 30s", NEVER, shared_by(processes));
        let all = scene.start_all();
        for at in [100, 3_590, 3_610, 3_700] {
            (0..2).for_each(|partition| scene.comes(partition, "a", 1, at));
            scene.work_all(&all, 20);
        }
        let outcome = scene.end()?;
        let hours = values(&outcome, "ruled.hourly");
        equal("rows of the hours", hours.len(), 2)?;
        equal("the first hour", hours.iter().any(|hour| hour.contains(r#""total":4,"n":4"#)), true)
    });
}

/// An epoch is aborted and done again: its rows are folded once.
#[test]
fn r7_rows_are_folded_once() {
    alone_and_together(Fault::AbortKeepsEpoch, |processes| {
        let scene = Scene::new("", NEVER, shared_by(processes));
        let all = scene.start_all();
        scene.work_all(&all, 5);
        (0..4).for_each(|number| scene.comes(0, "a", 1, number));
        // They are read, and not yet folded.
        let is_read = || scene.position("numbers", 0).is_some_and(|(offset, _)| offset >= 4);
        let turns = all.iter().cycle().take(100);
        turns.take_while(|_| !is_read()).for_each(|process| scene.work(process, 1));
        scene.0.log.set_faults(Faults { aborts: 1.0, ..Faults::default() });
        scene.work_all(&all, 3);
        scene.0.log.set_faults(Faults::default());
        scene.work_all(&all, 10);
        let outcome = scene.end()?;
        let windows = values(&outcome, "ruled.minutely");
        equal("the window's count", windows.iter().all(|window| window.contains(r#""n":4"#)), true)
    });
}

/// A process crashes at each edge of a checkpoint: what is on its disk then is the state before it or after it.
#[test]
fn r7_no_torn_checkpoint() {
    only_with_the_rule(Fault::TornCheckpoint, || {
        for edge in 1..40 {
            let scene = Scene::new("", NEVER, Settings { copies: false, ..Settings::default() });
            let first = scene.start(0);
            let more = |number: i64| {
                ["a", "b", "c", "d"].iter().for_each(|key| scene.comes(0, key, number, number));
            };
            for number in 0..3 {
                more(number);
                scene.work(&first, 4);
            }
            more(3);
            (0..4).for_each(|_| scene.turn(&first));
            let (mut left, dying) = (edge, Arc::downgrade(&first));
            first.at_edges(move |_| {
                left -= 1;
                if let (0, Some(first)) = (left, dying.upgrade()) {
                    first.crash();
                }
            });
            while first.has_jobs() && !first.is_crashed() {
                first.do_job();
            }
            scene.kill(&first);
            let next = scene.start(0);
            more(4);
            scene.work(&next, 10);
            let outcome = scene.end()?;
            let windows = values(&outcome, "ruled.minutely");
            let whole = windows.iter().filter(|window| window.contains(r#""n":5,"total":10,"#)).count();
            equal("keys counted five times", whole, 4).map_err(|why| format!("edge {edge}: {why}"))?;
        }
        Ok(())
    });
}

/// State that is over its budget is checkpointed early, however long the next checkpoint is away: memory is bounded.
#[test]
fn r7_over_budget() {
    only_with_the_rule(Fault::BudgetIgnored, || {
        let settings = Settings {
            state_budget: 16_000,
            checkpoint_interval: Duration::from_secs(86_400),
            ..Settings::default()
        };
        let scene = Scene::new("", NEVER, settings);
        let process = scene.start(0);
        let mut most = 0;
        for number in 0..200 {
            scene.comes(0, &format!("key {number}"), 1, 5);
            scene.work(&process, 2);
            let tasks = process.progress().tasks();
            most = most.max(tasks.values().map(|task| task.state_bytes).max().unwrap_or(0));
        }
        let outcome = scene.end()?;
        equal("windows", values(&outcome, "ruled.minutely").len(), 200)?;
        if most <= 2 * 16_000 / 8 { Ok(()) } else { Err(format!("{most} bytes of a task lie in memory")) }
    });
}

/// The group rebalances five times in each epoch: the epochs come to their ends.
#[test]
fn r7_progress_under_rebalances() {
    alone_and_together(Fault::RebalanceAborts, |processes| {
        let epoch = Duration::from_secs(1);
        let scene = Scene::new("", NEVER, Settings { epoch, ..shared_by(processes) });
        let all = scene.start_all();
        scene.work_all(&all, 5);
        (0..4).for_each(|number| scene.comes(0, "a", 1, number));
        for _ in 0..20 {
            scene.work_all(&all, 20);
            scene.0.log.rebalance(&TopicNames::of(&scene.0.plan).group);
        }
        let committed = scene.position("numbers", 0).map(|(offset, _)| offset);
        scene.end()?;
        equal("committed", committed, Some(4))
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
    alone_and_together(Fault::EndsByRecords, |processes| {
        let scene = Scene::new("", NEVER, shared_by(processes));
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

/// The sources are read to their ends, and what they have given lies in the exchanges still.
#[test]
fn r10_the_last_stage_ends_it() {
    alone_and_together(Fault::EndsAtSources, |processes| {
        let scene = Scene::new("", NEVER, shared_by(processes));
        for partition in 0..2 {
            (0..10).for_each(|number| scene.comes(partition, "a", 1, number * 600));
        }
        let outcome = scene.end()?;
        equal("windows", values(&outcome, "ruled.minutely").len(), 10)?;
        let hours: Vec<_> = values(&outcome, "ruled.hourly");
        equal("the hours' counts", hours.iter().filter(|hour| hour.contains(r#""n":"#)).count(), 2)
    });
}

/// Records of one event time come from two origins, in either order: which is first does not depend on that.
#[test]
fn r11_ties_have_an_order() {
    alone_and_together(Fault::TiesByArrival, |processes| {
        let first_of = |order: [i32; 2]| {
            let scene = Scene::new("", NEVER, shared_by(processes));
            let all = scene.start_all();
            scene.work_all(&all, 5);
            for partition in order {
                scene.comes(partition, "a", i64::from(partition), 5);
                scene.work_all(&all, 20);
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
