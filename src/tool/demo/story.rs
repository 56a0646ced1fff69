//! What `headwater demo` does, and what it says meanwhile.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use arrow::array::{Array, AsArray};
use arrow::datatypes::{Float64Type, Int64Type, TimestampMicrosecondType};

use crate::config::Config;
use crate::engine::{self, Progress};
use crate::lake::{Lake, Manifest};
use crate::log::{Log, Outgoing, TopicSpec};
use crate::plan::{self, Late, Plan};
use crate::record::TopicPartition;
use crate::serve::text;
use crate::tool::cluster;
use crate::tool::replay::{LakeReplay, replay_into_lake};
use crate::tool::verify::{VerifyOptions, print_report, verify};
use crate::tool::watch::{counters, watermark};
use crate::tool::{Printer, Result, Stop, ToolError, run};

use super::feed;

const TOPOLOGY: &str = include_str!("../../../topologies/flights/flights.yaml");
/// Where that topology is in a clone.
const FILE: &str = "topologies/flights/flights.yaml";
const TOPIC: &str = "flights.departures";
const REFINED: &str = "flights.hourly_delay";
/// A month of departures goes by in about this long.
const FEED_SECONDS: f64 = 8.0;
const CHUNK: usize = 250;
const CATCH_UP_MAX: Duration = Duration::from_secs(30);
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// Records that no airport sent: cut off, an airport that a check does not know, a date far ahead.
const BROKEN: [(usize, &str); 3] = [
    (5_000, r#"{"flight":1,"carrier":"UA","origin":"EW"#),
    (
        12_000,
        r#"{"flight":2,"carrier":"UA","origin":"SFO","dest":"EWR","dep_delay":0,"sched_dep":"2013-01-14T00:00:00Z","dep":null}"#,
    ),
    (
        20_000,
        r#"{"flight":3,"carrier":"UA","origin":"EWR","dest":"SFO","dep_delay":0,"sched_dep":"2999-01-01T00:00:00Z","dep":null}"#,
    ),
];

/// Runs the demo in `<data_dir>/demo`, which is wiped first.
pub fn demo(config: &Config, out: &mut Printer) -> Result<()> {
    let home = config.data_dir.join("demo");
    let config = settings(config, &home)?;
    let plan = Arc::new(plan::parse(TOPOLOGY, FILE)?);
    let stop = Stop::on_signals()?;
    let began = Instant::now();
    let cluster = cluster::open(&config)?;
    let mut story = Story { out, home: &home, config: &config, log: &cluster.log, plan: &plan, stop: &stop };
    story.title(&format!("1. Live: {TOPIC} on the embedded broker at {}", cluster.address))?;
    let progress = story.live()?;
    story.title("2. Replay: the same topology over the same records from offset zero, into Parquet")?;
    let as_live = story.replay(Late::AsLive, "as-live")?;
    story.title("3. Verify: is the replay what the live run gave?")?;
    story.verify()?;
    story.title("4. Replay with --late all: late records get their place")?;
    let all = story.replay(Late::All, "all")?;
    story.repaired(&as_live, &all)?;
    story.title("5. The busiest hours")?;
    story.busiest(&all)?;
    story.title("What next")?;
    story.next(&progress, began.elapsed())?;
    story.out.flush()
}

/// The user's settings, but in the demo's own folder and on the embedded broker.
fn settings(config: &Config, home: &Path) -> Result<Config> {
    let served = home.join("broker");
    match std::fs::remove_dir_all(home) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            let what = format!(
                "cannot wipe {} (is a demo running, or {} served?)",
                home.display(),
                served.display()
            );
            return Err(ToolError::io(what)(error));
        }
        _ => {}
    }
    let mut config = config.clone();
    config.data_dir = home.to_path_buf();
    config.brokers = None;
    config.kafka = BTreeMap::new();
    config.state.url = None;
    config.lake.url = None;
    Ok(config)
}

struct Story<'a> {
    out: &'a mut Printer,
    home: &'a Path,
    config: &'a Config,
    log: &'a Arc<dyn Log>,
    plan: &'a Arc<Plan>,
    stop: &'a Stop,
}

