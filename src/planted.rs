//! Faults that a test plants in the engine, to see that other tests find them; no room, and seen by all of them. Besides,
//! sizes that short tests would never come to are made small for them, and which ways they have gone is noted.
//!
//! Invariant: without the feature `planted-faults` all of this compiles to nothing.
//! Invariant: a fault is planted for the thread that asks for it, so tests run beside each other.

/// What is broken. The rule that forbids it is named where there is one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// R7: state is checkpointed before its epoch is committed.
    CheckpointBeforeCommit,
    /// The watermark of an epoch stands before its rows in the exchange.
    WatermarkAheadOfRows,
    /// R4: an origin is taken for idle without a record in the exchange that says so.
    IdleUnrecorded,
    /// What recovery folds again is published again.
    FoldNotMuted,
    /// R7: a checkpoint's changes are stored under the offset of the one before, and are folded a second time.
    JournalRedoneTwice,
    /// The offset before the one that was read up to is committed.
    OffsetOffByOne,
    /// Rows are late by the watermark of the origin that is furthest ahead.
    LateAtWrongOrigin,
    /// R6: the old row of a correction does not reach the views above.
    LostRetraction,
    /// R6: the new row of a correction does not reach the topic.
    LostCorrection,
    /// R6: the old row of a correction is not taken back in a topic without a key.
    RetractionUnwritten,
    /// R7: what was told of a window that is still open is not known when it changes again.
    OpenForgotten,
    /// R1: an epoch outlives the loss of its partitions, and is committed under the next assignment's fence.
    ZombieCommit,
    /// C3: a source hears of positions before they are committed.
    AckBeforeCommit,
    /// C2: a source is opened at what can be read, while a predecessor's transaction is open.
    PositionBeforeFence,
    /// C1: the position of a step is in the transaction before its records.
    StepSplit,
    /// R2: a checkpoint below the log's start is good enough.
    OldCheckpoint,
    /// R2: the copy that was made last is the one that counts, wherever it stands.
    CopyReplacesNewer,
    /// R2: a copy of the same offset is taken for the own one, and built on.
    AnothersCopyTakenForOwn,
    /// R2: what the newest copy holds is trimmed, and nothing is left for the one before.
    TrimmedToNewest,
    /// R2: a checkpoint on this machine is enough for trimming.
    TrimmedUncopied,
    /// R2: without a checkpoint, what is left of the log is folded.
    FoldsWhatIsLeft,
    /// R2: a group without offsets begins anew.
    ExpiredOffsetsBeginAnew,
    /// R3: only origins that were heard of are waited for.
    OriginsUndeclared,
    /// R4: the minimum over no origins is the end of time.
    NobodyActiveClosesAll,
    /// R4: a transaction without records carries no offset, and nothing fences it.
    UnfencedIdle,
    /// R4: an origin of which nothing has come is idle, whether there are records of it or not.
    IdleUnlooked,
    /// R4: an origin that wakes and is idle again in one epoch is still idle.
    IdleAgainUntold,
    /// R4: who takes an idle origin over does not know that the others were told so.
    WakeForgotten,
    /// R5: what is too far ahead is decided by the clock on the wall.
    WallClockDecides,
    /// R6: a stage forwards its watermark without the grace of its windows.
    GraceNotHeldBack,
    /// R7: a checkpoint is written without a journal, rows first.
    #[cfg(test)]
    TornCheckpoint,
    /// R7: state that is over its budget waits for its checkpoint's time.
    BudgetIgnored,
    /// R7: a rebalance aborts the epoch.
    RebalanceAborts,
    /// R7: an abort keeps what the epoch did to the state.
    AbortKeepsEpoch,
    /// R8: the keyed tasks are not waited for.
    VerifyBeforeKeyed,
    /// R8: what transactions of others still hide is not waited for.
    VerifyStableOnly,
    /// R8: an idle origin does not hold the cut's watermark back.
    VerifyHonoursIdleness,
    /// R8: windows that are open at the cut are compared, too.
    VerifyOpenWindows,
    /// R8: what was emitted first is compared, not what corrections made of it.
    VerifyFirstValue,
    /// R10: an end is tested against the records that were read, not the position.
    EndsByRecords,
    /// R10: the topology is at its end where its sources are.
    EndsAtSources,
    /// R11: ties go to whoever came first.
    TiesByArrival,
    /// R12: what an aborted epoch has counted stays counted.
    CountersOutliveAbort,
    /// R12: windows that rows came too late for are counted, and not named.
    ExpiredUnnamed,
    /// R14: a process that starts again is somebody new.
    FreshTransactionalId,
    /// R14: everybody waits for the slowest, whether it can move or not.
    WaitForAll,
    /// R14: how far other processes are is not looked at.
    OthersUnwatched,
    /// R14: another process's origin that is read to its end is waited for.
    OthersNeverCaughtUp,
    /// R14: an origin that does not move is waited for without end.
    PatienceWithoutEnd,
}

