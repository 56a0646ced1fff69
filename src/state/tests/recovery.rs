//! Which checkpoint a task starts from.

use super::super::{MemoryStore, Recovered, RecoveredFrom, StateError, Store, recover};
use super::copies::{Copied, damage};
use super::{Rows, apply, rows};

const TASK: &str = "flights.exchange.hourly-3";

/// Copies at 10, 20 and 30.
fn copied() -> Copied {
    let mut copied = Copied::new();
    for step in 1..=3 {
        copied.step(step * 10);
    }
    copied
}

/// A local store of fingerprint `fingerprint` at `offset`.
fn local(fingerprint: &str, offset: i64) -> MemoryStore {
    let store = MemoryStore::new();
    store.clear(fingerprint).unwrap();
    apply(&store, &[(b"local".to_vec(), Some(b"1".to_vec()))].into(), offset);
    store
}

fn start(
    copied: &Copied,
    store: &MemoryStore,
    log_start: i64,
    committed: i64,
) -> Result<Recovered, StateError> {
    let recovered = recover(TASK, store, Some(&copied.checkpoints), "f1", log_start, committed)?;
    match recovered.from {
        RecoveredFrom::Log => {
            assert_eq!((recovered.offset, store.offset(), rows(store)), (0, None, Rows::new()))
        }
        _ => assert_eq!(store.offset(), Some(recovered.offset)),
    }
    assert_eq!(store.fingerprint().as_deref(), Some("f1"));
    Ok(recovered)
}

#[test]
fn the_highest_checkpoint_within_the_log_is_taken() {
    let copied = copied();
    for (local_offset, log_start, committed, expected) in [
        (None, 0, 100, (30, RecoveredFrom::Copy)),
        (None, 0, 29, (20, RecoveredFrom::Copy)),
        (None, 0, 9, (0, RecoveredFrom::Log)),
        (None, 30, 30, (30, RecoveredFrom::Copy)),
        (Some(25), 0, 100, (30, RecoveredFrom::Copy)),
        (Some(25), 0, 29, (25, RecoveredFrom::Local)),
        (Some(30), 0, 100, (30, RecoveredFrom::Local)),
        (Some(40), 0, 100, (40, RecoveredFrom::Local)),
        (Some(40), 0, 35, (30, RecoveredFrom::Copy)),
        (Some(5), 8, 15, (10, RecoveredFrom::Copy)),
        (Some(50), 0, 5, (0, RecoveredFrom::Log)),
    ] {
        let store = local_offset.map_or_else(MemoryStore::new, |offset| local("f1", offset));
        let recovered = start(&copied, &store, log_start, committed).unwrap();
        let case = format!("local {local_offset:?}, log {log_start}..={committed}");
        assert_eq!((recovered.offset, recovered.from), expected, "{case}");
        assert!(recovered.warnings.is_empty(), "{case}");
        match recovered.from {
            RecoveredFrom::Copy => assert_eq!(rows(&store), copied.states[&recovered.offset], "{case}"),
            RecoveredFrom::Local => assert_eq!(rows(&store).len(), 1, "{case}"),
            RecoveredFrom::Log => {}
        }
    }
}

#[test]
fn a_damaged_copy_is_reported_and_the_next_older_one_is_taken() {
    let copied = copied();
    damage(&copied.objects(30, ".chunk")[0]);
    let store = MemoryStore::new();
    let recovered = start(&copied, &store, 5, 100).unwrap();
    assert_eq!((recovered.offset, recovered.from), (20, RecoveredFrom::Copy));
    assert!(matches!(recovered.warnings[..], [StateError::Corrupt { .. }]));
    assert_eq!(rows(&store), copied.states[&20]);
    // A local checkpoint between the two is better than the older copy, and is still whole.
    let store = local("f1", 25);
    let recovered = start(&copied, &store, 5, 100).unwrap();
    assert_eq!((recovered.offset, recovered.from), (25, RecoveredFrom::Local));
    assert_eq!((recovered.warnings.len(), rows(&store).len()), (1, 1));
}

#[test]
fn a_checkpoint_of_another_topology_is_reported_and_not_used() {
    let copied = copied();
    let store = local("f0", 40);
    let recovered = start(&copied, &store, 0, 100).unwrap();
    assert_eq!((recovered.offset, recovered.from), (30, RecoveredFrom::Copy));
    assert!(matches!(&recovered.warnings[..], [StateError::OtherTopology { found, .. }] if found == "f0"));
    let store = MemoryStore::new();
    let recovered = recover(TASK, &store, Some(&copied.checkpoints), "f2", 0, 100).unwrap();
    assert_eq!((recovered.offset, recovered.from, recovered.warnings.len()), (0, RecoveredFrom::Log, 3));
    assert_eq!(store.fingerprint().as_deref(), Some("f2"));
}

#[test]
fn a_log_that_was_trimmed_needs_a_checkpoint() {
    let copied = copied();
    for chunk in [10, 20, 30].into_iter().flat_map(|offset| copied.objects(offset, ".chunk")) {
        damage(&chunk);
    }
    let refused = start(&copied, &local("f1", 3), 5, 100).unwrap_err();
    assert!(matches!(refused, StateError::NoCheckpoint { log_start: 5, committed: 100, .. }));
    let text = refused.to_string();
    assert!(text.contains("checksum") && text.contains("one at 3,") && text.contains("reset FILE"), "{text}");
    assert!(matches!(
        recover(TASK, &MemoryStore::new(), None, "f1", 5, 100),
        Err(StateError::NoCheckpoint { .. })
    ));
    let recovered = start(&copied, &MemoryStore::new(), 0, 100).unwrap();
    assert_eq!((recovered.from, recovered.warnings.len()), (RecoveredFrom::Log, 3));
}

#[test]
fn the_state_that_a_promotion_left_is_not_replaced_by_the_log() {
    let mut copied = Copied::new();
    copied.step(0);
    let recovered = start(&copied, &MemoryStore::new(), 0, 0).unwrap();
    assert_eq!((recovered.offset, recovered.from), (0, RecoveredFrom::Copy));
    damage(&copied.objects(0, ".chunk")[0]);
    assert!(matches!(start(&copied, &MemoryStore::new(), 0, 50), Err(StateError::NoCheckpoint { .. })));
}
