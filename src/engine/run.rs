//! A topology live: its topics, its workers, and when they stop.
//!
//! Invariant: nothing is started, and no topic is made, for a topology that is refused.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use crate::log::{Log, MemberOptions};
use crate::objects::Location;
use crate::plan::Plan;
use crate::planted::{Fault, planted, sized};
use crate::record::TopicPartition;
use crate::state::Checkpoints;

use super::drift::{Drift, Others};
use super::machine::{self, LocalMachine, Machine};
use super::meta::{Meta, MetaEntry, MetaRecord};
use super::offsets::Counters;
use super::progress::Progress;
use super::redriven::Redriven;
use super::sources::{self, Sources};
use super::start::StartStep;
use super::topics::TopicNames;
use super::until_end::UntilEnd;
use super::versions::TopologyVersion;
use super::worker::{Ended, Worker};
use super::{EngineError, Result};

/// How a topology runs. Sizes in bytes.
#[derive(Clone, Debug)]
pub struct RunOptions {
    /// Workers: threads with a member each.
    pub threads: usize,
    pub epoch: Duration,
    pub epoch_rows: u64,
    pub epoch_bytes: u64,
    pub checkpoint_interval: Duration,
    /// State that is in memory only, over all tasks; more than that is checkpointed early.
    pub state_budget: usize,
    /// The state directory of this process.
    pub state_dir: PathBuf,
    /// Where checkpoints are copied to; `None`: this machine only.
    pub checkpoints: Option<Location>,
    /// Read to the ends that the sources have now, commit, and return.
    pub until_end: bool,
    /// With `until_end`: the sources end there for good, so that every window closes.
    pub close: bool,
}

impl Default for RunOptions {
    fn default() -> Self {
        Self {
            threads: 1,
            epoch: Duration::from_millis(200),
            epoch_rows: 500_000,
            epoch_bytes: 64 << 20,
            checkpoint_interval: Duration::from_secs(30),
            state_budget: 256 << 20,
            state_dir: PathBuf::from(".headwater/state"),
            checkpoints: None,
            until_end: false,
            close: false,
        }
    }
}

/// What a run has done when it returns.
#[derive(Clone, Debug)]
pub struct RunReport {
    /// Of the partitions that this process had at the end, since the topology began.
    pub counters: Counters,
    /// Commits of this process.
    pub commits: u64,
    pub rejoins: u32,
    /// With `until_end`: the ends are reached and committed. Otherwise it was stopped before.
    pub reached_end: bool,
}

/// The least that a keyed task may hold in memory, however many there are.
const TASK_BUDGET_MIN: usize = 1 << 20;
const SESSION_TIMEOUT: Duration = Duration::from_secs(10);
pub const TRANSACTION_TIMEOUT: Duration = Duration::from_secs(15);
/// Fenced this often within [`FENCED_WITHIN`]: someone else runs as this instance.
const FENCED_MAX: usize = 4;
const FENCED_WITHIN: Duration = Duration::from_secs(60);

/// What one process has to itself.
pub struct Process {
    /// When `run` was asked for.
    pub began: Instant,
    pub machine: Arc<dyn Machine>,
    pub checkpoints: Option<Arc<Checkpoints>>,
    pub progress: Progress,
    pub stop: Arc<AtomicBool>,
}

/// What the workers of one process share.
pub struct Shared {
    began: Instant,
    pub plan: Arc<Plan>,
    pub log: Arc<dyn Log>,
    pub names: Arc<TopicNames>,
    pub settings: RunOptions,
    pub machine: Arc<dyn Machine>,
    pub checkpoints: Option<Arc<Checkpoints>>,
    pub progress: Progress,
    pub drift: Drift,
    pub others: Others,
    pub sources: Sources,
    pub until_end: Option<UntilEnd>,
    pub redriven: Redriven,
    /// It had committed something before this run.
    pub has_run: bool,
    stop: Arc<AtomicBool>,
    failed: AtomicBool,
    /// What goes into the first transaction of this run.
    meta: Mutex<Vec<MetaEntry>>,
    keyed_partitions: usize,
}

