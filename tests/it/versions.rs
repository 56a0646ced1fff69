//! A topology whose file changes between runs, where no state depends on it: each version is remembered with the
//! offsets from which it applies, and `verify` asks of each record only what its own version owes.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use headwater::engine::{Meta, Progress, RunOptions, run};
use headwater::log::memory::MemoryLog;
use headwater::log::{Log, Outgoing, TopicSpec};
use headwater::plan::Plan;
use headwater::record::TopicPartition;
use headwater::tool::verify::{VerifyOptions, VerifyReport, ViewReport, verify};

struct Stage {
    log: Arc<dyn Log>,
    dir: tempfile::TempDir,
}

/// `sql` is the view `small`, which goes to a topic with a key; `any` has none; `sums` is windowed, and `large` reads it.
fn plan(small: &str, any: &str, large: &str, checks: &str) -> Arc<Plan> {
    let text = format!(
        "name: v\nsources:\n  n: {{topic: in, format: json, columns: {{i: bigint, at: timestamp}}, event_time: at, \
         partitioned_by: [i], max_reject_ratio: 1}}\n  m: {{topic: other, format: json, columns: {{i: bigint, at: timestamp}}, event_time: at, \
         max_reject_ratio: 1}}\nchecks:\n  n: {checks}\nviews:\n  small: {small}\n  any: {any}\n  sums: select \
         window_start, i % 2 as odd, count(*) as n from tumble(m, at, interval '1 minute') group by window_start, i % 2\n  \
         large: {large}\nsinks:\n  small: {{topic: {{name: small, key: [i]}}}}\n  any: {{topic: {{name: any}}}}\n  sums: \
         {{topic: {{name: sums, key: [odd, window_start]}}}}\n  large: {{topic: {{name: large, key: [odd, \
         window_start]}}}}\n"
    );
    Arc::new(headwater::plan::parse(&text, "v.yaml").unwrap_or_else(|error| panic!("{error}\n{text}")))
}

const SMALL: &str = "select i, i * 2 as twice from n";
const ANY: &str = "select i % 3 as rest from n";
const LARGE: &str = "select window_start, odd, n from sums where n > 1";
const NO_CHECKS: &str = "[]";

fn first() -> Arc<Plan> {
    plan(SMALL, ANY, LARGE, NO_CHECKS)
}

impl Stage {
    fn new() -> Self {
        let log = MemoryLog::new();
        log.set_time_ms(1_704_153_600_000); // 2024-01-02: the records are not from the future
        let log: Arc<dyn Log> = Arc::new(log);
        let topic = |name: &str| TopicSpec { name: name.into(), partitions: 2, config: BTreeMap::new() };
        log.create_topics(&[topic("in"), topic("other")]).unwrap();
        Self { log, dir: tempfile::tempdir().unwrap() }
    }

