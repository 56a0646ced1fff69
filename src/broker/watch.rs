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

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use bytes::Bytes;
    use futures::FutureExt;

    use super::super::batch::tests::batch;
    use super::super::config::TopicConfig;
    use super::super::disk::RealDisk;
    use super::*;

    #[test]
    fn a_wait_ends_when_one_of_its_partitions_gets_something_and_no_other() {
        let folders = [(); 3].map(|()| tempfile::tempdir().unwrap());
        let open = |folder: &tempfile::TempDir| {
            Arc::new(Partition::open(Arc::new(RealDisk), folder.path(), 0, true).unwrap())
        };
        let [one, two, other] = [&folders[0], &folders[1], &folders[2]].map(open);
        let config = TopicConfig::new(Default::default()).unwrap();
        let append = |partition: &Partition| {
            partition.append(Bytes::from(batch((-1, -1, -1), false, &[1])), &config).unwrap();
        };
        let watch = Watch::on(vec![one.clone(), two.clone()]);
        append(&other);
        assert!(watch.woken().now_or_never().is_none(), "that is another's");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        // What comes between registering and waiting is not missed.
        append(&two);
        let woken = async { tokio::time::timeout(Duration::from_secs(30), watch.woken()).await };
        assert!(runtime.block_on(woken).is_ok());
        drop(watch);
        assert!(lock(&one.watchers.waiting).is_empty() && lock(&two.watchers.waiting).is_empty());
    }
}
