//! What a record costs: the jobs that Headwater is for, against the raw limit of the same machine and moment.
//!
//! ```text
//! bids      the records: generated, written to a topic, and what the jobs must make of them
//! meter     CPU, memory and time of one job
//! jobs      read, decode, window, stateless, replay: each in a process of its own
//! alone     steps by themselves: poll, encode, produce
//! report    the table and target/bench.json
//!
//! latency   record in → refined record visible, at a steady rate
//! recovery  kill -9 with a million keys of state → first new results
//! scale     threads, processes, partitions; steady: bytes and requests for a sizing guide
//! soak      an hour at a steady rate: does anything grow?
//!
//! program, place, paced, arrivals, standing, process   what these run and see
//! ```
//! The embedded broker runs in another process, so that its CPU is told apart.
//!
//! Invariant: a job's figures are printed only after its output was found complete.

#![allow(clippy::disallowed_methods, reason = "a benchmark is about the clock")]

mod alone;
mod arrivals;
mod bids;
mod jobs;
mod latency;
mod meter;
mod paced;
mod place;
mod process;
mod program;
mod recovery;
mod report;
mod scale;
mod soak;
mod standing;
mod steady;

use std::error::Error;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use clap::{Parser, Subcommand};
use headwater::broker::{Broker, Options};

use bids::Shape;
use jobs::{Job, Setting};
use report::Report;

type Result<T, E = Box<dyn Error>> = std::result::Result<T, E>;

/// Where the records, the state and the lake of a run go unless `--data` names a folder.
const DATA: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/target/bench-data");
const REPORT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/target/bench.json");

/// Measures what a record costs and writes target/bench.json
#[derive(Parser)]
#[command(name = "spine")]
struct Arguments {
    /// Records of 200 bytes in the source topic
    #[arg(long, default_value_t = 5_000_000)]
    records: u64,
    #[arg(long, default_value_t = 4)]
    partitions: i32,
    /// Keys that the windows are grouped by
    #[arg(long, default_value_t = 10_000)]
    keys: u64,
    /// Workers of the jobs; CPU per record is clearest with one
    #[arg(long, default_value_t = 1)]
    threads: usize,
    /// How long an epoch lasts: `worker.epoch`
    #[arg(long, default_value = "200ms", value_parser = humantime::parse_duration)]
    epoch: Duration,
    /// Jobs to measure, separated by commas; all by default
    #[arg(long, value_enum, value_delimiter = ',')]
    only: Vec<Job>,
    /// Measure each job so often and report the run that took the least CPU
    #[arg(long, default_value_t = 1)]
    rounds: u32,
    /// A Kafka to run against, host:port; by default the embedded broker, in a process of its own
    #[arg(long, value_name = "HOST:PORT")]
    brokers: Option<String>,
    /// How the records lie in the source topic: none, lz4, snappy or gzip
    #[arg(long, default_value = "none")]
    compression: String,
    /// Keep the embedded broker's topics in this folder: the next run finds its records there
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// Serve a broker on this folder until stdin ends
    #[arg(long, hide = true)]
    serve_broker: Option<PathBuf>,
    /// Be the process that runs one job
    #[arg(long, hide = true, value_enum)]
    job: Option<Job>,
    #[arg(long, hide = true)]
    broker_pid: Option<u32>,
    #[arg(long, hide = true)]
    scratch: Option<PathBuf>,
    /// Passed by `cargo bench`
    #[arg(long, hide = true, global = true)]
    bench: bool,
    #[command(subcommand)]
    measurement: Option<Measurement>,
}

/// What is measured apart from the jobs.
#[derive(Subcommand)]
enum Measurement {
    /// End-to-end latency: record in → refined record visible, at a steady rate
    Latency(latency::Arguments),
    /// Time to recover: kill -9 with a million keys of state → first new results
    Recovery(recovery::Arguments),
    /// Threads, processes and partitions; bytes and requests for the sizing guide
    Scale(scale::Arguments),
    /// An hour at a steady rate: does anything grow?
    Soak(soak::Arguments),
    /// Be the process that produces
    #[command(hide = true)]
    Produce(paced::Load),
}

impl Arguments {
    fn shape(&self) -> Shape {
        Shape { records: self.records, partitions: self.partitions, keys: self.keys }
    }

