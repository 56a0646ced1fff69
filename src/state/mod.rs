//! Where tasks keep their state: a durable store at offset S, and layers in memory above it.
//!
//! A task's state is a fold over one log partition, so a store only has to remember one consistent point of
//! that fold: the changes up to offset S, all of them or none. [`Store`] is that contract; `memory` and `sled`
//! keep it, and [`DeferredStore`] keeps it over another one that it fills later. [`TaskState`] is what operators
//! see. [`Checkpoints`] holds copies in an object store, and [`recover`] decides which checkpoint a task that is
//! new on this machine starts from.
//!
//! ```text
//! operators ── get/put/scan ──► TaskState: this epoch │ committed since S │ being written │ Store at S
//!                                                                              └─► Checkpoints (copies)
//! ```
//! Architecture invariant: only `sled.rs` and its folder name sled, and only `copies.rs` names object stores, so that
//! either can be replaced without a change elsewhere.
//! Invariant: nothing that is not committed is ever written to a store (rule R7).

mod arena;
mod copies;
mod deferred;
mod error;
mod layer;
mod manifest;
mod memory;
mod packing;
mod recovery;
mod requests;
mod sled;
mod task;
#[cfg(test)]
mod tests;

use std::ops::{Bound, ControlFlow};

pub use copies::{Checkpoints, CopyStats};
pub use deferred::{Allowance, DeferredStore};
pub use error::{Result, StateError};
pub use memory::MemoryStore;
pub use packing::{pack_length, unpack_length};
pub use recovery::{Recovered, RecoveredFrom, recover};
pub use requests::RequestCounts;
pub use sled::{SledStore, StateDir};
pub use task::{CheckpointStats, CheckpointWriter, TaskState};

/// A key and its new value; `None` deletes the key.
pub type Change<'a> = (&'a [u8], Option<&'a [u8]>);

/// What a scan calls with each key and value; `Break` ends the scan.
pub type Visitor<'a> = &'a mut dyn FnMut(&[u8], &[u8]) -> ControlFlow<()>;

/// One task's durable state at one offset of its partition.
///
/// A store has one writer at a time; readers may run beside it, and see each key of a step that is being
/// applied either before or after it (a [`TaskState`] hides those keys under its layers until the step is done).
pub trait Store: Send + Sync {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>>;

    /// Visits `from..to` in key order until the visitor returns `Break`. An empty `to` means no upper bound.
    fn scan(&self, from: &[u8], to: &[u8], visit: Visitor<'_>) -> Result<()>;

    /// Applies all changes and the offset as one atomic durable step. `changes` ascend by key, each key once.
    fn apply(&self, changes: &[Change<'_>], offset: i64) -> Result<()>;

    /// The offset of the last `apply`: everything before it is folded in. `None`: the store holds no state.
    fn offset(&self) -> Option<i64>;

    /// The fingerprint of the topology whose state this is, as the last `clear` gave it.
    fn fingerprint(&self) -> Option<String>;

    /// Empties the store; what is written from here on belongs to the topology with this fingerprint.
    fn clear(&self, fingerprint: &str) -> Result<()>;

    /// Writes changes without an offset, to build up a state that is too large for one step: between `clear`
    /// and the first `apply` only. A store that is closed before that `apply` opens empty.
    fn fill(&self, changes: &[Change<'_>]) -> Result<()>;

    /// The identity of the copy that holds exactly what this store does, layout and all. A step that changes
    /// anything forgets it.
    fn copy(&self) -> Option<String>;

    /// Remembers that a copy with this identity holds exactly what the store does.
    fn set_copy(&self, identity: &str) -> Result<()>;

    /// Whether what it says of itself will be so when it is opened again; only one that was filled may put that off.
    fn is_written(&self) -> bool {
        true
    }

    /// What opening found wrong, until `clear` repairs it. A damaged store has no offset.
    fn check(&self) -> Result<()>;
}

/// What is left of the identity of a store's copy by a step from offset `at`: all of it if the step changes nothing.
pub(crate) fn copy_after(
    copy: Option<String>,
    at: Option<i64>,
    changes: &[Change<'_>],
    offset: i64,
) -> Option<String> {
    copy.filter(|_| changes.is_empty() && at == Some(offset))
}

/// The end of the range of keys that start with `prefix`, for scans; empty (no bound) if there is none above.
pub fn prefix_end(prefix: &[u8]) -> Vec<u8> {
    let kept = prefix.iter().rposition(|&byte| byte != u8::MAX).map_or(0, |last| last + 1);
    let mut end = prefix[..kept].to_vec();
    if let Some(last) = end.last_mut() {
        *last += 1;
    }
    end
}

type ScanBounds<'a> = (Bound<&'a [u8]>, Bound<&'a [u8]>);

/// The bounds of a scan, or `None` where it can hold no key.
fn scan_bounds<'a>(from: &'a [u8], to: &'a [u8]) -> Option<ScanBounds<'a>> {
    match to {
        [] => Some((Bound::Included(from), Bound::Unbounded)),
        to if from < to => Some((Bound::Included(from), Bound::Excluded(to))),
        _ => None,
    }
}

fn debug_assert_ascending(changes: &[Change<'_>]) {
    debug_assert!(changes.is_sorted_by(|left, right| left.0 < right.0), "changes must ascend by key");
}
