//! The records: bids on auctions as JSON of 200 bytes, the same in every run.
//!
//! Invariant: what a bid is depends on its number and the shape alone, so what the jobs must find is known
//! without reading the topic.

use std::collections::BTreeMap;
use std::io::Write;
use std::time::Duration;

use headwater::log::{Log, Outgoing, TopicSpec};
use headwater::record::TopicPartition;

use super::Result;
use super::jobs::Setting;

/// The first bid's time, a whole window.
pub const START_MS: i64 = 1_700_000_000_000;
pub const SPAN_MS: i64 = 500_000;
pub const WINDOW_MS: i64 = 10_000;
const WINDOWS: usize = (SPAN_MS / WINDOW_MS) as usize;
/// How far behind the highest time of a partition its watermark is.
const OUT_OF_ORDERNESS_MS: i64 = 1_000;
/// The filter of the jobs: a tenth of the bids are below.
pub const PRICE_MIN: i64 = 100_000;
const VALUE_BYTES: usize = 200;
/// Bids that are handed to the producer at a time.
const PRODUCED_AT_ONCE: u64 = 4_000;

/// How many records of what kind.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    pub records: u64,
    pub partitions: i32,
    pub keys: u64,
}

impl Shape {
    pub fn check(&self) -> Result<()> {
        match self.records > 0 && self.partitions > 0 && self.keys > 0 {
            true => Ok(()),
            false => Err("--records, --partitions and --keys are at least 1".into()),
        }
    }

    pub fn text(&self) -> String {
        let Shape { records, partitions, keys } = self;
        format!("{records} records of {VALUE_BYTES} bytes in {partitions} partitions, {keys} keys")
    }

    /// What the stateless job keeps of the bids: auction, bidder, price.
    pub fn dear(&self) -> impl Iterator<Item = [i64; 3]> {
        self.bids().filter(|bid| bid.price >= PRICE_MIN).map(|bid| [bid.auction, bid.bidder, bid.price])
    }

    fn bids(&self) -> impl Iterator<Item = Bid> {
        let Shape { records, keys, .. } = *self;
        let mut random = 0x9E37_79B9_7F4A_7C15;
        (0..records).map(move |number| {
            let drawn = next(&mut random);
            Bid {
                auction: (1000 + drawn % keys) as i64,
                bidder: (1000 + (drawn >> 20) % 50_000) as i64,
                price: (100 + (drawn >> 40) % 1_000_000) as i64,
                channel: drawn % 100,
                item: drawn % 99_991,
                time_ms: START_MS + (number as i128 * i128::from(SPAN_MS) / i128::from(records)) as i64,
                padding: next(&mut random),
            }
        })
    }
}

struct Bid {
    auction: i64,
    bidder: i64,
    price: i64,
    channel: u64,
    item: u64,
    time_ms: i64,
    padding: u64,
}

impl Bid {
    fn write(&self, value: &mut Vec<u8>) -> Result<()> {
        let Bid { auction, bidder, price, channel, item, time_ms, padding } = self;
        let start = value.len();
        write!(
            value,
            r#"{{"auction":{auction},"bidder":{bidder},"price":{price},"channel":"channel-{channel}","url":"https://www.nexmark.com/{item}/item.htm?query=1","date_time":{time_ms},"extra":""#
        )?;
        let mut random = *padding;
        while value.len() - start < VALUE_BYTES - 2 {
            value.push(b'a' + (next(&mut random) % 26) as u8);
        }
        value.extend_from_slice(b"\"}");
        Ok(())
    }
}

/// Xorshift.
pub fn next(state: &mut u64) -> u64 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    *state
}

/// Writes the bids to their topic, unless an earlier run has.
pub fn write(setting: &Setting) -> Result<()> {
    let (shape, topic) = (setting.shape, setting.topic());
    let log = setting.connect(&[("compression.type", &setting.compression)])?;
    match log.partitions(&topic)? {
        Some(_) if held(&*log, setting)? == shape.records => return Ok(()),
        Some(_) => return Err(format!("topic {topic} is only partly written: delete it").into()),
        None => {}
    }
    let spec = TopicSpec { name: topic.clone(), partitions: shape.partitions, config: BTreeMap::new() };
    log.create_topics(&[spec])?;
    let mut producer = log.producer()?;
    let partitions: Vec<_> =
        (0..shape.partitions).map(|partition| TopicPartition::new(topic.as_str(), partition)).collect();
    let mut staged: Vec<Vec<u8>> = vec![Vec::new(); partitions.len()];
    let mut bids = shape.bids().enumerate().peekable();
    while let Some((number, bid)) = bids.next() {
        bid.write(&mut staged[number % partitions.len()])?;
        if (number as u64 + 1).is_multiple_of(PRODUCED_AT_ONCE) || bids.peek().is_none() {
            for (partition, values) in partitions.iter().zip(&mut staged) {
                let record = |value| Outgoing { value: Some(value), ..Outgoing::default() };
                let records: Vec<_> = values.chunks(VALUE_BYTES).map(record).collect();
                producer.produce(partition, &records)?;
                values.clear();
            }
        }
    }
    producer.flush(Duration::from_secs(300))?;
    match held(&*log, setting)? {
        records if records == shape.records => Ok(()),
        records => Err(format!("topic {topic} holds {records} records, not {}", shape.records).into()),
    }
}

