//! A topology from end to end on the embedded broker: live, verified, replayed into Parquet.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use headwater::broker::{Broker, Options};
use headwater::engine::{Progress, RunOptions, run};
use headwater::lake::Lake;
use headwater::log::kafka::{KafkaLog, KafkaOptions};
use headwater::log::{Log, Outgoing, TopicSpec};
use headwater::plan::{Late, Plan};
use headwater::record::TopicPartition;
use headwater::tool::demo::feed;
use headwater::tool::replay::{LakeReplay, replay_into_lake};
use headwater::tool::verify::{VerifyOptions, verify};

fn connect(broker: &Broker) -> Arc<dyn Log> {
    let options = KafkaOptions {
        brokers: broker.address().to_string(),
        properties: BTreeMap::new(),
        client_id: "test".into(),
    };
    Arc::new(KafkaLog::connect(&options).unwrap())
}

/// January's departures in one partition.
fn publish_flights(log: &dyn Log) -> usize {
    let topic = TopicSpec { name: "flights.departures".into(), partitions: 1, config: BTreeMap::new() };
    log.create_topics(&[topic]).unwrap();
    let departures = feed::departures().unwrap();
    let values: Vec<Vec<u8>> = departures.iter().map(|row| serde_json::to_vec(row).unwrap()).collect();
    let records: Vec<Outgoing<'_>> =
        values.iter().map(|value| Outgoing { value: Some(value), ..Outgoing::default() }).collect();
    let mut producer = log.producer().unwrap();
    producer.produce(&TopicPartition::new("flights.departures", 0), &records).unwrap();
    producer.flush(Duration::from_secs(30)).unwrap();
    values.len()
}

fn flights() -> Arc<Plan> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("topologies/flights/flights.yaml");
    Arc::new(headwater::tool::topology_file::load(&path).unwrap())
}

#[test]
fn flights_run_live_verify_and_replay_into_parquet() {
    let _ = tracing_subscriber::fmt().with_test_writer().try_init();
    let dir = tempfile::tempdir().unwrap();
    let options = Options { listen: "127.0.0.1:0".parse().unwrap(), data_dir: dir.path().join("broker") };
    let broker = Broker::start(&options).unwrap();
    let log = connect(&broker);
    let records = publish_flights(&*log);
    let plan = flights();
    let options = RunOptions {
        threads: 2,
        state_dir: dir.path().join("state"),
        checkpoints: Some(dir.path().join("checkpoints").display().to_string().into()),
        until_end: true,
        ..RunOptions::default()
    };
    let progress = Progress::default();
    let stop = Arc::new(AtomicBool::new(false));
    let report = run(&plan, &log, &options, &progress, &stop).unwrap();
    assert!(report.counters.balanced(), "{:?}", report.counters);
    assert_eq!(report.counters.read, records as u64);
    assert_eq!(report.counters.late, 119);
    assert_eq!(report.counters.filtered, 521);
    assert_eq!(report.counters.dead, 0);

    let verify_options = VerifyOptions {
        threads: 2,
        state_budget: 64 << 20,
        scratch: None,
        patience: Duration::from_secs(10),
        differences_max: 10,
    };
    let verified = verify(&plan, &log, &verify_options, &Progress::default(), &stop).unwrap();
    assert!(verified.is_equal(), "{verified:#?}");
    assert!(verified.views[0].equal > 5000, "{verified:#?}");

    let lake = dir.path().join("lake").display().to_string();
    let replay = |late: Late, text: &str| {
        let options = LakeReplay {
            lake: lake.as_str().into(),
            late,
            late_text: text.into(),
            threads: 2,
            state_budget: 64 << 20,
            scratch: dir.path().join("scratch"),
        };
        replay_into_lake(&plan, &log, &options, &Progress::default(), &stop).unwrap()
    };
    let as_live = replay(Late::AsLive, "as-live");
    assert_eq!(as_live.replay.counters, report.counters);
    let all = replay(Late::All, "all");
    assert_eq!(all.replay.counters.late, 0);
    assert_eq!(all.replay.counters.refined, report.counters.refined + 119);
    let current = Lake::open(&lake).unwrap().current("gold/hourly_delay").unwrap().unwrap();
    assert_eq!(current.version, 2);
    assert!(current.rows >= as_live.tables[0].1.rows);
}
