//! What a process takes from the machine it runs on: time, threads, and a place for its state.
//!
//! A simulation hands in its own, so that one seed decides all of it; the rest of the engine is the same.
//! Invariant: no other file of the engine's live side asks a clock, sleeps, or starts a thread for itself; `run`
//! starts the workers.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rand::TryRng;

use crate::state::{Allowance, DeferredStore, StateDir, StateError, Store};

use super::{EngineError, Result};

pub trait Machine: Send + Sync {
    fn now(&self) -> Instant;

    /// Waits before something is tried again.
    fn pause(&self, pause: Duration);

    /// Does work beside the caller's.
    fn start(&self, work: Box<dyn FnOnce() + Send>) -> Box<dyn Running>;

    /// Opens one task's store in this process's state directory.
    fn store(&self, task: &str) -> Result<Box<dyn Store>, StateError>;

    /// Under which id it runs: stable over restarts, so that a restart fences its predecessor at once.
    fn instance(&self) -> &str;
}

/// The time, before there is a machine to ask.
pub fn now() -> Instant {
    Instant::now()
}

/// Work that was started.
pub trait Running: Send {
    fn is_finished(&self) -> bool;
    fn wait(self: Box<Self>);
}

/// Work that yields something.
pub struct Job<T> {
    running: Box<dyn Running>,
    outcome: Receiver<T>,
}

impl<T: Send + 'static> Job<T> {
    pub fn start(machine: &dyn Machine, work: impl FnOnce() -> T + Send + 'static) -> Self {
        let (sender, outcome) = channel();
        let running = machine.start(Box::new(move || {
            let _ = sender.send(work()); // nobody may be waiting any more
        }));
        Self { running, outcome }
    }

    pub fn is_finished(&self) -> bool {
        self.running.is_finished()
    }

    /// `None`: it panicked.
    pub fn wait(self) -> Option<T> {
        self.running.wait();
        self.outcome.try_recv().ok()
    }
}

impl Running for JoinHandle<()> {
    fn is_finished(&self) -> bool {
        JoinHandle::is_finished(self)
    }

    fn wait(self: Box<Self>) {
        let _ = self.join(); // a panic shows in the outcome that is missing
    }
}

/// This machine.
pub struct LocalMachine {
    state_dir: StateDir,
    /// Of the rows that wait in memory to be written.
    deferred: Arc<Allowance>,
    instance: String,
}

const INSTANCE_FILE: &str = "instance";

impl LocalMachine {
    /// Opens the state directory, which is created if need be. So many bytes of state that copies hold may wait in
    /// memory until they are written here.
    pub fn open(state_path: &Path, deferred_bytes_max: usize) -> Result<Self> {
        Ok(Self {
            state_dir: open_state(state_path)?,
            deferred: Allowance::new(deferred_bytes_max),
            instance: instance(state_path)?,
        })
    }
}

impl Machine for LocalMachine {
    fn now(&self) -> Instant {
        Instant::now()
    }

    fn pause(&self, pause: Duration) {
        std::thread::sleep(pause);
    }

    fn start(&self, work: Box<dyn FnOnce() + Send>) -> Box<dyn Running> {
        Box::new(std::thread::spawn(move || {
            stand_back();
            work();
        }))
    }

    fn store(&self, task: &str) -> Result<Box<dyn Store>, StateError> {
        Ok(Box::new(DeferredStore::new(Box::new(self.state_dir.task(task)?), &self.deferred)))
    }

    fn instance(&self) -> &str {
        &self.instance
    }
}

/// What is done beside the workers, writing checkpoints above all, leaves the cores to them where these are scarce. Where
/// a thread has no priority of its own, nothing changes.
fn stand_back() {
    #[cfg(target_os = "linux")]
    {
        const NICE: libc::c_int = 10;
        // SAFETY: it touches no memory; on Linux 0 is the calling thread alone. That it may fail is no matter.
        unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, NICE) };
    }
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

/// The instance id, kept in the state directory.
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

fn random() -> Result<u64> {
    rand::rngs::SysRng
        .try_next_u64()
        .map_err(|error| EngineError::Sink(format!("the system's random numbers can't be read: {error}")))
}
