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

use tokio::sync::Notify;
use uuid::Uuid;

use super::config::TopicConfig;
use super::fault::Fault;
use super::groups::Groups;
use super::metadata::{Change, MetadataLog, TopicRecord};
use super::partition::Partition;
use super::transactions::Transaction;
use super::{lock, read, write};

const TOPIC_NAME_BYTES_MAX: usize = 249;
pub const PARTITIONS_MAX: i32 = 10_000;
/// Producer ids are taken from the metadata log in blocks, so that most need no sync.
const PRODUCER_ID_BLOCK: i64 = 1000;
/// Partitions are synced by at most this many threads at once.
const SYNC_THREADS: usize = 8;

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
    directory: PathBuf,
    pub metadata: MetadataLog,
    topics: RwLock<BTreeMap<String, Arc<Topic>>>,
    /// Topics are created, changed and deleted one at a time.
    changing: Mutex<()>,
    producer_ids: Mutex<Range<i64>>,
    pub groups: Groups,
    pub(super) transactions: Mutex<HashMap<String, Arc<Mutex<Transaction>>>>,
    pub(super) pending: Mutex<BTreeMap<PendingKey, i64>>,
    /// Wakes fetches that wait for records.
    pub appended: Notify,
}

impl Cluster {
    /// Opens the data folder and brings it to a consistent state: see [`Cluster::recover_transactions`].
    pub fn open(directory: &Path) -> io::Result<Cluster> {
        let clean = directory.join("clean");
        let verify = !clean.exists();
        if !verify {
            std::fs::remove_file(&clean)?;
        }
        let metadata = MetadataLog::open(directory)?;
        if metadata.read(|image| image.cluster_id.is_empty()) {
            metadata.write_synced(vec![Change::Cluster { id: Uuid::new_v4().simple().to_string() }])?;
        }
        let records = metadata.read(|image| image.topics.clone());
        let cluster = Cluster {
            directory: directory.to_owned(),
            topics: RwLock::default(),
            changing: Mutex::default(),
            producer_ids: Mutex::new(0..0),
            groups: Groups::default(),
            transactions: Mutex::default(),
            pending: Mutex::default(),
            appended: Notify::new(),
            metadata,
        };
        cluster.delete_leftovers(&records)?;
        let mut topics = BTreeMap::new();
        for (name, record) in records {
            topics.insert(name.clone(), Arc::new(cluster.load(&name, &record, verify)?));
        }
        *write(&cluster.topics) = topics;
        cluster
            .recover_transactions()
            .map_err(|_| io::Error::other("an unfinished transaction can't be ended"))?;
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
            partitions.push(Arc::new(Partition::open(&path, start.unwrap_or(0), verify)?));
        }
        Ok(Topic { id: record.id.clone(), config, partitions })
    }

    fn delete_leftovers(&self, records: &BTreeMap<String, TopicRecord>) -> io::Result<()> {
        let topics = self.directory.join("topics");
        std::fs::create_dir_all(&topics)?;
        for entry in std::fs::read_dir(&topics)? {
            let entry = entry?;
            let name = entry.file_name();
            if !records.values().any(|record| name.to_str() == Some(&record.id)) {
                std::fs::remove_dir_all(entry.path())?;
            }
        }
        Ok(())
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
        if validate_only {
            return Ok(());
        }
        let record = TopicRecord { id: Uuid::new_v4().to_string(), partitions, config };
        let storage = |error: io::Error| (Fault::from(error), "the data folder cannot be written".to_owned());
        let topic = self.load(name, &record, true).map_err(storage)?;
        self.metadata.write_synced(vec![Change::Topic { name: name.to_owned(), record }]).map_err(storage)?;
        write(&self.topics).insert(name.to_owned(), Arc::new(topic));
        Ok(())
    }

    pub fn delete_topic(&self, name: &str) -> Result<(), Fault> {
        let _one_at_a_time = lock(&self.changing);
        let topic = self.topic(name).ok_or(Fault::UnknownTopicOrPartition)?;
        self.metadata.write_synced(vec![Change::TopicDeleted { name: name.to_owned() }])?;
        write(&self.topics).remove(name);
        std::fs::remove_dir_all(self.topic_directory(&topic.id))?;
        self.appended.notify_waiters();
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
        if validate_only {
            return Ok(());
        }
        let storage = |error: io::Error| (Fault::from(error), "the data folder cannot be written".to_owned());
        let mut partitions = old.partitions.clone();
        for index in partitions.len() as i32..record.partitions {
            let path = self.topic_directory(&record.id).join(index.to_string());
            partitions.push(Arc::new(Partition::open(&path, 0, true).map_err(storage)?));
        }
        let topic = Topic { id: record.id.clone(), config, partitions };
        self.metadata.write_synced(vec![Change::Topic { name: name.to_owned(), record }]).map_err(storage)?;
        write(&self.topics).insert(name.to_owned(), Arc::new(topic));
        Ok(())
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

    /// Puts everything on the disk.
    pub fn sync_all(&self) -> io::Result<()> {
        for (_, topic) in self.topics() {
            topic.partitions.iter().try_for_each(|partition| partition.sync())?;
        }
        self.metadata.tick()
    }

    /// Deletes what retention says is over.
    pub fn expire(&self) {
        for (name, topic) in self.topics() {
            for (index, partition) in topic.partitions.iter().enumerate() {
                let expired = partition.expire(&topic.config).and_then(|start| match start {
                    Some(offset) => self.move_start(&name, index as i32, partition, offset),
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
        std::fs::File::create(self.directory.join("clean"))?.sync_all()
    }
}
