//! Filter and projection.
//!
//! Invariant: rows keep their order, event time, weight and provenance.

use std::sync::Arc;

use super::evaluate::{by_halves, reject, truths, values};
use super::{Input, MapSpec, Operator, Output, Result};
use crate::record::{Batch, Micros};

/// Keeps the rows that the filter is true for and projects them. A row whose expressions fail is rejected.
pub struct Map {
    spec: MapSpec,
}

impl Map {
    pub fn new(spec: MapSpec) -> Self {
        Self { spec }
    }
}

impl Operator for Map {
    fn process(&mut self, _input: Input, batch: &Batch, out: &mut Output) -> Result<()> {
        let spec = &self.spec;
        let Output { batches, .. } = out;
        let mut bad_rows = Vec::new();
        by_halves(
            batch,
            &mut |piece| {
                let kept = match &spec.filter {
                    Some(filter) => piece.filter(&truths(filter, piece)?)?,
                    None => piece.clone(),
                };
                let Some(project) = &spec.project else { return Ok(kept) };
                let columns = project.iter().map(|expression| values(expression, &kept));
                Ok(kept.with_columns(Arc::clone(&spec.output), columns.collect::<Result<_, _>>()?)?)
            },
            &mut |_, mapped| {
                if mapped.num_rows() > 0 {
                    batches.push(mapped);
                }
                Ok(())
            },
            &mut |row, error| {
                bad_rows.push((row, error.to_string()));
                Ok(())
            },
        )?;
        for (row, message) in bad_rows {
            reject(out, batch, row, "expression", &spec.view, message)?;
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
