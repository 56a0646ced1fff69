//! The record batch, Kafka's unit of storage: its header is read and patched in place, and control batches (the
//! markers that end transactions) are built here. What is inside is the matter of `records.rs`.
//!
//! The layout is that of magic 2, <https://kafka.apache.org/documentation/#recordbatch>.
//!
//! Invariant: a batch is stored as the client sent it, but for its base offset, its leader epoch and, in a
//! LogAppendTime topic, its timestamp; it is never decompressed to be fetched, and only compaction changes it later.

/// The header's length, the length prefix included.
pub const HEADER_BYTES: usize = 61;
/// What a scan must read of a batch: the header and, in a control batch, the byte that tells commit from abort.
pub const SCAN_BYTES: usize = HEADER_BYTES + 9;
/// The checksum covers a batch from here to its end.
const CHECKED_FROM: usize = 21;
/// The offset and the length, which the length field does not count.
const PREFIX_BYTES: usize = 12;

pub const LOG_APPEND_TIME: i16 = 0x08;
const CODEC: i16 = 0x07;
const ZSTD: i16 = 4;
/// A record without key, value and headers: its length, attributes, two deltas, two lengths and a count.
const RECORD_BYTES_MIN: u64 = 7;
const TRANSACTIONAL: i16 = 0x10;
const CONTROL: i16 = 0x20;
/// The base timestamp is the time from which on the batch's tombstones, or the marker that it is, may go.
pub const DELETE_HORIZON: i16 = 0x40;

/// The fields of a batch's header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    pub base_offset: i64,
    /// The whole batch in bytes, its prefix included.
    pub length: usize,
    pub magic: i8,
    pub checksum: u32,
    pub attributes: i16,
    pub last_offset_delta: i32,
    pub base_timestamp_ms: i64,
    pub max_timestamp_ms: i64,
    /// -1: neither idempotent nor transactional.
    pub producer_id: i64,
    pub producer_epoch: i16,
    pub base_sequence: i32,
    pub record_count: i32,
}

fn bytes_at<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let mut field = [0; N];
    field.copy_from_slice(&bytes[at..at + N]);
    field
}

impl Header {
    /// `None`: too short for a header, or a length that no batch can have.
    pub fn parse(bytes: &[u8]) -> Option<Header> {
        if bytes.len() < HEADER_BYTES {
            return None;
        }
        let length = usize::try_from(i32::from_be_bytes(bytes_at(bytes, 8))).ok()? + PREFIX_BYTES;
        let header = Header {
            base_offset: i64::from_be_bytes(bytes_at(bytes, 0)),
            length,
            magic: i8::from_be_bytes(bytes_at(bytes, 16)),
            checksum: u32::from_be_bytes(bytes_at(bytes, 17)),
            attributes: i16::from_be_bytes(bytes_at(bytes, 21)),
            last_offset_delta: i32::from_be_bytes(bytes_at(bytes, 23)),
            base_timestamp_ms: i64::from_be_bytes(bytes_at(bytes, 27)),
            max_timestamp_ms: i64::from_be_bytes(bytes_at(bytes, 35)),
            producer_id: i64::from_be_bytes(bytes_at(bytes, 43)),
            producer_epoch: i16::from_be_bytes(bytes_at(bytes, 51)),
            base_sequence: i32::from_be_bytes(bytes_at(bytes, 53)),
            record_count: i32::from_be_bytes(bytes_at(bytes, 57)),
        };
        (length >= HEADER_BYTES && header.last_offset_delta >= 0).then_some(header)
    }

    pub fn last_offset(&self) -> i64 {
        self.base_offset + i64::from(self.last_offset_delta)
    }

    /// Sequence numbers run to 2³¹ − 1 and go on from 0, also inside a batch. Counted by offsets: compaction leaves
    /// records out.
    pub fn last_sequence(&self) -> i32 {
        self.base_sequence.wrapping_add(self.last_offset_delta) & i32::MAX
    }

    /// From when on the tombstones of this batch, or the marker that it is, may go, if compaction has seen it.
    pub fn delete_horizon_ms(&self) -> Option<i64> {
        (self.attributes & DELETE_HORIZON != 0).then_some(self.base_timestamp_ms)
    }

