//! Filter and projection.
//!
//! Invariant: rows keep their order, event time, weight and provenance.

use std::sync::Arc;

use arrow::array::ArrayRef;

use super::evaluate::{Evaluated, by_halves, reject, truths, values};
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
                // Constants may fail where there is no row to blame.
                let project = spec.project.iter().flatten().filter(|_| kept.num_rows() > 0);
                let columns: Vec<ArrayRef> =
                    project.map(|expression| values(expression, &kept)).collect::<Evaluated<_>>()?;
                Ok((kept, columns))
            },
            &mut |_, (kept, columns)| {
                if kept.num_rows() == 0 {
                    return Ok(());
                }
                batches.push(match &spec.project {
                    Some(_) => kept.with_columns(Arc::clone(&spec.output), columns)?,
                    None => kept,
                });
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

#[cfg(test)]
mod tests {
    use arrow::array::AsArray;
    use arrow::datatypes::{DataType, Field, Int64Type, Schema};
    use datafusion_expr::Operator as BinaryOperator;
    use datafusion_physical_expr::expressions::{binary, lit};
    use proptest::prelude::*;

    use super::super::testing::{hundred_over_number, number_above, numbers, records};
    use super::*;

    fn map() -> Map {
        let output = Schema::new(vec![Field::new("share", DataType::Int64, true)]);
        Map::new(MapSpec {
            view: "shares".into(),
            filter: Some(number_above(-1)),
            project: Some(vec![hundred_over_number()]),
            output: Arc::new(output),
        })
    }

    #[test]
    fn a_bad_row_is_rejected_alone_and_a_filtered_one_is_not_evaluated() {
        let mut out = Output::default();
        let batch = numbers(&[Some(5), Some(0), None, Some(-1), Some(20), Some(0)]);
        map().process(0, &batch, &mut out).unwrap();
        assert_eq!(records(&out.batches), [10, 14]);
        let shares = out.batches.iter().flat_map(|batch| batch.rows.column(0).as_primitive::<Int64Type>());
        assert_eq!(shares.flatten().collect::<Vec<_>>(), [20, 5]);
        let rejected: Vec<_> = out.rejected.iter().map(|row| (row.record, row.reason.as_str())).collect();
        assert_eq!(rejected, [(Some(11), "expression"), (Some(15), "expression")]);
        assert_eq!(&*out.rejected[0].place, "shares");
        assert!(out.rejected[0].message.contains("Divide by zero"), "{}", out.rejected[0].message);
    }

    #[test]
    fn a_constant_that_fails_blames_no_row_that_is_filtered_out() {
        let mut spec = map().spec;
        let zero = numbers(&[Some(0)]).schema();
        let fails = binary(lit(1i64), BinaryOperator::Divide, lit(0i64), &zero).unwrap();
        spec.project = Some(vec![fails]);
        let mut out = Output::default();
        Map::new(spec).process(0, &numbers(&[Some(-5), None, Some(3)]), &mut out).unwrap();
        assert_eq!(out.rejected.iter().filter_map(|row| row.record).collect::<Vec<_>>(), [12]);
        assert!(out.batches.is_empty());
    }

    #[test]
    fn a_projection_of_another_type_than_planned_is_no_rows_fault() {
        let mut spec = map().spec;
        spec.output = Arc::new(Schema::new(vec![Field::new("share", DataType::Utf8, true)]));
        let mut out = Output::default();
        assert!(Map::new(spec).process(0, &numbers(&[Some(5)]), &mut out).is_err());
        assert!(out.rejected.is_empty());
    }

    #[test]
    fn a_derived_row_is_rejected_as_text() {
        let mut out = Output::default();
        let mut batch = numbers(&[Some(0)]);
        batch.source = None;
        map().process(0, &batch, &mut out).unwrap();
        assert_eq!(out.rejected[0].row.as_deref(), Some("{number: 0, moment: null}"));
        assert_eq!(out.rejected[0].record, None);
    }

    #[test]
    fn without_filter_and_projection_rows_pass_through() {
        let batch = numbers(&[Some(1), None]);
        let spec = MapSpec { view: "all".into(), filter: None, project: None, output: batch.schema() };
        let mut out = Output::default();
        Map::new(spec).process(0, &batch, &mut out).unwrap();
        assert_eq!(out.batches[0].rows, batch.rows);
    }

    proptest! {
        #[test]
        fn which_rows_are_bad_does_not_depend_on_batches(
            values in prop::collection::vec(prop::option::of(-2i64..3), 0..40),
        ) {
            let whole = numbers(&values);
            let mut together = Output::default();
            map().process(0, &whole, &mut together).unwrap();
            let mut alone = Output::default();
            for row in 0..values.len() {
                map().process(0, &whole.take(&[row as u32]).unwrap(), &mut alone).unwrap();
            }
            prop_assert_eq!(records(&together.batches), records(&alone.batches));
            prop_assert_eq!(together.rejected, alone.rejected);
        }
    }
}
