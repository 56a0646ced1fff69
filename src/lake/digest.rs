//! A digest of a table's rows that does not depend on their order, their batches, their files or how Arrow
//! happens to hold them: two replays of the same records, or a replay and what was read back, compare by it.
//!
//! It is the sum modulo 2^128 of the 128-bit xxh3 hash of every row's encoding, so duplicates count. The
//! encoding is our own, since Arrow's row format may change between releases and manifests outlive them: a
//! row is its values in column order; a value is 0 if null, else 1 and
//! - its little-endian bytes (numbers, booleans as one byte, dates, times, timestamps, decimals unscaled);
//! - its length as u32 and its bytes (text and binary); its length as u32 and its elements (lists);
//! - its fields (structs).
//!
//! Floats are hashed as SQL compares them: −0.0 as 0.0, and every NaN as one NaN. Types, scales and time zones
//! are the schema's and not part of the digest.

use std::fmt;

use arrow::array::{
    Array, ArrayRef, AsArray, BinaryArray, BooleanArray, Float32Array, Float64Array, ListArray, RecordBatch,
    StringArray,
};
use arrow::buffer::{Buffer, NullBuffer};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Field, Float32Type, Float64Type};
use arrow::error::ArrowError;
use std::sync::Arc;
use xxhash_rust::xxh3::xxh3_128;

/// The digest of the rows seen so far; that of no rows is zero.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Digest(u128);

