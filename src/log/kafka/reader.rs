//! Reading: one consumer, polled in batches, its messages grouped into runs.
//!
//! Invariant: a message below a partition's position, or of a partition that was not started, is dropped:
//! after a seek or a rebalance librdkafka discards what it had fetched before, and where a message had been
//! taken out already, this does.
//! Invariant: an error never takes records with it: it is returned by the poll after theirs. Of the partition that it
//! is about, no record behind it is handed over.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rdkafka::bindings as sys;
use sys::rd_kafka_resp_err_t as Code;

use super::admin::{Admin, Asked, PROBE_AGAIN_AFTER};
use super::client::{Client, Failure, PartitionList, code_text, millis};
use super::messages::{Message, Messages};
use super::request::TopicHandle;
use super::wake::Wakes;
use crate::log::{Event, LogError, OUTAGE_MAX, Reader, Result};
use crate::record::{Run, TopicPartition};

/// The most messages of one poll, …
const BATCH: usize = 4096;
/// … taken in such steps until they hold so much: an exchange's messages are a thousand times a record's size, and
/// who polled them must be done with them well within a transaction's time.
const STEP: usize = 64;
const BATCH_BYTES: usize = 4 << 20;
/// How long librdkafka may take to move a partition's fetcher.
const SEEK_TIMEOUT: Duration = Duration::from_secs(10);

const PROBE_TIMEOUT: Duration = Duration::from_secs(5);

/// A consumer's queue, owned; destroyed before the client.
struct Queue {
    raw: *mut sys::rd_kafka_queue_t,
    client: Arc<Client>,
}

// SAFETY: librdkafka's queues may be used from any thread.
unsafe impl Send for Queue {}

impl Drop for Queue {
    fn drop(&mut self) {
        self.client.context.rebalances.wake(std::ptr::null_mut());
        // SAFETY: owned, destroyed once, while the client is alive.
        unsafe { sys::rd_kafka_queue_destroy(self.raw) };
    }
}

/// What a reader and a member share.
pub(super) struct Consumer {
    queue: Queue,
    wakes: Wakes,
    pub client: Arc<Client>,
    /// The next offset of each partition that is being read.
    positions: HashMap<TopicPartition, i64>,
    paused: HashSet<TopicPartition>,
    errors: VecDeque<LogError>,
    /// One that is read.
    topic: Option<Arc<str>>,
    /// Since when nothing has come, or since it was last asked whether anything can.
    quiet_since: Instant,
    /// A reader joins no group; that it may not even ask for one is nothing to it.
    without_group: bool,
}

impl Consumer {
    pub fn new(client: Client) -> Result<Self> {
        let client = Arc::new(client);
        // SAFETY: a live consumer.
        let raw = unsafe { sys::rd_kafka_queue_get_consumer(client.raw()) };
        if raw.is_null() {
            return Err(LogError::Other { what: "kafka consumer".into(), detail: "it has no queue".into() });
        }
        client.context.rebalances.wake(raw);
        Ok(Self {
            queue: Queue { raw, client: client.clone() },
            wakes: Wakes::new(&client)?,
            client,
            positions: HashMap::new(),
            paused: HashSet::new(),
            errors: VecDeque::new(),
            topic: None,
            quiet_since: Instant::now(),
            without_group: false,
        })
    }

    pub fn without_group(mut self) -> Self {
        self.without_group = true;
        self
    }

    /// Of which topics there will be partitions.
    pub fn subscribe(&mut self, group: &str, topics: &[String]) -> Result<()> {
        let topics: Vec<TopicPartition> =
            topics.iter().map(|topic| TopicPartition::new(topic.as_str(), -1)).collect();
        let list = PartitionList::of(&topics)?;
        // SAFETY: a live consumer and a live list, which is copied.
        let code = unsafe { sys::rd_kafka_subscribe(self.client.raw(), list.raw()) };
        self.client.check(code, &format!("join group '{group}'"))?;
        self.topic = topics.first().map(|partition| partition.topic.clone());
        Ok(())
    }

