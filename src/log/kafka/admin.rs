//! What a cluster is asked outside of any reader or member: topics and bounds.
//!
//! Invariant: every question ends within [`REQUEST_TIMEOUT`] (or what its caller names); an unreachable
//! cluster is an error that names the brokers.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use rdkafka::bindings as sys;
use sys::rd_kafka_admin_op_t as Operation;
use sys::rd_kafka_resp_err_t as Code;

use super::client::{Client, PartitionList, c_string, code_text, entries_of, millis, text_of};
use super::request::{EVENT_LATE_BY, Specs, TopicHandle};
use crate::log::{Bounds, LogError, Result, TopicInfo, TopicSpec};
use crate::record::TopicPartition;

pub(super) const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
/// A client that knows no broker waits for one as long as it may, so it may for a part of the time, and is given its
/// brokers again.
const ATTEMPT: Duration = Duration::from_secs(1);
/// Of a question that may have to be put to a partition's next leader.
const FIRST_ATTEMPT: Duration = Duration::from_secs(2);
/// By then a question that is repeated is over: the last one, and one for the leaders before it, may be as long as an attempt.
const SETTLED_BY: Duration =
    REQUEST_TIMEOUT.saturating_add(EVENT_LATE_BY).saturating_add(ATTEMPT).saturating_add(ATTEMPT);
/// A wait that ends so long after its time was one of a process that stood still.
const STOOD_STILL_AFTER: Duration = Duration::from_secs(1);
const RETRY_AFTER: Duration = Duration::from_millis(50);
/// How often a client is asked whether it knows a broker, when nothing else tells.
pub(super) const PROBE_AGAIN_AFTER: Duration = Duration::from_secs(5);

/// Asks once more where the time passed without anybody being asked. Once: it may be the machine that is this slow.
pub(super) fn unless_stood_still<T, E>(
    limit: Duration,
    mut ask: impl FnMut() -> std::result::Result<T, E>,
) -> std::result::Result<T, E> {
    let asked = Instant::now();
    match ask() {
        Err(_) if asked.elapsed() > limit + STOOD_STILL_AFTER => ask(),
        outcome => outcome,
    }
}

/// The questions, asked by one consumer that belongs to no group.
pub(super) struct Admin {
    pub client: std::sync::Arc<Client>,
}

impl Admin {
    pub fn topics(&self) -> Result<Vec<TopicInfo>> {
        let found = self.metadata(None, REQUEST_TIMEOUT)?;
        Ok(found
            .into_iter()
            .filter(|topic| topic.code == Code::RD_KAFKA_RESP_ERR_NO_ERROR)
            .map(|topic| TopicInfo { name: topic.name, partitions: topic.partitions })
            .collect())
    }

    pub fn partitions(&self, topic: &str) -> Result<Option<i32>> {
        self.partitions_within(topic, REQUEST_TIMEOUT)
    }

    fn partitions_within(&self, topic: &str, timeout: Duration) -> Result<Option<i32>> {
        let found = self.metadata(Some(topic), timeout)?;
        match found.into_iter().find(|found| found.name == topic) {
            Some(found) => match found.code {
                Code::RD_KAFKA_RESP_ERR_NO_ERROR => Ok(Some(found.partitions)),
                Code::RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART | Code::RD_KAFKA_RESP_ERR__UNKNOWN_TOPIC => {
                    Ok(None)
                }
                // The partitions are known while their leaders are being elected.
                Code::RD_KAFKA_RESP_ERR_LEADER_NOT_AVAILABLE => Ok(Some(found.partitions)),
                code => Err(self.client.error(code, &format!("topic '{topic}'"), "")),
            },
            None => Ok(None),
        }
    }

    /// The cluster answers, or an error.
    pub fn reach(&self, timeout: Duration) -> Result<()> {
        self.metadata(Some("headwater-connect-check"), timeout).map(drop)
    }

    fn metadata(&self, topic: Option<&str>, timeout: Duration) -> Result<Vec<TopicMetadata>> {
        unless_stood_still(timeout, || self.metadata_within(topic, timeout))
    }

    fn metadata_within(&self, topic: Option<&str>, timeout: Duration) -> Result<Vec<TopicMetadata>> {
        let handle = topic.map(|topic| TopicHandle::new(&self.client, topic)).transpose()?;
        let asked = || handle.as_ref().map_or(Asked::All, Asked::One);
        let deadline = Instant::now() + timeout;
        let mut attempt = ATTEMPT;
        loop {
            let rest = deadline.saturating_duration_since(Instant::now());
            match self.metadata_once(asked(), rest.min(attempt)) {
                Err(Code::RD_KAFKA_RESP_ERR__TRANSPORT) if rest > attempt => self.client.recall_brokers(),
                // A broker takes its time.
                Err(Code::RD_KAFKA_RESP_ERR__TIMED_OUT) if rest > attempt => attempt = rest,
                outcome => {
                    return outcome.map_err(|code| self.client.error(code, "cluster metadata", ""));
                }
            }
        }
    }

