//! The topics that a topology makes: their names and keys, how they are created, and whether the order of what they are
//! told is known.
//!
//! Invariant: a topic that exists is left as it is, so nothing here is part of a fingerprint.

use std::collections::BTreeMap;

use datafusion_expr::Expr;
use serde_saphyr::Spanned;

use super::build::{Planner, missing, names};
use super::declared::{self, DeclaredSource};
use super::error::suggest;
use super::sql::{self, Facts, Step, View};
use super::topology::{Entries, Setting};
use super::{SinkPlan, TopicShape, TopicSink};
use crate::broker::TopicConfig;

/// More than brokers bear; a slip of the finger would cost an hour.
const PARTITIONS_MAX: i64 = 100_000;
const CLEANUP_POLICY: &str = "cleanup.policy";
/// Settings that are not Kafka's own begin so.
const OTHER_VENDORS: [&str; 2] = ["confluent.", "redpanda."];

impl Planner<'_> {
    pub(super) fn topic(
        &mut self,
        topic: &super::topology::TopicSink,
        name: &serde_saphyr::Spanned<String>,
        view: &View,
    ) -> TopicSink {
        declared::check_topic(self.file, &topic.name, &mut self.problems);
        if let Some(format) = &topic.format {
            declared::check_format(self.file, format, &mut self.problems);
        }
        if let Some((source, _)) =
            self.topology.sources.0.iter().find(|(_, source)| source.topic.value == topic.name.value)
        {
            self.problem(
                &topic.name.referenced,
                format!("the source '{}' reads this topic, so the topology would feed itself", source.value),
                Some("give the refined topic a name of its own".to_string()),
            );
        }
        let mut key = Vec::new();
        for column in &topic.key {
            match view.schema.index_of(&column.value) {
                Ok(index) if key.contains(&index) => {
                    self.problem(
                        &column.referenced,
                        format!("'{}' stands in the key twice", column.value),
                        None,
                    );
                }
                Ok(index) => key.push(index),
                Err(_) => {
                    let message = format!("'{}' has no column '{}'", name.value, column.value);
                    let help = suggest(&column.value, names(view), "its columns are");
                    self.problem(&column.referenced, message, help);
                    return self.shaped(topic, key);
                }
            }
        }
        let missing = missing_from(&key, &view.facts);
        // Without a key nothing is overwritten: corrections take rows back.
        if let Some(first) = topic.key.first()
            && !missing.is_empty()
        {
            let message = format!(
                "rows that differ in {} would overwrite each other under this key",
                missing.join(", ")
            );
            let help = format!(
                "key: [{}]; or no key: rows are then appended, and a correction takes the old row back first",
                proposed_key(&view.facts).join(", ")
            );
            self.problem(&first.referenced, message, Some(help));
        }
        self.shaped(topic, key)
    }

    fn shaped(&mut self, topic: &super::topology::TopicSink, key: Vec<usize>) -> TopicSink {
        let mut shape = self.shape(topic.partitions.as_ref(), &topic.config);
        let policy = topic.config.0.iter().find(|(name, _)| name.value == CLEANUP_POLICY);
        match policy {
            Some((_, Setting(policy))) if topic.key.is_empty() && policy.value.contains("compact") => {
                self.problem(
                    &policy.referenced,
                    "a topic without a key can't be compacted: brokers refuse records without a key there",
                    Some("give the topic a `key:`, or leave cleanup.policy out".to_string()),
                );
            }
            None if !topic.key.is_empty() => {
                shape.config.insert(CLEANUP_POLICY.to_string(), "compact".to_string());
            }
            _ => {}
        }
        TopicSink { topic: topic.name.value.as_str().into(), key, shape, one_origin: false }
    }

    /// Of dead letters and of late records.
    pub(super) fn letter_topics(&mut self) -> [TopicShape; 2] {
        let topology = self.topology;
        [&topology.dead, &topology.late].map(|topic| {
            for (name, Setting(value)) in &topic.config.0 {
                if name.value == CLEANUP_POLICY && value.value.contains("compact") {
                    self.problem(
                        &value.referenced,
                        "a topic of dead or late records can't be compacted: a later record of the same key would \
                         delete an earlier one, and one without a key is refused",
                        Some("leave cleanup.policy out; retention.ms says how long records are kept".to_string()),
                    );
                }
            }
            self.shape(topic.partitions.as_ref(), &topic.config)
        })
    }

    fn shape(&mut self, partitions: Option<&Spanned<i64>>, config: &Entries<Setting>) -> TopicShape {
        let mut shape = TopicShape::default();
        if let Some(wanted) = partitions {
            if !(1..=PARTITIONS_MAX).contains(&wanted.value) {
                let message = format!("a topic has 1 to {PARTITIONS_MAX} partitions, not {}", wanted.value);
                let help = "leave `partitions` out: it then has as many as the source with the most";
                self.problem(&wanted.referenced, message, Some(help.to_string()));
            }
            shape.partitions = i32::try_from(wanted.value).ok();
        }
        for (name, Setting(value)) in &config.0 {
            self.setting(name, value);
            if shape.config.insert(name.value.clone(), value.value.trim().to_string()).is_some() {
                let help = Some("keep one of them".to_string());
                self.problem(&name.referenced, format!("'{}' is given twice", name.value), help);
            }
        }
        shape
    }

    /// A name that no Kafka knows, or a value that none takes, would end the first `run`.
    fn setting(&mut self, name: &Spanned<String>, value: &Spanned<String>) {
        if OTHER_VENDORS.iter().any(|vendor| name.value.starts_with(vendor)) {
            return;
        }
        if !TopicConfig::names().any(|known| known == name.value) {
            let message = format!("there is no topic configuration '{}'", name.value);
            let help = suggest(&name.value, TopicConfig::names(), "Kafka's names are");
            self.problem(&name.referenced, message, help);
            return;
        }
        let alone = BTreeMap::from([(name.value.clone(), value.value.trim().to_string())]);
        if let Err(message) = TopicConfig::new(alone) {
            let help =
                Some("values are Kafka's: a number of milliseconds or bytes, without a unit".to_string());
            self.problem(&value.referenced, message, help);
        }
    }
}

