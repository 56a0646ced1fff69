//! Checkpoint copies: bases and deltas, uploads cut short, damage, pruning.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use object_store::memory::InMemory;

use super::super::{Checkpoints, CopyStats, MemoryStore, StateDir, StateError, Store, TaskState};
use super::{Rows, apply, borrowed, copy_folder, rows, value};

const TASK: &str = "flights.exchange.hourly-3";

/// A task that checkpoints and uploads, and remembers its state at each offset.
pub struct Copied {
    pub folder: tempfile::TempDir,
    pub checkpoints: Checkpoints,
    pub store: MemoryStore,
    pub states: BTreeMap<i64, Rows>,
    state: TaskState,
}

impl Copied {
    pub fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let checkpoints = Checkpoints::open(folder.path().to_str().unwrap(), "flights").unwrap();
        let store = MemoryStore::new();
        let state = TaskState::new(Box::new(store.clone()));
        Self { folder, checkpoints, store, states: BTreeMap::new(), state }
    }

    pub fn step(&mut self, offset: i64) -> CopyStats {
        for number in 0..10 {
            self.state.put(format!("{offset} {number}").as_bytes(), &value(number, 50));
        }
        self.state.put(b"always", &offset.to_be_bytes());
        self.state.delete(format!("{} 3", offset - 10).as_bytes());
        self.state.commit_epoch();
        let writer = self.state.begin_checkpoint(offset);
        writer.write().unwrap();
        let stats = writer.upload(&self.checkpoints, TASK, "f1").unwrap();
        self.state.finish_checkpoint();
        self.states.insert(offset, rows(&self.store));
        stats
    }

    pub fn loaded(&self, offset: i64) -> Result<Rows, StateError> {
        let store = MemoryStore::new();
        self.checkpoints.load(TASK, offset, "f1", &store)?;
        assert_eq!((store.offset(), store.fingerprint().as_deref()), (Some(offset), Some("f1")));
        Ok(rows(&store))
    }

    /// The objects of the task whose names start with this offset and end like this.
    pub fn objects(&self, offset: i64, suffix: &str) -> Vec<PathBuf> {
        let folder = self.folder.path().join("flights").join(TASK);
        let mut objects: Vec<_> =
            std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
        objects.retain(|path| {
            let name = path.file_name().unwrap().to_str().unwrap();
            name.starts_with(&format!("{offset:020}")) && name.ends_with(suffix)
        });
        objects
    }
}

pub fn damage(object: &Path) {
    let mut bytes = std::fs::read(object).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(object, bytes).unwrap();
}

#[test]
fn what_is_asked_of_the_store_is_counted() {
    let mut copied = Copied::new();
    let stats = copied.step(10);
    let asked = copied.checkpoints.requests();
    // The chunks and the manifest, which was looked for first.
    assert_eq!((asked.puts, asked.gets), (stats.chunks as u64 + 1, 1));
    assert!(asked.bytes_put > stats.bytes, "{asked:?}, {stats:?}");
    copied.loaded(10).unwrap();
    copied.checkpoints.prune(TASK, 1).unwrap();
    let now = copied.checkpoints.requests();
    // Loaded whole, and the manifest once more to prune by.
    let manifest = std::fs::metadata(&copied.objects(10, ".json")[0]).unwrap().len();
    assert_eq!(now.bytes_got, asked.bytes_put + manifest);
    assert_eq!((now.lists, now.deletes), (1, 0));
}

#[test]
fn every_copy_loads_as_the_state_it_was_made_of() {
    let mut copied = Copied::new();
    let stats: Vec<CopyStats> = (1..=12).map(|step| copied.step(step * 10)).collect();
    assert!(stats[0].base && !stats[1].base, "first a base, then what changed");
    assert!(
        stats[1..].iter().any(|stats| stats.base),
        "deltas that outgrow their base are replaced by a new one"
    );
    assert_eq!(copied.checkpoints.list(TASK).unwrap(), (1..=12).map(|step| step * 10).collect::<Vec<_>>());
    for (offset, expected) in &copied.states {
        copied.checkpoints.verify(TASK, *offset, "f1").unwrap();
        assert_eq!(&copied.loaded(*offset).unwrap(), expected, "offset {offset}");
    }
}

