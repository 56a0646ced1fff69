//! Changes in memory: a hash map for point lookups, and an order that only scans pay for.
//!
//! Most keys are looked up and written once an epoch and never scanned. A hash map serves those several times
//! faster than an ordered map once a layer holds many keys. Keys that are new since the last scan wait in a
//! list, and the next scan sorts them in.
//! Invariant: every key of `entries` is in exactly one of `ordered` and `pending`.
//! Invariant: the order of the hash map, which differs from run to run, is never shown.

use std::collections::{BTreeSet, btree_set};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};

use hashbrown::HashMap;
use hashbrown::hash_map::{Entry, EntryRef};

use super::{Change, scan_bounds};

/// What an entry costs besides its key and value: the map's slot, the key's place in the order, two headers.
const ENTRY_BYTES: usize = 128;

#[derive(Default)]
pub(super) struct Layer {
    entries: HashMap<Arc<[u8]>, Option<Vec<u8>>>,
    bytes: usize,
    order: RwLock<Order>,
}

#[derive(Default)]
pub(super) struct Order {
    ordered: BTreeSet<Arc<[u8]>>,
    pending: Vec<Arc<[u8]>>,
}

impl Layer {
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// An estimate of the memory that the layer's entries take.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// `None`: the layer says nothing of this key. `Some(None)`: it deletes it.
    pub fn get(&self, key: &[u8]) -> Option<Option<&[u8]>> {
        self.entries.get(key).map(Option::as_deref)
    }

    pub fn set(&mut self, key: &[u8], value: Option<Vec<u8>>) {
        self.bytes += value_bytes(&value);
        match self.entries.entry_ref(key) {
            EntryRef::Occupied(mut entry) => self.bytes -= value_bytes(&entry.insert(value)),
            EntryRef::Vacant(entry) => {
                self.bytes += ENTRY_BYTES + key.len();
                let key = Arc::clone(entry.insert_entry(value).key());
                order_mut(&mut self.order).pending.push(key);
            }
        }
    }

    /// Moves all entries of `upper` into this layer; they win over its own. `upper` keeps its capacity.
    pub fn absorb(&mut self, upper: &mut Layer) {
        if self.is_empty() {
            std::mem::swap(self, upper);
            return;
        }
        for (key, value) in upper.entries.drain() {
            self.bytes += value_bytes(&value);
            match self.entries.entry(key) {
                Entry::Occupied(mut entry) => self.bytes -= value_bytes(&entry.insert(value)),
                Entry::Vacant(entry) => {
                    self.bytes += ENTRY_BYTES + entry.key().len();
                    let key = Arc::clone(entry.key());
                    entry.insert(value);
                    order_mut(&mut self.order).pending.push(key);
                }
            }
        }
        upper.clear();
    }

    /// Takes over the entries of `lower` that this layer says nothing of.
    pub fn absorb_below(&mut self, lower: &Layer) {
        for (key, value) in &lower.entries {
            if !self.entries.contains_key(key) {
                self.set(key, value.clone());
            }
        }
    }

    /// Empties the layer; its tables keep their capacity for the next epoch.
    pub fn clear(&mut self) {
        self.entries.clear();
        self.bytes = 0;
        let order = order_mut(&mut self.order);
        order.ordered.clear();
        order.pending.clear();
    }

    /// All changes in key order.
    pub fn changes(&self) -> Vec<Change<'_>> {
        let mut changes: Vec<Change<'_>> =
            self.entries.iter().map(|(key, value)| (&key[..], value.as_deref())).collect();
        changes.sort_unstable_by_key(|&(key, _)| key);
        changes
    }

    /// The keys in order, brought up to date. Only a layer's owner may scan it: a frozen layer's other reader,
    /// the checkpoint writer, sorts for itself, so nobody waits to write while the guard is held.
    pub fn order(&self) -> RwLockReadGuard<'_, Order> {
        let order = self.order.read().unwrap_or_else(PoisonError::into_inner);
        if order.pending.is_empty() {
            return order;
        }
        drop(order);
        self.order.write().unwrap_or_else(PoisonError::into_inner).sort_in();
        self.order.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn range<'a>(&'a self, order: &'a Order, from: &'a [u8], to: &'a [u8]) -> LayerRange<'a> {
        LayerRange {
            layer: self,
            keys: scan_bounds(from, to).map(|bounds| order.ordered.range::<[u8], _>(bounds)),
        }
    }
}

impl Order {
    fn sort_in(&mut self) {
        if self.ordered.is_empty() {
            // Building a tree from a list sorts it once and fills whole nodes.
            self.ordered = std::mem::take(&mut self.pending).into_iter().collect();
        } else {
            // In order, each key goes in beside the one before, where the tree's nodes are at hand.
            self.pending.sort_unstable();
            self.ordered.extend(self.pending.drain(..));
        }
    }
}

/// The changes of one layer within a range, in key order.
pub(super) struct LayerRange<'a> {
    layer: &'a Layer,
    keys: Option<btree_set::Range<'a, Arc<[u8]>>>,
}

impl<'a> Iterator for LayerRange<'a> {
    type Item = Change<'a>;

    fn next(&mut self) -> Option<Change<'a>> {
        let key = self.keys.as_mut()?.next()?;
        Some((key, self.layer.entries.get(key).and_then(Option::as_deref)))
    }
}

fn order_mut(order: &mut RwLock<Order>) -> &mut Order {
    order.get_mut().unwrap_or_else(PoisonError::into_inner)
}

fn value_bytes(value: &Option<Vec<u8>>) -> usize {
    value.as_ref().map_or(0, Vec::capacity)
}
