//! A log in memory: for simulation, seeded and faulty, and for what needs no broker.
//!
//! - `partition`: records, markers, the last stable offset
//! - `group`: members, generations, cooperative assignment
//! - `client`: readers, producers, members
//! - `faults`: what goes wrong, by a seed (`dice`)
//!
//! Invariant: no clock and no randomness: time is handed in, faults follow from the seed.

mod client;
mod dice;
mod faults;
mod group;
mod partition;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

pub use self::dice::Dice;
pub use self::faults::Faults;

use self::client::{MemoryMember, MemoryProducer, MemoryReader, MemoryTransactor};
use self::group::Group;
use self::partition::{Partition, Transaction};
use super::{
    Bounds, Log, LogError, Member, MemberOptions, Outgoing, Position, Producer, Reader, Result, TopicInfo,
    TopicSpec, Transactor,
};
use crate::record::{OwnedRecord, TopicPartition};

const NAME: &str = "memory";
/// Where time starts until it is set: 2020-01-01.
const FIRST_MS: i64 = 1_577_836_800_000;

struct Topic {
    id: u64,
    config: BTreeMap<String, String>,
    partitions: Vec<Partition>,
}

/// The state of a transactional id: its last producer, and that one's open transaction.
#[derive(Default)]
struct Transactional {
    incarnation: u64,
    open: Option<Transaction>,
    /// When the open transaction times out.
    ends_ms: i64,
}

struct Cluster {
    topics: BTreeMap<String, Topic>,
    groups: BTreeMap<String, Group>,
    transactional: BTreeMap<String, Transactional>,
    now_ms: i64,
    /// For incarnations and transactions alike.
    last_id: u64,
    faults: Faults,
    dice: Dice,
    steps: u64,
}

/// A cluster in memory; clones share it.
#[derive(Clone)]
pub struct MemoryLog(Arc<Mutex<Cluster>>);

impl Default for MemoryLog {
    fn default() -> Self {
        Self::new()
    }
}

impl MemoryLog {
    pub fn new() -> Self {
        Self::with_faults(Faults::default())
    }

    pub fn with_faults(faults: Faults) -> Self {
        let dice = Dice::new(faults.seed);
        Self(Arc::new(Mutex::new(Cluster {
            topics: BTreeMap::new(),
            groups: BTreeMap::new(),
            transactional: BTreeMap::new(),
            now_ms: FIRST_MS,
            last_id: 0,
            faults,
            dice,
            steps: 0,
        })))
    }

    /// Stamps records from now on, and times out transactions, and the sessions of members that have not polled.
    pub fn set_time_ms(&self, now_ms: i64) {
        let mut cluster = self.cluster();
        cluster.now_ms = now_ms;
        for group in cluster.groups.values_mut() {
            group.expire(now_ms);
        }
        let fence = cluster.next_id();
        let mut timed_out = Vec::new();
        for transactional in cluster.transactional.values_mut() {
            if transactional.open.is_some() && transactional.ends_ms < now_ms {
                transactional.incarnation = fence;
                timed_out.extend(transactional.open.take());
            }
        }
        for transaction in timed_out {
            cluster.decide(transaction, false);
        }
    }

    /// Time as records are stamped with it.
    pub fn time_ms(&self) -> i64 {
        self.cluster().now_ms
    }

    /// Other faults from now on; steps count from 1 again.
    pub fn set_faults(&self, faults: Faults) {
        let mut cluster = self.cluster();
        cluster.dice = Dice::new(faults.seed);
        cluster.faults = faults;
        cluster.steps = 0;
    }

    /// Calls of `begin`, `produce` and `commit` since the faults were set.
    pub fn steps(&self) -> u64 {
        self.cluster().steps
    }

    /// Gives a topic more partitions; every group that reads it rebalances.
    pub fn add_partitions(&self, topic: &str, count: i32) {
        let mut cluster = self.cluster();
        let Some(topic) = cluster.topics.get_mut(topic) else { return };
        let missing = usize::try_from(count).unwrap_or(0).max(topic.partitions.len());
        topic.partitions.resize_with(missing, Partition::default);
        cluster.groups.values_mut().for_each(Group::rebalance);
    }

