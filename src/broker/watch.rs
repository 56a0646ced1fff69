//! Who is woken when a partition gets something to read: the fetches that wait for it, and nobody else.
//!
//! Invariant: a wake-up between registering and waiting is kept, so a fetch that registers, looks and then waits
//! misses nothing.

use std::sync::{Arc, Mutex};

use tokio::sync::Notify;

use super::lock;
use super::partition::Partition;

/// The waiting fetches of one partition.
#[derive(Default)]
pub struct Watchers {
    waiting: Mutex<Vec<Arc<Notify>>>,
}

impl Watchers {
    pub fn wake(&self) {
        for waiting in lock(&self.waiting).iter() {
            waiting.notify_one();
        }
    }
}

/// One fetch's wait on its partitions; it ends when dropped.
pub struct Watch {
    wake: Arc<Notify>,
    partitions: Vec<Arc<Partition>>,
}

impl Watch {
    pub fn on(partitions: Vec<Arc<Partition>>) -> Watch {
        let wake = Arc::new(Notify::new());
        for partition in &partitions {
            lock(&partition.watchers.waiting).push(wake.clone());
        }
        Watch { wake, partitions }
    }

    pub async fn woken(&self) {
        self.wake.notified().await;
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        for partition in &self.partitions {
            lock(&partition.watchers.waiting).retain(|waiting| !Arc::ptr_eq(waiting, &self.wake));
        }
    }
}
