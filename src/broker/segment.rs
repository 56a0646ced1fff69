//! One file of a partition's log: record batches back to back, with an index in memory that a scan of their
//! headers rebuilds at start.
//!
//! Invariant: the index entry before an offset is exact; inside an entry (a run of small batches) readers walk
//! the headers. So memory grows with bytes, not with batches.
//! Invariant: nothing lies behind the last batch that a next one could leave standing: a torn tail and a write that
//! failed are cut off before anything else is written.

use std::io;
use std::path::{Path, PathBuf};

use bytes::{Bytes, BytesMut};

use super::batch::{HEADER_BYTES, Header, SCAN_BYTES};
use super::disk::{Disk, SharedFile};

/// Batches share an index entry until it spans this many bytes.
const RUN_BYTES: u32 = 16 << 10;
/// What a scan reads at once, so that small batches do not cost a system call each.
const SCAN_WINDOW_BYTES: usize = 64 << 10;
/// What compaction reads of a file at once.
const READ_STEP_BYTES: usize = 256 << 10;

/// A run of neighbouring batches.
#[derive(Clone, Copy, Debug)]
struct Run {
    first_offset: i64,
    last_offset: i64,
    position: u64,
    length: u32,
    max_timestamp_ms: i64,
}

/// A file of batches. Only the newest one of a partition grows.
pub struct Segment {
    pub base_offset: i64,
    pub size: u64,
    pub max_timestamp_ms: i64,
    /// When its first batch was appended (or it was opened), for `segment.ms`.
    pub since_ms: i64,
    pub file: SharedFile,
    pub path: PathBuf,
    runs: Vec<Run>,
    /// A write failed and may have left a part of itself behind the end.
    ragged: bool,
    /// Everything before this byte is on the disk.
    synced_bytes: u64,
    /// A sync failed: what came after `synced_bytes` is written again before the next one.
    doubtful: bool,
}

/// What a sync has to do, without the partition's lock.
pub struct Unsynced {
    pub file: SharedFile,
    from: u64,
    to: u64,
    doubtful: bool,
}

impl Unsynced {
    /// Puts it on the disk.
    pub fn sync(&self) -> io::Result<()> {
        if self.doubtful {
            let length = usize::try_from(self.to - self.from).map_err(io::Error::other)?;
            let mut bytes = vec![0; length];
            self.file.read_exact_at(&mut bytes, self.from)?;
            let whole: usize =
                batches(&bytes).filter(|(header, batch)| header.intact(batch)).map(|(_, b)| b.len()).sum();
            if whole < length {
                return Err(io::Error::new(
                    io::ErrorKind::InvalidData,
                    "records were lost when the disk failed; restart the broker, which keeps what is whole",
                ));
            }
            self.file.write_all_at(&bytes, self.from)?;
        }
        self.file.sync()
    }
}

/// Called by a scan for each batch, with the commit flag of a control batch.
pub type Visit<'a> = &'a mut dyn FnMut(&Header, Option<bool>);

impl Segment {
    pub fn path(directory: &Path, base_offset: i64) -> PathBuf {
        directory.join(format!("{base_offset:020}.log"))
    }

    /// The base offset that a file's name says.
    pub fn base_offset_of(name: &str) -> Option<i64> {
        name.strip_suffix(".log")?.parse().ok()
    }

    fn empty(path: PathBuf, file: SharedFile, base_offset: i64, now_ms: i64) -> Segment {
        Segment {
            base_offset,
            size: 0,
            max_timestamp_ms: -1,
            since_ms: now_ms,
            file,
            path,
            runs: Vec::new(),
            ragged: false,
            synced_bytes: 0,
            doubtful: false,
        }
    }

    /// A new segment, empty also where a file of that name was left.
    pub fn create(disk: &dyn Disk, path: PathBuf, base_offset: i64, now_ms: i64) -> io::Result<Segment> {
        let file = disk.create(&path)?;
        // The file's name must outlive a power cut as well as its bytes.
        if let Some(folder) = path.parent() {
            disk.sync_folder(folder)?;
        }
        Ok(Segment::empty(path, file, base_offset, now_ms))
    }

