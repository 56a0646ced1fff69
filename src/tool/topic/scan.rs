//! Reading a topic's records once, up to its end as it stands now.

use std::ops::ControlFlow;

use crate::log::{Log, LogError, Span, read_spans};
use crate::record::{OwnedRecord, TopicPartition};
use crate::tool::{Result, Stop};

/// All that the topic's partitions hold now, read-committed.
pub fn spans(log: &dyn Log, topic: &str) -> Result<Vec<Span>> {
    let spans = Span::of_topic(log, topic)?;
    spans.ok_or_else(|| LogError::NoTopic { topic: topic.to_owned(), brokers: log.name() }.into())
}

/// Hands every record of the spans to `each`, in order within a partition, until it breaks off, `stop` is set
/// or all spans are read.
pub fn scan(
    log: &dyn Log,
    spans: &[Span],
    stop: &Stop,
    each: &mut dyn FnMut(&TopicPartition, OwnedRecord) -> Result<ControlFlow<()>>,
) -> Result<()> {
    read_spans(log, spans, &|| stop.is_set(), &mut |run| {
        for index in 0..run.records.len() {
            if each(&run.partition, run.records.to_owned(index))?.is_break() {
                return Ok(ControlFlow::Break(()));
            }
        }
        Ok(ControlFlow::Continue(()))
    })
}
