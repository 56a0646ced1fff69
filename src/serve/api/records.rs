//! The last records of a topic that the topology reads or writes, for people to look at.
//!
//! Invariant: this asks the brokers, so it runs beside the handlers: [`READERS_MAX`] at a time, for about [`PATIENCE`].
//! Invariant: only topics of the topology are read, without a group, and only what is committed.

use std::collections::{BTreeMap, VecDeque};
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use axum::extract::{Path, RawQuery, State};
use axum::http::StatusCode;
use axum::response::Response;
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use tokio::sync::Semaphore;

use super::model::{Payload, RecordHeader, RecordList, RecordShown};
use super::{failed, json, no_topology};
use crate::engine::TopicNames;
use crate::log::{Log, LogError, Span, read_spans};
use crate::plan::{Plan, StageInput};
use crate::record::{OwnedRecord, TopicPartition};
use crate::serve::metrics::unix_ms;
use crate::serve::{Metrics, text};

const LIMIT: usize = 50;
const LIMIT_MAX: usize = 200;
/// Of a key or a value; the rest is cut off.
const PAYLOAD_BYTES_MAX: usize = 8 << 10;
const HEADER_BYTES_MAX: usize = 1 << 10;
const HEADERS_MAX: usize = 50;
const READERS_MAX: usize = 2;
const PATIENCE: Duration = Duration::from_secs(4);

static READERS: Semaphore = Semaphore::const_new(READERS_MAX);

/// What is asked for: `topic=NAME&limit=N`.
#[derive(Debug, PartialEq, Eq)]
struct Wanted {
    topic: String,
    limit: usize,
}

pub async fn records(
    State(metrics): State<Arc<Metrics>>,
    Path(name): Path<String>,
    RawQuery(query): RawQuery,
) -> Response {
    if *metrics.watched.plan.name != *name {
        return no_topology();
    }
    let wanted = match Wanted::parse(query.as_deref().unwrap_or_default(), &metrics.watched.plan) {
        Ok(wanted) => wanted,
        Err((status, error, help)) => return failed(status, &error, &help),
    };
    let Ok(Ok(permit)) = tokio::time::timeout(PATIENCE, READERS.acquire()).await else {
        return failed(StatusCode::SERVICE_UNAVAILABLE, "others are reading records", "ask again");
    };
    let read = tokio::task::spawn_blocking(move || {
        let read = last(&*metrics.watched.log, &wanted);
        drop(permit);
        read
    });
    match read.await {
        Ok(Ok(list)) => json(StatusCode::OK, &list),
        Ok(Err(error)) => {
            let help = "look at the state of the topology, and ask again";
            failed(StatusCode::SERVICE_UNAVAILABLE, &error.to_string(), help)
        }
        Err(_) => failed(StatusCode::INTERNAL_SERVER_ERROR, "reading failed unexpectedly", "report it"),
    }
}

/// The topics with records for people: sources, sinks, dead and late letters.
fn topics(plan: &Plan) -> Vec<Arc<str>> {
    let names = TopicNames::of(plan);
    let sources = (0..plan.stages.len())
        .filter(|&stage| matches!(plan.stages[stage].input, StageInput::Source(_)))
        .map(|stage| names.input_topic(plan, stage));
    let sinks = plan.sinks.iter().filter_map(|sink| Some(Arc::clone(&sink.topic.as_ref()?.topic)));
    sources.chain(sinks).chain([Arc::clone(&names.dead), Arc::clone(&names.late)]).collect()
}

impl Wanted {
    /// The error says what is wrong, and what to do.
    fn parse(query: &str, plan: &Plan) -> Result<Self, (StatusCode, String, String)> {
        let wrong = |error: &str, help: String| (StatusCode::BAD_REQUEST, error.to_owned(), help);
        let (mut topic, mut limit) = (None, LIMIT);
        for part in query.split('&').filter(|part| !part.is_empty()) {
            match part.split_once('=') {
                // The names of topics have no characters that an address would encode.
                Some(("topic", name)) => topic = Some(name.to_owned()),
                Some(("limit", number)) => {
                    let number = number.parse().ok().filter(|number: &usize| *number > 0);
                    let help = || format!("leave it out for {LIMIT}; at most {LIMIT_MAX} are given");
                    let number = number.ok_or_else(|| wrong("limit is not a number from 1 on", help()));
                    limit = number?.min(LIMIT_MAX);
                }
                _ => {
                    let help = "the parameters are topic and limit".to_owned();
                    return Err(wrong("there is a parameter that is not known", help));
                }
            }
        }
        let known = topics(plan);
        let help = format!("topics to look at: {}", known.join(", "));
        match topic {
            None => Err(wrong("topic is missing", help)),
            Some(topic) if known.iter().any(|known| **known == *topic) => Ok(Self { topic, limit }),
            Some(_) => Err((StatusCode::NOT_FOUND, "topic is not one of this topology's".to_owned(), help)),
        }
    }
}

