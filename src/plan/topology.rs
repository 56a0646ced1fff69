//! The topology file as its user writes it. The JSON Schema is made from these structs, so their comments are
//! the reference.
//!
//! Invariant: an unknown key is an error; nothing here is resolved or defaulted yet.

use std::borrow::Cow;
use std::fmt;
use std::marker::PhantomData;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_saphyr::Spanned;

/// A topology: sources, the views that refine them, and the sinks that carry views out.
#[derive(Debug, serde::Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Topology {
    /// The topology's name: prefix of its internal topics, and its consumer group `headwater.<name>`.
    #[schemars(with = "String")]
    pub name: Spanned<String>,
    /// The topics that are read, by the name that SQL calls them.
    pub sources: Entries<Source>,
    /// By source: rules that every record of it must meet.
    #[serde(default)]
    pub checks: Entries<Vec<Check>>,
    /// By name: a SELECT over sources and other views.
    #[serde(default)]
    pub views: Entries<Sql>,
    /// By view: where its rows go.
    #[serde(default)]
    pub sinks: Entries<Sink>,
    /// How long after a window's end, in event time, its rows are still taken: `30m`. Default `0s`.
    #[schemars(with = "Option<String>")]
    pub grace: Option<Spanned<String>>,
    /// How long after its close a window can still be corrected: `3d`. Default `7d`.
    #[schemars(with = "Option<String>")]
    pub retention: Option<Spanned<String>>,
    /// How far, in event time, one partition may be read ahead of the slowest. Default `1h`.
    #[schemars(with = "Option<String>")]
    pub max_drift: Option<Spanned<String>>,
    /// How the topic of dead letters, `<name>.dead`, is created where it is missing.
    #[serde(default)]
    pub dead: OwnTopic,
    /// How the topic of late records, `<name>.late`, is created where it is missing.
    #[serde(default)]
    pub late: OwnTopic,
}

/// How a topic of the topology's own is created where it is missing; one that exists stays as it is.
#[derive(Debug, Default, serde::Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct OwnTopic {
    /// How many partitions it has. Default: as many as the source with the most.
    #[schemars(with = "Option<u32>")]
    pub partitions: Option<Spanned<i64>>,
    /// Its configuration by Kafka's names: `retention.ms: 604800000`. Default: the broker's.
    #[serde(default)]
    pub config: Entries<Setting>,
}

/// A topic and how its records are read.
#[derive(Debug, serde::Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Source {
    /// The topic's name.
    #[schemars(with = "String")]
    pub topic: Spanned<String>,
    /// How values are encoded: `json`.
    #[schemars(with = "String")]
    pub format: Spanned<String>,
    /// The columns and their types: bigint, integer, smallint, double, real, boolean, varchar, decimal(p,s),
    /// date, timestamp (ISO text), timestamp_ms, timestamp_us, timestamp_s (integers), bytea, json,
    /// arrays as `bigint[]`, structs as `struct<a bigint, b varchar>`.
    pub columns: Entries<Sql>,
    /// The timestamp column that says when a record's event happened. Default: the record's log timestamp.
    #[schemars(with = "Option<String>")]
    pub event_time: Option<Spanned<String>>,
    /// The columns by which producers place records: those with equal values in them lie in one partition.
    #[serde(default)]
    #[schemars(with = "Vec<String>")]
    pub partitioned_by: Vec<Spanned<String>>,
    /// How far records are out of order.
    pub watermark: Option<Watermark>,
    /// A table keyed by columns, for joins: not built yet.
    #[schemars(with = "Option<serde_json::Value>")]
    pub table: Option<Spanned<serde::de::IgnoredAny>>,
    /// Check the types of all declared columns, not only of those that are read. Default `false`.
    #[serde(default)]
    pub strict: bool,
    /// The share of a partition's last 1,000 records that may be dead before the topology stops, 0 to 1.
    /// Default `0.5`.
    #[schemars(with = "Option<f64>")]
    pub max_reject_ratio: Option<Spanned<f64>>,
}

/// How a source's watermark follows its records.
#[derive(Debug, Default, serde::Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Watermark {
    /// How far behind the highest event time records still arrive: `3h`. Default `0s`.
    #[schemars(with = "Option<String>")]
    pub out_of_orderness: Option<Spanned<String>>,
    /// After how long without records a partition stops holding windows open. Default `30s`.
    #[schemars(with = "Option<String>")]
    pub idle_after: Option<Spanned<String>>,
    /// How far an event time may be ahead of the record's log timestamp; beyond, the record is a dead letter.
    /// Default `1d`.
    #[schemars(with = "Option<String>")]
    pub max_ahead: Option<Spanned<String>>,
}