/// Deletes the topic from a Kafka that is not the bench's own.
pub fn remove(setting: &Setting) -> Result<()> {
    Ok(setting.connect(&[])?.delete_topics(&[setting.topic()])?)
}

fn held(log: &dyn Log, setting: &Setting) -> Result<u64> {
    let mut held = 0;
    for partition in setting.partitions() {
        let bounds = log.bounds(&partition)?;
        held += (bounds.end - bounds.start) as u64;
    }
    Ok(held)
}

/// One window's result for one key.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Group {
    pub bids: i64,
    pub total: i64,
    pub highest: i64,
}

/// What the jobs must make of the bids.
pub struct Expected {
    keys: usize,
    /// By window and key.
    groups: Vec<Group>,
    /// Bids that pass the filter, and the sum of their prices.
    pub passing: Group,
    /// Windows before this one are closed once all is read.
    pub windows_closed: usize,
}

impl Expected {
    pub fn new(shape: &Shape) -> Self {
        let keys = shape.keys as usize;
        let mut groups = vec![Group::default(); WINDOWS * keys];
        let mut passing = Group::default();
        let mut last_ms = vec![i64::MIN; shape.partitions as usize];
        for (number, bid) in shape.bids().enumerate() {
            last_ms[number % shape.partitions as usize] = bid.time_ms;
            if bid.price >= PRICE_MIN {
                let window = ((bid.time_ms - START_MS) / WINDOW_MS) as usize;
                for group in [&mut groups[window * keys + (bid.auction - 1000) as usize], &mut passing] {
                    group.bids += 1;
                    group.total += bid.price;
                    group.highest = group.highest.max(bid.price);
                }
            }
        }
        let watermark = last_ms.into_iter().min().unwrap_or(i64::MIN).saturating_sub(OUT_OF_ORDERNESS_MS);
        let windows_closed = ((watermark - START_MS) / WINDOW_MS).clamp(0, WINDOWS as i64) as usize;
        Self { keys, groups, passing, windows_closed }
    }

    /// Groups with a row, in the windows that are closed and in those that stay open.
    pub fn rows(&self) -> (u64, u64) {
        let count = |groups: &[Group]| groups.iter().filter(|group| group.bids > 0).count() as u64;
        let (closed, open) = self.groups.split_at(self.windows_closed * self.keys);
        (count(closed), count(open))
    }

    /// Compares one row; each row may come once.
    pub fn take(&mut self, window_start_ms: i64, auction: i64, found: Group) -> Result<()> {
        let window = usize::try_from((window_start_ms - START_MS) / WINDOW_MS)?;
        let at = window * self.keys + usize::try_from(auction - 1000)?;
        match self.groups.get_mut(at) {
            Some(expected) if *expected == found => {
                *expected = Group::default();
                Ok(())
            }
            expected => {
                Err(format!("window {window} of auction {auction}: found {found:?}, expected {expected:?}")
                    .into())
            }
        }
    }
}

/// The topology that groups bids by window and auction.
pub fn window_topology(name: &str, topic: &str) -> String {
    format!(
        "{}views:
  prices: |
    select window_start, window_end, auction, count(*) as bids, sum(price) as total, max(price) as highest
    from tumble(bids, date_time, interval '10 seconds')
    where price >= {PRICE_MIN}
    group by window_start, window_end, auction
sinks:
  prices:
    topic: {{name: {name}.out, format: json, key: [auction, window_start]}}
    lake: {{table: prices}}
",
        source(name, topic)
    )
}

/// The topology that keeps nothing.
pub fn stateless_topology(name: &str, topic: &str) -> String {
    format!(
        "{}views:
  dear: select auction, bidder, price from bids where price >= {PRICE_MIN}
sinks:
  dear:
    topic: {{name: {name}.out, format: json}}
",
        source(name, topic)
    )
}

fn source(name: &str, topic: &str) -> String {
    format!(
        "name: {name}
sources:
  bids:
    topic: {topic}
    format: json
    columns: {{auction: bigint, bidder: bigint, price: bigint, channel: varchar, url: varchar, date_time: timestamp_ms, extra: varchar}}
    event_time: date_time
    watermark: {{out_of_orderness: {OUT_OF_ORDERNESS_MS}ms}}
"
    )
}
