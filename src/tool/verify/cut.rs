//! The cut R of a comparison: what the group has committed of the sources, and the wait until every keyed task
//! is past it.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::VerifyError;
use crate::engine::{Meta, OffsetMetadata, Since, TopicNames, VersionStart, refined_ends, since};
use crate::log::{Log, LogError, Span, read_spans};
use crate::plan::{Plan, StageInput};
use crate::planted::{Fault, planted};
use crate::record::{Micros, TopicPartition};
use crate::time::{WATERMARK_MAX, WATERMARK_MIN};

/// How often it is looked at what is waited for.
/// A wait that takes longer is told of.
const SAID_AFTER: Duration = Duration::from_secs(2);
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// A run that has ended leaves its last transaction to the brokers for a moment.
const DECIDED_WITHIN: Duration = Duration::from_secs(2);

/// What the group has committed of the sources.
pub struct Cut {
    pub offsets: BTreeMap<TopicPartition, i64>,
    /// The least watermark of all origins that have brought anything.
    pub watermark: Micros,
    /// The partitions that have never had a record: what they would bring could belong to any window.
    empty: Vec<TopicPartition>,
}

/// What keyed tasks say once they are past the cut.
pub struct Drained {
    /// Rows that they could not apply.
    pub expired: u64,
    /// All of them are at the end of their input, for good: the topology was closed.
    pub ended: bool,
}

impl Cut {
    pub fn take(plan: &Plan, log: &dyn Log) -> Result<Self, VerifyError> {
        let names = TopicNames::of(plan);
        let meta = Meta::read(plan, log)?;
        let Some(Meta { topology: meta, .. }) = meta else {
            return Err(VerifyError::NothingCommitted(plan.name.to_string()));
        };
        meta.check(plan)?;
        let mut cut = Self { offsets: BTreeMap::new(), watermark: Micros::MAX, empty: Vec::new() };
        let mut has_records = false;
        for (topic, count) in TopicNames::sources(plan, log)? {
            let partitions: Vec<_> =
                (0..count).map(|partition| TopicPartition::new(Arc::clone(&topic), partition)).collect();
            let committed = log.committed_so_far(&names.group, &partitions, DECIDED_WITHIN)?;
            for (partition, committed) in partitions.into_iter().zip(committed) {
                let bounds = log.bounds(&partition)?;
                let start = bounds.start;
                let began = meta.first_offsets.get(&*topic).and_then(|first| first.get(&partition.partition));
                let first = began.copied().unwrap_or(0);
                if start > first {
                    return Err(VerifyError::Gone { partition, start, first });
                }
                let metadata = match &committed {
                    None => OffsetMetadata::new(WATERMARK_MIN),
                    Some(position) => OffsetMetadata::parse(&position.metadata, &partition)?,
                };
                let offset = committed.map_or(start, |position| position.offset);
                // Idle or not: what it may still bring belongs to windows from its own watermark on.
                if bounds.end == first && offset == first {
                    cut.empty.push(partition.clone());
                } else if !(metadata.idle && planted(Fault::VerifyHonoursIdleness)) {
                    cut.watermark = cut.watermark.min(metadata.watermark());
                    has_records = true;
                }
                cut.offsets.insert(partition, offset);
            }
        }
        if !has_records && !cut.offsets.is_empty() && cut.empty.len() == cut.offsets.len() {
            cut.watermark = WATERMARK_MIN;
        }
        Ok(cut)
    }

    /// The watermark up to which windows are closed, now that the live rows are read: none, if a partition that was
    /// empty has records by now, which may have changed them.
    pub fn watermark_after(&self, log: &dyn Log) -> Result<Micros, VerifyError> {
        for partition in &self.empty {
            if log.bounds(partition)?.end > self.offsets[partition] {
                return Ok(WATERMARK_MIN);
            }
        }
        Ok(self.watermark)
    }

