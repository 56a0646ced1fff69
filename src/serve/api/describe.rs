//! A topology as its file has it, and the graph of what is made of it.

use std::sync::Arc;

use super::model::{
    ColumnDescription, Graph, GraphEdge, GraphNode, NodeKind, SinkDescription, SourceDescription,
    StageDescription, TopologyDescription, ViewDescription,
};
use crate::engine::TopicNames;
use crate::plan::{Emit, Plan, SinkPlan, SourcePlan, Stage, StageInput, ViewPlan, Work};
use crate::record::Micros;

pub fn describe(plan: &Plan) -> TopologyDescription {
    let names = TopicNames::of(plan);
    TopologyDescription {
        name: Arc::clone(&plan.name),
        fingerprint: plan.fingerprint.clone(),
        version: plan.version.clone(),
        group: names.group.clone(),
        dead_topic: Arc::clone(&names.dead),
        late_topic: Arc::clone(&names.late),
        max_drift_seconds: seconds(plan.max_drift),
        sources: plan.sources.iter().map(source).collect(),
        views: plan.views.iter().map(view).collect(),
        stages: (0..plan.stages.len()).map(|index| stage(plan, &names, index)).collect(),
        sinks: plan.sinks.iter().map(sink).collect(),
        graph: graph(plan, &names),
    }
}

fn seconds(micros: Micros) -> f64 {
    micros as f64 / 1e6
}

fn source(source: &SourcePlan) -> SourceDescription {
    let column = |column: &crate::record::Column| ColumnDescription {
        name: column.name.clone(),
        ty: column.ty.to_string(),
    };
    SourceDescription {
        name: Arc::clone(&source.name),
        topic: Arc::clone(&source.topic),
        columns: source.read.iter().map(column).collect(),
        event_time: source.event_time.map(|index| source.read[index].name.clone()),
        out_of_orderness_seconds: seconds(source.out_of_orderness),
        idle_after_seconds: seconds(source.idle_after),
        max_ahead_seconds: seconds(source.max_ahead),
        checks: source.checks.iter().map(|check| Arc::clone(&check.name)).collect(),
    }
}

fn view(view: &ViewPlan) -> ViewDescription {
    let column = |(name, ty): &(String, String)| ColumnDescription { name: name.clone(), ty: ty.clone() };
    ViewDescription {
        name: Arc::clone(&view.name),
        reads: view.reads.clone(),
        sql: Arc::clone(&view.sql),
        columns: view.columns.iter().map(column).collect(),
    }
}

fn stage(plan: &Plan, names: &TopicNames, index: usize) -> StageDescription {
    let stage = &plan.stages[index];
    let mut views: Vec<Arc<str>> = Vec::new();
    for view in stage.nodes.iter().filter_map(|node| view_of(&node.work)) {
        if !views.contains(view) {
            views.push(Arc::clone(view));
        }
    }
    StageDescription {
        name: Arc::clone(&stage.name),
        kind: match stage.input {
            StageInput::Source(_) => "ingest",
            StageInput::Exchange { .. } => "keyed",
        },
        reads: names.input_topic(plan, index),
        views,
        operators: operators(plan, stage),
    }
}

fn view_of(work: &Work) -> Option<&Arc<str>> {
    match work {
        Work::Map(spec) => Some(&spec.view),
        Work::Tumble(spec) => Some(&spec.view),
        Work::PartialAggregate(spec) | Work::FinalAggregate(spec) => Some(&spec.view),
        Work::Exchange { .. } | Work::Sink { .. } => None,
    }
}

fn operators(plan: &Plan, stage: &Stage) -> Vec<String> {
    let text = |work: &Work| match work {
        Work::Map(spec) if spec.filter.is_some() && spec.project.is_none() => {
            format!("filter for {}", spec.view)
        }
        Work::Map(spec) if spec.filter.is_some() => format!("filter and project for {}", spec.view),
        Work::Map(spec) => format!("project for {}", spec.view),
        Work::Tumble(spec) => format!("tumble by {} s for {}", seconds(spec.size), spec.view),
        Work::PartialAggregate(spec) => format!("aggregate in part for {}", spec.view),
        Work::FinalAggregate(spec) => format!("aggregate {}", spec.view),
        Work::Exchange { stage, .. } => format!("send to {}", plan.stages[*stage].name),
        Work::Sink { sink, .. } => format!("write {}", plan.sinks[*sink].view),
    };
    let decode = match stage.input {
        StageInput::Source(source) => {
            let checks = plan.sources[source].checks.len();
            Some(if checks == 0 { "decode".to_owned() } else { format!("decode and check ({checks})") })
        }
        StageInput::Exchange { .. } => None,
    };
    decode.into_iter().chain(stage.nodes.iter().map(|node| text(&node.work))).collect()
}

fn sink(sink: &SinkPlan) -> SinkDescription {
    let name = |index: &usize| sink.schema.field(*index).name().clone();
    SinkDescription {
        view: Arc::clone(&sink.view),
        topic: sink.topic.as_ref().map(|topic| Arc::clone(&topic.topic)),
        key: sink.topic.iter().flat_map(|topic| topic.key.iter().map(name)).collect(),
        emit: match sink.emit {
            Emit::Final => "final",
            Emit::Changes => "changes",
        },
        lake_table: sink.lake.as_ref().map(|lake| lake.table.clone()),
        grace_seconds: (sink.grace < Micros::MAX).then(|| seconds(sink.grace)),
    }
}

fn graph(plan: &Plan, names: &TopicNames) -> Graph {
    let mut graph = Graph { nodes: Vec::new(), edges: Vec::new() };
    for (index, stage) in plan.stages.iter().enumerate() {
        let id = format!("stage:{}", stage.name);
        let reads = names.input_topic(plan, index);
        match &stage.input {
            StageInput::Source(source) => {
                let name = &plan.sources[*source].name;
                let from = format!("source:{name}");
                graph.node(&from, NodeKind::Source, name, reads.to_string());
                graph.edge(from, &id, None);
            }
            StageInput::Exchange { upstream } => {
                for upstream in upstream {
                    let from = format!("stage:{}", plan.stages[*upstream].name);
                    graph.edge(from, &id, Some(Arc::clone(&reads)));
                }
            }
        }
        graph.node(&id, NodeKind::Stage, &stage.name, reads.to_string());
        for node in &stage.nodes {
            let Work::Sink { sink, .. } = &node.work else { continue };
            let sink = &plan.sinks[*sink];
            if let Some(topic) = &sink.topic {
                let to = format!("sink:{}", sink.view);
                graph.node(&to, NodeKind::Sink, &sink.view, topic.topic.to_string());
                graph.edge(id.clone(), &to, None);
            }
            if let Some(lake) = &sink.lake {
                let to = format!("lake:{}", sink.view);
                graph.node(&to, NodeKind::Lake, &sink.view, lake.table.clone());
                graph.edge(id.clone(), &to, None);
            }
        }
    }
    graph
}

impl Graph {
    fn node(&mut self, id: &str, kind: NodeKind, name: &Arc<str>, resource: String) {
        self.nodes.push(GraphNode { id: id.to_owned(), kind, name: Arc::clone(name), resource });
    }

    fn edge(&mut self, from: String, to: &str, exchange: Option<Arc<str>>) {
        self.edges.push(GraphEdge { from, to: to.to_owned(), exchange });
    }
}
