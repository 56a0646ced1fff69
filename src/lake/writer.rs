//! Writes one task's rows of a new version: Parquet files, one or more a partition.
//!
//! Rows wait in memory by partition. Only when more than the limit wait does the partition that holds the
//! most go to its file, as one row group; so a table of few rows a partition gets one file for each, and a
//! table of many partitions neither holds all in memory nor is cut into crumbs.
//!
//! Invariant: what waits in memory is at most `buffered_bytes` and one batch, plus an upload part for each of
//! at most `open_files` files.
//! Invariant: the same batches in the same order yield the same files.

use std::collections::HashMap;
use std::sync::Arc;

use arrow::array::{Array, RecordBatch, RecordBatchOptions, UInt32Array};
use arrow::compute::take_record_batch;
use arrow::error::ArrowError;
use parquet::arrow::ArrowWriter;
use parquet::basic::{Compression, ZstdLevel};
use parquet::errors::ParquetError;
use parquet::file::properties::{EnabledStatistics, WriterProperties};

use super::digest::{Digest, digest};
use super::error::{LakeError, Result};
use super::manifest::FileEntry;
use super::partition::{self, PartitionValues};
use super::store::{Store, Upload};
use super::stored::retype;
use super::table::Table;

const ZSTD_LEVEL: i32 = 3;
const ROW_GROUP_ROWS_MAX: usize = 1 << 20;
const ROW_GROUP_BYTES_MAX: usize = 128 << 20;

/// What one [`PartWriter`] may hold.
#[derive(Clone, Copy, Debug)]
pub struct WriteLimits {
    /// Files that are open at a time; one more closes the one that was written to longest ago.
    pub open_files: usize,
    /// Arrow bytes that wait for their files.
    pub buffered_bytes: usize,
}

impl Default for WriteLimits {
    fn default() -> Self {
        Self { open_files: 64, buffered_bytes: 128 << 20 }
    }
}

/// Writes one task's rows; one for each thread. Dropped unfinished, it leaves files that nobody lists.
pub struct PartWriter {
    store: Store,
    table: Arc<Table>,
    /// The version's folder, from the lake's root.
    folder: String,
    task: usize,
    limits: WriteLimits,
    partitions: Vec<Partition>,
    places: HashMap<PartitionValues, usize>,
    buffered_bytes: usize,
    open_files: usize,
    /// Files begun so far: the next one's number.
    begun: usize,
    /// Counts spills, to know which file was written to longest ago.
    turn: u64,
    /// Some rows were lost to an error: nothing of this writer may be published.
    failed: bool,
    done: FinishedPart,
}

/// What a task wrote, for [`super::NewVersion::publish`].
#[derive(Debug)]
pub struct FinishedPart {
    pub(super) folder: String,
    pub(super) task: usize,
    pub(super) files: Vec<FileEntry>,
    pub(super) rows: u64,
    pub(super) digest: Digest,
}

impl FinishedPart {
    pub fn rows(&self) -> u64 {
        self.rows
    }
    pub fn files(&self) -> &[FileEntry] {
        &self.files
    }
}

/// One partition's rows that wait, and its open file if it has one.
struct Partition {
    values: PartitionValues,
    waiting: Vec<RecordBatch>,
    waiting_bytes: usize,
    file: Option<OpenFile>,
}

struct OpenFile {
    /// From the table's folder.
    path: String,
    writer: ArrowWriter<Upload>,
    rows: u64,
    last_turn: u64,
}

impl PartWriter {
    pub(super) fn new(
        store: Store,
        table: Arc<Table>,
        folder: String,
        task: usize,
        limits: WriteLimits,
    ) -> PartWriter {
        let done = FinishedPart {
            folder: folder.clone(),
            task,
            files: Vec::new(),
            rows: 0,
            digest: Digest::default(),
        };
        PartWriter {
            store,
            table,
            folder,
            task,
            limits,
            partitions: Vec::new(),
            places: HashMap::new(),
            buffered_bytes: 0,
            open_files: 0,
            begun: 0,
            turn: 0,
            failed: false,
            done,
        }
    }

