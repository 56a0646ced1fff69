//! The records inside a batch: walked where their keys or timestamps matter, and left out where compaction drops
//! them.
//!
//! The layout is that of magic 2, <https://kafka.apache.org/documentation/#record>; how a rewritten batch says from
//! when on its tombstones may go is Kafka's delete horizon (KIP-534).

use std::io;

use super::batch::{DELETE_HORIZON, HEADER_BYTES, Header, LOG_APPEND_TIME, seal};
use super::compression::{COMPRESSION, pack, unpack, unreadable};

/// One record, its numbers relative to its batch.
pub struct Record<'a> {
    attributes: u8,
    timestamp_delta: i64,
    pub offset_delta: i64,
    pub key: Option<&'a [u8]>,
    /// `None` deletes the key.
    pub value: Option<&'a [u8]>,
    /// Everything from the offset on, as it was.
    rest: &'a [u8],
}

impl Record<'_> {
    /// It deletes its key.
    pub fn is_tombstone(&self) -> bool {
        self.key.is_some() && self.value.is_none()
    }

    pub fn timestamp_ms(&self, header: &Header) -> i64 {
        match header.attributes & LOG_APPEND_TIME {
            0 => header.base_timestamp_ms.wrapping_add(self.timestamp_delta),
            _ => header.max_timestamp_ms,
        }
    }
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

fn put_varint(out: &mut Vec<u8>, value: i64) {
    let mut rest = ((value << 1) ^ (value >> 63)) as u64;
    while rest >= 0x80 {
        out.push(rest as u8 | 0x80);
        rest >>= 7;
    }
    out.push(rest as u8);
}

fn record<'a>(bytes: &mut &'a [u8]) -> io::Result<Record<'a>> {
    let length = usize::try_from(varint(bytes)?).map_err(|_| unreadable("a record's length"))?;
    let (record, after) = bytes.split_at_checked(length).ok_or_else(|| unreadable("a record's length"))?;
    *bytes = after;
    let (&attributes, mut fields) = record.split_first().ok_or_else(|| unreadable("a record"))?;
    let timestamp_delta = varint(&mut fields)?;
    let rest = fields;
    let offset_delta = varint(&mut fields)?;
    let key = field(&mut fields)?;
    let value = field(&mut fields)?;
    Ok(Record { attributes, timestamp_delta, offset_delta, key, value, rest })
}

/// A key or a value; a negative length says that there is none.
fn field<'a>(bytes: &mut &'a [u8]) -> io::Result<Option<&'a [u8]>> {
    let Ok(length) = usize::try_from(varint(bytes)?) else { return Ok(None) };
    let (found, after) =
        bytes.split_at_checked(length).ok_or_else(|| unreadable("a record's key or value"))?;
    *bytes = after;
    Ok(Some(found))
}

