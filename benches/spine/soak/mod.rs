//! The soak: a steady load for as long as is wanted, a million live keys of state, windows that open and close, a
//! checkpoint every few seconds; and whether anything grows.
//!
//! ```text
//! sample   what is looked at every few seconds, and the CSV
//! judge    the last third against the first, after a warm-up
//! plot     the same as small multiples in SVG
//! ```
//! Producer, broker and `headwater run` are processes of their own; the consumer is this one.
//!
//! Invariant: whatever ends it early (Ctrl-C, a process that fails), what was seen until then is written.

mod judge;
mod plot;
mod sample;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use headwater::engine::TopicNames;
use headwater::plan;

use super::Result;
use super::arrivals::{Arrivals, Latencies, integer, timestamp_us};
use super::paced::{self, Load, Pace};
use super::place::Place;
use super::program::{self, Running, Settings};
use super::standing::{self, CLOSING, Closing, PASSING};
use sample::{Sample, Sampler};

const LOOK_EVERY: Duration = Duration::from_millis(50);
const CLOSING_WINDOWS: Closing = Closing { size: Duration::from_secs(10), key: "bidder" };
const SOURCE_KEPT_S: u64 = 60;

#[derive(clap::Args)]
pub struct Arguments {
    /// How long it lasts
    #[arg(long, default_value = "1h", value_parser = humantime::parse_duration)]
    soak: Duration,
    /// What is left out of the judgement at its beginning; at most a fifth of the whole
    #[arg(long, default_value = "10m", value_parser = humantime::parse_duration)]
    warm_up: Duration,
    /// Records a second
    #[arg(long, default_value_t = 5_000)]
    rate: u64,
    /// Live keys of state
    #[arg(long, default_value_t = 1_000_000)]
    state_keys: u64,
    #[arg(long, default_value = "18s", value_parser = humantime::parse_duration)]
    checkpoint_interval: Duration,
    #[arg(long, default_value = "200ms", value_parser = humantime::parse_duration)]
    epoch: Duration,
    /// How often is looked
    #[arg(long, default_value = "10s", value_parser = humantime::parse_duration)]
    every: Duration,
    #[arg(long, default_value_t = 4)]
    partitions: i32,
    #[arg(long, default_value_t = 2)]
    threads: usize,
    /// Where the samples go
    #[arg(long, value_name = "FILE", default_value = "target/soak.csv")]
    csv: PathBuf,
    /// Where the plot goes
    #[arg(long, value_name = "FILE", default_value = "target/soak.svg")]
    svg: PathBuf,
    /// The program to measure, if not the one that was built with the bench
    #[arg(long, value_name = "FILE", default_value = program::BINARY)]
    headwater: PathBuf,
    /// Judge and plot the samples of an earlier soak instead
    #[arg(long, value_name = "CSV")]
    read: Option<PathBuf>,
}

/// An error if something grows.
pub fn measure(arguments: &Arguments) -> Result<()> {
    let samples = match &arguments.read {
        Some(csv) => sample::read(csv)?,
        None => soak(arguments)?,
    };
    let span = samples.last().map_or(0.0, |sample| sample.seconds);
    let warm_up = arguments.warm_up.as_secs_f64().min(span / 5.0);
    let verdicts = judge::judge(&samples, warm_up);
    std::fs::write(&arguments.svg, plot::svg(&samples, &verdicts, warm_up))?;
    print!("{}", judge::table(&verdicts, &samples, warm_up));
    eprintln!("{} and {}", arguments.csv.display(), arguments.svg.display());
    let growing: Vec<&str> =
        verdicts.iter().filter(|verdict| !verdict.is_flat()).map(|verdict| verdict.name).collect();
    match growing[..] {
        [] => Ok(()),
        _ => Err(format!("it grows: {}", growing.join(", ")).into()),
    }
}

fn soak(arguments: &Arguments) -> Result<Vec<Sample>> {
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
        signal_hook::flag::register(signal, Arc::clone(&stop))?;
    }
    let place = Place::open("soak", None)?;
    let shift_ms = standing::shift_ms();
    standing::create_topics(&place, arguments.partitions, Some(SOURCE_KEPT_S))?;
    let topology = standing::topology(&place, CLOSING_WINDOWS);
    let plan = plan::parse(&topology, "bench")?;
    // A trimmed segment goes as a whole: large ones would fill for most of the hour.
    let exchanges: Vec<String> =
        TopicNames::of(&plan).exchanges.iter().flatten().map(ToString::to_string).collect();
    let exchanges: Vec<&str> = exchanges.iter().map(String::as_str).collect();
    place.create(&exchanges, arguments.partitions.max(4), None)?;

    let data_dir = place.folder.join("data");
    let settings = Settings {
        binary: arguments.headwater.clone(),
        brokers: place.brokers.clone(),
        state_url: data_dir.join("checkpoints").display().to_string(),
        data_dir,
        s3: Default::default(),
        threads: arguments.threads,
        epoch: arguments.epoch,
        checkpoint_interval: arguments.checkpoint_interval,
        state_budget_mib: 256,
    };
    let mut running = Running::start(&place.folder, "soak", &topology, &settings, false)?;
    running.metrics()?;
    let latencies = Arrivals::watch(
        &place.log,
        &standing::topic(&place, PASSING),
        Latencies::default(),
        |seen, value, at_us| {
            if let Some(sent_us) = integer(value, "sent_us") {
                seen.add(at_us - sent_us);
            }
        },
    )?;
    // The first record that closes a window can be sent at its end.
    let closings = Arrivals::watch(
        &place.log,
        &standing::topic(&place, CLOSING),
        Latencies::default(),
        move |seen: &mut Latencies, value, at_us| {
            if let Some(end_us) = timestamp_us(value, "window_end") {
                seen.add(at_us - (end_us + shift_ms * 1000));
            }
        },
    )?;
    eprintln!("{} keys of state, then {} records/s…", arguments.state_keys, arguments.rate);
    let topic = standing::topic(&place, "bids");
    paced::fill(&*place.log, &topic, arguments.partitions, arguments.state_keys, shift_ms)?;
    let pace = Pace::start(&Load {
        brokers: place.brokers.clone(),
        topic,
        partitions: arguments.partitions,
        rate: arguments.rate,
        keys: arguments.state_keys,
        shift_ms,
        price_min: standing::PASSING_PRICE,
    })?;
    let sampler =
        Sampler { place: &place, plan: &plan, settings: &settings, running, pace, latencies, closings };
    let samples = watch(arguments, sampler, &stop);
    eprintln!("{} samples", samples.len());
    Ok(samples)
}

/// Samples until the time is over, it is told to stop, or something fails.
fn watch(arguments: &Arguments, mut sampler: Sampler<'_>, stop: &AtomicBool) -> Vec<Sample> {
    let (began, mut samples) = (Instant::now(), Vec::<Sample>::new());
    let mut next = arguments.every;
    while began.elapsed() < arguments.soak && !stop.load(Ordering::Relaxed) {
        std::thread::sleep(LOOK_EVERY);
        if began.elapsed() < next {
            continue;
        }
        next += arguments.every;
        let taken = sampler.take(began.elapsed().as_secs_f64(), samples.last());
        let written = taken.and_then(|sample| {
            eprintln!("{}", sample.line());
            samples.push(sample);
            sample::write(&arguments.csv, &samples)
        });
        if let Err(error) = written {
            eprintln!("it ends early: {error}");
            break;
        }
    }
    if let Err(error) = sampler.stop() {
        eprintln!("it did not end well: {error}");
    }
    samples
}