impl Digest {
    /// Takes in the rows of another digest.
    pub fn merge(&mut self, other: Digest) {
        self.0 = self.0.wrapping_add(other.0);
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

/// Takes the rows into the digest. Fails only for a type that [`supports`] refuses.
pub fn digest(rows: &RecordBatch, into: &mut Digest) -> Result<(), ArrowError> {
    let columns: Vec<Values> = rows.columns().iter().map(Values::new).collect::<Result<_, _>>()?;
    let mut encoded = Vec::new();
    for row in 0..rows.num_rows() {
        encoded.clear();
        for column in &columns {
            column.encode(row, &mut encoded);
        }
        into.merge(Digest(xxh3_128(&encoded)));
    }
    Ok(())
}

/// Whether rows with a column of this type have a digest.
pub fn supports(data_type: &DataType) -> bool {
    match data_type {
        DataType::Null
        | DataType::Boolean
        | DataType::Float32
        | DataType::Float64
        | DataType::Utf8
        | DataType::LargeUtf8
        | DataType::Utf8View
        | DataType::Binary
        | DataType::LargeBinary
        | DataType::BinaryView => true,
        DataType::List(item) | DataType::LargeList(item) | DataType::FixedSizeList(item, _) => {
            supports(item.data_type())
        }
        DataType::Struct(fields) => fields.iter().all(|field| supports(field.data_type())),
        DataType::Dictionary(_, values) => supports(values),
        _ => fixed_width(data_type).is_some(),
    }
}

fn fixed_width(data_type: &DataType) -> Option<usize> {
    match data_type {
        DataType::Float16 => None,
        DataType::FixedSizeBinary(width) => usize::try_from(*width).ok(),
        _ => data_type.primitive_width(),
    }
}

/// A column made ready for row by row access.
enum Values {
    Null,
    Boolean(BooleanArray),
    Fixed { nulls: Option<NullBuffer>, bytes: Buffer, offset: usize, width: usize },
    Float32(Float32Array),
    Float64(Float64Array),
    Bytes(BinaryArray),
    List { array: ListArray, items: Box<Values> },
    Struct { nulls: Option<NullBuffer>, fields: Vec<Values> },
}

impl Values {
    fn new(array: &ArrayRef) -> Result<Values, ArrowError> {
        Ok(match array.data_type() {
            DataType::Null => Values::Null,
            DataType::Boolean => Values::Boolean(array.as_boolean().clone()),
            DataType::Float32 => Values::Float32(array.as_primitive::<Float32Type>().clone()),
            DataType::Float64 => Values::Float64(array.as_primitive::<Float64Type>().clone()),
            DataType::Utf8 => Values::Bytes(BinaryArray::from(StringArray::clone(array.as_string()))),
            DataType::Binary => Values::Bytes(array.as_binary().clone()),
            DataType::LargeUtf8 | DataType::Utf8View => Values::new(&cast(array, &DataType::Utf8)?)?,
            DataType::LargeBinary | DataType::BinaryView => Values::new(&cast(array, &DataType::Binary)?)?,
            DataType::Dictionary(_, values) => Values::new(&cast(array, values)?)?,
            DataType::List(_) => {
                let array: &ListArray = array.as_list();
                Values::List { items: Box::new(Values::new(array.values())?), array: array.clone() }
            }
            DataType::LargeList(item) | DataType::FixedSizeList(item, _) => {
                let item = Field::new("item", item.data_type().clone(), true);
                Values::new(&cast(array, &DataType::List(Arc::new(item)))?)?
            }
            DataType::Struct(_) => {
                let array = array.as_struct();
                let fields = array.columns().iter().map(Values::new).collect::<Result<_, _>>()?;
                Values::Struct { nulls: array.nulls().cloned(), fields }
            }
            other => {
                let width = fixed_width(other).ok_or_else(|| {
                    ArrowError::NotYetImplemented(format!("a digest over a column of type {other}"))
                })?;
                let data = array.to_data();
                let bytes = data.buffers()[0].clone();
                Values::Fixed { nulls: array.nulls().cloned(), bytes, offset: data.offset(), width }
            }
        })
    }

    fn is_null(&self, row: usize) -> bool {
        match self {
            Values::Null => true,
            Values::Boolean(array) => array.is_null(row),
            Values::Float32(array) => array.is_null(row),
            Values::Float64(array) => array.is_null(row),
            Values::Bytes(array) => array.is_null(row),
            Values::List { array, .. } => array.is_null(row),
            Values::Fixed { nulls, .. } | Values::Struct { nulls, .. } => {
                nulls.as_ref().is_some_and(|nulls| nulls.is_null(row))
            }
        }
    }

    fn encode(&self, row: usize, out: &mut Vec<u8>) {
        if self.is_null(row) {
            out.push(0);
            return;
        }
        out.push(1);
        match self {
            Values::Null => unreachable!("a value of the null type is null"),
            Values::Boolean(array) => out.push(u8::from(array.value(row))),
            Values::Fixed { bytes, offset, width, .. } => {
                out.extend_from_slice(&bytes[(offset + row) * width..(offset + row + 1) * width]);
            }
            Values::Float32(array) => {
                let value = array.value(row);
                let canonical = if value.is_nan() { f32::NAN } else { value + 0.0 };
                out.extend_from_slice(&canonical.to_le_bytes());
            }
            Values::Float64(array) => {
                let value = array.value(row);
                let canonical = if value.is_nan() { f64::NAN } else { value + 0.0 };
                out.extend_from_slice(&canonical.to_le_bytes());
            }
            Values::Bytes(array) => {
                let bytes = array.value(row);
                out.extend_from_slice(&(bytes.len() as u32).to_le_bytes());
                out.extend_from_slice(bytes);
            }
            Values::List { array, items } => {
                let offsets = array.value_offsets();
                let (start, end) = (offsets[row] as usize, offsets[row + 1] as usize);
                out.extend_from_slice(&((end - start) as u32).to_le_bytes());
                (start..end).for_each(|item| items.encode(item, out));
            }
            Values::Struct { fields, .. } => fields.iter().for_each(|field| field.encode(row, out)),
        }
    }
}

#[cfg(test)]
mod tests {
    use arrow::array::{
        Decimal128Array, DictionaryArray, Int32Array, Int64Array, LargeStringArray, StringViewArray,
        StructArray,
    };
    use arrow::compute::{concat_batches, take_record_batch};
    use arrow::datatypes::{Int32Type, Schema};
    use proptest::prelude::*;

    use super::*;

    fn of(batches: &[RecordBatch]) -> Digest {
        let mut sum = Digest::default();
        for batch in batches {
            digest(batch, &mut sum).unwrap();
        }
        sum
    }

    fn one(array: ArrayRef) -> Digest {
        of(&[RecordBatch::try_from_iter([("c", array)]).unwrap()])
    }

    fn texts(values: &[Option<&str>]) -> Digest {
        one(Arc::new(StringArray::from(values.to_vec())))
    }

    #[test]
    fn a_digest_does_not_see_how_arrow_holds_the_values() {
        let values = vec![Some("EWR"), None, Some(""), Some("JFK"), Some("EWR")];
        let plain = texts(&values);
        assert_eq!(plain, one(Arc::new(LargeStringArray::from(values.clone()))));
        assert_eq!(plain, one(Arc::new(StringViewArray::from(values.clone()))));
        assert_eq!(plain, one(Arc::new(values.into_iter().collect::<DictionaryArray<Int32Type>>())));
    }

    #[test]
    fn a_digest_sees_values_nulls_duplicates_and_columns() {
        let known = texts(&[Some("a"), Some("b")]);
        assert_ne!(known, texts(&[Some("a"), Some("c")]));
        assert_ne!(known, texts(&[Some("a"), Some("b"), Some("b")]));
        assert_ne!(texts(&[None]), texts(&[Some("")]));
        assert_ne!(texts(&[None]), Digest::default());
        let pair = |left: &str, right: &str| {
            let left: ArrayRef = Arc::new(StringArray::from(vec![left]));
            let right: ArrayRef = Arc::new(StringArray::from(vec![right]));
            of(&[RecordBatch::try_from_iter([("l", left), ("r", right)]).unwrap()])
        };
        assert_ne!(pair("ab", "c"), pair("a", "bc"));
        assert_ne!(pair("a", "b"), pair("b", "a"));
    }

    #[test]
    fn floats_are_hashed_as_sql_compares_them() {
        let floats = |values: Vec<f64>| one(Arc::new(Float64Array::from(values)));
        assert_eq!(floats(vec![0.0]), floats(vec![-0.0]));
        assert_eq!(floats(vec![f64::NAN]), floats(vec![f64::from_bits(0xfff8_0000_0000_0001)]));
        assert_ne!(floats(vec![f64::NAN]), floats(vec![f64::INFINITY]));
        assert_ne!(floats(vec![0.1 + 0.2]), floats(vec![0.3]));
    }

    #[test]
    fn what_lies_under_a_null_does_not_count() {
        let masked = |hidden: i64| {
            let nulls = NullBuffer::from(vec![true, false]);
            one(Arc::new(Int64Array::new(vec![1, hidden].into(), Some(nulls))))
        };
        assert_eq!(masked(2), masked(3));
    }

    #[test]
    fn the_encoding_stays_what_published_manifests_hold() {
        let tags = ListArray::from_iter_primitive::<Int32Type, _, _>([
            Some(vec![Some(1), None]),
            None,
            Some(vec![]),
        ]);
        let point = StructArray::from(vec![(
            Arc::new(Field::new("x", DataType::Int32, true)),
            Arc::new(Int32Array::from(vec![Some(1), None, Some(3)])) as ArrayRef,
        )]);
        let price = Decimal128Array::from(vec![Some(1999), None, Some(-1)]);
        let columns: [(&str, ArrayRef); 5] = [
            ("carrier", Arc::new(StringArray::from(vec![Some("UA"), None, Some("Zürich")]))),
            ("delay", Arc::new(Float64Array::from(vec![Some(1.5), Some(-0.0), None]))),
            ("tags", Arc::new(tags)),
            ("point", Arc::new(point)),
            ("price", Arc::new(price)),
        ];
        let sum = of(&[RecordBatch::try_from_iter(columns).unwrap()]);
        let text = |text: &str| [&[1, text.len() as u8, 0, 0, 0], text.as_bytes()].concat();
        let float = |value: f64| [&[1], value.to_le_bytes().as_slice()].concat();
        let decimal = |value: i128| [&[1], value.to_le_bytes().as_slice()].concat();
        let encoded: [Vec<u8>; 3] = [
            [
                text("UA"),
                float(1.5),
                vec![1, 2, 0, 0, 0, 1, 1, 0, 0, 0, 0],
                vec![1, 1, 1, 0, 0, 0],
                decimal(1999),
            ]
            .concat(),
            [vec![0], float(0.0), vec![0], vec![1, 0], vec![0]].concat(),
            [text("Zürich"), vec![0], vec![1, 0, 0, 0, 0], vec![1, 1, 3, 0, 0, 0], decimal(-1)].concat(),
        ];
        let expected = encoded.iter().fold(0u128, |sum, row| sum.wrapping_add(xxh3_128(row)));
        assert_eq!(sum, Digest(expected));
        assert_eq!(sum.to_string(), "0d128f4771c0d8061c0eea55a7d5e9de");
    }

    proptest! {
        #[test]
        fn order_and_batches_do_not_show(
            rows in prop::collection::vec((any::<Option<i64>>(), "[a-c]{0,3}", any::<f64>()), 1..60),
            cut in 0usize..60,
            turn in 0usize..60,
        ) {
            let schema = Schema::new(vec![
                Field::new("n", DataType::Int64, true),
                Field::new("s", DataType::Utf8, false),
                Field::new("f", DataType::Float64, false),
            ]);
            let whole = RecordBatch::try_new(Arc::new(schema), vec![
                Arc::new(rows.iter().map(|row| row.0).collect::<Int64Array>()),
                Arc::new(StringArray::from_iter_values(rows.iter().map(|row| &row.1))),
                Arc::new(Float64Array::from_iter_values(rows.iter().map(|row| row.2))),
            ]).unwrap();
            let expected = of(std::slice::from_ref(&whole));
            let cut = cut.min(whole.num_rows());
            let pieces = [whole.slice(0, cut), whole.slice(cut, whole.num_rows() - cut)];
            prop_assert_eq!(expected, of(&pieces));
            let joined = concat_batches(&whole.schema(), pieces.iter().rev()).unwrap();
            let order: Int64Array =
                (0..rows.len()).map(|row| Some(((row + turn) % rows.len()) as i64)).collect();
            prop_assert_eq!(expected, of(&[take_record_batch(&joined, &order).unwrap()]));
        }
    }
}
