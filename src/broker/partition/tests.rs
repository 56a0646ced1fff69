//! A partition by itself, on real files: restarts, torn tails, sequences, transactions, retention.

use std::sync::Arc;

use super::super::batch::tests::batch;
use super::super::disk::RealDisk;
use super::super::segment::batches;
use super::*;

fn open(folder: &Path, start: i64) -> io::Result<Partition> {
    Partition::open(Arc::new(RealDisk), folder, start, true)
}

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
    let partition = open(folder.path(), 0).unwrap();
    assert_eq!(plain(&partition, &[1, 2, 3]), 0);
    assert_eq!(plain(&partition, &[4]), 3);
    drop(partition);
    let partition = open(folder.path(), 0).unwrap();
    assert_eq!(partition.bounds(), Bounds { start: 0, stable: 4, end: 4 });
    assert_eq!(offsets(&partition, 1, i64::MAX), [0, 3]);
    assert_eq!(offsets(&partition, 3, i64::MAX), [3]);
    assert_eq!(offsets(&partition, 0, 3), [0]);
    assert_eq!(plain(&partition, &[5]), 4);
}

#[test]
fn a_torn_tail_is_cut_wherever_it_is_torn() {
    let folder = tempfile::tempdir().unwrap();
    let partition = open(folder.path(), 0).unwrap();
    plain(&partition, &[1, 2]);
    let whole = std::fs::read(folder.path().join(format!("{:020}.log", 0))).unwrap();
    plain(&partition, &[3]);
    let both = std::fs::read(folder.path().join(format!("{:020}.log", 0))).unwrap();
    for cut in whole.len()..both.len() {
        std::fs::write(folder.path().join(format!("{:020}.log", 0)), &both[..cut]).unwrap();
        let partition = open(folder.path(), 0).unwrap();
        assert_eq!(partition.bounds().end, 2, "cut at {cut}");
        assert_eq!(plain(&partition, &[9]), 2);
    }
    let mut flipped = both.clone();
    *flipped.last_mut().unwrap() ^= 1;
    std::fs::write(folder.path().join(format!("{:020}.log", 0)), &flipped).unwrap();
    assert_eq!(open(folder.path(), 0).unwrap().bounds().end, 2);
}

#[test]
fn a_repeated_batch_is_stored_once_and_a_gap_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let partition = open(folder.path(), 0).unwrap();
    for sequence in 0..8 {
        assert_eq!(send(&partition, (1, 0, sequence), false, 1), Ok(i64::from(sequence)));
    }
    assert_eq!(send(&partition, (1, 0, 7), false, 1), Ok(7));
    assert_eq!(send(&partition, (1, 0, 0), false, 1), Err(Fault::DuplicateSequenceNumber));
    assert_eq!(send(&partition, (1, 0, 9), false, 1), Err(Fault::OutOfOrderSequenceNumber));
    drop(partition);
    let partition = open(folder.path(), 0).unwrap();
    assert_eq!(send(&partition, (1, 0, 7), false, 1), Ok(7));
    assert_eq!(send(&partition, (1, 1, 3), false, 1), Err(Fault::OutOfOrderSequenceNumber));
    assert_eq!(send(&partition, (1, 1, 0), false, 1), Ok(8));
    assert_eq!(send(&partition, (1, 0, 8), false, 1), Err(Fault::InvalidProducerEpoch));
}

#[test]
fn sequences_wrap_between_and_inside_batches() {
    let folder = tempfile::tempdir().unwrap();
    let partition = open(folder.path(), 0).unwrap();
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
    let partition = open(folder.path(), 0).unwrap();
    assert_eq!(send(&partition, (1, 0, 0), true, 1), Err(Fault::InvalidTransactionState));
    partition.register(1, 0);
    assert_eq!(send(&partition, (1, 0, 0), true, 2), Ok(0));
    plain(&partition, &[1]);
    assert_eq!(partition.bounds().stable, 0);
    drop(partition);
    let partition = open(folder.path(), 0).unwrap();
    assert_eq!(partition.bounds(), Bounds { start: 0, stable: 0, end: 3 });
    assert_eq!(partition.open_transactions(), [(1, 0)]);
    partition.end_transaction(1, 1, None, &config(&[])).unwrap();
    assert_eq!(partition.bounds(), Bounds { start: 0, stable: 4, end: 4 });
    let aborted = partition.aborted(0, 4, 0).unwrap();
    assert_eq!((aborted.len(), aborted[0].producer_id, aborted[0].first), (1, 1, 0));
    assert_eq!(partition.aborted(4, 10, 0).unwrap(), []);
    // The marker raised the epoch: the old one is fenced, the new one starts at 0 and is no duplicate.
    assert_eq!(send(&partition, (1, 0, 2), true, 1), Err(Fault::InvalidProducerEpoch));
    partition.register(1, 1);
    assert_eq!(send(&partition, (1, 1, 0), true, 2), Ok(4));
}

#[test]
fn retention_deletes_whole_segments_by_size_and_by_age() {
    let folder = tempfile::tempdir().unwrap();
    let partition = open(folder.path(), 0).unwrap();
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
    assert_eq!(open(folder.path(), 11).unwrap().bounds().end, 11);
}

