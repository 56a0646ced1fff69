//! What the broker holds: topics with their partitions, over the metadata log, in one data folder.
//!
//! ```text
//! broker/lock, address      who serves this folder, and where
//! broker/clean              the last stop was clean: checksums need no check
//! broker/metadata.log       see metadata.rs
//! broker/topics/<topic id>/<partition>/<base offset>.log
//! ```
//! Invariant: a topic exists when the metadata log says so; folders that it does not name are left-overs of a
//! crash and are deleted at start.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, RwLock};

use uuid::Uuid;

use super::compaction::Turn;
use super::config::TopicConfig;
use super::disk::{RealDisk, SharedDisk, is_there};
use super::fault::Fault;
use super::groups::Groups;
use super::metadata::{Change, MetadataLog, TopicRecord};
use super::partition::Partition;
use super::transaction::Transaction;
use super::{lock, now_ms, read, write};

const TOPIC_NAME_BYTES_MAX: usize = 249;
pub const PARTITIONS_MAX: i32 = 1_000;
/// Of all topics together: each is a folder with an open file at least.
const ALL_PARTITIONS_MAX: usize = 5_000;
/// Producer ids are taken from the metadata log in blocks, so that most need no sync.
const PRODUCER_ID_BLOCK: i64 = 1000;
/// Partitions are synced by at most this many threads at once.
const SYNC_THREADS: usize = 8;

/// What a tool is told when the data folder fails.
fn storage(error: io::Error) -> (Fault, String) {
    let why = format!("the broker's data folder cannot be written: {error}");
    (Fault::from(error), why)
}

/// A topic; replaced as a whole when its configuration or partition count changes.
pub struct Topic {
    pub id: String,
    pub config: TopicConfig,
    pub partitions: Vec<Arc<Partition>>,
}

impl Topic {
    pub fn partition(&self, index: i32) -> Option<&Arc<Partition>> {
        self.partitions.get(usize::try_from(index).ok()?)
    }
}

/// An uncommitted offset of an open transaction: group, topic, partition.
pub type PendingKey = (String, String, i32);

pub struct Cluster {
    disk: SharedDisk,
    directory: PathBuf,
    pub metadata: MetadataLog,
    topics: RwLock<BTreeMap<String, Arc<Topic>>>,
    /// Topics are created, changed and deleted one at a time.
    changing: Mutex<()>,
    producer_ids: Mutex<Range<i64>>,
    pub groups: Groups,
    pub(super) transactions: Mutex<HashMap<String, Arc<Mutex<Transaction>>>>,
    pub(super) pending: Mutex<BTreeMap<PendingKey, i64>>,
}

impl Cluster {
    /// Opens the data folder and brings it to a consistent state: see [`Cluster::recover_transactions`].
    pub fn open(directory: &Path) -> io::Result<Cluster> {
        Cluster::open_on(Arc::new(RealDisk), directory)
    }

    pub fn open_on(disk: SharedDisk, directory: &Path) -> io::Result<Cluster> {
        disk.create_folders(&directory.join("topics"))?;
        let clean = directory.join("clean");
        let stopped_cleanly = is_there(&*disk, &clean)?;
        if stopped_cleanly {
            disk.remove(&clean)?;
        }
        // The mark must not come back after a power cut, and the folder of the topics must.
        disk.sync_folder(directory)?;
        let metadata = MetadataLog::open(disk.clone(), directory)?;
        if metadata.read(|image| image.cluster_id.is_empty()) {
            metadata.write_synced(vec![Change::Cluster { id: Uuid::new_v4().simple().to_string() }])?;
        }
        let (records, last_boot) = metadata.read(|image| (image.topics.clone(), image.boot_id.clone()));
        let boot = disk.boot();
        let power_was_gone = !stopped_cleanly && !last_boot.is_empty() && last_boot != boot;
        let cluster = Cluster {
            disk,
            directory: directory.to_owned(),
            topics: RwLock::default(),
            changing: Mutex::default(),
            producer_ids: Mutex::new(0..0),
            groups: Groups::default(),
            transactions: Mutex::default(),
            pending: Mutex::default(),
            metadata,
        };
        cluster.delete_leftovers(&records)?;
        let mut topics = BTreeMap::new();
        for (name, record) in records {
            topics.insert(name.clone(), Arc::new(cluster.load(&name, &record, !stopped_cleanly)?));
        }
        *write(&cluster.topics) = topics;
        cluster
            .recover_transactions(power_was_gone)
            .map_err(|_| io::Error::other("an unfinished transaction can't be ended"))?;
        if boot != last_boot {
            cluster.metadata.write_synced(vec![Change::Boot { id: boot }])?;
        }
        Ok(cluster)
    }

