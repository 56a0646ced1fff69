//! Wakes the thread of a partition's broker: librdkafka (2.12) tells it of a partition that is resumed or assigned, but
//! it sleeps on in its poll for up to a second before it fetches. Any request to that broker wakes it.
//!
//! Invariant: nobody waits for an answer, and none is needed: what fails leaves the thread to wake by itself.

use std::sync::Arc;

use rdkafka::bindings as sys;

use super::client::{Client, PartitionList};
use crate::log::{LogError, Result};
use crate::record::TopicPartition;

/// The special offset that asks for a partition's end.
const END: i64 = -1;

/// Where answers come that nobody reads; destroyed before the client.
pub(super) struct Wakes {
    answers: *mut sys::rd_kafka_queue_t,
    client: Arc<Client>,
}

// SAFETY: librdkafka's queues may be used from any thread.
unsafe impl Send for Wakes {}

impl Wakes {
    pub fn new(client: &Arc<Client>) -> Result<Self> {
        // SAFETY: a live client.
        let answers = unsafe { sys::rd_kafka_queue_new(client.raw()) };
        if answers.is_null() {
            return Err(LogError::Other { what: "kafka consumer".into(), detail: "it gets no queue".into() });
        }
        Ok(Self { answers, client: Arc::clone(client) })
    }

    /// Asks the brokers that lead the partitions for their ends.
    pub fn wake(&mut self, partitions: &[TopicPartition]) {
        self.forget_answers();
        let ends: Vec<(TopicPartition, i64)> =
            partitions.iter().map(|partition| (partition.clone(), END)).collect();
        let Ok(list) = PartitionList::with_offsets(&ends) else { return };
        let operation = sys::rd_kafka_admin_op_t::RD_KAFKA_ADMIN_OP_LISTOFFSETS;
        // SAFETY: client, list and queue are live; options are destroyed once; the list and options are copied.
        unsafe {
            let options = sys::rd_kafka_AdminOptions_new(self.client.raw(), operation);
            sys::rd_kafka_ListOffsets(self.client.raw(), list.raw(), options, self.answers);
            sys::rd_kafka_AdminOptions_destroy(options);
        }
    }

    fn forget_answers(&mut self) {
        loop {
            // SAFETY: the queue is live; an event is destroyed once.
            unsafe {
                let event = sys::rd_kafka_queue_poll(self.answers, 0);
                if event.is_null() {
                    return;
                }
                sys::rd_kafka_event_destroy(event);
            }
        }
    }
}

impl Drop for Wakes {
    fn drop(&mut self) {
        self.forget_answers();
        // SAFETY: owned, destroyed once, while the client is alive.
        unsafe { sys::rd_kafka_queue_destroy(self.answers) };
    }
}
