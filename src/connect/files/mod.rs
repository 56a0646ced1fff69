//! The connector for files of a folder: CSV and JSON lines, plain or packed, that come, grow, and are rotated.
//!
//! ```text
//! settings.rs  its keys
//! glob.rs      which files of the folder
//! known.rs     which file is which, whatever it is called now
//! reading.rs   one file, record by record
//! rows.rs      from a line to a record
//! csv.rs       from a line of CSV to a record
//! ```
//! Invariant: a file is known by its content; a time or a name alone never makes one read again, or passed over.

mod csv;
mod glob;
mod known;
mod reading;
mod rows;
mod sample;
mod settings;

use std::collections::{BTreeMap, VecDeque};
use std::fs::Metadata;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use super::SourceError;
use super::source::{Batch, Budget, Phase, Positions, Source};
use known::{Entry, Found, Match, Stamp, reconcile};
use reading::{Ended, Reading, held_tail, is_packed, put, unreadable};

pub use sample::{Sample, sample};
pub use settings::{Csv, Files, FormatKind, OnChange};

const PREFIX: &str = "file/";
/// The folder is looked at again soon after it was found changed.
const AGAIN: Duration = Duration::from_millis(200);

/// A file since this process looks at it.
struct Watch {
    stamp: Stamp,
    /// Since when it is as it is.
    since: Instant,
}

pub struct FilesSource {
    files: Files,
    folder: PathBuf,
    pattern: glob::Pattern,
    entries: BTreeMap<u64, Entry>,
    watched: BTreeMap<String, Watch>,
    /// To be read, by number.
    queue: VecDeque<u64>,
    reading: Option<Reading>,
    /// Files whose last line waits for its end, or which are not whole yet.
    unfinished: bool,
    next_look: Option<Instant>,
    /// The last look found nothing to read.
    caught_up: bool,
    next_number: u64,
}

impl FilesSource {
    pub fn open(files: &Files, at: &Positions) -> Result<Self, SourceError> {
        let mut entries = BTreeMap::new();
        for (key, value) in at {
            let Some(number) = key.strip_prefix(PREFIX).and_then(|number| number.parse().ok()) else {
                continue;
            };
            let entry: Entry = serde_json::from_slice(value).map_err(|error| {
                SourceError::input(
                    key,
                    format!("the position can't be read: {error}"),
                    "a newer Headwater wrote it",
                )
            })?;
            entries.insert(number, entry);
        }
        let (folder, pattern) = files.place();
        let next_number = entries.last_key_value().map_or(1, |(number, _)| number + 1);
        Ok(Self {
            files: files.clone(),
            folder,
            pattern,
            entries,
            watched: BTreeMap::new(),
            queue: VecDeque::new(),
            reading: None,
            unfinished: false,
            next_look: None,
            caught_up: false,
            next_number,
        })
    }

    /// Compares the folder with what is known, and queues what is to be read.
    fn look(&mut self, batch: &mut Batch, now: Instant) -> Result<(), SourceError> {
        let found = list(&self.folder, &self.pattern)?;
        let known: Vec<(u64, &Entry)> = self.entries.iter().map(|(number, entry)| (*number, entry)).collect();
        let folder = &self.folder;
        let mut holds = |path: &str, entry: &Entry| {
            let path = folder.join(path);
            match held_tail(&path, entry) {
                Ok(tail) => Ok(tail.is_some()),
                Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
                Err(error) => Err(unreadable(&path.display().to_string(), &error)),
            }
        };
        let matches = reconcile(&known, &found, &mut holds)?;
        self.unfinished = false;
        self.watched.retain(|path, _| found.binary_search_by(|file| file.path.as_str().cmp(path)).is_ok());
        for (file, matched) in found.into_iter().zip(matches) {
            self.found(file, matched, batch, now)?;
        }
        Ok(())
    }

