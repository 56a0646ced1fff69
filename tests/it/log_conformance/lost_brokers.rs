//! A cluster whose metadata names no broker for a moment: a broker alone, that stood still for longer than its session,
//! and clusters while they are upgraded. librdkafka then drops every broker that it knew, for good.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use super::*;
use crate::support::{Script, connect, kafka_can_be_had};

/// Where the proxy listens, on the broker's port; as long as the broker's own address is as text.
const PROXY: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 2);
const METADATA: i16 = 3;
const FIND_COORDINATOR: i16 = 10;

/// Stands between a broker and its clients, and answers for it that there are no brokers while it is told to.
struct Proxy {
    address: SocketAddr,
    hides: AtomicBool,
    hidden: AtomicUsize,
}

impl Proxy {
    fn start(broker: SocketAddr) -> Arc<Self> {
        let address = SocketAddr::from((PROXY, broker.port()));
        let listener = TcpListener::bind(address).unwrap();
        let proxy = Arc::new(Self { address, hides: AtomicBool::new(false), hidden: AtomicUsize::new(0) });
        let shared = Arc::clone(&proxy);
        std::thread::spawn(move || {
            for client in listener.incoming() {
                // Either end may be gone by now; the client tries again.
                let Ok(client) = client else { continue };
                let Ok(server) = TcpStream::connect(broker) else { continue };
                shared.connect(client, server);
            }
        });
        proxy
    }

    fn connect(self: &Arc<Self>, client: TcpStream, server: TcpStream) {
        let asked: Arc<Mutex<HashMap<i32, (i16, i16)>>> = Arc::default();
        let (mut from, mut to) = (client.try_clone().unwrap(), server.try_clone().unwrap());
        let noted = Arc::clone(&asked);
        std::thread::spawn(move || {
            while let Some(frame) = frame(&mut from) {
                let number = |at| i16::from_be_bytes([frame[at], frame[at + 1]]);
                noted.lock().unwrap().insert(correlation(&frame[4..]), (number(0), number(2)));
                if send(&mut to, &frame).is_none() {
                    break;
                }
            }
            // The other direction ends with it.
            let _ = (from.shutdown(std::net::Shutdown::Both), to.shutdown(std::net::Shutdown::Both));
        });
        let (proxy, mut from, mut to) = (Arc::clone(self), server, client);
        std::thread::spawn(move || {
            while let Some(mut frame) = frame(&mut from) {
                let (key, version) = asked.lock().unwrap().remove(&correlation(&frame)).unwrap();
                if key == METADATA && version >= 9 && proxy.hides.load(Ordering::SeqCst) {
                    frame = without_brokers(&frame);
                    proxy.hidden.fetch_add(1, Ordering::SeqCst);
                }
                if matches!(key, METADATA | FIND_COORDINATOR) {
                    replace(&mut frame, b"127.0.0.1", PROXY.to_string().as_bytes());
                }
                if send(&mut to, &frame).is_none() {
                    break;
                }
            }
            let _ = (from.shutdown(std::net::Shutdown::Both), to.shutdown(std::net::Shutdown::Both));
        });
    }

    /// Names no brokers for as long as each client takes to ask, by far.
    fn hide(&self, mut meanwhile: impl FnMut()) {
        self.hides.store(true, Ordering::SeqCst);
        let since = Instant::now();
        while since.elapsed() < Duration::from_secs(1) {
            meanwhile();
            std::thread::sleep(Duration::from_millis(10));
        }
        self.hides.store(false, Ordering::SeqCst);
        assert!(self.hidden.swap(0, Ordering::SeqCst) > 0, "nobody has asked");
    }
}

fn frame(from: &mut TcpStream) -> Option<Vec<u8>> {
    let mut length = [0; 4];
    from.read_exact(&mut length).ok()?;
    let mut frame = vec![0; u32::from_be_bytes(length) as usize];
    from.read_exact(&mut frame).ok()?;
    Some(frame)
}

fn send(to: &mut TcpStream, frame: &[u8]) -> Option<()> {
    let length = u32::try_from(frame.len()).unwrap();
    to.write_all(&length.to_be_bytes()).and_then(|()| to.write_all(frame)).ok()
}

fn correlation(frame: &[u8]) -> i32 {
    i32::from_be_bytes(frame[..4].try_into().unwrap())
}

fn replace(frame: &mut [u8], old: &[u8], new: &[u8]) {
    for at in 0..frame.len().saturating_sub(old.len()) {
        if frame[at..].starts_with(old) {
            frame[at..at + old.len()].copy_from_slice(new);
        }
    }
}

/// A metadata response of version 9: correlation, tags, throttle time, then a compact array of the brokers.
fn without_brokers(frame: &[u8]) -> Vec<u8> {
    const BROKERS: usize = 4 + 1 + 4;
    let count = usize::from(frame[BROKERS]) - 1;
    let mut rest = BROKERS + 1;
    for _ in 0..count {
        rest += 4; // node id
        rest += usize::from(frame[rest]); // host, and its length plus one
        rest += 4; // port
        rest += usize::from(frame[rest]).max(1); // rack, which may be null
        rest += 1; // tags
    }
    let mut emptied = frame[..BROKERS].to_vec();
    emptied.push(1);
    emptied.extend_from_slice(&frame[rest..]);
    emptied
}

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
