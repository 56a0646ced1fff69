//! What a JSON value is in a column of a type, by serde_json's reading of the raw text of each part.
//!
//! Invariant: what the reference does not settle (spellings of timestamps, negative zeros as integers) it says so of.

use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use headwater::record::Type;
use serde::de::{Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verdict {
    Accept,
    Unsettled,
    Reject,
}

use Verdict::{Accept, Reject, Unsettled};

fn accept_if(accepted: bool) -> Verdict {
    if accepted { Accept } else { Reject }
}

/// The members of an object, in their order and all of them; `None`: one of the keys is no text.
pub fn members(text: &str) -> Option<Vec<(String, &RawValue)>> {
    struct Members;
    impl<'de> Visitor<'de> for Members {
        type Value = Vec<(String, &'de RawValue)>;
        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("an object")
        }
        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
            let mut all = Vec::new();
            while let Some(member) = map.next_entry()? {
                all.push(member);
            }
            Ok(all)
        }
    }
    serde_json::Deserializer::from_str(text).deserialize_map(Members).ok()
}

/// `text` is valid JSON without space around it. Null is what every column takes, but not what a record is.
pub fn verdict(ty: &Type, text: &str, nullable: bool) -> Verdict {
    if text == "null" && nullable {
        return Accept;
    }
    let number = text.starts_with(|first: char| first == '-' || first.is_ascii_digit());
    let string = text.starts_with('"').then(|| serde_json::from_str::<String>(text).ok());
    if string == Some(None) && *ty != Type::Json {
        return Reject; // half a surrogate
    }
    let string = string.flatten();
    match ty {
        Type::Json => Accept,
        Type::Varchar => accept_if(string.is_some()),
        Type::Boolean => accept_if(text == "true" || text == "false"),
        Type::Bytea => accept_if(string.is_some_and(|text| STANDARD.decode(text).is_ok())),
        Type::Double | Type::Real => match string {
            Some(text) => accept_if(matches!(text.as_str(), "NaN" | "Infinity" | "-Infinity")),
            None if !number => Reject,
            None if *ty == Type::Real => accept_if(text.parse::<f32>().is_ok_and(f32::is_finite)),
            None => accept_if(text.parse::<f64>().is_ok_and(f64::is_finite)),
        },
        Type::BigInt
        | Type::Integer
        | Type::SmallInt
        | Type::TimestampMs
        | Type::TimestampUs
        | Type::TimestampS => {
            if !number {
                return Reject;
            }
            match (text.parse::<i128>(), text.parse::<f64>()) {
                (Ok(value), _) => accept_if(integer(ty, value).is_some()),
                (Err(_), Ok(zero)) if zero == 0.0 && zero.is_sign_negative() => Unsettled,
                _ => Reject,
            }
        }
        Type::Decimal { precision, scale } => {
            let text = string.as_deref().or(number.then_some(text));
            match text.map(|text| decimal(text, *precision, *scale)) {
                Some(Ok(_)) => Accept,
                Some(Err(verdict)) => verdict,
                None => Reject,
            }
        }
        Type::Date | Type::Timestamp => match string {
            None => Reject,
            Some(text) if text.chars().all(|c| !c.is_ascii_digit()) => Reject,
            Some(text) => {
                let known = match ty {
                    Type::Date => shape(&text) == "0000-00-00" && date(&text).is_some(),
                    _ => shape(&text) == "0000-00-00T00:00:00Z" && micros(&text).is_some(),
                };
                if known { Accept } else { Unsettled }
            }
        },
        Type::Array(item) => match serde_json::from_str::<Vec<&RawValue>>(text) {
            Ok(items) => items.iter().map(|value| verdict(item, value.get(), true)).max().unwrap_or(Accept),
            Err(_) => Reject,
        },
        Type::Struct(fields) => {
            if !text.starts_with('{') {
                return Reject;
            }
            let Some(members) = members(text) else { return Reject };
            let of_field = |(name, ty): &(String, Type)| {
                let mut found = members.iter().filter(|(key, _)| key == name);
                match (found.next(), found.next()) {
                    (None, _) => Accept,
                    (Some((_, value)), None) => verdict(ty, value.get(), true),
                    (Some(_), Some(_)) => Reject,
                }
            };
            fields.iter().map(of_field).max().unwrap_or(Accept)
        }
    }
}

/// The value as the column keeps it: timestamps in microseconds.
fn integer(ty: &Type, value: i128) -> Option<i128> {
    let within = |low: i128, high: i128| (low..=high).contains(&value).then_some(value);
    let instant = |unit: i128| {
        let micros = value.checked_mul(unit)?;
        (-62_135_596_800_000_000..=253_402_300_799_999_999).contains(&micros).then_some(micros)
    };
    match ty {
        Type::SmallInt => within(i16::MIN.into(), i16::MAX.into()),
        Type::Integer => within(i32::MIN.into(), i32::MAX.into()),
        Type::TimestampS => instant(1_000_000),
        Type::TimestampMs => instant(1_000),
        Type::TimestampUs => instant(1),
        _ => within(i64::MIN.into(), i64::MAX.into()),
    }
}

