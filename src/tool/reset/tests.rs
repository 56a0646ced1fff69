//! On the embedded broker, with real runs before and after.

use std::sync::atomic::AtomicBool;

use super::*;
use crate::engine::{Progress, RunOptions, RunReport, run};
use crate::serve::tests::{Cluster, keyed_plan, recent_ms, stateless_plan};
use crate::tool::status::{FileState, Status};

fn run_to_end(cluster: &Cluster, plan: &Arc<Plan>) -> Result<RunReport, EngineError> {
    let options =
        RunOptions { state_dir: cluster.dir.path().join("state"), until_end: true, ..RunOptions::default() };
    run(plan, &cluster.log, &options, &Progress::default(), &Arc::new(AtomicBool::new(false)))
}

fn options(cluster: &Cluster, to: ResetTo) -> ResetOptions {
    ResetOptions {
        to,
        state_dir: cluster.dir.path().join("state"),
        checkpoints: None,
        elsewhere_cleared: false,
        dry_run: false,
    }
}

/// A source with three good records and a dead one.
fn cluster() -> Cluster {
    let cluster = Cluster::start();
    cluster.create("orders", 2);
    let at = |hour: u32| format!(r#"{{"shop":"a","at":"2020-01-01T{hour:02}:00:00Z"}}"#);
    let (first, second, third) = (at(1), at(2), at(3));
    cluster.produce("orders", 0, recent_ms(), &[&first, &second, &third, "{"]);
    cluster
}

#[test]
fn a_stateless_topology_goes_where_it_is_told() {
    let (cluster, plan) = (cluster(), stateless_plan());
    assert_eq!(run_to_end(&cluster, &plan).unwrap().counters.read, 4);
    let mut out = Vec::new();
    reset(&plan, &*cluster.log, &options(&cluster, ResetTo::Earliest), &mut out, false).unwrap();
    let text = String::from_utf8(out).unwrap();
    assert!(text.starts_with("orders/0: 4 -> 0\n"), "{text}");
    assert_eq!(run_to_end(&cluster, &plan).unwrap().counters.read, 4);
    apply(&plan, &*cluster.log, &options(&cluster, ResetTo::Latest)).unwrap();
    assert_eq!(run_to_end(&cluster, &plan).unwrap().counters.read, 0);
    let hour_ago = ResetTo::parse("2h", chrono::Utc::now().timestamp_millis()).unwrap();
    let report = apply(&plan, &*cluster.log, &options(&cluster, hour_ago)).unwrap();
    assert_eq!(report.offsets[0].to, 0);
    assert!(ResetTo::parse("sometime", 0).is_err());
}

#[test]
fn a_keyed_topology_begins_anew_and_gives_the_same_again() {
    let (cluster, plan) = (cluster(), keyed_plan());
    let before = Status::new(&plan, &*cluster.log).unwrap();
    assert_eq!(before.file, FileState::NeverRun);
    let first = run_to_end(&cluster, &plan).unwrap();
    assert_eq!((first.counters.refined, first.counters.dead), (3, 1));
    let ran = Status::new(&plan, &*cluster.log).unwrap();
    assert_eq!((ran.file, ran.balanced, ran.totals), (FileState::Same, true, first.counters));
    assert_eq!(ran.lag_records, 0, "{}", ran.lag);

    for wrong in [ResetTo::Latest, ResetTo::At(0)] {
        let error = apply(&plan, &*cluster.log, &options(&cluster, wrong)).unwrap_err();
        assert!(error.to_string().contains("keyed stages (hourly)"), "{error}");
    }
    let copied = ResetOptions { checkpoints: Some("/copies".into()), ..options(&cluster, ResetTo::Earliest) };
    assert!(matches!(apply(&plan, &*cluster.log, &copied).unwrap_err(), ResetError::Elsewhere { .. }));
    let dry = ResetOptions { dry_run: true, ..options(&cluster, ResetTo::Earliest) };
    let would = apply(&plan, &*cluster.log, &dry).unwrap();
    assert_eq!(would.deleted_topics, ["orders.exchange.hourly", "orders.meta"]);
    assert_eq!(
        Status::new(&plan, &*cluster.log).unwrap().totals,
        first.counters,
        "a dry run changes nothing"
    );

    let done = apply(&plan, &*cluster.log, &options(&cluster, ResetTo::Earliest)).unwrap();
    assert_eq!(done, ResetReport { dry_run: false, ..would });
    let anew = Status::new(&plan, &*cluster.log).unwrap();
    assert_eq!((anew.file, anew.lag_records, anew.open_windows), (FileState::NeverRun, 4, 0));
    assert_eq!(run_to_end(&cluster, &plan).unwrap().counters, first.counters);
    let again = Status::new(&plan, &*cluster.log).unwrap();
    assert_eq!((again.file, again.lag_records), (FileState::Same, 0));
    assert!(again.problems.is_empty(), "{:?}", again.problems);
    let mut out = Vec::new();
    again.print(&mut out, false).unwrap();
    let text = String::from_utf8(out).unwrap();
    assert!(text.contains("read 4 = refined 3 + filtered 0 + late 0 + dead 1: holds"), "{text}");
    assert!(text.contains("runs as the file says"), "{text}");
}

#[test]
fn a_reset_that_broke_off_is_refused_by_run_and_completed_by_another() {
    let (cluster, plan) = (cluster(), keyed_plan());
    let first = run_to_end(&cluster, &plan).unwrap();
    for (partition, offset) in [(0, 4), (1, 0)] {
        cluster.commit("headwater.orders", "orders", partition, offset, MARK);
    }
    cluster.log.delete_topics(&["orders.exchange.hourly".to_string(), "orders.meta".to_string()]).unwrap();
    let error = run_to_end(&cluster, &plan).unwrap_err();
    assert!(error.to_string().contains("was not completed") && error.to_string().contains("headwater reset"));
    apply(&plan, &*cluster.log, &options(&cluster, ResetTo::Earliest)).unwrap();
    assert_eq!(run_to_end(&cluster, &plan).unwrap().counters, first.counters);
}

#[test]
fn nothing_is_touched_while_a_member_lives() {
    let (cluster, plan) = (cluster(), keyed_plan());
    run_to_end(&cluster, &plan).unwrap();
    let member = crate::log::MemberOptions {
        group: "headwater.orders".into(),
        instance: "another".into(),
        topics: vec!["orders".into()],
        session_timeout: std::time::Duration::from_secs(10),
        transaction_timeout: std::time::Duration::from_secs(10),
    };
    let mut member = cluster.log.member(&member).unwrap();
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(60);
    loop {
        let events = member.poll(std::time::Duration::from_millis(50)).unwrap();
        if events.iter().any(|event| matches!(event, crate::log::Event::Assigned { .. })) {
            break;
        }
        assert!(std::time::Instant::now() < deadline, "the member joins");
    }
    let before = Status::new(&plan, &*cluster.log).unwrap();
    let error = apply(&plan, &*cluster.log, &options(&cluster, ResetTo::Earliest)).unwrap_err();
    assert!(matches!(error, ResetError::Offsets { .. }), "{error}");
    assert!(error.to_string().contains("stop every process"), "{error}");
    let after = Status::new(&plan, &*cluster.log).unwrap();
    assert_eq!((before.file, before.totals), (after.file, after.totals));
    member.leave().unwrap();
}

/// The topic `orders` once more, with other records.
fn make_anew(cluster: &Cluster) {
    cluster.log.delete_topics(&["orders".to_owned()]).unwrap();
    cluster.create("orders", 2);
    let at = |hour: u32| format!(r#"{{"shop":"b","at":"2020-01-02T{hour:02}:00:00Z"}}"#);
    let values: Vec<String> = (1..8).map(at).collect();
    let values: Vec<&str> = values.iter().map(String::as_str).collect();
    cluster.produce("orders", 0, recent_ms(), &values);
}

#[test]
fn a_source_that_was_made_anew_stops_the_topology_until_a_reset_says_where_to_go_on() {
    for (plan, read_before) in [(stateless_plan(), 4), (keyed_plan(), 4)] {
        let cluster = cluster();
        assert_eq!(run_to_end(&cluster, &plan).unwrap().counters.read, read_before);
        make_anew(&cluster);
        for _ in 0..2 {
            match run_to_end(&cluster, &plan) {
                Err(EngineError::TopicMadeAnew { topic, .. }) => assert_eq!(&*topic, "orders"),
                other => panic!("{other:?}"),
            }
        }
        apply(&plan, &*cluster.log, &options(&cluster, ResetTo::Earliest)).unwrap();
        assert_eq!(run_to_end(&cluster, &plan).unwrap().counters.read, 7);
        assert_eq!(run_to_end(&cluster, &plan).unwrap().counters.dead, 0);
    }
}
