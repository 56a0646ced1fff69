//! How often an object store was asked for copies of checkpoints, and for how many bytes: what a bucket's bill
//! is made of.
//!
//! Invariant: a request is counted once, whatever comes of it and however often the client tries it again.

use std::sync::atomic::{AtomicU64, Ordering};

/// Counted by everyone who shares the copies.
#[derive(Debug, Default)]
pub(super) struct Requests {
    puts: AtomicU64,
    gets: AtomicU64,
    lists: AtomicU64,
    deletes: AtomicU64,
    bytes_put: AtomicU64,
    bytes_got: AtomicU64,
}

/// What was asked so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RequestCounts {
    pub puts: u64,
    pub gets: u64,
    pub lists: u64,
    pub deletes: u64,
    pub bytes_put: u64,
    pub bytes_got: u64,
}

impl Requests {
    pub fn put(&self, bytes: usize) {
        self.puts.fetch_add(1, Ordering::Relaxed);
        self.bytes_put.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    pub fn get(&self) {
        self.gets.fetch_add(1, Ordering::Relaxed);
    }

    /// What a get has brought.
    pub fn got(&self, bytes: usize) {
        self.bytes_got.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    pub fn list(&self) {
        self.lists.fetch_add(1, Ordering::Relaxed);
    }

    pub fn delete(&self) {
        self.deletes.fetch_add(1, Ordering::Relaxed);
    }

    pub fn counts(&self) -> RequestCounts {
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        RequestCounts {
            puts: count(&self.puts),
            gets: count(&self.gets),
            lists: count(&self.lists),
            deletes: count(&self.deletes),
            bytes_put: count(&self.bytes_put),
            bytes_got: count(&self.bytes_got),
        }
    }
}
