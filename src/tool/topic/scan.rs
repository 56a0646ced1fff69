//! Reading stretches of a topic once, up to its end as it stands now.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use crate::log::{Event, Log};
use crate::record::{OwnedRecord, TopicPartition};
use crate::tool::{Result, Stop, ToolError};

use super::partitions_of;

/// How long a scan waits for the next record before it gives up: far above any fetch.
const STALLED_AFTER: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(100);

/// The offsets `from..to` of one partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Span {
    pub partition: TopicPartition,
    pub from: i64,
    pub to: i64,
}

/// All that the topic's partitions hold now, read-committed.
pub fn spans(log: &dyn Log, topic: &str) -> Result<Vec<Span>> {
    (0..partitions_of(log, topic)?)
        .map(|partition| {
            let partition = TopicPartition::new(topic, partition);
            let bounds = log.bounds(&partition)?;
            Ok(Span { partition, from: bounds.start, to: bounds.end })
        })
        .collect()
}

/// Hands every record of the spans to `each`, in order within a partition, until it breaks off, `stop` is set
/// or all spans are read.
pub fn scan(
    log: &dyn Log,
    spans: &[Span],
    stop: &Stop,
    each: &mut dyn FnMut(&TopicPartition, OwnedRecord) -> Result<ControlFlow<()>>,
) -> Result<()> {
    let mut unread: BTreeMap<TopicPartition, i64> = spans
        .iter()
        .filter(|span| span.from < span.to)
        .map(|span| (span.partition.clone(), span.to))
        .collect();
    if unread.is_empty() {
        return Ok(());
    }
    let from: Vec<(TopicPartition, i64)> = spans
        .iter()
        .filter(|span| span.from < span.to)
        .map(|span| (span.partition.clone(), span.from))
        .collect();
    let mut reader = log.reader()?;
    reader.assign(&from)?;
    let mut last_heard = Instant::now();
    while !unread.is_empty() && !stop.is_set() {
        for event in reader.poll(POLL)? {
            last_heard = Instant::now();
            let (partition, position) = match event {
                Event::Run(run) => {
                    let Some(&to) = unread.get(&run.partition) else { continue };
                    for index in 0..run.records.len() {
                        if run.records.get(index).offset >= to {
                            break;
                        }
                        if each(&run.partition, run.records.to_owned(index))?.is_break() {
                            return Ok(());
                        }
                    }
                    (run.partition, run.next)
                }
                Event::End { partition, position } => (partition, position),
                Event::Assigned { .. } | Event::Revoked(_) | Event::Lost(_) => {
                    unreachable!("a reader has no group")
                }
            };
            if unread.get(&partition).is_some_and(|&to| position >= to) {
                unread.remove(&partition);
                reader.pause(std::slice::from_ref(&partition))?;
            }
        }
        if last_heard.elapsed() > STALLED_AFTER {
            let waiting = unread.iter().map(|(partition, to)| format!("{partition} up to {to}"));
            return Err(ToolError::Failed {
                message: format!(
                    "nothing came from {} for {STALLED_AFTER:?} while reading {}",
                    log.name(),
                    waiting.collect::<Vec<_>>().join(", ")
                ),
                help: Some("is the broker still there? The same command may be run again".to_owned()),
            });
        }
    }
    Ok(())
}
