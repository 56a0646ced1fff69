//! A worker's member: a consumer in a group and a transactional producer under one name.
//!
//! Invariant: only the worker's own thread polls, so rebalances are served there and nowhere else.
//! Invariant: offsets go into a transaction with the fence they came with (rule R1), and a transaction
//! without offsets is refused (rule R4).

use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use rdkafka::bindings as sys;

use super::client::{Client, Failure, PartitionList, is_denied, is_fenced, millis, warn_of_outage};
use super::leave::leave_group;
use super::producer::{Sender, blames_a_record};
use super::reader::Consumer;
use super::rebalance::GroupMetadata;
use crate::log::{
    CommitError, Event, Fence, LogError, Member, MemberOptions, OUTAGE_MAX, Outgoing, Position, Result,
};
use crate::record::TopicPartition;

/// The first `init_transactions` of a cluster creates a topic, and one after a crash waits for the abort.
const INIT_TIMEOUT: Duration = OUTAGE_MAX;
/// A call that has not come back after this long is worth a word.
const SLICE: Duration = Duration::from_secs(4);
/// A consumer closes at once, or never.
const CLOSE_MAX: Duration = Duration::from_secs(5);

pub(super) struct KafkaMember {
    consumer: Consumer,
    sender: Sender,
    options: MemberOptions,
    secure: bool,
    /// Between `begin` and the end of the transaction.
    open: bool,
    /// The last one that was handed out.
    fence: Option<Fence>,
}

impl KafkaMember {
    /// Fences the predecessor of the same instance, then joins the group.
    pub fn join(consumer: Client, producer: Client, options: MemberOptions, secure: bool) -> Result<Self> {
        let sender = Sender::new(producer)?;
        init_transactions(&sender.client, &options.instance)?;
        let mut consumer = Consumer::new(consumer)?;
        consumer.subscribe(&options.group, &options.topics)?;
        Ok(Self { consumer, sender, options, secure, open: false, fence: None })
    }

    /// Ends the consumer. A static member stays in the group until its session times out or its successor comes.
    ///
    /// On a thread of its own, which may stay behind: where the group ends while a rebalance is called back,
    /// librdkafka (2.12) drops the answer (`rd_kafka_cgrp_op_serve`) and its close waits for ever. That thread then
    /// keeps the client, which is never destroyed.
    fn close(&mut self) -> Result<sys::rd_kafka_resp_err_t> {
        self.consumer.client.context.rebalances.leave();
        let started = self.consumer.started();
        self.consumer.release(&started)?;
        let client = self.consumer.client.clone();
        let (done, ended) = mpsc::channel();
        let close = move || {
            // SAFETY: a live consumer; its callbacks run inside this call, and answer without asking.
            let code = unsafe { sys::rd_kafka_consumer_close(client.raw()) };
            // Nobody listens any more when it took too long.
            let _ = done.send(code);
        };
        let spawned = std::thread::Builder::new().name("kafka-close".into()).spawn(close);
        spawned.map_err(|error| LogError::Other {
            what: format!("leave group '{}'", self.options.group),
            detail: format!("no thread: {error}"),
        })?;
        Ok(ended.recv_timeout(CLOSE_MAX).unwrap_or_else(|_| {
            tracing::warn!(
                group = self.options.group,
                "a consumer did not close within {CLOSE_MAX:?}; it is left behind, and nothing is lost by that"
            );
            sys::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR__TIMED_OUT
        }))
    }

    /// Adds offsets to the transaction; `Err` if that does not come back.
    ///
    /// On a thread of its own, which may stay behind with the client: librdkafka (2.12) gives the request for the
    /// group's coordinator no timeout, and repeats it only when a connection comes or goes. By then the transaction's
    /// time is over, and a successor of this member fences what may still be sent.
    fn send_offsets(
        &self,
        list: PartitionList,
        metadata: Arc<GroupMetadata>,
    ) -> Result<Result<(), Failure>, CommitError> {
        let (client, timeout) = (Arc::clone(&self.sender.client), self.options.transaction_timeout);
        let (done, sent) = mpsc::channel();
        let send = move || {
            let outcome = retry(&client.brokers, timeout, |rest| {
                // SAFETY: producer, list and metadata are live for the call.
                unsafe {
                    sys::rd_kafka_send_offsets_to_transaction(
                        client.raw(),
                        list.raw(),
                        metadata.raw(),
                        millis(rest),
                    )
                }
            });
            // Nobody listens any more when it took too long.
            let _ = done.send(outcome);
        };
        std::thread::Builder::new()
            .name("kafka-offsets".into())
            .spawn(send)
            .map_err(|error| CommitError::Aborted(format!("no thread: {error}")))?;
        sent.recv_timeout(timeout + SLICE).map_err(|_| {
            let group = &self.options.group;
            CommitError::Unknown(format!("the coordinator of group '{group}' did not take the offsets"))
        })
    }

