//! How a topology does: from the last look at the brokers, and from what this process has committed.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use super::model::{
    CheckpointStatus, CommitStatus, HistoryPoint, Incident, OutcomeCounts, PartitionStatus, ProcessInfo,
    SinkStatus, SourceStatus, StageStatus, TopologyHistory, TopologyList, TopologyState, TopologyStatus,
    TopologySummary, WatermarkHold,
};
use crate::engine::{Counters, TaskProgress, TopicNames};
use crate::plan::{Plan, StageInput};
use crate::record::{Micros, TopicPartition};
use crate::serve::history::Look;
use crate::serve::metrics::unix_ms;
use crate::serve::{HoldReason, Metrics, PartitionLag, text};

/// The last commits that are looked at.
const COMMITS_LOOKED_AT: u64 = 200;

type Tasks = BTreeMap<TopicPartition, TaskProgress>;

pub fn list(metrics: &Metrics) -> TopologyList {
    TopologyList { process: process(metrics), topologies: vec![summary(metrics)] }
}

fn summary(metrics: &Metrics) -> TopologySummary {
    let look = metrics.history().latest();
    let look = look.as_deref();
    let (state, reason) = state(metrics, look);
    let read = look.filter(|look| !look.rates.sources.is_empty());
    TopologySummary {
        name: Arc::clone(&metrics.watched.plan.name),
        state,
        reason,
        read_per_second: read.map(|look| look.rates.sources.values().map(|source| source[0]).sum()),
        lag_records: look.map(|look| look.report.lag_records()),
        lag_seconds: look.and_then(|look| look.report.oldest_unread_seconds()),
        watermark: look.and_then(|look| least_watermark(&origins(look, None))),
        counters: look.map(|look| look.report.counters().into()).unwrap_or_default(),
        last_error: incidents(metrics, look).into_iter().next(),
    }
}

fn process(metrics: &Metrics) -> ProcessInfo {
    ProcessInfo {
        version: env!("CARGO_PKG_VERSION"),
        started_at: text::time_ms(unix_ms(metrics.began)),
        uptime_seconds: metrics.began.elapsed().unwrap_or_default().as_secs_f64(),
    }
}

pub fn status(metrics: &Metrics) -> TopologyStatus {
    let plan = &metrics.watched.plan;
    let tasks = metrics.watched.progress.tasks();
    let look = metrics.history().latest();
    let look = look.as_deref();
    let (state, reason) = state(metrics, look);
    let partitions = look.map(|look| look.report.partitions.as_slice()).unwrap_or_default();
    TopologyStatus {
        name: Arc::clone(&plan.name),
        state,
        reason,
        process: process(metrics),
        looked_at: look.map(|look| text::time_ms(look.at_ms)),
        counters: look.map(|look| look.report.counters().into()).unwrap_or_default(),
        lag_records: look.map(|look| look.report.lag_records()),
        lag_seconds: look.and_then(|look| look.report.oldest_unread_seconds()),
        catch_up_seconds: look.and_then(|look| look.report.pace?.eta_seconds),
        sources: look.map(|look| sources(plan, look)).unwrap_or_default(),
        stages: look.map(|look| stages(plan, look, &tasks)).unwrap_or_default(),
        sinks: sinks(plan, look),
        partitions: partitions.iter().map(|at| partition(at, tasks.get(&at.name()))).collect(),
        commits: commits(metrics),
        checkpoints: checkpoints(metrics, &tasks),
        incidents: incidents(metrics, look),
    }
}

pub fn history(metrics: &Metrics) -> TopologyHistory {
    let points = metrics.history().points();
    let point = |point: crate::serve::history::Point| HistoryPoint {
        at: text::time_ms(point.at_ms),
        read_per_second: point.read_per_second,
        lag_records: point.lag_records,
        lag_seconds: point.lag_seconds,
    };
    let name = Arc::clone(&metrics.watched.plan.name);
    TopologyHistory { name, points: points.into_iter().map(point).collect() }
}

