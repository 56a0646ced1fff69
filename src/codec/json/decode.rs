//! The decoder: one value a row, straight into columns by the declared schema.
//!
//! Invariant: each push adds exactly one row, good, skipped or rejected; so row `n` of the batch is the
//! `n`th value pushed, and a rejected row is null in every column.
//! Invariant: JSON is checked for the whole value, also where no column is read; nothing recurses deeper
//! than the declared types.
//! Nothing is allocated for a good row beyond the columns' growth, except serde_json's own scratch space
//! for a value with escapes or with arrays and objects that are skipped.

use arrow::array::{RecordBatch, RecordBatchOptions};
use arrow::datatypes::SchemaRef;
use serde::de::DeserializeSeed;
use serde_json::error::Category;

use super::object::{Fields, Object};
use super::value::Failure;
use crate::codec::{Reject, reason};
use crate::record::Column;

/// Messages quote what they found; more of it than this helps nobody.
const MESSAGE_LENGTH_MAX: usize = 400;

/// Decodes JSON objects into the columns of a batch.
///
/// ```
/// use headwater::codec::json::JsonDecoder;
/// use headwater::record::{Column, Type};
///
/// let mut decoder = JsonDecoder::new(&[Column::new("delay", Type::Double)]);
/// decoder.push(br#"{"flight": 1545, "delay": 2}"#)?;
/// let reject = decoder.push(br#"{"delay": "two"}"#).unwrap_err();
/// assert_eq!(reject.reason, "type_mismatch");
/// let batch = decoder.finish();
/// assert_eq!((batch.num_rows(), batch.column(0).null_count()), (2, 1));
/// # Ok::<(), headwater::codec::Reject>(())
/// ```
pub struct JsonDecoder {
    schema: SchemaRef,
    fields: Fields,
    rows: usize,
    /// Bytes pushed since the last batch.
    input: usize,
}

impl JsonDecoder {
    /// `read`: the columns to decode and type-check, which may be fewer than are declared. Their names differ.
    pub fn new(read: &[Column]) -> Self {
        let columns = read.iter().map(|column| (column.name.as_str(), &column.ty));
        Self { schema: Column::schema(read), fields: Fields::new(columns), rows: 0, input: 0 }
    }

    pub fn schema(&self) -> SchemaRef {
        SchemaRef::clone(&self.schema)
    }

    /// Appends one value as a row. `Err`: the row is a reject; it is there, as nulls.
    ///
    /// A batch takes less than 2 GiB of values ([`JsonDecoder::has_room`]): Arrow counts its text with 31 bits.
    pub fn push(&mut self, value: &[u8]) -> Result<(), Reject> {
        assert!(self.has_room(value.len()), "a batch of 2 GiB: finish it before more is pushed");
        self.input += value.len();
        let mut failure = Failure::default();
        let decoded = self.decode(value, &mut failure);
        if decoded.is_err() {
            self.fields.truncate(self.rows);
            self.fields.append_null();
        }
        self.rows += 1;
        decoded
    }

    /// Appends a row of nulls for a record that is not decoded (a tombstone).
    pub fn push_null(&mut self) {
        self.fields.append_null();
        self.rows += 1;
    }

    /// Whether the batch takes another `bytes` of values.
    pub fn has_room(&self, bytes: usize) -> bool {
        self.input.saturating_add(bytes) <= i32::MAX as usize
    }

    /// Rows since the last batch.
    pub fn len(&self) -> usize {
        self.rows
    }

    pub fn is_empty(&self) -> bool {
        self.rows == 0
    }

    /// The rows as a batch; the decoder is then empty, with room for as many again.
    pub fn finish(&mut self) -> RecordBatch {
        let options = RecordBatchOptions::new().with_row_count(Some(self.rows));
        self.rows = 0;
        self.input = 0;
        match RecordBatch::try_new_with_options(self.schema(), self.fields.finish(), &options) {
            Ok(batch) => batch,
            Err(error) => unreachable!("every column has one entry a row, of its declared type: {error}"),
        }
    }

    fn decode(&mut self, value: &[u8], failure: &mut Failure) -> Result<(), Reject> {
        // Checked at once and first: serde_json does not look into strings that it skips.
        let text = std::str::from_utf8(value).map_err(|error| Reject {
            reason: reason::INVALID_UTF8,
            message: format!("the value is not UTF-8 from byte {} on", error.valid_up_to()),
        })?;
        let mut deserializer = serde_json::Deserializer::from_str(text);
        Object { fields: &mut self.fields, failure }
            .deserialize(&mut deserializer)
            .and_then(|()| deserializer.end())
            .map_err(|error| reject(&error, failure))
    }
}

fn reject(error: &serde_json::Error, failure: &Failure) -> Reject {
    let what = error.to_string();
    let reason = match (failure.reason, error.classify()) {
        (Some(reason), _) => reason,
        // Its own limit of f64 is the one thing that serde_json calls syntax and JSON does not.
        (None, Category::Syntax) if what.starts_with("number out of range") => match failure.in_object {
            true => reason::OUT_OF_RANGE,
            false => reason::NOT_AN_OBJECT,
        },
        (None, Category::Data) if !failure.in_object => reason::NOT_AN_OBJECT,
        (None, Category::Data) => reason::TYPE_MISMATCH,
        (None, _) => reason::MALFORMED_JSON,
    };
    let mut message = String::new();
    if !failure.path.is_empty() {
        message.push_str("column ");
        for (level, name) in failure.path.iter().rev().enumerate() {
            if level > 0 && !name.starts_with('[') {
                message.push('.');
            }
            message.push_str(name);
        }
        message.push_str(": ");
    }
    message.push_str(&what);
    if message.len() > MESSAGE_LENGTH_MAX {
        // The position stands at the end; what is cut out is what was quoted.
        let mut head = MESSAGE_LENGTH_MAX / 2;
        let mut tail = message.len() - MESSAGE_LENGTH_MAX / 2;
        while !message.is_char_boundary(head) {
            head -= 1;
        }
        while !message.is_char_boundary(tail) {
            tail += 1;
        }
        message.replace_range(head..tail, " … ");
    }
    Reject { reason, message }
}

#[cfg(test)]
mod tests;
