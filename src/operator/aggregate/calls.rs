//! All calls of an aggregate, for groups by number, with the weight of each group's rows.

use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray, BooleanArray, Int64Array};
use arrow::datatypes::Int64Type;

use super::super::accumulator::{self, Accumulator, Places, Rows};
use super::super::{AggregateSpec, Function, OperatorError, Result};

/// Groups whose results have no room in their type, and why.
pub(super) type Overflowing = Vec<(u32, String)>;

pub(super) struct Calls {
    /// `None`: the call counts rows, as `rows` does.
    accumulators: Vec<Option<Box<dyn Accumulator>>>,
    /// How many state columns each call has.
    widths: Vec<usize>,
    /// The sum of weights.
    rows: Vec<i64>,
}

/// What a call is evaluated to on a batch.
pub(super) struct Argument {
    pub values: Option<ArrayRef>,
    pub filter: Option<BooleanArray>,
}

impl Calls {
    pub(super) fn new(spec: &AggregateSpec) -> Result<Self> {
        Ok(Self {
            accumulators: spec
                .calls
                .iter()
                .map(|call| {
                    let counts_rows =
                        call.function == Function::Count && call.argument.is_none() && call.filter.is_none();
                    (!counts_rows).then(|| accumulator::create(spec, call)).transpose()
                })
                .collect::<Result<_>>()?,
            widths: spec.calls.iter().map(|call| accumulator::state_fields(spec, call).len()).collect(),
            rows: Vec::new(),
        })
    }

    pub(super) fn grow(&mut self, groups: usize) {
        self.accumulators.iter_mut().flatten().for_each(|accumulator| accumulator.grow(groups));
        self.rows.resize(groups, 0);
    }

    pub(super) fn update(
        &mut self,
        groups: &[u32],
        weights: Option<&[i64]>,
        arguments: &[Argument],
        places: Option<&Places>,
    ) -> Result<()> {
        for (accumulator, argument) in self.accumulators.iter_mut().zip(arguments) {
            let Some(accumulator) = accumulator else { continue };
            let (argument, filter) = (argument.values.as_ref(), argument.filter.as_ref());
            accumulator.update(&Rows { groups, weights, argument, filter, places })?;
        }
        match weights {
            None => groups.iter().for_each(|&group| self.rows[group as usize] += 1),
            Some(weights) => {
                groups.iter().zip(weights).for_each(|(&group, &weight)| self.rows[group as usize] += weight);
            }
        }
        Ok(())
    }

    /// Adds state columns, as `states` returned them.
    pub(super) fn merge(&mut self, groups: &[u32], mut states: &[ArrayRef]) -> Result<()> {
        for (accumulator, &width) in self.accumulators.iter_mut().zip(&self.widths) {
            let (own, others) = states.split_at(width);
            if let Some(accumulator) = accumulator {
                accumulator.merge(groups, own)?;
            }
            states = others;
        }
        let rows = states[0].as_primitive::<Int64Type>();
        for (&group, &weight) in groups.iter().zip(rows.values()) {
            self.rows[group as usize] += weight;
        }
        Ok(())
    }

    /// The calls' state columns, then the groups' rows.
    pub(super) fn states(&self, groups: &[u32]) -> Result<Vec<ArrayRef>> {
        let rows = self.row_counts(groups);
        let mut columns = Vec::new();
        for accumulator in &self.accumulators {
            match accumulator {
                Some(accumulator) => columns.extend(accumulator.states(groups)?),
                None => columns.push(Arc::clone(&rows)),
            }
        }
        columns.push(rows);
        Ok(columns)
    }

    pub(super) fn results(&self, groups: &[u32]) -> Result<Vec<ArrayRef>> {
        let result = |accumulator: &Option<Box<dyn Accumulator>>| match accumulator {
            Some(accumulator) => accumulator.results(groups),
            None => Ok(self.row_counts(groups)),
        };
        self.accumulators.iter().map(result).collect()
    }

    /// The results of those groups that have room for theirs; `groups` are these afterwards. The others, and why.
    pub(super) fn fitting_results(&self, groups: &mut Vec<u32>) -> Result<(Vec<ArrayRef>, Overflowing)> {
        match self.results(groups) {
            Err(OperatorError::Overflow { .. }) => {}
            results => return Ok((results?, Vec::new())),
        }
        let mut overflowing = Vec::new();
        let (mut fitting, all) = (Vec::new(), std::mem::take(groups));
        for group in all {
            match self.results(&[group]) {
                Err(OperatorError::Overflow { what, .. }) => overflowing.push((group, what)),
                result => {
                    result?;
                    fitting.push(group);
                }
            }
        }
        *groups = fitting;
        Ok((self.results(groups)?, overflowing))
    }

    fn row_counts(&self, groups: &[u32]) -> ArrayRef {
        Arc::new(Int64Array::from_iter_values(groups.iter().map(|&group| self.rows(group))))
    }

    pub(super) fn rows(&self, group: u32) -> i64 {
        self.rows[group as usize]
    }

    /// How many bytes the largest state of a call and a group takes, where it grows with the values.
    pub(super) fn largest(&self) -> usize {
        self.accumulators.iter().flatten().map(|accumulator| accumulator.largest()).max().unwrap_or(0)
    }

    pub(super) fn clear(&mut self) {
        self.accumulators.iter_mut().flatten().for_each(|accumulator| accumulator.clear());
        self.rows.clear();
    }
}
