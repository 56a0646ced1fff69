//! Crashes at each step of a checkpoint: what is on disk then opens as the state before it or after it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use super::super::sled::Step;
use super::super::{StateDir, StateError, Store};
use super::{apply, changed, copy_folder, key, rows, value};

/// More changes than a batch takes, deletes among them, and values that lie in pieces.
fn changes(step: u64) -> BTreeMap<Vec<u8>, Option<Vec<u8>>> {
    let mut changes: BTreeMap<_, _> = (0..1_200)
        .map(|number| (key(number + step * 300), (number % 7 != 0).then(|| value(number ^ step, 60))))
        .collect();
    changes.insert(b"long".to_vec(), Some(value(step, 9_000)));
    changes.insert(format!("longer {step}").into_bytes(), Some(value(step, 2_100_000)));
    changes.insert(b"once long".to_vec(), Some(value(step, if step == 0 { 5_000 } else { 10 })));
    changes
}

#[test]
fn a_crash_at_any_step_leaves_the_old_or_the_new_state() {
    let folder = tempfile::tempdir().unwrap();
    let live = folder.path().join("live");
    let copies = folder.path().join("copies");
    let dir = StateDir::open(&live).unwrap();
    let mut store = dir.task("task").unwrap();
    let other = dir.task("task of another").unwrap();
    other.clear("f").unwrap();
    apply(&other, &BTreeMap::from([(b"key".to_vec(), Some(b"other".to_vec()))]), 1);
    store.clear("f").unwrap();
    apply(&store, &changes(0), 10);
    let before = rows(&store);
    let steps = Arc::new(Mutex::new(Vec::new()));
    store.after_each_step({
        let (live, copies, steps) = (live.clone(), copies.clone(), Arc::clone(&steps));
        move |step| {
            copy_folder(&live, &copies.join(format!("{step:?}")));
            steps.lock().unwrap().push(step);
        }
    });
    apply(&store, &changes(1), 20);
    let after = changed(before.clone(), &changes(1));
    assert_eq!(rows(&store), after);

    let steps = steps.lock().unwrap().clone();
    assert_eq!(
        (steps.first(), steps.last(), steps.len()),
        (Some(&Step::JournalWritten), Some(&Step::JournalDropped), 8)
    );
    for step in steps {
        let copy = copies.join(format!("{step:?}"));
        // Opened twice: the first recovery may itself have been cut short before anything else was written.
        for _ in 0..2 {
            let dir = StateDir::open(&copy).unwrap();
            let store = dir.task("task").unwrap();
            store.check().unwrap();
            assert_eq!(store.fingerprint().as_deref(), Some("f"), "{step:?}");
            match store.offset() {
                Some(10) => assert!(step <= Step::Recorded && rows(&store) == before, "{step:?}"),
                Some(20) => assert!(step >= Step::Recorded && rows(&store) == after, "{step:?}"),
                other => panic!("{step:?}: offset {other:?}"),
            }
            assert_eq!(
                dir.task("task of another").unwrap().get(b"key").unwrap().as_deref(),
                Some(&b"other"[..])
            );
        }
        // And it goes on from there.
        let dir = StateDir::open(&copy).unwrap();
        let store = dir.task("task").unwrap();
        let expected = changed(rows(&store), &changes(2));
        apply(&store, &changes(2), 30);
        drop(store);
        let store = dir.task("task").unwrap();
        assert!(store.offset() == Some(30) && rows(&store) == expected, "{step:?}");
    }
}

#[test]
fn a_damaged_journal_is_reported_and_cleared() {
    let folder = tempfile::tempdir().unwrap();
    let (live, copy) = (folder.path().join("live"), folder.path().join("copy"));
    let dir = StateDir::open(&live).unwrap();
    let mut store = dir.task("task").unwrap();
    store.after_each_step({
        let (live, copy) = (live.clone(), copy.clone());
        move |step| {
            if step == Step::Committed {
                copy_folder(&live, &copy);
            }
        }
    });
    apply(&store, &changes(0), 10);

    let dir = StateDir::open(&copy).unwrap();
    assert!(dir.damage_journal("task"));
    let store = dir.task("task").unwrap();
    assert!(matches!(store.check(), Err(StateError::Corrupt { .. })));
    assert_eq!(store.offset(), None);
    assert!(store.apply(&[], 11).is_err(), "a damaged store takes no step");
    drop(store);
    let store = dir.task("task").unwrap();
    assert!(store.check().is_err(), "opening again does not forget the damage");
    store.clear("f").unwrap();
    store.check().unwrap();
    assert!(rows(&store).is_empty());
    apply(&store, &changes(1), 12);
    drop(store);
    assert_eq!(rows(&dir.task("task").unwrap()), changed(BTreeMap::new(), &changes(1)));
}

#[test]
fn a_fill_that_did_not_end_opens_empty() {
    let folder = tempfile::tempdir().unwrap();
    let dir = StateDir::open(folder.path()).unwrap();
    let store = dir.task("task").unwrap();
    apply(&store, &changes(0), 10);
    store.clear("g").unwrap();
    assert_eq!((store.offset(), rows(&store).len()), (None, 0));
    store.fill(&[(b"a", Some(b"1")), (b"b", Some(&[7; 5_000]))]).unwrap();
    drop(store);
    let store = dir.task("task").unwrap();
    assert_eq!((store.offset(), rows(&store).len()), (None, 0));
    assert_eq!(store.fingerprint().as_deref(), Some("g"));
    store.fill(&[(b"a", Some(b"1")), (b"b", Some(&[7; 5_000]))]).unwrap();
    store.apply(&[], 0).unwrap();
    drop(store);
    drop(dir);
    // The same process may open the directory again at once.
    let dir = StateDir::open(folder.path()).unwrap();
    let store = dir.task("task").unwrap();
    assert_eq!((store.offset(), store.get(b"b").unwrap()), (Some(0), Some(vec![7; 5_000])));
}

#[test]
fn tasks_are_listed_claimed_and_removed() {
    let folder = tempfile::tempdir().unwrap();
    let dir = StateDir::open(folder.path()).unwrap();
    let first = dir.task("a b").unwrap();
    let second = dir.task("b").unwrap();
    for store in [&first, &second] {
        apply(store, &changes(0), 10);
    }
    let mut names = dir.tasks();
    names.sort();
    assert_eq!(names, ["a b", "b"]);
    assert!(matches!(dir.task("b"), Err(StateError::InUse { .. })), "a store has one writer");
    assert!(matches!(dir.remove("b"), Err(StateError::InUse { .. })));
    drop(second);
    dir.remove("b").unwrap();
    assert_eq!(dir.tasks(), ["a b"]);
    assert_eq!(rows(&dir.task("b").unwrap()).len(), 0);
    assert_eq!(rows(&first), changed(BTreeMap::new(), &changes(0)), "other tasks keep theirs");
}
