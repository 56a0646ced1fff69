//! min and max of numbers and times, compared as they are: the common case of `extreme`, some times as fast.
//!
//! Invariant: the order is arrow's total order, which is the order of the sortable bytes as well.

use std::cmp::Ordering;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, ArrowNativeTypeOp, ArrowPrimitiveType, AsArray, PrimitiveArray};
use arrow::datatypes::DataType;

use super::extreme::Aim;
use super::{Accumulator, Function, Result, Rows, failed};

pub(super) struct NativeExtreme<T: ArrowPrimitiveType> {
    view: Arc<str>,
    better: Ordering,
    argument: DataType,
    best: Vec<Option<T::Native>>,
}

impl<T: ArrowPrimitiveType> NativeExtreme<T> {
    pub(super) fn new(view: Arc<str>, function: Function, argument: DataType) -> Self {
        Self { view, better: Aim::of(function).better, argument, best: Vec::new() }
    }

    fn offer(&mut self, group: usize, value: T::Native) {
        let best = &mut self.best[group];
        if best.is_none_or(|best| value.compare(best) == self.better) {
            *best = Some(value);
        }
    }
}

impl<T: ArrowPrimitiveType> Accumulator for NativeExtreme<T> {
    fn grow(&mut self, groups: usize) {
        self.best.resize(groups, None);
    }

    fn update(&mut self, rows: &Rows<'_>) -> Result<()> {
        let Some(argument) = rows.argument else { return Ok(()) };
        rows.only_added(&self.view)?;
        let values = argument.as_primitive::<T>();
        let nulls = values.nulls().filter(|nulls| nulls.null_count() > 0);
        rows.for_each(|row, group, _| {
            if nulls.is_none_or(|nulls| nulls.is_valid(row)) {
                self.offer(group, values.value(row));
            }
        });
        Ok(())
    }

    fn merge(&mut self, groups: &[u32], states: &[ArrayRef]) -> Result<()> {
        let Some(values) = states[0].as_primitive_opt::<T>() else {
            return Err(failed(&self.view, "the state of a min or max has another type than its argument"));
        };
        for (&group, value) in groups.iter().zip(values) {
            if let Some(value) = value {
                self.offer(group as usize, value);
            }
        }
        Ok(())
    }

    fn states(&self, groups: &[u32]) -> Result<Vec<ArrayRef>> {
        Ok(vec![self.results(groups)?])
    }

    fn results(&self, groups: &[u32]) -> Result<ArrayRef> {
        let best = groups.iter().map(|&group| self.best[group as usize]);
        let values: PrimitiveArray<T> = best.collect();
        Ok(Arc::new(values.with_data_type(self.argument.clone())))
    }

    fn clear(&mut self) {
        self.best.clear();
    }
}
