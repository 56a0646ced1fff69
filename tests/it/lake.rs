//! The lake as a user sees it: folders, files and manifests on a disk, read back by us and by DuckDB.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::{self, File};
use std::io;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arrow::array::{
    ArrayRef, BooleanArray, Date32Array, Decimal128Array, Float64Array, Int64Array, ListArray, RecordBatch,
    StringArray, StructArray, TimestampMicrosecondArray,
};
use arrow::compute::concat_batches;
use arrow::datatypes::{DataType, Field, Int64Type};
use arrow::util::display::{ArrayFormatter, FormatOptions};
use async_trait::async_trait;
use chrono::{TimeZone, Utc};
use futures::stream::BoxStream;
use headwater::lake::{
    Digest, FinishedPart, Lake, LakeError, Manifest, OffsetRange, PartitionBy, RunInfo, TableSpec,
    WriteLimits, digest, duckdb_query,
};
use object_store::memory::InMemory;
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, UploadPart,
};
use parquet::basic::{Compression, LogicalType, TimeUnit};
use parquet::file::reader::{FileReader, SerializedFileReader};

const TABLE: &str = "gold/hourly_delay";
const HOUR: i64 = 3_600_000_000;
/// 2013-01-01T05:00:00Z, which is still 2012 in the Americas.
const START: i64 = 1_357_016_400_000_000;

/// Texts that are awkward as folder names or in SQL.
const AWKWARD: [Option<&str>; 12] = [
    Some("EWR"),
    None,
    Some(""),
    Some("a/b"),
    Some("a%2Fb"),
    Some("x=y&z"),
    Some("it's \"so\""),
    Some("Zürich 東京 +1"),
    Some(".."),
    Some("[*]?{}#~"),
    Some("tab\tand\nline"),
    Some("__HIVE_DEFAULT_PARTITION__"),
];

fn field(name: &str, data_type: DataType) -> Arc<Field> {
    Arc::new(Field::new(name, data_type, true))
}

/// Rows `numbers`, with every kind of column and nulls in each.
fn rows(numbers: std::ops::Range<i64>) -> RecordBatch {
    let some = |n: i64, every: i64| n % every != 0;
    let each = || numbers.clone();
    let count = (numbers.end - numbers.start) as usize;
    let instant: TimestampMicrosecondArray =
        each().map(|n| some(n, 11).then_some(START + n * HOUR + n)).collect();
    let seen = StructArray::from(vec![
        (field("at", instant.data_type_owned()), Arc::new(instant.clone()) as ArrayRef),
        (field("n", DataType::Int64), Arc::new(Int64Array::from_iter_values(each())) as ArrayRef),
    ]);
    let tags = ListArray::from_iter_primitive::<Int64Type, _, _>(
        each().map(|n| some(n, 4).then(|| (0..n % 3).map(Some).collect::<Vec<_>>())),
    );
    let price = Decimal128Array::from_iter(each().map(|n| some(n, 6).then_some(i128::from(n) * 7 - 50)));
    let columns: Vec<(&str, ArrayRef)> = vec![
        ("window_start", Arc::new(instant)),
        ("origin", Arc::new(StringArray::from_iter(each().map(|n| AWKWARD[n as usize % AWKWARD.len()])))),
        ("flights", Arc::new(each().map(|n| some(n, 5).then_some(n * n)).collect::<Int64Array>())),
        ("delay", Arc::new(each().map(|n| some(n, 7).then_some(n as f64 / 3.0)).collect::<Float64Array>())),
        ("night", Arc::new(each().map(|n| some(n, 3).then_some(n % 2 == 0)).collect::<BooleanArray>())),
        ("day", Arc::new(each().map(|n| some(n, 9).then_some(n as i32 * 100)).collect::<Date32Array>())),
        ("price", Arc::new(price.with_precision_and_scale(12, 2).unwrap())),
        ("tags", Arc::new(tags)),
        ("seen", Arc::new(seen)),
    ];
    let rows = RecordBatch::try_from_iter_with_nullable(
        columns.into_iter().map(|(name, array)| (name, array, true)),
    );
    let rows = rows.unwrap();
    assert_eq!(rows.num_rows(), count);
    rows
}