/// The last records by their log timestamps, the latest first.
///
/// Offsets are not counts (transaction markers, compaction), so the stretch that is read grows until it has enough.
fn last(log: &dyn Log, wanted: &Wanted) -> Result<RecordList, LogError> {
    let deadline = Instant::now() + PATIENCE;
    let held = Span::of_topic(log, &wanted.topic)?;
    let exists = held.is_some();
    let held = held.unwrap_or_default();
    let mut reach = wanted.limit as i64 * 2 + 16;
    loop {
        let from = |span: &Span| span.from.max(span.to.saturating_sub(reach));
        let tails: Vec<Span> = held.iter().map(|span| Span { from: from(span), ..span.clone() }).collect();
        let (found, complete) = read(log, &tails, wanted.limit, deadline)?;
        let enough = tails.iter().zip(&held).all(|(tail, span)| {
            tail.from == span.from || found.get(&span.partition).map_or(0, VecDeque::len) >= wanted.limit
        });
        if enough || !complete {
            return Ok(shown(wanted, exists, complete, found));
        }
        reach = reach.saturating_mul(8);
    }
}

/// By partition: log timestamps and records.
type Found = BTreeMap<TopicPartition, VecDeque<(i64, RecordShown)>>;

/// The last `limit` records of each span; false where the time was up before its end.
fn read(log: &dyn Log, spans: &[Span], limit: usize, deadline: Instant) -> Result<(Found, bool), LogError> {
    let mut found = Found::new();
    let late = || Instant::now() >= deadline;
    read_spans(log, spans, &late, &mut |run| {
        let kept = found.entry(run.partition.clone()).or_default();
        for index in run.records.len().saturating_sub(limit)..run.records.len() {
            if kept.len() == limit {
                kept.pop_front();
            }
            let record = run.records.to_owned(index);
            kept.push_back((record.timestamp_ms, show(run.partition.partition, &record)));
        }
        Ok::<_, LogError>(if late() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
    })?;
    Ok((found, !late()))
}

fn shown(wanted: &Wanted, exists: bool, complete: bool, found: Found) -> RecordList {
    let mut records: Vec<(i64, RecordShown)> = found.into_values().flatten().collect();
    // Stable: within a partition the offsets stay in order where timestamps tie.
    records.sort_by_key(|(timestamp_ms, _)| *timestamp_ms);
    let latest = records.into_iter().rev().take(wanted.limit);
    RecordList {
        topic: wanted.topic.clone(),
        exists,
        looked_at: text::time_ms(unix_ms(SystemTime::now())),
        complete,
        records: latest.map(|(_, record)| record).collect(),
    }
}

fn show(partition: i32, record: &OwnedRecord) -> RecordShown {
    let whole = |bytes: &Vec<u8>| payload(bytes, PAYLOAD_BYTES_MAX);
    let header = |header: &crate::record::Header| RecordHeader {
        name: header.name.clone(),
        value: header.value.as_deref().map(|bytes| payload(bytes, HEADER_BYTES_MAX)),
    };
    RecordShown {
        partition,
        offset: record.offset,
        timestamp: (record.timestamp_ms >= 0).then(|| text::time_ms(record.timestamp_ms)),
        key: record.key.as_ref().map(whole),
        value: record.value.as_ref().map(whole),
        headers: record.headers.iter().take(HEADERS_MAX).map(header).collect(),
    }
}

fn payload(bytes: &[u8], max: usize) -> Payload {
    let (all, mut end) = (bytes.len(), bytes.len().min(max));
    if let Ok(text) = std::str::from_utf8(bytes) {
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        let shown = text[..end].to_owned();
        return Payload { text: shown, encoding: "utf8", bytes: all, is_cut: end < all };
    }
    let shown = BASE64.encode(&bytes[..end]);
    Payload { text: shown, encoding: "base64", bytes: all, is_cut: end < all }
}

#[cfg(test)]
mod unit {
    use super::*;
    use crate::serve::tests::keyed_plan;

    #[test]
    fn only_the_topologys_topics_are_read_and_only_what_is_known_is_understood() {
        let plan = keyed_plan();
        let parse = |query: &str| Wanted::parse(query, &plan).map(|wanted| (wanted.topic, wanted.limit));
        assert_eq!(parse("topic=orders"), Ok(("orders".to_owned(), LIMIT)));
        assert_eq!(parse("limit=7&topic=orders.dead"), Ok(("orders.dead".to_owned(), 7)));
        assert_eq!(parse("topic=orders.hourly&limit=100000"), Ok(("orders.hourly".to_owned(), LIMIT_MAX)));
        for wrong in [
            "",
            "topic=",
            "topic=others",
            "topic=__consumer_offsets",
            "topic=orders.exchange.hourly",
            "topic=orders.meta",
            "topic=..%2forders",
            "topic=orders&limit=0",
            "topic=orders&limit=-1",
            "topic=orders&limit=x",
            "topic=orders&other=1",
            "topic",
        ] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn what_is_long_is_cut_between_characters_and_what_is_no_text_is_base64() {
        let long = "ä".repeat(PAYLOAD_BYTES_MAX);
        let shown = payload(long.as_bytes(), PAYLOAD_BYTES_MAX);
        assert_eq!((shown.text.len(), shown.bytes, shown.is_cut), (PAYLOAD_BYTES_MAX, long.len(), true));
        let odd = payload(format!("x{long}").as_bytes(), PAYLOAD_BYTES_MAX);
        assert!(odd.text.len() < PAYLOAD_BYTES_MAX && odd.is_cut);
        let binary = payload(&[0xff, 0], 100);
        assert_eq!((binary.text.as_str(), binary.encoding, binary.is_cut), ("/wA=", "base64", false));
    }
}