/// The digits at the column's scale, by moving the point in the text.
fn decimal(text: &str, precision: u8, scale: u8) -> Result<String, Verdict> {
    let (sign, unsigned) = match text.strip_prefix('-') {
        Some(rest) => ("-", rest),
        None => ("", text.strip_prefix('+').unwrap_or(text)),
    };
    let (mantissa, exponent) =
        unsigned.split_once(['e', 'E']).map_or((unsigned, None), |(m, e)| (m, Some(e)));
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    if !digits(whole) || !digits(fraction) || (whole.is_empty() && fraction.is_empty()) {
        return Err(Reject);
    }
    let exponent = match exponent {
        None => 0,
        Some(text) => {
            let bare = text.strip_prefix(['-', '+']).unwrap_or(text);
            if bare.is_empty() || !digits(bare) {
                return Err(Reject);
            }
            let magnitude: i64 = bare.parse().unwrap_or(i64::MAX / 4).min(i64::MAX / 4);
            if text.starts_with('-') { -magnitude } else { magnitude }
        }
    };
    let all = [whole, fraction].concat();
    let significant = all.trim_start_matches('0');
    if significant.is_empty() {
        return Ok("0".into());
    }
    // Digits behind the last one that the column keeps: those must be zeros; or zeros that are still to come.
    let behind = fraction.len() as i64 - exponent - i64::from(scale);
    let kept = match usize::try_from(behind) {
        Ok(cut) => {
            let cut = cut.min(significant.len());
            let (kept, cut) = significant.split_at(significant.len() - cut);
            if cut.bytes().any(|digit| digit != b'0') {
                return Err(Reject);
            }
            kept.to_owned()
        }
        Err(_) if -behind > 40 => return Err(Reject),
        Err(_) => format!("{significant}{}", "0".repeat(usize::try_from(-behind).unwrap())),
    };
    if kept.len() > usize::from(precision) {
        return Err(Reject);
    }
    Ok(if kept.is_empty() { "0".into() } else { format!("{sign}{kept}") })
}

/// With every digit a 0.
fn shape(text: &str) -> String {
    text.chars().map(|character| if character.is_ascii_digit() { '0' } else { character }).collect()
}

fn date(text: &str) -> Option<chrono::NaiveDate> {
    chrono::NaiveDate::parse_from_str(text, "%Y-%m-%d")
        .ok()
        .filter(|date| (1..=9999).contains(&chrono::Datelike::year(date)))
}

fn micros(text: &str) -> Option<i64> {
    let instant = chrono::DateTime::parse_from_rfc3339(text).ok()?;
    let year = chrono::Datelike::year(&instant.to_utc());
    // Leap seconds are a matter of taste.
    let leap = text.contains(":60");
    ((1..=9999).contains(&year) && !leap).then(|| instant.timestamp_micros())
}

/// Whether what was written is what was read; both are valid JSON texts.
pub fn equal(ty: &Type, read: &str, written: &str) -> bool {
    if read == "null" || written == "null" {
        return read == written;
    }
    let text = |json: &str| serde_json::from_str::<String>(json).ok();
    match ty {
        Type::Json => {
            read == written
                || serde_json::from_str::<serde_json::Value>(read).ok() == serde_json::from_str(written).ok()
        }
        Type::Boolean => read == written,
        Type::Varchar => text(read).is_some() && text(read) == text(written),
        Type::Bytea => {
            let bytes = |json: &str| STANDARD.decode(text(json)?).ok();
            bytes(read).is_some() && bytes(read) == bytes(written)
        }
        Type::Double | Type::Real if read.starts_with('"') => text(read) == text(written),
        // Text to text: each is read as the column would.
        Type::Real => read.parse::<f32>().map(f32::to_bits) == written.parse::<f32>().map(f32::to_bits),
        Type::Double => read.parse::<f64>().map(f64::to_bits) == written.parse::<f64>().map(f64::to_bits),
        Type::BigInt | Type::Integer | Type::SmallInt => {
            let value = |text: &str| {
                text.parse::<i128>().ok().or_else(|| (text.parse::<f64>() == Ok(0.0)).then_some(0))
            };
            value(read).is_some() && value(read) == value(written)
        }
        Type::TimestampMs | Type::TimestampUs | Type::TimestampS => {
            let value = read.parse::<i128>().ok().or_else(|| (read.parse::<f64>() == Ok(0.0)).then_some(0));
            let kept = value.and_then(|value| integer(ty, value));
            kept.is_some() && text(written).and_then(|text| micros(&text)).map(i128::from) == kept
        }
        Type::Decimal { precision, scale } => {
            let digits = |json: &str| decimal(text(json).as_deref().unwrap_or(json), *precision, *scale).ok();
            let of_zero = |digits: String| if digits == "-0" { "0".to_owned() } else { digits };
            digits(read).is_some() && digits(read).map(of_zero) == digits(written).map(of_zero)
        }
        Type::Date => {
            text(written).is_some_and(|text| date(&text).is_some()) && same_instant(read, written, date)
        }
        Type::Timestamp => {
            text(written).is_some_and(|text| micros(&text).is_some()) && same_instant(read, written, micros)
        }
        Type::Array(item) => {
            let items = |json| serde_json::from_str::<Vec<&RawValue>>(json).unwrap();
            let (read, written) = (items(read), items(written));
            read.len() == written.len()
                && read.iter().zip(&written).all(|(read, written)| equal(item, read.get(), written.get()))
        }
        Type::Struct(fields) => {
            let (read, written) = (members(read).unwrap(), members(written).unwrap());
            fields.len() == written.len()
                && fields.iter().zip(&written).all(|((name, ty), (key, written))| {
                    let read = read.iter().find(|(key, _)| key == name).map_or("null", |(_, raw)| raw.get());
                    key == name && equal(ty, read, written.get())
                })
        }
    }
}

/// Where the reference can read what was read.
fn same_instant<T: PartialEq>(read: &str, written: &str, parse: impl Fn(&str) -> Option<T>) -> bool {
    let instant = |json: &str| serde_json::from_str::<String>(json).ok().and_then(|text| parse(&text));
    instant(read).is_none_or(|read| instant(written) == Some(read))
}