    /// Waits until every keyed task has committed past the exchange records of the cut, stage by stage, and until what
    /// they have made of them can be read.
    pub fn wait_for_keyed(
        &self,
        plan: &Plan,
        log: &dyn Log,
        patience: Duration,
    ) -> Result<Drained, VerifyError> {
        let names = TopicNames::of(plan);
        let mut drained = Drained { expired: 0, ended: true };
        for (stage, spec) in plan.stages.iter().enumerate() {
            let StageInput::Exchange { .. } = spec.input else { continue };
            let exchange = written(log, &names.input_topic(plan, stage))?;
            wait_for_stable(log, &exchange, patience)?;
            for (partition, end) in exchange {
                let (began, mut said) = (Instant::now(), false);
                loop {
                    let committed =
                        log.committed_so_far(&names.group, std::slice::from_ref(&partition), DECIDED_WITHIN)?;
                    let committed = committed.into_iter().next().flatten();
                    let offset = committed.as_ref().map_or(0, |position| position.offset);
                    let behind = records_between(log, &partition, offset, end)?;
                    if behind == 0 || planted(Fault::VerifyBeforeKeyed) {
                        let metadata =
                            committed.map(|position| OffsetMetadata::parse(&position.metadata, &partition));
                        let metadata = metadata.transpose()?;
                        drained.expired += metadata.as_ref().map_or(0, |metadata| metadata.expired);
                        drained.ended &=
                            metadata.is_some_and(|metadata| metadata.watermark() == WATERMARK_MAX);
                        break;
                    }
                    if !said && began.elapsed() > SAID_AFTER {
                        said = true;
                        tracing::warn!(
                            "waiting up to {} s for {partition}: {behind} exchange records are not folded yet",
                            patience.as_secs()
                        );
                    }
                    if began.elapsed() > patience {
                        return Err(VerifyError::NotDrained {
                            partition,
                            waited: patience.as_secs(),
                            behind,
                        });
                    }
                    std::thread::sleep(LOOK_EVERY);
                }
            }
        }
        for topic in plan.sinks.iter().filter_map(|sink| sink.topic.as_ref()) {
            wait_for_stable(log, &written(log, &topic.topic)?, patience)?;
        }
        Ok(drained)
    }

    /// From where on each sink's view is what the plan says (rule R12).
    pub fn since(&self, plan: &Plan, log: &dyn Log, meta: &Meta) -> Result<Vec<Option<Since>>, VerifyError> {
        let refined = refined_ends(plan, log)?;
        // A partition that has committed nothing of this version yet will begin with it where it stands.
        let now = |last: &VersionStart| {
            let partition = TopicPartition::new(Arc::clone(&last.topic), last.partition);
            let offset = self.offsets.get(&partition).copied().unwrap_or(i64::MAX);
            let watermark = Some(self.watermark).filter(|&watermark| watermark != WATERMARK_MIN);
            Ok(VersionStart { offset, watermark, refined: refined.clone(), ..last.clone() })
        };
        let sinks = 0..plan.sinks.len();
        let since = sinks.map(|sink| since(plan, sink, &meta.versions, &meta.starts, now));
        Ok(since.collect::<Result<_, _>>()?)
    }
}

/// How far each partition of a topic is written, whether its transactions are decided or not: a commit is answered
/// before it shows everywhere, and behind a transaction that another worker has open nothing shows at all.
fn written(log: &dyn Log, topic: &Arc<str>) -> Result<Vec<(TopicPartition, i64)>, VerifyError> {
    let numbers = 0..log.partitions(topic)?.unwrap_or(0);
    let partitions: Vec<_> = numbers.map(|number| TopicPartition::new(Arc::clone(topic), number)).collect();
    if planted(Fault::VerifyStableOnly) {
        let stable = partitions.into_iter().map(|partition| {
            let end = log.bounds(&partition)?.end;
            Ok((partition, end))
        });
        return stable.collect();
    }
    let ends = log.written_ends(&partitions)?;
    Ok(partitions.into_iter().zip(ends).collect())
}

/// Waits until all that is written up to these ends is decided.
fn wait_for_stable(
    log: &dyn Log,
    ends: &[(TopicPartition, i64)],
    patience: Duration,
) -> Result<(), VerifyError> {
    let (began, mut said) = (Instant::now(), false);
    for (partition, end) in ends {
        while log.bounds(partition)?.end < *end {
            if !said && began.elapsed() > SAID_AFTER {
                said = true;
                let patience = patience.as_secs();
                tracing::warn!("waiting up to {patience} s for {partition}: a transaction is open in it");
            }
            if began.elapsed() > patience {
                let (partition, waited) = (partition.clone(), patience.as_secs());
                return Err(VerifyError::Undecided { partition, waited });
            }
            std::thread::sleep(LOOK_EVERY);
        }
    }
    Ok(())
}

/// Records in `from..until`: transaction markers there are none.
fn records_between(
    log: &dyn Log,
    partition: &TopicPartition,
    from: i64,
    until: i64,
) -> Result<u64, LogError> {
    let span = Span { partition: partition.clone(), from, to: until };
    let mut found = 0;
    read_spans(log, &[span], &|| false, &mut |run| {
        found += run.records.len() as u64;
        Ok::<_, LogError>(ControlFlow::Continue(()))
    })?;
    Ok(found)
}
