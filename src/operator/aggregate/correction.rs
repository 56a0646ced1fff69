//! Corrections: what was emitted of a closed window is taken back when rows have come after its close.
//!
//! Invariant: −old and +new stand side by side in one batch; an equal result is no change.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::{ArrayRef, RecordBatch};
use arrow::compute::interleave;
use arrow::row::RowConverter;

use super::super::{Output, Result};
use super::calls::Calls;
use super::final_aggregate::FinalAggregate;
use super::{group_columns, row_time};
use crate::record::Batch;

/// Results that were emitted, and where each group's stand in them.
pub(super) struct Emitted {
    places: BTreeMap<u32, usize>,
    results: Vec<ArrayRef>,
}

impl FinalAggregate {
    /// What was emitted of groups of closed windows, from the state that was kept of them.
    pub(super) fn emitted(&self, found: &[u32], old: &[ArrayRef]) -> Result<Emitted> {
        let mut emitted = Emitted { places: BTreeMap::new(), results: Vec::new() };
        let mut calls = Calls::new(&self.spec)?;
        calls.grow(found.len());
        let numbers: Vec<u32> = (0..found.len() as u32).collect();
        calls.merge(&numbers, old)?;
        let shown: Vec<u32> = numbers.into_iter().filter(|&number| calls.rows(number) > 0).collect();
        emitted.results = calls.results(&shown)?;
        for (place, &number) in shown.iter().enumerate() {
            emitted.places.insert(found[number as usize], place);
        }
        Ok(emitted)
    }

    /// Emits −old +new of each group whose result is another than was emitted.
    pub(super) fn correct(&self, closed: &[u32], emitted: &Emitted, out: &mut Output) -> Result<()> {
        let present: Vec<u32> = closed.iter().copied().filter(|&group| self.calls.rows(group) > 0).collect();
        let results = self.calls.results(&present)?;
        let comparable = |columns: &[ArrayRef], rows| -> Result<_> { encode(&self.results, columns, rows) };
        let old_bytes = comparable(&emitted.results, emitted.places.len())?;
        let new_bytes = comparable(&results, present.len())?;
        // (0, row): the result that was emitted; (1, row): the one that is right now.
        let (mut picks, mut groups, mut weights) = (Vec::new(), Vec::new(), Vec::new());
        let mut push = |pick, group, weight| {
            picks.push(pick);
            groups.push(group);
            weights.push(weight);
        };
        let mut present = present.iter().enumerate().peekable();
        for &group in closed {
            let old = emitted.places.get(&group).copied();
            let new = present.next_if(|(_, other)| **other == group).map(|(row, _)| row);
            if let (Some(old), Some(new)) = (old, new)
                && old_bytes[old] == new_bytes[new]
            {
                continue;
            }
            if let Some(old) = old {
                push((0, old), group, -1);
            }
            if let Some(new) = new {
                push((1, new), group, 1);
            }
        }
        if picks.is_empty() {
            return Ok(());
        }
        let keys = self.keys.decode(groups.iter().map(|&group| self.keys.key(group)))?;
        let mut columns = group_columns(&self.spec, &keys)?;
        for (old, new) in emitted.results.iter().zip(&results) {
            columns.push(interleave(&[old.as_ref(), new.as_ref()], &picks)?);
        }
        out.batches.push(Batch {
            rows: RecordBatch::try_new(Arc::clone(&self.spec.output), columns)?,
            time: groups.iter().map(|&group| row_time(self.keys.window_end(group))).collect(),
            weight: Some(weights.into()),
            source: None,
        });
        Ok(())
    }
}

/// Rows as bytes that are equal exactly if the rows are. A row of no columns is empty.
fn encode(converter: &RowConverter, columns: &[ArrayRef], rows: usize) -> Result<Vec<Box<[u8]>>> {
    if columns.is_empty() {
        return Ok(vec![Box::default(); rows]);
    }
    Ok(converter.convert_columns(columns)?.iter().map(|row| row.data().into()).collect())
}
