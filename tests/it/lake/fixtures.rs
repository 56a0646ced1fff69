//! A table with every kind of column, awkward partition values, and ways to write and read it.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, BooleanArray, Date32Array, Decimal128Array, Float64Array, Int64Array, ListArray,
    RecordBatch, StringArray, StructArray, TimestampMicrosecondArray,
};
use arrow::datatypes::{DataType, Field, Int64Type};
use arrow::util::display::{ArrayFormatter, FormatOptions};
use chrono::{TimeZone, Utc};
use headwater::lake::{Lake, Manifest, OffsetRange, PartitionBy, RunInfo, TableSpec};

pub const TABLE: &str = "gold/hourly_delay";
pub const HOUR: i64 = 3_600_000_000;
/// 2013-01-01T05:00:00Z, which is still 2012 in the Americas.
pub const START: i64 = 1_357_016_400_000_000;

/// Texts that are awkward as folder names or in SQL.
pub const AWKWARD: [Option<&str>; 12] = [
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

pub fn field(name: &str, data_type: DataType) -> Arc<Field> {
    Arc::new(Field::new(name, data_type, true))
}

/// Rows `numbers`, with every kind of column and nulls in each.
pub fn rows(numbers: std::ops::Range<i64>) -> RecordBatch {
    let some = |n: i64, every: i64| n % every != 0;
    let each = || numbers.clone();
    let count = (numbers.end - numbers.start) as usize;
    let instant: TimestampMicrosecondArray =
        each().map(|n| some(n, 11).then_some(START + n * HOUR + n)).collect();
    let seen = StructArray::from(vec![
        (field("at", instant.data_type().clone()), Arc::new(instant.clone()) as ArrayRef),
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

pub fn spec(partition_by: Vec<PartitionBy>) -> TableSpec {
    TableSpec { path: TABLE.to_owned(), schema: rows(0..1).schema(), partition_by }
}

pub fn by_origin_and_day() -> Vec<PartitionBy> {
    vec![PartitionBy::Column("origin".to_owned()), PartitionBy::Date("window_start".to_owned())]
}

pub fn run_info() -> RunInfo {
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

/// Publishes rows `0..count`, cut into batches of `step` that go to `tasks` tasks by turns, each on a thread.
pub fn publish(lake: &Lake, spec: TableSpec, count: i64, step: i64, tasks: usize) -> Manifest {
    let version = lake.begin(spec).unwrap();
    let starts: Vec<i64> = (0..count).step_by(step as usize).collect();
    let parts = std::thread::scope(|scope| {
        let run = |task: usize| {
            let mut writer = version.writer(task).unwrap();
            let mine: Vec<i64> = starts.iter().copied().skip(task).step_by(tasks).collect();
            scope.spawn(move || {
                for start in mine {
                    writer.write(&rows(start..(start + step).min(count))).unwrap();
                }
                writer.finish().unwrap()
            })
        };
        let threads: Vec<_> = (0..tasks).map(run).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    version.publish(parts, run_info()).unwrap()
}

pub fn read(lake: &Lake, manifest: &Manifest) -> Vec<RecordBatch> {
    lake.read(manifest).unwrap().collect::<Result<_, _>>().unwrap()
}

/// The rows as text, in order.
pub fn sorted(batches: &[RecordBatch]) -> Vec<String> {
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

pub fn temporary() -> (tempfile::TempDir, Lake) {
    let folder = tempfile::tempdir().unwrap();
    let lake = Lake::open(folder.path().to_str().unwrap()).unwrap();
    (folder, lake)
}

/// Every file below a folder, relative to it.
pub fn walk(folder: &Path) -> Vec<String> {
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