impl Shared {
    /// What `run` does before it starts workers. `process` is what this process has to itself.
    pub fn open(
        plan: &Arc<Plan>,
        log: &Arc<dyn Log>,
        options: &RunOptions,
        meta: Option<&Meta>,
        process: Process,
    ) -> Result<Self> {
        let Process { began, machine, checkpoints, progress, stop } = process;
        let names = Arc::new(TopicNames::prepare(plan, &**log, meta.map(|meta| &meta.topology))?);
        let mut entries = Vec::new();
        if meta.is_none() {
            entries.push(MetaRecord::new(plan, &names, &**log)?.entry()?);
        }
        entries.extend(new_version(plan, meta)?);
        let sources = Sources::new(plan, log, meta)?;
        entries.extend(sources.entries(meta)?);
        let exchanges = names.exchanges.iter().flatten();
        let keyed_partitions = exchanges.map(|topic| names.count(topic) as usize).sum();
        let until_end = match options.until_end {
            true => Some(UntilEnd::new(plan, &names, &**log, options.close)?),
            false => None,
        };
        if let Some(copies) = &checkpoints {
            progress.copies_to(copies);
        }
        let drift = Drift::default();
        let others = Others::new(plan, &names, log, &drift);
        Ok(Self {
            began,
            redriven: Redriven::read(&plan.name, &**log)?,
            plan: Arc::clone(plan),
            log: Arc::clone(log),
            names,
            settings: options.clone(),
            machine,
            checkpoints,
            progress,
            drift,
            others,
            sources,
            until_end,
            has_run: meta.is_some(),
            stop,
            failed: AtomicBool::new(false),
            meta: Mutex::new(entries),
            keyed_partitions,
        })
    }

    /// A worker has come to a step of its start.
    pub fn reached(&self, step: StartStep, worker: usize) {
        self.progress.reached(step, worker, self.since(self.began).as_secs_f64());
    }

    /// How long ago that was.
    pub fn since(&self, then: Instant) -> Duration {
        self.machine.now().saturating_duration_since(then)
    }

    pub fn must_stop(&self) -> bool {
        self.stop.load(Ordering::Relaxed) || self.failed.load(Ordering::Relaxed)
    }

    pub fn member_options(&self, index: usize) -> MemberOptions {
        let mut topics: Vec<String> = (0..self.plan.stages.len())
            .map(|stage| self.names.input_topic(&self.plan, stage).to_string())
            .collect();
        topics.sort();
        topics.dedup();
        let mut instance = self.machine.instance().to_owned();
        if planted(Fault::FreshTransactionalId) {
            instance = format!("{instance}-{:?}", self.began);
        }
        MemberOptions {
            group: self.names.group.clone(),
            instance: format!("headwater.{}.{instance}.{index}", self.plan.name),
            topics,
            session_timeout: SESSION_TIMEOUT,
            transaction_timeout: TRANSACTION_TIMEOUT,
        }
    }

    /// The part of the budget that one keyed task may use.
    pub fn task_budget(&self) -> usize {
        (self.settings.state_budget / self.keyed_partitions.max(1)).max(sized(TASK_BUDGET_MIN, 1))
    }

    pub fn forget(&self, partition: &TopicPartition) {
        self.progress.remove(partition);
        self.drift.remove(partition);
    }

    /// What the topology has to remember of this run, until it is committed. Whoever commits holds it meanwhile, so
    /// no other worker's transaction comes before the one that it is in.
    pub fn meta(&self) -> Result<MutexGuard<'_, Vec<MetaEntry>>> {
        super::lock(&self.meta)
    }
}

/// What the topology remembers of its version, where that is not the one that was taken up last.
fn new_version(plan: &Plan, meta: Option<&Meta>) -> Result<Option<MetaEntry>> {
    let version = TopologyVersion::of(plan);
    if let Some(newest) = meta.and_then(Meta::newest) {
        if newest.version == version.version {
            return Ok(None);
        }
        tracing::warn!(
            "topology '{}' has changed since it ran last, and goes on where it stands; what is in its refined topics \
             stays as it is:\n{}",
            plan.name,
            version.changes_since(newest).join("\n")
        );
    }
    version.entry().map(Some)
}

