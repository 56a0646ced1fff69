//! A partition: its segments, its producers and its bounds, behind one lock that is held for memory and one
//! write at most; reads, syncs and deletions of files happen outside it.
//!
//! Invariant: offsets are handed out in the order of the bytes in the file, and an append that failed hands
//! out none.
//! Invariant: an older segment was synced before the next one was begun, so only the newest can be torn.
//!
//! How segments go again is in `retention.rs` and `compaction.rs`.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use bytes::{Bytes, BytesMut};

use super::batch::{self, Header};
use super::compaction::{Cleaning, finish_swaps};
use super::config::TopicConfig;
use super::disk::SharedDisk;
use super::fault::Fault;
use super::producers::{Aborted, Producers, Verdict};
use super::records;
use super::segment::{Segment, Slice, batches};
use super::watch::Watchers;
use super::{lock, now_ms};

/// What is in the partition: records are in `start..end`, settled ones in `start..stable`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    pub start: i64,
    pub stable: i64,
    pub end: i64,
}

/// A batch that was taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Appended {
    pub base_offset: i64,
    /// The broker's clock, where the topic wants it.
    pub append_time_ms: Option<i64>,
    pub start: i64,
}

pub(super) struct Log {
    pub segments: Vec<Segment>,
    pub start: i64,
    pub end: i64,
    pub producers: Producers,
    /// Everything below this offset is on the disk.
    synced: i64,
    /// How often compaction has replaced segments.
    pub rewrites: u64,
}

/// One partition of a topic.
pub struct Partition {
    pub(super) disk: SharedDisk,
    pub(super) directory: PathBuf,
    pub(super) log: Mutex<Log>,
    /// One sync at a time, so that the waiting ones find their work done.
    syncing: Mutex<()>,
    /// Held while segments are compacted: they are not deleted then.
    pub(super) cleaning: Mutex<Cleaning>,
    /// Fetches that wait for something to read here.
    pub watchers: Watchers,
}

impl Partition {
    /// Opens or creates the partition. `start` is where DeleteRecords or retention had moved its beginning;
    /// `verify` checks the newest segment's checksums, after a stop that was not clean.
    pub fn open(disk: SharedDisk, directory: &Path, start: i64, verify: bool) -> io::Result<Partition> {
        disk.create_folders(directory)?;
        finish_swaps(&*disk, directory)?;
        if verify {
            // A process that was killed may have created a segment and not synced that it is there.
            disk.sync_folder(directory)?;
        }
        let now_ms = now_ms();
        let names = disk.names(directory)?;
        let mut bases: Vec<i64> = names.iter().filter_map(|name| Segment::base_offset_of(name)).collect();
        bases.sort_unstable();
        let mut producers = Producers::default();
        let mut segments = Vec::with_capacity(bases.len().max(1));
        for (at, base) in bases.iter().enumerate() {
            let mut visit = |header: &Header, commits: Option<bool>| producers.note(header, commits, now_ms);
            let newest = at + 1 == bases.len();
            let path = Segment::path(directory, *base);
            segments.push(Segment::open(&*disk, path, *base, newest, verify, now_ms, &mut visit)?);
        }
        if segments.is_empty() {
            segments.push(Segment::create(&*disk, Segment::path(directory, start), start, now_ms)?);
        }
        let first = segments.first().map_or(start, |segment| segment.base_offset);
        let newest_base = segments.last().map_or(start, |segment| segment.base_offset);
        let last = segments.iter().rev().find_map(Segment::last_offset);
        // A power cut can lose the tail below a start that was synced: offsets never go back below it.
        let end = last.map_or(newest_base, |last| (last + 1).max(newest_base)).max(start);
        let start = start.max(first);
        producers.forget_before(start);
        let cleaning = Cleaning::open(&*disk, directory, end)?;
        let log = Log { segments, start, end, producers, synced: first, rewrites: 0 };
        Ok(Partition {
            disk,
            directory: directory.to_owned(),
            log: Mutex::new(log),
            syncing: Mutex::new(()),
            cleaning: Mutex::new(cleaning),
            watchers: Watchers::default(),
        })
    }

