//! Intervals: the ways to write one, their parts, and a number of them.
//!
//! Invariant: the parts are PostgreSQL's (<https://www.postgresql.org/docs/current/functions-datetime.html>, EXTRACT):
//! a difference of two timestamps has days and a time of day, its seconds have a fraction, and nothing wraps around.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, Float64Array, Int64Array, IntervalMonthDayNanoArray};
use arrow::compute::cast;
use arrow::datatypes::{
    DataType, DurationMicrosecondType, Field, FieldRef, Float64Type, Int64Type, IntervalMonthDayNano,
    IntervalMonthDayNanoType, IntervalUnit, TimeUnit,
};
use datafusion_common::tree_node::{Transformed, TreeNode};
use datafusion_common::{DFSchema, Result, ScalarValue, exec_datafusion_err, exec_err, plan_err};
use datafusion_expr::expr::ScalarFunction;
use datafusion_expr::planner::{ExprPlanner, PlannerResult, RawBinaryExpr};
use datafusion_expr::{
    ColumnarValue, Expr, ExprSchemable, ReturnFieldArgs, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl,
    Signature, Volatility,
};
use datafusion_sql::sqlparser::ast::BinaryOperator;

use super::words::problem;

const INTERVAL: DataType = DataType::Interval(IntervalUnit::MonthDayNano);
const SECOND: i64 = 1_000_000;
const DAY: i64 = 86_400 * SECOND;

/// `PT1H30M`, `01:30:00` and `1 day 02:03:04` in the words that are read: numbers with units. `None`: it is neither.
pub(super) fn in_words(text: &str) -> Option<String> {
    let text = text.trim();
    if let Some(rest) = text.strip_prefix(['P', 'p']) {
        return iso(rest);
    }
    if !text.contains(':') {
        return None;
    }
    let words: Option<Vec<String>> = text
        .split_whitespace()
        .map(|word| if word.contains(':') { clock(word) } else { Some(word.to_string()) })
        .collect();
    words.map(|words| words.join(" "))
}

/// `1Y2M3DT4H5M6.5S`.
fn iso(text: &str) -> Option<String> {
    let (date, time) = match text.split_once(['T', 't']) {
        Some((_, "")) => return None,
        Some((date, time)) => (date, time),
        None => (text, ""),
    };
    let mut words = Vec::new();
    let parts = [
        (date, [('Y', "years"), ('M', "months"), ('W', "weeks"), ('D', "days")]),
        (time, [('H', "hours"), ('M', "minutes"), ('S', "seconds"), (' ', "")]),
    ];
    for (mut rest, units) in parts {
        while !rest.is_empty() {
            let end = rest.find(|character: char| character.is_ascii_alphabetic())?;
            let (number, after) = rest.split_at(end);
            let letter = after.chars().next()?.to_ascii_uppercase();
            let (_, unit) = units.iter().find(|(known, _)| *known == letter)?;
            number.parse::<f64>().ok()?;
            words.push(format!("{number} {unit}"));
            rest = &after[1..];
        }
    }
    (!words.is_empty()).then(|| words.join(" "))
}

/// `01:30`, `-01:30:00.5`.
fn clock(text: &str) -> Option<String> {
    let (sign, digits) = match text.strip_prefix('-') {
        Some(digits) => ("-", digits),
        None => ("", text.strip_prefix('+').unwrap_or(text)),
    };
    let mut parts = digits.split(':');
    let (hours, minutes, seconds) = (parts.next()?, parts.next()?, parts.next().unwrap_or("0"));
    let below_sixty = |text: &str| text.parse::<f64>().is_ok_and(|number| (0.0..60.0).contains(&number));
    let right = hours.parse::<u32>().is_ok()
        && minutes.parse::<u8>().is_ok()
        && below_sixty(minutes)
        && below_sixty(seconds)
        && parts.next().is_none();
    right.then(|| format!("{sign}{hours} hours {sign}{minutes} minutes {sign}{seconds} seconds"))
}

/// Those that the planner puts for operators and for `date_part` of an interval.
pub(super) fn functions() -> [Arc<ScalarUDF>; 2] {
    let signature = || Signature::user_defined(Volatility::Immutable);
    [
        Arc::new(ScalarUDF::from(Part { signature: signature() })),
        Arc::new(ScalarUDF::from(Times { signature: signature() })),
    ]
}

fn is_interval(data_type: &DataType) -> bool {
    matches!(data_type, DataType::Interval(_) | DataType::Duration(_))
}

