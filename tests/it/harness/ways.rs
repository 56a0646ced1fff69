//! The ways in which a golden topology runs.
//!
//! A run that fails because its log did is started again, as an operator's supervisor would, until it is done;
//! any other error fails the test.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use headwater::engine::{
    Counters, EngineError, OffsetMetadata, Progress, ReplayOptions, ReplaySink, RunOptions, SinkEncoder,
    SinkWriter, TopicNames, replay, run,
};
use headwater::log::Log;
use headwater::log::memory::{Dice, Faults, MemoryLog};
use headwater::plan::{Emit, Late, Plan};
use headwater::record::{Batch, OwnedRecord, TopicPartition};
use headwater::tool::topology_test::{Observed, publish, read, value};
use serde_json::{Value, json};

use super::golden::Golden;
use crate::support::within;

/// What became of the records, in an order of its own, a JSON object a line.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Outcome {
    pub refined: BTreeMap<String, Vec<String>>,
    pub late: Vec<String>,
    pub dead: Vec<String>,
    pub counters: Counters,
}

/// How a topology is run.
#[derive(Clone)]
struct Way {
    threads: usize,
    /// Records of an epoch; the log's own pieces where it is large.
    epoch: Duration,
    copies: bool,
    checkpoint_interval: Duration,
    /// The state directory goes between two starts.
    lose_state: bool,
    close: bool,
}

const STEADY: Way = Way {
    threads: 1,
    epoch: Duration::ZERO,
    copies: true,
    checkpoint_interval: Duration::from_secs(30),
    lose_state: false,
    close: true,
};
/// Starts until a topology must be done.
const STARTS_MAX: u64 = 200;
/// Below every patience of the engine: a run of some records takes milliseconds.
const STALL: Duration = Duration::from_secs(25);

pub struct Bench<'a> {
    golden: &'a Golden,
    seed: u64,
}

fn folder() -> tempfile::TempDir {
    // Memory where there is some: nothing here is about the disk.
    let memory = Path::new("/dev/shm");
    if memory.is_dir() { tempfile::tempdir_in(memory).unwrap() } else { tempfile::tempdir().unwrap() }
}

/// A scope waits for its threads: one that a failed check would leave running must not run for ever.
struct StopOnDrop<'a>(&'a AtomicBool);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

impl<'a> Bench<'a> {
    pub fn new(golden: &'a Golden, seed: u64) -> Self {
        Self { golden, seed }
    }

    fn plan(&self) -> &Arc<Plan> {
        &self.golden.plan
    }

    fn log(&self) -> MemoryLog {
        let log = MemoryLog::new();
        self.golden.input().iter().for_each(|input| publish(&log, input).unwrap());
        log
    }

    /// One thread, everything in as few epochs as it takes.
    pub fn whole(&self) -> Outcome {
        if self.golden.has_later() {
            return self.live(1);
        }
        let log = self.log();
        self.until_done(&log, folder().path(), &STEADY, |_| Faults::default());
        self.outcome(&log)
    }

    pub fn every_way(&self, whole: &Outcome) {
        assert!(whole.counters.balanced(), "{:?}", whole.counters);
        self.replays(whole);
        if self.golden.has_later() {
            for threads in [1, 2] {
                self.same("live, with idle origins", whole, &self.live(threads));
            }
            return;
        }
        self.pieces(whole);
        self.stopped_and_closed(whole);
        self.crashes(whole);
        self.refused(whole);
        self.rebalances(whole);
        self.rescaled(whole);
    }

    fn same(&self, way: &str, whole: &Outcome, other: &Outcome) {
        assert_eq!(
            whole, other,
            "{}: {way} (right) gives something else than the whole run",
            self.golden.name
        );
    }

