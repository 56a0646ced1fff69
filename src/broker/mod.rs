//! The embedded broker: a small, durable, single-node broker that speaks Kafka's protocol, so that Headwater
//! runs with no Kafka at hand, and any Kafka client works with it. It is for one machine: development, demos,
//! tests and small deployments. Past that use Apache Kafka; the code above cannot tell the difference.
//!
//! # A tour, from the socket to the disk
//! ```text
//! server      frames on a connection, one request after the other
//! dispatch    versions (shape: is it all there?); one line for each request type ──► admin, configs, produce, fetch, offsets,
//!                                                          group_requests, transaction_requests
//! groups      who is in a consumer group (in memory) ─ group (its states), membership
//! transactions  the coordinator: what a commit writes, in which order
//! cluster     topics and partitions of one data folder
//! metadata    the log of everything that is not a record
//! partition   one partition ─ segment (files), producers (sequences, open transactions), batch (the format)
//!             ─ retention, compaction: how records go again
//! disk        the file operations that all of it is made of
//! ```
//! Invariant: what was acknowledged survives kill -9; what a committed transaction covers survives a power cut
//! (see `transactions.rs`); everything else is on the disk within a second.
//! Invariant: it listens where it is told, on loopback by default, and asks nobody who they are.
//! Architecture invariant: no replication, no access control, no topics made by asking for them.

mod admin;
mod batch;
mod cluster;
mod compaction;
mod compression;
mod config;
mod configs;
mod disk;
#[cfg(test)]
mod disk_faults;
mod dispatch;
mod fault;
mod fetch;
mod group;
mod group_requests;
mod groups;
mod membership;
mod metadata;
mod offsets;
mod partition;
mod produce;
mod producers;
mod records;
mod retention;
mod segment;
mod server;
mod shape;
#[cfg(test)]
mod simulated_disk;
mod transaction;
mod transaction_recovery;
mod transaction_requests;
mod transactions;
#[cfg(test)]
mod view;
mod watch;

use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use tokio::sync::watch as channel;

use cluster::Cluster;
pub use config::TopicConfig;
use server::Limits;

pub type Result<T, E = BrokerError> = std::result::Result<T, E>;

const WORKER_THREADS: usize = 2;
/// Group sessions and transaction timeouts are looked at this often.
const TICK: Duration = Duration::from_millis(100);
/// Everything is synced, and retention runs, once in this many ticks.
const TICKS_BETWEEN_SYNCS: u32 = 10;
/// How long [`attach`] waits for the broker that holds the folder to say where it is.
const ATTACH_PATIENCE: Duration = Duration::from_secs(10);
const ATTACH_RETRY: Duration = Duration::from_millis(20);
const CONNECT_TIMEOUT: Duration = Duration::from_millis(500);
const STOP_PATIENCE: Duration = Duration::from_secs(2);

/// What can go wrong with the broker as a whole. A request that fails is answered with a code instead.
#[derive(Debug, thiserror::Error)]
pub enum BrokerError {
    #[error("the embedded broker cannot {what} {}: {source}", path.display())]
    Storage { what: &'static str, path: PathBuf, source: io::Error },
    #[error(
        "the embedded broker cannot listen on {address}: {source}; give it another address or stop what listens there"
    )]
    Listen { address: SocketAddr, source: io::Error },
    #[error("{} is served by another broker process; connect to the address in its `address` file, or stop it", path.display())]
    Locked { path: PathBuf },
    #[error("the broker that holds {} did not answer for {waited_s} s; if its process hangs, stop it", path.display())]
    Unresponsive { path: PathBuf, waited_s: u64 },
    #[error(
        "the embedded broker's thread panicked; its log says why. Acknowledged records are safe: start it again"
    )]
    Panicked,
}

/// Where to listen and where to keep data.
#[derive(Clone, Debug)]
pub struct Options {
    /// Port 0: any free one.
    pub listen: SocketAddr,
    pub data_dir: PathBuf,
}

/// A running broker. Dropping or stopping it puts everything on the disk and frees the folder.
pub struct Broker {
    address: SocketAddr,
    stop: channel::Sender<bool>,
    thread: Option<JoinHandle<Result<()>>>,
}

