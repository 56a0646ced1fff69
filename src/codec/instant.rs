//! Timestamps and dates as ISO text, both ways.
//!
//! Invariant: what is read lies in the years 1 to 9999; what is written of such a time is read back as it.

use std::io::Write;
use std::iter;

use crate::record::Micros;
use crate::time::{EVENT_TIME_MAX, EVENT_TIME_MIN};

const DAY: Micros = 86_400_000_000;

/// Why text is not a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum InstantError {
    /// Not written as one, or no such day or time of day.
    NotAnInstant,
    /// Outside the years 1 to 9999.
    OutOfRange,
}

use InstantError::{NotAnInstant, OutOfRange};

/// Reads `2013-01-01T05:00:00.123456Z`: `T` or a space between; seconds and their fraction may be missing; up
/// to 9 digits of fraction, of which those below a microsecond are cut off; `Z`, `±hh`, `±hhmm`, `±hh:mm`, or
/// no offset at all, which is UTC.
pub(crate) fn parse_timestamp(text: &str) -> Result<Micros, InstantError> {
    let bytes = text.as_bytes();
    let Some((date, rest)) = bytes.split_first_chunk::<10>() else { return Err(NotAnInstant) };
    let [b'T' | b't' | b' ', rest @ ..] = rest else { return Err(NotAnInstant) };
    let day = days(date)?;
    let (time, rest) = time_of_day(rest).ok_or(NotAnInstant)?;
    let offset = offset(rest).ok_or(NotAnInstant)?;
    in_range(day * DAY + time - offset)
}

/// Reads `2013-01-01` as days since 1970-01-01.
pub(crate) fn parse_date(text: &str) -> Result<i32, InstantError> {
    let date: &[u8; 10] = text.as_bytes().try_into().map_err(|_| NotAnInstant)?;
    Ok(days(date)? as i32)
}

/// A count of `unit` microseconds each since 1970-01-01 UTC.
pub(crate) fn from_units(count: i64, unit: Micros) -> Result<Micros, InstantError> {
    in_range(count.checked_mul(unit).ok_or(OutOfRange)?)
}

fn in_range(micros: Micros) -> Result<Micros, InstantError> {
    if (EVENT_TIME_MIN..=EVENT_TIME_MAX).contains(&micros) { Ok(micros) } else { Err(OutOfRange) }
}

fn days(date: &[u8; 10]) -> Result<i64, InstantError> {
    let [y0, y1, y2, y3, b'-', m0, m1, b'-', d0, d1] = *date else { return Err(NotAnInstant) };
    let (Some(century), Some(year), Some(month), Some(day)) =
        (two(y0, y1), two(y2, y3), two(m0, m1), two(d0, d1))
    else {
        return Err(NotAnInstant);
    };
    let year = century * 100 + year;
    if !(1..=12).contains(&month) || day < 1 || day > days_in_month(year, month) {
        return Err(NotAnInstant);
    }
    if year == 0 {
        return Err(OutOfRange);
    }
    Ok(days_from_civil(year, month, day))
}

/// `hh:mm[:ss[.fraction]]`, and what stands after it.
fn time_of_day(text: &[u8]) -> Option<(Micros, &[u8])> {
    let [h0, h1, b':', m0, m1, rest @ ..] = text else { return None };
    let (hour, minute) = (two(*h0, *h1)?, two(*m0, *m1)?);
    let (second, rest) = match rest {
        [b':', s0, s1, rest @ ..] => (two(*s0, *s1)?, rest),
        _ => (0, rest),
    };
    // No leap seconds: a day of UTC has 86,400 seconds here, as in every system around.
    if hour > 23 || minute > 59 || second > 59 {
        return None;
    }
    let whole = ((hour * 60 + minute) * 60 + second) * 1_000_000;
    // A fraction belongs to seconds that are there.
    let [b'.', digits @ ..] = rest else { return Some((whole, rest)) };
    if text.len() - rest.len() != 8 {
        return None;
    }
    let count = digits.iter().position(|byte| !byte.is_ascii_digit()).unwrap_or(digits.len());
    if !(1..=9).contains(&count) {
        return None;
    }
    let micros = digits[..count].iter().chain(iter::repeat(&b'0')).take(6);
    let fraction = micros.fold(0, |sum, digit| sum * 10 + i64::from(digit - b'0'));
    Some((whole + fraction, &digits[count..]))
}

fn offset(text: &[u8]) -> Option<Micros> {
    let (sign, hour, minute) = match *text {
        [] | [b'Z' | b'z'] => return Some(0),
        [sign, h0, h1] => (sign, two(h0, h1)?, 0),
        [sign, h0, h1, m0, m1] | [sign, h0, h1, b':', m0, m1] => (sign, two(h0, h1)?, two(m0, m1)?),
        _ => return None,
    };
    if hour > 23 || minute > 59 {
        return None;
    }
    let micros = (hour * 60 + minute) * 60_000_000;
    match sign {
        b'+' => Some(micros),
        b'-' => Some(-micros),
        _ => None,
    }
}

