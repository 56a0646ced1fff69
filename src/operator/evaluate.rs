//! Expressions over batches, where one bad row must not fail its neighbours.
//!
//! Invariant: a row is rejected exactly when its expressions fail on that row alone, so how rows were cut into
//! batches cannot show.

use std::fmt::Write as _;
use std::sync::Arc;

use arrow::array::{ArrayRef, BooleanArray};
use arrow::util::display::{ArrayFormatter, FormatOptions};
use datafusion_common::{DataFusionError, cast::as_boolean_array};
use datafusion_physical_expr::PhysicalExpr;

use super::{OperatorError, Output, Rejected, Result};
use crate::record::{Batch, SourceRows};

/// What a failed evaluation says; anything else that goes wrong is no row's fault.
pub(super) type Evaluated<T> = std::result::Result<T, DataFusionError>;

/// Evaluates on the whole batch; where that fails, on its halves, until the bad rows stand alone. `good` is
/// given each piece's result and the index of its first row, in order; `bad` each row that fails alone.
pub(super) fn by_halves<T>(
    batch: &Batch,
    evaluate: &mut dyn FnMut(&Batch) -> Evaluated<T>,
    good: &mut dyn FnMut(usize, T) -> Result<()>,
    bad: &mut dyn FnMut(usize, &DataFusionError) -> Result<()>,
) -> Result<()> {
    // Pieces still to do, the first on top.
    let mut pieces = vec![(0, batch.num_rows())];
    while let Some((start, length)) = pieces.pop() {
        if length == 0 {
            continue;
        }
        let whole = length == batch.num_rows();
        let evaluated = if whole { evaluate(batch) } else { evaluate(&slice(batch, start, length)) };
        match evaluated {
            Ok(result) => good(start, result)?,
            Err(error) if length == 1 => bad(start, &error)?,
            Err(_) => {
                let half = length / 2;
                pieces.push((start + half, length - half));
                pieces.push((start, half));
            }
        }
    }
    Ok(())
}

/// The expression's values, one a row.
pub(super) fn values(expression: &Arc<dyn PhysicalExpr>, batch: &Batch) -> Evaluated<ArrayRef> {
    expression.evaluate(&batch.rows)?.into_array(batch.num_rows())
}

/// The values of a boolean expression.
pub(super) fn truths(expression: &Arc<dyn PhysicalExpr>, batch: &Batch) -> Evaluated<BooleanArray> {
    Ok(as_boolean_array(&values(expression, batch)?)?.clone())
}

/// Values on the rows where `keep` is true, null on the others: those are not evaluated, so cannot fail.
pub(super) fn values_where(
    expression: &Arc<dyn PhysicalExpr>,
    batch: &Batch,
    keep: &BooleanArray,
) -> Evaluated<ArrayRef> {
    expression.evaluate_selection(&batch.rows, keep)?.into_array(batch.num_rows())
}

pub(super) fn slice(batch: &Batch, start: usize, length: usize) -> Batch {
    Batch {
        rows: batch.rows.slice(start, length),
        time: batch.time.slice(start, length),
        weight: batch.weight.as_ref().map(|weight| weight.slice(start, length)),
        source: batch.source.as_ref().map(|source| SourceRows {
            origin: source.origin.clone(),
            origin_index: source.origin_index,
            record: source.record.slice(start, length),
            offset: source.offset.slice(start, length),
            watermark: source.watermark.slice(start, length),
        }),
    }
}

/// Hands a row over as rejected; one that is taken back was rejected when it was added.
pub(super) fn reject(
    out: &mut Output,
    batch: &Batch,
    row: usize,
    reason: &str,
    place: &Arc<str>,
    message: String,
) -> Result<()> {
    if batch.weight(row) < 0 {
        return Ok(());
    }
    let record = batch.source.as_ref().map(|source| source.record[row]);
    let text = if record.is_some() { None } else { Some(row_text(batch, row)?) };
    out.rejected.push(Rejected {
        record,
        row: text,
        reason: reason.to_string(),
        place: Arc::clone(place),
        message,
    });
    Ok(())
}

/// `{column: value, …}`.
fn row_text(batch: &Batch, row: usize) -> Result<String> {
    let options = FormatOptions::default().with_null("null");
    let schema = batch.rows.schema();
    let mut text = String::from("{");
    for (field, column) in schema.fields().iter().zip(batch.rows.columns()) {
        let separator = if text.len() > 1 { ", " } else { "" };
        let formatter = ArrayFormatter::try_new(column.as_ref(), &options)?;
        // Writing to a String cannot fail; a value that cannot be formatted prints its error.
        let _ = write!(text, "{separator}{}: {}", field.name(), formatter.value(row));
    }
    text.push('}');
    Ok(text)
}

/// An error that stops the task: an invariant of the plan or the engine is broken, or a result does not fit.
pub(super) fn failed(view: &str, what: impl Into<String>) -> OperatorError {
    OperatorError::Failed { view: view.to_string(), what: what.into() }
}
