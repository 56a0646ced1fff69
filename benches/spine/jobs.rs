//! The jobs, each run whole in a process of its own, and what they made checked row by row.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use arrow::array::AsArray;
use arrow::datatypes::{Int64Type, TimestampMicrosecondType};
use clap::ValueEnum;
use headwater::codec::json::JsonDecoder;
use headwater::engine::{self, Counters, Progress, RunOptions, RunReport};
use headwater::lake::Lake;
use headwater::log::kafka::{KafkaLog, KafkaOptions};
use headwater::log::{Event, Log};
use headwater::plan::{self, Late, Plan};
use headwater::record::{Run, TopicPartition};
use headwater::tool::replay::{LakeReplay, replay_into_lake};

use super::Result;
use super::alone;
use super::bids::{self, Expected, Group, Shape};
use super::meter::{Measured, Meter};

const POLL: Duration = Duration::from_millis(100);

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Job {
    /// librdkafka as most programs read with it: one record a call, bytes counted
    Poll,
    /// librdkafka's fetch rate: the log's reader, bytes counted
    Read,
    /// The same, and the columns that the window job reads decoded
    Decode,
    /// The stateless job's rows as JSON, to memory
    Encode,
    /// The stateless job's records to a topic, idempotent, outside any transaction
    Produce,
    /// Filter and 10 s windows by key into a refined topic, exactly once
    Window,
    /// Filter and projection into a refined topic, exactly once
    Stateless,
    /// The window job replayed into Parquet
    Replay,
    /// The same, where event time spans a thousand times max_drift
    Drift,
}

impl Job {
    pub const ALL: [Job; 9] = [
        Job::Poll,
        Job::Read,
        Job::Decode,
        Job::Encode,
        Job::Produce,
        Job::Window,
        Job::Stateless,
        Job::Replay,
        Job::Drift,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Job::Poll => "poll",
            Job::Read => "read",
            Job::Decode => "decode",
            Job::Encode => "encode",
            Job::Produce => "produce",
            Job::Window => "window",
            Job::Stateless => "stateless",
            Job::Replay => "replay",
            Job::Drift => "drift",
        }
    }

    pub fn describe(self) -> &'static str {
        match self {
            Job::Poll => "poll: librdkafka, one record a call",
            Job::Read => "read: librdkafka, the log's reader",
            Job::Decode => "decode: read + JSON of the columns that the windows need",
            Job::Encode => "encode: the stateless job's rows as JSON",
            Job::Produce => "produce: these, to a topic of 4 partitions",
            Job::Window => "window: run, filter + 10 s count/sum/max by key",
            Job::Stateless => "stateless: run, filter + 3 of 7 columns",
            Job::Replay => "replay: the window job into Parquet",
            Job::Drift => "drift: the same, its event time a thousand times max_drift",
        }
    }
}

/// Where and how jobs run.
#[derive(Clone, Debug)]
pub struct Setting {
    pub brokers: String,
    pub broker_pid: Option<u32>,
    pub shape: Shape,
    /// Of the source topic.
    pub compression: String,
    pub threads: usize,
    pub epoch: Duration,
    /// State and lake of the jobs.
    pub scratch: PathBuf,
}

impl Setting {
    pub fn connect(&self, properties: &[(&str, &str)]) -> Result<Arc<dyn Log>> {
        let properties = properties.iter().map(|(name, value)| (name.to_string(), value.to_string()));
        let options = KafkaOptions {
            brokers: self.brokers.clone(),
            properties: properties.collect::<BTreeMap<_, _>>(),
            client_id: "headwater-bench".into(),
        };
        Ok(Arc::new(KafkaLog::connect(&options)?))
    }

    /// The source topic, named by all that decides what lies in it.
    pub fn topic(&self) -> String {
        let Shape { records, partitions, keys } = self.shape;
        format!("headwater-bench.bids.{records}.{partitions}.{keys}.{}", self.compression)
    }

    pub fn partitions(&self) -> Vec<TopicPartition> {
        let topic: Arc<str> = self.topic().into();
        (0..self.shape.partitions)
            .map(|partition| TopicPartition::new(Arc::clone(&topic), partition))
            .collect()
    }
}

/// Runs one job in this process.
pub fn run(job: Job, setting: &Setting) -> Result<Measured> {
    let log = setting.connect(&[])?;
    // Fresh topics and a fresh group for every run.
    let name = format!("headwater-bench-{}-{}", job.name(), std::process::id());
    let scratch = setting.scratch.join(&name);
    std::fs::create_dir_all(&scratch)?;
    let bench = Bench { setting, log, name, scratch };
    let measured = match job {
        Job::Poll => alone::poll(bench.setting),
        Job::Read => bench.read(),
        Job::Decode => bench.decode(),
        Job::Encode => alone::encode(bench.setting),
        Job::Produce => alone::produce(bench.setting, &*bench.log, &bench.name),
        Job::Window => bench.window(),
        Job::Stateless => bench.stateless(),
        Job::Replay => bench.replay(bench.plan(bids::window_topology)?),
        Job::Drift => {
            let plan = bench.plan(bids::window_topology)?;
            bench.replay(Plan { max_drift: bids::SPAN_MS, ..plan }) // a thousandth of it: it is in microseconds
        }
    };
    bench.clean()?;
    measured
}

