//! Sums of integers and decimals.
//!
//! Invariant: additions wrap, so a sum that fits is exact whatever stood between.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, ArrowPrimitiveType, AsArray, Int64Array, PrimitiveArray};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Decimal128Type, Decimal256Type, Int64Type, i256};

use super::average::Finish;
use super::{Accumulator, Result, Rows};

/// The integers that sums are kept in: 128 bits hold 2⁶³ bigints, 256 bits as many decimals of 38 digits.
pub(super) trait Number: Copy + Default + Send {
    type State: ArrowPrimitiveType<Native = Self>;
    fn add_times(self, value: Self, weight: i64) -> Self;
    fn widen(self) -> i256;
}

impl Number for i128 {
    type State = Decimal128Type;
    fn add_times(self, value: Self, weight: i64) -> Self {
        self.wrapping_add(value.wrapping_mul(weight.into()))
    }
    fn widen(self) -> i256 {
        i256::from_i128(self)
    }
}

impl Number for i256 {
    type State = Decimal256Type;
    fn add_times(self, value: Self, weight: i64) -> Self {
        match weight {
            1 => self.wrapping_add(value),
            -1 => self.wrapping_sub(value),
            _ => self.wrapping_add(value.wrapping_mul(i256::from_i128(weight.into()))),
        }
    }
    fn widen(self) -> i256 {
        self
    }
}

pub(super) struct NumberSum<N> {
    finish: Finish,
    totals: Vec<Total<N>>,
}

/// Of one group. Both stand side by side, as a row touches both.
#[derive(Clone, Copy, Default)]
struct Total<N> {
    sum: N,
    /// Values that are not null.
    count: i64,
}

impl<N: Number> NumberSum<N> {
    pub(super) fn new(finish: Finish) -> Self {
        Self { finish, totals: Vec::new() }
    }

    fn add<T: ArrowPrimitiveType>(
        &mut self,
        rows: &Rows<'_>,
        values: &PrimitiveArray<T>,
        number: impl Fn(T::Native) -> N,
    ) {
        let nulls = values.nulls().filter(|nulls| nulls.null_count() > 0);
        rows.for_each(|row, group, weight| {
            if nulls.is_none_or(|nulls| nulls.is_valid(row)) {
                let total = &mut self.totals[group];
                total.sum = total.sum.add_times(number(values.value(row)), weight);
                total.count += weight;
            }
        });
    }
}

/// The argument in a type that every integer or decimal of its kind fits into.
fn widened(argument: &ArrayRef) -> Result<ArrayRef> {
    Ok(match argument.data_type() {
        DataType::Int64 | DataType::Decimal128(..) | DataType::Decimal256(..) => Arc::clone(argument),
        DataType::UInt64 => cast(argument, &DataType::Decimal128(20, 0))?,
        DataType::Decimal32(_, scale) | DataType::Decimal64(_, scale) => {
            cast(argument, &DataType::Decimal128(38, *scale))?
        }
        _ => cast(argument, &DataType::Int64)?,
    })
}

impl Accumulator for NumberSum<i128> {
    fn grow(&mut self, groups: usize) {
        self.totals.resize(groups, Total::default());
    }

    fn update(&mut self, rows: &Rows<'_>) -> Result<()> {
        let Some(argument) = rows.argument else { return Ok(()) };
        let argument = widened(argument)?;
        match argument.as_primitive_opt::<Int64Type>() {
            Some(values) => self.add(rows, values, i128::from),
            None => self.add(rows, argument.as_primitive::<Decimal128Type>(), |value| value),
        }
        Ok(())
    }

    fn merge(&mut self, groups: &[u32], states: &[ArrayRef]) -> Result<()> {
        self.merge_states(groups, states);
        Ok(())
    }

    fn states(&self, groups: &[u32]) -> Result<Vec<ArrayRef>> {
        self.state_columns(groups, DataType::Decimal128(38, 0))
    }

    fn results(&self, groups: &[u32]) -> Result<ArrayRef> {
        self.finish.numbers(self.pairs(groups))
    }

    fn clear(&mut self) {
        self.totals.clear();
    }
}

impl Accumulator for NumberSum<i256> {
    fn grow(&mut self, groups: usize) {
        self.totals.resize(groups, Total::default());
    }

    fn update(&mut self, rows: &Rows<'_>) -> Result<()> {
        let Some(argument) = rows.argument else { return Ok(()) };
        let argument = widened(argument)?;
        match argument.as_primitive_opt::<Decimal128Type>() {
            Some(values) => self.add(rows, values, i256::from_i128),
            None => self.add(rows, argument.as_primitive::<Decimal256Type>(), |value| value),
        }
        Ok(())
    }

    fn merge(&mut self, groups: &[u32], states: &[ArrayRef]) -> Result<()> {
        self.merge_states(groups, states);
        Ok(())
    }

    fn states(&self, groups: &[u32]) -> Result<Vec<ArrayRef>> {
        self.state_columns(groups, DataType::Decimal256(76, 0))
    }

    fn results(&self, groups: &[u32]) -> Result<ArrayRef> {
        self.finish.numbers(self.pairs(groups))
    }

    fn clear(&mut self) {
        self.totals.clear();
    }
}

impl<N: Number> NumberSum<N> {
    fn pairs(&self, groups: &[u32]) -> impl Iterator<Item = (i256, i64)> {
        groups.iter().map(|&group| self.totals[group as usize]).map(|total| (total.sum.widen(), total.count))
    }

    fn merge_states(&mut self, groups: &[u32], states: &[ArrayRef]) {
        let sums = states[0].as_primitive::<N::State>();
        let counts = states[1].as_primitive::<Int64Type>();
        for (row, &group) in groups.iter().enumerate() {
            let total = &mut self.totals[group as usize];
            total.sum = total.sum.add_times(sums.value(row), 1);
            total.count += counts.value(row);
        }
    }

    fn state_columns(&self, groups: &[u32], sum_type: DataType) -> Result<Vec<ArrayRef>> {
        let sums = groups.iter().map(|&group| self.totals[group as usize].sum);
        let counts = groups.iter().map(|&group| self.totals[group as usize].count);
        let sums = PrimitiveArray::<N::State>::from_iter_values(sums).with_data_type(sum_type);
        Ok(vec![Arc::new(sums), Arc::new(Int64Array::from_iter_values(counts))])
    }
}
