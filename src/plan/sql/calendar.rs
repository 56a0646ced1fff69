//! `date_trunc` and `date_bin` in microseconds: DataFusion's go through 64-bit nanoseconds, which end in 2262.

use std::sync::Arc;

use arrow::array::{Array, AsArray, TimestampMicrosecondArray};
use arrow::datatypes::{DataType, IntervalMonthDayNano, IntervalUnit, TimeUnit, TimestampMicrosecondType};
use chrono::{DateTime, Datelike, NaiveDate};
use datafusion_common::{DataFusionError, Result, ScalarValue, exec_datafusion_err, exec_err, plan_err};
use datafusion_expr::{ColumnarValue, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, Volatility};

use crate::record::Micros;

const TIME: DataType = DataType::Timestamp(TimeUnit::Microsecond, None);
const SECOND: Micros = 1_000_000;
const DAY: Micros = 86_400 * SECOND;

pub(super) fn functions() -> [Arc<ScalarUDF>; 2] {
    let signature = || Signature::user_defined(Volatility::Immutable);
    [
        Arc::new(ScalarUDF::from(DateTrunc { signature: signature() })),
        Arc::new(ScalarUDF::from(DateBin { signature: signature() })),
    ]
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct DateTrunc {
    signature: Signature,
}

impl ScalarUDFImpl for DateTrunc {
    fn name(&self) -> &str {
        "date_trunc"
    }
    fn signature(&self) -> &Signature {
        &self.signature
    }
    fn return_type(&self, _: &[DataType]) -> Result<DataType> {
        Ok(TIME)
    }
    fn coerce_types(&self, arguments: &[DataType]) -> Result<Vec<DataType>> {
        match arguments {
            [_, _] => Ok(vec![DataType::Utf8, TIME]),
            _ => plan_err!("date_trunc takes a unit and a timestamp: date_trunc('hour', sched_dep)"),
        }
    }
    fn invoke_with_args(&self, arguments: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let [ColumnarValue::Scalar(ScalarValue::Utf8(Some(unit))), times] = arguments.args.as_slice() else {
            return exec_err!("date_trunc takes a unit in quotes first: date_trunc('hour', sched_dep)");
        };
        let unit = unit.to_lowercase();
        each(times, arguments.number_rows, |time| truncate(&unit, time))
    }
}

fn truncate(unit: &str, time: Micros) -> Result<Micros> {
    let whole = |size: Micros| Ok(time - time.rem_euclid(size));
    match unit {
        "microsecond" => Ok(time),
        "millisecond" => whole(1_000),
        "second" => whole(SECOND),
        "minute" => whole(60 * SECOND),
        "hour" => whole(3_600 * SECOND),
        "day" => whole(DAY),
        // 1970-01-01 was a Thursday; weeks begin on Monday.
        "week" => Ok(time - (time + 3 * DAY).rem_euclid(7 * DAY)),
        "month" | "quarter" | "year" => {
            let outside = || exec_datafusion_err!("the timestamp {time} is outside the calendar");
            let date = DateTime::from_timestamp_micros(time).ok_or_else(outside)?.date_naive();
            let month = match unit {
                "month" => date.month(),
                "quarter" => (date.month() - 1) / 3 * 3 + 1,
                _ => 1,
            };
            let first = NaiveDate::from_ymd_opt(date.year(), month, 1).ok_or_else(outside)?;
            Ok(first.and_time(chrono::NaiveTime::MIN).and_utc().timestamp_micros())
        }
        _ => exec_err!(
            "date_trunc knows no '{unit}'; use microsecond, millisecond, second, minute, hour, day, week, month, quarter or year"
        ),
    }
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct DateBin {
    signature: Signature,
}

impl ScalarUDFImpl for DateBin {
    fn name(&self) -> &str {
        "date_bin"
    }
    fn signature(&self) -> &Signature {
        &self.signature
    }
    fn return_type(&self, _: &[DataType]) -> Result<DataType> {
        Ok(TIME)
    }
    fn coerce_types(&self, arguments: &[DataType]) -> Result<Vec<DataType>> {
        let interval = DataType::Interval(IntervalUnit::MonthDayNano);
        match arguments.len() {
            2 => Ok(vec![interval, TIME]),
            3 => Ok(vec![interval, TIME, TIME]),
            _ => plan_err!("date_bin takes an interval, a timestamp and, if need be, an origin"),
        }
    }
    fn invoke_with_args(&self, arguments: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let (size, times, origin) = match arguments.args.as_slice() {
            [size, times] => (size, times, 0),
            [size, times, ColumnarValue::Scalar(ScalarValue::TimestampMicrosecond(Some(origin), _))] => {
                (size, times, *origin)
            }
            _ => return exec_err!("date_bin's origin is one timestamp, not a column"),
        };
        let size = match size {
            ColumnarValue::Scalar(ScalarValue::IntervalMonthDayNano(Some(size))) => stride(*size)?,
            _ => return exec_err!("date_bin's first argument is one interval, not a column"),
        };
        each(times, arguments.number_rows, |time| Ok(time - (time - origin).rem_euclid(size)))
    }
}

fn stride(size: IntervalMonthDayNano) -> Result<Micros> {
    let micros =
        i64::from(size.days).checked_mul(DAY).and_then(|days| days.checked_add(size.nanoseconds / 1_000));
    match micros {
        Some(micros) if micros > 0 && size.months == 0 && size.nanoseconds % 1_000 == 0 => Ok(micros),
        _ => exec_err!("date_bin takes an interval of days and less, of at least a microsecond"),
    }
}

/// Applies a function to each timestamp; null stays null.
fn each(
    times: &ColumnarValue,
    rows: usize,
    change: impl Fn(Micros) -> Result<Micros>,
) -> Result<ColumnarValue> {
    if let ColumnarValue::Scalar(ScalarValue::TimestampMicrosecond(time, _)) = times {
        let changed = time.map(&change).transpose()?;
        return Ok(ColumnarValue::Scalar(ScalarValue::TimestampMicrosecond(changed, None)));
    }
    let array = times.to_array(rows)?;
    let Some(times) = array.as_primitive_opt::<TimestampMicrosecondType>() else {
        return exec_err!("expected timestamps, not {}", array.data_type());
    };
    let changed = times
        .iter()
        .map(|time| time.map(&change).transpose())
        .collect::<Result<TimestampMicrosecondArray, DataFusionError>>()?;
    Ok(ColumnarValue::Array(Arc::new(changed)))
}