/// The broker of a data folder: started here, or found running in another process.
pub enum Attached {
    Own(Broker),
    Running(SocketAddr),
}

impl Attached {
    pub fn address(&self) -> SocketAddr {
        match self {
            Attached::Own(broker) => broker.address(),
            Attached::Running(address) => *address,
        }
    }
}

impl Broker {
    /// Recovers the data folder and serves it, on threads of its own; it accepts connections when this returns.
    pub fn start(options: &Options) -> Result<Broker> {
        let folder = &options.data_dir;
        let storage = |what: &'static str| {
            let path = folder.clone();
            move |source: io::Error| BrokerError::Storage { what, path, source }
        };
        std::fs::create_dir_all(folder).map_err(storage("create"))?;
        disk::raise_file_limit();
        let lock = take_lock(folder)?;
        let unable = |source: io::Error| BrokerError::Listen { address: options.listen, source };
        // A taken port is found out before the folder is touched.
        let listener = TcpListener::bind(options.listen).map_err(unable)?;
        listener.set_nonblocking(true).map_err(unable)?;
        let address = listener.local_addr().map_err(unable)?;
        let cluster = Arc::new(Cluster::open(folder).map_err(storage("open"))?);
        publish(folder, address).map_err(storage("write the address file of"))?;
        let (stop, stopped) = channel::channel(false);
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(WORKER_THREADS)
            .thread_name("broker")
            .enable_all()
            .build()
            .map_err(storage("start threads to serve"))?;
        let upkeep = spawn_upkeep(cluster.clone(), stopped.clone());
        let upkeep = upkeep.map_err(storage("start threads to serve"))?;
        let cleaner = spawn_cleaner(cluster.clone(), stopped.clone());
        let cleaner = cleaner.map_err(storage("start threads to serve"))?;
        let path = folder.clone();
        let main = move || {
            let _held = lock;
            let served =
                runtime.block_on(server::serve(cluster.clone(), listener, Limits::default(), stopped));
            runtime.shutdown_timeout(STOP_PATIENCE);
            let upkeep_ended = upkeep.join().and_then(|()| cleaner.join());
            let _ = std::fs::remove_file(path.join("address"));
            cluster.close().map_err(|source| BrokerError::Storage { what: "close", path, source })?;
            served.map_err(|source| BrokerError::Listen { address, source })?;
            upkeep_ended.map_err(|_| BrokerError::Panicked)
        };
        let thread = std::thread::Builder::new().name("broker-main".into()).spawn(main);
        let thread = thread.map_err(storage("start threads to serve"))?;
        Ok(Broker { address, stop, thread: Some(thread) })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Stops it, and says whether everything reached the disk.
    pub fn stop(mut self) -> Result<()> {
        self.end()
    }

    fn end(&mut self) -> Result<()> {
        self.stop.send_replace(true);
        match self.thread.take() {
            Some(thread) => thread.join().unwrap_or(Err(BrokerError::Panicked)),
            None => Ok(()),
        }
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        if let Err(error) = self.end() {
            tracing::error!(%error, "the embedded broker did not stop cleanly");
        }
    }
}

/// The embedded default of a data folder: serves it (where it was served before, on `preferred`, or on any port, the
/// first that is free) unless another process does, and then says where that one listens.
pub fn attach(data_dir: &Path, preferred: SocketAddr) -> Result<Attached> {
    let deadline = Instant::now() + ATTACH_PATIENCE;
    // Where it was before: clients of an earlier process may still look for it there.
    let listen = published(data_dir).filter(|before| before.ip() == preferred.ip());
    loop {
        match start_anywhere(data_dir, &[listen.unwrap_or(preferred), preferred]) {
            Ok(broker) => return Ok(Attached::Own(broker)),
            Err(BrokerError::Locked { .. }) => {}
            Err(error) => return Err(error),
        }
        // Its holder may be starting (no address yet) or ending (a stale one): ask until it is one or the other.
        if let Some(address) = published(data_dir)
            && TcpStream::connect_timeout(&address, CONNECT_TIMEOUT).is_ok()
        {
            return Ok(Attached::Running(address));
        }
        if Instant::now() >= deadline {
            let waited_s = ATTACH_PATIENCE.as_secs();
            return Err(BrokerError::Unresponsive { path: data_dir.to_owned(), waited_s });
        }
        std::thread::sleep(ATTACH_RETRY);
    }
}

