//! From views to stages: one ingest stage for each source, one keyed stage for each aggregate.
//!
//! Invariant: a view is planned once, however many read it; upstream stages stand before what reads them.

use std::collections::BTreeMap;
use std::sync::Arc;

use datafusion_common::DataFusionError;

use super::sql::{Step, View, physical};
use super::{Emit, Node, Stage, StageInput, Upstream, Work};
use crate::operator::{AggregateCall, AggregateSpec, GroupColumn, MapSpec, Order, TumbleSpec};
use crate::record::Micros;

/// Where a relation's rows come out.
#[derive(Clone, Copy)]
struct Outlet {
    stage: usize,
    node: Upstream,
}

pub(super) struct Builder<'a> {
    views: &'a BTreeMap<String, View>,
    grace: Micros,
    retention: Micros,
    pub stages: Vec<Stage>,
    outlets: BTreeMap<String, Outlet>,
}

impl<'a> Builder<'a> {
    /// `sources` in the order of `Plan::sources`.
    pub fn new(
        sources: &[Arc<str>],
        views: &'a BTreeMap<String, View>,
        grace: Micros,
        retention: Micros,
    ) -> Self {
        let mut builder = Self { views, grace, retention, stages: Vec::new(), outlets: BTreeMap::new() };
        for (index, source) in sources.iter().enumerate() {
            builder.stages.push(Stage {
                name: format!("ingest.{source}").into(),
                input: StageInput::Source(index),
                nodes: Vec::new(),
            });
            builder.outlets.insert(source.to_string(), Outlet { stage: index, node: Upstream::Input });
        }
        builder
    }

    /// Plans all views, in the order of their names, so that sinks decide nothing about stages.
    pub fn views(&mut self) -> Result<(), DataFusionError> {
        let views = self.views;
        views.keys().try_for_each(|view| self.relation(view).map(drop))
    }

    /// Lets a sink have a view's rows.
    pub fn sink(&mut self, view: &str, sink: usize, emit: Emit) -> Result<(), DataFusionError> {
        let outlet = self.relation(view)?;
        self.add(outlet, Work::Sink { sink, emit });
        Ok(())
    }

    fn relation(&mut self, name: &str) -> Result<Outlet, DataFusionError> {
        if let Some(outlet) = self.outlets.get(name) {
            return Ok(*outlet);
        }
        let views = self.views;
        let view = views
            .get(name)
            .ok_or_else(|| DataFusionError::Internal(format!("'{name}' is neither source nor view")))?;
        let mut outlet = self.relation(&view.input)?;
        let aggregates = view.steps.iter().filter(|step| matches!(step, Step::Aggregate { .. })).count();
        let mut aggregate = 0;
        for step in &view.steps {
            outlet = match step {
                Step::Aggregate { .. } => {
                    aggregate += 1;
                    // The last aggregate is the view's own; those in its subqueries are numbered.
                    let stage_name = if aggregate == aggregates {
                        name.to_string()
                    } else {
                        format!("{name}.{aggregate}")
                    };
                    let spec = Arc::new(self.aggregate(name, step)?);
                    self.exchange(outlet, &stage_name, spec)
                }
                step => {
                    let work = narrow(name, step)?;
                    self.add(outlet, work)
                }
            };
        }
        self.outlets.insert(name.to_string(), outlet);
        Ok(outlet)
    }

    fn add(&mut self, outlet: Outlet, work: Work) -> Outlet {
        let nodes = &mut self.stages[outlet.stage].nodes;
        nodes.push(Node { from: outlet.node, work });
        Outlet { node: Upstream::Node(nodes.len() - 1), ..outlet }
    }

