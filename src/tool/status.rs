//! `headwater status`: a topology on one screen, from what it has committed; it works with nothing running.
//!
//! Invariant: read = refined + filtered + late + dead, for each source and in total; where it does not hold,
//! the screen says so.

use std::collections::BTreeMap;
use std::io::Write;
use std::sync::Arc;

use serde::Serialize;

use crate::engine::{Counters, EngineError, Meta, TopicNames, redriven_topic};
use crate::log::Log;
use crate::plan::{Plan, StageInput};
use crate::record::TopicPartition;
use crate::serve::{Hold, HoldReason, LagReport, Result, ServeError, lag, text};

use super::ToolError;

/// What a topology is and how far it has come.
#[derive(Clone, Debug, Serialize)]
pub struct Status {
    pub topology: Arc<str>,
    pub group: String,
    pub fingerprint: String,
    pub file: FileState,
    /// What the file changes, where its fingerprint is another.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub changes: Option<String>,
    pub stages: Vec<StageStatus>,
    pub sources: Vec<SourceStatus>,
    pub totals: Counters,
    pub balanced: bool,
    pub lag_records: i64,
    pub lag: String,
    pub holds: Vec<Hold>,
    /// As far as the tasks have reported them.
    pub open_windows: u64,
    pub state_expired: u64,
    pub derived_dead: u64,
    pub topics: Vec<TopicStatus>,
    pub problems: Vec<String>,
}

/// The file's fingerprint against what the topology has committed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum FileState {
    NeverRun,
    Same,
    /// `run` refuses the file.
    Changed,
}

#[derive(Clone, Debug, Serialize)]
pub struct StageStatus {
    pub stage: Arc<str>,
    pub reads: Arc<str>,
    pub partitions: usize,
    /// The least watermark of its partitions; `None` before the first.
    pub watermark: Option<String>,
}

#[derive(Clone, Debug, Serialize)]
pub struct SourceStatus {
    pub source: Arc<str>,
    pub topic: Arc<str>,
    pub counters: Counters,
    pub balanced: bool,
    pub lag_records: i64,
}

#[derive(Clone, Debug, Serialize)]
pub struct TopicStatus {
    pub topic: Arc<str>,
    pub role: &'static str,
    /// `None`: there is no such topic.
    pub partitions: Option<i32>,
    /// Offsets between the starts and the last stable ends, transaction markers included.
    pub offsets: i64,
}

impl Status {
    pub fn new(plan: &Plan, log: &dyn Log) -> Result<Self> {
        let meta = Meta::read(plan, log)?.map(|meta| meta.topology);
        let (file, changes) = match meta.as_ref().map(|meta| meta.check(plan)) {
            None => (FileState::NeverRun, None),
            Some(Ok(())) => (FileState::Same, None),
            Some(Err(EngineError::FingerprintChanged { changes, .. })) => (FileState::Changed, Some(changes)),
            Some(Err(error)) => return Err(error.into()),
        };
        let lag = lag(plan, log)?;
        let totals = lag.counters();
        let sources = sources(plan, &lag);
        let problem = |partition: &crate::serve::PartitionLag| {
            Some(format!("{}: {}", partition.name(), partition.problem.as_ref()?))
        };
        Ok(Self {
            topology: Arc::clone(&plan.name),
            group: lag.group.clone(),
            fingerprint: plan.fingerprint.clone(),
            file,
            changes,
            stages: stages(plan, &lag),
            balanced: totals.balanced() && sources.iter().all(|source| source.balanced),
            sources,
            totals,
            lag_records: lag.lag_records(),
            lag: lag.summary(),
            open_windows: lag.partitions.iter().map(|partition| partition.open_windows).sum(),
            state_expired: lag.partitions.iter().map(|partition| partition.state_expired).sum(),
            derived_dead: lag.partitions.iter().map(|partition| partition.derived_dead).sum(),
            topics: topics(plan, log)?,
            problems: lag.partitions.iter().filter_map(problem).collect(),
            holds: lag.holds,
        })
    }