    pub fn bounds(&self) -> Bounds {
        let log = lock(&self.log);
        // DeleteRecords may delete the beginning of a transaction that is still open.
        let stable = log.producers.stable_offset(log.end).max(log.start);
        Bounds { start: log.start, stable, end: log.end }
    }

    /// Appends one batch of a client's.
    pub fn append(&self, records: Bytes, config: &TopicConfig) -> Result<Appended, Fault> {
        let mut header = Header::parse(&records).ok_or(Fault::CorruptMessage)?;
        if header.magic != 2 {
            return Err(Fault::UnsupportedForMessageFormat);
        }
        if records.len() > config.message_bytes_max {
            return Err(Fault::MessageTooLarge);
        }
        if !header.intact(&records) {
            return Err(Fault::CorruptMessage);
        }
        if header.control()
            || header.record_count < 1
            || header.last_offset_delta != header.record_count - 1
            || !header.may_hold_its_records()
        {
            return Err(Fault::InvalidRecord);
        }
        if !header.is_of_known_codec() {
            return Err(Fault::UnsupportedCompressionType);
        }
        let now_ms = now_ms();
        let append_time_ms = config.log_append_time.then_some(now_ms);
        if append_time_ms.is_none()
            && header.max_timestamp_ms.saturating_sub(now_ms) > config.timestamp_after_max_ms
        {
            return Err(Fault::InvalidTimestamp);
        }
        let oldest = append_time_ms.is_none() && config.timestamp_before_max_ms < i64::MAX;
        if oldest || config.compact {
            check_records(&records, config.compact, oldest.then(|| now_ms - config.timestamp_before_max_ms))?;
        }
        let mut records = BytesMut::from(records);
        let mut log = lock(&self.log);
        if let Verdict::Duplicate(base_offset) = log.producers.judge(&header)? {
            return Ok(Appended { base_offset, append_time_ms: None, start: log.start });
        }
        batch::place(&mut records, &mut header, log.end, append_time_ms);
        self.write(&mut log, &records, &header, None, config, now_ms)?;
        Ok(Appended { base_offset: header.base_offset, append_time_ms, start: log.start })
    }

    /// Ends a producer's open transaction here; does nothing if it has none. It commits if it began below this
    /// offset: a batch that came after the decision is none of it. `None` aborts.
    pub fn end_transaction(
        &self,
        producer_id: i64,
        epoch: i16,
        commits_below: Option<i64>,
        config: &TopicConfig,
    ) -> Result<(), Fault> {
        let now_ms = now_ms();
        let mut log = lock(&self.log);
        let Some(first) = log.producers.open_since(producer_id) else {
            log.producers.unregister(producer_id);
            return Ok(());
        };
        let commit = commits_below.is_some_and(|below| first < below);
        let mut marker = batch::marker(producer_id, epoch, commit, now_ms);
        let mut header = Header::parse(&marker).ok_or(Fault::CorruptMessage)?;
        batch::place(&mut marker, &mut header, log.end, None);
        self.write(&mut log, &marker, &header, Some(commit), config, now_ms)
    }

    fn write(
        &self,
        log: &mut Log,
        batch: &[u8],
        header: &Header,
        commits: Option<bool>,
        config: &TopicConfig,
        now_ms: i64,
    ) -> Result<(), Fault> {
        let full = log.segments.last().is_none_or(|segment| {
            let large = segment.size + batch.len() as u64 > config.segment_bytes;
            !segment.is_empty() && (large || now_ms - segment.since_ms > config.segment_ms)
        });
        if full {
            self.roll(log, now_ms)?;
        }
        let segment = log.segments.last_mut().ok_or(Fault::KafkaStorageError)?;
        segment.append(batch, header, now_ms)?;
        log.end = header.last_offset() + 1;
        log.producers.note(header, commits, now_ms);
        self.watchers.wake();
        Ok(())
    }

    /// Begins the next segment.
    pub(super) fn roll(&self, log: &mut Log, now_ms: i64) -> io::Result<()> {
        if let Some(segment) = log.segments.last_mut() {
            let work = segment.unsynced()?;
            let outcome = work.sync();
            segment.was_synced(&work, &outcome);
            outcome?;
            log.synced = log.end;
        }
        let path = Segment::path(&self.directory, log.end);
        log.segments.push(Segment::create(&*self.disk, path, log.end, now_ms)?);
        Ok(())
    }

