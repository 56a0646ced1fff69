//! What every log must do, checked against each: one set of checks, generic over `dyn Log`.
//!
//! The checks share one cluster per implementation and run at once, so each uses topics and groups of its own.

mod lost_answers;
mod lost_brokers;
mod members;
pub mod proxy;
mod reading;
mod transactions;
mod writing;

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use headwater::broker::{Broker, Options};
use headwater::log::kafka::{KafkaLog, KafkaOptions};
use headwater::log::memory::MemoryLog;
use headwater::log::{
    CommitError, Event, Fence, Log, LogError, Member, MemberOptions, Outgoing, Position, Reader, TopicSpec,
};
use headwater::record::{OwnedRecord, TopicPartition};
use tempfile::TempDir;

use crate::support::{real_kafka, unique, until, within};

const POLL: Duration = Duration::from_millis(50);
const FLUSH: Duration = Duration::from_secs(30);

/// Defines each check as a test of each implementation.
macro_rules! conformance {
    ($($room:ident :: $check:ident),* $(,)?) => {
        mod memory {
            $(#[test] fn $check() { super::$room::$check(&super::memory()); })*
        }
        mod embedded {
            $(#[test] fn $check() { super::$room::$check(&super::Embedded::start().log); })*
        }
        mod kafka {
            $(#[test] fn $check() {
                if let Some(log) = super::kafka() { super::$room::$check(&log); }
            })*
        }
    };
}

conformance! {
    reading::every_record_once_in_order,
    reading::assigned_in_the_middle_and_moved,
    reading::an_offset_it_does_not_hold_is_an_error,
    reading::offset_at_a_timestamp,
    reading::paused_and_resumed,
    reading::paused_at_its_end_and_resumed,
    reading::unknown_topics,
    writing::topics_are_created_once_and_deleted,
    writing::keys_values_and_headers_may_be_null,
    writing::large_records,
    writing::a_record_too_large_is_named,
    writing::records_are_deleted_before_an_offset,
    transactions::committed_aborted_and_open,
    transactions::ends_are_past_the_markers,
    transactions::offsets_and_metadata_with_the_records,
    transactions::no_commit_without_offsets,
    transactions::a_record_too_large_aborts_and_the_next_commits,
    transactions::outside_any_group_a_successor_fences_and_decides,
    members::nothing_is_read_before_start,
    members::started_again_elsewhere,
    members::two_split_the_partitions_and_one_leaves,
    members::a_commit_with_the_old_fence_is_fenced,
    members::the_same_instance_takes_over,
    members::offsets_committed_from_outside,
    members::dropped_in_the_middle_of_a_rebalance,
}

fn memory() -> MemoryLog {
    MemoryLog::new()
}

/// An embedded broker of its own. Fields are dropped in this order: the client goes before its broker.
struct Embedded {
    log: KafkaLog,
    _broker: Broker,
    _dir: TempDir,
}

impl Embedded {
    fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let broker = embedded(dir.path());
        Self { log: connected(broker.address(), &[]), _broker: broker, _dir: dir }
    }
}

/// An embedded broker that keeps its topics there.
fn embedded(folder: &Path) -> Broker {
    let listen = "127.0.0.1:0".parse().unwrap();
    Broker::start(&Options { listen, data_dir: folder.to_owned() }).unwrap()
}

fn connected(brokers: impl ToString, properties: &[(&str, &str)]) -> KafkaLog {
    let properties = properties.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
    let options = KafkaOptions {
        brokers: brokers.to_string(),
        properties: properties.collect(),
        client_id: "conformance".into(),
    };
    KafkaLog::connect(&options).unwrap()
}

#[test]
fn the_embedded_broker_replaces_a_member_whose_session_times_out() {
    members::a_member_that_is_gone_is_replaced_when_its_session_times_out(&Embedded::start().log);
}

fn kafka() -> Option<KafkaLog> {
    Some(connected(real_kafka()?, &[]))
}

/// The log in memory has a test of its own for this: its time is handed in.
#[test]
fn kafka_replaces_a_member_whose_session_times_out() {
    if let Some(log) = kafka() {
        members::a_member_that_is_gone_is_replaced_when_its_session_times_out(&log);
    }
}

#[test]
fn an_unreachable_broker_is_named() {
    // A port that was free a moment ago.
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let brokers = format!("127.0.0.1:{port}");
    let options =
        KafkaOptions { brokers: brokers.clone(), properties: BTreeMap::new(), client_id: "nobody".into() };
    let error = KafkaLog::connect(&options).err().expect("nobody listens").to_string();
    assert!(error.contains(&brokers), "{error}");
}

