//! Compaction against what it must keep: the last value of each key, offsets, and what a read-committed consumer
//! sees; on random logs, with restarts, and interrupted at every operation on the disk.

use std::sync::Arc;

use bytes::Bytes;
use proptest::prelude::*;
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};

use super::super::batch::tests::keyed;
use super::super::disk::SharedDisk;
use super::super::fault::Fault;
use super::super::simulated_disk::{ROOT, SimulatedDisk};
use super::super::view::{Seen, committed};
use super::*;

const BASE: &[(&str, &str)] = &[
    ("cleanup.policy", "compact"),
    ("segment.bytes", "700"),
    ("min.cleanable.dirty.ratio", "0"),
    ("delete.retention.ms", "3600000"),
];

fn config(more: &[(&str, &str)]) -> TopicConfig {
    let all = BASE.iter().chain(more);
    TopicConfig::new(all.map(|(name, value)| (name.to_string(), value.to_string())).collect()).unwrap()
}

fn open(disk: &SimulatedDisk) -> Partition {
    let disk: SharedDisk = Arc::new(disk.clone());
    Partition::open(disk, &Path::new(ROOT).join("p"), 0, true).unwrap()
}

type KeyValue<'a> = (Option<&'a str>, Option<&'a str>);

fn append(partition: &Partition, producer: (i64, i16, i32), transactional: bool, of: &[KeyValue<'_>]) -> i64 {
    append_with(partition, producer, transactional, of, 0).unwrap()
}

fn append_with(
    partition: &Partition,
    producer: (i64, i16, i32),
    transactional: bool,
    of: &[KeyValue<'_>],
    compression: i16,
) -> Result<i64, Fault> {
    let times: Vec<i64> = (0..of.len() as i64).map(|at| 1_000 + at * 10).collect();
    let batch = keyed(producer, transactional, of, &times, compression);
    partition.append(Bytes::from(batch), &config(&[])).map(|appended| appended.base_offset)
}

const NOBODY: (i64, i16, i32) = (-1, -1, -1);

/// Fills the newest segment, so that what was before can be compacted.
fn roll(partition: &Partition) {
    let long = "x".repeat(700);
    append(partition, NOBODY, false, &[(Some("roll"), Some(&long))]);
    append(partition, NOBODY, false, &[(Some("roll"), Some(&long))]);
}

fn segments(disk: &SimulatedDisk) -> usize {
    let names = disk.names(&Path::new(ROOT).join("p")).unwrap();
    names.iter().filter(|name| Segment::base_offset_of(name).is_some()).count()
}

/// The last record of each key.
fn last(seen: &[Seen]) -> BTreeMap<String, Seen> {
    seen.iter().map(|record| (record.key.clone().unwrap(), record.clone())).collect()
}

fn live(seen: &[Seen]) -> BTreeMap<String, Seen> {
    let mut last = last(seen);
    last.retain(|_, record| record.value.is_some());
    last
}

/// Random records of few keys by plain, idempotent and transactional producers; some transactions stay open.
fn fill(partition: &Partition, random: &mut SmallRng, sequences: &mut BTreeMap<i64, i32>, batches: usize) {
    for _ in 0..batches {
        let records: Vec<(String, Option<String>)> = (0..random.random_range(1..5))
            .map(|_| {
                let value =
                    random.random_bool(0.8).then(|| format!("v{}", random.random_range(0..1_000_000)));
                (format!("k{}", random.random_range(0..12)), value)
            })
            .collect();
        let records: Vec<KeyValue<'_>> =
            records.iter().map(|(key, value)| (Some(key.as_str()), value.as_deref())).collect();
        let compression = random.random_range(0..5);
        let producer = random.random_range(0..6i64);
        if producer == 0 {
            append_with(partition, NOBODY, false, &records, compression).unwrap();
            continue;
        }
        let transactional = producer > 2;
        if transactional {
            partition.register(producer, 0);
        }
        let sequence = sequences.entry(producer).or_default();
        append_with(partition, (producer, 0, *sequence), transactional, &records, compression).unwrap();
        *sequence += records.len() as i32;
        if transactional && random.random_bool(0.6) {
            let commits = random.random_bool(0.5).then_some(i64::MAX);
            partition.end_transaction(producer, 0, commits, &config(&[])).unwrap();
        }
    }
    for producer in 3..6 {
        if random.random_bool(0.8) {
            partition.end_transaction(producer, 0, Some(i64::MAX), &config(&[])).unwrap();
        }
    }
}

/// What every compaction must keep.
fn check(before: &[Seen], partition: &Partition, what: &str) {
    let after = committed(partition);
    assert_eq!(last(before), last(&after), "{what}: the last record of a key changed");
    let mut rest = before.iter();
    for record in &after {
        assert!(rest.any(|held| held == record), "{what}: {record:?} was not there, or elsewhere");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(40) })]

    #[test]
    fn keys_keep_their_last_values_at_their_offsets(seed: u64) {
        let mut random = SmallRng::seed_from_u64(seed);
        let disk = SimulatedDisk::default();
        let mut partition = open(&disk);
        let mut sequences = BTreeMap::new();
        for round in 0..4 {
            let count = random.random_range(1..60);
            fill(&partition, &mut random, &mut sequences, count);
            roll(&partition);
            let before = committed(&partition);
            let (bounds, files) = (partition.bounds(), segments(&disk));
            let keys_max = [3, 10, 1_000][random.random_range(0..3)];
            let merging = config(&[("segment.bytes", ["700", "3000"][random.random_range(0..2)])]);
            while partition.compact_with(&merging, keys_max).unwrap() {
                check(&before, &partition, "compacted");
            }
            prop_assert_eq!(partition.bounds(), bounds);
            prop_assert!(segments(&disk) <= files);
            if round % 2 == 1 {
                let open_before = partition.open_transactions();
                partition = open(&disk.after_kill());
                check(&before, &partition, "restarted");
                prop_assert_eq!(partition.bounds(), bounds);
                prop_assert_eq!(partition.open_transactions(), open_before);
                // Open transactions end, so that the next round has something to compact.
                for (producer, epoch) in partition.open_transactions() {
                    partition.end_transaction(producer, epoch, None, &config(&[])).unwrap();
                }
                break;
            }
        }
    }

    /// A crash or a power cut at any operation leaves the old or the new.
    #[test]
    fn interrupted_anywhere_it_loses_and_repeats_nothing(seed: u64, share in 0.0..1.0f64) {
        let mut random = SmallRng::seed_from_u64(seed);
        // Files of several segments each.
        let merging = config(&[("segment.bytes", "3000")]);
        let first = SimulatedDisk::default();
        let partition = open(&first);
        fill(&partition, &mut random, &mut BTreeMap::new(), 40);
        roll(&partition);
        partition.sync().unwrap();
        first.sync_folder(Path::new(ROOT)).unwrap();
        let before = committed(&partition);
        let whole = first.after_kill();
        let reopened = open(&whole);
        let began = whole.operations();
        reopened.compact(&merging).unwrap();
        let operations = whole.operations() - began;
        // An open transaction may stand before everything.
        prop_assume!(operations > 5);

        let disk = first.after_kill();
        let partition = open(&disk);
        disk.cut_at(disk.operations() + 1 + (share * operations as f64) as u64);
        let outcome = partition.compact(&merging);
        check(&before, &open(&disk.after_kill()), &format!("killed, {outcome:?}"));
        let mut after = disk.after_power_cut(seed);
        for round in 0..3 {
            let partition = open(&after);
            check(&before, &partition, "after a power cut");
            partition.compact(&merging).unwrap();
            check(&before, &partition, "compacted after a power cut");
            after = after.after_power_cut(seed.wrapping_add(round));
        }
    }
}

