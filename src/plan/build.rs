//! From the file to the plan: everything is resolved against what it names, and all problems are reported.
//!
//! Invariant: sources, views and sinks are planned in the order of their names, so that the order of a file's
//! keys decides nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use datafusion_common::DataFusionError;

use super::declared::{self, CheckSource, DeclaredSource, Settings};
use super::error::{PlanError, Problem, SourceFile, suggest};
use super::sql::{self, Catalog, Facts, Query, Relation, SqlProblem, View};
use super::stages::Builder;
use super::topology::{Emit, Sink, Topology};
use super::{
    LakePartition, LakeSink, Plan, SinkPlan, SourcePlan, TopicShape, fingerprint, pruned, topics, written,
};
use crate::operator::CheckSpec;
use crate::record::{Column, Micros};

pub(super) fn plan(file: &SourceFile<'_>) -> Result<Plan, PlanError> {
    let topology: Topology = declared::read(file).map_err(|problem| PlanError::new(vec![problem]))?;
    let mut builder = Planner { file, topology: &topology, problems: Vec::new() };
    let planned = builder.plan();
    match planned {
        Some(plan) if builder.problems.is_empty() => Ok(plan),
        _ => Err(PlanError::new(builder.problems)),
    }
}

pub(super) struct Planner<'a> {
    pub(super) file: &'a SourceFile<'a>,
    pub(super) topology: &'a Topology,
    pub(super) problems: Vec<Problem>,
}

