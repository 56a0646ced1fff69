//! Reading stretches of partitions once, to an end that is known, without a group.
//!
//! Invariant: records at or past a stretch's end are never handed out, and nothing past it is waited for.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use super::{Event, Log, LogError, Reader, Result};
use crate::record::{Run, TopicPartition};

/// How long a stretch's next record is waited for: far above any fetch.
const STALLED_AFTER: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(100);

/// The offsets `from..to` of one partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Span {
    pub partition: TopicPartition,
    pub from: i64,
    pub to: i64,
}

impl Span {
    /// All that the partition holds now, read-committed.
    pub fn of(log: &dyn Log, partition: TopicPartition) -> Result<Self> {
        let bounds = log.bounds(&partition)?;
        Ok(Self { partition, from: bounds.start, to: bounds.end })
    }

    /// All that a topic's partitions hold now; `None`: there is no such topic.
    pub fn of_topic(log: &dyn Log, topic: &str) -> Result<Option<Vec<Self>>> {
        let Some(count) = log.partitions(topic)? else { return Ok(None) };
        let spans = (0..count).map(|partition| Self::of(log, TopicPartition::new(topic, partition)));
        spans.collect::<Result<Vec<_>>>().map(Some)
    }
}

/// Hands the committed records of the spans to `each`, in order within a partition, until it breaks off,
/// `must_stop` says so, or all spans are read. A partition is in one span at most.
pub fn read_spans<E: From<LogError>>(
    log: &dyn Log,
    spans: &[Span],
    must_stop: &dyn Fn() -> bool,
    each: &mut dyn FnMut(Run) -> Result<ControlFlow<()>, E>,
) -> Result<(), E> {
    let filled: Vec<&Span> = spans.iter().filter(|span| span.from < span.to).collect();
    if filled.is_empty() {
        return Ok(());
    }
    let mut reader = log.reader()?;
    read(&mut *reader, &filled, must_stop, STALLED_AFTER, each).map_err(|error| match error {
        Halted::By(error) => error,
        Halted::Stalled(waiting) => {
            let (brokers, seconds) = (log.name(), STALLED_AFTER.as_secs());
            LogError::Stalled { brokers, seconds, waiting }.into()
        }
    })
}

/// Why a reading came to no end: whoever reads, or the log; or the spans that nothing comes from any more.
enum Halted<E> {
    By(E),
    Stalled(String),
}

impl<E: From<LogError>> From<LogError> for Halted<E> {
    fn from(error: LogError) -> Self {
        Self::By(error.into())
    }
}

fn read<E: From<LogError>>(
    reader: &mut dyn Reader,
    spans: &[&Span],
    must_stop: &dyn Fn() -> bool,
    stalled_after: Duration,
    each: &mut dyn FnMut(Run) -> Result<ControlFlow<()>, E>,
) -> Result<(), Halted<E>> {
    let from: Vec<_> = spans.iter().map(|span| (span.partition.clone(), span.from)).collect();
    reader.assign(&from)?;
    let mut unread: BTreeMap<&TopicPartition, i64> =
        spans.iter().map(|span| (&span.partition, span.to)).collect();
    let mut last_heard = Instant::now();
    while !unread.is_empty() && !must_stop() {
        for event in reader.poll(POLL)? {
            last_heard = Instant::now();
            let (partition, position) = match event {
                Event::Run(run) => {
                    let Some(&to) = unread.get(&run.partition) else { continue };
                    let (partition, position) = (run.partition.clone(), run.next);
                    let run = run.until(to);
                    if !run.records.is_empty() && each(run).map_err(Halted::By)?.is_break() {
                        return Ok(());
                    }
                    (partition, position)
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
        if last_heard.elapsed() > stalled_after {
            let waiting: Vec<_> =
                unread.iter().map(|(partition, to)| format!("{partition} up to {to}")).collect();
            return Err(Halted::Stalled(waiting.join(", ")));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::{OwnedRecord, VecRecords};

    /// Yields its events poll by poll, then nothing any more.
    struct Scripted(Vec<Vec<Event>>);

    impl Reader for Scripted {
        fn assign(&mut self, _from: &[(TopicPartition, i64)]) -> Result<()> {
            Ok(())
        }
        fn poll(&mut self, _timeout: Duration) -> Result<Vec<Event>> {
            Ok(if self.0.is_empty() { Vec::new() } else { self.0.remove(0) })
        }
        fn pause(&mut self, _partitions: &[TopicPartition]) -> Result<()> {
            Ok(())
        }
        fn resume(&mut self, _partitions: &[TopicPartition]) -> Result<()> {
            Ok(())
        }
    }

    fn run(partition: i32, offsets: std::ops::Range<i64>) -> Event {
        let next = offsets.end;
        let records = offsets.map(|offset| OwnedRecord { offset, ..OwnedRecord::default() }).collect();
        Event::Run(Run {
            partition: TopicPartition::new("t", partition),
            records: Box::new(VecRecords(records)),
            next,
        })
    }

    fn span(partition: i32, from: i64, to: i64) -> Span {
        Span { partition: TopicPartition::new("t", partition), from, to }
    }

    fn offsets(
        polls: Vec<Vec<Event>>,
        spans: &[Span],
        stop_after: usize,
        patience: Duration,
    ) -> (Vec<(i32, i64)>, Option<String>) {
        let (mut seen, spans) = (Vec::new(), spans.iter().collect::<Vec<_>>());
        let outcome = read(&mut Scripted(polls), &spans, &|| false, patience, &mut |run| {
            for index in 0..run.records.len() {
                seen.push((run.partition.partition, run.records.get(index).offset));
            }
            let enough = seen.len() >= stop_after;
            Ok::<_, LogError>(if enough { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
        });
        let stalled = match outcome {
            Ok(()) => None,
            Err(Halted::Stalled(waiting)) => Some(waiting),
            Err(Halted::By(error)) => panic!("{error}"),
        };
        (seen, stalled)
    }

    #[test]
    fn spans_are_read_to_their_ends_and_no_further() {
        let end = Event::End { partition: TopicPartition::new("t", 1), position: 9 };
        let polls = vec![vec![run(0, 2..5), run(1, 7..8)], vec![run(0, 5..8), end]];
        let (seen, stalled) = offsets(polls, &[span(0, 2, 6), span(1, 7, 9)], 99, STALLED_AFTER);
        assert_eq!(seen, [(0, 2), (0, 3), (0, 4), (1, 7), (0, 5)]);
        assert_eq!(stalled, None);
        let (seen, _) = offsets(
            vec![vec![run(0, 0..3), run(1, 0..3)]],
            &[span(0, 0, 3), span(1, 0, 3)],
            3,
            STALLED_AFTER,
        );
        assert_eq!(seen, [(0, 0), (0, 1), (0, 2)], "it was told to break off");
    }

    #[test]
    fn records_that_do_not_come_are_not_waited_for_without_end() {
        let (seen, stalled) = offsets(
            vec![vec![run(0, 0..2), run(1, 0..4)]],
            &[span(0, 0, 4), span(1, 0, 4)],
            99,
            Duration::ZERO,
        );
        assert_eq!(seen.len(), 6);
        assert_eq!(stalled.as_deref(), Some("t/0 up to 4"));
    }
}
