//! Bids at a steady rate, each with the time at which it was handed to the producer, from a process of its own.
//!
//! Its clock is the wall's; event time is the wall's less a shift, so that windows lie where the measurement wants
//! them. Invariant: a record's `sent_us` is taken when the record is handed over, so that whatever holds it up
//! afterwards, a slow broker too, counts as latency.

use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use headwater::log::{Log, Outgoing, Producer};
use headwater::record::TopicPartition;
use serde::{Deserialize, Serialize};

use super::bids::next;
use super::meter::own_cpu;
use super::place::connect;
use super::program::die_with_the_bench;
use super::{Result, bids};

const TICK: Duration = Duration::from_millis(2);
const VALUE_BYTES: usize = 200;
const FLUSH_MAX: Duration = Duration::from_secs(60);
/// Prices are 100 to this.
pub const PRICE_MAX: i64 = 1_000_100;

#[derive(Clone, Debug, clap::Args)]
pub struct Load {
    #[arg(long)]
    pub brokers: String,
    #[arg(long)]
    pub topic: String,
    #[arg(long)]
    pub partitions: i32,
    /// Records a second
    #[arg(long)]
    pub rate: u64,
    #[arg(long)]
    pub keys: u64,
    /// Event time is the wall's less this
    #[arg(long)]
    pub shift_ms: i64,
    /// Records with this price or more are counted apart
    #[arg(long)]
    pub price_min: i64,
}

/// What was produced.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Produced {
    pub records: u64,
    /// … of which have the price or more.
    pub passing: u64,
    /// How far it was behind its own pace at the worst.
    pub behind_ms_max: f64,
    pub cpu_seconds: f64,
}

/// Microseconds since 1970.
pub fn now_us() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_micros() as i64)
}

/// Writes bids into their partitions.
struct Writer {
    producer: Box<dyn Producer>,
    partitions: Vec<TopicPartition>,
    staged: Vec<Vec<u8>>,
    shift_ms: i64,
    random: u64,
}

impl Writer {
    fn new(log: &dyn Log, topic: &str, partitions: i32, shift_ms: i64) -> Result<Self> {
        let topic: Arc<str> = topic.into();
        let partitions: Vec<_> =
            (0..partitions).map(|partition| TopicPartition::new(Arc::clone(&topic), partition)).collect();
        let staged = vec![Vec::new(); partitions.len()];
        Ok(Self { producer: log.producer()?, partitions, staged, shift_ms, random: 0x9E37_79B9_7F4A_7C15 })
    }

    /// Stages one record; its price.
    fn stage(&mut self, number: u64, auction: u64, price: Option<i64>, sent_us: i64) -> Result<i64> {
        let drawn = next(&mut self.random);
        let price = price.unwrap_or(100 + (drawn >> 40) as i64 % (PRICE_MAX - 99));
        let (bidder, channel) = ((drawn >> 20) % 10_000, drawn % 100);
        let count = self.staged.len() as u64;
        let value = &mut self.staged[(number % count) as usize];
        let start = value.len();
        write!(
            value,
            r#"{{"auction":{auction},"bidder":{bidder},"price":{price},"channel":"channel-{channel}","date_time":{},"sent_us":{sent_us},"extra":""#,
            sent_us / 1000 - self.shift_ms
        )?;
        let mut random = drawn;
        while value.len() - start < VALUE_BYTES - 2 {
            value.push(b'a' + (next(&mut random) % 26) as u8);
        }
        value.extend_from_slice(b"\"}");
        Ok(price)
    }

    fn hand_over(&mut self) -> Result<()> {
        for (partition, values) in self.partitions.iter().zip(&mut self.staged) {
            let record = |value| Outgoing { value: Some(value), ..Outgoing::default() };
            let records: Vec<_> = values.chunks(VALUE_BYTES).map(record).collect();
            if !records.is_empty() {
                self.producer.produce(partition, &records)?;
            }
            values.clear();
        }
        Ok(())
    }
}

