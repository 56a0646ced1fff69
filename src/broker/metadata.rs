//! The metadata log: topics, log starts, group offsets, producer ids and transactions, as one file of changes.
//! The state they add up to, the [`Image`], is kept here too, so that the file can be rewritten at any time.
//!
//! Invariant: the file is frames of (length, CRC-32C, JSON of a list of changes); a frame is applied whole or,
//! when the file's end is torn, not at all.
//! Invariant: the image changes only by a change that was written first.
//! Invariant: the first frame after a sync says how much of the file was on the disk. What is not whole below that is
//! damage and not a torn end, and the broker refuses to start: it deletes the files of topics it knows nothing of.
//! Invariant: after a sync that failed the file is written anew from the image, for nobody knows what is on the disk.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use serde::{Deserialize, Serialize};

use super::disk::{Disk, SharedDisk, SharedFile, is_there, read_all};
use super::lock;
use super::transaction::Transaction;

const FRAME_HEADER_BYTES: usize = 8;
/// The file is rewritten once it is this much larger than the last rewrite.
const GROWTH_BYTES_MAX: u64 = 16 << 20;

/// Groups with offsets.
const GROUPS_MAX: usize = 10_000;

/// A topic as it was created.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TopicRecord {
    /// A UUID, which names its folder.
    pub id: String,
    pub partitions: i32,
    pub config: BTreeMap<String, String>,
}

/// A group's position in a partition.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Committed {
    pub offset: i64,
    pub leader_epoch: i32,
    pub metadata: String,
}

/// A step of the image.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Change {
    Cluster {
        id: String,
    },
    /// The boot of the machine that the broker last ran in.
    Boot {
        id: String,
    },
    Topic {
        name: String,
        record: TopicRecord,
    },
    TopicDeleted {
        name: String,
    },
    Start {
        topic: String,
        partition: i32,
        offset: i64,
    },
    Offset {
        group: String,
        topic: String,
        partition: i32,
        committed: Committed,
    },
    GroupDeleted {
        group: String,
    },
    /// Producer ids below this may have been handed out.
    ProducerIds {
        next: i64,
    },
    Transaction {
        id: String,
        state: Transaction,
    },
    /// So much of the file was on the disk when this was written.
    Synced {
        bytes: u64,
    },
}

/// What all changes add up to.
#[derive(Default)]
pub struct Image {
    pub cluster_id: String,
    pub boot_id: String,
    pub topics: BTreeMap<String, TopicRecord>,
    pub starts: BTreeMap<(String, i32), i64>,
    /// By group, then topic and partition.
    pub offsets: BTreeMap<String, BTreeMap<(String, i32), Committed>>,
    pub next_producer_id: i64,
    pub transactions: BTreeMap<String, Transaction>,
}

impl Image {
    fn apply(&mut self, change: Change) {
        match change {
            Change::Cluster { id } => self.cluster_id = id,
            Change::Boot { id } => self.boot_id = id,
            Change::Topic { name, record } => {
                self.topics.insert(name, record);
            }
            Change::TopicDeleted { name } => {
                self.topics.remove(&name);
                self.starts.retain(|(topic, _), _| *topic != name);
                for offsets in self.offsets.values_mut() {
                    offsets.retain(|(topic, _), _| *topic != name);
                }
                self.offsets.retain(|_, offsets| !offsets.is_empty());
            }
            Change::Start { topic, partition, offset } => {
                self.starts.insert((topic, partition), offset);
            }
            Change::Offset { group, topic, partition, committed } => {
                self.offsets.entry(group).or_default().insert((topic, partition), committed);
            }
            Change::GroupDeleted { group } => {
                self.offsets.remove(&group);
            }
            Change::ProducerIds { next } => self.next_producer_id = next,
            Change::Transaction { id, state } => {
                self.transactions.insert(id, state);
            }
            Change::Synced { .. } => {}
        }
    }

    /// The fewest changes that give this image.
    fn changes(&self) -> Vec<Change> {
        let mut changes = vec![
            Change::Cluster { id: self.cluster_id.clone() },
            Change::Boot { id: self.boot_id.clone() },
            Change::ProducerIds { next: self.next_producer_id },
        ];
        for (name, record) in &self.topics {
            changes.push(Change::Topic { name: name.clone(), record: record.clone() });
        }
        for ((topic, partition), offset) in &self.starts {
            changes.push(Change::Start { topic: topic.clone(), partition: *partition, offset: *offset });
        }
        for (group, offsets) in &self.offsets {
            for ((topic, partition), committed) in offsets {
                changes.push(Change::Offset {
                    group: group.clone(),
                    topic: topic.clone(),
                    partition: *partition,
                    committed: committed.clone(),
                });
            }
        }
        for (id, state) in &self.transactions {
            changes.push(Change::Transaction { id: id.clone(), state: state.clone() });
        }
        changes
    }
}

