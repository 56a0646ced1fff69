//! The record batch, Kafka's unit of storage: its header is read and patched in place, its records are only
//! walked to find a timestamp, and control batches (the markers that end transactions) are built here.
//!
//! The layout is that of magic 2, <https://kafka.apache.org/documentation/#recordbatch>.
//!
//! Invariant: a batch is stored as the client sent it, but for its base offset, its leader epoch and, in a
//! LogAppendTime topic, its timestamp; it is never decompressed to be stored or fetched.

use std::io::{self, Read};

/// The header's length, the length prefix included.
pub const HEADER_BYTES: usize = 61;
/// What a scan must read of a batch: the header and, in a control batch, the byte that tells commit from abort.
pub const SCAN_BYTES: usize = HEADER_BYTES + 9;
/// The checksum covers a batch from here to its end.
const CHECKED_FROM: usize = 21;
/// The offset and the length, which the length field does not count.
const PREFIX_BYTES: usize = 12;
/// A batch that unpacks to more than this is treated as unreadable.
const UNPACKED_BYTES_MAX: u64 = 256 << 20;

const COMPRESSION: i16 = 0x07;
const LOG_APPEND_TIME: i16 = 0x08;
const TRANSACTIONAL: i16 = 0x10;
const CONTROL: i16 = 0x20;

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

    /// Sequence numbers run to 2³¹ − 1 and go on from 0, also inside a batch.
    pub fn last_sequence(&self) -> i32 {
        self.base_sequence.wrapping_add(self.record_count - 1) & i32::MAX
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

/// A control batch: the marker that commits or aborts a producer's open transaction in one partition.
pub fn marker(producer_id: i64, producer_epoch: i16, commit: bool, now_ms: i64) -> Vec<u8> {
    // One record; lengths are zigzag varints: length 16, attributes, timestamp, offset, key of 4 bytes
    // (version, type), value of 6 (version, coordinator epoch), no headers.
    let record = [32, 0, 0, 0, 8, 0, 0, 0, u8::from(commit), 12, 0, 0, 0, 0, 0, 0, 0];
    let mut batch = vec![0; HEADER_BYTES];
    batch[8..12].copy_from_slice(&((HEADER_BYTES - PREFIX_BYTES + record.len()) as i32).to_be_bytes());
    batch[16] = 2;
    batch[21..23].copy_from_slice(&(TRANSACTIONAL | CONTROL).to_be_bytes());
    batch[27..35].copy_from_slice(&now_ms.to_be_bytes());
    batch[35..43].copy_from_slice(&now_ms.to_be_bytes());
    batch[43..51].copy_from_slice(&producer_id.to_be_bytes());
    batch[51..53].copy_from_slice(&producer_epoch.to_be_bytes());
    batch[53..57].copy_from_slice(&(-1i32).to_be_bytes());
    batch[57..61].copy_from_slice(&1i32.to_be_bytes());
    batch.extend_from_slice(&record);
    let checksum = crc32c::crc32c(&batch[CHECKED_FROM..]);
    batch[17..21].copy_from_slice(&checksum.to_be_bytes());
    batch
}

/// The first record at or after `from_offset` whose timestamp is at least `timestamp_ms`, as
/// (timestamp, offset). Reads compressed batches too.
pub fn find_timestamp(batch: &[u8], from_offset: i64, timestamp_ms: i64) -> io::Result<Option<(i64, i64)>> {
    let Some(header) = Header::parse(batch).filter(|header| header.length == batch.len()) else {
        return Err(unreadable("a record batch's header"));
    };
    let unpacked = unpack(header.attributes & COMPRESSION, &batch[HEADER_BYTES..])?;
    let mut rest = unpacked.as_deref().unwrap_or(&batch[HEADER_BYTES..]);
    for _ in 0..header.record_count {
        let length = varint(&mut rest)?;
        let record_length = usize::try_from(length).map_err(|_| unreadable("a record's length"))?;
        if record_length > rest.len() || record_length == 0 {
            return Err(unreadable("a record's length"));
        }
        let (record, after) = rest.split_at(record_length);
        rest = after;
        let mut fields = &record[1..];
        let timestamp_delta = varint(&mut fields)?;
        let offset = header.base_offset + varint(&mut fields)?;
        let timestamp = match header.attributes & LOG_APPEND_TIME {
            0 => header.base_timestamp_ms + timestamp_delta,
            _ => header.max_timestamp_ms,
        };
        if timestamp >= timestamp_ms && offset >= from_offset {
            return Ok(Some((timestamp, offset)));
        }
    }
    Ok(None)
}

fn unreadable(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("{what} cannot be read"))
}

