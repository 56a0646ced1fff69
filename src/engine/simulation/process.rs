//! A simulated process: its workers, its machine, and its way to the log, all of which end when it crashes.
//!
//! Invariant: whatever a process asks of the world outside itself passes an edge, where it may crash, be stopped
//! for a while, or find that the group rebalances.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use super::disk::Disk;
use super::world::World;
use crate::engine::machine::{Machine, Running};
use crate::engine::run::{Life, Shared};
use crate::engine::{Progress, Result};
use crate::log::LogError;
use crate::state::{Allowance, DeferredStore, StateError, Store};

/// Of state that waits in memory to be written.
const DEFERRED_BYTES: usize = 2 << 10;

type Work = Box<dyn FnOnce() + Send>;
/// Work, and when its turn comes.
type Queue = VecDeque<(Instant, Arc<Mutex<Option<Work>>>)>;
/// What is to happen as a process asks something; it is told what.
type AtEdge = Box<dyn FnMut(&str) + Send>;

pub struct Process {
    pub name: String,
    /// The id under which it runs: of its host, or that of another one that it was copied from.
    pub instance: String,
    pub disk: Disk,
    pub world: Weak<World>,
    pub shared: Mutex<Option<Arc<Shared>>>,
    pub lives: Vec<Mutex<Option<Life>>>,
    pub stop: Arc<AtomicBool>,
    /// What was started beside the workers.
    jobs: Mutex<Queue>,
    at_edge: Mutex<Option<AtEdge>>,
    crashed: AtomicBool,
    /// It has no workers yet.
    pub opening: AtomicBool,
    /// It is stopped, as by SIGSTOP, or is on the stack already.
    pub stopped: AtomicBool,
    edges: AtomicU64,
}

impl Process {
    pub fn new(world: &Arc<World>, name: String, instance: String, disk: Disk, workers: usize) -> Arc<Self> {
        Arc::new(Self {
            name,
            instance,
            disk,
            world: Arc::downgrade(world),
            shared: Mutex::default(),
            lives: (0..workers).map(|_| Mutex::new(None)).collect(),
            stop: Arc::default(),
            jobs: Mutex::default(),
            at_edge: Mutex::default(),
            crashed: AtomicBool::new(false),
            opening: AtomicBool::new(true),
            stopped: AtomicBool::new(false),
            edges: AtomicU64::new(0),
        })
    }

    pub fn is_crashed(&self) -> bool {
        self.crashed.load(Ordering::Relaxed)
    }

    /// Ends it; what it has not flushed may be gone.
    pub fn crash(&self) {
        if !self.crashed.swap(true, Ordering::Relaxed)
            && let Some(world) = self.world.upgrade()
        {
            world.trace(|| format!("{} crashes", self.name));
            self.disk.crash(&mut world.dice());
            self.forget_jobs();
        }
    }

    /// What it has started and not done is not done any more.
    pub fn forget_jobs(&self) {
        self.jobs().clear();
    }

    /// Lets something happen whenever the process is about to ask something of the world.
    pub fn at_edges(&self, happens: impl FnMut(&str) + Send + 'static) {
        *lock(&self.at_edge) = Some(Box::new(happens));
    }

    /// Whether no worker of it works any more.
    pub fn is_over(&self) -> bool {
        !self.opening.load(Ordering::Relaxed)
            && self.lives.iter().all(|life| life.try_lock().is_ok_and(|life| life.is_none()))
    }

    /// Something is asked of the world. False: the process is gone.
    fn passes(&self, what: &str) -> bool {
        let Some(world) = self.world.upgrade() else { return false };
        if self.is_crashed() {
            return false;
        }
        // What happens then may come to an edge of this process, too.
        let happens = lock(&self.at_edge).take();
        if let Some(mut happens) = happens {
            happens(what);
            *lock(&self.at_edge) = Some(happens);
        }
        let edge = self.edges.fetch_add(1, Ordering::Relaxed) + 1;
        world.at_edge(self, edge, what);
        !self.is_crashed()
    }

    pub fn edge(&self, what: &str) -> Result<(), StateError> {
        if self.passes(what) {
            return Ok(());
        }
        Err(StateError::Io { place: self.name.clone(), detail: "the process has crashed".to_owned() })
    }

    pub fn log_edge(&self, what: &str) -> Result<(), LogError> {
        if self.passes(what) { Ok(()) } else { Err(self.gone()) }
    }

    pub fn gone(&self) -> LogError {
        LogError::Other { what: self.name.clone(), detail: "the process has crashed".to_owned() }
    }

    /// As an edge, of the object store.
    pub fn asks_objects(&self, what: &str) -> bool {
        let Some(world) = self.world.upgrade() else { return false };
        !self.is_crashed() && world.asks_objects(self, what) && !self.is_crashed()
    }

    fn jobs(&self) -> MutexGuard<'_, Queue> {
        lock(&self.jobs)
    }

    /// What its workers report.
    pub fn progress(&self) -> Progress {
        lock(&self.shared).as_ref().map(|shared| shared.progress.clone()).unwrap_or_default()
    }

    /// Whether there is work whose turn has come.
    pub fn has_jobs(&self) -> bool {
        let Some(world) = self.world.upgrade() else { return false };
        self.jobs().iter().any(|(due, _)| *due <= world.now())
    }

    /// Does the work that was started first, of that whose turn has come.
    pub fn do_job(&self) {
        let Some(world) = self.world.upgrade() else { return };
        let job = {
            let mut jobs = self.jobs();
            let next = jobs.iter().position(|(due, _)| *due <= world.now());
            next.and_then(|next| jobs.remove(next))
        };
        let work = job.and_then(|(_, job)| lock(&job).take());
        if let Some(work) = work {
            work();
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Work that waits for its turn, or is done when somebody waits for it.
struct Waiting(Arc<Mutex<Option<Work>>>);

impl Running for Waiting {
    fn is_finished(&self) -> bool {
        self.0.try_lock().is_ok_and(|work| work.is_none())
    }

    fn wait(self: Box<Self>) {
        let work = lock(&self.0).take();
        if let Some(work) = work {
            work();
        }
    }
}

pub struct SimulatedMachine(pub Arc<Process>);

impl SimulatedMachine {
    fn world(&self) -> Arc<World> {
        self.0.world.upgrade().unwrap()
    }
}

impl Machine for SimulatedMachine {
    fn now(&self) -> Instant {
        self.world().now()
    }

    fn pause(&self, pause: Duration) {
        self.world().advance(pause);
    }

    fn start(&self, work: Work) -> Box<dyn Running> {
        let work = Arc::new(Mutex::new(Some(work)));
        let due = self.world().due();
        self.0.jobs().push_back((due, Arc::clone(&work)));
        Box::new(Waiting(work))
    }

    fn store(&self, task: &str) -> Result<Box<dyn Store>, StateError> {
        // Some states find room in memory, others do not.
        let store = self.0.disk.open(&self.0, task)?;
        Ok(Box::new(DeferredStore::new(Box::new(store), &Allowance::new(DEFERRED_BYTES))))
    }

    fn instance(&self) -> &str {
        &self.0.instance
    }
}
