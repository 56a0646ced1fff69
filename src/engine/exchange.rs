//! What lies in an exchange topic: rows and marks of one origin, for one target partition.
//!
//! ```text
//! version u8 │ kind u8 │ schema fingerprint u64 │ origin │ origin set │ body
//! origin      length u16, topic, partition i32
//! origin set  count u16, then as an origin: topic, partition count
//! body        rows: each column's form (`narrow.rs`), metadata length u32, Arrow IPC record batch │ watermark: i64
//! ```
//! All integers are little-endian. A batch carries no schema: both sides have it from the plan, and the
//! fingerprint says that they mean the same one. Numbers are narrowed; compressing is left to the producer, which
//! does it whole batches at a time. Format 1, which is read as well, has no forms, and at first had columns that were
//! compressed each by itself (lz4).
//!
//! What a message says of itself is not believed (`layout.rs`): a topic can be written by anybody.
//!
//! Invariant: an encoded message is at most [`MESSAGE_BYTES_MAX`] unless a single row is larger.
//! Invariant: which partition a row goes to depends on its key columns only (xxh3 with a fixed seed over
//! arrow-row bytes); neither may change within an exchange's life.

mod layout;
mod narrow;

use std::collections::HashMap;
use std::sync::Arc;

use arrow::array::{RecordBatch, UInt32Array};
use arrow::buffer::Buffer;
use arrow::datatypes::SchemaRef;
use arrow::row::{RowConverter, SortField};
use arrow_ipc::writer::{DictionaryTracker, IpcDataGenerator, IpcWriteContext, IpcWriteOptions};
use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

use crate::planted::{note, sized};
use crate::record::{Micros, Origin};

use super::{EngineError, Result};
use narrow::Narrowed;

const VERSION: u8 = 2;
/// Columns are as they are.
const VERSION_PLAIN: u8 = 1;
const HASH_SEED: u64 = 0x4865_6164_7761_7465;
/// Encoded rows are split at this size (rule R12).
pub const MESSAGE_BYTES_MAX: usize = 512 * 1024;

/// More origins than this feed no stage: Kafka's own limit for all topics of a cluster is of that order.
const ORIGINS_MAX: i64 = 200_000;

/// A message of an exchange, decoded.
#[derive(Debug)]
pub struct Message {
    pub origin: Origin,
    /// Every origin of the stage: topic, partition count (rule R3).
    pub origin_set: Vec<(Arc<str>, i32)>,
    pub body: Body,
}

#[derive(Debug)]
pub enum Body {
    Rows(RecordBatch),
    Watermark(Micros),
    Idle,
}

/// Writes the messages of one origin to one exchange.
pub struct Encoder {
    schema_fingerprint: u64,
    header: Vec<u8>,
    generator: IpcDataGenerator,
    options: IpcWriteOptions,
    compression: IpcWriteContext,
}

impl Encoder {
    pub fn new(schema: &SchemaRef, origin: &Origin, origin_set: &[(Arc<str>, i32)]) -> Result<Self> {
        let mut header = Vec::new();
        put_partition(&mut header, &origin.topic, origin.partition);
        header.extend((origin_set.len() as u16).to_le_bytes());
        for (topic, partitions) in origin_set {
            put_partition(&mut header, topic, *partitions);
        }
        Ok(Self {
            schema_fingerprint: schema_fingerprint(schema),
            header,
            generator: IpcDataGenerator::default(),
            options: IpcWriteOptions::default(),
            compression: IpcWriteContext::default(),
        })
    }

    /// The rows as one message, or as several where one would be too large.
    pub fn rows(&mut self, rows: &RecordBatch, out: &mut Vec<Vec<u8>>) -> Result<()> {
        let Narrowed { forms, rows } = Narrowed::of(rows)?;
        self.narrowed(&forms, &rows, out)
    }

    fn narrowed(&mut self, forms: &[u8], rows: &RecordBatch, out: &mut Vec<Vec<u8>>) -> Result<()> {
        let mut dictionaries = DictionaryTracker::new(false);
        let (_, encoded) =
            self.generator.encode(rows, &mut dictionaries, &self.options, &mut self.compression)?;
        let size =
            self.header.len() + 14 + forms.len() + encoded.ipc_message.len() + encoded.arrow_data.len();
        if size > sized(MESSAGE_BYTES_MAX, 700) && rows.num_rows() > 1 {
            note("rows take several messages");
            let half = rows.num_rows() / 2;
            self.narrowed(forms, &rows.slice(0, half), out)?;
            return self.narrowed(forms, &rows.slice(half, rows.num_rows() - half), out);
        }
        let mut message = self.begin(0, size);
        message.extend(forms);
        message.extend((encoded.ipc_message.len() as u32).to_le_bytes());
        message.extend(&encoded.ipc_message);
        message.extend(&encoded.arrow_data);
        out.push(message);
        Ok(())
    }

