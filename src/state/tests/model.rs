//! `TaskState` over both stores against three sorted maps, under random operations.

use std::ops::ControlFlow;
use std::sync::atomic::{AtomicU64, Ordering};

use proptest::prelude::*;

use super::super::{CheckpointWriter, MemoryStore, StateDir, Store, TaskState};
use super::Rows;

#[derive(Clone, Debug)]
pub enum Operation {
    /// A key that is not there is put as a new one.
    Put(Vec<u8>, Vec<u8>),
    Delete(Vec<u8>),
    Get(Vec<u8>),
    /// Scans a range and stops after so many rows.
    Scan(Vec<u8>, Vec<u8>, usize),
    CommitEpoch,
    AbortEpoch,
    Checkpoint,
    Begin,
    Write,
    Finish,
    Fail,
    Reopen,
}

fn short_key() -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec(prop_oneof![Just(0_u8), Just(7), Just(255)], 0..4)
}

pub fn operation() -> impl Strategy<Value = Operation> {
    let length = prop_oneof![9 => 0..20_usize, 1 => 3_990..9_000_usize];
    let value = (any::<u8>(), length).prop_map(|(byte, length)| vec![byte; length]);
    prop_oneof![
        8 => (short_key(), value).prop_map(|(key, value)| Operation::Put(key, value)),
        3 => short_key().prop_map(Operation::Delete),
        4 => short_key().prop_map(Operation::Get),
        4 => (short_key(), short_key(), 0..30_usize).prop_map(|(from, to, rows)| Operation::Scan(from, to, rows)),
        4 => Just(Operation::CommitEpoch),
        2 => Just(Operation::AbortEpoch),
        2 => Just(Operation::Checkpoint),
        2 => Just(Operation::Begin),
        2 => Just(Operation::Write),
        2 => Just(Operation::Finish),
        1 => Just(Operation::Fail),
        1 => Just(Operation::Reopen),
    ]
}

/// Runs the operations on a store that opens with these rows at offset 0, or without any; an operation that is not
/// legal where it stands is skipped.
pub fn run(operations: &[Operation], cache_bytes: usize, opened: &Rows, open: impl Fn() -> Box<dyn Store>) {
    let start = || {
        let mut state = TaskState::new(open());
        state.set_cache_bytes(cache_bytes);
        state
    };
    let mut state = start();
    let (mut durable, mut committed, mut epoch) = (opened.clone(), opened.clone(), opened.clone());
    let mut epoch_is_empty = true;
    let mut offset = 0;
    // A checkpoint that was begun: its writer, what it writes, and whether it has been written.
    let mut checkpoint: Option<(CheckpointWriter, Rows, bool)> = None;
    for operation in operations {
        match operation {
            Operation::Put(key, value) => {
                match epoch.contains_key(key) {
                    true => state.put(key, value),
                    false => state.put_new(key, value),
                }
                epoch.insert(key.clone(), value.clone());
                epoch_is_empty = false;
            }
            Operation::Delete(key) => {
                state.delete(key);
                epoch.remove(key);
                epoch_is_empty = false;
            }
            Operation::Get(key) => {
                assert_eq!(state.get(key).unwrap().as_deref(), epoch.get(key).map(Vec::as_slice));
            }
            Operation::Scan(from, to, limit) => assert_eq!(
                scan(&state, from, to, *limit),
                epoch
                    .iter()
                    .filter(|(key, _)| *key >= from && (to.is_empty() || *key < to))
                    .map(|(key, value)| (key.clone(), value.clone()))
                    .take(*limit + 1)
                    .collect::<Vec<_>>()
            ),
            Operation::CommitEpoch => {
                state.commit_epoch();
                committed = epoch.clone();
                epoch_is_empty = true;
            }
            Operation::AbortEpoch => {
                state.abort_epoch();
                epoch = committed.clone();
                epoch_is_empty = true;
            }
            Operation::Checkpoint if epoch_is_empty && checkpoint.is_none() => {
                offset += 1;
                assert_eq!(state.checkpoint(offset).unwrap().offset, offset);
                assert_eq!(state.memory_bytes(), 0);
                durable = committed.clone();
            }
            Operation::Begin if epoch_is_empty && checkpoint.is_none() => {
                offset += 1;
                checkpoint = Some((state.begin_checkpoint(offset), committed.clone(), false));
            }
            Operation::Write => {
                if let Some((writer, rows, written)) = checkpoint.as_mut().filter(|(.., written)| !written) {
                    writer.write().unwrap();
                    durable = rows.clone();
                    *written = true;
                }
            }
            Operation::Finish => {
                checkpoint = match checkpoint {
                    Some((.., true)) => {
                        state.finish_checkpoint();
                        None
                    }
                    other => other,
                };
            }
            Operation::Fail if checkpoint.is_some() => {
                // Also one that was written: its outcome may be unknown.
                state.fail_checkpoint();
                checkpoint = None;
            }
            Operation::Reopen => {
                checkpoint = None;
                drop(state);
                state = start();
                committed = durable.clone();
                epoch = durable.clone();
                epoch_is_empty = true;
            }
            _ => {}
        }
    }
    let all: Vec<_> = epoch.into_iter().collect();
    assert_eq!(scan(&state, &[], &[], usize::MAX - 1), all);
}

