//! From the bytes of a line to a record's value and key, or to why it is none.
//!
//! Invariant: a cell is text unless its column is declared otherwise; nothing is guessed from a value.

use serde_json::value::RawValue;

use super::csv::CsvRows;
use super::settings::{Files, FormatKind, Provenance};
use crate::connect::SourceError;

/// Why a line is no record: a stable code, and words.
#[derive(Debug, PartialEq, Eq)]
pub struct Bad {
    pub reason: &'static str,
    pub message: String,
}

impl Bad {
    pub fn new(reason: &'static str, message: impl Into<String>) -> Self {
        Self { reason, message: message.into() }
    }
}

/// Where a record ends in a buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cut {
    /// With its end of line.
    pub bytes: usize,
    pub lines: u64,
    /// It is what is left of something that never ends.
    pub broken: bool,
}

/// What is made of one file's lines.
pub enum Rows {
    Csv(Box<CsvRows>),
    Jsonl { key: Vec<String> },
}

impl Rows {
    /// `header`: a file's first record, where the format has one.
    pub fn new(
        files: &Files,
        format: &FormatKind,
        header: Option<&[u8]>,
        place: &str,
    ) -> Result<Self, SourceError> {
        Ok(match format {
            FormatKind::Csv(csv) => Self::Csv(Box::new(CsvRows::new(csv, &files.key, header, place)?)),
            FormatKind::Jsonl => Self::Jsonl { key: files.key.clone() },
        })
    }

    /// The first record of the buffer; `None`: its end is not there. At a file's end the rest is a record.
    pub fn cut(format: &FormatKind, buffer: &[u8], at_end: bool, longest: usize) -> Option<Cut> {
        match format {
            FormatKind::Csv(csv) => super::csv::cut(csv, buffer, at_end, longest),
            FormatKind::Jsonl => line(buffer, at_end),
        }
    }

    /// Fills value and key; `false`: the line is blank.
    pub fn convert(&mut self, raw: &[u8], value: &mut Vec<u8>, key: &mut Vec<u8>) -> Result<bool, Bad> {
        value.clear();
        key.clear();
        match self {
            Self::Csv(rows) => rows.convert(raw, value, key),
            Self::Jsonl { key: columns } => json_line(raw, columns, value, key),
        }
    }
}

/// A line with its end; at a file's end without one as well.
pub fn line(buffer: &[u8], at_end: bool) -> Option<Cut> {
    match buffer.iter().position(|byte| *byte == b'\n') {
        Some(at) => Some(Cut { bytes: at + 1, lines: 1, broken: false }),
        None if at_end && !buffer.is_empty() => Some(Cut { bytes: buffer.len(), lines: 1, broken: false }),
        None => None,
    }
}

/// A record's bytes without the end of their line.
pub fn trimmed(raw: &[u8]) -> &[u8] {
    let raw = raw.strip_suffix(b"\n").unwrap_or(raw);
    raw.strip_suffix(b"\r").unwrap_or(raw)
}

fn json_line(raw: &[u8], columns: &[String], value: &mut Vec<u8>, key: &mut Vec<u8>) -> Result<bool, Bad> {
    let raw = raw.trim_ascii();
    if raw.is_empty() {
        return Ok(false);
    }
    if raw[0] != b'{' {
        // Syntax first, so that the word fits what is there.
        serde_json::from_slice::<serde::de::IgnoredAny>(raw).map_err(|error| syntax(&error))?;
        return Err(Bad::new("type", "the line is JSON, but no object"));
    }
    if columns.is_empty() {
        serde_json::from_slice::<serde::de::IgnoredAny>(raw).map_err(|error| syntax(&error))?;
    } else {
        let object: std::collections::BTreeMap<String, &RawValue> =
            serde_json::from_slice(raw).map_err(|error| syntax(&error))?;
        for (at, column) in columns.iter().enumerate() {
            let Some(part) = object.get(column) else {
                return Err(Bad::new("key", format!("the key column '{column}' is missing")));
            };
            member(key, at == 0, column);
            key.extend_from_slice(part.get().as_bytes());
        }
        key.push(b'}');
    }
    value.extend_from_slice(raw);
    Ok(true)
}

fn syntax(error: &serde_json::Error) -> Bad {
    // The place within the line is what is left of the parser's own.
    let text = error.to_string();
    let what = text.split(" at line ").next().unwrap_or_default();
    Bad::new("decode", format!("column {}: no JSON: {what}", error.column()))
}

/// Begins a member of an object: `{"name":` or `,"name":`.
pub fn member(out: &mut Vec<u8>, first: bool, name: &str) {
    out.push(if first { b'{' } else { b',' });
    quoted(out, name);
    out.push(b':');
}

pub fn quoted(out: &mut Vec<u8>, text: &str) {
    // Writing to a vector does not fail.
    let _ = serde_json::to_writer(&mut *out, text);
}

/// Puts where a record comes from behind its columns.
pub fn add_provenance(value: &mut Vec<u8>, columns: &[Provenance], file: &str, line: u64) {
    for column in columns {
        let empty = value[..value.len() - 1].trim_ascii_end() == b"{";
        value.pop();
        match (empty, column) {
            (true, _) => value.push(b'"'),
            (false, _) => value.extend_from_slice(b",\""),
        }
        match column {
            Provenance::File => {
                value.extend_from_slice(b"_file\":");
                quoted(value, file);
            }
            Provenance::Row => value.extend_from_slice(format!("_row\":{line}").as_bytes()),
        }
        value.push(b'}');
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn json(raw: &str, key: &[&str]) -> Result<(String, String), Bad> {
        let mut rows = Rows::Jsonl { key: key.iter().map(|name| (*name).to_owned()).collect() };
        let (mut value, mut at) = (Vec::new(), Vec::new());
        rows.convert(raw.as_bytes(), &mut value, &mut at)?;
        Ok((String::from_utf8(value).unwrap(), String::from_utf8(at).unwrap()))
    }

    #[test]
    fn a_line_of_json_is_passed_on_byte_by_byte() {
        let (value, key) = json("  {\"b\": 1.10, \"a\": \"x\"}\r\n", &["a", "b"]).unwrap();
        assert_eq!((value.as_str(), key.as_str()), (r#"{"b": 1.10, "a": "x"}"#, r#"{"a":"x","b":1.10}"#));
        assert_eq!(json(" \r\n", &[]).unwrap().0, "");
        assert_eq!(json("[1]", &[]).unwrap_err().reason, "type");
        assert_eq!(json("{\"a\": 1", &[]).unwrap_err().reason, "decode");
        assert_eq!(json("{\"a\": 1} x", &[]).unwrap_err().reason, "decode");
        assert_eq!(json("{\"a\": 1}", &["b"]).unwrap_err().message, "the key column 'b' is missing");
    }

    #[test]
    fn where_a_record_comes_from_stands_behind_its_columns() {
        for (value, expected) in
            [("{}", "{\"_file\":\"x\",\"_row\":7}"), ("{\"a\":1}", "{\"a\":1,\"_file\":\"x\",\"_row\":7}")]
        {
            let mut value = value.as_bytes().to_vec();
            add_provenance(&mut value, &[Provenance::File, Provenance::Row], "x", 7);
            assert_eq!(String::from_utf8(value).unwrap(), expected);
        }
    }
}
