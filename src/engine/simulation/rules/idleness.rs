//! Rule R4: an origin goes idle, and wakes.

use std::sync::atomic::Ordering;
use std::time::Duration;

use crate::engine::simulation::outcome::read;
use crate::engine::simulation::scene::{Scene, equal, only_with_the_rule, values};
use crate::engine::simulation::settings::Settings;
use crate::log::memory::Faults;
use crate::planted::Fault;

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
        let written = read(&scene.0.log, "ruled.minutely").len();
        scene.end()?;
        equal("windows closed while one origin is idle", written > 3, true)
    });
}

/// A process has just found its origins idle when it is stopped, past its session. Another takes them over and reads on:
/// what the first one says of them when it wakes must not count.
#[test]
fn r4_a_zombies_idle_mark() {
    only_with_the_rule(Fault::UnfencedIdle, || {
        let scene = Scene::new("retention: 1m", "1s", Settings { hosts: 2, ..Settings::default() });
        let zombie = scene.start(0);
        (0..2).for_each(|partition| scene.comes(partition, "a", 1, 0));
        scene.work(&zombie, 20);
        let (meanwhile, mut stopped) = (scene.clone(), false);
        zombie.at_edges(move |what| {
            if what != "commits" || std::mem::replace(&mut stopped, true) {
                return;
            }
            meanwhile.pass(11);
            let other = meanwhile.start(1);
            meanwhile.work(&other, 6);
            meanwhile.comes(1, "a", 1, 600);
            meanwhile.work(&other, 6);
        });
        scene.pass(2);
        scene.work(&zombie, 1);
        equal("the other one's offset", scene.committed("numbers", 1).0, 2)?;
        let other = scene.0.process(1);
        scene.work(&other, 4);
        // The first origin was never idle for who reads it now: it holds its window open.
        scene.comes(0, "a", 1, 30);
        scene.work(&other, 10);
        let outcome = scene.end()?;
        equal("rows expired", outcome.expired, 0)?;
        let windows = values(&outcome, "ruled.minutely");
        equal("the window's count", windows.iter().any(|window| window.contains(r#""n":3"#)), true)
    });
}

/// An idle origin wakes at a new owner, with a record that moves no watermark: those whom it brings no row must hear of
/// it, too.
#[test]
fn r4_a_new_owner_tells_of_the_wake() {
    only_with_the_rule(Fault::WakeForgotten, || {
        let scene = Scene::new("retention: 1m", "1s", Settings { hosts: 2, ..Settings::default() });
        let first = scene.start(0);
        (0..2).for_each(|partition| scene.comes(partition, "a", 1, 0));
        scene.work(&first, 20);
        scene.pass(5);
        scene.work(&first, 20);
        assert!(scene.committed("numbers", 1).1.idle);
        first.stop.store(true, Ordering::Relaxed);
        scene.work(&first, 4);
        let next = scene.start(1);
        scene.work(&next, 4);
        scene.comes(1, "a", 1, 0);
        scene.work(&next, 4);
        scene.comes(0, "a", 1, 600);
        scene.work(&next, 10);
        // It has not come further than the first window, in which rows may still come.
        ["b", "c", "d", "e", "f"].iter().for_each(|key| scene.comes(1, key, 1, 0));
        scene.work(&next, 10);
        let outcome = scene.end()?;
        equal("rows expired", outcome.expired, 0)?;
        equal("windows", values(&outcome, "ruled.minutely").len(), 7)
    });
}

/// An idle origin wakes and is idle again before the epoch ends: its row has woken it for those who read it, and they
/// must hear that it sleeps.
#[test]
fn r4_idle_again_within_an_epoch() {
    only_with_the_rule(Fault::IdleAgainUntold, || {
        let scene = Scene::new("", "1s", Settings { epoch: Duration::from_secs(3), ..Settings::default() });
        let process = scene.start(0);
        let epoch = |records: &[(i32, i64)]| {
            records.iter().for_each(|&(partition, at)| scene.comes(partition, "a", 1, at));
            scene.work(&process, 5);
            scene.pass(2);
            scene.work(&process, 5);
            scene.pass(4);
            scene.work(&process, 5);
        };
        epoch(&[(0, 0), (1, 0)]);
        epoch(&[]);
        assert!(scene.committed("numbers", 1).1.idle);
        epoch(&[(1, 10)]);
        assert!(scene.committed("numbers", 1).1.idle);
        (0..6).for_each(|number| epoch(&[(0, 100 + number * 60)]));
        let written = read(&scene.0.log, "ruled.minutely").len();
        scene.end()?;
        equal("windows closed while one origin is idle", written > 3, true)
    });
}

/// A process stands still for a while in which records come, and the first polls bring nothing of them yet: their origin
/// is not idle.
#[test]
fn r4_who_stood_still_looks_first() {
    only_with_the_rule(Fault::IdleUnlooked, || {
        let scene = Scene::new("retention: 1m", "2s", Settings::default());
        let process = scene.start(0);
        (0..2).for_each(|partition| scene.comes(partition, "a", 1, 0));
        scene.work(&process, 20);
        scene.pass(5);
        scene.comes(1, "a", 1, 10);
        scene.comes(0, "a", 1, 20);
        scene.0.log.set_faults(Faults { empty_reads: 1.0, ..Faults::default() });
        scene.work(&process, 3);
        scene.0.log.set_faults(Faults::default());
        scene.comes(0, "a", 1, 600);
        scene.work(&process, 10);
        scene.comes(1, "a", 1, 30);
        scene.work(&process, 10);
        let outcome = scene.end()?;
        equal("rows expired", outcome.expired, 0)?;
        let windows = values(&outcome, "ruled.minutely");
        equal("the window's count", windows.iter().any(|window| window.contains(r#""n":5"#)), true)
    });
}
