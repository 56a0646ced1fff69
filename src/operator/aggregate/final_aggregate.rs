//! The second half of the aggregate: merges partial rows by key, closes windows, corrects closed ones.
//!
//! The state's keys are the operator's id, 0 for an open window, and the group's key; closed windows' groups are kept
//! by `closed.rs`.
//!
//! There are two ways out. Most listeners have a window's rows when it closes, and corrections after that. Those who
//! listen to changes have them whenever groups are merged into the state, which every epoch's end does; when the window
//! closes they know already.
//!
//! Invariant: what was emitted of a group (of a closed one; to those who listen to changes, of any) is the result of
//! the state that is kept for it, in the layer of state that the same transaction commits.
//! Invariant: a group's state is in the section that its window and the watermark name, so an operator that was
//! built anew and is told the watermark again emits nothing twice.
//! Invariant: rows are merged into the state under the watermark at which they arrived.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::{Arc, MutexGuard, PoisonError};

use arrow::array::{AsArray, RecordBatch};
use arrow::datatypes::{Int64Type, Schema};
use arrow::row::{RowConverter, SortField};

use super::super::evaluate::{failed, reject};
use super::super::{AggregateSpec, Expired, Input, Operator, Output, Result, SharedState};
use super::calls::{Calls, Overflowing};
use super::closed::{ClosedGroups, GroupChange};
use super::codec::StateCodec;
use super::keys::{Keys, key_window_end, window_prefix};
use super::{closes_at, group_columns, key_columns, row_time, window_ends};
use crate::planted::sized;
use crate::record::{Batch, Micros};
use crate::state::TaskState;

const OPEN: u8 = 0;
const CLOSED: u8 = 1;

/// The range of state keys that hold the open windows of an aggregate: one key for each window and group.
pub fn open_keys(spec: &AggregateSpec) -> (Vec<u8>, Vec<u8>) {
    (vec![spec.state_id, OPEN], vec![spec.state_id, CLOSED])
}
/// Groups that are closed at a time: a bound on memory and on a batch's rows.
const GROUPS_PER_BATCH: usize = 8192;

fn groups_per_batch() -> usize {
    sized(GROUPS_PER_BATCH, 3)
}

/// Who has an aggregate's rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Listeners {
    /// Somebody has them as their windows close.
    pub closed: bool,
    /// Somebody has them as their windows change.
    pub changes: bool,
}

pub struct FinalAggregate {
    pub(super) spec: Arc<AggregateSpec>,
    listeners: Listeners,
    state: SharedState,
    codec: StateCodec,
    closed: ClosedGroups,
    /// The groups that this epoch has touched since they were last merged into the state.
    pub(super) keys: Keys,
    pub(super) calls: Calls,
    /// The group of each row of the batch at hand.
    groups: Vec<u32>,
    pub(super) results: RowConverter,
    watermark: Micros,
    /// No open window ends before this, in the state or in the pane.
    first_open: Micros,
    /// No closed window that is still kept ends before this.
    first_closed: Micros,
}

impl FinalAggregate {
    pub fn new(spec: Arc<AggregateSpec>, state: SharedState, listeners: Listeners) -> Result<Self> {
        let types = spec.calls.iter().map(|call| call.output.data_type().clone());
        Ok(Self {
            listeners,
            state,
            codec: StateCodec::new(&spec)?,
            closed: ClosedGroups::new(Arc::clone(&spec.view), [spec.state_id, CLOSED]),
            keys: Keys::new(&spec)?,
            calls: Calls::new(&spec)?,
            groups: Vec::new(),
            results: RowConverter::new(types.map(SortField::new).collect())?,
            watermark: Micros::MIN,
            first_open: Micros::MIN,
            first_closed: Micros::MIN,
            spec,
        })
    }

    pub(super) fn is_closed(&self, window_end: Micros) -> bool {
        closes_at(&self.spec, window_end) <= self.watermark
    }