#[test]
fn an_unknown_property_is_named() {
    let options = KafkaOptions {
        brokers: "127.0.0.1:1".into(),
        properties: [("no.such.thing".to_owned(), "1".to_owned())].into(),
        client_id: "nobody".into(),
    };
    let error = KafkaLog::connect(&options).err().expect("not a property").to_string();
    assert!(error.contains("no.such.thing"), "{error}");
}

/// What a broker's disk does not give back as it was written, librdkafka would skip.
#[test]
fn damaged_records_stop_a_reader_before_what_lies_behind_them() {
    let dir = tempfile::tempdir().unwrap();
    let broker = embedded(dir.path());
    let log = connected(broker.address(), &[("compression.type", "none")]);
    let partition = topic(&log, "damaged", 1).remove(0);
    let mut producer = log.producer().unwrap();
    for text in ["first", "second", "third"] {
        producer.produce(&partition, &[value(text)]).unwrap();
        producer.flush(FLUSH).unwrap();
    }
    let damaged = damage(dir.path(), b"second");
    assert_eq!(damaged, 1);

    let mut reader = log.reader().unwrap();
    reader.assign(&[(partition.clone(), 0)]).unwrap();
    let mut read = Vec::new();
    let error = until("the damage", || match reader.poll(POLL) {
        Ok(events) => {
            for event in events {
                let Event::Run(run) = event else { panic!("it came to the end: {read:?}") };
                read.extend((0..run.records.len()).map(|index| run.records.to_owned(index).value.unwrap()));
            }
            None
        }
        Err(error) => Some(error),
    });
    assert_eq!(read, [b"first".to_vec()]);
    assert!(
        matches!(&error, LogError::Damaged { partition: at, offset: 1, .. } if *at == partition),
        "{error}"
    );
}

/// Flips a bit of this text wherever a file below the folder has it; in how many files.
fn damage(folder: &Path, text: &[u8]) -> usize {
    let mut files = 0;
    for entry in std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
        if entry.is_dir() {
            files += damage(&entry, text);
            continue;
        }
        let mut bytes = std::fs::read(&entry).unwrap();
        if let Some(at) = bytes.windows(text.len()).position(|window| window == text) {
            bytes[at] ^= 1;
            std::fs::write(&entry, bytes).unwrap();
            files += 1;
        }
    }
    files
}

/// A new topic; its partitions.
fn topic(log: &dyn Log, name: &str, partitions: i32) -> Vec<TopicPartition> {
    topic_with(log, name, partitions, &[])
}

fn topic_with(log: &dyn Log, name: &str, partitions: i32, config: &[(&str, &str)]) -> Vec<TopicPartition> {
    let name = unique(name);
    let mut all = BTreeMap::from([("retention.ms".to_owned(), "-1".to_owned())]);
    all.extend(config.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())));
    log.create_topics(&[TopicSpec { name: name.clone(), partitions, config: all }]).unwrap();
    (0..partitions).map(|partition| TopicPartition::new(name.as_str(), partition)).collect()
}

fn value(text: &str) -> Outgoing<'_> {
    Outgoing { value: Some(text.as_bytes()), ..Outgoing::default() }
}

/// Produces `0..count` as text, in small batches.
fn produce_numbers(log: &dyn Log, to: &TopicPartition, count: i64) {
    let texts: Vec<String> = (0..count).map(|i| i.to_string()).collect();
    let records: Vec<Outgoing<'_>> = texts.iter().map(|text| value(text)).collect();
    let mut producer = log.producer().unwrap();
    for batch in records.chunks(100) {
        producer.produce(to, batch).unwrap();
    }
    producer.flush(FLUSH).unwrap();
}

fn text(record: &OwnedRecord) -> String {
    String::from_utf8(record.value.clone().unwrap()).unwrap()
}

/// What a reader has yielded, by partition, checked as it comes.
#[derive(Default)]
struct Seen {
    records: BTreeMap<TopicPartition, Vec<OwnedRecord>>,
    ends: BTreeMap<TopicPartition, i64>,
}

impl Seen {
    fn add(&mut self, events: Vec<Event>) {
        for event in events {
            match event {
                Event::Run(run) => {
                    assert!(!run.records.is_empty(), "an empty run");
                    let known = self.records.entry(run.partition).or_default();
                    for i in 0..run.records.len() {
                        let record = run.records.to_owned(i);
                        if let Some(last) = known.last() {
                            assert!(last.offset < record.offset, "{} after {}", record.offset, last.offset);
                        }
                        known.push(record);
                    }
                    assert!(run.next > known.last().unwrap().offset);
                }
                Event::End { partition, position } => {
                    self.ends.insert(partition, position);
                }
                _ => panic!("a reader has no group"),
            }
        }
    }