trait Owned {
    fn data_type_owned(&self) -> DataType;
}
impl Owned for TimestampMicrosecondArray {
    fn data_type_owned(&self) -> DataType {
        arrow::array::Array::data_type(self).clone()
    }
}

fn spec(partition_by: Vec<PartitionBy>) -> TableSpec {
    TableSpec { path: TABLE.to_owned(), schema: rows(0..1).schema(), partition_by }
}

fn by_origin_and_day() -> Vec<PartitionBy> {
    vec![PartitionBy::Column("origin".to_owned()), PartitionBy::Date("window_start".to_owned())]
}

fn run_info() -> RunInfo {
    RunInfo {
        topology: "flights".to_owned(),
        fingerprint: "5eed".to_owned(),
        late: "as-live".to_owned(),
        offsets: BTreeMap::from([(
            "flights.departures".to_owned(),
            BTreeMap::from([(0, OffsetRange { from: 0, until: 40 }), (1, OffsetRange { from: 3, until: 9 })]),
        )]),
        counts: BTreeMap::from([("refined".to_owned(), 46)]),
        started: Utc.timestamp_opt(1_700_000_000, 0).unwrap(),
        ended: Utc.timestamp_opt(1_700_000_060, 0).unwrap(),
    }
}

/// Publishes rows `0..count`, cut into batches of `step` that go to `tasks` tasks by turns.
fn publish(lake: &Lake, spec: TableSpec, count: i64, step: i64, tasks: usize) -> Manifest {
    let version = lake.begin(spec).unwrap();
    let mut writers: Vec<_> = (0..tasks).map(|task| version.writer(task).unwrap()).collect();
    for (turn, start) in (0..count).step_by(step as usize).enumerate() {
        writers[turn % tasks].write(&rows(start..(start + step).min(count))).unwrap();
    }
    let parts = writers.into_iter().map(|writer| writer.finish().unwrap()).collect();
    version.publish(parts, run_info()).unwrap()
}

fn read(lake: &Lake, manifest: &Manifest) -> Vec<RecordBatch> {
    lake.read(manifest).unwrap().collect::<Result<_, _>>().unwrap()
}

/// The rows as text, in order.
fn sorted(batches: &[RecordBatch]) -> Vec<String> {
    let options = FormatOptions::default().with_null("∅");
    let mut texts = Vec::new();
    for batch in batches {
        let columns: Vec<ArrayFormatter> =
            batch.columns().iter().map(|column| ArrayFormatter::try_new(column, &options).unwrap()).collect();
        for row in 0..batch.num_rows() {
            let values: Vec<String> = columns.iter().map(|column| column.value(row).to_string()).collect();
            texts.push(values.join(" | "));
        }
    }
    texts.sort();
    texts
}

fn temporary() -> (tempfile::TempDir, Lake) {
    let folder = tempfile::tempdir().unwrap();
    let lake = Lake::open(folder.path().to_str().unwrap()).unwrap();
    (folder, lake)
}

/// Every file below a folder, relative to it.
fn walk(folder: &Path) -> Vec<String> {
    let mut found = Vec::new();
    let mut open = vec![folder.to_path_buf()];
    while let Some(next) = open.pop() {
        for entry in fs::read_dir(&next).into_iter().flatten() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                open.push(path);
            } else {
                found.push(path.strip_prefix(folder).unwrap().to_str().unwrap().to_owned());
            }
        }
    }
    found.sort();
    found
}

