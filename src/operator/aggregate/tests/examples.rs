//! Examples: lateness, expiry, corrections, closing, aborts and overflow.

use std::sync::Arc;

use arrow::array::AsArray;
use arrow::datatypes::Int64Type;

use super::super::super::OperatorError;
use super::super::exchange_schema;
use super::*;

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

/// `sum(100 / integer)`, which fails where the integer is 0.
fn shares(guarded: bool) -> AggregateSpec {
    let schema = input_schema();
    let integer = column(&schema, "integer");
    let mut shares = call(&schema, Function::Sum, None, DataType::Int64);
    let share = binary(lit(100i64), BinaryOperator::Divide, Arc::clone(&integer), &schema);
    shares.argument = Some(share.unwrap());
    if guarded {
        shares.filter = Some(binary(integer, BinaryOperator::NotEq, lit(0i64), &schema).unwrap());
    }
    spec_of(schema, &["key", "window_end"], vec![shares], Order::Source, false)
}

#[test]
fn a_row_whose_argument_fails_is_rejected_and_neither_taken_nor_counted() {
    let mut operator = PartialAggregate::new(Arc::new(shares(false))).unwrap();
    let mut out = Output::default();
    let mut rows = batch(&[row(0, 10, 50), row(1, 10, 0), row(2, 10, 25), row(3, 10, 0)], Micros::MIN);
    if let Some(source) = &mut rows.source {
        source.watermark = vec![0, 0, 0, 100].into();
    }
    operator.process(0, &rows, &mut out).unwrap();
    operator.flush(&mut out).unwrap();
    assert_eq!(out.taken, [0, 2]);
    assert_eq!(out.rejected.iter().map(|row| row.record).collect::<Vec<_>>(), [Some(1)]);
    assert_eq!(out.late.iter().map(|row| row.record).collect::<Vec<_>>(), [3]);
    let rows = out.batches[0].rows.column_by_name("_rows").unwrap();
    assert_eq!(rows.as_primitive::<Int64Type>().values(), &[2]);
}

#[test]
fn a_filter_keeps_rows_from_an_argument_that_would_fail() {
    let spec = Arc::new(shares(true));
    let mut operator = final_aggregate(Arc::clone(&spec), empty_state()).unwrap();
    let mut out = Output::default();
    let rows = batch(&[row(0, 10, 50), row(1, 10, 0), row(2, 10, 25)], Micros::MIN);
    operator.process(0, &partial(&spec, &[rows])[0], &mut out).unwrap();
    operator.advance(100, &mut out).unwrap();
    assert_eq!(out.batches[0].rows.column(2).as_primitive::<Int64Type>().values(), &[6]);
}

#[test]
fn damaged_state_is_an_error() {
    let spec = Arc::new(spec());
    let state = empty_state();
    let feed = || partial(&spec, &[batch(&[row(0, 10, 1)], Micros::MIN)]).remove(0);
    let mut out = Output::default();
    let mut operator = final_aggregate(Arc::clone(&spec), Arc::clone(&state)).unwrap();
    operator.process(0, &feed(), &mut out).unwrap();
    operator.flush(&mut out).unwrap();
    let mut stored = Vec::new();
    let collect = &mut |key: &[u8], value: &[u8]| {
        stored.push((key.to_vec(), value.to_vec()));
        std::ops::ControlFlow::Continue(())
    };
    state.lock().unwrap().scan(&[], &[], collect).unwrap();
    let (key, value) = stored.remove(0);
    for place in 0..value.len() {
        let mut damaged = value.clone();
        damaged[place] ^= 1;
        state.lock().unwrap().put(&key, &damaged);
        let mut operator = final_aggregate(Arc::clone(&spec), Arc::clone(&state)).unwrap();
        operator.process(0, &feed(), &mut out).unwrap();
        let error = operator.flush(&mut out).unwrap_err();
        assert!(error.to_string().contains("damaged"), "{error}");
    }
}

#[test]
fn rows_of_expired_windows_are_named_and_those_of_closed_ones_corrected() {
    let mut short = spec();
    short.retention = 100;
    let spec = Arc::new(short);
    let mut operator = final_aggregate(Arc::clone(&spec), empty_state()).unwrap();
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
    let mut operator = final_aggregate(Arc::clone(&spec), empty_state()).unwrap();
    let mut out = Output::default();
    operator.advance(100, &mut out).unwrap();
    let exchanged = partial(&spec, &[batch(&[row(3, 10, 1)], Micros::MIN)]);
    let error = operator.process(0, &exchanged[0], &mut out).unwrap_err();
    assert!(error.to_string().contains("closed for good"), "{error}");
}