    fn found(
        &mut self,
        file: Found,
        matched: Match,
        batch: &mut Batch,
        now: Instant,
    ) -> Result<(), SourceError> {
        let settled = self.is_settled(&file, now);
        let place = self.folder.join(&file.path).display().to_string();
        match matched {
            Match::Copy => {}
            // What is packed is read once it is whole.
            _ if is_packed(&file.path) && !settled => self.unfinished = true,
            Match::Known(number) => {
                let Some(entry) = self.entries.get_mut(&number) else { return Ok(()) };
                let renamed = entry.path != file.path;
                if renamed {
                    tracing::info!("{} is {} now", entry.path, file.path);
                }
                if entry.stamp != file.stamp || renamed {
                    (entry.path, entry.stamp, entry.done) = (file.path, file.stamp, false);
                    put(batch, number, entry)?;
                }
                let whole = if is_packed(&entry.path) { entry.done } else { entry.stamp.size == entry.at };
                if !whole {
                    self.queue.push_back(number);
                }
            }
            Match::Rewritten if self.files.on_change == OnChange::Stop => {
                let remedy = "on_change: append reads it as a new file; or restore what it held";
                return Err(SourceError::input(
                    place,
                    "the file holds something else than what was read of it",
                    remedy,
                ));
            }
            Match::New | Match::Rewritten => {
                if matched == Match::Rewritten {
                    tracing::warn!(
                        "{place} holds something else than what was read of it, and is read as a new file"
                    );
                    self.close_old(&file.path, batch)?;
                }
                let (path, stamp) = (file.path, file.stamp);
                let (number, empty) = (self.next_number, reading::hash(b""));
                let entry = Entry { v: 1, path, stamp, head: empty.clone(), tail: empty, ..Entry::default() };
                self.next_number += 1;
                put(batch, number, &entry)?;
                self.entries.insert(number, entry);
                self.queue.push_back(number);
            }
        }
        Ok(())
    }

    /// Nobody writes it: it has been as it is for long enough.
    fn is_settled(&mut self, file: &Found, now: Instant) -> bool {
        match self.watched.get_mut(&file.path) {
            Some(watch) if watch.stamp == file.stamp => {}
            Some(watch) => *watch = Watch { stamp: file.stamp.clone(), since: now },
            None => {
                // What was written long before is whole at once.
                let written =
                    UNIX_EPOCH + Duration::from_nanos(u64::try_from(file.stamp.modified).unwrap_or(0));
                let age = SystemTime::now().duration_since(written).unwrap_or_default();
                let since = now.checked_sub(age).unwrap_or(now);
                self.watched.insert(file.path.clone(), Watch { stamp: file.stamp.clone(), since });
            }
        }
        self.settled(&file.path, now)
    }

    /// What is at this path now is another: nothing more comes of the one before.
    fn close_old(&mut self, path: &str, batch: &mut Batch) -> Result<(), SourceError> {
        let newest = self.entries.iter_mut().rev().find(|(_, entry)| entry.path == path);
        let Some((number, entry)) = newest else { return Ok(()) };
        let unread = entry.stamp.size.saturating_sub(entry.at);
        if unread > 0 && !is_packed(path) {
            tracing::warn!("{path}: {unread} bytes of what it held before were gone before they were read");
        }
        entry.stamp = Stamp { size: entry.at, ..Stamp::default() };
        put(batch, *number, entry)
    }

    fn settled(&self, path: &str, now: Instant) -> bool {
        stands_still(self.watched.get(path).map(|watch| watch.since), now, self.files.settle)
    }

    /// Opens the next file of the queue; `false`: it is not there any more.
    fn open_next(&mut self, number: u64) -> Result<bool, SourceError> {
        let Some(entry) = self.entries.get(&number) else { return Ok(false) };
        let Some(format) = self.files.format_of(&entry.path) else {
            return Err(SourceError::input(
                self.folder.join(&entry.path).display(),
                "its name does not say which format it is of",
                "set format: csv or jsonl; or let match take other files only",
            ));
        };
        match Reading::open(&self.files, &self.folder, number, entry.clone(), format) {
            Ok(Some(reading)) => {
                self.reading = Some(reading);
                Ok(true)
            }
            Ok(None) => {
                // It has changed since it was looked at: the next look compares its content again.
                self.entries.entry(number).and_modify(|entry| entry.stamp.modified = 0);
                Ok(false)
            }
            Err(_) if !self.folder.join(&entry.path).exists() => Ok(false),
            Err(error) => Err(error),
        }
    }
}

