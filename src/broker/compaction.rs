//! Log compaction: a `cleanup.policy=compact` topic keeps the last record of each key.
//!
//! A pass takes the segments below the newest one, the last stable offset and `min.compaction.lag.ms`; it remembers
//! for each key of the dirty part where its last record lies ([`KeyMap`]), and writes the segments again without
//! what is superseded, aborted, or a tombstone whose time is over. Neighbours become one file of up to
//! `segment.bytes`, so that files do not pile up.
//!
//! # How new files take the place of old ones
//! 1. `<base>-<end>.cleaned` is written and synced: the segments from `base` up to the offset `end`.
//! 2. It is renamed to `<base>-<end>.swap`, and the folder synced: this decides.
//! 3. The old files but the first are removed, and the folder synced.
//! 4. `.swap` is renamed to `<base>.log`, which replaces the first.
//!
//! A start carries on from 3, which is idempotent, and deletes what is at 1.
//!
//! Invariant: records keep their offsets, and their order; a batch keeps the offsets that it spans.
//! Invariant: a marker stays as long as a record of its transaction does; a tombstone and a lone marker stay for
//! `delete.retention.ms` from the pass that first sees that they are all that is left.
//! Invariant: where it stands is kept over restarts (`standing.rs`), so that a start does not compact everything again.
//! Invariant: memory is bounded by [`KEYS_MAX`] and one batch, however large the partition is.

mod standing;
mod turns;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::io;
use std::path::Path;

use uuid::Uuid;
use xxhash_rust::xxh3::xxh3_128_with_seed;

use super::batch::{Header, mark_horizon};
use super::config::TopicConfig;
use super::disk::{Disk, SharedFile};
use super::partition::Partition;
use super::records::{Record, retain, walk};
use super::segment::{Batches, Segment};
use super::{lock, now_ms};

pub use turns::Turn;

/// A pass remembers this many keys; the next one goes on where it stopped.
const KEYS_MAX: usize = 1_000_000;

/// What the cleaning of a partition remembers between passes.
#[derive(Default)]
pub struct Cleaning {
    /// Keys below this offset have been compacted among themselves.
    cleaned_to: i64,
    /// A swap was decided but not carried out: nothing else may happen to the files before.
    unfinished: bool,
    failures: turns::Failures,
}

impl Cleaning {
    /// As the last run of the broker left it. A power cut may have taken the log's end: what comes there now was not
    /// compacted.
    pub(super) fn open(disk: &dyn Disk, folder: &Path, end: i64) -> io::Result<Cleaning> {
        Ok(Cleaning { cleaned_to: standing::read(disk, folder)?.min(end), ..Cleaning::default() })
    }
}

/// A segment as a pass sees it.
struct Source {
    base: i64,
    /// Where the next segment begins.
    end: i64,
    size: u64,
    file: SharedFile,
}

/// A pass's view of the partition.
struct Plan {
    sources: Vec<Source>,
    /// By producer: (first offset, marker) of its aborted transactions.
    aborted: HashMap<i64, Vec<(i64, i64)>>,
    /// Batches whose header the next start needs to know a producer by.
    newest_batches: BTreeSet<i64>,
    dirty_from: i64,
}

impl Plan {
    fn is_aborted(&self, header: &Header) -> bool {
        let within = |(first, marker): &(i64, i64)| (*first..=*marker).contains(&header.base_offset);
        header.transactional()
            && self.aborted.get(&header.producer_id).is_some_and(|all| all.iter().any(within))
    }
}

/// Where the last record of each key lies. Keys are told apart by a hash that no client can aim at.
struct KeyMap {
    seed: u64,
    last: HashMap<u128, i64>,
    /// Records from here on were not looked at.
    end: i64,
}

impl KeyMap {
    fn hash(&self, key: &[u8]) -> u128 {
        xxh3_128_with_seed(key, self.seed)
    }

    fn build(plan: &Plan, keys_max: usize) -> io::Result<KeyMap> {
        let seed = Uuid::new_v4().as_u64_pair().0;
        let end = plan.sources.last().map_or(0, |source| source.end);
        let mut map = KeyMap { seed, last: HashMap::new(), end };
        for source in plan.sources.iter().filter(|source| source.end > plan.dirty_from) {
            let mut batches = Batches::of(source.file.clone(), source.size);
            while let Some((header, batch)) = batches.next()? {
                if header.control() || header.last_offset() < plan.dirty_from || plan.is_aborted(&header) {
                    continue;
                }
                let records = usize::try_from(header.record_count).unwrap_or(0);
                if !map.last.is_empty() && map.last.len() + records > keys_max {
                    map.end = header.base_offset;
                    return Ok(map);
                }
                let mut keys = Vec::new();
                let walked =
                    walk(batch, |header, record| {
                        keys.extend(record.key.map(|key| {
                            (map.hash(key), header.base_offset.saturating_add(record.offset_delta))
                        }));
                        Ok(true)
                    });
                // One that cannot be read is kept whole, and supersedes nothing.
                if walked.is_ok() {
                    map.last.extend(keys);
                }
            }
        }
        Ok(map)
    }

