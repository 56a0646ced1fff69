//! `headwater dlq redrive`: dead letters go back to the partitions that their records came from, each once.
//!
//! Invariant: a record and the entry that says that it was redriven are in one transaction, and entries are read
//! once the predecessor's transaction is decided. So a redrive that was killed goes on where it was.
//! Invariant: what the topology would count twice is refused by name, never redriven.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::Serialize;

use super::edits::Edits;
use super::{DeadLetter, Filters, Source, visit};
use crate::engine::letters::{ATTEMPT, OF_DEATH};
use crate::engine::{RedriveEntry, Redriven, TopicNames, redriven_topic};
use crate::log::{CommitError, Log, LogError, Outgoing, Transactor};
use crate::plan::{Plan, StageInput, Work};
use crate::record::{Header, TopicPartition};
use crate::serve::text;
use crate::tool::{Printer, Result, Stop, ToolError};

/// One transaction holds at most so many records, and about so many bytes.
const BATCH_RECORDS: usize = 500;
const BATCH_BYTES: usize = 4 << 20;
const TRANSACTION_TIMEOUT: Duration = Duration::from_secs(60);
const ATTEMPTS_MAX: u32 = 4;
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// Which record a redriven one stands for: its topology, and its original's partition and offset.
const FOR_TOPOLOGY: &str = "headwater.redriven.topology";
const FOR_PARTITION: &str = "headwater.redriven.partition";
const FOR_OFFSET: &str = "headwater.redriven.offset";

#[derive(Clone, Debug, Default)]
pub struct RedriveOptions {
    pub filters: Filters,
    /// Records a second at most.
    pub rate: Option<f64>,
    /// Only says what would be done.
    pub dry_run: bool,
    /// Other keys and values for some letters; only those are redriven.
    pub edits: Option<Edits>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Outcome {
    Redriven,
    WouldBeRedriven,
    RedrivenBefore,
    Refused,
}

/// A line of the output.
#[derive(Serialize)]
struct Line<'a> {
    outcome: Outcome,
    #[serde(skip_serializing_if = "Option::is_none")]
    why: Option<&'a str>,
    topic: &'a str,
    partition: i32,
    offset: i64,
    source: Option<&'a Source>,
    reason: &'a str,
    attempt: u32,
    edited: bool,
}

/// What the letters of a topology are held against.
struct Rules<'a> {
    plan: &'a Plan,
    /// Partition counts of the sources.
    sources: BTreeMap<Arc<str>, i32>,
    /// Sources whose rows go more than one way: one may have taken a record that failed on another.
    branching: BTreeSet<Arc<str>>,
    /// What the group has read of each partition.
    read: BTreeMap<TopicPartition, i64>,
    redriven: Redriven,
}

impl<'a> Rules<'a> {
    fn new(plan: &'a Plan, log: &dyn Log, redriven: Redriven) -> Result<Self> {
        let group = TopicNames::of(plan).group;
        let sources = TopicNames::sources(plan, log)?;
        let mut read = BTreeMap::new();
        for (topic, &count) in &sources {
            let all: Vec<_> =
                (0..count).map(|partition| TopicPartition::new(Arc::clone(topic), partition)).collect();
            let committed = log.committed(&group, &all)?;
            let known = all.into_iter().zip(committed);
            read.extend(known.filter_map(|(partition, position)| Some((partition, position?.offset))));
        }
        let mut branching = BTreeSet::new();
        for stage in &plan.stages {
            let StageInput::Source(source) = stage.input else { continue };
            let ways = |work: &Work| matches!(work, Work::Exchange { .. } | Work::Sink { .. });
            if stage.nodes.iter().filter(|node| ways(&node.work)).count() > 1 {
                branching.insert(Arc::clone(&plan.sources[source].topic));
            }
        }
        Ok(Self { plan, sources, branching, read, redriven })
    }

