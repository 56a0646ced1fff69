//! Partial and final aggregate together: however rows are split, merged, interrupted and corrected, the result
//! is that of the whole input at once, and that of a naive reference.

mod changes;
mod examples;
mod properties;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use arrow::array::{
    ArrayRef, Decimal128Array, Float64Array, Int64Array, RecordBatch, StringArray, TimestampMicrosecondArray,
};
use arrow::datatypes::{DataType, Field, FieldRef, Schema, SchemaRef, TimeUnit};
use arrow::row::{RowConverter, SortField};
use datafusion_expr::Operator as BinaryOperator;
use datafusion_physical_expr::PhysicalExpr;
use datafusion_physical_expr::expressions::{binary, col, lit};

use super::super::{
    AggregateCall, AggregateSpec, Function, GroupColumn, Operator, Order, Output, SharedState,
};
use super::{FinalAggregate, Listeners, PartialAggregate};
use crate::record::{Batch, Micros, Origin, SourceRows};
use crate::state::{MemoryStore, TaskState};

const SIZE: Micros = 100;

#[derive(Clone, Debug)]
struct Row {
    origin: u32,
    offset: i64,
    time: Micros,
    key: Option<&'static str>,
    integer: Option<i64>,
    float: Option<f64>,
}

impl Row {
    fn window_end(&self) -> Micros {
        (self.time.div_euclid(SIZE) + 1) * SIZE
    }
}

fn timestamp() -> DataType {
    DataType::Timestamp(TimeUnit::Microsecond, None)
}

fn input_schema() -> SchemaRef {
    Arc::new(Schema::new(vec![
        Field::new("window_start", timestamp(), false),
        Field::new("window_end", timestamp(), false),
        Field::new("key", DataType::Utf8, true),
        Field::new("integer", DataType::Int64, true),
        Field::new("float", DataType::Float64, true),
        Field::new("decimal", DataType::Decimal128(10, 2), true),
    ]))
}

fn column(schema: &Schema, name: &str) -> Arc<dyn PhysicalExpr> {
    col(name, schema).unwrap()
}

fn call(schema: &Schema, function: Function, argument: Option<&str>, output: DataType) -> AggregateCall {
    let name = format!("{function:?}_{}", argument.unwrap_or("rows"));
    AggregateCall {
        function,
        argument: argument.map(|name| column(schema, name)),
        filter: None,
        output: Arc::new(Field::new(name, output, true)),
    }
}

fn spec_of(
    input: SchemaRef,
    groups: &[&str],
    calls: Vec<AggregateCall>,
    order: Order,
    changes: bool,
) -> AggregateSpec {
    let groups: Vec<GroupColumn> = groups
        .iter()
        .map(|name| {
            let field: FieldRef = Arc::new(input.field_with_name(name).unwrap().clone());
            GroupColumn { expr: column(&input, name), field }
        })
        .collect();
    let place = |name: &str| groups.iter().position(|group| group.field.name() == name);
    let fields = groups.iter().map(|group| &group.field).chain(calls.iter().map(|call| &call.output));
    AggregateSpec {
        view: "view".into(),
        state_id: 7,
        window_start: place("window_start"),
        window_end: place("window_end"),
        size: SIZE,
        order,
        grace: 0,
        retention: 0,
        output: Arc::new(Schema::new(fields.cloned().collect::<Vec<_>>())),
        changes,
        input,
        groups,
        calls,
    }
}

fn spec() -> AggregateSpec {
    let schema = input_schema();
    let mut positive = call(&schema, Function::Sum, Some("integer"), DataType::Int64);
    positive.filter =
        Some(binary(column(&schema, "integer"), BinaryOperator::Gt, lit(0i64), &schema).unwrap());
    let calls = vec![
        call(&schema, Function::Count, None, DataType::Int64),
        call(&schema, Function::Count, Some("float"), DataType::Int64),
        call(&schema, Function::Sum, Some("integer"), DataType::Int64),
        call(&schema, Function::Sum, Some("float"), DataType::Float64),
        call(&schema, Function::Avg, Some("float"), DataType::Float64),
        call(&schema, Function::Avg, Some("integer"), DataType::Float64),
        call(&schema, Function::Sum, Some("decimal"), DataType::Decimal128(20, 2)),
        call(&schema, Function::Avg, Some("decimal"), DataType::Decimal128(14, 6)),
        call(&schema, Function::Min, Some("float"), DataType::Float64),
        call(&schema, Function::Max, Some("integer"), DataType::Int64),
        call(&schema, Function::First, Some("integer"), DataType::Int64),
        call(&schema, Function::Last, Some("float"), DataType::Float64),
        positive,
        call(&schema, Function::Min, Some("key"), DataType::Utf8),
        call(&schema, Function::Max, Some("decimal"), DataType::Decimal128(10, 2)),
        call(&schema, Function::CountDistinct, Some("float"), DataType::Int64),
        call(&schema, Function::CountDistinct, Some("key"), DataType::Int64),
    ];
    spec_of(schema, &["key", "window_start", "window_end"], calls, Order::Source, false)
}