    /// Opens a segment and rebuilds its index. The newest one may end in a torn batch, which is cut off
    /// (with `verify` also one whose checksum fails); in an older one that is an error.
    pub fn open(
        disk: &dyn Disk,
        path: PathBuf,
        base_offset: i64,
        newest: bool,
        verify: bool,
        now_ms: i64,
        visit: Visit<'_>,
    ) -> io::Result<Segment> {
        let file = disk.open(&path)?;
        let file_bytes = file.bytes()?;
        let mut segment = Segment::empty(path, file, base_offset, now_ms);
        segment.scan(file_bytes, newest && verify, visit)?;
        if segment.size < file_bytes {
            if !newest {
                return Err(io::Error::new(
                    io::ErrorKind::InvalidData,
                    format!("{} is damaged at byte {}", segment.path.display(), segment.size),
                ));
            }
            tracing::warn!(
                file = %segment.path.display(), at = segment.size, bytes = file_bytes - segment.size,
                "cut a torn write off the end of a partition"
            );
            segment.file.truncate(segment.size)?;
            // Or a second power cut could bring the tail back behind what is written next.
            segment.file.sync()?;
        }
        if !newest {
            segment.synced_bytes = segment.size;
        }
        Ok(segment)
    }

    /// Reads headers until the end or the first batch that cannot be whole.
    fn scan(&mut self, file_bytes: u64, verify: bool, visit: Visit<'_>) -> io::Result<()> {
        let mut window = BytesMut::new();
        let mut window_at = 0u64;
        let mut expected = self.base_offset;
        while self.size < file_bytes {
            let ahead = (file_bytes - self.size).min(SCAN_BYTES as u64) as usize;
            if self.size < window_at || self.size + ahead as u64 > window_at + window.len() as u64 {
                window_at = self.size;
                window.resize((file_bytes - self.size).min(SCAN_WINDOW_BYTES as u64) as usize, 0);
                self.file.read_exact_at(&mut window, window_at)?;
            }
            let seen = &window[(self.size - window_at) as usize..];
            let Some(header) = Header::parse(seen) else { break };
            if header.base_offset < expected || self.size + header.length as u64 > file_bytes {
                break;
            }
            if verify {
                let mut whole = vec![0; header.length];
                self.file.read_exact_at(&mut whole, self.size)?;
                if !header.intact(&whole) {
                    break;
                }
            }
            visit(&header, header.commits(seen));
            self.note(&header);
            expected = header.last_offset() + 1;
        }
        Ok(())
    }

    /// Writes a batch at the end. A failed write leaves the segment as it was.
    pub fn append(&mut self, batch: &[u8], header: &Header, now_ms: i64) -> io::Result<()> {
        self.mend()?;
        if let Err(error) = self.file.write_all_at(batch, self.size) {
            self.ragged = true;
            let _ = self.mend();
            return Err(error);
        }
        if self.runs.is_empty() {
            self.since_ms = now_ms;
        }
        self.note(header);
        Ok(())
    }

    /// Cuts off what a failed write left.
    fn mend(&mut self) -> io::Result<()> {
        if self.ragged {
            self.file.truncate(self.size)?;
            self.ragged = false;
        }
        Ok(())
    }

    /// What is to be synced now; told to [`Self::was_synced`] when that is done.
    pub fn unsynced(&mut self) -> io::Result<Unsynced> {
        self.mend()?;
        let (from, to) = (self.synced_bytes, self.size);
        Ok(Unsynced { file: self.file.clone(), from, to, doubtful: self.doubtful })
    }

    pub fn was_synced(&mut self, work: &Unsynced, outcome: &io::Result<()>) {
        match outcome {
            Ok(()) => {
                self.synced_bytes = self.synced_bytes.max(work.to);
                self.doubtful = false;
            }
            Err(_) => self.doubtful = true,
        }
    }

    pub fn is_ragged(&self) -> bool {
        self.ragged
    }

    fn note(&mut self, header: &Header) {
        let length = header.length as u32;
        self.max_timestamp_ms = self.max_timestamp_ms.max(header.max_timestamp_ms);
        match self.runs.last_mut() {
            Some(run) if run.length + length <= RUN_BYTES => {
                run.last_offset = header.last_offset();
                run.length += length;
                run.max_timestamp_ms = run.max_timestamp_ms.max(header.max_timestamp_ms);
            }
            _ => self.runs.push(Run {
                first_offset: header.base_offset,
                last_offset: header.last_offset(),
                position: self.size,
                length,
                max_timestamp_ms: header.max_timestamp_ms,
            }),
        }
        self.size += header.length as u64;
    }

    pub fn is_empty(&self) -> bool {
        self.runs.is_empty()
    }

    pub fn last_offset(&self) -> Option<i64> {
        self.runs.last().map(|run| run.last_offset)
    }

