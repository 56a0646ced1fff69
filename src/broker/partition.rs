//! A partition: its segments, its producers and its bounds, behind one lock that is held for memory and one
//! write at most; reads, syncs and deletions of files happen outside it.
//!
//! Invariant: offsets are handed out in the order of the bytes in the file, and an append that failed hands
//! out none.
//! Invariant: an older segment was synced before the next one was begun, so only the newest can be torn.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use bytes::{Bytes, BytesMut};

use super::batch::{self, Header};
use super::config::TopicConfig;
use super::fault::Fault;
use super::producers::{Aborted, Producers, Verdict};
use super::segment::{Segment, Slice, batches};
use super::{lock, now_ms};

/// A producer that has been silent for this long is forgotten (Kafka's `producer.id.expiration.ms`).
const PRODUCER_SILENCE_MS: i64 = 24 * 3600 * 1000;

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

struct Log {
    segments: Vec<Segment>,
    start: i64,
    end: i64,
    producers: Producers,
    /// Everything below this offset is on the disk.
    synced: i64,
}

/// One partition of a topic.
pub struct Partition {
    directory: PathBuf,
    log: Mutex<Log>,
    /// One sync at a time, so that the waiting ones find their work done.
    syncing: Mutex<()>,
}

impl Partition {
    /// Opens or creates the partition. `start` is where DeleteRecords or retention had moved its beginning;
    /// `verify` checks the newest segment's checksums, after a stop that was not clean.
    pub fn open(directory: &Path, start: i64, verify: bool) -> io::Result<Partition> {
        std::fs::create_dir_all(directory)?;
        let now_ms = now_ms();
        let mut bases = Vec::new();
        for entry in std::fs::read_dir(directory)? {
            bases.extend(entry?.file_name().to_str().and_then(Segment::base_offset_of));
        }
        bases.sort_unstable();
        let mut producers = Producers::default();
        let mut segments = Vec::with_capacity(bases.len().max(1));
        for (at, base) in bases.iter().enumerate() {
            let mut visit = |header: &Header, commits: Option<bool>| producers.note(header, commits, now_ms);
            let newest = at + 1 == bases.len();
            segments.push(Segment::open(directory, *base, newest, verify, now_ms, &mut visit)?);
        }
        if segments.is_empty() {
            segments.push(Segment::create(directory, start, now_ms)?);
        }
        let first = segments.first().map_or(start, |segment| segment.base_offset);
        let newest_base = segments.last().map_or(start, |segment| segment.base_offset);
        let last = segments.iter().rev().find_map(Segment::last_offset);
        // A power cut can lose the tail below a start that was synced: offsets never go back below it.
        let end = last.map_or(newest_base, |last| (last + 1).max(newest_base)).max(start);
        let start = start.max(first);
        producers.forget_before(start);
        let log = Log { segments, start, end, producers, synced: first };
        Ok(Partition { directory: directory.to_owned(), log: Mutex::new(log), syncing: Mutex::new(()) })
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
        if header.control() || header.record_count < 1 || header.last_offset_delta != header.record_count - 1
        {
            return Err(Fault::InvalidRecord);
        }
        let now_ms = now_ms();
        let append_time_ms = config.log_append_time.then_some(now_ms);
        if append_time_ms.is_none()
            && header.max_timestamp_ms.saturating_sub(now_ms) > config.timestamp_after_max_ms
        {
            return Err(Fault::InvalidTimestamp);
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

    /// Ends a producer's open transaction here; does nothing if it has none.
    pub fn end_transaction(
        &self,
        producer_id: i64,
        epoch: i16,
        commit: bool,
        config: &TopicConfig,
    ) -> Result<(), Fault> {
        let now_ms = now_ms();
        let mut log = lock(&self.log);
        if !log.producers.is_open(producer_id) {
            log.producers.unregister(producer_id);
            return Ok(());
        }
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
        Ok(())
    }

    fn roll(&self, log: &mut Log, now_ms: i64) -> io::Result<()> {
        if let Some(segment) = log.segments.last() {
            segment.file.sync_data()?;
            log.synced = log.end;
        }
        log.segments.push(Segment::create(&self.directory, log.end, now_ms)?);
        Ok(())
    }

    /// How many bytes a reader at `offset` could get now, at most one segment's worth; 0 at the end.
    pub fn slice(&self, offset: i64, bytes_max: usize, limit: i64) -> Result<Option<Slice>, Fault> {
        let log = lock(&self.log);
        if offset < log.start || offset > log.end {
            return Err(Fault::OffsetOutOfRange);
        }
        let first = log.segments.partition_point(|segment| segment.base_offset <= offset).saturating_sub(1);
        Ok(log.segments[first..].iter().find_map(|segment| segment.slice(offset, bytes_max, limit)))
    }

    pub fn aborted(&self, from: i64, to: i64) -> Vec<Aborted> {
        lock(&self.log).producers.aborted(from, to)
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
                if let Some(found) = batch::find_timestamp(batch, start, timestamp_ms)? {
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
        let (file, end): (Option<Arc<File>>, i64) = {
            let log = lock(&self.log);
            if log.synced >= wanted {
                return Ok(());
            }
            (log.segments.last().map(|segment| segment.file.clone()), log.end)
        };
        if let Some(file) = file {
            file.sync_data()?;
        }
        let mut log = lock(&self.log);
        log.synced = log.synced.max(end);
        Ok(())
    }

    /// Moves the start up (-1: to the end) and returns it.
    pub fn delete_before(&self, offset: i64) -> Result<i64, Fault> {
        let mut log = lock(&self.log);
        let offset = if offset == -1 { log.end } else { offset };
        if offset < 0 || offset > log.end {
            return Err(Fault::OffsetOutOfRange);
        }
        log.start = log.start.max(offset);
        Ok(log.start)
    }

    /// Moves the start past what retention says is over; `Some` is the new start.
    pub fn expire(&self, config: &TopicConfig) -> Result<Option<i64>, Fault> {
        let now_ms = now_ms();
        let mut log = lock(&self.log);
        log.producers.forget_silent(now_ms - PRODUCER_SILENCE_MS);
        let expired = |segment: &Segment| {
            config.retention_ms >= 0 && segment.max_timestamp_ms < now_ms.saturating_sub(config.retention_ms)
        };
        if let Some(newest) = log.segments.last() {
            let old = now_ms - newest.since_ms > config.segment_ms || (config.delete && expired(newest));
            if !newest.is_empty() && old {
                self.roll(&mut log, now_ms)?;
            }
        }
        if !config.delete {
            return Ok(None);
        }
        let stable = log.producers.stable_offset(log.end);
        let mut bytes: u64 = log.segments.iter().map(|segment| segment.size).sum();
        let mut start = log.start;
        for pair in log.segments.windows(2) {
            bytes -= pair[0].size;
            let too_large = u64::try_from(config.retention_bytes).is_ok_and(|most| bytes >= most);
            if !(expired(&pair[0]) || too_large) || pair[1].base_offset > stable {
                break;
            }
            start = start.max(pair[1].base_offset);
        }
        let moved = start > log.start;
        log.start = start;
        Ok(moved.then_some(start))
    }

    /// Deletes the segments that lie wholly below the start; the start must be in the metadata log before.
    pub fn drop_segments(&self) -> io::Result<()> {
        let dropped: Vec<Segment> = {
            let mut log = lock(&self.log);
            let start = log.start;
            log.producers.forget_before(start);
            let last = log.segments.len().saturating_sub(1);
            let below =
                log.segments.iter().skip(1).take_while(|next| next.base_offset <= start).count().min(last);
            log.segments.drain(..below).collect()
        };
        dropped.into_iter().try_for_each(Segment::remove)
    }
}

#[cfg(test)]
mod tests {
    use super::super::batch::tests::batch;
    use super::*;

    fn config(pairs: &[(&str, &str)]) -> TopicConfig {
        TopicConfig::new(pairs.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect()).unwrap()
    }

    fn plain(partition: &Partition, timestamps_ms: &[i64]) -> i64 {
        let records = Bytes::from(batch((-1, -1, -1), false, timestamps_ms));
        partition.append(records, &config(&[])).unwrap().base_offset
    }

    fn send(
        partition: &Partition,
        producer: (i64, i16, i32),
        transactional: bool,
        count: usize,
    ) -> Result<i64, Fault> {
        let records = Bytes::from(batch(producer, transactional, &vec![1_000; count]));
        partition.append(records, &config(&[])).map(|appended| appended.base_offset)
    }

    fn offsets(partition: &Partition, from: i64, limit: i64) -> Vec<i64> {
        match partition.slice(from, usize::MAX, limit).unwrap() {
            None => Vec::new(),
            Some(slice) => batches(&slice.read().unwrap().0).map(|(header, _)| header.base_offset).collect(),
        }
    }

    #[test]
    fn what_was_appended_is_there_after_a_restart() {
        let folder = tempfile::tempdir().unwrap();
        let partition = Partition::open(folder.path(), 0, true).unwrap();
        assert_eq!(plain(&partition, &[1, 2, 3]), 0);
        assert_eq!(plain(&partition, &[4]), 3);
        drop(partition);
        let partition = Partition::open(folder.path(), 0, true).unwrap();
        assert_eq!(partition.bounds(), Bounds { start: 0, stable: 4, end: 4 });
        assert_eq!(offsets(&partition, 1, i64::MAX), [0, 3]);
        assert_eq!(offsets(&partition, 3, i64::MAX), [3]);
        assert_eq!(offsets(&partition, 0, 3), [0]);
        assert_eq!(plain(&partition, &[5]), 4);
    }

    #[test]
    fn a_torn_tail_is_cut_wherever_it_is_torn() {
        let folder = tempfile::tempdir().unwrap();
        let partition = Partition::open(folder.path(), 0, true).unwrap();
        plain(&partition, &[1, 2]);
        let whole = std::fs::read(folder.path().join(format!("{:020}.log", 0))).unwrap();
        plain(&partition, &[3]);
        let both = std::fs::read(folder.path().join(format!("{:020}.log", 0))).unwrap();
        for cut in whole.len()..both.len() {
            std::fs::write(folder.path().join(format!("{:020}.log", 0)), &both[..cut]).unwrap();
            let partition = Partition::open(folder.path(), 0, true).unwrap();
            assert_eq!(partition.bounds().end, 2, "cut at {cut}");
            assert_eq!(plain(&partition, &[9]), 2);
        }
        let mut flipped = both.clone();
        *flipped.last_mut().unwrap() ^= 1;
        std::fs::write(folder.path().join(format!("{:020}.log", 0)), &flipped).unwrap();
        assert_eq!(Partition::open(folder.path(), 0, true).unwrap().bounds().end, 2);
    }

    #[test]
    fn a_repeated_batch_is_stored_once_and_a_gap_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let partition = Partition::open(folder.path(), 0, true).unwrap();
        for sequence in 0..8 {
            assert_eq!(send(&partition, (1, 0, sequence), false, 1), Ok(i64::from(sequence)));
        }
        assert_eq!(send(&partition, (1, 0, 7), false, 1), Ok(7));
        assert_eq!(send(&partition, (1, 0, 0), false, 1), Err(Fault::DuplicateSequenceNumber));
        assert_eq!(send(&partition, (1, 0, 9), false, 1), Err(Fault::OutOfOrderSequenceNumber));
        drop(partition);
        let partition = Partition::open(folder.path(), 0, true).unwrap();
        assert_eq!(send(&partition, (1, 0, 7), false, 1), Ok(7));
        assert_eq!(send(&partition, (1, 1, 3), false, 1), Err(Fault::OutOfOrderSequenceNumber));
        assert_eq!(send(&partition, (1, 1, 0), false, 1), Ok(8));
        assert_eq!(send(&partition, (1, 0, 8), false, 1), Err(Fault::InvalidProducerEpoch));
    }

    #[test]
    fn sequences_wrap_between_and_inside_batches() {
        let folder = tempfile::tempdir().unwrap();
        let partition = Partition::open(folder.path(), 0, true).unwrap();
        assert_eq!(send(&partition, (1, 0, i32::MAX), false, 1), Ok(0));
        assert_eq!(send(&partition, (1, 0, 0), false, 2), Ok(1));
        assert_eq!(send(&partition, (2, 0, i32::MAX), false, 3), Ok(3));
        assert_eq!(send(&partition, (2, 0, 2), false, 1), Ok(6));
        assert_eq!(send(&partition, (2, 0, i32::MAX), false, 3), Ok(3), "the wrapped batch again");
        assert_eq!(send(&partition, (2, 0, 4), false, 1), Err(Fault::OutOfOrderSequenceNumber));
    }

    #[test]
    fn a_transaction_holds_the_stable_offset_until_it_ends() {
        let folder = tempfile::tempdir().unwrap();
        let partition = Partition::open(folder.path(), 0, true).unwrap();
        assert_eq!(send(&partition, (1, 0, 0), true, 1), Err(Fault::InvalidTransactionState));
        partition.register(1, 0);
        assert_eq!(send(&partition, (1, 0, 0), true, 2), Ok(0));
        plain(&partition, &[1]);
        assert_eq!(partition.bounds().stable, 0);
        drop(partition);
        let partition = Partition::open(folder.path(), 0, true).unwrap();
        assert_eq!(partition.bounds(), Bounds { start: 0, stable: 0, end: 3 });
        assert_eq!(partition.open_transactions(), [(1, 0)]);
        partition.end_transaction(1, 1, false, &config(&[])).unwrap();
        assert_eq!(partition.bounds(), Bounds { start: 0, stable: 4, end: 4 });
        let aborted = partition.aborted(0, 4);
        assert_eq!((aborted.len(), aborted[0].producer_id, aborted[0].first), (1, 1, 0));
        assert_eq!(partition.aborted(4, 10), []);
        // The marker raised the epoch: the old one is fenced, the new one starts at 0 and is no duplicate.
        assert_eq!(send(&partition, (1, 0, 2), true, 1), Err(Fault::InvalidProducerEpoch));
        partition.register(1, 1);
        assert_eq!(send(&partition, (1, 1, 0), true, 2), Ok(4));
    }

    #[test]
    fn retention_deletes_whole_segments_by_size_and_by_age() {
        let folder = tempfile::tempdir().unwrap();
        let partition = Partition::open(folder.path(), 0, true).unwrap();
        let small = config(&[("segment.bytes", "100"), ("retention.ms", "-1"), ("retention.bytes", "150")]);
        let now = now_ms();
        for _ in 0..10 {
            partition.append(Bytes::from(batch((-1, -1, -1), false, &[now])), &small).unwrap();
        }
        let start = partition.expire(&small).unwrap().unwrap();
        partition.drop_segments().unwrap();
        assert!(start > 0 && start < 10, "{start}");
        assert_eq!(partition.slice(0, 100, i64::MAX).err(), Some(Fault::OffsetOutOfRange));
        assert_eq!(offsets(&partition, start, i64::MAX), [start]);
        plain(&partition, &[1_000]);
        let aged = config(&[("retention.ms", "3600000")]);
        assert_eq!(partition.expire(&aged).unwrap(), None, "a younger segment stands before the old one");
        let none = config(&[("retention.ms", "0"), ("segment.bytes", "100")]);
        std::thread::sleep(std::time::Duration::from_millis(5));
        assert_eq!(partition.expire(&none).unwrap(), Some(11));
        partition.drop_segments().unwrap();
        assert_eq!(partition.bounds(), Bounds { start: 11, stable: 11, end: 11 });
        drop(partition);
        assert_eq!(Partition::open(folder.path(), 11, true).unwrap().bounds().end, 11);
    }

    #[test]
    fn delete_before_moves_the_start_and_refuses_what_is_not_there() {
        let folder = tempfile::tempdir().unwrap();
        let partition = Partition::open(folder.path(), 0, true).unwrap();
        plain(&partition, &[1, 2, 3]);
        assert_eq!(partition.delete_before(2), Ok(2));
        assert_eq!(partition.delete_before(1), Ok(2));
        assert_eq!(partition.delete_before(4), Err(Fault::OffsetOutOfRange));
        assert_eq!(partition.delete_before(-1), Ok(3));
        partition.drop_segments().unwrap();
        assert_eq!(plain(&partition, &[4]), 3);
    }

    #[test]
    fn the_beginning_of_an_open_transaction_can_be_deleted() {
        let folder = tempfile::tempdir().unwrap();
        let partition = Partition::open(folder.path(), 0, true).unwrap();
        partition.register(1, 0);
        send(&partition, (1, 0, 0), true, 2).unwrap();
        send(&partition, (1, 0, 2), true, 2).unwrap();
        assert_eq!(partition.delete_before(3), Ok(3));
        assert_eq!(partition.bounds(), Bounds { start: 3, stable: 3, end: 4 });
        partition.end_transaction(1, 0, true, &config(&[])).unwrap();
        assert_eq!(partition.bounds(), Bounds { start: 3, stable: 5, end: 5 });
    }

    #[test]
    fn a_timestamp_is_found_across_batches_and_not_past_the_end() {
        let folder = tempfile::tempdir().unwrap();
        let partition = Partition::open(folder.path(), 0, true).unwrap();
        plain(&partition, &[100, 200]);
        plain(&partition, &[300, 400]);
        assert_eq!(partition.offset_at(0, i64::MAX), Ok(Some((100, 0))));
        assert_eq!(partition.offset_at(201, i64::MAX), Ok(Some((300, 2))));
        assert_eq!(partition.offset_at(350, i64::MAX), Ok(Some((400, 3))));
        assert_eq!(partition.offset_at(401, i64::MAX), Ok(None));
    }
}