    /// How many bytes a reader at `offset` could get now, at most one segment's worth; 0 at the end.
    pub fn slice(&self, offset: i64, bytes_max: usize, limit: i64) -> Result<Option<Slice>, Fault> {
        let log = lock(&self.log);
        if offset < log.start || offset > log.end {
            return Err(Fault::OffsetOutOfRange);
        }
        if offset >= limit {
            // A run of batches may reach over the limit: a fetch that waits there would find it again and again.
            return Ok(None);
        }
        let first = log.segments.partition_point(|segment| segment.base_offset <= offset).saturating_sub(1);
        Ok(log.segments[first..].iter().find_map(|s| s.slice(offset, bytes_max, limit, log.rewrites)))
    }

    /// The aborted transactions of a slice that was looked up after this many rewrites; `None`: compaction has
    /// rewritten the log since, and may have forgotten some that the slice still holds.
    pub fn aborted(&self, from: i64, to: i64, rewrites: u64) -> Option<Vec<Aborted>> {
        let log = lock(&self.log);
        (log.rewrites == rewrites).then(|| log.producers.aborted(from, to))
    }

    /// The first record below `limit` with at least this timestamp, as (timestamp, offset).
    pub fn offset_at(&self, timestamp_ms: i64, limit: i64) -> Result<Option<(i64, i64)>, Fault> {
        let (start, slices) = {
            let log = lock(&self.log);
            let old_enough = |segment: &&Segment| segment.max_timestamp_ms >= timestamp_ms;
            let slices = log.segments.iter().filter(old_enough);
            (
                log.start,
                slices.flat_map(|s| s.slices_from_time(timestamp_ms, log.start, limit)).collect::<Vec<_>>(),
            )
        };
        for slice in slices {
            let (bytes, _) = slice.read()?;
            for (header, batch) in batches(&bytes) {
                if header.control() || header.max_timestamp_ms < timestamp_ms {
                    continue;
                }
                if let Some(found) = records::find_timestamp(batch, start, timestamp_ms)? {
                    return Ok(Some(found));
                }
            }
        }
        Ok(None)
    }

    pub fn register(&self, producer_id: i64, epoch: i16) {
        lock(&self.log).producers.register(producer_id, epoch, now_ms());
    }

    /// Open transactions as (producer, epoch).
    pub fn open_transactions(&self) -> Vec<(i64, i16)> {
        lock(&self.log).producers.open()
    }

    /// Puts everything appended so far on the disk.
    pub fn sync(&self) -> io::Result<()> {
        let wanted = lock(&self.log).end;
        let _one_at_a_time = lock(&self.syncing);
        let (work, base, end) = {
            let mut log = lock(&self.log);
            let (synced, end) = (log.synced, log.end);
            let Some(newest) = log.segments.last_mut() else { return Ok(()) };
            if synced >= wanted && !newest.is_ragged() {
                return Ok(());
            }
            (newest.unsynced()?, newest.base_offset, end)
        };
        let outcome = work.sync();
        let mut log = lock(&self.log);
        if let Some(segment) = log.segments.iter_mut().find(|segment| segment.base_offset == base) {
            segment.was_synced(&work, &outcome);
        }
        outcome?;
        log.synced = log.synced.max(end);
        Ok(())
    }
}

/// What only the records themselves say: that each has a key, and is not too old (-1 is no timestamp).
fn check_records(batch: &[u8], keyed: bool, oldest_ms: Option<i64>) -> Result<(), Fault> {
    let mut fault = None;
    let walked = records::walk(batch, |header, record| {
        let timestamp_ms = record.timestamp_ms(header);
        if keyed && record.key.is_none() {
            fault = Some(Fault::InvalidRecord);
        } else if oldest_ms.is_some_and(|oldest| (0..oldest).contains(&timestamp_ms)) {
            fault = Some(Fault::InvalidTimestamp);
        }
        Ok(fault.is_none())
    });
    match (walked, fault) {
        (Err(_), _) => Err(Fault::CorruptMessage),
        (Ok(()), Some(fault)) => Err(fault),
        (Ok(()), None) => Ok(()),
    }
}

#[cfg(test)]
mod tests;