    /// Drops all that a group has committed, as Kafka does to one that was empty for long.
    pub fn expire_offsets(&self, group: &str) {
        self.cluster().group(group).offsets.clear();
    }

    /// Makes a group rebalance, as a heartbeat that came late would.
    pub fn rebalance(&self, group: &str) {
        self.cluster().group(group).rebalance();
    }

    /// A panic elsewhere leaves the cluster as it was between two calls.
    fn cluster(&self) -> MutexGuard<'_, Cluster> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Cluster {
    fn next_id(&mut self) -> u64 {
        self.last_id += 1;
        self.last_id
    }

    /// A new producer under a transactional id: its predecessor is fenced, and the open transaction aborted.
    fn start_transactions(&mut self, id: &str) -> u64 {
        let incarnation = self.next_id();
        let transactional = self.transactional.entry(id.to_owned()).or_default();
        transactional.incarnation = incarnation;
        if let Some(open) = transactional.open.take() {
            self.decide(open, false);
        }
        incarnation
    }

    fn group(&mut self, name: &str) -> &mut Group {
        self.groups.entry(name.to_owned()).or_default()
    }

    fn topic(&self, name: &str) -> Result<&Topic> {
        self.topics
            .get(name)
            .ok_or_else(|| LogError::NoTopic { topic: name.to_owned(), brokers: NAME.to_owned() })
    }

    fn partition(&mut self, of: &TopicPartition) -> Result<&mut Partition> {
        self.topic(&of.topic)?;
        let topic = self.topics.get_mut(&*of.topic);
        let found = topic.and_then(|topic| topic.partitions.get_mut(usize::try_from(of.partition).ok()?));
        found.ok_or_else(|| LogError::Other {
            what: of.to_string(),
            detail: "the topic has fewer partitions".to_owned(),
        })
    }

    fn all_partitions(&self) -> Vec<TopicPartition> {
        let each = self.topics.iter().flat_map(|(name, topic)| {
            (0..).zip(&topic.partitions).map(|(number, _)| TopicPartition::new(name.as_str(), number))
        });
        each.collect()
    }

    fn append(
        &mut self,
        to: &TopicPartition,
        record: &Outgoing<'_>,
        transaction: Option<Transaction>,
    ) -> Result<()> {
        let now_ms = self.now_ms;
        let config = &self.topic(&to.topic)?.config;
        let limit =
            config.get("max.message.bytes").and_then(|bytes| bytes.parse().ok()).unwrap_or(usize::MAX);
        let bytes = record.key.map_or(0, <[u8]>::len) + record.value.map_or(0, <[u8]>::len);
        if bytes > limit {
            let detail = format!("the topic takes {limit} bytes");
            return Err(LogError::TooLarge { to: to.clone(), bytes, detail });
        }
        let stamped = config.get("message.timestamp.type").is_some_and(|kind| kind == "LogAppendTime");
        let timestamp_ms = if stamped { now_ms } else { record.timestamp_ms.unwrap_or(now_ms) };
        let record = OwnedRecord {
            offset: 0,
            timestamp_ms,
            key: record.key.map(<[u8]>::to_vec),
            value: record.value.map(<[u8]>::to_vec),
            headers: record.headers.to_vec(),
        };
        self.partition(to)?.append(record, transaction);
        Ok(())
    }

    fn decide(&mut self, transaction: Transaction, commit: bool) {
        for partition in self.topics.values_mut().flat_map(|topic| &mut topic.partitions) {
            partition.decide(transaction, commit);
        }
    }
}

impl Log for MemoryLog {
    fn name(&self) -> String {
        NAME.to_owned()
    }

    fn topics(&self) -> Result<Vec<TopicInfo>> {
        let count = |topic: &Topic| i32::try_from(topic.partitions.len()).unwrap_or(i32::MAX);
        let cluster = self.cluster();
        Ok(cluster
            .topics
            .iter()
            .map(|(name, topic)| TopicInfo { name: name.clone(), partitions: count(topic) })
            .collect())
    }

    fn partitions(&self, topic: &str) -> Result<Option<i32>> {
        Ok(self.topics()?.into_iter().find(|info| info.name == topic).map(|info| info.partitions))
    }

