//! What the integration tests share: a real Kafka, started once a test process, another engine to ask, and ways to
//! look into a log.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use headwater::config::{S3, Secret};
use headwater::engine::{Counters, OffsetMetadata};
use headwater::log::kafka::{KafkaLog, KafkaOptions};
use headwater::log::{Event, Log, LogError, Outgoing};
use headwater::objects::Location;
use headwater::record::{OwnedRecord, TopicPartition};

const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/stack/kafka");
const PORT: &str = "19092";
const S3_SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/stack/s3");
const S3_PORT: &str = "19000";

/// The address of a real Kafka; `None`, loudly, where none can be had. `HEADWATER_TEST_KAFKA` names a running
/// one; else `tests/stack/kafka` starts one, which ends with this process unless it ran before.
pub fn real_kafka() -> Option<&'static str> {
    static ADDRESS: OnceLock<Option<String>> = OnceLock::new();
    let address = ADDRESS.get_or_init(|| {
        if let Ok(address) = std::env::var("HEADWATER_TEST_KAFKA") {
            return Some(address);
        }
        if !kafka_can_be_had() {
            return None;
        }
        let script = Script { path: SCRIPT, environment: ("KAFKA_PORT", PORT.to_string()) };
        script.start();
        Some(format!("127.0.0.1:{PORT}"))
    });
    address.as_deref()
}

/// Whether `tests/stack/kafka` can start one; says so loudly where not.
pub fn kafka_can_be_had() -> bool {
    for tool in ["java", "mvn"] {
        if Command::new(tool).arg("-version").output().is_err() {
            eprintln!(
                "SKIPPED: no real Kafka without {tool}; set HEADWATER_TEST_KAFKA=host:port to name one"
            );
            return false;
        }
    }
    true
}

/// One instance of a server that a script of `tests/stack/` runs.
pub struct Script {
    path: &'static str,
    /// Which instance: the variable that names its port.
    environment: (&'static str, String),
}

impl Script {
    pub fn kafka(port: u16) -> Self {
        Self { path: SCRIPT, environment: ("KAFKA_PORT", port.to_string()) }
    }

    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(self.path);
        command.args(arguments).env(self.environment.0, &self.environment.1);
        command
    }

    pub fn runs(&self) -> bool {
        self.command(&["status"]).stdout(Stdio::null()).status().unwrap().success()
    }

    /// Starts it unless it runs; one that was started here ends with this process.
    pub fn start(&self) {
        if self.runs() {
            return;
        }
        self.restart();
        // Stops the server when the pipe closes, however this process ends.
        let guard = Command::new("sh")
            .args(["-c", "cat >/dev/null; exec \"$0\" stop >/dev/null", self.path])
            .env(self.environment.0, &self.environment.1)
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
        std::mem::forget(guard);
    }

    /// Starts it again after [`Self::kill`]: what ends it with this process is there already.
    pub fn restart(&self) {
        let started = self.command(&["start"]).stdout(Stdio::null()).status().unwrap();
        assert!(started.success(), "{} start failed", self.path);
    }

    /// Sends the server a signal.
    pub fn signal(&self, name: &str) {
        let pid = std::fs::read_to_string(self.path("file")).unwrap();
        assert!(Command::new("kill").args([name, pid.trim()]).status().unwrap().success());
    }

    /// Ends the server without a word, and waits for its end.
    pub fn kill(&self) {
        self.signal("-KILL");
        until("its end", || (!self.runs()).then_some(()));
    }

    /// A path that the script's `status` names, e.g. `data`.
    pub fn path(&self, what: &str) -> PathBuf {
        let status = self.command(&["status"]).output().unwrap();
        let text = String::from_utf8(status.stdout).unwrap();
        let mut words = text.split_whitespace().skip_while(|word| *word != what);
        PathBuf::from(words.nth(1).unwrap_or_else(|| panic!("no {what} in {text}")))
    }
}

/// A real Kafka's listener with TLS and a password.
pub struct SecureKafka {
    pub address: String,
    /// The file with the certificate of whoever signed the broker's.
    pub authority: String,
}

