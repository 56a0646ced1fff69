//! Where a task that is new on this machine starts: the newest checkpoint that can be trusted.
//!
//! Invariant: what is chosen lies between the log's start and the committed offset (rule R2). Below the start,
//! records that it lacks are gone; above the committed offset it holds what was never committed.

use super::{Checkpoints, Result, StateError, Store};
use crate::planted::{Fault, planted};

/// Where the fold over the log goes on.
#[derive(Debug)]
pub struct Recovered {
    /// The store's offset: the fold goes on from here, muted up to the committed offset.
    pub offset: i64,
    pub from: RecoveredFrom,
    /// Checkpoints that could not be used, and why: for the user to read.
    pub warnings: Vec<StateError>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RecoveredFrom {
    /// The store as it lay on this machine.
    Local,
    /// A copy in the object store, loaded into the store.
    Copy,
    /// Nothing: the store is empty and the whole log is folded again.
    Log,
}

/// Brings the store to the highest checkpoint at or between `log_start` and `committed`, local or a copy. One
/// that is damaged or of another topology is reported and the next older one is taken; without any, the log
/// itself will do if it is whole.
pub fn recover(
    task: &str,
    store: &dyn Store,
    checkpoints: Option<&Checkpoints>,
    fingerprint: &str,
    log_start: i64,
    committed: i64,
) -> Result<Recovered> {
    let mut warnings = Vec::new();
    let found = local_offset(task, store, fingerprint, &mut warnings);
    if let Some(offset) = found.filter(|_| planted(Fault::OldCheckpoint)) {
        return Ok(Recovered { offset, from: RecoveredFrom::Local, warnings });
    }
    let local = found.filter(|offset| (log_start..=committed).contains(offset));
    let mut damaged_seed = false;
    // A copy could only shorten the fold where there is a local checkpoint.
    let checkpoints =
        checkpoints.map(|copies| if local.is_some() { copies.hurried() } else { copies.clone() });
    let copies = match checkpoints.as_ref().map_or(Ok(Vec::new()), |checkpoints| checkpoints.list(task)) {
        Err(error @ StateError::Unreachable(_)) if local.is_some() => {
            warnings.push(error);
            Vec::new()
        }
        copies => copies?,
    };
    if let Some(checkpoints) = &checkpoints {
        let newer = |offset: &&i64| {
            (log_start..=committed).contains(*offset) && local.is_none_or(|local| **offset > local)
        };
        for &offset in copies.iter().rev().filter(newer) {
            // A local checkpoint that is older but good must not be lost to a copy that turns out to be damaged.
            let loaded = match local {
                Some(_) => checkpoints.verify(task, offset, fingerprint),
                None => Ok(()),
            };
            match loaded.and_then(|()| checkpoints.load(task, offset, fingerprint, store)) {
                Ok(()) => return Ok(Recovered { offset, from: RecoveredFrom::Copy, warnings }),
                Err(
                    error @ (StateError::Corrupt { .. }
                    | StateError::OtherTopology { .. }
                    | StateError::OtherFormat { .. }),
                ) => {
                    damaged_seed |= offset == 0 && !matches!(error, StateError::OtherTopology { .. });
                    warnings.push(error);
                }
                // The store went away: what lies here will do, if it is still whole.
                Err(error @ StateError::Unreachable(_)) if local.is_some() && store.offset() == local => {
                    warnings.push(error);
                    break;
                }
                Err(error) => return Err(error),
            }
        }
    }
    // A copy that went bad between its check and its loading has emptied the store.
    if let Some(offset) = local.filter(|_| store.offset() == local) {
        return Ok(Recovered { offset, from: RecoveredFrom::Local, warnings });
    }
    // A checkpoint at offset 0 holds what a replay left (rule R9): the log alone does not give that.
    if (log_start > 0 || damaged_seed) && !planted(Fault::FoldsWhatIsLeft) {
        let mut list: Vec<String> = warnings.iter().map(ToString::to_string).collect();
        let outside = copies.iter().chain(&found).filter(|offset| !(log_start..=committed).contains(*offset));
        list.extend(outside.map(|offset| format!("there is one at {offset}, outside that range")));
        let reasons = if list.is_empty() { String::new() } else { format!(": {}", list.join("; ")) };
        return Err(StateError::NoCheckpoint { task: task.to_string(), log_start, committed, reasons });
    }
    store.clear(fingerprint)?;
    Ok(Recovered { offset: 0, from: RecoveredFrom::Log, warnings })
}

/// The local store's offset, if its state is whole and this topology's.
fn local_offset(
    task: &str,
    store: &dyn Store,
    fingerprint: &str,
    warnings: &mut Vec<StateError>,
) -> Option<i64> {
    if let Err(damage) = store.check() {
        warnings.push(damage);
        return None;
    }
    let offset = store.offset()?;
    match store.fingerprint() {
        Some(found) if found == fingerprint => Some(offset),
        found => {
            warnings.push(StateError::OtherTopology {
                place: format!("the local store of task {task}"),
                found: found.unwrap_or_else(|| "unknown".to_string()),
                expected: fingerprint.to_string(),
            });
            None
        }
    }
}
