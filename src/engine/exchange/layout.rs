//! What a record batch's metadata says of the bytes behind it, checked before Arrow believes it.
//!
//! Arrow takes offsets and lengths as they come: it panics where they lie outside of the bytes, and reserves what a
//! buffer says it inflates to. What the columns hold (text, offsets of lists, counts of nulls) it does check itself.
//!
//! Invariant: the buffers lie in the body, in order and apart from each other, and inflate to at most
//! [`LZ4_RATIO_MAX`] times what is there; so a message takes memory in proportion to its length.

use arrow::datatypes::{DataType, Fields};
use arrow_ipc::{CompressionType, FieldNode};

/// lz4 says "255 more" in one byte.
const LZ4_RATIO_MAX: u64 = 255;
/// Of a compressed buffer: what it inflates to, or -1 where it is stored as it is.
const PREFIX_BYTES: usize = 8;
/// Rows that need no byte of a buffer, of columns that hold nothing but nulls.
const ROWS_OF_NOTHING_MAX: u64 = 1 << 20;

type Result<T, E = String> = std::result::Result<T, E>;

/// The error says what is wrong.
pub(super) fn check(batch: arrow_ipc::RecordBatch<'_>, fields: &Fields, body: &[u8]) -> Result<()> {
    let compressed = match batch.compression() {
        None => false,
        Some(compression) if compression.codec() == CompressionType::LZ4_FRAME => true,
        Some(compression) => return Err(format!("its buffers are compressed by {:?}", compression.codec())),
    };
    let (Some(nodes), Some(buffers)) = (batch.nodes(), batch.buffers()) else {
        return Err("it names no columns".into());
    };
    if batch.variadicBufferCounts().is_some_and(|counts| !counts.is_empty()) {
        return Err("it has buffers of no column".into());
    }
    let rows = count(batch.length())?;
    let mut walk = Walk { nodes: nodes.iter(), buffers: buffers.iter(), body, compressed, end: 0 };
    for field in fields {
        if walk.column(field.data_type())? != rows {
            return Err(format!("column {} has not as many entries as there are rows", field.name()));
        }
    }
    if walk.nodes.next().is_some() || walk.buffers.next().is_some() {
        return Err("it has more columns than the exchange".into());
    }
    // Of what is stored, a bit at least is an entry's.
    let most = ROWS_OF_NOTHING_MAX.max(body.len() as u64 * 8 * LZ4_RATIO_MAX);
    if rows > most { Err(format!("it cannot hold {rows} rows")) } else { Ok(()) }
}

fn count(number: i64) -> Result<u64> {
    u64::try_from(number).map_err(|_| format!("{number} is no number of entries"))
}

struct Walk<'a, N, B> {
    nodes: N,
    buffers: B,
    body: &'a [u8],
    compressed: bool,
    /// Where the last buffer ended.
    end: usize,
}

impl<'a, N, B> Walk<'_, N, B>
where
    N: Iterator<Item = &'a FieldNode>,
    B: Iterator<Item = &'a arrow_ipc::Buffer>,
{
    /// The column's entries; Arrow reads nodes and buffers in the same order.
    fn column(&mut self, data_type: &DataType) -> Result<u64> {
        let node = self.nodes.next().ok_or("it has fewer columns than the exchange")?;
        let (entries, nulls) = (count(node.length())?, count(node.null_count())?);
        if nulls > entries {
            return Err(format!("{nulls} of {entries} entries are null"));
        }
        if *data_type == DataType::Null {
            return Ok(entries);
        }
        let validity = self.buffer()?;
        if nulls > 0 && validity < entries.div_ceil(8) {
            return Err("a column does not say which of its entries are null".into());
        }
        match data_type {
            DataType::Utf8 | DataType::Binary => {
                self.offsets(size_of::<i32>())?;
                self.buffer()?;
            }
            DataType::LargeUtf8 | DataType::LargeBinary => {
                self.offsets(size_of::<i64>())?;
                self.buffer()?;
            }
            DataType::List(item) => {
                self.offsets(size_of::<i32>())?;
                self.column(item.data_type())?;
            }
            DataType::LargeList(item) => {
                self.offsets(size_of::<i64>())?;
                self.column(item.data_type())?;
            }
            DataType::Struct(members) => {
                for member in members {
                    if self.column(member.data_type())? != entries {
                        return Err(format!(
                            "member {} has not as many entries as its struct",
                            member.name()
                        ));
                    }
                }
            }
            DataType::Boolean | DataType::FixedSizeBinary(_) => drop(self.buffer()?),
            plain if plain.is_primitive() => drop(self.buffer()?),
            other => return Err(format!("exchanges carry no {other}")),
        }
        Ok(entries)
    }

    /// A buffer of numbers of this width, which Arrow takes for granted.
    fn offsets(&mut self, width: usize) -> Result<()> {
        match self.buffer()? % width as u64 {
            0 => Ok(()),
            _ => Err("a column's offsets are cut off".into()),
        }
    }

    /// How many bytes the next buffer is, inflated.
    fn buffer(&mut self) -> Result<u64> {
        let buffer = self.buffers.next().ok_or("it has fewer buffers than its columns need")?;
        let outside = || "a buffer lies outside of the message".to_owned();
        let at = usize::try_from(buffer.offset()).map_err(|_| outside())?;
        let length = usize::try_from(buffer.length()).map_err(|_| outside())?;
        let stored = self.body.get(at..).and_then(|rest| rest.get(..length)).ok_or_else(outside)?;
        if length == 0 {
            return Ok(0);
        }
        if at < self.end {
            return Err("its buffers lie in each other".into());
        }
        self.end = at + length;
        if !self.compressed {
            return Ok(length as u64);
        }
        let Some((prefix, packed)) = stored.split_first_chunk::<PREFIX_BYTES>() else {
            return Err("a buffer does not say what it inflates to".into());
        };
        let packed = packed.len() as u64;
        match i64::from_le_bytes(*prefix) {
            -1 => Ok(packed),
            inflated => match u64::try_from(inflated) {
                Ok(inflated) if inflated <= packed.saturating_mul(LZ4_RATIO_MAX) => Ok(inflated),
                _ => Err(format!("a buffer of {packed} bytes cannot inflate to {inflated}")),
            },
        }
    }
}
