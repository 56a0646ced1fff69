//! Changes in memory: a hash table for point lookups, and an order that only scans pay for.
//!
//! Most keys are looked up and written once an epoch and never scanned. Keys and values lie in an arena, so that
//! writing one allocates nothing, and taking over a whole epoch's changes copies bytes and keeps their hashes. Keys
//! that are new since the last scan wait in a list, and the next scan sorts them in.
//!
//! An entry is *fresh* where nothing below its layer has a value for its key. Deleting it leaves nothing to be deleted
//! below, so the entry just goes: what came and went between two checkpoints is never written.
//!
//! Invariant: every entry that is not gone is in exactly one of `ordered` and `pending`.
//! Invariant: what an entry no longer needs of the arena is less than what all entries need, or little.

use std::sync::{PoisonError, RwLock, RwLockReadGuard};

use hashbrown::HashTable;
use hashbrown::hash_table::Entry as Slot;
use xxhash_rust::xxh3::xxh3_64;

use super::Change;
use super::arena::{Arena, Span};

/// What an entry costs besides its key and value: itself, its places in the table and in the order, growth.
const ENTRY_BYTES: usize = 96;
/// Waste that is not worth a rewrite.
const WASTE_MIN: usize = 256 << 10;

#[derive(Default)]
pub(super) struct Layer {
    table: HashTable<u32>,
    entries: Vec<Entry>,
    arena: Arena,
    /// Entries that are not gone.
    live: usize,
    /// An estimate of the memory that they take.
    bytes: usize,
    /// Bytes of the arena, and of entries, that nobody needs any more.
    waste: usize,
    order: RwLock<Order>,
}

struct Entry {
    hash: u64,
    /// The key, and behind it room for values.
    span: Span,
    key_length: u32,
    value_length: u32,
    kind: Kind,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Put,
    /// Put, and nothing below has a value.
    Fresh,
    Deleted,
    /// No entry any more; its number is not used again.
    Gone,
}

/// Numbers of entries.
#[derive(Default)]
pub(super) struct Order {
    ordered: Vec<u32>,
    pending: Vec<u32>,
}

impl Layer {
    pub fn is_empty(&self) -> bool {
        self.live == 0
    }

    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// `None`: the layer says nothing of this key. `Some(None)`: it deletes it.
    pub fn get(&self, key: &[u8]) -> Option<Option<&[u8]>> {
        let entry = &self.entries[self.find(xxh3_64(key), key)? as usize];
        Some(self.value(entry))
    }

    pub fn put(&mut self, key: &[u8], value: &[u8]) {
        self.set(xxh3_64(key), key, Some(value), Kind::Put);
    }

    /// Puts a key of which the caller knows that a lookup below this layer finds nothing, unless the layer has an
    /// entry of it.
    pub fn put_fresh(&mut self, key: &[u8], value: &[u8]) {
        self.set(xxh3_64(key), key, Some(value), Kind::Fresh);
    }

    pub fn delete(&mut self, key: &[u8]) {
        self.set(xxh3_64(key), key, None, Kind::Deleted);
    }

    /// `kind` is that of an entry which is not there yet.
    fn set(&mut self, hash: u64, key: &[u8], value: Option<&[u8]>, kind: Kind) {
        let (entries, arena) = (&mut self.entries, &mut self.arena);
        let same = |&number: &u32| entries[number as usize].is(hash, key, arena);
        match self.table.entry(hash, same, |&number| entries[number as usize].hash) {
            Slot::Vacant(slot) => {
                let number = entries.len() as u32;
                slot.insert(number);
                let value = value.unwrap_or_default();
                let span = arena.store(key, value);
                let (key_length, value_length) = (key.len() as u32, value.len() as u32);
                entries.push(Entry { hash, span, key_length, value_length, kind });
                self.live += 1;
                self.bytes += ENTRY_BYTES + key.len() + value.len();
                self.order_mut().pending.push(number);
            }
            Slot::Occupied(slot) => {
                let number = *slot.get() as usize;
                self.bytes -= entries[number].value_length as usize;
                match value {
                    Some(value) => {
                        let entry = &mut entries[number];
                        self.waste += entry.overwrite(value, arena);
                        self.bytes += value.len();
                        if entry.kind == Kind::Deleted {
                            entry.kind = Kind::Put;
                        }
                    }
                    None if entries[number].kind == Kind::Fresh => {
                        slot.remove();
                        self.let_go(number);
                    }
                    None => (entries[number].value_length, entries[number].kind) = (0, Kind::Deleted),
                }
                self.tidy();
            }
        }
    }

