//! Against the embedded broker: offsets committed by hand, so that every case can be had.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::*;
use crate::broker::{Broker, Options};
use crate::engine::{Counters, OffsetMetadata, Progress, TaskProgress, TaskRole};
use crate::log::kafka::{KafkaLog, KafkaOptions};
use crate::log::{Log, Outgoing, Position, TopicSpec};
use crate::plan::Plan;
use crate::record::{Header, Micros, TopicPartition};

const KEYED: &str = "\
name: orders
sources:
  orders:
    topic: orders
    format: json
    columns: {shop: varchar, at: timestamp}
    event_time: at
views:
  hourly: |
    select window_start, window_end, shop, count(*) as orders
    from tumble(orders, at, interval '1 hour')
    group by window_start, window_end, shop
sinks:
  hourly: {topic: {name: orders.hourly, format: json, key: [shop, window_start]}}
";

const STATELESS: &str = "\
name: plain
sources:
  orders: {topic: orders, format: json, columns: {shop: varchar}}
views:
  shops: select shop from orders
sinks:
  shops: {topic: {name: plain.shops, format: json}}
";

pub fn keyed_plan() -> Arc<Plan> {
    Arc::new(crate::plan::parse(KEYED, "orders.yaml").unwrap())
}

pub fn stateless_plan() -> Arc<Plan> {
    Arc::new(crate::plan::parse(STATELESS, "plain.yaml").unwrap())
}

/// A broker of its own for each test.
pub struct Cluster {
    pub log: Arc<dyn Log>,
    pub dir: tempfile::TempDir,
    _broker: Broker,
}

impl Cluster {
    pub fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let options = Options { listen: "127.0.0.1:0".parse().unwrap(), data_dir: dir.path().join("broker") };
        let broker = Broker::start(&options).unwrap();
        let brokers = broker.address().to_string();
        let options = KafkaOptions { brokers, properties: BTreeMap::new(), client_id: "test".into() };
        Self { log: Arc::new(KafkaLog::connect(&options).unwrap()), dir, _broker: broker }
    }

    pub fn create(&self, topic: &str, partitions: i32) {
        let spec = TopicSpec { name: topic.into(), partitions, config: BTreeMap::new() };
        self.log.create_topics(&[spec]).unwrap();
    }

    /// Produces values with this timestamp.
    pub fn produce(&self, topic: &str, partition: i32, timestamp_ms: i64, values: &[&str]) {
        let record = |value: &&str| (value.as_bytes().to_vec(), Vec::new());
        self.produce_with(topic, partition, timestamp_ms, &values.iter().map(record).collect::<Vec<_>>());
    }

    pub fn produce_with(
        &self,
        topic: &str,
        partition: i32,
        timestamp_ms: i64,
        records: &[(Vec<u8>, Vec<Header>)],
    ) {
        let records: Vec<_> = records
            .iter()
            .map(|(value, headers)| Outgoing {
                key: None,
                value: Some(value),
                headers,
                timestamp_ms: Some(timestamp_ms),
            })
            .collect();
        let mut producer = self.log.producer().unwrap();
        producer.produce(&TopicPartition::new(topic, partition), &records).unwrap();
        producer.flush(Duration::from_secs(30)).unwrap();
    }

    pub fn commit(&self, group: &str, topic: &str, partition: i32, offset: i64, metadata: &str) {
        let position = Position { offset, metadata: metadata.to_string() };
        self.log.commit_offsets(group, &[(TopicPartition::new(topic, partition), position)]).unwrap();
    }
}

fn metadata(watermark: Micros, idle: bool, counters: Option<Counters>) -> String {
    let mut metadata = OffsetMetadata::new(watermark);
    metadata.idle = idle;
    metadata.counters = counters;
    metadata.to_text()
}

/// A base for log timestamps: those of a topic that is written now.
pub fn recent_ms() -> i64 {
    chrono::Utc::now().timestamp_millis() - 3_600_000
}

