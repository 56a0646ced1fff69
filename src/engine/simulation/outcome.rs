//! What came of a topology's records, in a form that compares: refined by key (or each record), late, dead, counts.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use arrow::compute::kernels::cast_utils::string_to_timestamp_nanos;

use super::world::World;
use crate::engine::{Counters, ExpiredWindows, Meta, OffsetMetadata, TopicNames, settle};
use crate::log::{Event, Log};
use crate::plan::{Correction, Emit, Plan, StageInput};
use crate::record::{Header, Micros, OwnedRecord, TopicPartition};
use crate::time::WATERMARK_MIN;

#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// By topic.
    pub refined: BTreeMap<String, Vec<String>>,
    pub late: Vec<String>,
    pub dead: Vec<String>,
    pub counters: Counters,
    /// Rows whose window was past its retention.
    pub expired: u64,
    /// Derived rows that an expression failed on.
    pub derived_dead: u64,
    /// The windows that such rows came for, by topic.
    windows: BTreeMap<String, ExpiredWindows>,
}

impl Outcome {
    /// `exact`: each refined record of a sink that has only final rows, not what corrections have left.
    pub fn read(log: &dyn Log, plan: &Plan, exact: bool) -> Self {
        let names = TopicNames::of(plan);
        let mut outcome = Self::default();
        let named = Meta::read(plan, log).unwrap().map(|meta| meta.expired).unwrap_or_default();
        for (index, sink) in plan.sinks.iter().enumerate() {
            let Some(topic) = &sink.topic else { continue };
            let records = read(log, &topic.topic);
            let lines = match sink.correction() {
                Correction::Never => all(&records),
                _ if exact && sink.emit == Emit::Final => all(&records),
                Correction::Upsert => last(records),
                Correction::Retract => {
                    all(&read_partitions(log, &topic.topic).flat_map(settle).collect::<Vec<_>>())
                }
            };
            outcome.refined.insert(topic.topic.to_string(), lines);
            outcome.windows.insert(topic.topic.to_string(), ExpiredWindows::of(plan, index, &named));
        }
        outcome.late = all(&read(log, &names.late));
        outcome.dead = read(log, &names.dead).iter().map(letter).collect();
        outcome.dead.sort();
        for stage in 0..plan.stages.len() {
            let topic = names.input_topic(plan, stage);
            for number in 0..log.partitions(&topic).unwrap().unwrap() {
                let partition = TopicPartition::new(Arc::clone(&topic), number);
                let Some(position) =
                    log.committed(&names.group, std::slice::from_ref(&partition)).unwrap().remove(0)
                else {
                    continue;
                };
                let metadata = OffsetMetadata::parse(&position.metadata, &partition).unwrap();
                outcome.counters.add(&metadata.counters.unwrap_or_default());
                outcome.expired += metadata.expired;
                outcome.derived_dead += metadata.derived_dead;
            }
        }
        outcome
    }

    /// The first thing in which two outcomes differ. `expires`: but for windows that this one names as expired.
    pub fn difference(&self, other: &Self, expires: bool) -> Option<String> {
        if !self.counters.balanced() {
            return Some(format!("the counts do not add up: {:?}", self.counters));
        }
        let topics = other.refined.iter();
        let whole = |topic: &str, lines: &[String]| -> Vec<String> {
            let expired =
                |line: &&String| window_end(line).is_some_and(|at| self.windows[topic].contains(at));
            lines.iter().filter(|line| !expired(line)).cloned().collect()
        };
        let refined: Vec<String> = topics
            .filter_map(|(topic, expected)| {
                differ(topic, &whole(topic, &self.refined[topic]), &whole(topic, expected))
            })
            .collect();
        if !refined.is_empty() {
            return Some(refined.join("\n"));
        }
        let late = differ("late records", &self.late, &other.late);
        let dead = || differ("dead letters", &self.dead, &other.dead);
        let counters = || {
            (self.counters != other.counters)
                .then(|| format!("counted {:?}, expected {:?}", self.counters, other.counters))
        };
        let expired = || {
            (self.expired != other.expired && !expires).then(|| format!("{} rows are expired", self.expired))
        };
        let derived = || {
            (self.derived_dead != other.derived_dead).then(|| {
                format!("{} derived rows are dead instead of {}", self.derived_dead, other.derived_dead)
            })
        };
        late.or_else(dead).or_else(counters).or_else(expired).or_else(derived)
    }
}

fn differ(what: &str, found: &[String], expected: &[String]) -> Option<String> {
    if found == expected {
        return None;
    }
    let count = |line: &String, lines: &[String]| lines.iter().filter(|other| *other == line).count();
    let surplus = found.iter().find(|line| count(line, found) > count(line, expected));
    let missing = expected.iter().find(|line| count(line, expected) > count(line, found));
    Some(format!(
        "{what}: {} instead of {}; too many: {surplus:?}; missing: {missing:?}",
        found.len(),
        expected.len()
    ))
}

