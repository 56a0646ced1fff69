//! Rule R14: origins are read in step, across processes too, and nobody waits for one that can not move.

use std::sync::Arc;
use std::time::Duration;

use crate::engine::simulation::outcome::read;
use crate::engine::simulation::process::Process;
use crate::engine::simulation::scene::{NEVER, Scene, equal, only_with_the_rule, values};
use crate::engine::simulation::settings::Settings;
use crate::log::memory::Faults;
use crate::planted::Fault;
use crate::record::TopicPartition;

/// A poll yields one record of each partition.
fn one_by_one(hosts: usize) -> Settings {
    let log = Faults { short_reads: 1.0, short_read_max: 1, ..Faults::default() };
    Settings { hosts, log, ..Settings::default() }
}

/// Two processes, each of which reads one of the source's partitions.
fn two(scene: &Scene) -> (Arc<Process>, Arc<Process>) {
    let (first, second) = (scene.start(0), scene.start(1));
    // Both have joined before either is assigned anything.
    scene.work(&first, 1);
    scene.work(&second, 1);
    for _ in 0..4 {
        scene.work(&first, 1);
        scene.work(&second, 1);
    }
    for (process, number) in [(&first, 0), (&second, 1)] {
        let tasks = process.progress().tasks();
        assert!(tasks.contains_key(&TopicPartition::new("numbers", number)), "{tasks:?}");
    }
    (first, second)
}

fn offset(scene: &Scene, partition: i32) -> i64 {
    scene.position("numbers", partition).map_or(0, |(offset, _)| offset)
}

/// One partition is far ahead of another that has nothing to read: nobody waits for that one.
#[test]
fn r14_nobody_waits_for_who_can_not_move() {
    only_with_the_rule(Fault::WaitForAll, || {
        let more = "max_drift: 1m";
        let scene = Scene::new(more, NEVER, one_by_one(1));
        scene.comes(1, "a", 0, 0);
        (0..20).for_each(|number| scene.comes(0, "a", number, number * 600));
        let outcome = scene.end()?;
        equal("records copied", values(&outcome, "ruled.copy").len(), 21)
    });
}

/// Of two processes one reads three times as fast: it stays near the other.
#[test]
fn r14_processes_hold_each_other() {
    only_with_the_rule(Fault::OthersUnwatched, || {
        let scene = Scene::new("max_drift: 20m", NEVER, one_by_one(2));
        let (fast, slow) = two(&scene);
        for number in 0..20 {
            (0..2).for_each(|partition| scene.comes(partition, "a", number, number * 600));
        }
        let mut ahead_most = 0;
        for _ in 0..40 {
            scene.pass(1);
            scene.work(&fast, 3);
            scene.work(&slow, 1);
            ahead_most = ahead_most.max(offset(&scene, 0) - offset(&scene, 1));
        }
        equal("both are at their ends", (offset(&scene, 0), offset(&scene, 1)), (20, 20))?;
        let outcome = scene.end()?;
        equal("records copied", values(&outcome, "ruled.copy").len(), 40)?;
        // Two in twenty minutes, the one that is too far, and one that the other is known to have read a little later.
        if ahead_most <= 4 { Ok(()) } else { Err(format!("it was {ahead_most} records ahead")) }
    });
}

/// What the other process reads is read to its end, far behind: it is not waited for.
#[test]
fn r14_another_process_is_caught_up() {
    only_with_the_rule(Fault::OthersNeverCaughtUp, || {
        let scene = Scene::new("max_drift: 20m", NEVER, one_by_one(2));
        let (fast, done) = two(&scene);
        scene.comes(1, "a", 0, 0);
        scene.work(&done, 5);
        (0..20).for_each(|number| scene.comes(0, "a", number, number * 600));
        for _ in 0..25 {
            scene.0.advance(Duration::from_millis(500));
            scene.work(&fast, 1);
            scene.work(&done, 1);
        }
        equal("records read", (offset(&scene, 0), offset(&scene, 1)), (20, 1))?;
        scene.end().map(drop)
    });
}

/// What the other process reads does not move on in event time, though it has unread records: it is waited for a while,
/// and no longer.
#[test]
fn r14_another_process_does_not_move() {
    only_with_the_rule(Fault::PatienceWithoutEnd, || {
        let scene = Scene::new("max_drift: 20m", NEVER, one_by_one(2));
        let (fast, stuck) = two(&scene);
        (0..60).for_each(|number| scene.comes(1, "a", number, 0));
        (0..20).for_each(|number| scene.comes(0, "a", number, number * 600));
        let mut waited = false;
        for round in 0..45 {
            scene.pass(3);
            scene.work(&fast, 1);
            if round % 3 == 0 {
                scene.work(&stuck, 1);
            }
            waited |= round == 8 && offset(&scene, 0) < 6;
        }
        equal("it is waited for at first", waited, true)?;
        equal("records read", offset(&scene, 0), 20)?;
        equal("the other has records to read", offset(&scene, 1) < 60, true)?;
        scene.end().map(drop)
    });
}

/// A process is killed with a transaction open, and starts again: it aborts what it had begun and goes on at once, where
/// a stranger would wait for the dead one's session, and its readers for its transaction.
#[test]
fn r14_a_restart_goes_on_at_once() {
    only_with_the_rule(Fault::FreshTransactionalId, || {
        let epoch = Duration::from_secs(2);
        let scene = Scene::new("", NEVER, Settings { epoch, ..Settings::default() });
        let first = scene.start(0);
        scene.work(&first, 3);
        (0..4).for_each(|number| scene.comes(0, "a", 1, number));
        scene.work(&first, 3);
        first.crash();
        scene.0.tidy();
        let next = scene.start(0);
        scene.work(&next, 3);
        scene.pass(3);
        scene.work(&next, 3);
        let seen = read(&scene.0.log, "ruled.copy").len();
        scene.end()?;
        equal("records that readers see three seconds later", seen, 4)
    });
}