    /// On one screen, or as one JSON object.
    pub fn print(&self, out: &mut dyn Write, json: bool) -> Result<()> {
        if json {
            serde_json::to_writer(&mut *out, self).map_err(std::io::Error::from)?;
            writeln!(out)?;
            return Ok(());
        }
        let file = match self.file {
            FileState::NeverRun => "has not run yet",
            FileState::Same => "runs as the file says",
            FileState::Changed => "runs with ANOTHER fingerprint than the file's, which run refuses",
        };
        writeln!(out, "topology     {}", self.topology)?;
        writeln!(out, "fingerprint  {} ({file})", self.fingerprint)?;
        for change in self.changes.iter().flat_map(|changes| changes.lines()) {
            writeln!(out, "             {change}")?;
        }
        writeln!(out, "group        {}", self.group)?;
        writeln!(out, "lag          {}", self.lag)?;
        self.print_stages(out)?;
        self.print_counters(out)?;
        self.print_topics(out)?;
        for problem in &self.problems {
            writeln!(out, "problem: {problem}")?;
        }
        Ok(())
    }

    fn print_stages(&self, out: &mut dyn Write) -> Result<()> {
        let row = |stage: &StageStatus| {
            let watermark = stage.watermark.clone().unwrap_or_else(|| text::NONE.to_string());
            vec![stage.stage.to_string(), stage.reads.to_string(), stage.partitions.to_string(), watermark]
        };
        writeln!(out)?;
        let rows: Vec<_> = self.stages.iter().map(row).collect();
        text::table(out, &["STAGE", "READS", "PARTITIONS", "WATERMARK"], &rows)?;
        for hold in self.holds.iter().filter(|hold| hold.reason != HoldReason::AllIdle) {
            writeln!(out, "{hold}")?;
        }
        if self.open_windows > 0 {
            writeln!(out, "{} open", text::count(self.open_windows, "window"))?;
        }
        if self.state_expired > 0 {
            let rows = text::count(self.state_expired, "row");
            writeln!(out, "{rows} came after retention (state_expired); a replay repairs them")?;
        }
        if self.derived_dead > 0 {
            let rows = text::count(self.derived_dead, "row");
            writeln!(
                out,
                "{rows} of several records failed in a later view (dead letters beside those counted)"
            )?;
        }
        Ok(())
    }

    fn print_counters(&self, out: &mut dyn Write) -> Result<()> {
        let row = |source: &SourceStatus| {
            let Counters { read, refined, filtered, late, dead } = source.counters;
            let numbers = [read, refined, filtered, late, dead].map(|number| number.to_string());
            let mut cells = vec![source.source.to_string(), source.topic.to_string()];
            cells.extend(numbers);
            cells.push(source.lag_records.to_string());
            cells
        };
        writeln!(out)?;
        let header = ["SOURCE", "TOPIC", "READ", "REFINED", "FILTERED", "LATE", "DEAD", "LAG"];
        text::table(out, &header, &self.sources.iter().map(row).collect::<Vec<_>>())?;
        let Counters { read, refined, filtered, late, dead } = self.totals;
        let holds = if self.balanced { "holds" } else { "DOES NOT HOLD: please report it" };
        writeln!(
            out,
            "read {read} = refined {refined} + filtered {filtered} + late {late} + dead {dead}: {holds}"
        )?;
        Ok(())
    }

    fn print_topics(&self, out: &mut dyn Write) -> Result<()> {
        let row = |topic: &TopicStatus| {
            let partitions = text::or_none(topic.partitions, |count| count.to_string());
            let offsets = text::or_none(topic.partitions, |_| topic.offsets.to_string());
            vec![topic.topic.to_string(), topic.role.to_string(), partitions, offsets]
        };
        writeln!(out)?;
        let rows: Vec<_> = self.topics.iter().map(row).collect();
        text::table(out, &["TOPIC", "ROLE", "PARTITIONS", "OFFSETS"], &rows)?;
        Ok(())
    }
}

