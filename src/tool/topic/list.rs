//! `topic list`: what topics there are and what their partitions hold.

use serde::Serialize;

use crate::log::Log;
use crate::record::TopicPartition;
use crate::tool::{Printer, Result};

#[derive(Clone, Debug, Default)]
pub struct ListOptions {
    /// Also the cluster's own topics, whose names begin with `__`.
    pub internal: bool,
}

#[derive(Serialize)]
struct Topic {
    topic: String,
    partitions: i32,
    /// Offsets between start and end: an upper bound where transactions or compaction leave gaps.
    records: i64,
    bounds: Vec<PartitionBounds>,
}

#[derive(Serialize)]
struct PartitionBounds {
    partition: i32,
    start: i64,
    end: i64,
}

/// Prints every topic with its partitions, how many records they hold at most, and their offsets.
pub fn list(log: &dyn Log, options: &ListOptions, out: &mut Printer) -> Result<()> {
    let mut infos = log.topics()?;
    infos.retain(|info| options.internal || !info.name.starts_with("__"));
    infos.sort_by(|a, b| a.name.cmp(&b.name));
    let mut topics = Vec::with_capacity(infos.len());
    for info in infos {
        let mut bounds = Vec::new();
        for partition in 0..info.partitions {
            let held = log.bounds(&TopicPartition::new(info.name.as_str(), partition))?;
            bounds.push(PartitionBounds { partition, start: held.start, end: held.end });
        }
        let records = bounds.iter().map(|held| held.end - held.start).sum();
        topics.push(Topic { topic: info.name, partitions: info.partitions, records, bounds });
    }
    if out.json() {
        return topics.iter().try_for_each(|topic| out.object(topic));
    }
    if topics.is_empty() {
        return out
            .line(&format!("{} has no topics yet; topic create and topic produce make some", log.name()));
    }
    let rows: Vec<Vec<String>> = topics
        .iter()
        .map(|topic| {
            let bounds = topic.bounds.iter().map(|held| format!("{}..{}", held.start, held.end));
            vec![
                topic.topic.clone(),
                topic.partitions.to_string(),
                topic.records.to_string(),
                bounds.collect::<Vec<_>>().join(" "),
            ]
        })
        .collect();
    out.table(&["TOPIC", "PARTITIONS", "MAX RECORDS", "OFFSETS"], &rows)
}
