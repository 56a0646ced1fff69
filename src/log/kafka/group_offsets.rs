//! Committed offsets of a group, asked for and set from outside of it.
//!
//! Invariant: offsets of a transaction that is being decided are waited for, not guessed.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rdkafka::bindings as sys;
use sys::rd_kafka_admin_op_t as Operation;
use sys::rd_kafka_resp_err_t as Code;

use super::admin::{Admin, REQUEST_TIMEOUT};
use super::client::{Client, Entry, PartitionList, c_string, entries_of, millis, text_of};
use crate::log::{LogError, Position, Result};
use crate::record::TopicPartition;

/// Offsets of a transaction that is being decided are not readable; a crashed producer's is decided when its
/// transaction timeout has passed.
pub(super) const STABLE_OFFSETS_TIMEOUT: Duration = Duration::from_secs(90);

/// Kafka ends what a crashed producer left within its timeout of 15 s and 10 s more: whoever waits for longer is told.
const WARN_AFTER: Duration = Duration::from_secs(30);

const RETRY_AFTER: Duration = Duration::from_millis(50);

/// librdkafka that waits for a coordinator sleeps until some connection comes or goes, and may miss that the coordinator
/// was found meanwhile: so the first attempts are short, and each is twice as long as the one before.
const FIRST_ATTEMPT: Duration = Duration::from_secs(1);
const LONG_ATTEMPT: Duration = Duration::from_secs(4);

const NO_ERROR: Code = Code::RD_KAFKA_RESP_ERR_NO_ERROR;

/// What a group has committed, asked by a client that names the group but never joins it. The admin request for
/// it is not used: librdkafka 2.12 aborts the process when a coordinator goes away in the middle of one.
///
/// `client` is told whether the one before it did not answer in time: where its question for the coordinator was lost,
/// librdkafka asks again after a minute, and where a broker was dropped at that moment never.
pub(super) fn committed(
    group: &str,
    partitions: &[TopicPartition],
    mut client: impl FnMut(bool) -> Result<Arc<Client>>,
) -> Result<Vec<Option<Position>>> {
    let what = format!("committed offsets of group '{group}'");
    let since = Instant::now();
    let deadline = since + STABLE_OFFSETS_TIMEOUT;
    let (mut asked, mut attempt, mut warned) = (client(false)?, FIRST_ATTEMPT, false);
    loop {
        match committed_once(&asked, partitions, attempt)? {
            Ok(all) => return Ok(all),
            Err(code) if is_moving(code) && Instant::now() < deadline => std::thread::sleep(RETRY_AFTER),
            // librdkafka asks again by itself while a transaction is being decided, and says only that time is over:
            // somebody who does not answer at all is told apart by another question.
            Err(Code::RD_KAFKA_RESP_ERR__TIMED_OUT) if Instant::now() < deadline => {
                if attempt >= LONG_ATTEMPT {
                    Admin { client: Arc::clone(&asked) }.partitions(&partitions[0].topic)?;
                    asked = client(true)?;
                }
                attempt = REQUEST_TIMEOUT.min(attempt * 2);
                if !warned && since.elapsed() > WARN_AFTER {
                    warned = true;
                    tracing::warn!(
                        "{what} are waited for, for up to {} s: its coordinator does not answer, or a transaction is \
                         not ended",
                        STABLE_OFFSETS_TIMEOUT.as_secs()
                    );
                }
            }
            Err(code) => return Err(asked.error(code, &what, "")),
        }
    }
}

/// The same, or `None` where it is not known within this time what becomes of a transaction.
pub(super) fn decided_within(
    client: &Arc<Client>,
    partitions: &[TopicPartition],
    patience: Duration,
) -> Result<Option<Vec<Option<Position>>>> {
    Ok(committed_once(client, partitions, patience)?.ok())
}

/// Whether a partition's offset is not decided: whatever else is wrong is no answer.
pub(super) fn is_undecided(client: &Client, partition: &TopicPartition, patience: Duration) -> Result<bool> {
    use Code::{RD_KAFKA_RESP_ERR__TIMED_OUT, RD_KAFKA_RESP_ERR_UNSTABLE_OFFSET_COMMIT};
    let answer = committed_once(client, std::slice::from_ref(partition), patience)?;
    Ok(matches!(answer, Err(RD_KAFKA_RESP_ERR__TIMED_OUT | RD_KAFKA_RESP_ERR_UNSTABLE_OFFSET_COMMIT)))
}

