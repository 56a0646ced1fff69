//! The simulated world: time, the log, machines and their processes, and what goes wrong; stepped by one seed.
//!
//! Invariant: one thread, one source of chance: the same seed gives the same trace.
//! Invariant: a process that is stopped, or on the stack, is never stepped.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use object_store::memory::InMemory;

use super::disk::Disk;
use super::feed::Happening;
use super::member::ProcessLog;
use super::objects::Objects;
use super::process::{Process, SimulatedMachine};
use super::settings::Settings;
use crate::engine::machine::Machine;
use crate::engine::progress::Progress;
use crate::engine::run::{self, Life, RunOptions, Shared};
use crate::engine::{EngineError, Result, TopicNames};
use crate::log::memory::{Dice, Faults, MemoryLog};
use crate::log::{Log, LogError, Outgoing};
use crate::plan::Plan;
#[cfg(feature = "planted-faults")]
use crate::planted;
use crate::planted::note;
use crate::state::{Checkpoints, StateError};

/// A machine.
struct Host {
    instance: String,
    disk: Disk,
}

pub struct World {
    me: Weak<World>,
    pub plan: Arc<Plan>,
    pub log: MemoryLog,
    pub settings: Settings,
    began: Instant,
    first_ms: i64,
    micros: AtomicU64,
    dice: Mutex<Dice>,
    faults_left: AtomicI64,
    hosts: Mutex<Vec<Host>>,
    /// Those that live, with their host; an impostor has none.
    processes: Mutex<Vec<(Option<usize>, Arc<Process>)>>,
    started: AtomicU64,
    impostors: AtomicU64,
    feed: Mutex<VecDeque<Happening>>,
    pub objects: Arc<InMemory>,
    depth: AtomicU32,
    /// Processes run to the end, and close.
    closing: AtomicBool,
    closed: AtomicBool,
    failure: Mutex<Option<String>>,
    trace: Option<Mutex<Vec<String>>>,
}

