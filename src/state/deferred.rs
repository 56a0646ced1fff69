//! A store that writes later what a copy filled it with: until its first step, those rows lie in memory.
//!
//! A durable store takes ten times as long to fill as the copy takes to read, and a task that recovers would wait for
//! it. The copy has the rows, so a crash loses nothing: a store that is closed before its first step opens empty, as
//! one does that is closed while it is filled.
//!
//! ```text
//! clear ─► filling ── apply(nothing, S) ─► loaded at S ── apply(changes, S') ─► all written, at S'
//!             └ no allowance left, or changes: all is written at once
//! ```
//! Invariant: of the rows that a copy filled in, all lie in memory or none.
//! Invariant: what the stores of a process hold in memory is at most their allowance and one `fill`.

use std::ops::ControlFlow;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use super::layer::Layer;
use super::{Change, Result, Store, Visitor, copy_after, scan_bounds};

pub struct DeferredStore {
    inner: Box<dyn Store>,
    allowance: Arc<Allowance>,
    phase: RwLock<Phase>,
}

enum Phase {
    /// Everything is in the store below.
    Written,
    /// Cleared, and being filled: the store below is empty.
    Filling(Rows),
    /// Filled: the store below is still empty.
    Loaded { rows: Arc<Rows>, offset: i64, copy: Option<String> },
}

/// Bytes of memory that the stores of a process share.
pub struct Allowance {
    left: AtomicUsize,
}

impl Allowance {
    pub fn new(bytes: usize) -> Arc<Self> {
        Arc::new(Self { left: AtomicUsize::new(bytes) })
    }
}

/// Rows in memory, and what of the allowance they have.
struct Rows {
    layer: Layer,
    allowance: Arc<Allowance>,
    taken: usize,
}

impl Rows {
    fn new(allowance: &Arc<Allowance>) -> Self {
        Self { layer: Layer::default(), allowance: Arc::clone(allowance), taken: 0 }
    }

    /// False: they have more than they may.
    fn add(&mut self, changes: &[Change<'_>]) -> bool {
        for &(key, value) in changes {
            match value {
                Some(value) => self.layer.put_fresh(key, value),
                None => self.layer.delete(key),
            }
        }
        let more = self.layer.bytes().saturating_sub(self.taken);
        let left = &self.allowance.left;
        let allowed =
            left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(more)).is_ok();
        self.taken += if allowed { more } else { 0 };
        allowed
    }

    fn get(&self, key: &[u8]) -> Option<Vec<u8>> {
        self.layer.get(key).flatten().map(<[u8]>::to_vec)
    }

    fn scan(&self, from: &[u8], to: &[u8], visit: Visitor<'_>) {
        let order = self.layer.order();
        for (key, value) in self.layer.range(&order, from, to) {
            if value.is_some_and(|value| visit(key, value) == ControlFlow::Break(())) {
                return;
            }
        }
    }
}

impl Drop for Rows {
    fn drop(&mut self) {
        self.allowance.left.fetch_add(self.taken, Ordering::Relaxed);
    }
}

impl DeferredStore {
    pub fn new(inner: Box<dyn Store>, allowance: &Arc<Allowance>) -> Self {
        Self { inner, allowance: Arc::clone(allowance), phase: RwLock::new(Phase::Written) }
    }

    fn phase(&self) -> RwLockReadGuard<'_, Phase> {
        self.phase.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn phase_mut(&self) -> RwLockWriteGuard<'_, Phase> {
        self.phase.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is filled in goes to the store below from here on.
    fn write_out(&self, phase: &mut Phase) -> Result<()> {
        match std::mem::replace(phase, Phase::Written) {
            Phase::Filling(rows) if !rows.layer.is_empty() => self.inner.fill(&rows.layer.changes()),
            _ => Ok(()),
        }
    }
}

