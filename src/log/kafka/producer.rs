//! Producing: records are handed to librdkafka in batches, and a thread of its own takes the failures and sees to it
//! that there is a broker.
//!
//! Invariant: a record that was not delivered is never forgotten: the first failure is kept until a flush or
//! an abort has reported it, with its topic and size.
//! Invariant: records of one partition keep the order in which they were handed over.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rdkafka::bindings as sys;
use sys::rd_kafka_resp_err_t as Code;
use sys::rd_kafka_vtype_t as Tag;

use super::admin::{Admin, Asked, PROBE_AGAIN_AFTER};
use super::client::{Client, Failure, c_string, code_text, is_denied, lock, millis, text_of};
use super::request::TopicHandle;
use crate::log::{LogError, Outgoing, Producer, Result};
use crate::record::TopicPartition;

/// How long a full send queue is given between attempts.
const FULL_QUEUE_WAIT: Duration = Duration::from_millis(1);
/// An answer that comes from the client itself, not through the network.
const WHY_WAIT_MS: i32 = 1_000;
/// A report that is due is on its way through librdkafka's queue, not through the network.
const REPORT_WAIT_MAX: Duration = Duration::from_secs(1);

/// A record that was not delivered.
#[derive(Clone, Debug)]
pub(super) struct Undelivered {
    to: TopicPartition,
    bytes: usize,
    code: Code,
    detail: String,
}

/// A record itself is at fault, not the way to the broker.
pub(super) fn blames_a_record(code: Code) -> bool {
    use Code::*;
    matches!(
        code,
        RD_KAFKA_RESP_ERR_MSG_SIZE_TOO_LARGE
            | RD_KAFKA_RESP_ERR_INVALID_MSG_SIZE
            | RD_KAFKA_RESP_ERR_RECORD_LIST_TOO_LARGE
    )
}

impl Undelivered {
    pub fn error(&self, client: &Client) -> LogError {
        use Code::*;
        match self.code {
            code if blames_a_record(code) => {
                LogError::TooLarge { to: self.to.clone(), bytes: self.bytes, detail: self.detail.clone() }
            }
            RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART
            | RD_KAFKA_RESP_ERR__UNKNOWN_TOPIC
            | RD_KAFKA_RESP_ERR__UNKNOWN_PARTITION => {
                LogError::NoTopic { topic: self.to.topic.to_string(), brokers: client.brokers.clone() }
            }
            code => client.error(
                code,
                &format!("{}: a record of {} bytes was not delivered", self.to, self.bytes),
                &self.detail,
            ),
        }
    }
}

/// The first failure, until it is taken.
#[derive(Default)]
struct Failures(Mutex<Option<Undelivered>>);

impl Failures {
    fn note(&self, undelivered: Undelivered) {
        let mut first = lock(&self.0);
        // A batch fails as a whole: of records too large, the largest is the one to name.
        match &mut *first {
            Some(known) if known.code == undelivered.code && known.bytes < undelivered.bytes => {
                *known = undelivered;
            }
            Some(_) => {}
            None => *first = Some(undelivered),
        }
    }
}

/// A producer's main queue, owned.
struct Queue(*mut sys::rd_kafka_queue_t);

// SAFETY: librdkafka's queues may be used from any thread.
unsafe impl Send for Queue {}
// SAFETY: as above.
unsafe impl Sync for Queue {}

impl Drop for Queue {
    fn drop(&mut self) {
        // SAFETY: owned, destroyed once, while the client is alive: see the order of `Sender`'s fields.
        unsafe { sys::rd_kafka_queue_destroy(self.0) };
    }
}

/// What a plain producer and a member share.
pub(super) struct Sender {
    topics: HashMap<Arc<str>, TopicHandle>,
    failures: Arc<Failures>,
    stop: Arc<AtomicBool>,
    poller: Option<JoinHandle<()>>,
    scratch: Vec<sys::rd_kafka_message_t>,
    queue: Arc<Queue>,
    pub client: Arc<Client>,
}

// SAFETY: `scratch` holds pointers only within one call of `produce`; all else may move between threads.
unsafe impl Send for Sender {}

