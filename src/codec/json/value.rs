//! One JSON value into one column, by the column's declared type.
//!
//! Nothing is converted silently: a string is no number, a number with a fraction is no integer, what does
//! not fit is an error. The exceptions are exact: integers are doubles and decimals too, a decimal may be
//! given as a string, and the strings that refined records write for NaN and the infinities are read back.
//!
//! Invariant: each value appends exactly one entry or fails; what a failed one leaves behind, the caller
//! truncates.

use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Unexpected, Visitor};
use serde_json::value::RawValue;

use super::builder::{Booleans, Builder, Bytes, Fixed, List, Struct};
use super::number::{Double, Integer, read_decimal, read_real};
use super::object::Object;
use crate::codec::instant::{InstantError, from_units, parse_date, parse_timestamp};
use crate::codec::reason;

/// What is known of a failure beside serde's error.
#[derive(Default)]
pub(super) struct Failure {
    /// The reject's code, where it isn't a plain mismatch of types.
    pub(super) reason: Option<&'static str>,
    /// Where it was, innermost first.
    pub(super) path: Vec<String>,
    /// The value did begin as an object.
    pub(super) in_object: bool,
}

impl Failure {
    pub(super) fn out_of_range<E: Error>(&mut self, message: impl fmt::Display) -> E {
        self.reason = Some(reason::OUT_OF_RANGE);
        E::custom(message)
    }
}

/// Reads one value into a column.
pub(super) struct Value<'a> {
    pub(super) builder: &'a mut Builder,
    pub(super) failure: &'a mut Failure,
}

impl<'de> DeserializeSeed<'de> for Value<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<(), D::Error> {
        let failure = self.failure;
        match self.builder {
            Builder::Boolean(column) => from.deserialize_any(BooleanValue(column)),
            Builder::SmallInt(column) => {
                let convert = |value| i16::try_from(value).ok();
                from.deserialize_any(Integer { column, failure, name: "smallint", convert })
            }
            Builder::Integer(column) => {
                let convert = |value| i32::try_from(value).ok();
                from.deserialize_any(Integer { column, failure, name: "integer", convert })
            }
            Builder::BigInt(column) => {
                from.deserialize_any(Integer { column, failure, name: "bigint", convert: Some })
            }
            Builder::Epoch { values: column, unit } => {
                let name = match unit {
                    1 => "timestamp_us: years 1 to 9999",
                    1_000 => "timestamp_ms: years 1 to 9999",
                    _ => "timestamp_s: years 1 to 9999",
                };
                let convert = |value| from_units(value, *unit).ok();
                from.deserialize_any(Integer { column, failure, name, convert })
            }
            Builder::Double(column) => from.deserialize_any(Double(column)),
            // serde_json reads numbers as f64, which rounds an f32 twice; its text is read once.
            Builder::Real(column) => read_real(<&RawValue>::deserialize(from)?.get(), column, failure),
            Builder::Decimal { values, precision, scale } => {
                read_decimal(<&RawValue>::deserialize(from)?.get(), values, (*precision, *scale), failure)
            }
            Builder::Date(column) => {
                from.deserialize_any(Instant { column, failure, parse: parse_date, expecting: DATE })
            }
            Builder::Timestamp(column) => from.deserialize_any(Instant {
                column,
                failure,
                parse: parse_timestamp,
                expecting: TIMESTAMP,
            }),
            Builder::Varchar(column) => from.deserialize_any(Varchar(column)),
            Builder::Bytea(column) => from.deserialize_any(Bytea(column)),
            Builder::Json(column) => {
                match <&RawValue>::deserialize(from)?.get() {
                    "null" => column.append_null(),
                    text => column.append(text.as_bytes()),
                }
                Ok(())
            }
            Builder::Array(column) => from.deserialize_any(Array { column, failure }),
            Builder::Struct(column) => from.deserialize_any(StructValue { column, failure }),
        }
    }
}

const DATE: &str = "a date as \"2013-01-31\"";
const TIMESTAMP: &str = "an ISO timestamp as \"2013-01-31T05:00:00Z\"";

/// The one kind of null, for each visitor.
macro_rules! null {
    () => {
        fn visit_unit<E: Error>(self) -> Result<(), E> {
            self.null();
            Ok(())
        }
    };
}

pub(super) use null;

struct BooleanValue<'a>(&'a mut Booleans);

impl BooleanValue<'_> {
    fn null(self) {
        self.0.append_null();
    }
}

impl Visitor<'_> for BooleanValue<'_> {
    type Value = ();
    null!();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("true or false")
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<(), E> {
        self.0.append(value);
        Ok(())
    }
}

/// A date or a timestamp, both ISO text.
struct Instant<'a, T, F> {
    column: &'a mut Fixed<T>,
    failure: &'a mut Failure,
    parse: F,
    expecting: &'static str,
}

impl<T: Copy + Default, F> Instant<'_, T, F> {
    fn null(self) {
        self.column.append_null();
    }
}

impl<T, F> Visitor<'_> for Instant<'_, T, F>
where
    T: Copy + Default,
    F: Fn(&str) -> Result<T, InstantError>,
{
    type Value = ();
    null!();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.expecting)
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<(), E> {
        match (self.parse)(text) {
            Ok(instant) => {
                self.column.append(instant);
                Ok(())
            }
            Err(InstantError::NotAnInstant) => Err(E::invalid_value(Unexpected::Str(text), &self)),
            Err(InstantError::OutOfRange) => {
                Err(self.failure.out_of_range(format_args!("{text} is outside the years 1 to 9999")))
            }
        }
    }
}

struct Varchar<'a>(&'a mut Bytes);

impl Varchar<'_> {
    fn null(self) {
        self.0.append_null();
    }
}

impl Visitor<'_> for Varchar<'_> {
    type Value = ();
    null!();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a string")
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<(), E> {
        self.0.append(text.as_bytes());
        Ok(())
    }
}

struct Bytea<'a>(&'a mut Bytes);

impl Bytea<'_> {
    fn null(self) {
        self.0.append_null();
    }
}

impl Visitor<'_> for Bytea<'_> {
    type Value = ();
    null!();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("bytes as a base64 string")
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<(), E> {
        let decoded = self.0.append_with(|bytes| STANDARD.decode_vec(text, bytes));
        decoded.map_err(|_| E::invalid_value(Unexpected::Str(text), &self))
    }
}

struct Array<'a> {
    column: &'a mut List,
    failure: &'a mut Failure,
}

impl Array<'_> {
    fn null(self) {
        self.column.append_null();
    }
}

impl<'de> Visitor<'de> for Array<'_> {
    type Value = ();
    null!();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an array")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<(), A::Error> {
        let Array { column, failure } = self;
        let mut position = 0;
        loop {
            match items.next_element_seed(Value { builder: &mut column.item, failure }) {
                Ok(Some(())) => position += 1,
                Ok(None) => break,
                Err(error) => {
                    failure.path.push(format!("[{position}]"));
                    return Err(error);
                }
            }
        }
        column.end_value();
        Ok(())
    }
}

struct StructValue<'a> {
    column: &'a mut Struct,
    failure: &'a mut Failure,
}

impl StructValue<'_> {
    fn null(self) {
        self.column.append_null();
    }
}

impl<'de> Visitor<'de> for StructValue<'_> {
    type Value = ();
    null!();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<(), A::Error> {
        Object { fields: &mut self.column.fields, failure: self.failure }.visit_map(map)?;
        self.column.end_value();
        Ok(())
    }
}
