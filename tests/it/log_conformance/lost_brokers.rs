//! A cluster whose metadata names no broker for a moment: a broker alone, that stood still for longer than its session,
//! and clusters while they are upgraded. librdkafka then drops every broker that it knew, for good.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use super::proxy::Behind;
use super::*;
use crate::support::{Script, connect, kafka_can_be_had};

/// Every client asks again at once.
const REFRESHED: [(&str, &str); 1] = [("topic.metadata.refresh.interval.ms", "50")];

#[test]
fn topics_and_bounds_are_asked_for_again() {
    let Behind { log, proxy, .. } = &Behind::start(&REFRESHED);
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

/// As of a topic whose only broker was fenced for a moment.
#[test]
fn partitions_that_nobody_leads_are_asked_for_again() {
    let Behind { log, proxy, .. } = &Behind::start(&[]);
    let partitions = topic(log, "nobody-leads", 1);
    produce_numbers(log, &partitions[0], 10);
    let meanwhile = |ask: &dyn Fn()| {
        std::thread::scope(|scope| {
            scope.spawn(|| proxy.hide(|| drop(log.partitions(&partitions[0].topic))));
            std::thread::sleep(Duration::from_millis(300));
            ask();
        });
    };
    meanwhile(&|| assert_eq!(log.bounds(&partitions[0]).unwrap().end, 10));
    meanwhile(&|| assert_eq!(log.written_ends(&partitions).unwrap(), [10]));
    meanwhile(&|| assert_eq!(log.offset_at(&partitions[0], 0).unwrap(), Some(0)));
}

#[test]
fn a_reader_reads_on() {
    let Behind { log, direct, proxy, .. } = &Behind::start(&REFRESHED);
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
    let Behind { log, direct, proxy, .. } = &Behind::start(&REFRESHED);
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
    let Behind { log, direct, proxy, .. } = &Behind::start(&REFRESHED);
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

/// How a broker is away.
#[derive(Clone, Copy)]
enum Away {
    /// For longer than its session, which lasts 9 s.
    Stopped,
    Killed,
}

/// The real thing: when it comes back it is fenced for some milliseconds, and names no brokers. Of many clients some ask
/// just then.
#[test]
#[ignore = "takes minutes: a Kafka stands still, again and again, for longer than its session"]
fn a_kafka_that_stood_still_is_found_again() {
    a_kafka_is_found_again(Away::Stopped, 19_292);
}

#[test]
#[ignore = "takes minutes: a Kafka is killed, again and again"]
fn a_kafka_that_was_killed_is_found_again() {
    a_kafka_is_found_again(Away::Killed, 19_392);
}

fn a_kafka_is_found_again(away: Away, port: u16) {
    if !kafka_can_be_had() {
        return;
    }
    let script = Script::kafka(port);
    script.start();
    let address = format!("127.0.0.1:{port}");
    let log = connect(&address);
    let partition = topic(log.as_ref(), "away", 1).remove(0);
    let mut crowd = Crowd::default();
    for i in 0..40 {
        let (log, topic) = (connect(&address), partition.topic.clone());
        crowd.join(format!("questions {i}"), move || log.partitions(&topic).is_ok());
    }
    for i in 0..60 {
        let (log, group, of) = (connect(&address), unique("away"), [partition.clone()]);
        crowd.join(format!("offsets {i}"), move || log.committed(&group, &of).is_ok());
    }
    for i in 0..20 {
        let mut reader = log.reader().unwrap();
        let end = log.bounds(&partition).unwrap().end;
        reader.assign(&[(partition.clone(), end)]).unwrap();
        crowd.join(format!("reader {i}"), move || reader.poll(POLL).is_ok_and(|events| !events.is_empty()));
    }
    for i in 0..15 {
        let mut producer = log.producer().unwrap();
        let to = partition.clone();
        crowd.join(format!("producer {i}"), move || {
            producer.produce(&to, &[value("1")]).is_ok() && producer.flush(Duration::from_secs(20)).is_ok()
        });
    }
    for i in 0..20 {
        let (log, id) = (connect(&address), unique("away"));
        let new = move || log.transactor(&id, Duration::from_secs(15));
        let mut transactor = new().unwrap();
        let to = partition.clone();
        crowd.join(format!("transactor {i}"), move || {
            let written = transactor.begin().is_ok() && transactor.produce(&to, &[value("1")]).is_ok();
            let done = written && transactor.commit().is_ok();
            // Its transaction was open for too long, so it may be fenced, and a worker would begin anew, too.
            if !done && let Ok(successor) = new() {
                transactor = successor;
            }
            done
        });
    }
    for i in 0..20 {
        let (log, to, group) = (connect(&address), partition.clone(), unique("away"));
        let of = topic(log.as_ref(), "away-read", 1).remove(0);
        let options = options(&group, &group, &of);
        let mut member = Commuter::join(&*log, &options).unwrap();
        crowd.join(format!("member {i}"), move || match member.commute(&to) {
            Ok(done) => done,
            Err(why) => {
                println!("member {i}: {why}");
                if let Ok(successor) = Commuter::join(&*log, &options) {
                    member = successor;
                }
                false
            }
        });
    }
    for round in 1..=5 {
        match away {
            Away::Stopped => {
                script.signal("-STOP");
                std::thread::sleep(Duration::from_secs(17));
                script.signal("-CONT");
            }
            Away::Killed => {
                script.kill();
                script.restart();
            }
        }
        crowd.round.store(round, Ordering::SeqCst);
        let since = Instant::now();
        while !crowd.behind().is_empty() {
            assert!(since.elapsed() < Duration::from_secs(60), "{:?} found nobody any more", crowd.behind());
            std::thread::sleep(Duration::from_millis(100));
        }
        println!("round {round}: all are back after {:.1} s", since.elapsed().as_secs_f64());
    }
    script.command(&["stop"]).status().unwrap();
}

/// Clients of each kind, which do the same again and again, and what each has done last: the round in which it began.
#[derive(Default)]
struct Crowd {
    round: Arc<AtomicUsize>,
    clients: Vec<(String, Arc<AtomicUsize>)>,
}

impl Crowd {
    /// One more client; its work says whether it was done.
    fn join(&mut self, name: String, mut work: impl FnMut() -> bool + Send + 'static) {
        let (round, done) = (Arc::clone(&self.round), Arc::new(AtomicUsize::new(0)));
        self.clients.push((name, Arc::clone(&done)));
        std::thread::spawn(move || {
            loop {
                let begun = round.load(Ordering::SeqCst);
                if work() {
                    done.fetch_max(begun, Ordering::SeqCst);
                }
                std::thread::sleep(Duration::from_millis(20));
            }
        });
    }

    fn behind(&self) -> Vec<&str> {
        let round = self.round.load(Ordering::SeqCst);
        let behind = self.clients.iter().filter(|(_, done)| done.load(Ordering::SeqCst) < round);
        behind.map(|(name, _)| name.as_str()).collect()
    }
}

/// A member of a group of its own, which commits the same offset again and again.
struct Commuter {
    member: Box<dyn Member>,
    fence: Option<Fence>,
    owned: Vec<TopicPartition>,
}

impl Commuter {
    fn join(log: &dyn Log, options: &MemberOptions) -> headwater::log::Result<Self> {
        Ok(Self { member: log.member(options)?, fence: None, owned: Vec::new() })
    }

    /// Whether a transaction was committed.
    fn commute(&mut self, to: &TopicPartition) -> Result<bool, String> {
        for event in self.member.poll(POLL).map_err(|error| error.to_string())? {
            match event {
                Event::Assigned { partitions, fence } => {
                    self.fence = Some(fence);
                    for partition in partitions {
                        self.member.start(&partition, 0).map_err(|error| error.to_string())?;
                        self.owned.push(partition);
                    }
                }
                Event::Revoked(partitions) | Event::Lost(partitions) => {
                    self.member.release(&partitions).map_err(|error| error.to_string())?;
                    self.owned.clear();
                }
                Event::Run(_) | Event::End { .. } => (),
            }
        }
        let (Some(fence), [partition]) = (&self.fence, &self.owned[..]) else { return Ok(false) };
        self.member.begin().map_err(|error| error.to_string())?;
        self.member.produce(to, &[value("1")]).map_err(|error| error.to_string())?;
        let committed = self.member.commit(fence, &[(partition.clone(), at(0, ""))]);
        committed.map(|()| true).map_err(|error| format!("{error:?}"))
    }
}