impl Planner<'_> {
    fn plan(&mut self) -> Option<Plan> {
        let settings = declared::settings(self.file, self.topology, &mut self.problems);
        let sources = declared::sources(self.file, self.topology, &mut self.problems);
        let queries = self.queries(&sources);
        let order = self.in_order(&queries);
        let full = catalog(&sources, |source| source.columns.clone());
        let mut views = self.views(&queries, &order, &full);
        let mut checks = declared::checks(self.file, self.topology, &sources, &full, &mut self.problems);
        let sinks = self.sinks(&views, &sources);
        let [dead, late] = self.letter_topics();
        if !self.problems.is_empty() {
            return None;
        }
        let wanted: Vec<&str> = sinks.iter().map(|sink| sink.view.as_ref()).collect();
        let needed = upstream_of(&views, &wanted);
        let reads = Reads::new(&sources, &views, &checks);
        let sources: Vec<DeclaredSource> =
            sources.into_iter().filter(|source| needed.contains(source.name.as_str())).collect();
        let pruned = catalog(&sources, |source| reads.columns(source, &needed));
        views.retain(|view, _| needed.contains(view));
        checks.retain(|check| needed.contains(&check.source));
        let name = self.topology.name.value.as_str();
        let planned = prune(&sources, &pruned, &mut views, &mut checks)
            .and_then(|()| assemble(name, &settings, &sources, &pruned, &views, checks, sinks));
        match planned {
            Ok(plan) => {
                Some(Plan { views: written::views(self.topology, &queries, &views), dead, late, ..plan })
            }
            Err(error) => {
                let message = format!("the topology cannot be planned: {}", error.strip_backtrace());
                self.problem(&self.topology.name.referenced, message, None);
                None
            }
        }
    }

    pub(super) fn problem(
        &mut self,
        place: &serde_saphyr::Location,
        message: impl Into<String>,
        help: Option<String>,
    ) {
        self.problems.push(self.file.problem(*place, message, help));
    }

    /// The views that parse, by name.
    fn queries(&mut self, sources: &[DeclaredSource]) -> BTreeMap<String, Query> {
        let mut queries = BTreeMap::new();
        for (name, text) in &self.topology.views.0 {
            declared::check_name(self.file, name, "view", &mut self.problems);
            if let Some((source, _)) =
                self.topology.sources.0.iter().find(|(source, _)| source.value == name.value)
            {
                let line = source.referenced.line();
                self.problem(
                    &name.referenced,
                    format!("'{}' is already the source of line {line}", name.value),
                    Some("give the view a name of its own".to_string()),
                );
                continue;
            }
            match sql::parse(&text.0.value) {
                Ok(query) => {
                    let known: Vec<&str> = sources
                        .iter()
                        .map(|source| source.name.as_str())
                        .chain(self.topology.views.0.iter().map(|(view, _)| view.value.as_str()))
                        .filter(|known| *known != name.value)
                        .collect();
                    let declared: Vec<&str> =
                        self.topology.sources.0.iter().map(|(source, _)| source.value.as_str()).collect();
                    for (read, line, column) in &query.reads {
                        if *read != name.value
                            && !known.contains(&read.as_str())
                            && !declared.contains(&read.as_str())
                        {
                            let help = suggest(read, known.iter().copied(), "there are");
                            let message = format!("'{read}' is neither a source nor a view");
                            self.sql_problem(
                                &text.0,
                                &SqlProblem { line: *line, column: *column, message, help },
                            );
                        }
                    }
                    queries.insert(name.value.clone(), query);
                }
                Err(problem) => self.sql_problem(&text.0, &problem),
            }
        }
        queries
    }

    fn sql_problem(&mut self, text: &serde_saphyr::Spanned<String>, problem: &SqlProblem) {
        let found = declared::sql_problem(self.file, text, problem);
        self.problems.push(found);
    }

    /// The names of the views, each after those that it reads; those in a cycle, or that read what is broken,
    /// are left out.
    fn in_order(&mut self, queries: &BTreeMap<String, Query>) -> Vec<String> {
        let mut order: Vec<String> = Vec::new();
        let mut stuck: BTreeSet<&String> = queries.keys().collect();
        let ready = |name: &String, stuck: &BTreeSet<&String>| {
            queries.get(name).is_some_and(|query| query.reads.iter().all(|(read, ..)| !stuck.contains(read)))
        };
        while let Some(name) = stuck.iter().copied().find(|name| ready(name, &stuck)) {
            stuck.remove(name);
            order.push(name.clone());
        }
        if let Some(cycle) = find_cycle(queries, &stuck) {
            let text = cycle.iter().chain(cycle.first()).cloned().collect::<Vec<_>>().join(" → ");
            if let Some((name, _)) =
                self.topology.views.0.iter().find(|(name, _)| Some(&name.value) == cycle.first())
            {
                self.problem(
                    &name.referenced,
                    format!("these views read each other in a circle: {text}"),
                    Some("let one of them read a source".to_string()),
                );
            }
        }
        order
    }

    fn views(
        &mut self,
        queries: &BTreeMap<String, Query>,
        order: &[String],
        sources: &Catalog,
    ) -> BTreeMap<String, View> {
        let mut catalog = sources.clone();
        let mut views = BTreeMap::new();
        for name in order {
            let Some(query) = queries.get(name) else { continue };
            if !query.reads.iter().all(|(read, ..)| catalog.contains_key(read)) {
                continue;
            }
            match sql::resolve(query, &catalog) {
                Ok(view) => {
                    let relation = Relation { schema: Arc::clone(&view.schema), facts: view.facts.clone() };
                    catalog.insert(name.clone(), relation);
                    views.insert(name.clone(), view);
                }
                Err(problem) => {
                    if let Some((_, text)) =
                        self.topology.views.0.iter().find(|(view, _)| view.value == *name)
                    {
                        self.sql_problem(&text.0, &problem);
                    }
                }
            }
        }
        views
    }

    fn sinks(&mut self, views: &BTreeMap<String, View>, sources: &[DeclaredSource]) -> Vec<SinkPlan> {
        let mut sinks = Vec::new();
        if self.topology.sinks.0.is_empty() {
            self.problem(
                &self.topology.name.referenced,
                "the topology has no sinks, so it would do nothing",
                Some("say where a view goes: sinks: {my_view: {topic: {name: my.topic}}}".to_string()),
            );
        }
        for (name, sink) in &self.topology.sinks.0 {
            let declared: Vec<&str> =
                self.topology.views.0.iter().map(|(view, _)| view.value.as_str()).collect();
            match views.get(&name.value) {
                Some(view) => sinks.extend(self.sink(name, sink, view)),
                // Its own problem is reported already.
                None if declared.contains(&name.value.as_str()) => {}
                None => {
                    let is_source =
                        self.topology.sources.0.iter().any(|(source, _)| source.value == name.value);
                    let (message, help) = if is_source {
                        let help = format!("make a view: {0}_copy: select * from {0}", name.value);
                        (format!("'{}' is a source, and a sink carries a view", name.value), Some(help))
                    } else {
                        let help = suggest(&name.value, declared, "the views are");
                        (format!("there is no view '{}'", name.value), help)
                    };
                    self.problem(&name.referenced, message, help);
                }
            }
        }
        for sink in &mut sinks {
            topics::find_one_origin(sink, views, sources);
        }
        self.own_topics();
        self.shared_targets();
        sinks.sort_by(|a: &SinkPlan, b| a.view.cmp(&b.view));
        sinks
    }

    /// The topics that the topology makes for itself are no one's source and no one's sink.
    fn own_topics(&mut self) {
        let name = self.topology.name.value.as_str();
        let is_own = |topic: &str| {
            topic.strip_prefix(name).is_some_and(|rest| {
                [".dead", ".late", ".meta", ".redriven"].contains(&rest) || rest.starts_with(".exchange.")
            })
        };
        let sources = self.topology.sources.0.iter().map(|(_, source)| &source.topic);
        let sinks = self.topology.sinks.0.iter().filter_map(|(_, sink)| Some(&sink.topic.as_ref()?.name));
        let own: Vec<_> = sources.chain(sinks).filter(|topic| is_own(&topic.value)).collect();
        for topic in own {
            self.problem(
                &topic.referenced,
                format!("'{}' is a topic that the topology '{name}' keeps for itself", topic.value),
                Some("name another topic, or rename the topology".to_string()),
            );
        }
    }

    /// Two views in one topic would overwrite each other's keys, in one table each other's files.
    fn shared_targets(&mut self) {
        let sinks = &self.topology.sinks.0;
        for (index, (name, sink)) in sinks.iter().enumerate() {
            let before = &sinks[..index];
            if let Some(topic) = &sink.topic
                && let Some((other, _)) = before.iter().find(|(_, other)| {
                    other.topic.as_ref().is_some_and(|other| other.name.value == topic.name.value)
                })
            {
                self.problem(
                    &topic.name.referenced,
                    format!("'{}' and '{}' go into the same topic", other.value, name.value),
                    Some("give each view a topic of its own".to_string()),
                );
            }
            if let Some(lake) = &sink.lake
                && let Some((other, _)) = before.iter().find(|(_, other)| {
                    other.lake.as_ref().is_some_and(|other| other.table.value == lake.table.value)
                })
            {
                self.problem(
                    &lake.table.referenced,
                    format!("'{}' and '{}' go into the same table", other.value, name.value),
                    Some("give each view a table of its own".to_string()),
                );
            }
        }
    }

    fn sink(&mut self, name: &serde_saphyr::Spanned<String>, sink: &Sink, view: &View) -> Option<SinkPlan> {
        if sink.topic.is_none() && sink.lake.is_none() {
            let help = "give it a `topic:`, a `lake:`, or both".to_string();
            self.problem(&name.referenced, format!("the sink '{}' goes nowhere", name.value), Some(help));
            return None;
        }
        let lost: Vec<&str> = lost_key(&view.facts);
        if !lost.is_empty() {
            let message =
                format!("'{}' leaves out {}, so its rows can't be told apart", name.value, lost.join(", "));
            let help = format!("add {} to its SELECT", lost.join(", "));
            self.problem(&name.referenced, message, Some(help));
            return None;
        }
        let topic = sink.topic.as_ref().map(|topic| self.topic(topic, name, view));
        let lake = sink.lake.as_ref().map(|lake| self.lake(lake, view));
        let row_key: Vec<usize> = view.facts.key.iter().filter_map(|key| key.column).collect();
        let mut emit = Emit::Final;
        if let Some(wanted) = &sink.emit {
            if sink.topic.is_none() && wanted.value == Emit::Changes {
                let message = format!("`emit` is about a topic, and the sink '{}' has none", name.value);
                let help =
                    "leave it out: a table in the lake is written by a replay, whose windows are all closed";
                self.problem(&wanted.referenced, message, Some(help.to_string()));
            }
            // Without windows, rows leave as they come.
            if !row_key.is_empty() {
                emit = wanted.value;
            }
        }
        let window_end =
            view.facts.key.iter().find(|key| key.window == Some(sql::Edge::End)).and_then(|key| key.column);
        Some(SinkPlan {
            view: name.value.as_str().into(),
            schema: Arc::clone(&view.schema),
            row_key,
            window_end,
            window_start: view.facts.window_start(),
            grace: 0,
            emit,
            topic,
            lake,
            lineage: String::new(),
        })
    }

    fn lake(&mut self, lake: &super::topology::LakeSink, view: &View) -> LakeSink {
        declared::check_table(self.file, &lake.table, &mut self.problems);
        let mut partition_by = Vec::new();
        for partition in &lake.partition_by {
            let text = partition.value.trim();
            let dated = text.strip_prefix("date(").and_then(|rest| rest.strip_suffix(')')).map(str::trim);
            let column = dated.unwrap_or(text);
            let Ok(field) = view.schema.field_with_name(column) else {
                let help = suggest(column, names(view), "its columns are");
                self.problem(&partition.referenced, format!("the view has no column '{column}'"), help);
                continue;
            };
            let is_timestamp = matches!(field.data_type(), arrow::datatypes::DataType::Timestamp(..));
            match dated {
                Some(_) if !is_timestamp => self.problem(
                    &partition.referenced,
                    format!("date() takes a timestamp, but '{column}' is none"),
                    Some(format!("partition by the column itself: [{column}]")),
                ),
                Some(column) => partition_by.push(LakePartition::Date(column.to_string())),
                None if is_timestamp => self.problem(
                    &partition.referenced,
                    format!("'{column}' is a timestamp, so nearly every row would have a folder of its own"),
                    Some(format!("partition by its day: [date({column})]")),
                ),
                None => partition_by.push(LakePartition::Column(column.to_string())),
            }
        }
        LakeSink { table: lake.table.value.clone(), partition_by }
    }
}

