//! Readers: order, positions, bounds.

use super::*;
use headwater::log::LogError;

pub fn every_record_once_in_order(log: &dyn Log) {
    let partitions = topic(log, "read", 3);
    for (i, partition) in (0..).zip(&partitions) {
        produce_numbers(log, partition, 2_000 + i);
    }
    let mut reader = log.reader().unwrap();
    reader.assign(&partitions.iter().map(|p| (p.clone(), 0)).collect::<Vec<_>>()).unwrap();
    let mut seen = Seen::default();
    for (i, partition) in (0..).zip(&partitions) {
        let count = 2_000 + i;
        assert_eq!(log.bounds(partition).unwrap(), headwater::log::Bounds { start: 0, end: count });
        read_to(reader.as_mut(), &mut seen, partition, count);
    }
    for (i, partition) in (0..).zip(&partitions) {
        let records = &seen.records[partition];
        assert_eq!(records.iter().map(|r| r.offset).collect::<Vec<_>>(), (0..2_000 + i).collect::<Vec<_>>());
        assert!(records.iter().all(|r| text(r) == r.offset.to_string() && r.timestamp_ms >= 0));
    }
}

pub fn assigned_in_the_middle_and_moved(log: &dyn Log) {
    let partitions = topic(log, "middle", 2);
    for partition in &partitions {
        produce_numbers(log, partition, 3_000);
    }
    let mut reader = log.reader().unwrap();
    // Each new assignment is made while records of the one before are still on their way.
    for from in [1_500, 10, 2_999, 500, 0, 2_000] {
        reader.assign(&[(partitions[0].clone(), from), (partitions[1].clone(), from + 1)]).unwrap();
        let mut first: BTreeMap<TopicPartition, i64> = BTreeMap::new();
        let wanted = if from == 2_999 { 1 } else { 2 };
        until("the first records", || {
            for event in reader.poll(POLL).unwrap() {
                if let Event::Run(run) = event {
                    first.entry(run.partition.clone()).or_insert(run.records.get(0).offset);
                }
            }
            (first.len() >= wanted).then_some(())
        });
        assert_eq!(first[&partitions[0]], from);
        assert!(wanted == 1 || first[&partitions[1]] == from + 1);
    }
    // A partition that is no longer assigned is no longer read.
    reader.assign(&[(partitions[1].clone(), 2_990)]).unwrap();
    let mut seen = Seen::default();
    read_to(reader.as_mut(), &mut seen, &partitions[1], 3_000);
    assert_eq!(seen.texts(&partitions[1]), (2_990..3_000).map(|i| i.to_string()).collect::<Vec<_>>());
    assert!(!seen.records.contains_key(&partitions[0]));
}

/// The first error of assigning and reading.
pub fn error_of(log: &dyn Log, partition: &TopicPartition, offset: i64) -> LogError {
    let mut reader = log.reader().unwrap();
    if let Err(error) = reader.assign(&[(partition.clone(), offset)]) {
        return error;
    }
    until("an error", || match reader.poll(POLL) {
        Ok(events) => {
            assert!(!events.iter().any(|e| matches!(e, Event::Run(_))), "read {partition} from {offset}");
            None
        }
        Err(error) => Some(error),
    })
}

pub fn an_offset_it_does_not_hold_is_an_error(log: &dyn Log) {
    let partition = topic(log, "range", 1).remove(0);
    produce_numbers(log, &partition, 10);
    for wrong in [11, 1_000, -1, -2] {
        match error_of(log, &partition, wrong) {
            LogError::OutOfRange { partition: of, offset, start: 0, end: 10 } => {
                assert_eq!((of, offset), (partition.clone(), wrong));
            }
            other => panic!("{other}"),
        }
    }
    // The end itself is a position.
    let mut reader = log.reader().unwrap();
    reader.assign(&[(partition.clone(), 10)]).unwrap();
    let mut seen = Seen::default();
    read_to(reader.as_mut(), &mut seen, &partition, 10);
    assert!(seen.records.is_empty());
}

