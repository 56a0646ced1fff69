//! The simulation can fail: each fault that is planted in the engine is found within some seeds.

use super::{SEEDS, simulate, simulate_with};
use crate::planted::{Fault, noted, plant};

const SEEDS_MAX: u64 = 240;

/// What the seeds of a build must have come to, each at least once.
const WAYS: &[&str] = &[
    "a checkpoint is waited for, since state is over twice its budget",
    "a checkpoint takes its time",
    "a commit is aborted",
    "a commit is lost",
    "a process is asked to stop",
    "a process is killed",
    "a process stands still",
    "a process stands still at the object store",
    "a state directory is lost",
    "a task recovers from a copy of a checkpoint",
    "a task recovers from the local checkpoint",
    "a task recovers from the log alone",
    "a topic gets another partition",
    "an impostor starts",
    "another's copy is there already",
    "closed windows take several blocks",
    "crash where it aborts",
    "crash where it asks for bounds",
    "crash where it asks for offsets",
    "crash where it begins",
    "crash where it commits",
    "crash where it creates topics",
    "crash where it deletes an object",
    "crash where it flushes",
    "crash where it folds",
    "crash where it gets an object",
    "crash where it has committed",
    "crash where it has flushed",
    "crash where it has put an object",
    "crash where it joins",
    "crash where it leaves",
    "crash where it lists objects",
    "crash where it opens a store",
    "crash where it polls",
    "crash where it produces",
    "crash where it puts an object",
    "crash where it starts to read",
    "crash where it trims",
    "crash where it writes",
    "crash where it writes rows",
    "records are refused",
    "rows come for windows that are past their retention",
    "rows take several messages",
    "state is over its budget",
    "the answer to a commit is lost",
    "the group rebalances",
    "the object store does not answer",
];

/// Shows how often this thread has gone each way; with all the seeds of a build, none may be left out.
pub fn all_went(seeds: u64) {
    let noted = noted();
    for (way, times) in &noted {
        println!("{times:>8}  {way}");
    }
    let missing: Vec<_> = WAYS.iter().filter(|way| !noted.contains_key(**way)).collect();
    assert!(seeds < SEEDS || missing.is_empty(), "in {seeds} seeds never: {missing:?}");
}

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