    fn pieces(&self, whole: &Outcome) {
        let pieces = |threads, most, seed| {
            let faults = Faults { seed, short_reads: 1.0, short_read_max: most, ..Faults::default() };
            let log = self.log();
            self.until_done(&log, folder().path(), &Way { threads, ..STEADY }, |_| faults.clone());
            self.same(&format!("{threads} threads, pieces up to {most}"), whole, &self.outcome(&log));
        };
        pieces(1, 1, 0);
        pieces(1, 7, Dice::nth(self.seed, 1));
        pieces(1, 30, Dice::nth(self.seed, 2));
        pieces(2, 5, Dice::nth(self.seed, 3));
        pieces(3, 13, Dice::nth(self.seed, 4));
    }

    /// `--until-end` leaves windows open; a later run goes on from there.
    fn stopped_and_closed(&self, whole: &Outcome) {
        let (log, dir) = (self.log(), folder());
        let zero = Duration::ZERO;
        let open = Way { close: false, checkpoint_interval: zero, ..STEADY };
        self.until_done(&log, dir.path(), &open, |_| Faults::default());
        self.until_done(&log, dir.path(), &Way { threads: 2, ..STEADY }, |_| Faults::default());
        self.same("stopped at the ends, then closed", whole, &self.outcome(&log));
        if TopicNames::of(self.plan()).exchanges.iter().any(Option::is_some) {
            let shared: Arc<dyn Log> = Arc::new(log.clone());
            let options = self.options(dir.path(), &open);
            let never = Arc::new(AtomicBool::new(false));
            let refused = run(self.plan(), &shared, &options, &Progress::default(), &never);
            assert!(matches!(refused, Err(EngineError::Closed(_))), "{refused:?}");
        }
    }

    fn crashes(&self, whole: &Outcome) {
        let short = |seed| Faults { seed, short_reads: 1.0, short_read_max: 6, ..Faults::default() };
        let log = self.log();
        self.until_done(&log, folder().path(), &STEADY, |_| short(Dice::nth(self.seed, 10)));
        let steps = log.steps();
        // One crash, somewhere in each ninth of the run.
        for part in 0..9 {
            let crash_at = 1 + (steps * part + Dice::nth(self.seed, 20 + part) % steps) / 9;
            let log = self.log();
            let faults = |start| match start {
                0 => Faults { crash_at: Some(crash_at), ..short(Dice::nth(self.seed, 10)) },
                _ => short(Dice::nth(self.seed, 10)),
            };
            let interval = if part % 2 == 0 { Duration::ZERO } else { Duration::from_secs(30) };
            let way = Way { checkpoint_interval: interval, lose_state: part % 3 == 0, ..STEADY };
            self.until_done(&log, folder().path(), &way, faults);
            self.same(&format!("crashed at step {crash_at} of {steps}"), whole, &self.outcome(&log));
        }
        // A crash in every start, at random: each gets some way.
        for (number, lose_state, threads) in [(0, false, 1), (1, true, 1), (2, true, 2), (3, false, 3)] {
            let seed = Dice::nth(self.seed, 40 + number);
            let log = self.log();
            let way = Way { threads, checkpoint_interval: Duration::ZERO, lose_state, ..STEADY };
            self.until_done(&log, folder().path(), &way, |start| Faults {
                crash_at: Some(steps / 6 + Dice::nth(seed, start) % (steps / 2 + 10) + start * steps / 10),
                ..short(Dice::nth(seed, start))
            });
            self.same(&format!("crashed at random ({number})"), whole, &self.outcome(&log));
        }
        // Without copies the log is never trimmed, so it alone brings the state back.
        let log = self.log();
        let way = Way { copies: false, checkpoint_interval: Duration::ZERO, lose_state: true, ..STEADY };
        self.until_done(&log, folder().path(), &way, |start| Faults {
            crash_at: (start < 3).then_some(steps / 3 + start * steps / 4),
            ..short(Dice::nth(self.seed, 50 + start))
        });
        self.same("state lost, no copies", whole, &self.outcome(&log));
    }