const GROUP: &str = "headwater.orders";
const SECOND: Micros = 1_000_000;
/// 2026-01-01T00:00:00Z
const T: Micros = 1_767_225_600_000_000;

fn printed(report: &LagReport, json: bool) -> String {
    let mut out = Vec::new();
    report.print(&mut out, json).unwrap();
    String::from_utf8(out).unwrap()
}

#[test]
fn a_topology_that_never_ran_has_everything_to_read() {
    let (cluster, base) = (Cluster::start(), recent_ms());
    cluster.create("orders", 2);
    cluster.produce("orders", 1, base + 5_000, &["{}", "{}", "{}"]);
    let report = lag_at(&keyed_plan(), &*cluster.log, base + 65_000).unwrap();
    assert_eq!(report.partitions.len(), 2);
    assert_eq!(report.partitions.iter().map(|at| at.lag_records).collect::<Vec<_>>(), [0, 3]);
    assert_eq!(report.partitions[1].committed, None);
    assert_eq!(report.partitions[1].lag_seconds_log, Some(60.0));
    assert_eq!(report.missing.len(), 1);
    let hold = &report.holds[0];
    assert_eq!((hold.reason, hold.partition, hold.others), (HoldReason::NothingRead, 0, 1));
    assert_eq!(report.summary(), "orders: nothing committed yet, 3 records to read in 2 partitions");
    assert!(printed(&report, false).contains("the topology has not run"), "{}", printed(&report, false));
}

#[test]
fn a_missing_source_topic_is_named() {
    let cluster = Cluster::start();
    let error = lag(&keyed_plan(), &*cluster.log).unwrap_err();
    assert!(error.to_string().contains("there is no topic 'orders'"), "{error}");
}

#[test]
fn both_clocks_the_slowest_origin_and_the_counters_are_shown() {
    let (cluster, base) = (Cluster::start(), recent_ms());
    cluster.create("orders", 3);
    cluster.create("orders.exchange.hourly", 4);
    for partition in 0..3 {
        cluster.produce("orders", partition, base + 5_000, &["a", "b"]);
        cluster.produce("orders", partition, base + 9_000, &["c"]);
    }
    let counters = Counters { read: 2, refined: 1, filtered: 0, late: 1, dead: 0 };
    cluster.commit(GROUP, "orders", 0, 3, &metadata(T, false, Some(counters)));
    cluster.commit(GROUP, "orders", 1, 2, &metadata(T - 90 * SECOND, false, Some(counters)));
    cluster.commit(GROUP, "orders", 2, 3, &metadata(T - 500 * SECOND, true, None));
    cluster.commit(GROUP, "orders.exchange.hourly", 0, 0, &metadata(T - 90 * SECOND, false, None));
    let report = lag_at(&keyed_plan(), &*cluster.log, base + 10_000).unwrap();
    let at = |partition: usize| &report.partitions[partition];
    assert_eq!(
        (at(0).lag_records, at(0).lag_seconds_log, at(0).lag_seconds_event),
        (0, Some(0.0), Some(0.0))
    );
    // The oldest unread record was appended at 9 s.
    assert_eq!(
        (at(1).lag_records, at(1).lag_seconds_log, at(1).lag_seconds_event),
        (1, Some(1.0), Some(90.0))
    );
    assert_eq!((at(2).idle, at(2).lag_seconds_event), (true, Some(500.0)));
    assert_eq!((at(3).source.as_ref(), at(3).lag_seconds_event), (None, Some(90.0)));
    // The idle origin is behind, but holds nothing back.
    let hold = &report.holds[0];
    assert_eq!((hold.reason, hold.partition, hold.behind_seconds), (HoldReason::Lowest, 1, Some(90.0)));
    assert_eq!(report.counters().read, 4);
    let text = printed(&report, false);
    assert!(
        text.starts_with(
            "orders: 1 record behind in 1 of 7 partitions; the oldest unread record is 1s old\n"
        )
    );
    assert!(text.contains("hourly: held at 2025-12-31T23:58:30Z by orders/1, 1m 30s behind"), "{text}");
    let json = printed(&report, true);
    let lines: Vec<serde_json::Value> =
        json.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.len(), 7 + 1 + 1);
    assert_eq!(lines[1]["type"], "partition");
    assert_eq!(lines[1]["watermark"], "2025-12-31T23:58:30Z");
    assert_eq!(lines[7]["reason"], "lowest");
    assert_eq!(lines[8]["lag_records"], 1);
}

