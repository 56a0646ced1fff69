//! Steps by themselves: records from librdkafka by its usual call; the last two of the stateless job, rows to JSON and
//! records to a topic.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use arrow::array::{ArrayRef, Int64Array, RecordBatch};
use headwater::codec::json::RowEncoder;
use headwater::log::{Log, Outgoing, TopicSpec};
use headwater::record::TopicPartition;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::{ClientConfig, Offset, TopicPartitionList};

use super::Result;
use super::jobs::Setting;
use super::meter::{Measured, Meter};

const POLL: Duration = Duration::from_millis(100);
/// Rows that the job handles at a time, more or less.
const BATCH_ROWS: usize = 4_000;

/// Reads the topic as a program does that knows nothing of batches.
pub fn poll(setting: &Setting) -> Result<Measured> {
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", &setting.brokers)
        .set("group.id", "headwater-bench-poll")
        .set("enable.auto.commit", "false")
        // The default of a second would leave it waiting, which takes no CPU, but the bench's time.
        .set("fetch.queue.backoff.ms", "5")
        .create()?;
    let mut assignment = TopicPartitionList::new();
    for partition in setting.partitions() {
        assignment.add_partition_offset(&partition.topic, partition.partition, Offset::Beginning)?;
    }
    let meter = Meter::start(setting.broker_pid)?;
    consumer.assign(&assignment)?;
    let (mut records, mut bytes) = (0, 0);
    while records < setting.shape.records {
        let Some(message) = consumer.poll(POLL) else { continue };
        bytes += message?.payload_len();
        records += 1;
    }
    let measured = meter.stop()?;
    Ok(Measured { found: format!("{records} records, {bytes} bytes"), ..measured })
}

pub fn encode(setting: &Setting) -> Result<Measured> {
    let batches = batches(setting)?;
    let meter = Meter::start(setting.broker_pid)?;
    let (mut rows, mut bytes) = (0, 0);
    let (mut values, mut ends) = (Vec::new(), Vec::new());
    for batch in &batches {
        values.clear();
        ends.clear();
        RowEncoder::new(&batch.schema(), None)?.encode(batch, 0..batch.num_rows(), &mut values, &mut ends);
        rows += ends.len();
        bytes += values.len();
    }
    let measured = meter.stop()?;
    Ok(Measured { found: format!("{rows} rows, {bytes} bytes"), ..measured })
}

pub fn produce(setting: &Setting, log: &dyn Log, name: &str) -> Result<Measured> {
    let topic = format!("{name}.out");
    let (mut values, mut ends) = (Vec::new(), Vec::new());
    for batch in batches(setting)? {
        RowEncoder::new(&batch.schema(), None)?.encode(&batch, 0..batch.num_rows(), &mut values, &mut ends);
    }
    let count = setting.shape.partitions;
    log.create_topics(&[TopicSpec { name: topic.clone(), partitions: count, config: BTreeMap::new() }])?;
    let partitions: Vec<_> = (0..count).map(|number| TopicPartition::new(topic.as_str(), number)).collect();
    let mut producer = log.producer()?;
    let meter = Meter::start(setting.broker_pid)?;
    let mut start = 0;
    for (number, ends) in ends.chunks(BATCH_ROWS).enumerate() {
        let records: Vec<Outgoing<'_>> = ends
            .iter()
            .map(|&end| {
                let value = Some(&values[start..end]);
                start = end;
                Outgoing { value, ..Outgoing::default() }
            })
            .collect();
        producer.produce(&partitions[number % partitions.len()], &records)?;
    }
    producer.flush(Duration::from_secs(300))?;
    let measured = meter.stop()?;
    let mut held = 0;
    for partition in &partitions {
        held += log.bounds(partition)?.end;
    }
    if held != ends.len() as i64 {
        return Err(format!("produced {} records, the topic holds {held}", ends.len()).into());
    }
    Ok(Measured { found: format!("{held} records, {} bytes", values.len()), ..measured })
}

/// The rows that the stateless job makes of all bids.
fn batches(setting: &Setting) -> Result<Vec<RecordBatch>> {
    let rows: Vec<[i64; 3]> = setting.shape.dear().collect();
    rows.chunks(BATCH_ROWS)
        .map(|rows| {
            let column = |at: usize| {
                Arc::new(Int64Array::from_iter_values(rows.iter().map(|row| row[at]))) as ArrayRef
            };
            let columns = [("auction", column(0)), ("bidder", column(1)), ("price", column(2))];
            Ok(RecordBatch::try_from_iter(columns)?)
        })
        .collect()
}
