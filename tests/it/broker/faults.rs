//! The embedded broker killed while it produces, commits, deletes and compacts, and with a disk that is full: in a
//! process of its own, over sockets. What a power cut leaves is tested below the sockets, in `src/broker`.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use rdkafka::message::DeliveryResult;
use rdkafka::producer::{ProducerContext, ThreadedProducer};
use rdkafka::{ClientContext, util::Timeout};

use super::*;

fn free_address() -> SocketAddr {
    std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap().local_addr().unwrap()
}

fn client(address: SocketAddr, more: &[(&str, &str)]) -> ClientConfig {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", address.to_string()).set("enable.idempotence", "true");
    config.set("reconnect.backoff.max.ms", "100").set("linger.ms", "1");
    for (name, value) in more {
        config.set(*name, *value);
    }
    config
}

fn create_at(address: SocketAddr, topics: &[(&str, &[(&str, &str)])]) {
    let admin: AdminClient<DefaultClientContext> = client(address, &[]).create().unwrap();
    for (name, settings) in topics {
        let mut topic = NewTopic::new(name, 1, TopicReplication::Fixed(1));
        for (setting, value) in *settings {
            topic = topic.set(setting, value);
        }
        let created = block_on(admin.create_topics([&topic], &AdminOptions::new())).unwrap();
        assert_eq!(created, [Ok((*name).to_owned())]);
    }
}

/// Every file below a folder.
fn files(folder: &Path) -> Vec<String> {
    let mut found = Vec::new();
    let Ok(entries) = std::fs::read_dir(folder) else { return found };
    for entry in entries.flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            found.extend(files(&entry.path()));
        } else {
            found.push(entry.path().display().to_string());
        }
    }
    found.sort();
    found
}

/// What the producers below have been told.
#[derive(Default)]
struct Told {
    plain: usize,
    committed: Vec<usize>,
}

/// Plain records to `plain` and `aging`, and transactions over `out` and `compacted`, until told to stop.
fn work(address: SocketAddr, stop: &AtomicBool) -> Told {
    let plain: BaseProducer = client(address, &[]).create().unwrap();
    let settings = [("transactional.id", "x"), ("transaction.timeout.ms", "60000")];
    let transactional: BaseProducer = client(address, &settings).create().unwrap();
    transactional.init_transactions(PATIENCE).unwrap();
    let mut told = Told::default();
    let filler = "x".repeat(200);
    for number in 0.. {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        send(&plain, "plain", 0, numbers(told.plain..told.plain + 20));
        send(&plain, "aging", 0, (0..20).map(|at| format!("{} {filler}", told.plain + at)));
        told.plain += 20;
        plain.poll(Duration::ZERO);
        transactional.begin_transaction().unwrap();
        let (key, value) = (format!("k{}", number % 20), number.to_string());
        send(&transactional, "out", 0, [value.clone()]);
        let record = BaseRecord::to("compacted").partition(0).key(&key).payload(&value);
        transactional.send(record).map_err(|(error, _)| error).unwrap();
        if number % 5 == 4 {
            transactional.flush(PATIENCE).unwrap();
            transactional.abort_transaction(PATIENCE).unwrap();
        } else {
            transactional.commit_transaction(PATIENCE).unwrap();
            told.committed.push(number);
        }
    }
    plain.flush(PATIENCE).unwrap();
    told
}

