//! A store that writes later what a copy filled it with.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use proptest::prelude::*;

use super::super::{
    Allowance, Change, DeferredStore, MemoryStore, RecoveredFrom, Result, StateDir, StateError, Store,
    TaskState, Visitor, recover,
};
use super::copies::Copied;
use super::model::{operation, run};
use super::{Rows, rows};

const TASK: &str = "flights.exchange.hourly-3";
const PLENTY: usize = usize::MAX;

fn deferred(inner: &MemoryStore, allowance: &Arc<Allowance>) -> DeferredStore {
    DeferredStore::new(Box::new(inner.clone()), allowance)
}

/// Fills a store as a copy at offset 0 does, in two parts, the second of which replaces and deletes.
fn load(store: &dyn Store) -> Rows {
    store.clear("f1").unwrap();
    let parts: [Vec<Change<'_>>; 2] = [
        vec![(&[0], Some(b"old")), (&[0, 7], Some(b"goes")), (&[7], Some(b"stays")), (&[255], Some(b"last"))],
        vec![(&[0], Some(b"a new one that is longer")), (&[0, 7], None), (&[7, 7], Some(b"new"))],
    ];
    for part in parts {
        store.fill(&part).unwrap();
    }
    store.apply(&[], 0).unwrap();
    let expected: [(&[u8], &[u8]); 4] =
        [(&[0], b"a new one that is longer"), (&[7], b"stays"), (&[7, 7], b"new"), (&[255], b"last")];
    expected.map(|(key, value)| (key.to_vec(), value.to_vec())).into()
}

/// Opens a store over this one, and loads the copy again where what it held was never written.
fn open(inner: Box<dyn Store>, allowance: &Arc<Allowance>) -> Box<dyn Store> {
    let store = DeferredStore::new(inner, allowance);
    if store.offset().is_none() {
        load(&store);
    }
    Box::new(store)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]
    #[test]
    fn layers_over_what_is_not_written_yet_are_a_sorted_map(
        operations in prop::collection::vec(operation(), 0..120),
        cache_bytes in prop_oneof![Just(0), Just(usize::MAX)],
        allowed in prop_oneof![Just(0), Just(450), Just(PLENTY)],
    ) {
        let (inner, allowance) = (MemoryStore::new(), Allowance::new(allowed));
        let loaded = load(&MemoryStore::new());
        run(&operations, cache_bytes, &loaded, || open(Box::new(inner.clone()), &allowance));
    }
}

#[test]
fn sled_opens_empty_until_the_first_step_and_whole_after_it() {
    let folder = tempfile::tempdir().unwrap();
    let dir = StateDir::open(folder.path()).unwrap();
    let allowance = Allowance::new(PLENTY);
    let task = || DeferredStore::new(Box::new(dir.task(TASK).unwrap()), &allowance);
    let store = task();
    let mut expected = load(&store);
    assert_eq!((store.offset(), store.is_written(), rows(&store)), (Some(0), false, expected.clone()));
    drop(store);
    let store = task();
    assert_eq!((store.offset(), rows(&store)), (None, Rows::new()));
    load(&store);
    store.apply(&[(&[7], None), (&[8], Some(b"8"))], 5).unwrap();
    expected.remove(&[7][..]);
    expected.insert(vec![8], b"8".to_vec());
    assert_eq!((store.offset(), store.is_written(), rows(&store)), (Some(5), true, expected.clone()));
    drop(store);
    let store = task();
    assert_eq!((store.offset(), rows(&store)), (Some(5), expected));
}

#[test]
fn what_finds_no_room_in_memory_is_written_at_once() {
    let (one, other) = (MemoryStore::new(), MemoryStore::new());
    let allowance = Allowance::new(700);
    let first = deferred(&one, &allowance);
    let expected = load(&first);
    assert!(!first.is_written() && rows(&one).is_empty());
    let second = deferred(&other, &allowance);
    load(&second);
    assert!(second.is_written());
    assert_eq!((other.offset(), rows(&other), rows(&second)), (Some(0), expected.clone(), expected.clone()));
    // The room is given back by who has written, and by who is gone.
    first.apply(&[], 0).unwrap();
    assert_eq!((one.offset(), rows(&one)), (Some(0), expected));
    load(&second);
    assert!(!second.is_written());
    drop(second);
    load(&first);
    assert!(!first.is_written());
}

/// Refuses what it is filled with, as a disk does that is full, or fails once a step is done.
struct Full {
    inner: MemoryStore,
    is_full: Arc<AtomicBool>,
    fails_at_last: Arc<AtomicBool>,
}