#[test]
fn lake_rows_come_back_with_their_partitions_nulls_and_types() {
    let (folder, lake) = temporary();
    let manifest = publish(&lake, spec(by_origin_and_day()), 200, 17, 3);
    assert_eq!(lake.current(TABLE).unwrap(), Some(manifest.clone()));
    let back = read(&lake, &manifest);
    assert_eq!(back[0].schema(), rows(0..1).schema());
    assert_eq!(sorted(&back), sorted(&[rows(0..200)]));
    assert_eq!(manifest.rows, 200);
    assert_eq!(manifest.rows, manifest.files.iter().map(|file| file.rows).sum::<u64>());

    // What is on the disk is what the manifest lists, and the manifest.
    let mut expected: Vec<String> =
        manifest.files.iter().map(|file| format!("{TABLE}/{}", file.path)).collect();
    expected.push(format!("{TABLE}/_manifest/000001.json"));
    expected.sort();
    assert_eq!(walk(folder.path()), expected);
    let at = |path: &str| folder.path().join(TABLE).join(path);
    for file in &manifest.files {
        assert_eq!(fs::metadata(at(&file.path)).unwrap().len(), file.bytes);
    }
    let ewr = "v000001/origin=EWR/window_start_date=2013-01-03/part-1-";
    assert!(manifest.files.iter().any(|file| file.path.starts_with(ewr)), "{:?}", manifest.files);
}

#[test]
fn lake_files_are_as_other_readers_expect_them() {
    let (folder, lake) = temporary();
    let manifest = publish(&lake, spec(by_origin_and_day()), 40, 40, 1);
    let file = File::open(folder.path().join(TABLE).join(&manifest.files[0].path)).unwrap();
    let reader = SerializedFileReader::new(file).unwrap();
    let metadata = reader.metadata();
    assert!(metadata.file_metadata().created_by().unwrap().starts_with("headwater version "));
    let columns = metadata.file_metadata().schema_descr();
    let names: Vec<String> = columns.columns().iter().map(|column| column.path().string()).collect();
    assert!(!names.contains(&"origin".to_owned()), "a partition column lives in the folder: {names:?}");
    for name in ["window_start", "seen.at"] {
        let place = names.iter().position(|column| column == name).unwrap();
        let logical = columns.column(place).logical_type_ref().cloned();
        let utc = LogicalType::timestamp(true, TimeUnit::MICROS);
        assert_eq!(logical, Some(utc), "{name}");
    }
    let group = metadata.row_group(0);
    for column in group.columns() {
        assert!(matches!(column.compression(), Compression::ZSTD(_)));
        assert!(column.statistics().is_some() && column.column_index_offset().is_some(), "{column:?}");
    }
    assert!(group.column(1).dictionary_page_offset().is_some());
}

#[test]
fn lake_manifest_is_json_that_says_where_the_rows_came_from() {
    let (folder, lake) = temporary();
    let manifest = publish(&lake, spec(by_origin_and_day()), 24, 24, 1);
    let text = fs::read_to_string(folder.path().join(TABLE).join("_manifest/000001.json")).unwrap();
    let json: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(json["version"], 1);
    assert_eq!(json["table"], TABLE);
    assert_eq!(json["topology"], "flights");
    assert_eq!(json["fingerprint"], "5eed");
    assert_eq!(json["late"], "as-live");
    assert_eq!(json["offsets"]["flights.departures"]["1"], serde_json::json!({"from": 3, "until": 9}));
    assert_eq!(json["counts"]["refined"], 46);
    assert_eq!(json["started"], "2023-11-14T22:13:20.000Z");
    assert_eq!(
        json["columns"][0],
        serde_json::json!({"name": "window_start", "type": "Timestamp(µs)", "nullable": true})
    );
    assert_eq!(json["digest"].as_str().unwrap().len(), 32);
    let null =
        json["files"].as_array().unwrap().iter().find(|file| file["partition"]["origin"].is_null()).unwrap();
    assert!(null["path"].as_str().unwrap().starts_with("v000001/origin=__HIVE_DEFAULT_PARTITION__/"));
    assert_eq!(serde_json::from_str::<Manifest>(&text).unwrap(), manifest);
}

