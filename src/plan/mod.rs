//! From a topology file to stages: YAML and SQL in, a validated [`Plan`] out; nothing is started here.
//!
//! A **stage** is what the tasks of one input do: an ingest stage reads a source topic, a keyed stage reads
//! one exchange. Its nodes are a small graph of operator specs that ends in exchanges and sinks.
//!
//! Invariant: the same file gives the same plan, byte for byte (names, order of stages, fingerprint).

mod build;
mod declared;
mod error;
mod fingerprint;
mod pruned;
mod sql;
mod stages;
mod topics;
mod topology;
mod written;

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::datatypes::SchemaRef;

pub use error::{Place, PlanError, Problem, SourceFile, suggest};
pub use fingerprint::diff;
pub use topology::{Emit, Entries, json_schema};

use crate::operator::{AggregateSpec, CheckSpec, MapSpec, TumbleSpec};
use crate::record::Micros;

/// Of the thread that plans; only what is used of it is taken.
const STACK_BYTES: usize = 64 << 20;

/// Reads the text of a topology; `file_name` is for messages.
pub fn parse(text: &str, file_name: &str) -> Result<Plan, PlanError> {
    let file = error::SourceFile { name: file_name, text };
    // What is to be refused as too deep must be gone through first, whatever stack the caller has.
    std::thread::scope(|scope| {
        let planner = std::thread::Builder::new().name("plan".into()).stack_size(STACK_BYTES);
        match planner.spawn_scoped(scope, || build::plan(&file)) {
            Ok(planned) => planned.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)),
            Err(error) => {
                let message = format!("no thread can be started to plan it: {error}");
                Err(PlanError::new(vec![file.problem(Place { line: 0, column: 0 }, message, None)]))
            }
        }
    })
}

/// Reads another YAML file that points into itself when it is wrong, such as tests of a topology.
pub fn read_yaml<T: serde::de::DeserializeOwned>(file: &SourceFile<'_>) -> Result<T, PlanError> {
    declared::read(file).map_err(|problem| PlanError::new(vec![problem]))
}

/// Which late rows a replay gives their place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Late {
    /// Those that the live run gave it.
    AsLive,
    /// Every window's grace is at least this long.
    AtLeast(Micros),
    /// No row is late.
    All,
}

/// A topology, ready to run.
#[derive(Clone, Debug)]
pub struct Plan {
    pub name: Arc<str>,
    /// Of all that decides what the state holds: a change makes `run` refuse.
    pub fingerprint: String,
    /// Of all that decides which records the topology writes: a change is a new version of it, which `run` takes
    /// up from where it stands.
    pub version: String,
    /// A canonical text of the plan, a line per thing; what the refusal of a changed topology diffs.
    pub description: String,
    pub sources: Vec<SourcePlan>,
    /// Ingest stages first, one per source that a sink needs; then keyed stages, upstream ones first.
    pub stages: Vec<Stage>,
    pub sinks: Vec<SinkPlan>,
    /// The views that sinks need, in the order of their names, for those who read the topology.
    pub views: Vec<ViewPlan>,
    pub max_drift: Micros,
    /// What its writer may want to know: names that were read in other letters.
    pub notes: Vec<String>,
    /// How the topic of dead letters is created.
    pub dead: TopicShape,
    /// How the topic of late records is created.
    pub late: TopicShape,
}

/// A view as its file has it.
#[derive(Clone, Debug)]
pub struct ViewPlan {
    pub name: Arc<str>,
    /// The sources and views that its SQL names.
    pub reads: Vec<Arc<str>>,
    pub sql: Arc<str>,
    /// Their names and types, as SQL has them.
    pub columns: Vec<(String, String)>,
}

/// How a topic is created where it is missing; one that exists stays as it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TopicShape {
    /// `None`: as many as the source with the most.
    pub partitions: Option<i32>,
    /// By Kafka's names; what is not there is the broker's to say.
    pub config: BTreeMap<String, String>,
}

impl Plan {
    /// Raises the grace of every window; the fingerprint stays that of the topology.
    pub fn with_late(self, late: &Late) -> Plan {
        let least = match late {
            Late::AsLive => return self,
            Late::AtLeast(least) => *least,
            Late::All => Micros::MAX,
        };
        self.with_aggregates(|spec| spec.grace = spec.grace.max(least))
    }

