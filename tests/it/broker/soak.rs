//! The embedded broker for a long time: 24 partitions, three groups that read all of them, transactions, retention and
//! compaction. Its memory, files and disk stay flat, and so does the time from produced to consumed.
//!
//! It runs for a few seconds; `HEADWATER_TEST_SOAK_S=600` lets it run for ten minutes. What it prints is a line for
//! each tenth: records, latencies, and what the broker takes.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use rdkafka::consumer::ConsumerContext;

use super::*;

const PARTITIONS: i32 = 24;
const GROUPS: usize = 3;
const SHORT: Duration = Duration::from_secs(10);
const RECORDS_PER_ROUND: usize = 100;
const ROUND: Duration = Duration::from_millis(20);

fn now_us() -> u64 {
    u64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_micros()).unwrap()
}

fn bytes_below(folder: &Path) -> u64 {
    let Ok(entries) = std::fs::read_dir(folder) else { return 0 };
    let of = |entry: std::fs::DirEntry| match entry.file_type() {
        Ok(kind) if kind.is_dir() => bytes_below(&entry.path()),
        _ => entry.metadata().map_or(0, |metadata| metadata.len()),
    };
    entries.flatten().map(of).sum()
}

type Measure = fn(&Tenth) -> u64;

/// One tenth of the time.
#[derive(Default)]
struct Tenth {
    latencies_us: Vec<u64>,
    resident_kib: u64,
    files: usize,
    disk_kib: u64,
}

impl Tenth {
    fn latency_ms(&mut self, share: f64) -> f64 {
        self.latencies_us.sort_unstable();
        let at = ((self.latencies_us.len() as f64 - 1.0) * share) as usize;
        self.latencies_us.get(at).map_or(f64::NAN, |latency| *latency as f64 / 1000.0)
    }
}

fn consume(
    consumer: &BaseConsumer<impl ConsumerContext>,
    stop: &AtomicBool,
    seen: &Mutex<Vec<u64>>,
) -> usize {
    let mut count = 0;
    let mut committed = Instant::now();
    while !stop.load(Ordering::Relaxed) {
        if let Some(record) = consumer.poll(POLL) {
            let record = record.unwrap();
            let text = std::str::from_utf8(record.payload().unwrap()).unwrap();
            let sent: u64 = text.split(' ').next().unwrap().parse().unwrap();
            seen.lock().unwrap().push(now_us().saturating_sub(sent));
            count += 1;
        }
        if committed.elapsed() > Duration::from_secs(1) {
            // Nothing may be stored yet.
            let _ = consumer.commit_consumer_state(CommitMode::Async);
            committed = Instant::now();
        }
    }
    count
}