    /// Where the letter's record goes back to; or why it does not.
    fn judge(&self, letter: &DeadLetter) -> Result<TopicPartition, (Outcome, String)> {
        let refused = |why: String| Err((Outcome::Refused, why));
        let Some(source) = &letter.source else {
            return refused("its headers do not say where it came from".to_owned());
        };
        let origin = TopicPartition::new(source.topic.as_str(), source.partition);
        if self.redriven.contains(&origin, source.offset) {
            return Err((Outcome::RedrivenBefore, "redriven before".to_owned()));
        }
        match self.sources.get(source.topic.as_str()) {
            None if source.topic.starts_with(&format!("{}.exchange.", self.plan.name)) => {
                return refused(format!(
                    "view '{}' failed on a row that was made of several records; correct the view and replay",
                    letter.stage
                ));
            }
            None => return refused(format!("no source of the topology reads {}", source.topic)),
            Some(&count) if source.partition >= count => {
                return refused(format!("{} has only {count} partitions", source.topic));
            }
            Some(_) => {}
        }
        let before_views = ["decode", "event_time", "check"].contains(&letter.stage.as_str())
            && !self.plan.has_view(&letter.stage);
        if !before_views && self.branching.contains(source.topic.as_str()) {
            return refused(format!(
                "it failed in view '{}', and other views may have taken it: they would count it twice; correct the view \
                 and replay",
                letter.stage
            ));
        }
        if self.read.get(&origin).is_none_or(|&read| read <= source.offset) {
            return refused(
                "the topology begins anew and has not read the original again yet: let it run first"
                    .to_owned(),
            );
        }
        Ok(origin)
    }
}

/// A record on its way back.
struct Sending {
    letter: DeadLetter,
    to: TopicPartition,
    source_offset: i64,
    edited: bool,
    headers: Vec<Header>,
}

#[derive(Default)]
struct Counts {
    redriven: u64,
    before: u64,
    refused: u64,
}

/// Redrives the dead letters that match; prints a line for each, once it is committed.
pub fn redrive(
    plan: &Plan,
    log: &dyn Log,
    options: &RedriveOptions,
    stop: &Stop,
    out: &mut Printer,
) -> Result<()> {
    let mut sender = None;
    if !options.dry_run && log.partitions(&TopicNames::of(plan).dead)?.is_some() {
        log.create_topics(&[Redriven::topic(&plan.name)])?;
        let id = format!("headwater.{}.redrive", plan.name);
        sender = Some(log.transactor(&id, TRANSACTION_TIMEOUT)?);
    }
    // Only now: what a predecessor has begun is decided.
    let rules = Rules::new(plan, log, Redriven::read(&plan.name, log)?)?;
    let mut redrive =
        Redrive { plan, options, sender, out, counts: Counts::default(), began: Instant::now() };
    let batch_records = options.rate.map_or(BATCH_RECORDS, |rate| (rate as usize).clamp(1, BATCH_RECORDS));
    let (mut batch, mut bytes) = (Vec::new(), 0);
    let mut unused = options.edits.clone();
    visit(log, &plan.name, &options.filters, &mut |mut letter| {
        if stop.is_set() {
            return Ok(ControlFlow::Break(()));
        }
        let mut edited = false;
        if let Some(edits) = &mut unused {
            let Some(edit) = edits.take(letter.position.partition, letter.offset) else {
                return Ok(ControlFlow::Continue(()));
            };
            edited = edit.apply(&mut letter);
        }
        match rules.judge(&letter) {
            Err((outcome, why)) => redrive.refuse(&letter, outcome, &why)?,
            Ok(to) => {
                bytes += letter.value.as_ref().map_or(0, Vec::len);
                batch.push(Sending::new(plan, letter, to, edited));
                if batch.len() >= batch_records || bytes >= BATCH_BYTES {
                    redrive.send(&mut batch, stop)?;
                    bytes = 0;
                }
            }
        }
        Ok::<_, ToolError>(ControlFlow::Continue(()))
    })?;
    redrive.send(&mut batch, stop)?;
    redrive.summary()?;
    match unused.and_then(|mut edits| edits.first()) {
        Some((partition, offset)) if !stop.is_set() => Err(ToolError::input(format!(
            "no dead letter of topology '{}' that matches stands at partition {partition}, offset {offset}",
            plan.name
        ))),
        _ => Ok(()),
    }
}

