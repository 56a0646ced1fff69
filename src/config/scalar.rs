//! Scalars of the file: `${NAME}` expanded first, then read as text, path, count, size or duration.
//!
//! Expansion works on a scalar that the YAML parser has already cut out, so a secret with a quote, a `#` or a
//! line break in it stays one value, and a comment is never expanded.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Deserializer, de::Error};

use super::Secret;

pub fn text<'de, D: Deserializer<'de>>(from: D) -> Result<String, D::Error> {
    let text = expanded(from)?;
    required(text, "text")
}

pub fn optional_text<'de, D: Deserializer<'de>>(from: D) -> Result<Option<String>, D::Error> {
    expanded(from)
}

pub fn optional_secret<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Secret>, D::Error> {
    Ok(expanded(from)?.map(Secret::new))
}

pub fn flag<'de, D: Deserializer<'de>>(from: D) -> Result<bool, D::Error> {
    let text = required(expanded(from)?, "true or false")?;
    match text.trim() {
        "true" => Ok(true),
        "false" => Ok(false),
        other => Err(D::Error::custom(format!("'{other}' is not true or false"))),
    }
}

pub fn text_map<'de, D: Deserializer<'de>>(from: D) -> Result<BTreeMap<String, String>, D::Error> {
    let entries = BTreeMap::<String, String>::deserialize(from)?;
    if entries.contains_key("bootstrap.servers") {
        return Err(D::Error::custom("'bootstrap.servers' is set by the key 'brokers'"));
    }
    entries
        .into_iter()
        .map(|(key, value)| Ok((key, expand(&value, environment).map_err(D::Error::custom)?)))
        .collect()
}

pub fn path<'de, D: Deserializer<'de>>(from: D) -> Result<PathBuf, D::Error> {
    text(from).map(PathBuf::from)
}

pub fn count<'de, D: Deserializer<'de>>(from: D) -> Result<usize, D::Error> {
    let count = optional_count(from)?;
    required(count, "a count")
}

pub fn optional_count<'de, D: Deserializer<'de>>(from: D) -> Result<Option<usize>, D::Error> {
    expanded(from)?.map(|text| parse_count(&text)).transpose().map_err(D::Error::custom)
}

pub fn size<'de, D: Deserializer<'de>>(from: D) -> Result<u64, D::Error> {
    let text = required(expanded(from)?, "a size")?;
    parse_size(&text).map_err(D::Error::custom)
}

/// Bytes for state: with less than this every row would wait for the disk, and a number without a unit is bytes.
pub fn budget<'de, D: Deserializer<'de>>(from: D) -> Result<u64, D::Error> {
    const LEAST: u64 = 1 << 20;
    match size(from)? {
        bytes if bytes < LEAST => Err(D::Error::custom(format!(
            "{bytes} bytes are too few for state; write 1MiB or more, for example 256MiB"
        ))),
        bytes => Ok(bytes),
    }
}

pub fn duration<'de, D: Deserializer<'de>>(from: D) -> Result<Duration, D::Error> {
    let text = required(expanded(from)?, "a duration")?;
    parse_duration(&text).map_err(D::Error::custom)
}

pub fn optional_duration<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Duration>, D::Error> {
    expanded(from)?.map(|text| parse_duration(&text)).transpose().map_err(D::Error::custom)
}

/// One of the words that a type knows.
pub fn word<'de, D: Deserializer<'de>, T: FromStr<Err = String>>(from: D) -> Result<T, D::Error> {
    optional_word(from).and_then(|word| required(word, "a word"))
}

pub fn optional_word<'de, D: Deserializer<'de>, T: FromStr<Err = String>>(
    from: D,
) -> Result<Option<T>, D::Error> {
    expanded(from)?.map(|text| text.parse()).transpose().map_err(D::Error::custom)
}

/// The scalar's text after expansion; `None` when it is null or empty.
fn expanded<'de, D: Deserializer<'de>>(from: D) -> Result<Option<String>, D::Error> {
    let Some(raw) = Option::<String>::deserialize(from)? else { return Ok(None) };
    let text = expand(&raw, environment).map_err(D::Error::custom)?;
    Ok((!text.trim().is_empty()).then_some(text))
}

fn required<T, E: Error>(value: Option<T>, what: &str) -> Result<T, E> {
    value.ok_or_else(|| {
        E::custom(format!("expected {what}, found nothing; leave the key out for its default"))
    })
}

