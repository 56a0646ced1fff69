//! Seeded faults of the log in memory.
//!
//! Invariant: the same seed and the same calls give the same faults.

/// What goes wrong, and how often (0 never, 1 always). Steps count the calls of `begin`, `produce` and
/// `commit` of all members, from 1.
#[derive(Clone, Debug, Default)]
pub struct Faults {
    pub seed: u64,
    /// A poll yields a few records only of each partition.
    pub short_reads: f64,
    /// The most records of a short read; 0 stands for 3.
    pub short_read_max: u64,
    /// A record is not taken, and its transaction must be aborted.
    pub failed_produce: f64,
    /// Chance that a poll has nothing of a partition yet, whatever is there.
    pub empty_reads: f64,
    /// A commit fails, and the transaction must be aborted.
    pub aborts: f64,
    /// A commit's answer is lost; the transaction is committed.
    pub lost_committed: f64,
    /// A commit's answer is lost; the transaction is aborted.
    pub lost_aborted: f64,
    /// A group rebalances at this step.
    pub rebalance_at: Option<u64>,
    /// The member whose step this is is out of its group, as after a session that timed out.
    pub fence_at: Option<u64>,
    /// From this step on, all calls of the member whose step it is fail: its process is gone.
    pub crash_at: Option<u64>,
}
