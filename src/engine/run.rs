//! A topology live: its topics, its workers, and when they stop.
//!
//! Invariant: nothing is started, and no topic is made, for a topology that is refused.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rand::TryRng;

use crate::log::{Log, MemberOptions};
use crate::plan::{Plan, StageInput};
use crate::record::TopicPartition;
use crate::state::{Checkpoints, StateDir, StateError};

use super::drift::Drift;
use super::meta::MetaRecord;
use super::offsets::Counters;
use super::progress::Progress;
use super::topics::TopicNames;
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
    pub checkpoints: Option<String>,
    /// Read to the ends that the sources have now, commit, and return.
    pub until_end: bool,
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
}

const INSTANCE_FILE: &str = "instance";
const SESSION_TIMEOUT: Duration = Duration::from_secs(10);
const TRANSACTION_TIMEOUT: Duration = Duration::from_secs(15);
/// Fenced this often within [`FENCED_WITHIN`]: someone else runs as this instance.
const FENCED_MAX: usize = 4;
const FENCED_WITHIN: Duration = Duration::from_secs(60);

/// What the workers of one process share.
pub struct Shared {
    pub plan: Arc<Plan>,
    pub log: Arc<dyn Log>,
    pub names: Arc<TopicNames>,
    pub settings: RunOptions,
    pub state_dir: StateDir,
    pub checkpoints: Option<Arc<Checkpoints>>,
    pub progress: Progress,
    pub drift: Drift,
    pub until_end: Option<UntilEnd>,
    instance: String,
    stop: Arc<AtomicBool>,
    failed: AtomicBool,
    /// The record that goes into the topology's first transaction.
    meta: Mutex<Option<Vec<u8>>>,
    keyed_partitions: usize,
}

impl Shared {
    pub fn must_stop(&self) -> bool {
        self.stop.load(Ordering::Relaxed) || self.failed.load(Ordering::Relaxed)
    }

    pub fn member_options(&self, index: usize) -> MemberOptions {
        let mut topics: Vec<String> = (0..self.plan.stages.len())
            .map(|stage| self.names.input_topic(&self.plan, stage).to_string())
            .collect();
        topics.sort();
        topics.dedup();
        MemberOptions {
            group: self.names.group.clone(),
            instance: format!("headwater.{}.{}.{index}", self.plan.name, self.instance),
            topics,
            session_timeout: SESSION_TIMEOUT,
            transaction_timeout: TRANSACTION_TIMEOUT,
        }
    }

    /// The part of the budget that one keyed task may use.
    pub fn task_budget(&self) -> usize {
        (self.settings.state_budget / self.keyed_partitions.max(1)).max(1 << 20)
    }

    pub fn forget(&self, partition: &TopicPartition) {
        self.progress.remove(partition);
        self.drift.remove(partition);
    }

    /// The topology's record of itself, until it is committed. Whoever commits holds it meanwhile, so no other
    /// worker's transaction comes before the one that it is in.
    pub fn meta(&self) -> Result<MutexGuard<'_, Option<Vec<u8>>>> {
        super::lock(&self.meta)
    }
}

/// The ends that `run --until-end` goes to, and who has reached them.
#[derive(Debug)]
pub struct UntilEnd {
    pub run: u64,
    ends: BTreeMap<TopicPartition, i64>,
    /// All partitions that must be done: sources' and exchanges'.
    all: usize,
    done: Mutex<BTreeSet<TopicPartition>>,
}

impl UntilEnd {
    /// The last stable ends as they are now, tested against positions (rule R10).
    fn new(plan: &Plan, names: &TopicNames, log: &dyn Log) -> Result<Self> {
        let (mut ends, mut all) = (BTreeMap::new(), 0);
        for (stage, spec) in plan.stages.iter().enumerate() {
            let topic = names.input_topic(plan, stage);
            all += names.count(&topic) as usize;
            if let StageInput::Source(_) = spec.input {
                for partition in 0..names.count(&topic) {
                    let partition = TopicPartition::new(Arc::clone(&topic), partition);
                    let end = log.bounds(&partition)?.end;
                    ends.insert(partition, end);
                }
            }
        }
        Ok(Self { run: random()?, ends, all, done: Mutex::default() })
    }

