//! Partial and final aggregate together: however rows are split, merged, interrupted and corrected, the result
//! is that of the whole input at once, and that of a naive reference.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use arrow::array::{
    Array, ArrayRef, AsArray, Decimal128Array, Float64Array, Int64Array, RecordBatch, StringArray,
    TimestampMicrosecondArray,
};
use arrow::datatypes::{DataType, Field, FieldRef, Float64Type, Int64Type, Schema, SchemaRef, TimeUnit};
use arrow::row::{RowConverter, SortField};
use datafusion_expr::Operator as BinaryOperator;
use datafusion_physical_expr::PhysicalExpr;
use datafusion_physical_expr::expressions::{binary, col, lit};
use proptest::prelude::*;

use super::super::{
    AggregateCall, AggregateSpec, Function, GroupColumn, Operator, OperatorError, Order, Output, SharedState,
};
use super::{FinalAggregate, PartialAggregate, exchange_schema};
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
    let mut operator = FinalAggregate::new(Arc::clone(spec), empty_state()).unwrap();
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

fn float() -> impl Strategy<Value = f64> {
    prop_oneof![
        8 => prop::sample::select(vec![0.1, 1e308, -1e308, 1e16, -1e16, 1.0, -0.0, 5e-324, 0.3, -1e-300]),
        1 => prop::sample::select(vec![f64::NAN, f64::INFINITY, f64::NEG_INFINITY]),
        4 => -1e3..1e3,
    ]
}