struct Bench<'a> {
    setting: &'a Setting,
    log: Arc<dyn Log>,
    name: String,
    scratch: PathBuf,
}

impl Bench<'_> {
    fn meter(&self) -> Result<Meter> {
        Meter::start(self.setting.broker_pid)
    }

    fn plan(&self, topology: fn(&str, &str) -> String) -> Result<Plan> {
        Ok(plan::parse(&topology(&self.name, &self.setting.topic()), "bench")?)
    }

    fn read(&self) -> Result<Measured> {
        let meter = self.meter()?;
        let (mut records, mut bytes) = (0, 0);
        each_run(&*self.log, &self.setting.partitions(), |run| {
            records += run.records.len();
            bytes += run.records.bytes();
            Ok(())
        })?;
        let measured = meter.stop()?;
        expect("records read", self.setting.shape.records, records as u64)?;
        Ok(Measured { found: format!("{records} records, {bytes} bytes"), ..measured })
    }

    fn decode(&self) -> Result<Measured> {
        let plan = self.plan(bids::window_topology)?;
        let meter = self.meter()?;
        let mut decoder = JsonDecoder::new(&plan.sources[0].read);
        let mut rows = 0;
        each_run(&*self.log, &self.setting.partitions(), |run| {
            for index in 0..run.records.len() {
                decoder
                    .push(run.records.get(index).value.unwrap_or_default())
                    .map_err(|reject| reject.message)?;
            }
            rows += decoder.finish().num_rows();
            Ok(())
        })?;
        let measured = meter.stop()?;
        expect("rows decoded", self.setting.shape.records, rows as u64)?;
        let columns = plan.sources[0].read.len();
        Ok(Measured { found: format!("{rows} rows of {columns} columns"), ..measured })
    }

    /// `run` from a new group to the ends of the topic.
    fn catch_up(&self, plan: Plan) -> Result<(Measured, RunReport, Progress)> {
        let options = RunOptions {
            threads: self.setting.threads,
            epoch: self.setting.epoch,
            state_dir: self.scratch.join("state"),
            checkpoints: Some(self.scratch.join("checkpoints").display().to_string().into()),
            until_end: true,
            ..RunOptions::default()
        };
        let (progress, stop) = (Progress::default(), Arc::new(AtomicBool::new(false)));
        let meter = self.meter()?;
        let report = engine::run(&Arc::new(plan), &self.log, &options, &progress, &stop)?;
        Ok((meter.stop()?, report, progress))
    }

    fn window(&self) -> Result<Measured> {
        let (measured, report, progress) = self.catch_up(self.plan(bids::window_topology)?)?;
        let mut expected = Expected::new(&self.setting.shape);
        let (_, open) = expected.rows();
        check_counters(&expected, &report.counters, self.setting)?;
        let windows_open = progress.tasks().values().filter_map(|task| task.open_windows).sum();
        expect("windows open", open, windows_open)?;
        let Windows { rows, bids } = check_windows(&*self.log, &self.refined(), &mut expected)?;
        let found = format!(
            "{bids} bids in {rows} rows, {} in {open} open windows, {} commits",
            expected.passing.bids - bids,
            report.commits
        );
        Ok(Measured { found, ..measured })
    }

    fn stateless(&self) -> Result<Measured> {
        let (measured, report, _) = self.catch_up(self.plan(bids::stateless_topology)?)?;
        let expected = Expected::new(&self.setting.shape);
        check_counters(&expected, &report.counters, self.setting)?;
        let found = check_stateless(&*self.log, &self.refined(), &expected)?;
        Ok(Measured { found: format!("{} rows, {} commits", found.bids, report.commits), ..measured })
    }

    fn replay(&self, plan: Plan) -> Result<Measured> {
        let options = LakeReplay {
            lake: self.scratch.join("lake").display().to_string().into(),
            late: Late::AsLive,
            late_text: "as-live".into(),
            threads: self.setting.threads,
            state_budget: RunOptions::default().state_budget,
            scratch: self.scratch.join("spilled"),
        };
        let (progress, stop) = (Progress::default(), AtomicBool::new(false));
        let meter = self.meter()?;
        let report = replay_into_lake(&plan, &self.log, &options, &progress, &stop)?;
        let measured = meter.stop()?;

        let mut expected = Expected::new(&self.setting.shape);
        let (closed, open) = expected.rows();
        check_counters(&expected, &report.replay.counters, self.setting)?;
        let Some((_, manifest, _)) = report.tables.first() else { return Err("no table was written".into()) };
        let mut rows = 0;
        for batch in Lake::open(&options.lake)?.read(manifest)? {
            let batch = batch?;
            let column = |name: &str| batch.column_by_name(name).ok_or_else(|| format!("no column {name}"));
            let starts = column("window_start")?.as_primitive::<TimestampMicrosecondType>();
            let [auction, bids, total, highest] = ["auction", "bids", "total", "highest"]
                .map(|name| column(name).map(|column| column.as_primitive::<Int64Type>()));
            let (auction, bids, total, highest) = (auction?, bids?, total?, highest?);
            for row in 0..batch.num_rows() {
                let found =
                    Group { bids: bids.value(row), total: total.value(row), highest: highest.value(row) };
                expected.take(starts.value(row) / 1000, auction.value(row), found)?;
                rows += 1;
            }
        }
        expect("rows in Parquet", closed + open, rows)?;
        let found = format!("{rows} rows in {} files, {} bytes", manifest.files.len(), manifest.bytes);
        Ok(Measured { found, ..measured })
    }

    fn refined(&self) -> String {
        format!("{}.out", self.name)
    }

    fn clean(&self) -> Result<()> {
        let own = format!("{}.", self.name);
        let topics = self.log.topics()?.into_iter().map(|topic| topic.name);
        let topics: Vec<String> = topics.filter(|topic| topic.starts_with(&own)).collect();
        if !topics.is_empty() {
            self.log.delete_topics(&topics)?;
        }
        Ok(std::fs::remove_dir_all(&self.scratch)?)
    }
}

