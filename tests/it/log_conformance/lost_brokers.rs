//! A cluster whose metadata names no broker for a moment: a broker alone, that stood still for longer than its session,
//! and clusters while they are upgraded. librdkafka then drops every broker that it knew, for good.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use super::proxy::Proxy;
use super::*;
use crate::support::{Script, connect, kafka_can_be_had};

/// A log behind a proxy, and the same without one. Fields are dropped in this order.
struct Behind {
    log: KafkaLog,
    direct: KafkaLog,
    proxy: Arc<Proxy>,
    _broker: Broker,
    _dir: TempDir,
}

impl Behind {
    fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let listen = "127.0.0.1:0".parse().unwrap();
        let broker = Broker::start(&Options { listen, data_dir: dir.path().to_owned() }).unwrap();
        let proxy = Proxy::start(broker.address());
        let log = |address: SocketAddr| {
            let options = KafkaOptions {
                brokers: address.to_string(),
                // Every client asks again at once.
                properties: [("topic.metadata.refresh.interval.ms".to_owned(), "50".to_owned())].into(),
                client_id: "lost-brokers".into(),
            };
            KafkaLog::connect(&options).unwrap()
        };
        let (log, direct) = (log(proxy.address), log(broker.address()));
        Self { log, direct, proxy, _broker: broker, _dir: dir }
    }
}

#[test]
fn topics_and_bounds_are_asked_for_again() {
    let Behind { log, proxy, .. } = &Behind::start();
    let partitions = topic(log, "asked", 1);
    produce_numbers(log, &partitions[0], 10);
    let group = unique("asked");
    log.commit_offsets(&group, &[(partitions[0].clone(), at(3, ""))]).unwrap();
    log.committed(&group, &partitions).unwrap();
    for _ in 0..3 {
        proxy.hide(|| drop(log.partitions(&partitions[0].topic)));
        assert_eq!(log.partitions(&partitions[0].topic).unwrap(), Some(1));
        assert_eq!(log.bounds(&partitions[0]).unwrap().end, 10);
        assert_eq!(log.written_ends(&partitions).unwrap(), [10]);
        let committed = log.committed(&group, &partitions).unwrap();
        assert_eq!(committed[0].as_ref().unwrap().offset, 3);
    }
}

#[test]
fn a_reader_reads_on() {
    let Behind { log, direct, proxy, .. } = &Behind::start();
    let partitions = topic(direct, "read-on", 1);
    let mut reader = log.reader().unwrap();
    reader.assign(&[(partitions[0].clone(), 0)]).unwrap();
    let mut seen = Seen::default();
    for round in 1..5 {
        produce_numbers(direct, &partitions[0], 10);
        read_to(reader.as_mut(), &mut seen, &partitions[0], 10 * round);
        proxy.hide(|| seen.add(reader.poll(POLL).unwrap()));
    }
}

#[test]
fn a_member_reads_and_commits_on() {
    let Behind { log, direct, proxy, .. } = &Behind::start();
    let partitions = topic(direct, "commit-on", 2);
    let group = unique("commit-on");
    let mut worker = Worker::join(log, &options(&group, &group, &partitions[0]));
    worker.await_partitions(2);
    for round in 1..4 {
        produce_numbers(direct, &partitions[0], 10);
        until("what was produced", || {
            worker.step();
            let read = worker.texts.iter().filter(|(partition, _)| *partition == partitions[0]);
            (read.count() == 10 * round).then_some(())
        });
        // A transaction is open in the meantime.
        worker.member.begin().unwrap();
        worker.member.produce(&partitions[1], &[value("result")]).unwrap();
        proxy.hide(|| worker.step());
        let fence = worker.fence.clone().unwrap();
        let next = at(10 * i64::try_from(round).unwrap(), "");
        worker.member.commit(&fence, &[(partitions[0].clone(), next)]).unwrap();
    }
    assert_eq!(direct.committed(&group, &partitions[..1]).unwrap()[0].as_ref().unwrap().offset, 30);
    assert_eq!(read_all(direct, &partitions[1]).len(), 3);
}