    fn texts(&self, partition: &TopicPartition) -> Vec<String> {
        self.records.get(partition).map(|records| records.iter().map(text).collect()).unwrap_or_default()
    }
}

/// Reads on until the end of the partition is reported at `position` or later.
fn read_to(reader: &mut dyn Reader, seen: &mut Seen, partition: &TopicPartition, position: i64) {
    until(&format!("the end of {partition} at {position}"), || {
        seen.add(reader.poll(POLL).unwrap());
        seen.ends.get(partition).is_some_and(|end| *end >= position).then_some(())
    });
}

/// All committed texts of a partition.
fn read_all(log: &dyn Log, partition: &TopicPartition) -> Vec<String> {
    let mut reader = log.reader().unwrap();
    let bounds = log.bounds(partition).unwrap();
    reader.assign(&[(partition.clone(), bounds.start)]).unwrap();
    let mut seen = Seen::default();
    read_to(reader.as_mut(), &mut seen, partition, bounds.end);
    seen.texts(partition)
}

fn at(offset: i64, metadata: &str) -> Position {
    Position { offset, metadata: metadata.into() }
}

fn options(group: &str, instance: &str, topic: &TopicPartition) -> MemberOptions {
    MemberOptions {
        group: group.into(),
        instance: instance.into(),
        topics: vec![topic.topic.to_string()],
        session_timeout: Duration::from_secs(45),
        transaction_timeout: Duration::from_secs(30),
    }
}

/// A member and what it has been told. It starts what it is assigned where the group stands, or at 0.
struct Worker<'a> {
    log: &'a dyn Log,
    group: String,
    member: Box<dyn Member>,
    fence: Option<Fence>,
    owned: BTreeMap<TopicPartition, i64>,
    texts: Vec<(TopicPartition, String)>,
    lost: usize,
}

impl<'a> Worker<'a> {
    fn join(log: &'a dyn Log, options: &MemberOptions) -> Self {
        let member = log.member(options).unwrap();
        Self {
            log,
            group: options.group.clone(),
            member,
            fence: None,
            owned: BTreeMap::new(),
            texts: Vec::new(),
            lost: 0,
        }
    }

    fn step(&mut self) {
        for event in self.member.poll(POLL).unwrap() {
            match event {
                Event::Run(run) => {
                    let position = self.owned.get_mut(&run.partition).expect("a run of an owned partition");
                    for i in 0..run.records.len() {
                        let record = run.records.to_owned(i);
                        assert!(record.offset >= *position, "{} again at {}", run.partition, record.offset);
                        self.texts.push((run.partition.clone(), text(&record)));
                    }
                    *position = run.next;
                }
                Event::End { partition, position } => {
                    self.owned.insert(partition, position);
                }
                Event::Assigned { partitions, fence } => {
                    self.fence = Some(fence);
                    let positions = self.log.committed(&self.group, &partitions).unwrap();
                    for (partition, position) in partitions.into_iter().zip(positions) {
                        let offset = position.map_or(0, |position| position.offset);
                        self.member.start(&partition, offset).unwrap();
                        self.owned.insert(partition, offset);
                    }
                }
                Event::Revoked(partitions) => {
                    // The last epoch is committed before the partitions go, under the latest fence.
                    self.commit(&[]).unwrap();
                    self.give_up(&partitions);
                }
                Event::Lost(partitions) => {
                    self.lost += 1;
                    self.give_up(&partitions);
                }
            }
        }
    }

    fn give_up(&mut self, partitions: &[TopicPartition]) {
        for partition in partitions {
            self.owned.remove(partition);
        }
        self.member.release(partitions).unwrap();
    }

    fn await_partitions(&mut self, count: usize) {
        until(&format!("{count} partitions"), || {
            self.step();
            (self.owned.len() == count).then_some(())
        });
    }

    /// One transaction: the records, and the position of every owned partition.
    fn commit(&mut self, records: &[(&TopicPartition, &str)]) -> Result<(), headwater::log::CommitError> {
        self.member.begin().unwrap();
        for (to, text) in records {
            self.member.produce(to, &[value(text)]).unwrap();
        }
        let fence = self.fence.clone().expect("an assignment");
        self.member.commit(&fence, &self.offsets())
    }

    /// Commits, again if the group moved on meanwhile.
    fn commit_settled(&mut self) {
        until("a commit under the group's generation", || match self.commit(&[]) {
            Ok(()) => Some(()),
            Err(headwater::log::CommitError::Aborted(_)) => {
                self.member.abort().unwrap();
                self.step();
                None
            }
            Err(other) => panic!("{other}"),
        });
    }

    fn offsets(&self) -> Vec<(TopicPartition, Position)> {
        self.owned.iter().map(|(partition, offset)| (partition.clone(), at(*offset, "step"))).collect()
    }
}