    /// Commits that fail, or whose answers are lost.
    fn refused(&self, whole: &Outcome) {
        for number in 0..3 {
            let seed = Dice::nth(self.seed, 60 + number);
            let log = self.log();
            let way = Way { threads: 1 + number as usize % 2, checkpoint_interval: Duration::ZERO, ..STEADY };
            self.until_done(&log, folder().path(), &way, |start| Faults {
                seed: Dice::nth(seed, start),
                short_reads: 0.9,
                short_read_max: 12,
                aborts: 0.3,
                lost_committed: if number == 1 { 0.1 } else { 0.0 },
                lost_aborted: if number == 2 { 0.1 } else { 0.0 },
                ..Faults::default()
            });
            self.same(&format!("commits refused ({number})"), whole, &self.outcome(&log));
        }
    }

    /// The group rebalances, and members are put out of it.
    fn rebalances(&self, whole: &Outcome) {
        for number in 0..6 {
            let seed = Dice::nth(self.seed, 80 + number);
            let log = self.log();
            let way = Way { threads: 2 + number as usize % 2, checkpoint_interval: Duration::ZERO, ..STEADY };
            self.until_done(&log, folder().path(), &way, |start| {
                let at = Some(3 + Dice::nth(seed, start) % 60);
                Faults {
                    seed,
                    short_reads: 1.0,
                    short_read_max: 5,
                    rebalance_at: at.filter(|_| number % 2 == 0),
                    fence_at: at.filter(|_| number % 2 == 1),
                    ..Faults::default()
                }
            });
            self.same(&format!("rebalanced ({number})"), whole, &self.outcome(&log));
        }
    }

    /// A second process comes, works for a while, and goes.
    fn rescaled(&self, whole: &Outcome) {
        let (log, dir) = (self.log(), folder());
        log.set_faults(Faults {
            seed: Dice::nth(self.seed, 100),
            short_reads: 1.0,
            short_read_max: 2,
            ..Faults::default()
        });
        let shared: Arc<dyn Log> = Arc::new(log.clone());
        let (stop, never) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
        let options = |name: &str, until_end| RunOptions {
            until_end,
            close: until_end,
            state_dir: dir.path().join(name),
            ..self.options(dir.path(), &Way { checkpoint_interval: Duration::ZERO, ..STEADY })
        };
        let progress = Progress::default();
        std::thread::scope(|scope| {
            let guest = scope.spawn(|| run(self.plan(), &shared, &options("guest", false), &progress, &stop));
            let host = scope
                .spawn(|| run(self.plan(), &shared, &options("host", true), &Progress::default(), &never));
            within(Duration::from_secs(60), "the guest's commits", || {
                (progress.commits().0 >= 3 || host.is_finished() || guest.is_finished()).then_some(())
            });
            stop.store(true, Ordering::Relaxed);
            host.join().unwrap().unwrap();
            match guest.join().unwrap() {
                Ok(_) | Err(EngineError::Closed(_)) => {}
                Err(error) => panic!("the guest: {error}"),
            }
        });
        self.same("rescaled", whole, &self.outcome(&log));
    }

    /// Runs live, so that origins go idle; once what came first is refined, the rest comes.
    fn live(&self, threads: usize) -> Outcome {
        let (log, dir) = (self.log(), folder());
        let shared: Arc<dyn Log> = Arc::new(log.clone());
        let stop = Arc::new(AtomicBool::new(false));
        let progress = Progress::default();
        let way = Way { threads, ..STEADY };
        let options = RunOptions { until_end: false, close: false, ..self.options(dir.path(), &way) };
        std::thread::scope(|scope| {
            let running = scope.spawn(|| run(self.plan(), &shared, &options, &progress, &stop));
            let _stops = StopOnDrop(&stop);
            let patience = Duration::from_secs(60);
            let sinks = self.plan().sinks.len();
            within(patience, "refined records of every view", || {
                let seen = Observed::read(&log, self.plan()).unwrap();
                let shown = seen.refined.values().filter(|rows| !rows.is_empty()).count();
                assert!(!running.is_finished(), "it stopped");
                (shown == sinks).then_some(())
            });
            let later = self.golden.later();
            let count: usize =
                self.golden.input().iter().chain(&later).map(|input| input.records.len()).sum();
            later.iter().for_each(|input| publish(&log, input).unwrap());
            within(patience, "the later records", || {
                assert!(!running.is_finished(), "it stopped");
                (progress.counters().read == count as u64).then_some(())
            });
            stop.store(true, Ordering::Relaxed);
            running.join().unwrap().unwrap();
        });
        self.until_done(&log, dir.path(), &way, |_| Faults::default());
        self.outcome(&log)
    }

