//! `topic produce`: lines of JSON become records.
//!
//! Invariant: records are sent in the order of their lines; at a line that can't be one, nothing after it is
//! sent, and the error says how many were.

use std::collections::BTreeMap;
use std::io::BufRead;
use std::time::Duration;

use serde::Serialize;
use serde_json::Value;

use crate::codec::partition_for_key;
use crate::log::{Log, Outgoing, Producer};
use crate::record::{OwnedRecord, TopicPartition};
use crate::tool::{Printer, Result, Stop, ToolError};

use super::create::create_topic;
use super::envelope::{self, Taken};
use super::partitions_of;

const FLUSH_TIMEOUT: Duration = Duration::from_secs(60);

#[derive(Clone, Debug, Default)]
pub struct ProduceOptions {
    pub topic: String,
    /// The fields that make the record's key, a JSON object in this order; empty: no key.
    pub key: Vec<String>,
    /// Lines are envelopes, not bare values.
    pub envelope: bool,
    /// Creates the topic with so many partitions if it is not there.
    pub partitions: Option<i32>,
}

#[derive(Serialize)]
struct Sent<'a> {
    topic: &'a str,
    records: u64,
}

/// Sends a record for each line of `input` (blank lines count as lines only) and says how many were sent.
/// `input_name` is for messages.
pub fn produce(
    log: &dyn Log,
    options: &ProduceOptions,
    input: &mut dyn BufRead,
    input_name: &str,
    stop: &Stop,
    out: &mut Printer,
) -> Result<()> {
    let partitions = ensure_topic(log, options)?;
    let targets: Vec<TopicPartition> =
        (0..partitions).map(|partition| TopicPartition::new(options.topic.as_str(), partition)).collect();
    let mut producer = log.producer()?;
    let mut sent = 0;
    let outcome = send_lines(options, input, input_name, stop, &targets, &mut *producer, &mut sent);
    // What was handed over before a bad line is sent all the same: the count must be true.
    producer.flush(FLUSH_TIMEOUT)?;
    match outcome {
        Err(ToolError::Input { message, help }) => Err(ToolError::Input {
            message: format!(
                "{message}; the {sent} record{} before it {} sent, nothing after it",
                if sent == 1 { "" } else { "s" },
                if sent == 1 { "was" } else { "were" }
            ),
            help,
        }),
        Err(error) => Err(error),
        Ok(()) if out.json() => out.object(&Sent { topic: &options.topic, records: sent }),
        Ok(()) => {
            out.line(&format!("sent {sent} record{} to {}", if sent == 1 { "" } else { "s" }, options.topic))
        }
    }
}

fn ensure_topic(log: &dyn Log, options: &ProduceOptions) -> Result<i32> {
    let Some(wanted) = options.partitions else { return partitions_of(log, &options.topic) };
    match log.partitions(&options.topic)? {
        Some(partitions) if partitions == wanted => Ok(partitions),
        Some(partitions) => Err(ToolError::input_with_help(
            format!("the topic '{}' has {partitions} partitions, not {wanted}", options.topic),
            "leave --partitions out to produce to the topic as it is",
        )),
        None => Ok(create_topic(log, &options.topic, wanted, &BTreeMap::new())?.partitions),
    }
}

fn send_lines(
    options: &ProduceOptions,
    input: &mut dyn BufRead,
    input_name: &str,
    stop: &Stop,
    targets: &[TopicPartition],
    producer: &mut dyn Producer,
    sent: &mut u64,
) -> Result<()> {
    let mut line = Vec::new();
    for number in 1_u64.. {
        line.clear();
        let read = input.read_until(b'\n', &mut line);
        if read.map_err(ToolError::io(format!("cannot read {input_name}")))? == 0 || stop.is_set() {
            break;
        }
        let text = line.trim_ascii();
        if text.is_empty() {
            continue;
        }
        let wrong =
            |why: String| ToolError::input(format!("line {number} of {input_name} is not a record: {why}"));
        let taken = if options.envelope { envelope::take(text) } else { bare(text, &options.key) };
        let Taken { record, partition, timestamp_ms } = taken.map_err(wrong)?;
        let partition = match (partition, &record.key) {
            (Some(partition), _) => partition,
            (None, Some(key)) => partition_for_key(key, targets.len() as i32),
            (None, None) => (*sent % targets.len() as u64) as i32,
        };
        let Some(target) = usize::try_from(partition).ok().and_then(|index| targets.get(index)) else {
            return Err(wrong(format!("{} has no partition {partition}", options.topic)));
        };
        let outgoing = Outgoing {
            key: record.key.as_deref(),
            value: record.value.as_deref(),
            headers: &record.headers,
            timestamp_ms,
        };
        producer.produce(target, &[outgoing])?;
        *sent += 1;
    }
    Ok(())
}

/// A bare JSON value; with `key`, an object that has these fields.
fn bare(text: &[u8], key: &[String]) -> Result<Taken, String> {
    let syntax = |error: serde_json::Error| format!("it is not JSON: {error}");
    let key = if key.is_empty() {
        serde_json::from_slice::<serde::de::IgnoredAny>(text).map_err(syntax)?;
        None
    } else {
        let Value::Object(fields) = serde_json::from_slice(text).map_err(syntax)? else {
            return Err("it is not an object, so it has no key fields".to_owned());
        };
        Some(key_object(&fields, key)?)
    };
    let record = OwnedRecord { key, value: Some(text.to_vec()), ..OwnedRecord::default() };
    Ok(Taken { record, partition: None, timestamp_ms: None })
}

/// The key as refined topics have it: a compact JSON object, its fields in the order that was asked for.
fn key_object(fields: &serde_json::Map<String, Value>, names: &[String]) -> Result<Vec<u8>, String> {
    let mut object = Vec::new();
    for name in names {
        let value = fields.get(name).ok_or_else(|| format!("it has no field '{name}' for the key"))?;
        object.push(if object.is_empty() { b'{' } else { b',' });
        for part in [&Value::String(name.clone()), value] {
            serde_json::to_writer(&mut object, part).map_err(|error| error.to_string())?;
            object.push(b':');
        }
        object.pop();
    }
    object.push(b'}');
    Ok(object)
}