    pub fn watermark(&self, watermark: Micros) -> Vec<u8> {
        let mut message = self.begin(1, self.header.len() + 18);
        message.extend(watermark.to_le_bytes());
        message
    }

    pub fn idle(&self) -> Vec<u8> {
        self.begin(2, self.header.len() + 10)
    }

    fn begin(&self, kind: u8, capacity: usize) -> Vec<u8> {
        let mut message = Vec::with_capacity(capacity);
        message.push(VERSION);
        message.push(kind);
        message.extend(self.schema_fingerprint.to_le_bytes());
        message.extend(&self.header);
        message
    }
}

/// The messages of rows, by the partitions that they belong to, in partition order.
pub fn split_and_encode(
    rows: &RecordBatch,
    partitioner: &mut Partitioner,
    encoder: &mut Encoder,
    mut each: impl FnMut(i32, &[u8]),
) -> Result<()> {
    // Narrow columns are less to gather.
    let narrowed = Narrowed::of(rows)?;
    let mut messages = Vec::new();
    for (partition, part) in partitioner.split_as(rows, &narrowed.rows)? {
        encoder.narrowed(&narrowed.forms, &part, &mut messages)?;
        messages.drain(..).for_each(|message| each(partition, &message));
    }
    Ok(())
}

/// Reads the messages of one exchange.
pub struct Decoder {
    schema: SchemaRef,
    schema_fingerprint: u64,
}

impl Decoder {
    pub fn new(schema: SchemaRef) -> Self {
        let schema_fingerprint = schema_fingerprint(&schema);
        Self { schema, schema_fingerprint }
    }

    pub fn decode(&self, message: &[u8]) -> Result<Message> {
        let mut reader = Reader(message);
        let version = reader.array::<1>()?[0];
        if ![VERSION_PLAIN, VERSION].contains(&version) {
            let what =
                format!("it has format version {version}, this program reads {VERSION_PLAIN} and {VERSION}");
            return Err(damaged(what));
        }
        let kind = reader.array::<1>()?[0];
        let fingerprint = u64::from_le_bytes(reader.array()?);
        if fingerprint != self.schema_fingerprint {
            return Err(damaged("its columns are another version's".into()));
        }
        let origin = reader.partition()?;
        if origin.partition < 0 {
            return Err(damaged(format!("its origin is partition {}", origin.partition)));
        }
        let count = u16::from_le_bytes(reader.array()?);
        let mut origin_set = Vec::with_capacity(usize::from(count).min(reader.0.len() / 6));
        let mut origins = 0;
        for _ in 0..count {
            let Origin { topic, partition } = reader.partition()?;
            origins += i64::from(partition);
            if partition < 0 || origins > ORIGINS_MAX {
                return Err(damaged(format!("it names {origins} origins or more")));
            }
            origin_set.push((topic, partition));
        }
        let body = match kind {
            0 => Body::Rows(self.rows(version, &mut reader)?),
            1 => Body::Watermark(i64::from_le_bytes(reader.array()?)),
            2 => Body::Idle,
            other => return Err(damaged(format!("it is of kind {other}"))),
        };
        if !reader.0.is_empty() {
            return Err(damaged("it goes on behind its end".into()));
        }
        Ok(Message { origin, origin_set, body })
    }

    fn rows(&self, version: u8, reader: &mut Reader<'_>) -> Result<RecordBatch> {
        let fields = self.schema.fields();
        let forms = match version {
            VERSION_PLAIN => None,
            _ => Some(narrow::read_forms(fields, reader)?),
        };
        let schema = match &forms {
            None => Arc::clone(&self.schema),
            Some(forms) => narrow::schema_of(fields, forms),
        };
        let length = u32::from_le_bytes(reader.array()?) as usize;
        let metadata = reader.take(length)?;
        let message = arrow_ipc::root_as_message(metadata).map_err(|error| damaged(error.to_string()))?;
        let batch = message.header_as_record_batch().ok_or_else(|| damaged("it holds no rows".into()))?;
        if forms.is_some() && batch.compression().is_some() {
            return Err(damaged("its columns are compressed each by itself".into()));
        }
        let body = std::mem::take(&mut reader.0);
        layout::check(batch, schema.fields(), body).map_err(damaged)?;
        let body = Buffer::from(body);
        let version = message.version();
        arrow_ipc::reader::read_record_batch(&body, batch, schema, &HashMap::new(), None, &version)
            .and_then(|rows| match forms {
                None => Ok(rows),
                Some(forms) => narrow::widened(&self.schema, &forms, &rows),
            })
            .map_err(|error| damaged(error.to_string()))
    }
}

/// Splits rows by the exchange partition that each belongs to.
pub struct Partitioner {
    key_columns: Arc<[usize]>,
    converter: RowConverter,
    partitions: usize,
    targets: Vec<Vec<u32>>,
}