    /// Takes rows of the table's columns, in the table's order. After an error the writer refuses all else.
    pub fn write(&mut self, rows: &RecordBatch) -> Result<()> {
        self.refuse_if_failed()?;
        self.failed = true;
        self.take(rows)?;
        self.failed = false;
        Ok(())
    }

    fn take(&mut self, rows: &RecordBatch) -> Result<()> {
        self.check(rows)?;
        digest(rows, &mut self.done.digest).map_err(|error| self.refused(error.to_string()))?;
        let parts = partition::split(rows, &self.table.partition_by)
            .map_err(|error| self.refused(error.to_string()))?;
        for (values, part) in parts {
            let stored = self.stored(&part).map_err(|error| self.refused(error.to_string()))?;
            self.wait(values, stored);
        }
        self.done.rows += rows.num_rows() as u64;
        while self.buffered_bytes > self.limits.buffered_bytes {
            let largest = (0..self.partitions.len())
                .max_by_key(|&place| (self.partitions[place].waiting_bytes, std::cmp::Reverse(place)));
            let Some(place) = largest else { break };
            self.spill(place)?;
        }
        Ok(())
    }

    /// Writes what still waits and completes all files.
    pub fn finish(mut self) -> Result<FinishedPart> {
        self.refuse_if_failed()?;
        for place in 0..self.partitions.len() {
            if !self.partitions[place].waiting.is_empty() {
                self.spill(place)?;
            }
            self.close(place)?;
        }
        let filed: u64 = self.done.files.iter().map(|file| file.rows).sum();
        assert_eq!(filed, self.done.rows, "every row that was written is in a file");
        Ok(self.done)
    }

    fn refuse_if_failed(&self) -> Result<()> {
        if self.failed {
            return Err(LakeError::Failed { table: self.table.path.clone(), task: self.task });
        }
        Ok(())
    }

    fn check(&self, rows: &RecordBatch) -> Result<()> {
        let (schema, given) = (&self.table.schema, rows.schema());
        if schema.fields().len() != given.fields().len() {
            return Err(self.refused(format!(
                "they have {} columns and the table has {}",
                given.fields().len(),
                schema.fields().len()
            )));
        }
        for (field, given) in schema.fields().iter().zip(given.fields()) {
            if field.name() != given.name() || field.data_type() != given.data_type() {
                return Err(self.refused(format!(
                    "they have '{}' of type {} where the table has '{}' of type {}",
                    given.name(),
                    given.data_type(),
                    field.name(),
                    field.data_type()
                )));
            }
        }
        Ok(())
    }

    fn refused(&self, detail: String) -> LakeError {
        LakeError::Rows { table: self.table.path.clone(), detail }
    }

    /// The columns that go into a file, under their stored types.
    fn stored(&self, rows: &RecordBatch) -> Result<RecordBatch, ArrowError> {
        let fields = self.table.file_schema.fields();
        let columns = self
            .table
            .file_columns
            .iter()
            .zip(fields)
            .map(|(&place, field)| retype(rows.column(place), field.data_type()))
            .collect::<Result<_, _>>()?;
        let options = RecordBatchOptions::new().with_row_count(Some(rows.num_rows()));
        RecordBatch::try_new_with_options(Arc::clone(&self.table.file_schema), columns, &options)
            .and_then(compact)
    }

    fn wait(&mut self, values: PartitionValues, rows: RecordBatch) {
        let place = *self.places.entry(values).or_insert_with_key(|values| {
            let values = values.clone();
            self.partitions.push(Partition { values, waiting: Vec::new(), waiting_bytes: 0, file: None });
            self.partitions.len() - 1
        });
        let bytes = rows.get_array_memory_size();
        let partition = &mut self.partitions[place];
        partition.waiting.push(rows);
        partition.waiting_bytes += bytes;
        self.buffered_bytes += bytes;
    }

    /// Writes what waits in a partition to its file, as a row group.
    fn spill(&mut self, place: usize) -> Result<()> {
        if self.partitions[place].file.is_none() {
            self.open(place)?;
        }
        self.turn += 1;
        let partition = &mut self.partitions[place];
        let waiting = std::mem::take(&mut partition.waiting);
        self.buffered_bytes -= std::mem::take(&mut partition.waiting_bytes);
        let Some(file) = &mut partition.file else { unreachable!("the file was opened above") };
        file.last_turn = self.turn;
        let path = self.store.full(&format!("{}/{}", self.table.path, file.path));
        let failed = |error: ParquetError| LakeError::store("write", &path, &error);
        for rows in waiting {
            file.rows += rows.num_rows() as u64;
            file.writer.write(&rows).map_err(failed)?;
        }
        file.writer.flush().map_err(failed)
    }