    pub fn reached(&self, partition: &TopicPartition, position: i64) -> bool {
        self.ends.get(partition).is_some_and(|&end| position >= end)
    }
    pub fn done(&self, partition: &TopicPartition) {
        self.lock().insert(partition.clone());
    }
    pub fn has(&self, partition: &TopicPartition) -> bool {
        self.lock().contains(partition)
    }
    pub fn is_done(&self) -> bool {
        self.lock().len() == self.all
    }
    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeSet<TopicPartition>> {
        self.done.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Runs a topology until `stop` is set, or to its end with `until_end`. `progress` can be watched meanwhile.
pub fn run(
    plan: &Arc<Plan>,
    log: &Arc<dyn Log>,
    options: &RunOptions,
    progress: &Progress,
    stop: &Arc<AtomicBool>,
) -> Result<RunReport> {
    let meta = MetaRecord::read(plan, &**log)?;
    if let Some(meta) = &meta {
        meta.check(plan)?;
    }
    TopicNames::sources(plan, &**log)?;
    let state_path = options.state_dir.join(&*plan.name);
    let state_dir = open_state(&state_path)?;
    let instance = instance(&state_path)?;
    let names = Arc::new(TopicNames::prepare(plan, &**log, meta.as_ref())?);
    let first = match meta {
        Some(_) if !has_committed(plan, &names, &**log)? => {
            return Err(EngineError::GroupGone { group: names.group.clone() });
        }
        Some(_) => None,
        None => Some(MetaRecord::new(plan, &names, &**log)?.to_bytes()?),
    };
    let checkpoints = match &options.checkpoints {
        Some(url) => Some(Arc::new(Checkpoints::open(url, &plan.name)?)),
        None => None,
    };
    let keyed_partitions = names.exchanges.iter().flatten().map(|topic| names.count(topic) as usize).sum();
    let shared = Shared {
        until_end: match options.until_end {
            true => Some(UntilEnd::new(plan, &names, &**log)?),
            false => None,
        },
        plan: Arc::clone(plan),
        log: Arc::clone(log),
        names,
        settings: options.clone(),
        state_dir,
        checkpoints,
        progress: progress.clone(),
        drift: Drift::default(),
        instance,
        stop: Arc::clone(stop),
        failed: AtomicBool::new(false),
        meta: Mutex::new(first),
        keyed_partitions,
    };
    let mut outcomes: Vec<Result<u32>> = Vec::new();
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..options.threads.max(1))
            .map(|index| {
                let shared = &shared;
                let named = std::thread::Builder::new().name(format!("worker-{index}"));
                named.spawn_scoped(scope, move || {
                    let outcome = work(shared, index);
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
    Ok(RunReport { counters: progress.counters(), commits: progress.commits().0, rejoins })
}

/// Whether the group has any offset: the first transaction, which wrote the meta record, committed one.
fn has_committed(plan: &Plan, names: &TopicNames, log: &dyn Log) -> Result<bool> {
    let mut partitions = Vec::new();
    for stage in 0..plan.stages.len() {
        let topic = names.input_topic(plan, stage);
        let each = 0..names.count(&topic);
        partitions.extend(each.map(|partition| TopicPartition::new(Arc::clone(&topic), partition)));
    }
    Ok(log.committed(&names.group, &partitions)?.iter().any(Option::is_some))
}

/// One worker's life over its members; yields how often it joined anew.
fn work(shared: &Shared, index: usize) -> Result<u32> {
    let mut rejoins = 0;
    let mut fenced: Vec<Instant> = Vec::new();
    loop {
        match Worker::new(shared, index)?.run()? {
            Ended::Stopped => return Ok(rejoins),
            Ended::Rejoin(why) => {
                rejoins += 1;
                tracing::warn!("worker {index} joins anew: {why}");
                fenced.retain(|at| at.elapsed() < FENCED_WITHIN);
                fenced.push(Instant::now());
                if fenced.len() >= FENCED_MAX {
                    return Err(EngineError::Fenced(why));
                }
            }
        }
    }
}

/// A number that no other run has.
fn random() -> Result<u64> {
    rand::rngs::SysRng
        .try_next_u64()
        .map_err(|error| EngineError::Sink(format!("the system's random numbers can't be read: {error}")))
}

/// Opens the state directory. One that is damaged (a disk that was full can do that) is set aside: what lies there
/// only shortens the fold, and copies and the log have the rest.
fn open_state(path: &Path) -> Result<StateDir> {
    let damage = match StateDir::open(path) {
        Err(error @ StateError::Corrupt { .. }) => error,
        opened => return Ok(opened?),
    };
    let mut aside = path.as_os_str().to_owned();
    aside.push(".damaged");
    let aside = PathBuf::from(aside);
    let failed = |error: std::io::Error| {
        EngineError::Sink(format!("{damage}; it could not be moved to {}: {error}", aside.display()))
    };
    if aside.exists() {
        std::fs::remove_dir_all(&aside).map_err(failed)?;
    }
    std::fs::rename(path, &aside).map_err(failed)?;
    std::fs::create_dir_all(path).map_err(failed)?;
    // The same instance goes on: its predecessor's transaction and membership are waited for otherwise.
    if let Ok(id) = std::fs::read(aside.join(INSTANCE_FILE)) {
        std::fs::write(path.join(INSTANCE_FILE), id).map_err(failed)?;
    }
    let (place, aside) = (path.display(), aside.display());
    tracing::warn!("the state in {place} is damaged; it was moved to {aside}, and a copy or the log is used");
    Ok(StateDir::open(path)?)
}

/// The instance id, kept in the state directory: stable over restarts, so that a restart fences its
/// predecessor at once.
fn instance(state_dir: &Path) -> Result<String> {
    let path = state_dir.join(INSTANCE_FILE);
    let failed = |error: std::io::Error| EngineError::Sink(format!("{}: {error}", path.display()));
    match std::fs::read_to_string(&path) {
        Ok(id) if !id.trim().is_empty() => Ok(id.trim().to_string()),
        _ => {
            let id = format!("{:08x}", random()? as u32);
            std::fs::write(&path, &id).map_err(failed)?;
            Ok(id)
        }
    }
}
