//! Checks: the rules that every record of a source must meet.
//!
//! Invariant: a dead record is dead whatever other checks say of it, so a check that fails it is never hidden
//! by one that would only drop it; it is rejected once, by the first check that fails it.

use std::sync::Arc;

use arrow::array::{Array, BooleanArray};

use super::evaluate::{by_halves, reject, truths};
use super::{CheckSpec, CheckedOtherwise, Input, Operator, Output, Result};
use crate::record::{Batch, Micros};

pub struct Check {
    checks: Vec<CheckSpec>,
    source: Arc<str>,
}

impl Check {
    /// `source` names the place in dead letters.
    pub fn new(checks: Vec<CheckSpec>, source: Arc<str>) -> Self {
        Self { checks, source }
    }
}

impl Operator for Check {
    fn process(&mut self, _input: Input, batch: &Batch, out: &mut Output) -> Result<()> {
        let mut dead = vec![false; batch.num_rows()];
        let mut dropped = vec![false; batch.num_rows()];
        for check in &self.checks {
            let mut failures = Vec::new();
            let mut errors = Vec::new();
            by_halves(
                batch,
                &mut |piece| truths(&check.expect, piece),
                &mut |start, passed: BooleanArray| {
                    let failed = (0..passed.len()).filter(|&row| passed.is_null(row) || !passed.value(row));
                    failures.extend(failed.map(|row| start + row));
                    Ok(())
                },
                &mut |row, error| {
                    errors.push((row, error.to_string()));
                    Ok(())
                },
            )?;
            failures.retain(|&row| !dead[row]);
            errors.retain(|(row, _)| !dead[*row]);
            for (row, message) in errors {
                dead[row] = true;
                let message = format!("check '{}': {message}", check.name);
                reject(out, batch, row, "expression", &self.source, message)?;
            }
            match check.otherwise {
                CheckedOtherwise::Dead => {
                    let reason = format!("check:{}", check.name);
                    for row in failures {
                        dead[row] = true;
                        let message = format!("not true: {}", check.text);
                        reject(out, batch, row, &reason, &self.source, message)?;
                    }
                }
                CheckedOtherwise::Drop => failures.into_iter().for_each(|row| dropped[row] = true),
                CheckedOtherwise::Warn if failures.is_empty() => {}
                CheckedOtherwise::Warn => out.warned.push((Arc::clone(&check.name), failures.len() as u64)),
            }
        }
        let kept: BooleanArray =
            dead.iter().zip(&dropped).map(|(dead, dropped)| Some(!dead && !dropped)).collect();
        if kept.true_count() > 0 {
            out.batches.push(batch.filter(&kept)?);
        }
        Ok(())
    }

    fn advance(&mut self, _to: Micros, _out: &mut Output) -> Result<()> {
        Ok(())
    }

    fn flush(&mut self, _out: &mut Output) -> Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use datafusion_expr::Operator as BinaryOperator;
    use datafusion_physical_expr::expressions::{binary, lit};

    use super::super::testing::{hundred_over_number, number_above, numbers, records, schema};
    use super::*;

    fn above(name: &str, than: i64, otherwise: CheckedOtherwise) -> CheckSpec {
        CheckSpec {
            name: name.into(),
            expect: number_above(than),
            text: format!("number > {than}"),
            otherwise,
        }
    }

    fn check(checks: Vec<CheckSpec>, batch: &Batch) -> Output {
        let mut out = Output::default();
        Check::new(checks, "orders".into()).process(0, batch, &mut out).unwrap();
        out
    }

    #[test]
    fn dead_drop_and_warn() {
        let batch = numbers(&[Some(-5), None, Some(5), Some(15), Some(25)]);
        let checks = vec![
            above("big", 20, CheckedOtherwise::Warn),
            above("worth_it", 10, CheckedOtherwise::Drop),
            above("positive", 0, CheckedOtherwise::Dead),
        ];
        let out = check(checks, &batch);
        assert_eq!(records(&out.batches), [13, 14]);
        let rejected: Vec<_> = out.rejected.iter().map(|row| (row.record, row.reason.as_str())).collect();
        assert_eq!(rejected, [(Some(10), "check:positive"), (Some(11), "check:positive")]);
        assert_eq!(out.rejected[0].message, "not true: number > 0");
        assert_eq!(&*out.rejected[0].place, "orders");
        assert_eq!(out.warned, [("big".into(), 4)]);
    }

    #[test]
    fn a_record_is_rejected_once() {
        let checks =
            vec![above("first", 0, CheckedOtherwise::Dead), above("second", 0, CheckedOtherwise::Dead)];
        let out = check(checks, &numbers(&[Some(-1)]));
        assert_eq!(out.rejected.len(), 1);
        assert_eq!(out.rejected[0].reason, "check:first");
        assert!(out.batches.is_empty());
    }

    #[test]
    fn a_check_that_cannot_be_evaluated_rejects_the_row() {
        let expect = binary(hundred_over_number(), BinaryOperator::Gt, lit(1i64), &schema()).unwrap();
        let text = "100 / number > 1".to_string();
        let fails = CheckSpec { name: "ratio".into(), expect, text, otherwise: CheckedOtherwise::Drop };
        let out = check(vec![fails], &numbers(&[Some(2), Some(0), Some(500), Some(3)]));
        assert_eq!(records(&out.batches), [10, 13]);
        assert_eq!(out.rejected.len(), 1);
        assert_eq!((out.rejected[0].record, out.rejected[0].reason.as_str()), (Some(11), "expression"));
    }
}