#[test]
fn superseded_and_aborted_records_go_and_files_do_not_pile_up() {
    let disk = SimulatedDisk::default();
    let partition = open(&disk);
    let bytes = || -> u64 { lock(&partition.log).segments.iter().map(|segment| segment.size).sum() };
    partition.register(7, 0);
    append(&partition, (7, 0, 0), true, &[(Some("a"), Some("never"))]);
    partition.end_transaction(7, 0, None, &config(&[])).unwrap();
    for round in 0..300 {
        append(&partition, NOBODY, false, &[(Some("a"), Some(&format!("{round:050}")))]);
        if round % 50 == 0 {
            partition.compact(&config(&[])).unwrap();
        }
    }
    for _ in 0..3 {
        roll(&partition);
        while partition.compact(&config(&[])).unwrap() {}
    }
    let seen = committed(&partition);
    assert_eq!(seen.iter().filter(|record| record.key.as_deref() == Some("a")).count(), 1);
    assert!(bytes() < 4_000, "{}", bytes());
    // It was rolled some sixty times.
    let files = disk.names(&Path::new(ROOT).join("p")).unwrap();
    assert!(files.len() < 10, "{files:?}");
    assert!(partition.slice(0, 1_000, i64::MAX).unwrap().is_some(), "offset 0 can still be asked for");
    assert_eq!(partition.bounds().start, 0);
}

