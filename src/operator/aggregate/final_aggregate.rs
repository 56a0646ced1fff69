//! The second half of the aggregate: merges partial rows by key, closes windows, corrects closed ones.
//!
//! State keys are the operator's id, 0 for an open window or 1 for a closed one, and the group's key. What was
//! emitted for a closed group is the result of the state that is kept for it.
//!
//! Invariant: a group's state is in the section that its window and the watermark name, so an operator that was
//! built anew and is told the watermark again emits nothing twice.
//! Invariant: rows are merged into the state under the watermark at which they arrived.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::{Arc, MutexGuard, PoisonError};

use arrow::array::{ArrayRef, AsArray, RecordBatch};
use arrow::datatypes::Int64Type;
use arrow::row::{RowConverter, SortField};

use super::super::evaluate::failed;
use super::super::{AggregateSpec, Expired, Input, Operator, Output, Result, SharedState};
use super::calls::Calls;
use super::codec::StateCodec;
use super::keys::{Keys, key_window_end, window_prefix};
use super::{closes_at, group_columns, key_columns, row_time, window_ends};
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

pub struct FinalAggregate {
    pub(super) spec: Arc<AggregateSpec>,
    state: SharedState,
    codec: StateCodec,
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
    pub fn new(spec: Arc<AggregateSpec>, state: SharedState) -> Result<Self> {
        let types = spec.calls.iter().map(|call| call.output.data_type().clone());
        Ok(Self {
            state,
            codec: StateCodec::new(&spec)?,
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

    /// Puts the pane's groups into the state and corrects what was emitted of closed windows.
    fn merge_pane(&mut self, out: &mut Output) -> Result<()> {
        if self.keys.len() == 0 {
            return Ok(());
        }
        let order = self.keys.sorted();
        let closed: Vec<u32> =
            order.iter().copied().filter(|&group| self.is_closed(self.keys.window_end(group))).collect();
        let state = Arc::clone(&self.state);
        let mut state = lock(&state);

        let (found, old) = self.stored(&state, &order)?;
        let emitted = if closed.is_empty() { None } else { Some(self.emitted(&found, &old)?) };
        if !found.is_empty() {
            self.calls.merge(&found, &old)?;
        }
        if let Some(emitted) = emitted {
            self.correct(&closed, &emitted, out)?;
        }

        let values = self.codec.encode(&self.calls.states(&order)?)?;
        let mut found = found.into_iter().peekable();
        for (&group, value) in order.iter().zip(values) {
            let was_found = found.next_if_eq(&group).is_some();
            let window_end = self.keys.window_end(group);
            let section = if self.is_closed(window_end) { CLOSED } else { OPEN };
            let key = state_key(self.spec.state_id, section, self.keys.key(group));
            match value {
                Some(value) => state.put(key, value),
                None if was_found => state.delete(key),
                None => continue,
            }
        }
        self.keys.clear();
        self.calls.clear();
        Ok(())
    }

    /// Which of these groups the state holds, and their state columns.
    fn stored(&self, state: &TaskState, groups: &[u32]) -> Result<(Vec<u32>, Vec<ArrayRef>)> {
        let mut found = Vec::new();
        let (mut bytes, mut ends) = (Vec::new(), Vec::new());
        let mut key = Vec::new();
        for &group in groups {
            let section = if self.is_closed(self.keys.window_end(group)) { CLOSED } else { OPEN };
            key.clear();
            key.extend_from_slice(&[self.spec.state_id, section]);
            key.extend_from_slice(self.keys.key(group));
            if let Some(value) = state.get(&key)? {
                bytes.extend_from_slice(self.codec.open(&value)?);
                ends.push(bytes.len());
                found.push(group);
            }
        }
        let mut start = 0;
        let rows = ends.iter().map(|&end| {
            let row = &bytes[start..end];
            start = end;
            row
        });
        let columns = self.codec.decode(rows)?;
        Ok((found, columns))
    }

    /// Emits the windows that the watermark closes, in the order of their keys.
    fn close(&mut self, out: &mut Output) -> Result<()> {
        let state = Arc::clone(&self.state);
        let mut state = lock(&state);
        loop {
            let due = self.scan(&state, OPEN, self.first_open, |end| self.is_closed(end))?;
            self.first_open = due.next_window_end;
            if due.keys.is_empty() {
                return Ok(());
            }
            self.emit(&due, out)?;
            for (key, value) in due.keys.into_iter().zip(due.values) {
                state.delete(state_key(self.spec.state_id, OPEN, &key));
                let window_end = self.window_end(&key)?;
                if !self.is_expired(window_end) {
                    self.first_closed = self.first_closed.min(window_end);
                    state.put(state_key(self.spec.state_id, CLOSED, &key), value);
                }
            }
            if !due.more {
                return Ok(());
            }
        }
    }

    fn emit(&self, due: &Due, out: &mut Output) -> Result<()> {
        let rows = due.values.iter().map(|value| self.codec.open(value)).collect::<Result<Vec<_>>>()?;
        let mut calls = Calls::new(&self.spec)?;
        calls.grow(rows.len());
        let numbers: Vec<u32> = (0..rows.len() as u32).collect();
        calls.merge(&numbers, &self.codec.decode(rows.into_iter())?)?;
        let shown: Vec<u32> = numbers.into_iter().filter(|&number| calls.rows(number) > 0).collect();
        if shown.is_empty() {
            return Ok(());
        }
        let keys: Vec<&[u8]> = shown.iter().map(|&number| due.keys[number as usize].as_slice()).collect();
        let times = keys.iter().map(|key| Ok(row_time(self.window_end(key)?))).collect::<Result<Vec<_>>>()?;
        let mut columns = group_columns(&self.spec, &self.keys.decode(keys.into_iter())?)?;
        columns.extend(calls.results(&shown)?);
        out.batches.push(Batch {
            rows: RecordBatch::try_new(Arc::clone(&self.spec.output), columns)?,
            time: times.into(),
            weight: None,
            source: None,
        });
        Ok(())
    }

    /// Forgets the closed windows that are older than the retention.
    fn expire(&mut self) -> Result<()> {
        let state = Arc::clone(&self.state);
        let mut state = lock(&state);
        loop {
            let due = self.scan(&state, CLOSED, self.first_closed, |end| self.is_expired(end))?;
            self.first_closed = due.next_window_end;
            for key in due.keys {
                state.delete(state_key(self.spec.state_id, CLOSED, &key));
            }
            if !due.more {
                return Ok(());
            }
        }
    }

    /// The first groups of a section, as long as their windows are due. `first`: no window of the section ends
    /// before this. Keys before it are deleted ones, which a scan would have to pass every time until the next
    /// checkpoint takes them.
    fn scan(
        &self,
        state: &TaskState,
        section: u8,
        first: Micros,
        is_due: impl Fn(Micros) -> bool,
    ) -> Result<Due> {
        let mut due = Due { keys: Vec::new(), values: Vec::new(), next_window_end: Micros::MAX, more: false };
        let from = state_key(self.spec.state_id, section, &window_prefix(first));
        let to = crate::state::prefix_end(&[self.spec.state_id, section]);
        let mut damaged = false;
        state.scan(&from, &to, &mut |key, value| {
            let key = &key[2..];
            let Some(window_end) = key_window_end(key) else {
                damaged = true;
                return ControlFlow::Break(());
            };
            due.more = due.keys.len() == GROUPS_PER_BATCH;
            if due.more || !is_due(window_end) {
                due.next_window_end = window_end;
                return ControlFlow::Break(());
            }
            due.keys.push(key.to_vec());
            due.values.push(if section == OPEN { value.to_vec() } else { Vec::new() });
            ControlFlow::Continue(())
        })?;
        if damaged { Err(self.damaged_key()) } else { Ok(due) }
    }

    fn window_end(&self, key: &[u8]) -> Result<Micros> {
        key_window_end(key).ok_or_else(|| self.damaged_key())
    }

    fn damaged_key(&self) -> super::super::OperatorError {
        let what = "a key of the state is damaged; delete the state directory, so that it is rebuilt from a \
                    checkpoint copy or the log";
        failed(&self.spec.view, what)
    }
}

/// Groups that a scan found.
struct Due {
    keys: Vec<Vec<u8>>,
    values: Vec<Vec<u8>>,
    /// The end of the first window that was not taken.
    next_window_end: Micros,
    /// Whether more may be due.
    more: bool,
}

fn state_key(state_id: u8, section: u8, key: &[u8]) -> Vec<u8> {
    let mut state_key = Vec::with_capacity(2 + key.len());
    state_key.extend_from_slice(&[state_id, section]);
    state_key.extend_from_slice(key);
    state_key
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
        if closes || expires {
            self.merge_pane(out)?;
        }
        self.watermark = to;
        if closes {
            self.close(out)?;
        }
        if expires {
            self.expire()?;
        }
        Ok(())
    }

    fn flush(&mut self, out: &mut Output) -> Result<()> {
        self.merge_pane(out)
    }
}
