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
