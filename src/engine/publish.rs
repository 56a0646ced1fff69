//! What a task hands over, as records to produce: refined records, exchange messages, dead and late records.
//!
//! Invariant: rows leave before the watermark that they were admitted under.
//! Invariant: all that a topic is told of one row goes to one partition, in order.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::RecordBatch;

use crate::codec::json::RowEncoder;
use crate::codec::partition_for_key;
use crate::log::{Member, Outgoing};
use crate::operator::exchange_schema;
use crate::plan::{Correction, Plan, SinkPlan};
use crate::planted::{Fault, planted};
use crate::record::{Batch, Header, Origin, TopicPartition};
use crate::time::WATERMARK_MAX;

use super::exchange::{Encoder, Partitioner, split_and_encode};
use super::letters::{dead_headers, late_headers};
use super::pipeline::{ExchangePort, keyed_aggregate};
use super::retraction::RETRACTION;
use super::topics::TopicNames;
use super::{DeadRecord, EngineError, LateRecord, Outputs, Result};

/// Encodes rows of one sink as refined records.
pub struct SinkEncoder {
    topic: Arc<str>,
    partitions: i32,
    values: RowEncoder,
    /// By what a row is placed: the record's key, or, where it has none but may be taken back, what identifies the
    /// row. `None`: rows are spread over the partitions as they come.
    places: Option<RowEncoder>,
    keyed: bool,
    correction: Correction,
    next: i32,
    value_bytes: Vec<u8>,
    value_ends: Vec<usize>,
    place_bytes: Vec<u8>,
    place_ends: Vec<usize>,
}

/// A refined record: no value deletes the key.
pub struct Refined<'a> {
    pub partition: i32,
    pub key: Option<&'a [u8]>,
    pub value: Option<&'a [u8]>,
    /// The value is a row that is no longer right.
    pub is_retraction: bool,
}

impl SinkEncoder {
    /// `None` where the sink has no topic.
    pub fn new(sink: &SinkPlan, partitions: i32) -> Result<Option<Self>> {
        let Some(topic) = &sink.topic else { return Ok(None) };
        let failed = |error: crate::codec::json::EncodeError| {
            EngineError::Sink(format!("view '{}': {error}", sink.view))
        };
        let correction = sink.correction();
        let placed_by = match (topic.key.is_empty(), correction) {
            (false, _) => Some(&topic.key),
            (true, Correction::Retract) => Some(&sink.row_key),
            (true, _) => None,
        };
        let places = placed_by.map(|columns| RowEncoder::new(&sink.schema, Some(columns)).map_err(failed));
        Ok(Some(Self {
            topic: Arc::clone(&topic.topic),
            partitions,
            values: RowEncoder::new(&sink.schema, None).map_err(failed)?,
            places: places.transpose()?,
            keyed: !topic.key.is_empty(),
            correction,
            next: 0,
            value_bytes: Vec::new(),
            value_ends: Vec::new(),
            place_bytes: Vec::new(),
            place_ends: Vec::new(),
        }))
    }

    /// Calls `each` with the batch's refined records, in order.
    pub fn encode(&mut self, batch: &Batch, mut each: impl FnMut(Refined<'_>)) -> Result<()> {
        let rows = 0..batch.num_rows();
        self.value_bytes.clear();
        self.value_ends.clear();
        self.values.encode(&batch.rows, rows.clone(), &mut self.value_bytes, &mut self.value_ends);
        if let Some(places) = &self.places {
            self.place_bytes.clear();
            self.place_ends.clear();
            places.encode(&batch.rows, rows.clone(), &mut self.place_bytes, &mut self.place_ends);
        }
        for row in rows {
            let value = slice(&self.value_bytes, &self.value_ends, row);
            let place = self.places.as_ref().map(|_| slice(&self.place_bytes, &self.place_ends, row));
            let key = place.filter(|_| self.keyed);
            let partition = match place {
                Some(place) => partition_for_key(place, self.partitions),
                None => {
                    self.next = (self.next + 1) % self.partitions;
                    self.next
                }
            };
            if batch.weight(row) > 0 {
                if batch.weight.is_some() && planted(Fault::LostCorrection) {
                    continue;
                }
                each(Refined { partition, key, value: Some(value), is_retraction: false });
                continue;
            }
            match self.correction {
                Correction::Upsert if self.replaced(batch, row) => {}
                Correction::Upsert => each(Refined { partition, key, value: None, is_retraction: false }),
                Correction::Retract if planted(Fault::RetractionUnwritten) => {}
                Correction::Retract => {
                    each(Refined { partition, key, value: Some(value), is_retraction: true });
                }
                Correction::Never => {
                    let what =
                        format!("a row of topic {} was taken back, but its view has no windows", self.topic);
                    return Err(EngineError::internal(what));
                }
            }
        }
        Ok(())
    }

    /// Whether the row that takes this one's place follows it: an upsert, not a delete.
    fn replaced(&self, batch: &Batch, row: usize) -> bool {
        let next = row + 1;
        next < batch.num_rows()
            && batch.weight(next) > 0
            && slice(&self.place_bytes, &self.place_ends, row)
                == slice(&self.place_bytes, &self.place_ends, next)
    }
}

fn slice<'a>(bytes: &'a [u8], ends: &[usize], row: usize) -> &'a [u8] {
    let start = if row == 0 { 0 } else { ends[row - 1] };
    &bytes[start..ends[row]]
}