pub fn offset_at_a_timestamp(log: &dyn Log) {
    let config = [("message.timestamp.type", "CreateTime")];
    let partition = topic_with(log, "times", 1, &config).remove(0);
    let start = 1_700_000_000_000;
    let mut producer = log.producer().unwrap();
    for i in 0..5 {
        let record = Outgoing { timestamp_ms: Some(start + i * 1_000), ..value("x") };
        producer.produce(&partition, &[record]).unwrap();
    }
    producer.flush(FLUSH).unwrap();
    for (timestamp, expected) in [
        (0, Some(0)),
        (start, Some(0)),
        (start + 1, Some(1)),
        (start + 2_000, Some(2)),
        (start + 4_000, Some(4)),
        (start + 4_001, None),
    ] {
        assert_eq!(log.offset_at(&partition, timestamp).unwrap(), expected, "at {timestamp}");
    }
    let mut reader = log.reader().unwrap();
    reader.assign(&[(partition.clone(), 0)]).unwrap();
    let mut seen = Seen::default();
    read_to(reader.as_mut(), &mut seen, &partition, 5);
    let times: Vec<i64> = seen.records[&partition].iter().map(|r| r.timestamp_ms - start).collect();
    assert_eq!(times, [0, 1_000, 2_000, 3_000, 4_000]);
}

pub fn paused_and_resumed(log: &dyn Log) {
    let partitions = topic(log, "pause", 2);
    for partition in &partitions {
        produce_numbers(log, partition, 1_000);
    }
    let mut reader = log.reader().unwrap();
    reader.assign(&partitions.iter().map(|p| (p.clone(), 0)).collect::<Vec<_>>()).unwrap();
    reader.pause(&partitions[..1]).unwrap();
    let mut seen = Seen::default();
    read_to(reader.as_mut(), &mut seen, &partitions[1], 1_000);
    let before = seen.texts(&partitions[0]).len();
    for _ in 0..5 {
        seen.add(reader.poll(POLL).unwrap());
    }
    assert_eq!(seen.texts(&partitions[0]).len(), before, "read while paused");
    reader.resume(&partitions[..1]).unwrap();
    read_to(reader.as_mut(), &mut seen, &partitions[0], 1_000);
    assert_eq!(seen.texts(&partitions[0]), (0..1_000).map(|i| i.to_string()).collect::<Vec<_>>());
}

pub fn paused_at_its_end_and_resumed(log: &dyn Log) {
    let partition = topic(log, "pause-end", 1).remove(0);
    let mut reader = log.reader().unwrap();
    reader.assign(&[(partition.clone(), 0)]).unwrap();
    let mut seen = Seen::default();
    for round in 1..=5 {
        produce_numbers(log, &partition, 1);
        read_to(reader.as_mut(), &mut seen, &partition, round);
        reader.pause(std::slice::from_ref(&partition)).unwrap();
        assert!(reader.poll(POLL).unwrap().is_empty(), "an end is reported once");
        reader.resume(std::slice::from_ref(&partition)).unwrap();
    }
    // What arrives during the pause begins right at the end.
    reader.pause(std::slice::from_ref(&partition)).unwrap();
    produce_numbers(log, &partition, 3);
    reader.resume(std::slice::from_ref(&partition)).unwrap();
    read_to(reader.as_mut(), &mut seen, &partition, 8);
    let offsets: Vec<i64> = seen.records[&partition].iter().map(|record| record.offset).collect();
    assert_eq!(offsets, (0..8).collect::<Vec<_>>());
}

pub fn unknown_topics(log: &dyn Log) {
    let name = unique("nowhere");
    let partition = TopicPartition::new(name.as_str(), 0);
    assert_eq!(log.partitions(&name).unwrap(), None);
    let mut errors = vec![
        log.bounds(&partition).unwrap_err(),
        log.offset_at(&partition, 0).unwrap_err(),
        log.topic_config(&name).unwrap_err(),
        error_of(log, &partition, 0),
        log.member(&options("g", "nobody", &partition)).err().expect("no topic to read"),
    ];
    let mut producer = log.producer().unwrap();
    let outcome = producer.produce(&partition, &[value("x")]).and_then(|()| producer.flush(FLUSH));
    errors.push(outcome.unwrap_err());
    for error in errors {
        assert!(matches!(&error, LogError::NoTopic { topic, .. } if *topic == name), "{error}");
    }
    assert_eq!(log.partitions(&name).unwrap(), None, "asking must not create it");
}
