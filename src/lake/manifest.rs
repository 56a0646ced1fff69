//! What a version of a table is: the list of its files and where its rows came from. A version exists for
//! readers exactly when its manifest does.
//!
//! Invariant: a manifest is never changed; its file paths are relative to the table's folder.

use std::collections::BTreeMap;
use std::str::FromStr;
use std::sync::Arc;

use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

/// The form of manifest that this program writes; a higher one is refused.
pub(super) const FORMAT: u32 = 1;

/// One version of a table, as `_manifest/000001.json` holds it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    pub format: u32,
    pub version: u64,
    pub table: String,
    pub topology: String,
    pub fingerprint: String,
    /// By topic and partition: the records that the rows came from.
    pub offsets: BTreeMap<String, BTreeMap<i32, OffsetRange>>,
    /// How late records were treated, as `--late` was given.
    pub late: String,
    pub columns: Vec<Column>,
    pub files: Vec<FileEntry>,
    pub rows: u64,
    pub bytes: u64,
    pub counts: BTreeMap<String, u64>,
    /// The order-free digest of all rows, in hex.
    pub digest: String,
    pub started: String,
    pub ended: String,
    pub written_at: String,
}

/// Offsets `from..until`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OffsetRange {
    pub from: i64,
    pub until: i64,
}

/// A column of the table, with its Arrow type's name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Column {
    pub name: String,
    #[serde(rename = "type")]
    pub data_type: String,
    pub nullable: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileEntry {
    pub path: String,
    pub rows: u64,
    pub bytes: u64,
    /// By partition column: the value that all rows of the file share; null is null.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub partition: BTreeMap<String, Option<String>>,
}

/// What a replay tells of itself for the manifest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunInfo {
    pub topology: String,
    pub fingerprint: String,
    pub late: String,
    pub offsets: BTreeMap<String, BTreeMap<i32, OffsetRange>>,
    pub counts: BTreeMap<String, u64>,
    pub started: DateTime<Utc>,
    pub ended: DateTime<Utc>,
}

impl Manifest {
    /// The table's columns, those that live in folder names too.
    pub fn schema(&self) -> Result<SchemaRef, String> {
        let fields = self.columns.iter().map(|column| {
            let data_type = DataType::from_str(&column.data_type)
                .map_err(|error| format!("column '{}': {error}", column.name))?;
            Ok(Field::new(&column.name, data_type, column.nullable))
        });
        Ok(Arc::new(Schema::new(fields.collect::<Result<Vec<_>, String>>()?)))
    }
}

/// The columns as a manifest writes them; an error names a type that a manifest cannot carry.
pub(super) fn columns(schema: &Schema) -> Result<Vec<Column>, String> {
    let describe = |field: &Arc<Field>| {
        let data_type = field.data_type().to_string();
        if DataType::from_str(&data_type).ok().as_ref() != Some(field.data_type()) {
            return Err(format!(
                "column '{}' has the type {data_type}, which the lake cannot hold",
                field.name()
            ));
        }
        Ok(Column { name: field.name().clone(), data_type, nullable: field.is_nullable() })
    };
    schema.fields().iter().map(describe).collect()
}

/// `_manifest/000001.json` for version 1.
pub(super) fn file_name(version: u64) -> String {
    format!("{version:06}.json")
}

/// The version that a manifest's name stands for; `None` for any other object.
pub(super) fn version_of_file(name: &str) -> Option<u64> {
    let version = name.strip_suffix(".json")?.parse().ok()?;
    (file_name(version) == name).then_some(version)
}

/// `v000001` for version 1.
pub(super) fn folder_name(version: u64) -> String {
    format!("v{version:06}")
}

pub(super) fn version_of_folder(name: &str) -> Option<u64> {
    let version = name.strip_prefix('v')?.parse().ok()?;
    (folder_name(version) == name).then_some(version)
}