#[test]
fn lake_digest_depends_on_the_rows_alone() {
    let (_folder, lake) = temporary();
    let mut expected = Digest::default();
    digest(&rows(0..150), &mut expected).unwrap();
    let unpartitioned = publish(&lake, spec(Vec::new()), 150, 150, 1);
    let by_day = publish(&lake, spec(vec![PartitionBy::Date("window_start".to_owned())]), 150, 7, 4);
    let by_both = publish(&lake, spec(by_origin_and_day()), 150, 1, 2);
    let other = publish(&lake, spec(by_origin_and_day()), 149, 1, 2);
    for manifest in [&unpartitioned, &by_day, &by_both] {
        assert_eq!(manifest.digest, expected.to_string());
        let mut back = Digest::default();
        read(&lake, manifest).iter().for_each(|rows| digest(rows, &mut back).unwrap());
        assert_eq!(back, expected);
    }
    assert_ne!(other.digest, expected.to_string());
}

#[test]
fn lake_second_version_replaces_the_first_which_stays_readable() {
    let (_folder, lake) = temporary();
    let first = publish(&lake, spec(by_origin_and_day()), 30, 10, 1);
    let second = publish(&lake, spec(Vec::new()), 50, 10, 1);
    assert_eq!(lake.versions(TABLE).unwrap(), [1, 2]);
    assert_eq!(lake.current(TABLE).unwrap(), Some(second.clone()));
    assert_eq!(lake.manifest(TABLE, 1).unwrap(), Some(first.clone()));
    assert_eq!(lake.manifest(TABLE, 3).unwrap(), None);
    assert_eq!(sorted(&read(&lake, &first)), sorted(&[rows(0..30)]));
    assert_eq!(sorted(&read(&lake, &second)), sorted(&[rows(0..50)]));
    assert_eq!(lake.unpublished(TABLE).unwrap(), []);
}

#[test]
fn lake_table_without_rows_can_be_published() {
    let (_folder, lake) = temporary();
    let manifest = publish(&lake, spec(by_origin_and_day()), 0, 1, 2);
    assert_eq!((manifest.rows, manifest.files.len()), (0, 0));
    assert_eq!(manifest.digest, "0".repeat(32));
    let rows_back = lake.read(&manifest).unwrap();
    assert_eq!(rows_back.schema(), rows(0..1).schema());
    assert_eq!(rows_back.count(), 0);
}

/// Begins a version and writes rows into it, as far as finished parts.
fn written(lake: &Lake, count: i64) -> (headwater::lake::NewVersion, Vec<FinishedPart>) {
    let version = lake.begin(spec(Vec::new())).unwrap();
    let mut writer = version.writer(0).unwrap();
    writer.write(&rows(0..count)).unwrap();
    let part = writer.finish().unwrap();
    (version, vec![part])
}

#[test]
fn lake_killed_replay_leaves_nothing_that_readers_see() {
    let (folder, lake) = temporary();
    publish(&lake, spec(Vec::new()), 10, 10, 1);
    let version = lake.begin(spec(Vec::new())).unwrap();
    let mut finished = version.writer(0).unwrap();
    finished.write(&rows(0..20)).unwrap();
    finished.finish().unwrap();
    // One file stays half written: a killed process drops nothing.
    let lake_of_small_limits = lake.clone().with_limits(WriteLimits { open_files: 1, buffered_bytes: 0 });
    let torn = lake_of_small_limits.begin(spec(Vec::new())).unwrap();
    let mut open = torn.writer(0).unwrap();
    open.write(&rows(0..20)).unwrap();
    std::mem::forget(open);
    std::mem::forget((version, torn));
    assert!(walk(folder.path()).iter().any(|path| path.contains("part-0-0.parquet#")));

    assert_eq!(lake.versions(TABLE).unwrap(), [1]);
    assert_eq!(lake.current(TABLE).unwrap().unwrap().version, 1);
    let left = lake.unpublished(TABLE).unwrap();
    assert_eq!(left.iter().map(|left| left.version).collect::<Vec<_>>(), [2, 3]);
    assert!(left[0].folder.ends_with("gold/hourly_delay/v000002") && left[0].started.is_some());
    let before = walk(&folder.path().join(TABLE).join("v000002"));

    let next = publish(&lake, spec(Vec::new()), 5, 5, 1);
    assert_eq!(next.version, 4, "a number above every folder");
    assert_eq!(sorted(&read(&lake, &next)), sorted(&[rows(0..5)]));
    assert_eq!(walk(&folder.path().join(TABLE).join("v000002")), before, "what may be alive is left alone");
}

