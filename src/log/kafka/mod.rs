//! The log in Kafka, by librdkafka. All that names rdkafka, and all `unsafe`, is in this folder.
//!
//! - `client`: a librdkafka handle, its configuration and errors
//! - `admin`, `topic_id`, `group_offsets`, `request`: topics and bounds, committed offsets, and how they are asked for
//! - `reader`, `messages`: a consumer read in batches, its records where librdkafka put them
//! - `producer`: sending, and the failures that come back
//! - `member`, `rebalance`, `leave`: a worker's side of the commit protocol
//! - `transactor`: transactions outside any group
//!
//! Invariant: properties of the user pass through to librdkafka, except the ones the protocol rests on.

#![allow(unsafe_code)]

mod admin;
mod client;
mod group_offsets;
mod leave;
mod member;
mod messages;
mod producer;
mod reader;
mod rebalance;
mod request;
mod topic_id;
mod transactor;
mod wake;

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rdkafka::bindings as sys;

use self::admin::Admin;
use self::client::{Client, Configuration, Kind};
use self::group_offsets::STABLE_OFFSETS_TIMEOUT;
use self::member::KafkaMember;
use self::producer::{KafkaProducer, Sender};
use self::reader::{Consumer, KafkaReader};
use self::transactor::KafkaTransactor;
use crate::log::{
    Bounds, Log, LogError, Member, MemberOptions, Position, Producer, Reader, Result, TopicInfo, TopicSpec,
    Transactor,
};
use crate::record::TopicPartition;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Enough for an answer of a coordinator that is there.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);

/// How to reach a cluster.
#[derive(Clone, Debug, Default)]
pub struct KafkaOptions {
    /// `host:port`, several separated by commas.
    pub brokers: String,
    /// Any librdkafka property.
    pub properties: BTreeMap<String, String>,
    pub client_id: String,
}

/// A Kafka cluster.
pub struct KafkaLog {
    options: KafkaOptions,
    admin: Admin,
    /// Clients that name a group, to ask for its offsets.
    groups: Mutex<HashMap<(String, Undecided), Arc<Client>>>,
}

impl KafkaLog {
    /// Connects, or says within seconds why not.
    pub fn connect(options: &KafkaOptions) -> Result<Self> {
        let client = consumer_configuration(options, &[])?.build(Kind::Consumer, &options.brokers)?;
        let admin = Admin { client: Arc::new(client) };
        admin.reach(CONNECT_TIMEOUT)?;
        Ok(Self { options: options.clone(), admin, groups: Mutex::default() })
    }

    /// The client that asks for this group's offsets, made where there is none.
    fn of_group(&self, group: &str, undecided: Undecided) -> Result<Arc<Client>> {
        let mut groups = client::lock(&self.groups);
        let key = (group.to_owned(), undecided);
        if let Some(client) = groups.get(&key) {
            return Ok(Arc::clone(client));
        }
        let isolation = match undecided {
            Undecided::Await => "read_committed",
            Undecided::LeaveOut => "read_uncommitted",
        };
        let fixed = [("group.id", group.to_owned()), ("isolation.level", isolation.to_owned())];
        let client = consumer_configuration(&self.options, &fixed)?;
        let client = Arc::new(client.build(Kind::Consumer, &self.options.brokers)?);
        groups.insert(key, Arc::clone(&client));
        Ok(client)
    }

    /// The next question is another client's.
    fn forget_group(&self, group: &str, undecided: Undecided) {
        client::lock(&self.groups).remove(&(group.to_owned(), undecided));
    }

    fn ask_committed(
        &self,
        group: &str,
        undecided: Undecided,
        partitions: &[TopicPartition],
    ) -> Result<Vec<Option<Position>>> {
        group_offsets::committed(group, partitions, |failed| {
            if failed {
                self.forget_group(group, undecided);
            }
            self.of_group(group, undecided)
        })
    }

