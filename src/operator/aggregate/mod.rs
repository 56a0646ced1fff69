//! The window aggregate: partial where rows are ingested, final where they meet by key.
//!
//! ```text
//! rows ─► PartialAggregate ─► exchange: one row a touched group and epoch ─► FinalAggregate ─► windows
//!         lateness, pane                                                    pane, state, closing, corrections
//! ```
//! Both keep this epoch's groups in a pane: a table from keys to group numbers, and accumulators by number.
//!
//! Invariant: a group's key is its window's end and its other group columns, as bytes that sort by window first.

mod calls;
mod closed;
mod codec;
mod correction;
mod dense;
mod final_aggregate;
mod keys;
mod partial;

#[cfg(test)]
mod tests;

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, Int64Array, PrimitiveArray};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Field, FieldRef, Int64Type, Schema, SchemaRef, TimestampMicrosecondType};

use super::accumulator::state_fields;
use super::evaluate::failed;
use super::{AggregateSpec, Result};
use crate::record::Micros;

pub use final_aggregate::{FinalAggregate, Listeners, open_keys};
pub use partial::PartialAggregate;

/// The columns that a partial aggregate hands to the final one: the group columns, each call's state columns,
/// `_rows`, `_first_offset`, `_last_offset`.
pub fn exchange_schema(spec: &AggregateSpec) -> SchemaRef {
    let groups = spec.groups.iter().map(|group| Arc::clone(&group.field));
    let states = spec.calls.iter().flat_map(|call| state_fields(spec, call));
    let counters = ["_rows", "_first_offset", "_last_offset"];
    let counters = counters.map(|name| Arc::new(Field::new(name, DataType::Int64, false)));
    Arc::new(Schema::new(groups.chain(states).chain(counters).collect::<Vec<FieldRef>>()))
}

/// When a window closes: its rows are late at watermarks from here on.
fn closes_at(spec: &AggregateSpec, window_end: Micros) -> Micros {
    window_end.saturating_add(spec.grace)
}

/// The event time of a window's row: the last moment inside the window.
fn row_time(window_end: Micros) -> Micros {
    window_end.saturating_sub(1)
}

/// The window ends of evaluated group columns.
fn window_ends(spec: &AggregateSpec, groups: &[ArrayRef]) -> Result<Int64Array> {
    let (column, add) = match (spec.window_end, spec.window_start) {
        (Some(end), _) => (end, 0),
        (None, Some(start)) => (start, spec.size),
        (None, None) => return Err(failed(&spec.view, "the aggregate groups by no window")),
    };
    let Some(times) = groups[column].as_primitive_opt::<TimestampMicrosecondType>() else {
        return Err(failed(&spec.view, "the window column is not a timestamp in microseconds"));
    };
    if times.null_count() > 0 {
        return Err(failed(&spec.view, "a row has no window"));
    }
    Ok(times.unary(|time| time.saturating_add(add)))
}

/// The columns of a group's key: the window's end, then the group columns that are no window columns.
fn key_columns(spec: &AggregateSpec, ends: &Int64Array, groups: &[ArrayRef]) -> Vec<ArrayRef> {
    let mut columns: Vec<ArrayRef> = vec![Arc::new(ends.clone())];
    columns.extend(other_groups(spec).map(|group| Arc::clone(&groups[group])));
    columns
}

/// The group columns again, from the columns of the keys.
fn group_columns(spec: &AggregateSpec, keys: &[ArrayRef]) -> Result<Vec<ArrayRef>> {
    let ends = keys[0].as_primitive::<Int64Type>();
    let mut others = keys[1..].iter();
    let mut columns = Vec::with_capacity(spec.groups.len());
    for (index, group) in spec.groups.iter().enumerate() {
        let data_type = group.field.data_type();
        let back = if spec.window_start == Some(index) { spec.size } else { 0 };
        if is_window(spec, index) {
            let times: PrimitiveArray<TimestampMicrosecondType> = ends.unary(|end| end.saturating_sub(back));
            columns.push(Arc::new(times.with_data_type(data_type.clone())) as ArrayRef);
        } else if let Some(column) = others.next() {
            // Sortable bytes forget dictionaries.
            columns.push(if column.data_type() == data_type {
                Arc::clone(column)
            } else {
                cast(column, data_type)?
            });
        }
    }
    Ok(columns)
}

fn is_window(spec: &AggregateSpec, group: usize) -> bool {
    spec.window_start == Some(group) || spec.window_end == Some(group)
}

fn other_groups(spec: &AggregateSpec) -> impl Iterator<Item = usize> {
    (0..spec.groups.len()).filter(|&group| !is_window(spec, group))
}