    pub fn poll(&mut self, timeout: Duration) -> Result<Vec<Event>> {
        if let Some(error) = self.errors.pop_front() {
            return Err(error);
        }
        let mut batch = Batch::default();
        let messages = self.consume(timeout);
        self.look_for_brokers(!messages.iter().any(Message::is_from_a_broker))?;
        for message in messages {
            match message.code() {
                Code::RD_KAFKA_RESP_ERR_NO_ERROR => batch.add(message),
                Code::RD_KAFKA_RESP_ERR__PARTITION_EOF => batch.end(message),
                _ => {
                    if let Some(error) = self.message_error(&message) {
                        batch.stop(&message);
                        self.errors.push_back(error);
                    }
                }
            }
        }
        let events = self.events(batch);
        let context = &self.client.context;
        if let Some(since) = context.down_since() {
            if events.is_empty() && since.elapsed() > OUTAGE_MAX {
                Admin { client: self.client.clone() }.reach(PROBE_TIMEOUT)?;
            }
            if !events.is_empty() || since.elapsed() > OUTAGE_MAX {
                context.is_back();
            }
        }
        match self.errors.pop_front() {
            Some(error) if events.is_empty() => Err(error),
            Some(error) => {
                self.errors.push_front(error);
                Ok(events)
            }
            None => Ok(events),
        }
    }

    /// A consumer that has lost its brokers says nothing of them, like one for which there is nothing.
    fn look_for_brokers(&mut self, is_quiet: bool) -> Result<()> {
        if is_quiet && self.quiet_since.elapsed() < PROBE_AGAIN_AFTER {
            return Ok(());
        }
        self.quiet_since = Instant::now();
        if let Some(topic) = self.topic.as_ref().filter(|_| is_quiet) {
            let topic = TopicHandle::new(&self.client, topic)?;
            Admin { client: self.client.clone() }.probe(Asked::One(&topic));
        }
        Ok(())
    }

    /// Waits for the first message, then takes what is there: a batch call with a timeout returns only when
    /// the batch is full or the time is over.
    fn consume(&mut self, timeout: Duration) -> Vec<Message> {
        let mut messages = Vec::new();
        let mut bytes = 0;
        let (mut wanted, mut wait) = (1, timeout);
        while messages.len() < BATCH && bytes < BATCH_BYTES {
            let mut raw: Vec<*mut sys::rd_kafka_message_t> = vec![std::ptr::null_mut(); wanted];
            // SAFETY: a live queue and as many slots as are named; each message handed over is owned here.
            let step: Vec<Message> = unsafe {
                let found = sys::rd_kafka_consume_batch_queue(
                    self.queue.raw,
                    millis(wait),
                    raw.as_mut_ptr(),
                    raw.len(),
                );
                raw.truncate(usize::try_from(found).unwrap_or(0));
                raw.into_iter().filter_map(|raw| Message::from_raw(raw)).collect()
            };
            let is_last = step.len() < wanted;
            bytes += step.iter().map(Message::bytes).sum::<usize>();
            messages.extend(step);
            if is_last {
                break;
            }
            (wanted, wait) = (STEP, Duration::ZERO);
        }
        messages
    }

    fn events(&mut self, batch: Batch) -> Vec<Event> {
        let mut events = Vec::new();
        let mut ends = Vec::new();
        for part in batch.parts {
            let Some((partition, _)) = self.positions.get_key_value(&part.partition) else { continue };
            let partition = partition.clone();
            let Some(position) = self.positions.get_mut(&partition) else { continue };
            let mut messages = part.messages;
            messages.retain(|message| message.offset() >= *position);
            let rebalances = &self.client.context.rebalances;
            if let Some(last) = messages.last() {
                *position = last.offset() + 1;
                rebalances.forget_end(&partition);
                let records = Box::new(Messages::new(messages, self.client.clone()));
                events.push(Event::Run(Run { partition: partition.clone(), records, next: *position }));
            }
            if let Some(end) = part.end.filter(|end| end >= position) {
                *position = end;
                // After a pause the same end is found again.
                if rebalances.keep_end(&partition, end) {
                    ends.push(Event::End { partition, position: end });
                }
            }
        }
        events.append(&mut ends);
        events
    }