    /// The first partition whose offset is not decided, where the group's coordinator answers all the same.
    fn first_undecided<'a>(
        &self,
        group: &str,
        partitions: &'a [TopicPartition],
    ) -> Result<Option<&'a TopicPartition>> {
        let looks_on = self.of_group(group, Undecided::LeaveOut)?;
        if group_offsets::decided_within(&looks_on, partitions, ANSWER_TIMEOUT)?.is_some() {
            let waits = self.of_group(group, Undecided::Await)?;
            for partition in partitions {
                if group_offsets::is_undecided(&waits, partition, ANSWER_TIMEOUT)? {
                    return Ok(Some(partition));
                }
            }
        }
        Ok(None)
    }

    fn is_secure(&self) -> bool {
        let protocol = self.options.properties.get("security.protocol");
        protocol.is_some_and(|protocol| !protocol.eq_ignore_ascii_case("plaintext"))
    }

    fn transactional(&self, id: &str, timeout: Duration) -> Result<Client> {
        let fixed = [
            ("transactional.id", id.to_owned()),
            ("transaction.timeout.ms", timeout.as_millis().to_string()),
        ];
        producer_client(&self.options, &fixed)
    }

    fn member_consumer(&self, options: &MemberOptions) -> Result<Client> {
        let session_ms = options.session_timeout.as_millis();
        let configuration = consumer_configuration(
            &self.options,
            &[
                ("group.id", options.group.clone()),
                ("group.instance.id", options.instance.clone()),
                ("group.protocol", "classic".into()),
                ("partition.assignment.strategy", "cooperative-sticky".into()),
                ("session.timeout.ms", session_ms.to_string()),
                // Who does not join a rebalance by itself learns of it by a heartbeat: the others stand meanwhile.
                ("heartbeat.interval.ms", (session_ms / 20).clamp(100, 500).to_string()),
                // A worker may fold for minutes before it polls again; that it lives, heartbeats say.
                ("max.poll.interval.ms", session_ms.max(1_800_000).to_string()),
            ],
        )?;
        // SAFETY: the configuration is live, and its opaque is the context that the callback expects.
        unsafe { sys::rd_kafka_conf_set_rebalance_cb(configuration.raw(), Some(rebalance::on_rebalance)) };
        configuration.build(Kind::Consumer, &self.options.brokers)
    }
}

/// What becomes of offsets whose transaction is being decided: librdkafka asks for stable ones by its isolation level.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Undecided {
    Await,
    LeaveOut,
}

/// Defaults, then the user's properties, then what the protocol rests on.
fn configuration(
    options: &KafkaOptions,
    defaults: &[(&str, &str)],
    fixed: &[(&str, String)],
) -> Result<Configuration> {
    let mut configuration = Configuration::new()
        .set("client.id", &options.client_id)?
        // By librdkafka's default a client finds a broker up to 10 s after it has come back.
        .set("reconnect.backoff.max.ms", "1000")?;
    for (name, value) in defaults {
        configuration = configuration.set(name, value)?;
    }
    configuration = configuration.set_all(&options.properties)?.set("bootstrap.servers", &options.brokers)?;
    for (name, value) in fixed {
        configuration = configuration.set(name, value)?;
    }
    Ok(configuration)
}

fn consumer_configuration(options: &KafkaOptions, fixed: &[(&str, String)]) -> Result<Configuration> {
    let defaults = [
        // librdkafka wants a group's name even of a consumer that joins none.
        ("group.id", "headwater-reader"),
        // A fetch that finds nothing is answered after this long at most, and asked again.
        ("fetch.wait.max.ms", "100"),
        // The default of a second stalls catching up whenever the local queue was full.
        ("fetch.queue.backoff.ms", "5"),
        // Of all partitions that are read. Records that wait for long are in no cache any more when they are processed:
        // the default of 100,000 takes a tenth more CPU a record, and 45 MiB.
        ("queued.min.messages", "20000"),
        ("receive.message.max.bytes", "1000000000"),
        // Off by librdkafka's default. A broker does not look at what its disk gives it back.
        ("check.crcs", "true"),
        ("topic.metadata.propagation.max.ms", "5000"),
    ];
    let mut all = vec![
        ("isolation.level", "read_committed".to_owned()),
        ("enable.auto.commit", "false".into()),
        ("enable.auto.offset.store", "false".into()),
        ("auto.offset.reset", "error".into()),
        ("enable.partition.eof", "true".into()),
        ("allow.auto.create.topics", "false".into()),
    ];
    all.extend_from_slice(fixed);
    configuration(options, &defaults, &all)
}

fn producer_client(options: &KafkaOptions, fixed: &[(&str, String)]) -> Result<Client> {
    let defaults = [
        ("linger.ms", "5"),
        // A transaction right after another finds the coordinator still writing markers and has to ask again.
        ("retry.backoff.ms", "5"),
        ("retry.backoff.max.ms", "500"),
        ("compression.type", "lz4"),
        ("queue.buffering.max.messages", "500000"),
        ("queue.buffering.max.kbytes", "262144"),
        // How large a record may be is the topic's to say.
        ("message.max.bytes", "1000000000"),
        ("topic.metadata.propagation.max.ms", "5000"),
    ];
    let mut all = vec![
        ("enable.idempotence", "true".to_owned()),
        // Failures are all that is asked about.
        ("delivery.report.only.error", "true".into()),
    ];
    all.extend_from_slice(fixed);
    let configuration = configuration(options, &defaults, &all)?;
    let events = sys::RD_KAFKA_EVENT_DR | sys::RD_KAFKA_EVENT_ERROR;
    // SAFETY: the configuration is live. As events, reports are waited for and not polled for in a flush.
    unsafe { sys::rd_kafka_conf_set_events(configuration.raw(), events) };
    configuration.build(Kind::Producer, &options.brokers)
}

