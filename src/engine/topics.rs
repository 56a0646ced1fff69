//! The names and shapes of the topics that a topology owns.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::log::{Log, TopicSpec};
use crate::plan::{Plan, StageInput};

use super::meta::MetaRecord;
use super::{EngineError, Result};

/// Exchanges have at least this many partitions, so that a small source can still use several cores.
const EXCHANGE_PARTITIONS_MIN: i32 = 4;
/// What is trimmed of an exchange frees whole segments only, and Kafka's are of a gigabyte by default.
const EXCHANGE_SEGMENT_BYTES: i64 = 32 << 20;
/// Room for provenance headers beside the source's largest record.
const HEADER_BYTES: i64 = 64 * 1024;
const MESSAGE_BYTES_DEFAULT: i64 = 1_048_588;

/// Where a topology keeps which dead letters were redriven.
pub fn redriven_topic(topology: &str) -> String {
    format!("{topology}.redriven")
}

/// A topology's own topics and the partition counts of all that it reads and writes.
#[derive(Clone, Debug)]
pub struct TopicNames {
    pub dead: Arc<str>,
    pub late: Arc<str>,
    pub meta: Arc<str>,
    pub group: String,
    /// By index into `Plan::stages`; ingest stages have none.
    pub exchanges: Vec<Option<Arc<str>>>,
    /// Partition counts of sources, exchanges, refined, dead and late topics.
    pub partitions: BTreeMap<Arc<str>, i32>,
}

impl TopicNames {
    /// The names alone; `partitions` is empty.
    pub fn of(plan: &Plan) -> Self {
        let name = &plan.name;
        let exchange = |stage: &crate::plan::Stage| match stage.input {
            StageInput::Source(_) => None,
            StageInput::Exchange { .. } => Some(format!("{name}.exchange.{}", stage.name).into()),
        };
        Self {
            dead: format!("{name}.dead").into(),
            late: format!("{name}.late").into(),
            meta: format!("{name}.meta").into(),
            group: format!("headwater.{name}"),
            exchanges: plan.stages.iter().map(exchange).collect(),
            partitions: BTreeMap::new(),
        }
    }

    pub fn count(&self, topic: &str) -> i32 {
        self.partitions.get(topic).copied().unwrap_or(0)
    }

    /// Every origin of the rows that reach a keyed stage: topic, partition count.
    pub fn origin_set(&self, plan: &Plan, stage: usize) -> Vec<(Arc<str>, i32)> {
        let StageInput::Exchange { upstream } = &plan.stages[stage].input else { return Vec::new() };
        let mut set = BTreeMap::new();
        for &upstream in upstream {
            let topic = self.input_topic(plan, upstream);
            set.insert(Arc::clone(&topic), self.count(&topic));
        }
        set.into_iter().collect()
    }

    /// The topic that a stage's tasks read.
    pub fn input_topic(&self, plan: &Plan, stage: usize) -> Arc<str> {
        match (&plan.stages[stage].input, &self.exchanges[stage]) {
            (StageInput::Source(source), _) => Arc::clone(&plan.sources[*source].topic),
            (_, Some(exchange)) => Arc::clone(exchange),
            (_, None) => unreachable!("a keyed stage has an exchange"),
        }
    }

    /// The topics of all sources that a stage reads, looked up; none may be missing.
    pub fn sources(plan: &Plan, log: &dyn Log) -> Result<BTreeMap<Arc<str>, i32>> {
        let mut counts = BTreeMap::new();
        for stage in &plan.stages {
            let StageInput::Source(source) = stage.input else { continue };
            let source = &plan.sources[source];
            let Some(count) = log.partitions(&source.topic)? else {
                return Err(EngineError::NoSourceTopic {
                    source_name: source.name.to_string(),
                    topic: source.topic.to_string(),
                    log: log.name(),
                });
            };
            counts.insert(Arc::clone(&source.topic), count);
        }
        Ok(counts)
    }