    fn superseded(&self, key: &[u8], offset: i64) -> bool {
        self.last.get(&self.hash(key)).is_some_and(|last| *last > offset)
    }
}

/// What a pass does to batches, in the order of their offsets.
struct Cleaner<'a> {
    plan: &'a Plan,
    map: &'a KeyMap,
    now_ms: i64,
    delete_retention_ms: i64,
    /// Producers with records of a transaction whose marker is still to come.
    in_transaction: HashSet<i64>,
    /// Markers that were left out.
    dropped_markers: BTreeSet<i64>,
}

/// What becomes of a batch.
enum Fate {
    Same,
    Changed(Vec<u8>, Header),
    Gone,
}

impl Cleaner<'_> {
    fn over(&self, header: &Header) -> bool {
        header.delete_horizon_ms().is_some_and(|horizon| self.now_ms >= horizon)
    }

    fn horizon(&self, header: &Header) -> Option<i64> {
        let horizon = self.now_ms.saturating_add(self.delete_retention_ms);
        header.delete_horizon_ms().is_none().then_some(horizon)
    }

    fn judge(&mut self, header: &Header, batch: &[u8]) -> io::Result<Fate> {
        let settled = header.base_offset < self.map.end;
        if header.control() {
            if self.in_transaction.remove(&header.producer_id) || !settled {
                return Ok(Fate::Same);
            }
            return Ok(match self.horizon(header) {
                Some(horizon) => {
                    let (batch, header) = mark_horizon(batch, *header, horizon);
                    Fate::Changed(batch, header)
                }
                None if self.over(header) => {
                    self.dropped_markers.insert(header.base_offset);
                    Fate::Gone
                }
                None => Fate::Same,
            });
        }
        if settled && self.plan.is_aborted(header) {
            return Ok(Fate::Gone);
        }
        let fate = if settled { self.judge_records(header, batch)? } else { Fate::Same };
        let records_left = match &fate {
            Fate::Same => header.record_count,
            Fate::Changed(_, header) => header.record_count,
            Fate::Gone => 0,
        };
        if header.transactional() && records_left > 0 {
            self.in_transaction.insert(header.producer_id);
        }
        // An empty batch of a transaction would look like one that is open; that producer is known otherwise.
        let remembered = !header.transactional() && self.plan.newest_batches.contains(&header.base_offset);
        if records_left == 0 && !remembered { Ok(Fate::Gone) } else { Ok(fate) }
    }

    fn judge_records(&self, header: &Header, batch: &[u8]) -> io::Result<Fate> {
        let over = self.over(header);
        let mut tombstones = false;
        let wanted = |header: &Header, record: &Record<'_>| {
            let offset = header.base_offset.saturating_add(record.offset_delta);
            let superseded = record.key.is_some_and(|key| self.map.superseded(key, offset));
            !(superseded || over && record.is_tombstone())
        };
        let walked = walk(batch, |header, record| {
            tombstones |= record.is_tombstone() && wanted(header, record);
            Ok(true)
        });
        if let Err(error) = walked {
            tracing::warn!(offset = header.base_offset, %error, "kept a batch that compaction cannot read");
            return Ok(Fate::Same);
        }
        let horizon = if tombstones { self.horizon(header) } else { None };
        Ok(match retain(batch, horizon, wanted)? {
            Some((batch, header)) => Fate::Changed(batch, header),
            None => Fate::Same,
        })
    }
}

impl Partition {
    /// Compacts what is to be compacted, if that is worth a pass. Says whether it did.
    pub fn compact(&self, config: &TopicConfig) -> io::Result<bool> {
        self.compact_with(config, KEYS_MAX)
    }

    pub(super) fn compact_with(&self, config: &TopicConfig, keys_max: usize) -> io::Result<bool> {
        let mut cleaning = lock(&self.cleaning);
        self.finish(&mut cleaning)?;
        let now_ms = now_ms();
        let Some(plan) = self.plan(config, &cleaning, now_ms) else { return Ok(false) };
        let map = KeyMap::build(&plan, keys_max)?;
        let mut cleaner = Cleaner {
            plan: &plan,
            map: &map,
            now_ms,
            delete_retention_ms: config.delete_retention_ms,
            in_transaction: HashSet::new(),
            dropped_markers: BTreeSet::new(),
        };
        let mut rest = &plan.sources[..];
        while !rest.is_empty() {
            let mut bytes = 0;
            let fits = |source: &&Source| {
                bytes += source.size;
                bytes <= config.segment_bytes
            };
            let (group, after) = rest.split_at(rest.iter().take_while(fits).count().max(1));
            rest = after;
            self.clean(group, &mut cleaner, &mut cleaning)?;
        }
        // All of it is on the disk.
        cleaning.cleaned_to = map.end;
        standing::write(&*self.disk, &self.directory, map.end)?;
        Ok(true)
    }

