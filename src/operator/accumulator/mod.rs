//! Accumulators: what an aggregate call remembers of each group.
//!
//! An accumulator is fed rows (in a partial aggregate) or other accumulators' state columns (in a final one, and
//! from the task's state), for many groups at once; groups are numbered from 0.
//!
//! Invariant: feeding and merging commute and associate exactly, bit for bit, so neither the order of rows nor
//! how they were split can show.
//! Invariant: equal contents have equal state columns, and taking back (weight −1) what was added leaves the
//! state of an empty group.

mod average;
mod count;
mod distinct;
mod exact_float;
mod extreme;
mod float_sum;
mod multiset;
mod native_extreme;
mod number_sum;
mod place;

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, BooleanArray};
use arrow::datatypes::{DataType, Field, FieldRef, Schema};

use super::evaluate::failed;
use super::{AggregateCall, AggregateSpec, Function, Result};

pub(super) use place::{Places, place_rows};

/// Rows to be accumulated.
pub(super) struct Rows<'a> {
    /// The group of each row.
    pub groups: &'a [u32],
    /// `None`: every row is +1.
    pub weights: Option<&'a [i64]>,
    /// `None` only for `count(*)`.
    pub argument: Option<&'a ArrayRef>,
    /// Rows that are not true here are left out.
    pub filter: Option<&'a BooleanArray>,
    /// Each row's place in the total order; for first and last.
    pub places: Option<&'a Places>,
}

impl Rows<'_> {
    /// What was taken back cannot be forgotten by an accumulator that keeps no multiset.
    fn only_added(&self, view: &str) -> Result<()> {
        match self.weights {
            Some(weights) if weights.iter().any(|&weight| weight != 1) => {
                Err(failed(view, "rows were taken back from an aggregate that only adds"))
            }
            _ => Ok(()),
        }
    }

    /// Calls `visit` with (row, group, weight) of every row that the filter keeps.
    fn for_each(&self, mut visit: impl FnMut(usize, usize, i64)) {
        // Most calls: a loop with nothing else in it.
        if self.filter.is_none() && self.weights.is_none() {
            self.groups.iter().enumerate().for_each(|(row, &group)| visit(row, group as usize, 1));
            return;
        }
        for (row, &group) in self.groups.iter().enumerate() {
            if self.filter.is_none_or(|filter| filter.is_valid(row) && filter.value(row)) {
                visit(row, group as usize, self.weights.map_or(1, |weights| weights[row]));
            }
        }
    }
}

