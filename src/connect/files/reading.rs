//! One file that is being read: whole records out of it, from where the last commit ended.
//!
//! Invariant: a line counts once its end is there, or once the file has stood still for as long as `settle` says.

use std::fs::File;
use std::io::{ErrorKind, Read, Seek, SeekFrom};
use std::path::Path;

use xxhash_rust::xxh3::xxh3_64;

use super::known::{Entry, SAMPLE};
use super::rows::{Bad, Rows, add_provenance, trimmed};
use super::settings::{Files, FormatKind};
use crate::connect::source::Batch;
use crate::connect::{Class, SourceError};
use crate::record::Header;

/// One step reads at most as much, and at least [`CHUNK_MIN`].
pub const CHUNK: usize = 1 << 20;
const CHUNK_MIN: usize = 64 << 10;
/// A record is no longer than this; a quote that is open for as long never closes.
const RECORD_MAX: usize = 16 << 20;
const QUOTED_MAX: usize = 1 << 20;

pub fn hash(bytes: &[u8]) -> String {
    format!("{:016x}", xxh3_64(bytes))
}

/// A file's text, whatever packs it.
pub fn open_text(path: &Path, from: u64) -> std::io::Result<Box<dyn Read + Send>> {
    let mut file = File::open(path)?;
    let name = path.extension().and_then(|extension| extension.to_str()).unwrap_or_default();
    let mut text: Box<dyn Read + Send> = match name {
        "gz" => Box::new(flate2::read::MultiGzDecoder::new(file)),
        "zst" => Box::new(zstd::stream::read::Decoder::new(file)?),
        _ => {
            file.seek(SeekFrom::Start(from))?;
            return Ok(Box::new(file));
        }
    };
    std::io::copy(&mut (&mut text).take(from), &mut std::io::sink())?;
    Ok(text)
}

pub fn is_packed(path: &str) -> bool {
    path.ends_with(".gz") || path.ends_with(".zst")
}

fn read_full(from: &mut dyn Read, bytes: usize) -> std::io::Result<Vec<u8>> {
    let mut read = Vec::with_capacity(bytes);
    from.take(bytes as u64).read_to_end(&mut read)?;
    Ok(read)
}

/// The bytes before `at` that a file is known by, if the file begins with what was read for the entry.
pub fn held_tail(path: &Path, entry: &Entry) -> std::io::Result<Option<Vec<u8>>> {
    let sample = (entry.at as usize).min(SAMPLE);
    let sampled = || -> std::io::Result<Option<Vec<u8>>> {
        let head = read_full(&mut *open_text(path, 0)?, sample)?;
        if head.len() < sample || hash(&head) != entry.head {
            return Ok(None);
        }
        let tail = read_full(&mut *open_text(path, entry.at - sample as u64)?, sample)?;
        Ok((tail.len() == sample && hash(&tail) == entry.tail).then_some(tail))
    };
    match sampled() {
        // What was read of it is gone, packed as it is.
        Err(error)
            if matches!(
                error.kind(),
                ErrorKind::UnexpectedEof | ErrorKind::InvalidData | ErrorKind::InvalidInput
            ) =>
        {
            Ok(None)
        }
        sampled => sampled,
    }
}

/// Where a step has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    More,
    /// All that is there is read.
    AtEnd,
    /// A last line without an end is left until the file stands still.
    Unfinished,
}

pub struct Reading {
    pub number: u64,
    pub entry: Entry,
    text: Box<dyn Read + Send>,
    format: FormatKind,
    /// `None` before the header is read.
    rows: Option<Rows>,
    /// What is read and no record yet.
    buffer: Vec<u8>,
    /// For the entry's hashes.
    head: Vec<u8>,
    tail: Vec<u8>,
    /// For messages.
    place: String,
    group: u64,
    value: Vec<u8>,
    key: Vec<u8>,
}