#[test]
fn lake_version_begun_earlier_does_not_replace_one_begun_later() {
    let (folder, lake) = temporary();
    let (slow, slow_parts) = written(&lake, 10);
    let (fast, fast_parts) = written(&lake, 20);
    fast.publish(fast_parts, run_info()).unwrap();
    let error = slow.publish(slow_parts, run_info()).unwrap_err();
    assert!(matches!(error, LakeError::Superseded { version: 1, current: 2, .. }), "{error}");
    assert!(error.to_string().contains("run the replay again"), "{error}");
    assert_eq!(lake.versions(TABLE).unwrap(), [2]);
    assert_eq!(lake.current(TABLE).unwrap().unwrap().rows, 20);
    assert!(folder.path().join(TABLE).join("v000001").exists());
}

#[test]
fn lake_manifest_is_never_replaced() {
    let folder = tempfile::tempdir().unwrap();
    let local = Lake::open(folder.path().to_str().unwrap()).unwrap();
    let remote: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
    let in_memory = Lake::over(Arc::clone(&remote), "memory");
    for lake in [local, in_memory] {
        let (version, parts) = written(&lake, 10);
        // Another program takes the number between our look and our creating the manifest.
        let path = format!("{TABLE}/_manifest/000001.json");
        if lake.url() == "memory" {
            let put =
                remote.put_opts(&path.as_str().into(), PutPayload::from_static(b"{}"), PutOptions::default());
            futures::executor::block_on(put).unwrap();
        } else {
            fs::create_dir_all(folder.path().join(TABLE).join("_manifest")).unwrap();
            fs::write(folder.path().join(&path), "{}").unwrap();
        }
        let error = version.publish(parts, run_info()).unwrap_err();
        assert!(matches!(&error, LakeError::Taken { .. }), "{error}");
        let error = lake.manifest(TABLE, 1).unwrap_err();
        assert!(matches!(&error, LakeError::Manifest { .. }), "the other's manifest still stands: {error}");
    }
    assert_eq!(walk(&folder.path().join(TABLE).join("_manifest")), ["000001.json"], "nothing staged is left");
}