    /// The entry is in the table no more.
    fn let_go(&mut self, number: usize) {
        let entry = &mut self.entries[number];
        entry.kind = Kind::Gone;
        self.live -= 1;
        self.bytes -= ENTRY_BYTES + entry.key_length as usize;
        self.waste += ENTRY_BYTES + entry.span.length();
    }

    /// Moves all entries of `upper` into this layer; they win over its own. `upper` keeps some of its room.
    pub fn absorb(&mut self, upper: &mut Layer) {
        if self.is_empty() {
            std::mem::swap(self, upper);
        } else {
            for entry in upper.entries.iter().filter(|entry| entry.kind != Kind::Gone) {
                // Below the upper layer is this one: where it has an entry, that one's kind says what is below both.
                self.set(entry.hash, entry.key(&upper.arena), upper.value(entry), entry.kind);
            }
        }
        upper.clear();
    }

    /// Takes over the entries of `lower`, the layer below, that this layer says nothing of.
    pub fn absorb_below(&mut self, lower: &Layer) {
        for entry in lower.entries.iter().filter(|entry| entry.kind != Kind::Gone) {
            let key = entry.key(&lower.arena);
            match self.find(entry.hash, key) {
                // What `lower` hid is below this entry now.
                Some(own) => self.entries[own as usize].outlive(),
                None => {
                    let kind = if entry.kind == Kind::Deleted { Kind::Deleted } else { Kind::Put };
                    self.set(entry.hash, key, lower.value(entry), kind);
                }
            }
        }
    }

    /// Empties the layer; it keeps room for the next epoch.
    pub fn clear(&mut self) {
        self.table.clear();
        self.entries.clear();
        self.arena.clear();
        (self.live, self.bytes, self.waste) = (0, 0, 0);
        let order = self.order_mut();
        order.ordered.clear();
        order.pending.clear();
    }

    /// All changes in key order.
    pub fn changes(&self) -> Vec<Change<'_>> {
        let live = self.entries.iter().filter(|entry| entry.kind != Kind::Gone);
        let mut changes: Vec<Change<'_>> =
            live.map(|entry| (entry.key(&self.arena), self.value(entry))).collect();
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
        self.sort_in(&mut self.order.write().unwrap_or_else(PoisonError::into_inner));
        self.order.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn sort_in(&self, order: &mut Order) {
        let Order { ordered, pending } = order;
        pending.retain(|&number| !self.is_gone(number));
        // Keys of an epoch come sorted: a stable sort finds such runs and only merges them.
        pending.sort_by(|&left, &right| self.key(left).cmp(self.key(right)));
        let Some(&first) = pending.first() else { return };
        let kept = ordered.partition_point(|&number| self.key(number) < self.key(first));
        let tail = ordered.split_off(kept);
        let mut tail = tail.into_iter().filter(|&number| !self.is_gone(number)).peekable();
        for number in pending.drain(..) {
            while let Some(before) = tail.next_if(|&other| self.key(other) < self.key(number)) {
                ordered.push(before);
            }
            ordered.push(number);
        }
        ordered.extend(tail);
    }