impl Full {
    fn new(inner: &MemoryStore, is_full: bool, fails_at_last: bool) -> Self {
        let flag = |value| Arc::new(AtomicBool::new(value));
        Self { inner: inner.clone(), is_full: flag(is_full), fails_at_last: flag(fails_at_last) }
    }
}

impl Store for Full {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>> {
        self.inner.get(key)
    }
    fn scan(&self, from: &[u8], to: &[u8], visit: Visitor<'_>) -> Result<()> {
        self.inner.scan(from, to, visit)
    }
    fn apply(&self, changes: &[Change<'_>], offset: i64) -> Result<()> {
        self.inner.apply(changes, offset)?;
        let fails = self.fails_at_last.swap(false, Ordering::Relaxed);
        if fails { Err(StateError::Unreachable("the disk is gone".into())) } else { Ok(()) }
    }
    fn offset(&self) -> Option<i64> {
        self.inner.offset()
    }
    fn fingerprint(&self) -> Option<String> {
        self.inner.fingerprint()
    }
    fn clear(&self, fingerprint: &str) -> Result<()> {
        self.inner.clear(fingerprint)
    }
    fn fill(&self, changes: &[Change<'_>]) -> Result<()> {
        let full = self.is_full.load(Ordering::Relaxed);
        // Half of it finds room.
        self.inner.fill(&changes[..if full { changes.len() / 2 } else { changes.len() }])?;
        if full { Err(StateError::Unreachable("the disk is full".into())) } else { Ok(()) }
    }
    fn copy(&self) -> Option<String> {
        self.inner.copy()
    }
    fn set_copy(&self, identity: &str) -> Result<()> {
        self.inner.set_copy(identity)
    }
    fn check(&self) -> Result<()> {
        self.inner.check()
    }
}

#[test]
fn a_first_step_that_fails_half_way_is_done_again_whole() {
    let inner = MemoryStore::new();
    let full = Full::new(&inner, true, false);
    let is_full = Arc::clone(&full.is_full);
    let store = DeferredStore::new(Box::new(full), &Allowance::new(PLENTY));
    let mut expected = load(&store);
    store.apply(&[(&[8], Some(b"8"))], 5).unwrap_err();
    assert_eq!((store.offset(), inner.offset(), rows(&store)), (Some(0), None, expected.clone()));
    is_full.store(false, Ordering::Relaxed);
    store.apply(&[(&[8], Some(b"8"))], 5).unwrap();
    expected.insert(vec![8], b"8".to_vec());
    assert_eq!((inner.offset(), rows(&inner), rows(&store)), (Some(5), expected.clone(), expected));
}

#[test]
fn a_first_step_that_was_done_though_it_failed_is_not_undone() {
    let inner = MemoryStore::new();
    let full = Full::new(&inner, false, true);
    let is_full = Arc::clone(&full.is_full);
    let store = DeferredStore::new(Box::new(full), &Allowance::new(PLENTY));
    load(&store);
    store.apply(&[(&[7], Some(b"newer"))], 5).unwrap_err();
    let done = rows(&inner);
    assert_eq!((inner.offset(), done[&[7][..]].as_slice()), (Some(5), &b"newer"[..]));
    // What is filled in once more would be seen.
    is_full.store(true, Ordering::Relaxed);
    store.apply(&[(&[7], Some(b"newest"))], 6).unwrap();
    assert_eq!((inner.offset(), rows(&inner)[&[7][..]].as_slice()), (Some(6), &b"newest"[..]));
    assert!(store.is_written());
}

#[test]
fn a_recovered_task_writes_its_state_with_its_first_checkpoint_though_nothing_changed() {
    let mut copied = Copied::new();
    copied.step(20);
    let inner = MemoryStore::new();
    let store = deferred(&inner, &Allowance::new(PLENTY));
    let recovered = recover(TASK, &store, Some(&copied.checkpoints), "f1", 0, 100).unwrap();
    assert_eq!((recovered.offset, recovered.from), (20, RecoveredFrom::Copy));
    assert_eq!((rows(&store), inner.offset()), (copied.states[&20].clone(), None));
    let mut state = TaskState::new(Box::new(store));
    assert!(state.is_behind());
    let writer = state.begin_checkpoint(20);
    writer.write().unwrap();
    assert!(writer.upload(&copied.checkpoints, TASK, "f1").unwrap().existed);
    state.finish_checkpoint();
    assert!(!state.is_behind());
    assert_eq!((inner.offset(), rows(&inner)), (Some(20), copied.states[&20].clone()));
    // What follows builds on the copy that it came from.
    state.put(b"always", b"30");
    state.commit_epoch();
    let writer = state.begin_checkpoint(30);
    writer.write().unwrap();
    assert!(!writer.upload(&copied.checkpoints, TASK, "f1").unwrap().base);
}