    /// Ends a stage in an exchange and begins the keyed stage that reads it.
    fn exchange(&mut self, outlet: Outlet, name: &str, spec: Arc<AggregateSpec>) -> Outlet {
        let stage = self.stages.len();
        let partial = self.add(outlet, Work::PartialAggregate(Arc::clone(&spec)));
        let windows = [spec.window_start, spec.window_end];
        let mut key_columns: Vec<usize> =
            (0..spec.groups.len()).filter(|column| !windows.contains(&Some(*column))).collect();
        if key_columns.is_empty() {
            key_columns = windows.into_iter().flatten().collect();
        }
        self.add(partial, Work::Exchange { stage, key_columns });
        self.stages.push(Stage {
            name: name.into(),
            input: StageInput::Exchange { upstream: vec![outlet.stage] },
            nodes: vec![Node { from: Upstream::Input, work: Work::FinalAggregate(spec) }],
        });
        Outlet { stage, node: Upstream::Node(0) }
    }

    fn aggregate(&self, view: &str, step: &Step) -> Result<AggregateSpec, DataFusionError> {
        let Step::Aggregate { input, groups, calls, window_start, window_end, size, lag, row_key, output } =
            step
        else {
            return Err(DataFusionError::Internal("not an aggregate".to_string()));
        };
        let compile = |expr: &datafusion_expr::Expr| physical(expr, input);
        let keyed_before =
            self.stages.iter().filter(|stage| matches!(stage.input, StageInput::Exchange { .. }));
        let state_id = u8::try_from(keyed_before.count())
            .map_err(|_| DataFusionError::Plan("a topology has at most 256 aggregates".to_string()))?;
        Ok(AggregateSpec {
            view: view.into(),
            state_id,
            input: Arc::clone(input.inner()),
            groups: groups
                .iter()
                .zip(output.fields())
                .map(|(expr, field)| Ok(GroupColumn { expr: compile(expr)?, field: Arc::clone(field) }))
                .collect::<Result<_, DataFusionError>>()?,
            window_start: *window_start,
            window_end: *window_end,
            size: *size,
            calls: calls
                .iter()
                .zip(output.fields().iter().skip(groups.len()))
                .map(|(call, field)| {
                    Ok(AggregateCall {
                        function: call.function,
                        argument: call.argument.as_ref().map(compile).transpose()?,
                        filter: call.filter.as_ref().map(compile).transpose()?,
                        output: Arc::clone(field),
                    })
                })
                .collect::<Result<_, DataFusionError>>()?,
            order: row_key.clone().map_or(Order::Source, Order::RowKey),
            // Rows that come out of a window were judged at ingest: downstream only waits for their windows.
            grace: if row_key.is_some() { *lag } else { self.grace },
            retention: self.retention,
            output: Arc::clone(output),
            changes: row_key.is_some(),
        })
    }
}

fn narrow(view: &str, step: &Step) -> Result<Work, DataFusionError> {
    match step {
        Step::Map { input, filter, project, output } => Ok(Work::Map(MapSpec {
            view: view.into(),
            filter: filter.as_ref().map(|expr| physical(expr, input)).transpose()?,
            project: project
                .as_ref()
                .map(|exprs| exprs.iter().map(|expr| physical(expr, input)).collect::<Result<_, _>>())
                .transpose()?,
            output: Arc::clone(output),
        })),
        Step::Tumble { time_column, size, offset, output } => Ok(Work::Tumble(TumbleSpec {
            view: view.into(),
            time_column: *time_column,
            size: *size,
            offset: *offset,
            output: Arc::clone(output),
        })),
        Step::Aggregate { .. } => {
            Err(DataFusionError::Internal("an aggregate takes an exchange, not a node".to_string()))
        }
    }
}

/// By stage: how long after a window's end, by the origins' watermarks, its result is final: its own grace and
/// that of all stages before it.
pub(super) fn total_grace(stages: &[Stage]) -> Vec<Micros> {
    let mut total: Vec<Micros> = Vec::with_capacity(stages.len());
    for stage in stages {
        let before = match &stage.input {
            StageInput::Source(_) => 0,
            StageInput::Exchange { upstream } => {
                upstream.iter().map(|stage| total[*stage]).max().unwrap_or(0)
            }
        };
        let own = stage.nodes.iter().find_map(|node| match &node.work {
            Work::FinalAggregate(spec) => Some(spec.grace),
            _ => None,
        });
        total.push(own.unwrap_or(0).saturating_add(before));
    }
    total
}
