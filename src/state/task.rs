//! One task's state as operators see it: the store at offset S and the layers above it (rule R7).
//!
//! ```text
//! epoch      what this epoch changed              commit_epoch ▼   abort_epoch: dropped
//! committed  what is committed since S (or since the frozen layer)  begin_checkpoint ▼
//! frozen     what a checkpoint is writing, or a clean copy of what the last one wrote
//! store      the state at S, exactly
//! ```
//! Invariant: an upper layer's entry hides every lower one, so a store that is half way through a step is never
//! seen: the frozen layer hides exactly the keys of that step.
//! Invariant: only committed changes are frozen.

use std::borrow::Cow;
use std::iter::Peekable;
use std::ops::ControlFlow;
use std::sync::Arc;

use super::layer::{Layer, LayerRange};
use super::{Change, Checkpoints, CopyStats, Result, Store, Visitor, scan_bounds};
use crate::planted::{Fault, planted, sized};

/// The largest layer that is kept for reads once it is written, unless [`TaskState::set_cache_bytes`] says else.
const CACHE_BYTES: usize = 32 << 20;

pub struct TaskState {
    store: Arc<dyn Store>,
    frozen: Arc<Layer>,
    /// A checkpoint is writing the frozen layer; otherwise the layer equals the store and only saves lookups.
    writing: bool,
    committed: Layer,
    epoch: Layer,
    cache_bytes: usize,
}

impl TaskState {
    pub fn new(store: Box<dyn Store>) -> Self {
        Self {
            store: Arc::from(store),
            frozen: Arc::default(),
            writing: false,
            committed: Layer::default(),
            epoch: Layer::default(),
            cache_bytes: sized(CACHE_BYTES, 2_000),
        }
    }

    /// How much of the last checkpoint's changes stays in memory to save lookups in the store.
    pub fn set_cache_bytes(&mut self, cache_bytes: usize) {
        self.cache_bytes = cache_bytes;
    }

    pub fn get(&self, key: &[u8]) -> Result<Option<Cow<'_, [u8]>>> {
        for layer in [&self.epoch, &self.committed, &*self.frozen] {
            if let Some(value) = layer.get(key) {
                return Ok(value.map(Cow::Borrowed));
            }
        }
        Ok(self.store.get(key)?.map(Cow::Owned))
    }

    pub fn put(&mut self, key: &[u8], value: &[u8]) {
        self.epoch.put(key, value);
    }

    /// Puts a key that `get` has just not found: if it is deleted before the next checkpoint, none writes anything of it.
    pub fn put_new(&mut self, key: &[u8], value: &[u8]) {
        let is_new = || !matches!(self.get(key), Ok(Some(_))) || planted(Fault::AbortKeepsEpoch);
        debug_assert!(is_new(), "a new key is there already");
        self.epoch.put_fresh(key, value);
    }

    pub fn delete(&mut self, key: &[u8]) {
        self.epoch.delete(key);
    }

    /// Visits `from..to` in key order until the visitor returns `Break`. An empty `to` means no upper bound.
    pub fn scan(&self, from: &[u8], to: &[u8], visit: Visitor<'_>) -> Result<()> {
        if scan_bounds(from, to).is_none() {
            return Ok(());
        }
        let orders = (self.epoch.order(), self.committed.order(), self.frozen.order());
        let mut overlay = Overlay {
            layers: [
                self.epoch.range(&orders.0, from, to).peekable(),
                self.committed.range(&orders.1, from, to).peekable(),
                self.frozen.range(&orders.2, from, to).peekable(),
            ],
        };
        let mut flow = ControlFlow::Continue(());
        self.store.scan(from, to, &mut |key, value| {
            flow = overlay.visit_before(key, visit);
            if flow.is_continue() {
                flow = match overlay.next_if(key) {
                    Some((_, None)) => ControlFlow::Continue(()),
                    Some((_, Some(newer))) => visit(key, newer),
                    None => visit(key, value),
                };
            }
            flow
        })?;
        if flow.is_continue() {
            while let Some((key, value)) = overlay.next() {
                if value.is_some_and(|value| visit(key, value).is_break()) {
                    break;
                }
            }
        }
        Ok(())
    }

    /// The epoch's transaction is committed: its changes are part of the state.
    pub fn commit_epoch(&mut self) {
        self.committed.absorb(&mut self.epoch);
    }

    /// The epoch's transaction is aborted: the state is again what it was at the last commit.
    pub fn abort_epoch(&mut self) {
        self.epoch.clear();
    }

    /// An estimate of the memory that changes take which no checkpoint holds yet. The clean copy of the last
    /// checkpoint's changes is not counted: no checkpoint would free it, and `set_cache_bytes` bounds it.
    pub fn memory_bytes(&self) -> usize {
        let frozen = if self.writing { self.frozen.bytes() } else { 0 };
        self.epoch.bytes() + self.committed.bytes() + frozen
    }

    /// Whether the next checkpoint writes anything.
    pub fn is_behind(&self) -> bool {
        self.memory_bytes() > 0 || !self.store.is_written()
    }

    /// What the layers have taken from the machine.
    #[cfg(test)]
    pub(super) fn memory_reserved(&self) -> usize {
        self.epoch.reserved() + self.committed.reserved() + self.frozen.reserved()
    }

    /// Writes what is committed as the checkpoint at `offset`, the committed offset; right after `commit_epoch`.
    pub fn checkpoint(&mut self, offset: i64) -> Result<CheckpointStats> {
        let written = self.begin_checkpoint(offset).write();
        match &written {
            Ok(_) => self.finish_checkpoint(),
            Err(_) => self.fail_checkpoint(),
        }
        written
    }

    /// Freezes what is committed, to be written at `offset` by another thread while epochs go on. Call
    /// `finish_checkpoint` or `fail_checkpoint` once the writer has returned, before the next one begins.
    pub fn begin_checkpoint(&mut self, offset: i64) -> CheckpointWriter {
        assert!(
            self.epoch.is_empty(),
            "a checkpoint begins right after a commit: this epoch is not committed"
        );
        assert!(!self.writing, "one checkpoint at a time: the store has one writer");
        let (previous, copy) = (self.store.offset(), self.store.copy());
        let offset = if planted(Fault::JournalRedoneTwice) { previous.unwrap_or(0) } else { offset };
        self.frozen = Arc::new(std::mem::take(&mut self.committed));
        self.writing = true;
        CheckpointWriter {
            store: Arc::clone(&self.store),
            changes: Arc::clone(&self.frozen),
            offset,
            previous,
            copy,
        }
    }

    pub fn finish_checkpoint(&mut self) {
        assert!(self.writing, "no checkpoint was begun");
        self.writing = false;
        if self.frozen.bytes() > self.cache_bytes {
            self.frozen = Arc::default();
        }
    }

    /// Takes the frozen changes back, so that the next checkpoint holds them.
    pub fn fail_checkpoint(&mut self) {
        assert!(self.writing, "no checkpoint was begun");
        self.writing = false;
        self.committed.absorb_below(&self.frozen);
        self.frozen = Arc::default();
    }
}

