//! Time to recover: `kill -9` of a process with a million keys of state, its last checkpoint a minute old, until the
//! first new results are visible; and what that time goes to.
//!
//! Records keep coming all the while. Two ways: on the same machine, and on one that has nothing but the copies of
//! the checkpoint. The other machine is another member of the group: it waits until its predecessor's session (10 s)
//! and transaction (15 s) are over.
//!
//! Invariant: a result counts as new only if a record sent after the kill is in it.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use headwater::plan::{self, Plan};
use headwater::serve;

use super::Result;
use super::arrivals::{Arrivals, integer, timestamp_us};
use super::paced::{self, Load, Pace, now_us};
use super::place::Place;
use super::program::{self, Metrics, Running, Settings};
use super::standing::{self, CLOSING, Closing, PASSING};

const LOOK_EVERY: Duration = Duration::from_millis(10);
const CAUGHT_UP_WITHIN: Duration = Duration::from_secs(900);
const RECOVERED_WITHIN: Duration = Duration::from_secs(300);
/// While the state is built up.
const CHECKPOINTS_EVERY: Duration = Duration::from_secs(2);
/// While it must not be checkpointed.
const NEVER: Duration = Duration::from_secs(24 * 3600);
const CLOSING_WINDOWS: Closing = Closing { size: Duration::from_millis(200), key: "channel" };

#[derive(clap::Args)]
pub struct Arguments {
    /// Live keys of state
    #[arg(long, default_value_t = 1_000_000)]
    state_keys: u64,
    /// How long records come after the last checkpoint
    #[arg(long, default_value = "60s", value_parser = humantime::parse_duration)]
    since: Duration,
    /// Records a second
    #[arg(long, default_value_t = 5_000)]
    rate: u64,
    #[arg(long, default_value_t = 4)]
    partitions: i32,
    #[arg(long, default_value_t = 2)]
    threads: usize,
    /// Besides a folder, keep the copies here: s3://bucket/prefix
    #[arg(long, value_name = "URL")]
    s3: Option<String>,
    /// What the config says under s3, KEY=VALUE separated by commas
    #[arg(long, value_delimiter = ',', value_name = "KEY=VALUE")]
    s3_config: Vec<String>,
    /// A Kafka to run against, host:port; by default the embedded broker, in a process of its own
    #[arg(long, value_name = "HOST:PORT")]
    brokers: Option<String>,
    /// The program to measure, if not the one that was built with the bench
    #[arg(long, value_name = "FILE", default_value = program::BINARY)]
    headwater: PathBuf,
}

/// When the first result of records sent after `after_us` was seen.
#[derive(Default)]
struct First {
    after_us: i64,
    seen_us: Option<i64>,
}

impl First {
    fn look(&mut self, sent_us: Option<i64>, at_us: i64) {
        if self.seen_us.is_none() && sent_us.is_some_and(|sent_us| sent_us > self.after_us) {
            self.seen_us = Some(at_us);
        }
    }
}

/// One recovery, in seconds.
struct Recovery {
    what: String,
    stateless: f64,
    keyed: f64,
    /// Process, topics, group, loading, folding, first commit, until it is seen.
    parts: [f64; 7],
    folded: f64,
    got_mib: f64,
}

pub fn measure(arguments: &Arguments) -> Result<()> {
    let mut recoveries = Vec::new();
    recoveries.extend(from(arguments, "a folder", None)?);
    if let Some(url) = &arguments.s3 {
        recoveries.extend(from(arguments, "S3", Some(url))?);
    }
    print!("{}", table(arguments, &recoveries));
    Ok(())
}