/// Walks the records of a whole batch until `each` says that it has seen enough (`false`).
pub fn walk(batch: &[u8], mut each: impl FnMut(&Header, &Record<'_>) -> io::Result<bool>) -> io::Result<()> {
    let Some(header) = Header::parse(batch).filter(|header| header.length == batch.len()) else {
        return Err(unreadable("a record batch's header"));
    };
    if header.record_count < 1 {
        return Ok(());
    }
    let unpacked = unpack(header.attributes, &batch[HEADER_BYTES..])?;
    let mut rest = &unpacked[..];
    for _ in 0..header.record_count {
        if !each(&header, &record(&mut rest)?)? {
            break;
        }
    }
    Ok(())
}

/// The first record at or after `from_offset` whose timestamp is at least `timestamp_ms`, as
/// (timestamp, offset). Reads compressed batches too.
pub fn find_timestamp(batch: &[u8], from_offset: i64, timestamp_ms: i64) -> io::Result<Option<(i64, i64)>> {
    let mut found = None;
    walk(batch, |header, record| {
        let timestamp = record.timestamp_ms(header);
        let offset = header.base_offset.saturating_add(record.offset_delta);
        if timestamp >= timestamp_ms && offset >= from_offset {
            found = Some((timestamp, offset));
        }
        Ok(found.is_none())
    })?;
    Ok(found)
}

/// The batch with only those records that `keep` wants, at the offsets that they had; `None`: it wants them all and
/// nothing else changes. With `horizon_ms` the batch says that its tombstones may go then.
pub fn retain(
    batch: &[u8],
    horizon_ms: Option<i64>,
    mut keep: impl FnMut(&Header, &Record<'_>) -> bool,
) -> io::Result<Option<(Vec<u8>, Header)>> {
    let old = Header::parse(batch).ok_or_else(|| unreadable("a record batch's header"))?;
    let base_timestamp_ms = horizon_ms.unwrap_or(old.base_timestamp_ms);
    let mut records = Vec::new();
    let (mut kept, mut newest) = (0, -1);
    walk(batch, |header, record| {
        if !keep(header, record) {
            return Ok(true);
        }
        kept += 1;
        newest = newest.max(record.timestamp_ms(header));
        let mut body = vec![record.attributes];
        let shift = header.base_timestamp_ms.wrapping_sub(base_timestamp_ms);
        put_varint(&mut body, record.timestamp_delta.wrapping_add(shift));
        body.extend_from_slice(record.rest);
        put_varint(&mut records, body.len() as i64);
        records.append(&mut body);
        Ok(true)
    })?;
    if kept == old.record_count && horizon_ms.is_none() {
        return Ok(None);
    }
    let mut header = old;
    header.record_count = kept;
    header.base_timestamp_ms = base_timestamp_ms;
    if horizon_ms.is_some() {
        header.attributes |= DELETE_HORIZON;
    }
    if kept > 0 && header.attributes & LOG_APPEND_TIME == 0 {
        header.max_timestamp_ms = newest;
    }
    if kept == 0 {
        // Clients must find nothing that they would unpack.
        header.attributes &= !COMPRESSION;
    }
    let body = pack(header.attributes, records)?;
    Ok(Some(seal(header, &body)))
}

#[cfg(test)]
mod tests {
    use super::super::batch::place;
    use super::super::batch::tests::{batch, keyed, packed};
    use super::*;

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
    fn what_is_retained_keeps_offsets_timestamps_keys_and_compression() {
        for compression in 0..=4 {
            let records =
                [(Some("a"), Some("1")), (Some("b"), None), (None, Some("3")), (Some("c"), Some("4"))];
            let mut bytes = keyed((5, 1, 9), false, &records, &[100, 400, 200, 300], compression);
            let mut header = Header::parse(&bytes).unwrap();
            place(&mut bytes, &mut header, 50, None);
            assert!(retain(&bytes, None, |_, _| true).unwrap().is_none());
            for horizon in [None, Some(9_000)] {
                let kept = retain(&bytes, horizon, |_, record| record.key != Some(b"a")).unwrap();
                let (after, header) = kept.unwrap();
                assert_eq!(Header::parse(&after).unwrap(), header);
                assert!(header.intact(&after), "compression {compression}");
                assert_eq!((header.base_offset, header.last_offset()), (50, 53));
                assert_eq!((header.base_sequence, header.last_sequence(), header.record_count), (9, 12, 3));
                assert_eq!((header.attributes & 7, header.max_timestamp_ms), (compression, 400));
                let mut seen = Vec::new();
                walk(&after, |header, record| {
                    seen.push((record.offset_delta, record.timestamp_ms(header), record.is_tombstone()));
                    Ok(true)
                })
                .unwrap();
                assert_eq!(seen, [(1, 400, true), (2, 200, false), (3, 300, false)]);
            }
            let (empty, header) = retain(&bytes, None, |_, _| false).unwrap().unwrap();
            assert!(header.intact(&empty) && empty.len() == HEADER_BYTES && header.last_offset() == 53);
            walk(&empty, |_, _| panic!("no record is left")).unwrap();
        }
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

    #[test]
    fn append_time_replaces_the_timestamps_and_keeps_the_checksum_right() {
        let mut bytes = batch((-1, -1, -1), false, &[100, 200]);
        let mut header = Header::parse(&bytes).unwrap();
        place(&mut bytes, &mut header, 9, Some(5_000));
        assert!(Header::parse(&bytes).unwrap().intact(&bytes));
        assert_eq!(find_timestamp(&bytes, 0, 4_000).unwrap(), Some((5_000, 9)));
    }
}
