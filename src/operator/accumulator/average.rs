//! How an exact sum and a count become the result of `sum` or `avg`.
//!
//! Types are DataFusion's: sum(integer) is bigint, avg is double, and avg of a decimal a decimal of four more
//! digits, cut off (not rounded) there.

use std::sync::Arc;

use arrow::array::{ArrayRef, Decimal128Array, Decimal256Array, Float64Array, Int64Array, UInt64Array};
use arrow::datatypes::{DataType, Decimal128Type, Decimal256Type, DecimalType, i256};

use super::super::OperatorError;
use super::exact_float;
use super::{AggregateCall, Function, Result, failed};

pub(super) struct Finish {
    view: Arc<str>,
    column: String,
    pub(super) average: bool,
    output: DataType,
    /// 10 to the power of the digits of scale that the result has more than the argument.
    factor: i256,
}

impl Finish {
    pub(super) fn new(view: Arc<str>, call: &AggregateCall, argument: &DataType) -> Result<Self> {
        let output = call.output.data_type().clone();
        let scale = |data_type: &DataType| match data_type {
            DataType::Decimal32(_, scale)
            | DataType::Decimal64(_, scale)
            | DataType::Decimal128(_, scale)
            | DataType::Decimal256(_, scale) => *scale,
            _ => 0,
        };
        let column = call.output.name().clone();
        let more = i32::from(scale(&output)) - i32::from(scale(argument));
        if more < 0 && matches!(call.function, Function::Sum | Function::Avg) {
            return Err(failed(&view, format!("'{column}' has fewer digits of scale than its argument")));
        }
        let factor = (0..more).fold(i256::ONE, |factor, _| factor.wrapping_mul(i256::from_i128(10)));
        Ok(Self { view, column, average: call.function == Function::Avg, output, factor })
    }

    /// From sums and counts of values that are not null; a count of 0 gives null.
    pub(super) fn numbers(&self, sums: impl Iterator<Item = (i256, i64)>) -> Result<ArrayRef> {
        let sums = sums.map(|(sum, count)| (count != 0).then_some((sum, count)));
        Ok(match &self.output {
            DataType::Int64 => Arc::new(
                sums.map(|sum| self.integer(sum, |sum| i64::try_from(sum).ok()))
                    .collect::<Result<Int64Array>>()?,
            ),
            DataType::UInt64 => Arc::new(
                sums.map(|sum| self.integer(sum, |sum| u64::try_from(sum).ok()))
                    .collect::<Result<UInt64Array>>()?,
            ),
            DataType::Float64 => Arc::new(
                sums.map(|sum| {
                    self.integer(sum, Some)?
                        .zip(sum)
                        .map(|(integer, (_, count))| {
                            let divisor = if self.average { self.divisor(count)? } else { 1 };
                            Ok(exact_float::round_integer_mean(integer, divisor))
                        })
                        .transpose()
                })
                .collect::<Result<Float64Array>>()?,
            ),
            DataType::Decimal128(precision, scale) => {
                let values = sums.map(|sum| {
                    let decimal = self.decimal(sum)?;
                    let narrow = decimal.map(|decimal| decimal.to_i128().ok_or_else(|| self.overflow()));
                    let fits = |value| Decimal128Type::validate_decimal_precision(value, *precision, *scale);
                    narrow
                        .transpose()?
                        .map(|value| fits(value).map(|()| value).map_err(|_| self.overflow()))
                        .transpose()
                });
                let array = values.collect::<Result<Decimal128Array>>()?;
                Arc::new(array.with_precision_and_scale(*precision, *scale)?)
            }
            DataType::Decimal256(precision, scale) => {
                let fits = |value| Decimal256Type::validate_decimal_precision(value, *precision, *scale);
                let values = sums.map(|sum| {
                    let decimal = self.decimal(sum)?;
                    decimal.map(|value| fits(value).map(|()| value).map_err(|_| self.overflow())).transpose()
                });
                let array = values.collect::<Result<Decimal256Array>>()?;
                Arc::new(array.with_precision_and_scale(*precision, *scale)?)
            }
            other => return Err(failed(&self.view, format!("'{}' cannot be of type {other}", self.column))),
        })
    }

    fn integer<T>(&self, sum: Option<(i256, i64)>, narrow: impl Fn(i128) -> Option<T>) -> Result<Option<T>> {
        sum.map(|(sum, _)| sum.to_i128().and_then(narrow).ok_or_else(|| self.overflow())).transpose()
    }

    fn decimal(&self, sum: Option<(i256, i64)>) -> Result<Option<i256>> {
        let Some((sum, count)) = sum else { return Ok(None) };
        let scaled = sum.checked_mul(self.factor).ok_or_else(|| self.overflow())?;
        let divisor = if self.average { i256::from_i128(count.into()) } else { i256::ONE };
        Ok(scaled.checked_div(divisor))
    }

    fn overflow(&self) -> OperatorError {
        let (column, output) = (&self.column, &self.output);
        let what =
            format!("'{column}' does not fit into {output}; cast its argument to a wider type in the view");
        OperatorError::Overflow { view: self.view.to_string(), what }
    }

    pub(super) fn view(&self) -> &str {
        &self.view
    }

    pub(super) fn divisor(&self, count: i64) -> Result<u64> {
        u64::try_from(count).map_err(|_| {
            failed(&self.view, format!("'{}': more rows were taken back than were added", self.column))
        })
    }
}