    /// Where the batches from `offset` on lie, up to about `bytes_max` but at least one run, below `limit`.
    pub fn slice(&self, offset: i64, bytes_max: usize, limit: i64, rewrites: u64) -> Option<Slice> {
        let first = self.runs.partition_point(|run| run.last_offset < offset);
        let start = self.runs.get(first).filter(|run| run.first_offset < limit)?;
        let mut length = 0usize;
        for run in &self.runs[first..] {
            if run.first_offset >= limit || (length > 0 && length + run.length as usize > bytes_max) {
                break;
            }
            length += run.length as usize;
        }
        let file = self.file.clone();
        Some(Slice { file, position: start.position, length, offset, limit, bytes_max, rewrites })
    }

    /// The runs that hold a timestamp at or after this one, oldest first.
    pub fn slices_from_time(&self, timestamp_ms: i64, offset: i64, limit: i64) -> Vec<Slice> {
        let wanted = |run: &&Run| {
            run.max_timestamp_ms >= timestamp_ms && run.last_offset >= offset && run.first_offset < limit
        };
        let slice = |run: &Run| Slice {
            file: self.file.clone(),
            position: run.position,
            length: run.length as usize,
            offset,
            limit,
            bytes_max: usize::MAX,
            rewrites: 0,
        };
        self.runs.iter().filter(wanted).map(slice).collect()
    }
}

/// A stretch of a segment, to be read without the partition's lock (the file stays readable when deleted).
pub struct Slice {
    file: SharedFile,
    position: u64,
    length: usize,
    offset: i64,
    limit: i64,
    bytes_max: usize,
    /// How often compaction had rewritten the partition when this was looked up.
    pub rewrites: u64,
}

impl Slice {
    /// About as many bytes as [`Self::read`] yields.
    pub fn bytes(&self) -> usize {
        self.length
    }

    /// Whole batches: the first holds the offset asked for, none reaches the limit; and the offset after them.
    pub fn read(&self) -> io::Result<(Bytes, i64)> {
        let mut bytes = BytesMut::zeroed(self.length);
        self.file.read_exact_at(&mut bytes, self.position)?;
        let (mut from, mut to, mut end) = (0, 0, self.offset);
        while let Some(header) = Header::parse(&bytes[to..]) {
            if header.base_offset >= self.limit || to + header.length > bytes.len() {
                break;
            }
            if header.last_offset() < self.offset {
                from = to + header.length;
            } else if to > from && to + header.length - from > self.bytes_max {
                break;
            } else {
                end = header.last_offset() + 1;
            }
            to += header.length;
        }
        Ok((bytes.freeze().slice(from..to), end))
    }
}

/// The batches that lie back to back in `bytes`.
pub fn batches(mut bytes: &[u8]) -> impl Iterator<Item = (Header, &[u8])> {
    std::iter::from_fn(move || {
        let header = Header::parse(bytes).filter(|header| header.length <= bytes.len())?;
        let (batch, rest) = bytes.split_at(header.length);
        bytes = rest;
        Some((header, batch))
    })
}

/// The batches of a file one after the other, read in large steps; each is checked against its checksum.
pub struct Batches {
    file: SharedFile,
    size: u64,
    /// Where the buffer begins in the file.
    position: u64,
    buffer: Vec<u8>,
    at: usize,
}

impl Batches {
    pub fn of(file: SharedFile, size: u64) -> Batches {
        Batches { file, size, position: 0, buffer: Vec::new(), at: 0 }
    }

    /// The next batch; `None` at the end.
    pub fn next(&mut self) -> io::Result<Option<(Header, &[u8])>> {
        if self.position + self.at as u64 >= self.size {
            return Ok(None);
        }
        let damaged = || io::Error::new(io::ErrorKind::InvalidData, "a segment is damaged");
        self.fill(HEADER_BYTES)?;
        let header = Header::parse(&self.buffer[self.at..]).ok_or_else(damaged)?;
        self.fill(header.length)?;
        let batch = &self.buffer[self.at..self.at + header.length];
        if !header.intact(batch) {
            return Err(damaged());
        }
        self.at += header.length;
        Ok(Some((header, batch)))
    }

    /// Has at least `wanted` bytes from `at` on in the buffer.
    fn fill(&mut self, wanted: usize) -> io::Result<()> {
        if self.buffer.len() - self.at >= wanted {
            return Ok(());
        }
        self.position += self.at as u64;
        self.buffer.drain(..self.at);
        self.at = 0;
        let held = self.buffer.len();
        let there = usize::try_from(self.size - self.position).unwrap_or(usize::MAX);
        let length = wanted.max(READ_STEP_BYTES).min(there);
        if length < wanted {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.buffer.resize(length, 0);
        self.file.read_exact_at(&mut self.buffer[held..], self.position + held as u64)
    }
}