    fn open(&mut self, place: usize) -> Result<()> {
        if self.open_files >= self.limits.open_files.max(1) {
            let turn = |place: &usize| self.partitions[*place].file.as_ref().map(|file| file.last_turn);
            let oldest = (0..self.partitions.len()).filter(|place| turn(place).is_some()).min_by_key(turn);
            if let Some(oldest) = oldest {
                self.close(oldest)?;
            }
        }
        let folders = partition::folders(&self.table.partition_by, &self.partitions[place].values);
        let separator = if folders.is_empty() { "" } else { "/" };
        let version = self.folder.rsplit('/').next().unwrap_or(&self.folder);
        let path = format!("{version}/{folders}{separator}part-{}-{}.parquet", self.task, self.begun);
        let from_root = format!("{}/{path}", self.table.path);
        let upload = self.store.upload(&from_root)?;
        let schema = Arc::clone(&self.table.file_schema);
        let writer = ArrowWriter::try_new(upload, schema, Some(properties()?))
            .map_err(|error| LakeError::store("write", &self.store.full(&from_root), &error))?;
        self.begun += 1;
        self.open_files += 1;
        self.partitions[place].file = Some(OpenFile { path, writer, rows: 0, last_turn: self.turn });
        Ok(())
    }

    /// Completes a partition's file, if one is open.
    fn close(&mut self, place: usize) -> Result<()> {
        let partition = &mut self.partitions[place];
        let Some(file) = partition.file.take() else { return Ok(()) };
        self.open_files -= 1;
        let full = self.store.full(&format!("{}/{}", self.table.path, file.path));
        let upload = file.writer.into_inner().map_err(|error| LakeError::store("write", &full, &error))?;
        let bytes = upload.complete().map_err(|error| LakeError::store("write", &full, &error))?;
        let names = self.table.partition_by.iter().map(partition::PartitionBy::folder);
        let partition = names.zip(partition.values.iter().cloned()).collect();
        self.done.files.push(FileEntry { path: file.path, rows: file.rows, bytes, partition });
        Ok(())
    }
}

fn properties() -> Result<WriterProperties> {
    let level = ZstdLevel::try_new(ZSTD_LEVEL)
        .map_err(|error| LakeError::store("compress", "Parquet pages", &error))?;
    Ok(WriterProperties::builder()
        .set_created_by(concat!("headwater version ", env!("CARGO_PKG_VERSION")).to_owned())
        .set_compression(Compression::ZSTD(level))
        .set_dictionary_enabled(true)
        .set_statistics_enabled(EnabledStatistics::Page)
        .set_max_row_group_row_count(Some(ROW_GROUP_ROWS_MAX))
        .set_max_row_group_bytes(Some(ROW_GROUP_BYTES_MAX))
        .build())
}

/// Copies rows that are a small part of larger buffers, which they would otherwise keep in memory as they wait.
fn compact(rows: RecordBatch) -> Result<RecordBatch, ArrowError> {
    let mut used = 0;
    for column in rows.columns() {
        used += column.to_data().get_slice_memory_size()?;
    }
    // Small buffers are mostly padding: nothing is gained there.
    if rows.get_array_memory_size() < 2 * used + 4096 {
        return Ok(rows);
    }
    take_record_batch(&rows, &UInt32Array::from_iter_values(0..rows.num_rows() as u32))
}

#[cfg(test)]
mod tests {
    use arrow::array::{ArrayRef, Int64Array, StringArray};
    use object_store::memory::InMemory;

    use super::super::partition::PartitionBy;
    use super::super::table::TableSpec;
    use super::*;