/// Runs a topology until `stop` is set, or to its end with `until_end`. `progress` can be watched meanwhile.
pub fn run(
    plan: &Arc<Plan>,
    log: &Arc<dyn Log>,
    options: &RunOptions,
    progress: &Progress,
    stop: &Arc<AtomicBool>,
) -> Result<RunReport> {
    let began = machine::now();
    let meta = admit(plan, &**log)?;
    let machine = Arc::new(LocalMachine::open(&options.state_dir.join(&*plan.name), options.state_budget)?);
    let checkpoints = match &options.checkpoints {
        Some(location) => Some(Arc::new(Checkpoints::open(location, &plan.name)?)),
        None => None,
    };
    if let Some(away) = checkpoints.as_ref().map_or(Ok(None), |checkpoints| checkpoints.check())? {
        tracing::warn!("checkpoints stay on this machine until their copies can be written: {away}");
    }
    let process = Process { began, machine, checkpoints, progress: progress.clone(), stop: Arc::clone(stop) };
    let shared = Arc::new(Shared::open(plan, log, options, meta.as_ref(), process)?);
    shared.reached(StartStep::Admitted, 0);
    let mut outcomes: Vec<Result<u32>> = Vec::new();
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..options.threads.max(1))
            .map(|index| {
                let shared = Arc::clone(&shared);
                let named = std::thread::Builder::new().name(format!("worker-{index}"));
                named.spawn_scoped(scope, move || {
                    let outcome = work(&shared, index);
                    if outcome.is_err() {
                        shared.failed.store(true, Ordering::Relaxed);
                    }
                    outcome
                })
            })
            .collect();
        for worker in workers {
            outcomes.push(match worker.map(|worker| worker.join()) {
                Ok(Ok(outcome)) => outcome,
                Ok(Err(_)) => Err(EngineError::internal("a worker panicked".into())),
                Err(error) => Err(EngineError::internal(format!("a worker could not be started: {error}"))),
            });
        }
    });
    let mut rejoins = 0;
    for outcome in outcomes {
        rejoins += outcome?;
    }
    let reached_end = shared.until_end.as_ref().is_some_and(UntilEnd::is_done);
    Ok(RunReport { counters: progress.counters(), commits: progress.commits().0, rejoins, reached_end })
}

/// Refuses a topology that can't run here before anything is made for it; yields what it remembers of itself.
pub fn admit(plan: &Plan, log: &dyn Log) -> Result<Option<Meta>> {
    let meta = Meta::read(plan, log)?;
    if let Some(meta) = &meta {
        meta.topology.check(plan)?;
    }
    TopicNames::sources(plan, log)?;
    if let Some(meta) = &meta {
        sources::check(plan, log, meta)?;
    }
    Ok(meta)
}

fn work(shared: &Arc<Shared>, index: usize) -> Result<u32> {
    let mut life = Life::new(shared, index);
    loop {
        if let Some(rejoins) = life.step()? {
            return Ok(rejoins);
        }
    }
}

/// One worker's life over its members.
pub struct Life {
    shared: Arc<Shared>,
    index: usize,
    worker: Option<Worker>,
    rejoins: u32,
    /// When it was fenced lately.
    fenced: Vec<Instant>,
}

impl Life {
    pub fn new(shared: &Arc<Shared>, index: usize) -> Self {
        Self { shared: Arc::clone(shared), index, worker: None, rejoins: 0, fenced: Vec::new() }
    }

    /// Joins if need be, or polls once and handles what has come. `Some`: it has stopped; how often it joined anew.
    pub fn step(&mut self) -> Result<Option<u32>> {
        let Some(worker) = &mut self.worker else {
            self.worker = Some(Worker::new(&self.shared, self.index)?);
            return Ok(None);
        };
        let Some(ended) = worker.step()? else { return Ok(None) };
        self.worker = None;
        match ended {
            Ended::Stopped => return Ok(Some(self.rejoins)),
            Ended::Rejoin(why) => tracing::warn!("worker {} joins anew: {why}", self.index),
            Ended::Fenced(why) => {
                tracing::warn!("worker {} joins anew: {why}", self.index);
                self.fenced.retain(|at| self.shared.since(*at) < FENCED_WITHIN);
                self.fenced.push(self.shared.machine.now());
                if self.fenced.len() >= FENCED_MAX {
                    return Err(EngineError::Fenced(why));
                }
            }
        }
        self.rejoins += 1;
        Ok(None)
    }
}