#[test]
fn lake_racing_replays_each_own_their_folder_and_the_last_begun_is_current() {
    let (_folder, lake) = temporary();
    let outcomes: Vec<(u64, Result<Manifest, LakeError>)> = std::thread::scope(|scope| {
        let replay = |count: i64| {
            let lake = lake.clone();
            move || {
                let (version, parts) = written(&lake, count);
                (version.version(), version.publish(parts, run_info()))
            }
        };
        let threads: Vec<_> = (1..=8).map(|count| scope.spawn(replay(count))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    let mut numbers: Vec<u64> = outcomes.iter().map(|(version, _)| *version).collect();
    numbers.sort_unstable();
    assert_eq!(numbers, (1..=8).collect::<Vec<u64>>());
    let mut published = Vec::new();
    for (version, outcome) in outcomes {
        match outcome {
            Ok(manifest) => {
                assert_eq!(sorted(&read(&lake, &manifest)), sorted(&[rows(0..manifest.rows as i64)]));
                published.push(version);
            }
            Err(LakeError::Superseded { current, .. }) => assert!(current > version),
            Err(error) => panic!("{error}"),
        }
    }
    published.sort_unstable();
    assert_eq!(lake.versions(TABLE).unwrap(), published);
    assert_eq!(lake.current(TABLE).unwrap().unwrap().version, 8);
}

#[test]
fn lake_abandoned_version_leaves_nothing() {
    let (folder, lake) = temporary();
    let version = lake.begin(spec(by_origin_and_day())).unwrap();
    let mut writer = version.writer(0).unwrap();
    writer.write(&rows(0..100)).unwrap();
    writer.finish().unwrap();
    version.abandon().unwrap();
    assert_eq!(walk(folder.path()), Vec::<String>::new());
    assert_eq!(publish(&lake, spec(Vec::new()), 3, 3, 1).version, 1);
}

#[test]
fn lake_refuses_to_publish_without_a_writers_part() {
    let (_folder, lake) = temporary();
    let version = lake.begin(spec(Vec::new())).unwrap();
    let part = version.writer(0).unwrap().finish().unwrap();
    let _lost = version.writer(1).unwrap();
    assert!(matches!(version.writer(1), Err(LakeError::Unfinished { .. })));
    let error = version.publish(vec![part], run_info()).unwrap_err();
    assert!(matches!(error, LakeError::Unfinished { .. }), "{error}");
    assert_eq!(lake.current(TABLE).unwrap(), None);
}

#[test]
fn lake_file_that_is_not_as_its_manifest_says_is_an_error() {
    let (folder, lake) = temporary();
    let manifest = publish(&lake, spec(Vec::new()), 10, 10, 1);
    let path = folder.path().join(TABLE).join(&manifest.files[0].path);
    let whole = fs::read(&path).unwrap();
    let first =
        |lake: &Lake, manifest: &Manifest| lake.read(manifest).unwrap().find_map(Result::err).unwrap();

    fs::write(&path, &whole[..whole.len() - 1]).unwrap();
    assert!(matches!(first(&lake, &manifest), LakeError::Damaged { .. }));
    fs::remove_file(&path).unwrap();
    let error = first(&lake, &manifest).to_string();
    assert!(error.contains("part-0-0.parquet"), "{error}");
    fs::write(&path, &whole).unwrap();
    let mut boasting = manifest.clone();
    boasting.files[0].rows += 1;
    assert!(matches!(first(&lake, &boasting), LakeError::Damaged { .. }));
    assert_eq!(sorted(&read(&lake, &manifest)), sorted(&[rows(0..10)]));
}

#[test]
fn lake_urls_and_tables_that_cannot_be_are_refused_with_a_reason() {
    let folder = tempfile::tempdir().unwrap();
    let refused = |url: &str| Lake::open(url).err().unwrap().to_string();
    assert!(refused("s3://bucket/lake").contains("s3:// is not supported yet"));
    assert!(refused("file://relative").contains("three slashes"));
    assert!(refused("").contains("empty"));
    let spaced = folder.path().join("a lake");
    let url = format!("file://{}", spaced.to_str().unwrap().replace(' ', "%20"));
    let lake = Lake::open(&url).unwrap();
    assert!(spaced.is_dir());
    assert_eq!(Path::new(lake.url()), fs::canonicalize(&spaced).unwrap());
    for path in ["", "/gold", "gold/../x", "gold//x", "_gold", "gold/v000001", "a b"] {
        let error = lake.begin(TableSpec { path: path.to_owned(), ..spec(Vec::new()) }).err().unwrap();
        assert!(matches!(error, LakeError::Table { .. }), "{path}");
        assert!(lake.current(path).is_err(), "{path}");
    }
}

/// An object store that is full after so many bytes of file parts.
#[derive(Debug)]
struct Full {
    inner: InMemory,
    left: Arc<AtomicU64>,
}

impl fmt::Display for Full {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Full")
    }
}

type StoreResult<T> = object_store::Result<T>;

#[async_trait]
impl ObjectStore for Full {
    async fn put_opts(
        &self,
        location: &object_store::path::Path,
        payload: PutPayload,
        options: PutOptions,
    ) -> StoreResult<PutResult> {
        self.inner.put_opts(location, payload, options).await
    }
    async fn put_multipart_opts(
        &self,
        location: &object_store::path::Path,
        options: PutMultipartOptions,
    ) -> StoreResult<Box<dyn MultipartUpload>> {
        let inner = self.inner.put_multipart_opts(location, options).await?;
        Ok(Box::new(FullUpload { inner, left: Arc::clone(&self.left) }))
    }
    async fn get_opts(
        &self,
        location: &object_store::path::Path,
        options: GetOptions,
    ) -> StoreResult<GetResult> {
        self.inner.get_opts(location, options).await
    }
    fn delete_stream(
        &self,
        locations: BoxStream<'static, StoreResult<object_store::path::Path>>,
    ) -> BoxStream<'static, StoreResult<object_store::path::Path>> {
        self.inner.delete_stream(locations)
    }
    fn list(&self, prefix: Option<&object_store::path::Path>) -> BoxStream<'static, StoreResult<ObjectMeta>> {
        self.inner.list(prefix)
    }
    async fn list_with_delimiter(
        &self,
        prefix: Option<&object_store::path::Path>,
    ) -> StoreResult<ListResult> {
        self.inner.list_with_delimiter(prefix).await
    }
    async fn copy_opts(
        &self,
        from: &object_store::path::Path,
        to: &object_store::path::Path,
        options: CopyOptions,
    ) -> StoreResult<()> {
        self.inner.copy_opts(from, to, options).await
    }
}