#[test]
fn memory_files_and_latency_stay_flat() {
    let time = std::env::var("HEADWATER_TEST_SOAK_S").ok().and_then(|seconds| seconds.parse().ok());
    let time = time.map_or(SHORT, Duration::from_secs);
    let folder = tempfile::tempdir().unwrap();
    let address = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap().local_addr().unwrap();
    let child = Child::start(folder.path(), address);
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", address.to_string());
    let admin: AdminClient<DefaultClientContext> = config.create().unwrap();
    let busy = NewTopic::new("busy", PARTITIONS, TopicReplication::Fixed(1))
        .set("segment.bytes", "200000")
        .set("retention.bytes", "400000");
    let state = NewTopic::new("state", 1, TopicReplication::Fixed(1))
        .set("segment.bytes", "50000")
        .set("cleanup.policy", "compact");
    for created in block_on(admin.create_topics([&busy, &state], &AdminOptions::new())).unwrap() {
        created.unwrap();
    }
    let stop = AtomicBool::new(false);
    let produced = AtomicU64::new(0);
    let seen = Mutex::new(Vec::new());
    let mut tenths: Vec<Tenth> = Vec::new();
    let counts: Vec<usize> = std::thread::scope(|scope| {
        let consumers: Vec<_> = (0..GROUPS * 2)
            .map(|at| {
                let group = format!("g{}", at / 2);
                let settings = [
                    ("group.id", group.as_str()),
                    ("auto.offset.reset", "earliest"),
                    ("enable.auto.commit", "false"),
                    ("isolation.level", "read_committed"),
                    ("partition.assignment.strategy", "cooperative-sticky"),
                ];
                let mut config = config.clone();
                for (name, value) in settings {
                    config.set(name, value);
                }
                let consumer: BaseConsumer = config.create().unwrap();
                consumer.subscribe(&["busy"]).unwrap();
                let (stop, seen) = (&stop, &seen);
                scope.spawn(move || consume(&consumer, stop, seen))
            })
            .collect();
        let plain = {
            let config = config.clone();
            let (stop, produced) = (&stop, &produced);
            scope.spawn(move || {
                let producer: BaseProducer = config.clone().set("linger.ms", "5").create().unwrap();
                let filler = "x".repeat(180);
                let mut next = Instant::now();
                for round in 0u64.. {
                    if stop.load(Ordering::Relaxed) {
                        break;
                    }
                    for at in 0..RECORDS_PER_ROUND {
                        let partition = (round as usize + at) as i32 % PARTITIONS;
                        send(&producer, "busy", partition, [format!("{} {filler}", now_us())]);
                    }
                    produced.fetch_add(RECORDS_PER_ROUND as u64, Ordering::Relaxed);
                    next += ROUND;
                    while Instant::now() < next {
                        producer.poll(next.saturating_duration_since(Instant::now()));
                    }
                }
                producer.flush(PATIENCE).unwrap();
            })
        };
        let transactional = {
            let mut config = config.clone();
            config.set("transactional.id", "x").set("transaction.timeout.ms", "20000");
            let (stop, produced) = (&stop, &produced);
            scope.spawn(move || {
                let producer: BaseProducer = config.create().unwrap();
                producer.init_transactions(PATIENCE).unwrap();
                for number in 0u64.. {
                    if stop.load(Ordering::Relaxed) {
                        break;
                    }
                    producer.begin_transaction().unwrap();
                    for partition in 0..4 {
                        send(&producer, "busy", partition, [format!("{} t", now_us())]);
                    }
                    let (key, value) = (format!("k{}", number % 50), format!("{number:1000}"));
                    let record = BaseRecord::to("state").key(&key).payload(&value);
                    producer.send(record).map_err(|(error, _)| error).unwrap();
                    if number % 10 == 9 {
                        producer.flush(PATIENCE).unwrap();
                        producer.abort_transaction(PATIENCE).unwrap();
                    } else {
                        producer.commit_transaction(PATIENCE).unwrap();
                        produced.fetch_add(4, Ordering::Relaxed);
                    }
                    producer.poll(ROUND);
                }
            })
        };
        for _ in 0..10 {
            let until = Instant::now() + time / 10;
            while Instant::now() < until && !plain.is_finished() && !transactional.is_finished() {
                std::thread::sleep(Duration::from_millis(50));
            }
            let (resident_kib, files) = child.takes();
            let latencies_us = std::mem::take(&mut *seen.lock().unwrap());
            let disk_kib = bytes_below(folder.path()) >> 10;
            let mut tenth = Tenth { latencies_us, resident_kib, files, disk_kib };
            eprintln!(
                "{:>7} records read  p50 {:.1} ms  p99 {:.1} ms  broker: {resident_kib} KiB, {files} files, {disk_kib} KiB on disk",
                tenth.latencies_us.len(),
                tenth.latency_ms(0.5),
                tenth.latency_ms(0.99),
            );
            tenths.push(tenth);
        }
        stop.store(true, Ordering::Relaxed);
        plain.join().unwrap();
        transactional.join().unwrap();
        consumers.into_iter().map(|consumer| consumer.join().unwrap()).collect()
    });
    let produced = produced.load(Ordering::Relaxed) as usize;
    assert!(counts.iter().sum::<usize>() > produced * GROUPS / 2, "{counts:?} of {produced} records each");
    // The first tenths are the start: buffers fill, retention has nothing to delete yet.
    let of = |range: std::ops::Range<usize>, what: Measure| tenths[range].iter().map(what).max().unwrap();
    let flat: [(&str, Measure, u64); 3] = [
        ("resident KiB", |tenth| tenth.resident_kib, 30_000),
        ("files", |tenth| tenth.files as u64, 60),
        ("KiB on disk", |tenth| tenth.disk_kib, PARTITIONS as u64 * 400),
    ];
    let settled = if time <= SHORT { 5 } else { 3 };
    for (what, value, slack) in flat {
        let (before, after) = (of(settled - 1..settled + 1, value), of(8..10, value));
        assert!(after <= before + before / 4 + slack, "{what} grew from {before} to {after}");
    }
    // The machine has other work, too, which the highest percentiles of seconds show.
    let shares = if time <= SHORT { &[0.5][..] } else { &[0.5, 0.99][..] };
    for &share in shares {
        let mut of = |range: std::ops::Range<usize>| {
            tenths[range].iter_mut().map(|tenth| tenth.latency_ms(share)).fold(0.0, f64::max)
        };
        let (before, after) = (of(settled - 1..settled + 1), of(8..10));
        assert!(
            after <= 2.0 * before + 100.0,
            "the latency's {share} quantile grew from {before} to {after} ms"
        );
    }
}