    /// Asks for metadata and does not wait for them; names the brokers anew if there is none to ask.
    pub fn probe(&self, asked: Asked<'_>) {
        if let Err(Code::RD_KAFKA_RESP_ERR__TRANSPORT) = self.metadata_once(asked, Duration::ZERO) {
            self.client.recall_brokers();
        }
    }

    fn metadata_once(&self, asked: Asked<'_>, timeout: Duration) -> Result<Vec<TopicMetadata>, Code> {
        let (all, topic) = match asked {
            Asked::All => (1, std::ptr::null_mut()),
            Asked::Used => (0, std::ptr::null_mut()),
            Asked::One(topic) => (0, topic.raw()),
        };
        let mut metadata: *const sys::rd_kafka_metadata = std::ptr::null();
        // SAFETY: the client and the topic are live; the metadata is copied out, then destroyed once.
        unsafe {
            let code = sys::rd_kafka_metadata(self.client.raw(), all, topic, &mut metadata, millis(timeout));
            if code != Code::RD_KAFKA_RESP_ERR_NO_ERROR {
                return Err(code);
            }
            let count = usize::try_from((*metadata).topic_cnt).unwrap_or(0);
            let found = (0..count)
                .map(|i| {
                    let topic = &*(*metadata).topics.add(i);
                    TopicMetadata {
                        name: text_of(topic.topic),
                        partitions: topic.partition_cnt,
                        code: topic.err,
                        led: (0..usize::try_from(topic.partition_cnt).unwrap_or(0))
                            .all(|p| (*topic.partitions.add(p)).leader >= 0),
                    }
                })
                .collect();
            sys::rd_kafka_metadata_destroy(metadata);
            Ok(found)
        }
    }

    /// `NoTopic`, or out of range, when there is no such partition.
    fn require(&self, partition: &TopicPartition) -> Result<()> {
        match self.partitions(&partition.topic)? {
            None => Err(self.no_topic(&partition.topic)),
            Some(count) if !(0..count).contains(&partition.partition) => Err(LogError::Other {
                what: partition.to_string(),
                detail: format!("the topic has {count} partitions, numbered from 0"),
            }),
            Some(_) => Ok(()),
        }
    }

    pub fn no_topic(&self, topic: &str) -> LogError {
        LogError::NoTopic { topic: topic.to_owned(), brokers: self.client.brokers.clone() }
    }

    /// Repeats a question, which is given how long it may take, while its partitions are on their way to another leader,
    /// or new ones to their first. It may be lost with a broker that the client drops: so the first ones are short.
    fn settled(
        &self,
        what: &str,
        partitions: &[TopicPartition],
        mut ask: impl FnMut(Duration) -> Code,
    ) -> Result<()> {
        unless_stood_still(SETTLED_BY, || self.settled_once(what, partitions, &mut ask))
    }

    fn settled_once(
        &self,
        what: &str,
        partitions: &[TopicPartition],
        ask: &mut impl FnMut(Duration) -> Code,
    ) -> Result<()> {
        let (deadline, mut attempt) = (Instant::now() + REQUEST_TIMEOUT, FIRST_ATTEMPT);
        let topics: BTreeSet<_> = partitions.iter().map(|partition| &partition.topic).collect();
        loop {
            let rest = deadline.saturating_duration_since(Instant::now());
            let code = ask(attempt.min(rest.max(ATTEMPT)));
            let in_time = Instant::now() < deadline;
            match code {
                Code::RD_KAFKA_RESP_ERR_NO_ERROR => return Ok(()),
                code if is_moving(code) && !in_time => {
                    let detail = format!("{what}: no broker leads that partition ({})", code_text(code));
                    return Err(LogError::Unreachable { brokers: self.client.brokers.clone(), detail });
                }
                code if is_moving(code) => std::thread::sleep(RETRY_AFTER),
                Code::RD_KAFKA_RESP_ERR__TIMED_OUT if in_time => attempt *= 2,
                code => return Err(self.client.error(code, what, "")),
            }
            // The client keeps to what it was told last, also where that was that nobody leads.
            let rest = deadline.saturating_duration_since(Instant::now());
            for topic in &topics {
                if self.partitions_within(topic, rest.max(ATTEMPT))?.is_none() {
                    return Err(self.no_topic(topic));
                }
            }
        }
    }