fn state(metrics: &Metrics, look: Option<&Look>) -> (TopologyState, String) {
    let failure = metrics.history().failure();
    let Some(look) = look else {
        let why =
            failure.map_or_else(|| "the brokers are asked for the first time".to_owned(), |(_, why)| why);
        return (TopologyState::Starting, why);
    };
    if let Some(partition) = look.report.partitions.iter().find(|at| at.problem.is_some()) {
        let problem = partition.problem.as_deref().unwrap_or_default();
        return (TopologyState::Failing, format!("{}: {problem}", partition.name()));
    }
    if let Some((_, why)) = failure {
        return (TopologyState::Unreachable, why);
    }
    match metrics.ready() {
        Ok(()) => (TopologyState::Running, look.report.standing()),
        Err(why) if metrics.watched.progress.commits().0 == 0 => (TopologyState::Starting, why),
        Err(why) => (TopologyState::Stalled, why),
    }
}

/// The latest first.
fn incidents(metrics: &Metrics, look: Option<&Look>) -> Vec<Incident> {
    let mut found: Vec<(i64, String)> = Vec::new();
    if let Some(look) = look {
        let problem =
            |at: &PartitionLag| Some((look.at_ms, format!("{}: {}", at.name(), at.problem.as_ref()?)));
        found.extend(look.report.partitions.iter().filter_map(problem));
    }
    if let Some((at_ms, why)) = metrics.history().failure() {
        found.push((at_ms, format!("the brokers do not answer: {why}")));
    }
    if let Some((age, why)) = metrics.watched.progress.last_abort() {
        found.push((ago_ms(age), format!("an epoch was aborted and done again: {why}")));
    }
    found.sort_by_key(|(at_ms, _)| -at_ms);
    found.into_iter().map(|(at_ms, what)| Incident { at: text::time_ms(at_ms), what }).collect()
}

fn ago_ms(age: Duration) -> i64 {
    unix_ms(SystemTime::now()) - age.as_millis() as i64
}

/// The partitions of sources, or of one.
fn origins<'a>(look: &'a Look, source: Option<&str>) -> Vec<&'a PartitionLag> {
    let wanted = |at: &&PartitionLag| match (&at.source, source) {
        (Some(of), Some(source)) => **of == *source,
        (of, _) => of.is_some(),
    };
    look.report.partitions.iter().filter(wanted).collect()
}

/// Of partitions that each have one; none where there is no partition.
fn least_watermark(partitions: &[&PartitionLag]) -> Option<String> {
    // One that has ended holds nothing back any more.
    let open = partitions.iter().filter(|at| !at.ended);
    let watermarks: Option<Vec<Micros>> = open.map(|at| at.watermark).collect();
    watermarks?.into_iter().min().map(text::time)
}

fn lag_of(partitions: &[&PartitionLag]) -> i64 {
    partitions.iter().map(|at| at.lag_records).sum()
}

fn sources(plan: &Plan, look: &Look) -> Vec<SourceStatus> {
    let status = |source: &crate::plan::SourcePlan| {
        let partitions = origins(look, Some(&source.name));
        let mut counters = Counters::default();
        partitions.iter().filter_map(|at| at.counters.as_ref()).for_each(|one| counters.add(one));
        SourceStatus {
            name: Arc::clone(&source.name),
            topic: Arc::clone(&source.topic),
            counters: counters.into(),
            per_second: look.rates.sources.get(&source.name).map(|&rates| rates.into()),
            arriving_per_second: look.rates.inputs.get(&source.topic).map(|(_, arriving)| *arriving),
            lag_records: lag_of(&partitions),
            lag_seconds: partitions.iter().filter_map(|at| at.lag_seconds_log).reduce(f64::max),
            watermark: least_watermark(&partitions),
            partitions: partitions.len(),
            idle_partitions: partitions.iter().filter(|at| at.idle).count(),
        }
    };
    plan.sources.iter().map(status).collect()
}

