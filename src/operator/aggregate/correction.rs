//! Corrections: what was emitted of a group is taken back when rows have come after that.
//!
//! Invariant: −old and +new stand side by side in one batch; an equal result is no change.
//! Invariant: nothing is allocated for each row.

use std::sync::Arc;

use arrow::array::{ArrayRef, RecordBatch};
use arrow::compute::interleave;
use arrow::row::Rows;

use super::super::Result;
use super::calls::{Calls, Overflowing};
use super::final_aggregate::FinalAggregate;
use super::{group_columns, row_time};
use crate::planted::{Fault, planted};
use crate::record::Batch;

/// No result of the group was emitted.
const NOWHERE: u32 = u32::MAX;

/// Results that were emitted, and where each group's stand in them.
pub(super) struct Emitted {
    /// By group.
    places: Vec<u32>,
    results: Vec<ArrayRef>,
    /// Groups whose result had no room, so that nothing was emitted of them.
    overflowing: Vec<u32>,
}

/// Corrections, and the groups that have none.
type Corrected = (Option<Batch>, Overflowing);

impl Emitted {
    fn place(&self, group: u32) -> Option<usize> {
        let place = self.places[group as usize];
        (place != NOWHERE).then_some(place as usize)
    }
}

impl FinalAggregate {
    /// What was emitted of groups, from the state that was kept of them.
    pub(super) fn emitted(&self, found: &[u32], old: &[ArrayRef]) -> Result<Emitted> {
        let mut calls = Calls::new(&self.spec)?;
        calls.grow(found.len());
        let numbers: Vec<u32> = (0..found.len() as u32).collect();
        if !found.is_empty() {
            calls.merge(&numbers, old)?;
        }
        let mut shown: Vec<u32> = numbers.into_iter().filter(|&number| calls.rows(number) > 0).collect();
        let (results, overflowing) = calls.fitting_results(&mut shown)?;
        let overflowing = overflowing.iter().map(|&(number, _)| found[number as usize]).collect();
        let mut places = vec![NOWHERE; self.keys.len()];
        for (place, &number) in shown.iter().enumerate() {
            let group = found[number as usize];
            if planted(Fault::OpenForgotten) && !self.is_closed(self.keys.window_end(group)) {
                continue;
            }
            places[group as usize] = place as u32;
        }
        Ok(Emitted { places, results, overflowing })
    }

    /// −old +new of each group whose result is another than was emitted, and the groups whose new result has no room in
    /// its type: of these, −old is all.
    /// `groups` ascend by key.
    pub(super) fn correct(&self, groups: &[u32], emitted: &Emitted) -> Result<Corrected> {
        let mut present: Vec<u32> =
            groups.iter().copied().filter(|&group| self.calls.rows(group) > 0).collect();
        let (results, mut overflowing) = self.calls.fitting_results(&mut present)?;
        // Told of before.
        overflowing.retain(|(group, _)| !emitted.overflowing.contains(group));
        let (old_rows, new_rows) = (self.comparable(&emitted.results)?, self.comparable(&results)?);
        let is_equal = |old: usize, new: usize| match (&old_rows, &new_rows) {
            (Some(old_rows), Some(new_rows)) => old_rows.row(old) == new_rows.row(new),
            _ => true,
        };
        // (0, row): the result that was emitted; (1, row): the one that is right now.
        let (mut picks, mut changed, mut weights) = (Vec::new(), Vec::new(), Vec::new());
        let mut push = |pick, group, weight| {
            picks.push(pick);
            changed.push(group);
            weights.push(weight);
        };
        let mut present = present.iter().enumerate().peekable();
        for &group in groups {
            let old = emitted.place(group);
            let new = present.next_if(|(_, other)| **other == group).map(|(row, _)| row);
            if let (Some(old), Some(new)) = (old, new)
                && is_equal(old, new)
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
            return Ok((None, overflowing));
        }
        let keys = self.keys.decode(changed.iter().map(|&group| self.keys.key(group)))?;
        let mut columns = group_columns(&self.spec, &keys)?;
        for (old, new) in emitted.results.iter().zip(&results) {
            columns.push(interleave(&[old.as_ref(), new.as_ref()], &picks)?);
        }
        let corrections = Batch {
            rows: RecordBatch::try_new(Arc::clone(&self.spec.output), columns)?,
            time: changed.iter().map(|&group| row_time(self.keys.window_end(group))).collect(),
            weight: Some(weights.into()),
            source: None,
        };
        Ok((Some(corrections), overflowing))
    }

    /// Rows that are equal exactly if the results are; `None` where there are no columns to differ in.
    fn comparable(&self, columns: &[ArrayRef]) -> Result<Option<Rows>> {
        if columns.is_empty() { Ok(None) } else { Ok(Some(self.results.convert_columns(columns)?)) }
    }
}
