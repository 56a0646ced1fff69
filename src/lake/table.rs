//! What a table is: its columns and its partitions, checked once before anything is written.

use std::sync::Arc;

use arrow::datatypes::{Schema, SchemaRef};

use super::digest;
use super::error::{LakeError, Result};
use super::manifest::{self, Column};
use super::partition::{self, PartitionBy};
use super::stored::stored_field;

/// A table to write: where it lies in the lake (`gold/hourly_delay`), its columns and what it is split by.
#[derive(Clone, Debug)]
pub struct TableSpec {
    pub path: String,
    pub schema: SchemaRef,
    pub partition_by: Vec<PartitionBy>,
}

/// A [`TableSpec`] that was found good.
pub(super) struct Table {
    pub path: String,
    pub schema: SchemaRef,
    pub partition_by: Vec<PartitionBy>,
    pub columns: Vec<Column>,
    /// The columns in a file, under their stored types.
    pub file_schema: SchemaRef,
    /// For each of them, its place in `schema`.
    pub file_columns: Vec<usize>,
}

impl Table {
    pub fn new(spec: TableSpec) -> Result<Table> {
        check_path(&spec.path)?;
        let refuse = |detail: String| LakeError::Table { table: spec.path.clone(), detail };
        let columns = manifest::columns(&spec.schema).map_err(refuse)?;
        for (place, field) in spec.schema.fields().iter().enumerate() {
            if spec.schema.index_of(field.name()).is_ok_and(|first| first != place) {
                return Err(refuse(format!("it has two columns named '{}'", field.name())));
            }
            if !digest::supports(field.data_type()) {
                return Err(refuse(format!(
                    "column '{}' has the type {}, which the lake cannot hold",
                    field.name(),
                    field.data_type()
                )));
            }
        }
        partition::check(&spec.schema, &spec.partition_by).map_err(refuse)?;
        let file_columns: Vec<usize> = (0..columns.len())
            .filter(|&place| !partition::is_in_folder(&spec.partition_by, &columns[place].name))
            .collect();
        let stored: Vec<_> =
            file_columns.iter().map(|&place| stored_field(&spec.schema.fields()[place])).collect();
        Ok(Table {
            path: spec.path,
            schema: spec.schema,
            partition_by: spec.partition_by,
            columns,
            file_schema: Arc::new(Schema::new(stored)),
            file_columns,
        })
    }
}

/// A table's path is plain folder names, none of which could be taken for the lake's own.
pub(super) fn check_path(path: &str) -> Result<()> {
    let plain = |name: &str| {
        !name.is_empty()
            && !name.starts_with(['.', '_'])
            && name.chars().all(|character| character.is_ascii_alphanumeric() || "._-".contains(character))
            && manifest::version_of_folder(name).is_none()
    };
    if path.split('/').all(plain) {
        return Ok(());
    }
    Err(LakeError::Table {
        table: path.to_owned(),
        detail: "a table's name is one or more of [A-Za-z0-9_.-]+ with slashes between, none beginning with '.' or '_', and none like 'v000001'; an example: gold/hourly_delay".to_owned(),
    })
}