impl Sending {
    fn new(plan: &Plan, letter: DeadLetter, to: TopicPartition, edited: bool) -> Self {
        let source_offset = letter.source.as_ref().map_or(-1, |source| source.offset);
        let mut headers = original_headers(&letter.headers);
        headers.push(Header::text(ATTEMPT, letter.attempt.to_string()));
        headers.push(Header::text(FOR_TOPOLOGY, &*plan.name));
        headers.push(Header::text(FOR_PARTITION, to.partition.to_string()));
        headers.push(Header::text(FOR_OFFSET, source_offset.to_string()));
        Self { letter, to, source_offset, edited, headers }
    }
}

/// A letter's headers without those that its death, or an earlier redrive, has put behind the record's own.
fn original_headers(headers: &[Header]) -> Vec<Header> {
    let of_redrive = [ATTEMPT, FOR_TOPOLOGY, FOR_PARTITION, FOR_OFFSET];
    let strip = |headers: &mut Vec<Header>, names: &[&str]| {
        let kept = headers.len().saturating_sub(names.len());
        if headers[kept..].iter().map(|header| header.name.as_str()).eq(names.iter().copied()) {
            headers.truncate(kept);
        }
    };
    let mut headers = headers.to_vec();
    strip(&mut headers, &OF_DEATH);
    strip(&mut headers, &of_redrive);
    headers
}

struct Redrive<'a> {
    plan: &'a Plan,
    options: &'a RedriveOptions,
    /// `None` in a dry run.
    sender: Option<Box<dyn Transactor>>,
    out: &'a mut Printer,
    counts: Counts,
    began: Instant,
}

impl Redrive<'_> {
    /// Sends the batch as one transaction and waits as long as the rate says.
    fn send(&mut self, batch: &mut Vec<Sending>, stop: &Stop) -> Result<()> {
        if batch.is_empty() {
            return Ok(());
        }
        let mut attempt = 1;
        while let Some(sender) = &mut self.sender {
            match transaction(self.plan, &mut **sender, batch) {
                Ok(()) => break,
                Err(CommitError::Aborted(why)) if attempt < ATTEMPTS_MAX => {
                    tracing::info!("a transaction was aborted and is done again: {why}");
                    if sender.abort().is_err() {
                        return Err(self.failed(CommitError::Aborted(why), batch.len()));
                    }
                    attempt += 1;
                }
                Err(error) => {
                    // The next redrive aborts it otherwise.
                    let _ = sender.abort();
                    return Err(self.failed(error, batch.len()));
                }
            }
        }
        self.counts.redriven += batch.len() as u64;
        let outcome = if self.sender.is_some() { Outcome::Redriven } else { Outcome::WouldBeRedriven };
        for sending in batch.drain(..) {
            self.say(&sending.letter, outcome, None, sending.edited)?;
        }
        self.out.flush()?;
        if let (Some(rate), Some(_)) = (self.options.rate, &self.sender) {
            let due =
                Duration::try_from_secs_f64(self.counts.redriven as f64 / rate).unwrap_or(Duration::MAX);
            while self.began.elapsed() < due && !stop.is_set() {
                std::thread::sleep(LOOK_EVERY.min(due.saturating_sub(self.began.elapsed())));
            }
        }
        Ok(())
    }

    fn failed(&self, error: CommitError, records: usize) -> ToolError {
        let again =
            "start the same command again: what was redriven is not redriven a second time".to_owned();
        let message = match error {
            CommitError::Refused(error) => return error.into(),
            CommitError::Fenced(_) => {
                format!("another redrive of topology '{}' has begun and goes on instead", self.plan.name)
            }
            CommitError::Aborted(why) => format!("nothing of the last {records} letters was redriven: {why}"),
            CommitError::Unknown(why) => {
                format!("whether the last {records} letters were redriven is not known: {why}")
            }
        };
        ToolError::Failed { message, help: Some(again) }
    }

    fn refuse(&mut self, letter: &DeadLetter, outcome: Outcome, why: &str) -> Result<()> {
        match outcome {
            Outcome::RedrivenBefore => self.counts.before += 1,
            _ => self.counts.refused += 1,
        }
        self.say(letter, outcome, Some(why), false)
    }

    fn say(&mut self, letter: &DeadLetter, outcome: Outcome, why: Option<&str>, edited: bool) -> Result<()> {
        if self.out.json() {
            return self.out.object(&Line {
                outcome,
                why: why.filter(|_| outcome == Outcome::Refused),
                topic: &letter.position.topic,
                partition: letter.position.partition,
                offset: letter.offset,
                source: letter.source.as_ref(),
                reason: &letter.reason,
                attempt: letter.attempt,
                edited,
            });
        }
        let (place, source, reason) = (letter.place(), letter.from(), text::printable(&letter.reason));
        let edited = if edited { "  edited" } else { "" };
        self.out.line(&match outcome {
            Outcome::Redriven => format!("{place}  back to {source}  {reason}{edited}"),
            Outcome::WouldBeRedriven => format!("{place}  would go back to {source}  {reason}{edited}"),
            Outcome::RedrivenBefore => format!("{place}  from {source}  redriven before"),
            Outcome::Refused => {
                format!("{place}  from {source}  not redriven: {}", text::printable(why.unwrap_or_default()))
            }
        })
    }

    fn summary(&mut self) -> Result<()> {
        if self.out.json() {
            return self.out.flush();
        }
        let Counts { redriven, before, refused } = self.counts;
        let done = if self.options.dry_run { "would be redriven" } else { "redriven" };
        let mut line = format!("{} {done}", text::count(redriven, "dead letter"));
        if before > 0 {
            line.push_str(&format!(", {} redriven before", text::number(before)));
        }
        if refused > 0 {
            line.push_str(&format!(", {} can't be", text::number(refused)));
        }
        self.out.line(&line)?;
        self.out.flush()
    }
}

