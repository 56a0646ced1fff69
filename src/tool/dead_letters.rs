//! `headwater dlq`: what could not be processed, why, and where it came from; and what becomes of it.
//!
//! - `redrive`, `edits`: back to where it came from, as it was or corrected
//! - `purge`: deleted
//!
//! Invariant: reads to the last stable end as it is at the start, and never waits for more.

mod edits;
mod purge;
mod redrive;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::ops::ControlFlow;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde::Serialize;

use super::ToolError;
use crate::engine::letters::{
    ATTEMPT, DEAD_MESSAGE, DEAD_OFFSET, DEAD_PARTITION, DEAD_STAGE, DEAD_TOPIC, REASON,
};
use crate::engine::{EngineError, Redriven};
use crate::log::{Log, LogError, Span, read_spans};
use crate::record::{Header, OwnedRecord, TopicPartition};
use crate::serve::text;

pub use edits::Edits;
pub use purge::{PurgeOptions, purge};
pub use redrive::{RedriveOptions, redrive};

pub type Result<T, E = DeadLetterError> = std::result::Result<T, E>;

#[derive(Debug, thiserror::Error)]
pub enum DeadLetterError {
    #[error("topology '{topology}' has no dead letters yet (there is no topic '{topic}' at {log})")]
    NoTopic { topology: String, topic: String, log: String },
    #[error("no dead letter of topology '{0}' matches; list them with: headwater dlq list")]
    NoMatch(String),
    #[error("'{0}' is neither a duration (2h, 30m) nor a time (2026-01-31, 2026-01-31T12:00:00Z)")]
    BadSince(String),
    #[error(transparent)]
    Log(#[from] LogError),
    #[error(transparent)]
    Engine(#[from] EngineError),
    #[error("cannot write the output: {0}")]
    Output(#[from] io::Error),
}

impl From<DeadLetterError> for ToolError {
    fn from(error: DeadLetterError) -> Self {
        match error {
            DeadLetterError::Log(error) => error.into(),
            DeadLetterError::Engine(error) => error.into(),
            DeadLetterError::Output(error) => super::status::output_error(error),
            wrong => ToolError::input(wrong.to_string()),
        }
    }
}

/// Which dead letters; all that are given must hold.
#[derive(Clone, Debug, Default)]
pub struct Filters {
    /// A reason, or its part before the colon: `check` is every `check:<name>`.
    pub reason: Option<String>,
    /// Dead since: log timestamp in milliseconds since 1970.
    pub since_ms: Option<i64>,
    /// Dead before: log timestamp in milliseconds since 1970.
    pub before_ms: Option<i64>,
    /// Partition of the dead letter topic.
    pub partition: Option<i32>,
    /// Offset in the dead letter topic.
    pub offset: Option<i64>,
}

/// Where a record came from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Source {
    pub topic: String,
    pub partition: i32,
    pub offset: i64,
}

/// A record that could not be processed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeadLetter {
    /// Its own place, in `<topology>.dead`.
    pub position: TopicPartition,
    pub offset: i64,
    /// When it died, milliseconds since 1970; −1: not known.
    pub timestamp_ms: i64,
    /// `None`: written by something else, or damaged headers.
    pub source: Option<Source>,
    /// `decode`, `event_time`, `check`, or a view's name.
    pub stage: String,
    pub reason: String,
    pub message: String,
    /// 1 at first; one more for each time it was redriven and died again.
    pub attempt: u32,
    pub key: Option<Vec<u8>>,
    /// As it was read; `None` is a tombstone.
    pub value: Option<Vec<u8>>,
    /// All headers, those of the original first.
    pub headers: Vec<Header>,
}

impl DeadLetter {
    fn new(position: TopicPartition, record: OwnedRecord) -> Self {
        // The last one counts: a redriven record that dies again carries both.
        let header = |name: &str| {
            let found = record.headers.iter().rev().find(|header| header.name == name)?;
            Some(String::from_utf8_lossy(found.value.as_deref()?).into_owned())
        };
        let source = || {
            let topic = header(DEAD_TOPIC)?;
            let (partition, offset) = (header(DEAD_PARTITION)?, header(DEAD_OFFSET)?);
            Some(Source { topic, partition: partition.parse().ok()?, offset: offset.parse().ok()? })
        };
        Self {
            position,
            offset: record.offset,
            timestamp_ms: record.timestamp_ms,
            source: source(),
            stage: header(DEAD_STAGE).unwrap_or_default(),
            reason: header(REASON).unwrap_or_else(|| "unknown".to_string()),
            message: header(DEAD_MESSAGE).unwrap_or_default(),
            attempt: header(ATTEMPT).and_then(|attempt| attempt.parse().ok()).unwrap_or(1),
            key: record.key,
            value: record.value,
            headers: record.headers,
        }
    }