impl Sender {
    pub fn new(client: Client) -> Result<Self> {
        let client = Arc::new(client);
        // SAFETY: a live producer.
        let queue = Arc::new(Queue(unsafe { sys::rd_kafka_queue_get_main(client.raw()) }));
        let failures = Arc::new(Failures::default());
        let stop = Arc::new(AtomicBool::new(false));
        let admin = Admin { client: client.clone() };
        let served = (queue.clone(), admin, failures.clone(), stop.clone());
        let poller = std::thread::Builder::new()
            .name("kafka-deliveries".into())
            .spawn(move || {
                let (queue, admin, failures, stop) = served;
                let mut probed = Instant::now();
                while !stop.load(Ordering::Acquire) {
                    serve(&queue, &failures);
                    // The owner may be inside a call that waits for a broker, however long (librdkafka 2.12 gives
                    // offsets of a transaction no timeout while it looks for their coordinator).
                    if probed.elapsed() > PROBE_AGAIN_AFTER {
                        admin.probe(Asked::Used);
                        probed = Instant::now();
                    }
                }
                drop(queue);
            })
            .map_err(|e| LogError::Other { what: "kafka producer's thread".into(), detail: e.to_string() })?;
        Ok(Self {
            topics: HashMap::new(),
            failures,
            stop,
            poller: Some(poller),
            scratch: Vec::new(),
            queue,
            client,
        })
    }

    pub fn failure(&self) -> Option<Undelivered> {
        lock(&self.failures.0).clone()
    }

    pub fn take_failure(&self) -> Option<Undelivered> {
        lock(&self.failures.0).take()
    }