impl Story<'_> {
    fn title(&mut self, title: &str) -> Result<()> {
        self.out.line("")?;
        self.out.line(title)?;
        self.out.flush()
    }

    fn say(&mut self, line: &str) -> Result<()> {
        self.out.line(&format!("   {line}"))?;
        self.out.flush()
    }

    /// Produces the month while the topology runs; ends when all of it is committed.
    fn live(&mut self) -> Result<Progress> {
        let departures = feed::departures().map_err(|error| ToolError::Failed {
            message: error.to_string(),
            help: Some("this is a broken build: the data is part of the program".to_owned()),
        })?;
        let total = departures.len() + BROKEN.len();
        self.say(&format!(
            "{} real departures of January 2013 arrive as they left, {} broken records among them;",
            text::number(departures.len() as u64),
            BROKEN.len()
        ))?;
        self.say("event time is when they were scheduled, so what left hours late is out of order")?;
        let topic = TopicSpec {
            name: TOPIC.to_owned(),
            partitions: 1,
            config: BTreeMap::from([("message.timestamp.type".to_owned(), "LogAppendTime".to_owned())]),
        };
        self.log.create_topics(&[topic])?;
        let options = run::options(self.config, run::End::None);
        let progress = Progress::default();
        let running = Stop::default();
        let (log, plan, stop) = (self.log, self.plan, self.stop);
        std::thread::scope(|scope| {
            let feeding = scope.spawn(|| publish(&**log, &departures, stop));
            let flag = running.flag();
            let (watched, options) = (&progress, &options);
            let live = scope.spawn(move || engine::run(plan, log, options, watched, &flag));
            let outcome = self.watch(&progress, total as u64, || live.is_finished());
            running.set();
            let live = live.join().map_err(|_| panicked("the topology"))?;
            let fed = feeding.join().map_err(|_| panicked("the feed"))?;
            fed?;
            live?;
            outcome
        })?;
        Ok(progress)
    }

    /// A line a second until everything is committed.
    fn watch(&mut self, progress: &Progress, total: u64, ended: impl Fn() -> bool) -> Result<()> {
        let (began, mut said) = (Instant::now(), Instant::now());
        let partition = TopicPartition::new(TOPIC, 0);
        loop {
            std::thread::sleep(LOOK_EVERY);
            let (sum, done) = (progress.counters_kept(), progress.counters_kept().read >= total);
            if done || said.elapsed() >= Duration::from_secs(1) {
                said = Instant::now();
                let lag = self.log.bounds(&partition)?.end - sum.read as i64;
                let watermark = text::watermark(watermark(progress));
                self.say(&format!("{}  lag {}  watermark {watermark}", counters(&sum), lag.max(0)))?;
            }
            if done || ended() || self.stop.is_set() {
                return Ok(());
            }
            if began.elapsed() > Duration::from_secs_f64(FEED_SECONDS) + CATCH_UP_MAX {
                return Err(ToolError::Failed {
                    message: format!("only {} of {total} records were committed in time", sum.read),
                    help: Some("run it with -v to see what it waits for".to_owned()),
                });
            }
        }
    }

    fn scratch(&self) -> PathBuf {
        self.home.join("scratch")
    }

    fn replay(&mut self, late: Late, late_text: &str) -> Result<Manifest> {
        let options = LakeReplay {
            lake: self.home.join("lake").display().to_string().into(),
            late,
            late_text: late_text.to_owned(),
            threads: self.config.worker.thread_count(),
            state_budget: self.config.state.budget as usize,
            scratch: self.scratch(),
        };
        let began = Instant::now();
        let (progress, flag) = (Progress::default(), self.stop.flag());
        let report = replay_into_lake(self.plan, self.log, &options, &progress, &flag)?;
        self.say(&format!(
            "{}  in {:.1} s",
            counters(&report.replay.counters),
            began.elapsed().as_secs_f64()
        ))?;
        let Some((_, manifest, _)) = report.tables.into_iter().next() else {
            return Err(panicked("the lake table of the demo's topology"));
        };
        self.say(&format!(
            "{} version {}: {} rows in {} Parquet files, digest {}",
            manifest.table,
            manifest.version,
            text::number(manifest.rows),
            manifest.files.len(),
            manifest.digest
        ))?;
        Ok(manifest)
    }

    fn verify(&mut self) -> Result<()> {
        let options = VerifyOptions {
            threads: self.config.worker.thread_count(),
            state_budget: self.config.state.budget as usize,
            scratch: Some(self.scratch()),
            patience: CATCH_UP_MAX,
            differences_max: 5,
        };
        let report = verify(self.plan, self.log, &options, &Progress::default(), &self.stop.flag())?;
        print_report(&report, self.out)?;
        match report.is_equal() {
            true => Ok(()),
            false => Err(ToolError::Reported { exit_code: 1 }),
        }
    }

    /// What the late records changed: hours that count more flights in the second table.
    fn repaired(&mut self, before: &Manifest, after: &Manifest) -> Result<()> {
        let (old, new) = (self.rows(before)?, self.rows(after)?);
        let changed = new.iter().filter(|(key, row)| old.get(*key) != Some(row)).count();
        let sum = |rows: &BTreeMap<Key, Row>| rows.values().map(|row| row.flights as u64).sum::<u64>();
        self.say(&format!(
            "{} flights had come too late; {} hourly rows are corrected ({} → {} flights counted)",
            text::number(sum(&new) - sum(&old)),
            text::number(changed as u64),
            text::number(sum(&old)),
            text::number(sum(&new))
        ))
    }

    fn busiest(&mut self, manifest: &Manifest) -> Result<()> {
        let mut rows: Vec<(Key, Row)> = self.rows(manifest)?.into_iter().collect();
        rows.sort_by(|a, b| b.1.flights.cmp(&a.1.flights).then_with(|| a.0.cmp(&b.0)));
        let cells: Vec<Vec<String>> = rows
            .into_iter()
            .take(5)
            .map(|((start, origin, carrier), row)| {
                let delay = format!("{:.1}", row.delay);
                vec![text::time(start), origin, carrier, row.flights.to_string(), delay]
            })
            .collect();
        self.out.table(&["WINDOW_START", "ORIGIN", "CARRIER", "FLIGHTS", "DELAY_MINUTES"], &cells)
    }

    fn rows(&self, manifest: &Manifest) -> Result<BTreeMap<Key, Row>> {
        let lake = Lake::open(self.home.join("lake").display().to_string())
            .map_err(crate::tool::replay::ReplayError::from)?;
        let mut rows = BTreeMap::new();
        for batch in lake.read(manifest).map_err(crate::tool::replay::ReplayError::from)? {
            let batch = batch.map_err(crate::tool::replay::ReplayError::from)?;
            let column = |name: &str| {
                batch.column_by_name(name).ok_or_else(|| panicked("the demo's table has other columns, or"))
            };
            let start = arrow::compute::cast(
                column("window_start")?,
                &arrow::datatypes::DataType::Timestamp(arrow::datatypes::TimeUnit::Microsecond, None),
            );
            let start =
                start.map_err(|error| ToolError::Failed { message: error.to_string(), help: None })?;
            let start = start.as_primitive::<TimestampMicrosecondType>();
            let (origin, carrier) =
                (column("origin")?.as_string::<i32>(), column("carrier")?.as_string::<i32>());
            let flights = column("flights")?.as_primitive::<Int64Type>();
            let delay = column("delay")?.as_primitive::<Float64Type>();
            for row in 0..batch.num_rows() {
                let key = (start.value(row), origin.value(row).to_owned(), carrier.value(row).to_owned());
                let delay = if delay.is_valid(row) { delay.value(row) } else { f64::NAN };
                rows.insert(key, Row { flights: flights.value(row), delay });
            }
        }
        Ok(rows)
    }

    fn next(&mut self, progress: &Progress, took: Duration) -> Result<()> {
        // As this program was called: `cargo run` does not put it on the path.
        let headwater = std::env::args().next().unwrap_or_else(|| "headwater".to_owned());
        let (home, dead) = (self.home.display(), progress.counters_kept().dead);
        let steps = [
            ("the refined topic", format!("topic tail {REFINED} -n 3 --data-dir {home}")),
            ("the dead letters", format!("dlq list flights --data-dir {home}")),
            ("where it stands", format!("status {FILE} --data-dir {home}")),
            ("replay again", format!("replay {FILE} --late 24h --data-dir {home}")),
            ("a topology of yours", "init my-project".to_owned()),
        ];
        for (what, command) in steps {
            self.say(&format!("{what:<20} {headwater} {command}"))?;
        }
        self.out.line("")?;
        self.out.line(&format!(
            "{dead} records are dead letters, on purpose. All of this took {:.0} s and lies in {home}.",
            took.as_secs_f64()
        ))
    }
}

