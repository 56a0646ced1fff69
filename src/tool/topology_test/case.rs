//! One case: its records go through the engine on a log in memory, and what comes out is gathered.
//!
//! Invariant: the engine that runs here is the one that runs live; only the log is another.

use std::collections::{BTreeMap, HashMap};
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use crate::engine::{self, Progress, RunOptions, TopicNames, settle};
use crate::log::memory::MemoryLog;
use crate::log::{Log, LogError, Outgoing, Span, TopicSpec, read_spans};
use crate::plan::{Correction, Plan, TopicShape, TopicSink};
use crate::record::{OwnedRecord, TopicPartition};

use super::file::TestRecord;
use crate::tool::Result;

/// The records of a source, in the order in which they are produced.
pub struct SourceInput {
    pub topic: Arc<str>,
    pub partitions: i32,
    pub records: Vec<TestRecord>,
    /// Whether records without a timestamp get none.
    pub has_event_time: bool,
}

/// A refined record's key and value.
pub type Row = (Option<Vec<u8>>, Vec<u8>);

/// What became of a case's records.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Observed {
    /// By view, in the order of the topic's partitions: key and value. Of upserts the last of each key, without
    /// keys what retractions have left.
    pub refined: BTreeMap<Arc<str>, Vec<Row>>,
    pub late: Vec<OwnedRecord>,
    pub dead: Vec<OwnedRecord>,
}

/// The plan with a topic of its own for every view that leaves it, so that each can be looked at.
pub fn isolated(mut plan: Plan) -> Plan {
    for sink in &mut plan.sinks {
        let own = format!("{}.refined.{}", plan.name, sink.view).into();
        sink.topic = Some(match sink.topic.take() {
            Some(topic) => TopicSink { topic: own, ..topic },
            None => TopicSink { topic: own, key: Vec::new(), shape: TopicShape::default(), one_origin: true },
        });
    }
    plan
}

/// Creates the source's topic and produces its records.
pub fn publish(log: &dyn Log, input: &SourceInput) -> Result<()> {
    let named = input.records.iter().map(|record| record.partition + 1).max().unwrap_or(1);
    log.create_topics(&[TopicSpec {
        name: input.topic.to_string(),
        partitions: input.partitions.max(named),
        // The case says when its records were written: nobody's clock is to be doubted.
        config: BTreeMap::from([("message.timestamp.after.max.ms".to_string(), (i64::MAX - 1).to_string())]),
    }])?;
    let mut producer = log.producer()?;
    for record in &input.records {
        let unstamped = if input.has_event_time { Some(-1) } else { None };
        let outgoing = Outgoing {
            key: record.record.key.as_deref(),
            value: record.record.value.as_deref(),
            headers: &record.record.headers,
            timestamp_ms: record.timestamp_ms.or(unstamped),
        };
        let to = TopicPartition::new(Arc::clone(&input.topic), record.partition);
        producer.produce(&to, &[outgoing])?;
    }
    Ok(producer.flush(Duration::from_secs(10))?)
}

/// Runs a plan that is [`isolated`] over the inputs, in the folder `scratch`.
pub fn run(plan: Plan, inputs: &[SourceInput], close: bool, scratch: &Path) -> Result<Observed> {
    let log = MemoryLog::new();
    for input in inputs {
        publish(&log, input)?;
    }
    let log: Arc<dyn Log> = Arc::new(log);
    let options = RunOptions {
        epoch: Duration::from_millis(20),
        state_dir: scratch.to_path_buf(),
        until_end: true,
        close,
        ..RunOptions::default()
    };
    let plan = Arc::new(plan);
    engine::run(&plan, &log, &options, &Progress::default(), &Arc::new(AtomicBool::new(false)))?;
    Observed::read(&*log, &plan)
}

impl Observed {
    /// What a topology has committed so far.
    pub fn read(log: &dyn Log, plan: &Plan) -> Result<Self> {
        let names = TopicNames::of(plan);
        let mut observed = Self::default();
        for sink in &plan.sinks {
            let Some(topic) = &sink.topic else { continue };
            let rows = match sink.correction() {
                Correction::Never => all(read(log, &topic.topic)?),
                Correction::Upsert => last_by_key(read(log, &topic.topic)?),
                Correction::Retract => {
                    let partitions = read_partitions(log, &topic.topic)?;
                    partitions.into_iter().flat_map(|records| all(settle(records))).collect()
                }
            };
            observed.refined.insert(Arc::clone(&sink.view), rows);
        }
        observed.late = read(log, &names.late)?;
        observed.dead = read(log, &names.dead)?;
        Ok(observed)
    }
}

fn all(records: Vec<OwnedRecord>) -> Vec<Row> {
    records.into_iter().filter_map(|record| Some((record.key, record.value?))).collect()
}

fn last_by_key(records: Vec<OwnedRecord>) -> Vec<Row> {
    let mut last: HashMap<Option<Vec<u8>>, usize> = HashMap::new();
    for (index, record) in records.iter().enumerate() {
        last.insert(record.key.clone(), index);
    }
    let mut kept: Vec<usize> = last.into_values().collect();
    kept.sort_unstable();
    let mut records: Vec<Option<OwnedRecord>> = records.into_iter().map(Some).collect();
    all(kept.into_iter().filter_map(|index| records[index].take()).collect())
}

/// All committed records of a topic, partition by partition; none where it does not exist.
pub fn read(log: &dyn Log, topic: &str) -> Result<Vec<OwnedRecord>> {
    Ok(read_partitions(log, topic)?.into_iter().flatten().collect())
}

fn read_partitions(log: &dyn Log, topic: &str) -> Result<Vec<Vec<OwnedRecord>>> {
    let spans = Span::of_topic(log, topic)?.unwrap_or_default();
    let each = spans.iter().map(|span| {
        let mut records = Vec::new();
        read_spans(log, std::slice::from_ref(span), &|| false, &mut |run| {
            records.extend((0..run.records.len()).map(|index| run.records.to_owned(index)));
            Ok::<_, LogError>(ControlFlow::Continue(()))
        })?;
        Ok(records)
    });
    each.collect()
}