impl Source for FilesSource {
    fn next(&mut self, batch: &mut Batch, budget: Budget) -> Result<Phase, SourceError> {
        if let Some(reading) = &mut self.reading {
            let since = self.watched.get(&reading.entry.path).map(|watch| watch.since);
            let settled = stands_still(since, budget.now, self.files.settle);
            let ended = reading.step(&self.files, batch, settled, budget.bytes)?;
            self.entries.insert(reading.number, reading.entry.clone());
            self.unfinished |= ended == Ended::Unfinished;
            if ended != Ended::More {
                self.reading = None;
            }
            return Ok(Phase::More);
        }
        while let Some(number) = self.queue.pop_front() {
            if self.open_next(number)? {
                return Ok(Phase::More);
            }
        }
        if self.next_look.is_none_or(|at| at <= budget.now) {
            self.look(batch, budget.now)?;
            self.caught_up = self.queue.is_empty() && !self.unfinished;
            let pause = if self.queue.is_empty() { self.files.every } else { self.files.every.min(AGAIN) };
            self.next_look = Some(budget.now + pause);
            if !self.queue.is_empty() {
                return Ok(Phase::More);
            }
        }
        // Only a look that found nothing to read has caught up.
        Ok(if self.caught_up { Phase::CaughtUp } else { Phase::Waiting })
    }

    fn lag_bytes(&self) -> u64 {
        let unread = |entry: &Entry| match is_packed(&entry.path) {
            // How much there is in it is known once it is read.
            true if entry.at == 0 => entry.stamp.size,
            true => 0,
            false => entry.stamp.size.saturating_sub(entry.at),
        };
        let waits = |entry: &&Entry| self.watched.contains_key(&entry.path);
        self.entries.values().filter(waits).map(unread).sum()
    }
}

fn stands_still(since: Option<Instant>, now: Instant, settle: Duration) -> bool {
    since.is_some_and(|since| now.saturating_duration_since(since) >= settle)
}

/// The files that count, by path.
fn list(folder: &Path, pattern: &glob::Pattern) -> Result<Vec<Found>, SourceError> {
    let mut found = Vec::new();
    let mut folders = vec![String::new()];
    while let Some(below) = folders.pop() {
        let path = folder.join(&below);
        let place = path.display().to_string();
        let entries = match std::fs::read_dir(&path) {
            Ok(entries) => entries,
            Err(error) if error.kind() == ErrorKind::NotFound && !below.is_empty() => continue,
            Err(error) if error.kind() == ErrorKind::NotFound => {
                return Err(SourceError::input(
                    place,
                    "there is no such folder",
                    "create it, or set `path` to another",
                ));
            }
            Err(error) => return Err(unreadable(&place, &error)),
        };
        for entry in entries {
            let entry = entry.map_err(|error| unreadable(&place, &error))?;
            let Ok(name) = entry.file_name().into_string() else { continue };
            let relative = if below.is_empty() { name } else { format!("{below}/{name}") };
            // Links are followed; what is gone since it was listed is no file.
            let Ok(metadata) = std::fs::metadata(entry.path()) else { continue };
            if metadata.is_dir() {
                if pattern.is_deep() && pattern.may_hold(&relative) && !entry.path().is_symlink() {
                    folders.push(relative);
                }
            } else if metadata.is_file() && pattern.matches(&relative) {
                found.push(Found { path: relative, stamp: stamp(&metadata) });
            }
        }
    }
    found.sort_by(|one, other| one.path.cmp(&other.path));
    Ok(found)
}

fn stamp(metadata: &Metadata) -> Stamp {
    use std::os::unix::fs::MetadataExt;
    let nanos = |time: SystemTime| {
        let since = time.duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos();
        i64::try_from(since).unwrap_or(i64::MAX)
    };
    Stamp {
        device: metadata.dev(),
        inode: metadata.ino(),
        born: metadata.created().ok().map(nanos),
        size: metadata.len(),
        modified: metadata.modified().map_or(0, nanos),
    }
}
