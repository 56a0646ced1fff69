//! End-to-end latency: from the moment a record is handed to its producer until what comes of it is visible to a
//! consumer that reads committed records only, at a steady rate.
//!
//! ```text
//! stateless  each record carries its send time through; one hop
//! windows    a window's result, counted from the moment at which a record that closes it could first be sent; two hops
//! changes    emit: changes. Each row carries the send time of its newest record; two hops
//! ```
//! Producer, broker and `headwater run` are processes of their own; the consumer is this one.
//!
//! Invariant: every stateless record that was sent is seen, or there is no figure.

use std::collections::HashMap;
use std::fmt::Write;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use clap::ValueEnum;

use super::Result;
use super::arrivals::{Arrivals, Latencies, integer, timestamp_us};
use super::meter::cpu_of;
use super::paced::{self, Load, Pace, now_us};
use super::place::Place;
use super::program::{self, Running, Settings};

const LOOK_EVERY: Duration = Duration::from_millis(20);
/// What was sent is seen within this, or something is wrong.
const SEEN_WITHIN: Duration = Duration::from_secs(30);
const WINDOW_MS: i64 = 1_000;

#[derive(clap::Args)]
pub struct Arguments {
    /// Records a second
    #[arg(long, default_value_t = 10_000)]
    rate: u64,
    /// How long is measured
    #[arg(long, default_value = "60s", value_parser = humantime::parse_duration)]
    time: Duration,
    /// How long it runs before that
    #[arg(long, default_value = "10s", value_parser = humantime::parse_duration)]
    warm_up: Duration,
    /// Epochs to measure with, separated by commas: `worker.epoch`
    #[arg(long, default_value = "200ms,50ms", value_delimiter = ',', value_parser = humantime::parse_duration)]
    epoch: Vec<Duration>,
    /// Jobs to measure, separated by commas; all by default
    #[arg(long, value_enum, value_delimiter = ',')]
    only: Vec<Job>,
    #[arg(long, default_value_t = 4)]
    partitions: i32,
    /// Keys that the windows are grouped by
    #[arg(long, default_value_t = 10_000)]
    keys: u64,
    #[arg(long, default_value_t = 1)]
    threads: usize,
    /// A Kafka to run against, host:port; by default the embedded broker, in a process of its own
    #[arg(long, value_name = "HOST:PORT")]
    brokers: Option<String>,
    /// The program to measure, if not the one that was built with the bench
    #[arg(long, value_name = "FILE", default_value = program::BINARY)]
    headwater: PathBuf,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Job {
    Stateless,
    Windows,
    Changes,
}

impl Job {
    fn name(self) -> &'static str {
        match self {
            Job::Stateless => "stateless",
            Job::Windows => "windows",
            Job::Changes => "changes",
        }
    }

    fn describe(self) -> &'static str {
        match self {
            Job::Stateless => "stateless: filter, 3 columns",
            Job::Windows => "windows: 1 s count/sum/max by key, when closed",
            Job::Changes => "changes: 10 s count/sum/max by key, emit: changes",
        }
    }

    fn topology(self, name: &str, topic: &str, out: &str) -> String {
        let price_min = paced::PRICE_MIN;
        let rest = match self {
            Job::Stateless => format!(
                "views:
  refined: select auction, price, sent_us from bids where price >= {price_min}
sinks:
  refined: {{topic: {{name: {out}, format: json}}}}
"
            ),
            Job::Windows | Job::Changes => format!(
                "views:
  refined: |
    select window_start, window_end, auction, count(*) as bids, sum(price) as total, max(price) as highest,
      max(sent_us) as sent_us
    from tumble(bids, date_time, interval '{}')
    where price >= {price_min}
    group by window_start, window_end, auction
sinks:
  refined:
    topic: {{name: {out}, format: json, key: [auction, window_start]}}
{}",
                if self == Job::Windows { "1 second" } else { "10 seconds" },
                if self == Job::Changes { "    emit: changes\n" } else { "" }
            ),
        };
        paced::source(name, topic, "10s") + &rest
    }
}