/// Records on their way to a producer, by topic and partition, in one buffer.
#[derive(Default)]
struct Staged {
    bytes: Vec<u8>,
    topics: Vec<StagedTopic>,
}

struct StagedTopic {
    name: Arc<str>,
    /// By partition.
    records: Vec<Vec<StagedRecord>>,
}

type Span = Option<(usize, usize)>;

/// Key and value as ranges of the buffer.
struct StagedRecord {
    key: Span,
    value: Span,
    is_retraction: bool,
}

impl Staged {
    /// The number of a topic for [`Staged::add`]: looked up once a batch, not once a record.
    fn topic(&mut self, name: &Arc<str>) -> usize {
        self.topics.iter().position(|topic| topic.name == *name).unwrap_or_else(|| {
            self.topics.push(StagedTopic { name: Arc::clone(name), records: Vec::new() });
            self.topics.len() - 1
        })
    }

    fn message(&mut self, topic: usize, partition: i32, value: &[u8]) {
        self.add(topic, Refined { partition, key: None, value: Some(value), is_retraction: false });
    }

    fn add(&mut self, topic: usize, Refined { partition, key, value, is_retraction }: Refined<'_>) {
        let bytes = &mut self.bytes;
        let mut put = |part: &[u8]| {
            let start = bytes.len();
            bytes.extend_from_slice(part);
            (start, bytes.len())
        };
        let record = StagedRecord { key: key.map(&mut put), value: value.map(&mut put), is_retraction };
        let (partitions, partition) = (&mut self.topics[topic].records, partition as usize);
        if partitions.len() <= partition {
            partitions.resize_with(partition + 1, Vec::new);
        }
        partitions[partition].push(record);
    }

    fn produce(&mut self, member: &mut dyn Member) -> Result<()> {
        let bytes = &self.bytes;
        let part = |span: Span| span.map(|(start, end)| &bytes[start..end]);
        for topic in &mut self.topics {
            for (partition, records) in topic.records.iter_mut().enumerate() {
                if records.is_empty() {
                    continue;
                }
                let outgoing: Vec<Outgoing<'_>> = records
                    .iter()
                    .map(|record| Outgoing {
                        key: part(record.key),
                        value: part(record.value),
                        headers: if record.is_retraction { &*RETRACTION } else { &[] },
                        ..Outgoing::default()
                    })
                    .collect();
                let to = TopicPartition::new(Arc::clone(&topic.name), partition as i32);
                member.produce(&to, &outgoing)?;
                records.clear();
            }
        }
        self.bytes.clear();
        Ok(())
    }
}

/// One way into an exchange.
struct Port {
    exchange: ExchangePort,
    topic: Arc<str>,
    partitions: i32,
    partitioner: Partitioner,
    encoder: Encoder,
}

/// Publishes what one task hands over.
pub struct Publisher {
    names: Arc<TopicNames>,
    ports: Vec<Port>,
    sinks: BTreeMap<usize, SinkEncoder>,
    staged: Staged,
    /// The largest dead or late record since the last commit: where it came from, and the bytes of its value.
    largest_letter: Option<(Origin, i64, usize)>,
}

impl Publisher {
    /// `origin`: the partition that the task reads, under which its exchange messages go.
    pub fn new(
        plan: &Plan,
        names: &Arc<TopicNames>,
        origin: &Origin,
        exchanges: &[ExchangePort],
    ) -> Result<Self> {
        let mut ports = Vec::new();
        for exchange in exchanges {
            let spec = keyed_aggregate(&plan.stages[exchange.stage])
                .ok_or_else(|| EngineError::internal("an exchange leads to a keyed stage".into()))?;
            let schema = exchange_schema(spec);
            let topic = names.input_topic(plan, exchange.stage);
            let partitions = names.count(&topic);
            let origin_set = names.origin_set(plan, exchange.stage);
            ports.push(Port {
                partitioner: Partitioner::new(
                    &schema,
                    Arc::clone(&exchange.key_columns),
                    partitions as usize,
                )?,
                encoder: Encoder::new(&schema, origin, &origin_set)?,
                exchange: exchange.clone(),
                topic,
                partitions,
            });
        }
        let mut sinks = BTreeMap::new();
        for (index, sink) in plan.sinks.iter().enumerate() {
            let partitions = sink.topic.as_ref().map_or(0, |topic| names.count(&topic.topic));
            if let Some(encoder) = SinkEncoder::new(sink, partitions)? {
                sinks.insert(index, encoder);
            }
        }
        Ok(Self { names: Arc::clone(names), ports, sinks, staged: Staged::default(), largest_letter: None })
    }