    /// The error of a message, if it is one that a reader must know.
    fn message_error(&self, message: &Message) -> Option<LogError> {
        let code = message.code();
        let text = message.error_text();
        let topic = message.topic();
        match code {
            Code::RD_KAFKA_RESP_ERR_GROUP_AUTHORIZATION_FAILED if self.without_group => None,
            Code::RD_KAFKA_RESP_ERR__TRANSPORT
            | Code::RD_KAFKA_RESP_ERR__ALL_BROKERS_DOWN
            | Code::RD_KAFKA_RESP_ERR__RESOLVE
            | Code::RD_KAFKA_RESP_ERR__TIMED_OUT
            // Followed by the loss of the partitions.
            | Code::RD_KAFKA_RESP_ERR__MAX_POLL_EXCEEDED => {
                tracing::warn!(target: "librdkafka", "{}: {text}", code_text(code));
                None
            }
            Code::RD_KAFKA_RESP_ERR__AUTO_OFFSET_RESET | Code::RD_KAFKA_RESP_ERR_OFFSET_OUT_OF_RANGE => {
                let partition = TopicPartition::new(topic, message.partition());
                let position = self.positions.get(&partition).copied();
                // An error from before a seek concerns nobody any more.
                let current = position.filter(|position| message.offset() < 0 || message.offset() == *position);
                current.map(|offset| self.out_of_range(&partition, offset))
            }
            Code::RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART
            | Code::RD_KAFKA_RESP_ERR__UNKNOWN_TOPIC
            | Code::RD_KAFKA_RESP_ERR__UNKNOWN_PARTITION => {
                Some(LogError::NoTopic { topic, brokers: self.client.brokers.clone() })
            }
            Code::RD_KAFKA_RESP_ERR__BAD_MSG | Code::RD_KAFKA_RESP_ERR__BAD_COMPRESSION => {
                let partition = TopicPartition::new(topic, message.partition());
                let position = self.positions.get(&partition).copied();
                let offset = Some(message.offset()).filter(|&offset| offset >= 0);
                position.map(|next| LogError::Damaged { partition, offset: offset.unwrap_or(next), detail: text })
            }
            Code::RD_KAFKA_RESP_ERR__FATAL => Some(self.fatal(&text)),
            code if topic.is_empty() => Some(self.client.error(code, "the consumer", &text)),
            code => Some(self.client.error(code, &format!("read '{topic}'"), &text)),
        }
    }

    fn fatal(&self, text: &str) -> LogError {
        let mut reason = super::client::ErrorText::new();
        // SAFETY: the client is live; the buffer's length is given.
        let code = unsafe { sys::rd_kafka_fatal_error(self.client.raw(), reason.as_mut_ptr(), reason.len()) };
        self.client.error(code, text, &reason.text())
    }

    fn out_of_range(&self, partition: &TopicPartition, offset: i64) -> LogError {
        match (Admin { client: self.client.clone() }).bounds(partition) {
            Ok(bounds) => LogError::OutOfRange {
                partition: partition.clone(),
                offset,
                start: bounds.start,
                end: bounds.end,
            },
            Err(error) => error,
        }
    }

    fn check_offset(&self, partition: &TopicPartition, offset: i64) -> Result<()> {
        // Negative numbers are Kafka's special offsets.
        if offset < 0 { Err(self.out_of_range(partition, offset)) } else { Ok(()) }
    }

