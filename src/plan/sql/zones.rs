//! Local time: AT TIME ZONE and `to_local_time`, with the rules of the IANA time zone database that is compiled in.
//!
//! A column's timestamp is an instant in UTC. As in PostgreSQL, `ts at time zone 'Europe/Zurich'` takes a timestamp for
//! Zurich's local time and gives the instant; one more AT TIME ZONE takes the instant and gives a local time.
//!
//! Invariant: a local time that a clock shows twice is the second one, in winter time; one that it skips is read with the
//! offset before the change (as PostgreSQL does).

use std::sync::Arc;

use arrow::array::timezone::Tz;
use arrow::array::{Array, AsArray, TimestampMicrosecondArray};
use arrow::datatypes::{DataType, TimeUnit, TimestampMicrosecondType};
use chrono::{DateTime, Duration, LocalResult, NaiveDateTime, Offset, TimeZone};
use datafusion_common::{Result, exec_datafusion_err, exec_err, plan_err};
use datafusion_expr::{ColumnarValue, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, Volatility};

use crate::record::Micros;

const TIME: DataType = DataType::Timestamp(TimeUnit::Microsecond, None);

/// What the rewrites put for AT TIME ZONE.
pub(super) const INSTANT: &str = "_instant";
pub(super) const LOCAL: &str = "to_local_time";

pub(super) fn local() -> Arc<ScalarUDF> {
    zoned(LOCAL)
}

pub(super) fn instant() -> Arc<ScalarUDF> {
    zoned(INSTANT)
}

fn zoned(name: &'static str) -> Arc<ScalarUDF> {
    let signature = Signature::user_defined(Volatility::Immutable);
    Arc::new(ScalarUDF::from(Zoned { name, signature }))
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct Zoned {
    name: &'static str,
    signature: Signature,
}

impl ScalarUDFImpl for Zoned {
    fn name(&self) -> &str {
        self.name
    }
    fn signature(&self) -> &Signature {
        &self.signature
    }
    fn return_type(&self, _: &[DataType]) -> Result<DataType> {
        Ok(TIME)
    }
    fn coerce_types(&self, arguments: &[DataType]) -> Result<Vec<DataType>> {
        match arguments {
            [_, _] => Ok(vec![TIME, DataType::Utf8]),
            _ => plan_err!("{} takes a timestamp and a time zone: (ts, 'Europe/Zurich')", self.name),
        }
    }
    fn invoke_with_args(&self, arguments: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let [times, zones] = arguments.args.as_slice() else {
            return exec_err!("{} takes a timestamp and a time zone", self.name);
        };
        let times = times.to_array(arguments.number_rows)?;
        let Some(times) = times.as_primitive_opt::<TimestampMicrosecondType>() else {
            return exec_err!("expected timestamps, not {}", times.data_type());
        };
        let zones = zones.to_array(arguments.number_rows)?;
        let zones = zones.as_string::<i32>();
        let mut known: Option<(String, Tz)> = None;
        let mut change = |row: usize| -> Result<Option<Micros>> {
            if times.is_null(row) || zones.is_null(row) {
                return Ok(None);
            }
            let name = zones.value(row);
            let zone = match &known {
                Some((known, zone)) if known == name => *zone,
                _ => {
                    let zone = zone(name)?;
                    known = Some((name.to_string(), zone));
                    zone
                }
            };
            let time = times.value(row);
            let outside = || exec_datafusion_err!("the timestamp {time} is outside the calendar");
            let changed = if self.name == LOCAL { to_local(time, zone) } else { to_instant(time, zone) };
            changed.map(Some).ok_or_else(outside)
        };
        let changed: TimestampMicrosecondArray =
            (0..arguments.number_rows).map(&mut change).collect::<Result<_>>()?;
        Ok(ColumnarValue::Array(Arc::new(changed)))
    }
}

fn zone(name: &str) -> Result<Tz> {
    name.parse().map_err(|_| {
        exec_datafusion_err!(
            "there is no time zone '{name}': write a name as Europe/Zurich, or an offset as +01:00"
        )
    })
}

fn to_local(instant: Micros, zone: Tz) -> Option<Micros> {
    let utc = DateTime::from_timestamp_micros(instant)?.naive_utc();
    let offset = zone.offset_from_utc_datetime(&utc).fix().local_minus_utc();
    instant.checked_add(Micros::from(offset) * 1_000_000)
}

fn to_instant(local: Micros, zone: Tz) -> Option<Micros> {
    let time = DateTime::from_timestamp_micros(local)?.naive_utc();
    let offset = match zone.offset_from_local_datetime(&time) {
        LocalResult::Single(offset) => offset.fix(),
        LocalResult::Ambiguous(first, second) => {
            let (first, second) = (first.fix(), second.fix());
            if first.local_minus_utc() < second.local_minus_utc() { first } else { second }
        }
        LocalResult::None => before(time, zone)?,
    };
    local.checked_sub(Micros::from(offset.local_minus_utc()) * 1_000_000)
}

/// The offset before a clock is put forward.
fn before(time: NaiveDateTime, zone: Tz) -> Option<chrono::FixedOffset> {
    // No clock is put forward by more than a day.
    let earlier = time.checked_sub_signed(Duration::hours(25))?;
    zone.offset_from_local_datetime(&earlier).latest().map(|offset| offset.fix())
}