    fn topic_id(&self, topic: &str) -> Result<Option<String>> {
        Ok(self.cluster().topics.get(topic).map(|topic| topic.id.to_string()))
    }

    fn create_topics(&self, topics: &[TopicSpec]) -> Result<()> {
        let mut cluster = self.cluster();
        for spec in topics {
            if spec.partitions < 1 {
                return Err(LogError::Other {
                    what: format!("create topic '{}'", spec.name),
                    detail: format!("{} partitions; it needs at least one", spec.partitions),
                });
            }
            let id = cluster.next_id();
            cluster.topics.entry(spec.name.clone()).or_insert_with(|| {
                // The embedded broker's defaults.
                let mut config: BTreeMap<String, String> = [
                    ("cleanup.policy", "delete"),
                    ("max.message.bytes", "1048588"),
                    ("message.timestamp.type", "CreateTime"),
                    ("min.compaction.lag.ms", "0"),
                    ("retention.ms", "-1"),
                ]
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .into();
                config.extend(spec.config.clone());
                Topic { id, config, partitions: (0..spec.partitions).map(|_| Partition::default()).collect() }
            });
        }
        Ok(())
    }

    fn delete_topics(&self, topics: &[String]) -> Result<()> {
        self.cluster().topics.retain(|name, _| !topics.contains(name));
        Ok(())
    }

    fn topic_config(&self, topic: &str) -> Result<BTreeMap<String, String>> {
        Ok(self.cluster().topic(topic)?.config.clone())
    }

    fn bounds(&self, partition: &TopicPartition) -> Result<Bounds> {
        Ok(self.cluster().partition(partition)?.bounds())
    }

    fn written_ends(&self, partitions: &[TopicPartition]) -> Result<Vec<i64>> {
        let mut cluster = self.cluster();
        partitions.iter().map(|partition| Ok(cluster.partition(partition)?.end())).collect()
    }

    fn offset_at(&self, partition: &TopicPartition, timestamp_ms: i64) -> Result<Option<i64>> {
        Ok(self.cluster().partition(partition)?.offset_at(timestamp_ms))
    }

    fn committed(&self, group: &str, partitions: &[TopicPartition]) -> Result<Vec<Option<Position>>> {
        let mut cluster = self.cluster();
        let offsets = &cluster.group(group).offsets;
        Ok(partitions.iter().map(|partition| offsets.get(partition).cloned()).collect())
    }

    /// Transactions are decided at once here.
    fn committed_so_far(
        &self,
        group: &str,
        partitions: &[TopicPartition],
        _patience: Duration,
    ) -> Result<Vec<Option<Position>>> {
        self.committed(group, partitions)
    }

    fn delete_before(&self, offsets: &[(TopicPartition, i64)]) -> Result<()> {
        let mut cluster = self.cluster();
        for (partition, offset) in offsets {
            cluster.partition(partition)?.delete_before(*offset);
        }
        Ok(())
    }

    fn reader(&self) -> Result<Box<dyn Reader>> {
        Ok(Box::new(MemoryReader::new(self.clone())))
    }

    fn producer(&self) -> Result<Box<dyn Producer>> {
        Ok(Box::new(MemoryProducer(self.clone())))
    }

    fn member(&self, options: &MemberOptions) -> Result<Box<dyn Member>> {
        Ok(Box::new(MemoryMember::join(self.clone(), options.clone())?))
    }

    fn transactor(&self, id: &str, timeout: std::time::Duration) -> Result<Box<dyn Transactor>> {
        Ok(Box::new(MemoryTransactor::start(self.clone(), id, timeout)))
    }