    fn is_expired(&self, window_end: Micros) -> bool {
        closes_at(&self.spec, window_end).saturating_add(self.spec.retention) <= self.watermark
    }

    /// Sets rows of expired windows aside; the others, if any were expired.
    fn set_expired_aside(&self, batch: &Batch, out: &mut Output) -> Result<Option<Batch>> {
        let ends = window_ends(&self.spec, batch.rows.columns())?;
        if !ends.values().iter().any(|&end| self.is_expired(end)) {
            return Ok(None);
        }
        if self.spec.retention == 0 {
            let what = "a row arrived for a window that is closed for good: an origin's watermark overtook its \
                        rows; this is a bug in headwater, please report it";
            return Err(failed(&self.spec.view, what));
        }
        let columns = batch.rows.columns();
        let counter = |back: usize| columns[columns.len() - back].as_primitive::<Int64Type>();
        let (rows, first_offsets, last_offsets) = (counter(3), counter(2), counter(1));
        let mut expired: BTreeMap<Micros, Expired> = BTreeMap::new();
        let mut kept = Vec::new();
        for (row, &window_end) in ends.values().iter().enumerate() {
            if !self.is_expired(window_end) {
                kept.push(row as u32);
                continue;
            }
            let (first_offset, last_offset) = (first_offsets.value(row), last_offsets.value(row));
            let view = Arc::clone(&self.spec.view);
            let entry = expired.entry(window_end).or_insert(Expired {
                view,
                window_end,
                rows: 0,
                first_offset,
                last_offset,
            });
            entry.rows += rows.value(row);
            entry.first_offset = entry.first_offset.min(first_offset);
            entry.last_offset = entry.last_offset.max(last_offset);
        }
        out.expired.extend(expired.into_values());
        Ok(Some(batch.take(&kept)?))
    }

    /// Puts the pane's groups into the state and corrects what was emitted of them. Open windows that close when the
    /// watermark comes `to` a time are about to leave the state: theirs are returned instead.
    fn merge_pane(&mut self, to: Micros, out: &mut Output) -> Result<Due> {
        let mut due = Due::default();
        if self.keys.len() == 0 {
            return Ok(due);
        }
        let order = self.keys.sorted()?;
        let (closed, open): (Vec<u32>, Vec<u32>) =
            order.into_iter().partition(|&group| self.is_closed(self.keys.window_end(group)));
        let state = Arc::clone(&self.state);
        let mut state = lock(&state);
        if !open.is_empty() {
            let closes = |&group: &u32| closes_at(&self.spec, self.keys.window_end(group)) <= to;
            let closing = open.partition_point(closes);
            self.merge_open(&open, closing, &mut state, &mut due, out)?;
        }
        if !closed.is_empty() {
            self.merge_closed(&closed, &mut state, out)?;
        }
        self.keys.clear();
        self.calls.clear();
        Ok(due)
    }

    /// The first `closing` groups go to `due`, not into the state.
    fn merge_open(
        &mut self,
        groups: &[u32],
        closing: usize,
        state: &mut TaskState,
        due: &mut Due,
        out: &mut Output,
    ) -> Result<()> {
        let (mut found, mut old) = (Vec::new(), OldRows::default());
        let mut key = Vec::new();
        for &group in groups {
            open_key(self.spec.state_id, self.keys.key(group), &mut key);
            if let Some(value) = state.get(&key)? {
                old.push(self.codec.open(&value)?);
                found.push(group);
            }
        }
        let old = if found.is_empty() { Vec::new() } else { self.codec.decode(old.iter())? };
        let emitted = if self.listeners.changes { Some(self.emitted(&found, &old)?) } else { None };
        if !found.is_empty() {
            self.calls.merge(&found, &old)?;
        }
        if let Some(emitted) = emitted {
            let (changes, overflowing) = self.correct(groups, &emitted)?;
            out.changes.extend(changes);
            // Where others have the row when the window closes, it is refused then.
            if !self.listeners.closed {
                let keys = overflowing.iter().map(|&(group, _)| self.keys.key(group));
                self.reject(keys, &overflowing, out)?;
            }
        }
        let states = self.calls.states(groups)?;
        let mut found = found.into_iter().peekable();
        let mut value = Vec::new();
        for (number, (&group, row)) in groups.iter().zip(self.codec.encode(&states)?).enumerate() {
            let was_found = found.next_if_eq(&group).is_some();
            open_key(self.spec.state_id, self.keys.key(group), &mut key);
            let stays = row.filter(|_| number >= closing);
            if was_found && stays.is_none() {
                state.delete(&key);
            }
            let Some(row) = stays else {
                row.into_iter().for_each(|row| due.push(self.keys.key(group), row));
                continue;
            };
            StateCodec::close(row, &mut value);
            match was_found {
                true => state.put(&key, &value),
                false => state.put_new(&key, &value),
            }
        }
        Ok(())
    }