impl Partitioner {
    pub fn new(schema: &SchemaRef, key_columns: Arc<[usize]>, partitions: usize) -> Result<Self> {
        assert!(partitions > 0, "an exchange has at least one partition");
        let fields = key_columns
            .iter()
            .map(|&column| SortField::new(schema.field(column).data_type().clone()))
            .collect();
        Ok(Self {
            key_columns,
            converter: RowConverter::new(fields)?,
            partitions,
            targets: vec![Vec::new(); partitions],
        })
    }

    /// The rows of each partition that gets any, in partition order; rows keep their order.
    pub fn split(&mut self, rows: &RecordBatch) -> Result<Vec<(i32, RecordBatch)>> {
        self.split_as(rows, rows)
    }

    /// The same rows in another form.
    fn split_as(&mut self, rows: &RecordBatch, form: &RecordBatch) -> Result<Vec<(i32, RecordBatch)>> {
        if self.partitions == 1 {
            return Ok(vec![(0, form.clone())]);
        }
        let keys: Vec<_> = self.key_columns.iter().map(|&column| Arc::clone(rows.column(column))).collect();
        let keys = self.converter.convert_columns(&keys)?;
        for target in &mut self.targets {
            target.clear();
        }
        for (row, key) in keys.iter().enumerate() {
            let hash = xxh3_64_with_seed(key.as_ref(), HASH_SEED);
            self.targets[(hash % self.partitions as u64) as usize].push(row as u32);
        }
        // All columns are gathered once, and cut afterwards.
        let gathered = arrow::compute::take_record_batch(form, &UInt32Array::from(self.targets.concat()))?;
        let mut split = Vec::new();
        let mut start = 0;
        for (partition, target) in self.targets.iter().enumerate().filter(|(_, target)| !target.is_empty()) {
            split.push((partition as i32, gathered.slice(start, target.len())));
            start += target.len();
        }
        Ok(split)
    }
}

/// Of the columns' names and types, in order.
fn schema_fingerprint(schema: &SchemaRef) -> u64 {
    let mut text = String::new();
    for field in schema.fields() {
        text.push_str(&format!("{} {} {}\n", field.name(), field.data_type(), field.is_nullable()));
    }
    xxh3_64(text.as_bytes())
}

fn put_partition(bytes: &mut Vec<u8>, topic: &str, partition: i32) {
    bytes.extend((topic.len() as u16).to_le_bytes());
    bytes.extend(topic.as_bytes());
    bytes.extend(partition.to_le_bytes());
}

fn damaged(detail: String) -> EngineError {
    EngineError::Exchange { detail }
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, length: usize) -> Result<&'a [u8]> {
        let Some((taken, rest)) = self.0.split_at_checked(length) else {
            return Err(damaged("it ends early".into()));
        };
        self.0 = rest;
        Ok(taken)
    }

    fn array<const LENGTH: usize>(&mut self) -> Result<[u8; LENGTH]> {
        let mut array = [0; LENGTH];
        array.copy_from_slice(self.take(LENGTH)?);
        Ok(array)
    }

    fn partition(&mut self) -> Result<Origin> {
        let length = usize::from(u16::from_le_bytes(self.array()?));
        let topic = std::str::from_utf8(self.take(length)?)
            .map_err(|_| damaged("a topic's name is not UTF-8".into()))?;
        let topic: Arc<str> = topic.into();
        Ok(Origin::new(topic, i32::from_le_bytes(self.array()?)))
    }
}

#[cfg(test)]
mod tests {
    use arrow::array::{ArrayRef, Int64Array, StringArray};
    use arrow::datatypes::{DataType, Field, Schema};

    use super::*;

    fn rows(count: i64) -> RecordBatch {
        let schema = Arc::new(Schema::new(vec![
            Field::new("key", DataType::Utf8, true),
            Field::new("value", DataType::Int64, true),
        ]));
        let keys: ArrayRef = Arc::new(StringArray::from_iter_values((0..count).map(|i| format!("key-{i}"))));
        let values: ArrayRef = Arc::new(Int64Array::from_iter_values((0..count).map(|i| i * 7919)));
        RecordBatch::try_new(schema, vec![keys, values]).unwrap()
    }

    fn encoder(rows: &RecordBatch) -> Encoder {
        Encoder::new(&rows.schema(), &Origin::new("in", 3), &[("in".into(), 4)]).unwrap()
    }

