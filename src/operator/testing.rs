//! Small batches and expressions for the operators' tests.

use std::sync::Arc;

use arrow::array::{ArrayRef, Int64Array, RecordBatch, TimestampMicrosecondArray};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef, TimeUnit};
use datafusion_expr::Operator as BinaryOperator;
use datafusion_physical_expr::PhysicalExpr;
use datafusion_physical_expr::expressions::{binary, col, lit};

use crate::record::{Batch, Micros, Origin, SourceRows};

pub(super) fn timestamp() -> DataType {
    DataType::Timestamp(TimeUnit::Microsecond, None)
}

/// `number` and `moment`, both nullable.
pub(super) fn schema() -> SchemaRef {
    Arc::new(Schema::new(vec![
        Field::new("number", DataType::Int64, true),
        Field::new("moment", timestamp(), true),
    ]))
}

/// Source rows; the record of row n is 10 + n.
pub(super) fn source_rows(rows: &[(Option<i64>, Option<Micros>)]) -> Batch {
    let columns: Vec<ArrayRef> = vec![
        Arc::new(rows.iter().map(|row| row.0).collect::<Int64Array>()),
        Arc::new(rows.iter().map(|row| row.1).collect::<TimestampMicrosecondArray>()),
    ];
    Batch {
        rows: RecordBatch::try_new(schema(), columns).unwrap(),
        time: rows.iter().map(|_| 0).collect(),
        weight: None,
        source: Some(SourceRows {
            origin: Origin::new("topic", 0),
            origin_index: 0,
            record: (0..rows.len() as u32).map(|row| 10 + row).collect(),
            offset: (0..rows.len() as i64).collect(),
            watermark: rows.iter().map(|_| Micros::MIN).collect(),
        }),
    }
}

/// Source rows with these numbers.
pub(super) fn numbers(numbers: &[Option<i64>]) -> Batch {
    source_rows(&numbers.iter().map(|&number| (number, None)).collect::<Vec<_>>())
}

pub(super) fn number() -> Arc<dyn PhysicalExpr> {
    col("number", &schema()).unwrap()
}

/// `number > than`.
pub(super) fn number_above(than: i64) -> Arc<dyn PhysicalExpr> {
    binary(number(), BinaryOperator::Gt, lit(than), &schema()).unwrap()
}

/// `100 / number`: fails where the number is 0.
pub(super) fn hundred_over_number() -> Arc<dyn PhysicalExpr> {
    binary(lit(100i64), BinaryOperator::Divide, number(), &schema()).unwrap()
}

/// The records of the batches' rows.
pub(super) fn records(batches: &[Batch]) -> Vec<u32> {
    batches
        .iter()
        .filter_map(|batch| batch.source.as_ref())
        .flat_map(|source| source.record.to_vec())
        .collect()
}
