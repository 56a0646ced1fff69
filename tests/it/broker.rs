//! The embedded broker as librdkafka sees it: the faults that other brokers were found to have, one test each.

mod clients;
mod faults;
mod fuzz;
mod soak;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, Instant};

use futures::executor::block_on;
use headwater::broker::{Attached, Broker, BrokerError, Options, attach};
use rdkafka::admin::{
    AdminClient, AdminOptions, AlterConfig, NewPartitions, NewTopic, ResourceSpecifier, TopicReplication,
};
use rdkafka::client::DefaultClientContext;
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::Message;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use rdkafka::{Offset, TopicPartitionList};

const PATIENCE: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(50);

fn start(folder: &Path) -> Broker {
    let listen = SocketAddr::from(([127, 0, 0, 1], 0));
    Broker::start(&Options { listen, data_dir: folder.to_owned() }).unwrap()
}

fn config(broker: &Broker, more: &[(&str, &str)]) -> ClientConfig {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", broker.address().to_string());
    for (name, value) in more {
        config.set(*name, *value);
    }
    config
}

fn admin(broker: &Broker) -> AdminClient<DefaultClientContext> {
    config(broker, &[]).create().unwrap()
}

/// Raises a topic's partition count.
pub fn add_partitions(broker: &Broker, topic: &str, count: usize) {
    let raised =
        block_on(admin(broker).create_partitions([&NewPartitions::new(topic, count)], &AdminOptions::new()));
    assert_eq!(raised.unwrap(), [Ok(topic.to_owned())]);
}

/// Makes the cluster forget a group, as it does by itself when the group has had no member for long.
pub fn delete_group(broker: &Broker, group: &str) {
    let deleted = block_on(admin(broker).delete_groups(&[group], &AdminOptions::new()));
    assert_eq!(deleted.unwrap(), [Ok(group.to_owned())]);
}

fn create(broker: &Broker, topic: &str, partitions: i32, settings: &[(&str, &str)]) {
    let mut new = NewTopic::new(topic, partitions, TopicReplication::Fixed(1));
    for (name, value) in settings {
        new = new.set(name, value);
    }
    let results = block_on(admin(broker).create_topics([&new], &AdminOptions::new())).unwrap();
    assert_eq!(results, [Ok(topic.to_owned())]);
}

fn producer(broker: &Broker, more: &[(&str, &str)]) -> BaseProducer {
    let mut config = config(broker, &[("enable.idempotence", "true"), ("linger.ms", "1")]);
    for (name, value) in more {
        config.set(*name, *value);
    }
    config.create().unwrap()
}

fn transactional(broker: &Broker, id: &str) -> BaseProducer {
    producer(broker, &[("transactional.id", id), ("transaction.timeout.ms", "20000")])
}

fn send(producer: &BaseProducer, topic: &str, partition: i32, values: impl IntoIterator<Item = String>) {
    for value in values {
        let mut record = BaseRecord::<(), str>::to(topic).partition(partition).payload(&value);
        while let Err((error, again)) = producer.send(record) {
            assert_eq!(error, KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull));
            producer.poll(Duration::from_millis(5));
            record = again;
        }
    }
}

fn produce(broker: &Broker, topic: &str, partition: i32, values: impl IntoIterator<Item = String>) {
    let producer = producer(broker, &[]);
    send(&producer, topic, partition, values);
    producer.flush(PATIENCE).unwrap();
}

fn numbers(range: std::ops::Range<usize>) -> impl Iterator<Item = String> {
    range.map(|number| number.to_string())
}

fn reader(broker: &Broker, isolation: &str) -> BaseConsumer {
    let settings = [
        ("group.id", "unused"),
        ("enable.auto.commit", "false"),
        ("enable.partition.eof", "true"),
        ("auto.offset.reset", "error"),
        ("isolation.level", isolation),
    ];
    config(broker, &settings).create().unwrap()
}

fn assign(consumer: &BaseConsumer, topic: &str, partition: i32, offset: i64) {
    let mut list = TopicPartitionList::new();
    list.add_partition_offset(topic, partition, Offset::Offset(offset)).unwrap();
    consumer.assign(&list).unwrap();
}