#[test]
fn all_idle_and_offsets_that_cannot_be_gone_on_from() {
    let (cluster, base) = (Cluster::start(), recent_ms());
    cluster.create("orders", 2);
    cluster.produce("orders", 0, base + 5_000, &["a", "b", "c"]);
    cluster.commit(GROUP, "orders", 0, 1, &metadata(T, true, None));
    cluster.commit(GROUP, "orders", 1, 0, &metadata(T - SECOND, true, None));
    let hold = lag(&keyed_plan(), &*cluster.log).unwrap().holds.remove(0);
    assert_eq!((hold.reason, hold.partition), (HoldReason::AllIdle, 0));

    cluster.log.delete_before(&[(TopicPartition::new("orders", 0), 2)]).unwrap();
    cluster.commit(GROUP, "orders", 1, 0, "moved by hand");
    let report = lag(&keyed_plan(), &*cluster.log).unwrap();
    assert_eq!(report.partitions[0].lag_records, 1);
    assert_eq!(
        report.partitions[0].problem.as_deref(),
        Some("1 offsets that were not read are gone (retention, or DeleteRecords)")
    );
    assert!(report.partitions[1].problem.as_ref().unwrap().contains("moved by another tool"));
    assert!(report.summary().ends_with("2 partitions can't go on"), "{}", report.summary());
}

#[test]
fn the_time_to_catch_up_follows_from_what_is_read_and_what_arrives() {
    let (cluster, base) = (Cluster::start(), recent_ms());
    cluster.create("orders", 2);
    cluster.produce("orders", 0, base, &["a"; 30]);
    cluster.produce("orders", 1, base, &["a"; 70]);
    let at =
        |offset| metadata(T, false, Some(Counters { read: offset, refined: offset, ..Counters::default() }));
    let look = |meter: &mut PaceMeter, seconds| {
        let mut report = lag(&keyed_plan(), &*cluster.log).unwrap();
        report.pace = meter.look(began() + Duration::from_secs(seconds), &report);
        report
    };
    let mut meter = PaceMeter::default();
    assert_eq!(look(&mut meter, 0).pace, None, "one look shows no pace");

    // In 10 s: 40 are read, 20 arrive; 80 are left.
    cluster.commit(GROUP, "orders", 0, 30, &at(30));
    cluster.commit(GROUP, "orders", 1, 10, &at(10));
    cluster.produce("orders", 1, base, &["a"; 20]);
    let report = look(&mut meter, 10);
    let wanted = Pace { committed_per_second: 4.0, arriving_per_second: 2.0, eta_seconds: Some(40.0) };
    assert_eq!(report.pace, Some(wanted));
    assert!(printed(&report, false).contains("\nreads 4/s, 2/s arrive; caught up in 40s\n"));
    let json = printed(&report, true);
    let summary: serde_json::Value = serde_json::from_str(json.lines().last().unwrap()).unwrap();
    assert_eq!((&summary["eta_seconds"], &summary["committed_per_second"]), (&40.0.into(), &4.0.into()));

    // By then more have arrived than were read.
    cluster.produce("orders", 0, base, &["a"; 30]);
    let report = look(&mut meter, 20);
    assert_eq!(report.pace.unwrap().eta_seconds, None);
    assert!(printed(&report, false).contains("caught up in -\n"), "{}", printed(&report, false));

    cluster.commit(GROUP, "orders", 0, 60, &at(60));
    cluster.commit(GROUP, "orders", 1, 90, &at(90));
    assert_eq!(look(&mut meter, 30).pace.unwrap().eta_seconds, Some(0.0));
    // The rates are those of the last minute.
    for seconds in [60, 80, 100] {
        look(&mut meter, seconds);
    }
    assert_eq!(look(&mut meter, 170).pace.unwrap().committed_per_second, 0.0);
}