#[derive(Debug)]
struct FullUpload {
    inner: Box<dyn MultipartUpload>,
    left: Arc<AtomicU64>,
}

#[async_trait]
impl MultipartUpload for FullUpload {
    fn put_part(&mut self, data: PutPayload) -> UploadPart {
        let bytes = data.content_length() as u64;
        let taken =
            self.left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(bytes));
        if taken.is_ok() {
            return self.inner.put_part(data);
        }
        let source = Box::new(io::Error::from(io::ErrorKind::StorageFull));
        Box::pin(async move { Err(object_store::Error::Generic { store: "Full", source }) })
    }
    async fn complete(&mut self) -> StoreResult<PutResult> {
        self.inner.complete().await
    }
    async fn abort(&mut self) -> StoreResult<()> {
        self.inner.abort().await
    }
}

#[test]
fn lake_full_disk_is_named_with_the_file_and_leaves_nothing_visible() {
    let left = Arc::new(AtomicU64::new(u64::MAX));
    let lake = Lake::over(Arc::new(Full { inner: InMemory::new(), left: Arc::clone(&left) }), "disk");
    let manifest = publish(&lake, spec(by_origin_and_day()), 40, 10, 1);
    left.store(manifest.bytes / 2, Ordering::SeqCst);
    let version = lake.begin(spec(by_origin_and_day())).unwrap();
    let mut writer = version.writer(0).unwrap();
    writer.write(&rows(0..40)).unwrap();
    let error = writer.finish().unwrap_err();
    assert!(
        matches!(&error, LakeError::Full { path } if path.starts_with("disk/gold/hourly_delay/v000002/origin=")),
        "{error}"
    );
    assert_eq!(lake.current(TABLE).unwrap(), Some(manifest.clone()));
    assert_eq!(sorted(&read(&lake, &manifest)), sorted(&[rows(0..40)]));
}

/// Reads `query` in DuckDB and prints each row's values, in order of the first.
const DUCKDB: &str = r#"
import duckdb, sys
connection = duckdb.connect()
connection.execute("set timezone = 'America/New_York'")
query = sys.stdin.read()
columns = """flights, epoch_us(window_start), origin, delay, night, "day", price, tags, epoch_us(seen.at), seen.n,
    window_start_date, typeof(window_start), typeof(window_start_date), typeof(origin)"""
for row in connection.execute(f"select {columns} from ({query}) order by seen.n").fetchall():
    print("\x1f".join("null" if value is None else str(value) for value in row), end="\x1e")