impl Reading {
    /// `None`: the file does not hold what was read of it, any more.
    pub fn open(
        files: &Files,
        folder: &Path,
        number: u64,
        entry: Entry,
        format: FormatKind,
    ) -> Result<Option<Self>, SourceError> {
        let path = folder.join(&entry.path);
        let place = path.display().to_string();
        let failed = |error: std::io::Error| unreadable(&place, &error);
        let Some(tail) = held_tail(&path, &entry).map_err(failed)? else { return Ok(None) };
        let head = if tail.is_empty() {
            Vec::new()
        } else {
            read_full(&mut *open_text(&path, 0).map_err(failed)?, tail.len()).map_err(failed)?
        };
        let mut reading = Self {
            number,
            text: open_text(&path, entry.at).map_err(failed)?,
            rows: None,
            buffer: Vec::new(),
            head,
            tail,
            group: xxh3_64(entry.path.as_bytes()),
            value: Vec::new(),
            key: Vec::new(),
            entry,
            place: place.clone(),
            format,
        };
        if !reading.has_header() {
            reading.rows = Some(Rows::new(files, &reading.format, None, &reading.place)?);
        } else if reading.entry.at > 0 {
            let header = reading.read_header(&path).map_err(failed)?;
            reading.rows = Some(Rows::new(files, &reading.format, Some(&header), &reading.place)?);
        }
        Ok(Some(reading))
    }

    fn has_header(&self) -> bool {
        matches!(&self.format, FormatKind::Csv(csv) if csv.header)
    }

    /// The first record of a file that was read further on before.
    fn read_header(&self, path: &Path) -> std::io::Result<Vec<u8>> {
        let mut text = open_text(path, 0)?;
        let mut header = Vec::new();
        loop {
            let more = read_full(&mut *text, SAMPLE)?;
            let at_end = more.is_empty();
            header.extend_from_slice(&more);
            if let Some(cut) = Rows::cut(&self.format, &header, at_end, QUOTED_MAX) {
                header.truncate(cut.bytes);
                let bom = if header.starts_with(BOM) { BOM.len() } else { 0 };
                return Ok(header.split_off(bom));
            }
            if at_end {
                return Ok(header);
            }
        }
    }

    /// Reads a chunk and hands over the records in it, with the position after them. `settled`: nobody writes the file.
    pub fn step(
        &mut self,
        files: &Files,
        batch: &mut Batch,
        settled: bool,
        bytes: usize,
    ) -> Result<Ended, SourceError> {
        let before = self.entry.at;
        let wanted = bytes.clamp(CHUNK_MIN, CHUNK);
        let chunk = match read_full(&mut *self.text, wanted) {
            Ok(chunk) => chunk,
            Err(error) if is_packed(&self.entry.path) => return self.damaged(batch, &error),
            Err(error) => return Err(unreadable(&self.place, &error)),
        };
        let at_end = chunk.len() < wanted;
        self.buffer.extend_from_slice(&chunk);
        let mut used = 0;
        while let Some(cut) = Rows::cut(&self.format, &self.buffer[used..], at_end && settled, QUOTED_MAX) {
            let record = used..used + cut.bytes;
            // The rest of a line that was taken without its end is no further line.
            let continued = std::mem::take(&mut self.entry.open_end);
            self.entry.lines -= u64::from(continued);
            self.record(files, batch, record, cut.broken, continued)?;
            used += cut.bytes;
            self.entry.lines += cut.lines;
            self.entry.open_end = self.buffer[used - 1] != b'\n';
        }
        self.consume(used);
        if self.buffer.len() > RECORD_MAX {
            let place = format!("{}:{}", self.place, self.entry.lines + 1);
            let what = format!("a record of more than {} MiB", RECORD_MAX >> 20);
            return Err(SourceError::input(place, what, "is `format` right? Records are lines"));
        }
        let done = at_end && self.buffer.is_empty() && is_packed(&self.entry.path);
        if self.entry.at > before || done != self.entry.done {
            batch.source_bytes += self.entry.at - before;
            self.entry.done = done;
            self.position(batch)?;
        }
        Ok(match (at_end, self.buffer.is_empty()) {
            (false, _) => Ended::More,
            (true, true) => Ended::AtEnd,
            (true, false) => Ended::Unfinished,
        })
    }