/// A moment for looks to be counted from.
fn began() -> Instant {
    static BEGAN: std::sync::OnceLock<Instant> = std::sync::OnceLock::new();
    *BEGAN.get_or_init(Instant::now)
}

#[test]
fn the_time_to_catch_up_is_a_metric_while_there_is_one() {
    let (cluster, base) = (Cluster::start(), recent_ms());
    cluster.create("orders", 1);
    cluster.produce("orders", 0, base, &["a"; 30]);
    let watched =
        Watched { plan: keyed_plan(), log: Arc::clone(&cluster.log), progress: Progress::default() };
    let metrics = Metrics::new(Arc::new(watched));
    let line = |metrics: &Metrics| {
        let text = metrics.render();
        text.lines().find_map(|line| {
            line.strip_prefix("headwater_catch_up_seconds{topology=\"orders\"} ")?.parse().ok()
        })
    };
    metrics.refresh_lag();
    assert_eq!(line(&metrics), None::<f64>);
    cluster.commit(GROUP, "orders", 0, 20, &metadata(T, false, None));
    metrics.refresh_lag();
    assert!(line(&metrics).unwrap() > 0.0);
    cluster.produce("orders", 0, base, &["a"; 99]);
    metrics.refresh_lag();
    assert_eq!(line(&metrics), None, "more arrives than is read");
}

fn task(role: TaskRole, source: Option<&str>, counters: Counters) -> TaskProgress {
    TaskProgress {
        role,
        stage: if source.is_some() { "ingest.orders".into() } else { "hourly".into() },
        source: source.map(Into::into),
        offset: 3,
        watermark: T,
        idle: false,
        counters,
        expired: 0,
        derived_dead: 0,
        open_windows: None,
        state_bytes: 77,
        checkpoint: None,
        recovery: None,
    }
}

pub(super) fn get(server: &Server, path: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(server.address()).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let status = answer.split(' ').nth(1).unwrap().parse().unwrap();
    (status, answer.split_once("\r\n\r\n").unwrap().1.to_string())
}

pub(super) fn until(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !done() {
        assert!(Instant::now() < deadline, "waited for: {what}");
        std::thread::yield_now();
    }
}

