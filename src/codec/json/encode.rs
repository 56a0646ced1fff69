//! Rows as refined values: one compact JSON object a row, the same bytes for the same row always.
//!
//! Nulls are explicit; timestamps `2013-01-01T05:00:00Z` with 0, 3 or 6 digits of fraction; decimals strings at
//! full scale; bytes base64; NaN and the infinities strings; other floats the shortest text that reads
//! back as the same number. The same encoder over a subset of columns makes the key.
//!
//! Invariant: what to do with a column is decided once a batch; nothing is allocated a row.

use std::ops::Range;

use arrow::array::{
    Array, ArrayRef, AsArray, GenericListArray, OffsetSizeTrait, RecordBatch, new_empty_array,
};
use arrow::datatypes::{
    ArrowPrimitiveType, DataType, Date32Type, Decimal128Type, Field, Fields, Float32Type, Float64Type,
    Int8Type, Int16Type, Int32Type, Int64Type, Schema, TimeUnit, TimestampMicrosecondType,
    TimestampMillisecondType, TimestampNanosecondType, TimestampSecondType, UInt8Type, UInt16Type,
    UInt32Type, UInt64Type,
};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Serialize;
use serde::de::IgnoredAny;

use crate::codec::decimal::write_decimal;
use crate::codec::instant::{write_date, write_timestamp};
use crate::record::is_json;

/// A column that has no form in JSON.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the column '{column}' is {data_type}, which refined records have no form for; cast it, for example to varchar"
)]
pub struct EncodeError {
    pub column: String,
    pub data_type: DataType,
}

/// Encodes rows of one schema.
///
/// ```
/// use std::sync::Arc;
/// use arrow::array::{Int64Array, RecordBatch, StringArray};
/// use headwater::codec::json::RowEncoder;
///
/// let batch = RecordBatch::try_from_iter_with_nullable([
///     ("origin", Arc::new(StringArray::from(vec!["EWR", "JFK"])) as _, true),
///     ("flights", Arc::new(Int64Array::from(vec![Some(7), None])) as _, true),
/// ])?;
/// let (mut out, mut ends) = (Vec::new(), Vec::new());
/// RowEncoder::new(&batch.schema(), None)?.encode(&batch, 0..2, &mut out, &mut ends);
/// assert_eq!(&out[..ends[0]], br#"{"origin":"EWR","flights":7}"#);
/// assert_eq!(&out[ends[0]..ends[1]], br#"{"origin":"JFK","flights":null}"#);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct RowEncoder {
    members: Vec<Member>,
}

/// A column of the object.
struct Member {
    index: usize,
    field: Field,
}

impl RowEncoder {
    /// `columns`: indices of the columns to write, in the order to write them; `None` for all.
    pub fn new(schema: &Schema, columns: Option<&[usize]>) -> Result<Self, EncodeError> {
        let all: Vec<usize> = (0..schema.fields().len()).collect();
        let members = columns
            .unwrap_or(&all)
            .iter()
            .map(|&index| {
                let field = schema.field(index).clone();
                // Whether there is a writer is asked of an empty column, so there is one list of them.
                match cell(&field, &new_empty_array(field.data_type())) {
                    Some(_) => Ok(Member { index, field }),
                    None => Err(EncodeError {
                        column: field.name().clone(),
                        data_type: field.data_type().clone(),
                    }),
                }
            })
            .collect::<Result<_, _>>()?;
        Ok(Self { members })
    }

    /// Appends the objects of `rows` to `out`, and where each one ends in `out` to `ends`.
    pub fn encode(&self, batch: &RecordBatch, rows: Range<usize>, out: &mut Vec<u8>, ends: &mut Vec<usize>) {
        let members = self.members.iter().map(|member| (&member.field, batch.column(member.index)));
        let Some(members) =
            members.map(|(field, array)| named_cell(field, array)).collect::<Option<Vec<_>>>()
        else {
            unreachable!("the batch has the schema that the encoder was made for");
        };
        ends.reserve(rows.len());
        for row in rows {
            write_object(&members, row, out);
            ends.push(out.len());
        }
    }
}

/// Writes one row of a column. Chosen once a batch.
type Cell<'a> = Box<dyn Fn(usize, &mut Vec<u8>) + 'a>;

/// A member of an object: `"name":` and what writes its value.
type NamedCell<'a> = (Vec<u8>, Cell<'a>);

fn named_cell<'a>(field: &Field, array: &'a ArrayRef) -> Option<NamedCell<'a>> {
    let mut name = Vec::new();
    json(field.name(), &mut name);
    name.push(b':');
    Some((name, cell(field, array)?))
}