/// The (offset, value) pairs of a partition from an offset to its end.
fn read_from(
    broker: &Broker,
    topic: &str,
    partition: i32,
    offset: i64,
    isolation: &str,
) -> Vec<(i64, String)> {
    let consumer = reader(broker, isolation);
    assign(&consumer, topic, partition, offset);
    let mut records = Vec::new();
    let deadline = Instant::now() + PATIENCE;
    loop {
        assert!(Instant::now() < deadline, "the end was not reached after {} records", records.len());
        match consumer.poll(POLL) {
            None => {}
            Some(Err(KafkaError::PartitionEOF(_))) => return records,
            Some(Err(error)) => panic!("{error}"),
            Some(Ok(record)) => {
                records
                    .push((record.offset(), String::from_utf8_lossy(record.payload().unwrap()).into_owned()));
            }
        }
    }
}

fn values(broker: &Broker, topic: &str, partition: i32) -> Vec<String> {
    read_from(broker, topic, partition, 0, "read_committed").into_iter().map(|(_, value)| value).collect()
}

fn watermarks(broker: &Broker, topic: &str, partition: i32, isolation: &str) -> (i64, i64) {
    reader(broker, isolation).fetch_watermarks(topic, partition, PATIENCE).unwrap()
}

fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < deadline, "{what} did not come true");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// A copy of the data as a power-less kill would leave it: taken while the broker runs.
fn killed(folder: &Path) -> tempfile::TempDir {
    fn copy(from: &Path, to: &Path) {
        std::fs::create_dir_all(to).unwrap();
        for entry in std::fs::read_dir(from).unwrap() {
            let entry = entry.unwrap();
            let target = to.join(entry.file_name());
            if entry.file_type().unwrap().is_dir() {
                copy(&entry.path(), &target)
            } else {
                std::fs::copy(entry.path(), target).map(drop).unwrap()
            }
        }
    }
    let to = tempfile::tempdir().unwrap();
    copy(folder, to.path());
    to
}

#[test]
fn records_come_back_in_order_with_no_gap_or_duplicate() {
    let folder = tempfile::tempdir().unwrap();
    let broker = start(folder.path());
    create(&broker, "t", 2, &[]);
    produce(&broker, "t", 0, numbers(0..20_000));
    let records = read_from(&broker, "t", 0, 0, "read_committed");
    assert_eq!(records.len(), 20_000);
    assert!(
        records
            .iter()
            .enumerate()
            .all(|(at, (offset, value))| *offset == at as i64 && *value == at.to_string())
    );
    assert_eq!(read_from(&broker, "t", 0, 12_345, "read_committed")[0], (12_345, "12345".into()));
    assert_eq!(watermarks(&broker, "t", 0, "read_committed"), (0, 20_000));
    assert_eq!(watermarks(&broker, "t", 1, "read_committed"), (0, 0));
}

#[test]
fn an_empty_fetch_reports_the_end_and_does_not_back_off() {
    let folder = tempfile::tempdir().unwrap();
    let broker = start(folder.path());
    create(&broker, "t", 1, &[]);
    let consumer = reader(&broker, "read_committed");
    assign(&consumer, "t", 0, 0);
    until("the empty partition's end", || {
        matches!(consumer.poll(POLL), Some(Err(KafkaError::PartitionEOF(0))))
    });
    for round in 0..5 {
        produce(&broker, "t", 0, [round.to_string()]);
        until("the record", || matches!(consumer.poll(POLL), Some(Ok(_))));
        until("the end again", || matches!(consumer.poll(POLL), Some(Err(KafkaError::PartitionEOF(0)))));
    }
}

#[test]
fn a_producer_commits_many_transactions_with_the_epoch_it_has() {
    let folder = tempfile::tempdir().unwrap();
    let broker = start(folder.path());
    create(&broker, "t", 2, &[]);
    let producer = transactional(&broker, "x");
    producer.init_transactions(PATIENCE).unwrap();
    for round in 0..5 {
        producer.begin_transaction().unwrap();
        send(&producer, "t", 0, [format!("{round}")]);
        send(&producer, "t", 1, [format!("{round}")]);
        if round == 2 {
            producer.flush(PATIENCE).unwrap();
            producer.abort_transaction(PATIENCE).unwrap();
        } else {
            producer.commit_transaction(PATIENCE).unwrap();
        }
    }
    for partition in 0..2 {
        assert_eq!(values(&broker, "t", partition), ["0", "1", "3", "4"]);
        assert_eq!(read_from(&broker, "t", partition, 0, "read_uncommitted").len(), 5);
        assert_eq!(read_from(&broker, "t", partition, 5, "read_committed").len(), 2);
    }
}

