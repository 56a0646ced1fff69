//! Exact sums of doubles, rounded once.
//!
//! A sum is one integer in units of 2⁻¹⁰⁷⁴, the smallest double: wide enough for 2⁶³ times the largest double
//! (Kulisch's long accumulator). An expansion of doubles would be exact as well, but it overflows on the way
//! where the sum itself does not (1e308 + 1e308 − 1e308), which shows the order; and it has no canonical form.
//!
//! Invariant: limbs are two's complement, lowest first; equal sums have equal limbs and equal bytes.

/// 2098 bits for the largest double, 63 for the count, one for the sign: 2162 bits.
pub(super) const LIMBS: usize = 34;
/// The exponent of the lowest bit.
const LOWEST: i32 = -1074;
const NEGATIVE: u8 = 0x80;

/// Adds a finite `value`, `weight` times.
pub(super) fn add(limbs: &mut [u64], value: f64, weight: i64) {
    debug_assert!(value.is_finite(), "NaN and infinities are counted apart");
    let bits = value.to_bits();
    let exponent = ((bits >> 52) & 0x7ff) as usize;
    let fraction = bits & ((1 << 52) - 1);
    // Subnormals have no hidden bit and the exponent of the smallest normal double.
    let (mantissa, shift) = if exponent == 0 { (fraction, 0) } else { (fraction | 1 << 52, exponent - 1) };
    let product = u128::from(mantissa) * u128::from(weight.unsigned_abs());
    let (index, offset) = (shift / 64, shift % 64);
    let high = if offset == 0 { 0 } else { (product >> (128 - offset)) as u64 };
    let shifted = product << offset;
    let parts = [shifted as u64, (shifted >> 64) as u64, high];
    add_at(limbs, index, &parts, value.is_sign_negative() != (weight < 0));
}

/// Adds or subtracts a magnitude whose lowest limb stands at `index`.
fn add_at(limbs: &mut [u64], index: usize, magnitude: &[u64], negative: bool) {
    let mut carry = false;
    for (place, limb) in limbs[index..].iter_mut().enumerate() {
        let part = magnitude.get(place).copied().unwrap_or(0);
        if place >= magnitude.len() && !carry {
            break;
        }
        let (sum, first, second);
        if negative {
            let difference;
            (difference, first) = limb.overflowing_sub(part);
            (sum, second) = difference.overflowing_sub(u64::from(carry));
        } else {
            let partial;
            (partial, first) = limb.overflowing_add(part);
            (sum, second) = partial.overflowing_add(u64::from(carry));
        }
        *limb = sum;
        carry = first | second;
    }
}

/// The sign and the magnitude.
fn magnitude(limbs: &[u64]) -> (bool, [u64; LIMBS]) {
    let mut magnitude = [0; LIMBS];
    magnitude.copy_from_slice(limbs);
    let negative = magnitude[LIMBS - 1] >> 63 == 1;
    if negative {
        let mut carry = true;
        for limb in &mut magnitude {
            (*limb, carry) = (!*limb).overflowing_add(u64::from(carry));
        }
    }
    (negative, magnitude)
}

/// Appends the sum's canonical bytes: nothing for zero, else a byte with the sign and the place of the lowest
/// limb that is not zero, then the limbs from there to the highest.
pub(super) fn encode(limbs: &[u64], bytes: &mut Vec<u8>) {
    let Some(lowest) = limbs.iter().position(|&limb| limb != 0) else { return };
    let (negative, magnitude) = magnitude(limbs);
    let highest = magnitude.iter().rposition(|&limb| limb != 0).unwrap_or(lowest);
    bytes.push(lowest as u8 | if negative { NEGATIVE } else { 0 });
    for limb in &magnitude[lowest..=highest] {
        bytes.extend_from_slice(&limb.to_le_bytes());
    }
}

/// Adds what `encode` wrote; false if the bytes are not its.
pub(super) fn merge(limbs: &mut [u64], bytes: &[u8]) -> bool {
    let Some((&head, body)) = bytes.split_first() else { return true };
    let (parts, rest) = body.as_chunks::<8>();
    let lowest = usize::from(head & !NEGATIVE);
    if !rest.is_empty() || lowest + parts.len() > LIMBS {
        return false;
    }
    let mut magnitude = [0; LIMBS];
    for (limb, part) in magnitude.iter_mut().zip(parts) {
        *limb = u64::from_le_bytes(*part);
    }
    add_at(limbs, lowest, &magnitude[..parts.len()], head & NEGATIVE != 0);
    true
}

/// The double nearest to the sum, ties to even; beyond the largest double an infinity.
pub(super) fn round(limbs: &[u64]) -> f64 {
    let (negative, magnitude) = magnitude(limbs);
    signed(negative, nearest(&magnitude, LOWEST, false))
}

/// The double nearest to sum ÷ count. `count` > 0.
pub(super) fn round_mean(limbs: &[u64], count: u64) -> f64 {
    let (negative, magnitude) = magnitude(limbs);
    // One more limb below keeps enough of the quotient for the rounding of the smallest doubles.
    let mut quotient = [0; LIMBS + 1];
    quotient[1..].copy_from_slice(&magnitude);
    let remainder = divide(&mut quotient, count);
    signed(negative, nearest(&quotient, LOWEST - 64, remainder))
}

