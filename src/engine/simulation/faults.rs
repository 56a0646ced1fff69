//! The simulation can fail: each fault that is planted in the engine is found within some seeds.

use super::{simulate, simulate_with};
use crate::planted::{Fault, plant};

const SEEDS_MAX: u64 = 60;

/// Searches for a seed that finds the fault, and that finds nothing once it is gone.
fn is_found(fault: Fault) {
    is_found_where(fault, "");
}

/// What the seed finds is something that is told with this word.
fn is_found_where(fault: Fault, word: &str) {
    let found = (0..SEEDS_MAX).find_map(|seed| {
        let outcome = simulate_with(seed, false, || plant(fault)).0;
        outcome.err().filter(|why| why.contains(word)).map(|why| (seed, why))
    });
    let Some((seed, why)) = found else { panic!("{fault:?} goes unnoticed in {SEEDS_MAX} seeds") };
    println!("{fault:?} is found by seed {seed}: {why}");
    assert_eq!(simulate(seed, false).0, Ok(()), "seed {seed} without the fault");
}

macro_rules! found {
    ($($name:ident: $fault:ident),* $(,)?) => {
        $(#[test] fn $name() { is_found(Fault::$fault); })*
    };
}

found! {
    a_checkpoint_before_its_commit: CheckpointBeforeCommit,
    a_watermark_ahead_of_its_rows: WatermarkAheadOfRows,
    an_idle_origin_without_a_record: IdleUnrecorded,
    a_fold_that_is_not_muted: FoldNotMuted,
    a_journal_that_is_redone_twice: JournalRedoneTwice,
    an_offset_off_by_one: OffsetOffByOne,
    lateness_by_another_origin: LateAtWrongOrigin,
    a_lost_retraction: LostRetraction,
    a_lost_correction: LostCorrection,
    a_retraction_that_is_not_written: RetractionUnwritten,
    open_windows_of_which_it_is_forgotten_what_was_told: OpenForgotten,
    an_abort_that_keeps_its_epoch: AbortKeepsEpoch,
    counters_that_outlive_an_abort: CountersOutliveAbort,
    a_stage_that_does_not_hold_its_watermark_back: GraceNotHeldBack,
}

/// Of a topic without a key, too.
#[test]
fn a_lost_retraction_in_a_topic_that_is_appended_to() {
    is_found_where(Fault::LostRetraction, "changing.minutely");
}
