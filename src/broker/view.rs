//! A partition as a read-committed consumer sees it, for tests: fetched in small slices, aborted records left out by
//! the list that comes with each, as the clients of Kafka do it.

use std::collections::BTreeSet;

use super::batch::SCAN_BYTES;
use super::partition::Partition;
use super::records::walk;
use super::segment::batches;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    pub offset: i64,
    pub key: Option<String>,
    pub value: Option<String>,
    pub timestamp_ms: i64,
}

/// Everything that is committed.
pub fn committed(partition: &Partition) -> Vec<Seen> {
    let bounds = partition.bounds();
    let mut seen: Vec<Seen> = Vec::new();
    let mut at = bounds.start;
    while let Some(slice) = partition.slice(at, 300, bounds.stable).unwrap() {
        let (bytes, end) = slice.read().unwrap();
        assert!(end > at, "a fetch at {at} gives nothing");
        let mut aborted = partition.aborted(at, end, slice.rewrites).unwrap();
        aborted.sort_by_key(|aborted| aborted.first);
        let mut aborting = BTreeSet::new();
        for (header, batch) in batches(&bytes) {
            assert!(header.intact(batch) && batch.len() >= header.length);
            while aborted.first().is_some_and(|aborted| aborted.first <= header.last_offset()) {
                aborting.insert(aborted.remove(0).producer_id);
            }
            if header.control() {
                assert!(batch.len() >= SCAN_BYTES);
                aborting.remove(&header.producer_id);
                continue;
            }
            if header.transactional() && aborting.contains(&header.producer_id) {
                continue;
            }
            walk(batch, |header, record| {
                let text = |bytes: Option<&[u8]>| bytes.map(|b| String::from_utf8(b.to_vec()).unwrap());
                let offset = header.base_offset + record.offset_delta;
                let (key, value) = (text(record.key), text(record.value));
                let timestamp_ms = record.timestamp_ms(header);
                if offset >= at.max(bounds.start) {
                    assert!(seen.last().is_none_or(|last| last.offset < offset), "{offset} out of order");
                    seen.push(Seen { offset, key, value, timestamp_ms });
                }
                Ok(true)
            })
            .unwrap();
        }
        at = end;
    }
    seen
}
