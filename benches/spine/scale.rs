//! Threads, processes and partitions: records a second and CPU by how a topology is spread out; and what one record
//! costs broker and object store, for the sizing guide.
//!
//! Each run is `headwater run --until-end` of a new group, one or more processes at once. Records a second are
//! counted from the group's first commit to its last, so that joining is left out; CPU is all that the processes took,
//! starting and joining included.
//!
//! Invariant: a figure is printed only after the refined topic was found complete.

use std::fmt::Write;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use super::Result;
use super::bids::{self, Expected, Shape};
use super::jobs::{self, Setting};
use super::meter::cpu_of;
use super::place::Place;
use super::program::{self, Running, Settings};
use super::steady;

const LOOK_EVERY: Duration = Duration::from_millis(20);
const SEEN_WITHIN: Duration = Duration::from_secs(20);

#[derive(clap::Args)]
pub struct Arguments {
    /// Records of 200 bytes in each source topic
    #[arg(long, default_value_t = 2_000_000)]
    records: u64,
    #[arg(long, default_value_t = 10_000)]
    keys: u64,
    /// Workers of the one process, separated by commas
    #[arg(long, default_value = "1,2,4", value_delimiter = ',')]
    threads: Vec<usize>,
    /// Partitions of the source for these
    #[arg(long, default_value = "4,12", value_delimiter = ',')]
    partitions: Vec<i32>,
    /// Processes with one worker each on four partitions, where more than one, and the most of them on two
    #[arg(long, default_value = "1,2,3", value_delimiter = ',')]
    processes: Vec<usize>,
    /// Records a second of the steady run that bytes and requests are counted in; 0: none
    #[arg(long, default_value_t = 20_000)]
    steady_rate: u64,
    #[arg(long, default_value = "60s", value_parser = humantime::parse_duration)]
    steady: Duration,
    #[arg(long, default_value = "200ms", value_parser = humantime::parse_duration)]
    epoch: Duration,
    /// A Kafka to run against, host:port; by default the embedded broker, in a process of its own
    #[arg(long, value_name = "HOST:PORT")]
    brokers: Option<String>,
    /// The program to measure, if not the one that was built with the bench
    #[arg(long, value_name = "FILE", default_value = program::BINARY)]
    headwater: PathBuf,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Job {
    Window,
    Stateless,
}

impl Job {
    pub const ALL: [Job; 2] = [Job::Window, Job::Stateless];

    pub fn name(self) -> &'static str {
        match self {
            Job::Window => "window",
            Job::Stateless => "stateless",
        }
    }

    pub fn topology(self, name: &str, topic: &str) -> String {
        match self {
            Job::Window => bids::window_topology(name, topic),
            Job::Stateless => bids::stateless_topology(name, topic),
        }
    }
}

/// How a job is spread out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Spread {
    partitions: i32,
    processes: usize,
    threads: usize,
}

struct Row {
    job: Job,
    spread: Spread,
    records_per_second: f64,
    seconds: f64,
    cpu_seconds: f64,
    broker_cpu_seconds: Option<f64>,
    /// Bytes as the embedded broker keeps them: exchange, refined.
    stored: Option<(u64, u64)>,
    refined: u64,
}

pub fn measure(arguments: &Arguments) -> Result<()> {
    let place = Place::open("scale", arguments.brokers.as_deref())?;
    let mut spreads = Vec::new();
    for &partitions in &arguments.partitions {
        spreads.extend(arguments.threads.iter().map(|&threads| Spread { partitions, processes: 1, threads }));
    }
    let one_process = Spread { partitions: 4, processes: 1, threads: 1 };
    let more = arguments.processes.iter().map(|&processes| Spread { processes, ..one_process });
    spreads.extend(more.filter(|spread| spread.processes > 1).collect::<Vec<_>>());
    if let Some(&processes) = arguments.processes.iter().max() {
        spreads.push(Spread { partitions: 2, processes, ..one_process });
    }
    let mut rows = Vec::new();
    for job in Job::ALL {
        for &spread in &spreads {
            eprintln!("{}: {spread:?}…", job.name());
            rows.push(one(arguments, &place, job, spread)?);
        }
    }
    print!("{}", table(arguments, &rows));
    if arguments.steady_rate > 0 {
        let setting = steady::Steady {
            rate: arguments.steady_rate,
            time: arguments.steady,
            keys: arguments.keys,
            epoch: arguments.epoch,
            binary: arguments.headwater.clone(),
        };
        print!("{}", steady::measure(&place, &setting)?);
    }
    Ok(())
}