    pub fn transactional(&self) -> bool {
        self.attributes & TRANSACTIONAL != 0
    }

    pub fn control(&self) -> bool {
        self.attributes & CONTROL != 0
    }

    /// For a control batch, whether it commits; `bytes` holds at least [`SCAN_BYTES`] of it.
    pub fn commits(&self, bytes: &[u8]) -> Option<bool> {
        (self.control() && bytes.len() >= SCAN_BYTES).then(|| bytes[SCAN_BYTES - 1] == 1)
    }

    /// Whether it is compressed as Kafka's clients know how to read: not, or by gzip, snappy, lz4 or zstd.
    pub fn is_of_known_codec(&self) -> bool {
        self.attributes & CODEC <= ZSTD
    }

    /// Whether so many records can lie in so many bytes; what a compressed batch holds is seen only by reading it.
    pub fn may_hold_its_records(&self) -> bool {
        let bytes = (self.length - HEADER_BYTES) as u64;
        self.attributes & CODEC != 0
            || u64::from(self.record_count.unsigned_abs()) * RECORD_BYTES_MIN <= bytes
    }

    /// Whether the checksum fits; `batch` is the whole batch.
    pub fn intact(&self, batch: &[u8]) -> bool {
        batch.len() == self.length && crc32c::crc32c(&batch[CHECKED_FROM..]) == self.checksum
    }
}

/// Gives a batch its place in the log. With `append_time_ms` the broker's clock replaces the records' timestamps.
pub fn place(batch: &mut [u8], header: &mut Header, base_offset: i64, append_time_ms: Option<i64>) {
    header.base_offset = base_offset;
    batch[0..8].copy_from_slice(&base_offset.to_be_bytes());
    batch[12..16].copy_from_slice(&0i32.to_be_bytes());
    if let Some(now_ms) = append_time_ms {
        header.attributes |= LOG_APPEND_TIME;
        header.max_timestamp_ms = now_ms;
        batch[21..23].copy_from_slice(&header.attributes.to_be_bytes());
        batch[35..43].copy_from_slice(&now_ms.to_be_bytes());
        header.checksum = crc32c::crc32c(&batch[CHECKED_FROM..]);
        batch[17..21].copy_from_slice(&header.checksum.to_be_bytes());
    }
}

/// The batch with a delete horizon. Its records' timestamps are not kept: this is for markers, which nobody reads.
pub fn mark_horizon(batch: &[u8], mut header: Header, horizon_ms: i64) -> (Vec<u8>, Header) {
    header.attributes |= DELETE_HORIZON;
    header.base_timestamp_ms = horizon_ms;
    seal(header, &batch[HEADER_BYTES..])
}

/// A control batch: the marker that commits or aborts a producer's open transaction in one partition.
pub fn marker(producer_id: i64, producer_epoch: i16, commit: bool, now_ms: i64) -> Vec<u8> {
    // One record; lengths are zigzag varints: length 16, attributes, timestamp, offset, key of 4 bytes
    // (version, type), value of 6 (version, coordinator epoch), no headers.
    let record = [32, 0, 0, 0, 8, 0, 0, 0, u8::from(commit), 12, 0, 0, 0, 0, 0, 0, 0];
    let header = Header {
        base_offset: 0,
        length: 0,
        magic: 2,
        checksum: 0,
        attributes: TRANSACTIONAL | CONTROL,
        last_offset_delta: 0,
        base_timestamp_ms: now_ms,
        max_timestamp_ms: now_ms,
        producer_id,
        producer_epoch,
        base_sequence: -1,
        record_count: 1,
    };
    seal(header, &record).0
}

