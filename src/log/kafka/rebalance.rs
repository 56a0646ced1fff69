//! Rebalances as librdkafka calls them out, turned into events for the worker.
//!
//! librdkafka calls back from inside a consume call, that is, on the worker's own thread. An assignment is
//! acknowledged at once with no partitions: librdkafka then takes each partition when `start` assigns it with
//! its offset, so nothing is read before that. A revocation is acknowledged by `release`, and the group waits.
//!
//! Invariant: the fence is captured inside the callback, before it is acknowledged: the generation cannot
//! move in between (rule R1).
//! Invariant: in a cooperative rebalance the group is at its new generation by the time it asks for
//! partitions, while this member still owns them. So a revocation carries a fence too, and is preceded by an
//! empty assignment under it: the epoch is committed under the new generation. A loss carries none.
//! Invariant: a pause never moves a partition. librdkafka fetches, after a pause, from the offset after the
//! last message taken; but of a batch it counts the end-of-partition notice as a message at the end's offset
//! (`rd_kafka_q_serve_rkmessages`, 2.12), and would skip the next record. A rebalance pauses too. So where a
//! partition stands at its end, it is sought there again before it goes on.

use std::collections::{HashMap, VecDeque};
use std::ffi::c_void;
use std::sync::atomic::{AtomicBool, AtomicPtr, Ordering};
use std::sync::{Arc, Mutex};

use rdkafka::bindings as sys;
use sys::rd_kafka_resp_err_t as Code;

use super::client::{Context, Failure, PartitionList, code_text, entries_of, lock, opaque};
use crate::log::{Event, Fence};
use crate::record::TopicPartition;

/// A consumer's group metadata: the group, its generation, the member and its instance.
pub(super) struct GroupMetadata(*mut sys::rd_kafka_consumer_group_metadata_t);

// SAFETY: immutable memory, owned.
unsafe impl Send for GroupMetadata {}
// SAFETY: as above.
unsafe impl Sync for GroupMetadata {}

impl GroupMetadata {
    /// # Safety
    /// `client` is a live consumer.
    unsafe fn of(client: *mut sys::rd_kafka_t) -> Self {
        // SAFETY: the caller's promise.
        Self(unsafe { sys::rd_kafka_consumer_group_metadata(client) })
    }

    pub fn raw(&self) -> *const sys::rd_kafka_consumer_group_metadata_t {
        self.0
    }
}

impl Drop for GroupMetadata {
    fn drop(&mut self) {
        if !self.0.is_null() {
            // SAFETY: owned, destroyed once.
            unsafe { sys::rd_kafka_consumer_group_metadata_destroy(self.0) };
        }
    }
}

/// What was called back and not yet polled.
#[derive(Default)]
pub(super) struct Rebalances {
    events: Mutex<VecDeque<Event>>,
    /// The consumer's queue: its wait is cut short when there is an event.
    queue: AtomicPtr<sys::rd_kafka_queue_t>,
    leaving: AtomicBool,
    /// The partitions that stand at their end, and where that is.
    ends: Mutex<HashMap<TopicPartition, i64>>,
}

impl Rebalances {
    pub fn wake(&self, queue: *mut sys::rd_kafka_queue_t) {
        self.queue.store(queue, Ordering::Release);
    }

    /// From now on revocations are acknowledged at once and not reported.
    pub fn leave(&self) {
        self.leaving.store(true, Ordering::Release);
    }

    pub fn take(&self) -> VecDeque<Event> {
        std::mem::take(&mut *lock(&self.events))
    }

    /// Whether this end is news.
    pub fn keep_end(&self, partition: &TopicPartition, position: i64) -> bool {
        lock(&self.ends).insert(partition.clone(), position) != Some(position)
    }
    pub fn forget_end(&self, partition: &TopicPartition) {
        lock(&self.ends).remove(partition);
    }
    pub fn forget_ends(&self) {
        lock(&self.ends).clear();
    }

