//! JSON numbers into columns of numbers, exactly or not at all.
//!
//! serde_json reads a number as an i64, a u64 or an f64; where none of these is exact (`real`, `decimal`) the
//! number's text is read instead.

use std::borrow::Cow;
use std::fmt;

use serde::de::{Error, Unexpected, Visitor};

use super::builder::Fixed;
use super::value::{Failure, null};
use crate::codec::decimal::{DecimalError, parse_decimal};

/// An integer that `convert` turns into what the column keeps, if that has room for it.
pub(super) struct Integer<'a, T, F> {
    pub(super) column: &'a mut Fixed<T>,
    pub(super) failure: &'a mut Failure,
    pub(super) name: &'static str,
    pub(super) convert: F,
}

impl<T: Copy + Default, F> Integer<'_, T, F> {
    fn null(self) {
        self.column.append_null();
    }

    fn out_of_range<E: Error>(self, value: impl fmt::Display) -> E {
        self.failure.out_of_range(format_args!("{value} is out of range for {}", self.name))
    }
}

impl<T: Copy + Default, F: Fn(i64) -> Option<T>> Visitor<'_> for Integer<'_, T, F> {
    type Value = ();
    null!();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "an integer ({})", self.name)
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<(), E> {
        match (self.convert)(value) {
            Some(kept) => {
                self.column.append(kept);
                Ok(())
            }
            None => Err(self.out_of_range(value)),
        }
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<(), E> {
        match i64::try_from(value) {
            Ok(value) => self.visit_i64(value),
            Err(_) => Err(self.out_of_range(value)),
        }
    }

    /// serde_json hands over as f64 what has a fraction or an exponent, integers beyond u64, and -0.
    fn visit_f64<E: Error>(self, value: f64) -> Result<(), E> {
        if value == 0.0 && value.is_sign_negative() {
            self.visit_i64(0)
        } else if value.abs() >= i64::MAX as f64 {
            Err(self.out_of_range(value))
        } else {
            Err(E::invalid_type(Unexpected::Float(value), &self))
        }
    }
}

pub(super) struct Double<'a>(pub(super) &'a mut Fixed<f64>);

impl Double<'_> {
    fn null(self) {
        self.0.append_null();
    }
}

impl Visitor<'_> for Double<'_> {
    type Value = ();
    null!();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a number (double)")
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<(), E> {
        self.0.append(value);
        Ok(())
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<(), E> {
        self.visit_f64(value as f64)
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<(), E> {
        self.visit_f64(value as f64)
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<(), E> {
        match text {
            "NaN" => self.visit_f64(f64::NAN),
            "Infinity" => self.visit_f64(f64::INFINITY),
            "-Infinity" => self.visit_f64(f64::NEG_INFINITY),
            _ => Err(E::invalid_type(Unexpected::Str(text), &self)),
        }
    }
}

/// `text` is one JSON value without space around it.
pub(super) fn read_real<E: Error>(
    text: &str,
    column: &mut Fixed<f32>,
    failure: &mut Failure,
) -> Result<(), E> {
    match string(text)? {
        Some(string) => match string.as_ref() {
            "NaN" => column.append(f32::NAN),
            "Infinity" => column.append(f32::INFINITY),
            "-Infinity" => column.append(f32::NEG_INFINITY),
            other => return Err(E::invalid_type(Unexpected::Str(other), &"a number (real)")),
        },
        None if text == "null" => column.append_null(),
        None if !is_number(text) => return Err(E::invalid_type(unexpected(text), &"a number (real)")),
        None => match text.parse::<f32>() {
            Ok(value) if value.is_finite() => column.append(value),
            _ => return Err(failure.out_of_range(format_args!("{} is out of range for real", head(text)))),
        },
    }
    Ok(())
}

/// `text` is one JSON value without space around it.
pub(super) fn read_decimal<E: Error>(
    text: &str,
    column: &mut Fixed<i128>,
    (precision, scale): (u8, u8),
    failure: &mut Failure,
) -> Result<(), E> {
    let string = string(text)?;
    let number = match &string {
        Some(string) => string.as_ref(),
        None if text == "null" => {
            column.append_null();
            return Ok(());
        }
        None if !is_number(text) => return Err(E::invalid_type(unexpected(text), &"a decimal")),
        None => text,
    };
    match parse_decimal(number, precision, scale) {
        Ok(value) => {
            column.append(value);
            Ok(())
        }
        Err(DecimalError::NotANumber) => Err(E::invalid_value(Unexpected::Str(number), &"a decimal")),
        Err(DecimalError::DoesNotFit) => {
            Err(failure
                .out_of_range(format_args!("{} does not fit decimal({precision},{scale})", head(number))))
        }
    }
}

/// The content of a JSON string; `None` for a value of another kind.
fn string<E: Error>(text: &str) -> Result<Option<Cow<'_, str>>, E> {
    match text.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')) {
        Some(_) if text.contains('\\') => serde_json::from_str(text).map(Some).map_err(E::custom),
        Some(inside) => Ok(Some(Cow::Borrowed(inside))),
        None => Ok(None),
    }
}

fn is_number(text: &str) -> bool {
    text.starts_with(|first: char| first == '-' || first.is_ascii_digit())
}

/// What a JSON value that is no number, string or null is called in an error.
fn unexpected(text: &str) -> Unexpected<'_> {
    match text.as_bytes().first() {
        Some(b'{') => Unexpected::Map,
        Some(b'[') => Unexpected::Seq,
        _ => Unexpected::Bool(text == "true"),
    }
}

/// As much of a number as an error needs.
fn head(text: &str) -> &str {
    text.get(..80).unwrap_or(text)
}
