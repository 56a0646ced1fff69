//! Takes the columns that nothing reads out of what is already resolved, so that they are not decoded.
//!
//! Invariant: names are resolved against all declared columns; a column that simplification removes (`n = null`) is
//! known, and not read.
//! Invariant: what is left out of a schema is referred to by no expression over it.

use std::sync::Arc;

use arrow::datatypes::Schema;
use datafusion_common::{DFSchema, DFSchemaRef, Result};

use super::declared::CheckSource;
use super::sql::{self, Step, View};

/// Leaves the view the columns `kept` of its source, by their places among all `width` of them.
pub(super) fn view(view: &mut View, kept: &[usize], width: usize) -> Result<()> {
    if kept.len() == width {
        return Ok(());
    }
    for step in &mut view.steps {
        match step {
            Step::Map { input, project, output, .. } => {
                *input = without_unread(input, kept, width)?;
                if project.is_some() {
                    return Ok(());
                }
                *output = Arc::clone(input.inner());
            }
            Step::Tumble { time_column, output, .. } => {
                *time_column = kept.iter().position(|&column| column == *time_column).unwrap_or_default();
                let columns: Vec<usize> = kept_of(output.fields().len(), kept, width).collect();
                *output = Arc::new(output.project(&columns)?);
            }
            Step::Aggregate { input, .. } => {
                *input = without_unread(input, kept, width)?;
                return Ok(());
            }
        }
    }
    Ok(())
}

/// The columns of the source that are kept, then what steps have added behind them.
fn kept_of(columns: usize, kept: &[usize], width: usize) -> impl Iterator<Item = usize> {
    kept.iter().copied().chain(width..columns)
}

fn without_unread(schema: &DFSchemaRef, kept: &[usize], width: usize) -> Result<DFSchemaRef> {
    let fields = kept_of(schema.fields().len(), kept, width).map(|column| {
        let (qualifier, field) = schema.qualified_field(column);
        (qualifier.cloned(), Arc::clone(field))
    });
    Ok(Arc::new(DFSchema::new_with_metadata(fields.collect(), schema.metadata().clone())?))
}

/// Compiles a check against the columns that are decoded.
pub(super) fn check(check: &mut CheckSource, decoded: &Schema) -> Result<()> {
    let schema = DFSchema::try_from_qualified_schema(check.source.as_str(), decoded)?;
    check.spec.expect = sql::physical(&check.expr, &schema)?;
    Ok(())
}