fn rows(max: usize) -> impl Strategy<Value = Vec<Row>> {
    let row = (
        0u32..3,
        -250i64..250,
        prop::sample::select(vec![None, Some("a"), Some("b"), Some("")]),
        prop::option::weighted(0.9, -1_000_000i64..1_000_000),
        prop::option::weighted(0.9, float()),
    );
    prop::collection::vec(row, 1..max).prop_map(|rows| {
        let rows = rows.into_iter().enumerate().map(|(offset, (origin, time, key, integer, float))| Row {
            origin,
            offset: offset as i64,
            time,
            key,
            integer,
            float,
        });
        rows.collect()
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Any split into batches and epochs, any order of merging, and a rebuild after any epoch.
    #[test]
    fn splits_orders_and_rebuilds_do_not_show(
        rows in rows(60),
        cuts in prop::collection::vec((0usize..60, any::<bool>(), any::<u64>()), 0..8),
    ) {
        let spec = Arc::new(spec());
        let mut exchanged: Vec<(u64, Batch)> = Vec::new();
        for origin in 0..3 {
            let own: Vec<Row> = rows.iter().filter(|row| row.origin == origin).cloned().collect();
            let mut start = 0;
            let mut batches = Vec::new();
            let mut places: Vec<_> = cuts.iter().map(|cut| (cut.0.min(own.len()), cut.1, cut.2)).collect();
            places.push((own.len(), true, 0));
            places.sort_unstable();
            for (end, epoch_ends, shuffle) in places {
                batches.push(batch(&own[start..end], Micros::MIN));
                start = end;
                if epoch_ends {
                    exchanged.extend(partial(&spec, &batches).into_iter().map(|batch| (shuffle, batch)));
                    batches.clear();
                }
            }
            if !batches.is_empty() {
                exchanged.extend(partial(&spec, &batches).into_iter().map(|batch| (u64::MAX, batch)));
            }
        }
        exchanged.sort_by_key(|(shuffle, _)| *shuffle);

        let state = empty_state();
        let mut operator = FinalAggregate::new(Arc::clone(&spec), Arc::clone(&state)).unwrap();
        let mut out = Output::default();
        for (index, (shuffle, batch)) in exchanged.iter().enumerate() {
            operator.process(0, batch, &mut out).unwrap();
            if shuffle % 2 == 0 {
                operator.flush(&mut out).unwrap();
                state.lock().unwrap().commit_epoch();
            }
            if index % 3 == 0 && shuffle % 2 == 0 {
                operator = FinalAggregate::new(Arc::clone(&spec), Arc::clone(&state)).unwrap();
                operator.advance(-1_000, &mut out).unwrap();
            }
        }
        prop_assert!(out.batches.is_empty());
        operator.advance(Micros::MAX, &mut out).unwrap();
        prop_assert_eq!(Table::of(&out.batches), Table::of(&whole(&spec, &rows)));
        prop_assert_eq!(state_rows(&state), 0);
    }

    /// Windows that closed too early, rows that came after: the corrections lead to the same table, and an
    /// aggregate over the changes to the same result as over the final rows.
    #[test]
    fn corrections_converge_also_downstream(
        rows in rows(40),
        watermarks in prop::collection::vec((0usize..40, -300i64..400, any::<bool>()), 0..6),
    ) {
        let mut correcting = spec();
        correcting.retention = 10_000;
        let spec = Arc::new(correcting);
        let state = empty_state();
        let mut operator = FinalAggregate::new(Arc::clone(&spec), Arc::clone(&state)).unwrap();
        let mut watermark = Micros::MIN;
        let mut table = Table::default();
        let mut changes = Vec::new();
        for (index, row) in rows.iter().enumerate() {
            let mut out = Output::default();
            for exchanged in partial(&spec, &[batch(std::slice::from_ref(row), Micros::MIN)]) {
                operator.process(0, &exchanged, &mut out).unwrap();
            }
            for &(_, to, rebuild) in watermarks.iter().filter(|(place, ..)| *place == index) {
                watermark = watermark.max(to);
                operator.advance(watermark, &mut out).unwrap();
                if rebuild {
                    operator.flush(&mut out).unwrap();
                    state.lock().unwrap().commit_epoch();
                    operator = FinalAggregate::new(Arc::clone(&spec), Arc::clone(&state)).unwrap();
                    let mut again = Output::default();
                    operator.advance(watermark, &mut again).unwrap();
                    prop_assert!(again.batches.is_empty());
                }
            }
            table.apply(&out.batches);
            changes.append(&mut out.batches);
        }
        let mut out = Output::default();
        operator.flush(&mut out).unwrap();
        operator.advance(Micros::MAX, &mut out).unwrap();
        table.apply(&out.batches);
        changes.append(&mut out.batches);
        let at_once = whole(&spec, &rows);
        prop_assert_eq!(&table, &Table::of(&at_once));
        prop_assert_eq!(state_rows(&state), 0);

        let downstream = Arc::new(downstream_spec(&spec));
        let mut results = Vec::new();
        for input in [&changes, &at_once] {
            let mut operator = FinalAggregate::new(Arc::clone(&downstream), empty_state()).unwrap();
            let mut out = Output::default();
            for batch in input {
                for exchanged in partial(&downstream, std::slice::from_ref(batch)) {
                    operator.process(0, &exchanged, &mut out).unwrap();
                    operator.flush(&mut out).unwrap();
                }
            }
            operator.advance(Micros::MAX, &mut out).unwrap();
            results.push(Table::of(&out.batches));
        }
        prop_assert_eq!(&results[0], &results[1]);
    }

    /// Counts, sums, extremes, first and last as a loop over the rows of each group finds them.
    #[test]
    fn results_are_a_naive_references(rows in rows(60)) {
        let output = whole(&Arc::new(spec()), &rows);
        let mut groups: BTreeMap<(Micros, Option<&str>), Vec<&Row>> = BTreeMap::new();
        for row in &rows {
            groups.entry((row.window_end(), row.key)).or_default().push(row);
        }
        let mut seen = 0;
        for batch in &output {
            let ends = batch.rows.column(2).as_primitive::<arrow::datatypes::TimestampMicrosecondType>();
            let keys = batch.rows.column(0).as_string::<i32>();
            for index in 0..batch.num_rows() {
                let key = keys.is_valid(index).then(|| keys.value(index));
                let group = &groups[&(ends.value(index), key)];
                seen += 1;
                let integer = |column: usize| {
                    let column = batch.rows.column(column + 3).as_primitive::<Int64Type>();
                    column.is_valid(index).then(|| column.value(index))
                };
                let float = |column: usize| {
                    let column = batch.rows.column(column + 3).as_primitive::<Float64Type>();
                    column.is_valid(index).then(|| column.value(index))
                };
                let integers: Vec<i64> = group.iter().filter_map(|row| row.integer).collect();
                let floats: Vec<f64> = group.iter().filter_map(|row| row.float).collect();
                let sum = |values: &[i64]| (!values.is_empty()).then(|| values.iter().sum::<i64>());
                prop_assert_eq!(batch.time[index], ends.value(index) - 1);
                prop_assert_eq!(integer(0), Some(group.len() as i64));
                prop_assert_eq!(integer(1), Some(floats.len() as i64));
                prop_assert_eq!(integer(2), sum(&integers));
                let mean = sum(&integers).map(|sum| sum as f64 / integers.len() as f64);
                prop_assert_eq!(float(5), mean);
                let least = floats.iter().copied().min_by(f64::total_cmp);
                prop_assert_eq!(float(8).map(f64::to_bits), least.map(f64::to_bits));
                prop_assert_eq!(integer(9), integers.iter().copied().max());
                let first = group.iter().min_by_key(|row| (row.time, row.origin, row.offset));
                prop_assert_eq!(integer(10), first.and_then(|row| row.integer));
                let last = group.iter().max_by_key(|row| (row.time, row.origin, row.offset));
                prop_assert_eq!(float(11).map(f64::to_bits), last.and_then(|row| row.float).map(f64::to_bits));
                let positive: Vec<i64> = integers.iter().copied().filter(|integer| *integer > 0).collect();
                prop_assert_eq!(integer(12), sum(&positive));
            }
        }
        prop_assert_eq!(seen, groups.len());
    }

    /// What is added and taken back leaves neither output nor state.
    #[test]
    fn what_is_taken_back_leaves_no_trace(rows in rows(30), retention in prop::sample::select(vec![0, 10_000])) {
        let mut changing = spec();
        changing.changes = true;
        changing.retention = retention;
        let spec = Arc::new(changing);
        let state = empty_state();
        let mut operator = FinalAggregate::new(Arc::clone(&spec), Arc::clone(&state)).unwrap();
        let mut table = Table::default();
        for weight in [1, -1] {
            let mut out = Output::default();
            for row in &rows {
                let mut change = batch(std::slice::from_ref(row), Micros::MIN);
                change.weight = Some(vec![weight].into());
                for exchanged in partial(&spec, &[change]) {
                    operator.process(0, &exchanged, &mut out).unwrap();
                }
            }
            operator.flush(&mut out).unwrap();
            if weight == 1 && retention > 0 {
                operator.advance(1_000, &mut out).unwrap();
                prop_assert!(!out.batches.is_empty());
            }
            table.apply(&out.batches);
        }
        prop_assert_eq!(table, Table::default());
        prop_assert_eq!(state_rows(&state), 0);
    }
}

/// Over the first aggregate's output, by window: every kind of accumulator over changes.
fn downstream_spec(upstream: &AggregateSpec) -> AggregateSpec {
    let input = Arc::clone(&upstream.output);
    let calls = vec![
        call(&input, Function::Count, None, DataType::Int64),
        call(&input, Function::Sum, Some("Sum_float"), DataType::Float64),
        call(&input, Function::Sum, Some("Count_rows"), DataType::Int64),
        call(&input, Function::Max, Some("Sum_float"), DataType::Float64),
        call(&input, Function::Min, Some("key"), DataType::Utf8),
        call(&input, Function::First, Some("Max_integer"), DataType::Int64),
        call(&input, Function::Last, Some("key"), DataType::Utf8),
    ];
    spec_of(input, &["window_start"], calls, Order::RowKey(vec![0, 1, 2]), true)
}

fn row(offset: i64, time: Micros, integer: i64) -> Row {
    Row { origin: 0, offset, time, key: Some("a"), integer: Some(integer), float: None }
}

#[test]
fn a_row_is_late_by_its_own_watermark_and_grace() {
    let mut graceful = spec();
    graceful.grace = 50;
    let spec = Arc::new(graceful);
    let mut operator = PartialAggregate::new(Arc::clone(&spec)).unwrap();
    let mut out = Output::default();
    let mut rows = batch(&[row(3, 10, 1), row(4, 20, 2), row(5, 110, 3)], 0);
    if let Some(source) = &mut rows.source {
        source.watermark = vec![149, 150, 150].into();
    }
    operator.process(0, &rows, &mut out).unwrap();
    operator.flush(&mut out).unwrap();
    assert_eq!(out.taken, [0, 2]);
    assert_eq!(out.late.len(), 1);
    assert_eq!((out.late[0].record, out.late[0].window_end, out.late[0].watermark), (1, 100, 150));
    let exchanged = &out.batches[0];
    assert_eq!(exchanged.rows.schema(), exchange_schema(&spec));
    let counter = |name: &str| {
        exchanged.rows.column_by_name(name).unwrap().as_primitive::<Int64Type>().values().to_vec()
    };
    assert_eq!(counter("_rows"), [1, 1]);
    assert_eq!(counter("_first_offset"), [3, 5]);
    assert_eq!(counter("_last_offset"), [3, 5]);
    let mut again = Output::default();
    operator.flush(&mut again).unwrap();
    assert!(again.batches.is_empty(), "an epoch's rows are handed over once");
}

#[test]
fn rows_of_expired_windows_are_named_and_those_of_closed_ones_corrected() {
    let mut short = spec();
    short.retention = 100;
    let spec = Arc::new(short);
    let mut operator = FinalAggregate::new(Arc::clone(&spec), empty_state()).unwrap();
    let mut out = Output::default();
    operator.advance(200, &mut out).unwrap();
    let exchanged = partial(&spec, &[batch(&[row(3, 10, 1), row(4, 20, 2), row(5, 110, 3)], Micros::MIN)]);
    operator.process(0, &exchanged[0], &mut out).unwrap();
    operator.flush(&mut out).unwrap();
    let expired = &out.expired[0];
    assert_eq!((out.expired.len(), expired.window_end, expired.rows), (1, 100, 2));
    assert_eq!((expired.first_offset, expired.last_offset), (3, 4));
    assert_eq!((out.batches.len(), out.batches[0].num_rows()), (1, 1));
    assert_eq!(out.batches[0].weight(0), 1);

    // The same result again is no change; another is −old +new, side by side.
    let mut again = Output::default();
    let mut nothing = row(6, 120, 0);
    nothing.key = Some("b");
    operator.process(0, &partial(&spec, &[batch(&[nothing], Micros::MIN)])[0], &mut again).unwrap();
    operator.process(0, &partial(&spec, &[batch(&[row(7, 120, 4)], Micros::MIN)])[0], &mut again).unwrap();
    operator.flush(&mut again).unwrap();
    let weights: Vec<i64> =
        (0..again.batches[0].num_rows()).map(|row| again.batches[0].weight(row)).collect();
    assert_eq!(weights, [-1, 1, 1]);
    let sums = again.batches[0].rows.column(5).as_primitive::<Int64Type>();
    assert_eq!(sums.values(), &[3, 7, 0]);
}

#[test]
fn without_retention_a_row_for_a_closed_window_is_an_error() {
    let spec = Arc::new(spec());
    let mut operator = FinalAggregate::new(Arc::clone(&spec), empty_state()).unwrap();
    let mut out = Output::default();
    operator.advance(100, &mut out).unwrap();
    let exchanged = partial(&spec, &[batch(&[row(3, 10, 1)], Micros::MIN)]);
    let error = operator.process(0, &exchanged[0], &mut out).unwrap_err();
    assert!(error.to_string().contains("closed for good"), "{error}");
}

#[test]
fn windows_close_in_order_of_window_and_key_and_only_when_due() {
    let mut endless = spec();
    endless.grace = Micros::MAX;
    for (spec, at_200) in [(spec(), 3), (endless, 0)] {
        let spec = Arc::new(spec);
        let state = empty_state();
        let mut operator = FinalAggregate::new(Arc::clone(&spec), Arc::clone(&state)).unwrap();
        let mut out = Output::default();
        let keyed = |offset, time, key| Row { key: Some(key), ..row(offset, time, 1) };
        let rows = [keyed(0, 210, "a"), keyed(1, 110, "b"), keyed(2, 10, "z"), keyed(3, 110, "a")];
        operator.process(0, &partial(&spec, &[batch(&rows, Micros::MIN)])[0], &mut out).unwrap();
        operator.advance(200, &mut out).unwrap();
        assert_eq!(out.batches.iter().map(Batch::num_rows).sum::<usize>(), at_200);
        if at_200 > 0 {
            let keys = out.batches[0].rows.column(0).as_string::<i32>();
            assert_eq!(keys.iter().flatten().collect::<Vec<_>>(), ["z", "a", "b"]);
        }
        operator.advance(Micros::MAX, &mut out).unwrap();
        assert_eq!(out.batches.iter().map(Batch::num_rows).sum::<usize>(), 4);
        assert_eq!(state_rows(&state), 0);
    }
}

#[test]
fn an_aborted_epoch_leaves_what_was_committed() {
    let spec = Arc::new(spec());
    let state = empty_state();
    let feed = |row: Row| partial(&spec, &[batch(&[row], Micros::MIN)]).remove(0);
    let mut out = Output::default();
    let mut operator = FinalAggregate::new(Arc::clone(&spec), Arc::clone(&state)).unwrap();
    operator.process(0, &feed(row(0, 10, 1)), &mut out).unwrap();
    operator.flush(&mut out).unwrap();
    state.lock().unwrap().commit_epoch();
    operator.process(0, &feed(row(1, 20, 2)), &mut out).unwrap();
    operator.advance(100, &mut out).unwrap();
    assert_eq!(out.batches.len(), 1);

    state.lock().unwrap().abort_epoch();
    let mut out = Output::default();
    let mut operator = FinalAggregate::new(Arc::clone(&spec), Arc::clone(&state)).unwrap();
    operator.process(0, &feed(row(1, 20, 5)), &mut out).unwrap();
    operator.advance(100, &mut out).unwrap();
    assert_eq!(out.batches[0].rows.column(5).as_primitive::<Int64Type>().values(), &[6]);
}

#[test]
fn a_sum_that_does_not_fit_is_an_error_but_one_that_only_passes_through_is_not() {
    let spec = Arc::new(spec());
    let run = |integers: &[i64]| {
        let rows: Vec<Row> =
            integers.iter().enumerate().map(|(offset, &integer)| row(offset as i64, 10, integer)).collect();
        let mut operator = FinalAggregate::new(Arc::clone(&spec), empty_state())?;
        let mut out = Output::default();
        for row in rows {
            let mut batch = batch(&[row], Micros::MIN);
            // The decimal column would overflow first.
            let mut columns = batch.rows.columns().to_vec();
            columns[5] = arrow::array::new_null_array(columns[5].data_type(), 1);
            batch.rows = RecordBatch::try_new(batch.rows.schema(), columns).unwrap();
            operator.process(0, &partial(&spec, &[batch])[0], &mut out)?;
            operator.flush(&mut out)?;
        }
        operator.advance(Micros::MAX, &mut out)?;
        Ok::<i64, OperatorError>(out.batches[0].rows.column(5).as_primitive::<Int64Type>().value(0))
    };
    assert_eq!(run(&[i64::MIN, -1, 1]).unwrap(), i64::MIN);
    let error = run(&[i64::MIN, -1]).unwrap_err().to_string();
    assert!(error.contains("does not fit into Int64"), "{error}");
}