    /// Seeks those of the partitions, paused ones, that stand at their end: see the invariant.
    ///
    /// # Safety
    /// `client` is a live consumer.
    pub unsafe fn hold_ends(&self, client: *mut sys::rd_kafka_t, paused: impl Fn(&TopicPartition) -> bool) {
        let ends: Vec<(TopicPartition, i64)> =
            lock(&self.ends).iter().filter(|(p, _)| paused(p)).map(|(p, o)| (p.clone(), *o)).collect();
        if ends.is_empty() {
            return;
        }
        match PartitionList::with_offsets(&ends) {
            // SAFETY: the caller's promise. Without waiting: the resumption queues up behind it.
            Ok(list) => report(unsafe { sys::rd_kafka_seek_partitions(client, list.raw(), 0) }, "seek"),
            Err(error) => tracing::error!("{error}"),
        }
    }

    fn push(&self, event: Event) {
        lock(&self.events).push_back(event);
        let queue = self.queue.load(Ordering::Acquire);
        if !queue.is_null() {
            // SAFETY: the consumer that set it is inside a consume call on it.
            unsafe { sys::rd_kafka_queue_yield(queue) };
        }
    }
}

/// librdkafka's rebalance callback.
///
/// # Safety
/// Called by librdkafka with a live consumer whose opaque is a [`Context`].
pub(super) unsafe extern "C" fn on_rebalance(
    client: *mut sys::rd_kafka_t,
    code: Code,
    partitions: *mut sys::rd_kafka_topic_partition_list_t,
    context: *mut c_void,
) {
    // SAFETY: the caller's promise; the context outlives the client.
    let (context, partitions): (Option<&Context>, Vec<TopicPartition>) = unsafe {
        (opaque(context), entries_of(partitions).into_iter().map(|entry| entry.partition).collect())
    };
    let Some(rebalances) = context.map(|context| &context.rebalances) else { return };
    let none = PartitionList::new();
    // SAFETY: the consumer is live, and this is the call for which librdkafka waits.
    unsafe {
        if rebalances.leaving.load(Ordering::Acquire) {
            // Nothing is asked of the group here: when it has ended in between, librdkafka (2.12) drops the question
            // (`rd_kafka_cgrp_op_serve`), and the one who asked, this consumer's close, waits for ever.
            if sys::rd_kafka_consumer_closed(client) == 0 {
                match code {
                    Code::RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS => {
                        report(sys::rd_kafka_incremental_assign(client, none.raw()), "assignment");
                    }
                    _ => report(sys::rd_kafka_incremental_unassign(client, none.raw()), "revocation"),
                }
            }
            return;
        }
        rebalances.hold_ends(client, |_| true);
        // Captured before the acknowledgement: see the invariant.
        let fence = Fence(Arc::new(GroupMetadata::of(client)));
        match code {
            Code::RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS => {
                rebalances.push(Event::Assigned { partitions, fence });
                report(sys::rd_kafka_incremental_assign(client, none.raw()), "assignment");
            }
            Code::RD_KAFKA_RESP_ERR__REVOKE_PARTITIONS => {
                if partitions.is_empty() {
                    report(sys::rd_kafka_incremental_unassign(client, none.raw()), "revocation");
                } else if sys::rd_kafka_assignment_lost(client) != 0 {
                    rebalances.push(Event::Lost(partitions));
                } else {
                    rebalances.push(Event::Assigned { partitions: Vec::new(), fence });
                    rebalances.push(Event::Revoked(partitions));
                }
            }
            other => {
                tracing::warn!(target: "librdkafka", "rebalance: {}", code_text(other));
                report(sys::rd_kafka_incremental_unassign(client, none.raw()), "failed rebalance");
                rebalances.push(Event::Lost(partitions));
            }
        }
    }
}

fn report(error: *mut sys::rd_kafka_error_t, what: &str) {
    if let Some(failure) = Failure::take(error) {
        tracing::warn!(target: "librdkafka", "{what} not acknowledged: {}", failure.text);
    }
}
