//! Fetch: large slices of the files, as they are; and the wait for records where there are none.
//!
//! Invariant: an empty answer carries empty records, never null: librdkafka backs off on null and never
//! reports the partition's end.
//! Invariant: a waiting fetch reads no file: it asks the indexes until there is enough, or its time is up, or
//! the client sends its next request on the same connection.

use std::sync::Arc;
use std::time::Duration;

use kafka_protocol::messages::fetch_request::FetchPartition;
use kafka_protocol::messages::fetch_response::{AbortedTransaction, FetchableTopicResponse, PartitionData};
use kafka_protocol::messages::{BrokerId, FetchRequest, FetchResponse, ProducerId};
use tokio::time::Instant;

use super::cluster::Cluster;
use super::dispatch::Call;
use super::fault::Fault;
use super::partition::{Bounds, Partition};
use super::segment::Slice;
use super::server::Incoming;
use super::watch::Watch;

const READ_COMMITTED: i8 = 1;
const WAIT_MAX: Duration = Duration::from_secs(60);
/// However much a client asks for, one answer holds about this at most.
const ANSWER_BYTES_MAX: usize = 64 << 20;

/// What one partition will answer.
struct Found {
    partition: Arc<Partition>,
    bounds: Bounds,
    slice: Option<Slice>,
}

type Plan = Vec<Result<Found, Fault>>;

pub async fn fetch(
    cluster: &Arc<Cluster>,
    _: &Call,
    request: FetchRequest,
    incoming: &mut Incoming,
) -> FetchResponse {
    let wait = Duration::from_millis(u64::try_from(request.max_wait_ms).unwrap_or(0)).min(WAIT_MAX);
    let deadline = Instant::now() + wait;
    let wanted = usize::try_from(request.min_bytes).unwrap_or(0);
    let enough = |(plan, bytes): &(Plan, usize)| *bytes >= wanted || plan.iter().any(Result::is_err);
    let first = look(cluster, &request, ANSWER_BYTES_MAX);
    if enough(&first) || wait.is_zero() {
        return respond(cluster, &request, first, incoming);
    }
    let partitions = first.0.into_iter().filter_map(Result::ok).map(|found| found.partition);
    // Before looking again, so that nothing appended after the look is missed.
    let watch = Watch::on(partitions.collect());
    loop {
        let found = look(cluster, &request, ANSWER_BYTES_MAX);
        if enough(&found) {
            return respond(cluster, &request, found, incoming);
        }
        tokio::select! {
            () = watch.woken() => {}
            () = tokio::time::sleep_until(deadline) => return respond(cluster, &request, found, incoming),
            _ = incoming.more() => return respond(cluster, &request, found, incoming),
        }
    }
}

fn look(cluster: &Cluster, request: &FetchRequest, bytes_max: usize) -> (Plan, usize) {
    let mut left = usize::try_from(request.max_bytes).unwrap_or(0).clamp(1, bytes_max.max(1));
    let mut bytes = 0;
    let mut plan = Vec::new();
    for topic in &request.topics {
        for partition in &topic.partitions {
            let found = find(cluster, &topic.topic, partition, request.isolation_level, left);
            if let Ok(Found { slice: Some(slice), .. }) = &found {
                bytes += slice.bytes();
                left = left.saturating_sub(slice.bytes());
            }
            plan.push(found);
        }
    }
    (plan, bytes)
}

fn find(
    cluster: &Cluster,
    topic: &str,
    wanted: &FetchPartition,
    isolation_level: i8,
    left: usize,
) -> Result<Found, Fault> {
    let partition = cluster.partition(topic, wanted.partition).ok_or(Fault::UnknownTopicOrPartition)?;
    let bounds = partition.bounds();
    let limit = if isolation_level == READ_COMMITTED { bounds.stable } else { bounds.end };
    let bytes_max = usize::try_from(wanted.partition_max_bytes).unwrap_or(0).min(left);
    let slice = partition.slice(wanted.fetch_offset, bytes_max, limit)?.filter(|_| left > 0);
    Ok(Found { partition, bounds, slice })
}

fn respond(
    cluster: &Cluster,
    request: &FetchRequest,
    (mut plan, bytes): (Plan, usize),
    incoming: &mut Incoming,
) -> FetchResponse {
    let granted = incoming.reserve(bytes);
    if granted < bytes {
        plan = look(cluster, request, granted).0;
    }
    let mut plan = plan.into_iter();
    let mut responses = Vec::with_capacity(request.topics.len());
    for topic in &request.topics {
        let mut partitions = Vec::with_capacity(topic.partitions.len());
        for (wanted, found) in topic.partitions.iter().zip(&mut plan) {
            let data =
                found.and_then(|found| read(cluster, &topic.topic, wanted, found, request.isolation_level));
            partitions.push(data.unwrap_or_else(|fault| {
                let data = PartitionData::default().with_partition_index(wanted.partition);
                data.with_error_code(fault as i16).with_high_watermark(-1)
            }));
        }
        responses.push(
            FetchableTopicResponse::default().with_topic(topic.topic.clone()).with_partitions(partitions),
        );
    }
    FetchResponse::default().with_responses(responses)
}

fn read(
    cluster: &Cluster,
    topic: &str,
    wanted: &FetchPartition,
    mut found: Found,
    isolation_level: i8,
) -> Result<PartitionData, Fault> {
    let described = |found: &Found| {
        PartitionData::default()
            .with_partition_index(wanted.partition)
            .with_high_watermark(found.bounds.end)
            .with_last_stable_offset(found.bounds.stable)
            .with_log_start_offset(found.bounds.start)
            .with_preferred_read_replica(BrokerId(-1))
    };
    loop {
        let Some(slice) = &found.slice else { return Ok(described(&found)) };
        let (records, end) = slice.read()?;
        if isolation_level != READ_COMMITTED {
            return Ok(described(&found).with_records(Some(records)));
        }
        let Some(aborted) = found.partition.aborted(wanted.fetch_offset, end, slice.rewrites) else {
            // Compaction came in between: what was read may hold aborted records that are forgotten since.
            let bytes = slice.bytes();
            found = find(cluster, topic, wanted, isolation_level, bytes)?;
            continue;
        };
        let listed = |aborted: &super::producers::Aborted| {
            AbortedTransaction::default()
                .with_producer_id(ProducerId(aborted.producer_id))
                .with_first_offset(aborted.first)
        };
        return Ok(described(&found)
            .with_aborted_transactions(Some(aborted.iter().map(listed).collect()))
            .with_records(Some(records)));
    }
}
