//! What each operator is told to do: plain data, made once by the planner, shared by all tasks of a stage.

use std::sync::Arc;

use arrow::datatypes::{FieldRef, SchemaRef};
use datafusion_physical_expr::PhysicalExpr;

use crate::record::Micros;

/// Filter, then project. With neither it passes rows through.
#[derive(Clone, Debug)]
pub struct MapSpec {
    /// The view in whose SQL the expressions stand.
    pub view: Arc<str>,
    /// Evaluated on the input; null counts as false.
    pub filter: Option<Arc<dyn PhysicalExpr>>,
    /// Evaluated on the filtered input; `None` keeps the columns as they are.
    pub project: Option<Vec<Arc<dyn PhysicalExpr>>>,
    /// The schema after the projection.
    pub output: SchemaRef,
}

/// A rule that every record of a source must meet.
#[derive(Clone, Debug)]
pub struct CheckSpec {
    pub name: Arc<str>,
    /// A boolean; false and null fail.
    pub expect: Arc<dyn PhysicalExpr>,
    /// As the user wrote it, for the dead letter.
    pub text: String,
    pub otherwise: CheckedOtherwise,
}

/// What becomes of a record that fails a check.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CheckedOtherwise {
    Dead,
    Drop,
    Warn,
}

/// `tumble(table, column, size [, offset])`: appends `window_start` and `window_end`, and makes the column the
/// rows' event time where it is not already.
#[derive(Clone, Debug)]
pub struct TumbleSpec {
    pub view: Arc<str>,
    /// Index of the time column, a Timestamp(Microsecond). A null puts the row in no window: a reject.
    pub time_column: usize,
    pub size: Micros,
    pub offset: Micros,
    /// The input's columns, then window_start and window_end.
    pub output: SchemaRef,
}

/// A grouped aggregate over windows. In the stage that writes the exchange it runs as a partial aggregate (one
/// row per touched group and epoch), in the keyed stage as the final one. Both are made from this one spec.
///
/// Exchange columns: the group columns; each call's state columns; then `_rows` (Int64: weights summed),
/// `_first_offset`, `_last_offset` (Int64; −1 where rows are derived).
/// Final output columns: the group columns, then one column per call.
#[derive(Clone, Debug)]
pub struct AggregateSpec {
    pub view: Arc<str>,
    /// Prefix of this operator's keys in its task's state; unique in the stage.
    pub state_id: u8,
    pub input: SchemaRef,
    pub groups: Vec<GroupColumn>,
    /// Indices into `groups`. At least one is `Some`; `size` gives the other.
    pub window_start: Option<usize>,
    pub window_end: Option<usize>,
    pub size: Micros,
    pub calls: Vec<AggregateCall>,
    pub order: Order,
    /// A row is late when its window's end + grace ≤ its origin's watermark. `Micros::MAX`: never.
    pub grace: Micros,
    /// How long after its close a window's state is kept for corrections. 0: windows are never corrected
    /// (a replay, where no origin is idle), so state goes with the close.
    pub retention: Micros,
    /// The schema of the final output.
    pub output: SchemaRef,
    /// Whether the input is a stream of changes (weights may be −1): min, max, first and last then keep
    /// multisets.
    pub changes: bool,
}

#[derive(Clone, Debug)]
pub struct GroupColumn {
    pub expr: Arc<dyn PhysicalExpr>,
    pub field: FieldRef,
}

#[derive(Clone, Debug)]
pub struct AggregateCall {
    pub function: Function,
    /// `None` only for `count(*)`.
    pub argument: Option<Arc<dyn PhysicalExpr>>,
    /// `… filter (where …)`.
    pub filter: Option<Arc<dyn PhysicalExpr>>,
    /// Name and type of the result.
    pub output: FieldRef,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Function {
    Count,
    /// `count(distinct x)`.
    CountDistinct,
    Sum,
    Avg,
    Min,
    Max,
    /// The value at the least place in the total order (event time; origin, offset | row key; whole row).
    First,
    Last,
}

/// What breaks ties in event time: rule R11.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Order {
    /// Source rows: (origin, offset).
    Source,
    /// Derived rows: their row key, by these columns of the input, then the whole row.
    RowKey(Vec<usize>),
}
