//! Transactions: all or nothing, records and offsets alike.

use super::*;
use headwater::log::CommitError;

/// A member that owns the one partition of an input topic, and an output partition.
fn writer<'a>(log: &'a dyn Log, name: &str) -> (Worker<'a>, TopicPartition, TopicPartition) {
    let input = topic(log, &format!("{name}-in"), 1).remove(0);
    let output = topic(log, &format!("{name}-out"), 1).remove(0);
    let instance = unique(name);
    let mut worker = Worker::join(log, &options(&instance, &instance, &input));
    worker.await_partitions(1);
    (worker, input, output)
}

pub fn committed_aborted_and_open(log: &dyn Log) {
    let (mut worker, _, output) = writer(log, "txn");
    worker.commit(&[(&output, "a"), (&output, "b")]).unwrap();
    assert_eq!(read_all(log, &output), ["a", "b"]);

    worker.member.begin().unwrap();
    worker.member.produce(&output, &[value("never")]).unwrap();
    worker.member.abort().unwrap();
    worker.commit(&[(&output, "c")]).unwrap();
    assert_eq!(read_all(log, &output), ["a", "b", "c"]);
    let end = log.bounds(&output).unwrap().end;

    // While a transaction is open nothing of it is seen, nor what others write behind it.
    worker.member.begin().unwrap();
    worker.member.produce(&output, &[value("d")]).unwrap();
    let mut reader = log.reader().unwrap();
    reader.assign(&[(output.clone(), 0)]).unwrap();
    let mut seen = Seen::default();
    read_to(reader.as_mut(), &mut seen, &output, end);
    for _ in 0..5 {
        seen.add(reader.poll(POLL).unwrap());
    }
    assert_eq!(seen.texts(&output), ["a", "b", "c"]);
    assert_eq!((seen.ends[&output], log.bounds(&output).unwrap().end), (end, end));

    let fence = worker.fence.clone().unwrap();
    worker.member.commit(&fence, &worker.offsets()).unwrap();
    until("the committed record", || {
        seen.add(reader.poll(POLL).unwrap());
        (seen.texts(&output).len() == 4).then_some(())
    });
    assert_eq!(seen.texts(&output), ["a", "b", "c", "d"]);
}

pub fn ends_are_past_the_markers(log: &dyn Log) {
    let (mut worker, _, output) = writer(log, "markers");
    let mut reader = log.reader().unwrap();
    reader.assign(&[(output.clone(), 0)]).unwrap();
    let mut seen = Seen::default();
    read_to(reader.as_mut(), &mut seen, &output, 0);

    worker.commit(&[(&output, "0"), (&output, "1")]).unwrap();
    // Two records and a marker.
    until("the end past the marker", || {
        seen.add(reader.poll(POLL).unwrap());
        (seen.ends[&output] == 3).then_some(())
    });
    assert_eq!(log.bounds(&output).unwrap().end, 3);

    // An aborted record and its marker. That the record has reached the log shows when a plain one behind it
    // is not stable.
    worker.member.begin().unwrap();
    worker.member.produce(&output, &[value("never")]).unwrap();
    let mut plain = log.producer().unwrap();
    let mut count = 0;
    until("a record to be held behind the open transaction", || {
        plain.produce(&output, &[value("plain")]).unwrap();
        plain.flush(FLUSH).unwrap();
        count += 1;
        (log.bounds(&output).unwrap().end < 3 + count).then_some(())
    });
    worker.member.abort().unwrap();
    let end = 3 + count + 2;
    until("the log to be stable", || (log.bounds(&output).unwrap().end == end).then_some(()));
    read_to(reader.as_mut(), &mut seen, &output, end);
    assert_eq!(seen.ends[&output], end);
    assert!(!seen.texts(&output).contains(&"never".to_owned()));

    // From the middle of nothing: the end is reported with no record at all.
    reader.assign(&[(output.clone(), end - 1)]).unwrap();
    let mut rest = Seen::default();
    read_to(reader.as_mut(), &mut rest, &output, end);
    assert_eq!(rest.texts(&output), Vec::<String>::new());
}

