//! Bad input and faults, as a user meets them: what is wrong is said clearly, and nothing that was committed is lost.

mod processes;
mod state;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use headwater::broker::{Broker, Options};
use headwater::engine::{EngineError, Progress, RunOptions, RunReport, run};
use headwater::log::{Log, Outgoing, Position, TopicSpec};
use headwater::record::TopicPartition;
use headwater::tool::ToolError;
use headwater::tool::verify::{VerifyOptions, verify};
use tempfile::TempDir;

use crate::broker::{add_partitions, delete_group};
use crate::support::{connect, counters, last_by_key, read_topic};

/// Windows and single rows of `in`; `{more}` goes into the source.
fn topology(more: &str) -> String {
    format!(
        "name: faults
sources:
  events:
    topic: in
    format: json
    columns: {{id: bigint, key: varchar, at: timestamp}}
    event_time: at
    partitioned_by: [id]
    {more}
views:
  hourly: |
    select window_start, window_end, key, count(*) as n, max(id) as last
    from tumble(events, at, interval '1 hour')
    group by window_start, window_end, key
  rows: select id, key, at from events where id >= 0
sinks:
  hourly:
    topic: {{name: faults.hourly, format: json, key: [key, window_start]}}
  rows:
    topic: {{name: faults.rows, format: json, key: [id]}}
"
    )
}

const PLAIN: &str = "watermark: {out_of_orderness: 0s}";

/// A cluster with the topic `in`, and what a run keeps on disk. The client goes before its broker.
struct Stage {
    log: Arc<dyn Log>,
    broker: Broker,
    dir: TempDir,
}

impl Stage {
    fn new(partitions: i32) -> Self {
        Self::with(partitions, &[])
    }

    fn with(partitions: i32, config: &[(&str, &str)]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let listen = "127.0.0.1:0".parse().unwrap();
        let broker = Broker::start(&Options { listen, data_dir: dir.path().join("broker") }).unwrap();
        let log = connect(&broker.address().to_string());
        let stage = Self { log, broker, dir };
        stage.create("in", partitions, config);
        stage
    }

    fn create(&self, topic: &str, partitions: i32, config: &[(&str, &str)]) {
        let config = config.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect();
        self.log.create_topics(&[TopicSpec { name: topic.into(), partitions, config }]).unwrap();
    }

    fn produce<'a>(&self, partition: i32, values: impl IntoIterator<Item = Option<&'a [u8]>>) {
        let records: Vec<_> =
            values.into_iter().map(|value| Outgoing { value, ..Outgoing::default() }).collect();
        let mut producer = self.log.producer().unwrap();
        producer.produce(&TopicPartition::new("in", partition), &records).unwrap();
        producer.flush(Duration::from_secs(30)).unwrap();
    }

    fn produce_lines(&self, partition: i32, lines: &[String]) {
        self.produce(partition, lines.iter().map(|line| Some(line.as_bytes())));
    }

    fn options(&self) -> RunOptions {
        RunOptions {
            epoch: Duration::from_millis(50),
            checkpoint_interval: Duration::from_millis(100),
            state_dir: self.dir.path().join("state"),
            checkpoints: Some(self.copies().display().to_string().into()),
            until_end: true,
            ..RunOptions::default()
        }
    }

    fn copies(&self) -> PathBuf {
        self.dir.path().join("checkpoints")
    }

    fn try_run(&self, topology: &str) -> Result<RunReport, EngineError> {
        let plan = Arc::new(headwater::plan::parse(topology, "faults.yaml").unwrap());
        let stop = Arc::new(AtomicBool::new(false));
        run(&plan, &self.log, &self.options(), &Progress::default(), &stop)
    }

    /// Runs to the end and checks that a replay gives the same.
    fn run(&self, topology: &str) -> RunReport {
        let report = self.try_run(topology).unwrap();
        assert!(report.counters.balanced(), "{:?}", report.counters);
        self.verify(topology);
        report
    }

    fn verify(&self, topology: &str) {
        let plan = headwater::plan::parse(topology, "faults.yaml").unwrap();
        let options = VerifyOptions {
            threads: 1,
            state_budget: 64 << 20,
            scratch: None,
            patience: Duration::from_secs(20),
            differences_max: 5,
        };
        let stop = AtomicBool::new(false);
        let report = verify(&plan, &self.log, &options, &Progress::default(), &stop).unwrap();
        assert!(report.is_equal(), "{report:#?}");
    }

    /// Runs and fails; what is printed, and the exit code.
    fn refused(&self, topology: &str) -> (String, u8) {
        let error = ToolError::from(self.try_run(topology).unwrap_err());
        (error.messages().join("\n"), error.exit_code())
    }

    fn read(&self) -> u64 {
        counters(&*self.log, "headwater.faults", "in").read
    }

    fn count(&self, topic: &str) -> usize {
        read_topic(&*self.log, topic).values().map(Vec::len).sum()
    }
}