fn write_object(members: &[NamedCell<'_>], row: usize, out: &mut Vec<u8>) {
    out.push(b'{');
    for (position, (name, cell)) in members.iter().enumerate() {
        if position > 0 {
            out.push(b',');
        }
        out.extend_from_slice(name);
        cell(row, out);
    }
    out.push(b'}');
}

/// The writer of a column, nulls included. `None`: its type has no form in JSON.
fn cell<'a>(field: &Field, array: &'a ArrayRef) -> Option<Cell<'a>> {
    let value = value(field, array)?;
    Some(match array.nulls() {
        None => value,
        Some(nulls) => Box::new(move |row, out| match nulls.is_valid(row) {
            true => value(row, out),
            false => out.extend_from_slice(b"null"),
        }),
    })
}

fn value<'a>(field: &Field, array: &'a ArrayRef) -> Option<Cell<'a>> {
    Some(match array.data_type() {
        DataType::Null => Box::new(|_, out| out.extend_from_slice(b"null")),
        DataType::Boolean => {
            let values = array.as_boolean();
            Box::new(move |row, out| json(&values.value(row), out))
        }
        DataType::Int8 => plain::<Int8Type>(array),
        DataType::Int16 => plain::<Int16Type>(array),
        DataType::Int32 => plain::<Int32Type>(array),
        DataType::Int64 => plain::<Int64Type>(array),
        DataType::UInt8 => plain::<UInt8Type>(array),
        DataType::UInt16 => plain::<UInt16Type>(array),
        DataType::UInt32 => plain::<UInt32Type>(array),
        DataType::UInt64 => plain::<UInt64Type>(array),
        DataType::Float32 => {
            primitive::<Float32Type>(array, |value, out| write_float(&value, f64::from(value), out))
        }
        DataType::Float64 => primitive::<Float64Type>(array, |value, out| write_float(&value, value, out)),
        DataType::Decimal128(_, scale) => {
            let scale = *scale;
            primitive::<Decimal128Type>(array, move |value, out| {
                quoted(out, |out| write_decimal(value, scale, out))
            })
        }
        DataType::Date32 => {
            primitive::<Date32Type>(array, |days, out| quoted(out, |out| write_date(i64::from(days), out)))
        }
        DataType::Timestamp(TimeUnit::Microsecond, _) => {
            instants::<TimestampMicrosecondType>(array, |time| time)
        }
        DataType::Timestamp(TimeUnit::Second, _) => {
            instants::<TimestampSecondType>(array, |time| time.saturating_mul(1_000_000))
        }
        DataType::Timestamp(TimeUnit::Millisecond, _) => {
            instants::<TimestampMillisecondType>(array, |time| time.saturating_mul(1_000))
        }
        // Event times have microseconds; only an expression can yield more, and the same one in any run.
        DataType::Timestamp(TimeUnit::Nanosecond, _) => {
            instants::<TimestampNanosecondType>(array, |time| time.div_euclid(1_000))
        }
        DataType::Utf8 => {
            let values = array.as_string::<i32>();
            text(field, move |row| values.value(row))
        }
        DataType::LargeUtf8 => {
            let values = array.as_string::<i64>();
            text(field, move |row| values.value(row))
        }
        DataType::Utf8View => {
            let values = array.as_string_view();
            text(field, move |row| values.value(row))
        }
        DataType::Binary => {
            let values = array.as_binary::<i32>();
            Box::new(move |row, out| write_bytes(values.value(row), out))
        }
        DataType::LargeBinary => {
            let values = array.as_binary::<i64>();
            Box::new(move |row, out| write_bytes(values.value(row), out))
        }
        DataType::BinaryView => {
            let values = array.as_binary_view();
            Box::new(move |row, out| write_bytes(values.value(row), out))
        }
        DataType::FixedSizeBinary(_) => {
            let values = array.as_fixed_size_binary();
            Box::new(move |row, out| write_bytes(values.value(row), out))
        }
        DataType::List(item) => list(item, array.as_list::<i32>())?,
        DataType::LargeList(item) => list(item, array.as_list::<i64>())?,
        DataType::Struct(fields) => members(fields, array.as_struct().columns())?,
        _ => return None,
    })
}

fn primitive<'a, T: ArrowPrimitiveType>(
    array: &'a ArrayRef,
    write: impl Fn(T::Native, &mut Vec<u8>) + 'a,
) -> Cell<'a> {
    let values = array.as_primitive::<T>().values();
    Box::new(move |row, out| write(values[row], out))
}

