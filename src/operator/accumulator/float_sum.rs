//! Sums and averages of floating point numbers.
//!
//! Invariant: exact until the one rounding of the result; NaN and infinities are counted apart.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, BinaryBuilder, Float64Array, Int64Array};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Float64Type, Int64Type};

use super::average::Finish;
use super::exact_float::{self, LIMBS};
use super::{Accumulator, Result, Rows, failed};

pub(super) struct FloatSum {
    finish: Finish,
    /// `LIMBS` a group.
    limbs: Vec<u64>,
    specials: Vec<Specials>,
    /// Values that are not null.
    counts: Vec<i64>,
}

/// How many values are no finite number.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
struct Specials {
    nan: i64,
    infinity: i64,
    negative_infinity: i64,
}

const SPECIALS_BYTES: usize = 24;
/// First byte of a state: no specials follow.
const PLAIN: u8 = 0;
const WITH_SPECIALS: u8 = 1;

impl Specials {
    fn count(&mut self, value: f64, weight: i64) {
        if value.is_nan() {
            self.nan += weight;
        } else if value > 0.0 {
            self.infinity += weight;
        } else {
            self.negative_infinity += weight;
        }
    }

    /// The sum, if it is decided by these alone.
    fn sum(self) -> Option<f64> {
        match (self.nan != 0, self.infinity != 0, self.negative_infinity != 0) {
            (false, false, false) => None,
            (false, true, false) => Some(f64::INFINITY),
            (false, false, true) => Some(f64::NEG_INFINITY),
            _ => Some(f64::NAN),
        }
    }
}

impl FloatSum {
    pub(super) fn new(finish: Finish) -> Self {
        Self { finish, limbs: Vec::new(), specials: Vec::new(), counts: Vec::new() }
    }

    fn limbs(&self, group: usize) -> &[u64] {
        &self.limbs[group * LIMBS..(group + 1) * LIMBS]
    }

    fn encode(&self, group: usize, bytes: &mut Vec<u8>) {
        bytes.clear();
        let specials = self.specials[group];
        if specials == Specials::default() {
            bytes.push(PLAIN);
        } else {
            bytes.push(WITH_SPECIALS);
            for count in [specials.nan, specials.infinity, specials.negative_infinity] {
                bytes.extend_from_slice(&count.to_be_bytes());
            }
        }
        exact_float::encode(self.limbs(group), bytes);
    }

    /// Adds what `encode` wrote; `None` if the bytes are not its.
    fn merge_one(&mut self, group: usize, bytes: &[u8]) -> Option<()> {
        let (&head, mut rest) = bytes.split_first()?;
        if head == WITH_SPECIALS {
            let (counts, limbs) = rest.split_first_chunk::<SPECIALS_BYTES>()?;
            let count =
                |place: usize| i64::from_be_bytes(std::array::from_fn(|byte| counts[place * 8 + byte]));
            let specials = &mut self.specials[group];
            specials.nan += count(0);
            specials.infinity += count(1);
            specials.negative_infinity += count(2);
            rest = limbs;
        } else if head != PLAIN {
            return None;
        }
        exact_float::merge(&mut self.limbs[group * LIMBS..(group + 1) * LIMBS], rest).then_some(())
    }

    fn result(&self, group: usize) -> Result<Option<f64>> {
        let count = self.counts[group];
        if count == 0 {
            return Ok(None);
        }
        Ok(Some(match self.specials[group].sum() {
            Some(sum) => sum,
            None if self.finish.average => {
                exact_float::round_mean(self.limbs(group), self.finish.divisor(count)?)
            }
            None => exact_float::round(self.limbs(group)),
        }))
    }
}

impl Accumulator for FloatSum {
    fn grow(&mut self, groups: usize) {
        self.limbs.resize(groups * LIMBS, 0);
        self.specials.resize(groups, Specials::default());
        self.counts.resize(groups, 0);
    }

    fn update(&mut self, rows: &Rows<'_>) -> Result<()> {
        let Some(argument) = rows.argument else { return Ok(()) };
        let argument = cast(argument, &DataType::Float64)?;
        let values = argument.as_primitive::<Float64Type>();
        rows.for_each(|row, group, weight| {
            if values.is_valid(row) {
                let value = values.value(row);
                if value.is_finite() {
                    exact_float::add(&mut self.limbs[group * LIMBS..(group + 1) * LIMBS], value, weight);
                } else {
                    self.specials[group].count(value, weight);
                }
                self.counts[group] += weight;
            }
        });
        Ok(())
    }

    fn merge(&mut self, groups: &[u32], states: &[ArrayRef]) -> Result<()> {
        let sums = states[0].as_binary::<i32>();
        let counts = states[1].as_primitive::<Int64Type>();
        for (row, &group) in groups.iter().enumerate() {
            if self.merge_one(group as usize, sums.value(row)).is_none() {
                return Err(failed(
                    self.finish.view(),
                    "the state of a sum of floating point numbers is damaged",
                ));
            }
            self.counts[group as usize] += counts.value(row);
        }
        Ok(())
    }

    fn states(&self, groups: &[u32]) -> Result<Vec<ArrayRef>> {
        let mut sums = BinaryBuilder::new();
        let mut bytes = Vec::new();
        for &group in groups {
            self.encode(group as usize, &mut bytes);
            sums.append_value(&bytes);
        }
        let counts = groups.iter().map(|&group| self.counts[group as usize]);
        Ok(vec![Arc::new(sums.finish()), Arc::new(Int64Array::from_iter_values(counts))])
    }

    fn results(&self, groups: &[u32]) -> Result<ArrayRef> {
        let results = groups.iter().map(|&group| self.result(group as usize));
        Ok(Arc::new(results.collect::<Result<Float64Array>>()?))
    }

    fn clear(&mut self) {
        self.limbs.clear();
        self.specials.clear();
        self.counts.clear();
    }
}