    fn record(
        &mut self,
        files: &Files,
        batch: &mut Batch,
        range: std::ops::Range<usize>,
        broken: bool,
        continued: bool,
    ) -> Result<(), SourceError> {
        let mut raw = &self.buffer[range.clone()];
        let line = self.entry.lines + 1;
        let byte = self.entry.at + range.start as u64;
        let first = self.entry.at == 0 && range.start == 0;
        if first && (raw.starts_with(&[0xff, 0xfe]) || raw.starts_with(&[0xfe, 0xff])) {
            let remedy = format!("convert it: iconv -f utf-16 -t utf-8 {} > …", self.place);
            return Err(SourceError::input(&self.place, "the file is UTF-16", remedy));
        }
        if first && raw.starts_with(BOM) {
            raw = &raw[BOM.len()..];
        }
        let Some(rows) = &mut self.rows else {
            self.rows = Some(Rows::new(files, &self.format, Some(raw), &self.place)?);
            return Ok(());
        };
        let outcome = match (broken, continued) {
            (true, _) => Err(Bad::new("decode", "a quote that opens in this line is never closed")),
            (_, true) if trimmed(raw).is_empty() => return Ok(()),
            (_, true) => Err(Bad::new(
                "continued",
                "the line stood still without an end, and was taken as it was: this is the rest of it",
            )),
            (false, false) => rows.convert(raw, &mut self.value, &mut self.key),
        };
        match outcome {
            Ok(false) => {}
            Ok(true) => {
                add_provenance(&mut self.value, &files.columns, &self.entry.path, line);
                let key = (!self.key.is_empty()).then_some(self.key.as_slice());
                batch.push(0, key, &self.value, self.group);
            }
            Err(bad) => {
                let message = format!("{}:{line}: {}", self.place, bad.message);
                batch.reject(
                    trimmed(raw).to_vec(),
                    bad.reason,
                    message,
                    letter_place(&self.entry.path, line, byte),
                );
            }
        }
        Ok(())
    }

    /// A packed file that ends in the middle: what is left of its last line is a letter, and the rest may still come.
    fn damaged(&mut self, batch: &mut Batch, error: &std::io::Error) -> Result<Ended, SourceError> {
        let line = self.entry.lines + 1;
        let message = format!("{}:{line}: the packed file is damaged or cut off: {error}", self.place);
        tracing::warn!("{message}");
        self.entry.done = true;
        batch.reject(
            self.buffer.clone(),
            "damaged",
            message,
            letter_place(&self.entry.path, line, self.entry.at),
        );
        self.position(batch)?;
        Ok(Ended::AtEnd)
    }

    fn consume(&mut self, bytes: usize) {
        let used = &self.buffer[..bytes];
        let missing = SAMPLE.saturating_sub(self.head.len()).min(bytes);
        self.head.extend_from_slice(&used[..missing]);
        self.tail.extend_from_slice(&used[bytes.saturating_sub(SAMPLE)..]);
        let surplus = self.tail.len().saturating_sub(SAMPLE);
        self.tail.drain(..surplus);
        self.buffer.drain(..bytes);
        self.entry.at += bytes as u64;
        self.entry.head = hash(&self.head);
        self.entry.tail = hash(&self.tail);
    }

    pub fn position(&self, batch: &mut Batch) -> Result<(), SourceError> {
        put(batch, self.number, &self.entry)
    }
}

const BOM: &[u8] = b"\xef\xbb\xbf";

/// Puts a file's position into the batch.
pub fn put(batch: &mut Batch, number: u64, entry: &Entry) -> Result<(), SourceError> {
    let text =
        serde_json::to_vec(entry).map_err(|error| SourceError::retry(&entry.path, error.to_string()))?;
    batch.position(format!("file/{number:012}"), Some(text));
    Ok(())
}

fn letter_place(file: &str, line: u64, byte: u64) -> Vec<Header> {
    vec![
        Header::text("headwater.source.file", file),
        Header::text("headwater.source.line", line.to_string()),
        Header::text("headwater.source.byte", byte.to_string()),
    ]
}

pub fn unreadable(place: &str, error: &std::io::Error) -> SourceError {
    match error.kind() {
        ErrorKind::PermissionDenied => {
            SourceError::input(place, "this user may not read it", format!("allow it: chmod a+r {place}"))
        }
        _ => SourceError {
            class: Class::Retry,
            what: error.to_string(),
            place: place.to_owned(),
            remedy: None,
        },
    }
}