fn text(bytes: Option<&[u8]>) -> String {
    bytes.map_or_else(|| "none".to_owned(), |bytes| String::from_utf8_lossy(bytes).into_owned())
}

fn line(record: &OwnedRecord) -> String {
    let headers: Vec<String> = record
        .headers
        .iter()
        .map(|header| format!("{}={}", header.name, text(header.value.as_deref())))
        .collect();
    format!("{} {} {}", text(record.key.as_deref()), text(record.value.as_deref()), headers.join(" "))
}

/// A dead letter. Where a derived row's message lies in its exchange is as the epochs were.
fn letter(letter: &OwnedRecord) -> String {
    let is_exchange = |header: &Header| text(header.value.as_deref()).contains(".exchange.");
    let of = |name: &str| letter.headers.iter().position(|header| header.name == name);
    let mut letter = letter.clone();
    if let (Some(topic), Some(offset)) = (of("__connect.errors.topic"), of("__connect.errors.offset"))
        && is_exchange(&letter.headers[topic])
    {
        letter.headers.remove(offset);
    }
    line(&letter)
}

/// The end of the window that a line's row is of.
fn window_end(line: &str) -> Option<Micros> {
    let (_, end) = line.split_once(r#""window_end":""#)?;
    Some(string_to_timestamp_nanos(end.split_once('"')?.0).unwrap() / 1000)
}

fn all(records: &[OwnedRecord]) -> Vec<String> {
    let mut lines: Vec<String> = records.iter().map(line).collect();
    lines.sort();
    lines
}

/// The last record of each key that is not deleted.
fn last(records: Vec<OwnedRecord>) -> Vec<String> {
    let by_key: BTreeMap<_, _> = records.into_iter().map(|record| (record.key.clone(), record)).collect();
    by_key.values().filter(|record| record.value.is_some()).map(line).collect()
}

/// All committed records of a topic, partition by partition.
pub fn read(log: &dyn Log, topic: &str) -> Vec<OwnedRecord> {
    read_partitions(log, topic).flatten().collect()
}

fn read_partitions(log: &dyn Log, topic: &str) -> impl Iterator<Item = Vec<OwnedRecord>> {
    (0..log.partitions(topic).unwrap().unwrap()).map(move |number| {
        let mut records = Vec::new();
        let partition = TopicPartition::new(topic, number);
        let bounds = log.bounds(&partition).unwrap();
        let mut reader = log.reader().unwrap();
        reader.assign(&[(partition.clone(), bounds.start)]).unwrap();
        let mut position = bounds.start;
        while position < bounds.end {
            for event in reader.poll(Duration::ZERO).unwrap() {
                match event {
                    Event::Run(run) => {
                        records.extend((0..run.records.len()).map(|index| run.records.to_owned(index)));
                    }
                    Event::End { position: end, .. } => position = end,
                    _ => {}
                }
            }
        }
        records
    })
}

/// Rounds of half a second until origins that are silent must have let everybody go on.
const ROUNDS_MAX: u32 = 300;

/// Waits, without faults, until keyed tasks stand at the highest watermark of the origins above them, all of which are
/// idle by then.
pub fn all_idle(world: &World) {
    let mut behind = None;
    for _ in 0..ROUNDS_MAX {
        for _ in 0..10 {
            world.tick();
        }
        world.quiet(Duration::from_millis(500));
        behind = behind_idle(world);
        if behind.is_none() || world.failure().is_some() {
            return;
        }
    }
    if let Some(behind) = behind {
        world.fail(behind);
    }
}

fn behind_idle(world: &World) -> Option<String> {
    let (plan, names) = (&world.plan, TopicNames::of(&world.plan));
    let watermarks = |stage: usize| -> Vec<(TopicPartition, Micros)> {
        let topic = names.input_topic(plan, stage);
        let numbers = 0..world.log.partitions(&topic).unwrap().unwrap_or(0);
        let partitions = numbers.map(|number| TopicPartition::new(Arc::clone(&topic), number));
        let each = partitions.map(|partition| {
            let position =
                world.log.committed(&names.group, std::slice::from_ref(&partition)).unwrap().remove(0);
            let metadata =
                position.map(|position| OffsetMetadata::parse(&position.metadata, &partition).unwrap());
            (partition, metadata.map_or(WATERMARK_MIN, |metadata| metadata.watermark()))
        });
        each.collect()
    };
    for (stage, spec) in plan.stages.iter().enumerate() {
        let StageInput::Exchange { upstream } = &spec.input else { continue };
        if !upstream.iter().all(|&upstream| matches!(plan.stages[upstream].input, StageInput::Source(_))) {
            continue;
        }
        let highest = upstream.iter().flat_map(|&upstream| watermarks(upstream)).map(|(_, at)| at).max();
        for (partition, watermark) in watermarks(stage) {
            if Some(watermark) < highest {
                let why = format!(
                    "{partition} stands at {watermark}, though all are idle and one has come to {highest:?}"
                );
                return Some(why);
            }
        }
    }
    None
}