impl Image {
    /// Whether offsets of one more group would be too many: they stay until somebody deletes them.
    pub fn is_full_for(&self, group: &str) -> bool {
        self.offsets.len() >= GROUPS_MAX && !self.offsets.contains_key(group)
    }
}

struct State {
    image: Image,
    file: SharedFile,
    size: u64,
    /// So much of the file is on the disk, and not yet said to be.
    unsaid: Option<u64>,
    /// What the file was after the last rewrite.
    rewritten: u64,
    /// Bytes ever written, over rewrites; a position to sync up to.
    written: u64,
    /// A sync failed.
    doubtful: bool,
}

/// The metadata log of a broker.
pub struct MetadataLog {
    disk: SharedDisk,
    path: PathBuf,
    state: Mutex<State>,
    /// The position that is on the disk. Its lock is held for the sync, so that those who wait share one.
    synced: Mutex<u64>,
}

impl MetadataLog {
    /// Reads the log, cuts off a torn end and rewrites it as short as it can be.
    pub fn open(disk: SharedDisk, directory: &Path) -> io::Result<MetadataLog> {
        let path = directory.join("metadata.log");
        let held = if is_there(&*disk, &path)? { Some(disk.open(&path)?) } else { None };
        let bytes = held.as_deref().map_or(Ok(Vec::new()), read_all)?;
        let mut image = Image { next_producer_id: 1, ..Image::default() };
        let mut rest = &bytes[..];
        while let Some((changes, after)) = frame(rest)? {
            changes.into_iter().for_each(|change| image.apply(change));
            rest = after;
        }
        let whole = (bytes.len() - rest.len()) as u64;
        if synced_behind(rest) > whole {
            let why = format!(
                "{} is damaged at byte {whole}, and names the topics here: restore this folder from a backup, or move \
                 it away to begin with an empty broker",
                path.display()
            );
            return Err(io::Error::new(io::ErrorKind::InvalidData, why));
        }
        if !rest.is_empty() {
            tracing::warn!(bytes = rest.len(), "cut a torn write off the end of the metadata log");
        }
        let (file, size) = match (rewrite(&*disk, &path, &image), held) {
            (Ok((file, size)), _) => {
                disk.sync_folder(directory)?;
                (file, size)
            }
            (Err(error), Some(file)) => {
                // A full disk: topics can be deleted only by a broker that starts.
                tracing::warn!(%error, "the metadata log was not shortened");
                file.truncate(whole)?;
                file.sync()?;
                (file, whole)
            }
            (Err(error), None) => return Err(error),
        };
        let state =
            State { image, file, size, unsaid: Some(size), rewritten: size, written: size, doubtful: false };
        Ok(MetadataLog { disk, path, state: Mutex::new(state), synced: Mutex::new(size) })
    }

    /// Looks at the image.
    pub fn read<T>(&self, look: impl FnOnce(&Image) -> T) -> T {
        look(&lock(&self.state).image)
    }

    /// Forgets transactional ids that are over. Nothing is written: the next start finds that they are over by itself,
    /// and the next rewrite leaves them out.
    pub fn forget_transactions(&self, ids: &[String]) {
        let mut state = lock(&self.state);
        for id in ids {
            state.image.transactions.remove(id);
        }
    }

    /// Writes changes as one frame and applies them. The position returned can be handed to [`Self::sync`];
    /// unsynced, they survive the process but not a power cut.
    pub fn write(&self, changes: Vec<Change>) -> io::Result<u64> {
        let mut state = lock(&self.state);
        let synced = state.unsaid.map(|bytes| Change::Synced { bytes });
        let changes: Vec<Change> = synced.into_iter().chain(changes).collect();
        let frame = encode(&changes)?;
        // One that failed is overwritten by the next; what is left of it behind that is no frame.
        state.file.write_all_at(&frame, state.size)?;
        state.unsaid = None;
        state.size += frame.len() as u64;
        state.written += frame.len() as u64;
        changes.into_iter().for_each(|change| state.image.apply(change));
        Ok(state.written)
    }