#[test]
fn an_open_transaction_is_hidden_also_after_a_kill_and_its_successor_aborts_it() {
    let folder = tempfile::tempdir().unwrap();
    let broker = start(folder.path());
    create(&broker, "t", 1, &[]);
    produce(&broker, "t", 0, ["before".to_owned()]);
    let producer = transactional(&broker, "x");
    producer.init_transactions(PATIENCE).unwrap();
    producer.begin_transaction().unwrap();
    send(&producer, "t", 0, numbers(0..10));
    producer.flush(PATIENCE).unwrap();
    produce(&broker, "t", 0, ["after".to_owned()]);
    assert_eq!(values(&broker, "t", 0), ["before"]);
    assert_eq!(watermarks(&broker, "t", 0, "read_committed"), (0, 1));

    let copy = killed(folder.path());
    let restarted = start(copy.path());
    assert_eq!(values(&restarted, "t", 0), ["before"]);
    assert_eq!(watermarks(&restarted, "t", 0, "read_uncommitted"), (0, 12));
    transactional(&restarted, "x").init_transactions(PATIENCE).unwrap();
    assert_eq!(values(&restarted, "t", 0), ["before", "after"]);

    // The first broker knows nothing of that: its producer commits.
    producer.commit_transaction(PATIENCE).unwrap();
    assert_eq!(values(&broker, "t", 0).len(), 12);
}

#[test]
fn a_zombie_is_fenced_and_its_records_and_offsets_vanish() {
    let folder = tempfile::tempdir().unwrap();
    let broker = start(folder.path());
    create(&broker, "t", 1, &[]);
    let zombie = transactional(&broker, "x");
    zombie.init_transactions(PATIENCE).unwrap();
    zombie.begin_transaction().unwrap();
    send(&zombie, "t", 0, ["zombie".to_owned()]);
    zombie.flush(PATIENCE).unwrap();
    let successor = transactional(&broker, "x");
    successor.init_transactions(PATIENCE).unwrap();
    let error = zombie.commit_transaction(PATIENCE).unwrap_err();
    assert!(
        matches!(&error, KafkaError::Transaction(error) if error.is_fatal() || error.txn_requires_abort()),
        "{error}"
    );
    successor.begin_transaction().unwrap();
    send(&successor, "t", 0, ["successor".to_owned()]);
    successor.commit_transaction(PATIENCE).unwrap();
    assert_eq!(values(&broker, "t", 0), ["successor"]);
}

#[test]
fn a_restart_hands_out_new_producer_ids_and_keeps_every_record() {
    let folder = tempfile::tempdir().unwrap();
    let mut copy = folder;
    for round in 0..4 {
        let broker = start(copy.path());
        if round == 0 {
            create(&broker, "t", 1, &[]);
        }
        // Each producer starts at sequence 0: with a reused id its records would look like duplicates.
        produce(&broker, "t", 0, numbers(0..10));
        assert_eq!(values(&broker, "t", 0).len(), (round + 1) * 10);
        copy = killed(copy.path());
    }
}

