//! Reads a version back: the rows of the files that its manifest lists, with the columns of the folders' names
//! put back and timestamps as they are inside.
//!
//! Invariant: rows are yielded as they were written, or there is an error; a file that is not as its manifest
//! says is never passed over.

use std::sync::Arc;
use std::vec::IntoIter;

use arrow::array::{RecordBatch, RecordBatchOptions};
use arrow::datatypes::SchemaRef;
use arrow::error::ArrowError;
use parquet::arrow::arrow_reader::{ParquetRecordBatchReader, ParquetRecordBatchReaderBuilder};
use parquet::errors::ParquetError;

use super::error::{LakeError, Result};
use super::manifest::{FileEntry, Manifest};
use super::partition;
use super::store::Store;
use super::stored::retype;

const BATCH_ROWS: usize = 8192;

/// The rows of a version, file by file.
pub struct Rows {
    store: Store,
    table: String,
    schema: SchemaRef,
    files: IntoIter<FileEntry>,
    open: Option<OpenFile>,
}

struct OpenFile {
    file: FileEntry,
    reader: ParquetRecordBatchReader,
    rows: u64,
}

impl Rows {
    pub(super) fn new(store: Store, manifest: &Manifest) -> Result<Rows> {
        let schema = manifest.schema().map_err(|detail| LakeError::Manifest {
            path: store.full(&super::version::manifest_path(&manifest.table, manifest.version)),
            detail,
        })?;
        let (table, files) = (manifest.table.clone(), manifest.files.clone().into_iter());
        Ok(Rows { store, table, schema, files, open: None })
    }

    /// The table's columns.
    pub fn schema(&self) -> SchemaRef {
        Arc::clone(&self.schema)
    }

    fn open(&self, file: FileEntry) -> Result<OpenFile> {
        let path = format!("{}/{}", self.table, file.path);
        let object = self.store.object(&path)?;
        if object.bytes() != file.bytes {
            let detail = format!("it has {} bytes, and its manifest says {}", object.bytes(), file.bytes);
            return Err(LakeError::Damaged { path: self.store.full(&path), detail });
        }
        let reader = ParquetRecordBatchReaderBuilder::try_new(object)
            .and_then(|builder| builder.with_batch_size(BATCH_ROWS).build())
            .map_err(|error: ParquetError| LakeError::store("read", &self.store.full(&path), &error))?;
        Ok(OpenFile { file, reader, rows: 0 })
    }

    /// The next batch; `None` after the last file.
    fn advance(&mut self) -> Result<Option<RecordBatch>> {
        loop {
            if self.open.is_none() {
                let Some(file) = self.files.next() else { return Ok(None) };
                self.open = Some(self.open(file)?);
            }
            let Some(open) = &mut self.open else { unreachable!("a file was opened above") };
            let full = |file: &FileEntry| self.store.full(&format!("{}/{}", self.table, file.path));
            match open.reader.next() {
                Some(rows) => {
                    let restored = rows.and_then(|rows| restore(&rows, &open.file, &self.schema));
                    let rows =
                        restored.map_err(|error| LakeError::store("read", &full(&open.file), &error))?;
                    open.rows += rows.num_rows() as u64;
                    return Ok(Some(rows));
                }
                None if open.rows != open.file.rows => {
                    let detail =
                        format!("it holds {} rows, and its manifest says {}", open.rows, open.file.rows);
                    return Err(LakeError::Damaged { path: full(&open.file), detail });
                }
                None => self.open = None,
            }
        }
    }
}

impl Iterator for Rows {
    type Item = Result<RecordBatch>;

    fn next(&mut self) -> Option<Self::Item> {
        let next = self.advance().transpose();
        if matches!(next, Some(Err(_))) {
            // After an error there is nothing more to read that could be relied upon.
            self.open = None;
            self.files = Vec::new().into_iter();
        }
        next
    }
}

/// A file's rows as rows of the table.
fn restore(rows: &RecordBatch, file: &FileEntry, schema: &SchemaRef) -> Result<RecordBatch, ArrowError> {
    let columns = schema
        .fields()
        .iter()
        .map(|field| match file.partition.get(field.name()) {
            Some(value) => partition::column(value.as_deref(), field.data_type(), rows.num_rows()),
            None => {
                let column = rows.column_by_name(field.name()).ok_or_else(|| {
                    ArrowError::SchemaError(format!("the file has no column '{}'", field.name()))
                })?;
                retype(column, field.data_type())
            }
        })
        .collect::<Result<_, _>>()?;
    let options = RecordBatchOptions::new().with_row_count(Some(rows.num_rows()));
    RecordBatch::try_new_with_options(Arc::clone(schema), columns, &options)
}
