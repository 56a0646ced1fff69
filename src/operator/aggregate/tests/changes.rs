//! Listeners that see windows change: what they are told adds up to what closes, whatever the epochs were.

use std::sync::Arc;

use arrow::array::AsArray;
use arrow::datatypes::Int64Type;
use proptest::prelude::*;

use super::properties::rows;
use super::*;

const BOTH: Listeners = Listeners { closed: true, changes: true };

fn row(offset: i64, time: Micros, key: &'static str, integer: i64) -> Row {
    Row { origin: 0, offset, time, key: Some(key), integer: Some(integer), float: None }
}

/// One epoch of rows; what those who see changes are told, and the others: weight and sum of integers.
fn epoch(operator: &mut FinalAggregate, rows: &[Row], to: Option<Micros>) -> [Vec<(i64, i64)>; 2] {
    let mut out = Output::default();
    if !rows.is_empty() {
        let exchanged = partial(&operator.spec.clone(), &[batch(rows, Micros::MIN)]);
        exchanged.iter().for_each(|batch| operator.process(0, batch, &mut out).unwrap());
    }
    if let Some(to) = to {
        operator.advance(to, &mut out).unwrap();
    }
    operator.flush(&mut out).unwrap();
    [out.changes, out.batches].map(|batches| {
        let each = batches.iter().flat_map(|batch| {
            let sums = batch.rows.column(5).as_primitive::<Int64Type>();
            (0..batch.num_rows()).map(|row| (batch.weight(row), sums.value(row))).collect::<Vec<_>>()
        });
        each.collect()
    })
}

#[test]
fn an_epochs_end_tells_what_it_changed_and_a_close_nothing_that_is_known() {
    let mut correcting = spec();
    correcting.retention = 1_000;
    let (spec, state) = (Arc::new(correcting), empty_state());
    let build = || FinalAggregate::new(Arc::clone(&spec), Arc::clone(&state), BOTH).unwrap();
    let mut operator = build();
    let tell = |operator: &mut FinalAggregate, rows: &[Row], to| {
        let told = epoch(operator, rows, to);
        state.lock().unwrap().commit_epoch();
        told
    };
    let first = [row(0, 10, "a", 3), row(1, 20, "b", 4), row(2, 110, "a", 5)];
    assert_eq!(tell(&mut operator, &first, None), [vec![(1, 3), (1, 4), (1, 5)], vec![]]);
    assert_eq!(tell(&mut operator, &[], None), [vec![], vec![]]);
    // One that is built anew knows what was told.
    let mut operator = build();
    assert_eq!(tell(&mut operator, &[row(3, 30, "a", 1)], None), [vec![(-1, 3), (1, 4)], vec![]]);
    // What came in the epoch in which the window closes is told as well, once.
    let closing = tell(&mut operator, &[row(4, 40, "b", 2)], Some(100));
    assert_eq!(closing, [vec![(-1, 4), (1, 6)], vec![(1, 4), (1, 6)]]);
    assert_eq!(tell(&mut operator, &[], Some(150)), [vec![], vec![]]);
    // A correction and a change in one epoch: the others have the correction only.
    let late = tell(&mut operator, &[row(5, 50, "a", 6), row(6, 120, "a", 1)], None);
    assert_eq!(late, [vec![(-1, 5), (1, 6), (-1, 4), (1, 10)], vec![(-1, 4), (1, 10)]]);

    // Dropped epochs have told nothing.
    epoch(&mut operator, &[row(7, 130, "a", 9)], None);
    state.lock().unwrap().abort_epoch();
    let mut operator = build();
    assert_eq!(epoch(&mut operator, &[], Some(150)), [vec![], vec![]]);
    assert_eq!(epoch(&mut operator, &[row(7, 130, "a", 2)], None), [vec![(-1, 6), (1, 8)], vec![]]);
}

#[test]
fn who_sees_changes_alone_has_nothing_at_the_close() {
    let changes = Listeners { closed: false, changes: true };
    let mut operator = FinalAggregate::new(Arc::new(spec()), empty_state(), changes).unwrap();
    assert_eq!(epoch(&mut operator, &[row(0, 10, "a", 3)], Some(100)), [vec![(1, 3)], vec![]]);
}

proptest! {
    /// Wherever epochs end, watermarks move and operators are built anew: after each epoch the changes add up to the
    /// result of all rows so far, and those who hear of closed windows only are told what they were told without.
    #[test]
    fn changes_add_up_after_every_epoch(
        rows in rows(40),
        epochs in prop::collection::vec((0usize..40, -300i64..400, any::<bool>(), any::<bool>()), 0..10),
    ) {
        let mut correcting = spec();
        correcting.retention = 10_000;
        let (spec, state, alone) = (Arc::new(correcting), empty_state(), empty_state());
        let build = || FinalAggregate::new(Arc::clone(&spec), Arc::clone(&state), BOTH).unwrap();
        let mut operator = build();
        let mut without = final_aggregate(Arc::clone(&spec), alone).unwrap();
        let (mut seen, mut closed, mut expected) = (Table::default(), Table::default(), Table::default());
        let mut watermark = Micros::MIN;
        for (index, row) in rows.iter().enumerate() {
            let (mut out, mut other) = (Output::default(), Output::default());
            for exchanged in partial(&spec, &[batch(std::slice::from_ref(row), Micros::MIN)]) {
                operator.process(0, &exchanged, &mut out).unwrap();
                without.process(0, &exchanged, &mut other).unwrap();
            }
            let mut epoch_ends = false;
            for &(_, to, ends, rebuild) in epochs.iter().filter(|(place, ..)| *place == index) {
                watermark = watermark.max(to);
                operator.advance(watermark, &mut out).unwrap();
                without.advance(watermark, &mut other).unwrap();
                epoch_ends = ends || rebuild;
                if epoch_ends {
                    operator.flush(&mut out).unwrap();
                    without.flush(&mut other).unwrap();
                    state.lock().unwrap().commit_epoch();
                }
                if rebuild {
                    operator = build();
                    operator.advance(watermark, &mut out).unwrap();
                }
            }
            seen.apply(&out.changes);
            closed.apply(&out.batches);
            expected.apply(&other.batches);
            if epoch_ends {
                prop_assert_eq!(&seen, &Table::of(&whole(&spec, &rows[..=index])));
                prop_assert_eq!(&closed, &expected);
            }
        }
        let mut out = Output::default();
        operator.advance(Micros::MAX, &mut out).unwrap();
        seen.apply(&out.changes);
        closed.apply(&out.batches);
        let at_once = Table::of(&whole(&spec, &rows));
        prop_assert_eq!(&seen, &at_once);
        prop_assert_eq!(&closed, &at_once);
        prop_assert_eq!(state_rows(&state), 0);
    }
}