    fn is_in(&self, redriven: &Redriven) -> bool {
        self.source.as_ref().is_some_and(|source| {
            redriven.contains(&TopicPartition::new(source.topic.as_str(), source.partition), source.offset)
        })
    }

    fn place(&self) -> String {
        format!("{}@{}", self.position, self.offset)
    }

    fn from(&self) -> String {
        let at = |source: &Source| format!("{}/{}@{}", source.topic, source.partition, source.offset);
        text::printable(&text::or_none(self.source.as_ref(), at))
    }
}

impl Filters {
    /// `--since`, `--before`: a duration back from `now_ms`, or a time; without a zone UTC.
    pub fn since(text: &str, now_ms: i64) -> Result<i64> {
        if let Ok(duration) = humantime::parse_duration(text) {
            return Ok(now_ms.saturating_sub(duration.as_millis() as i64));
        }
        if let Ok(time) = chrono::DateTime::parse_from_rfc3339(text) {
            return Ok(time.timestamp_millis());
        }
        let date = chrono::NaiveDate::parse_from_str(text, "%Y-%m-%d").ok();
        let time = ["%Y-%m-%dT%H:%M:%S%.f", "%Y-%m-%d %H:%M:%S%.f", "%Y-%m-%dT%H:%M"]
            .iter()
            .find_map(|format| chrono::NaiveDateTime::parse_from_str(text, format).ok());
        time.or_else(|| date.and_then(|date| date.and_hms_opt(0, 0, 0)))
            .map(|time| time.and_utc().timestamp_millis())
            .ok_or_else(|| DeadLetterError::BadSince(text.to_string()))
    }

