//! `kill -9` at random moments, of the program and of its broker, while records come in; and afterwards everything
//! must be as if nothing had happened: refined, dead and late records, the counters, and `verify`.
//!
//! The same records are read by a second topology, which nothing disturbs: its results are what is expected.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use headwater::log::{Log, Outgoing, TopicSpec};
use headwater::record::TopicPartition;

use crate::project::{Project, Running};
use crate::support::{
    assert_no_open_transaction, connect, counters, last_by_key, letters, read_topic, real_kafka, unique,
    until,
};

const PARTITIONS: i32 = 4;
const RECORDS: usize = 24_000;
const CHUNK: usize = 100;
/// As many are let through before each kill; some are left for the end.
const PART: usize = RECORDS / 8;
/// How often a condition is looked at.
const LOOK: Duration = Duration::from_millis(10);
const CONFIG: &str = "worker: {threads: 2, epoch: 40ms, checkpoint_interval: 200ms}\n";

/// xorshift64*: a seed repeats a test's moments, as far as a machine allows.
pub struct Dice(pub u64);

impl Dice {
    pub fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33) % limit
    }
}

/// Says how to repeat what has just failed.
pub struct Seed(pub u64);

impl Seed {
    pub fn new() -> Self {
        let given = std::env::var("HEADWATER_TEST_SEED").ok().and_then(|seed| seed.parse().ok());
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
        Self(given.unwrap_or(now.as_nanos() as u64 | 1))
    }
}

impl Drop for Seed {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("failed with HEADWATER_TEST_SEED={}", self.0);
        }
    }
}

fn topology(name: &str, source: &str) -> String {
    format!(
        "name: {name}
sources:
  events:
    topic: {source}
    format: json
    columns: {{id: bigint, key: varchar, amount: bigint, at: timestamp}}
    event_time: at
    partitioned_by: [id]
    watermark: {{out_of_orderness: 90s}}
checks:
  events:
    - {{name: positive, expect: amount >= 0}}
views:
  per_minute: |
    select window_start, window_end, key, count(*) as n, sum(amount) as total
    from tumble(events, at, interval '1 minute')
    group by window_start, window_end, key
  large: |
    select id, key, amount from events where amount > 500
sinks:
  per_minute:
    topic: {{name: {name}.per_minute, format: json, key: [key, window_start]}}
  large:
    topic: {{name: {name}.large, format: json, key: [id]}}
"
    )
}

