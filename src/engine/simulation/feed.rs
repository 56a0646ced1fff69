//! Topologies and what comes in their sources, from a seed: a few keys, event times that skew, wait and jump, late,
//! damaged, filtered and empty records.

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use crate::log::memory::Dice;
use crate::plan::{self, Plan};
use crate::record::TopicPartition;

#[derive(Clone)]
pub struct Record {
    pub value: Option<String>,
    pub timestamp_ms: i64,
}

/// What happens in the sources.
#[derive(Clone)]
pub enum Happening {
    Records { to: TopicPartition, records: Vec<Record> },
    Partitions { topic: Arc<str>, count: i32 },
    Silence(Duration),
}

impl Happening {
    /// How many records come.
    pub fn records(&self) -> usize {
        match self {
            Self::Records { records, .. } => records.len(),
            Self::Partitions { .. } | Self::Silence(_) => 0,
        }
    }
}

pub struct Topology {
    pub plan: Arc<Plan>,
    /// No origin idles and nothing is corrected: each refined record comes exactly once.
    pub exact: bool,
    /// An origin that wakes late may find its windows gone. Each of them is named then, and nothing else is missing.
    pub expires: bool,
    /// Source topics with their partitions.
    pub sources: &'static [(&'static str, i32)],
}

const STEADY: &str = "
name: steady
grace: 30s
retention: 0s
sources:
  numbers:
    topic: numbers
    format: json
    columns: {k: varchar, v: bigint, at: timestamp_s}
    event_time: at
    watermark: {out_of_orderness: 2m, idle_after: 1000d}
checks:
  numbers:
    - {name: small, expect: v < 900}
    - {name: even_enough, expect: v % 11 <> 0, otherwise: drop}
views:
  copy: select k, v, at from numbers where v % 7 <> 0
  minutely: |
    select window_start, window_end, k, count(*) as n, sum(v) as total, max(v) as most, first(v) as first_v, last(v) as last_v
    from tumble(numbers, at, interval '1 minute') group by window_start, window_end, k
  tens: |
    select window_start, k, sum(total) as total, sum(n) as n, min(most) as least_most, last(last_v) as last_v
    from tumble(minutely, window_start, interval '10 minutes') group by window_start, k
  ratio: select window_start, k, total / (n - 2) as ratio from minutely
sinks:
  copy: {topic: {name: steady.copy}}
  ratio: {topic: {name: steady.ratio, key: [k, window_start]}}
  minutely: {topic: {name: steady.minutely, key: [k, window_start, window_end]}}
  tens: {topic: {name: steady.tens, key: [k, window_start]}}
";

/// The source of several of them.
const NUMBERS: &str = "
sources:
  numbers:
    topic: numbers
    format: json
    columns: {k: varchar, v: bigint, at: timestamp_s}
    event_time: at
    watermark: {out_of_orderness: 1m, idle_after: 2s}
";

const WAKING: &str = "
name: waking
grace: 10s
retention: 10000d
views:
  minutely: |
    select window_start, window_end, k, count(*) as n, sum(v) as total, min(v) as least, first(v) as first_v
    from tumble(numbers, at, interval '1 minute') group by window_start, window_end, k
  hourly: |
    select window_start, sum(total) as total, sum(n) as n, max(least) as most_least, min(least) as least, last(first_v) as last_v
    from tumble(minutely, window_start, interval '1 hour') group by window_start
sinks:
  minutely: {topic: {name: waking.minutely, key: [k, window_start, window_end]}}
  hourly: {topic: {name: waking.hourly, key: [window_start]}}
";

const SEVERAL: &str = "
name: several
retention: 10000d
max_drift: 20m
sources:
  numbers:
    topic: numbers
    format: json
    columns: {k: varchar, v: bigint, at: timestamp_s}
    event_time: at
    watermark: {out_of_orderness: 1m, idle_after: 3s}
  others:
    topic: others
    format: json
    columns: {k: varchar, v: bigint, at: timestamp_s}
    event_time: at
    watermark: {out_of_orderness: 10m, idle_after: 5s}
views:
  big: select k, v from numbers where v > 500
  by_k: |
    select window_start, window_end, k, count(*) as n, max(v) as most
    from tumble(numbers, at, interval '5 minutes') group by window_start, window_end, k
  by_all: |
    select window_start, window_end, count(*) as n, sum(v) as total
    from tumble(others, at, interval '2 minutes') group by window_start, window_end
sinks:
  big: {topic: {name: several.big}}
  by_k: {topic: {name: several.by_k, key: [k, window_start, window_end]}}
  by_all: {topic: {name: several.by_all, key: [window_start, window_end]}}
";