/// Rows of one origin; the watermark of each is `watermark`.
fn batch(rows: &[Row], watermark: Micros) -> Batch {
    let ends: Vec<Micros> = rows.iter().map(Row::window_end).collect();
    let starts: Vec<Micros> = ends.iter().map(|end| end - SIZE).collect();
    let decimals: Decimal128Array = rows.iter().map(|row| row.integer.map(i128::from)).collect();
    let columns: Vec<ArrayRef> = vec![
        Arc::new(TimestampMicrosecondArray::from(starts)),
        Arc::new(TimestampMicrosecondArray::from(ends)),
        Arc::new(rows.iter().map(|row| row.key).collect::<StringArray>()),
        Arc::new(rows.iter().map(|row| row.integer).collect::<Int64Array>()),
        Arc::new(rows.iter().map(|row| row.float).collect::<Float64Array>()),
        Arc::new(decimals.with_precision_and_scale(10, 2).unwrap()),
    ];
    Batch {
        rows: RecordBatch::try_new(input_schema(), columns).unwrap(),
        time: rows.iter().map(|row| row.time).collect(),
        weight: None,
        source: Some(SourceRows {
            origin: Origin::new("topic", rows.first().map_or(0, |row| row.origin as i32)),
            origin_index: rows.first().map_or(0, |row| row.origin),
            record: (0..rows.len() as u32).collect(),
            offset: rows.iter().map(|row| row.offset).collect(),
            watermark: rows.iter().map(|_| watermark).collect(),
        }),
    }
}

/// One whose rows somebody has as their windows close.
fn final_aggregate(spec: Arc<AggregateSpec>, state: SharedState) -> super::super::Result<FinalAggregate> {
    FinalAggregate::new(spec, state, Listeners { closed: true, changes: false })
}

fn empty_state() -> SharedState {
    Arc::new(Mutex::new(TaskState::new(Box::new(MemoryStore::default()))))
}

fn state_rows(state: &SharedState) -> usize {
    let mut rows = 0;
    let count = &mut |_: &[u8], _: &[u8]| {
        rows += 1;
        std::ops::ControlFlow::Continue(())
    };
    state.lock().unwrap().scan(&[], &[], count).unwrap();
    rows
}

/// Partial aggregates the rows as one epoch.
fn partial(spec: &Arc<AggregateSpec>, batches: &[Batch]) -> Vec<Batch> {
    let mut operator = PartialAggregate::new(Arc::clone(spec)).unwrap();
    let mut out = Output::default();
    batches.iter().for_each(|batch| operator.process(0, batch, &mut out).unwrap());
    operator.flush(&mut out).unwrap();
    assert!(out.rejected.is_empty() && out.late.is_empty());
    out.batches
}

/// A live table: what a consumer of the changes has. Rows as sortable bytes, with their weights.
#[derive(Default, Debug, PartialEq, Eq)]
struct Table(BTreeMap<Vec<u8>, i64>);

impl Table {
    fn apply(&mut self, batches: &[Batch]) {
        for batch in batches {
            let fields = batch.rows.columns().iter().map(|column| SortField::new(column.data_type().clone()));
            let converter = RowConverter::new(fields.collect()).unwrap();
            let rows = converter.convert_columns(batch.rows.columns()).unwrap();
            for (index, row) in rows.iter().enumerate() {
                let weight = self.0.entry(row.data().to_vec()).or_default();
                *weight += batch.weight(index);
                assert!((0..=1).contains(weight), "a row is there once or not at all");
            }
        }
        self.0.retain(|_, weight| *weight != 0);
    }

    fn of(batches: &[Batch]) -> Self {
        let mut table = Self::default();
        table.apply(batches);
        table
    }
}

/// One batch an origin, one epoch, everything closed at the end.
fn whole(spec: &Arc<AggregateSpec>, rows: &[Row]) -> Vec<Batch> {
    let mut operator = final_aggregate(Arc::clone(spec), empty_state()).unwrap();
    let mut out = Output::default();
    for origin in 0..3 {
        let own: Vec<Row> = rows.iter().filter(|row| row.origin == origin).cloned().collect();
        for exchanged in partial(spec, &[batch(&own, Micros::MIN)]) {
            operator.process(0, &exchanged, &mut out).unwrap();
        }
    }
    operator.advance(Micros::MAX, &mut out).unwrap();
    operator.flush(&mut out).unwrap();
    out.batches
}