fn two(tens: u8, ones: u8) -> Option<i64> {
    let (tens, ones) = (tens.wrapping_sub(b'0'), ones.wrapping_sub(b'0'));
    if tens > 9 || ones > 9 {
        return None;
    }
    Some(i64::from(tens) * 10 + i64::from(ones))
}

fn days_in_month(year: i64, month: i64) -> i64 {
    match month {
        2 if year % 4 == 0 && (year % 100 != 0 || year % 400 == 0) => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

/// Howard Hinnant's `days_from_civil` (<https://howardhinnant.github.io/date_algorithms.html>).
fn days_from_civil(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let year_of_era = year.rem_euclid(400);
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    era * 146_097 + day_of_era - 719_468
}

/// Its inverse: year, month, day.
fn civil_from_days(days: i64) -> (i64, u8, u8) {
    let days = days + 719_468;
    let era = days.div_euclid(146_097);
    let day_of_era = days.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    (year, month as u8, day as u8)
}

/// Writes `2013-01-01T05:00:00Z`, with 3 or 6 digits of fraction where it has one.
pub(crate) fn write_timestamp(micros: Micros, out: &mut Vec<u8>) {
    write_date(micros.div_euclid(DAY), out);
    let time = micros.rem_euclid(DAY);
    let (seconds, fraction) = (time / 1_000_000, time % 1_000_000);
    out.push(b'T');
    push_two(seconds / 3600, out);
    out.push(b':');
    push_two(seconds / 60 % 60, out);
    out.push(b':');
    push_two(seconds % 60, out);
    if fraction != 0 {
        out.push(b'.');
        push_two(fraction / 10_000, out);
        let rest = fraction % 10_000;
        out.push(b'0' + (rest / 1000) as u8);
        if rest % 1000 != 0 {
            out.push(b'0' + (rest / 100 % 10) as u8);
            push_two(rest % 100, out);
        }
    }
    out.push(b'Z');
}

/// Writes `2013-01-01`. A year that four digits can't say, which only arithmetic yields, has its sign.
pub(crate) fn write_date(days: i64, out: &mut Vec<u8>) {
    let (year, month, day) = civil_from_days(days);
    if (0..=9999).contains(&year) {
        push_two(year / 100, out);
        push_two(year % 100, out);
    } else if write!(out, "{year:+05}").is_err() {
        unreachable!("writing to memory does not fail");
    }
    out.push(b'-');
    push_two(i64::from(month), out);
    out.push(b'-');
    push_two(i64::from(day), out);
}

fn push_two(value: i64, out: &mut Vec<u8>) {
    out.push(b'0' + (value / 10) as u8);
    out.push(b'0' + (value % 10) as u8);
}

#[cfg(test)]
mod tests {
    use chrono::{DateTime, NaiveDate, SecondsFormat};
    use proptest::prelude::*;

    use super::*;

    fn timestamp(micros: Micros) -> String {
        let mut out = Vec::new();
        write_timestamp(micros, &mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn every_accepted_form_is_the_same_moment() {
        let five = 1_357_016_400_000_000;
        for text in [
            "2013-01-01T05:00:00Z",
            "2013-01-01 05:00:00",
            "2013-01-01t05:00z",
            "2013-01-01T05:00",
            "2013-01-01T05:00:00.000000000Z",
            "2013-01-01T06:00:00+01:00",
            "2012-12-31T23:30:00-0530",
            "2013-01-01T00:00:00-05",
        ] {
            assert_eq!(parse_timestamp(text), Ok(five), "{text}");
        }
        assert_eq!(parse_timestamp("2013-01-01T05:00:00.1"), Ok(five + 100_000));
        // Below a microsecond it is cut off, before 1970 too: the same digits stay.
        assert_eq!(parse_timestamp("2013-01-01T05:00:00.123456999Z"), Ok(five + 123_456));
        assert_eq!(parse_timestamp("1969-12-31T23:59:59.999999999Z"), Ok(-1));
        assert_eq!(parse_timestamp("0001-01-01T00:00:00Z"), Ok(EVENT_TIME_MIN));
        assert_eq!(parse_timestamp("9999-12-31T23:59:59.999999Z"), Ok(EVENT_TIME_MAX));
    }

    #[test]
    fn what_is_no_timestamp_is_refused() {
        for text in [
            "",
            "2013-01-01",
            "2013-01-01T",
            "2013-01-01T05",
            "2013-01-01T24:00:00Z",
            "2013-01-01T05:60:00Z",
            "2013-01-01T05:00:60Z",
            "2013-01-01T05:00.5Z",
            "2013-01-01T05:00:00.Z",
            "2013-01-01T05:00:00.1234567890Z",
            "2013-01-01T05:00:00 Z",
            "2013-01-01T05:00:00+24:00",
            "2013-01-01T05:00:00+1",
            "2013-01-01T05:00:00Zulu",
            "2013-02-29T05:00:00Z",
            "1900-02-29T05:00:00Z",
            "2013-13-01T05:00:00Z",
            "2013-00-01T05:00:00Z",
            "2013-04-31T05:00:00Z",
            "2013-1-1T05:00:00Z",
            "12013-01-01T05:00:00Z",
            "2013/01/01 05:00:00",
            "2013-01-01T05:00:00ä",
            "20ä3-01-01T05:00:00Z",
        ] {
            assert_eq!(parse_timestamp(text), Err(NotAnInstant), "{text}");
        }
        for text in ["0000-01-01T00:00:00Z", "0001-01-01T00:00:00+01:00", "9999-12-31T23:59:59-00:01"] {
            assert_eq!(parse_timestamp(text), Err(OutOfRange), "{text}");
        }
    }

    #[test]
    fn dates() {
        assert_eq!(parse_date("1970-01-02"), Ok(1));
        assert_eq!(parse_date("2000-02-29"), Ok(11_016));
        assert_eq!(parse_date("0001-01-01").map(i64::from), Ok(EVENT_TIME_MIN.div_euclid(DAY)));
        assert_eq!(parse_date("9999-12-31").map(i64::from), Ok(EVENT_TIME_MAX.div_euclid(DAY)));
        assert_eq!(parse_date("0000-01-01"), Err(OutOfRange));
        for text in ["2013-01-01T00:00:00Z", "2013-1-1", "2013-02-30", ""] {
            assert_eq!(parse_date(text), Err(NotAnInstant), "{text}");
        }
    }

    #[test]
    fn integers_are_checked_for_range() {
        assert_eq!(from_units(1_357_016_400_000, 1000), Ok(1_357_016_400_000_000));
        assert_eq!(from_units(EVENT_TIME_MAX, 1), Ok(EVENT_TIME_MAX));
        assert_eq!(from_units(EVENT_TIME_MAX + 1, 1), Err(OutOfRange));
        assert_eq!(from_units(i64::MAX, 1_000_000), Err(OutOfRange));
        assert_eq!(from_units(EVENT_TIME_MIN / 1000 - 1, 1000), Err(OutOfRange));
    }

    #[test]
    fn a_fraction_has_0_3_or_6_digits() {
        assert_eq!(timestamp(1_357_016_400_000_000), "2013-01-01T05:00:00Z");
        assert_eq!(timestamp(1_357_016_400_120_000), "2013-01-01T05:00:00.120Z");
        assert_eq!(timestamp(1_357_016_400_000_001), "2013-01-01T05:00:00.000001Z");
        assert_eq!(timestamp(-1), "1969-12-31T23:59:59.999999Z");
    }

    #[test]
    fn every_integer_can_be_written() {
        assert_eq!(timestamp(EVENT_TIME_MAX + 1), "+10000-01-01T00:00:00Z");
        assert_eq!(timestamp(EVENT_TIME_MIN - 1), "0000-12-31T23:59:59.999999Z");
        assert_eq!(timestamp(EVENT_TIME_MIN - 367 * DAY), "-0001-12-31T00:00:00Z");
        assert!(timestamp(i64::MAX).starts_with("+294247-"));
        assert!(timestamp(i64::MIN).starts_with("-290308-"));
        write_date(i64::from(i32::MIN), &mut Vec::new());
        write_date(i64::from(i32::MAX), &mut Vec::new());
    }

    fn times() -> impl Strategy<Value = Micros> {
        let any = EVENT_TIME_MIN..=EVENT_TIME_MAX;
        prop_oneof![
            any.clone(),
            any.clone().prop_map(|time| time / 1000 * 1000),
            any.prop_map(|time| time / 1_000_000 * 1_000_000),
        ]
    }

    proptest! {
        #[test]
        fn it_agrees_with_chrono(time in times(), offset_minutes in -1439i64..=1439) {
            let moment = DateTime::from_timestamp_micros(time).unwrap();
            // chrono writes 0, 3 or 6 digits too.
            prop_assert_eq!(timestamp(time), moment.to_rfc3339_opts(SecondsFormat::AutoSi, true));
            prop_assert_eq!(parse_timestamp(&timestamp(time)), Ok(time));
            let offset = chrono::FixedOffset::east_opt(offset_minutes as i32 * 60).unwrap();
            let local = time + offset_minutes * 60_000_000;
            prop_assume!((EVENT_TIME_MIN..=EVENT_TIME_MAX).contains(&local));
            prop_assert_eq!(parse_timestamp(&moment.with_timezone(&offset).to_rfc3339()), Ok(time));
        }

        #[test]
        fn dates_agree_with_chrono(year in 0i32..=9999, month in 0u32..=13, day in 0u32..=32) {
            let expected = match NaiveDate::from_ymd_opt(year, month, day) {
                Some(_) if year == 0 => Err(OutOfRange),
                Some(date) => Ok((date - NaiveDate::default()).num_days() as i32),
                None => Err(NotAnInstant),
            };
            let text = format!("{year:04}-{month:02}-{day:02}");
            prop_assert_eq!(parse_date(&text), expected);
            if let Ok(days) = expected {
                let mut written = Vec::new();
                write_date(i64::from(days), &mut written);
                prop_assert_eq!(String::from_utf8(written).unwrap(), text);
            }
        }

        #[test]
        fn no_text_makes_it_panic(text in "[-+:.TZ 0-9ä]{0,40}") {
            let _ = (parse_timestamp(&text), parse_date(&text));
        }
    }
}