    /// Produces everything in `outputs` and empties it.
    pub fn publish(&mut self, outputs: &mut Outputs, member: &mut dyn Member) -> Result<()> {
        for (sink, batch) in outputs.sinks.drain(..) {
            if let Some(encoder) = self.sinks.get_mut(&sink) {
                let (topic, staged) = (self.staged.topic(&encoder.topic), &mut self.staged);
                encoder.encode(&batch, |refined| staged.add(topic, refined))?;
            }
        }
        if planted(Fault::WatermarkAheadOfRows) {
            self.tell_watermark(outputs);
        }
        for (port, batch) in outputs.exchanges.drain(..) {
            self.ports[port].rows(&batch.rows, &mut self.staged)?;
        }
        self.tell_watermark(outputs);
        if std::mem::take(&mut outputs.idle) && !planted(Fault::IdleUnrecorded) {
            for port in &self.ports {
                port.mark(&port.encoder.idle(), &mut self.staged);
            }
        }
        self.staged.produce(member)?;
        self.publish_dead(&outputs.dead, member)?;
        self.publish_late(&outputs.late, member)?;
        outputs.clear();
        Ok(())
    }

    fn tell_watermark(&mut self, outputs: &mut Outputs) {
        let Some(watermark) = outputs.watermark.take() else { return };
        for port in &self.ports {
            port.mark(&port.encoder.watermark(port.exchange.forwarded(watermark)), &mut self.staged);
        }
    }

    /// Drops what was staged for an epoch that is aborted.
    pub fn forget(&mut self) {
        self.staged = Staged::default();
        self.largest_letter = None;
    }

    /// What was published is committed.
    pub fn committed(&mut self) {
        self.largest_letter = None;
    }

    /// Tells every exchange that this origin has come to its end for good (rule R10).
    pub fn publish_end(&mut self, member: &mut dyn Member) -> Result<()> {
        for port in &self.ports {
            port.mark(&port.encoder.watermark(WATERMARK_MAX), &mut self.staged);
        }
        self.staged.produce(member)
    }

    /// The record whose dead or late letter has a value of `bytes`: what to name when a topic refuses it.
    pub fn letter_of(&self, bytes: usize) -> Option<(&Origin, i64)> {
        let (source, offset, _) = self.largest_letter.as_ref().filter(|(_, _, size)| *size == bytes)?;
        Some((source, *offset))
    }

    fn note_letter(&mut self, source: &Origin, offset: i64, value: &Option<Vec<u8>>) {
        let bytes = value.as_ref().map_or(0, Vec::len);
        if self.largest_letter.as_ref().is_none_or(|(_, _, largest)| bytes > *largest) {
            self.largest_letter = Some((source.clone(), offset, bytes));
        }
    }

    fn publish_dead(&mut self, dead: &[DeadRecord], member: &mut dyn Member) -> Result<()> {
        for letter in dead {
            let to = self.beside(&self.names.dead, letter.source.partition);
            let mut headers = letter.record.headers.clone();
            headers.extend(dead_headers(letter));
            self.note_letter(&letter.source, letter.record.offset, &letter.record.value);
            member.produce(&to, &[outgoing(letter.record.key.as_deref(), &letter.record.value, &headers)])?;
        }
        Ok(())
    }

    fn publish_late(&mut self, late: &[LateRecord], member: &mut dyn Member) -> Result<()> {
        for record in late {
            let to = self.beside(&self.names.late, record.source.partition);
            let mut headers = record.record.headers.clone();
            headers.extend(late_headers(record));
            self.note_letter(&record.source, record.record.offset, &record.record.value);
            member.produce(&to, &[outgoing(record.record.key.as_deref(), &record.record.value, &headers)])?;
        }
        Ok(())
    }

    /// Dead and late records keep their source's partition, so that those of one partition stay in order.
    fn beside(&self, topic: &Arc<str>, partition: i32) -> TopicPartition {
        TopicPartition::new(Arc::clone(topic), partition % self.names.count(topic).max(1))
    }
}

impl Port {
    fn rows(&mut self, rows: &RecordBatch, staged: &mut Staged) -> Result<()> {
        let topic = staged.topic(&self.topic);
        split_and_encode(rows, &mut self.partitioner, &mut self.encoder, |partition, message| {
            staged.message(topic, partition, message);
        })
    }

    fn mark(&self, message: &[u8], staged: &mut Staged) {
        let topic = staged.topic(&self.topic);
        for partition in 0..self.partitions {
            staged.message(topic, partition, message);
        }
    }
}

fn outgoing<'a>(key: Option<&'a [u8]>, value: &'a Option<Vec<u8>>, headers: &'a [Header]) -> Outgoing<'a> {
    Outgoing { key, value: value.as_deref(), headers, timestamp_ms: None }
}