/// Both recoveries, with the copies at one place.
fn from(arguments: &Arguments, copies: &str, url: Option<&str>) -> Result<Vec<Recovery>> {
    let place = Place::open("recovery", arguments.brokers.as_deref())?;
    let shift_ms = standing::shift_ms();
    standing::create_topics(&place, arguments.partitions, None)?;
    let topology = standing::topology(&place, CLOSING_WINDOWS);
    let plan = Arc::new(plan::parse(&topology, "bench")?);
    let folder = place.folder.join("checkpoints").display().to_string();
    let s3 = arguments.s3_config.iter().filter_map(|pair| pair.split_once('='));
    let settings = |data_dir: &str, checkpoint_interval| Settings {
        binary: arguments.headwater.clone(),
        brokers: place.brokers.clone(),
        data_dir: place.folder.join(data_dir),
        state_url: url.map_or_else(|| folder.clone(), |url| format!("{url}/{}", place.prefix)),
        s3: s3.clone().map(|(key, value)| (key.to_owned(), value.to_owned())).collect::<BTreeMap<_, _>>(),
        threads: arguments.threads,
        epoch: Duration::from_millis(200),
        checkpoint_interval,
        state_budget_mib: 2048,
    };
    let load = |rate| Load {
        brokers: place.brokers.clone(),
        topic: standing::topic(&place, "bids"),
        partitions: arguments.partitions,
        rate,
        keys: arguments.state_keys,
        shift_ms,
        price_min: standing::PASSING_PRICE,
    };

    eprintln!("copies in {copies}: building {} keys of state…", arguments.state_keys);
    paced::fill(&*place.log, &load(1).topic, arguments.partitions, arguments.state_keys, shift_ms)?;
    let start =
        |name: &str, settings: &Settings| Running::start(&place.folder, name, &topology, settings, false);
    let mut building = start("building", &settings("here", CHECKPOINTS_EVERY))?;
    // A checkpoint is begun by a commit: a few records go on coming.
    let pace = Pace::start(&load(100))?;
    caught_up(&plan, &place, &mut building, 100)?;
    let built = building.metrics()?.sum("headwater_checkpoints_total", "");
    let tasks = 2.0 * f64::from(arguments.partitions.max(4));
    within(CAUGHT_UP_WITHIN, "a checkpoint of every task", || {
        Ok((building.metrics()?.sum("headwater_checkpoints_total", "") >= built + 2.0 * tasks).then_some(()))
    })?;
    pace.stop()?;
    building.stop()?;

    eprintln!("{} s of {} records/s without a checkpoint…", arguments.since.as_secs(), arguments.rate);
    let unchecked = settings("here", NEVER);
    let mut before = start("before", &unchecked)?;
    let mut pace = Pace::start(&load(arguments.rate))?;
    let until = Instant::now() + arguments.since;
    while Instant::now() < until {
        before.check()?;
        pace.check()?;
        std::thread::sleep(LOOK_EVERY);
    }
    before.kill()?;
    let restart = |name: &str, settings: &Settings| {
        recover(&plan, &place, shift_ms, arguments.rate, || start(name, settings))
    };
    let (here, running) = restart("here", &unchecked)?;
    let here = here.named(format!("its own state; copies in {copies}"));
    eprintln!("{:.1} s here; and on a machine with nothing…", here.stateless.max(here.keyed));
    running.kill()?;
    let (there, running) = restart("there", &settings("there", NEVER))?;
    let there = there.named(format!("empty; copies in {copies}"));
    running.stop()?;
    pace.stop()?;
    Ok(vec![here, there])
}

/// Starts it and waits for the first new results.
fn recover(
    plan: &Arc<Plan>,
    place: &Place,
    shift_ms: i64,
    rate: u64,
    start: impl Fn() -> Result<Running>,
) -> Result<(Recovery, Running)> {
    let killed_us = now_us();
    let first = || First { after_us: killed_us, seen_us: None };
    let mut passing = Arrivals::watch(
        &place.log,
        &standing::topic(place, PASSING),
        first(),
        |first: &mut First, value, at_us| first.look(integer(value, "sent_us"), at_us),
    )?;
    // A window that began after the kill holds only records sent after it.
    let mut closing = Arrivals::watch(
        &place.log,
        &standing::topic(place, CLOSING),
        first(),
        move |first: &mut First, value, at_us| {
            let started_us = timestamp_us(value, "window_start").map(|event| event + shift_ms * 1000);
            first.look(started_us, at_us);
        },
    )?;
    let spawned_us = now_us();
    let mut running = start()?;
    let (stateless_us, keyed_us) = within(RECOVERED_WITHIN, "new results", || {
        running.check()?;
        passing.check()?;
        closing.check()?;
        Ok(passing.seen().seen_us.zip(closing.seen().seen_us))
    })?;
    let metrics = running.metrics()?;
    let seconds = |seen_us: i64| (seen_us - spawned_us) as f64 / 1e6;
    let recovery = split(&metrics, running.planned_seconds(), seconds(stateless_us), seconds(keyed_us));
    caught_up(plan, place, &mut running, rate)?;
    Ok((recovery, running))
}

