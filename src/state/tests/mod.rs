//! The room's tests: the stores and the layers against a model, crashes, copies, recovery.

mod copies;
mod crash;
mod deferred;
mod model;
mod recovery;
mod soak;

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::Path;

use super::{Change, Store, prefix_end};

type Rows = BTreeMap<Vec<u8>, Vec<u8>>;

/// Everything in a store.
fn rows(store: &dyn Store) -> Rows {
    let mut rows = Rows::new();
    let scanned = store.scan(&[], &[], &mut |key, value| {
        rows.insert(key.to_vec(), value.to_vec());
        ControlFlow::Continue(())
    });
    scanned.unwrap();
    rows
}

/// Applies changes that are not in order.
fn apply(store: &dyn Store, changes: &BTreeMap<Vec<u8>, Option<Vec<u8>>>, offset: i64) {
    store.apply(&borrowed(changes), offset).unwrap();
}

fn borrowed(changes: &BTreeMap<Vec<u8>, Option<Vec<u8>>>) -> Vec<Change<'_>> {
    changes.iter().map(|(key, value)| (&key[..], value.as_deref())).collect()
}

fn changed(mut rows: Rows, changes: &BTreeMap<Vec<u8>, Option<Vec<u8>>>) -> Rows {
    for (key, value) in changes {
        match value {
            Some(value) => rows.insert(key.clone(), value.clone()),
            None => rows.remove(key),
        };
    }
    rows
}

/// A key and a value that are told apart by their bytes: numbers mixed by a fixed multiplication.
fn key(number: u64) -> Vec<u8> {
    [number.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes(), number.to_be_bytes()].concat()
}

fn value(number: u64, length: usize) -> Vec<u8> {
    let words = (0_u64..).map(|word| (number ^ (word << 40)).wrapping_mul(0xbf58_476d_1ce4_e5b9));
    words.flat_map(u64::to_le_bytes).take(length).collect()
}

fn copy_folder(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap().map(Result::unwrap) {
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_folder(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}

#[test]
fn a_prefix_ends_before_the_next_one() {
    assert_eq!(prefix_end(b"ab"), b"ac");
    assert_eq!(prefix_end(&[1, 255]), [2]);
    assert_eq!(prefix_end(&[255, 255]), [] as [u8; 0]);
    assert_eq!(prefix_end(b""), [] as [u8; 0]);
}
