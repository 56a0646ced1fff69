//! How a process came to work: its steps from the start of `run` to the first commit, and what recovering each
//! task took. It answers what dominates the time to recover.
//!
//! Invariant: only a worker's first steps count; one that joins anew later changes nothing.

use std::collections::BTreeMap;

/// A step of a process's start, each after the one before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum StartStep {
    /// The topology may run here, and its topics are there.
    Admitted,
    /// The group has given partitions to the worker.
    Assigned,
    /// The worker's tasks have their state.
    Recovered,
    /// Its first transaction is committed.
    Committed,
}

impl StartStep {
    pub const ALL: [StartStep; 4] =
        [StartStep::Admitted, StartStep::Assigned, StartStep::Recovered, StartStep::Committed];

    pub fn name(self) -> &'static str {
        match self {
            StartStep::Admitted => "admitted",
            StartStep::Assigned => "assigned",
            StartStep::Recovered => "recovered",
            StartStep::Committed => "committed",
        }
    }
}

/// When each worker came to each step first, in seconds from the start of `run`.
#[derive(Default)]
pub(super) struct Start(BTreeMap<(StartStep, usize), f64>);

impl Start {
    pub fn reached(&mut self, step: StartStep, worker: usize, seconds: f64) {
        self.0.entry((step, worker)).or_insert(seconds);
    }

    /// By the slowest of the workers that have come to it.
    pub fn steps(&self) -> Vec<(StartStep, f64)> {
        let slowest = |step: StartStep| {
            self.0.iter().filter(|((of, _), _)| *of == step).map(|(_, seconds)| *seconds).reduce(f64::max)
        };
        StartStep::ALL.into_iter().filter_map(|step| slowest(step).map(|seconds| (step, seconds))).collect()
    }
}

/// What recovering a keyed task took.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct RecoveryTook {
    /// Opening its state here, and loading a copy of its checkpoint if need be.
    pub load_seconds: f64,
    /// Folding the records from the checkpoint to the committed offset.
    pub fold_seconds: f64,
    pub folded: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_is_the_slowest_workers_first() {
        let mut start = Start::default();
        start.reached(StartStep::Assigned, 0, 1.0);
        start.reached(StartStep::Assigned, 1, 2.0);
        start.reached(StartStep::Assigned, 0, 9.0);
        start.reached(StartStep::Committed, 1, 3.0);
        assert_eq!(start.steps(), [(StartStep::Assigned, 2.0), (StartStep::Committed, 3.0)]);
    }
}