#[test]
fn history_stays_however_old_its_timestamps_are_unless_the_topic_says_otherwise() {
    let folder = tempfile::tempdir().unwrap();
    let partition = open(folder.path(), 0).unwrap();
    let year_1970_ms = 1_000;
    plain(&partition, &[year_1970_ms; 5]);
    assert_eq!(partition.expire(&config(&[])).unwrap(), None);
    plain(&partition, &[year_1970_ms; 5]);
    let a_week = config(&[("retention.ms", "604800000")]);
    assert_eq!(partition.expire(&a_week).unwrap(), Some(10));
}

#[test]
fn delete_before_moves_the_start_and_refuses_what_is_not_there() {
    let folder = tempfile::tempdir().unwrap();
    let partition = open(folder.path(), 0).unwrap();
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
    let partition = open(folder.path(), 0).unwrap();
    partition.register(1, 0);
    send(&partition, (1, 0, 0), true, 2).unwrap();
    send(&partition, (1, 0, 2), true, 2).unwrap();
    assert_eq!(partition.delete_before(3), Ok(3));
    assert_eq!(partition.bounds(), Bounds { start: 3, stable: 3, end: 4 });
    partition.end_transaction(1, 0, Some(i64::MAX), &config(&[])).unwrap();
    assert_eq!(partition.bounds(), Bounds { start: 3, stable: 5, end: 5 });
}

#[test]
fn a_timestamp_is_found_across_batches_and_not_past_the_end() {
    let folder = tempfile::tempdir().unwrap();
    let partition = open(folder.path(), 0).unwrap();
    plain(&partition, &[100, 200]);
    plain(&partition, &[300, 400]);
    assert_eq!(partition.offset_at(0, i64::MAX), Ok(Some((100, 0))));
    assert_eq!(partition.offset_at(201, i64::MAX), Ok(Some((300, 2))));
    assert_eq!(partition.offset_at(350, i64::MAX), Ok(Some((400, 3))));
    assert_eq!(partition.offset_at(401, i64::MAX), Ok(None));
}

#[test]
fn a_reader_at_its_limit_gets_nothing_although_batches_follow() {
    let folder = tempfile::tempdir().unwrap();
    let partition = open(folder.path(), 0).unwrap();
    plain(&partition, &[1]);
    partition.register(1, 0);
    send(&partition, (1, 0, 0), true, 2).unwrap();
    let stable = partition.bounds().stable;
    assert_eq!(stable, 1);
    assert!(partition.slice(0, usize::MAX, stable).unwrap().is_some());
    assert!(partition.slice(1, usize::MAX, stable).unwrap().is_none(), "a fetch would spin on it");
    assert!(partition.slice(1, usize::MAX, i64::MAX).unwrap().is_some());
}

#[test]
fn records_too_old_or_too_new_for_the_topic_are_refused_and_none_is_no_time() {
    let folder = tempfile::tempdir().unwrap();
    let partition = open(folder.path(), 0).unwrap();
    let send = |config: &TopicConfig, timestamps_ms: &[i64]| {
        partition.append(Bytes::from(batch((-1, -1, -1), false, timestamps_ms)), config).map(|_| ())
    };
    let now = now_ms();
    for name in ["message.timestamp.before.max.ms", "message.timestamp.difference.max.ms"] {
        let config = config(&[(name, "60000")]);
        assert_eq!(send(&config, &[now, now - 50_000]), Ok(()));
        assert_eq!(
            send(&config, &[now, now - 70_000]),
            Err(Fault::InvalidTimestamp),
            "{name}, not the first"
        );
        assert_eq!(send(&config, &[-1]), Ok(()), "no timestamp");
    }
    for name in ["message.timestamp.after.max.ms", "message.timestamp.difference.max.ms"] {
        let config = config(&[(name, "60000")]);
        assert_eq!(send(&config, &[now + 50_000]), Ok(()));
        assert_eq!(send(&config, &[now, now + 120_000]), Err(Fault::InvalidTimestamp), "{name}");
    }
    let stamped =
        config(&[("message.timestamp.before.max.ms", "1"), ("message.timestamp.type", "LogAppendTime")]);
    assert_eq!(send(&stamped, &[5]), Ok(()), "the broker's clock replaces it");
}

#[test]
fn a_producer_that_is_silent_for_a_day_is_forgotten_but_not_its_open_transaction() {
    const DAY_MS: i64 = 24 * 3600 * 1000;
    let folder = tempfile::tempdir().unwrap();
    let partition = open(folder.path(), 0).unwrap();
    let kept = config(&[("retention.ms", "-1")]);
    assert_eq!(send(&partition, (1, 0, 0), false, 1), Ok(0));
    partition.register(2, 0);
    assert_eq!(send(&partition, (2, 0, 0), true, 1), Ok(1));
    partition.expire_at(&kept, now_ms() + DAY_MS - 60_000).unwrap();
    assert_eq!(send(&partition, (1, 0, 0), false, 1), Ok(0), "the same batch again");
    partition.expire_at(&kept, now_ms() + DAY_MS + 60_000).unwrap();
    // Nothing is known of it any more: it begins where it likes.
    assert_eq!(send(&partition, (1, 0, 7), false, 1), Ok(2));
    assert_eq!(send(&partition, (2, 0, 0), true, 1), Ok(1), "the same batch again");
    assert_eq!(partition.open_transactions(), [(2, 0)]);
}
