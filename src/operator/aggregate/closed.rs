//! Groups of closed windows: kept until the retention has passed, so that they can still be corrected.
//!
//! Hardly any is ever looked at again, so many lie in one value of the state, a block:
//! ```text
//! key    operator's id │ 1 │ key of the block's first group
//! value  version u8 │ CRC-32C of what follows │ per group: key length, row length (LEB128), key, row
//! ```
//! Keys within a block are without the window, which is the block's.
//!
//! Invariant: the groups of a block ascend by key, and all of them belong to one window.
//! Invariant: a block covers the keys from its first one to the next block's; the first of a window, all before, too.

use std::collections::BTreeMap;
use std::ops::{ControlFlow, Range};

use super::super::Result;
use super::super::evaluate::failed;
use super::codec::{HEAD, VERSION, opened};
use super::keys::WINDOW_PREFIX_BYTES;
use crate::planted::{note, sized};
use crate::state::{TaskState, pack_length, prefix_end, unpack_length};

/// The store keeps values of up to this whole; longer ones lie in pieces.
const BLOCK_BYTES_MAX: usize = 3_900;

/// A group's key, and the row of its state; `None` where nothing is left of it.
pub(super) type GroupChange<'a> = (&'a [u8], Option<&'a [u8]>);

pub(super) struct ClosedGroups {
    view: std::sync::Arc<str>,
    /// What the keys of all blocks begin with.
    prefix: [u8; 2],
}

/// A block and those of the changes at hand that fall into it.
struct Touched {
    key: Vec<u8>,
    value: Vec<u8>,
    changes: Range<usize>,
}

impl ClosedGroups {
    pub(super) fn new(view: std::sync::Arc<str>, prefix: [u8; 2]) -> Self {
        Self { view, prefix }
    }