const CHANGING: &str = "
name: changing
grace: 10s
retention: 10000d
views:
  minutely: |
    select window_start, window_end, k, count(*) as n, sum(v) as total, first(v) as first_v
    from tumble(numbers, at, interval '1 minute') group by window_start, window_end, k
  odd: select window_start, k, total from minutely where n % 2 = 1
  even: select window_start, window_end, k, total from minutely where n % 2 = 0
  hourly: |
    select window_start, sum(total) as total, max(n) as most, last(first_v) as last_v
    from tumble(minutely, window_start, interval '1 hour') group by window_start having max(n) < 4
sinks:
  minutely: {topic: {name: changing.minutely}}
  odd: {emit: changes, topic: {name: changing.odd, key: [k, window_start]}}
  even: {emit: changes, topic: {name: changing.even}}
  hourly: {emit: changes, topic: {name: changing.hourly}}
";

const EXPIRING: &str = "
name: expiring
retention: 2m
views:
  minutely: |
    select window_start, window_end, k, count(*) as n, sum(v) as total, min(v) as least
    from tumble(numbers, at, interval '1 minute') group by window_start, window_end, k
  quarterly: |
    select window_start, window_end, sum(total) as total, sum(n) as n, min(least) as least
    from tumble(minutely, window_start, interval '15 minutes') group by window_start, window_end
sinks:
  minutely: {topic: {name: expiring.minutely, key: [k, window_start, window_end]}}
  quarterly: {topic: {name: expiring.quarterly, key: [window_start, window_end]}}
";

/// Planned once.
pub fn topologies() -> &'static [Topology] {
    static TOPOLOGIES: OnceLock<Vec<Topology>> = OnceLock::new();
    TOPOLOGIES.get_or_init(|| {
        let topology =
            |text: &str, exact, sources| Topology { plan: planned(text), exact, expires: false, sources };
        let of_numbers = |text| topology(&format!("{text}{NUMBERS}"), false, &[("numbers", 2)]);
        vec![
            topology(STEADY, true, &[("numbers", 3)]),
            of_numbers(WAKING),
            topology(SEVERAL, false, &[("numbers", 2), ("others", 2)]),
            of_numbers(CHANGING),
            Topology { expires: true, ..of_numbers(EXPIRING) },
        ]
    })
}

pub fn planned(text: &str) -> Arc<Plan> {
    Arc::new(plan::parse(text, "simulated.yaml").unwrap_or_else(|error| panic!("{error}")))
}

/// 2024-01-01.
pub const FIRST_SECOND: i64 = 1_704_067_200;
const RECORDS_MAX: u64 = 300;

/// The feed of a seed, and with how many partitions each source begins.
pub fn feed(topology: &Topology, dice: &mut Dice) -> Vec<Happening> {
    let count = 20 + if dice.once_in(8) { dice.under(RECORDS_MAX - 20) } else { dice.under(100) };
    let mut partitions: BTreeMap<&str, i32> = topology.sources.iter().copied().collect();
    // Each partition has a time of its own.
    let mut times: BTreeMap<(&str, i32), i64> = BTreeMap::new();
    let step = dice.among(&[1, 7, 20, 60]);
    let mut feed = Vec::new();
    let mut made = 0;
    while made < count {
        let (topic, _) = topology.sources[dice.under(topology.sources.len() as u64) as usize];
        if !topology.exact && dice.once_in(60) && partitions[topic] < 4 {
            partitions.insert(topic, partitions[topic] + 1);
            feed.push(Happening::Partitions { topic: topic.into(), count: partitions[topic] });
        }
        if !topology.exact && dice.once_in(25) {
            feed.push(Happening::Silence(Duration::from_secs(1 + dice.under(7))));
        }
        let partition = dice.under(partitions[topic] as u64) as i32;
        // Seldom, an origin sleeps, and is behind when it wakes.
        if partition == 1 && dice.once_in(3) {
            continue;
        }
        let skew = i64::from(partition) * dice.among(&[0, 0, 0, 40, 900]);
        let time = times.entry((topic, partition)).or_insert(FIRST_SECOND + skew);
        let size = 1 + dice.under(6);
        let records = (0..size).map(|_| record(time, step, dice)).collect();
        made += size;
        feed.push(Happening::Records { to: TopicPartition::new(topic, partition), records });
    }
    feed
}

fn record(time: &mut i64, step: u64, dice: &mut Dice) -> Record {
    *time += dice.under(2 * step) as i64;
    if dice.once_in(40) {
        *time += 600;
    }
    let at = match dice.under(20) {
        0 => *time - 700,
        1..5 => *time - dice.under(70) as i64,
        _ => *time,
    };
    let (key, number) = (dice.under(4), dice.under(1000));
    let value = match dice.under(30) {
        0 => Some("{\"k\": damaged".to_owned()),
        1 => None,
        2 => Some(format!(r#"{{"k":"k{key}","v":{number}}}"#)),
        3 => Some(format!(r#"{{"k":"k{key}","v":{number},"at":{}}}"#, at + 10 * 86_400)),
        _ => Some(format!(r#"{{"k":"k{key}","v":{number},"at":{at}}}"#)),
    };
    Record { value, timestamp_ms: *time * 1000 }
}