    fn topic_directory(&self, id: &str) -> PathBuf {
        self.directory.join("topics").join(id)
    }

    fn load(&self, name: &str, record: &TopicRecord, verify: bool) -> io::Result<Topic> {
        let config = TopicConfig::new(record.config.clone()).map_err(io::Error::other)?;
        let directory = self.topic_directory(&record.id);
        let mut partitions = Vec::new();
        for index in 0..record.partitions {
            let start = self.metadata.read(|image| image.starts.get(&(name.to_owned(), index)).copied());
            let path = directory.join(index.to_string());
            partitions.push(Arc::new(Partition::open(self.disk.clone(), &path, start.unwrap_or(0), verify)?));
        }
        Ok(Topic { id: record.id.clone(), config, partitions })
    }

    fn delete_leftovers(&self, records: &BTreeMap<String, TopicRecord>) -> io::Result<()> {
        let topics = self.directory.join("topics");
        for name in self.disk.names(&topics)? {
            if !records.values().any(|record| name == record.id) {
                self.disk.remove_folder(&topics.join(name))?;
            }
        }
        Ok(())
    }

    /// Makes the folders of new partitions outlive a power cut, before the metadata log names them.
    fn sync_folders(&self, topic_id: &str) -> io::Result<()> {
        self.disk.sync_folder(&self.topic_directory(topic_id))?;
        self.disk.sync_folder(&self.directory.join("topics"))
    }

    pub fn topic(&self, name: &str) -> Option<Arc<Topic>> {
        read(&self.topics).get(name).cloned()
    }

    pub fn topics(&self) -> Vec<(String, Arc<Topic>)> {
        read(&self.topics).iter().map(|(name, topic)| (name.clone(), topic.clone())).collect()
    }

    pub fn partition(&self, topic: &str, index: i32) -> Option<Arc<Partition>> {
        self.topic(topic)?.partition(index).cloned()
    }

    /// The topic's partition and its configuration, or the code for neither.
    pub fn locate(&self, topic: &str, index: i32) -> Result<(Arc<Topic>, Arc<Partition>), Fault> {
        let topic = self.topic(topic).ok_or(Fault::UnknownTopicOrPartition)?;
        let partition = topic.partition(index).cloned().ok_or(Fault::UnknownTopicOrPartition)?;
        Ok((topic, partition))
    }