#[test]
fn killed_in_transactions_during_retention_and_compaction_it_loses_and_repeats_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let address = free_address();
    let mut child = Child::start(folder.path(), address);
    let small = ("segment.bytes", "8000");
    create_at(
        address,
        &[
            ("plain", &[]),
            ("out", &[]),
            ("aging", &[small, ("retention.bytes", "60000")]),
            ("compacted", &[small, ("cleanup.policy", "compact"), ("min.cleanable.dirty.ratio", "0.01")]),
        ],
    );
    let stop = AtomicBool::new(false);
    let (told, child) = std::thread::scope(|scope| {
        let worker = scope.spawn(|| work(address, &stop));
        let seen = |what: &str, holds: &mut dyn FnMut(&[String]) -> bool| {
            let deadline = Instant::now() + PATIENCE;
            while !holds(&files(folder.path())) {
                assert!(Instant::now() < deadline && !worker.is_finished(), "waited for {what}");
            }
        };
        for _ in 0..3 {
            let of = |name: &str| {
                let topics = files(folder.path());
                topics.into_iter().filter(|path| path.ends_with(name)).collect::<Vec<_>>()
            };
            // In the middle of a compaction, or where that is too quick to be seen, right after it.
            let mut logs = of(".log").len();
            seen("a compaction", &mut |files| {
                let now = files.iter().filter(|path| path.ends_with(".log")).count();
                let fewer = now + 3 < logs;
                logs = logs.max(now);
                fewer || files.iter().any(|path| path.ends_with(".cleaned") || path.ends_with(".swap"))
            });
            drop(child);
            child = Child::start(folder.path(), address);
            // As soon as an old segment is gone.
            let before = of(".log");
            seen("retention", &mut |files| before.iter().any(|path| !files.contains(path)));
            drop(child);
            child = Child::start(folder.path(), address);
        }
        stop.store(true, Ordering::Relaxed);
        (worker.join().unwrap(), child)
    });
    drop(child);
    let broker = start(folder.path());
    assert_eq!(values(&broker, "plain", 0), numbers(0..told.plain).collect::<Vec<_>>());
    let committed: Vec<String> = told.committed.iter().map(usize::to_string).collect();
    assert_eq!(values(&broker, "out", 0), committed);
    // What is left of the aging topic has no gap up to the newest.
    let (start, end) = watermarks(&broker, "aging", 0, "read_committed");
    assert!(start > 0 && end == told.plain as i64, "{start}..{end}");
    let aging = read_from(&broker, "aging", 0, start, "read_committed");
    assert_eq!(aging.len() as i64, end - start);
    for (offset, value) in aging {
        assert!(value.starts_with(&format!("{offset} ")), "{offset}: {value}");
    }
    let mut last: BTreeMap<usize, String> = BTreeMap::new();
    for number in &told.committed {
        last.insert(number % 20, number.to_string());
    }
    let compacted = read_from(&broker, "compacted", 0, 0, "read_committed");
    let mut found: BTreeMap<usize, String> = BTreeMap::new();
    for (_, value) in &compacted {
        found.insert(value.parse::<usize>().unwrap() % 20, value.clone());
    }
    assert_eq!(found, last);
    assert!(compacted.len() < told.committed.len(), "nothing was compacted");
    assert!(compacted.windows(2).all(|pair| pair[0].0 < pair[1].0));
}

/// Remembers how deliveries ended.
#[derive(Default)]
struct Deliveries(Mutex<Vec<Option<RDKafkaErrorCode>>>);

impl ClientContext for Deliveries {}

impl ProducerContext for Deliveries {
    type DeliveryOpaque = ();

    fn delivery(&self, result: &DeliveryResult<'_>, (): ()) {
        let code = result.as_ref().err().map(|(error, _)| error.rdkafka_error_code().unwrap());
        self.0.lock().unwrap().push(code);
    }
}

#[test]
fn a_full_disk_is_reported_and_it_goes_on_when_there_is_space() {
    let folder = tempfile::tempdir().unwrap();
    let address = free_address();
    // No file may grow beyond this: to the process, the disk is full.
    let child = Child::start_with(folder.path(), address, &[(CHILD_FILE_BYTES, "200000")]);
    create_at(address, &[("full", &[]), ("other", &[])]);
    let patient: BaseProducer = client(address, &[("batch.size", "5000")]).create().unwrap();
    send(&patient, "full", 0, (0..4_000).map(|at| format!("{at:100}")));
    until("the disk to be full", || {
        patient.poll(Duration::ZERO);
        files(folder.path()).iter().any(|path| std::fs::metadata(path).is_ok_and(|m| m.len() > 190_000))
    });
    let hasty = [("enable.idempotence", "false"), ("retries", "0")];
    let producer: ThreadedProducer<Deliveries> =
        client(address, &hasty).create_with_context(Deliveries::default()).unwrap();
    let large = "x".repeat(50_000);
    until("a report that the disk is full", || {
        producer
            .send(BaseRecord::<(), str>::to("full").partition(0).payload(&large))
            .map_err(|(e, _)| e)
            .unwrap();
        producer.flush(PATIENCE).unwrap();
        let ended = producer.context().0.lock().unwrap();
        ended.last() == Some(&Some(RDKafkaErrorCode::Fail))
            || ended.last() == Some(&Some(RDKafkaErrorCode::KafkaStorageError))
    });
    let last = *producer.context().0.lock().unwrap().last().unwrap();
    assert_eq!(last, Some(RDKafkaErrorCode::KafkaStorageError));
    // Others are served, and their transactions commit.
    let settings = [("transactional.id", "x"), ("transaction.timeout.ms", "20000")];
    let transactional: BaseProducer = client(address, &settings).create().unwrap();
    transactional.init_transactions(PATIENCE).unwrap();
    transactional.begin_transaction().unwrap();
    send(&transactional, "other", 0, numbers(0..10));
    transactional.commit_transaction(PATIENCE).unwrap();

    child.free_the_disk();
    patient.flush(Timeout::After(PATIENCE)).unwrap();
    drop(child);
    let broker = start(folder.path());
    let there = values(&broker, "full", 0);
    let numbered: Vec<String> = there.into_iter().filter(|value| !value.starts_with('x')).collect();
    assert_eq!(numbered, (0..4_000).map(|at| format!("{at:100}")).collect::<Vec<_>>());
    assert_eq!(values(&broker, "other", 0).len(), 10);
}