/// On the first of the addresses that is free, or on any port.
fn start_anywhere(data_dir: &Path, preferred: &[SocketAddr]) -> Result<Broker> {
    let any = preferred.last().map(|last| SocketAddr::new(last.ip(), 0));
    let mut outcome = Err(BrokerError::Locked { path: data_dir.to_owned() });
    for &listen in preferred.iter().chain(&any) {
        outcome = Broker::start(&Options { listen, data_dir: data_dir.to_owned() });
        if !matches!(outcome, Err(BrokerError::Listen { .. })) {
            break;
        }
    }
    outcome
}

/// Held for as long as the file is open, so it ends with the process, however that ends.
fn take_lock(folder: &Path) -> Result<File> {
    let path = folder.join("lock");
    let unable = |source| BrokerError::Storage { what: "lock", path: path.clone(), source };
    let file = OpenOptions::new().create(true).truncate(false).write(true).open(&path).map_err(unable)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(BrokerError::Locked { path: folder.to_owned() }),
        Err(TryLockError::Error(source)) => Err(unable(source)),
    }
}

fn publish(folder: &Path, address: SocketAddr) -> io::Result<()> {
    // One that listens everywhere is reached from this machine by loopback.
    let reached = if address.ip().is_unspecified() {
        SocketAddr::new(Ipv4Addr::LOCALHOST.into(), address.port())
    } else {
        address
    };
    let temporary = folder.join("address.new");
    std::fs::write(&temporary, reached.to_string())?;
    std::fs::rename(temporary, folder.join("address"))
}

fn published(folder: &Path) -> Option<SocketAddr> {
    std::fs::read_to_string(folder.join("address")).ok()?.trim().parse().ok()
}

/// The thread that does what no request asks for: timeouts, syncs, retention.
fn spawn_upkeep(cluster: Arc<Cluster>, stopped: channel::Receiver<bool>) -> io::Result<JoinHandle<()>> {
    let upkeep = move || {
        let mut ticks = 0u32;
        while !*stopped.borrow() && stopped.has_changed().is_ok() {
            std::thread::sleep(TICK);
            cluster.groups.tick();
            cluster.time_transactions_out();
            ticks += 1;
            if ticks.is_multiple_of(TICKS_BETWEEN_SYNCS) {
                if let Err(error) = cluster.sync_all() {
                    tracing::error!(%error, "the embedded broker cannot put its data on the disk");
                }
                cluster.expire();
                cluster.carry_transactions_on();
                cluster.expire_transactional_ids();
            }
        }
    };
    std::thread::Builder::new().name("broker-upkeep".into()).spawn(upkeep)
}

/// The thread that compacts, which may take long: it holds nothing up.
fn spawn_cleaner(cluster: Arc<Cluster>, stopped: channel::Receiver<bool>) -> io::Result<JoinHandle<()>> {
    let clean = move || {
        let is_stopped = || *stopped.borrow() || stopped.has_changed().is_err();
        let mut ticks = 0u32;
        while !is_stopped() {
            std::thread::sleep(TICK);
            ticks += 1;
            if ticks.is_multiple_of(TICKS_BETWEEN_SYNCS) {
                cluster.compact(&is_stopped);
            }
        }
    };
    std::thread::Builder::new().name("broker-cleaner".into()).spawn(clean)
}

fn now_ms() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

/// A lock whose holder panicked is taken all the same: what it guards changes in whole steps.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn read<T>(held: &RwLock<T>) -> RwLockReadGuard<'_, T> {
    held.read().unwrap_or_else(PoisonError::into_inner)
}

fn write<T>(held: &RwLock<T>) -> RwLockWriteGuard<'_, T> {
    held.write().unwrap_or_else(PoisonError::into_inner)
}