fn transaction(
    plan: &Plan,
    sender: &mut dyn Transactor,
    batch: &[Sending],
) -> std::result::Result<(), CommitError> {
    let refused = |error: LogError| match error {
        LogError::Abort(why) => CommitError::Aborted(why),
        LogError::Fenced(why) => CommitError::Fenced(why),
        other => CommitError::Refused(other),
    };
    sender.begin().map_err(refused)?;
    let entries = TopicPartition::new(redriven_topic(&plan.name), 0);
    for sending in batch {
        let letter = &sending.letter;
        let record = Outgoing {
            key: letter.key.as_deref(),
            value: letter.value.as_deref(),
            headers: &sending.headers,
            timestamp_ms: None,
        };
        sender.produce(&sending.to, &[record]).map_err(refused)?;
        let entry =
            RedriveEntry::new(letter.position.partition, letter.offset, letter.attempt, sending.edited);
        let (key, value) = entry
            .to_record(&sending.to, sending.source_offset)
            .map_err(|error| CommitError::Aborted(error.to_string()))?;
        let record = Outgoing { key: Some(&key), value: Some(&value), ..Outgoing::default() };
        sender.produce(&entries, &[record]).map_err(refused)?;
    }
    sender.commit()
}

#[cfg(test)]
mod unit {
    use super::*;

    #[test]
    fn a_record_goes_back_with_its_own_headers_only() {
        let header = |name: &str| Header::text(name, "x");
        let own = vec![header("trace"), header(ATTEMPT), header("__connect.errors.topic")];
        let mut dead = own.clone();
        let names = [
            "__connect.errors.topic",
            "__connect.errors.partition",
            "__connect.errors.offset",
            "__connect.errors.stage",
            "__connect.errors.exception.message",
            "headwater.reason",
            "headwater.attempt",
        ];
        dead.extend(names.map(header));
        assert_eq!(original_headers(&dead), own, "what another system has put there stays");
        let mut again = own.clone();
        again.extend([ATTEMPT, FOR_TOPOLOGY, FOR_PARTITION, FOR_OFFSET].map(header));
        again.extend(names.map(header));
        assert_eq!(original_headers(&again), own, "redriven once and dead again");
        assert_eq!(original_headers(&own[..1]), own[..1]);
    }
}