    fn setting(&self) -> Result<Setting> {
        let (Some(brokers), Some(scratch)) = (self.brokers.clone(), self.scratch.clone()) else {
            return Err("a job needs --brokers and --scratch".into());
        };
        Ok(Setting {
            brokers,
            broker_pid: self.broker_pid,
            shape: self.shape(),
            compression: self.compression.clone(),
            threads: self.threads,
            epoch: self.epoch,
            scratch,
        })
    }
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    match &arguments.measurement {
        None => {}
        Some(Measurement::Latency(arguments)) => return latency::measure(arguments),
        Some(Measurement::Recovery(arguments)) => return recovery::measure(arguments),
        Some(Measurement::Scale(arguments)) => return scale::measure(arguments),
        Some(Measurement::Soak(arguments)) => return soak::measure(arguments),
        Some(Measurement::Produce(load)) => return paced::produce(load),
    }
    if let Some(folder) = &arguments.serve_broker {
        return serve(folder);
    }
    if let Some(job) = arguments.job {
        let measured = jobs::run(job, &arguments.setting()?)?;
        println!("{}", serde_json::to_string(&measured)?);
        return Ok(());
    }
    let (shape, own_data) = (arguments.shape(), PathBuf::from(DATA));
    shape.check()?;
    let _ = std::fs::remove_dir_all(&own_data); // left by a run that was killed
    let broker = match &arguments.brokers {
        Some(_) => None,
        None => Some(Server::start(&arguments.data.clone().unwrap_or_else(|| own_data.join("broker")))?),
    };
    let Some(brokers) = arguments.brokers.clone().or_else(|| broker.as_ref().map(|b| b.address.clone()))
    else {
        return Err("no broker".into());
    };
    let arguments =
        Arguments { brokers: Some(brokers), scratch: Some(own_data.join("scratch")), ..arguments };
    let setting = arguments.setting()?;
    eprintln!("writing {} to {}", shape.text(), setting.brokers);
    bids::write(&setting)?;

    let mut report = Report::new(&setting);
    for job in Job::ALL.into_iter().filter(|job| arguments.only.is_empty() || arguments.only.contains(job)) {
        for _ in 0..arguments.rounds.max(1) {
            eprintln!("{}…", job.describe());
            report.add(job, measure_apart(job, &setting, broker.as_ref())?);
        }
    }
    if broker.is_none() {
        bids::remove(&setting)?;
    }
    drop(broker);
    let _ = std::fs::remove_dir_all(&own_data);
    print!("{}", report.table());
    std::fs::write(REPORT, serde_json::to_vec_pretty(&report.json())?)?;
    println!("\nwritten to target/bench.json");
    Ok(())
}

/// Runs one job in a process of its own, so that its CPU and peak memory are nobody else's.
fn measure_apart(job: Job, setting: &Setting, broker: Option<&Server>) -> Result<meter::Measured> {
    let Shape { records, partitions, keys } = setting.shape;
    let mut command = Command::new(std::env::current_exe()?);
    command.args(["--job", job.name(), "--brokers", &setting.brokers, "--compression", &setting.compression]);
    command.args(["--records", &records.to_string(), "--partitions", &partitions.to_string()]);
    command.args(["--keys", &keys.to_string(), "--threads", &setting.threads.to_string()]);
    command.args(["--epoch", &humantime::format_duration(setting.epoch).to_string()]);
    command.arg("--scratch").arg(&setting.scratch);
    if let Some(broker) = broker {
        command.args(["--broker-pid", &broker.child.id().to_string()]);
    }
    let output = command.stderr(Stdio::inherit()).output()?;
    if !output.status.success() {
        return Err(format!("{}: the job failed ({})", job.name(), output.status).into());
    }
    Ok(serde_json::from_slice(&output.stdout)?)
}

/// The embedded broker in another process, which ends with this one.
struct Server {
    child: Child,
    address: String,
}

impl Server {
    fn start(folder: &Path) -> Result<Self> {
        let mut child = Command::new(std::env::current_exe()?)
            .arg("--serve-broker")
            .arg(folder)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let mut address = String::new();
        if let Some(stdout) = child.stdout.take() {
            BufReader::new(stdout).read_line(&mut address)?;
        }
        match address.trim() {
            "" => Err("the broker's process did not start".into()),
            address => Ok(Self { address: address.to_owned(), child }),
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        let _ = self.child.wait();
    }
}

fn serve(folder: &Path) -> Result<()> {
    let listen = (std::net::Ipv4Addr::LOCALHOST, 0).into();
    let broker = Broker::start(&Options { listen, data_dir: folder.to_owned() })?;
    println!("{}", broker.address());
    std::io::stdout().flush()?;
    std::io::stdin().read_to_end(&mut Vec::new())?;
    broker.stop()?;
    Ok(())
}