/// What the time went to, as the process itself says.
fn split(metrics: &Metrics, planned: f64, stateless: f64, keyed: f64) -> Recovery {
    let step = |name: &str| metrics.sum("headwater_start_seconds", &format!("step=\"{name}\""));
    let [admitted, assigned, recovered, committed] =
        ["admitted", "assigned", "recovered", "committed"].map(step);
    // Workers recover beside each other: the time of the slowest is shared out as all their work is.
    let [load, fold] = ["load", "fold"]
        .map(|phase| metrics.sum("headwater_recovery_seconds", &format!("phase=\"{phase}\"")));
    let share = if load + fold > 0.0 { load / (load + fold) } else { 0.0 };
    let recovering = recovered - assigned;
    let visible = stateless.max(keyed) - planned - committed;
    Recovery {
        what: String::new(),
        stateless,
        keyed,
        parts: [
            planned,
            admitted,
            assigned - admitted,
            recovering * share,
            recovering * (1.0 - share),
            committed - recovered,
            visible,
        ],
        folded: metrics.sum("headwater_recovery_records", ""),
        got_mib: metrics.sum("headwater_copy_bytes_total", "operation=\"get\"") / f64::from(1 << 20),
    }
}

impl Recovery {
    fn named(self, what: String) -> Self {
        Self { what, ..self }
    }
}

/// Waits until the group is no more than a second behind.
fn caught_up(plan: &Plan, place: &Place, running: &mut Running, rate: u64) -> Result<()> {
    within(CAUGHT_UP_WITHIN, "the end of the lag", || {
        running.check()?;
        let lag = serve::lag(plan, &*place.log)?;
        let unread: i64 = lag.partitions.iter().map(|partition| partition.lag_records).sum();
        let whole = lag.missing.is_empty() && lag.partitions.iter().all(|at| at.committed.is_some());
        std::thread::sleep(Duration::from_millis(200));
        Ok((whole && unread <= rate as i64).then_some(()))
    })
}

fn within<T>(limit: Duration, what: &str, mut look: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let until = Instant::now() + limit;
    loop {
        if let Some(found) = look()? {
            return Ok(found);
        }
        if Instant::now() > until {
            return Err(format!("{what} did not come within {} s", limit.as_secs()).into());
        }
        std::thread::sleep(LOOK_EVERY);
    }
}

fn table(arguments: &Arguments, recoveries: &[Recovery]) -> String {
    let mut table = format!(
        "\n{} keys of state, {} s of {} records/s since the checkpoint, {} partitions, {} workers\n\n",
        arguments.state_keys,
        arguments.since.as_secs(),
        arguments.rate,
        arguments.partitions,
        arguments.threads
    );
    table.push_str("| recovered from | first stateless result, s | first keyed result, s | process, plan | topics | group | load | fold | first commit | until seen | exchange records folded | MiB got |\n");
    table.push_str("|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|\n");
    for recovery in recoveries {
        let parts: Vec<String> = recovery.parts.iter().map(|seconds| format!("{seconds:.2}")).collect();
        let _ = writeln!(
            table,
            "| {} | {:.2} | {:.2} | {} | {:.0} | {:.1} |",
            recovery.what,
            recovery.stateless,
            recovery.keyed,
            parts.join(" | "),
            recovery.folded,
            recovery.got_mib
        );
    }
    table
}