#[test]
fn tombstones_and_lone_markers_stay_for_delete_retention() {
    let kept = config(&[]);
    let brief = config(&[("delete.retention.ms", "0")]);
    for (config, stays) in [(kept, true), (brief, false)] {
        let disk = SimulatedDisk::default();
        let partition = open(&disk);
        append(&partition, NOBODY, false, &[(Some("a"), Some("1")), (Some("b"), Some("2"))]);
        partition.register(7, 0);
        append(&partition, (7, 0, 0), true, &[(Some("c"), Some("3"))]);
        partition.end_transaction(7, 0, None, &config).unwrap();
        append(&partition, NOBODY, false, &[(Some("a"), None)]);
        roll(&partition);
        partition.compact(&config).unwrap();
        let tombstones = |partition: &Partition| {
            committed(partition)
                .iter()
                .filter(|record| record.value.is_none())
                .map(|r| r.timestamp_ms)
                .collect()
        };
        let found: Vec<i64> = tombstones(&partition);
        assert_eq!(found, [1_000], "the pass that sees it first keeps it, with its time");
        assert_eq!(lock(&partition.log).producers.all_aborted().len(), 1);
        roll(&partition);
        partition.compact(&config).unwrap();
        let found: Vec<i64> = tombstones(&partition);
        assert_eq!(!found.is_empty(), stays);
        assert_eq!(!lock(&partition.log).producers.all_aborted().is_empty(), stays);
        let rest = live(&committed(&open(&disk.after_kill())));
        assert_eq!(rest.keys().collect::<Vec<_>>(), ["b", "roll"]);
    }
}

#[test]
fn young_records_open_transactions_and_the_newest_segment_are_left_alone() {
    let disk = SimulatedDisk::default();
    let partition = open(&disk);
    let now = now_ms();
    let young = keyed(NOBODY, false, &[(Some("a"), Some("1"))], &[now], 0);
    for _ in 0..20 {
        partition.append(Bytes::from(young.clone()), &config(&[])).unwrap();
    }
    assert!(!partition.compact(&config(&[("min.compaction.lag.ms", "3600000")])).unwrap());
    assert_eq!(committed(&partition).len(), 20);
    assert!(partition.compact(&config(&[("min.compaction.lag.ms", "0")])).unwrap());
    assert!(committed(&partition).len() < 20);

    let partition = open(&SimulatedDisk::default());
    partition.register(7, 0);
    append(&partition, (7, 0, 0), true, &[(Some("a"), Some("open"))]);
    for _ in 0..20 {
        append(&partition, NOBODY, false, &[(Some("a"), Some("1"))]);
    }
    assert!(!partition.compact(&config(&[])).unwrap(), "everything is behind an open transaction");
    partition.end_transaction(7, 0, Some(i64::MAX), &config(&[])).unwrap();
    assert!(partition.compact(&config(&[])).unwrap());
}

#[test]
fn a_compacted_topic_refuses_records_without_a_key_and_keeps_those_it_has() {
    let partition = open(&SimulatedDisk::default());
    let refused = append_with(&partition, NOBODY, false, &[(Some("a"), Some("1")), (None, Some("2"))], 3);
    assert_eq!(refused, Err(Fault::InvalidRecord));
    let plain = TopicConfig::new([("segment.bytes".to_owned(), "100".to_owned())].into()).unwrap();
    let keyless = keyed(NOBODY, false, &[(None, Some("old"))], &[1_000], 0);
    partition.append(Bytes::from(keyless), &plain).unwrap();
    roll(&partition);
    assert!(partition.compact(&config(&[])).unwrap());
    assert_eq!(committed(&partition)[0].value.as_deref(), Some("old"));
}