    /// Creates a topic, or with `validate_only` checks whether it could. Returns why not, in words too.
    pub fn create_topic(
        &self,
        name: &str,
        partitions: i32,
        config: BTreeMap<String, String>,
        validate_only: bool,
    ) -> Result<(), (Fault, String)> {
        let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
        if name.is_empty()
            || name.len() > TOPIC_NAME_BYTES_MAX
            || matches!(name, "." | "..")
            || !name.chars().all(legal)
        {
            return Err((
                Fault::InvalidTopic,
                "a topic's name has 1 to 249 of the characters a-z, A-Z, 0-9, '.', '_' and '-'".into(),
            ));
        }
        if !(1..=PARTITIONS_MAX).contains(&partitions) {
            return Err((Fault::InvalidPartitions, format!("a topic has 1 to {PARTITIONS_MAX} partitions")));
        }
        TopicConfig::new(config.clone()).map_err(|why| (Fault::InvalidConfig, why))?;
        let _one_at_a_time = lock(&self.changing);
        if self.topic(name).is_some() {
            return Err((Fault::TopicAlreadyExists, format!("topic '{name}' exists already")));
        }
        self.check_room(partitions as usize)?;
        if validate_only {
            return Ok(());
        }
        let record = TopicRecord { id: Uuid::new_v4().to_string(), partitions, config };
        let id = record.id.clone();
        let change = Change::Topic { name: name.to_owned(), record: record.clone() };
        let created = self.load(name, &record, true).and_then(|topic| {
            self.sync_folders(&id)?;
            Ok((topic, self.metadata.write(vec![change])?))
        });
        let (topic, position) = created.map_err(|error| {
            let _ = self.disk.remove_folder(&self.topic_directory(&id));
            storage(error)
        })?;
        // What is written has happened, also where the sync fails and the client is told so.
        write(&self.topics).insert(name.to_owned(), Arc::new(topic));
        self.metadata.sync(position).map_err(storage)
    }

    fn check_room(&self, more: usize) -> Result<(), (Fault, String)> {
        let held: usize = read(&self.topics).values().map(|topic| topic.partitions.len()).sum();
        if more > 0 && held + more > ALL_PARTITIONS_MAX {
            let why = format!("the embedded broker holds {held} partitions; it takes {ALL_PARTITIONS_MAX}");
            return Err((Fault::InvalidPartitions, why));
        }
        Ok(())
    }

    pub fn delete_topic(&self, name: &str) -> Result<(), Fault> {
        let _one_at_a_time = lock(&self.changing);
        let topic = self.topic(name).ok_or(Fault::UnknownTopicOrPartition)?;
        let position = self.metadata.write(vec![Change::TopicDeleted { name: name.to_owned() }])?;
        write(&self.topics).remove(name);
        self.metadata.sync(position)?;
        if let Err(error) = self.disk.remove_folder(&self.topic_directory(&topic.id)) {
            // Compaction may be writing there just now. The topic is gone all the same.
            tracing::warn!(topic = name, %error, "files of a deleted topic are left; the next start deletes them");
        }
        topic.partitions.iter().for_each(|partition| partition.watchers.wake());
        Ok(())
    }

    /// Gives an existing topic another configuration or more partitions.
    pub fn change_topic(
        &self,
        name: &str,
        validate_only: bool,
        change: impl FnOnce(&mut TopicRecord) -> Result<(), (Fault, String)>,
    ) -> Result<(), (Fault, String)> {
        let _one_at_a_time = lock(&self.changing);
        let unknown = || (Fault::UnknownTopicOrPartition, format!("there is no topic '{name}'"));
        let old = self.topic(name).ok_or_else(unknown)?;
        let mut record = self.metadata.read(|image| image.topics.get(name).cloned()).ok_or_else(unknown)?;
        change(&mut record)?;
        let config = TopicConfig::new(record.config.clone()).map_err(|why| (Fault::InvalidConfig, why))?;
        self.check_room((record.partitions as usize).saturating_sub(old.partitions.len()))?;
        if validate_only {
            return Ok(());
        }
        let mut partitions = old.partitions.clone();
        for index in partitions.len() as i32..record.partitions {
            let path = self.topic_directory(&record.id).join(index.to_string());
            let opened = Partition::open(self.disk.clone(), &path, 0, true);
            partitions.push(Arc::new(opened.map_err(storage)?));
        }
        self.sync_folders(&record.id).map_err(storage)?;
        let topic = Topic { id: record.id.clone(), config, partitions };
        let change = Change::Topic { name: name.to_owned(), record };
        let position = self.metadata.write(vec![change]).map_err(storage)?;
        write(&self.topics).insert(name.to_owned(), Arc::new(topic));
        self.metadata.sync(position).map_err(storage)
    }

