//! Evaluates an expression on made-up rows when the file is read, so that what can work for no record is refused then.
//!
//! Invariant: only what fails whatever the columns hold is refused: the samples stand for numbers, times and truth, so an
//! expression that reads text of a record is not judged.

use std::sync::Arc;

use arrow::array::{ArrayRef, RecordBatch, RecordBatchOptions, new_null_array};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Schema};
use datafusion_common::{DFSchema, ScalarValue};
use datafusion_expr::{Expr, ExprSchemable};

use super::mistyped::bare;
use super::physical;

/// Of which any number, date and timestamp can be made: some are years, some hours, some minutes, some days of a month.
const SAMPLES: [i64; 6] = [1, 2, 12, 28, 2_024, 20_000];

/// Why an expression fails for every record; `None`: it does not, or nobody can tell.
pub(super) fn fails_always(expr: &Expr, schema: &DFSchema) -> Option<String> {
    let columns = expr.column_refs();
    let is_judged = |data_type: &DataType| {
        data_type.is_numeric() || data_type.is_temporal() || *data_type == DataType::Boolean
    };
    let judged = columns.iter().all(|column| {
        schema.index_of_column(column).is_ok_and(|index| is_judged(schema.field(index).data_type()))
    });
    if !judged || expr.get_type(schema).is_err() {
        return None;
    }
    let physical = physical(expr, schema).ok()?;
    let mut failure = None;
    // One row each, that an error speaks of this row alone; at last the same without any value.
    for sample in SAMPLES.iter().map(Some).chain([None]) {
        let batch = row(schema.inner(), sample)?;
        match physical.evaluate(&batch).and_then(|value| value.into_array(1)) {
            Ok(_) if sample.is_none() => {}
            Ok(_) => return None,
            Err(error) => failure = failure.or_else(|| Some(bare(&error))),
        }
    }
    failure
}

/// The type that an expression has when it is evaluated, which is to be the one that it is planned with.
pub(super) fn evaluated(expr: &Expr, schema: &DFSchema) -> Option<DataType> {
    let batch = row(schema.inner(), None)?;
    let value = physical(expr, schema).ok()?.evaluate(&batch).ok()?;
    Some(value.data_type())
}

/// A row whose columns hold the number, as whatever they are.
fn row(schema: &Arc<Schema>, sample: Option<&i64>) -> Option<RecordBatch> {
    let columns = schema.fields().iter().map(|field| {
        let none = || new_null_array(field.data_type(), 1);
        match sample {
            Some(sample) => value(*sample, field.data_type()).unwrap_or_else(none),
            None => none(),
        }
    });
    let nullable: Vec<_> =
        schema.fields().iter().map(|field| field.as_ref().clone().with_nullable(true)).collect();
    let options = RecordBatchOptions::new().with_row_count(Some(1));
    RecordBatch::try_new_with_options(Arc::new(Schema::new(nullable)), columns.collect(), &options).ok()
}

fn value(sample: i64, data_type: &DataType) -> Option<ArrayRef> {
    let number = ScalarValue::Int64(Some(sample)).to_array().ok()?;
    match data_type {
        DataType::Boolean => ScalarValue::Boolean(Some(sample % 2 == 0)).to_array().ok(),
        DataType::Date32 => cast(&cast(&number, &DataType::Int32).ok()?, data_type).ok(),
        DataType::Timestamp(..) => {
            // Days since 1970, at noon.
            let micros =
                ScalarValue::Int64(Some(sample * 86_400_000_000 + 43_200_000_000)).to_array().ok()?;
            cast(&micros, data_type).ok()
        }
        other if other.is_numeric() => cast(&number, other).ok(),
        _ => None,
    }
}
