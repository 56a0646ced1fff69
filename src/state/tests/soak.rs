//! Many checkpoints: sled's disk must not grow with their number.

use std::path::Path;

use super::super::{StateDir, TaskState};
use super::{key, value};

const KEYS: u64 = 4_000;
const CHANGES: u64 = 800;
const CHECKPOINTS: u64 = 160;

#[test]
fn a_hundred_checkpoints_leave_the_disk_flat() {
    let folder = tempfile::tempdir().unwrap();
    let dir = StateDir::open(folder.path()).unwrap();
    let mut state = TaskState::new(Box::new(dir.task("task").unwrap()));
    let mut early = 0;
    for checkpoint in 0..CHECKPOINTS {
        for change in 0..CHANGES {
            let number = (checkpoint * 2_654_435_761 + change * 40_503) % KEYS;
            state.put(key(number), value(number ^ checkpoint, 64));
        }
        // Values that lie in pieces, another key each time, and the one before it deleted.
        state.put(format!("long {checkpoint}").into_bytes(), value(checkpoint, 50_000));
        state.delete(format!("long {}", checkpoint.wrapping_sub(1)).into_bytes());
        state.commit_epoch();
        state.checkpoint(checkpoint as i64).unwrap();
        // By now sled has filled the segments that it goes on to use in turn.
        if checkpoint == CHECKPOINTS / 2 {
            early = disk_bytes(folder.path());
        }
    }
    let late = disk_bytes(folder.path());
    eprintln!("disk half way: {early} bytes, at the end: {late} bytes");
    assert!(late <= early * 3 / 2, "the disk grew from {early} to {late} bytes");
}

fn disk_bytes(folder: &Path) -> u64 {
    let entries = std::fs::read_dir(folder).unwrap().map(Result::unwrap);
    entries
        .map(|entry| {
            if entry.file_type().unwrap().is_dir() {
                disk_bytes(&entry.path())
            } else {
                entry.metadata().unwrap().len()
            }
        })
        .sum()
}