    fn raw_producer(&self) -> *mut sys::rd_kafka_t {
        self.sender.client.raw()
    }

    /// The record that was not delivered, if doing it again would end the same.
    fn refusal(&self) -> Option<CommitError> {
        match self.sender.failure()?.error(&self.sender.client) {
            error @ (LogError::TooLarge { .. } | LogError::NoTopic { .. } | LogError::Denied(_)) => {
                Some(CommitError::Refused(error))
            }
            _ => None,
        }
    }

    /// What a failure of the commit means; `sent`: the decision may have reached the coordinator.
    ///
    /// A generation that is refused although it is the last one handed out: the group has moved on, this
    /// member with it, and the next poll says where to. That is no reason to join anew.
    fn commit_error(&self, failure: &Failure, fence: &Fence, sent: bool) -> CommitError {
        if blames_a_record(failure.code) {
            self.sender.await_report();
        }
        let latest = self.fence.as_ref().is_some_and(|last| Arc::ptr_eq(&last.0, &fence.0));
        let moved_on =
            failure.code == sys::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_ILLEGAL_GENERATION && latest;
        let undelivered = self.sender.failure().map(|u| format!(": {}", u.error(&self.sender.client)));
        let text = format!("{}{}", failure.text, undelivered.unwrap_or_default());
        if is_denied(failure.code) {
            // Done again it would be denied again.
            return CommitError::Refused(self.sender.client.error(
                failure.code,
                &format!("commit as '{}'", self.options.instance),
                &text,
            ));
        }
        if is_fenced(failure.code) && (failure.fatal || !moved_on) {
            CommitError::Fenced(text)
        } else if failure.requires_abort || (!sent && !failure.fatal) {
            // What is sent in the background may be what failed it.
            self.refusal().unwrap_or(CommitError::Aborted(text))
        } else {
            CommitError::Unknown(text)
        }
    }
}

impl Drop for KafkaMember {
    /// A consumer that is destroyed while a rebalance waits for its answer would wait for ever.
    fn drop(&mut self) {
        if let Err(error) = self.close() {
            tracing::warn!("{error}");
        }
    }
}

/// Fences whoever had this transactional id before, once what that one left open is decided.
pub(super) fn init_transactions(client: &Client, id: &str) -> Result<()> {
    retry(&client.brokers, INIT_TIMEOUT, |rest| {
        // SAFETY: a live transactional producer.
        unsafe { sys::rd_kafka_init_transactions(client.raw(), millis(rest)) }
    })
    .map_err(|failure| client.error(failure.code, &format!("start transactions as '{id}'"), &failure.text))
}

/// Repeats a call that may be repeated, and resumes one that takes long, until it succeeds or the time is over.
/// The call is told for how long it may wait.
pub(super) fn retry(
    brokers: &str,
    timeout: Duration,
    mut call: impl FnMut(Duration) -> *mut sys::rd_kafka_error_t,
) -> std::result::Result<(), Failure> {
    let deadline = Instant::now() + timeout;
    loop {
        let rest = deadline.saturating_duration_since(Instant::now());
        match Failure::take(call(rest.clamp(Duration::from_millis(1), SLICE))) {
            None => return Ok(()),
            Some(failure) if failure.retriable && !failure.requires_abort && Instant::now() < deadline => {
                if failure.code == sys::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR__TIMED_OUT {
                    warn_of_outage(brokers);
                }
                // An answer that comes at once is not asked for again at once.
                std::thread::sleep(Duration::from_millis(10));
            }
            Some(failure) => return Err(failure),
        }
    }
}

impl Member for KafkaMember {
    fn poll(&mut self, timeout: Duration) -> Result<Vec<Event>> {
        let mut events = self.consumer.poll(timeout)?;
        // Records first: they were read while the partitions were still owned.
        events.extend(self.consumer.client.context.rebalances.take());
        for event in &events {
            if let Event::Assigned { fence, .. } = event {
                self.fence = Some(fence.clone());
            }
        }
        Ok(events)
    }