impl From<ServeError> for ToolError {
    fn from(error: ServeError) -> Self {
        match error {
            ServeError::Log(error) => error.into(),
            ServeError::Engine(error) => error.into(),
            ServeError::Output(error) => output_error(error),
            other => ToolError::Failed { message: other.to_string(), help: None },
        }
    }
}

/// Whoever reads the output may go (`| head`): that is no failure.
pub(super) fn output_error(source: std::io::Error) -> ToolError {
    match source.kind() {
        std::io::ErrorKind::BrokenPipe => ToolError::ClosedPipe,
        _ => ToolError::Io { what: "cannot write the output".to_string(), source },
    }
}

/// Prints the status.
pub fn status(plan: &Plan, log: &dyn Log, out: &mut dyn Write, json: bool) -> Result<()> {
    Status::new(plan, log)?.print(out, json)
}

fn stages(plan: &Plan, lag: &LagReport) -> Vec<StageStatus> {
    let names = TopicNames::of(plan);
    let status = |stage: usize| {
        let reads = names.input_topic(plan, stage);
        let tasks: Vec<_> = lag.partitions.iter().filter(|at| at.topic == reads).collect();
        // One partition without a watermark is as far as the stage has come.
        let watermarks: Option<Vec<_>> = tasks.iter().map(|task| task.watermark).collect();
        let least = watermarks.and_then(|watermarks| watermarks.into_iter().min());
        StageStatus {
            stage: Arc::clone(&plan.stages[stage].name),
            reads,
            partitions: tasks.len(),
            watermark: least.map(text::time),
        }
    };
    (0..plan.stages.len()).map(status).collect()
}

fn sources(plan: &Plan, lag: &LagReport) -> Vec<SourceStatus> {
    let read = plan.stages.iter().filter_map(|stage| match stage.input {
        StageInput::Source(source) => Some(&plan.sources[source]),
        StageInput::Exchange { .. } => None,
    });
    let status = |source: &crate::plan::SourcePlan| {
        let mut counters = Counters::default();
        let mut lag_records = 0;
        for partition in lag.partitions.iter().filter(|at| at.source.as_ref() == Some(&source.name)) {
            partition.counters.iter().for_each(|one| counters.add(one));
            lag_records += partition.lag_records;
        }
        let (name, topic) = (Arc::clone(&source.name), Arc::clone(&source.topic));
        SourceStatus { source: name, topic, balanced: counters.balanced(), counters, lag_records }
    };
    read.map(status).collect()
}

/// All topics that the topology reads, writes or keeps.
fn topics(plan: &Plan, log: &dyn Log) -> Result<Vec<TopicStatus>> {
    let names = TopicNames::of(plan);
    let mut roles: Vec<(Arc<str>, &'static str)> = Vec::new();
    for stage in 0..plan.stages.len() {
        let role = match plan.stages[stage].input {
            StageInput::Source(_) => "source",
            StageInput::Exchange { .. } => "exchange",
        };
        roles.push((names.input_topic(plan, stage), role));
    }
    roles.extend(
        plan.sinks.iter().filter_map(|sink| Some((Arc::clone(&sink.topic.as_ref()?.topic), "refined"))),
    );
    roles.extend([(names.dead, "dead"), (names.late, "late"), (names.meta, "meta")]);
    let redriven = redriven_topic(&plan.name);
    if log.partitions(&redriven)?.is_some() {
        roles.push((redriven.into(), "redriven"));
    }
    let mut seen: BTreeMap<Arc<str>, ()> = BTreeMap::new();
    roles.retain(|(topic, _)| seen.insert(Arc::clone(topic), ()).is_none());
    let mut topics = Vec::new();
    for (topic, role) in roles {
        let partitions = log.partitions(&topic)?;
        let mut offsets = 0;
        for partition in 0..partitions.unwrap_or(0) {
            let bounds = log.bounds(&TopicPartition::new(Arc::clone(&topic), partition))?;
            offsets += bounds.end - bounds.start;
        }
        topics.push(TopicStatus { topic, role, partitions, offsets });
    }
    Ok(topics)
}