    fn merge_closed(&mut self, groups: &[u32], state: &mut TaskState, out: &mut Output) -> Result<()> {
        let keys: Vec<&[u8]> = groups.iter().map(|&group| self.keys.key(group)).collect();
        let (mut found, mut old) = (Vec::new(), OldRows::default());
        self.closed.read(state, &keys, &mut |number, row| {
            found.push(groups[number]);
            old.push(row);
        })?;
        let old = self.codec.decode(old.iter())?;
        let emitted = self.emitted(&found, &old)?;
        if !found.is_empty() {
            self.calls.merge(&found, &old)?;
        }
        let (corrections, overflowing) = self.correct(groups, &emitted)?;
        self.reject(overflowing.iter().map(|&(group, _)| self.keys.key(group)), &overflowing, out)?;
        if let Some(corrections) = corrections {
            if self.listeners.changes {
                out.changes.push(corrections.clone());
            }
            if self.listeners.closed {
                out.batches.push(corrections);
            }
        }
        let states = self.calls.states(groups)?;
        let rows = self.codec.encode(&states)?;
        let keys = groups.iter().map(|&group| self.keys.key(group));
        let changes: Vec<GroupChange<'_>> = keys.zip(rows).collect();
        self.closed.write(state, &changes)
    }

    /// Emits the windows that the watermark closes, in the order of their keys: those of the state, and `pane`, of
    /// which none is in the state.
    fn close(&mut self, pane: &Due, out: &mut Output) -> Result<()> {
        let state = Arc::clone(&self.state);
        let mut state = lock(&state);
        let mut pane = pane.iter().peekable();
        loop {
            let scanned = self.scan(&state, OPEN, self.first_open, |end| self.is_closed(end))?;
            self.first_open = scanned.next_window_end;
            let mut due: Vec<(&[u8], &[u8])> = Vec::with_capacity(scanned.groups.len());
            for (key, row) in scanned.iter() {
                while let Some((before, its_row)) = pane.next_if(|&(before, _)| before < key) {
                    due.push((before, its_row));
                }
                due.push((key, row));
            }
            while let Some((key, row)) = pane.next_if(|_| !scanned.more) {
                due.push((key, row));
            }
            if self.listeners.closed {
                due.chunks(groups_per_batch()).try_for_each(|due| self.emit(due, out))?;
            }
            let mut open = Vec::new();
            for (key, _) in scanned.iter() {
                open_key(self.spec.state_id, key, &mut open);
                state.delete(&open);
            }
            let mut kept = Vec::with_capacity(due.len());
            for (key, row) in due {
                let window_end = self.window_end(key)?;
                if !self.is_expired(window_end) {
                    self.first_closed = self.first_closed.min(window_end);
                    kept.push((key, row));
                }
            }
            self.closed.keep(&mut state, kept.into_iter());
            if !scanned.more {
                return Ok(());
            }
        }
    }