    /// Keeps groups of windows that close now. Keys ascend, and none of these windows has kept a key at or above.
    pub(super) fn keep<'a>(&self, state: &mut TaskState, groups: impl Iterator<Item = (&'a [u8], &'a [u8])>) {
        let mut packer = Packer::new(self.prefix);
        for (key, row) in groups {
            packer.add(window(key), own(key), row, &mut |key, value| state.put_new(key, value));
        }
        packer.end(&mut |key, value| state.put_new(key, value));
    }

    /// Calls `found` with the number and the row of each of the keys that is kept. Keys ascend.
    pub(super) fn read(
        &self,
        state: &TaskState,
        keys: &[&[u8]],
        found: &mut dyn FnMut(usize, &[u8]),
    ) -> Result<()> {
        let changes: Vec<GroupChange<'_>> = keys.iter().map(|&key| (key, None)).collect();
        for touched in self.touched(state, &changes)? {
            let mut wanted = touched.changes.peekable();
            for (key, row) in self.groups(&touched.value)? {
                while wanted.next_if(|&number| own(keys[number]) < key).is_some() {}
                if let Some(number) = wanted.next_if(|&number| own(keys[number]) == key) {
                    found(number, row);
                }
            }
        }
        Ok(())
    }

    /// Changes groups, and adds those that are new. Keys ascend.
    pub(super) fn write(&self, state: &mut TaskState, changes: &[GroupChange<'_>]) -> Result<()> {
        let touched = self.touched(state, changes)?;
        let mut untouched = 0;
        for block in touched {
            self.add_blocks(state, &changes[untouched..block.changes.start]);
            untouched = block.changes.end;
            let mut groups: BTreeMap<&[u8], &[u8]> = self.groups(&block.value)?.into_iter().collect();
            for &(key, row) in &changes[block.changes] {
                match row {
                    Some(row) => groups.insert(own(key), row),
                    None => groups.remove(own(key)),
                };
            }
            state.delete(&block.key);
            let mut packer = Packer::new(self.prefix);
            let window = window(&block.key[self.prefix.len()..]);
            for (key, row) in groups {
                packer.add(window, key, row, &mut |key, value| state.put(key, value));
            }
            packer.end(&mut |key, value| state.put(key, value));
        }
        self.add_blocks(state, &changes[untouched..]);
        Ok(())
    }

    /// Groups of windows of which nothing is kept yet.
    fn add_blocks(&self, state: &mut TaskState, changes: &[GroupChange<'_>]) {
        let mut packer = Packer::new(self.prefix);
        for (key, row) in changes {
            if let Some(row) = row {
                packer.add(window(key), own(key), row, &mut |key, value| state.put(key, value));
            }
        }
        packer.end(&mut |key, value| state.put(key, value));
    }

    /// The blocks that changes fall into, in order. Changes of windows without a block fall into none.
    fn touched(&self, state: &TaskState, changes: &[GroupChange<'_>]) -> Result<Vec<Touched>> {
        let mut touched = Vec::new();
        let mut start = 0;
        for window in changes.chunk_by(|left, right| window(left.0) == window(right.0)) {
            self.touched_of_window(state, window, start, &mut touched)?;
            start += window.len();
        }
        Ok(touched)
    }

    /// `start`: the number of the window's first change.
    fn touched_of_window(
        &self,
        state: &TaskState,
        changes: &[GroupChange<'_>],
        start: usize,
        touched: &mut Vec<Touched>,
    ) -> Result<()> {
        let from = [&self.prefix[..], window(changes[0].0)].concat();
        let mut done = 0;
        let mut before: Option<(Vec<u8>, Vec<u8>)> = None;
        let mut take = |block: Option<(Vec<u8>, Vec<u8>)>, until: usize| {
            if let Some((key, value)) = block
                && done < until
            {
                touched.push(Touched { key, value, changes: start + done..start + until });
                done = until;
            }
            done == changes.len()
        };
        state.scan(&from, &prefix_end(&from), &mut |key, value| {
            let below = changes.partition_point(|change| change.0 < &key[self.prefix.len()..]);
            // What is below the first block is covered by it.
            if before.is_some() && take(before.take(), below) {
                return ControlFlow::Break(());
            }
            before = Some((key.to_vec(), value.to_vec()));
            ControlFlow::Continue(())
        })?;
        take(before, changes.len());
        Ok(())
    }

    /// The groups of a block: keys without the window, and rows.
    fn groups<'a>(&self, value: &'a [u8]) -> Result<Vec<(&'a [u8], &'a [u8])>> {
        let groups = opened(value).and_then(|mut rest| {
            let mut groups = Vec::new();
            while !rest.is_empty() {
                let key_length = unpack_length(&mut rest)?;
                let row_length = unpack_length(&mut rest)?;
                let (key, behind) = rest.split_at_checked(key_length)?;
                let (row, behind) = behind.split_at_checked(row_length)?;
                groups.push((key, row));
                rest = behind;
            }
            Some(groups)
        });
        groups.ok_or_else(|| {
            let what = "the state of closed windows is damaged or of another version of headwater; delete the state \
                        directory, so that it is rebuilt from a checkpoint copy or the log";
            failed(&self.view, what)
        })
    }
}

fn window(key: &[u8]) -> &[u8] {
    &key[..WINDOW_PREFIX_BYTES]
}

/// A group's key without its window.
fn own(key: &[u8]) -> &[u8] {
    &key[WINDOW_PREFIX_BYTES..]
}

/// Fills blocks one after the other.
struct Packer {
    prefix: [u8; 2],
    /// Key and value of the block that is being filled.
    key: Vec<u8>,
    value: Vec<u8>,
}

impl Packer {
    fn new(prefix: [u8; 2]) -> Self {
        Self { prefix, key: Vec::new(), value: Vec::new() }
    }

    /// Adds a group: its window, its key without that, and its row.
    fn add(&mut self, window: &[u8], own: &[u8], row: &[u8], full: &mut dyn FnMut(&[u8], &[u8])) {
        let is_of_block = self.key.get(self.prefix.len()..).is_some_and(|first| first.starts_with(window));
        // Their lengths take at most 10 bytes.
        let is_full = self.value.len() + own.len() + row.len() + 10 > sized(BLOCK_BYTES_MAX, 200);
        if !is_of_block || is_full {
            if is_of_block {
                note("closed windows take several blocks");
            }
            self.end(full);
            self.key.clear();
            self.key.extend_from_slice(&self.prefix);
            self.key.extend_from_slice(window);
            self.key.extend_from_slice(own);
            self.value.extend_from_slice(&[VERSION, 0, 0, 0, 0]);
        }
        pack_length(own.len(), &mut self.value);
        pack_length(row.len(), &mut self.value);
        self.value.extend_from_slice(own);
        self.value.extend_from_slice(row);
    }

    /// Hands over the last block.
    fn end(&mut self, full: &mut dyn FnMut(&[u8], &[u8])) {
        if self.value.len() > HEAD {
            let checksum = crc32c::crc32c(&self.value[HEAD..]).to_le_bytes();
            self.value[1..HEAD].copy_from_slice(&checksum);
            full(&self.key, &self.value);
        }
        self.value.clear();
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::super::keys::window_prefix;
    use super::*;
    use crate::state::MemoryStore;

    fn key(window: i64, own: &[u8]) -> Vec<u8> {
        [&window_prefix(window)[..], own].concat()
    }

    fn closed() -> (ClosedGroups, TaskState) {
        (ClosedGroups::new("view".into(), [7, 1]), TaskState::new(Box::new(MemoryStore::default())))
    }

    fn all(closed: &ClosedGroups, state: &TaskState) -> BTreeMap<Vec<u8>, Vec<u8>> {
        let mut groups = BTreeMap::new();
        let scanned = state.scan(&closed.prefix, &prefix_end(&closed.prefix), &mut |block, value| {
            assert!(value.len() <= BLOCK_BYTES_MAX || closed.groups(value).unwrap().len() == 1);
            let block = &block[closed.prefix.len()..];
            for (number, (own, row)) in closed.groups(value).unwrap().into_iter().enumerate() {
                let key = [window(block), own].concat();
                assert!(number > 0 || key == block, "a block is named by its first group");
                assert_eq!(groups.insert(key, row.to_vec()), None, "a group stands twice");
            }
            ControlFlow::Continue(())
        });
        scanned.unwrap();
        groups
    }

    proptest! {
        /// However groups are kept, changed, added and taken back, what is there is what a map would hold.
        #[test]
        fn blocks_are_a_sorted_map(
            kept in prop::collection::btree_map((0i64..3, prop::collection::vec(any::<u8>(), 0..3)), 0..1500usize, 0..60),
            steps in prop::collection::vec(
                prop::collection::btree_map(
                    (0i64..5, prop::collection::vec(any::<u8>(), 0..3)),
                    prop::option::weighted(0.7, prop_oneof![9 => 0..700usize, 1 => 3_000..5_000usize]),
                    1..40,
                ),
                0..6,
            ),
        ) {
            let (closed, mut state) = closed();
            let row = |length: usize| vec![length as u8; length];
            let mut model: BTreeMap<Vec<u8>, Vec<u8>> =
                kept.iter().map(|((window, own), &length)| (key(*window, own), row(length))).collect();
            closed.keep(&mut state, model.iter().map(|(key, row)| (&key[..], &row[..])));
            prop_assert_eq!(all(&closed, &state), model.clone());
            for step in steps {
                let changes: Vec<(Vec<u8>, Option<Vec<u8>>)> = step
                    .iter()
                    .map(|((window, own), length)| (key(*window, own), length.map(row)))
                    .collect();
                let keys: Vec<&[u8]> = changes.iter().map(|(key, _)| &key[..]).collect();
                let mut found = BTreeMap::new();
                closed.read(&state, &keys, &mut |number, row| { found.insert(keys[number].to_vec(), row.to_vec()); }).unwrap();
                let expected: BTreeMap<Vec<u8>, Vec<u8>> =
                    keys.iter().filter_map(|&key| Some((key.to_vec(), model.get(key)?.clone()))).collect();
                prop_assert_eq!(found, expected);
                let borrowed: Vec<GroupChange<'_>> = changes.iter().map(|(key, row)| (&key[..], row.as_deref())).collect();
                closed.write(&mut state, &borrowed).unwrap();
                for (key, row) in changes {
                    match row {
                        Some(row) => model.insert(key, row),
                        None => model.remove(&key),
                    };
                }
                prop_assert_eq!(all(&closed, &state), model.clone());
                state.commit_epoch();
            }
        }

        #[test]
        fn any_bytes_are_a_block_or_an_error(bytes: Vec<u8>) {
            let (closed, _) = closed();
            let mut value = vec![VERSION];
            value.extend_from_slice(&crc32c::crc32c(&bytes).to_le_bytes());
            value.extend_from_slice(&bytes);
            let _ = closed.groups(&value);
            prop_assert!(bytes.is_empty() || closed.groups(&bytes).is_err());
        }
    }
}