/// One question; the code is what is wrong with its answer.
fn committed_once(
    client: &Client,
    partitions: &[TopicPartition],
    timeout: Duration,
) -> Result<std::result::Result<Vec<Option<Position>>, Code>> {
    if partitions.is_empty() {
        return Ok(Ok(Vec::new()));
    }
    let list = PartitionList::of(partitions)?;
    // SAFETY: the client and the list are live.
    let code = unsafe { sys::rd_kafka_committed(client.raw(), list.raw(), millis(timeout)) };
    let entries = list.entries();
    let failed = entries.iter().map(|entry| entry.code).find(|code| *code != NO_ERROR);
    let code = if code == NO_ERROR { failed.unwrap_or(NO_ERROR) } else { code };
    if code != NO_ERROR {
        return Ok(Err(code));
    }
    let mut by_partition: BTreeMap<TopicPartition, Position> = BTreeMap::new();
    for entry in entries.into_iter().filter(|entry| entry.offset >= 0) {
        let position = Position { offset: entry.offset, metadata: entry.metadata };
        by_partition.insert(entry.partition, position);
    }
    Ok(Ok(partitions.iter().map(|partition| by_partition.remove(partition)).collect()))
}

/// The group's coordinator is elsewhere, or is coming back.
fn is_moving(code: Code) -> bool {
    use Code::*;
    matches!(
        code,
        RD_KAFKA_RESP_ERR__DESTROY_BROKER
            | RD_KAFKA_RESP_ERR_UNSTABLE_OFFSET_COMMIT
            | RD_KAFKA_RESP_ERR_NOT_COORDINATOR
            | RD_KAFKA_RESP_ERR_COORDINATOR_NOT_AVAILABLE
            | RD_KAFKA_RESP_ERR_COORDINATOR_LOAD_IN_PROGRESS
    )
}

impl Admin {
    pub fn commit_offsets(&self, group: &str, offsets: &[(TopicPartition, Position)]) -> Result<()> {
        if offsets.is_empty() {
            return Ok(());
        }
        let deadline = Instant::now() + REQUEST_TIMEOUT;
        loop {
            match self.commit_offsets_once(group, offsets) {
                Err((code, _)) if is_moving(code) && Instant::now() < deadline => {
                    std::thread::sleep(RETRY_AFTER);
                }
                outcome => return outcome.map_err(|(_, error)| error),
            }
        }
    }

    fn commit_offsets_once(
        &self,
        group: &str,
        offsets: &[(TopicPartition, Position)],
    ) -> Result<(), (Code, LogError)> {
        let plain = |error| (Code::RD_KAFKA_RESP_ERR__INVALID_ARG, error);
        let what = format!("commit offsets of group '{group}'");
        let name = c_string(group).map_err(plain)?;
        let mut list = PartitionList::new();
        for (partition, position) in offsets {
            list.add(partition, Some(position.offset), Some(&position.metadata)).map_err(plain)?;
        }
        // SAFETY: name and list are copied.
        let mut raw = unsafe { sys::rd_kafka_AlterConsumerGroupOffsets_new(name.as_ptr(), list.raw()) };
        let answer = self.request_with_code(
            Operation::RD_KAFKA_ADMIN_OP_ALTERCONSUMERGROUPOFFSETS,
            &what,
            REQUEST_TIMEOUT,
            // SAFETY: the request is live for the call, which copies it.
            |ask| unsafe {
                sys::rd_kafka_AlterConsumerGroupOffsets(ask.client, &mut raw, 1, ask.options, ask.queue);
            },
        );
        // SAFETY: made above, destroyed once.
        unsafe { sys::rd_kafka_AlterConsumerGroupOffsets_destroy(raw) };
        let answer = answer?;
        // SAFETY: the event is live and of this kind.
        unsafe {
            let mut count = 0;
            let result = sys::rd_kafka_event_AlterConsumerGroupOffsets_result(answer.0);
            let groups = sys::rd_kafka_AlterConsumerGroupOffsets_result_groups(result, &mut count);
            self.group_entries(groups, count, &what)?;
        }
        Ok(())
    }

    /// # Safety
    /// `groups` holds `count` live results.
    unsafe fn group_entries(
        &self,
        groups: *mut *const sys::rd_kafka_group_result_t,
        count: usize,
        what: &str,
    ) -> Result<Vec<Entry>, (Code, LogError)> {
        let mut all = Vec::new();
        for i in 0..count {
            // SAFETY: the caller's promise; everything is copied out.
            let entries = unsafe {
                let group = *groups.add(i);
                let error = sys::rd_kafka_group_result_error(group);
                if !error.is_null() {
                    let code = sys::rd_kafka_error_code(error);
                    let text = text_of(sys::rd_kafka_error_string(error));
                    return Err((code, self.client.error(code, what, &text)));
                }
                entries_of(sys::rd_kafka_group_result_partitions(group))
            };
            for entry in entries {
                if entry.code != Code::RD_KAFKA_RESP_ERR_NO_ERROR {
                    let what = format!("{what}, {}", entry.partition);
                    return Err((entry.code, self.client.error(entry.code, &what, "")));
                }
                all.push(entry);
            }
        }
        Ok(all)
    }
}