fn environment(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

/// Replaces `${NAME}` and `${NAME:-default}` (the default also where the variable is empty, as shells do);
/// `$${` stands for a literal `${`.
fn expand(text: &str, lookup: impl Fn(&str) -> Option<String>) -> Result<String, String> {
    let mut expanded = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find("${") {
        if let Some(before) = rest[..at].strip_suffix('$') {
            expanded.push_str(before);
            expanded.push_str("${");
            rest = &rest[at + 2..];
            continue;
        }
        expanded.push_str(&rest[..at]);
        let Some(length) = rest[at + 2..].find('}') else {
            return Err(format!("'{}' has no closing brace", &rest[at..]));
        };
        let reference = &rest[at + 2..at + 2 + length];
        let (name, default) = match reference.split_once(":-") {
            Some((name, default)) => (name, Some(default)),
            None => (reference, None),
        };
        let well_named = name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
            && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
        if !well_named {
            return Err(format!("'${{{reference}}}' is not ${{NAME}} or ${{NAME:-default}}"));
        }
        let value = match default {
            Some(default) => lookup(name).filter(|value| !value.is_empty()).unwrap_or(default.to_owned()),
            None => lookup(name).ok_or_else(|| {
                format!(
                    "the environment variable {name} is not set; set it, or give a default: ${{{name}:-…}}"
                )
            })?,
        };
        expanded.push_str(&value);
        rest = &rest[at + 2 + length + 1..];
    }
    expanded.push_str(rest);
    Ok(expanded)
}

fn parse_count(text: &str) -> Result<usize, String> {
    match text.trim().replace('_', "").parse() {
        Ok(0) | Err(_) => Err(format!("'{text}' is not a count; write a whole number from 1")),
        Ok(count) => Ok(count),
    }
}

/// A number of bytes: `65536`, `64KiB`, `1.5 GB`. Decimal and binary units mean what they say.
fn parse_size(text: &str) -> Result<u64, String> {
    let wrong = || format!("'{text}' is not a size; write for example 64MiB, 2GiB or 500MB");
    let compact = text.trim().replace('_', "");
    let unit_at = compact.find(|c: char| !(c.is_ascii_digit() || c == '.')).unwrap_or(compact.len());
    let number: f64 = compact[..unit_at].parse().map_err(|_| wrong())?;
    let factor: u64 = match compact[unit_at..].trim().to_lowercase().as_str() {
        "" | "b" => 1,
        "kb" => 1_000,
        "mb" => 1_000_000,
        "gb" => 1_000_000_000,
        "tb" => 1_000_000_000_000,
        "k" | "kib" => 1 << 10,
        "m" | "mib" => 1 << 20,
        "g" | "gib" => 1 << 30,
        "t" | "tib" => 1 << 40,
        _ => return Err(wrong()),
    };
    let bytes = number * factor as f64;
    if bytes < 1.0 || bytes >= u64::MAX as f64 { Err(wrong()) } else { Ok(bytes as u64) }
}

/// `200ms`, `30s`, `1h 30m`; never zero.
fn parse_duration(text: &str) -> Result<Duration, String> {
    match humantime::parse_duration(text.trim()) {
        Ok(duration) if !duration.is_zero() => Ok(duration),
        _ => Err(format!("'{text}' is not a duration; write for example 200ms, 30s or 1h 30m")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lookup(name: &str) -> Option<String> {
        match name {
            "HOST" => Some("kafka".to_owned()),
            "EMPTY" => Some(String::new()),
            "SECRET" => Some("a # \"b\": ${HOST}\n".to_owned()),
            _ => None,
        }
    }

    #[test]
    fn names_are_replaced_and_their_values_are_not_looked_at_again() {
        let cases = [
            ("${HOST}:9092", "kafka:9092"),
            ("${NONE:-localhost}:${PORT:-9092}", "localhost:9092"),
            ("${EMPTY:-x}/${EMPTY}/", "x//"),
            ("${SECRET}", "a # \"b\": ${HOST}\n"),
            ("$HOME $${HOST} 5$", "$HOME ${HOST} 5$"),
            ("${NONE:-}", ""),
        ];
        for (given, wanted) in cases {
            assert_eq!(expand(given, lookup).as_deref(), Ok(wanted), "{given}");
        }
    }

    #[test]
    fn a_name_that_is_not_set_is_an_error_that_names_it() {
        assert!(expand("${NONE}", lookup).is_err_and(|message| message.contains("NONE is not set")));
        assert!(expand("${HOST", lookup).is_err_and(|message| message.contains("no closing brace")));
        assert!(expand("${ho st}", lookup).is_err_and(|message| message.contains("is not ${NAME}")));
        assert!(expand("${}", lookup).is_err());
    }

    #[test]
    fn sizes_and_durations_are_read_as_people_write_them() {
        let sizes =
            [("1", 1), ("256MiB", 256 << 20), ("1.5 GiB", 3 << 29), ("500kb", 500_000), ("64m", 64 << 20)];
        for (text, bytes) in sizes {
            assert_eq!(parse_size(text), Ok(bytes), "{text}");
        }
        for text in ["", "MiB", "12 parsecs", "-1", "0", "1e400GB"] {
            assert!(parse_size(text).is_err(), "{text}");
        }
        assert_eq!(parse_duration("1h 30m"), Ok(Duration::from_secs(5400)));
        for text in ["0s", "5", "soon"] {
            assert!(parse_duration(text).is_err(), "{text}");
        }
        assert_eq!(parse_count("10_000"), Ok(10_000));
        assert!(parse_count("0").is_err());
    }
}