pub(super) fn names(view: &View) -> impl Iterator<Item = &str> {
    view.schema.fields().iter().map(|field| field.name().as_str())
}

fn find_cycle(queries: &BTreeMap<String, Query>, stuck: &BTreeSet<&String>) -> Option<Vec<String>> {
    let mut path: Vec<&String> = vec![stuck.first()?];
    loop {
        let query = queries.get(*path.last()?)?;
        let next = query.reads.iter().find_map(|(read, ..)| stuck.get(read))?;
        if let Some(begin) = path.iter().position(|seen| seen == next) {
            return Some(path[begin..].iter().map(|name| name.to_string()).collect());
        }
        path.push(next);
    }
}

fn catalog(sources: &[DeclaredSource], columns: impl Fn(&DeclaredSource) -> Vec<Column>) -> Catalog {
    sources
        .iter()
        .map(|source| {
            let relation = Relation { schema: Column::schema(&columns(source)), facts: Facts::default() };
            (source.name.clone(), relation)
        })
        .collect()
}

/// The views named and all that they read, sources included.
fn upstream_of(views: &BTreeMap<String, View>, wanted: &[&str]) -> BTreeSet<String> {
    let mut needed = BTreeSet::new();
    let mut next: Vec<&str> = wanted.to_vec();
    while let Some(name) = next.pop() {
        if needed.insert(name.to_string())
            && let Some(view) = views.get(name)
        {
            next.push(&view.input);
        }
    }
    needed
}