/// Times, which in windows' rows are mostly the time of the row before: that one's text is copied.
fn instants<'a, T: ArrowPrimitiveType<Native = i64>>(
    array: &'a ArrayRef,
    micros: impl Fn(i64) -> i64 + 'a,
) -> Cell<'a> {
    let values = array.as_primitive::<T>().values();
    let last = std::cell::Cell::new(None);
    Box::new(move |row, out| match last.get() {
        Some((time, start, end)) if time == values[row] => out.extend_from_within(start..end),
        _ => {
            let start = out.len();
            write_instant(micros(values[row]), out);
            last.set(Some((values[row], start, out.len())));
        }
    })
}

fn plain<T: ArrowPrimitiveType<Native: Serialize>>(array: &ArrayRef) -> Cell<'_> {
    primitive::<T>(array, |value, out| json(&value, out))
}

/// Text, or JSON that is text: the one is quoted, the other embedded.
fn text<'a>(field: &Field, value: impl Fn(usize) -> &'a str + 'a) -> Cell<'a> {
    if is_json(field) {
        Box::new(move |row, out| embed(value(row), out))
    } else {
        Box::new(move |row, out| json(value(row), out))
    }
}

fn list<'a, O: OffsetSizeTrait>(item: &Field, lists: &'a GenericListArray<O>) -> Option<Cell<'a>> {
    let item = cell(item, lists.values())?;
    let offsets = lists.value_offsets();
    Some(Box::new(move |row, out| {
        out.push(b'[');
        let (start, end) = (offsets[row].as_usize(), offsets[row + 1].as_usize());
        for position in start..end {
            if position > start {
                out.push(b',');
            }
            item(position, out);
        }
        out.push(b']');
    }))
}

fn members<'a>(fields: &Fields, columns: &'a [ArrayRef]) -> Option<Cell<'a>> {
    let members: Vec<NamedCell<'a>> =
        fields.iter().zip(columns).map(|(field, array)| named_cell(field, array)).collect::<Option<_>>()?;
    Some(Box::new(move |row, out| write_object(&members, row, out)))
}

fn json<T: Serialize + ?Sized>(value: &T, out: &mut Vec<u8>) {
    if serde_json::to_writer(out, value).is_err() {
        unreachable!("numbers, booleans and text have a form in JSON, and writing to memory does not fail");
    }
}

/// `value` in its own width, since an f32's shortest text is shorter than that of the same number as f64.
fn write_float<T: Serialize>(value: &T, wide: f64, out: &mut Vec<u8>) {
    if wide.is_finite() {
        json(value, out);
    } else if wide.is_nan() {
        out.extend_from_slice(b"\"NaN\"");
    } else {
        out.extend_from_slice(if wide > 0.0 { b"\"Infinity\"".as_slice() } else { b"\"-Infinity\"" });
    }
}

fn write_instant(micros: i64, out: &mut Vec<u8>) {
    quoted(out, |out| write_timestamp(micros, out));
}

fn write_bytes(bytes: &[u8], out: &mut Vec<u8>) {
    quoted(out, |out| {
        let start = out.len();
        out.resize(start + bytes.len().div_ceil(3) * 4, 0);
        if STANDARD.encode_slice(bytes, &mut out[start..]).is_err() {
            unreachable!("base64 has four characters for three bytes");
        }
    });
}

fn quoted(out: &mut Vec<u8>, write: impl FnOnce(&mut Vec<u8>)) {
    out.push(b'"');
    write(out);
    out.push(b'"');
}

/// Embeds JSON text without its white space. Text that isn't JSON, which only an expression can have made, is
/// written as a string, so that the whole stays JSON.
fn embed(text: &str, out: &mut Vec<u8>) {
    if serde_json::from_str::<IgnoredAny>(text).is_err() {
        return json(text, out);
    }
    let mut in_string = false;
    let mut escaped = false;
    let mut from = 0;
    for (position, byte) in text.bytes().enumerate() {
        if in_string {
            in_string = escaped || byte != b'"';
            escaped = !escaped && byte == b'\\';
        } else if byte == b'"' {
            in_string = true;
        } else if matches!(byte, b' ' | b'\n' | b'\r' | b'\t') {
            out.extend_from_slice(&text.as_bytes()[from..position]);
            from = position + 1;
        }
    }
    out.extend_from_slice(&text.as_bytes()[from..]);
}

#[cfg(test)]
mod tests;