#[test]
fn a_retry_is_recognised_after_compaction_and_a_restart() {
    let disk = SimulatedDisk::default();
    let partition = open(&disk);
    append(&partition, (7, 0, 0), false, &[(Some("a"), Some("1"))]);
    assert_eq!(append(&partition, (7, 0, 1), false, &[(Some("a"), Some("2"))]), 1);
    append(&partition, NOBODY, false, &[(Some("a"), Some("3"))]);
    roll(&partition);
    assert!(partition.compact(&config(&[])).unwrap());
    let partition = open(&disk.after_kill());
    assert_eq!(append(&partition, (7, 0, 1), false, &[(Some("a"), Some("2"))]), 1, "a duplicate");
    assert_eq!(
        append_with(&partition, (7, 0, 9), false, &[(Some("a"), Some("4"))], 0),
        Err(Fault::OutOfOrderSequenceNumber)
    );
}

#[test]
fn a_full_disk_stops_compaction_until_there_is_space() {
    let disk = SimulatedDisk::default();
    let partition = open(&disk);
    for round in 0..60 {
        append(&partition, NOBODY, false, &[(Some("a"), Some(&format!("{round:050}")))]);
    }
    let before = committed(&partition);
    for free in [0, 1, 100, 500] {
        disk.set_free(Some(free));
        let _ = partition.compact(&config(&[]));
        check(&before, &partition, "on a full disk");
        check(&before, &open(&disk.after_kill()), "restarted after a full disk");
    }
    disk.set_free(None);
    partition.compact(&config(&[])).unwrap();
    check(&before, &partition, "with space again");
    assert!(committed(&partition).len() < before.len());
}

#[test]
fn a_slice_from_before_a_rewrite_is_not_given_the_aborted_transactions_of_after() {
    let brief = config(&[("delete.retention.ms", "0")]);
    let partition = open(&SimulatedDisk::default());
    partition.register(7, 0);
    append(&partition, (7, 0, 0), true, &[(Some("a"), Some("never"))]);
    partition.end_transaction(7, 0, None, &brief).unwrap();
    let slice = partition.slice(0, 1_000, i64::MAX).unwrap().unwrap();
    assert_eq!(partition.aborted(0, 2, slice.rewrites).unwrap().len(), 1);
    for _ in 0..2 {
        roll(&partition);
        assert!(partition.compact(&brief).unwrap());
    }
    assert!(lock(&partition.log).producers.all_aborted().is_empty());
    let (bytes, _) = slice.read().unwrap();
    assert!(!bytes.is_empty(), "what was looked up can still be read");
    assert_eq!(partition.aborted(0, 2, slice.rewrites), None);
}

#[test]
fn a_topic_that_compacts_and_deletes_does_both() {
    let both =
        config(&[("cleanup.policy", "compact,delete"), ("retention.bytes", "2500"), ("retention.ms", "-1")]);
    let disk = SimulatedDisk::default();
    let partition = open(&disk);
    for round in 0..100 {
        let (key, value) = (format!("k{}", round % 20), format!("{round:040}"));
        append(&partition, NOBODY, false, &[(Some(&key), Some(&value))]);
    }
    assert!(partition.compact(&both).unwrap());
    let compacted = committed(&partition);
    assert!(compacted.len() < 100 && last(&compacted).len() == 20);
    let start = partition.expire(&both).unwrap().expect("more than retention.bytes is left");
    partition.drop_segments().unwrap();
    let rest = committed(&partition);
    assert_eq!(rest, compacted.into_iter().filter(|record| record.offset >= start).collect::<Vec<_>>());
    assert!(!rest.is_empty());
    let reopened =
        Partition::open(Arc::new(disk.after_kill()), &Path::new(ROOT).join("p"), start, true).unwrap();
    assert_eq!(committed(&reopened), rest);
}

#[test]
fn segments_are_not_deleted_while_they_are_compacted_but_right_after() {
    let disk = SimulatedDisk::default();
    let partition = open(&disk);
    for _ in 0..5 {
        roll(&partition);
    }
    let files = || disk.names(&Path::new(ROOT).join("p")).unwrap().len();
    let before = files();
    let cleaning = lock(&partition.cleaning);
    assert_eq!(partition.delete_before(-1), Ok(10));
    partition.drop_segments().unwrap();
    assert_eq!(files(), before);
    assert!(partition.has_leftovers());
    drop(cleaning);
    partition.drop_segments().unwrap();
    assert_eq!(files(), 1);
    assert!(!partition.has_leftovers());
}

