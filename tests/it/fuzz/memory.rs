//! The allocator of the test binary: it counts where a test asks for it, in a process that does nothing else.
//!
//! Invariant: while it counts, what would take more than [`LIMIT`] is refused, so that a runaway input ends its own
//! process and not the machine.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicBool, AtomicIsize, Ordering::Relaxed};

const LIMIT: isize = 2 << 30;

static COUNTS: AtomicBool = AtomicBool::new(false);
static LIVE: AtomicIsize = AtomicIsize::new(0);
static MOST: AtomicIsize = AtomicIsize::new(0);

/// The system's allocator, and a count of what is live.
pub struct Counting;

/// False: it would be too much.
fn add(bytes: usize) -> bool {
    if !COUNTS.load(Relaxed) {
        return true;
    }
    let bytes = isize::try_from(bytes).unwrap_or(isize::MAX);
    if LIVE.load(Relaxed).saturating_add(bytes) > LIMIT {
        return false;
    }
    let live = LIVE.fetch_add(bytes, Relaxed) + bytes;
    MOST.fetch_max(live, Relaxed);
    true
}

fn remove(bytes: usize) {
    if COUNTS.load(Relaxed) {
        LIVE.fetch_sub(isize::try_from(bytes).unwrap_or(isize::MAX), Relaxed);
    }
}

// SAFETY: the system's allocator does the work; counting touches atomics only.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promise is handed on.
        if add(layout.size()) { unsafe { System.alloc(layout) } } else { std::ptr::null_mut() }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promise is handed on.
        if add(layout.size()) { unsafe { System.alloc_zeroed(layout) } } else { std::ptr::null_mut() }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        remove(layout.size());
        // SAFETY: the caller's promise is handed on.
        unsafe { System.dealloc(at, layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // Counted as both for a moment, which it may be.
        if !add(size) {
            return std::ptr::null_mut();
        }
        remove(layout.size());
        // SAFETY: the caller's promise is handed on.
        unsafe { System.realloc(at, layout, size) }
    }
}

/// From now on this process counts.
pub fn count() {
    COUNTS.store(true, Relaxed);
}

/// How much more than before was allocated at some time during `work`, by any thread.
pub fn most_during(work: impl FnOnce()) -> usize {
    let before = LIVE.load(Relaxed);
    MOST.store(before, Relaxed);
    work();
    usize::try_from(MOST.load(Relaxed) - before).unwrap_or(0)
}
