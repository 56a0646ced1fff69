//! The lake as a user sees it: folders, files and manifests on a disk.

mod duckdb;
pub mod fixtures;
mod full_disk;

use std::fs::{self, File};
use std::path::Path;
use std::sync::Arc;

use headwater::lake::{
    Digest, FinishedPart, Lake, LakeError, Manifest, NewVersion, PartitionBy, TableSpec, WriteLimits, digest,
};
use object_store::memory::InMemory;
use object_store::{ObjectStore, PutOptions, PutPayload};
use parquet::basic::{Compression, LogicalType, TimeUnit};
use parquet::file::reader::{FileReader, SerializedFileReader};
use proptest::prelude::*;

use fixtures::{TABLE, by_origin_and_day, publish, read, rows, run_info, sorted, spec, temporary, walk};

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
    let ewr = "v000001/origin=EWR/window_start_date=2013-01-03/part-0-";
    assert!(manifest.files.iter().any(|file| file.path.starts_with(ewr)));
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
fn written(lake: &Lake, count: i64) -> (NewVersion, Vec<FinishedPart>) {
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
            let location = path.as_str().into();
            let put = remote.put_opts(&location, PutPayload::from_static(b"{}"), PutOptions::default());
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
    assert!(refused("s3://bucket/lake").contains("s3.access_key_id"));
    assert!(refused("ftp://host/lake").contains("ftp:// is not supported"));
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

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// However rows are batched, spread over tasks, partitioned and pressed for memory: they all come back.
    #[test]
    fn lake_rows_survive_any_way_of_writing_them(
        count in 0i64..300,
        step in 1i64..80,
        tasks in 1usize..5,
        by in 0usize..3,
        open_files in 0usize..4,
        buffered_bytes in 0usize..200_000,
    ) {
        let lake = Lake::over(Arc::new(InMemory::new()), "memory")
            .with_limits(WriteLimits { open_files, buffered_bytes });
        let partitions = [Vec::new(), by_origin_and_day(), vec![PartitionBy::Column("day".to_owned())]];
        let manifest = publish(&lake, spec(partitions[by].clone()), count, step, tasks);
        let mut expected = Digest::default();
        digest(&rows(0..count), &mut expected).unwrap();
        prop_assert_eq!(&manifest.digest, &expected.to_string());
        prop_assert_eq!(sorted(&read(&lake, &manifest)), sorted(&[rows(0..count)]));
    }
}
