//! What a record costs broker and object store where records come at a steady rate: there an epoch holds few of
//! them, so that what is paid by the epoch shows; a catch-up hides it.

use std::fmt::Write;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use super::Result;
use super::meter::cpu_of;
use super::paced::{self, Load, Pace};
use super::place::Place;
use super::program::{Running, Settings};
use super::scale::Job;

const LOOK_EVERY: Duration = Duration::from_millis(50);
const CHECKPOINTS_EVERY: Duration = Duration::from_secs(10);
const PARTITIONS: i32 = 4;

pub struct Steady {
    pub rate: u64,
    pub time: Duration,
    pub keys: u64,
    pub epoch: Duration,
    pub binary: PathBuf,
}

/// The table's rows.
pub fn measure(place: &Place, steady: &Steady) -> Result<String> {
    let mut table = format!(
        "\n{} records/s of 200 bytes for {} s, {PARTITIONS} partitions, {} keys, epochs of {} ms, a checkpoint every {} s\n\n",
        steady.rate,
        steady.time.as_secs(),
        steady.keys,
        steady.epoch.as_millis(),
        CHECKPOINTS_EVERY.as_secs()
    );
    table.push_str("| job | CPU s per million | broker CPU s per million | exchange bytes a record | refined bytes a record | checkpoints | bytes a checkpoint | PUT, GET, LIST, DELETE a checkpoint |\n");
    table.push_str("|---|--:|--:|--:|--:|--:|--:|---|\n");
    for job in Job::ALL {
        eprintln!("{}, steady…", job.name());
        let _ = writeln!(table, "{}", one(place, steady, job)?);
    }
    Ok(table)
}

fn one(place: &Place, steady: &Steady, job: Job) -> Result<String> {
    let name = format!("{}-steady-{}", place.prefix, job.name());
    let topic = format!("{name}.in");
    place.create(&[&topic], PARTITIONS, Some(60))?;
    let topology = job.topology(&name, &topic);
    let settings = Settings {
        binary: steady.binary.clone(),
        brokers: place.brokers.clone(),
        data_dir: place.folder.join(&name),
        state_url: place.folder.join(format!("{name}-copies")).display().to_string(),
        s3: Default::default(),
        threads: 1,
        epoch: steady.epoch,
        checkpoint_interval: CHECKPOINTS_EVERY,
        state_budget_mib: 256,
    };
    let mut running = Running::start(&place.folder, &name, &topology, &settings, false)?;
    running.metrics()?;
    let cpu = |running: &Running| -> Result<(f64, Option<f64>)> {
        Ok((running.cpu_seconds()?, place.broker_pid().map(cpu_of).transpose()?))
    };
    let before = cpu(&running)?;
    let mut pace = Pace::start(&Load {
        brokers: place.brokers.clone(),
        topic,
        partitions: PARTITIONS,
        rate: steady.rate,
        keys: steady.keys,
        shift_ms: 0,
        price_min: paced::PRICE_MIN,
    })?;
    let began = Instant::now();
    while began.elapsed() < steady.time {
        running.check()?;
        pace.check()?;
        std::thread::sleep(LOOK_EVERY);
    }
    let after = cpu(&running)?;
    let metrics = running.metrics()?;
    let produced = pace.stop()?;
    running.stop()?;
    let records = produced.records as f64;
    let stored = |topic: String| {
        place.stored_bytes(&topic).map_or("–".to_owned(), |bytes| format!("{:.1}", bytes as f64 / records))
    };
    let broker = after.1.zip(before.1);
    let checkpoints = metrics.sum("headwater_checkpoints_total", "");
    let each = |total: f64| match checkpoints {
        0.0 => "–".to_owned(),
        checkpoints => format!("{:.1}", total / checkpoints),
    };
    let asked = |operation: &str| {
        each(metrics.sum("headwater_copy_requests_total", &format!("operation=\"{operation}\"")))
    };
    Ok(format!(
        "| {} | {:.2} | {} | {} | {} | {checkpoints:.0} | {} | {} |",
        job.name(),
        (after.0 - before.0) / records * 1e6,
        broker.map_or("–".to_owned(), |(after, before)| format!("{:.2}", (after - before) / records * 1e6)),
        stored(format!("{name}.exchange.prices")),
        stored(format!("{name}.out")),
        each(metrics.sum("headwater_copy_bytes_total", "operation=\"put\"")),
        ["put", "get", "list", "delete"].map(asked).join(", "),
    ))
}