    /// Puts the log up to a position on the disk.
    pub fn sync(&self, position: u64) -> io::Result<()> {
        let mut synced = lock(&self.synced);
        if *synced >= position {
            return Ok(());
        }
        let (file, written, size, doubtful) = {
            let state = lock(&self.state);
            (state.file.clone(), state.written, state.size, state.doubtful)
        };
        if doubtful {
            *synced = self.rewrite()?;
            return Ok(());
        }
        if let Err(error) = file.sync() {
            lock(&self.state).doubtful = true;
            return Err(error);
        }
        lock(&self.state).unsaid = Some(size);
        *synced = written;
        Ok(())
    }

    /// Says what is on the disk, before a stop.
    pub fn seal(&self) -> io::Result<()> {
        self.sync_all()?;
        self.write_synced(Vec::new())
    }

    /// Writes the file anew, synced, and says up to where.
    fn rewrite(&self) -> io::Result<u64> {
        let mut state = lock(&self.state);
        let (file, size) = rewrite(&*self.disk, &self.path, &state.image)?;
        // The new file has the name from here on, whether or not that outlives a power cut.
        state.file = file;
        state.size = size;
        state.rewritten = size;
        state.unsaid = None;
        state.doubtful = true;
        self.disk.sync_folder(self.path.parent().unwrap_or(&self.path))?;
        state.doubtful = false;
        state.unsaid = Some(state.size);
        Ok(state.written)
    }

    /// Puts everything written so far on the disk.
    pub fn sync_all(&self) -> io::Result<()> {
        let written = lock(&self.state).written;
        self.sync(written)
    }

    /// Writes changes and puts them on the disk. After an error they may or may not have happened.
    pub fn write_synced(&self, changes: Vec<Change>) -> io::Result<()> {
        let position = self.write(changes)?;
        self.sync(position)
    }

    /// Syncs what is not yet on the disk, and rewrites the log if it has grown.
    pub fn tick(&self) -> io::Result<()> {
        let (written, grown) = {
            let state = lock(&self.state);
            (state.written, state.size > 2 * state.rewritten + GROWTH_BYTES_MAX)
        };
        if grown {
            let mut synced = lock(&self.synced);
            *synced = self.rewrite()?;
            return Ok(());
        }
        self.sync(written)
    }
}

fn encode(changes: &[Change]) -> io::Result<Vec<u8>> {
    let mut frame = vec![0; FRAME_HEADER_BYTES];
    serde_json::to_writer(&mut frame, changes)?;
    let length = u32::try_from(frame.len() - FRAME_HEADER_BYTES).map_err(io::Error::other)?;
    let checksum = crc32c::crc32c(&frame[FRAME_HEADER_BYTES..]);
    frame[..4].copy_from_slice(&length.to_be_bytes());
    frame[4..8].copy_from_slice(&checksum.to_be_bytes());
    Ok(frame)
}

/// The next frame and what follows it; `None` at the end, torn or not. A frame whose checksum fits but that
/// can't be understood was written by another version: an error, not an end.
fn frame(bytes: &[u8]) -> io::Result<Option<(Vec<Change>, &[u8])>> {
    let Some((head, rest)) = bytes.split_at_checked(FRAME_HEADER_BYTES) else { return Ok(None) };
    let number = |at: usize| u32::from_be_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
    let Some((body, rest)) = rest.split_at_checked(number(0) as usize) else { return Ok(None) };
    // A power cut can leave zeros, and the checksum of nothing is zero.
    if body.is_empty() || crc32c::crc32c(body) != number(4) {
        return Ok(None);
    }
    Ok(Some((serde_json::from_slice(body)?, rest)))
}

/// What the frames behind a damaged one say was on the disk.
fn synced_behind(damaged: &[u8]) -> u64 {
    let mut synced = 0;
    let mut at = 1;
    while let Some(rest) = damaged.get(at..).filter(|rest| rest.len() > FRAME_HEADER_BYTES) {
        let looks_like_one = rest[FRAME_HEADER_BYTES] == b'[';
        match if looks_like_one { frame(rest) } else { Ok(None) } {
            Ok(Some((changes, after))) => {
                for change in changes {
                    if let Change::Synced { bytes } = change {
                        synced = synced.max(bytes);
                    }
                }
                at = damaged.len() - after.len();
            }
            // Another version's is no less whole.
            Err(_) => return u64::MAX,
            Ok(None) => at += 1,
        }
    }
    synced
}

