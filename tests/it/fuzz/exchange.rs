//! Exchange messages: what anybody could put into an exchange topic. A message is whole or called damaged; what is
//! decoded holds by Arrow's own full check.
//!
//! An input is the number of its schema, and the message.

use std::sync::Arc;

use arrow::array::{Array, RecordBatch};
use arrow::datatypes::{DataType, Field, Fields, Schema, SchemaRef, TimeUnit, i256};
use arrow_ipc::writer::{DictionaryTracker, IpcDataGenerator, IpcWriteContext, IpcWriteOptions};
use headwater::engine::EngineError;
use headwater::engine::exchange::{Body, Decoder, Encoder};
use headwater::record::Origin;
use rand::RngExt;
use rand::rngs::SmallRng;

use super::Target;
use super::mutate::{bytes_of, mutate};

pub struct Exchange {
    schemas: Vec<SchemaRef>,
    messages: Vec<(u8, Vec<u8>)>,
}

fn schemas() -> Vec<SchemaRef> {
    let field = |name: &str, data_type: DataType| Field::new(name, data_type, true);
    let list = |data_type: DataType| DataType::List(Arc::new(field("item", data_type)));
    let members = Fields::from(vec![field("x", DataType::Boolean), field("y", list(DataType::Utf8))]);
    let all = [
        vec![
            field("window_end", DataType::Timestamp(TimeUnit::Microsecond, None)),
            field("key", DataType::Utf8),
            Field::new("_rows", DataType::Int64, false),
        ],
        vec![
            field("sum", DataType::Decimal128(38, 0)),
            field("values", DataType::Binary),
            field("d", DataType::Date32),
        ],
        vec![
            field("wide", DataType::Decimal256(76, 0)),
            field("b", DataType::Boolean),
            field("none", DataType::Null),
        ],
        vec![field("s", DataType::Struct(members)), field("l", list(list(DataType::Float32)))],
    ];
    all.into_iter().map(|fields| Arc::new(Schema::new(fields))).collect()
}

/// A column of so many rows, made of JSON, as a reader of it would.
fn rows(schema: &SchemaRef, count: usize, random: &mut SmallRng) -> RecordBatch {
    let columns = schema.fields().iter().map(|field| column(field, count, random)).collect();
    RecordBatch::try_new(Arc::clone(schema), columns).unwrap()
}

fn column(field: &Field, count: usize, random: &mut SmallRng) -> Arc<dyn Array> {
    use arrow::array::*;
    let nulls = field.is_nullable() && random.random_bool(0.7);
    let constant = random.random_bool(0.3);
    let mut next = || {
        (!nulls || random.random_bool(0.8)).then(|| if constant { 7 } else { random.random::<i64>() >> 20 })
    };
    let values: Vec<Option<i64>> = (0..count).map(|_| next()).collect();
    let values = values.into_iter();
    match field.data_type() {
        DataType::Timestamp(..) => Arc::new(values.collect::<TimestampMicrosecondArray>()),
        DataType::Int64 => Arc::new(values.collect::<Int64Array>()),
        DataType::Date32 => {
            Arc::new(values.map(|value| value.map(|value| value as i32)).collect::<Date32Array>())
        }
        DataType::Float32 => {
            Arc::new(values.map(|value| value.map(|value| value as f32)).collect::<Float32Array>())
        }
        DataType::Boolean => {
            Arc::new(values.map(|value| value.map(|value| value % 2 == 0)).collect::<BooleanArray>())
        }
        DataType::Utf8 => {
            Arc::new(values.map(|value| value.map(|value| format!("key ä {value}"))).collect::<StringArray>())
        }
        DataType::Binary => {
            Arc::new(values.map(|value| value.map(|value| vec![value as u8; 9])).collect::<BinaryArray>())
        }
        DataType::Decimal128(precision, scale) => {
            let all = values.map(|value| value.map(i128::from)).collect::<Decimal128Array>();
            Arc::new(all.with_precision_and_scale(*precision, *scale).unwrap())
        }
        DataType::Decimal256(precision, scale) => {
            let all = values
                .map(|value| value.map(|value| i256::from_i128(value.into())))
                .collect::<Decimal256Array>();
            Arc::new(all.with_precision_and_scale(*precision, *scale).unwrap())
        }
        DataType::Null => Arc::new(NullArray::new(count)),
        DataType::Struct(members) => {
            let validity = values.map(|value| value.is_some()).collect::<Vec<bool>>();
            let columns = members.iter().map(|member| column(member, count, random)).collect();
            Arc::new(StructArray::new(members.clone(), columns, nulls.then(|| validity.into())))
        }
        DataType::List(item) => {
            let validity = values.map(|value| value.is_some()).collect::<Vec<bool>>();
            let lengths: Vec<usize> = (0..count).map(|_| random.random_range(0..3)).collect();
            let items = column(item, lengths.iter().sum(), random);
            let offsets = arrow::buffer::OffsetBuffer::from_lengths(lengths);
            Arc::new(ListArray::new(Arc::clone(item), offsets, items, nulls.then(|| validity.into())))
        }
        other => panic!("no values of {other}"),
    }
}