/// The values by key below the newest segment, where each key is to stand once.
fn compacted_keys(partition: &Partition) -> Vec<String> {
    let below = lock(&partition.log).segments.last().unwrap().base_offset;
    let seen = committed(partition);
    seen.iter().filter(|record| record.offset < below).map(|record| record.key.clone().unwrap()).collect()
}

#[test]
fn a_start_goes_on_where_compaction_stood_and_a_power_cut_leaves_nothing_out() {
    let fill = |disk: &SimulatedDisk| {
        let partition = open(disk);
        for round in 0..40 {
            append(
                &partition,
                NOBODY,
                false,
                &[(Some(["a", "b"][round % 2]), Some(&format!("{round:050}")))],
            );
        }
        roll(&partition);
        partition.sync().unwrap();
        disk.sync_folder(Path::new(ROOT)).unwrap();
        partition
    };
    let disk = SimulatedDisk::default();
    let partition = fill(&disk);
    let began = disk.operations();
    assert!(partition.compact(&config(&[])).unwrap());
    let operations = disk.operations() - began;
    for restarted in [disk.after_kill(), disk.after_power_cut(1)] {
        assert!(!open(&restarted).compact(&config(&[])).unwrap(), "it has been compacted");
    }
    for cut in 1..=operations {
        let disk = SimulatedDisk::default();
        let partition = fill(&disk);
        let before = committed(&partition);
        disk.cut_at(disk.operations() + cut);
        let _ = partition.compact(&config(&[]));
        for seed in 0..3 {
            let disk = disk.after_power_cut(seed);
            let partition = open(&disk);
            while partition.compact(&config(&[])).unwrap() {}
            check(&before, &partition, "compacted after a power cut");
            let keys = compacted_keys(&partition);
            let distinct: BTreeSet<&String> = keys.iter().collect();
            assert_eq!(keys.len(), distinct.len(), "cut at {cut}, seed {seed}: {keys:?}");
            assert!(!open(&disk.after_power_cut(seed)).compact(&config(&[])).unwrap());
        }
    }
}

#[test]
fn what_compaction_says_it_has_done_is_not_believed_beyond_the_log_s_end() {
    let disk = SimulatedDisk::default();
    drop(open(&disk));
    standing::write(&disk, &Path::new(ROOT).join("p"), 1_000_000).unwrap();
    let partition = open(&disk);
    for round in 0..40 {
        append(&partition, NOBODY, false, &[(Some("a"), Some(&format!("{round:050}")))]);
    }
    roll(&partition);
    assert!(partition.compact(&config(&[])).unwrap());
    assert_eq!(compacted_keys(&partition).iter().filter(|key| *key == "a").count(), 1);
}

#[test]
fn one_that_fails_waits_longer_each_time_and_counts() {
    let disk = SimulatedDisk::default();
    let partition = open(&disk);
    for round in 0..60 {
        append(&partition, NOBODY, false, &[(Some("a"), Some(&format!("{round:050}")))]);
    }
    disk.set_free(Some(0));
    let mut now_ms = 0;
    let mut pauses = Vec::new();
    for tried in 1..=9 {
        match partition.compact_in_turn(&config(&[]), now_ms) {
            Turn::Failed { times, pause_s, .. } => {
                assert_eq!(times, tried);
                pauses.push(pause_s);
                let early = partition.compact_in_turn(&config(&[]), now_ms + pause_s * 1_000 - 1);
                assert!(matches!(early, Turn::Waits), "{early:?}");
                now_ms += pause_s * 1_000;
            }
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(pauses, [1, 2, 4, 8, 16, 32, 60, 60, 60]);
    disk.set_free(None);
    let turn = partition.compact_in_turn(&config(&[]), now_ms);
    assert!(matches!(turn, Turn::Done { failures: 9 }), "{turn:?}");
    let turn = partition.compact_in_turn(&config(&[]), now_ms);
    assert!(matches!(turn, Turn::Done { failures: 0 }), "{turn:?}");
}