#[test]
fn a_row_that_is_taken_back_before_it_is_added_shows_nowhere() {
    let mut changing = spec();
    changing.changes = true;
    changing.retention = 1_000;
    let spec = Arc::new(changing);
    let mut operator = final_aggregate(Arc::clone(&spec), empty_state()).unwrap();
    let mut feed = |row: Row, weight: i64| {
        let mut out = Output::default();
        let mut change = batch(&[row], Micros::MIN);
        change.weight = Some(vec![weight].into());
        operator.advance(100, &mut out).unwrap();
        operator.process(0, &partial(&spec, &[change])[0], &mut out).unwrap();
        operator.flush(&mut out).unwrap();
        let shown = |batch: &Batch| (batch.num_rows(), batch.weight(0));
        out.batches.iter().map(shown).collect::<Vec<_>>()
    };
    assert_eq!(feed(row(0, 10, 1), -1), []);
    assert_eq!(feed(row(1, 20, 2), 1), []);
    assert_eq!(feed(row(0, 10, 1), 1), [(1, 1)]);
    assert_eq!(feed(row(1, 20, 2), -1), [(1, -1)]);
}

#[test]
fn windows_close_in_order_of_window_and_key_and_only_when_due() {
    let mut endless = spec();
    endless.grace = Micros::MAX;
    for (spec, at_200) in [(spec(), 3), (endless, 0)] {
        let spec = Arc::new(spec);
        let state = empty_state();
        let mut operator = final_aggregate(Arc::clone(&spec), Arc::clone(&state)).unwrap();
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
    let mut operator = final_aggregate(Arc::clone(&spec), Arc::clone(&state)).unwrap();
    operator.process(0, &feed(row(0, 10, 1)), &mut out).unwrap();
    operator.flush(&mut out).unwrap();
    state.lock().unwrap().commit_epoch();
    operator.process(0, &feed(row(1, 20, 2)), &mut out).unwrap();
    operator.advance(100, &mut out).unwrap();
    assert_eq!(out.batches.len(), 1);

    state.lock().unwrap().abort_epoch();
    let mut out = Output::default();
    let mut operator = final_aggregate(Arc::clone(&spec), Arc::clone(&state)).unwrap();
    operator.process(0, &feed(row(1, 20, 5)), &mut out).unwrap();
    operator.advance(100, &mut out).unwrap();
    assert_eq!(out.batches[0].rows.column(5).as_primitive::<Int64Type>().values(), &[6]);
}

#[test]
fn a_sum_that_does_not_fit_is_a_dead_letter_but_one_that_only_passes_through_is_not() {
    let mut corrected = spec();
    corrected.retention = 1_000;
    let spec = Arc::new(corrected);
    let run = |integers: &[i64]| {
        let rows: Vec<Row> =
            integers.iter().enumerate().map(|(offset, &integer)| row(offset as i64, 10, integer)).collect();
        let mut operator = final_aggregate(Arc::clone(&spec), empty_state())?;
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
        operator.advance(0, &mut out)?;
        operator.advance(100, &mut out)?;
        // A correction after the close, and another one.
        for correction in [-1, 1] {
            let mut batch = batch(&[row(9, 10, correction)], Micros::MIN);
            let mut columns = batch.rows.columns().to_vec();
            columns[5] = arrow::array::new_null_array(columns[5].data_type(), 1);
            batch.rows = RecordBatch::try_new(batch.rows.schema(), columns).unwrap();
            operator.process(0, &partial(&spec, &[batch])[0], &mut out)?;
            operator.flush(&mut out)?;
        }
        let rows: Vec<(i64, i64)> = out
            .batches
            .iter()
            .flat_map(|batch| {
                let sums = batch.rows.column(5).as_primitive::<Int64Type>().values().to_vec();
                sums.into_iter().enumerate().map(|(row, sum)| (sum, batch.weight(row)))
            })
            .collect();
        Ok::<_, OperatorError>((rows, std::mem::take(&mut out.rejected)))
    };
    // It fits when the window closes, does not with the first correction, and does again with the second.
    let (rows, rejected) = run(&[i64::MIN, -1, 1]).unwrap();
    assert_eq!(rows, [(i64::MIN, 1), (i64::MIN, -1), (i64::MIN, 1)]);
    assert_eq!(rejected.len(), 1);
    assert!(rejected[0].message.contains("does not fit into Int64"), "{rejected:?}");
    assert!(rejected[0].row.as_ref().is_some_and(|row| row.contains("key: a")), "{rejected:?}");
    // It never does but at last.
    let (rows, rejected) = run(&[i64::MIN, -1]).unwrap();
    assert_eq!((rows, rejected.len()), (vec![], 1));
}
