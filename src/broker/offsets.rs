//! Offsets: of a log (ListOffsets) and of a group (OffsetCommit, OffsetFetch).

use std::collections::BTreeMap;
use std::sync::Arc;

use kafka_protocol::messages::list_offsets_response::{
    ListOffsetsPartitionResponse, ListOffsetsTopicResponse,
};
use kafka_protocol::messages::offset_commit_response::{
    OffsetCommitResponsePartition, OffsetCommitResponseTopic,
};
use kafka_protocol::messages::offset_fetch_response::{
    OffsetFetchResponsePartition, OffsetFetchResponseTopic,
};
use kafka_protocol::messages::{
    ListOffsetsRequest, ListOffsetsResponse, OffsetCommitRequest, OffsetCommitResponse, OffsetFetchRequest,
    OffsetFetchResponse, TopicName,
};

use super::cluster::Cluster;
use super::dispatch::{Call, text};
use super::fault::{Fault, code};
use super::group::{Caller, NAME_BYTES_MAX};
use super::metadata::{Change, Committed};

const LATEST: i64 = -1;
const EARLIEST: i64 = -2;
const READ_COMMITTED: i8 = 1;
/// Kafka takes 4 KiB by default and more where told; this broker keeps all of it in memory.
pub const OFFSET_METADATA_BYTES_MAX: usize = 64 << 10;

pub fn list(cluster: &Arc<Cluster>, _: &Call, request: ListOffsetsRequest) -> ListOffsetsResponse {
    let committed = request.isolation_level == READ_COMMITTED;
    let mut topics = Vec::with_capacity(request.topics.len());
    for topic in request.topics {
        let mut partitions = Vec::with_capacity(topic.partitions.len());
        for wanted in topic.partitions {
            let found = find(cluster, &topic.name, wanted.partition_index, wanted.timestamp, committed);
            let (timestamp, offset) = found.unwrap_or((-1, -1));
            partitions.push(
                ListOffsetsPartitionResponse::default()
                    .with_partition_index(wanted.partition_index)
                    .with_error_code(code(&found))
                    .with_timestamp(timestamp)
                    .with_offset(offset),
            );
        }
        topics.push(ListOffsetsTopicResponse::default().with_name(topic.name).with_partitions(partitions));
    }
    ListOffsetsResponse::default().with_topics(topics)
}

/// (timestamp, offset); both -1 where no record is that young.
fn find(
    cluster: &Cluster,
    topic: &str,
    index: i32,
    timestamp: i64,
    committed: bool,
) -> Result<(i64, i64), Fault> {
    let (_, partition) = cluster.locate(topic, index)?;
    let bounds = partition.bounds();
    let end = if committed { bounds.stable } else { bounds.end };
    match timestamp {
        LATEST => Ok((-1, end)),
        EARLIEST => Ok((-1, bounds.start)),
        timestamp => Ok(partition.offset_at(timestamp, end)?.unwrap_or((-1, -1))),
    }
}

pub fn commit(cluster: &Arc<Cluster>, _: &Call, request: OffsetCommitRequest) -> OffsetCommitResponse {
    let group = request.group_id.to_string();
    let caller = Caller {
        member: &request.member_id,
        instance: request.group_instance_id.as_deref(),
        generation: request.generation_id_or_member_epoch,
    };
    let mut outcome = match group.len() <= NAME_BYTES_MAX {
        true if cluster.metadata.read(|image| image.is_full_for(&group)) => Err(Fault::PolicyViolation),
        true => Ok(()),
        false => Err(Fault::InvalidGroupId),
    };
    let mut changes = Vec::new();
    let mut topics = Vec::with_capacity(request.topics.len());
    for topic in request.topics {
        let known = cluster.topic(&topic.name);
        let mut partitions = Vec::with_capacity(topic.partitions.len());
        for partition in topic.partitions {
            let index = partition.partition_index;
            let exists = known.as_ref().is_some_and(|topic| topic.partition(index).is_some());
            let metadata = partition.committed_metadata.as_deref().unwrap_or_default();
            let too_large = metadata.len() > OFFSET_METADATA_BYTES_MAX;
            if exists && !too_large && outcome.is_ok() {
                changes.push(Change::Offset {
                    group: group.clone(),
                    topic: topic.name.to_string(),
                    partition: index,
                    committed: Committed {
                        offset: partition.committed_offset,
                        leader_epoch: partition.committed_leader_epoch,
                        metadata: metadata.to_owned(),
                    },
                });
            }
            let fault = match exists {
                true if too_large => Fault::OffsetMetadataTooLarge as i16,
                true => 0,
                false => Fault::UnknownTopicOrPartition as i16,
            };
            partitions.push(
                OffsetCommitResponsePartition::default().with_partition_index(index).with_error_code(fault),
            );
        }
        topics.push(OffsetCommitResponseTopic::default().with_name(topic.name).with_partitions(partitions));
    }
    if outcome.is_ok() {
        let write = || match changes.is_empty() {
            true => Ok(()),
            false => cluster.metadata.write(changes).map(drop).map_err(Fault::from),
        };
        outcome = cluster.groups.commit(&group, &caller, false, write).map_err(Fault::of_coordinator);
    }
    if outcome.is_err() {
        for partition in topics.iter_mut().flat_map(|topic| &mut topic.partitions) {
            partition.error_code = code(&outcome);
        }
    }
    OffsetCommitResponse::default().with_topics(topics)
}

pub fn fetch(cluster: &Arc<Cluster>, _: &Call, request: OffsetFetchRequest) -> OffsetFetchResponse {
    let group = request.group_id.as_str();
    let held: BTreeMap<(String, i32), Committed> =
        cluster.metadata.read(|image| image.offsets.get(group).cloned().unwrap_or_default());
    let wanted: Vec<(String, Vec<i32>)> = match request.topics {
        Some(topics) => topics.into_iter().map(|t| (t.name.to_string(), t.partition_indexes)).collect(),
        None => {
            let mut all: BTreeMap<String, Vec<i32>> = BTreeMap::new();
            for (topic, partition) in held.keys() {
                all.entry(topic.clone()).or_default().push(*partition);
            }
            all.into_iter().collect()
        }
    };
    let mut topics = Vec::with_capacity(wanted.len());
    for (name, indexes) in wanted {
        let mut partitions = Vec::with_capacity(indexes.len());
        for index in indexes {
            let mut response = OffsetFetchResponsePartition::default()
                .with_partition_index(index)
                .with_committed_offset(-1)
                .with_metadata(Some(text("")));
            if request.require_stable && cluster.offset_pending(group, &name, index) {
                response = response.with_error_code(Fault::UnstableOffsetCommit as i16);
            } else if let Some(committed) = held.get(&(name.clone(), index)) {
                response = response
                    .with_committed_offset(committed.offset)
                    .with_committed_leader_epoch(committed.leader_epoch)
                    .with_metadata(Some(text(&committed.metadata)));
            }
            partitions.push(response);
        }
        topics.push(
            OffsetFetchResponseTopic::default().with_name(TopicName(text(&name))).with_partitions(partitions),
        );
    }
    OffsetFetchResponse::default().with_topics(topics)
}