const DEPTH_MAX: u32 = 2;
const STALLS_SECONDS: [u64; 4] = [1, 4, 12, 17];
/// How long what is done beside the workers may take.
const DELAYS_MILLIS: [u64; 4] = [50, 400, 2_000, 15_000];
/// Ticks of the others while one process is stopped.
const STALL_TICKS: u32 = 60;

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl World {
    pub fn new(
        plan: &Arc<Plan>,
        settings: Settings,
        feed: Vec<Happening>,
        seed: u64,
        traced: bool,
    ) -> Arc<Self> {
        #[cfg(feature = "planted-faults")]
        planted::shrink_sizes();
        let log = MemoryLog::with_faults(settings.log.clone());
        let hosts = 0..settings.hosts.max(1);
        Arc::new_cyclic(|me| Self {
            me: Weak::clone(me),
            plan: Arc::clone(plan),
            began: Instant::now(),
            first_ms: log.time_ms(),
            log,
            micros: AtomicU64::new(0),
            dice: Mutex::new(Dice::stream(seed, 1)),
            faults_left: AtomicI64::new(settings.faults),
            hosts: Mutex::new(
                hosts.map(|host| Host { instance: format!("h{host}"), disk: Disk::default() }).collect(),
            ),
            processes: Mutex::default(),
            started: AtomicU64::new(0),
            impostors: AtomicU64::new(0),
            feed: Mutex::new(feed.into()),
            objects: Arc::new(InMemory::new()),
            depth: AtomicU32::new(0),
            closing: AtomicBool::new(false),
            closed: AtomicBool::new(false),
            failure: Mutex::default(),
            trace: traced.then(Mutex::default),
            settings,
        })
    }

    pub fn trace(&self, line: impl FnOnce() -> String) {
        if let Some(trace) = &self.trace {
            let millis = self.micros.load(Ordering::Relaxed) / 1000;
            lock(trace).push(format!("{millis:>7} ms  {}", line()));
        }
    }

    pub fn take_trace(&self) -> Vec<String> {
        self.trace.as_ref().map(|trace| std::mem::take(&mut *lock(trace))).unwrap_or_default()
    }

    pub fn dice(&self) -> MutexGuard<'_, Dice> {
        lock(&self.dice)
    }

    pub fn now(&self) -> Instant {
        self.began + Duration::from_micros(self.micros.load(Ordering::Relaxed))
    }

    pub fn advance(&self, by: Duration) {
        let micros = by.as_micros() as u64;
        let now = self.micros.fetch_add(micros, Ordering::Relaxed) + micros;
        self.log.set_time_ms(self.first_ms + (now / 1000) as i64);
    }

    pub fn fail(&self, why: String) {
        self.trace(|| format!("FAILED: {why}"));
        lock(&self.failure).get_or_insert(why);
    }

    pub fn failure(&self) -> Option<String> {
        lock(&self.failure).clone()
    }

    fn fault_falls(&self, chance: u64) -> bool {
        chance > 0
            && self.faults_left.load(Ordering::Relaxed) > 0
            && self.dice().under(1_000_000) < chance
            && self.faults_left.fetch_sub(1, Ordering::Relaxed) > 0
    }

    /// A process asks something of the world outside itself.
    pub fn at_edge(&self, process: &Process, edge: u64, what: &str) {
        self.trace(|| format!("{} {what} (edge {edge})", process.name));
        if self.fault_falls(self.settings.rebalance) {
            note("the group rebalances");
            self.trace(|| "the group rebalances".to_owned());
            self.log.rebalance(&TopicNames::of(&self.plan).group);
        }
        if self.fault_falls(self.settings.crash) {
            note(&format!("crash where it {what}"));
            process.crash();
        } else if self.depth.load(Ordering::Relaxed) < DEPTH_MAX && self.fault_falls(self.settings.stall) {
            let seconds = self.dice().among(&STALLS_SECONDS);
            self.stall(process, Duration::from_secs(seconds));
        }
    }

    /// The process stands still while the others go on.
    pub fn stall(&self, process: &Process, stall: Duration) {
        note("a process stands still");
        self.trace(|| format!("{} stands still for {stall:?}", process.name));
        let before = process.stopped.swap(true, Ordering::Relaxed);
        self.depth.fetch_add(1, Ordering::Relaxed);
        for _ in 0..STALL_TICKS {
            self.advance(stall / STALL_TICKS);
            self.tick();
        }
        self.depth.fetch_sub(1, Ordering::Relaxed);
        process.stopped.store(before, Ordering::Relaxed);
        self.trace(|| format!("{} goes on", process.name));
    }

    /// Whether the object store answers.
    pub fn asks_objects(&self, process: &Process, what: &str) -> bool {
        self.trace(|| format!("{} {what}", process.name));
        if self.fault_falls(self.settings.crash) {
            note(&format!("crash where it {what}"));
            process.crash();
            return false;
        }
        #[cfg(feature = "planted-faults")]
        if self.depth.load(Ordering::Relaxed) < DEPTH_MAX && self.fault_falls(self.settings.stall) {
            note("a process stands still at the object store");
            let seconds = self.dice().among(&STALLS_SECONDS);
            // What the others do may ask the object store as well, and this thread is within an executor.
            planted::elsewhere(|| self.stall(process, Duration::from_secs(seconds)));
        }
        let fails = self.fault_falls(self.settings.objects_fail);
        if fails {
            note("the object store does not answer");
        }
        !fails
    }

    /// When the turn of work comes that is started now.
    pub fn due(&self) -> Instant {
        if !self.fault_falls(self.settings.slow) {
            return self.now();
        }
        note("a checkpoint takes its time");
        let delay = self.dice().among(&DELAYS_MILLIS);
        self.trace(|| format!("what is begun here will take {delay} ms"));
        self.now() + Duration::from_millis(delay)
    }

    /// Something happens, somewhere.
    pub fn tick(&self) {
        let (choice, pause) = {
            let mut dice = self.dice();
            (dice.under(100), dice.among(&[0, 0, 1, 2, 5, 20]))
        };
        self.advance(Duration::from_millis(pause));
        self.tidy();
        if choice < 8 {
            self.publish();
        } else if choice < 16 {
            self.do_job();
        } else if choice < 20 {
            self.start_hosts();
        } else {
            self.step_any();
        }
        self.disturb();
    }

    fn disturb(&self) {
        if self.fault_falls(self.settings.kill)
            && let Some(process) = self.any(|_| true)
        {
            note("a process is killed");
            process.crash();
        }
        if self.fault_falls(self.settings.leave)
            && let Some(process) = self.any(|process| !process.is_crashed())
        {
            note("a process is asked to stop");
            self.trace(|| format!("{} is asked to stop", process.name));
            process.stop.store(true, Ordering::Relaxed);
        }
        if self.fault_falls(self.settings.impostor) && !self.closing.load(Ordering::Relaxed) {
            let copied = lock(&self.hosts).first().map(|host| (host.instance.clone(), host.disk.copied()));
            if let Some((instance, disk)) = copied {
                note("an impostor starts");
                self.impostors.fetch_add(1, Ordering::Relaxed);
                self.start(None, instance, disk);
            }
        }
    }

    fn any(&self, fits: impl Fn(&Process) -> bool) -> Option<Arc<Process>> {
        let processes = lock(&self.processes);
        let fitting: Vec<_> = processes.iter().filter(|(_, process)| fits(process)).collect();
        let chosen = self.dice().under(fitting.len() as u64) as usize;
        fitting.get(chosen).map(|(_, process)| Arc::clone(process))
    }

    fn step_any(&self) {
        let Some(process) = self.any(|process| !process.stopped.load(Ordering::Relaxed)) else { return };
        let worker = self.dice().under(process.lives.len() as u64) as usize;
        self.step(&process, worker);
    }

    /// One turn of one worker.
    pub fn step(&self, process: &Arc<Process>, worker: usize) {
        let Ok(mut life) = process.lives[worker].try_lock() else { return };
        let Some(living) = life.as_mut() else { return };
        process.stopped.store(true, Ordering::Relaxed);
        let outcome = living.step();
        process.stopped.store(false, Ordering::Relaxed);
        match outcome {
            Ok(None) => {}
            Ok(Some(_)) => {
                self.trace(|| format!("{} worker {worker} has stopped", process.name));
                *life = None;
                let closing = lock(&process.shared).as_ref().is_some_and(|shared| shared.settings.until_end);
                if closing && !process.stop.load(Ordering::Relaxed) {
                    self.closed.store(true, Ordering::Relaxed);
                }
            }
            Err(error) => {
                *life = None;
                process.stop.store(true, Ordering::Relaxed);
                if !process.is_crashed() {
                    self.trace(|| format!("{} worker {worker}: {error}", process.name));
                    if !is_expected(&error, self.impostors.load(Ordering::Relaxed) > 0) {
                        self.fail(format!("{} worker {worker}: {error}", process.name));
                    }
                }
            }
        }
    }

    fn do_job(&self) {
        let Some(process) =
            self.any(|process| !process.stopped.load(Ordering::Relaxed) && process.has_jobs())
        else {
            return;
        };
        process.stopped.store(true, Ordering::Relaxed);
        process.do_job();
        process.stopped.store(false, Ordering::Relaxed);
    }

    /// Takes away what is over.
    pub fn tidy(&self) {
        let processes = lock(&self.processes).clone();
        for (_, process) in processes.iter().filter(|(_, process)| process.is_crashed()) {
            for life in &process.lives {
                if let Ok(mut life) = life.try_lock() {
                    *life = None;
                }
            }
        }
        lock(&self.processes).retain(|(_, process)| {
            let over = process.is_over();
            if over {
                // They hold the process, too.
                process.forget_jobs();
                *lock(&process.shared) = None;
            }
            !over
        });
    }

    fn publish(&self) {
        let happening = lock(&self.feed).pop_front();
        if let Some(happening) = happening {
            self.happens(happening);
        }
    }

    pub fn happens(&self, happening: Happening) {
        match happening {
            Happening::Partitions { topic, count } => {
                note("a topic gets another partition");
                self.trace(|| format!("{topic} gets {count} partitions"));
                self.log.add_partitions(&topic, count);
            }
            Happening::Records { to, records } => {
                self.trace(|| format!("{} records come in {to}", records.len()));
                let mut producer = self.log.producer().unwrap();
                for record in &records {
                    let outgoing = Outgoing {
                        value: record.value.as_deref().map(str::as_bytes),
                        timestamp_ms: Some(record.timestamp_ms),
                        ..Outgoing::default()
                    };
                    producer.produce(&to, &[outgoing]).unwrap();
                }
            }
            Happening::Silence(silence) => {
                self.trace(|| format!("nothing comes for {silence:?}"));
                self.quiet(silence);
            }
        }
    }

    /// Time passes, and everybody works.
    pub fn quiet(&self, silence: Duration) {
        let step = Duration::from_millis(250);
        for _ in 0..silence.as_millis() / step.as_millis() {
            self.advance(step);
            let processes = lock(&self.processes).clone();
            for (_, process) in processes {
                for worker in 0..process.lives.len() {
                    if !process.stopped.load(Ordering::Relaxed) {
                        self.step(&process, worker);
                    }
                }
            }
        }
    }

    pub fn publish_all(&self) {
        while !lock(&self.feed).is_empty() {
            self.publish();
        }
    }

    pub fn is_fed(&self) -> bool {
        lock(&self.feed).is_empty()
    }

    /// Starts what is not running.
    fn start_hosts(&self) {
        let all = lock(&self.hosts).len();
        let hosts = if self.closing.load(Ordering::Relaxed) { self.settings.closers.min(all) } else { all };
        for host in 0..hosts {
            if lock(&self.processes).iter().any(|(of, _)| *of == Some(host)) {
                continue;
            }
            self.start_host(host);
        }
    }

    /// Starts a process on a host, which may have lost its state directory meanwhile.
    pub fn start_host(&self, host: usize) -> Option<Arc<Process>> {
        let number = self.started.load(Ordering::Relaxed);
        if number > 0 && self.dice().under(100) < self.settings.disk_lost {
            self.lose_disk(host);
        }
        let (instance, disk) = {
            let hosts = lock(&self.hosts);
            (hosts[host].instance.clone(), hosts[host].disk.clone())
        };
        self.start(Some(host), instance, disk)
    }

    /// The process that runs on a host.
    pub fn process(&self, host: usize) -> Arc<Process> {
        let processes = lock(&self.processes);
        let found = processes.iter().find(|(of, _)| *of == Some(host));
        found.map(|(_, process)| Arc::clone(process)).unwrap()
    }

    pub fn lose_disk(&self, host: usize) {
        note("a state directory is lost");
        self.trace(|| format!("host {host} has lost its state directory"));
        let number = self.started.load(Ordering::Relaxed);
        lock(&self.hosts)[host] = Host { instance: format!("h{host}-{number}"), disk: Disk::default() };
    }

    fn start(&self, host: Option<usize>, instance: String, disk: Disk) -> Option<Arc<Process>> {
        let world = self.me.upgrade()?;
        let number = self.started.fetch_add(1, Ordering::Relaxed);
        let workers = self.settings.workers.max(1);
        let process = Process::new(&world, format!("p{number}"), instance, disk, workers);
        self.trace(|| format!("{} starts as {}", process.name, process.instance));
        lock(&self.processes).push((host, Arc::clone(&process)));
        let opened = self.open(&process);
        process.opening.store(false, Ordering::Relaxed);
        match opened {
            Ok(shared) => {
                for (worker, life) in process.lives.iter().enumerate() {
                    *lock(life) = Some(Life::new(&shared, worker));
                }
                *lock(&process.shared) = Some(shared);
            }
            Err(_) if process.is_crashed() => return None,
            Err(error) => {
                if !is_expected(&error, self.impostors.load(Ordering::Relaxed) > 0) {
                    self.fail(format!("{} could not start: {error}", process.name));
                }
                process.crash();
                return None;
            }
        }
        Some(process)
    }

    fn open(&self, process: &Arc<Process>) -> Result<Arc<Shared>> {
        let log: Arc<dyn Log> =
            Arc::new(ProcessLog { inner: self.log.clone(), process: Arc::clone(process) });
        let closing = self.closing.load(Ordering::Relaxed);
        let options = RunOptions {
            threads: self.settings.workers,
            epoch: self.settings.epoch,
            epoch_rows: self.settings.epoch_rows,
            checkpoint_interval: self.settings.checkpoint_interval,
            state_budget: self.settings.state_budget,
            until_end: closing,
            close: closing,
            ..RunOptions::default()
        };
        let objects = Objects::new(&self.objects, process);
        let copies = Checkpoints::over(Arc::new(objects), &self.plan.name, "objects");
        let meta = run::admit(&self.plan, &*log)?;
        let machine = SimulatedMachine(Arc::clone(process));
        let own = run::Process {
            began: machine.now(),
            machine: Arc::new(machine),
            checkpoints: self.settings.copies.then(|| Arc::new(copies)),
            progress: Progress::default(),
            stop: Arc::clone(&process.stop),
        };
        Ok(Arc::new(Shared::open(&self.plan, &log, &options, meta.as_ref(), own)?))
    }

    /// Ends all processes, and waits until nobody knows them any more.
    pub fn end_all(&self) {
        let processes = lock(&self.processes).clone();
        for (_, process) in processes {
            process.crash();
        }
        self.tidy();
        self.advance(Duration::from_secs(60));
    }

    /// So many faults may fall from here on.
    pub fn trouble(&self, faults: i64) {
        self.faults_left.store(faults, Ordering::Relaxed);
    }

    /// No fault from here on.
    pub fn calm(&self) {
        self.faults_left.store(0, Ordering::Relaxed);
        let Settings { log, .. } = &self.settings;
        self.log.set_faults(Faults {
            seed: log.seed,
            short_reads: log.short_reads,
            short_read_max: log.short_read_max,
            ..Faults::default()
        });
    }

    /// Reads everything to the end, and closes it.
    pub fn close(&self) {
        self.end_all();
        self.closing.store(true, Ordering::Relaxed);
        self.start_hosts();
        for tick in 0.. {
            if self.failure().is_some() {
                return;
            }
            self.tick();
            if self.closed.load(Ordering::Relaxed) && lock(&self.processes).is_empty() {
                self.advance(Duration::from_secs(60));
                return;
            }
            if tick == self.settings.ticks_max {
                return self.fail("it does not come to its end".to_owned());
            }
        }
    }
}

/// What ends a process that its supervisor then starts again. `doubled`: another process has run under its id.
fn is_expected(error: &EngineError, doubled: bool) -> bool {
    match error {
        EngineError::Log(LogError::Fenced(_)) | EngineError::Fenced(_) => doubled,
        error => matches!(error, EngineError::State(StateError::Io { .. })),
    }
}