    /// Emits groups: their keys, and the rows of their states.
    fn emit(&self, due: &[(&[u8], &[u8])], out: &mut Output) -> Result<()> {
        let mut calls = Calls::new(&self.spec)?;
        calls.grow(due.len());
        let numbers: Vec<u32> = (0..due.len() as u32).collect();
        calls.merge(&numbers, &self.codec.decode(due.iter().map(|&(_, row)| row))?)?;
        let mut shown: Vec<u32> = numbers.into_iter().filter(|&number| calls.rows(number) > 0).collect();
        let (results, overflowing) = calls.fitting_results(&mut shown)?;
        let key_of = |&(number, _): &(u32, String)| due[number as usize].0;
        self.reject(overflowing.iter().map(key_of), &overflowing, out)?;
        if shown.is_empty() {
            return Ok(());
        }
        let keys: Vec<&[u8]> = shown.iter().map(|&number| due[number as usize].0).collect();
        let times = keys.iter().map(|key| Ok(row_time(self.window_end(key)?))).collect::<Result<Vec<_>>>()?;
        let mut columns = group_columns(&self.spec, &self.keys.decode(keys.into_iter())?)?;
        columns.extend(results);
        out.batches.push(Batch {
            rows: RecordBatch::try_new(Arc::clone(&self.spec.output), columns)?,
            time: times.into(),
            weight: None,
            source: None,
        });
        Ok(())
    }

    /// Rows that can't be made, since a result has no room in its type: what is known of them are their keys.
    fn reject<'a>(
        &self,
        keys: impl Iterator<Item = &'a [u8]>,
        overflowing: &Overflowing,
        out: &mut Output,
    ) -> Result<()> {
        if overflowing.is_empty() {
            return Ok(());
        }
        let columns = group_columns(&self.spec, &self.keys.decode(keys)?)?;
        let fields = self.spec.output.fields()[..columns.len()].to_vec();
        let rows = RecordBatch::try_new(Arc::new(Schema::new(fields)), columns)?;
        let time = vec![0; rows.num_rows()].into();
        let batch = Batch { rows, time, weight: None, source: None };
        for (row, (_, why)) in overflowing.iter().enumerate() {
            reject(out, &batch, row, "expression", &self.spec.view, why.clone())?;
        }
        Ok(())
    }

    /// Forgets the closed windows that are older than the retention.
    fn expire(&mut self) -> Result<()> {
        let state = Arc::clone(&self.state);
        let mut state = lock(&state);
        loop {
            let due = self.scan(&state, CLOSED, self.first_closed, |end| self.is_expired(end))?;
            self.first_closed = due.next_window_end;
            let mut block = vec![self.spec.state_id, CLOSED];
            for (key, _) in due.iter() {
                block.truncate(2);
                block.extend_from_slice(key);
                state.delete(&block);
            }
            if !due.more {
                return Ok(());
            }
        }
    }

    /// The first groups of a section, or of the closed one blocks, as long as their windows are due. `first`: no window
    /// of the section ends before this. Keys before it are deleted ones, which a scan would have to pass every time
    /// until the next checkpoint takes them.
    fn scan(
        &self,
        state: &TaskState,
        section: u8,
        first: Micros,
        is_due: impl Fn(Micros) -> bool,
    ) -> Result<Due> {
        let mut due = Due { next_window_end: Micros::MAX, ..Due::default() };
        let from = [&[self.spec.state_id, section], &window_prefix(first)[..]].concat();
        let to = crate::state::prefix_end(&[self.spec.state_id, section]);
        let mut damaged = None;
        state.scan(&from, &to, &mut |key, value| {
            let key = &key[2..];
            let window_end = match self.window_end(key) {
                Ok(window_end) => window_end,
                Err(error) => {
                    damaged = Some(error);
                    return ControlFlow::Break(());
                }
            };
            due.more = due.groups.len() == groups_per_batch();
            if due.more || !is_due(window_end) {
                due.next_window_end = window_end;
                return ControlFlow::Break(());
            }
            match if section == OPEN { self.codec.open(value) } else { Ok(&[][..]) } {
                Ok(row) => due.push(key, row),
                Err(error) => {
                    damaged = Some(error);
                    return ControlFlow::Break(());
                }
            }
            ControlFlow::Continue(())
        })?;
        damaged.map_or(Ok(due), Err)
    }

    fn window_end(&self, key: &[u8]) -> Result<Micros> {
        key_window_end(key).ok_or_else(|| {
            let what = "a key of the state is damaged; delete the state directory, so that it is rebuilt from a \
                        checkpoint copy or the log";
            failed(&self.spec.view, what)
        })
    }
}

