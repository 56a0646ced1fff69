//! Decimals as text, both ways, without a detour over floating point.

use std::io::Write;

/// Why text is not a decimal of the column.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum DecimalError {
    /// The text is not a number.
    NotANumber,
    /// It has more digits than the column keeps, before or after the point.
    DoesNotFit,
}

/// Reads `[+-]digits[.digits][e[+-]digits]` as a number of `precision` digits, `scale` of them after the
/// point, exactly: 1.50 fits a scale of 1, 1.55 does not.
pub(crate) fn parse_decimal(text: &str, precision: u8, scale: u8) -> Result<i128, DecimalError> {
    let number = Number::parse(text.as_bytes()).ok_or(DecimalError::NotANumber)?;
    number.at_scale(precision, scale).ok_or(DecimalError::DoesNotFit)
}

/// The parts of a number's text: (whole followed by fraction) × 10^(exponent − fraction's length).
struct Number<'a> {
    negative: bool,
    whole: &'a [u8],
    fraction: &'a [u8],
    exponent: i64,
}

impl<'a> Number<'a> {
    fn parse(text: &'a [u8]) -> Option<Self> {
        let (negative, rest) = match text {
            [b'-', rest @ ..] => (true, rest),
            [b'+', rest @ ..] => (false, rest),
            _ => (false, text),
        };
        let (whole, rest) = digits(rest);
        let (fraction, rest) = match rest {
            [b'.', rest @ ..] => digits(rest),
            _ => (&[][..], rest),
        };
        if whole.is_empty() && fraction.is_empty() {
            return None;
        }
        let exponent = match rest {
            [] => 0,
            [b'e' | b'E', rest @ ..] => exponent(rest)?,
            _ => return None,
        };
        Some(Self { negative, whole, fraction, exponent })
    }

    /// The number × 10^scale, if that is whole and has at most `precision` digits.
    fn at_scale(&self, precision: u8, scale: u8) -> Option<i128> {
        let mut significant =
            self.whole.iter().chain(self.fraction).skip_while(|digit| **digit == b'0').copied();
        // The power of ten of the digit in hand, counted from the last digit that the column keeps.
        let count = significant.clone().count() as i64;
        if count == 0 {
            return Some(0);
        }
        let mut power =
            count - 1 - self.fraction.len() as i64 + self.exponent.saturating_add(i64::from(scale));
        if power >= i64::from(precision) {
            return None;
        }
        let mut value: i128 = 0;
        while power >= 0 {
            // Past the last digit come zeros, up to the scale.
            let digit = significant.next().unwrap_or(b'0');
            value = value * 10 + i128::from(digit - b'0');
            power -= 1;
        }
        if significant.any(|digit| digit != b'0') {
            return None;
        }
        Some(if self.negative { -value } else { value })
    }
}

fn digits(text: &[u8]) -> (&[u8], &[u8]) {
    text.split_at(text.iter().position(|byte| !byte.is_ascii_digit()).unwrap_or(text.len()))
}

fn exponent(text: &[u8]) -> Option<i64> {
    let (negative, rest) = match text {
        [b'-', rest @ ..] => (true, rest),
        [b'+', rest @ ..] => (false, rest),
        _ => (false, text),
    };
    let (digits, rest) = digits(rest);
    if digits.is_empty() || !rest.is_empty() {
        return None;
    }
    // Bounded well inside i64: beyond it a value is 0 or does not fit, whatever the exponent.
    let magnitude = digits.iter().fold(0i64, |sum, digit| (sum * 10 + i64::from(digit - b'0')).min(1 << 50));
    Some(if negative { -magnitude } else { magnitude })
}