    fn options(&self, dir: &Path, way: &Way) -> RunOptions {
        RunOptions {
            threads: way.threads,
            epoch: way.epoch,
            checkpoint_interval: way.checkpoint_interval,
            state_dir: dir.join("state"),
            checkpoints: way.copies.then(|| dir.join("copies").display().to_string().into()),
            until_end: true,
            close: way.close,
            ..RunOptions::default()
        }
    }

    /// Starts the topology until it has come to the end; `faults` of each start, counted from 0.
    fn until_done(&self, log: &MemoryLog, dir: &Path, way: &Way, faults: impl Fn(u64) -> Faults) {
        let shared: Arc<dyn Log> = Arc::new(log.clone());
        let options = self.options(dir, way);
        let stop = Arc::new(AtomicBool::new(false));
        for start in 0..STARTS_MAX {
            log.set_faults(faults(start));
            let began = Instant::now();
            let outcome = run(self.plan(), &shared, &options, &Progress::default(), &stop);
            assert!(began.elapsed() < STALL, "{}: it waited for what can't come", self.golden.name);
            match outcome {
                Ok(_) => {
                    // Who crashed is out of the group, and his transaction aborted, by the time anybody looks.
                    log.set_time_ms(log.time_ms() + 60_000);
                    return;
                }
                Err(EngineError::Log(_) | EngineError::Fenced(_)) => {}
                Err(error) => panic!("{}: {error}", self.golden.name),
            }
            if way.lose_state {
                std::fs::remove_dir_all(&options.state_dir).unwrap();
            }
            log.set_time_ms(log.time_ms() + 60_000);
        }
        panic!("{}: not done after {STARTS_MAX} starts", self.golden.name);
    }

    /// All refined records; of a topology with corrections, and of a sink of changes, what these have left.
    fn outcome(&self, log: &MemoryLog) -> Outcome {
        let plan = self.plan();
        let names = TopicNames::of(plan);
        let mut refined = BTreeMap::new();
        let last = Observed::read(log, plan).unwrap().refined;
        for sink in &plan.sinks {
            let topic = &sink.topic.as_ref().unwrap().topic;
            let rows: Vec<String> = match self.golden.has_later() || sink.emit == Emit::Changes {
                true => last[&sink.view].iter().map(|(key, row)| line(key.as_deref(), row)).collect(),
                false => {
                    let records = read(log, topic).unwrap();
                    let row = |record: OwnedRecord| line(record.key.as_deref(), &record.value.unwrap());
                    records.into_iter().map(row).collect()
                }
            };
            refined.insert(sink.view.to_string(), sorted(rows));
        }
        let of = |topic: &str| sorted(read(log, topic).unwrap().iter().map(describe).collect());
        let mut counters = Counters::default();
        for source in &plan.sources {
            for partition in 0..log.partitions(&source.topic).unwrap().unwrap() {
                let partition = TopicPartition::new(Arc::clone(&source.topic), partition);
                let position =
                    log.committed(&names.group, std::slice::from_ref(&partition)).unwrap().remove(0);
                let position = position.unwrap();
                let metadata = OffsetMetadata::parse(&position.metadata, &partition).unwrap();
                counters.add(&metadata.counters.unwrap());
            }
        }
        Outcome { refined, late: of(&names.late), dead: of(&names.dead), counters }
    }

