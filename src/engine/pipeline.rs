//! A stage's graph of operators, stepped by one task.
//!
//! A sink that sees windows change has its rows through copies of the maps between it and the aggregate. The maps
//! themselves have only rows of closed windows, so that a row they fail on is a dead letter once, and nothing but what
//! the records say decides which.
//!
//! Invariant: nodes stand in topological order (copies, which hold nothing back, behind the others), so one pass from
//! the first to the last carries every batch, watermark and flush through.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::operator::{
    AggregateSpec, Expired, FinalAggregate, LateRow, Listeners, Map, Operator, Output, PartialAggregate,
    Rejected, SharedState, Tumble,
};
use crate::plan::{self, Emit, Stage, Upstream, Work};
use crate::planted::{Fault, planted};
use crate::record::{Batch, Micros};
use crate::time::WATERMARK_MAX;

use super::{EngineError, Result};

/// Where rows leave a stage towards another.
#[derive(Clone, Debug)]
pub struct ExchangePort {
    /// Index into `Plan::stages`.
    pub stage: usize,
    pub key_columns: Arc<[usize]>,
    /// How far behind the task's watermark rows on this way may still lie: the graces of the windows that
    /// they pass (rule R6).
    pub delay: Micros,
}

impl ExchangePort {
    /// The watermark that may be forwarded when the task's own is `watermark`.
    pub fn forwarded(&self, watermark: Micros) -> Micros {
        if watermark == WATERMARK_MAX || planted(Fault::GraceNotHeldBack) {
            watermark
        } else {
            watermark.saturating_sub(self.delay)
        }
    }
}

/// What a pipeline hands to its task.
#[derive(Default)]
pub struct Passed {
    /// (sink index, rows).
    pub sinks: Vec<(usize, Batch)>,
    /// (index into [`Pipeline::exchanges`], rows).
    pub exchanges: Vec<(usize, Batch)>,
    pub rejected: Vec<Rejected>,
    pub late: Vec<LateRow>,
    pub taken: Vec<u32>,
    pub expired: Vec<Expired>,
}

impl Passed {
    pub fn clear(&mut self) {
        *self = Self::default();
    }
}

enum Step {
    Operator(Box<dyn Operator>),
    Exchange(usize),
    Sink(usize),
}

struct Node {
    step: Step,
    children: Vec<usize>,
    /// Children that see windows change; an aggregate's only.
    watchers: Vec<usize>,
    /// Rows that fail here are dead letters of the node that this is a copy of.
    is_copy: bool,
}

impl Node {
    fn new(step: Step) -> Self {
        Self { step, children: Vec::new(), watchers: Vec::new(), is_copy: false }
    }
}

pub struct Pipeline {
    nodes: Vec<Node>,
    first: Vec<usize>,
    exchanges: Vec<ExchangePort>,
}

impl Pipeline {
    /// Builds the operators of a stage. A keyed stage's aggregate keeps its windows in `state`.
    pub fn new(stage: &Stage, state: &SharedState) -> Result<Self> {
        let mut nodes: Vec<Node> = Vec::with_capacity(stage.nodes.len());
        let mut delays: Vec<Micros> = Vec::with_capacity(stage.nodes.len());
        let mut first = Vec::new();
        let mut exchanges = Vec::new();
        for (index, node) in stage.nodes.iter().enumerate() {
            let mut delay = match node.from {
                Upstream::Input => {
                    first.push(index);
                    0
                }
                Upstream::Node(parent) => {
                    if !sees_changes(node) {
                        nodes[parent].children.push(index);
                    }
                    delays[parent]
                }
            };
            let step = match &node.work {
                Work::Map(spec) => Step::Operator(Box::new(Map::new(spec.clone()))),
                Work::Tumble(spec) => Step::Operator(Box::new(Tumble::new(spec.clone()))),
                Work::PartialAggregate(spec) => {
                    Step::Operator(Box::new(PartialAggregate::new(Arc::clone(spec))?))
                }
                Work::FinalAggregate(spec) => {
                    delay = delay.saturating_add(spec.grace);
                    let operator =
                        FinalAggregate::new(Arc::clone(spec), Arc::clone(state), listeners(stage, index))?;
                    Step::Operator(Box::new(operator))
                }
                Work::Exchange { stage, key_columns } => {
                    let key_columns = key_columns.clone().into();
                    exchanges.push(ExchangePort { stage: *stage, key_columns, delay });
                    Step::Exchange(exchanges.len() - 1)
                }
                Work::Sink { sink, .. } => Step::Sink(*sink),
            };
            nodes.push(Node::new(step));
            delays.push(delay);
        }
        let mut pipeline = Self { nodes, first, exchanges };
        pipeline.add_watchers(stage)?;
        Ok(pipeline)
    }