/// Finds out whether all records of one key come from one partition of the source, so that the last of them is the same in
/// every run (rule R11): where windows order them, or the key holds what the source is partitioned by.
pub(super) fn find_one_origin(
    sink: &mut SinkPlan,
    views: &BTreeMap<String, View>,
    sources: &[DeclaredSource],
) {
    let Some(topic) = &mut sink.topic else { return };
    let (source, unchanged) = unchanged(&sink.view, views, sources);
    let held: Vec<&String> =
        topic.key.iter().filter_map(|&column| unchanged.get(sink.schema.field(column).name())).collect();
    let placed = source.is_some_and(|source| {
        !source.partitioned_by.is_empty() && source.partitioned_by.iter().all(|by| held.contains(&by))
    });
    topic.one_origin = topic.key.is_empty() || !sink.row_key.is_empty() || placed;
}

/// A relation's source, and which of its columns are the source's as they were read: name here, name there.
fn unchanged<'a>(
    relation: &str,
    views: &BTreeMap<String, View>,
    sources: &'a [DeclaredSource],
) -> (Option<&'a DeclaredSource>, BTreeMap<String, String>) {
    let Some(view) = views.get(relation) else {
        let source = sources.iter().find(|source| source.name == relation);
        let columns = source.iter().flat_map(|source| &source.columns);
        return (source, columns.map(|column| (column.name.clone(), column.name.clone())).collect());
    };
    let (source, mut columns) = unchanged(&view.input, views, sources);
    for step in &view.steps {
        match step {
            Step::Map { project: Some(project), output, .. } => {
                let same = project.iter().zip(output.fields()).filter_map(|(expr, field)| {
                    let Expr::Column(column) = expr.clone().unalias_nested().data else { return None };
                    Some((field.name().clone(), columns.get(&column.name)?.clone()))
                });
                columns = same.collect();
            }
            Step::Map { project: None, .. } => {}
            Step::Tumble { .. } => columns.retain(|name, _| !sql::WINDOW_EDGES.contains(&name.as_str())),
            Step::Aggregate { .. } => columns.clear(),
        }
    }
    (source, columns)
}

fn missing_from<'a>(key: &[usize], facts: &'a Facts) -> Vec<&'a str> {
    missing(facts, |column| column.column.is_some_and(|column| key.contains(&column)))
}

fn proposed_key(facts: &Facts) -> Vec<&str> {
    let plain = facts.key.iter().filter(|key| key.window.is_none());
    let window = facts.key.iter().find(|key| key.window.is_some() && key.column.is_some());
    plain.chain(window).map(|key| key.name.as_str()).collect()
}
