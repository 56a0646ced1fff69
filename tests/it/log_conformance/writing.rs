//! Topics, and what a record may hold.

use super::*;
use headwater::log::LogError;
use headwater::record::Header;

pub fn topics_are_created_once_and_deleted(log: &dyn Log) {
    let partitions = topic_with(log, "created", 3, &[("cleanup.policy", "compact")]);
    let name = partitions[0].topic.to_string();
    let again = TopicSpec { name: name.clone(), partitions: 7, config: BTreeMap::new() };
    log.create_topics(&[again]).unwrap();
    assert_eq!(log.partitions(&name).unwrap(), Some(3));
    let listed = log.topics().unwrap();
    assert!(listed.iter().any(|topic| topic.name == name && topic.partitions == 3));
    let config = log.topic_config(&name).unwrap();
    assert_eq!(config["cleanup.policy"], "compact");
    assert_eq!(config["retention.ms"], "-1");
    assert_eq!(config["message.timestamp.type"], "CreateTime", "defaults are told too");
    let id = log.topic_id(&name).unwrap().expect("every cluster tells ids here");
    assert_eq!(log.topic_id(&name).unwrap().as_ref(), Some(&id), "it stays the same");
    log.delete_topics(std::slice::from_ref(&name)).unwrap();
    assert_eq!(log.partitions(&name).unwrap(), None);
    assert_eq!(log.topic_id(&name).unwrap(), None);
    log.create_topics(&[TopicSpec { name: name.clone(), partitions: 3, config: BTreeMap::new() }]).unwrap();
    assert_ne!(log.topic_id(&name).unwrap().expect("it is there"), id, "it is another topic");
    log.delete_topics(std::slice::from_ref(&name)).unwrap();
}

pub fn keys_values_and_headers_may_be_null(log: &dyn Log) {
    let partition = topic(log, "nulls", 1).remove(0);
    let headers = [
        Header::text("a", "1"),
        Header { name: "b".into(), value: None },
        Header::text("a", "2"),
        Header { name: "empty".into(), value: Some(Vec::new()) },
    ];
    let key: &[u8] = &[0, 255];
    let records = [
        Outgoing { key: None, value: None, ..Outgoing::default() },
        Outgoing { key: Some(b""), value: Some(b""), ..Outgoing::default() },
        Outgoing { key: Some(key), value: None, headers: &headers, timestamp_ms: None },
        Outgoing { key: Some(b"k"), value: Some(b"v"), ..Outgoing::default() },
    ];
    let mut producer = log.producer().unwrap();
    producer.produce(&partition, &records).unwrap();
    producer.flush(FLUSH).unwrap();
    let mut reader = log.reader().unwrap();
    reader.assign(&[(partition.clone(), 0)]).unwrap();
    let mut seen = Seen::default();
    read_to(reader.as_mut(), &mut seen, &partition, 4);
    for (sent, read) in records.iter().zip(&seen.records[&partition]) {
        assert_eq!(read.key.as_deref(), sent.key);
        assert_eq!(read.value.as_deref(), sent.value);
        assert_eq!(read.headers, sent.headers);
        assert!(read.timestamp_ms > 0, "the producer stamps it");
    }
}

/// Bytes that do not compress.
fn noise(length: usize) -> Vec<u8> {
    let mut state = 0x9E37_79B9_7F4A_7C15_u64;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend(state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

pub fn large_records(log: &dyn Log) {
    let partition = topic_with(log, "large", 1, &[("max.message.bytes", "8000000")]).remove(0);
    let values: Vec<Vec<u8>> = [900_000, 4_000_000, 10, 7_500_000].into_iter().map(noise).collect();
    let mut producer = log.producer().unwrap();
    for value in &values {
        producer.produce(&partition, &[Outgoing { value: Some(value), ..Outgoing::default() }]).unwrap();
    }
    producer.flush(FLUSH).unwrap();
    let mut reader = log.reader().unwrap();
    reader.assign(&[(partition.clone(), 0)]).unwrap();
    let mut seen = Seen::default();
    read_to(reader.as_mut(), &mut seen, &partition, 4);
    let read: Vec<Vec<u8>> = seen.records[&partition].iter().map(|r| r.value.clone().unwrap()).collect();
    assert!(read == values);
}

pub fn a_record_too_large_is_named(log: &dyn Log) {
    let partition = topic_with(log, "small", 1, &[("max.message.bytes", "10000")]).remove(0);
    let large = noise(100_000);
    let mut producer = log.producer().unwrap();
    let record = Outgoing { value: Some(&large), ..Outgoing::default() };
    let error = producer.produce(&partition, &[record]).and_then(|()| producer.flush(FLUSH)).unwrap_err();
    match error {
        LogError::TooLarge { to, bytes, .. } => assert_eq!((to, bytes), (partition.clone(), 100_000)),
        other => panic!("{other}"),
    }
    // It has been told; what follows is not held up by it.
    producer.produce(&partition, &[value("fits")]).unwrap();
    producer.flush(FLUSH).unwrap();
    assert_eq!(read_all(log, &partition), ["fits"]);
}

pub fn records_are_deleted_before_an_offset(log: &dyn Log) {
    let partition = topic(log, "deleted", 1).remove(0);
    produce_numbers(log, &partition, 100);
    log.delete_before(&[(partition.clone(), 60)]).unwrap();
    assert_eq!(log.bounds(&partition).unwrap(), headwater::log::Bounds { start: 60, end: 100 });
    assert_eq!(read_all(log, &partition), (60..100).map(|i| i.to_string()).collect::<Vec<_>>());
    let error = super::reading::error_of(log, &partition, 59);
    assert!(matches!(error, LogError::OutOfRange { offset: 59, start: 60, end: 100, .. }), "{error}");
}