#[test]
fn a_committed_transaction_and_its_offsets_survive_a_kill_together() {
    let folder = tempfile::tempdir().unwrap();
    let broker = start(folder.path());
    create(&broker, "in", 1, &[]);
    create(&broker, "out", 1, &[]);
    produce(&broker, "in", 0, numbers(0..10));
    let consumer: BaseConsumer = config(
        &broker,
        &[("group.id", "g"), ("auto.offset.reset", "earliest"), ("enable.auto.commit", "false")],
    )
    .create()
    .unwrap();
    consumer.subscribe(&["in"]).unwrap();
    until("the assignment", || matches!(consumer.poll(POLL), Some(Ok(_))));
    let producer = transactional(&broker, "x");
    producer.init_transactions(PATIENCE).unwrap();
    let offsets = |offset: i64, text: &str| {
        let mut list = TopicPartitionList::new();
        list.add_partition_offset("in", 0, Offset::Offset(offset)).unwrap();
        for mut element in list.elements() {
            element.set_metadata(text);
        }
        list
    };
    let committed = |broker: &Broker| {
        let consumer: BaseConsumer = config(broker, &[("group.id", "g")]).create().unwrap();
        let list = consumer.committed_offsets(offsets(0, ""), PATIENCE).unwrap();
        let element = list.find_partition("in", 0).unwrap();
        (element.offset(), element.metadata().to_owned())
    };
    producer.begin_transaction().unwrap();
    send(&producer, "out", 0, ["a".to_owned()]);
    let fence = consumer.group_metadata().unwrap();
    producer.send_offsets_to_transaction(&offsets(7, "watermark"), &fence, PATIENCE).unwrap();
    producer.commit_transaction(PATIENCE).unwrap();
    assert_eq!(committed(&broker), (Offset::Offset(7), "watermark".into()));
    producer.begin_transaction().unwrap();
    send(&producer, "out", 0, ["b".to_owned()]);
    producer.send_offsets_to_transaction(&offsets(9, "later"), &fence, PATIENCE).unwrap();
    producer.flush(PATIENCE).unwrap();
    let copy = killed(folder.path());
    producer.abort_transaction(PATIENCE).unwrap();
    assert_eq!(committed(&broker), (Offset::Offset(7), "watermark".into()));

    let restarted = start(copy.path());
    assert_eq!(values(&restarted, "out", 0), ["a"]);
    transactional(&restarted, "x").init_transactions(PATIENCE).unwrap();
    assert_eq!(committed(&restarted), (Offset::Offset(7), "watermark".into()));
}

#[test]
fn offsets_of_a_member_that_was_replaced_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let broker = start(folder.path());
    create(&broker, "in", 1, &[]);
    create(&broker, "out", 1, &[]);
    produce(&broker, "in", 0, numbers(0..1));
    let member = || {
        let consumer: BaseConsumer = config(
            &broker,
            &[
                ("group.id", "g"),
                ("group.instance.id", "one"),
                ("auto.offset.reset", "earliest"),
                ("enable.auto.commit", "false"),
            ],
        )
        .create()
        .unwrap();
        consumer.subscribe(&["in"]).unwrap();
        until("the assignment", || matches!(consumer.poll(POLL), Some(Ok(_))));
        consumer
    };
    let old = member();
    let fence = old.group_metadata().unwrap();
    let began = Instant::now();
    let new = member();
    assert!(began.elapsed() < Duration::from_secs(5), "a restart must not wait for the session to end");
    let producer = transactional(&broker, "x");
    producer.init_transactions(PATIENCE).unwrap();
    let mut list = TopicPartitionList::new();
    list.add_partition_offset("in", 0, Offset::Offset(1)).unwrap();
    producer.begin_transaction().unwrap();
    send(&producer, "out", 0, ["zombie".to_owned()]);
    let error = producer.send_offsets_to_transaction(&list, &fence, PATIENCE).unwrap_err();
    assert!(
        matches!(&error, KafkaError::Transaction(error) if error.is_fatal() || error.txn_requires_abort()),
        "{error}"
    );
    producer.flush(PATIENCE).unwrap();
    producer.abort_transaction(PATIENCE).unwrap();
    producer.begin_transaction().unwrap();
    producer.send_offsets_to_transaction(&list, &new.group_metadata().unwrap(), PATIENCE).unwrap();
    producer.commit_transaction(PATIENCE).unwrap();
    assert_eq!(values(&broker, "out", 0), Vec::<String>::new());
    until(
        "the old member's fencing",
        || matches!(old.poll(POLL), Some(Err(error)) if error.to_string().contains("fenced") || error.to_string().contains("Fenced") || matches!(error.rdkafka_error_code(), Some(RDKafkaErrorCode::Fatal | RDKafkaErrorCode::FencedInstanceId))),
    );
}