    /// A producer id that was never handed out before, whatever happened since.
    pub fn new_producer_id(&self) -> Result<i64, Fault> {
        let mut ids = lock(&self.producer_ids);
        if ids.is_empty() {
            let first = self.metadata.read(|image| image.next_producer_id);
            let next = first + PRODUCER_ID_BLOCK;
            self.metadata.write_synced(vec![Change::ProducerIds { next }])?;
            *ids = first..next;
        }
        ids.next().ok_or(Fault::KafkaStorageError)
    }

    /// Puts these partitions on the disk, several at a time.
    pub fn sync(partitions: &[Arc<Partition>]) -> io::Result<()> {
        if let [partition] = partitions {
            return partition.sync();
        }
        for some in partitions.chunks(SYNC_THREADS) {
            std::thread::scope(|scope| {
                let syncs: Vec<_> = some.iter().map(|partition| scope.spawn(|| partition.sync())).collect();
                let joined = |sync: std::thread::ScopedJoinHandle<'_, io::Result<()>>| {
                    sync.join().unwrap_or_else(|_| Err(io::Error::other("a sync thread panicked")))
                };
                syncs.into_iter().try_for_each(joined)
            })?;
        }
        Ok(())
    }

    /// Puts everything on the disk, also what stands behind one that fails; the first failure is told.
    pub fn sync_all(&self) -> io::Result<()> {
        let mut outcome = Ok(());
        for (_, topic) in self.topics() {
            for partition in &topic.partitions {
                outcome = outcome.and(partition.sync());
            }
        }
        outcome.and(self.metadata.tick())
    }

    /// Deletes what retention says is over.
    pub fn expire(&self) {
        for (name, topic) in self.topics() {
            for (index, partition) in topic.partitions.iter().enumerate() {
                let expired = partition.expire(&topic.config).and_then(|start| match start {
                    Some(offset) => self.move_start(&name, index as i32, partition, offset),
                    None if partition.has_leftovers() => Ok(partition.drop_segments()?),
                    None => Ok(()),
                });
                if expired.is_err() {
                    tracing::error!(
                        topic = name,
                        partition = index,
                        "retention could not delete old records"
                    );
                }
            }
        }
    }

    /// Compacts the topics that want it, one partition after the other, until told to stop.
    pub fn compact(&self, stopped: &dyn Fn() -> bool) {
        self.compact_at(now_ms(), stopped);
    }

    pub(super) fn compact_at(&self, now_ms: i64, stopped: &dyn Fn() -> bool) {
        for (name, topic) in self.topics() {
            for (index, partition) in topic.partitions.iter().enumerate() {
                if !topic.config.compact || stopped() {
                    break;
                }
                match partition.compact_in_turn(&topic.config, now_ms) {
                    Turn::Failed { error, times, pause_s } if self.topic(&name).is_some() => {
                        tracing::error!(
                            topic = name, partition = index, %error, times, "compaction failed; it tries again in {pause_s} s"
                        );
                    }
                    Turn::Done { failures } if failures > 0 => {
                        tracing::info!(topic = name, partition = index, failures, "compaction works again");
                    }
                    _ => {}
                }
            }
        }
    }

    /// Records a partition's new start, then deletes the files below it.
    pub fn move_start(
        &self,
        topic: &str,
        index: i32,
        partition: &Partition,
        offset: i64,
    ) -> Result<(), Fault> {
        let change = Change::Start { topic: topic.to_owned(), partition: index, offset };
        self.metadata.write_synced(vec![change])?;
        Ok(partition.drop_segments()?)
    }

    /// The last thing a stop does: the next start then trusts the files.
    pub fn close(&self) -> io::Result<()> {
        self.sync_all()?;
        self.metadata.seal()?;
        self.disk.create(&self.directory.join("clean"))?.sync()?;
        self.disk.sync_folder(&self.directory)
    }
}
