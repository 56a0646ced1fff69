//! From a topology file to stages: YAML and SQL in, a validated [`Plan`] out; nothing is started here.
//!
//! A **stage** is what the tasks of one input do: an ingest stage reads a source topic, a keyed stage reads
//! one exchange. Its nodes are a small graph of operator specs that ends in exchanges and sinks.
//!
//! Invariant: the same file gives the same plan, byte for byte (names, order of stages, fingerprint).

use std::sync::Arc;

use arrow::datatypes::SchemaRef;

use crate::operator::{AggregateSpec, CheckSpec, MapSpec, TumbleSpec};
use crate::record::Micros;

/// A topology, ready to run.
#[derive(Clone, Debug)]
pub struct Plan {
    pub name: Arc<str>,
    /// Of all that decides what the state holds: a change makes `run` refuse.
    pub fingerprint: String,
    /// A canonical text of the plan, a line per thing; what `plan` and the refusal diff.
    pub description: String,
    pub sources: Vec<SourcePlan>,
    /// Ingest stages first, one per source that a sink needs; then keyed stages, upstream ones first.
    pub stages: Vec<Stage>,
    pub sinks: Vec<SinkPlan>,
    pub max_drift: Micros,
}

#[derive(Clone, Debug)]
pub struct SourcePlan {
    pub name: Arc<str>,
    pub topic: Arc<str>,
    /// The columns to decode, in order: those that the plan or a check reads (all declared ones with `strict`).
    pub read: Vec<crate::record::Column>,
    pub schema: SchemaRef,
    /// Index into `read`; `None`: the record's log timestamp is its event time.
    pub event_time: Option<usize>,
    pub out_of_orderness: Micros,
    pub idle_after: Micros,
    pub max_ahead: Micros,
    pub max_reject_ratio: f64,
    pub checks: Vec<CheckSpec>,
}

#[derive(Clone, Debug)]
pub struct Stage {
    /// `ingest.<source>` or `<view>`; part of topic and metric names.
    pub name: Arc<str>,
    pub input: StageInput,
    /// In topological order: a node's input stands before it.
    pub nodes: Vec<Node>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StageInput {
    /// Index into `Plan::sources`. Rows enter after decoding and checks, with the source's schema.
    Source(usize),
    /// The topic `<topology>.exchange.<stage name>`; `upstream` are the stages that write it. Rows enter with
    /// the exchange schema of the stage's one aggregate.
    Exchange { upstream: Vec<usize> },
}

#[derive(Clone, Debug)]
pub struct Node {
    pub from: Upstream,
    pub work: Work,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Upstream {
    /// The stage's input.
    Input,
    /// Index into `Stage::nodes`.
    Node(usize),
}

#[derive(Clone, Debug)]
pub enum Work {
    Map(MapSpec),
    Tumble(TumbleSpec),
    PartialAggregate(Arc<AggregateSpec>),
    FinalAggregate(Arc<AggregateSpec>),
    /// Sends rows to the keyed stage with this index. Each goes to the exchange partition that a hash of these
    /// columns names: the group columns but the window's, so that a key's windows share a task; with no other
    /// group column, the window's.
    Exchange {
        stage: usize,
        key_columns: Vec<usize>,
    },
    /// Index into `Plan::sinks`.
    Sink(usize),
}

/// A view that leaves the topology.
#[derive(Clone, Debug)]
pub struct SinkPlan {
    pub view: Arc<str>,
    pub schema: SchemaRef,
    /// The columns that identify a row (a windowed view's group columns); empty: the view only appends.
    pub row_key: Vec<usize>,
    /// Index of window_end among the columns, for windowed views that still carry it.
    pub window_end: Option<usize>,
    /// Grace of the view's window, for deciding which windows are closed.
    pub grace: Micros,
    pub topic: Option<TopicSink>,
    pub lake: Option<LakeSink>,
}

#[derive(Clone, Debug)]
pub struct TopicSink {
    pub topic: Arc<str>,
    /// The record key's columns, in the declared order; empty: no key.
    pub key: Vec<usize>,
}

#[derive(Clone, Debug)]
pub struct LakeSink {
    /// e.g. `gold/hourly_delay`.
    pub table: String,
    pub partition_by: Vec<LakePartition>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LakePartition {
    Column(String),
    /// `date(x)`: the UTC day of a timestamp column.
    Date(String),
}