    #[test]
    fn rows_and_marks_come_back_as_they_went() {
        let rows = rows(1000);
        let mut encoder = encoder(&rows);
        let decoder = Decoder::new(rows.schema());
        let mut messages = Vec::new();
        encoder.rows(&rows, &mut messages).unwrap();
        assert_eq!(messages.len(), 1);
        let message = decoder.decode(&messages[0]).unwrap();
        assert_eq!(message.origin, Origin::new("in", 3));
        assert_eq!(message.origin_set, vec![("in".into(), 4)]);
        assert!(matches!(message.body, Body::Rows(read) if read == rows));
        let body = |bytes: Vec<u8>| decoder.decode(&bytes).unwrap().body;
        assert!(matches!(body(encoder.watermark(-5)), Body::Watermark(-5)));
        assert!(matches!(body(encoder.idle()), Body::Idle));
    }

    /// A message of format 1.
    fn plain(rows: &RecordBatch, compression: Option<arrow_ipc::CompressionType>) -> Vec<u8> {
        let encoder = encoder(rows);
        let options = IpcWriteOptions::default().try_with_compression(compression).unwrap();
        let (_, encoded) = IpcDataGenerator::default()
            .encode(rows, &mut DictionaryTracker::new(false), &options, &mut IpcWriteContext::default())
            .unwrap();
        let mut message = encoder.begin(0, 0);
        message[0] = VERSION_PLAIN;
        message.extend((encoded.ipc_message.len() as u32).to_le_bytes());
        message.extend(encoded.ipc_message);
        message.extend(encoded.arrow_data);
        message
    }

    #[test]
    fn what_an_older_version_wrote_is_read() {
        let rows = rows(1000);
        let decoder = Decoder::new(rows.schema());
        for compression in [None, Some(arrow_ipc::CompressionType::LZ4_FRAME)] {
            let message = plain(&rows, compression);
            let read = decoder.decode(&message).unwrap().body;
            assert!(matches!(read, Body::Rows(read) if read == rows));
        }
    }

    #[test]
    fn numbers_take_as_many_bytes_as_they_need() {
        let rows = rows(10_000).project(&[1]).unwrap();
        let mut messages = Vec::new();
        encoder(&rows).rows(&rows, &mut messages).unwrap();
        // Up to 10,000 units of 7919: 2 bytes instead of 8.
        let saved = plain(&rows, None).len() - messages[0].len();
        assert!((59_000..=60_000).contains(&saved), "{saved} bytes fewer");
    }

    #[test]
    fn a_form_that_a_column_cannot_have_is_damage() {
        let rows = rows(10);
        let mut messages = Vec::new();
        encoder(&rows).rows(&rows, &mut messages).unwrap();
        let decoder = Decoder::new(rows.schema());
        let forms = encoder(&rows).begin(0, 0).len();
        for (column, width) in [(0, 1), (0, 8), (1, 3), (1, 8), (1, 16), (1, 255)] {
            let mut message = messages[0].clone();
            message[forms + column] = width;
            let error = decoder.decode(&message).unwrap_err().to_string();
            assert!(
                error.contains(["column key is of a form", "column value is of a form"][column]),
                "{error}"
            );
        }
    }

    #[test]
    fn large_batches_are_split_and_keep_their_order() {
        let rows = rows(200_000);
        let mut messages = Vec::new();
        encoder(&rows).rows(&rows, &mut messages).unwrap();
        assert!(messages.len() > 1);
        let decoder = Decoder::new(rows.schema());
        let mut read = Vec::new();
        for message in &messages {
            assert!(message.len() <= MESSAGE_BYTES_MAX);
            match decoder.decode(message).unwrap().body {
                Body::Rows(part) => read.push(part),
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(arrow::compute::concat_batches(&rows.schema(), &read).unwrap(), rows);
    }

    #[test]
    fn a_damaged_message_is_an_error() {
        let rows = rows(10);
        let mut messages = Vec::new();
        encoder(&rows).rows(&rows, &mut messages).unwrap();
        let decoder = Decoder::new(rows.schema());
        for length in 0..messages[0].len().min(120) {
            assert!(decoder.decode(&messages[0][..length]).is_err(), "at {length}");
        }
        let other = Decoder::new(Arc::new(Schema::new(vec![Field::new("x", DataType::Int64, true)])));
        assert!(other.decode(&messages[0]).is_err());
    }

    #[test]
    fn rows_of_one_key_meet_in_one_partition() {
        let rows = rows(500);
        let mut partitioner = Partitioner::new(&rows.schema(), [0].into(), 4).unwrap();
        let whole = partitioner.split(&rows).unwrap();
        assert_eq!(whole.iter().map(|(_, part)| part.num_rows()).sum::<usize>(), 500);
        assert_eq!(whole.len(), 4);
        for row in 0..500 {
            let (partition, alone) = partitioner.split(&rows.slice(row, 1)).unwrap().remove(0);
            let (_, part) = whole.iter().find(|(at, _)| *at == partition).unwrap();
            let key = alone.column(1);
            assert!((0..part.num_rows()).any(|at| part.column(1).slice(at, 1).as_ref() == key.as_ref()));
        }
    }
}