    pub fn bounds(&self, partition: &TopicPartition) -> Result<Bounds> {
        self.require(partition)?;
        let topic = c_string(&partition.topic)?;
        let (mut start, mut end) = (0, 0);
        self.settled(&format!("offsets of {partition}"), std::slice::from_ref(partition), |timeout| {
            // The client is read-committed, so the high end is the last stable offset.
            // SAFETY: the client is live; both results are written before they are read.
            unsafe {
                sys::rd_kafka_query_watermark_offsets(
                    self.client.raw(),
                    topic.as_ptr(),
                    partition.partition,
                    &mut start,
                    &mut end,
                    millis(timeout),
                )
            }
        })?;
        Ok(Bounds { start, end })
    }

    pub fn written_ends(&self, partitions: &[TopicPartition]) -> Result<Vec<i64>> {
        /// Kafka's name for the end, where a timestamp stands.
        const LATEST: i64 = -1;
        if partitions.is_empty() {
            return Ok(Vec::new());
        }
        let latest: Vec<_> = partitions.iter().map(|partition| (partition.clone(), LATEST)).collect();
        let list = PartitionList::with_offsets(&latest)?;
        let what = "ends of partitions";
        let mut found = BTreeMap::new();
        let mut failed = None;
        self.settled(what, partitions, |timeout| match self.ends_once(what, timeout, &list, &mut found) {
            Ok(code) => code,
            Err(error) => {
                failed = Some(error);
                Code::RD_KAFKA_RESP_ERR_NO_ERROR
            }
        })?;
        if let Some(error) = failed {
            return Err(error);
        }
        let missing = |partition: &TopicPartition| LogError::Other {
            what: what.to_owned(),
            detail: format!("the cluster said nothing of {partition}"),
        };
        partitions.iter().map(|p| found.get(p).copied().ok_or_else(|| missing(p))).collect()
    }

    /// The first partition's failure, if one has failed.
    fn ends_once(
        &self,
        what: &str,
        timeout: Duration,
        list: &PartitionList,
        found: &mut BTreeMap<TopicPartition, i64>,
    ) -> Result<Code> {
        let answer = self.request_with_code(
            Operation::RD_KAFKA_ADMIN_OP_LISTOFFSETS,
            what,
            timeout,
            // SAFETY: options, list and queue are live for the call, which copies the list.
            |ask| unsafe {
                let refused = sys::rd_kafka_AdminOptions_set_isolation_level(
                    ask.options,
                    sys::rd_kafka_IsolationLevel_t::RD_KAFKA_ISOLATION_LEVEL_READ_UNCOMMITTED,
                );
                debug_assert!(refused.is_null(), "the option belongs to this request");
                sys::rd_kafka_ListOffsets(ask.client, list.raw(), ask.options, ask.queue);
            },
        );
        let answer = match answer {
            Ok(answer) => answer,
            Err((code, _)) if is_moving(code) || code == Code::RD_KAFKA_RESP_ERR__TIMED_OUT => {
                return Ok(code);
            }
            Err((_, error)) => return Err(error),
        };
        // SAFETY: the event is live and of this kind; it holds `count` results with a partition each.
        unsafe {
            let mut count = 0;
            let result = sys::rd_kafka_event_ListOffsets_result(answer.0);
            let infos = sys::rd_kafka_ListOffsets_result_infos(result, &mut count);
            for i in 0..count {
                let info = &*sys::rd_kafka_ListOffsetsResultInfo_topic_partition(*infos.add(i));
                if info.err != Code::RD_KAFKA_RESP_ERR_NO_ERROR {
                    return Ok(info.err);
                }
                // A request that failed leaves no word of it in the results, only no offset.
                if info.offset < 0 {
                    return Ok(Code::RD_KAFKA_RESP_ERR_LEADER_NOT_AVAILABLE);
                }
                found.insert(TopicPartition::new(text_of(info.topic), info.partition), info.offset);
            }
        }
        Ok(Code::RD_KAFKA_RESP_ERR_NO_ERROR)
    }