    /// Replaces the assignment.
    pub fn assign(&mut self, from: &[(TopicPartition, i64)]) -> Result<()> {
        let admin = Admin { client: self.client.clone() };
        for (partition, offset) in from {
            self.check_offset(partition, *offset)?;
            // librdkafka would ask for it again for ever.
            if admin.partitions(&partition.topic)?.is_none() {
                return Err(admin.no_topic(&partition.topic));
            }
        }
        let paused: Vec<_> = self.paused.iter().cloned().collect();
        self.resume(&paused)?;
        let list = PartitionList::with_offsets(from)?;
        // SAFETY: the client and the list are live; the list is copied.
        let code = unsafe { sys::rd_kafka_assign(self.client.raw(), list.raw()) };
        self.client.check(code, "assign partitions")?;
        self.client.context.rebalances.forget_ends();
        self.positions = from.iter().cloned().collect();
        self.topic = from.first().map(|(partition, _)| partition.topic.clone());
        self.errors.clear();
        Ok(())
    }

    /// Adds one partition to the assignment, or moves it.
    pub fn start(&mut self, partition: &TopicPartition, offset: i64) -> Result<()> {
        self.check_offset(partition, offset)?;
        let list = PartitionList::with_offsets(&[(partition.clone(), offset)])?;
        let what = format!("read {partition} from {offset}");
        if self.positions.contains_key(partition) {
            self.seek(&list, &what)?;
        } else {
            // SAFETY: the client and the list are live; the list is copied.
            let error = unsafe { sys::rd_kafka_incremental_assign(self.client.raw(), list.raw()) };
            self.client.check_object(error, &what)?;
            self.wakes.wake(std::slice::from_ref(partition));
        }
        self.positions.insert(partition.clone(), offset);
        self.client.context.rebalances.forget_end(partition);
        Ok(())
    }

    /// A fetcher that has not come up yet cannot be moved; it is up soon.
    fn seek(&self, list: &PartitionList, what: &str) -> Result<()> {
        let deadline = Instant::now() + SEEK_TIMEOUT;
        loop {
            // SAFETY: the client and the list are live.
            let error =
                unsafe { sys::rd_kafka_seek_partitions(self.client.raw(), list.raw(), millis(SEEK_TIMEOUT)) };
            self.client.check_object(error, what)?;
            let code = list
                .entries()
                .iter()
                .map(|entry| entry.code)
                .find(|code| *code != Code::RD_KAFKA_RESP_ERR_NO_ERROR);
            match code {
                None => return Ok(()),
                Some(Code::RD_KAFKA_RESP_ERR__STATE | Code::RD_KAFKA_RESP_ERR__PREV_IN_PROGRESS)
                    if Instant::now() < deadline =>
                {
                    std::thread::sleep(Duration::from_millis(2));
                }
                Some(code) => return Err(self.client.error(code, what, "")),
            }
        }
    }

    /// Takes partitions out of the assignment; those not started are none of librdkafka's. Called also with
    /// nothing to take out: librdkafka waits for the call.
    pub fn release(&mut self, partitions: &[TopicPartition]) -> Result<()> {
        self.resume(partitions)?;
        let started: Vec<TopicPartition> =
            partitions.iter().filter(|partition| self.positions.contains_key(*partition)).cloned().collect();
        let list = PartitionList::of(&started)?;
        // SAFETY: the client and the list are live; the list is copied.
        let error = unsafe { sys::rd_kafka_incremental_unassign(self.client.raw(), list.raw()) };
        for partition in &started {
            self.positions.remove(partition);
            self.client.context.rebalances.forget_end(partition);
        }
        match Failure::take(error) {
            None => Ok(()),
            // After a fatal error librdkafka has given everything up by itself.
            Some(failure) if failure.fatal || self.is_fatal() => Ok(()),
            Some(failure) => Err(self.client.error(failure.code, "give up partitions", &failure.text)),
        }
    }

    fn is_fatal(&self) -> bool {
        // SAFETY: the client is live; no text is wanted.
        let code = unsafe { sys::rd_kafka_fatal_error(self.client.raw(), std::ptr::null_mut(), 0) };
        code != Code::RD_KAFKA_RESP_ERR_NO_ERROR
    }

    pub fn started(&self) -> Vec<TopicPartition> {
        self.positions.keys().cloned().collect()
    }