/// (window start, origin, carrier)
type Key = (i64, String, String);

#[derive(Clone, Debug, PartialEq)]
struct Row {
    flights: i64,
    delay: f64,
}

/// Produces the month at an even pace; ends early when `stop` is set.
fn publish(log: &dyn Log, departures: &[feed::Departure], stop: &Stop) -> Result<()> {
    let mut values: Vec<Vec<u8>> = Vec::with_capacity(departures.len() + BROKEN.len());
    for (index, departure) in departures.iter().enumerate() {
        values.extend(BROKEN.iter().filter(|(at, _)| *at == index).map(|(_, text)| text.as_bytes().to_vec()));
        values.push(serde_json::to_vec(departure).map_err(|error| ToolError::Failed {
            message: format!("cannot write JSON: {error}"),
            help: None,
        })?);
    }
    let mut producer = log.producer()?;
    let partition = TopicPartition::new(TOPIC, 0);
    let began = Instant::now();
    for (index, chunk) in values.chunks(CHUNK).enumerate() {
        let due = Duration::from_secs_f64(FEED_SECONDS * (index * CHUNK) as f64 / values.len() as f64);
        std::thread::sleep(due.saturating_sub(began.elapsed()));
        if stop.is_set() {
            break;
        }
        let records: Vec<Outgoing<'_>> =
            chunk.iter().map(|value| Outgoing { value: Some(value), ..Outgoing::default() }).collect();
        producer.produce(&partition, &records)?;
        producer.flush(Duration::from_secs(10))?;
    }
    Ok(())
}

fn panicked(what: &str) -> ToolError {
    ToolError::Failed { message: format!("{what} failed unexpectedly; please report it"), help: None }
}