    fn commit_offsets(&self, group: &str, offsets: &[(TopicPartition, Position)]) -> Result<()> {
        let mut cluster = self.cluster();
        let state = cluster.group(group);
        if !state.members.is_empty() {
            return Err(LogError::Other {
                what: format!("commit offsets of group '{group}'"),
                detail: "it has live members; stop them first".to_owned(),
            });
        }
        state.offsets.extend(offsets.iter().cloned());
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::log::{CommitError, Event, Fence};

    fn joined(log: &MemoryLog) -> (Box<dyn Member>, TopicPartition, Fence) {
        let spec = TopicSpec { name: "t".into(), partitions: 1, config: BTreeMap::new() };
        log.create_topics(&[spec]).unwrap();
        let options = MemberOptions {
            group: "g".into(),
            instance: "i".into(),
            topics: vec!["t".into()],
            session_timeout: Duration::from_secs(10),
            transaction_timeout: Duration::from_secs(10),
        };
        let mut member = log.member(&options).unwrap();
        let fence = member.poll(Duration::ZERO).unwrap().into_iter().find_map(|event| match event {
            Event::Assigned { fence, .. } => Some(fence),
            _ => None,
        });
        (member, TopicPartition::new("t", 0), fence.unwrap())
    }

    fn commit(member: &mut dyn Member, to: &TopicPartition, fence: &Fence) -> Result<(), CommitError> {
        member.begin().unwrap();
        member.produce(to, &[Outgoing { value: Some(b"v"), ..Outgoing::default() }]).unwrap();
        member.commit(fence, &[(to.clone(), Position { offset: 7, metadata: String::new() })])
    }

    #[test]
    fn a_lost_answer_is_unknown_and_the_log_knows() {
        for (lost_committed, lost_aborted, expected) in [(1.0, 0.0, Some(7)), (0.0, 1.0, None)] {
            let log = MemoryLog::with_faults(Faults { lost_committed, lost_aborted, ..Faults::default() });
            let (mut member, partition, fence) = joined(&log);
            let error = commit(member.as_mut(), &partition, &fence).unwrap_err();
            assert!(matches!(error, CommitError::Unknown(_)), "{error}");
            let committed = log.committed("g", &[partition]).unwrap().remove(0);
            assert_eq!(committed.map(|position| position.offset), expected);
        }
    }

    #[test]
    fn a_crash_ends_the_member_and_its_successor_aborts_its_transaction() {
        let log = MemoryLog::with_faults(Faults { crash_at: Some(3), ..Faults::default() });
        let (mut member, partition, fence) = joined(&log);
        assert!(commit(member.as_mut(), &partition, &fence).is_err());
        assert!(member.poll(Duration::ZERO).is_err());
        assert_eq!(log.bounds(&partition).unwrap(), Bounds { start: 0, end: 0 }, "its transaction is open");
        let (mut successor, _, fence) = joined(&log);
        assert_eq!(log.bounds(&partition).unwrap(), Bounds { start: 0, end: 2 }, "aborted, and a marker");
        commit(successor.as_mut(), &partition, &fence).unwrap();
    }

    #[test]
    fn a_session_times_out_by_the_time_that_is_handed_in() {
        let log = MemoryLog::new();
        let (mut member, partition, fence) = joined(&log);
        log.set_time_ms(FIRST_MS + 10_001);
        let error = commit(member.as_mut(), &partition, &fence).unwrap_err();
        assert!(matches!(error, CommitError::Fenced(_)), "{error}");
        member.abort().unwrap();
        let events = member.poll(Duration::ZERO).unwrap();
        assert!(
            events.iter().any(|event| matches!(event, Event::Lost(lost) if *lost == [partition.clone()]))
        );
    }

    #[test]
    fn the_same_seed_reads_in_the_same_pieces() {
        let pieces = |seed| {
            let log = MemoryLog::with_faults(Faults { seed, short_reads: 0.7, ..Faults::default() });
            let (_, partition, _) = joined(&log);
            let mut producer = log.producer().unwrap();
            producer.produce(&partition, &[Outgoing::default(); 200]).unwrap();
            let mut reader = log.reader().unwrap();
            reader.assign(&[(partition, 0)]).unwrap();
            let mut sizes = Vec::new();
            while sizes.iter().sum::<usize>() < 200 {
                for event in reader.poll(Duration::ZERO).unwrap() {
                    if let Event::Run(run) = event {
                        sizes.push(run.records.len());
                    }
                }
            }
            sizes
        };
        assert_eq!(pieces(1), pieces(1));
        assert!((1..20).any(|seed| pieces(seed) != pieces(1)));
    }
}