    fn replays(&self, whole: &Outcome) {
        let log = self.log();
        self.golden.later().iter().for_each(|input| publish(&log, input).unwrap());
        for threads in [1, 2] {
            let sink = Rows { plan: self.plan(), rows: Mutex::default() };
            let options = ReplayOptions {
                late: Late::AsLive,
                until: BTreeMap::new(),
                threads,
                state_budget: 64 << 20,
                scratch: None,
            };
            log.set_faults(Faults {
                seed: Dice::nth(self.seed, 200),
                short_reads: 0.5,
                short_read_max: 9,
                ..Faults::default()
            });
            let shared: Arc<dyn Log> = Arc::new(log.clone());
            let never = AtomicBool::new(false);
            let report = replay(self.plan(), &shared, &options, &sink, &Progress::default(), &never).unwrap();
            let mut refined = sink.rows.into_inner().unwrap();
            for sink in &self.plan().sinks {
                let rows = refined.remove(&*sink.view).unwrap_or_default();
                refined.insert(sink.view.to_string(), sorted(rows));
            }
            // Late and dead records leave a live run only.
            let Outcome { late, dead, .. } = whole.clone();
            let replayed = Outcome { refined, late, dead, counters: report.counters };
            self.same(&format!("a replay on {threads} threads"), whole, &replayed);
        }
    }
}

fn sorted(mut lines: Vec<String>) -> Vec<String> {
    lines.sort();
    lines
}

fn line(key: Option<&[u8]>, row: &[u8]) -> String {
    let (key, row) = (key.map(String::from_utf8_lossy), String::from_utf8_lossy(row));
    match key {
        Some(key) => format!("{{\"key\":{key},\"value\":{row}}}"),
        None => row.into_owned(),
    }
}

/// A late or dead record with its provenance; where it stood in an exchange is no part of what it means.
fn describe(record: &OwnedRecord) -> String {
    let headers = record.headers.iter().map(|header| {
        (header.name.as_str(), header.value.as_deref().map(String::from_utf8_lossy).map(String::from))
    });
    let headers: Vec<_> = headers.collect();
    let derived = headers.iter().any(|(name, value)| {
        *name == "__connect.errors.topic" && value.as_ref().is_some_and(|topic| topic.contains(".exchange."))
    });
    let kept = headers.into_iter().filter(|(name, _)| {
        !(derived && ["__connect.errors.partition", "__connect.errors.offset"].contains(name))
    });
    let headers: serde_json::Map<String, Value> =
        kept.map(|(name, text)| (name.to_string(), json!(text))).collect();
    let key = record.key.as_deref().map(String::from_utf8_lossy);
    json!({"key": key, "value": value(record.value.as_deref()), "headers": headers}).to_string()
}

/// Keeps what a replay's views yield.
struct Rows<'a> {
    plan: &'a Plan,
    rows: Mutex<BTreeMap<String, Vec<String>>>,
}

impl ReplaySink for Rows<'_> {
    fn writer<'a>(&'a self, _task: usize) -> Result<Box<dyn SinkWriter + 'a>, EngineError> {
        let encoders = self.plan.sinks.iter().map(|sink| SinkEncoder::new(sink, 1));
        let encoders = encoders.map(|encoder| encoder.unwrap().unwrap()).collect();
        Ok(Box::new(Writer { into: self, encoders }))
    }
}

struct Writer<'a> {
    into: &'a Rows<'a>,
    encoders: Vec<SinkEncoder>,
}

impl SinkWriter for Writer<'_> {
    fn write(&mut self, sink: usize, rows: &Batch) -> Result<(), EngineError> {
        let mut all = self.into.rows.lock().unwrap();
        let view = all.entry(self.into.plan.sinks[sink].view.to_string()).or_default();
        self.encoders[sink].encode(rows, |refined| view.push(line(refined.key, refined.value.unwrap())))
    }
    fn finish(self: Box<Self>) -> Result<(), EngineError> {
        Ok(())
    }
}