/// A zigzag varint, at most 64 bits.
fn varint(bytes: &mut &[u8]) -> io::Result<i64> {
    let mut value = 0u64;
    for shift in (0..64).step_by(7) {
        let (&byte, rest) = bytes.split_first().ok_or_else(|| unreadable("a variable-length number"))?;
        *bytes = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Ok(((value >> 1) as i64) ^ -((value & 1) as i64));
        }
    }
    Err(unreadable("a variable-length number"))
}

/// The records of a batch, unpacked; `None`: they are not compressed.
fn unpack(compression: i16, body: &[u8]) -> io::Result<Option<Vec<u8>>> {
    let mut out = Vec::new();
    match compression {
        0 => return Ok(None),
        1 => flate2::read::MultiGzDecoder::new(body).take(UNPACKED_BYTES_MAX).read_to_end(&mut out)?,
        2 => return unpack_snappy(body).map(Some),
        3 => lz4_flex::frame::FrameDecoder::new(body).take(UNPACKED_BYTES_MAX).read_to_end(&mut out)?,
        4 => zstd::stream::read::Decoder::new(body)?.take(UNPACKED_BYTES_MAX).read_to_end(&mut out)?,
        _ => return Err(unreadable("an unknown compression")),
    };
    Ok(Some(out))
}

/// Snappy comes bare (librdkafka) or in the blocks of Java's snappy stream.
fn unpack_snappy(body: &[u8]) -> io::Result<Vec<u8>> {
    const STREAM_MAGIC: &[u8] = b"\x82SNAPPY\0";
    const STREAM_HEADER_BYTES: usize = 16;
    let block = |bytes: &[u8], out: &mut Vec<u8>| -> io::Result<()> {
        let length = snap::raw::decompress_len(bytes).map_err(io::Error::other)?;
        if (out.len() + length) as u64 > UNPACKED_BYTES_MAX {
            return Err(unreadable("a batch that unpacks to more than 256 MiB"));
        }
        let start = out.len();
        out.resize(start + length, 0);
        snap::raw::Decoder::new().decompress(bytes, &mut out[start..]).map_err(io::Error::other)?;
        Ok(())
    };
    let mut out = Vec::new();
    if !body.starts_with(STREAM_MAGIC) || body.len() < STREAM_HEADER_BYTES {
        block(body, &mut out)?;
        return Ok(out);
    }
    let mut rest = &body[STREAM_HEADER_BYTES..];
    while rest.len() >= 4 {
        let length = u32::from_be_bytes(bytes_at(rest, 0)) as usize;
        let compressed = rest.get(4..4 + length).ok_or_else(|| unreadable("a snappy block"))?;
        block(compressed, &mut out)?;
        rest = &rest[4 + length..];
    }
    Ok(out)
}