fn members_share(strategy: &str) {
    let folder = tempfile::tempdir().unwrap();
    let broker = start(folder.path());
    create(&broker, "t", 4, &[]);
    let member = || {
        let settings = [
            ("group.id", "g"),
            ("partition.assignment.strategy", strategy),
            ("session.timeout.ms", "1500"),
            ("heartbeat.interval.ms", "200"),
            ("auto.offset.reset", "earliest"),
            ("enable.auto.commit", "false"),
        ];
        let consumer: BaseConsumer = config(&broker, &settings).create().unwrap();
        consumer.subscribe(&["t"]).unwrap();
        consumer
    };
    let owned = |consumer: &BaseConsumer| {
        let _ = consumer.poll(Duration::from_millis(20));
        consumer.assignment().unwrap().count()
    };
    let (first, second) = (member(), member());
    until("two partitions each", || (owned(&first), owned(&second)) == (2, 2));
    produce(&broker, "t", 0, numbers(0..10));
    let mut list = TopicPartitionList::new();
    list.add_partition_offset("t", 0, Offset::Offset(6)).unwrap();
    let owner = if first.assignment().unwrap().find_partition("t", 0).is_some() { &first } else { &second };
    owner.commit(&list, CommitMode::Sync).unwrap();
    drop(second);
    until("all four after one left", || owned(&first) == 4);
    drop(first);
    let third = member();
    until(
        "the committed position",
        || matches!(third.poll(POLL), Some(Ok(record)) if record.partition() == 0 && record.offset() == 6),
    );
}

#[test]
fn members_share_partitions_by_range_and_resume_from_commits() {
    members_share("range");
}

#[test]
fn members_share_partitions_cooperatively_and_resume_from_commits() {
    members_share("cooperative-sticky");
}

#[test]
fn a_killed_member_is_replaced_when_its_session_ends() {
    let folder = tempfile::tempdir().unwrap();
    let broker = start(folder.path());
    create(&broker, "t", 2, &[]);
    let settings = [
        ("group.id", "g"),
        ("group.instance.id", "dead"),
        ("session.timeout.ms", "1000"),
        ("heartbeat.interval.ms", "200"),
        ("enable.auto.commit", "false"),
    ];
    let dead: BaseConsumer = config(&broker, &settings).create().unwrap();
    dead.subscribe(&["t"]).unwrap();
    until("the first member's partitions", || {
        let _ = dead.poll(POLL);
        dead.assignment().unwrap().count() == 2
    });
    // A static member does not say that it leaves: to the group it has been killed.
    drop(dead);
    let mut settings = settings;
    settings[1].1 = "alive";
    let alive: BaseConsumer = config(&broker, &settings).create().unwrap();
    alive.subscribe(&["t"]).unwrap();
    until("the dead member's partitions", || {
        let _ = alive.poll(POLL);
        alive.assignment().unwrap().count() == 2
    });
}

#[test]
fn offsets_by_timestamp_are_found_and_past_the_end_is_the_end() {
    let folder = tempfile::tempdir().unwrap();
    let broker = start(folder.path());
    for (topic, codec) in [("plain", "none"), ("gzip", "gzip"), ("snappy", "snappy"), ("lz4", "lz4")] {
        create(&broker, topic, 1, &[]);
        let producer = producer(&broker, &[("compression.type", codec), ("linger.ms", "50")]);
        for at in 0..100 {
            let value = "x".repeat(100);
            let record =
                BaseRecord::<(), str>::to(topic).partition(0).payload(&value).timestamp(1_000 + at * 10);
            producer.send(record).map_err(|(error, _)| error).unwrap();
        }
        producer.flush(PATIENCE).unwrap();
        let at = |timestamp: i64| {
            let mut list = TopicPartitionList::new();
            list.add_partition_offset(topic, 0, Offset::Offset(timestamp)).unwrap();
            let found = reader(&broker, "read_committed").offsets_for_times(list, PATIENCE).unwrap();
            found.find_partition(topic, 0).unwrap().offset()
        };
        assert_eq!(at(0), Offset::Offset(0), "{topic}");
        assert_eq!(at(1_405), Offset::Offset(41), "{topic}");
        assert_eq!(at(1_990), Offset::Offset(99), "{topic}");
        assert_eq!(at(1_991), Offset::End, "{topic}");
    }
}