    pub fn offset_at(&self, partition: &TopicPartition, timestamp_ms: i64) -> Result<Option<i64>> {
        self.require(partition)?;
        // Negative timestamps are Kafka's special offsets.
        let list = PartitionList::with_offsets(&[(partition.clone(), timestamp_ms.max(0))])?;
        let what = format!("offset of {partition} at {timestamp_ms} ms");
        // SAFETY: the client and the list are live.
        self.settled(&what, std::slice::from_ref(partition), |timeout| unsafe {
            sys::rd_kafka_offsets_for_times(self.client.raw(), list.raw(), millis(timeout))
        })?;
        let Some(entry) = list.entries().into_iter().next() else { return Ok(None) };
        self.client.check(entry.code, &what)?;
        Ok((entry.offset >= 0).then_some(entry.offset))
    }

    pub fn create_topics(&self, topics: &[TopicSpec]) -> Result<()> {
        if topics.is_empty() {
            return Ok(());
        }
        let mut specs = Specs(Vec::new());
        for topic in topics {
            specs.add(topic)?;
        }
        // Those that a first request has created are there by the second.
        self.request_repeatable(
            Operation::RD_KAFKA_ADMIN_OP_CREATETOPICS,
            "create topics",
            REQUEST_TIMEOUT,
            // SAFETY: the specifications are live for the call, which copies them.
            |ask| unsafe {
                sys::rd_kafka_CreateTopics(
                    ask.client,
                    specs.0.as_mut_ptr(),
                    specs.0.len(),
                    ask.options,
                    ask.queue,
                );
            },
        )?
        .topic_results(
            &self.client,
            "create topic",
            Code::RD_KAFKA_RESP_ERR_TOPIC_ALREADY_EXISTS,
            |event| {
                // SAFETY: the event is live and of this kind.
                unsafe {
                    let mut count = 0;
                    let result = sys::rd_kafka_event_CreateTopics_result(event);
                    (sys::rd_kafka_CreateTopics_result_topics(result, &mut count), count)
                }
            },
        )?;
        // The controller knows them; wait until the brokers that clients ask do.
        for topic in topics {
            self.await_topic(&topic.name, |found| {
                found.is_some_and(|f| f.code == Code::RD_KAFKA_RESP_ERR_NO_ERROR && f.led)
            })?;
        }
        Ok(())
    }

    pub fn delete_topics(&self, topics: &[String]) -> Result<()> {
        if topics.is_empty() {
            return Ok(());
        }
        let mut raw = Vec::new();
        for topic in topics {
            let name = c_string(topic)?;
            // SAFETY: the name is copied.
            raw.push(unsafe { sys::rd_kafka_DeleteTopic_new(name.as_ptr()) });
        }
        let answer = self.request(
            Operation::RD_KAFKA_ADMIN_OP_DELETETOPICS,
            "delete topics",
            REQUEST_TIMEOUT,
            |ask| {
                // SAFETY: the requests are live for the call, which copies them.
                unsafe {
                    sys::rd_kafka_DeleteTopics(
                        ask.client,
                        raw.as_mut_ptr(),
                        raw.len(),
                        ask.options,
                        ask.queue,
                    );
                }
            },
        );
        // SAFETY: each was made above and is destroyed once.
        unsafe { sys::rd_kafka_DeleteTopic_destroy_array(raw.as_mut_ptr(), raw.len()) };
        answer?.topic_results(
            &self.client,
            "delete topic",
            Code::RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART,
            |event| {
                // SAFETY: the event is live and of this kind.
                unsafe {
                    let mut count = 0;
                    let result = sys::rd_kafka_event_DeleteTopics_result(event);
                    (sys::rd_kafka_DeleteTopics_result_topics(result, &mut count), count)
                }
            },
        )?;
        for topic in topics {
            self.await_topic(topic, |found| {
                found.is_none_or(|f| f.code == Code::RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART)
            })?;
        }
        Ok(())
    }

