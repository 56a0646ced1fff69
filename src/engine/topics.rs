//! The names and shapes of the topics that a topology owns.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::log::{Log, LogError, TopicSpec};
use crate::plan::{Plan, SinkPlan, StageInput, TopicShape, Work};

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
        one_origin(plan, &counts)?;
        Ok(counts)
    }

    /// Looks up the sources, creates what is missing, and takes exchange partition counts from `meta` where
    /// the topology has run before.
    pub fn prepare(plan: &Plan, log: &dyn Log, meta: Option<&MetaRecord>) -> Result<Self> {
        let mut names = Self::of(plan);
        names.partitions = Self::sources(plan, log)?;
        let message_bytes = names.largest_message(log)?;
        let create = names.wanted(plan, meta, message_bytes);
        log.create_topics(&create)?;
        for topic in create.iter().map(|topic| &topic.name) {
            let count = log.partitions(topic)?.ok_or_else(|| {
                EngineError::internal(format!("topic '{topic}' is missing after it was created"))
            })?;
            names.partitions.insert(topic.as_str().into(), count);
        }
        for wanted in create.iter().filter(|topic| names.is_exchange(&topic.name)) {
            let found = names.count(&wanted.name);
            if found != wanted.partitions {
                return Err(EngineError::PartitionsChanged {
                    topic: wanted.name.clone(),
                    found,
                    expected: wanted.partitions,
                    remedy: "an exchange's partitions decide which task holds which key, and can't change; restore \
                             the topic, or run the topology under a new name",
                });
            }
        }
        names.compare(plan, log, message_bytes)?;
        Ok(names)
    }

    fn is_exchange(&self, topic: &str) -> bool {
        self.exchanges.iter().flatten().any(|exchange| **exchange == *topic)
    }

    /// The most bytes that a record of a source may have; warns of what a source's configuration risks.
    fn largest_message(&self, log: &dyn Log) -> Result<i64> {
        let mut message_bytes = MESSAGE_BYTES_DEFAULT;
        for topic in self.partitions.keys() {
            let config = log.topic_config(topic)?;
            let takes = config.get("max.message.bytes").and_then(|bytes| bytes.parse().ok());
            message_bytes = message_bytes.max(takes.unwrap_or(MESSAGE_BYTES_DEFAULT));
            if let Some(warning) = unbounded_time(topic, &config) {
                tracing::warn!("{warning}");
            }
        }
        Ok(message_bytes)
    }

    /// The topics that the topology writes, as they are made where they are missing. `partitions` holds the sources;
    /// exchanges come to them here, as one may read another.
    fn wanted(&mut self, plan: &Plan, meta: Option<&MetaRecord>, message_bytes: i64) -> Vec<TopicSpec> {
        let source_partitions = self.partitions.values().copied().max().unwrap_or(1);
        let shaped = |topic: &str, shape: &TopicShape, config: &[(&str, String)]| {
            let mut spec = spec(topic, shape.partitions.unwrap_or(source_partitions), config);
            spec.config.extend(shape.config.clone());
            spec
        };
        let provenance = [("max.message.bytes", (message_bytes + HEADER_BYTES).to_string())];
        let mut wanted = vec![
            shaped(&self.dead, &plan.dead, &provenance),
            shaped(&self.late, &plan.late, &provenance),
            spec(&self.meta, 1, &[("cleanup.policy", "compact".into())]),
        ];
        for (stage, exchange) in self.exchanges.clone().into_iter().enumerate() {
            let Some(exchange) = exchange else { continue };
            let inputs = self.origin_set(plan, stage);
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
            wanted.push(spec(&exchange, count, &keep));
            self.partitions.insert(exchange, count);
        }
        let refined = plan.sinks.iter().filter_map(|sink| sink.topic.as_ref());
        wanted.extend(refined.map(|sink| shaped(&sink.topic, &sink.shape, &[])));
        wanted
    }

    /// Warns of topics that existed and are otherwise than they would have been made: they are left as they are.
    fn compare(&self, plan: &Plan, log: &dyn Log, message_bytes: i64) -> Result<()> {
        for (topic, shape) in [(&self.dead, &plan.dead), (&self.late, &plan.late)] {
            let config = log.topic_config(topic)?;
            self.warn_of(topic, shape, &config);
            let takes = config.get("max.message.bytes").and_then(|bytes| bytes.parse::<i64>().ok());
            if let Some(takes) = takes.filter(|takes| *takes < message_bytes + HEADER_BYTES) {
                tracing::warn!(
                    "topic '{topic}' takes records of {takes} bytes, but its sources take {message_bytes}: raise its \
                     max.message.bytes to {}, or a large record will stop the topology",
                    message_bytes + HEADER_BYTES
                );
            }
        }
        for sink in plan.sinks.iter().filter_map(|sink| sink.topic.as_ref()) {
            match log.topic_config(&sink.topic) {
                Ok(config) => self.warn_of(&sink.topic, &sink.shape, &config),
                // Who may only write to it need not be told of its configuration.
                Err(LogError::Denied(_)) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    fn warn_of(&self, topic: &str, shape: &TopicShape, config: &BTreeMap<String, String>) {
        for difference in differences(topic, shape, self.count(topic), config) {
            tracing::warn!("{difference}");
        }
    }
}

/// What is otherwise in a topic that exists than in the topology, a sentence each.
fn differences(
    topic: &str,
    shape: &TopicShape,
    partitions: i32,
    config: &BTreeMap<String, String>,
) -> Vec<String> {
    let mut found = Vec::new();
    if let Some(wanted) = shape.partitions.filter(|wanted| *wanted != partitions) {
        found.push(format!(
            "topic '{topic}' exists with {partitions} partitions, where the topology file says {wanted}; it is left as it is"
        ));
    }
    for (name, wanted) in &shape.config {
        let Some(value) = config.get(name).filter(|value| !is_same(value, wanted)) else { continue };
        let loses_keys = name == "cleanup.policy" && wanted == "compact" && value == "delete";
        let why = match config.get("retention.ms").filter(|_| loses_keys) {
            Some(retention) if retention != "-1" => {
                format!(" Records go after {retention} ms, and readers that begin later lack their keys.")
            }
            _ => String::new(),
        };
        found.push(format!(
            "topic '{topic}' exists with {name}={value}, where the topology would have created it with {wanted}; it is \
             left as it is.{why} Change it with: kafka-configs.sh --alter --entity-type topics --entity-name {topic} \
             --add-config {name}=[{wanted}]; or write `config: {{{name}: {value}}}` for that topic in the topology file"
        ));
    }
    found
}

/// Lists such as `compact,delete` have no order.
fn is_same(value: &str, wanted: &str) -> bool {
    let parts = |text: &str| text.split(',').map(|part| part.trim().to_owned()).collect::<BTreeSet<_>>();
    parts(value) == parts(wanted)
}

/// Refuses a sink whose last record of a key would depend on the order in which partitions are read (rule R11).
fn one_origin(plan: &Plan, counts: &BTreeMap<Arc<str>, i32>) -> Result<()> {
    for (sink, topic) in
        plan.sinks.iter().enumerate().filter_map(|(at, sink)| Some((at, sink.topic.as_ref()?)))
    {
        let writes = |work: &Work| matches!(work, Work::Sink { sink: at, .. } if *at == sink);
        let stage = plan.stages.iter().find(|stage| stage.nodes.iter().any(|node| writes(&node.work)));
        let Some(StageInput::Source(source)) = stage.map(|stage| &stage.input) else { continue };
        let source = &plan.sources[*source];
        let partitions = counts.get(&source.topic).copied().unwrap_or(1);
        if !topic.one_origin && partitions > 1 {
            let sink: &SinkPlan = &plan.sinks[sink];
            let key = topic.key.iter().map(|&column| sink.schema.field(column).name().as_str());
            return Err(EngineError::ManyOrigins {
                view: sink.view.as_ref().into(),
                topic: topic.topic.as_ref().into(),
                key: key.collect::<Vec<_>>().join(", ").into(),
                source_name: source.name.as_ref().into(),
                source_topic: source.topic.as_ref().into(),
                partitions,
            });
        }
    }
    Ok(())
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
    use crate::log::memory::MemoryLog;

    #[test]
    fn what_is_otherwise_in_a_topic_that_exists_is_said_with_the_way_out() {
        let map = |pairs: &[(&str, &str)]| -> BTreeMap<String, String> {
            pairs.iter().map(|&(name, value)| (name.to_owned(), value.to_owned())).collect()
        };
        let shape = TopicShape { partitions: Some(3), config: map(&[("cleanup.policy", "compact")]) };
        let found =
            |partitions, config: &[(&str, &str)]| differences("hourly", &shape, partitions, &map(config));
        assert_eq!(found(3, &[("cleanup.policy", "compact"), ("retention.ms", "5")]), Vec::<String>::new());
        let week = found(2, &[("cleanup.policy", "delete"), ("retention.ms", "604800000")]);
        assert!(
            week[0].contains("'hourly' exists with 2 partitions") && week[0].contains("says 3"),
            "{week:?}"
        );
        assert!(
            week[1].contains("after 604800000 ms") && week[1].contains("{cleanup.policy: delete}"),
            "{week:?}"
        );
        let endless = found(3, &[("cleanup.policy", "delete"), ("retention.ms", "-1")]);
        assert!(endless.len() == 1 && !endless[0].contains(" ms,"), "{endless:?}");
        assert!(is_same("compact,delete", "delete, compact") && !is_same("delete", "compact"));
    }

    fn shop(source: &str, sink: &str) -> Plan {
        let text = format!(
            "name: shop\ndead: {{partitions: 1, config: {{retention.ms: 5}}}}\nsources:\n  orders: {{topic: orders, format: \
             json, columns: {{id: bigint}}{source}}}\nviews:\n  v: select id from orders\nsinks:\n  v: {{topic: {{name: out{sink}}}}}\n"
        );
        crate::plan::parse(&text, "shop.yaml").unwrap_or_else(|error| panic!("{error}"))
    }

    fn cluster(partitions: i32) -> MemoryLog {
        let log = MemoryLog::new();
        log.create_topics(&[TopicSpec { name: "orders".into(), partitions, config: BTreeMap::new() }])
            .unwrap();
        log
    }

    #[test]
    fn topics_are_created_as_the_file_says_and_existing_ones_are_left() {
        let log = cluster(1);
        let prepared = |sink: &str| TopicNames::prepare(&shop("", sink), &log, None).unwrap();
        let names = prepared(", key: [id], partitions: 3");
        assert_eq!((names.count("out"), names.count("shop.dead"), names.count("shop.late")), (3, 1, 1));
        assert_eq!(log.topic_config("out").unwrap()["cleanup.policy"], "compact");
        let dead = log.topic_config("shop.dead").unwrap();
        assert_eq!((dead["retention.ms"].as_str(), dead["max.message.bytes"].as_str()), ("5", "1114124"));
        let names = prepared(", partitions: 2, config: {cleanup.policy: delete}");
        assert_eq!(names.count("out"), 3);
        assert_eq!(log.topic_config("out").unwrap()["cleanup.policy"], "compact");
    }

    #[test]
    fn keys_whose_last_record_depends_on_the_order_of_partitions_are_refused_with_a_way_out() {
        let prepare = |source: &str, sink: &str, partitions: i32| {
            TopicNames::prepare(&shop(source, sink), &cluster(partitions), None)
        };
        let key = ", key: [id]";
        let refused = prepare("", key, 2).unwrap_err().to_string();
        for said in ["'v'", "'out'", "(id)", "'orders'", "2 partitions", "`partitioned_by: [id]`"] {
            assert!(refused.contains(said), "{said}: {refused}");
        }
        prepare("", key, 1).unwrap();
        prepare("", "", 2).unwrap();
        prepare(", partitioned_by: [id]", key, 2).unwrap();
    }

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
