//! `count(*)` and `count(x)`.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, Int64Array};
use arrow::datatypes::Int64Type;

use super::{Accumulator, Result, Rows};

/// Counts rows by their weights; with an argument, those where it is not null.
#[derive(Default)]
pub(super) struct Count {
    counts: Vec<i64>,
}

impl Accumulator for Count {
    fn grow(&mut self, groups: usize) {
        self.counts.resize(groups, 0);
    }

    fn update(&mut self, rows: &Rows<'_>) -> Result<()> {
        let nulls = rows.argument.and_then(|argument| argument.logical_nulls());
        rows.for_each(|row, group, weight| {
            if nulls.as_ref().is_none_or(|nulls| nulls.is_valid(row)) {
                self.counts[group] += weight;
            }
        });
        Ok(())
    }

    fn merge(&mut self, groups: &[u32], states: &[ArrayRef]) -> Result<()> {
        let counts = states[0].as_primitive::<Int64Type>();
        for (&group, &count) in groups.iter().zip(counts.values()) {
            self.counts[group as usize] += count;
        }
        Ok(())
    }

    fn states(&self, groups: &[u32]) -> Result<Vec<ArrayRef>> {
        Ok(vec![self.results(groups)?])
    }

    fn results(&self, groups: &[u32]) -> Result<ArrayRef> {
        let counts = groups.iter().map(|&group| self.counts[group as usize]);
        Ok(Arc::new(Int64Array::from_iter_values(counts)))
    }

    fn clear(&mut self) {
        self.counts.clear();
    }
}
