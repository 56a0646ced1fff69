//! Properties: any split, order, interruption and correction.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use arrow::array::{Array, AsArray};
use arrow::datatypes::{DataType, Decimal128Type, Float64Type, Int64Type, TimestampMicrosecondType};
use proptest::prelude::*;

use super::*;

fn float() -> impl Strategy<Value = f64> {
    prop_oneof![
        8 => prop::sample::select(vec![0.1, 1e308, -1e308, 1e16, -1e16, 1.0, -0.0, 5e-324, 0.3, -1e-300]),
        1 => prop::sample::select(vec![f64::NAN, f64::INFINITY, f64::NEG_INFINITY]),
        4 => -1e3..1e3,
    ]
}

pub(super) fn rows(max: usize) -> impl Strategy<Value = Vec<Row>> {
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
        let mut operator = final_aggregate(Arc::clone(&spec), Arc::clone(&state)).unwrap();
        let mut out = Output::default();
        for (index, (shuffle, batch)) in exchanged.iter().enumerate() {
            operator.process(0, batch, &mut out).unwrap();
            if shuffle % 2 == 0 {
                operator.flush(&mut out).unwrap();
                state.lock().unwrap().commit_epoch();
            }
            if index % 3 == 0 && shuffle % 2 == 0 {
                operator = final_aggregate(Arc::clone(&spec), Arc::clone(&state)).unwrap();
                operator.advance(-1_000, &mut out).unwrap();
            }
        }
        prop_assert!(out.batches.is_empty());
        operator.advance(Micros::MAX, &mut out).unwrap();
        prop_assert_eq!(Table::of(&out.batches), Table::of(&whole(&spec, &rows)));
        prop_assert_eq!(state_rows(&state), 0);
    }

    /// Within an epoch, batches leave no trace in what is sent.
    #[test]
    fn an_epochs_exchange_does_not_depend_on_its_batches(rows in rows(60), cut in 0usize..60) {
        let spec = Arc::new(spec());
        let rows: Vec<Row> = rows.into_iter().map(|row| Row { origin: 0, ..row }).collect();
        let (left, right) = rows.split_at(cut.min(rows.len()));
        let together = partial(&spec, &[batch(&rows, Micros::MIN)]);
        let apart = partial(&spec, &[batch(left, Micros::MIN), batch(right, Micros::MIN)]);
        prop_assert_eq!(&together[0].rows, &apart[0].rows);
        prop_assert_eq!(&together[0].time, &apart[0].time);
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
        let mut operator = final_aggregate(Arc::clone(&spec), Arc::clone(&state)).unwrap();
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
                    operator = final_aggregate(Arc::clone(&spec), Arc::clone(&state)).unwrap();
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
            let mut operator = final_aggregate(Arc::clone(&downstream), empty_state()).unwrap();
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
            let ends = batch.rows.column(2).as_primitive::<TimestampMicrosecondType>();
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
                let strings = batch.rows.column(16).as_string::<i32>();
                prop_assert_eq!(strings.is_valid(index).then(|| strings.value(index)), key);
                let decimal = |column: usize| {
                    let column = batch.rows.column(column + 3).as_primitive::<Decimal128Type>();
                    column.is_valid(index).then(|| column.value(index))
                };
                let decimal_sum = sum(&integers).map(i128::from);
                prop_assert_eq!(decimal(6), decimal_sum);
                let mean = decimal_sum.map(|sum| sum * 10_000 / integers.len() as i128);
                prop_assert_eq!(decimal(7), mean);
                let greatest = integers.iter().copied().max().map(i128::from);
                prop_assert_eq!(decimal(14), greatest);
                // One zero, one NaN.
                let spelled = |float: &f64| if float.is_nan() { u64::MAX } else { (float + 0.0).to_bits() };
                let distinct: BTreeSet<u64> = floats.iter().map(spelled).collect();
                prop_assert_eq!(integer(15), Some(distinct.len() as i64));
                prop_assert_eq!(integer(16), Some(i64::from(key.is_some())));
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
        let mut operator = final_aggregate(Arc::clone(&spec), Arc::clone(&state)).unwrap();
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

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]

    /// A set that grows large is handed over in parts before the epoch ends, which does not show.
    #[test]
    fn large_sets_go_in_parts(sizes in prop::collection::vec(1usize..30_000, 1..4)) {
        let spec = Arc::new(spec());
        let (mut operator, mut out, mut next) = (PartialAggregate::new(Arc::clone(&spec)).unwrap(), Output::default(), 0);
        for size in sizes {
            let row = |offset: usize| Row {
                origin: 0, offset: offset as i64, time: 0, key: Some("a"), integer: None, float: Some(offset as f64),
            };
            let rows: Vec<Row> = (next..next + size).map(row).collect();
            next += size;
            operator.process(0, &batch(&rows, Micros::MIN), &mut out).unwrap();
        }
        operator.flush(&mut out).unwrap();
        for part in &out.batches {
            let bytes = part.rows.get_array_memory_size() / part.num_rows();
            prop_assert!(bytes < 600 << 10, "a row of {bytes} bytes");
        }
        prop_assert!(next < 30_000 || out.batches.len() > 1);
        let mut merged = final_aggregate(Arc::clone(&spec), empty_state()).unwrap();
        let mut closed = Output::default();
        for part in &out.batches {
            merged.process(0, part, &mut closed).unwrap();
        }
        merged.advance(Micros::MAX, &mut closed).unwrap();
        let distinct = closed.batches[0].rows.column(18).as_primitive::<Int64Type>().value(0);
        prop_assert_eq!(distinct, next as i64);
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
        call(&input, Function::CountDistinct, Some("Sum_float"), DataType::Int64),
        call(&input, Function::CountDistinct, Some("key"), DataType::Int64),
    ];
    spec_of(input, &["window_start"], calls, Order::RowKey(vec![0, 1, 2]), true)
}