/// Latencies of what was sent within the time that is measured.
#[derive(Default)]
struct Seen {
    /// Records seen in all.
    records: u64,
    from_us: i64,
    until_us: i64,
    latencies: Latencies,
    /// The newest send time seen by key and window.
    newest: HashMap<(i64, i64), i64>,
}

impl Seen {
    fn add(&mut self, sent_us: i64, at_us: i64) {
        if (self.from_us..self.until_us).contains(&sent_us) {
            self.latencies.add(at_us - sent_us);
        }
    }
}

struct Row {
    job: Job,
    epoch: Duration,
    seen: usize,
    p50: f64,
    p99: f64,
    max: f64,
    /// Of one core.
    run_cpu: f64,
    broker_cpu: Option<f64>,
    behind_ms_max: f64,
}

pub fn measure(arguments: &Arguments) -> Result<()> {
    let place = Place::open("latency", arguments.brokers.as_deref())?;
    let mut rows = Vec::new();
    for job in [Job::Stateless, Job::Windows, Job::Changes] {
        if !arguments.only.is_empty() && !arguments.only.contains(&job) {
            continue;
        }
        for &epoch in &arguments.epoch {
            let name = format!("{}-{}-{}", place.prefix, job.name(), epoch.as_millis());
            let (topic, out) = (format!("{name}.in"), format!("{name}.out"));
            let topology = job.topology(&name, &topic, &out);
            if let Some(why) = program::refusal(&arguments.headwater, &place.folder, &topology)? {
                eprintln!("SKIPPED {}: this program does not take its topology: {why}", job.name());
                break;
            }
            eprintln!("{}, epochs of {} ms…", job.describe(), epoch.as_millis());
            place.create(&[&topic, &out], arguments.partitions, Some(60))?;
            rows.push(one(arguments, &place, job, epoch, &name, &topology)?);
        }
    }
    print!("{}", table(arguments, &rows));
    Ok(())
}

fn one(
    arguments: &Arguments,
    place: &Place,
    job: Job,
    epoch: Duration,
    name: &str,
    topology: &str,
) -> Result<Row> {
    let data_dir = place.folder.join(name);
    let settings = Settings {
        binary: arguments.headwater.clone(),
        brokers: place.brokers.clone(),
        state_url: data_dir.join("checkpoints").display().to_string(),
        data_dir,
        s3: Default::default(),
        threads: arguments.threads,
        epoch,
        checkpoint_interval: Duration::from_secs(30),
        state_budget_mib: 256,
    };
    let mut running = Running::start(&place.folder, name, topology, &settings, false)?;
    running.metrics()?;
    let mut arrivals = Arrivals::watch(&place.log, &format!("{name}.out"), Seen::default(), each(job))?;
    let mut pace = Pace::start(&Load {
        brokers: place.brokers.clone(),
        topic: format!("{name}.in"),
        partitions: arguments.partitions,
        rate: arguments.rate,
        keys: arguments.keys,
        shift_ms: 0,
        price_min: paced::PRICE_MIN,
    })?;
    let from_us = now_us() + arguments.warm_up.as_micros() as i64;
    let until_us = from_us + arguments.time.as_micros() as i64;
    {
        let mut seen = arrivals.seen();
        (seen.from_us, seen.until_us) = (from_us, until_us);
    }
    let cpu = |running: &Running| -> Result<(f64, Option<f64>)> {
        Ok((running.cpu_seconds()?, place.broker_pid().map(cpu_of).transpose()?))
    };
    let mut wait = |until_us: i64, running: &mut Running| -> Result<()> {
        while now_us() < until_us {
            running.check()?;
            pace.check()?;
            arrivals.check()?;
            std::thread::sleep(LOOK_EVERY);
        }
        Ok(())
    };
    wait(from_us, &mut running)?;
    let before = cpu(&running)?;
    wait(until_us, &mut running)?;
    let after = cpu(&running)?;
    let produced = pace.stop()?;
    let until = Instant::now() + SEEN_WITHIN;
    while job == Job::Stateless && arrivals.seen().records < produced.passing {
        running.check()?;
        if Instant::now() > until {
            let seen = arrivals.seen().records;
            return Err(format!("{seen} of {} records were seen", produced.passing).into());
        }
        std::thread::sleep(LOOK_EVERY);
    }
    let seen = std::mem::take(&mut *arrivals.seen());
    running.stop()?;
    if job == Job::Stateless && seen.records != produced.passing {
        return Err(format!("{} records were seen, {} expected", seen.records, produced.passing).into());
    }
    let mut latencies = seen.latencies;
    if latencies.count() == 0 {
        return Err("nothing was seen".into());
    }
    let seconds = arguments.time.as_secs_f64();
    Ok(Row {
        job,
        epoch,
        seen: latencies.count(),
        p50: latencies.quantile_ms(0.5),
        p99: latencies.quantile_ms(0.99),
        max: latencies.quantile_ms(1.0),
        run_cpu: (after.0 - before.0) / seconds,
        broker_cpu: after.1.zip(before.1).map(|(after, before)| (after - before) / seconds),
        behind_ms_max: produced.behind_ms_max,
    })
}