/// Values by partition: event times go on by a tenth of a second, some of them up to three minutes back.
fn values(dice: &mut Dice) -> Vec<(i32, Vec<u8>)> {
    let day = chrono::DateTime::from_timestamp(1_704_067_200, 0).unwrap();
    (0..RECORDS)
        .map(|id| {
            let back = if dice.below(10) == 0 { dice.below(180_000) } else { dice.below(60_000) };
            let at = day + chrono::TimeDelta::milliseconds(200_000 + id as i64 * 100 - back as i64);
            let (key, amount) = (dice.below(20), dice.below(1_050) as i64 - 50);
            let at = at.format("%Y-%m-%dT%H:%M:%S%.3fZ");
            let text = format!(r#"{{"id":{id},"key":"k{key}","amount":{amount},"at":"{at}"}}"#);
            ((id % PARTITIONS as usize) as i32, text.into_bytes())
        })
        .collect()
}

/// Produces in the background, as many as it is allowed, so that there is something to do at every kill.
struct Feed {
    allowed: Arc<AtomicUsize>,
    thread: JoinHandle<()>,
}

impl Feed {
    fn start(log: &Arc<dyn Log>, topic: &str, values: Vec<(i32, Vec<u8>)>) -> Self {
        let allowed = Arc::new(AtomicUsize::new(0));
        let (log, topic, limit) = (Arc::clone(log), topic.to_owned(), Arc::clone(&allowed));
        let thread = std::thread::spawn(move || {
            let mut producer = log.producer().unwrap();
            for (number, chunk) in values.chunks(CHUNK).enumerate() {
                while limit.load(Ordering::SeqCst) < number * CHUNK {
                    std::thread::sleep(Duration::from_millis(5));
                }
                for (partition, value) in chunk {
                    let to = TopicPartition::new(topic.as_str(), *partition);
                    producer.produce(&to, &[Outgoing { value: Some(value), ..Outgoing::default() }]).unwrap();
                }
                if limit.load(Ordering::SeqCst) < RECORDS {
                    std::thread::sleep(Duration::from_millis(20));
                }
            }
            producer.flush(Duration::from_secs(60)).unwrap();
        });
        Self { allowed, thread }
    }

    fn allow(&self, more: usize) {
        self.allowed.fetch_add(more, Ordering::SeqCst);
    }

    fn finish(self) {
        self.allow(RECORDS);
        self.thread.join().unwrap();
    }
}

/// Two topologies over one topic: `stormy` is disturbed, `calm` is not.
struct Storm {
    /// For the end.
    _seed: Seed,
    dice: Dice,
    project: Project,
    source: String,
    stormy: String,
    calm: String,
    brokers: Vec<String>,
}

impl Storm {
    fn new(name: &str, project: Project, brokers: Option<&str>) -> Self {
        let seed = Seed::new();
        let (source, stormy, calm) = (unique(&format!("{name}.events")), unique("stormy"), unique("calm"));
        // A topology's name has no dots.
        let (stormy, calm) = (stormy.replace('.', "-"), calm.replace('.', "-"));
        project.write("stormy.yaml", &topology(&stormy, &source));
        project.write("calm.yaml", &topology(&calm, &source));
        project.write("config.yaml", CONFIG);
        let brokers = brokers.map_or(Vec::new(), |brokers| vec!["--brokers".into(), brokers.into()]);
        Self { dice: Dice(seed.0), _seed: seed, project, source, stormy, calm, brokers }
    }

    fn arguments<'a>(&'a self, arguments: &[&'a str]) -> Vec<&'a str> {
        let brokers = self.brokers.iter().map(String::as_str);
        arguments.iter().copied().chain(["--config", "config.yaml"]).chain(brokers).collect()
    }

    fn feed(&mut self, log: &Arc<dyn Log>) -> Feed {
        let values = self.values(&**log);
        Feed::start(log, &self.source, values)
    }

    /// Makes the topic, and what goes into it.
    fn values(&mut self, log: &dyn Log) -> Vec<(i32, Vec<u8>)> {
        let topic = TopicSpec { name: self.source.clone(), partitions: PARTITIONS, config: BTreeMap::new() };
        log.create_topics(&[topic]).unwrap();
        values(&mut self.dice)
    }

    fn start(&self) -> Running {
        self.project.start(&self.arguments(&["run", "stormy.yaml"]))
    }

    /// What the disturbed topology has committed of its source.
    fn committed(&self, log: &dyn Log) -> u64 {
        counters(log, &format!("headwater.{}", self.stormy), &self.source).read
    }

    /// Waits a random while; every second time only after something was committed, so that there is progress.
    fn moment(&mut self, log: &dyn Log, round: usize, before: u64, running: &mut Running) {
        if round % 2 == 1 {
            self.await_commit(log, before, running);
        }
        let until = Instant::now() + Duration::from_millis(self.dice.below(900));
        while Instant::now() < until {
            self.assert_alive(running);
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    fn await_commit(&self, log: &dyn Log, before: u64, running: &mut Running) {
        until("a commit", || {
            self.assert_alive(running);
            std::thread::sleep(LOOK);
            (self.committed(log) > before).then_some(())
        });
    }

    fn assert_alive(&self, running: &mut Running) {
        if let Some(code) = running.ended() {
            let (out, err) = self.project.printed();
            panic!("it ended by itself with {code}:\n{out}\n{err}");
        }
    }

    fn finish(&self, arguments: &[&str]) -> String {
        let outcome = self.project.run(&self.arguments(arguments));
        assert_eq!(outcome.code, 0, "{arguments:?}: {}{}", outcome.out, outcome.err);
        outcome.out
    }

    /// Runs both to the end.
    fn settle(&self) {
        self.finish(&["run", "stormy.yaml", "--until-end"]);
        self.finish(&["run", "calm.yaml", "--until-end"]);
        let verified = self.finish(&["verify", "stormy.yaml"]);
        assert!(verified.contains("EQUAL") && !verified.contains("DIFFERENT"), "{verified}");
    }

    /// Everything is as if nothing had happened.
    fn compare(&self, log: &dyn Log) {
        let (stormy, calm) = (&self.stormy, &self.calm);
        let topic = |name: &str, part: &str| format!("{name}.{part}");
        let windows = last_by_key(log, &topic(calm, "per_minute"));
        assert!(windows.len() > 500, "{}", windows.len());
        assert!(last_by_key(log, &topic(stormy, "per_minute")) == windows, "windows differ");

        // Record for record, in the order of their offsets: nothing twice, nothing missing.
        let rows = |name: &str| {
            let mut rows: Vec<_> = read_topic(log, &topic(name, "large"))
                .into_iter()
                .flat_map(|(partition, records)| {
                    records.into_iter().map(move |r| (partition, r.key, r.value))
                })
                .collect();
            rows.sort();
            rows
        };
        let expected = rows(calm);
        assert!(expected.len() > RECORDS / 3);
        assert!(rows(stormy) == expected, "{} rows, not {}", rows(stormy).len(), expected.len());
        for part in ["dead", "late"] {
            let expected = letters(log, &topic(calm, part));
            assert!(expected.len() > 200, "{part}: {}", expected.len());
            assert!(letters(log, &topic(stormy, part)) == expected, "{part} records differ");
        }
        let counted = |name: &str| counters(log, &format!("headwater.{name}"), &self.source);
        assert_eq!(counted(stormy), counted(calm));
        assert_eq!(counted(stormy).read, RECORDS as u64);
        for part in ["large", "per_minute", "dead", "late", "meta", "exchange.per_minute"] {
            assert_no_open_transaction(log, &topic(stormy, part));
        }
    }
}

#[test]
fn killed_while_records_come_in() {
    let project = Project::new();
    let mut server = project.broker();
    let address = server.address.clone();
    let mut storm = Storm::new("apart", project, Some(&address));
    let log = connect(&address);
    let feed = storm.feed(&log);
    for round in 0..5 {
        let before = storm.committed(&*log);
        feed.allow(PART);
        let mut running = storm.start();
        storm.moment(&*log, round, before, &mut running);
        running.kill();
        if round == 2 {
            // What it held is in the copies; it comes back as another instance.
            std::fs::remove_dir_all(storm.project.path().join(".headwater/state")).unwrap();
        }
    }
    // The broker goes away under it and comes back: it goes on by itself.
    let before = storm.committed(&*log);
    feed.allow(PART);
    let mut running = storm.start();
    storm.moment(&*log, 1, before, &mut running);
    server.kill();
    let _server = storm.project.broker_at(&address);
    let before = storm.committed(&*log);
    feed.allow(PART);
    storm.await_commit(&*log, before, &mut running);
    running.kill();
    feed.finish();
    storm.settle();
    storm.compare(&*log);
}

#[test]
fn killed_together_with_its_broker() {
    let project = Project::new();
    let server = project.broker();
    let mut storm = Storm::new("inside", project, None);
    let values = storm.values(&*connect(&server.address));
    assert_eq!(server.stop(), Some(0));
    for (round, part) in values.chunks(RECORDS / 4).enumerate() {
        // It serves the broker itself, on whatever port is free.
        let mut running = storm.start();
        let address: String = until("its broker", || {
            std::thread::sleep(LOOK);
            storm.assert_alive(&mut running);
            let (out, _) = storm.project.printed();
            out.lines()
                .filter_map(|line| line.split_once("embedded broker at "))
                .nth(round)
                .map(|(_, at)| at.into())
        });
        let log = connect(&address);
        let before = storm.committed(&*log);
        let mut producer = log.producer().unwrap();
        for (partition, value) in part {
            let to = TopicPartition::new(storm.source.as_str(), *partition);
            producer.produce(&to, &[Outgoing { value: Some(value), ..Outgoing::default() }]).unwrap();
        }
        producer.flush(Duration::from_secs(30)).unwrap();
        storm.moment(&*log, round, before, &mut running);
        running.kill();
        if round == 1 {
            std::fs::remove_dir_all(storm.project.path().join(".headwater/state")).unwrap();
        }
    }
    storm.settle();
    let server = storm.project.broker();
    storm.compare(&*connect(&server.address));
}

#[test]
fn killed_on_a_real_kafka() {
    let Some(address) = real_kafka() else { return };
    let mut storm = Storm::new("kafka", Project::new(), Some(address));
    let log = connect(address);
    let feed = storm.feed(&log);
    for round in 0..3 {
        let before = storm.committed(&*log);
        feed.allow(PART);
        let mut running = storm.start();
        storm.moment(&*log, round, before, &mut running);
        running.kill();
    }
    feed.finish();
    storm.settle();
    storm.compare(&*log);
}