/// The double nearest to an integer ÷ count. `count` > 0.
pub(super) fn round_integer_mean(sum: i128, count: u64) -> f64 {
    let magnitude = sum.unsigned_abs();
    let mut quotient = [0, 0, magnitude as u64, (magnitude >> 64) as u64];
    let remainder = divide(&mut quotient, count);
    signed(sum < 0, nearest(&quotient, -128, remainder))
}

fn signed(negative: bool, value: f64) -> f64 {
    if negative { -value } else { value }
}

/// Long division in place; whether something remains.
fn divide(limbs: &mut [u64], by: u64) -> bool {
    let mut remainder = 0;
    for limb in limbs.iter_mut().rev() {
        let dividend = remainder << 64 | u128::from(*limb);
        *limb = (dividend / u128::from(by)) as u64;
        remainder = dividend % u128::from(by);
    }
    remainder != 0
}

/// The double nearest to an integer in units of 2^`lowest`, ties to even; `sticky`: a bit more than that.
fn nearest(limbs: &[u64], lowest: i32, sticky: bool) -> f64 {
    let Some(highest) = limbs.iter().rposition(|&limb| limb != 0) else { return 0.0 };
    let top = highest as i32 * 64 + 63 - limbs[highest].leading_zeros() as i32;
    let bit = |place: i32| place >= 0 && limbs[place as usize / 64] >> (place % 64) & 1 == 1;
    // The exponent of the result's last bit, and its place here. Places below 0 hold zeros.
    let unit = (lowest + top - 52).max(LOWEST);
    let last = unit - lowest;
    let mut mantissa: u64 =
        (last..=top).rev().fold(0, |mantissa, place| mantissa << 1 | u64::from(bit(place)));
    let more = || {
        let below = (last - 1).max(0) as usize;
        sticky || limbs[..below / 64].iter().any(|&limb| limb != 0) || {
            !below.is_multiple_of(64) && limbs[below / 64] << (64 - below % 64) != 0
        }
    };
    if bit(last - 1) && (mantissa & 1 == 1 || more()) {
        mantissa += 1;
    }
    let (mantissa, unit) = if mantissa == 1 << 53 { (1 << 52, unit + 1) } else { (mantissa, unit) };
    if mantissa < 1 << 52 {
        return f64::from_bits(mantissa);
    }
    let exponent = unit + 52 + 1023;
    if exponent >= 0x7ff {
        f64::INFINITY
    } else {
        f64::from_bits((exponent as u64) << 52 | (mantissa - (1 << 52)))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn sum(values: &[f64]) -> [u64; LIMBS] {
        let mut limbs = [0; LIMBS];
        values.iter().for_each(|&value| add(&mut limbs, value, 1));
        limbs
    }

    fn finite() -> impl Strategy<Value = f64> {
        any::<u64>().prop_map(f64::from_bits).prop_filter("finite", |value| value.is_finite())
    }

    #[test]
    fn cancellation_and_overflow_on_the_way_leave_no_trace() {
        assert_eq!(round(&sum(&[1e308, 1e308, -1e308])), 1e308);
        assert_eq!(round(&sum(&[1e16, 1.0, -1e16])), 1.0);
        assert_eq!(round(&sum(&[1e308, 5e-324, -1e308])), 5e-324);
        assert_eq!(round(&sum(&[f64::MAX, f64::MAX])), f64::INFINITY);
        assert_eq!(round(&sum(&[0.1; 10])), 1.0);
        assert_eq!(sum(&[0.3, -0.3]), [0; LIMBS]);
        assert_eq!(round_mean(&sum(&[f64::MAX, f64::MAX, f64::MAX]), 3), f64::MAX);
        assert_eq!(round_mean(&sum(&[5e-324, 5e-324, 5e-324]), 2), 1e-323);
        assert_eq!(round_integer_mean(-7, 2), -3.5);
    }

    proptest! {
        #[test]
        fn one_value_is_itself(value in finite()) {
            prop_assert_eq!(round(&sum(&[value])), value);
            prop_assert_eq!(round_mean(&sum(&[value]), 1), value);
        }

        #[test]
        fn two_values_sum_as_the_processor_sums_them(left in finite(), right in finite()) {
            prop_assert_eq!(round(&sum(&[left, right])), left + right);
        }

        #[test]
        fn a_quotient_is_the_processors(value in finite(), count in 1u64..1 << 53) {
            prop_assert_eq!(round_mean(&sum(&[value]), count), value / count as f64);
        }

        #[test]
        fn an_integer_quotient_is_the_processors(value in -(1i64 << 53)..1 << 53, count in 1u64..1 << 53) {
            prop_assert_eq!(round_integer_mean(value.into(), count), value as f64 / count as f64);
        }

        #[test]
        fn weights_order_and_encoding_do_not_show(values in prop::collection::vec((finite(), -3i64..4), 0..20), cut: prop::sample::Index) {
            let mut whole = [0; LIMBS];
            values.iter().for_each(|&(value, weight)| add(&mut whole, value, weight));
            let cut = cut.index(values.len() + 1);
            let mut merged = [0; LIMBS];
            for part in [&values[cut..], &values[..cut]] {
                let (mut limbs, mut bytes) = ([0; LIMBS], Vec::new());
                for &(value, weight) in part.iter().rev() {
                    for _ in 0..weight.abs() {
                        add(&mut limbs, value * weight.signum() as f64, 1);
                    }
                }
                encode(&limbs, &mut bytes);
                prop_assert!(merge(&mut merged, &bytes));
            }
            prop_assert_eq!(merged, whole);
        }
    }
}
