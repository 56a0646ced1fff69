//! Rule R8: what `verify` compares, and when. Each scenario holds, and fails once the rule is broken by a planted fault.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use super::{Difference, VerifyOptions, VerifyReport, ViewReport, verify};
use crate::engine::simulation::member::ProcessLog;
use crate::engine::simulation::process::Process;
use crate::engine::simulation::scene::{NEVER, Scene, equal, only_with_the_rule};
use crate::engine::simulation::settings::Settings;
use crate::engine::{ExpiredWindow, Meta, Progress};
use crate::log::{Log, Outgoing, Transactor};
use crate::planted::Fault;
use crate::record::TopicPartition;

/// Verifies; `meanwhile` is told what `verify` is about to ask of the log, each time.
fn verified(scene: &Scene, meanwhile: impl FnMut(&str) + Send + 'static) -> Result<VerifyReport, String> {
    let process = Process::new(&scene.0, "verify".into(), "verify".into(), Default::default(), 0);
    process.at_edges(meanwhile);
    let log: Arc<dyn Log> = Arc::new(ProcessLog { inner: scene.0.log.clone(), process });
    let options = VerifyOptions {
        threads: 1,
        state_budget: 1 << 20,
        scratch: None,
        patience: Duration::from_secs(20),
        differences_max: 3,
    };
    let report = verify(&scene.0.plan, &log, &options, &Progress::default(), &AtomicBool::new(false));
    scene.give_up()?;
    report.map_err(|error| error.to_string())
}

fn view<'a>(report: &'a VerifyReport, name: &str) -> &'a ViewReport {
    report.views.iter().find(|view| view.view == name).unwrap()
}

/// The counts of a view: equal, differing, pending, not compared.
fn counts(report: &VerifyReport, name: &str) -> (u64, u64, u64, u64) {
    let view = view(report, name);
    (view.equal, view.differing, view.pending, view.not_compared)
}

/// Two origins that have both come to 0:01:40, so that the first minute is closed; six records.
fn first_minute(scene: &Scene) {
    for partition in 0..2 {
        [0, 30, 100].iter().for_each(|&at| scene.comes(partition, "a", 1, at));
    }
}

/// A transaction of somebody else, open in each partition of a topic.
fn open_transaction(scene: &Scene, topic: &str) -> Box<dyn Transactor> {
    let mut other = scene.0.log.transactor("somebody else", Duration::from_secs(600)).unwrap();
    other.begin().unwrap();
    for number in 0..scene.0.log.partitions(topic).unwrap().unwrap() {
        let record = Outgoing { value: Some(b"never committed"), ..Outgoing::default() };
        other.produce(&TopicPartition::new(topic, number), &[record]).unwrap();
    }
    other
}

/// The sources are committed, and what that brings to the exchange is not read yet.
#[test]
fn r8_keyed_tasks_are_waited_for() {
    only_with_the_rule(Fault::VerifyBeforeKeyed, || {
        let scene = Scene::new("", NEVER, Settings::default());
        let process = scene.start(0);
        scene.work(&process, 3);
        first_minute(&scene);
        while scene.position("numbers", 0).is_none() {
            scene.turn(&process);
        }
        let (running, mut asked) = (scene.clone(), 0);
        let report = verified(&scene, move |what| {
            asked += u32::from(what == "asks for offsets");
            // Once for each cut, once for each keyed task; more often by who waits.
            if asked > 12 && what == "asks for offsets" {
                running.work(&process, 1);
            }
        })?;
        equal("minutes", counts(&report, "minutely"), (1, 0, 1, 0))
    });
}

/// What the cut brought to the exchange is hidden behind a transaction that another has open: it is there all the same.
#[test]
fn r8_what_is_hidden_in_an_exchange_is_waited_for() {
    only_with_the_rule(Fault::VerifyStableOnly, || {
        let scene = Scene::new("", NEVER, Settings::default());
        let process = scene.start(0);
        scene.work(&process, 3);
        let mut other = open_transaction(&scene, "ruled.exchange.minutely");
        first_minute(&scene);
        scene.work(&process, 10);
        equal("the source's offset", scene.committed("numbers", 0).0, 3)?;
        let (running, mut ends, mut looks) = (scene.clone(), 0, 0);
        let report = verified(&scene, move |what| {
            ends += u32::from(what == "asks for ends");
            looks += u32::from(ends > 0 && what == "asks for bounds");
            if looks == 3 {
                other.abort().unwrap();
                running.work(&process, 10);
                looks += 1;
            }
        })?;
        equal("minutes", counts(&report, "minutely"), (1, 0, 1, 0))
    });
}

/// What the keyed tasks have made of it is hidden in the same way.
#[test]
fn r8_what_is_hidden_in_a_refined_topic_is_waited_for() {
    only_with_the_rule(Fault::VerifyStableOnly, || {
        let scene = Scene::new("", NEVER, Settings::default());
        let process = scene.start(0);
        scene.work(&process, 3);
        let mut other = open_transaction(&scene, "ruled.minutely");
        first_minute(&scene);
        scene.work(&process, 20);
        let (mut ends, mut looks) = (0, 0);
        let report = verified(&scene, move |what| {
            // Of two exchanges, and then of what is refined.
            ends += u32::from(what == "asks for ends");
            looks += u32::from(ends > 2 && what == "asks for bounds");
            if looks == 8 {
                other.abort().unwrap();
                looks += 1;
            }
        })?;
        equal("minutes", counts(&report, "minutely"), (1, 0, 1, 0))
    });
}