#[test]
fn an_upload_cut_short_before_its_manifest_is_no_checkpoint_and_is_done_again() {
    let mut copied = Copied::new();
    copied.step(10);
    copied.step(20);
    let chunks = copied.objects(20, ".chunk");
    assert_eq!(chunks.len(), 1);
    std::fs::remove_file(&copied.objects(20, ".json")[0]).unwrap();
    assert_eq!(copied.checkpoints.list(TASK).unwrap(), [10]);
    // The same state again, by someone who knows of no earlier checkpoint: a base this time.
    let again = copied.checkpoints.upload(TASK, "f1", 20, None, &[], &copied.store).unwrap();
    assert!(again.base && !again.existed);
    assert_eq!(copied.loaded(20).unwrap(), copied.states[&20]);
    assert!(chunks[0].exists(), "what is not known to be garbage is not deleted");
    // And a third time: it is there.
    assert!(copied.checkpoints.upload(TASK, "f1", 20, None, &[], &copied.store).unwrap().existed);
}

/// Two owners' states at an offset say the same, but where their epochs ended decides how rows are packed together: rows
/// of one must not be laid over the other's.
#[test]
fn a_delta_never_builds_on_the_copy_of_another_owner() {
    let mut copied = Copied::new();
    copied.step(10);
    let other = MemoryStore::new();
    copied.checkpoints.load(TASK, 10, "f1", &other).unwrap();
    let mut state = TaskState::new(Box::new(other.clone()));
    state.put(b"packed otherwise", b"both rows");
    state.commit_epoch();
    let writer = state.begin_checkpoint(20);
    writer.write().unwrap();
    let stats = writer.upload(&copied.checkpoints, TASK, "f1").unwrap();
    assert!(!stats.base && !stats.existed, "what was loaded from a copy builds on it");

    assert!(copied.step(20).existed);
    assert_eq!(copied.loaded(20).unwrap(), rows(&other));
    assert!(copied.step(30).base, "its own checkpoint at 20 has no copy");
    assert_eq!(copied.loaded(30).unwrap(), copied.states[&30]);
    assert!(!copied.step(40).base);
    assert_eq!(copied.loaded(40).unwrap(), copied.states[&40]);
}

#[test]
fn a_store_that_is_opened_again_goes_on_from_its_own_copy() {
    let copied = Copied::new();
    let folder = tempfile::tempdir().unwrap();
    let step = |offset: i64| {
        let dir = StateDir::open(folder.path()).unwrap();
        let store = dir.task(TASK).unwrap();
        if offset == 10 {
            store.clear("f1").unwrap();
        }
        let mut state = TaskState::new(Box::new(store));
        state.put(&offset.to_be_bytes(), &value(1, 500));
        state.commit_epoch();
        let writer = state.begin_checkpoint(offset);
        writer.write().unwrap();
        writer.upload(&copied.checkpoints, TASK, "f1").unwrap()
    };
    assert!(step(10).base);
    assert!(!step(20).base);
    assert!(!step(30).base || step(40).base, "deltas outgrow their base");
}

#[test]
fn a_checkpoint_is_never_overwritten() {
    let mut copied = Copied::new();
    copied.step(10);
    let manifest = std::fs::read(&copied.objects(10, ".json")[0]).unwrap();
    let zombie = MemoryStore::new();
    apply(&zombie, &BTreeMap::from([(b"other".to_vec(), Some(b"state".to_vec()))]), 10);
    assert!(copied.checkpoints.upload(TASK, "f1", 10, None, &[], &zombie).unwrap().existed);
    let refused = copied.checkpoints.upload(TASK, "f2", 10, None, &[], &zombie);
    assert!(matches!(refused, Err(StateError::OtherTopology { .. })));
    assert_eq!(std::fs::read(&copied.objects(10, ".json")[0]).unwrap(), manifest);
    assert_eq!(copied.loaded(10).unwrap(), copied.states[&10]);
}

#[test]
fn a_delta_never_builds_on_what_has_no_copy() {
    let mut copied = Copied::new();
    copied.step(10);
    apply(&copied.store, &BTreeMap::from([(b"unseen".to_vec(), Some(b"1".to_vec()))]), 15);
    let change = BTreeMap::from([(b"seen".to_vec(), Some(b"2".to_vec()))]);
    apply(&copied.store, &change, 20);
    let stats = copied
        .checkpoints
        .upload(TASK, "f1", 20, Some((15, "unseen")), &borrowed(&change), &copied.store)
        .unwrap();
    assert!(stats.base);
    assert_eq!(copied.loaded(20).unwrap(), rows(&copied.store));
}

#[test]
fn damage_to_any_object_is_noticed() {
    for suffix in [".json", ".chunk"] {
        let mut copied = Copied::new();
        copied.step(10);
        copied.step(20);
        let object = &copied.objects(20, suffix)[0];
        damage(object);
        assert!(matches!(copied.loaded(20), Err(StateError::Corrupt { .. })), "{suffix}");
        assert!(
            matches!(copied.checkpoints.verify(TASK, 20, "f1"), Err(StateError::Corrupt { .. })),
            "{suffix}"
        );
        std::fs::remove_file(object).unwrap();
        assert!(matches!(copied.loaded(20), Err(StateError::Corrupt { .. })), "{suffix} missing");
        assert_eq!(copied.loaded(10).unwrap(), copied.states[&10], "{suffix}: the older one is whole");
    }
}

