//! Where a measurement takes place: its broker, a folder of its own, and topics made as it needs them.
//!
//! Invariant: the folder and, on a Kafka that is not the bench's own, the topics are gone when it is over.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use headwater::log::kafka::{KafkaLog, KafkaOptions};
use headwater::log::{Log, TopicSpec};

use super::{Result, Server};

const TARGET: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/target");
/// So that what retention deletes shows: a segment is deleted whole.
const SEGMENT_BYTES: u64 = 4 << 20;

pub struct Place {
    pub brokers: String,
    pub log: Arc<dyn Log>,
    /// `None`: the broker is not the bench's own.
    pub server: Option<Server>,
    pub folder: PathBuf,
    /// What the names of all topics of the measurement begin with.
    pub prefix: String,
}

impl Place {
    /// On these brokers, or on an embedded one in a process of its own.
    pub fn open(measurement: &str, brokers: Option<&str>) -> Result<Self> {
        let prefix = format!("headwater-bench-{measurement}-{}", std::process::id());
        let folder = Path::new(TARGET).join(&prefix);
        std::fs::create_dir_all(&folder)?;
        let server = match brokers {
            Some(_) => None,
            None => Some(Server::start(&folder.join("broker"))?),
        };
        let own = server.as_ref().map(|server| server.address.clone());
        let brokers = brokers.map(str::to_owned).or(own).ok_or("no broker")?;
        let log = connect(&brokers, &[])?;
        Ok(Self { brokers, log, server, folder, prefix })
    }

    pub fn broker_pid(&self) -> Option<u32> {
        self.server.as_ref().map(|server| server.child.id())
    }

    /// Creates topics of four partitions or so, of which only the last records are kept where `kept_s` is set.
    pub fn create(&self, topics: &[&str], partitions: i32, kept_s: Option<u64>) -> Result<()> {
        let mut config = BTreeMap::from([("segment.bytes".to_owned(), SEGMENT_BYTES.to_string())]);
        config.insert("retention.ms".to_owned(), kept_s.map_or("-1".to_owned(), |s| (s * 1000).to_string()));
        let spec = |name: &&str| TopicSpec { name: (*name).to_owned(), partitions, config: config.clone() };
        Ok(self.log.create_topics(&topics.iter().map(spec).collect::<Vec<_>>())?)
    }

    /// What the embedded broker keeps of a topic, as it lies there.
    pub fn stored_bytes(&self, topic: &str) -> Option<u64> {
        self.server.as_ref()?;
        let broker = self.folder.join("broker");
        let needle = format!("\"name\":\"{topic}\",\"record\":{{\"id\":\"");
        let id = std::fs::read_dir(&broker).ok()?.flatten().find_map(|entry| {
            let bytes = std::fs::read(entry.path()).ok()?;
            let at = bytes.windows(needle.len()).rposition(|window| window == needle.as_bytes())?;
            let id = bytes[at + needle.len()..].split(|&byte| byte == b'"').next()?;
            String::from_utf8(id.to_vec()).ok()
        })?;
        Some(file_bytes(&broker.join("topics").join(id)))
    }

    fn clean(&self) -> Result<()> {
        if self.server.is_none() {
            let topics = self.log.topics()?.into_iter().map(|topic| topic.name);
            let own: Vec<String> = topics.filter(|topic| topic.starts_with(&self.prefix)).collect();
            if !own.is_empty() {
                self.log.delete_topics(&own)?;
            }
        }
        Ok(())
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Err(error) = self.clean() {
            eprintln!("topics of {} are left: {error}", self.prefix);
        }
        drop(self.server.take());
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

pub fn connect(brokers: &str, properties: &[(&str, &str)]) -> Result<Arc<dyn Log>> {
    let properties = properties.iter().map(|(name, value)| (name.to_string(), value.to_string()));
    let options = KafkaOptions {
        brokers: brokers.to_owned(),
        properties: properties.collect(),
        client_id: "headwater-bench".into(),
    };
    Ok(Arc::new(KafkaLog::connect(&options)?))
}

/// The lengths of all files of a topic's log; its indexes and folders are left out.
fn file_bytes(folder: &Path) -> u64 {
    let Ok(entries) = std::fs::read_dir(folder) else { return 0 };
    let of = |entry: std::fs::DirEntry| match entry.file_type() {
        Ok(kind) if kind.is_dir() => file_bytes(&entry.path()),
        _ if entry.path().extension().is_some_and(|extension| extension == "log") => {
            entry.metadata().map_or(0, |metadata| metadata.len())
        }
        _ => 0,
    };
    entries.flatten().map(of).sum()
}