impl Store for DeferredStore {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>> {
        match &*self.phase() {
            Phase::Written => {}
            Phase::Filling(rows) => return Ok(rows.get(key)),
            Phase::Loaded { rows, .. } => return Ok(rows.get(key)),
        }
        self.inner.get(key)
    }

    fn scan(&self, from: &[u8], to: &[u8], visit: Visitor<'_>) -> Result<()> {
        if scan_bounds(from, to).is_none() {
            return Ok(());
        }
        // The lock is not held while a visitor runs: it may call back, and a writer may be waiting by then.
        let rows = match &*self.phase() {
            Phase::Written => None,
            Phase::Filling(rows) => {
                rows.scan(from, to, visit);
                return Ok(());
            }
            Phase::Loaded { rows, .. } => Some(Arc::clone(rows)),
        };
        match rows {
            None => self.inner.scan(from, to, visit),
            Some(rows) => {
                rows.scan(from, to, visit);
                Ok(())
            }
        }
    }

    fn apply(&self, changes: &[Change<'_>], offset: i64) -> Result<()> {
        let loaded = {
            let mut phase = self.phase_mut();
            match &mut *phase {
                Phase::Filling(rows) if changes.is_empty() && !rows.layer.is_empty() => {
                    let rows = Arc::new(std::mem::replace(rows, Rows::new(&self.allowance)));
                    // Sorted now: from here on the rows are only read, by several threads.
                    drop(rows.layer.order());
                    *phase = Phase::Loaded { rows, offset, copy: None };
                    return Ok(());
                }
                Phase::Loaded { rows, offset: at, copy } => {
                    let copy = copy_after(copy.clone(), Some(*at), changes, offset);
                    Some((Arc::clone(rows), copy))
                }
                Phase::Filling(_) | Phase::Written => {
                    self.write_out(&mut phase)?;
                    None
                }
            }
        };
        // Where this fails half way, the rows are still in memory and are filled in again next time; unless the step was
        // done all the same, and what it changed must not be undone.
        if let Some((rows, _)) = loaded.as_ref().filter(|_| self.inner.offset().is_none()) {
            self.inner.fill(&rows.layer.changes())?;
        }
        self.inner.apply(changes, offset)?;
        if let Some(copy) = loaded.and_then(|(_, copy)| copy) {
            self.inner.set_copy(&copy)?;
        }
        *self.phase_mut() = Phase::Written;
        Ok(())
    }

    fn offset(&self) -> Option<i64> {
        match &*self.phase() {
            Phase::Loaded { offset, .. } => Some(*offset),
            Phase::Written | Phase::Filling(_) => self.inner.offset(),
        }
    }

    fn copy(&self) -> Option<String> {
        match &*self.phase() {
            Phase::Loaded { copy, .. } => copy.clone(),
            Phase::Written | Phase::Filling(_) => self.inner.copy(),
        }
    }

    fn set_copy(&self, identity: &str) -> Result<()> {
        match &mut *self.phase_mut() {
            Phase::Loaded { copy, .. } => *copy = Some(identity.to_string()),
            Phase::Written | Phase::Filling(_) => self.inner.set_copy(identity)?,
        }
        Ok(())
    }

    fn fingerprint(&self) -> Option<String> {
        self.inner.fingerprint()
    }

    fn clear(&self, fingerprint: &str) -> Result<()> {
        let mut phase = self.phase_mut();
        self.inner.clear(fingerprint)?;
        *phase = Phase::Filling(Rows::new(&self.allowance));
        Ok(())
    }

    fn fill(&self, changes: &[Change<'_>]) -> Result<()> {
        let mut phase = self.phase_mut();
        match &mut *phase {
            Phase::Filling(rows) => match rows.add(changes) {
                true => Ok(()),
                false => self.write_out(&mut phase),
            },
            Phase::Written | Phase::Loaded { .. } => self.inner.fill(changes),
        }
    }

    fn is_written(&self) -> bool {
        !matches!(*self.phase(), Phase::Loaded { .. })
    }

    fn check(&self) -> Result<()> {
        self.inner.check()
    }
}
