//! A record as one JSON object: what `topic tail --json` prints and `topic produce --envelope` takes.
//!
//! Shape: `{topic, partition, offset, timestamp, key, value, headers}`; `timestamp` in milliseconds, as Kafka
//! keeps it; `value` null for a tombstone. Bytes that are not JSON are a string with `"encoding": "text"`
//! beside it, or `"base64"` where they are not UTF-8 either.
//!
//! Invariant: what is printed and produced again has the same key, value and headers, byte for byte, but for
//! line breaks in and around a JSON value, which are taken out.

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde::ser::{Serialize, SerializeMap, Serializer};
use serde::{Deserialize, de::IgnoredAny};
use serde_json::Value;
use serde_json::value::RawValue;

use crate::record::{Header, OwnedRecord, TopicPartition};

/// A record to print.
pub struct Printed<'a> {
    pub partition: &'a TopicPartition,
    pub record: &'a OwnedRecord,
}

impl Serialize for Printed<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("topic", &*self.partition.topic)?;
        map.serialize_entry("partition", &self.partition.partition)?;
        map.serialize_entry("offset", &self.record.offset)?;
        map.serialize_entry("timestamp", &self.record.timestamp_ms)?;
        let (key, key_encoding) = key_json(self.record.key.as_deref());
        map.serialize_entry("key", &key)?;
        if let Some(encoding) = key_encoding {
            map.serialize_entry("key_encoding", encoding)?;
        }
        let (value, encoding) = value_json(self.record.value.as_deref());
        map.serialize_entry("value", &value)?;
        if let Some(encoding) = encoding {
            map.serialize_entry("encoding", encoding)?;
        }
        if !self.record.headers.is_empty() {
            let headers: Vec<PrintedHeader> = self.record.headers.iter().map(PrintedHeader).collect();
            map.serialize_entry("headers", &headers)?;
        }
        map.end()
    }
}

struct PrintedHeader<'a>(&'a Header);

impl Serialize for PrintedHeader<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("name", &self.0.name)?;
        match self.0.value.as_deref().map(|value| (value, std::str::from_utf8(value))) {
            None => map.serialize_entry("value", &None::<&str>)?,
            Some((_, Ok(text))) => map.serialize_entry("value", text)?,
            Some((bytes, Err(_))) => {
                map.serialize_entry("value", &BASE64.encode(bytes))?;
                map.serialize_entry("encoding", "base64")?;
            }
        }
        map.end()
    }
}

/// Keys: a JSON object or array stays one; any other text is a string, so that `7` and `"7"` stay apart.
fn key_json(key: Option<&[u8]>) -> (Option<Box<RawValue>>, Option<&'static str>) {
    let Some(bytes) = key else { return (None, None) };
    match std::str::from_utf8(bytes) {
        Ok(text) if text.starts_with(['{', '[']) => match one_line(text) {
            Some(json) => (Some(json), None),
            None => (string(text), None),
        },
        Ok(text) => (string(text), None),
        Err(_) => (string(&BASE64.encode(bytes)), Some("base64")),
    }
}

fn value_json(value: Option<&[u8]>) -> (Option<Box<RawValue>>, Option<&'static str>) {
    let Some(bytes) = value else { return (None, None) };
    match std::str::from_utf8(bytes) {
        // A JSON null is not a tombstone.
        Ok(text) => match one_line(text).filter(|json| json.get() != "null") {
            Some(json) => (Some(json), None),
            None => (string(text), Some("text")),
        },
        Err(_) => (string(&BASE64.encode(bytes)), Some("base64")),
    }
}

/// `text` as raw JSON on one line, or `None` if it is not JSON, or has white space around it, which would be lost.
fn one_line(text: &str) -> Option<Box<RawValue>> {
    let text = text.trim_matches(['\n', '\r']);
    if text.trim() != text {
        return None;
    }
    if text.contains(['\n', '\r']) {
        let value: Value = serde_json::from_str(text).ok()?;
        return serde_json::value::to_raw_value(&value).ok();
    }
    RawValue::from_string(text.to_owned()).ok()
}