pub(super) trait Accumulator: Send {
    /// Makes room for groups `0..groups`; new ones are empty.
    fn grow(&mut self, groups: usize);
    fn update(&mut self, rows: &Rows<'_>) -> Result<()>;
    /// Adds states, one a row, to these groups. A group may occur more than once.
    fn merge(&mut self, groups: &[u32], states: &[ArrayRef]) -> Result<()>;
    /// The state columns of these groups, in this order.
    fn states(&self, groups: &[u32]) -> Result<Vec<ArrayRef>>;
    /// The results of these groups, in this order.
    fn results(&self, groups: &[u32]) -> Result<ArrayRef>;
    /// How many bytes the largest state of a group takes, where it grows with the group's values.
    fn largest(&self) -> usize {
        0
    }
    /// Forgets all groups.
    fn clear(&mut self);
}

/// The kinds of accumulator that calls are built on.
enum Kind {
    Count,
    /// Integers, summed in 128 bits.
    Integer,
    /// Decimals, summed in 256 bits.
    Decimal,
    Float,
    /// The least or greatest value, or the value at the least or greatest place.
    Extreme,
    /// The set of a group's values.
    Distinct,
    /// As `Extreme` over changes, where any value may be taken back.
    Multiset,
}

fn argument_type(call: &AggregateCall, input: &Schema) -> Option<DataType> {
    // An expression that has no type over the input was refused by the planner.
    call.argument.as_ref().map(|argument| argument.data_type(input).unwrap_or(DataType::Null))
}

fn kind(call: &AggregateCall, argument: Option<&DataType>, changes: bool) -> Kind {
    match call.function {
        Function::Count => Kind::Count,
        Function::CountDistinct => Kind::Distinct,
        Function::Sum | Function::Avg => match argument {
            Some(data_type) if data_type.is_decimal() => Kind::Decimal,
            Some(data_type) if data_type.is_floating() => Kind::Float,
            _ => Kind::Integer,
        },
        Function::Min | Function::Max | Function::First | Function::Last if changes => Kind::Multiset,
        Function::Min | Function::Max | Function::First | Function::Last => Kind::Extreme,
    }
}

/// The columns that the call's state takes in an exchange.
pub(super) fn state_fields(spec: &AggregateSpec, call: &AggregateCall) -> Vec<FieldRef> {
    let argument = argument_type(call, &spec.input);
    let column = |suffix: &str, data_type: DataType| {
        Arc::new(Field::new(format!("{}.{suffix}", call.output.name()), data_type, true))
    };
    let count = || column("count", DataType::Int64);
    match kind(call, argument.as_ref(), spec.changes) {
        Kind::Count => vec![count()],
        Kind::Integer => vec![column("sum", DataType::Decimal128(38, 0)), count()],
        Kind::Decimal => vec![column("sum", DataType::Decimal256(76, 0)), count()],
        Kind::Float => vec![column("sum", DataType::Binary), count()],
        Kind::Multiset | Kind::Distinct => vec![column("values", DataType::Binary)],
        Kind::Extreme => {
            let value = column("value", argument.unwrap_or(DataType::Null));
            match call.function {
                Function::First | Function::Last => vec![column("place", DataType::Binary), value],
                _ => vec![value],
            }
        }
    }
}

pub(super) fn create(spec: &AggregateSpec, call: &AggregateCall) -> Result<Box<dyn Accumulator>> {
    let view = &spec.view;
    let argument = argument_type(call, &spec.input);
    let kind = kind(call, argument.as_ref(), spec.changes);
    let argument = match argument {
        Some(data_type) => data_type,
        None if matches!(kind, Kind::Count) => DataType::Null,
        None => {
            return Err(failed(
                view,
                format!("'{}' is an aggregate without an argument", call.output.name()),
            ));
        }
    };
    let finish = average::Finish::new(Arc::clone(view), call, &argument)?;
    Ok(match kind {
        Kind::Count => Box::new(count::Count::default()),
        Kind::Integer => Box::new(number_sum::NumberSum::<i128>::new(finish)),
        Kind::Decimal => Box::new(number_sum::NumberSum::<arrow::datatypes::i256>::new(finish)),
        Kind::Float => Box::new(float_sum::FloatSum::new(finish)),
        Kind::Extreme if matches!(call.function, Function::Min | Function::Max) => {
            extreme_by_value(view, call.function, argument)?
        }
        Kind::Extreme => Box::new(extreme::Extreme::new(Arc::clone(view), call.function, argument)?),
        Kind::Distinct => Box::new(distinct::Distinct::new(Arc::clone(view), argument, spec.changes)?),
        Kind::Multiset => Box::new(multiset::Multiset::new(Arc::clone(view), call.function, argument)?),
    })
}

fn extreme_by_value(view: &Arc<str>, function: Function, argument: DataType) -> Result<Box<dyn Accumulator>> {
    macro_rules! native {
        ($type:ty, $argument:expr) => {
            Ok(Box::new(native_extreme::NativeExtreme::<$type>::new(Arc::clone(view), function, $argument)))
        };
    }
    arrow::array::downcast_primitive! {
        argument => (native, argument),
        _ => Ok(Box::new(extreme::Extreme::new(Arc::clone(view), function, argument)?)),
    }
}