/// An origin is idle at the cut, and wakes: the minute that was emitted without it is corrected while it is compared.
#[test]
fn r8_idleness_is_ignored() {
    only_with_the_rule(Fault::VerifyHonoursIdleness, || {
        let scene = Scene::new("", "1s", Settings::default());
        let process = idle_origin(&scene);
        let (running, mut asked) = (scene.clone(), 0);
        let report = verified(&scene, move |what| {
            asked += u32::from(what == "asks for offsets");
            if asked == 2 {
                running.comes(1, "a", 7, 30);
                running.work(&process, 20);
                asked += 1;
            }
        })?;
        equal("minutes", counts(&report, "minutely"), (0, 0, 1, 1))
    });
}

/// A partition that has never had a record holds nothing back, unless one comes while it is compared.
#[test]
fn r8_a_partition_without_records_is_left_out() {
    let scene = Scene::new("", "1s", Settings::default());
    let process = scene.start(0);
    scene.comes(0, "a", 10, 0);
    scene.comes(0, "a", 1, 200);
    scene.work(&process, 20);
    scene.pass(5);
    scene.work(&process, 20);
    let report = verified(&scene, |_| ()).unwrap();
    assert_eq!(counts(&report, "minutely"), (1, 0, 1, 0));
    let (running, mut asked) = (scene.clone(), 0);
    let report = verified(&scene, move |what| {
        asked += u32::from(what == "asks for offsets");
        if asked == 2 {
            running.comes(1, "a", 7, 30);
            running.work(&process, 20);
            asked += 1;
        }
    });
    assert_eq!(counts(&report.unwrap(), "minutely"), (0, 0, 1, 1));
}

/// A window that is open at the cut is not compared: the live run has nothing of it yet.
#[test]
fn r8_open_windows_are_not_compared() {
    only_with_the_rule(Fault::VerifyOpenWindows, || {
        let scene = Scene::new("", NEVER, Settings::default());
        let process = scene.start(0);
        first_minute(&scene);
        scene.comes(1, "b", 1, 100);
        scene.work(&process, 20);
        let report = verified(&scene, |_| ())?;
        equal("minutes", counts(&report, "minutely"), (1, 0, 2, 0))?;
        equal("hours", counts(&report, "hourly"), (0, 0, 1, 0))
    });
}

/// A window was emitted without an idle origin and corrected when that woke: the last value counts.
#[test]
fn r8_the_last_value_counts() {
    only_with_the_rule(Fault::VerifyFirstValue, || {
        let scene = Scene::new("", "1s", Settings::default());
        let process = idle_origin(&scene);
        scene.comes(1, "a", 7, 30);
        scene.comes(1, "a", 1, 200);
        scene.work(&process, 20);
        let report = verified(&scene, |_| ())?;
        equal("minutes", counts(&report, "minutely"), (1, 0, 1, 0))
    });
}

/// The second origin is idle at 0:00:00, and the first has gone on to 0:03:20: one minute is emitted.
fn idle_origin(scene: &Scene) -> Arc<Process> {
    let process = scene.start(0);
    scene.comes(1, "a", 5, 0);
    scene.comes(0, "a", 10, 0);
    scene.comes(0, "a", 1, 200);
    scene.work(&process, 20);
    scene.pass(5);
    scene.work(&process, 20);
    process
}

/// An origin slept past the retention of the windows that its rows belong to: the live run lacks them, and says of which
/// windows. The hour that is made of such a minute lacks them, too.
#[test]
fn r12_what_expired_is_named() {
    only_with_the_rule(Fault::ExpiredUnnamed, || {
        let scene = Scene::new("retention: 1m", "1s", Settings::default());
        let process = idle_origin(&scene);
        // The first minute has been over for more than its retention; the third one has not.
        scene.comes(1, "a", 7, 30);
        scene.comes(1, "b", 1, 130);
        scene.work(&process, 20);
        for at in [5000, 7300] {
            (0..2).for_each(|partition| scene.comes(partition, "a", 1, at));
            scene.work(&process, 20);
        }
        let meta = Meta::read(&scene.0.plan, &scene.0.log).unwrap().unwrap();
        let named = |window: &ExpiredWindow| {
            let ExpiredWindow { view, partition, rows, first_offset, last_offset, .. } = window;
            (view.to_string(), *partition, *rows, *first_offset, *last_offset)
        };
        let named: Vec<_> = meta.expired.iter().map(named).collect();
        equal("named", named, vec![("minutely".into(), 1, 1, 1, 1)])?;
        let report = verified(&scene, |_| ())?;
        equal("minutes", counts(&report, "minutely"), (3, 0, 1, 0))?;
        equal("hours", counts(&report, "hourly"), (1, 0, 1, 0))?;
        let minutes = view(&report, "minutely");
        equal("expired minutes", minutes.expired, 1)?;
        let totals = |row: &str| row.split(r#""total":"#).nth(1).map(|rest| rest[..2].to_owned());
        let Difference { live, replay, .. } = &minutes.expired_rows[0];
        equal(
            "totals",
            (totals(live.as_ref().unwrap()), totals(replay.as_ref().unwrap())),
            (Some("15".into()), Some("22".into())),
        )?;
        equal("expired hours", view(&report, "hourly").expired, 1)
    });
}