    fn keeps(&self, letter: &DeadLetter) -> bool {
        let class = |wanted: &str| {
            letter.reason.strip_prefix(wanted).is_some_and(|rest| rest.is_empty() || rest.starts_with(':'))
        };
        self.reason.as_deref().is_none_or(class)
            && self.since_ms.is_none_or(|since| letter.timestamp_ms >= since)
            && self.before_ms.is_none_or(|before| letter.timestamp_ms < before)
            && self.offset.is_none_or(|offset| letter.offset == offset)
    }
}

/// Calls `each` with the dead letters that match, by partition and offset, until it breaks.
pub fn visit<E: From<DeadLetterError> + From<LogError>>(
    log: &dyn Log,
    topology: &str,
    filters: &Filters,
    each: &mut dyn FnMut(DeadLetter) -> Result<ControlFlow<()>, E>,
) -> Result<(), E> {
    let topic = format!("{topology}.dead");
    let Some(count) = log.partitions(&topic)? else {
        let log = log.name();
        return Err(DeadLetterError::NoTopic { topology: topology.to_string(), topic, log }.into());
    };
    for partition in 0..count {
        if filters.partition.is_some_and(|wanted| wanted != partition) {
            continue;
        }
        let mut span = Span::of(log, TopicPartition::new(topic.as_str(), partition))?;
        if let Some(since) = filters.since_ms {
            span.from = log.offset_at(&span.partition, since)?.unwrap_or(span.to).max(span.from);
        }
        if let Some(offset) = filters.offset {
            (span.from, span.to) = (span.from.max(offset), span.to.min(offset.saturating_add(1)));
        }
        let mut broke = ControlFlow::Continue(());
        read_spans(log, std::slice::from_ref(&span), &|| false, &mut |run| {
            for index in 0..run.records.len() {
                let letter = DeadLetter::new(run.partition.clone(), run.records.to_owned(index));
                if filters.keeps(&letter) {
                    broke = each(letter)?;
                }
                if broke.is_break() {
                    break;
                }
            }
            Ok::<_, E>(broke)
        })?;
        if broke.is_break() {
            break;
        }
    }
    Ok(())
}

/// `3 dead letters: 2 decode, 1 check:small`
fn by_reason(reasons: &BTreeMap<String, u64>) -> String {
    let total = text::count(reasons.values().sum(), "dead letter");
    let mut by_count: Vec<_> = reasons.iter().collect();
    by_count.sort_by_key(|(_, count)| std::cmp::Reverse(**count));
    let each: Vec<_> =
        by_count.iter().map(|(reason, count)| format!("{count} {}", text::printable(reason))).collect();
    if each.is_empty() { total } else { format!("{total}: {}", each.join(", ")) }
}

/// One line each, and how many there are of each reason; or one JSON object a line.
pub fn list(log: &dyn Log, topology: &str, filters: &Filters, out: &mut dyn Write, json: bool) -> Result<()> {
    let (mut reasons, mut others) = (BTreeMap::<String, u64>::new(), BTreeMap::<String, u64>::new());
    let redriven = Redriven::read(topology, log)?;
    let of_any_reason = Filters { reason: None, ..filters.clone() };
    visit(log, topology, &of_any_reason, &mut |letter| {
        if !filters.keeps(&letter) {
            *others.entry(letter.reason).or_default() += 1;
            return Ok::<_, DeadLetterError>(ControlFlow::Continue(()));
        }
        if json {
            object(out, &Listed::new(&letter, &redriven))?;
        } else {
            let DeadLetter { stage, reason, message, attempt, .. } = &letter;
            let mut again = if *attempt > 1 { format!("  attempt {attempt}") } else { String::new() };
            if letter.is_in(&redriven) {
                again.push_str("  redriven");
            }
            let (stage, reason) = (text::printable(stage), text::printable(reason));
            let (place, from, at) = (letter.place(), letter.from(), text::time_ms(letter.timestamp_ms));
            writeln!(
                out,
                "{place}  {at}  from {from}  {stage}  {reason}{again}  {}",
                text::printable(message)
            )?;
        }
        *reasons.entry(letter.reason).or_default() += 1;
        Ok(ControlFlow::Continue(()))
    })?;
    if !json {
        write!(out, "{}", by_reason(&reasons))?;
        match (&filters.reason, reasons.is_empty() && !others.is_empty()) {
            // A reason that was misspelt has none.
            (Some(reason), true) => {
                writeln!(
                    out,
                    " of the reason {}; of others {}",
                    text::printable(reason),
                    by_reason(&others)
                )?;
            }
            _ => writeln!(out)?,
        }
    }
    Ok(())
}

/// Dead letters whole, with headers and value. None that matches is an error.
pub fn show(log: &dyn Log, topology: &str, filters: &Filters, out: &mut dyn Write, json: bool) -> Result<()> {
    let mut shown = 0;
    let redriven = Redriven::read(topology, log)?;
    visit(log, topology, filters, &mut |letter| {
        if json {
            object(out, &Listed::new(&letter, &redriven))?;
        } else {
            if shown > 0 {
                writeln!(out)?;
            }
            show_text(&letter, letter.is_in(&redriven), out)?;
        }
        shown += 1;
        Ok::<_, DeadLetterError>(ControlFlow::Continue(()))
    })?;
    match shown {
        0 => Err(DeadLetterError::NoMatch(topology.to_string())),
        _ => Ok(()),
    }
}

fn show_text(letter: &DeadLetter, redriven: bool, out: &mut dyn Write) -> Result<()> {
    let fields = [
        ("dead letter", letter.place()),
        ("died", text::time_ms(letter.timestamp_ms)),
        ("from", letter.from()),
        ("stage", text::printable(&letter.stage)),
        ("reason", text::printable(&letter.reason)),
        ("message", text::printable(&letter.message)),
        ("attempt", letter.attempt.to_string()),
        ("redriven", if redriven { "yes" } else { "no" }.to_string()),
        ("key", readable(letter.key.as_deref())),
    ];
    for (name, value) in fields {
        writeln!(out, "{name:<12} {value}")?;
    }
    for header in &letter.headers {
        let (name, value) = (text::printable(&header.name), readable(header.value.as_deref()));
        writeln!(out, "{:<12} {name}: {value}", "header")?;
    }
    // The one thing that may have lines of its own.
    let lines = |value: &str| value.split('\n').map(text::printable).collect::<Vec<_>>().join("\n");
    let value = match letter.value.as_deref().map(|value| (value, std::str::from_utf8(value))) {
        None => "none (a tombstone)".to_string(),
        Some((_, Ok(value))) => lines(value),
        Some((bytes, Err(_))) => format!("base64:{}", BASE64.encode(bytes)),
    };
    writeln!(out, "value\n{value}")?;
    Ok(())
}

fn readable(bytes: Option<&[u8]>) -> String {
    match bytes.map(|bytes| (bytes, std::str::from_utf8(bytes))) {
        None => text::NONE.to_string(),
        Some((_, Ok(value))) => text::printable(value),
        Some((bytes, Err(_))) => format!("base64:{}", BASE64.encode(bytes)),
    }
}

/// A dead letter as JSON. Bytes that are not UTF-8 are base64, and an `…_encoding` beside them says so.
#[derive(Serialize)]
struct Listed<'a> {
    topic: &'a str,
    partition: i32,
    offset: i64,
    /// Milliseconds since 1970.
    timestamp: i64,
    source: Option<&'a Source>,
    stage: &'a str,
    reason: &'a str,
    message: &'a str,
    attempt: u32,
    redriven: bool,
    key: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    key_encoding: Option<&'static str>,
    value: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    value_encoding: Option<&'static str>,
    headers: Vec<ListedHeader<'a>>,
}