/// `None`, loudly, where there is none, or where the program was built without TLS.
pub fn secure_kafka() -> Option<SecureKafka> {
    if cfg!(not(feature = "tls")) {
        eprintln!("SKIPPED: built without TLS; run the tests with --features tls");
        return None;
    }
    if std::env::var("HEADWATER_TEST_KAFKA").is_ok() {
        eprintln!("SKIPPED: only the Kafka of tests/stack/kafka has a known listener with TLS");
        return None;
    }
    real_kafka()?;
    let port: u16 = PORT.parse().unwrap();
    let authority = Script::kafka(port).path("data").with_file_name("tls").join("ca.pem");
    assert!(authority.exists(), "the Kafka at {PORT} was started by an older script: restart it");
    Some(SecureKafka {
        address: format!("127.0.0.1:{}", port + 2),
        authority: authority.to_str().unwrap().to_owned(),
    })
}

/// Where an S3 is, with the keys to it.
#[derive(Clone, Debug)]
pub struct TestS3 {
    pub endpoint: String,
    pub bucket: String,
}

impl TestS3 {
    pub const KEY: &str = "headwater";
    pub const SECRET: &str = "headwater-secret";

    /// The `s3:` section of a config.
    pub fn section(&self) -> String {
        let (key, secret) = (Self::KEY, Self::SECRET);
        format!("s3: {{endpoint: '{}', access_key_id: {key}, secret_access_key: {secret}}}\n", self.endpoint)
    }

    pub fn location(&self, prefix: &str) -> Location {
        let s3 = S3 {
            endpoint: Some(self.endpoint.clone()),
            access_key_id: Some(Self::KEY.to_owned()),
            secret_access_key: Some(Secret::new(Self::SECRET)),
            ..S3::default()
        };
        Location::new(self.url(prefix), &s3)
    }

    pub fn url(&self, prefix: &str) -> String {
        format!("s3://{}/{prefix}", self.bucket)
    }
}

/// An S3 with a bucket for tests; `None`, loudly, where none can be had. `HEADWATER_TEST_S3` names one as
/// `http://host:port/bucket` (its keys must be those of `tests/stack/s3`); else that script starts one.
pub fn test_s3() -> Option<TestS3> {
    static STARTED: OnceLock<Option<TestS3>> = OnceLock::new();
    let started = STARTED.get_or_init(|| {
        if let Ok(named) = std::env::var("HEADWATER_TEST_S3") {
            let (endpoint, bucket) = named.rsplit_once('/').expect("http://host:port/bucket");
            return Some(TestS3 { endpoint: endpoint.to_owned(), bucket: bucket.to_owned() });
        }
        let script = Script { path: S3_SCRIPT, environment: ("S3_PORT", S3_PORT.to_owned()) };
        if !script.runs() && !script.path("binary").exists() {
            eprintln!("SKIPPED: no S3; build one with: tests/stack/s3 install");
            return None;
        }
        if !script.runs() {
            // Of runs before this one.
            let _ = std::fs::remove_dir_all(script.path("data"));
        }
        script.start();
        assert!(script.command(&["bucket", "tests"]).status().unwrap().success());
        Some(TestS3 { endpoint: format!("http://127.0.0.1:{S3_PORT}"), bucket: "tests".to_owned() })
    });
    started.clone()
}

/// The Python that has DuckDB: `HEADWATER_TEST_PYTHON`, or python3; `None`, loudly, where it has not.
pub fn python_with_duckdb(test: &str) -> Option<String> {
    let python = std::env::var("HEADWATER_TEST_PYTHON").unwrap_or_else(|_| "python3".to_owned());
    let found = Command::new(&python).args(["-c", "import duckdb"]).output();
    if found.is_ok_and(|output| output.status.success()) {
        return Some(python);
    }
    eprintln!(
        "SKIPPED {test}: {python} has no duckdb (pip install duckdb; HEADWATER_TEST_PYTHON names another)"
    );
    None
}

/// A name that no other test, and no earlier run, uses.
pub fn unique(name: &str) -> String {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis();
    format!("{name}.{since:x}.{}.{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed))
}

/// Repeats `step` until it gives a value; panics when that takes over a minute.
pub fn until<T>(what: &str, mut step: impl FnMut() -> Option<T>) -> T {
    within(Duration::from_secs(60), what, &mut step)
}

pub fn within<T>(limit: Duration, what: &str, mut step: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(value) = step() {
            return value;
        }
        assert!(Instant::now() < deadline, "waited {limit:?} for: {what}");
    }
}