    /// Whether a view has this name, in a sink or on the way to one.
    pub fn has_view(&self, name: &str) -> bool {
        self.stages.iter().flat_map(|stage| &stage.nodes).any(|node| match &node.work {
            Work::Map(spec) => *spec.view == *name,
            Work::Tumble(spec) => *spec.view == *name,
            Work::PartialAggregate(spec) | Work::FinalAggregate(spec) => *spec.view == *name,
            Work::Exchange { .. } => false,
            Work::Sink { sink, .. } => *self.sinks[*sink].view == *name,
        })
    }

    /// The stages that a sink's rows come through: the one that writes it first, then those upstream.
    pub fn stages_of(&self, sink: usize) -> Vec<usize> {
        let writes = |stage: &Stage| {
            stage.nodes.iter().any(|node| matches!(node.work, Work::Sink { sink: of, .. } if of == sink))
        };
        let mut stages: Vec<usize> =
            (0..self.stages.len()).filter(|&stage| writes(&self.stages[stage])).collect();
        let mut seen = 0;
        while let Some(&stage) = stages.get(seen) {
            seen += 1;
            if let StageInput::Exchange { upstream } = &self.stages[stage].input {
                let new: Vec<usize> =
                    upstream.iter().copied().filter(|stage| !stages.contains(stage)).collect();
                stages.extend(new);
            }
        }
        stages
    }

    /// For a bounded run, in which no origin is idle: a window's state goes with its close, and who sees windows
    /// change sees only what they come to.
    pub fn for_replay(mut self) -> Plan {
        for node in self.stages.iter_mut().flat_map(|stage| &mut stage.nodes) {
            if let Work::Sink { emit, .. } = &mut node.work {
                *emit = Emit::Final;
            }
        }
        self.with_aggregates(|spec| spec.retention = 0)
    }

    /// Changes each aggregate once, in the stage before its exchange and in the one behind it.
    fn with_aggregates(mut self, change: impl Fn(&mut AggregateSpec)) -> Plan {
        for node in self.stages.iter_mut().flat_map(|stage| &mut stage.nodes) {
            if let Work::PartialAggregate(spec) | Work::FinalAggregate(spec) = &mut node.work {
                let mut changed = AggregateSpec::clone(spec);
                change(&mut changed);
                *spec = Arc::new(changed);
            }
        }
        self.set_sink_grace();
        self
    }

    fn set_sink_grace(&mut self) {
        let total = stages::total_grace(&self.stages);
        for (stage, grace) in self.stages.iter().zip(total) {
            for node in &stage.nodes {
                if let Work::Sink { sink, .. } = node.work {
                    self.sinks[sink].grace = grace;
                }
            }
        }
    }
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
    Sink {
        /// Index into `Plan::sinks`.
        sink: usize,
        /// `Changes`: the sink has the rows of the aggregate above it, through the maps between, as windows change.
        emit: Emit,
    },
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
    /// Index of window_start among the columns, where it is one, and the window's size.
    pub window_start: Option<(usize, Micros)>,
    /// How long after a window's end, by the origins' watermarks, its row is final: the grace of the view's
    /// window and of those that it is made of.
    pub grace: Micros,
    /// Always `Final` for a view without windows, whose rows leave at once in any case.
    pub emit: Emit,
    pub topic: Option<TopicSink>,
    pub lake: Option<LakeSink>,
    /// A canonical text of all that decides the view's records, down to its source.
    pub lineage: String,
}

impl SinkPlan {
    pub fn correction(&self) -> Correction {
        let keyed = self.topic.as_ref().is_some_and(|topic| !topic.key.is_empty());
        match (self.row_key.is_empty(), keyed) {
            (true, _) => Correction::Never,
            (false, true) => Correction::Upsert,
            (false, false) => Correction::Retract,
        }
    }
}

/// What a topic is told when a row of its view is no longer right.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Correction {
    /// The view has no windows: its rows stay as they are.
    Never,
    /// The record of the same key that replaces it, or a tombstone.
    Upsert,
    /// The row once more, as a retraction, before the one that takes its place: the topic has no key.
    Retract,
}

#[derive(Clone, Debug)]
pub struct TopicSink {
    pub topic: Arc<str>,
    /// The record key's columns, in the declared order; empty: no key.
    pub key: Vec<usize>,
    pub shape: TopicShape,
    /// All records of one key come from one partition of the source, or windows say which is the last. Else the source
    /// may have only one (rule R11).
    pub one_origin: bool,
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

#[cfg(test)]
mod tests;
