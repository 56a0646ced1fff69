//! A store in memory: for replays and tests.
//!
//! Clones share their contents, so a simulated crash can drop a task and open its store again.

use std::collections::BTreeMap;
use std::ops::{Bound, ControlFlow};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use super::{Change, Result, Store, Visitor, copy_after, debug_assert_ascending, scan_bounds};

/// Rows visited under one lock: a visitor may call back into the store.
const ROWS_PER_PAGE: usize = 256;

#[derive(Clone, Default)]
pub struct MemoryStore {
    contents: Arc<RwLock<Contents>>,
}

#[derive(Default)]
struct Contents {
    rows: BTreeMap<Vec<u8>, Vec<u8>>,
    offset: Option<i64>,
    fingerprint: Option<String>,
    copy: Option<String>,
}

impl MemoryStore {
    pub fn new() -> Self {
        Self::default()
    }

    fn read(&self) -> RwLockReadGuard<'_, Contents> {
        self.contents.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Contents> {
        self.contents.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn page(&self, from: Bound<&[u8]>, to: Bound<&[u8]>) -> Vec<(Vec<u8>, Vec<u8>)> {
        let contents = self.read();
        let rows = contents.rows.range::<[u8], _>((from, to));
        rows.take(ROWS_PER_PAGE).map(|(key, value)| (key.clone(), value.clone())).collect()
    }
}

impl Contents {
    fn write(&mut self, changes: &[Change<'_>]) {
        debug_assert_ascending(changes);
        for &(key, value) in changes {
            match value {
                Some(value) => self.rows.insert(key.to_vec(), value.to_vec()),
                None => self.rows.remove(key),
            };
        }
    }
}

impl Store for MemoryStore {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>> {
        Ok(self.read().rows.get(key).cloned())
    }

    fn scan(&self, from: &[u8], to: &[u8], visit: Visitor<'_>) -> Result<()> {
        let Some((from, to)) = scan_bounds(from, to) else { return Ok(()) };
        let mut page = self.page(from, to);
        loop {
            for (key, value) in &page {
                if visit(key, value) == ControlFlow::Break(()) {
                    return Ok(());
                }
            }
            match page.last() {
                Some((last, _)) if page.len() == ROWS_PER_PAGE => page = self.page(Bound::Excluded(last), to),
                _ => return Ok(()),
            }
        }
    }

    fn apply(&self, changes: &[Change<'_>], offset: i64) -> Result<()> {
        let mut contents = self.write();
        contents.write(changes);
        contents.copy = copy_after(contents.copy.take(), contents.offset, changes, offset);
        contents.offset = Some(offset);
        Ok(())
    }

    fn offset(&self) -> Option<i64> {
        self.read().offset
    }

    fn fingerprint(&self) -> Option<String> {
        self.read().fingerprint.clone()
    }

    fn clear(&self, fingerprint: &str) -> Result<()> {
        *self.write() = Contents { fingerprint: Some(fingerprint.to_string()), ..Contents::default() };
        Ok(())
    }

    fn fill(&self, changes: &[Change<'_>]) -> Result<()> {
        self.write().write(changes);
        Ok(())
    }

    fn copy(&self) -> Option<String> {
        self.read().copy.clone()
    }

    fn set_copy(&self, identity: &str) -> Result<()> {
        self.write().copy = Some(identity.to_string());
        Ok(())
    }

    fn check(&self) -> Result<()> {
        Ok(())
    }
}