/// Records of one hour after the other, ten each.
fn lines(ids: std::ops::Range<i64>) -> Vec<String> {
    ids.map(|id| {
        let at = chrono::DateTime::from_timestamp(1_704_067_200 + id * 360, 0).unwrap();
        format!(r#"{{"id":{id},"key":"k{}","at":"{}"}}"#, id % 3, at.format("%Y-%m-%dT%H:%M:%SZ"))
    })
    .collect()
}

#[test]
fn a_source_topic_that_is_missing_is_named_with_what_creates_it() {
    let stage = Stage::new(1);
    let (error, code) = stage.refused(&topology(PLAIN).replace("topic: in", "topic: inn"));
    assert_eq!(code, 2);
    assert!(error.contains("source 'events': there is no topic 'inn'"), "{error}");
    assert!(error.contains("headwater topic create inn --partitions"), "{error}");
    // Nothing was made for a topology that can't run.
    assert_eq!(stage.log.partitions("faults.meta").unwrap(), None);
}

#[test]
fn empty_topics_end_at_once_and_their_ends_are_committed() {
    let stage = Stage::new(3);
    for _ in 0..2 {
        let began = Instant::now();
        let report = stage.run(&topology(PLAIN));
        assert!(began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
        assert_eq!((report.counters.read, stage.count("faults.rows")), (0, 0));
        let partitions: Vec<_> = (0..3).map(|partition| TopicPartition::new("in", partition)).collect();
        let committed = stage.log.committed("headwater.faults", &partitions).unwrap();
        assert!(committed.iter().all(|position| position.as_ref().is_some_and(|p| p.offset == 0)));
    }
}

#[test]
fn partitions_that_are_added_are_read_and_hold_nobody_back() {
    let stage = Stage::new(2);
    stage.produce_lines(0, &lines(0..100));
    stage.produce_lines(1, &lines(0..100));
    assert_eq!(stage.run(&topology(PLAIN)).counters.read, 200);
    let closed = last_by_key(&*stage.log, "faults.hourly").len();

    add_partitions(&stage.broker, "in", 3);
    stage.produce_lines(0, &lines(100..200));
    stage.produce_lines(1, &lines(100..200));
    let report = stage.run(&topology(PLAIN));
    assert_eq!(report.counters.read, 400, "the new partition is empty");
    let more = last_by_key(&*stage.log, "faults.hourly").len();
    assert!(more > closed + 20, "{closed}, then {more}: an empty new partition holds windows back");

    stage.produce_lines(2, &lines(180..300));
    stage.produce_lines(0, &lines(200..300));
    stage.produce_lines(1, &lines(200..300));
    let report = stage.run(&topology(PLAIN));
    assert_eq!(report.counters.read, 720);
    assert_eq!(read_topic(&*stage.log, "in")[&2].len(), 120);
    assert!(last_by_key(&*stage.log, "faults.hourly").len() > more + 20);
}

#[test]
fn an_exchange_whose_partitions_were_changed_is_refused() {
    let stage = Stage::new(1);
    stage.produce_lines(0, &lines(0..50));
    stage.run(&topology(PLAIN));
    add_partitions(&stage.broker, "faults.exchange.hourly", 6);
    let (error, code) = stage.refused(&topology(PLAIN));
    assert_eq!(code, 1);
    let wanted = "topic 'faults.exchange.hourly' has 6 partitions, but this topology began with 4";
    assert!(error.contains(wanted), "{error}");
}

#[test]
fn a_topic_of_another_format_stops_it_before_it_is_all_dead_letters() {
    let stage = Stage::new(1);
    stage.produce_lines(0, &lines(0..30));
    stage.run(&topology(PLAIN));
    let text: Vec<String> = (0..5000).map(|n| format!("line {n} of a log file")).collect();
    stage.produce_lines(0, &text);
    let (error, code) = stage.refused(&topology(PLAIN));
    assert_eq!(code, 1);
    assert!(
        error.starts_with("in/0: ") && error.contains("rejects, more than max_reject_ratio 0.5"),
        "{error}"
    );
    assert!(error.contains("headwater topic tail in"), "{error}");
    assert_eq!((stage.read(), stage.count("faults.dead"), stage.count("faults.rows")), (30, 0, 30));

    // Who means it says so.
    let allowed = topology(&format!("{PLAIN}\n    max_reject_ratio: 1"));
    let report = stage.run(&allowed);
    assert_eq!((report.counters.read, report.counters.dead), (5030, 5000));
    assert_eq!(stage.count("faults.dead"), 5000);
}

#[test]
fn tombstones_and_the_first_and_last_years_are_counted_and_come_out() {
    let stage = Stage::new(1);
    let row = |id: i64, at: &str| format!(r#"{{"id":{id},"key":"a","at":"{at}"}}"#);
    let rows = [
        row(0, "0001-01-01T00:00:00Z"),
        row(1, "1969-12-31T23:59:59.999999Z"),
        row(2, "1970-01-01T00:00:00Z"),
        row(3, "2024-01-01T00:00:00Z"),
        row(4, "9999-12-31T23:59:59.999999Z"),
        row(5, "+10000-01-01T00:00:00Z"),
    ];
    for line in &rows {
        stage.produce(0, [None, Some(line.as_bytes()), Some(b"".as_slice())]);
    }
    // Without this the year 9999 is too far ahead.
    let far = topology("watermark: {out_of_orderness: 0s, max_ahead: 3650000d}\n    max_reject_ratio: 1");
    let counters = stage.run(&far).counters;
    assert_eq!((counters.read, counters.filtered, counters.refined, counters.dead), (18, 6, 5, 7));
    let years = |topic: &str| -> Vec<String> {
        let values = last_by_key(&*stage.log, topic).into_values();
        values.map(|value| String::from_utf8(value).unwrap()).collect()
    };
    assert!(
        years("faults.rows").contains(&row(4, "9999-12-31T23:59:59.999999Z")),
        "{:?}",
        years("faults.rows")
    );
    assert!(years("faults.rows").contains(&row(0, "0001-01-01T00:00:00Z")));
    assert!(
        years("faults.hourly").iter().any(|row| row.contains(r#""window_start":"1969-12-31T23:00:00Z""#))
    );

    let stage = Stage::new(1);
    stage.produce_lines(0, &rows);
    let counters = stage.run(&topology(PLAIN)).counters;
    assert_eq!(
        (counters.refined, counters.dead),
        (4, 2),
        "9999 is too far ahead, and does not move the watermark"
    );
}

/// Letters in an order that does not compress.
fn noise(length: usize) -> String {
    let mut state = 0x9E37_79B9_7F4A_7C15_u64;
    let letters = (0..length).map(|_| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        char::from(b'A' + (state >> 33) as u8 % 26)
    });
    letters.collect()
}

#[test]
fn large_records_go_through_and_into_the_dead_letters() {
    let limit = (12 << 20).to_string();
    let stage = Stage::with(1, &[("max.message.bytes", &limit)]);
    let padding = noise(10 << 20);
    let good = format!(r#"{{"id":1,"key":"k","at":"2024-01-01T00:00:00Z","padding":"{padding}"}}"#);
    let bad = format!(r#"{{"id":"one","padding":"{padding}"}}"#);
    stage.produce(0, [good.as_bytes(), bad.as_bytes(), lines(5..6)[0].as_bytes()].map(Some));
    let counters = stage.run(&topology(PLAIN)).counters;
    assert_eq!((counters.refined, counters.dead), (2, 1));
    let dead = read_topic(&*stage.log, "faults.dead").remove(&0).unwrap();
    assert!(dead[0].value.as_deref() == Some(bad.as_bytes()), "not the original bytes");
}

#[test]
fn a_dead_letter_that_its_topic_does_not_take_stops_it_and_is_named() {
    let stage = Stage::new(1);
    stage.create("faults.dead", 1, &[("max.message.bytes", "50000")]);
    let noise = noise(200_000);
    stage.produce_lines(0, &lines(0..10));
    stage.run(&topology(PLAIN));
    stage.produce_lines(0, std::slice::from_ref(&noise));
    stage.produce_lines(0, &lines(10..20));
    let (error, code) = stage.refused(&topology(PLAIN));
    assert_eq!(code, 1);
    let wanted = format!("faults.dead/0: a record of {} bytes is larger than the topic takes", noise.len());
    assert!(error.contains(&wanted) && error.contains("max.message.bytes"), "{error}");
    assert!(error.starts_with("in/0 at offset 10 "), "{error}");
    assert!(error.len() < 1000, "the record itself is no part of the message");
    assert_eq!(stage.read(), 10, "nothing is skipped");
}

#[test]
fn a_changed_plan_is_refused_and_told_what_changed() {
    let stage = Stage::new(1);
    stage.produce_lines(0, &lines(0..10));
    stage.run(&topology(PLAIN));
    let (error, code) = stage.refused(&topology(PLAIN).replace("interval '1 hour'", "interval '2 hours'"));
    assert_eq!(code, 2);
    assert!(error.contains("- ") && error.contains("size 1h") && error.contains("size 2h"), "{error}");
    assert_eq!(stage.run(&topology(PLAIN)).counters.read, 10, "the old one goes on");
}

#[test]
fn offsets_that_are_gone_or_were_moved_are_named_and_never_skipped() {
    let stage = Stage::new(1);
    stage.produce_lines(0, &lines(0..100));
    stage.run(&topology(PLAIN));
    let input = TopicPartition::new("in", 0);
    let good =
        stage.log.committed("headwater.faults", std::slice::from_ref(&input)).unwrap().remove(0).unwrap();
    let moved = |offset: i64, metadata: &str| {
        let position = Position { offset, metadata: metadata.into() };
        stage.log.commit_offsets("headwater.faults", &[(input.clone(), position)]).unwrap();
        let (error, code) = stage.refused(&topology(PLAIN));
        assert_eq!(code, 1);
        assert!(error.starts_with("in/0: ") && error.contains("headwater reset"), "{error}");
        error
    };
    let error = moved(50, "");
    assert!(error.contains("the committed offset was moved by another tool"), "{error}");
    let error = moved(5_000, &good.metadata);
    assert!(error.contains("the group stands at offset 5000, but the log holds 0..100"), "{error}");
    stage.log.delete_before(&[(input.clone(), 40)]).unwrap();
    let error = moved(30, &good.metadata);
    assert!(error.contains("offset 30, but the log holds 40..100") && error.contains("are gone"), "{error}");
    assert_eq!(stage.count("faults.rows"), 100, "nothing was done again");

    stage.log.commit_offsets("headwater.faults", &[(input.clone(), good.clone())]).unwrap();
    assert_eq!(stage.try_run(&topology(PLAIN)).unwrap().counters.read, 100);

    delete_group(&stage.broker, "headwater.faults");
    let (error, code) = stage.refused(&topology(PLAIN));
    assert_eq!(code, 1);
    assert!(error.starts_with("group 'headwater.faults' has no offsets any more"), "{error}");
    assert!(error.contains("headwater reset"), "{error}");
    assert_eq!(stage.count("faults.rows"), 100, "nothing was done again");
}