/// Which columns of which source each view and check reads.
struct Reads {
    by_view: Vec<(String, String, BTreeSet<String>)>,
    by_check: BTreeMap<String, BTreeSet<String>>,
}

impl Reads {
    fn new(sources: &[DeclaredSource], views: &BTreeMap<String, View>, checks: &[CheckSource]) -> Self {
        let is_source = |name: &str| sources.iter().any(|source| source.name == name);
        let by_view = views
            .iter()
            .filter(|(_, view)| is_source(&view.input))
            .map(|(name, view)| (name.clone(), view.input.clone(), view.read_names.iter().cloned().collect()))
            .collect();
        let mut by_check: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for check in checks {
            by_check.entry(check.source.clone()).or_default().extend(check.columns.iter().cloned());
        }
        Self { by_view, by_check }
    }

    /// The columns of the source that must be decoded, in declared order.
    fn columns(&self, source: &DeclaredSource, needed: &BTreeSet<String>) -> Vec<Column> {
        let is_read = |column: &Column| {
            source.strict
                || source.event_time.as_ref() == Some(&column.name)
                || self.by_check.get(&source.name).is_some_and(|columns| columns.contains(&column.name))
                || self.by_view.iter().any(|(view, input, columns)| {
                    *input == source.name && needed.contains(view) && columns.contains(&column.name)
                })
        };
        source.columns.iter().filter(|column| is_read(column)).cloned().collect()
    }
}