#[test]
fn a_process_serves_its_own_partitions_and_says_when_it_is_ready() {
    let (cluster, base) = (Cluster::start(), recent_ms());
    cluster.create("orders", 2);
    cluster.create("orders.exchange.hourly", 4);
    cluster.produce("orders", 0, base + 5_000, &["a", "b", "c"]);
    let counted = |read| Counters { read, refined: read - 1, filtered: 0, late: 0, dead: 1 };
    cluster.commit(GROUP, "orders", 0, 1, &metadata(T, false, Some(counted(101))));
    let progress = Progress::default();
    let watched = Watched { plan: keyed_plan(), log: Arc::clone(&cluster.log), progress: progress.clone() };
    let server = Server::start("127.0.0.1:0", Arc::new(watched)).unwrap();
    assert_eq!(get(&server, "/healthz"), (200, "alive\n".into()));
    assert_eq!(get(&server, "/readyz").0, 503);
    assert_eq!(get(&server, "/nothing").0, 404);

    // A partition arrives with the counts that others have made: those are not this process's.
    let (orders, hourly) =
        (TopicPartition::new("orders", 0), TopicPartition::new("orders.exchange.hourly", 2));
    progress.set(&orders, task(TaskRole::Ingest, Some("orders"), counted(101)));
    progress.set(&hourly, task(TaskRole::Keyed, None, Counters::default()));
    until("the lag", || get(&server, "/metrics").1.contains("headwater_lag_records"));
    let (_, why) = get(&server, "/readyz");
    assert!(why.contains("orders/0 is behind"), "{why}");
    progress.set(&orders, task(TaskRole::Ingest, Some("orders"), counted(104)));
    progress.committed(0.003);
    progress.committed(0.3);
    progress.checkpointed(&hourly, 17, 4096, 0.5);
    progress.aborted("the broker was away");
    progress.warn(&BTreeMap::from([("has_shop".into(), 2)]));
    assert_eq!(get(&server, "/readyz"), (200, "ready\n".into()));

    let (status, text) = get(&server, "/metrics");
    assert_eq!(status, 200);
    let part = r#"topology="orders",topic="orders",partition="0""#;
    let keyed = r#"topology="orders",topic="orders.exchange.hourly",partition="2""#;
    for line in [
        r#"headwater_records_total{topology="orders",source="orders",outcome="refined"} 3"#.to_string(),
        r#"headwater_records_total{topology="orders",source="orders",outcome="dead"} 0"#.to_string(),
        format!("headwater_lag_records{{{part}}} 2"),
        format!("headwater_lag_seconds{{{part},clock=\"event\"}} 0"),
        format!("headwater_watermark_timestamp_seconds{{{part}}} 1767225600"),
        format!("headwater_state_bytes{{{keyed}}} 77"),
        format!("headwater_checkpoint_bytes{{{keyed}}} 4096"),
        format!("headwater_checkpoint_seconds{{{keyed}}} 0.5"),
        r#"headwater_commits_total{topology="orders"} 2"#.to_string(),
        r#"headwater_aborts_total{topology="orders"} 1"#.to_string(),
        r#"headwater_commit_seconds_bucket{topology="orders",le="0.005"} 1"#.to_string(),
        r#"headwater_commit_seconds_count{topology="orders"} 2"#.to_string(),
        r#"headwater_check_warnings_total{topology="orders",check="has_shop"} 2"#.to_string(),
        r#"headwater_state_expired_total{topology="orders",stage="hourly"} 0"#.to_string(),
        r#"headwater_derived_dead_total{topology="orders",stage="hourly"} 0"#.to_string(),
        "# TYPE headwater_commit_seconds histogram".to_string(),
        "# TYPE headwater_records_total counter".to_string(),
    ] {
        assert!(text.lines().any(|found| found == line), "no line {line} in:\n{text}");
    }
    assert!(!text.contains(r#"topic="orders",partition="1""#), "another process's partition:\n{text}");
    for described in text.lines().filter(|line| line.starts_with("# TYPE ")) {
        let name = described.split(' ').nth(2).unwrap();
        assert!(text.contains(&format!("# HELP {name} ")), "{name} is not described");
    }

    // It moves away: its gauges go, the counters stay.
    progress.remove(&orders);
    let (_, text) = get(&server, "/metrics");
    assert!(!text.contains(&format!("headwater_lag_records{{{part}}}")), "{text}");
    assert!(text.contains(r#"outcome="refined"} 3"#), "{text}");

    let taken = server.address().to_string();
    let watched = Watched { plan: keyed_plan(), log: Arc::clone(&cluster.log), progress };
    let watched = Arc::new(watched);
    let error = Server::start(&taken, Arc::clone(&watched)).err().unwrap();
    assert!(error.to_string().contains(&taken) && error.to_string().contains("http.listen"), "{error}");
    assert!(Server::start_or_warn(&taken, Arc::clone(&watched)).is_none());
    drop(server);
    assert!(Server::start(&taken, watched).is_ok(), "the port is free once the server is dropped");
}