/// A new file under the log's name; that it has the name is not synced yet.
fn rewrite(disk: &dyn Disk, path: &Path, image: &Image) -> io::Result<(SharedFile, u64)> {
    let temporary = path.with_extension("new");
    let file = disk.create(&temporary)?;
    let mut size = 0;
    for changes in image.changes().chunks(256) {
        let frame = encode(changes)?;
        file.write_all_at(&frame, size)?;
        size += frame.len() as u64;
    }
    let frame = encode(&[Change::Synced { bytes: size }])?;
    file.write_all_at(&frame, size)?;
    size += frame.len() as u64;
    file.sync()?;
    disk.rename(&temporary, path)?;
    Ok((file, size))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::disk::RealDisk;
    use super::*;

    fn open(folder: &Path) -> MetadataLog {
        MetadataLog::open(Arc::new(RealDisk), folder).unwrap()
    }

    fn offset(offset: i64) -> Change {
        let committed = Committed { offset, leader_epoch: -1, metadata: "tab\there\n".into() };
        Change::Offset { group: "g".into(), topic: "t".into(), partition: 0, committed }
    }

    fn committed(log: &MetadataLog) -> Option<i64> {
        log.read(|image| image.offsets.get("g")?.get(&("t".into(), 0)).map(|committed| committed.offset))
    }

    #[test]
    fn what_was_written_is_there_after_a_restart_and_a_torn_end_is_cut() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metadata.log");
        let log = open(folder.path());
        log.write_synced(vec![offset(1)]).unwrap();
        let one = std::fs::read(&path).unwrap();
        log.write(vec![offset(2), Change::ProducerIds { next: 77 }]).unwrap();
        let two = std::fs::read(&path).unwrap();
        drop(log);
        let log = open(folder.path());
        assert_eq!((committed(&log), log.read(|image| image.next_producer_id)), (Some(2), 77));
        drop(log);
        for cut in one.len()..two.len() {
            std::fs::write(&path, &two[..cut]).unwrap();
            let log = open(folder.path());
            assert_eq!((committed(&log), log.read(|image| image.next_producer_id)), (Some(1), 1));
        }
        std::fs::write(&path, [&one[..], &[0; 50]].concat()).unwrap();
        assert_eq!(committed(&open(folder.path())), Some(1));
    }

    /// Whoever starts without a topic's name deletes its files.
    #[test]
    fn a_flipped_bit_below_what_was_synced_is_no_torn_end() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metadata.log");
        let log = open(folder.path());
        let record = TopicRecord { id: "t".into(), partitions: 1, config: BTreeMap::new() };
        log.write_synced(vec![Change::Topic { name: "t".into(), record }]).unwrap();
        let synced = std::fs::metadata(&path).unwrap().len() as usize;
        log.seal().unwrap();
        log.write(vec![offset(2)]).unwrap();
        drop(log);
        let bytes = std::fs::read(&path).unwrap();
        for at in 0..synced {
            let mut damaged = bytes.clone();
            damaged[at] ^= 0x10;
            std::fs::write(&path, damaged).unwrap();
            let refused = MetadataLog::open(Arc::new(RealDisk), folder.path()).err().expect("refused");
            assert!(refused.to_string().contains("metadata.log is damaged at byte "), "{refused}");
        }
        std::fs::write(&path, &bytes).unwrap();
        assert_eq!(committed(&open(folder.path())), Some(2));
    }

    #[test]
    fn the_log_does_not_grow_for_ever() {
        let folder = tempfile::tempdir().unwrap();
        let log = open(folder.path());
        for at in 0..200_000 {
            log.write(vec![offset(at)]).unwrap();
        }
        log.tick().unwrap();
        assert!(std::fs::metadata(folder.path().join("metadata.log")).unwrap().len() < 10_000);
        log.write(vec![offset(-5)]).unwrap();
        drop(log);
        assert_eq!(committed(&open(folder.path())), Some(-5));
    }

    #[test]
    fn deleting_a_topic_forgets_its_offsets() {
        let folder = tempfile::tempdir().unwrap();
        let log = open(folder.path());
        log.write(vec![offset(1), Change::TopicDeleted { name: "t".into() }]).unwrap();
        assert_eq!(committed(&log), None);
    }
}