/// Takes the columns that are not decoded out of the views and checks that read the sources.
fn prune(
    sources: &[DeclaredSource],
    decoded: &Catalog,
    views: &mut BTreeMap<String, View>,
    checks: &mut [CheckSource],
) -> Result<(), DataFusionError> {
    for source in sources {
        let schema = &decoded[&source.name].schema;
        let is_kept = |at: &usize| schema.index_of(&source.columns[*at].name).is_ok();
        let kept: Vec<usize> = (0..source.columns.len()).filter(is_kept).collect();
        for view in views.values_mut().filter(|view| view.input == source.name) {
            pruned::view(view, &kept, source.columns.len())?;
        }
        for check in checks.iter_mut().filter(|check| check.source == source.name) {
            pruned::check(check, schema)?;
        }
    }
    Ok(())
}

fn notes(name: &str, view: &View) -> impl Iterator<Item = String> {
    view.respelled.iter().map(move |(written, column)| {
        format!(
            "in '{name}', {written} is the column \"{column}\"; a name in double quotes keeps its letters"
        )
    })
}

/// The group columns that a view's SELECT has left out; one edge of the window is enough.
fn lost_key(facts: &Facts) -> Vec<&str> {
    missing(facts, |key| key.column.is_some())
}

pub(super) fn missing(facts: &Facts, has: impl Fn(&sql::KeyColumn) -> bool) -> Vec<&str> {
    let has_window = facts.key.iter().any(|key| key.window.is_some() && has(key));
    let window = facts.key.iter().find(|key| key.window.is_some()).filter(|_| !has_window);
    let plain = facts.key.iter().filter(|key| key.window.is_none() && !has(key));
    plain.chain(window).map(|key| key.name.as_str()).collect()
}

fn assemble(
    name: &str,
    settings: &Settings,
    sources: &[DeclaredSource],
    catalog: &Catalog,
    views: &BTreeMap<String, View>,
    checks: Vec<CheckSource>,
    mut sinks: Vec<SinkPlan>,
) -> Result<Plan, DataFusionError> {
    let mut source_plans = Vec::new();
    for source in sources {
        let schema = Arc::clone(&catalog[&source.name].schema);
        let read: Vec<Column> =
            source.columns.iter().filter(|column| schema.index_of(&column.name).is_ok()).cloned().collect();
        let of_this = checks.iter().filter(|check| check.source == source.name);
        source_plans.push(SourcePlan {
            name: source.name.as_str().into(),
            topic: source.topic.as_str().into(),
            event_time: source
                .event_time
                .as_ref()
                .and_then(|column| read.iter().position(|read| read.name == *column)),
            read,
            schema,
            out_of_orderness: source.out_of_orderness,
            idle_after: source.idle_after,
            max_ahead: source.max_ahead,
            max_reject_ratio: source.max_reject_ratio,
            checks: of_this.map(|check| check.spec.clone()).collect::<Vec<CheckSpec>>(),
        });
    }
    let source_names: Vec<Arc<str>> = source_plans.iter().map(|source| Arc::clone(&source.name)).collect();
    let grace: Micros = settings.grace;
    let mut builder = Builder::new(&source_names, views, grace, settings.retention);
    builder.views()?;
    for (index, sink) in sinks.iter().enumerate() {
        builder.sink(&sink.view, index, sink.emit)?;
    }
    let stages = builder.stages;
    for sink in &mut sinks {
        sink.lineage = fingerprint::lineage(sink, sources, &checks, views, settings);
    }
    let description = fingerprint::describe(&stages, sources, &checks, views, &sinks, settings);
    let lineages: Vec<&str> = sinks.iter().map(|sink| sink.lineage.as_str()).collect();
    let mut plan = Plan {
        name: name.into(),
        fingerprint: fingerprint::of(&description),
        version: fingerprint::of(&format!("{description}\n{}", lineages.join("\n"))),
        description,
        sources: source_plans,
        stages,
        sinks,
        views: Vec::new(),
        max_drift: settings.max_drift,
        notes: views.iter().flat_map(|(name, view)| notes(name, view)).collect(),
        dead: TopicShape::default(),
        late: TopicShape::default(),
    };
    plan.set_sink_grace();
    Ok(plan)
}