    /// Carries out a swap that was decided.
    pub(super) fn finish(&self, cleaning: &mut Cleaning) -> io::Result<()> {
        if cleaning.unfinished {
            finish_swaps(&*self.disk, &self.directory)?;
            cleaning.unfinished = false;
        }
        Ok(())
    }

    /// `None`: there is too little to gain.
    fn plan(&self, config: &TopicConfig, cleaning: &Cleaning, now_ms: i64) -> Option<Plan> {
        let log = lock(&self.log);
        let stable = log.producers.stable_offset(log.end);
        let young = |segment: &Segment| {
            segment.max_timestamp_ms > now_ms.saturating_sub(config.min_compaction_lag_ms)
                && config.min_compaction_lag_ms > 0
        };
        let (mut total, mut dirty, mut overdue) = (0, 0, false);
        let mut sources = Vec::new();
        for pair in log.segments.windows(2) {
            if pair[1].base_offset > stable || young(&pair[0]) {
                break;
            }
            total += pair[0].size;
            if pair[1].base_offset > cleaning.cleaned_to {
                dirty += pair[0].size;
                overdue |= now_ms.saturating_sub(pair[0].since_ms) > config.max_compaction_lag_ms;
            }
            sources.push(Source {
                base: pair[0].base_offset,
                end: pair[1].base_offset,
                size: pair[0].size,
                file: pair[0].file.clone(),
            });
        }
        if dirty == 0 || (!overdue && (dirty as f64) < total as f64 * config.min_cleanable_dirty_ratio) {
            return None;
        }
        let mut aborted: HashMap<i64, Vec<(i64, i64)>> = HashMap::new();
        for (producer_id, first, marker) in log.producers.all_aborted() {
            aborted.entry(producer_id).or_default().push((first, marker));
        }
        let newest_batches = log.producers.newest_batches();
        Some(Plan { sources, aborted, newest_batches, dirty_from: cleaning.cleaned_to })
    }

    /// Writes neighbouring segments as one, and puts it in their place.
    fn clean(&self, group: &[Source], cleaner: &mut Cleaner<'_>, cleaning: &mut Cleaning) -> io::Result<()> {
        let (Some(first), Some(last)) = (group.first(), group.last()) else { return Ok(()) };
        let name = |kind: &str| self.directory.join(format!("{:020}-{:020}.{kind}", first.base, last.end));
        let (written, decided) = (name("cleaned"), name("swap"));
        let mut clean = Segment::create(&*self.disk, written.clone(), first.base, cleaner.now_ms)?;
        let filled = (|| {
            let mut changed = group.len() > 1;
            for source in group {
                let mut batches = Batches::of(source.file.clone(), source.size);
                while let Some((header, batch)) = batches.next()? {
                    match cleaner.judge(&header, batch)? {
                        Fate::Same => clean.append(batch, &header, cleaner.now_ms)?,
                        Fate::Changed(batch, header) => {
                            changed = true;
                            clean.append(&batch, &header, cleaner.now_ms)?;
                        }
                        Fate::Gone => changed = true,
                    }
                }
            }
            if changed {
                let work = clean.unsynced()?;
                let outcome = work.sync();
                clean.was_synced(&work, &outcome);
                outcome?;
            }
            Ok(changed)
        })();
        if !matches!(filled, Ok(true)) {
            let _ = self.disk.remove(&written);
            return filled.map(drop);
        }
        self.disk.rename(&written, &decided)?;
        cleaning.unfinished = true;
        self.disk.sync_folder(&self.directory)?;
        clean.path = Segment::path(&self.directory, first.base);
        {
            let mut log = lock(&self.log);
            let from = log.segments.partition_point(|segment| segment.base_offset < first.base);
            let to = log.segments.partition_point(|segment| segment.base_offset < last.end);
            log.segments.splice(from..to, [clean]);
            log.rewrites += 1;
            let dropped = std::mem::take(&mut cleaner.dropped_markers);
            log.producers.forget_aborted(&dropped);
        }
        self.finish(cleaning)
    }
}

/// Carries on what a crash or a failing disk interrupted.
pub(super) fn finish_swaps(disk: &dyn Disk, folder: &Path) -> io::Result<()> {
    let names = disk.names(folder)?;
    let bases: BTreeMap<i64, &String> =
        names.iter().filter_map(|name| Some((Segment::base_offset_of(name)?, name))).collect();
    for name in names.iter().filter(|name| name.ends_with(".cleaned")) {
        disk.remove(&folder.join(name))?;
    }
    for name in &names {
        let Some((base, end)) = name.strip_suffix(".swap").and_then(|range| range.split_once('-')) else {
            continue;
        };
        let (Ok(base), Ok(end)) = (base.parse::<i64>(), end.parse::<i64>()) else { continue };
        for (_, replaced) in bases.range(base + 1..end) {
            disk.remove(&folder.join(replaced))?;
        }
        // First those, then the name: an old file beside the new one would give its records twice.
        disk.sync_folder(folder)?;
        disk.rename(&folder.join(name), &Segment::path(folder, base))?;
        disk.sync_folder(folder)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests;