#[test]
fn retention_runs_and_deleted_records_are_gone_for_good() {
    let folder = tempfile::tempdir().unwrap();
    let broker = start(folder.path());
    create(&broker, "t", 1, &[("segment.bytes", "20000"), ("retention.bytes", "50000")]);
    let producer = producer(&broker, &[("batch.size", "2000")]);
    send(&producer, "t", 0, (0..2_000).map(|at| format!("{at:100}")));
    producer.flush(PATIENCE).unwrap();
    until("retention by size", || watermarks(&broker, "t", 0, "read_committed").0 > 0);

    create(&broker, "u", 1, &[]);
    produce(&broker, "u", 0, numbers(0..100));
    let mut list = TopicPartitionList::new();
    list.add_partition_offset("u", 0, Offset::Offset(40)).unwrap();
    block_on(admin(&broker).delete_records(&list, &AdminOptions::new())).unwrap();
    assert_eq!(watermarks(&broker, "u", 0, "read_committed"), (40, 100));
    let consumer = reader(&broker, "read_committed");
    assign(&consumer, "u", 0, 10);
    until(
        "the refusal of a deleted offset",
        || matches!(consumer.poll(POLL), Some(Err(error)) if error.rdkafka_error_code() == Some(RDKafkaErrorCode::AutoOffsetReset)),
    );
    let mut list = TopicPartitionList::new();
    list.add_partition_offset("u", 0, Offset::Offset(1_000)).unwrap();
    let beyond = block_on(admin(&broker).delete_records(&list, &AdminOptions::new())).unwrap();
    assert!(beyond.find_partition("u", 0).unwrap().error().is_err());
    broker.stop().unwrap();
    let broker = start(folder.path());
    assert_eq!(watermarks(&broker, "u", 0, "read_committed"), (40, 100));
    assert_eq!(read_from(&broker, "u", 0, 40, "read_committed").len(), 60);
}

fn described(broker: &Broker, topic: &str) -> BTreeMap<String, (String, bool)> {
    let resources = [ResourceSpecifier::Topic(topic)];
    let mut results = block_on(admin(broker).describe_configs(&resources, &AdminOptions::new())).unwrap();
    let entries = results.remove(0).unwrap().entries;
    entries.into_iter().map(|entry| (entry.name, (entry.value.unwrap(), entry.is_default))).collect()
}

#[test]
fn configurations_are_described_with_defaults_and_can_be_altered() {
    let folder = tempfile::tempdir().unwrap();
    let broker = start(folder.path());
    create(&broker, "t", 1, &[("retention.ms", "86400000")]);
    let config = described(&broker, "t");
    assert_eq!(config["retention.ms"], ("86400000".into(), false));
    assert_eq!(config["max.message.bytes"], ("1048588".into(), true));
    assert_eq!(config["message.timestamp.type"], ("CreateTime".into(), true));
    let alter = AlterConfig::new(ResourceSpecifier::Topic("t")).set("max.message.bytes", "20000000");
    block_on(admin(&broker).alter_configs([&alter], &AdminOptions::new())).unwrap()[0].as_ref().unwrap();
    let config = described(&broker, "t");
    assert_eq!(config["max.message.bytes"], ("20000000".into(), false));
    assert_eq!(config["retention.ms"].0, "-1", "altering replaces the whole configuration");
    add_partitions(&broker, "t", 3);
    produce(&broker, "t", 2, ["third".to_owned()]);
    assert_eq!(values(&broker, "t", 2), ["third"]);
    let again = NewTopic::new("t", 1, TopicReplication::Fixed(1));
    let results = block_on(admin(&broker).create_topics([&again], &AdminOptions::new())).unwrap();
    assert_eq!(results, [Err(("t".to_owned(), RDKafkaErrorCode::TopicAlreadyExists))]);
    let wrong = NewTopic::new("w", 1, TopicReplication::Fixed(1)).set("retention", "1");
    let results = block_on(admin(&broker).create_topics([&wrong], &AdminOptions::new())).unwrap();
    assert_eq!(results, [Err(("w".to_owned(), RDKafkaErrorCode::InvalidConfig))]);
}

#[test]
fn large_records_pass_where_the_topic_allows_them() {
    let folder = tempfile::tempdir().unwrap();
    let broker = start(folder.path());
    create(&broker, "small", 1, &[]);
    create(&broker, "large", 1, &[("max.message.bytes", "20000000")]);
    let producer = producer(&broker, &[("message.max.bytes", "20000000")]);
    let value = "x".repeat(10_000_000);
    send(&producer, "large", 0, [value.clone()]);
    producer.flush(PATIENCE).unwrap();
    assert!(values(&broker, "large", 0) == [value.as_str()], "the record came back otherwise");
    send(&producer, "small", 0, [value]);
    let _ = producer.flush(PATIENCE);
    assert_eq!(watermarks(&broker, "small", 0, "read_committed"), (0, 0));
}