fn string(text: &str) -> Option<Box<RawValue>> {
    serde_json::value::to_raw_value(text).ok()
}

/// A record to produce.
#[derive(Debug, PartialEq, Eq)]
pub struct Taken {
    pub record: OwnedRecord,
    pub partition: Option<i32>,
    pub timestamp_ms: Option<i64>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Envelope<'a> {
    #[serde(borrow, default)]
    key: Option<&'a RawValue>,
    key_encoding: Option<Encoding>,
    #[serde(borrow)]
    value: &'a RawValue,
    encoding: Option<Encoding>,
    #[serde(default)]
    headers: Option<Headers>,
    partition: Option<i32>,
    timestamp: Option<i64>,
    #[serde(default, rename = "topic")]
    _topic: IgnoredAny,
    #[serde(default, rename = "offset")]
    _offset: IgnoredAny,
}

#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Encoding {
    Text,
    Base64,
}

/// Headers as they are printed, or as people write them: `{"name": "value"}`.
#[derive(Deserialize)]
#[serde(untagged)]
enum Headers {
    List(Vec<TakenHeader>),
    Map(std::collections::BTreeMap<String, Option<String>>),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct TakenHeader {
    name: String,
    value: Option<String>,
    encoding: Option<Encoding>,
}

/// Reads an envelope. `topic` and `offset` are ignored, so that printed records can be produced elsewhere.
pub fn take(line: &[u8]) -> Result<Taken, String> {
    let envelope: Envelope = serde_json::from_slice(line).map_err(|error| error.to_string())?;
    let key = match envelope.key {
        None => None,
        Some(raw) => Some(match (raw.get().starts_with('"'), envelope.key_encoding) {
            (true, encoding) => decode("key", raw, encoding.unwrap_or(Encoding::Text))?,
            (false, None) => raw.get().as_bytes().to_vec(),
            (false, Some(_)) => return Err("a key with key_encoding is a string".to_owned()),
        }),
    };
    let value = match (envelope.value.get(), envelope.encoding) {
        ("null", None) => None,
        (raw, None) => Some(raw.as_bytes().to_vec()),
        (_, Some(encoding)) => Some(decode("value", envelope.value, encoding)?),
    };
    let headers = match envelope.headers {
        None => Vec::new(),
        Some(Headers::Map(map)) => map
            .into_iter()
            .map(|(name, value)| Header { name, value: value.map(String::into_bytes) })
            .collect(),
        Some(Headers::List(list)) => list.into_iter().map(header).collect::<Result<_, String>>()?,
    };
    let record = OwnedRecord { key, value, headers, ..OwnedRecord::default() };
    Ok(Taken { record, partition: envelope.partition, timestamp_ms: envelope.timestamp })
}

fn header(taken: TakenHeader) -> Result<Header, String> {
    let value = match (taken.value, taken.encoding) {
        (Some(text), Some(Encoding::Base64)) => Some(from_base64(&taken.name, &text)?),
        (value, _) => value.map(String::into_bytes),
    };
    Ok(Header { name: taken.name, value })
}

fn decode(what: &str, raw: &RawValue, encoding: Encoding) -> Result<Vec<u8>, String> {
    let text: String =
        serde_json::from_str(raw.get()).map_err(|_| format!("a {what} with an encoding is a string"))?;
    match encoding {
        Encoding::Text => Ok(text.into_bytes()),
        Encoding::Base64 => from_base64(what, &text),
    }
}

fn from_base64(what: &str, text: &str) -> Result<Vec<u8>, String> {
    BASE64.decode(text).map_err(|error| format!("the {what} is not base64: {error}"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn again(record: &OwnedRecord) -> OwnedRecord {
        let partition = TopicPartition::new("t", 3);
        let line = serde_json::to_string(&Printed { partition: &partition, record }).expect("JSON");
        assert!(!line.contains('\n'));
        let taken = take(line.as_bytes()).expect("an envelope");
        assert_eq!((taken.partition, taken.timestamp_ms), (Some(3), Some(record.timestamp_ms)));
        OwnedRecord { offset: record.offset, timestamp_ms: record.timestamp_ms, ..taken.record }
    }

    #[test]
    fn json_stands_in_the_envelope_as_json() {
        let record = OwnedRecord {
            offset: 7,
            timestamp_ms: 1_357_000_000_123,
            key: Some(br#"{"origin":"EWR"}"#.to_vec()),
            value: Some(br#"{"delay": 2.50}"#.to_vec()),
            headers: vec![Header::text("headwater.op", "retract")],
        };
        let partition = TopicPartition::new("flights", 0);
        let line = serde_json::to_string(&Printed { partition: &partition, record: &record }).expect("JSON");
        assert_eq!(
            line,
            r#"{"topic":"flights","partition":0,"offset":7,"timestamp":1357000000123,"key":{"origin":"EWR"},"value":{"delay": 2.50},"headers":[{"name":"headwater.op","value":"retract"}]}"#
        );
    }

    #[test]
    fn white_space_around_json_is_kept() {
        for value in ["0\t", " {}", "{}\n ", "null ", "\u{a0}1"] {
            let record = OwnedRecord {
                key: Some(b"[] ".to_vec()),
                value: Some(value.as_bytes().to_vec()),
                ..OwnedRecord::default()
            };
            assert_eq!(again(&record), record, "{value:?}");
        }
        let line = OwnedRecord { value: Some(b"{\"a\": 1}\r\n".to_vec()), ..OwnedRecord::default() };
        assert_eq!(again(&line).value.as_deref(), Some(&b"{\"a\": 1}"[..]), "but for line breaks");
    }

    #[test]
    fn a_person_may_leave_out_all_but_the_value() {
        let taken =
            take(br#"{"key": "EWR", "value": {"a": 1}, "headers": {"x": "y"}}"#).expect("an envelope");
        assert_eq!(taken.record.key.as_deref(), Some(&b"EWR"[..]));
        assert_eq!(taken.record.value.as_deref(), Some(&br#"{"a": 1}"#[..]));
        assert_eq!(taken.record.headers, [Header::text("x", "y")]);
        assert_eq!((taken.partition, taken.timestamp_ms), (None, None));
        assert_eq!(take(br#"{"value": null}"#).expect("a tombstone").record.value, None);
    }

    #[test]
    fn what_is_no_envelope_is_refused() {
        for line in [
            &b"{}"[..],
            br#"{"value": 1, "vlaue": 2}"#,
            br#"{"value": 1, "encoding": "base64"}"#,
            br#"{"value": "?", "encoding": "base64"}"#,
            br#"{"value": 1, "partition": "x"}"#,
            b"{\"value\": 1} x",
            b"\xff",
        ] {
            assert!(take(line).is_err(), "{}", String::from_utf8_lossy(line));
        }
    }

    proptest! {
        #[test]
        fn any_record_comes_back_as_it_was(
            key in proptest::option::of(proptest::collection::vec(any::<u8>(), 0..12)),
            value in proptest::option::of(prop_oneof![
                proptest::collection::vec(any::<u8>(), 0..12),
                r#"( |null|true|-?[0-9]{1,20}(\.[0-9]{1,3})?|"a\\n\"|\{"a":[0-9]\}|\[ ?\]|[a-z "{}\[\]:,\n]{0,8})"#
                    .prop_map(String::into_bytes)
                    .prop_filter("line breaks in JSON are taken out", |bytes| !bytes.contains(&b'\n')),
            ]),
            header in proptest::option::of(proptest::collection::vec(any::<u8>(), 0..6)),
            timestamp_ms in any::<i64>(),
        ) {
            let headers = vec![Header { name: "h".to_owned(), value: header }];
            let record = OwnedRecord { offset: 1, timestamp_ms, key, value, headers };
            prop_assert_eq!(again(&record), record);
        }
    }
}