#[cfg(feature = "planted-faults")]
mod switch {
    use std::cell::{Cell, RefCell};
    use std::collections::BTreeMap;

    use super::Fault;

    thread_local! {
        static PLANTED: Cell<Option<Fault>> = const { Cell::new(None) };
        static WALL_CLOCK: Cell<i64> = const { Cell::new(0) };
        static FURTHEST: Cell<i64> = const { Cell::new(i64::MIN) };
        static SMALL: Cell<bool> = const { Cell::new(false) };
        static NOTED: RefCell<BTreeMap<String, u64>> = const { RefCell::new(BTreeMap::new()) };
    }

    /// Takes the fault away when it is dropped.
    #[must_use]
    pub struct Planted(());

    /// Plants a fault for this thread.
    pub fn plant(fault: Fault) -> Planted {
        PLANTED.set(Some(fault));
        FURTHEST.set(i64::MIN);
        Planted(())
    }

    impl Drop for Planted {
        fn drop(&mut self) {
            PLANTED.set(None);
        }
    }

    pub fn planted(fault: Fault) -> bool {
        PLANTED.get() == Some(fault)
    }

    /// The wall clock that a core room must not see.
    pub fn wall_clock(fault: Fault) -> Option<i64> {
        planted(fault).then(|| WALL_CLOCK.get())
    }

    pub fn set_wall_clock(micros: i64) {
        WALL_CLOCK.set(micros);
    }

    /// From here on sizes are small for this thread.
    pub fn shrink_sizes() {
        SMALL.set(true);
    }

    /// `size`, or where sizes are small, `small`.
    pub fn sized(size: usize, small: usize) -> usize {
        if SMALL.get() { small } else { size }
    }

    /// This thread goes a way that tests should go.
    pub fn note(way: &str) {
        if SMALL.get() {
            NOTED.with_borrow_mut(|noted| *noted.entry(way.to_owned()).or_default() += 1);
        }
    }

    /// The ways that this thread has gone, and how often.
    pub fn noted() -> BTreeMap<String, u64> {
        NOTED.take()
    }

    /// Does something on another thread, where all of this is as on this one.
    pub fn elsewhere(act: impl FnOnce() + Send) {
        let (planted, wall_clock, furthest, small) =
            (PLANTED.get(), WALL_CLOCK.get(), FURTHEST.get(), SMALL.get());
        let there = || {
            PLANTED.set(planted);
            WALL_CLOCK.set(wall_clock);
            FURTHEST.set(furthest);
            SMALL.set(small);
            act();
            (FURTHEST.get(), noted())
        };
        let done = std::thread::scope(|scope| scope.spawn(there).join());
        let (furthest, ways) = done.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        FURTHEST.set(furthest);
        NOTED.with_borrow_mut(|noted| {
            ways.into_iter().for_each(|(way, times)| *noted.entry(way).or_default() += times);
        });
    }

    /// The highest of what the tasks of this thread have said.
    pub fn furthest(fault: Fault, own: i64) -> i64 {
        if !planted(fault) {
            return own;
        }
        FURTHEST.set(FURTHEST.get().max(own));
        FURTHEST.get()
    }
}

#[cfg(feature = "planted-faults")]
pub use switch::{
    Planted, elsewhere, furthest, note, noted, plant, planted, set_wall_clock, shrink_sizes, sized,
    wall_clock,
};

#[cfg(not(feature = "planted-faults"))]
mod nothing {
    use super::Fault;

    #[inline(always)]
    pub const fn planted(_: Fault) -> bool {
        false
    }
    #[inline(always)]
    pub const fn wall_clock(_: Fault) -> Option<i64> {
        None
    }
    #[inline(always)]
    pub const fn furthest(_: Fault, own: i64) -> i64 {
        own
    }
    #[inline(always)]
    pub const fn sized(size: usize, _: usize) -> usize {
        size
    }
    #[inline(always)]
    pub const fn note(_: &str) {}
}

#[cfg(not(feature = "planted-faults"))]
pub use nothing::{furthest, note, planted, sized, wall_clock};