#[derive(Serialize)]
struct ListedHeader<'a> {
    name: &'a str,
    value: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    encoding: Option<&'static str>,
}

impl<'a> Listed<'a> {
    fn new(letter: &'a DeadLetter, redriven: &Redriven) -> Self {
        let (key, key_encoding) = encoded(letter.key.as_deref());
        let (value, value_encoding) = encoded(letter.value.as_deref());
        let header = |header: &'a Header| {
            let (value, encoding) = encoded(header.value.as_deref());
            ListedHeader { name: &header.name, value, encoding }
        };
        Self {
            topic: &letter.position.topic,
            partition: letter.position.partition,
            offset: letter.offset,
            timestamp: letter.timestamp_ms,
            source: letter.source.as_ref(),
            stage: &letter.stage,
            reason: &letter.reason,
            message: &letter.message,
            attempt: letter.attempt,
            redriven: letter.is_in(redriven),
            key,
            key_encoding,
            value,
            value_encoding,
            headers: letter.headers.iter().map(header).collect(),
        }
    }
}

fn encoded(bytes: Option<&[u8]>) -> (Option<String>, Option<&'static str>) {
    match bytes.map(|bytes| (bytes, std::str::from_utf8(bytes))) {
        None => (None, None),
        Some((_, Ok(value))) => (Some(value.to_string()), None),
        Some((bytes, Err(_))) => (Some(BASE64.encode(bytes)), Some("base64")),
    }
}

fn object(out: &mut dyn Write, object: &impl Serialize) -> Result<()> {
    serde_json::to_writer(&mut *out, object).map_err(io::Error::from)?;
    writeln!(out)?;
    Ok(())
}