#[test]
fn log_append_time_stamps_records_only_where_the_topic_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let broker = start(folder.path());
    create(&broker, "create", 1, &[("retention.ms", "-1")]);
    create(&broker, "append", 1, &[("message.timestamp.type", "LogAppendTime")]);
    for (topic, stamped) in [("create", false), ("append", true)] {
        let producer = producer(&broker, &[]);
        let record = BaseRecord::<(), str>::to(topic).partition(0).payload("x").timestamp(5);
        producer.send(record).map_err(|(error, _)| error).unwrap();
        producer.flush(PATIENCE).unwrap();
        let consumer = reader(&broker, "read_committed");
        assign(&consumer, topic, 0, 0);
        until("the record", || match consumer.poll(POLL) {
            Some(Ok(record)) => {
                assert_eq!(record.timestamp().to_millis().unwrap() > 1_000_000, stamped);
                true
            }
            _ => false,
        });
    }
}

#[test]
fn a_data_folder_is_served_once_and_others_are_told_where() {
    let folder = tempfile::tempdir().unwrap();
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    let taken = std::net::TcpListener::bind(any).unwrap();
    let Attached::Own(broker) = attach(folder.path(), taken.local_addr().unwrap()).unwrap() else {
        panic!("nobody else serves the folder")
    };
    assert_ne!(broker.address(), taken.local_addr().unwrap());
    let options = Options { listen: any, data_dir: folder.path().to_owned() };
    assert!(matches!(Broker::start(&options), Err(BrokerError::Locked { .. })));
    let Attached::Running(address) = attach(folder.path(), any).unwrap() else { panic!("served twice") };
    assert_eq!(address, broker.address());
    create(&broker, "t", 1, &[]);
    broker.stop().unwrap();
    let Attached::Own(broker) = attach(folder.path(), any).unwrap() else { panic!("the lock was not freed") };
    assert_eq!(watermarks(&broker, "t", 0, "read_committed"), (0, 0));
}

#[test]
fn nonsense_on_the_socket_closes_only_that_connection() {
    use std::io::{Read, Write};
    let folder = tempfile::tempdir().unwrap();
    let broker = start(folder.path());
    create(&broker, "t", 1, &[]);
    let frames: [&[u8]; 6] = [
        &[0x7f, 0xff, 0xff, 0xff],
        &[0xff, 0xff, 0xff, 0xff],
        &[0, 0, 0, 2, 1, 2],
        &[0, 0, 0, 8, 0x77, 0x77, 0, 0, 0, 0, 0, 1],
        &[0, 0, 0, 10, 0, 3, 0, 1, 0, 0, 0, 1, 0xff, 0xff],
        // Metadata that promises two thousand million topics.
        &[0, 0, 0, 14, 0, 3, 0, 1, 0, 0, 0, 1, 0xff, 0xff, 0x7f, 0xff, 0xff, 0xff],
    ];
    for frame in frames {
        let mut stream = std::net::TcpStream::connect(broker.address()).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.write_all(frame).unwrap();
        assert_eq!(stream.read(&mut [0; 16]).unwrap_or(0), 0, "{frame:?}");
    }
    produce(&broker, "t", 0, numbers(0..3));
    assert_eq!(values(&broker, "t", 0).len(), 3);
}

const CHILD_FOLDER: &str = "HEADWATER_TEST_BROKER_FOLDER";
const CHILD_ADDRESS: &str = "HEADWATER_TEST_BROKER_ADDRESS";
/// No file of the child's may grow beyond so many bytes.
const CHILD_FILE_BYTES: &str = "HEADWATER_TEST_BROKER_FILE_BYTES";

/// Not a test of its own: the process that the next test kills. It serves until then.
#[test]
fn serves_a_folder_for_the_test_that_kills_it() {
    let Ok(folder) = std::env::var(CHILD_FOLDER) else { return };
    let listen = std::env::var(CHILD_ADDRESS).unwrap().parse().unwrap();
    if let Ok(bytes) = std::env::var(CHILD_FILE_BYTES) {
        let limit = libc::rlimit { rlim_cur: bytes.parse().unwrap(), rlim_max: libc::RLIM_INFINITY };
        // SAFETY: the structure lives until the call returns; the signal is ignored, so that writes fail instead.
        unsafe {
            libc::signal(libc::SIGXFSZ, libc::SIG_IGN);
            assert_eq!(libc::setrlimit(libc::RLIMIT_FSIZE, &raw const limit), 0);
        }
    }
    let _broker = Broker::start(&Options { listen, data_dir: folder.into() }).unwrap();
    loop {
        std::thread::park();
    }
}