    /// The changes of `from..to` (no end where `to` is empty), in key order.
    pub fn range<'a>(&'a self, order: &'a Order, from: &[u8], to: &[u8]) -> LayerRange<'a> {
        let before = |bound: &[u8]| order.ordered.partition_point(|&number| self.key(number) < bound);
        let end = if to.is_empty() { order.ordered.len() } else { before(to) };
        LayerRange { layer: self, numbers: order.ordered[before(from).min(end)..end].iter() }
    }

    /// Writes what is still needed anew, once that is the smaller part.
    fn tidy(&mut self) {
        if self.waste <= WASTE_MIN.max(self.bytes) {
            return;
        }
        let mut numbers = vec![u32::MAX; self.entries.len()];
        let mut arena = Arena::default();
        let mut entries = Vec::with_capacity(self.live);
        for (number, entry) in self.entries.iter().enumerate().filter(|(_, entry)| entry.kind != Kind::Gone) {
            numbers[number] = entries.len() as u32;
            let span = arena.store(entry.key(&self.arena), self.value(entry).unwrap_or_default());
            entries.push(Entry { span, ..*entry });
        }
        let order = self.order_mut();
        for list in [&mut order.ordered, &mut order.pending] {
            list.retain_mut(|number| {
                *number = numbers[*number as usize];
                *number != u32::MAX
            });
        }
        self.table.clear();
        for (number, entry) in entries.iter().enumerate() {
            self.table.insert_unique(entry.hash, number as u32, |&other| entries[other as usize].hash);
        }
        (self.entries, self.arena, self.waste) = (entries, arena, 0);
    }

    fn find(&self, hash: u64, key: &[u8]) -> Option<u32> {
        let same = |&number: &u32| self.entries[number as usize].is(hash, key, &self.arena);
        self.table.find(hash, same).copied()
    }

    fn key(&self, number: u32) -> &[u8] {
        self.entries[number as usize].key(&self.arena)
    }

    fn value(&self, entry: &Entry) -> Option<&[u8]> {
        (entry.kind != Kind::Deleted).then(|| {
            let start = entry.key_length as usize;
            &self.arena.bytes(entry.span)[start..start + entry.value_length as usize]
        })
    }

    fn is_gone(&self, number: u32) -> bool {
        self.entries[number as usize].kind == Kind::Gone
    }

    /// What the layer has taken from the machine.
    #[cfg(test)]
    pub fn reserved(&self) -> usize {
        self.arena.reserved() + self.entries.capacity() * size_of::<Entry>() + self.table.capacity() * 4
    }

    fn order_mut(&mut self) -> &mut Order {
        self.order.get_mut().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Entry {
    fn is(&self, hash: u64, key: &[u8], arena: &Arena) -> bool {
        self.hash == hash && self.key(arena) == key
    }

    fn key<'a>(&self, arena: &'a Arena) -> &'a [u8] {
        &arena.bytes(self.span)[..self.key_length as usize]
    }

    /// Replaces the value; how many bytes of the arena are waste for it.
    fn overwrite(&mut self, value: &[u8], arena: &mut Arena) -> usize {
        self.value_length = value.len() as u32;
        let start = self.key_length as usize;
        if let Some(room) = arena.bytes_mut(self.span).get_mut(start..start + value.len()) {
            room.copy_from_slice(value);
            return 0;
        }
        let old = self.span;
        self.span = arena.store_behind(old, start, value);
        old.length()
    }

    fn outlive(&mut self) {
        if self.kind == Kind::Fresh {
            self.kind = Kind::Put;
        }
    }
}

/// The changes of one layer within a range, in key order.
pub(super) struct LayerRange<'a> {
    layer: &'a Layer,
    numbers: std::slice::Iter<'a, u32>,
}

impl<'a> Iterator for LayerRange<'a> {
    type Item = Change<'a>;

    fn next(&mut self) -> Option<Change<'a>> {
        let layer = self.layer;
        let number = self.numbers.find(|&&number| !layer.is_gone(number))?;
        let entry = &layer.entries[*number as usize];
        Some((entry.key(&layer.arena), layer.value(entry)))
    }
}