#[cfg(test)]
pub mod tests {
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
        (producer_id, epoch, sequence): (i64, i16, i32),
        transactional: bool,
        timestamps_ms: &[i64],
        compression: i16,
    ) -> Vec<u8> {
        let mut records = Vec::new();
        for (delta, timestamp) in timestamps_ms.iter().enumerate() {
            let mut record = vec![0];
            zigzag(&mut record, timestamp - timestamps_ms[0]);
            zigzag(&mut record, delta as i64);
            zigzag(&mut record, -1);
            zigzag(&mut record, 5);
            record.extend_from_slice(b"value");
            zigzag(&mut record, 0);
            zigzag(&mut records, record.len() as i64);
            records.extend(record);
        }
        let body = match compression {
            1 => {
                let mut packer = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
                io::Write::write_all(&mut packer, &records).unwrap();
                packer.finish().unwrap()
            }
            2 => snap::raw::Encoder::new().compress_vec(&records).unwrap(),
            3 => {
                let mut packer = lz4_flex::frame::FrameEncoder::new(Vec::new());
                io::Write::write_all(&mut packer, &records).unwrap();
                packer.finish().unwrap()
            }
            4 => zstd::stream::encode_all(&records[..], 1).unwrap(),
            _ => records,
        };
        let mut batch = vec![0; HEADER_BYTES];
        let attributes = compression | if transactional { TRANSACTIONAL } else { 0 };
        batch[8..12].copy_from_slice(&((HEADER_BYTES - PREFIX_BYTES + body.len()) as i32).to_be_bytes());
        batch[16] = 2;
        batch[21..23].copy_from_slice(&attributes.to_be_bytes());
        batch[23..27].copy_from_slice(&(timestamps_ms.len() as i32 - 1).to_be_bytes());
        batch[27..35].copy_from_slice(&timestamps_ms[0].to_be_bytes());
        batch[35..43].copy_from_slice(&timestamps_ms.iter().max().unwrap().to_be_bytes());
        batch[43..51].copy_from_slice(&producer_id.to_be_bytes());
        batch[51..53].copy_from_slice(&epoch.to_be_bytes());
        batch[53..57].copy_from_slice(&sequence.to_be_bytes());
        batch[57..61].copy_from_slice(&(timestamps_ms.len() as i32).to_be_bytes());
        batch.extend(body);
        let checksum = crc32c::crc32c(&batch[CHECKED_FROM..]);
        batch[17..21].copy_from_slice(&checksum.to_be_bytes());
        batch
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
    fn a_timestamp_is_found_inside_a_batch_of_any_compression() {
        for compression in 0..=4 {
            let mut bytes = packed((-1, -1, -1), false, &[100, 300, 200, 400], compression);
            let mut header = Header::parse(&bytes).unwrap();
            place(&mut bytes, &mut header, 50, None);
            assert_eq!(find_timestamp(&bytes, 0, 150).unwrap(), Some((300, 51)), "compression {compression}");
            assert_eq!(find_timestamp(&bytes, 52, 150).unwrap(), Some((200, 52)));
            assert_eq!(find_timestamp(&bytes, 0, 401).unwrap(), None);
        }
    }

    #[test]
    fn append_time_replaces_the_timestamps_and_keeps_the_checksum_right() {
        let mut bytes = batch((-1, -1, -1), false, &[100, 200]);
        let mut header = Header::parse(&bytes).unwrap();
        place(&mut bytes, &mut header, 9, Some(5_000));
        assert!(Header::parse(&bytes).unwrap().intact(&bytes));
        assert_eq!(find_timestamp(&bytes, 0, 4_000).unwrap(), Some((5_000, 9)));
    }

    #[test]
    fn sequences_wrap_inside_a_batch() {
        let bytes = batch((1, 0, i32::MAX - 1), false, &[1, 2, 3]);
        assert_eq!(Header::parse(&bytes).unwrap().last_sequence(), 0);
    }

    #[test]
    fn nonsense_is_an_error_not_a_panic() {
        let bytes = packed((-1, -1, -1), false, &[1, 2, 3], 0);
        for cut in 0..bytes.len() {
            let _ = Header::parse(&bytes[..cut]);
            assert!(find_timestamp(&bytes[..cut], 0, 0).is_err());
        }
        for at in 8..bytes.len() {
            let mut broken = bytes.clone();
            broken[at] ^= 0xff;
            let _ = find_timestamp(&broken, 0, i64::MAX);
        }
    }
}