    fn await_topic(&self, topic: &str, done: impl Fn(Option<&TopicMetadata>) -> bool) -> Result<()> {
        let deadline = Instant::now() + REQUEST_TIMEOUT;
        loop {
            let found = self.metadata(Some(topic), REQUEST_TIMEOUT)?;
            if done(found.iter().find(|found| found.name == topic)) {
                return Ok(());
            }
            if Instant::now() > deadline {
                return Err(LogError::Other {
                    what: format!("topic '{topic}'"),
                    detail: "the cluster took the change but its metadata does not show it yet; try again"
                        .into(),
                });
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    pub fn topic_config(&self, topic: &str) -> Result<BTreeMap<String, String>> {
        if self.partitions(topic)?.is_none() {
            return Err(self.no_topic(topic));
        }
        let name = c_string(topic)?;
        let kind = sys::rd_kafka_ResourceType_t::RD_KAFKA_RESOURCE_TOPIC;
        // SAFETY: the name is copied.
        let mut resource = unsafe { sys::rd_kafka_ConfigResource_new(kind, name.as_ptr()) };
        let what = format!("configuration of '{topic}'");
        let answer = self.request_repeatable(
            Operation::RD_KAFKA_ADMIN_OP_DESCRIBECONFIGS,
            &what,
            REQUEST_TIMEOUT,
            // SAFETY: the resource is live for the call, which copies it.
            |ask| unsafe {
                sys::rd_kafka_DescribeConfigs(ask.client, &mut resource, 1, ask.options, ask.queue);
            },
        );
        // SAFETY: made above, destroyed once.
        unsafe { sys::rd_kafka_ConfigResource_destroy(resource) };
        let answer = answer?;
        // SAFETY: the event is live and of this kind; everything is copied out.
        unsafe {
            let mut count = 0;
            let result = sys::rd_kafka_event_DescribeConfigs_result(answer.0);
            let resources = sys::rd_kafka_DescribeConfigs_result_resources(result, &mut count);
            let mut config = BTreeMap::new();
            for i in 0..count {
                let resource = *resources.add(i);
                let detail = text_of(sys::rd_kafka_ConfigResource_error_string(resource));
                let code = sys::rd_kafka_ConfigResource_error(resource);
                if code != Code::RD_KAFKA_RESP_ERR_NO_ERROR {
                    return Err(self.client.error(code, &what, &detail));
                }
                let mut entries = 0;
                let list = sys::rd_kafka_ConfigResource_configs(resource, &mut entries);
                for j in 0..entries {
                    let entry = *list.add(j);
                    config.insert(
                        text_of(sys::rd_kafka_ConfigEntry_name(entry)),
                        text_of(sys::rd_kafka_ConfigEntry_value(entry)),
                    );
                }
            }
            Ok(config)
        }
    }

    pub fn delete_before(&self, offsets: &[(TopicPartition, i64)]) -> Result<()> {
        if offsets.is_empty() {
            return Ok(());
        }
        let list = PartitionList::with_offsets(offsets)?;
        // SAFETY: the list is copied.
        let mut raw = unsafe { sys::rd_kafka_DeleteRecords_new(list.raw()) };
        let answer = self.request(
            Operation::RD_KAFKA_ADMIN_OP_DELETERECORDS,
            "delete records",
            REQUEST_TIMEOUT,
            // SAFETY: the request is live for the call, which copies it.
            |ask| unsafe {
                sys::rd_kafka_DeleteRecords(ask.client, &mut raw, 1, ask.options, ask.queue);
            },
        );
        // SAFETY: made above, destroyed once.
        unsafe { sys::rd_kafka_DeleteRecords_destroy(raw) };
        let answer = answer?;
        // SAFETY: the event is live and of this kind.
        let entries = unsafe {
            entries_of(sys::rd_kafka_DeleteRecords_result_offsets(sys::rd_kafka_event_DeleteRecords_result(
                answer.0,
            )))
        };
        for entry in entries {
            self.client.check(entry.code, &format!("delete records of {}", entry.partition))?;
        }
        Ok(())
    }
}

/// The partition has no leader that answers just now, or the client knows an older one. librdkafka says of partitions that
/// are there, and that nobody leads, that they are unknown, or that there is no such entry, and gives up a broker that goes.
fn is_moving(code: Code) -> bool {
    use Code::*;
    matches!(
        code,
        RD_KAFKA_RESP_ERR_NOT_LEADER_FOR_PARTITION
            | RD_KAFKA_RESP_ERR_LEADER_NOT_AVAILABLE
            | RD_KAFKA_RESP_ERR_REPLICA_NOT_AVAILABLE
            | RD_KAFKA_RESP_ERR_OFFSET_NOT_AVAILABLE
            | RD_KAFKA_RESP_ERR_FENCED_LEADER_EPOCH
            | RD_KAFKA_RESP_ERR_UNKNOWN_LEADER_EPOCH
            | RD_KAFKA_RESP_ERR__DESTROY_BROKER
            | RD_KAFKA_RESP_ERR__UNKNOWN_PARTITION
            | RD_KAFKA_RESP_ERR__NOENT
    )
}

/// Which topics metadata are asked of.
pub(super) enum Asked<'a> {
    All,
    /// The ones that the client has handles of. For one that has had handles and has none any more, librdkafka would let
    /// the cluster create topics that it remembers.
    Used,
    One(&'a TopicHandle),
}

struct TopicMetadata {
    name: String,
    partitions: i32,
    code: Code,
    /// Whether each partition has a leader.
    led: bool,
}