impl Log for KafkaLog {
    fn name(&self) -> String {
        format!("kafka {}", self.options.brokers)
    }
    fn topics(&self) -> Result<Vec<TopicInfo>> {
        self.admin.topics()
    }
    fn partitions(&self, topic: &str) -> Result<Option<i32>> {
        self.admin.partitions(topic)
    }
    fn topic_id(&self, topic: &str) -> Result<Option<String>> {
        self.admin.topic_id(topic)
    }
    fn create_topics(&self, topics: &[TopicSpec]) -> Result<()> {
        self.admin.create_topics(topics)
    }
    fn delete_topics(&self, topics: &[String]) -> Result<()> {
        self.admin.delete_topics(topics)
    }
    fn topic_config(&self, topic: &str) -> Result<BTreeMap<String, String>> {
        self.admin.topic_config(topic)
    }
    fn bounds(&self, partition: &TopicPartition) -> Result<Bounds> {
        self.admin.bounds(partition)
    }
    fn written_ends(&self, partitions: &[TopicPartition]) -> Result<Vec<i64>> {
        self.admin.written_ends(partitions)
    }
    fn offset_at(&self, partition: &TopicPartition, timestamp_ms: i64) -> Result<Option<i64>> {
        self.admin.offset_at(partition, timestamp_ms)
    }
    fn committed(&self, group: &str, partitions: &[TopicPartition]) -> Result<Vec<Option<Position>>> {
        let since = Instant::now();
        let failed = match self.ask_committed(group, Undecided::Await, partitions) {
            Err(failed @ LogError::Unreachable { .. }) if since.elapsed() >= STABLE_OFFSETS_TIMEOUT => failed,
            answer => return answer,
        };
        match self.first_undecided(group, partitions) {
            Ok(Some(partition)) => Err(LogError::Undecided {
                group: group.to_owned(),
                partition: partition.clone(),
                seconds: STABLE_OFFSETS_TIMEOUT.as_secs(),
            }),
            _ => Err(failed),
        }
    }
    fn committed_so_far(
        &self,
        group: &str,
        partitions: &[TopicPartition],
        patience: Duration,
    ) -> Result<Vec<Option<Position>>> {
        if !patience.is_zero()
            && let Some(all) =
                group_offsets::decided_within(&self.of_group(group, Undecided::Await)?, partitions, patience)?
        {
            return Ok(all);
        }
        self.ask_committed(group, Undecided::LeaveOut, partitions)
    }
    fn delete_before(&self, offsets: &[(TopicPartition, i64)]) -> Result<()> {
        self.admin.delete_before(offsets)
    }

    fn reader(&self) -> Result<Box<dyn Reader>> {
        let client =
            consumer_configuration(&self.options, &[])?.build(Kind::Consumer, &self.options.brokers)?;
        Ok(Box::new(KafkaReader(Consumer::new(client)?.without_group())))
    }

    fn producer(&self) -> Result<Box<dyn Producer>> {
        Ok(Box::new(KafkaProducer(Sender::new(producer_client(&self.options, &[])?)?)))
    }

    fn member(&self, options: &MemberOptions) -> Result<Box<dyn Member>> {
        for topic in &options.topics {
            if self.admin.partitions(topic)?.is_none() {
                return Err(self.admin.no_topic(topic));
            }
        }
        let producer = self.transactional(&options.instance, options.transaction_timeout)?;
        let consumer = self.member_consumer(options)?;
        Ok(Box::new(KafkaMember::join(consumer, producer, options.clone(), self.is_secure())?))
    }

    fn transactor(&self, id: &str, timeout: Duration) -> Result<Box<dyn Transactor>> {
        let producer = self.transactional(id, timeout)?;
        Ok(Box::new(KafkaTransactor::start(producer, id, timeout)?))
    }

    fn commit_offsets(&self, group: &str, offsets: &[(TopicPartition, Position)]) -> Result<()> {
        self.admin.commit_offsets(group, offsets)
    }
}