#[test]
fn what_is_damaged_is_written_anew() {
    for suffix in [".json", ".chunk"] {
        let mut copied = Copied::new();
        copied.step(10);
        damage(&copied.objects(10, suffix)[0]);
        if suffix == ".chunk" {
            // As a machine leaves it that fails during an upload.
            std::fs::remove_file(&copied.objects(10, ".json")[0]).unwrap();
        }
        let again = copied.checkpoints.upload(TASK, "f1", 10, None, &[], &copied.store).unwrap();
        assert!(!again.existed, "{suffix}");
        assert_eq!(copied.loaded(10).unwrap(), copied.states[&10], "{suffix}");
    }
}

#[test]
fn pruning_keeps_what_the_kept_need() {
    let mut copied = Copied::new();
    let mut last_base = 0;
    for step in 1..=6 {
        if copied.step(step * 10).base {
            last_base = step * 10;
        }
    }
    std::fs::write(
        copied.objects(10, ".json")[0].with_file_name(format!("{:020}-000000-0.chunk", 5)),
        b"left",
    )
    .unwrap();
    copied.checkpoints.prune(TASK, 2).unwrap();
    assert_eq!(copied.checkpoints.list(TASK).unwrap(), [50, 60]);
    for offset in [50, 60] {
        assert_eq!(copied.loaded(offset).unwrap(), copied.states[&offset], "offset {offset}");
    }
    assert!(copied.objects(5, ".chunk").is_empty(), "what an upload cut short left is gone");
    // More steps, pruned each time, until the first base is out of use: then it is gone too.
    for step in 7..=20 {
        let stats = copied.step(step * 10);
        copied.checkpoints.prune(TASK, 2).unwrap();
        let kept = copied.checkpoints.list(TASK).unwrap();
        assert_eq!(kept, [step * 10 - 10, step * 10]);
        for offset in kept {
            assert_eq!(copied.loaded(offset).unwrap(), copied.states[&offset], "offset {offset}");
        }
        if stats.base {
            last_base = step * 10;
        }
    }
    assert!(last_base > 60);
    assert!(copied.objects(10, ".chunk").is_empty());
}

#[test]
fn pruning_counts_only_checkpoints_that_can_be_read() {
    let mut copied = Copied::new();
    for step in 1..=3 {
        copied.step(step * 10);
    }
    damage(&copied.objects(30, ".json")[0]);
    assert_eq!(copied.checkpoints.prune(TASK, 2).unwrap(), [10, 20], "what the log may be trimmed by");
    assert_eq!(copied.checkpoints.list(TASK).unwrap(), [10, 20, 30]);
    assert_eq!(copied.loaded(10).unwrap(), copied.states[&10]);
}

#[test]
fn a_state_of_many_chunks_moves_from_sled_to_sled() {
    let folder = tempfile::tempdir().unwrap();
    let dir = StateDir::open(folder.path()).unwrap();
    let checkpoints = Checkpoints::over(Arc::new(InMemory::new()), "flights", "memory");
    let changes = (0..1_000_u64).map(|number| (super::key(number), Some(value(number, 9_000)))).collect();
    let from = dir.task("from").unwrap();
    apply(&from, &changes, 7);
    let stats = checkpoints.upload("task", "f1", 7, None, &[], &from).unwrap();
    assert!(stats.chunks >= 3 && stats.bytes > 9_000_000);
    let into = dir.task("into").unwrap();
    checkpoints.load("task", 7, "f1", &into).unwrap();
    drop(into);
    let into = dir.task("into").unwrap();
    assert!(into.offset() == Some(7) && rows(&into) == rows(&from));
}

#[test]
fn a_copied_folder_is_as_good_as_the_first() {
    let mut copied = Copied::new();
    copied.step(10);
    let elsewhere = tempfile::tempdir().unwrap();
    copy_folder(copied.folder.path(), elsewhere.path());
    let url = format!("file://{}", elsewhere.path().display());
    copied.checkpoints = Checkpoints::open(&url, "flights").unwrap();
    assert_eq!(copied.loaded(10).unwrap(), copied.states[&10]);
    for (url, why) in [("s3://bucket/state", "s3.access_key_id"), ("gs://bucket", "gs:// is not supported")] {
        let refused = Checkpoints::open(url, "flights").err().unwrap();
        assert!(matches!(&refused, StateError::Refused(text) if text.contains(why)), "{refused}");
    }
}
