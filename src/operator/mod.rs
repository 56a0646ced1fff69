//! Operators: what a task does to its rows. One small file each.
//!
//! An operator is built from its spec (made by `plan/`), is stepped by a task, and hands everything it
//! produces to an [`Output`]. It sees no clock, no I/O, no randomness: what it does is a function of the
//! batches and watermarks it was given.
//!
//! Invariant: whatever an operator must remember past the end of an epoch is in its [`SharedState`]; after an
//! abort the engine drops the operators, drops the epoch's layer of state, and builds them anew.
//! Invariant: results do not depend on how rows were cut into batches or epochs.

use std::sync::{Arc, Mutex};

use crate::record::{Batch, Micros};
use crate::state::TaskState;

mod accumulator;
mod aggregate;
mod check;
mod evaluate;
mod map;
mod spec;
#[cfg(test)]
mod testing;
mod tumble;

pub use aggregate::{FinalAggregate, Listeners, PartialAggregate, exchange_schema, open_keys};
pub use check::Check;
pub use map::Map;
pub use spec::{
    AggregateCall, AggregateSpec, CheckSpec, CheckedOtherwise, Function, GroupColumn, MapSpec, Order,
    TumbleSpec,
};
pub use tumble::Tumble;

/// Which input of an operator a batch arrives on; all of today's operators have one, numbered 0.
pub type Input = usize;

/// A task's state, shared by the operators of that one task; never contended.
pub type SharedState = Arc<Mutex<TaskState>>;

pub type Result<T, E = OperatorError> = std::result::Result<T, E>;

pub trait Operator: Send {
    /// Rows have arrived.
    fn process(&mut self, input: Input, batch: &Batch, out: &mut Output) -> Result<()>;
    /// Event time has moved: no row at or before `to` is still expected. Close what is closed.
    fn advance(&mut self, to: Micros, out: &mut Output) -> Result<()>;
    /// The epoch ends: hand over partial results and put what must be kept into the state.
    fn flush(&mut self, out: &mut Output) -> Result<()>;
}

/// What operators hand over.
#[derive(Default)]
pub struct Output {
    pub batches: Vec<Batch>,
    /// For those who see windows change before they close; only an aggregate that is asked for it has any.
    pub changes: Vec<Batch>,
    /// Rows that failed an expression or a check.
    pub rejected: Vec<Rejected>,
    /// Records that a window view called late.
    pub late: Vec<LateRow>,
    /// Records (indices into the run) that a stateful operator has taken in; a record that reaches a sink is
    /// counted by the sink. Indices may repeat.
    pub taken: Vec<u32>,
    /// Admitted rows whose window is older than `retention`: counted and named, never silent.
    pub expired: Vec<Expired>,
    /// Checks with `otherwise: warn` that failed: (check name, rows).
    pub warned: Vec<(Arc<str>, u64)>,
}

/// A row that could not be processed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rejected {
    /// The record of the run, in an ingest task; elsewhere the row is no record any more.
    pub record: Option<u32>,
    /// The row as compact text, where it is no record.
    pub row: Option<String>,
    /// A stable code: `expression`, `check:<name>`.
    pub reason: String,
    /// The view or check where it failed.
    pub place: Arc<str>,
    pub message: String,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LateRow {
    pub record: u32,
    pub view: Arc<str>,
    pub window_end: Micros,
    /// The origin's watermark that the row was late against.
    pub watermark: Micros,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Expired {
    pub view: Arc<str>,
    pub window_end: Micros,
    pub rows: i64,
    pub first_offset: i64,
    pub last_offset: i64,
}

#[derive(Debug, thiserror::Error)]
pub enum OperatorError {
    #[error("view '{view}': {what}")]
    Failed { view: String, what: String },
    /// A result that its type has no room for.
    #[error("view '{view}': {what}")]
    Overflow { view: String, what: String },
    #[error(transparent)]
    State(#[from] crate::state::StateError),
    #[error("arrow: {0}")]
    Arrow(#[from] arrow::error::ArrowError),
    #[error("expression: {0}")]
    DataFusion(#[from] datafusion_common::DataFusionError),
}