/// How the columns lie in messages of format 1.
#[derive(Clone, Copy)]
enum Older {
    Plain,
    Compressed,
}

impl Older {
    const ALL: [Self; 2] = [Self::Plain, Self::Compressed];

    fn message(self, encoder: &Encoder, rows: &RecordBatch) -> Vec<u8> {
        let compression = match self {
            Self::Plain => None,
            Self::Compressed => Some(arrow_ipc::CompressionType::LZ4_FRAME),
        };
        let options = IpcWriteOptions::default().try_with_compression(compression).unwrap();
        let (_, encoded) = IpcDataGenerator::default()
            .encode(rows, &mut DictionaryTracker::new(false), &options, &mut IpcWriteContext::default())
            .unwrap();
        // The head is that of any other message.
        let mut message = encoder.watermark(0);
        message.truncate(message.len() - size_of::<i64>());
        message[..2].copy_from_slice(&[1, 0]);
        message.extend((encoded.ipc_message.len() as u32).to_le_bytes());
        message.extend(encoded.ipc_message);
        message.extend(encoded.arrow_data);
        message
    }
}

impl Exchange {
    pub fn new() -> Self {
        let schemas = schemas();
        let mut random = rand::SeedableRng::seed_from_u64(7);
        let mut messages = Vec::new();
        for (number, schema) in schemas.iter().enumerate() {
            let origins = [("in".into(), 4), ("other".into(), 1)];
            let mut encoder =
                Encoder::new(schema, &Origin::new("in", 3), &origins[..number % 2 + 1]).unwrap();
            let mut encoded = vec![encoder.watermark(-5), encoder.idle()];
            for count in [0, 1, 9, 300, 20_000] {
                let rows = rows(schema, count, &mut random);
                encoder.rows(&rows, &mut encoded).unwrap();
                encoded.extend(Older::ALL.map(|format| format.message(&encoder, &rows)));
            }
            encoded.retain(|message| message.len() < 60 << 10);
            messages.extend(encoded.into_iter().map(|message| (number as u8, message)));
        }
        Self { schemas, messages }
    }
}

impl Target for Exchange {
    fn corpus(&self) -> Vec<Vec<u8>> {
        let text = include_str!("corpus/exchange.txt");
        let found = text.lines().filter(|line| !line.starts_with('#') && !line.is_empty()).map(bytes_of);
        let whole = self.messages.iter().map(|(schema, message)| [&[*schema][..], message].concat());
        found.chain(whole).collect()
    }

    fn input(&self, random: &mut SmallRng) -> Vec<u8> {
        let (schema, message) = &self.messages[random.random_range(0..self.messages.len())];
        let (_, other) = &self.messages[random.random_range(0..self.messages.len())];
        let mut message = message.clone();
        // The head, the metadata or the body; most of the meaning is in the first two.
        let limit = [40, 200, 600, 2_000, usize::MAX][random.random_range(0..5)].min(message.len());
        let from = random.random_range(0..=limit.min(300));
        if random.random_bool(0.5) && limit >= from + 8 {
            // One field of the metadata, at its place.
            let at = from + random.random_range(0..=limit - from - 8);
            let width = [1, 2, 4, 8][random.random_range(0..4)];
            let at = at / width * width + [0, 1, 2, 3, 4, 6][random.random_range(0..6)];
            let number = [
                0,
                1,
                -1,
                2,
                7,
                8,
                64,
                300,
                65_536,
                1 << 31,
                1 << 40,
                i64::MAX,
                i64::MIN,
                random.random::<u8>().into(),
            ];
            let number = number[random.random_range(0..number.len())].to_le_bytes();
            let end = (at + width).min(message.len());
            if at < end {
                message[at..end].copy_from_slice(&number[..end - at]);
            }
        } else {
            let rest = message.split_off(limit);
            mutate(&mut message, other, &[], random);
            message.extend(rest);
        }
        [&[*schema][..], &message].concat()
    }

    fn run(&self, input: &[u8]) {
        let Some((schema, message)) = input.split_first() else { return };
        let schema = &self.schemas[usize::from(*schema) % self.schemas.len()];
        match Decoder::new(Arc::clone(schema)).decode(message) {
            Ok(message) => {
                assert!(message.origin.partition >= 0);
                assert!(message.origin_set.iter().all(|(_, partitions)| *partitions >= 0));
                if let Body::Rows(rows) = message.body {
                    for column in rows.columns() {
                        assert_eq!(column.len(), rows.num_rows());
                        column.to_data().validate_full().unwrap();
                    }
                    if rows.num_rows() > 0 {
                        let last = rows.slice(rows.num_rows() - 1, 1);
                        assert!(!format!("{last:?}").is_empty());
                    }
                }
            }
            // The caller adds topic, partition and offset to this one, and to no other.
            Err(EngineError::Exchange { detail }) => {
                assert!(!detail.is_empty() && detail.len() < 1_000, "{detail}")
            }
            Err(other) => panic!("{other}"),
        }
    }

    fn bytes_max(&self, input: &[u8]) -> usize {
        // lz4 inflates to 255 times what is there at most, and needs room for two of its blocks of up to 8 MiB.
        (20 << 20) + 320 * input.len()
    }
}