fn stages(plan: &Plan, look: &Look, tasks: &Tasks) -> Vec<StageStatus> {
    let names = TopicNames::of(plan);
    let status = |index: usize| {
        let (stage, reads) = (&plan.stages[index], names.input_topic(plan, index));
        let partitions: Vec<_> = look.report.partitions.iter().filter(|at| at.topic == reads).collect();
        let here = tasks.iter().filter(|(at, _)| at.topic == reads);
        let keyed = matches!(stage.input, StageInput::Exchange { .. });
        StageStatus {
            name: Arc::clone(&stage.name),
            partitions: partitions.len(),
            partitions_here: here.clone().count(),
            offsets_per_second: look.rates.inputs.get(&reads).map(|(committed, _)| *committed),
            lag_records: lag_of(&partitions),
            watermark: least_watermark(&partitions),
            state_bytes_here: here.map(|(_, task)| task.state_bytes as u64).sum(),
            open_windows: partitions.iter().map(|at| at.open_windows).sum(),
            state_expired: partitions.iter().map(|at| at.state_expired).sum(),
            derived_dead: partitions.iter().map(|at| at.derived_dead).sum(),
            held_by: if keyed { hold(look, &stage.name) } else { None },
        }
    };
    (0..plan.stages.len()).map(status).collect()
}

fn hold(look: &Look, stage: &str) -> Option<WatermarkHold> {
    let hold = look.report.holds.iter().find(|hold| *hold.stage == *stage)?;
    Some(WatermarkHold {
        topic: Arc::clone(&hold.topic),
        partition: hold.partition,
        reason: match hold.reason {
            HoldReason::NothingRead => "nothing_read",
            HoldReason::Lowest => "lowest",
            HoldReason::AllIdle => "all_idle",
        },
        text: hold.to_string(),
        behind_seconds: hold.behind_seconds,
    })
}

fn sinks(plan: &Plan, look: Option<&Look>) -> Vec<SinkStatus> {
    let status = |sink: &crate::plan::SinkPlan| {
        let topic = sink.topic.as_ref().map(|topic| Arc::clone(&topic.topic));
        let of = topic.as_ref().zip(look);
        SinkStatus {
            view: Arc::clone(&sink.view),
            end_offsets: of.and_then(|(topic, look)| look.sink_ends.get(topic).copied()),
            offsets_per_second: of.and_then(|(topic, look)| look.rates.sinks.get(topic).copied()),
            topic,
        }
    };
    plan.sinks.iter().map(status).collect()
}

fn partition(at: &PartitionLag, task: Option<&TaskProgress>) -> PartitionStatus {
    PartitionStatus {
        stage: Arc::clone(&at.stage),
        topic: Arc::clone(&at.topic),
        partition: at.partition,
        here: task.is_some(),
        committed: at.committed,
        end: at.end,
        lag_records: at.lag_records,
        lag_seconds: at.lag_seconds_log,
        watermark: at.watermark.map(text::time),
        behind_seconds: at.lag_seconds_event,
        idle: at.idle,
        ended: at.ended,
        counters: at.counters.map(OutcomeCounts::from),
        state_bytes: task.filter(|_| at.source.is_none()).map(|task| task.state_bytes as u64),
        checkpoint_offset: task.and_then(|task| task.checkpoint).map(|(offset, ..)| offset),
        problem: at.problem.clone(),
    }
}

fn commits(metrics: &Metrics) -> CommitStatus {
    let progress = &metrics.watched.progress;
    let (commits, aborts, _) = progress.commits();
    let (mut seconds, _) = progress.commit_seconds_since(commits.saturating_sub(COMMITS_LOOKED_AT));
    seconds.sort_by(f64::total_cmp);
    CommitStatus {
        commits,
        aborts,
        age_seconds: progress.commit_age().map(|age| age.as_secs_f64()),
        median_seconds: seconds.get(seconds.len() / 2).copied(),
        slowest_seconds: seconds.last().copied(),
    }
}

fn checkpoints(metrics: &Metrics, tasks: &Tasks) -> CheckpointStatus {
    let last = tasks.values().filter_map(|task| task.checkpoint);
    CheckpointStatus {
        written: metrics.watched.progress.checkpoints(),
        last_bytes: last.clone().map(|(_, bytes, _)| bytes as u64).sum(),
        slowest_seconds: last.map(|(.., seconds)| seconds).reduce(f64::max),
    }
}