fn one(arguments: &Arguments, place: &Place, job: Job, spread: Spread) -> Result<Row> {
    let Spread { partitions, processes, threads } = spread;
    let setting = Setting {
        brokers: place.brokers.clone(),
        broker_pid: place.broker_pid(),
        shape: Shape { records: arguments.records, partitions, keys: arguments.keys },
        compression: "none".into(),
        threads,
        epoch: arguments.epoch,
        scratch: place.folder.clone(),
    };
    setting.shape.check()?;
    bids::write(&setting)?;
    let name = format!("{}-{}-{partitions}-{processes}-{threads}", place.prefix, job.name());
    let topology = job.topology(&name, &setting.topic());
    let broker_before = place.broker_pid().map(cpu_of).transpose()?;
    let began = Instant::now();
    let mut running = Vec::new();
    for process in 0..processes {
        let data_dir = place.folder.join(format!("{name}-{process}"));
        let settings = Settings {
            binary: arguments.headwater.clone(),
            brokers: place.brokers.clone(),
            data_dir,
            state_url: place.folder.join(format!("{name}-copies")).display().to_string(),
            s3: Default::default(),
            threads,
            epoch: arguments.epoch,
            checkpoint_interval: Duration::from_secs(30),
            state_budget_mib: 256,
        };
        let named = format!("{name}-{process}");
        running.push(Running::start(&place.folder, &named, &topology, &settings, true)?);
    }
    let records_per_second = pace(place, &setting, &name, &running)?;
    let mut cpu_seconds = 0.0;
    for process in running {
        cpu_seconds += process.wait()?;
    }
    let seconds = began.elapsed().as_secs_f64();
    let broker_after = place.broker_pid().map(cpu_of).transpose()?;
    let out = format!("{name}.out");
    let mut expected = Expected::new(&setting.shape);
    let refined = match job {
        Job::Window => jobs::check_windows(&*place.log, &out, &mut expected)?.rows,
        Job::Stateless => jobs::check_stateless(&*place.log, &out, &expected)?.bids as u64,
    };
    let exchange = place.stored_bytes(&format!("{name}.exchange.prices")).unwrap_or(0);
    Ok(Row {
        job,
        spread,
        records_per_second,
        seconds,
        cpu_seconds,
        broker_cpu_seconds: broker_after.zip(broker_before).map(|(after, before)| after - before),
        stored: place.stored_bytes(&out).map(|refined| (exchange, refined)),
        refined,
    })
}

/// Watches the group's positions in the source: records a second from its first commit to its last.
fn pace(place: &Place, setting: &Setting, name: &str, running: &[Running]) -> Result<f64> {
    let (group, partitions) = (format!("headwater.{name}"), setting.partitions());
    let mut first: Option<(Instant, i64)> = None;
    let mut last = (Instant::now(), 0);
    let mut ended_at = None;
    while last.1 < setting.shape.records as i64 {
        std::thread::sleep(LOOK_EVERY);
        let committed = place.log.committed(&group, &partitions)?;
        let read: i64 = committed.into_iter().flatten().map(|position| position.offset).sum();
        if read > last.1 {
            last = (Instant::now(), read);
            first.get_or_insert(last);
        } else if let Some(ended) = running.iter().find(|process| process.has_ended()) {
            // They end by themselves once all is read, which is seen at the next look.
            ended_at.get_or_insert(Instant::now());
            if ended_at.is_some_and(|at| at.elapsed() > SEEN_WITHIN) {
                return Err(format!("it ended before all was read: {}", ended.said()).into());
            }
        }
    }
    let Some((at, read)) = first.filter(|(at, _)| *at < last.0) else { return Ok(f64::NAN) };
    Ok((last.1 - read) as f64 / last.0.duration_since(at).as_secs_f64())
}

fn table(arguments: &Arguments, rows: &[Row]) -> String {
    let millions = arguments.records as f64 / 1e6;
    let mut table = format!(
        "\n{} records of 200 bytes, {} keys, {} cores\n\n",
        arguments.records,
        arguments.keys,
        std::thread::available_parallelism().map_or(0, usize::from)
    );
    table.push_str("| job | partitions | processes | workers each | records/s | whole run, s | CPU s per million | broker CPU s per million | exchange bytes a record | refined bytes a refined record |\n");
    table.push_str("|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|\n");
    for row in rows {
        let Spread { partitions, processes, threads } = row.spread;
        let or_none = |number: Option<f64>, digits: usize| {
            number.map_or("–".to_owned(), |number| format!("{number:.digits$}"))
        };
        let _ = writeln!(
            table,
            "| {} | {partitions} | {processes} | {threads} | {:.0} | {:.1} | {:.2} | {} | {} | {} |",
            row.job.name(),
            row.records_per_second,
            row.seconds,
            row.cpu_seconds / millions,
            or_none(row.broker_cpu_seconds.map(|seconds| seconds / millions), 2),
            or_none(row.stored.map(|(exchange, _)| exchange as f64 / arguments.records as f64), 1),
            or_none(row.stored.map(|(_, refined)| refined as f64 / row.refined.max(1) as f64), 1),
        );
    }
    table
}