/// What was found in the window job's refined topic.
pub struct Windows {
    pub rows: u64,
    pub bids: i64,
}

/// Compares the window job's refined topic with what is expected, row by row.
pub fn check_windows(log: &dyn Log, topic: &str, expected: &mut Expected) -> Result<Windows> {
    let (closed, _) = expected.rows();
    let mut found = Windows { rows: 0, bids: 0 };
    each_refined(log, topic, |row| {
        let started = row["window_start"].as_str().unwrap_or_default();
        let started = chrono::DateTime::parse_from_rfc3339(started)?.timestamp_millis();
        let group = Group {
            bids: integer(row, "bids")?,
            total: integer(row, "total")?,
            highest: integer(row, "highest")?,
        };
        found.bids += group.bids;
        found.rows += 1;
        expected.take(started, integer(row, "auction")?, group)
    })?;
    expect("rows of closed windows", closed, found.rows)?;
    Ok(found)
}

/// Compares the stateless job's refined topic with what is expected: records, their sum, their highest.
pub fn check_stateless(log: &dyn Log, topic: &str, expected: &Expected) -> Result<Group> {
    let mut found = Group::default();
    each_refined(log, topic, |row| {
        let price = integer(row, "price")?;
        found = Group { bids: found.bids + 1, total: found.total + price, highest: found.highest.max(price) };
        Ok(())
    })?;
    match found == expected.passing {
        true => Ok(found),
        false => Err(format!("refined: found {found:?}, expected {:?}", expected.passing).into()),
    }
}

/// Reads a refined topic.
fn each_refined(
    log: &dyn Log,
    topic: &str,
    mut each: impl FnMut(&serde_json::Value) -> Result<()>,
) -> Result<()> {
    let count = log.partitions(topic)?.ok_or("there is no refined topic")?;
    let partitions: Vec<_> = (0..count).map(|partition| TopicPartition::new(topic, partition)).collect();
    each_run(log, &partitions, |run| {
        for index in 0..run.records.len() {
            let value = run.records.get(index).value.ok_or("a refined record was deleted")?;
            each(&serde_json::from_slice(value)?)?;
        }
        Ok(())
    })
}

/// Reads partitions from their starts to the ends that they have now.
fn each_run(
    log: &dyn Log,
    partitions: &[TopicPartition],
    mut each: impl FnMut(&Run) -> Result<()>,
) -> Result<()> {
    let mut reader = log.reader()?;
    let mut from = Vec::new();
    let mut ends = BTreeMap::new();
    for partition in partitions {
        let bounds = log.bounds(partition)?;
        from.push((partition.clone(), bounds.start));
        if bounds.end > bounds.start {
            ends.insert(partition.clone(), bounds.end);
        }
    }
    reader.assign(&from)?;
    while !ends.is_empty() {
        for event in reader.poll(POLL)? {
            let (partition, position) = match event {
                Event::Run(run) => {
                    each(&run)?;
                    (run.partition.clone(), run.next)
                }
                Event::End { partition, position } => (partition, position),
                _ => continue,
            };
            if ends.get(&partition).is_some_and(|&end| position >= end) {
                ends.remove(&partition);
            }
        }
    }
    Ok(())
}

/// Every record is read once; those that pass the filter are refined.
fn check_counters(expected: &Expected, counters: &Counters, setting: &Setting) -> Result<()> {
    expect("records read", setting.shape.records, counters.read)?;
    expect("records refined", expected.passing.bids as u64, counters.refined)?;
    expect("records filtered", setting.shape.records - expected.passing.bids as u64, counters.filtered)
}

fn expect(what: &str, expected: u64, found: u64) -> Result<()> {
    match expected == found {
        true => Ok(()),
        false => Err(format!("{what}: {found}, expected {expected}").into()),
    }
}

fn integer(row: &serde_json::Value, name: &str) -> Result<i64> {
    row[name].as_i64().ok_or_else(|| format!("a refined record without an integer '{name}': {row}").into())
}