#[test]
fn a_producer_delivers_what_it_was_given() {
    let Behind { log, direct, proxy, .. } = &Behind::start();
    let partitions = topic(direct, "deliver", 1);
    let mut producer = log.producer().unwrap();
    for _ in 0..3 {
        producer.produce(&partitions[0], &[value("before")]).unwrap();
        producer.flush(FLUSH).unwrap();
        proxy.hide(|| ());
        producer.produce(&partitions[0], &[value("after")]).unwrap();
        producer.flush(FLUSH).unwrap();
    }
    assert_eq!(read_all(direct, &partitions[0]).len(), 6);
}

/// The real thing: when it comes back it is fenced for some milliseconds, and names no brokers. Of many clients some ask
/// just then.
#[test]
#[ignore = "takes minutes: a Kafka stands still, again and again, for longer than its session"]
fn a_kafka_that_stood_still_is_found_again() {
    /// A broker's session lasts 9 s.
    const STALL: Duration = Duration::from_secs(17);
    const PORT: u16 = 19_292;
    if !kafka_can_be_had() {
        return;
    }
    let script = Script::kafka(PORT);
    script.start();
    let address = format!("127.0.0.1:{PORT}");
    let log = connect(&address);
    let partition = topic(log.as_ref(), "stood-still", 1).remove(0);
    let round = Arc::new(AtomicUsize::new(0));
    // What each client has done last, as the round in which it began.
    let spawn = |name: String, mut work: Box<dyn FnMut() -> bool + Send>| {
        let (round, done) = (Arc::clone(&round), Arc::new(AtomicUsize::new(0)));
        let shared = Arc::clone(&done);
        std::thread::spawn(move || {
            loop {
                let begun = round.load(Ordering::SeqCst);
                if work() {
                    shared.fetch_max(begun, Ordering::SeqCst);
                }
                std::thread::sleep(Duration::from_millis(20));
            }
        });
        (name, done)
    };
    let mut clients = Vec::new();
    for i in 0..60 {
        let (log, topic) = (connect(&address), partition.topic.clone());
        clients.push(spawn(format!("questions {i}"), Box::new(move || log.partitions(&topic).is_ok())));
    }
    for i in 0..30 {
        let mut reader = log.reader().unwrap();
        let end = log.bounds(&partition).unwrap().end;
        reader.assign(&[(partition.clone(), end)]).unwrap();
        let read = move || reader.poll(POLL).is_ok_and(|events| !events.is_empty());
        clients.push(spawn(format!("reader {i}"), Box::new(read)));
    }
    for i in 0..15 {
        let mut producer = log.producer().unwrap();
        let to = partition.clone();
        let write = move || {
            producer.produce(&to, &[value("1")]).is_ok() && producer.flush(Duration::from_secs(20)).is_ok()
        };
        clients.push(spawn(format!("producer {i}"), Box::new(write)));
    }
    for i in 0..30 {
        let (log, id) = (connect(&address), unique("stood-still"));
        let new = move || log.transactor(&id, Duration::from_secs(15));
        let mut transactor = new().unwrap();
        let to = partition.clone();
        let write = move || {
            let written = transactor.begin().is_ok() && transactor.produce(&to, &[value("1")]).is_ok();
            let done = written && transactor.commit().is_ok();
            // Its transaction was open for too long, so it may be fenced, and a worker would begin anew, too.
            if !done && let Ok(successor) = new() {
                transactor = successor;
            }
            done
        };
        clients.push(spawn(format!("transactor {i}"), Box::new(write)));
    }
    for stall in 1..=5 {
        let pid = std::fs::read_to_string(script.path("file")).unwrap();
        let signal = |name: &str| {
            assert!(std::process::Command::new("kill").args([name, pid.trim()]).status().unwrap().success());
        };
        signal("-STOP");
        std::thread::sleep(STALL);
        signal("-CONT");
        round.store(stall, Ordering::SeqCst);
        let behind = || -> Vec<&str> {
            let behind = clients.iter().filter(|(_, done)| done.load(Ordering::SeqCst) < stall);
            behind.map(|(name, _)| name.as_str()).collect()
        };
        let since = Instant::now();
        while !behind().is_empty() {
            assert!(since.elapsed() < Duration::from_secs(60), "{:?} found nobody any more", behind());
            std::thread::sleep(Duration::from_millis(100));
        }
        println!("stall {stall}: all are back after {:.1} s", since.elapsed().as_secs_f64());
    }
    script.command(&["stop"]).status().unwrap();
}