/// A rule for the records of a source.
#[derive(Debug, serde::Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Check {
    /// Its name in counters and dead letters.
    #[schemars(with = "String")]
    pub name: Spanned<String>,
    /// A boolean SQL expression over the source's columns; false and null fail.
    pub expect: Sql,
    /// What becomes of a record that fails: a dead letter if not given, `drop` (filtered), or `warn` (counted).
    pub otherwise: Option<Otherwise>,
}

#[derive(Clone, Copy, Debug, serde::Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(super) enum Otherwise {
    /// The record is filtered out.
    Drop,
    /// The record is kept and counted.
    Warn,
}

/// Where a view's rows go.
#[derive(Debug, serde::Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Sink {
    /// A refined topic.
    pub topic: Option<TopicSink>,
    /// A table in the lake.
    pub lake: Option<LakeSink>,
    /// When a windowed view's rows go to the topic: `final`, once their window is closed, which is the default;
    /// `changes`, at the end of every epoch that changed them.
    #[schemars(with = "Option<Emit>")]
    pub emit: Option<Spanned<Emit>>,
}

/// When a windowed view's rows go to their topic.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Emit {
    /// Once their window is closed.
    #[default]
    Final,
    /// At the end of every epoch that changed them.
    Changes,
}

/// A refined topic.
#[derive(Debug, serde::Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct TopicSink {
    /// The topic's name.
    #[schemars(with = "String")]
    pub name: Spanned<String>,
    /// How values are encoded: `json`, which is the default.
    #[schemars(with = "Option<String>")]
    pub format: Option<Spanned<String>>,
    /// The columns of the record key, in order. A windowed view's key holds its group columns. Without a key,
    /// the topic is appended to, and corrections take the old row back first.
    #[serde(default)]
    #[schemars(with = "Vec<String>")]
    pub key: Vec<Spanned<String>>,
    /// How many partitions it is created with where it is missing. Default: as many as the source with the most.
    #[schemars(with = "Option<u32>")]
    pub partitions: Option<Spanned<i64>>,
    /// Its configuration by Kafka's names, where it is missing: `cleanup.policy: delete`. Default: with a key
    /// `cleanup.policy: compact`, else the broker's.
    #[serde(default)]
    pub config: Entries<Setting>,
}

/// A table of Parquet files.
#[derive(Debug, serde::Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct LakeSink {
    /// The table's path in the lake: `gold/hourly_delay`.
    #[schemars(with = "String")]
    pub table: Spanned<String>,
    /// Folders of the table: a column, or `date(column)` for the UTC day of a timestamp.
    #[serde(default)]
    #[schemars(with = "Vec<String>")]
    pub partition_by: Vec<Spanned<String>>,
}

/// Text with its place: SQL, or a type.
#[derive(Clone, Debug, serde::Deserialize)]
#[serde(transparent)]
pub(super) struct Sql(pub Spanned<String>);

impl JsonSchema for Sql {
    fn schema_name() -> Cow<'static, str> {
        "Sql".into()
    }
    fn inline_schema() -> bool {
        true
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({"type": "string"})
    }
}

/// The value of a topic's configuration, as Kafka spells it; its place.
#[derive(Clone, Debug, serde::Deserialize)]
#[serde(transparent)]
pub(super) struct Setting(pub Spanned<String>);

impl JsonSchema for Setting {
    fn schema_name() -> Cow<'static, str> {
        "Setting".into()
    }
    fn inline_schema() -> bool {
        true
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({"type": ["string", "number", "boolean"]})
    }
}

/// A mapping in the order of the file.
#[derive(Clone, Debug)]
pub struct Entries<T>(pub Vec<(Spanned<String>, T)>);

impl<T> Default for Entries<T> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Entries<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct InOrder<T>(PhantomData<T>);
        impl<'de, T: Deserialize<'de>> Visitor<'de> for InOrder<T> {
            type Value = Entries<T>;
            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("a mapping")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut entries = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    entries.push(entry);
                }
                Ok(Entries(entries))
            }
        }
        deserializer.deserialize_map(InOrder(PhantomData))
    }
}

impl<T: JsonSchema> JsonSchema for Entries<T> {
    fn schema_name() -> Cow<'static, str> {
        format!("MapOf{}", T::schema_name()).into()
    }
    fn inline_schema() -> bool {
        true
    }
    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let values = generator.subschema_for::<T>();
        json_schema!({"type": "object", "additionalProperties": values})
    }
}

/// The JSON Schema of a topology file.
pub fn json_schema() -> serde_json::Value {
    schemars::schema_for!(Topology).to_value()
}