/// A checkpoint that is being written. It owns all it needs, so any thread can run it.
pub struct CheckpointWriter {
    store: Arc<dyn Store>,
    changes: Arc<Layer>,
    offset: i64,
    /// The store's offset before this checkpoint: what the changes are relative to.
    previous: Option<i64>,
    /// The copy that equals the store at that offset.
    copy: Option<String>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CheckpointStats {
    pub offset: i64,
    pub changes: usize,
    /// Bytes of the changed keys and values.
    pub bytes: usize,
}

impl CheckpointWriter {
    /// Writes the checkpoint to the store: durable when it returns.
    pub fn write(&self) -> Result<CheckpointStats> {
        assert!(self.previous <= Some(self.offset), "a checkpoint never goes back in the log");
        let changes = self.changes.changes();
        if !changes.is_empty() || self.previous != Some(self.offset) || !self.store.is_written() {
            self.store.apply(&changes, self.offset)?;
        }
        let bytes = changes.iter().map(|(key, value)| key.len() + value.map_or(0, <[u8]>::len)).sum();
        Ok(CheckpointStats { offset: self.offset, changes: changes.len(), bytes })
    }

    /// Copies the checkpoint that `write` has written to the object store, and before the next one is written:
    /// where the changes do not build on a copy, the whole store is copied.
    pub fn upload(&self, checkpoints: &Checkpoints, task: &str, fingerprint: &str) -> Result<CopyStats> {
        assert_eq!(self.store.offset(), Some(self.offset), "a checkpoint is copied once it is written");
        checkpoints.upload(
            task,
            fingerprint,
            self.offset,
            self.previous.zip(self.copy.as_deref()),
            &self.changes.changes(),
            &*self.store,
        )
    }
}

/// The layers' changes within a range, merged; the uppermost wins.
struct Overlay<'a> {
    layers: [Peekable<LayerRange<'a>>; 3],
}

impl<'a> Overlay<'a> {
    fn peek(&mut self) -> Option<&'a [u8]> {
        self.layers.iter_mut().filter_map(|layer| layer.peek().map(|&(key, _)| key)).min()
    }

    fn next(&mut self) -> Option<Change<'a>> {
        let key = self.peek()?;
        self.next_if(key)
    }

    /// The change of `key`, if a layer has one; that key is then done with in all layers.
    fn next_if(&mut self, key: &[u8]) -> Option<Change<'a>> {
        let mut uppermost = None;
        for layer in &mut self.layers {
            let change = layer.next_if(|change| change.0 == key);
            uppermost = uppermost.or(change);
        }
        uppermost
    }

    fn visit_before(&mut self, limit: &[u8], visit: Visitor<'_>) -> ControlFlow<()> {
        while self.peek().is_some_and(|key| key < limit) {
            if let Some((key, Some(value))) = self.next() {
                visit(key, value)?;
            }
        }
        ControlFlow::Continue(())
    }
}