    pub fn pause(&mut self, partitions: &[TopicPartition]) -> Result<()> {
        let fresh: Vec<TopicPartition> = partitions
            .iter()
            .filter(|partition| self.positions.contains_key(*partition) && !self.paused.contains(*partition))
            .cloned()
            .collect();
        if fresh.is_empty() {
            return Ok(());
        }
        let list = PartitionList::of(&fresh)?;
        // SAFETY: the client and the list are live.
        let code = unsafe { sys::rd_kafka_pause_partitions(self.client.raw(), list.raw()) };
        self.client.check(code, "pause partitions")?;
        // SAFETY: a live consumer.
        unsafe { self.client.context.rebalances.hold_ends(self.client.raw(), |p| fresh.contains(p)) };
        self.paused.extend(fresh);
        Ok(())
    }

    pub fn resume(&mut self, partitions: &[TopicPartition]) -> Result<()> {
        let held: Vec<TopicPartition> =
            partitions.iter().filter(|partition| self.paused.contains(*partition)).cloned().collect();
        if held.is_empty() {
            return Ok(());
        }
        let list = PartitionList::of(&held)?;
        // SAFETY: the client and the list are live.
        let code = unsafe { sys::rd_kafka_resume_partitions(self.client.raw(), list.raw()) };
        self.client.check(code, "resume partitions")?;
        self.wakes.wake(&held);
        for partition in &held {
            self.paused.remove(partition);
        }
        Ok(())
    }
}

/// One poll's messages by partition, in order of first appearance.
#[derive(Default)]
struct Batch {
    parts: Vec<Part>,
    last: usize,
}

struct Part {
    /// librdkafka's topic object: compared, never read through.
    handle: usize,
    partition: TopicPartition,
    messages: Vec<Message>,
    /// The end, if it was reached after the last message.
    end: Option<i64>,
    /// There was an error after the last message.
    stopped: bool,
}

impl Batch {
    fn add(&mut self, message: Message) {
        let part = self.part(&message);
        if !part.stopped {
            part.end = None;
            part.messages.push(message);
        }
    }

    /// librdkafka goes on behind records that it can't read; who is told of the error must not have done so.
    fn stop(&mut self, message: &Message) {
        if message.partition() >= 0 {
            self.part(message).stopped = true;
        }
    }

    fn end(&mut self, message: Message) {
        let offset = message.offset();
        let part = self.part(&message);
        part.end = Some(offset).filter(|_| !part.stopped);
    }

    /// A fetch answers partition by partition, so the last part is nearly always the right one.
    fn part(&mut self, message: &Message) -> &mut Part {
        let (handle, number) = (message.topic_handle() as usize, message.partition());
        let fits = |part: &Part| part.handle == handle && part.partition.partition == number;
        if !self.parts.get(self.last).is_some_and(fits) {
            self.last = self.parts.iter().position(fits).unwrap_or_else(|| {
                // A topic may have several objects.
                let partition = TopicPartition::new(message.topic(), number);
                self.parts.iter().position(|part| part.partition == partition).unwrap_or_else(|| {
                    self.parts.push(Part {
                        handle,
                        partition,
                        messages: Vec::new(),
                        end: None,
                        stopped: false,
                    });
                    self.parts.len() - 1
                })
            });
        }
        &mut self.parts[self.last]
    }
}

/// A reader without a group.
pub(super) struct KafkaReader(pub Consumer);

impl Reader for KafkaReader {
    fn assign(&mut self, from: &[(TopicPartition, i64)]) -> Result<()> {
        self.0.assign(from)
    }
    fn poll(&mut self, timeout: Duration) -> Result<Vec<Event>> {
        self.0.poll(timeout)
    }
    fn pause(&mut self, partitions: &[TopicPartition]) -> Result<()> {
        self.0.pause(partitions)
    }
    fn resume(&mut self, partitions: &[TopicPartition]) -> Result<()> {
        self.0.resume(partitions)
    }
}