fn scan(state: &TaskState, from: &[u8], to: &[u8], limit: usize) -> Vec<(Vec<u8>, Vec<u8>)> {
    let mut rows = Vec::new();
    let scanned = state.scan(from, to, &mut |key, value| {
        rows.push((key.to_vec(), value.to_vec()));
        if rows.len() > limit { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    scanned.unwrap();
    rows
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]
    #[test]
    fn layers_over_memory_are_a_sorted_map(
        operations in prop::collection::vec(operation(), 0..120),
        cache_bytes in prop_oneof![Just(0), Just(usize::MAX)],
    ) {
        let store = MemoryStore::new();
        run(&operations, cache_bytes, &Rows::new(), || Box::new(store.clone()));
    }
}

#[test]
fn layers_over_sled_are_a_sorted_map() {
    let folder = tempfile::tempdir().unwrap();
    let dir = StateDir::open(folder.path()).unwrap();
    let tasks = AtomicU64::new(0);
    let config = ProptestConfig { cases: 40, ..ProptestConfig::default() };
    proptest!(config, |(operations in prop::collection::vec(operation(), 0..80))| {
        let name = format!("task-{}", tasks.fetch_add(1, Ordering::Relaxed));
        run(&operations, 0, &Rows::new(), || Box::new(dir.task(&name).unwrap()));
    });
}

#[test]
fn a_visitor_may_read_and_scan() {
    let mut state = TaskState::new(Box::new(MemoryStore::new()));
    for byte in 0..4 {
        state.put(&[byte], &[byte]);
        state.commit_epoch();
        if byte % 2 == 0 {
            state.checkpoint(i64::from(byte)).unwrap();
        }
    }
    let mut pairs = 0;
    let scanned = state.scan(&[], &[], &mut |key, value| {
        assert_eq!(state.get(key).unwrap().as_deref(), Some(value));
        pairs += scan(&state, key, &[], usize::MAX - 1).len();
        ControlFlow::Continue(())
    });
    scanned.unwrap();
    assert_eq!(pairs, 4 + 3 + 2 + 1);
}

#[test]
#[should_panic(expected = "this epoch is not committed")]
fn what_is_not_committed_is_never_checkpointed() {
    let mut state = TaskState::new(Box::new(MemoryStore::new()));
    state.put(b"key", b"value");
    let _ = state.checkpoint(1);
}

#[test]
fn memory_is_counted_and_given_back() {
    let mut state = TaskState::new(Box::new(MemoryStore::new()));
    state.put(b"key", &[0; 1_000]);
    let first = state.memory_bytes();
    assert!(first >= 1_003);
    state.put(b"key", &[0; 3_000]);
    assert_eq!(state.memory_bytes(), first + 2_000);
    state.commit_epoch();
    state.delete(b"key");
    state.abort_epoch();
    assert_eq!(state.memory_bytes(), first + 2_000);
    state.delete(b"key");
    state.commit_epoch();
    assert_eq!(state.memory_bytes(), first - 1_000);
    state.checkpoint(1).unwrap();
    assert_eq!(state.memory_bytes(), 0);
}

#[test]
fn what_came_and_went_between_two_checkpoints_is_not_written() {
    let mut state = TaskState::new(Box::new(MemoryStore::new()));
    state.put_new(b"stays", b"1");
    state.put_new(b"goes", b"1");
    state.commit_epoch();
    state.delete(b"goes");
    state.put_new(b"within an epoch", b"1");
    state.delete(b"within an epoch");
    state.commit_epoch();
    assert_eq!(state.checkpoint(1).unwrap().changes, 1);
    // The store has it: that it is gone must be written.
    state.delete(b"stays");
    state.commit_epoch();
    assert_eq!(state.checkpoint(2).unwrap().changes, 1);
}

#[test]
fn memory_does_not_grow_with_what_came_and_went() {
    let mut state = TaskState::new(Box::new(MemoryStore::new()));
    let before = state.memory_reserved();
    for epoch in 0..500_u32 {
        for key in 0..100_u32 {
            let key = [epoch.to_be_bytes(), key.to_be_bytes()].concat();
            state.put_new(&key, &[7; 100]);
            if epoch > 0 {
                let mut last = key.clone();
                last[..4].copy_from_slice(&(epoch - 1).to_be_bytes());
                state.delete(&last);
            }
        }
        state.put(b"long", &vec![0; 20_000 + epoch as usize]);
        state.commit_epoch();
        assert_eq!(scan(&state, &[], &[], usize::MAX - 1).len(), 101);
    }
    let grown = state.memory_reserved() - before;
    assert!(grown < 4 << 20, "{grown} bytes for 100 keys");
}
