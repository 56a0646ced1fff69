//! The codecs of record batches: packed by clients, unpacked here only where records must be looked at (offsets by
//! timestamp, compacted topics), and packed again where compaction dropped some.
//!
//! Invariant: unpacking stops at [`UNPACKED_BYTES_MAX`], whatever a few packed bytes promise.

use std::borrow::Cow;
use std::io::{self, Read, Write};

/// The bits of a batch's attributes that name its codec.
pub const COMPRESSION: i16 = 0x07;
/// A batch that unpacks to more than this is treated as unreadable.
const UNPACKED_BYTES_MAX: u64 = 256 << 20;

pub fn unreadable(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("{what} cannot be read"))
}

/// The records of a batch, unpacked.
pub fn unpack(attributes: i16, body: &[u8]) -> io::Result<Cow<'_, [u8]>> {
    let read = |unpacking: &mut dyn Read| -> io::Result<Cow<'_, [u8]>> {
        let mut out = Vec::new();
        unpacking.take(UNPACKED_BYTES_MAX + 1).read_to_end(&mut out)?;
        if out.len() as u64 > UNPACKED_BYTES_MAX {
            return Err(unreadable("a batch that unpacks to more than 256 MiB"));
        }
        Ok(Cow::Owned(out))
    };
    match attributes & COMPRESSION {
        0 => Ok(Cow::Borrowed(body)),
        1 => read(&mut flate2::read::MultiGzDecoder::new(body)),
        2 => unpack_snappy(body).map(Cow::Owned),
        3 => read(&mut lz4_flex::frame::FrameDecoder::new(body)),
        4 => read(&mut zstd::stream::read::Decoder::new(body)?),
        _ => Err(unreadable("an unknown compression")),
    }
}

/// The inverse of [`unpack`].
pub fn pack(attributes: i16, records: Vec<u8>) -> io::Result<Vec<u8>> {
    match attributes & COMPRESSION {
        0 => Ok(records),
        1 => {
            let mut packer = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
            packer.write_all(&records)?;
            packer.finish()
        }
        2 => snap::raw::Encoder::new().compress_vec(&records).map_err(io::Error::other),
        3 => {
            let mut packer = lz4_flex::frame::FrameEncoder::new(Vec::new());
            packer.write_all(&records)?;
            packer.finish().map_err(io::Error::other)
        }
        4 => zstd::stream::encode_all(&records[..], 0),
        _ => Err(unreadable("an unknown compression")),
    }
}

/// Snappy comes bare (librdkafka) or in the blocks of Java's snappy stream.
fn unpack_snappy(body: &[u8]) -> io::Result<Vec<u8>> {
    const STREAM_MAGIC: &[u8] = b"\x82SNAPPY\0";
    const STREAM_HEADER_BYTES: usize = 16;
    /// Snappy's densest: a copy of 64 bytes takes 3; what promises more lies.
    const PER_BYTE_MAX: usize = 64;
    let block = |bytes: &[u8], out: &mut Vec<u8>| -> io::Result<()> {
        let length = snap::raw::decompress_len(bytes).map_err(io::Error::other)?;
        if length > bytes.len().saturating_mul(PER_BYTE_MAX)
            || (out.len() + length) as u64 > UNPACKED_BYTES_MAX
        {
            return Err(unreadable("a batch that unpacks to too much"));
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
    while let Some((length, after)) = rest.split_first_chunk::<4>() {
        let length = u32::from_be_bytes(*length) as usize;
        let (compressed, after) =
            after.split_at_checked(length).ok_or_else(|| unreadable("a snappy block"))?;
        block(compressed, &mut out)?;
        rest = after;
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_packed_unpacks_to_the_same() {
        let records: Vec<u8> = (0..100_000u32).flat_map(|at| (at / 7).to_be_bytes()).collect();
        for codec in 0..=4 {
            let packed = pack(codec, records.clone()).unwrap();
            assert!(unpack(codec, &packed).unwrap() == records, "codec {codec}");
            if codec > 0 {
                assert!(packed.len() < records.len());
                assert!(unpack(codec, &packed[..packed.len() / 2]).is_err(), "codec {codec}, cut");
            }
        }
        assert!(pack(7, Vec::new()).is_err() && unpack(7, &[]).is_err());
    }

    #[test]
    fn a_few_bytes_that_promise_much_reserve_little() {
        // A bare snappy block whose length says 200 MiB.
        assert!(unpack(2, &[0x80, 0x80, 0x80, 0x64, 0, 0]).is_err());
    }
}