pub fn offsets_and_metadata_with_the_records(log: &dyn Log) {
    let (mut worker, input, output) = writer(log, "offsets");
    let group = worker.group.clone();
    let committed = || log.committed(&group, std::slice::from_ref(&input)).unwrap().remove(0);
    produce_numbers(log, &input, 10);
    assert_eq!(committed(), None);
    let fence = worker.fence.clone().unwrap();

    worker.member.begin().unwrap();
    worker.member.produce(&output, &[value("a")]).unwrap();
    worker.member.commit(&fence, &[(input.clone(), at(4, "watermark=7;idle"))]).unwrap();
    assert_eq!(committed(), Some(at(4, "watermark=7;idle")));

    worker.member.begin().unwrap();
    worker.member.produce(&output, &[value("never")]).unwrap();
    worker.member.abort().unwrap();
    assert_eq!(committed(), Some(at(4, "watermark=7;idle")));

    // Offsets alone, unchanged or without metadata, are a transaction too (rule R4).
    worker.member.begin().unwrap();
    worker.member.commit(&fence, &[(input.clone(), at(4, ""))]).unwrap();
    assert_eq!(committed(), Some(at(4, "")));
    let so_far = log.committed_so_far(&group, &[input], FLUSH).unwrap();
    assert_eq!(so_far, [Some(at(4, ""))]);
    assert_eq!(read_all(log, &output), ["a"]);
}

pub fn no_commit_without_offsets(log: &dyn Log) {
    let (mut worker, _, output) = writer(log, "bare");
    let fence = worker.fence.clone().unwrap();
    worker.member.begin().unwrap();
    worker.member.produce(&output, &[value("never")]).unwrap();
    let error = worker.member.commit(&fence, &[]).unwrap_err();
    assert!(matches!(error, CommitError::Aborted(_)), "{error}");
    worker.member.abort().unwrap();
    worker.commit(&[(&output, "a")]).unwrap();
    assert_eq!(read_all(log, &output), ["a"]);
}

pub fn a_record_too_large_aborts_and_the_next_commits(log: &dyn Log) {
    let (mut worker, input, _) = writer(log, "txn-large");
    let small = topic_with(log, "txn-small", 1, &[("max.message.bytes", "10000")]).remove(0);
    let fence = worker.fence.clone().unwrap();
    // Text that does not compress to below the limit.
    let large: Vec<u8> = (0..200_000_u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    worker.member.begin().unwrap();
    let record = Outgoing { value: Some(&large), ..Outgoing::default() };
    let told = match worker.member.produce(&small, &[record]) {
        Err(error) => error.to_string(),
        Ok(()) => match worker.member.commit(&fence, &[(input.clone(), at(0, ""))]).unwrap_err() {
            error @ (CommitError::Refused(_) | CommitError::Aborted(_)) => error.to_string(),
            other => panic!("{other}"),
        },
    };
    assert!(told.contains(&*small.topic) && told.contains("200000"), "{told}");
    worker.member.abort().unwrap();
    // librdkafka finds the gap in its sequence numbers only now, and aborts once more before it goes on.
    let mut attempts = 0;
    until("a commit", || {
        attempts += 1;
        match worker.commit(&[(&small, "fits")]) {
            Ok(()) => Some(()),
            Err(CommitError::Aborted(_)) if attempts < 3 => {
                worker.member.abort().unwrap();
                None
            }
            Err(other) => panic!("{other}"),
        }
    });
    assert_eq!(read_all(log, &small), ["fits"]);
}

pub fn outside_any_group_a_successor_fences_and_decides(log: &dyn Log) {
    let (a, b) = (topic(log, "apart-a", 1).remove(0), topic(log, "apart-b", 1).remove(0));
    let id = unique("apart");
    let start = || log.transactor(&id, Duration::from_secs(30)).unwrap();
    let mut first = start();
    first.begin().unwrap();
    first.produce(&a, &[value("1")]).unwrap();
    first.produce(&b, &[value("1")]).unwrap();
    first.commit().unwrap();
    first.begin().unwrap();
    first.produce(&a, &[value("never")]).unwrap();
    first.abort().unwrap();
    // Left open, as by a process that is killed.
    first.begin().unwrap();
    first.produce(&a, &[value("never")]).unwrap();

    let mut second = start();
    // Decided by now: nothing holds the ends back.
    assert_eq!((read_all(log, &a), read_all(log, &b)), (vec!["1".to_owned()], vec!["1".to_owned()]));
    second.begin().unwrap();
    second.produce(&a, &[value("2")]).unwrap();
    second.commit().unwrap();
    assert_eq!(read_all(log, &a), ["1", "2"]);
    let error = first.commit().unwrap_err();
    assert!(matches!(error, CommitError::Fenced(_)), "{error}");
    assert_eq!(read_all(log, &a), ["1", "2"]);
}
