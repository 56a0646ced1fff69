//! `topic tail`: what a topic holds, and what comes.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::time::Duration;

use crate::engine::is_retraction;
use crate::log::{Event, Log, Span};
use crate::record::{OwnedRecord, TopicPartition};
use crate::tool::{Printer, Result, Stop};

use super::envelope::Printed;
use super::scan::{scan, spans};

const POLL: Duration = Duration::from_millis(100);

#[derive(Clone, Debug)]
pub struct TailOptions {
    pub topic: String,
    /// From the first record on, not only the last ones.
    pub from_beginning: bool,
    /// At most so many records: the last ones, or with `from_beginning` the first ones. `None`: all.
    pub count: Option<usize>,
    /// Goes on with what comes, until stopped.
    pub follow: bool,
    /// Prints the key before the value, a tab between them.
    pub key: bool,
}

/// Prints a topic's records, committed ones only: value lines, or envelopes with `--json`. A line of a retraction
/// says so, as it would else read like the row that it takes back.
pub fn tail(log: &dyn Log, options: &TailOptions, stop: &Stop, out: &mut Printer) -> Result<()> {
    let held = spans(log, &options.topic)?;
    let mut left = options.count.unwrap_or(usize::MAX);
    if options.from_beginning {
        scan(log, &held, stop, &mut |partition, record| {
            if left == 0 {
                return Ok(ControlFlow::Break(()));
            }
            print(options, partition, &record, out)?;
            left -= 1;
            Ok(if left == 0 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
        })?;
    } else if left > 0 {
        for (partition, record) in last(log, &held, left, stop)? {
            print(options, &partition, &record, out)?;
        }
    }
    out.flush()?;
    // Without --from-beginning the count was of the records that were there.
    if !options.from_beginning {
        left = usize::MAX;
    }
    if options.follow && left > 0 { follow(log, options, &held, left, stop, out) } else { Ok(()) }
}

/// The last `count` records over all partitions, by their log timestamps.
///
/// Offsets are not counts (transaction markers, compaction), so the stretch that is read grows until it has
/// enough.
fn last(
    log: &dyn Log,
    held: &[Span],
    count: usize,
    stop: &Stop,
) -> Result<Vec<(TopicPartition, OwnedRecord)>> {
    let mut reach = i64::try_from(count).unwrap_or(i64::MAX);
    loop {
        let tails: Vec<Span> = held
            .iter()
            .map(|span| Span { from: span.from.max(span.to.saturating_sub(reach)), ..span.clone() })
            .collect();
        let mut found: BTreeMap<TopicPartition, Vec<OwnedRecord>> = BTreeMap::new();
        scan(log, &tails, stop, &mut |partition, record| {
            found.entry(partition.clone()).or_default().push(record);
            Ok(ControlFlow::Continue(()))
        })?;
        let short = tails.iter().zip(held).any(|(tail, span)| {
            tail.from > span.from && found.get(&span.partition).map_or(0, Vec::len) < count
        });
        if short && !stop.is_set() {
            reach = reach.saturating_mul(4);
            continue;
        }
        let mut records: Vec<(TopicPartition, OwnedRecord)> = found
            .into_iter()
            .flat_map(|(partition, records)| {
                records.into_iter().map(move |record| (partition.clone(), record))
            })
            .collect();
        // Stable: within a partition the offsets stay in order where timestamps tie.
        records.sort_by_key(|(_, record)| record.timestamp_ms);
        return Ok(records.split_off(records.len().saturating_sub(count)));
    }
}

fn follow(
    log: &dyn Log,
    options: &TailOptions,
    held: &[Span],
    mut left: usize,
    stop: &Stop,
    out: &mut Printer,
) -> Result<()> {
    let from: Vec<(TopicPartition, i64)> =
        held.iter().map(|span| (span.partition.clone(), span.to)).collect();
    let mut reader = log.reader()?;
    reader.assign(&from)?;
    while !stop.is_set() {
        for event in reader.poll(POLL)? {
            let Event::Run(run) = event else { continue };
            for index in 0..run.records.len() {
                print(options, &run.partition, &run.records.to_owned(index), out)?;
                left -= 1;
                if left == 0 {
                    return Ok(());
                }
            }
        }
        out.flush()?;
    }
    Ok(())
}

fn print(
    options: &TailOptions,
    partition: &TopicPartition,
    record: &OwnedRecord,
    out: &mut Printer,
) -> Result<()> {
    if out.json() {
        return out.object(&Printed { partition, record });
    }
    let mut line = Vec::new();
    if is_retraction(&record.headers) {
        line.extend_from_slice(b"retract ");
    }
    if options.key {
        line.extend_from_slice(record.key.as_deref().unwrap_or(b"null"));
        line.push(b'\t');
    }
    line.extend_from_slice(record.value.as_deref().unwrap_or(b"null"));
    out.bytes(&line)
}
