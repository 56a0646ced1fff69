//! How a simulated topology runs, and what may go wrong.

use std::time::Duration;

use crate::log::memory::Faults;

/// What a seed may do to a topology. Chances are in a million, at each edge or tick.
#[derive(Clone, Debug)]
pub struct Settings {
    pub hosts: usize,
    /// Of them run to the end at last.
    pub closers: usize,
    pub workers: usize,
    pub epoch: Duration,
    pub checkpoint_interval: Duration,
    pub state_budget: usize,
    pub copies: bool,
    /// Until it must have come to its end.
    pub ticks_max: u64,
    pub epoch_rows: u64,
    /// Of faults of all kinds that the seed may still bring.
    pub faults: i64,
    pub crash: u64,
    pub kill: u64,
    pub stall: u64,
    pub rebalance: u64,
    pub leave: u64,
    pub impostor: u64,
    pub objects_fail: u64,
    /// Work beside the workers, which is checkpoints and their copies, takes its time.
    pub slow: u64,
    /// The state directory is lost at this share of restarts, in a hundred.
    pub disk_lost: u64,
    pub log: Faults,
}

impl Default for Settings {
    /// One worker, and nothing goes wrong.
    fn default() -> Self {
        Self {
            hosts: 1,
            closers: 1,
            workers: 1,
            epoch: Duration::ZERO,
            checkpoint_interval: Duration::ZERO,
            state_budget: 1 << 20,
            copies: true,
            ticks_max: 60_000,
            epoch_rows: u64::MAX,
            faults: 0,
            crash: 0,
            kill: 0,
            stall: 0,
            rebalance: 0,
            leave: 0,
            impostor: 0,
            objects_fail: 0,
            slow: 0,
            disk_lost: 0,
            log: Faults::default(),
        }
    }
}
