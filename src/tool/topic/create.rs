//! `topic create`: a topic as Headwater wants it.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::log::{Log, TopicSpec};
use crate::serve::text;
use crate::tool::{Printer, Result, ToolError};

#[derive(Clone, Debug)]
pub struct CreateOptions {
    pub topic: String,
    pub partitions: i32,
    /// By Kafka's names.
    pub config: BTreeMap<String, String>,
}

#[derive(Serialize)]
struct Created<'a> {
    topic: &'a str,
    partitions: i32,
    config: &'a BTreeMap<String, String>,
}

/// Creates a topic and says so; a topic that exists already is an error.
pub fn create(log: &dyn Log, options: &CreateOptions, out: &mut Printer) -> Result<()> {
    name_checked(&options.topic)?;
    if let Some(partitions) = log.partitions(&options.topic)? {
        return Err(ToolError::input(format!(
            "the topic '{}' exists already, with {}",
            options.topic,
            text::count(partitions as u64, "partition")
        )));
    }
    let spec = create_topic(log, &options.topic, options.partitions, &options.config)?;
    if out.json() {
        let TopicSpec { name, partitions, config } = &spec;
        return out.object(&Created { topic: name, partitions: *partitions, config });
    }
    out.line(&format!("created {} with {} partition(s)", spec.name, spec.partitions))
}

/// Creates the topic with the log's own timestamps (`LogAppendTime`) unless `config` says otherwise: so that a
/// producer's wrong clock can neither move a watermark ahead nor pass `max_ahead` (rule R5).
pub(super) fn create_topic(
    log: &dyn Log,
    topic: &str,
    partitions: i32,
    config: &BTreeMap<String, String>,
) -> Result<TopicSpec> {
    name_checked(topic)?;
    let mut config = config.clone();
    config.entry("message.timestamp.type".to_owned()).or_insert_with(|| "LogAppendTime".to_owned());
    let spec = TopicSpec { name: topic.to_owned(), partitions, config };
    log.create_topics(std::slice::from_ref(&spec))?;
    Ok(spec)
}

/// Kafka's rule for names, told before the broker is asked.
fn name_checked(topic: &str) -> Result<()> {
    let well_named = (1..=249).contains(&topic.len())
        && topic.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-'))
        && topic != "."
        && topic != "..";
    if !well_named {
        return Err(ToolError::input_with_help(
            format!("'{topic}' is not a topic name"),
            "Kafka takes 1 to 249 of the letters a-z A-Z 0-9 . _ -",
        ));
    }
    Ok(())
}