/// Writes a header before a batch's body, with the length and the checksum that fit.
pub fn seal(mut header: Header, body: &[u8]) -> (Vec<u8>, Header) {
    header.length = HEADER_BYTES + body.len();
    let mut batch = vec![0; HEADER_BYTES];
    batch[0..8].copy_from_slice(&header.base_offset.to_be_bytes());
    batch[8..12].copy_from_slice(&((header.length - PREFIX_BYTES) as i32).to_be_bytes());
    batch[16] = header.magic as u8;
    batch[21..23].copy_from_slice(&header.attributes.to_be_bytes());
    batch[23..27].copy_from_slice(&header.last_offset_delta.to_be_bytes());
    batch[27..35].copy_from_slice(&header.base_timestamp_ms.to_be_bytes());
    batch[35..43].copy_from_slice(&header.max_timestamp_ms.to_be_bytes());
    batch[43..51].copy_from_slice(&header.producer_id.to_be_bytes());
    batch[51..53].copy_from_slice(&header.producer_epoch.to_be_bytes());
    batch[53..57].copy_from_slice(&header.base_sequence.to_be_bytes());
    batch[57..61].copy_from_slice(&header.record_count.to_be_bytes());
    batch.extend_from_slice(body);
    header.checksum = crc32c::crc32c(&batch[CHECKED_FROM..]);
    batch[17..21].copy_from_slice(&header.checksum.to_be_bytes());
    (batch, header)
}

#[cfg(test)]
pub mod tests {
    use super::super::compression::pack;
    use super::*;

    /// A batch of records with these timestamps, as a producer sends it.
    pub fn batch(producer: (i64, i16, i32), transactional: bool, timestamps_ms: &[i64]) -> Vec<u8> {
        packed(producer, transactional, timestamps_ms, 0)
    }

    fn zigzag(out: &mut Vec<u8>, value: i64) {
        let mut rest = ((value << 1) ^ (value >> 63)) as u64;
        while rest >= 0x80 {
            out.push(rest as u8 | 0x80);
            rest >>= 7;
        }
        out.push(rest as u8);
    }

    pub fn packed(
        producer: (i64, i16, i32),
        transactional: bool,
        timestamps_ms: &[i64],
        compression: i16,
    ) -> Vec<u8> {
        let records = vec![(None, Some("value")); timestamps_ms.len()];
        keyed(producer, transactional, &records, timestamps_ms, compression)
    }

    /// A batch of records with these keys and values.
    pub fn keyed(
        (producer_id, producer_epoch, base_sequence): (i64, i16, i32),
        transactional: bool,
        keys_and_values: &[(Option<&str>, Option<&str>)],
        timestamps_ms: &[i64],
        compression: i16,
    ) -> Vec<u8> {
        let text = |out: &mut Vec<u8>, text: Option<&str>| match text {
            None => zigzag(out, -1),
            Some(text) => {
                zigzag(out, text.len() as i64);
                out.extend_from_slice(text.as_bytes());
            }
        };
        let mut records = Vec::new();
        for (delta, (timestamp, (key, value))) in timestamps_ms.iter().zip(keys_and_values).enumerate() {
            let mut record = vec![0];
            zigzag(&mut record, timestamp - timestamps_ms[0]);
            zigzag(&mut record, delta as i64);
            text(&mut record, *key);
            text(&mut record, *value);
            zigzag(&mut record, 0);
            zigzag(&mut records, record.len() as i64);
            records.extend(record);
        }
        let header = Header {
            base_offset: 0,
            length: 0,
            magic: 2,
            checksum: 0,
            attributes: compression | if transactional { TRANSACTIONAL } else { 0 },
            last_offset_delta: timestamps_ms.len() as i32 - 1,
            base_timestamp_ms: timestamps_ms[0],
            max_timestamp_ms: *timestamps_ms.iter().max().unwrap(),
            producer_id,
            producer_epoch,
            base_sequence,
            record_count: timestamps_ms.len() as i32,
        };
        seal(header, &pack(compression, records).unwrap()).0
    }

    #[test]
    fn a_marker_is_an_intact_control_batch() {
        for commit in [true, false] {
            let bytes = marker(7, 3, commit, 1_000);
            let header = Header::parse(&bytes).unwrap();
            assert!(header.intact(&bytes) && header.control() && header.transactional());
            assert_eq!(header.commits(&bytes), Some(commit));
            assert_eq!((header.producer_id, header.producer_epoch), (7, 3));
        }
    }

    #[test]
    fn sequences_wrap_inside_a_batch() {
        let bytes = batch((1, 0, i32::MAX - 1), false, &[1, 2, 3]);
        assert_eq!(Header::parse(&bytes).unwrap().last_sequence(), 0);
    }
}