/// A broker in a process of its own, to be killed; it is killed at the latest when dropped.
struct Child(std::process::Child);

impl Child {
    fn start(folder: &Path, address: SocketAddr) -> Child {
        Child::start_with(folder, address, &[])
    }

    fn start_with(folder: &Path, address: SocketAddr, environment: &[(&str, &str)]) -> Child {
        // Beside the data: what it says of itself, panics above all.
        let said = std::fs::File::options().create(true).append(true).open(folder.join("said")).unwrap();
        let child = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "broker::serves_a_folder_for_the_test_that_kills_it", "--nocapture"])
            .env(CHILD_FOLDER, folder)
            .env(CHILD_ADDRESS, address.to_string())
            .envs(environment.iter().copied())
            .stdout(std::process::Stdio::null())
            .stderr(said)
            .spawn()
            .unwrap();
        until("the child's broker", || std::net::TcpStream::connect(address).is_ok());
        Child(child)
    }

    /// Ends the limit that [`CHILD_FILE_BYTES`] set.
    fn free_the_disk(&self) {
        let limit = libc::rlimit { rlim_cur: libc::RLIM_INFINITY, rlim_max: libc::RLIM_INFINITY };
        let pid = libc::pid_t::try_from(self.0.id()).unwrap();
        // SAFETY: the structure lives until the call returns; the old limit is not asked for.
        let set = unsafe { libc::prlimit(pid, libc::RLIMIT_FSIZE, &raw const limit, std::ptr::null_mut()) };
        assert_eq!(set, 0);
    }

    /// Resident memory in KiB, and open files.
    fn takes(&self) -> (u64, usize) {
        let process = format!("/proc/{}", self.0.id());
        let status = std::fs::read_to_string(format!("{process}/status")).unwrap();
        let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        let resident = resident.trim().trim_end_matches(" kB").parse().unwrap();
        (resident, std::fs::read_dir(format!("{process}/fd")).unwrap().count())
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        // SIGKILL: nothing is flushed, nobody is told.
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

#[test]
fn killed_twice_while_producing_and_inside_a_transaction_it_loses_and_repeats_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let address = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap().local_addr().unwrap();
    let mut child = Child::start(folder.path(), address);
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", address.to_string()).set("enable.idempotence", "true");
    config.set("reconnect.backoff.max.ms", "100").set("linger.ms", "1");
    let admin: AdminClient<DefaultClientContext> = config.create().unwrap();
    let topics = ["t", "x"].map(|name| NewTopic::new(name, 1, TopicReplication::Fixed(1)));
    for created in block_on(admin.create_topics(&topics, &AdminOptions::new())).unwrap() {
        created.unwrap();
    }
    let plain: BaseProducer = config.create().unwrap();
    config.set("transactional.id", "x").set("transaction.timeout.ms", "60000");
    let transactional: BaseProducer = config.create().unwrap();
    transactional.init_transactions(PATIENCE).unwrap();
    for round in 0..3 {
        transactional.begin_transaction().unwrap();
        send(&transactional, "x", 0, numbers(round * 200..round * 200 + 100));
        transactional.flush(PATIENCE).unwrap();
        for at in round * 5_000..(round + 1) * 5_000 {
            send(&plain, "t", 0, [at.to_string()]);
            if at % 100 == 0 {
                plain.poll(Duration::from_millis(1));
            }
            if round < 2 && at == round * 5_000 + 3_000 {
                drop(child);
                child = Child::start(folder.path(), address);
            }
        }
        send(&transactional, "x", 0, numbers(round * 200 + 100..(round + 1) * 200));
        transactional.commit_transaction(PATIENCE).unwrap();
    }
    plain.flush(PATIENCE).unwrap();
    drop(child);
    let broker = start(folder.path());
    assert_eq!(values(&broker, "t", 0), numbers(0..15_000).collect::<Vec<_>>());
    assert_eq!(values(&broker, "x", 0), numbers(0..600).collect::<Vec<_>>());
}