"#;

fn has_duckdb() -> bool {
    Command::new("python3").args(["-c", "import duckdb"]).output().is_ok_and(|output| output.status.success())
}

fn ask_duckdb(query: &str) -> Vec<Vec<String>> {
    use std::io::Write;
    use std::process::Stdio;
    let mut python = Command::new("python3")
        .args(["-c", DUCKDB])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    python.stdin.take().unwrap().write_all(query.as_bytes()).unwrap();
    let output = python.wait_with_output().unwrap();
    assert!(output.status.success(), "{query}\n{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    text.split_terminator('\x1e').map(|row| row.split('\x1f').map(str::to_owned).collect()).collect()
}

#[test]
fn lake_is_read_by_duckdb_with_the_query_that_we_give() {
    if !has_duckdb() {
        eprintln!(
            "SKIPPED lake_is_read_by_duckdb_with_the_query_that_we_give: python3 has no duckdb (pip install duckdb)"
        );
        return;
    }
    let (_folder, lake) = temporary();
    let manifest = publish(&lake, spec(by_origin_and_day()), 60, 7, 2);
    let seen = ask_duckdb(&duckdb_query(&manifest, lake.url()));
    assert_eq!(seen.len(), 60);
    for (n, row) in seen.iter().enumerate() {
        let number = n as i64;
        let or_null = |every: i64, text: String| if number % every == 0 { "null".to_owned() } else { text };
        let micros = START + number * HOUR + number;
        let day = Utc.timestamp_micros(micros).unwrap().format("%Y-%m-%d").to_string();
        let cents = number * 7 - 50;
        let tags: Vec<String> = (0..number % 3).map(|tag| tag.to_string()).collect();
        let expected = [
            or_null(5, (number * number).to_string()),
            or_null(11, micros.to_string()),
            AWKWARD[n % AWKWARD.len()].unwrap_or("null").to_owned(),
            or_null(7, row[3].clone()),
            or_null(3, if number % 2 == 0 { "True" } else { "False" }.to_owned()),
            or_null(
                9,
                (Utc.timestamp_opt(0, 0).unwrap() + chrono::TimeDelta::days(number * 100))
                    .format("%Y-%m-%d")
                    .to_string(),
            ),
            or_null(
                6,
                format!("{}{}.{:02}", if cents < 0 { "-" } else { "" }, cents.abs() / 100, cents.abs() % 100),
            ),
            or_null(4, format!("[{}]", tags.join(", "))),
            or_null(11, micros.to_string()),
            number.to_string(),
            or_null(11, day),
            "TIMESTAMP WITH TIME ZONE".to_owned(),
            "DATE".to_owned(),
            "VARCHAR".to_owned(),
        ];
        assert_eq!(row.as_slice(), expected, "row {n}");
        if number % 7 != 0 {
            assert_eq!(row[3].parse::<f64>().unwrap(), number as f64 / 3.0);
        }
    }
}

#[test]
fn lake_query_for_a_table_without_rows_or_partitions_works_in_duckdb() {
    if !has_duckdb() {
        eprintln!(
            "SKIPPED lake_query_for_a_table_without_rows_or_partitions_works_in_duckdb: python3 has no duckdb"
        );
        return;
    }
    let (_folder, lake) = temporary();
    let empty = publish(&lake, spec(Vec::new()), 0, 1, 1);
    let count = |query: &str| format!("select *, null::DATE as window_start_date from ({query})");
    assert_eq!(ask_duckdb(&count(&duckdb_query(&empty, lake.url()))).len(), 0);
    let plain = publish(&lake, spec(Vec::new()), 9, 2, 2);
    assert_eq!(ask_duckdb(&count(&duckdb_query(&plain, lake.url()))).len(), 9);
    let whole = concat_batches(&rows(0..1).schema(), &read(&lake, &plain)).unwrap();
    assert_eq!(whole.num_rows(), 9);
}