    fn writer(limits: WriteLimits, partition_by: Vec<PartitionBy>) -> PartWriter {
        let spec = TableSpec { path: "t".to_owned(), schema: rows(0..1, 1).schema(), partition_by };
        let table = Arc::new(Table::new(spec).unwrap());
        let store = Store::over(Arc::new(InMemory::new()), "memory");
        PartWriter::new(store, table, "t/v000001".to_owned(), 0, limits)
    }

    /// One row a number, in `partitions` partitions by turns.
    fn rows(numbers: std::ops::Range<i64>, partitions: i64) -> RecordBatch {
        let columns: [(&str, ArrayRef); 2] = [
            ("n", Arc::new(Int64Array::from_iter_values(numbers.clone()))),
            ("p", Arc::new(StringArray::from_iter_values(numbers.map(|n| format!("p{}", n % partitions))))),
        ];
        RecordBatch::try_from_iter(columns).unwrap()
    }

    fn by_p() -> Vec<PartitionBy> {
        vec![PartitionBy::Column("p".to_owned())]
    }

    #[test]
    fn many_partitions_wait_within_the_limits() {
        let limits = WriteLimits { open_files: 8, buffered_bytes: 64 << 10 };
        let mut writer = writer(limits, by_p());
        for step in 0..20 {
            writer.write(&rows(step * 1000..(step + 1) * 1000, 500)).unwrap();
            let waiting: usize = writer.partitions.iter().map(|partition| partition.waiting_bytes).sum();
            assert_eq!(waiting, writer.buffered_bytes);
            assert!(waiting <= limits.buffered_bytes);
            let open = writer.partitions.iter().filter(|partition| partition.file.is_some()).count();
            assert_eq!(open, writer.open_files);
            assert!(open <= limits.open_files);
        }
        let part = writer.finish().unwrap();
        assert_eq!(part.rows(), 20_000);
        assert!(part.files().len() > 500, "some partitions were closed to make room for others");
    }

    #[test]
    fn rows_that_fit_in_memory_get_one_file_a_partition() {
        let mut writer = writer(WriteLimits { open_files: 2, ..WriteLimits::default() }, by_p());
        for step in 0..50 {
            writer.write(&rows(step * 100..(step + 1) * 100, 10)).unwrap();
        }
        let part = writer.finish().unwrap();
        let paths: Vec<&str> = part.files().iter().map(|file| file.path.as_str()).collect();
        let expected: Vec<String> = (0..10).map(|n| format!("v000001/p=p{n}/part-0-{n}.parquet")).collect();
        assert_eq!(paths, expected);
        assert!(part.files().iter().all(|file| file.rows == 500));
    }

    #[test]
    fn a_slice_does_not_keep_the_whole_batch_in_memory() {
        let mut writer = writer(WriteLimits::default(), Vec::new());
        let whole = rows(0..1_000_000, 1);
        for piece in 0..100 {
            writer.write(&whole.slice(piece * 10_000, 10)).unwrap();
        }
        assert!(writer.buffered_bytes < 1 << 20, "{} bytes wait", writer.buffered_bytes);
        assert_eq!(writer.finish().unwrap().rows(), 1000);
    }

    #[test]
    fn the_same_batches_yield_the_same_files() {
        let write = || {
            let mut writer = writer(WriteLimits { open_files: 3, buffered_bytes: 8 << 10 }, by_p());
            (0..10).for_each(|step| writer.write(&rows(step * 300..(step + 1) * 300, 7)).unwrap());
            writer.finish().unwrap()
        };
        let (first, second) = (write(), write());
        assert_eq!(first.files(), second.files());
        assert_eq!(first.digest, second.digest);
    }

    #[test]
    fn rows_of_another_table_are_refused_by_the_columns_name() {
        let mut writer = writer(WriteLimits::default(), Vec::new());
        let other: ArrayRef = Arc::new(StringArray::from(vec!["1"]));
        let other = RecordBatch::try_from_iter([("n", other), ("p", Arc::clone(rows(0..1, 1).column(1)))]);
        let error = writer.write(&other.unwrap()).unwrap_err().to_string();
        assert!(error.contains("'n' of type Utf8"), "{error}");
        assert!(matches!(writer.write(&rows(0..1, 1)), Err(LakeError::Failed { .. })));
        assert!(writer.finish().is_err(), "a part that lacks rows is never handed over");
    }
}