    /// Looks up the sources, creates what is missing, and takes exchange partition counts from `meta` where
    /// the topology has run before.
    pub fn prepare(plan: &Plan, log: &dyn Log, meta: Option<&MetaRecord>) -> Result<Self> {
        let mut names = Self::of(plan);
        names.partitions = Self::sources(plan, log)?;
        let source_partitions = names.partitions.values().copied().max().unwrap_or(1);
        let mut message_bytes = MESSAGE_BYTES_DEFAULT;
        for topic in names.partitions.keys() {
            let config = log.topic_config(topic)?;
            let takes = config.get("max.message.bytes").and_then(|bytes| bytes.parse().ok());
            message_bytes = message_bytes.max(takes.unwrap_or(MESSAGE_BYTES_DEFAULT));
            if let Some(warning) = unbounded_time(topic, &config) {
                tracing::warn!("{warning}");
            }
        }
        let mut create = Vec::new();
        let mut wanted = BTreeMap::new();
        let provenance = [("max.message.bytes", (message_bytes + HEADER_BYTES).to_string())];
        for topic in [&names.dead, &names.late] {
            wanted.insert(Arc::clone(topic), source_partitions);
            create.push(spec(topic, source_partitions, &provenance));
        }
        create.push(spec(&names.meta, 1, &[("cleanup.policy", "compact".into())]));
        for (stage, exchange) in names.exchanges.clone().into_iter().enumerate() {
            let Some(exchange) = exchange else { continue };
            let inputs = names.origin_set(plan, stage);
            let most = inputs.iter().map(|(_, partitions)| *partitions).max().unwrap_or(1);
            let frozen = meta.and_then(|meta| meta.exchanges.get(&*exchange).copied());
            let count = frozen.unwrap_or(most.max(EXCHANGE_PARTITIONS_MIN));
            // One wide row can make a message larger than the size at which batches are split.
            let largest = message_bytes.max(MESSAGE_BYTES_DEFAULT) * 2;
            let keep = [
                ("cleanup.policy", "delete".into()),
                ("retention.ms", "-1".into()),
                ("retention.bytes", "-1".into()),
                ("max.message.bytes", largest.to_string()),
                ("segment.bytes", largest.max(EXCHANGE_SEGMENT_BYTES).to_string()),
            ];
            create.push(spec(&exchange, count, &keep));
            names.partitions.insert(Arc::clone(&exchange), count);
            wanted.insert(exchange, count);
        }
        for sink in plan.sinks.iter().filter_map(|sink| sink.topic.as_ref()) {
            create.push(spec(&sink.topic, source_partitions, &[]));
        }
        log.create_topics(&create)?;
        for topic in create.iter().map(|topic| &topic.name) {
            let count = log.partitions(topic)?.ok_or_else(|| {
                EngineError::internal(format!("topic '{topic}' is missing after it was created"))
            })?;
            names.partitions.insert(topic.as_str().into(), count);
        }
        for topic in [&names.dead, &names.late] {
            let config = log.topic_config(topic)?;
            let takes = config.get("max.message.bytes").and_then(|bytes| bytes.parse::<i64>().ok());
            if let Some(takes) = takes.filter(|takes| *takes < message_bytes + HEADER_BYTES) {
                tracing::warn!(
                    "topic '{topic}' takes records of {takes} bytes, but its sources take {message_bytes}: raise its \
                     max.message.bytes to {}, or a large record will stop the topology",
                    message_bytes + HEADER_BYTES
                );
            }
        }
        for (exchange, expected) in wanted {
            let found = names.count(&exchange);
            if found != expected && names.exchanges.iter().flatten().any(|name| *name == exchange) {
                return Err(EngineError::PartitionsChanged {
                    topic: exchange.to_string(),
                    found,
                    expected,
                    remedy: "an exchange's partitions decide which task holds which key, and can't change; restore \
                             the topic, or run the topology under a new name",
                });
            }
        }
        Ok(names)
    }
}

/// What a source topic risks whose producers say when their records were written, and nobody says how far ahead that
/// may be (rule R5); `None`: nothing.
fn unbounded_time(topic: &str, config: &BTreeMap<String, String>) -> Option<String> {
    let bounded =
        |name: &str| config.get(name).and_then(|ms| ms.parse::<i64>().ok()).is_some_and(|ms| ms < i64::MAX);
    let unbounded = config.get("message.timestamp.type").is_some_and(|kind| kind == "CreateTime")
        && !bounded("message.timestamp.after.max.ms")
        && !bounded("message.timestamp.difference.max.ms");
    unbounded.then(|| {
        format!(
            "topic '{topic}' takes its producers' word for when a record was written: one whose clock is ahead moves \
             event time ahead, and what the others send is late then. Set its message.timestamp.type to LogAppendTime, \
             or its message.timestamp.after.max.ms to, say, 3600000"
        )
    })
}

/// Topics that Headwater creates stamp records as they are appended (rule R5).
pub(super) fn spec(name: &str, partitions: i32, config: &[(&str, String)]) -> TopicSpec {
    let mut all = BTreeMap::from([("message.timestamp.type".to_string(), "LogAppendTime".to_string())]);
    all.extend(config.iter().map(|(name, value)| (name.to_string(), value.clone())));
    TopicSpec { name: name.to_string(), partitions, config: all }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_topic_whose_producers_clocks_are_believed_is_named() {
        let warned = |config: &[(&str, &str)]| {
            let config = config.iter().map(|&(name, value)| (name.to_owned(), value.to_owned())).collect();
            unbounded_time("orders", &config)
        };
        let (stamp, after) = ("message.timestamp.type", "message.timestamp.after.max.ms");
        let older = "message.timestamp.difference.max.ms";
        let forever = "9223372036854775807";
        assert!(warned(&[(stamp, "CreateTime"), (after, forever)]).unwrap().contains("'orders'"));
        assert!(warned(&[(stamp, "CreateTime"), (older, forever)]).is_some());
        assert_eq!(warned(&[(stamp, "CreateTime"), (after, "3600000")]), None);
        assert_eq!(warned(&[(stamp, "CreateTime"), (older, "3600000"), (after, forever)]), None);
        assert_eq!(warned(&[(stamp, "LogAppendTime"), (after, forever)]), None);
    }
}