    pub fn produce(&mut self, to: &TopicPartition, records: &[Outgoing<'_>]) -> Result<()> {
        if let Some(undelivered) = self.failure() {
            return Err(undelivered.error(&self.client));
        }
        if !self.topics.contains_key(&to.topic) {
            let handle = TopicHandle::new(&self.client, &to.topic)?;
            self.topics.insert(to.topic.clone(), handle);
        }
        let topic = self.topics[&to.topic].raw();
        // Batches carry neither headers nor timestamps.
        for part in records.chunk_by(|a, b| is_plain(a) && is_plain(b)) {
            if is_plain(&part[0]) {
                self.produce_plain(topic, to, part)?;
            } else {
                self.produce_whole(topic, to, &part[0])?;
            }
        }
        Ok(())
    }

    fn produce_plain(
        &mut self,
        topic: *mut sys::rd_kafka_topic_t,
        to: &TopicPartition,
        records: &[Outgoing<'_>],
    ) -> Result<()> {
        self.scratch.clear();
        self.scratch.extend(records.iter().map(|record| {
            let (payload, len) = raw_bytes(record.value);
            let (key, key_len) = raw_bytes(record.key);
            sys::rd_kafka_message_t {
                err: Code::RD_KAFKA_RESP_ERR_NO_ERROR,
                rkt: std::ptr::null_mut(),
                partition: to.partition,
                payload,
                len,
                key,
                key_len,
                offset: 0,
                _private: std::ptr::null_mut(),
            }
        }));
        let mut done = 0;
        while done < records.len() {
            let rest = &mut self.scratch[done..];
            // SAFETY: as many live messages as are named; the bytes are copied within the call.
            unsafe {
                sys::rd_kafka_produce_batch(
                    topic,
                    to.partition,
                    sys::RD_KAFKA_MSG_F_COPY,
                    rest.as_mut_ptr(),
                    i32::try_from(rest.len()).unwrap_or(i32::MAX),
                );
            }
            let failed = rest.iter().position(|message| message.err != Code::RD_KAFKA_RESP_ERR_NO_ERROR);
            let Some(failed) = failed else { return Ok(()) };
            let code = rest[failed].err;
            done += failed;
            if code != Code::RD_KAFKA_RESP_ERR__QUEUE_FULL {
                return Err(self.refused(to, &records[done], code, String::new()));
            }
            std::thread::sleep(FULL_QUEUE_WAIT);
        }
        Ok(())
    }

    fn produce_whole(
        &mut self,
        topic: *mut sys::rd_kafka_topic_t,
        to: &TopicPartition,
        record: &Outgoing<'_>,
    ) -> Result<()> {
        let names = record.headers.iter().map(|header| c_string(&header.name)).collect::<Result<Vec<_>>>()?;
        let mut parts = vec![
            part(Tag::RD_KAFKA_VTYPE_RKT, |u| u.rkt = topic),
            part(Tag::RD_KAFKA_VTYPE_PARTITION, |u| u.i32_ = to.partition),
            part(Tag::RD_KAFKA_VTYPE_MSGFLAGS, |u| u.i = sys::RD_KAFKA_MSG_F_COPY),
            part(Tag::RD_KAFKA_VTYPE_KEY, |u| u.mem = memory(record.key)),
            part(Tag::RD_KAFKA_VTYPE_VALUE, |u| u.mem = memory(record.value)),
        ];
        if let Some(timestamp_ms) = record.timestamp_ms {
            parts.push(part(Tag::RD_KAFKA_VTYPE_TIMESTAMP, |u| u.i64_ = timestamp_ms));
        }
        for (header, name) in record.headers.iter().zip(&names) {
            let (val, size) = raw_bytes(header.value.as_deref());
            let size = isize::try_from(size).unwrap_or(isize::MAX);
            parts.push(part(Tag::RD_KAFKA_VTYPE_HEADER, |u| {
                u.header = sys::rd_kafka_vu_s__bindgen_ty_1__bindgen_ty_2 { name: name.as_ptr(), val, size };
            }));
        }
        loop {
            // SAFETY: as many live parts as are named, each with the member that its tag says; all is copied
            // within the call.
            let error = unsafe { sys::rd_kafka_produceva(self.client.raw(), parts.as_ptr(), parts.len()) };
            match Failure::take(error) {
                None => return Ok(()),
                Some(failure) if failure.code == Code::RD_KAFKA_RESP_ERR__QUEUE_FULL => {
                    std::thread::sleep(FULL_QUEUE_WAIT);
                }
                Some(failure) => return Err(self.refused(to, record, failure.code, failure.text)),
            }
        }
    }

    /// Why the transaction takes nothing any more. Only a commit says it, and one that takes nothing can't go well.
    fn why_no_transaction(&self) -> Option<Failure> {
        // SAFETY: a live producer; where it is none of transactions, that is the error.
        Failure::take(unsafe { sys::rd_kafka_commit_transaction(self.client.raw(), WHY_WAIT_MS) })
    }

    /// The error of a record that was not even queued; kept as well, so that no commit follows it.
    fn refused(&self, to: &TopicPartition, record: &Outgoing<'_>, code: Code, detail: String) -> LogError {
        if matches!(code, Code::RD_KAFKA_RESP_ERR__STATE | Code::RD_KAFKA_RESP_ERR__FATAL) {
            let mut reason = super::client::ErrorText::new();
            // SAFETY: the client is live; the buffer's length is given.
            let fatal =
                unsafe { sys::rd_kafka_fatal_error(self.client.raw(), reason.as_mut_ptr(), reason.len()) };
            if fatal != Code::RD_KAFKA_RESP_ERR_NO_ERROR {
                return self.client.error(fatal, &to.to_string(), &reason.text());
            }
            return match self.why_no_transaction() {
                // Done again it would be denied again.
                Some(why) if is_denied(why.code) => self.client.error(
                    why.code,
                    &format!("the transaction that {to} is written in"),
                    &why.text,
                ),
                why => {
                    let why = why.map_or_else(|| code_text(code), |why| why.text);
                    LogError::Abort(format!("{to}: no transaction takes the record: {why}"))
                }
            };
        }
        let bytes = record.key.map_or(0, <[u8]>::len) + record.value.map_or(0, <[u8]>::len);
        let detail = if detail.is_empty() { code_text(code) } else { detail };
        let undelivered = Undelivered { to: to.clone(), bytes, code, detail };
        self.failures.note(undelivered.clone());
        undelivered.error(&self.client)
    }

    /// Waits for the report of a record that a transaction has failed of: librdkafka fails the transaction
    /// first and reports the record after, on another thread.
    pub fn await_report(&self) {
        let deadline = Instant::now() + REPORT_WAIT_MAX;
        while self.failure().is_none() && Instant::now() < deadline {
            std::thread::sleep(FULL_QUEUE_WAIT);
        }
    }

    /// Waits until all is acknowledged or has failed.
    pub fn flush(&self, timeout: Duration) -> Result<()> {
        // SAFETY: a live producer.
        let code = unsafe { sys::rd_kafka_flush(self.client.raw(), millis(timeout)) };
        if let Some(undelivered) = self.await_failure(code) {
            return Err(undelivered.error(&self.client));
        }
        self.client.check(code, "flush produced records")
    }

    /// The failure, if there is one: the thread may still be about to note it.
    fn await_failure(&self, code: Code) -> Option<Undelivered> {
        let deadline = Instant::now() + REPORT_WAIT_MAX;
        // SAFETY: a live producer. Records and reports that are not yet served count.
        while code == Code::RD_KAFKA_RESP_ERR_NO_ERROR
            && unsafe { sys::rd_kafka_outq_len(self.client.raw()) } > 0
            && Instant::now() < deadline
        {
            std::thread::yield_now();
        }
        self.take_failure()
    }
}

impl Drop for Sender {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        // SAFETY: the queue is live.
        unsafe { sys::rd_kafka_queue_yield(self.queue.0) };
        if let Some(poller) = self.poller.take()
            && poller.join().is_err()
        {
            tracing::error!("the thread that takes delivery failures panicked");
        }
    }
}

/// Serves one event: a failed delivery, or an error to be logged.
fn serve(queue: &Queue, failures: &Failures) {
    // SAFETY: the queue is live; the event is destroyed once, after its messages are copied out.
    unsafe {
        let event = sys::rd_kafka_queue_poll(queue.0, 500);
        if event.is_null() {
            return;
        }
        match sys::rd_kafka_event_type(event) {
            sys::RD_KAFKA_EVENT_DR => {
                while let Some(message) = sys::rd_kafka_event_message_next(event).as_ref() {
                    note(message, failures);
                }
            }
            sys::RD_KAFKA_EVENT_ERROR => {
                let text = text_of(sys::rd_kafka_event_error_string(event));
                tracing::warn!(target: "librdkafka", "{text}");
            }
            _ => {}
        }
        sys::rd_kafka_event_destroy(event);
    }
}

fn note(message: &sys::rd_kafka_message_t, failures: &Failures) {
    match message.err {
        Code::RD_KAFKA_RESP_ERR_NO_ERROR
        // An abort throws away what is queued.
        | Code::RD_KAFKA_RESP_ERR__PURGE_QUEUE
        | Code::RD_KAFKA_RESP_ERR__PURGE_INFLIGHT => {}
        code => {
            // SAFETY: the message and its topic are live while the event is.
            let (topic, detail) = unsafe {
                (
                    text_of(sys::rd_kafka_topic_name(message.rkt)),
                    // Its namesake for consumers would give the record itself.
                    text_of(sys::rd_kafka_message_produce_errstr(message)),
                )
            };
            failures.note(Undelivered {
                to: TopicPartition::new(topic, message.partition),
                bytes: message.len + message.key_len,
                code,
                detail,
            });
        }
    }
}

fn is_plain(record: &Outgoing<'_>) -> bool {
    record.headers.is_empty() && record.timestamp_ms.is_none()
}

/// Null for none; empty is not null.
fn raw_bytes(bytes: Option<&[u8]>) -> (*mut std::ffi::c_void, usize) {
    bytes.map_or((std::ptr::null_mut(), 0), |bytes| (bytes.as_ptr().cast_mut().cast(), bytes.len()))
}

fn memory(bytes: Option<&[u8]>) -> sys::rd_kafka_vu_s__bindgen_ty_1__bindgen_ty_1 {
    let (ptr, size) = raw_bytes(bytes);
    sys::rd_kafka_vu_s__bindgen_ty_1__bindgen_ty_1 { ptr, size }
}

fn part(tag: Tag, fill: impl FnOnce(&mut sys::rd_kafka_vu_s__bindgen_ty_1)) -> sys::rd_kafka_vu_t {
    let mut u = sys::rd_kafka_vu_s__bindgen_ty_1 { _pad: [0; 64] };
    fill(&mut u);
    sys::rd_kafka_vu_t { vtype: tag, u }
}

/// A plain idempotent producer.
pub(super) struct KafkaProducer(pub Sender);

impl Producer for KafkaProducer {
    fn produce(&mut self, to: &TopicPartition, records: &[Outgoing<'_>]) -> Result<()> {
        // A failure of an earlier record is reported once, here or by the flush.
        if let Some(undelivered) = self.0.take_failure() {
            return Err(undelivered.error(&self.0.client));
        }
        let outcome = self.0.produce(to, records);
        if outcome.is_err() {
            self.0.take_failure();
        }
        outcome
    }

    fn flush(&mut self, timeout: Duration) -> Result<()> {
        self.0.flush(timeout)
    }
}