    /// Leads the aggregate's changes to the sinks that see them, through copies of the nodes on their way.
    fn add_watchers(&mut self, stage: &Stage) -> Result<()> {
        // By node: its copy. Sinks that share a way share the copies.
        let mut copies: BTreeMap<usize, usize> = BTreeMap::new();
        for (sink, _) in stage.nodes.iter().enumerate().filter(|(_, node)| sees_changes(node)) {
            let mut below = sink;
            let mut at = stage.nodes[sink].from;
            loop {
                let Upstream::Node(node) = at else {
                    return Err(EngineError::internal("a view without windows has no changes".into()));
                };
                let step: Box<dyn Operator> = match &stage.nodes[node].work {
                    Work::Map(spec) => Box::new(Map::new(spec.clone())),
                    Work::Tumble(spec) => Box::new(Tumble::new(spec.clone())),
                    _ => {
                        self.nodes[node].watchers.push(below);
                        break;
                    }
                };
                if let Some(&copy) = copies.get(&node) {
                    self.nodes[copy].children.push(below);
                    break;
                }
                let copy = self.nodes.len();
                copies.insert(node, copy);
                let children = vec![below];
                self.nodes.push(Node { children, is_copy: true, ..Node::new(Step::Operator(step)) });
                below = copy;
                at = stage.nodes[node].from;
            }
        }
        Ok(())
    }

    pub fn exchanges(&self) -> &[ExchangePort] {
        &self.exchanges
    }

    /// Rows enter the stage.
    pub fn push(&mut self, batch: &Batch, passed: &mut Passed) -> Result<()> {
        for index in 0..self.first.len() {
            self.process(self.first[index], batch, passed)?;
        }
        Ok(())
    }

    /// Event time has moved for the whole stage.
    pub fn advance(&mut self, to: Micros, passed: &mut Passed) -> Result<()> {
        self.each(passed, |operator, output| operator.advance(to, output))
    }

    /// The epoch ends: partial results leave, what must be kept goes to the state.
    pub fn flush(&mut self, passed: &mut Passed) -> Result<()> {
        self.each(passed, |operator, output| operator.flush(output))
    }

    fn each(
        &mut self,
        passed: &mut Passed,
        call: impl Fn(&mut dyn Operator, &mut Output) -> crate::operator::Result<()>,
    ) -> Result<()> {
        for index in 0..self.nodes.len() {
            let mut output = Output::default();
            if let Step::Operator(operator) = &mut self.nodes[index].step {
                call(operator.as_mut(), &mut output)?;
                self.hand_on(index, output, passed)?;
            }
        }
        Ok(())
    }

    fn process(&mut self, index: usize, batch: &Batch, passed: &mut Passed) -> Result<()> {
        let mut output = Output::default();
        match &mut self.nodes[index].step {
            Step::Operator(operator) => operator.process(0, batch, &mut output)?,
            Step::Exchange(port) => passed.exchanges.push((*port, batch.clone())),
            Step::Sink(sink) => {
                if let Some(source) = &batch.source {
                    passed.taken.extend(source.record.iter().copied());
                }
                passed.sinks.push((*sink, batch.clone()));
            }
        }
        self.hand_on(index, output, passed)
    }

    fn hand_on(&mut self, index: usize, output: Output, passed: &mut Passed) -> Result<()> {
        if !self.nodes[index].is_copy {
            passed.rejected.extend(output.rejected);
        }
        passed.late.extend(output.late);
        passed.taken.extend(output.taken);
        passed.expired.extend(output.expired);
        let changes = output.changes.into_iter().map(|batch| (true, batch));
        for (of_changes, mut batch) in output.batches.into_iter().map(|batch| (false, batch)).chain(changes) {
            if planted(Fault::LostRetraction) && batch.weight.is_some() {
                let added: Vec<u32> =
                    (0..batch.num_rows() as u32).filter(|&row| batch.weight(row as usize) > 0).collect();
                batch = batch.take(&added)?;
            }
            if batch.num_rows() == 0 {
                continue;
            }
            let below = |node: &Node, child: usize| {
                let children = if of_changes { &node.watchers } else { &node.children };
                children.get(child).copied()
            };
            let mut number = 0;
            while let Some(child) = below(&self.nodes[index], number) {
                self.process(child, &batch, passed)?;
                number += 1;
            }
        }
        Ok(())
    }
}

fn sees_changes(node: &plan::Node) -> bool {
    matches!(node.work, Work::Sink { emit: Emit::Changes, .. })
}

/// Who has the rows of a stage's aggregate, which is the one that all its sinks have their rows of.
fn listeners(stage: &Stage, aggregate: usize) -> Listeners {
    Listeners {
        closed: stage.nodes.iter().any(|node| node.from == Upstream::Node(aggregate) && !sees_changes(node)),
        changes: stage.nodes.iter().any(sees_changes),
    }
}

/// The aggregate whose exchange rows a keyed stage reads.
pub fn keyed_aggregate(stage: &Stage) -> Option<&Arc<AggregateSpec>> {
    stage.nodes.iter().find_map(|node| match &node.work {
        Work::FinalAggregate(spec) if node.from == Upstream::Input => Some(spec),
        _ => None,
    })
}