    /// Records `range`, one a second, over both partitions of both topics.
    fn produce(&self, range: std::ops::Range<u32>) {
        let mut producer = self.log.producer().unwrap();
        for i in range {
            let value = format!(r#"{{"i":{i},"at":"2024-01-01T00:{:02}:{:02}Z"}}"#, i / 60, i % 60);
            let record = Outgoing { value: Some(value.as_bytes()), ..Outgoing::default() };
            for topic in ["in", "other"] {
                producer.produce(&TopicPartition::new(topic, (i % 2) as i32), &[record]).unwrap();
            }
        }
        producer.flush(Duration::from_secs(30)).unwrap();
    }

    /// Writes a refined record behind the topology's back, wherever its key lies.
    fn refine(&self, topic: &str, key: Option<&str>, value: Option<&str>) {
        let mut producer = self.log.producer().unwrap();
        let record =
            Outgoing { key: key.map(str::as_bytes), value: value.map(str::as_bytes), ..Outgoing::default() };
        for partition in 0..2 {
            producer.produce(&TopicPartition::new(topic, partition), &[record]).unwrap();
        }
        producer.flush(Duration::from_secs(30)).unwrap();
    }

    fn run(&self, plan: &Arc<Plan>) {
        let options = RunOptions {
            epoch: Duration::from_millis(20),
            state_dir: self.dir.path().join("state"),
            until_end: true,
            ..RunOptions::default()
        };
        let stop = Arc::new(AtomicBool::new(false));
        let report = run(plan, &self.log, &options, &Progress::default(), &stop).unwrap();
        assert!(report.counters.balanced() && report.counters.dead == 0, "{:?}", report.counters);
    }

    fn verify(&self, plan: &Plan) -> BTreeMap<String, ViewReport> {
        let options = VerifyOptions {
            threads: 1,
            state_budget: 64 << 20,
            scratch: None,
            patience: Duration::from_secs(20),
            differences_max: 5,
        };
        let VerifyReport { views, .. } =
            verify(plan, &self.log, &options, &Progress::default(), &AtomicBool::new(false)).unwrap();
        views.into_iter().map(|view| (view.view.clone(), view)).collect()
    }
}

/// (equal, differing, of an earlier version)
fn counts(view: &ViewReport) -> (u64, u64, u64) {
    assert_eq!((view.pending, view.not_compared), (0, 0), "{view:#?}");
    (view.equal, view.differing, view.earlier_version)
}

#[test]
fn a_changed_view_is_compared_from_where_it_began() {
    let stage = Stage::new();
    stage.produce(0..100);
    stage.run(&first());
    let views = stage.verify(&first());
    assert_eq!(counts(&views["small"]), (100, 0, 0));
    assert_eq!(counts(&views["any"]), (100, 0, 0));

    // Other values, and only some of the rows.
    let changed = plan(
        "select i, i * 3 as twice from n where i % 5 <> 0",
        "select -i as rest from n",
        LARGE,
        NO_CHECKS,
    );
    assert_eq!(changed.fingerprint, first().fingerprint, "else run would refuse it");
    let not_yet = stage.verify(&changed);
    assert_eq!(not_yet["small"].differing + not_yet["any"].differing, 0, "{not_yet:#?}");
    assert_eq!((not_yet["any"].equal, not_yet["any"].earlier_version), (0, 100), "{not_yet:#?}");

    stage.produce(100..160);
    stage.run(&changed);
    let views = stage.verify(&changed);
    // The record with i = 0 has the same value in both versions, and none in the new one: its row stays.
    assert_eq!(counts(&views["small"]), (48, 0, 100), "{:#?}", views["small"]);
    assert_eq!(counts(&views["any"]), (60, 0, 100), "{:#?}", views["any"]);
    assert_eq!(views["sums"].earlier_version, 0);
    assert_eq!(views["sums"].equal, 4, "{:#?}", views["sums"]);

    let meta = Meta::read(&changed, &*stage.log).unwrap().unwrap();
    assert_eq!(meta.newest().unwrap().version, changed.version);
    assert_eq!(meta.versions.len(), 2);
    let starts: Vec<(i32, i64)> = meta
        .starts
        .iter()
        .filter(|start| start.version == changed.version && &*start.topic == "in")
        .map(|start| (start.partition, start.offset))
        .collect();
    assert_eq!(starts.iter().collect::<std::collections::BTreeSet<_>>(), [(0, 50), (1, 50)].iter().collect());

    // What this version wrote is held to it, and so is what it should not have written.
    stage.refine("small", Some(r#"{"i":101}"#), Some(r#"{"i":101,"twice":0}"#));
    stage.refine("small", Some(r#"{"i":100}"#), Some(r#"{"i":100,"twice":300}"#));
    stage.refine("any", None, Some(r#"{"rest":-101}"#));
    let views = stage.verify(&changed);
    assert_eq!(views["small"].differing, 2, "{:#?}", views["small"]);
    assert_eq!(views["any"].differing, 1, "{:#?}", views["any"]);
}

#[test]
fn a_row_that_a_version_owes_and_did_not_write_is_found() {
    let stage = Stage::new();
    stage.produce(0..20);
    stage.run(&first());
    let changed = plan("select i, i as twice from n", ANY, LARGE, NO_CHECKS);
    stage.produce(20..40);
    stage.run(&changed);
    assert_eq!(counts(&stage.verify(&changed)["small"]), (21, 0, 19));
    // As if 30 had not been written: its key is gone.
    stage.refine("small", Some(r#"{"i":30}"#), None);
    assert_eq!(counts(&stage.verify(&changed)["small"]), (20, 1, 19));
}

#[test]
fn a_changed_check_is_a_version_too_and_going_back_is_another() {
    let stage = Stage::new();
    stage.produce(0..30);
    stage.run(&first());
    let checked = plan(SMALL, ANY, LARGE, "[{name: even, expect: i % 2 = 0, otherwise: drop}]");
    assert_ne!(checked.version, first().version);
    stage.produce(30..60);
    stage.run(&checked);
    let views = stage.verify(&checked);
    assert_eq!(counts(&views["small"]), (30, 0, 15), "{views:#?}");
    stage.produce(60..90);
    stage.run(&first());
    let views = stage.verify(&first());
    // Of 30..60 the even ones are there, and equal; the odd ones are not owed.
    assert_eq!(counts(&views["small"]), (75, 0, 15), "{views:#?}");
    assert_eq!(views["any"].differing, 0, "{views:#?}");
    // A check that only warns changes no record.
    let warned = plan(SMALL, ANY, LARGE, "[{name: even, expect: i % 2 = 0, otherwise: warn}]");
    assert_eq!(warned.version, first().version);
}

#[test]
fn a_view_over_a_window_is_compared_from_the_windows_that_were_open() {
    let stage = Stage::new();
    stage.produce(0..200); // windows 00:00 to 00:02 are closed
    stage.run(&first());
    let changed = plan(SMALL, ANY, "select window_start, odd, n + 1 as n from sums", NO_CHECKS);
    assert_eq!(changed.fingerprint, first().fingerprint);
    stage.produce(200..400); // and 00:03 to 00:05
    stage.run(&changed);
    let views = stage.verify(&changed);
    assert_eq!(views["large"].differing, 0, "{views:#?}");
    assert_eq!((views["large"].equal, views["large"].earlier_version), (6, 6), "{views:#?}");
    assert_eq!((views["sums"].equal, views["sums"].earlier_version), (12, 0), "{views:#?}");
    let late = r#"{"odd":0,"window_start":"2024-01-01T00:04:00Z"}"#;
    stage.refine("large", Some(late), Some(r#"{"window_start":"2024-01-01T00:04:00Z","odd":0,"n":7}"#));
    assert_eq!(stage.verify(&changed)["large"].differing, 1);
}
