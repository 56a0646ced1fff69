//! `topic delete`: a topic, and all that is in it.

use serde::Serialize;

use super::partitions_of;
use crate::log::Log;
use crate::record::TopicPartition;
use crate::serve::text;
use crate::tool::{Printer, Result, ToolError};

#[derive(Serialize)]
struct Deleted<'a> {
    deleted: &'a str,
    partitions: i32,
    offsets: i64,
}

/// Deletes a topic once that is confirmed. The cluster's own are left alone: groups and transactions are in them.
pub fn delete(
    log: &dyn Log,
    topic: &str,
    confirm: &mut dyn FnMut(&str) -> Result<bool>,
    out: &mut Printer,
) -> Result<()> {
    if topic.starts_with("__") {
        return Err(ToolError::input_with_help(
            format!("'{topic}' is the cluster's own"),
            "Kafka's tools delete such a topic, where that is what is meant",
        ));
    }
    let partitions = partitions_of(log, topic)?;
    let mut offsets = 0;
    for number in 0..partitions {
        let bounds = log.bounds(&TopicPartition::new(topic, number))?;
        offsets += bounds.end - bounds.start;
    }
    let what = format!(
        "{topic} with {} and {}",
        text::count(partitions as u64, "partition"),
        text::count(offsets as u64, "offset")
    );
    if !confirm(&format!("delete {what} for good?"))? {
        return out.line("nothing was deleted");
    }
    log.delete_topics(&[topic.to_owned()])?;
    if out.json() {
        return out.object(&Deleted { deleted: topic, partitions, offsets });
    }
    out.line(&format!("deleted {what}"))
}