pub fn connect(brokers: &str) -> Arc<dyn Log> {
    let options =
        KafkaOptions { brokers: brokers.into(), properties: BTreeMap::new(), client_id: "test".into() };
    Arc::new(KafkaLog::connect(&options).unwrap())
}

/// All committed records of a topic as it is now, by partition.
pub fn read_topic(log: &dyn Log, topic: &str) -> BTreeMap<i32, Vec<OwnedRecord>> {
    let count = log.partitions(topic).unwrap().unwrap_or_else(|| panic!("no topic {topic}"));
    let mut all = BTreeMap::new();
    for number in 0..count {
        let partition = TopicPartition::new(topic, number);
        let bounds = log.bounds(&partition).unwrap();
        let mut reader = log.reader().unwrap();
        reader.assign(&[(partition.clone(), bounds.start)]).unwrap();
        let mut records = Vec::new();
        until(&format!("all of {partition}"), || {
            let mut done = bounds.start == bounds.end;
            for event in reader.poll(Duration::from_millis(50)).unwrap() {
                match event {
                    Event::Run(run) => {
                        records.extend((0..run.records.len()).map(|i| run.records.to_owned(i)))
                    }
                    Event::End { position, .. } => done |= position >= bounds.end,
                    _ => panic!("a reader has no group"),
                }
            }
            done.then_some(())
        });
        all.insert(number, records);
    }
    all
}

/// The last value of each key; tombstones delete.
pub fn last_by_key(log: &dyn Log, topic: &str) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let mut last = BTreeMap::new();
    for record in read_topic(log, topic).into_values().flatten() {
        let key = record.key.unwrap();
        match record.value {
            Some(value) => last.insert(key, value),
            None => last.remove(&key),
        };
    }
    last
}

/// Dead or late records as they compare: partition, key, value, headers; in any order.
pub fn letters(log: &dyn Log, topic: &str) -> Vec<String> {
    let mut all: Vec<String> = read_topic(log, topic)
        .into_iter()
        .flat_map(|(partition, records)| {
            records.into_iter().map(move |record| {
                format!("{partition} {:?} {:?} {:?}", record.key, record.value, record.headers)
            })
        })
        .collect();
    all.sort();
    all
}

/// The sum of the counters that a group has committed with its offsets of a topic; each balances.
pub fn counters(log: &dyn Log, group: &str, topic: &str) -> Counters {
    // The broker may be coming back just now.
    let said = |error: &LogError| println!("asking for {topic}: {error}");
    let count = until("the topic", || log.partitions(topic).inspect_err(said).ok().flatten());
    let partitions: Vec<_> = (0..count).map(|number| TopicPartition::new(topic, number)).collect();
    let positions = until("the committed offsets", || {
        log.committed_so_far(group, &partitions, Duration::from_secs(5)).inspect_err(said).ok()
    });
    let mut sum = Counters::default();
    for (partition, position) in partitions.iter().zip(positions) {
        let Some(position) = position else { continue };
        let counters = OffsetMetadata::parse(&position.metadata, partition).unwrap().counters.unwrap();
        assert!(counters.balanced(), "{partition}: {counters:?}");
        sum.add(&counters);
    }
    sum
}

/// Fails where a transaction is left open in a partition of the topic: what comes behind it stays unread.
pub fn assert_no_open_transaction(log: &dyn Log, topic: &str) {
    let mut producer = log.producer().unwrap();
    for number in 0..log.partitions(topic).unwrap().unwrap() {
        let partition = TopicPartition::new(topic, number);
        let before = log.bounds(&partition).unwrap().end;
        let record = Outgoing { key: Some(b"probe"), value: Some(b"probe"), ..Outgoing::default() };
        producer.produce(&partition, &[record]).unwrap();
        producer.flush(Duration::from_secs(10)).unwrap();
        let after = log.bounds(&partition).unwrap().end;
        assert!(after == before + 1, "{partition}: the last stable offset is {before}, then {after}");
    }
}
