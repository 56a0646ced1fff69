//! The files that `headwater test` reads: `<topology>_test.yaml` beside `<topology>.yaml`.
//!
//! ```yaml
//! topology: flights.yaml            # from this file's folder; default: this file's name without `_test`
//! cases:
//!   - name: a late flight goes to the late topic
//!     input:
//!       departures:                 # a source's name; its records in the order in which they are produced
//!         - {flight: 7, origin: EWR, sched_dep: 2013-01-01T05:15:00Z}
//!         - {value: {flight: 8}, key: "8", headers: {a: b}, partition: 1, timestamp: 2013-01-01T05:16:00Z}
//!         - '{"flight": 9, cut off' # text is the value's bytes, as they are
//!         - null                    # a tombstone
//!     expect:
//!       refined:
//!         hourly_delay:             # a view; all of its rows, in any order, with all of their columns
//!           - {window_start: 2013-01-01T05:00:00Z, origin: EWR, flights: 1}
//!       late: {departures: []}      # values, in any order; what is not named here must not be late
//!       dead:                       # of each dead letter, what is named: reason, stage, message, source,
//!         - {reason: malformed_json} # partition, offset, value; what is not named must not be dead
//!     late: 24h                     # as `replay --late`; default as-live
//!     close: false                  # leaves windows open that the records did not close; default true
//!     partitions: {departures: 2}   # default: as many as the records name
//! ```
//! A view that `refined` does not name is not compared. An object is a record with provenance exactly if it has
//! a `value` and nothing but `value`, `encoding`, `key`, `key_encoding`, `headers`, `partition` and `timestamp`
//! (milliseconds or ISO text); `encoding: base64` gives bytes that are no text. A record without a timestamp has
//! none where its source has an `event_time` (so `max_ahead` does not judge it), else 2020-01-01.

use std::path::{Path, PathBuf};

use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Map, Value};
use serde_saphyr::Spanned;

use crate::plan::{Entries, SourceFile, read_yaml};
use crate::record::OwnedRecord;
use crate::tool::topic::envelope;
use crate::tool::{Result, ToolError};

/// Unit tests of a topology.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct TestFile {
    /// The topology's file, from this file's folder. Default: this file's name without `_test`.
    #[schemars(with = "Option<String>")]
    pub topology: Option<Spanned<String>>,
    pub cases: Vec<Case>,
}

/// Records in, and what must come of them.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Case {
    /// What the case shows.
    #[schemars(with = "String")]
    pub name: Spanned<String>,
    /// By source: records in the order in which they are produced. Text is a value's bytes; null is a tombstone;
    /// `{value, encoding, key, key_encoding, headers, partition, timestamp}` is a whole record.
    #[serde(default)]
    #[schemars(with = "std::collections::BTreeMap<String, Vec<Value>>")]
    pub input: Entries<Vec<Spanned<Value>>>,
    #[serde(default)]
    pub expect: Expect,
    /// Which late rows get their place: as-live (default), all, or a duration like 24h.
    #[schemars(with = "Option<String>")]
    pub late: Option<Spanned<String>>,
    /// Whether the end of the input closes the windows that are open. Default `true`.
    pub close: Option<bool>,
    /// By source: its topic's partitions. Default: as many as the records name.
    #[serde(default)]
    #[schemars(with = "std::collections::BTreeMap<String, i32>")]
    pub partitions: Entries<Spanned<i32>>,
}

/// What must come of a case's records.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Expect {
    /// By view: all of its rows, with all of their columns; of keyed rows the last by key.
    #[serde(default)]
    #[schemars(with = "std::collections::BTreeMap<String, Vec<Map<String, Value>>>")]
    pub refined: Entries<Vec<Map<String, Value>>>,
    /// By source: the values of its late records.
    #[serde(default)]
    #[schemars(with = "std::collections::BTreeMap<String, Vec<Value>>")]
    pub late: Entries<Vec<Value>>,
    /// The dead letters, each by what is named of it.
    #[serde(default)]
    pub dead: Vec<DeadLetter>,
}

/// What may be said of a dead letter.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct DeadLetter {
    /// The stable code: `check:<name>`, `malformed_json`, `too_far_ahead`, …
    pub reason: Option<String>,
    /// Where it failed: `decode`, `event_time`, `check`, or a view's name.
    pub stage: Option<String>,
    /// A part of the message.
    pub message: Option<String>,
    pub source: Option<String>,
    pub partition: Option<i32>,
    pub offset: Option<i64>,
    pub value: Option<Value>,
}

/// A test file with where it lies.
pub(super) struct Loaded {
    pub path: PathBuf,
    pub text: String,
    pub file: TestFile,
}

pub(super) fn load(path: &Path) -> Result<Loaded> {
    let text = std::fs::read_to_string(path)
        .map_err(|error| ToolError::input(format!("cannot read {}: {error}", path.display())))?;
    let name = path.display().to_string();
    let file = read_yaml(&SourceFile { name: &name, text: &text })?;
    Ok(Loaded { path: path.to_path_buf(), text, file })
}

impl Loaded {
    /// The topology that is tested.
    pub fn topology(&self) -> PathBuf {
        let folder = self.path.parent().unwrap_or(Path::new(""));
        match &self.file.topology {
            Some(topology) => folder.join(&topology.value),
            None => {
                let name = self.path.file_name().unwrap_or_default().to_string_lossy();
                folder.join(name.replacen("_test.", ".", 1))
            }
        }
    }
}

/// A record to produce.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TestRecord {
    pub partition: i32,
    pub timestamp_ms: Option<i64>,
    pub record: OwnedRecord,
}

const ENVELOPE: [&str; 7] = ["value", "encoding", "key", "key_encoding", "headers", "partition", "timestamp"];

impl TestRecord {
    /// From how a test file writes it; an error says what is wrong.
    pub fn from_value(value: &Value) -> Result<Self, String> {
        let bare = |value: Option<Vec<u8>>| {
            let record = OwnedRecord { value, ..OwnedRecord::default() };
            TestRecord { partition: 0, timestamp_ms: None, record }
        };
        match value {
            Value::Null => Ok(bare(None)),
            Value::String(text) => Ok(bare(Some(text.clone().into_bytes()))),
            Value::Object(map)
                if map.contains_key("value") && map.keys().all(|key| ENVELOPE.contains(&key.as_str())) =>
            {
                Self::from_envelope(map.clone())
            }
            other => Ok(bare(Some(other.to_string().into_bytes()))),
        }
    }

    fn from_envelope(mut map: Map<String, Value>) -> Result<Self, String> {
        if let Some(Value::String(text)) = map.get("timestamp") {
            let time = chrono::DateTime::parse_from_rfc3339(text)
                .map_err(|error| format!("timestamp '{text}': {error}; write 2013-01-01T05:00:00Z"))?;
            map.insert("timestamp".to_owned(), time.timestamp_millis().into());
        }
        let text = Value::Object(map).to_string();
        let taken = envelope::take(text.as_bytes())?;
        let partition = taken.partition.unwrap_or(0);
        if !(0..1024).contains(&partition) {
            return Err(format!("partition {partition}: a test has partitions 0 to 1023"));
        }
        Ok(Self { partition, timestamp_ms: taken.timestamp_ms, record: taken.record })
    }
}

/// The JSON Schema of test files.
pub fn json_schema() -> Value {
    schemars::schema_for!(TestFile).to_value()
}
