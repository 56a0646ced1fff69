//! Corrected records for a redrive: what stands in for the key and the value of some dead letters.
//!
//! `dlq list --json` prints letters one a line; the same lines, changed by any tool, are the corrections.

use std::collections::BTreeMap;
use std::io::BufRead;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde::Deserialize;
use serde_json::value::RawValue;

use super::DeadLetter;
use crate::tool::{Result, ToolError};

/// A dead letter as `--json` prints it; what is not needed is not looked at.
#[derive(Deserialize)]
struct Line<'a> {
    partition: i32,
    offset: i64,
    #[serde(borrow, default)]
    key: Option<&'a RawValue>,
    #[serde(default)]
    key_encoding: Option<String>,
    #[serde(borrow, default)]
    value: Option<&'a RawValue>,
    #[serde(default)]
    value_encoding: Option<String>,
}

/// What a letter is redriven with.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Edit {
    /// `None`: as it was. `Some(None)`: null.
    key: Option<Option<Vec<u8>>>,
    value: Option<Option<Vec<u8>>>,
}

impl Edit {
    /// Whether that changes the letter.
    pub fn apply(self, letter: &mut DeadLetter) -> bool {
        let before = (letter.key.clone(), letter.value.clone());
        if let Some(key) = self.key {
            letter.key = key;
        }
        if let Some(value) = self.value {
            letter.value = value;
        }
        before != (letter.key.clone(), letter.value.clone())
    }
}

/// By partition and offset of the dead letter.
#[derive(Clone, Debug, Default)]
pub struct Edits(BTreeMap<(i32, i64), Edit>);

impl Edits {
    /// One letter's value.
    pub fn value(partition: i32, offset: i64, value: Vec<u8>) -> Self {
        let edit = Edit { key: None, value: Some(Some(value)) };
        Self(BTreeMap::from([((partition, offset), edit)]))
    }

    /// One JSON object a line. A key or value that is no string is taken as JSON text; null is null; one that is
    /// missing stays as it was.
    pub fn read(lines: impl BufRead, name: &str) -> Result<Self> {
        let mut edits = BTreeMap::new();
        for (number, line) in (1..).zip(lines.lines()) {
            let line = line.map_err(ToolError::io(format!("cannot read {name}")))?;
            if line.trim().is_empty() {
                continue;
            }
            let wrong = |what: String| {
                ToolError::input_with_help(
                    format!("line {number} of {name}: {what}"),
                    "each line is a dead letter as 'headwater dlq list FILE --json' prints it, with its value \
                     corrected; nothing was redriven",
                )
            };
            let parsed: Line = serde_json::from_str(&line).map_err(|error| wrong(error.to_string()))?;
            let key = part(parsed.key, parsed.key_encoding.as_deref(), &line, "key").map_err(&wrong)?;
            let value =
                part(parsed.value, parsed.value_encoding.as_deref(), &line, "value").map_err(&wrong)?;
            if edits.insert((parsed.partition, parsed.offset), Edit { key, value }).is_some() {
                let (partition, offset) = (parsed.partition, parsed.offset);
                return Err(wrong(format!("partition {partition}, offset {offset} stands there twice")));
            }
        }
        Ok(Self(edits))
    }

    pub fn take(&mut self, partition: i32, offset: i64) -> Option<Edit> {
        self.0.remove(&(partition, offset))
    }

    /// One that was not taken.
    pub fn first(&mut self) -> Option<(i32, i64)> {
        self.0.pop_first().map(|(place, _)| place)
    }
}

/// The bytes that a field says.
fn part(
    json: Option<&RawValue>,
    encoding: Option<&str>,
    line: &str,
    name: &str,
) -> std::result::Result<Option<Option<Vec<u8>>>, String> {
    let Some(json) = json else {
        // An option takes null for none: whether the field is there tells them apart.
        let fields: BTreeMap<String, serde::de::IgnoredAny> =
            serde_json::from_str(line).map_err(|error| error.to_string())?;
        return Ok(fields.contains_key(name).then_some(None));
    };
    let Ok(text) = serde_json::from_str::<String>(json.get()) else {
        return Ok(Some(Some(json.get().as_bytes().to_vec())));
    };
    match encoding {
        None => Ok(Some(Some(text.into_bytes()))),
        Some("base64") => {
            let bytes = BASE64.decode(text).map_err(|error| format!("its {name} is no base64: {error}"))?;
            Ok(Some(Some(bytes)))
        }
        Some(other) => Err(format!("'{other}' is no {name}_encoding; there is base64")),
    }
}

#[cfg(test)]
mod unit {
    use super::*;

    #[test]
    fn what_list_prints_is_taken_back_text_json_bytes_and_null() {
        let lines = concat!(
            r#"{"topic":"t.dead","partition":0,"offset":1,"reason":"x","key":"k","value":"{\"a\": 1}"}"#,
            "\n\n",
            r#"{"partition":1,"offset":2,"value":{"a": 1.50}}"#,
            "\n",
            r#"{"partition":1,"offset":3,"key":null,"value":"/wA=","value_encoding":"base64"}"#,
        );
        let mut edits = Edits::read(lines.as_bytes(), "x").unwrap();
        let bytes = |text: &str| Some(Some(text.as_bytes().to_vec()));
        assert_eq!(edits.take(0, 1), Some(Edit { key: bytes("k"), value: bytes("{\"a\": 1}") }));
        assert_eq!(edits.take(1, 2), Some(Edit { key: None, value: bytes("{\"a\": 1.50}") }));
        let edit = edits.take(1, 3).unwrap();
        assert_eq!(edit, Edit { key: Some(None), value: Some(Some(vec![255, 0])) });
        assert_eq!(edits.first(), None);
        for (line, wanted) in [
            ("{\"partition\":1}", "missing field `offset`"),
            ("{\"partition\":1,\"offset\":1,\"value\":\"a\",\"value_encoding\":\"hex\"}", "'hex'"),
            ("{\"partition\":1,\"offset\":1}\n{\"partition\":1,\"offset\":1}", "twice"),
        ] {
            let error = Edits::read(line.as_bytes(), "x.ndjson").unwrap_err().to_string();
            assert!(error.contains("of x.ndjson: ") && error.contains(wanted), "{error}");
        }
    }
}