/// What is made of a refined record.
fn each(job: Job) -> impl FnMut(&mut Seen, &[u8], i64) + Send + 'static {
    move |seen, value, at_us| {
        seen.records += 1;
        match job {
            Job::Stateless => {
                if let Some(sent_us) = integer(value, "sent_us") {
                    seen.add(sent_us, at_us);
                }
            }
            // Event time is the wall's: a record that closes the window can be sent from its end on.
            Job::Windows => {
                if let Some(end_us) = timestamp_us(value, "window_end") {
                    debug_assert_eq!(end_us % (WINDOW_MS * 1000), 0);
                    seen.add(end_us, at_us);
                }
            }
            Job::Changes => {
                let (Some(sent_us), Some(auction), Some(end_us)) =
                    (integer(value, "sent_us"), integer(value, "auction"), timestamp_us(value, "window_end"))
                else {
                    return;
                };
                // A row that says nothing new, as a window's last one may, is no record's.
                if seen.newest.insert((auction, end_us), sent_us).is_none_or(|before| before < sent_us) {
                    seen.add(sent_us, at_us);
                }
            }
        }
    }
}

fn table(arguments: &Arguments, rows: &[Row]) -> String {
    let mut table = format!(
        "\n{} records/s of 200 bytes, {} partitions, {} keys, {} worker(s), {} s after {} s; {}\n\n",
        arguments.rate,
        arguments.partitions,
        arguments.keys,
        arguments.threads,
        arguments.time.as_secs(),
        arguments.warm_up.as_secs(),
        if arguments.brokers.is_some() { "Kafka" } else { "the embedded broker" }
    );
    table.push_str("| job | epoch, ms | p50, ms | p99, ms | max, ms | rows seen | run, % of a core | broker, % of a core | producer behind by, ms |\n");
    table.push_str("|---|--:|--:|--:|--:|--:|--:|--:|--:|\n");
    for row in rows {
        let broker = row.broker_cpu.map_or("–".to_owned(), |cpu| format!("{:.0}", cpu * 100.0));
        let _ = writeln!(
            table,
            "| {} | {} | {:.0} | {:.0} | {:.0} | {} | {:.0} | {broker} | {:.0} |",
            row.job.describe(),
            row.epoch.as_millis(),
            row.p50,
            row.p99,
            row.max,
            row.seen,
            row.run_cpu * 100.0,
            row.behind_ms_max,
        );
    }
    table
}