/// Writes `value` × 10^−scale with every digit of the scale: 150 at scale 2 is `1.50`.
pub(crate) fn write_decimal(value: i128, scale: i8, out: &mut Vec<u8>) {
    let sign = if value < 0 { "-" } else { "" };
    let magnitude = value.unsigned_abs();
    let written = match u32::from(scale.unsigned_abs()) {
        0 => write!(out, "{sign}{magnitude}"),
        zeros if scale < 0 && magnitude != 0 => {
            write!(out, "{sign}{magnitude}{:0<width$}", "", width = zeros as usize)
        }
        _ if scale < 0 => write!(out, "0"),
        places => {
            // 10^39 is more than an i128 holds: all its digits then stand after the point.
            let (whole, fraction) = match 10u128.checked_pow(places) {
                Some(unit) => (magnitude / unit, magnitude % unit),
                None => (0, magnitude),
            };
            write!(out, "{sign}{whole}.{fraction:0width$}", width = places as usize)
        }
    };
    if written.is_err() {
        unreachable!("writing to memory does not fail");
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn text(value: i128, scale: i8) -> String {
        let mut out = Vec::new();
        write_decimal(value, scale, &mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn numbers_are_read_exactly() {
        for (text, value) in [
            ("1.5", 150),
            ("-1.50", -150),
            ("1.500000", 150),
            ("0", 0),
            ("-0.00", 0),
            ("000012", 1200),
            ("+.25", 25),
            ("7.", 700),
            ("1e2", 10_000),
            ("12.5E-1", 125),
            ("1200e-2", 1200),
            ("0.0000125e5", 125),
            ("99999999.99", 9_999_999_999),
            ("0e999999999999999999999", 0),
            ("0.0e-99999999999999999999", 0),
        ] {
            assert_eq!(parse_decimal(text, 10, 2), Ok(value), "{text}");
        }
        let most = "9".repeat(38);
        assert_eq!(parse_decimal(&most, 38, 0), Ok(10i128.pow(38) - 1));
        assert_eq!(parse_decimal(&format!("-0.{most}"), 38, 38), Ok(1 - 10i128.pow(38)));
    }

    #[test]
    fn what_does_not_fit_is_refused_not_rounded() {
        for text in ["1.555", "100000000", "1e8", "1e-3", "1e99999999999999999999", "1e-99999999999999999999"]
        {
            assert_eq!(parse_decimal(text, 10, 2), Err(DecimalError::DoesNotFit), "{text}");
        }
        assert_eq!(parse_decimal(&"9".repeat(39), 38, 0), Err(DecimalError::DoesNotFit));
        assert_eq!(parse_decimal(&"9".repeat(100_000), 38, 0), Err(DecimalError::DoesNotFit));
        assert_eq!(parse_decimal("1", 2, 2), Err(DecimalError::DoesNotFit));
    }

    #[test]
    fn what_is_no_number_is_refused() {
        for text in ["", "-", ".", "e5", "1e", "1e+", "1 ", " 1", "1,5", "0x1", "NaN", "1.2.3", "--1", "١"] {
            assert_eq!(parse_decimal(text, 10, 2), Err(DecimalError::NotANumber), "{text}");
        }
    }

    #[test]
    fn every_digit_of_the_scale_is_written() {
        assert_eq!(text(150, 2), "1.50");
        assert_eq!(text(-5, 2), "-0.05");
        assert_eq!(text(0, 3), "0.000");
        assert_eq!(text(42, 0), "42");
        assert_eq!(text(42, -2), "4200");
        assert_eq!(text(0, -2), "0");
        assert_eq!(text(-1, 38), format!("-0.{}1", "0".repeat(37)));
        assert_eq!(text(i128::MIN, 0), i128::MIN.to_string());
        assert_eq!(text(7, 40), format!("0.{}7", "0".repeat(39)));
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(value in -(10i128.pow(38) - 1)..10i128.pow(38), scale in 0u8..=38) {
            prop_assert_eq!(parse_decimal(&text(value, scale as i8), 38, scale), Ok(value));
        }

        #[test]
        fn an_exponent_only_moves_the_point(value in -999_999i128..=999_999, places in 0i8..=10) {
            let moved = format!("{}e{}", text(value, places), places);
            prop_assert_eq!(parse_decimal(&moved, 38, 0), Ok(value));
        }

        #[test]
        fn no_text_makes_it_panic(text in "[-+0-9.eE]{0,30}", precision in 1u8..=38) {
            let _ = parse_decimal(&text, precision, precision / 2);
        }
    }
}