/// Writes one record of each key, as fast as it goes.
pub fn fill(log: &dyn Log, topic: &str, partitions: i32, keys: u64, shift_ms: i64) -> Result<()> {
    let mut writer = Writer::new(log, topic, partitions, shift_ms)?;
    for key in 0..keys {
        writer.stage(key, key, Some(100), now_us())?;
        if (key + 1).is_multiple_of(4_000) {
            writer.hand_over()?;
        }
    }
    writer.hand_over()?;
    Ok(writer.producer.flush(FLUSH_MAX)?)
}

/// Produces until stdin ends, and says what it did.
pub fn produce(load: &Load) -> Result<()> {
    let stop = Arc::new(AtomicBool::new(false));
    let watched = Arc::clone(&stop);
    std::thread::spawn(move || {
        let _ = std::io::stdin().read_to_end(&mut Vec::new());
        watched.store(true, Ordering::Relaxed);
    });
    // Its waiting for more is a part of what is measured, so it is short.
    let log = connect(&load.brokers, &[("linger.ms", "1")])?;
    let mut writer = Writer::new(&*log, &load.topic, load.partitions, load.shift_ms)?;
    let (mut records, mut passing, mut behind_max) = (0, 0, 0.0_f64);
    let began = Instant::now();
    println!("producing");
    std::io::stdout().flush()?;
    while !stop.load(Ordering::Relaxed) {
        let elapsed = began.elapsed().as_secs_f64();
        let due = (elapsed * load.rate as f64) as u64;
        behind_max = behind_max.max(elapsed - records as f64 / load.rate as f64);
        let sent_us = now_us();
        while records < due {
            let auction = next(&mut writer.random) % load.keys;
            let price = writer.stage(records, auction, None, sent_us)?;
            passing += u64::from(price >= load.price_min);
            records += 1;
        }
        writer.hand_over()?;
        std::thread::sleep(TICK);
    }
    writer.producer.flush(FLUSH_MAX)?;
    let produced = Produced { records, passing, behind_ms_max: behind_max * 1e3, cpu_seconds: own_cpu()? };
    println!("{}", serde_json::to_string(&produced)?);
    Ok(())
}

/// A process that produces.
pub struct Pace {
    child: Child,
    stdout: BufReader<std::process::ChildStdout>,
}

impl Pace {
    /// Returns once it produces.
    pub fn start(load: &Load) -> Result<Self> {
        let mut command = Command::new(std::env::current_exe()?);
        command.arg("produce").args(["--brokers", &load.brokers, "--topic", &load.topic]);
        command.args(["--partitions", &load.partitions.to_string(), "--rate", &load.rate.to_string()]);
        command.args(["--keys", &load.keys.to_string()]);
        command.arg(format!("--shift-ms={}", load.shift_ms)).arg(format!("--price-min={}", load.price_min));
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        die_with_the_bench(&mut command);
        let mut child = command.spawn()?;
        let stdout = child.stdout.take().ok_or("the producer has no stdout")?;
        let mut pace = Self { child, stdout: BufReader::new(stdout) };
        let mut line = String::new();
        pace.stdout.read_line(&mut line)?;
        if line.trim() != "producing" {
            return Err("the producer's process did not start".into());
        }
        Ok(pace)
    }

    pub fn check(&mut self) -> Result<()> {
        match self.child.try_wait()? {
            None => Ok(()),
            Some(status) => Err(format!("the producer's process has ended ({status})").into()),
        }
    }

    pub fn stop(mut self) -> Result<Produced> {
        drop(self.child.stdin.take());
        let mut line = String::new();
        self.stdout.read_line(&mut line)?;
        self.child.wait()?;
        serde_json::from_str(&line).map_err(|error| format!("the producer has failed: {error}").into())
    }
}

impl Drop for Pace {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        let _ = self.child.wait();
    }
}

/// The source of bids with their send times.
pub fn source(name: &str, topic: &str, retention: &str) -> String {
    format!(
        "name: {name}
retention: {retention}
sources:
  bids:
    topic: {topic}
    format: json
    columns: {{auction: bigint, bidder: bigint, price: bigint, channel: varchar, date_time: timestamp_ms, sent_us: bigint}}
    event_time: date_time
"
    )
}

/// The filter that a tenth of the records is below, as the bench's other jobs have it.
pub const PRICE_MIN: i64 = bids::PRICE_MIN;