/// Puts [`Part`] for `date_part` of intervals: DataFusion's cuts fractions off and counts in 32 bits.
pub(super) fn parts(expr: Expr, schema: &DFSchema) -> Result<Transformed<Expr>> {
    expr.transform_up(|expr| match expr {
        Expr::ScalarFunction(ScalarFunction { func, args })
            if func.name() == "date_part"
                && args.get(1).is_some_and(|of| of.get_type(schema).is_ok_and(|of| is_interval(&of))) =>
        {
            let [part, _] = functions();
            let _ = func;
            Ok(Transformed::yes(Expr::ScalarFunction(ScalarFunction::new_udf(part, args))))
        }
        other => Ok(Transformed::no(other)),
    })
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct Part {
    signature: Signature,
}

/// Microseconds (1,000 of a millisecond) or whole units, of (months, days, microseconds).
#[derive(Clone, Copy)]
enum Unit {
    Fraction(fn(i64, i64, i64) -> f64),
    Whole(fn(i64, i64, i64) -> i64),
}

fn unit(name: &str) -> Option<Unit> {
    Some(match name {
        // A year is 365.25 days and a month 30, as PostgreSQL counts.
        "epoch" => Unit::Fraction(|months, days, micros| {
            let days = (months / 12) as f64 * 365.25 + ((months % 12) * 30 + days) as f64;
            days * 86_400.0 + micros as f64 / 1e6
        }),
        "second" | "seconds" => Unit::Fraction(|_, _, micros| (micros % (60 * SECOND)) as f64 / 1e6),
        "millisecond" | "milliseconds" => {
            Unit::Fraction(|_, _, micros| (micros % (60 * SECOND)) as f64 / 1e3)
        }
        "microsecond" | "microseconds" => Unit::Whole(|_, _, micros| micros % (60 * SECOND)),
        "minute" | "minutes" => Unit::Whole(|_, _, micros| micros / (60 * SECOND) % 60),
        "hour" | "hours" => Unit::Whole(|_, _, micros| micros / (3_600 * SECOND)),
        "day" | "days" => Unit::Whole(|_, days, _| days),
        "month" | "months" => Unit::Whole(|months, _, _| months % 12),
        "quarter" => Unit::Whole(|months, _, _| months % 12 / 3 + 1),
        "year" | "years" => Unit::Whole(|months, _, _| months / 12),
        _ => return None,
    })
}

impl ScalarUDFImpl for Part {
    fn name(&self) -> &str {
        "_interval_part"
    }
    fn signature(&self) -> &Signature {
        &self.signature
    }
    fn return_type(&self, _: &[DataType]) -> Result<DataType> {
        plan_err!("the type depends on the part")
    }
    fn return_field_from_args(&self, arguments: ReturnFieldArgs) -> Result<FieldRef> {
        let data_type = match named(arguments.scalar_arguments.first().copied().flatten())? {
            Unit::Fraction(_) => DataType::Float64,
            Unit::Whole(_) => DataType::Int64,
        };
        Ok(Arc::new(Field::new(self.name(), data_type, true)))
    }
    fn coerce_types(&self, arguments: &[DataType]) -> Result<Vec<DataType>> {
        match arguments {
            [_, DataType::Duration(_)] => Ok(vec![DataType::Utf8, DataType::Duration(TimeUnit::Microsecond)]),
            [_, _] => Ok(vec![DataType::Utf8, INTERVAL]),
            _ => plan_err!("date_part takes the name of a part and an interval"),
        }
    }
    fn invoke_with_args(&self, arguments: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let [ColumnarValue::Scalar(name), of] = arguments.args.as_slice() else {
            return exec_err!("date_part takes the name of a part in quotes first");
        };
        let unit = named(Some(name))?;
        let of = of.to_array(arguments.number_rows)?;
        let parts: Vec<Option<(i64, i64, i64)>> = if let Some(differences) =
            of.as_primitive_opt::<DurationMicrosecondType>()
        {
            differences.iter().map(|micros| micros.map(|micros| (0, micros / DAY, micros % DAY))).collect()
        } else {
            let intervals = cast(&of, &INTERVAL)?;
            let parts =
                |of: IntervalMonthDayNano| (i64::from(of.months), i64::from(of.days), of.nanoseconds / 1_000);
            intervals.as_primitive::<IntervalMonthDayNanoType>().iter().map(|of| of.map(parts)).collect()
        };
        let epoch = matches!(name.try_as_str().flatten(), Some(name) if name.eq_ignore_ascii_case("epoch"));
        let is_difference = matches!(of.data_type(), DataType::Duration(_));
        let values: ArrayRef = match unit {
            // The whole of a difference at once: a sum of floats would round twice.
            Unit::Fraction(_) if epoch && is_difference => Arc::new(
                parts
                    .iter()
                    .map(|part| part.map(|(_, days, micros)| (days * DAY + micros) as f64 / 1e6))
                    .collect::<Float64Array>(),
            ),
            Unit::Fraction(part) => {
                Arc::new(parts.iter().map(|of| of.map(|(m, d, u)| part(m, d, u))).collect::<Float64Array>())
            }
            Unit::Whole(part) => {
                Arc::new(parts.iter().map(|of| of.map(|(m, d, u)| part(m, d, u))).collect::<Int64Array>())
            }
        };
        Ok(ColumnarValue::Array(values))
    }
}

fn named(name: Option<&ScalarValue>) -> Result<Unit> {
    let Some(name) = name.and_then(|name| name.try_as_str().flatten()) else {
        return Err(problem(
            "date_part takes the name of a part in quotes first",
            "date_part('hour', b - a)",
        ));
    };
    unit(&name.to_lowercase()).ok_or_else(|| {
        problem(
            format!("an interval has no part '{name}'"),
            "use epoch, year, quarter, month, day, hour, minute, second, millisecond or microsecond",
        )
    })
}

/// Plans `3 * interval '1 hour'`, with a column for the number, too.
#[derive(Debug)]
pub(super) struct Multiples;

impl ExprPlanner for Multiples {
    fn plan_binary_op(&self, raw: RawBinaryExpr, schema: &DFSchema) -> Result<PlannerResult<RawBinaryExpr>> {
        if !matches!(raw.op, BinaryOperator::Multiply) {
            return Ok(PlannerResult::Original(raw));
        }
        let types = (raw.left.get_type(schema), raw.right.get_type(schema));
        let (interval, number) = match types {
            (Ok(DataType::Interval(_)), Ok(number)) if number.is_numeric() => (raw.left, raw.right),
            (Ok(number), Ok(DataType::Interval(_))) if number.is_numeric() => (raw.right, raw.left),
            _ => return Ok(PlannerResult::Original(raw)),
        };
        let [_, times] = functions();
        Ok(PlannerResult::Planned(Expr::ScalarFunction(ScalarFunction::new_udf(
            times,
            vec![interval, number],
        ))))
    }
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct Times {
    signature: Signature,
}

impl ScalarUDFImpl for Times {
    fn name(&self) -> &str {
        "_interval_times"
    }
    fn signature(&self) -> &Signature {
        &self.signature
    }
    fn return_type(&self, _: &[DataType]) -> Result<DataType> {
        Ok(INTERVAL)
    }
    fn coerce_types(&self, arguments: &[DataType]) -> Result<Vec<DataType>> {
        match arguments {
            [_, number] if number.is_integer() => Ok(vec![INTERVAL, DataType::Int64]),
            [_, _] => Ok(vec![INTERVAL, DataType::Float64]),
            _ => plan_err!("an interval is multiplied by one number"),
        }
    }
    fn invoke_with_args(&self, arguments: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let [intervals, numbers] = arguments.args.as_slice() else {
            return exec_err!("an interval is multiplied by one number");
        };
        let intervals = intervals.to_array(arguments.number_rows)?;
        let intervals = intervals.as_primitive::<IntervalMonthDayNanoType>();
        let numbers = numbers.to_array(arguments.number_rows)?;
        let multiple = |row: usize| -> Result<Option<IntervalMonthDayNano>> {
            if intervals.is_null(row) || numbers.is_null(row) {
                return Ok(None);
            }
            let interval = intervals.value(row);
            let multiple = match numbers.as_primitive_opt::<Int64Type>() {
                Some(numbers) => whole(interval, numbers.value(row)),
                None => fraction(interval, numbers.as_primitive::<Float64Type>().value(row)),
            };
            multiple.map(Some).ok_or_else(|| exec_datafusion_err!("the interval is out of range"))
        };
        let made: IntervalMonthDayNanoArray =
            (0..arguments.number_rows).map(multiple).collect::<Result<_>>()?;
        Ok(ColumnarValue::Array(Arc::new(made)))
    }
}

fn whole(interval: IntervalMonthDayNano, times: i64) -> Option<IntervalMonthDayNano> {
    let small = |part: i32| i64::from(part).checked_mul(times).and_then(|part| i32::try_from(part).ok());
    Some(IntervalMonthDayNano::new(
        small(interval.months)?,
        small(interval.days)?,
        interval.nanoseconds.checked_mul(times)?,
    ))
}

/// As in PostgreSQL: what is less than a month is days, 30 of a month; what is less than a day is its hours.
fn fraction(interval: IntervalMonthDayNano, times: f64) -> Option<IntervalMonthDayNano> {
    let months = f64::from(interval.months) * times;
    let days = f64::from(interval.days) * times + months.fract() * 30.0;
    let nanoseconds = interval.nanoseconds as f64 * times + days.fract() * 86_400e9;
    let small = |part: f64| (part.abs() <= f64::from(i32::MAX)).then_some(part.trunc() as i32);
    let micros = (nanoseconds / 1e3).round();
    (micros.abs() < 9e15)
        .then(|| Some(IntervalMonthDayNano::new(small(months)?, small(days)?, micros as i64 * 1_000)))?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn intervals_are_read_as_iso_and_clock() {
        let read = |text: &str| in_words(text).unwrap_or_else(|| panic!("{text}"));
        assert_eq!(read("PT1H"), "1 hours");
        assert_eq!(
            read("P1Y2M3W4DT5H6M7.5S"),
            "1 years 2 months 3 weeks 4 days 5 hours 6 minutes 7.5 seconds"
        );
        assert_eq!(read("01:30:00"), "01 hours 30 minutes 00 seconds");
        assert_eq!(read("-1:30"), "-1 hours -30 minutes -0 seconds");
        assert_eq!(
            read("1 year 2 months 3 days 04:05:06"),
            "1 year 2 months 3 days 04 hours 05 minutes 06 seconds"
        );
        for text in ["1 hour", "P", "PT", "P1H", "PT1D", "1:60", "1:2:3:4", "x:1", "P1"] {
            assert_eq!(in_words(text), None, "{text}");
        }
    }
}