/// Groups whose time has come: keys, and rows of their states, in the order of their keys.
#[derive(Default)]
struct Due {
    bytes: Vec<u8>,
    /// Where each group's key ends in `bytes`, and its row behind it.
    groups: Vec<(usize, usize)>,
    /// The end of the first window that a scan did not take.
    next_window_end: Micros,
    /// Whether more may be due.
    more: bool,
}

impl Due {
    fn push(&mut self, key: &[u8], row: &[u8]) {
        self.bytes.extend_from_slice(key);
        let key_end = self.bytes.len();
        self.bytes.extend_from_slice(row);
        self.groups.push((key_end, self.bytes.len()));
    }

    fn iter(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        let starts = std::iter::once(0).chain(self.groups.iter().map(|&(_, end)| end));
        let spans = starts.zip(&self.groups);
        spans.map(|(start, &(key_end, end))| (&self.bytes[start..key_end], &self.bytes[key_end..end]))
    }
}

/// Rows of groups that the state held.
#[derive(Default)]
struct OldRows {
    bytes: Vec<u8>,
    ends: Vec<usize>,
}

impl OldRows {
    fn push(&mut self, row: &[u8]) {
        self.bytes.extend_from_slice(row);
        self.ends.push(self.bytes.len());
    }

    fn iter(&self) -> impl Iterator<Item = &[u8]> {
        let starts = std::iter::once(0).chain(self.ends.iter().copied());
        starts.zip(&self.ends).map(|(start, &end)| &self.bytes[start..end])
    }
}

/// Sets `into` to the state's key of an open window's group.
fn open_key(state_id: u8, key: &[u8], into: &mut Vec<u8>) {
    into.clear();
    into.extend_from_slice(&[state_id, OPEN]);
    into.extend_from_slice(key);
}

/// A thread that panicked with the lock held has ended its task, and with it this state.
fn lock(state: &SharedState) -> MutexGuard<'_, TaskState> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Operator for FinalAggregate {
    fn process(&mut self, _input: Input, batch: &Batch, out: &mut Output) -> Result<()> {
        let kept = self.set_expired_aside(batch, out)?;
        let columns = kept.as_ref().unwrap_or(batch).rows.columns();
        let ends = window_ends(&self.spec, columns)?;
        self.keys.number(&key_columns(&self.spec, &ends, columns), &mut self.groups)?;
        self.calls.grow(self.keys.len());
        // The states stand between the group columns and the two offsets.
        self.calls.merge(&self.groups, &columns[self.spec.groups.len()..columns.len() - 2])?;
        for &window_end in ends.values() {
            let closed = self.is_closed(window_end);
            let first = if closed { &mut self.first_closed } else { &mut self.first_open };
            *first = window_end.min(*first);
        }
        Ok(())
    }

    fn advance(&mut self, to: Micros, out: &mut Output) -> Result<()> {
        if to <= self.watermark {
            return Ok(());
        }
        let closes = closes_at(&self.spec, self.first_open) <= to;
        let expires = closes_at(&self.spec, self.first_closed).saturating_add(self.spec.retention) <= to;
        let mut due = Due::default();
        if closes || expires {
            due = self.merge_pane(to, out)?;
        }
        self.watermark = to;
        if closes {
            self.close(&due, out)?;
        }
        if expires {
            self.expire()?;
        }
        Ok(())
    }

    fn flush(&mut self, out: &mut Output) -> Result<()> {
        // No window closes now, so all are in the state.
        self.merge_pane(self.watermark, out).map(drop)
    }
}