    fn start(&mut self, partition: &TopicPartition, offset: i64) -> Result<()> {
        self.consumer.start(partition, offset)
    }
    fn release(&mut self, partitions: &[TopicPartition]) -> Result<()> {
        self.consumer.release(partitions)
    }
    fn pause(&mut self, partitions: &[TopicPartition]) -> Result<()> {
        self.consumer.pause(partitions)
    }
    fn resume(&mut self, partitions: &[TopicPartition]) -> Result<()> {
        self.consumer.resume(partitions)
    }

    fn begin(&mut self) -> Result<()> {
        self.sender.take_failure();
        // SAFETY: a live producer.
        let error = unsafe { sys::rd_kafka_begin_transaction(self.raw_producer()) };
        self.sender.client.check_object(error, "begin a transaction")?;
        self.open = true;
        Ok(())
    }

    /// A record that was on its way for too long, the process having stood still for example, ends its transaction and
    /// nothing else: whether brokers are away is found out by the abort, which waits for them.
    fn produce(&mut self, to: &TopicPartition, records: &[Outgoing<'_>]) -> Result<()> {
        self.sender.produce(to, records).map_err(|error| match error {
            LogError::Unreachable { .. } => LogError::Abort(error.to_string()),
            error => error,
        })
    }

    fn commit(&mut self, fence: &Fence, offsets: &[(TopicPartition, Position)]) -> Result<(), CommitError> {
        if offsets.is_empty() {
            return Err(CommitError::Aborted("it has no offsets, so nothing would fence it".into()));
        }
        let Ok(metadata) = Arc::clone(&fence.0).downcast::<GroupMetadata>() else {
            return Err(CommitError::Aborted("its fence is of another log".into()));
        };
        if let Some(undelivered) = self.sender.failure() {
            let aborted = || CommitError::Aborted(undelivered.error(&self.sender.client).to_string());
            return Err(self.refusal().unwrap_or_else(aborted));
        }
        let mut list = PartitionList::new();
        for (partition, position) in offsets {
            list.add(partition, Some(position.offset), Some(&position.metadata))
                .map_err(|error| CommitError::Aborted(error.to_string()))?;
        }
        self.send_offsets(list, metadata)?.map_err(|failure| self.commit_error(&failure, fence, false))?;
        let producer = self.raw_producer();
        retry(&self.sender.client.brokers, self.options.transaction_timeout, |rest| {
            // SAFETY: a live producer.
            unsafe { sys::rd_kafka_commit_transaction(producer, millis(rest)) }
        })
        .map_err(|failure| self.commit_error(&failure, fence, true))?;
        self.open = false;
        Ok(())
    }

    fn abort(&mut self) -> Result<()> {
        self.sender.take_failure();
        if !self.open {
            return Ok(());
        }
        let producer = self.raw_producer();
        // Until it is aborted there is nothing else to do, so brokers that are away are waited for.
        retry(&self.sender.client.brokers, OUTAGE_MAX, |rest| {
            // SAFETY: a live producer.
            unsafe { sys::rd_kafka_abort_transaction(producer, millis(rest)) }
        })
        .map_err(|failure| match &failure {
            failure if failure.fatal && !is_fenced(failure.code) => LogError::Other {
                what: format!("abort the transaction of '{}'", self.options.instance),
                detail: format!("{}; join anew", failure.text),
            },
            failure => self.sender.client.error(failure.code, "abort a transaction", &failure.text),
        })?;
        // What the abort threw away has been reported by now, or is no failure.
        self.sender.take_failure();
        self.open = false;
        Ok(())
    }

    /// A static member is not removed by closing its consumer, so the coordinator is told in so many words.
    fn leave(&mut self) -> Result<()> {
        let code = self.close()?;
        if code == sys::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR__FATAL {
            // Fenced: the membership is another's now.
            return Ok(());
        }
        if code != sys::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR__TIMED_OUT {
            self.consumer.client.check(code, &format!("leave group '{}'", self.options.group))?;
        }
        if self.secure {
            // Over TLS or SASL the session has to time out: the group waits that long, and loses nothing.
            return Ok(());
        }
        leave_group(&self.consumer.client.brokers, &self.options.group, &self.options.instance)
    }
}
