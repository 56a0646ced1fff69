//! The requests of transactional and idempotent producers, answered by the coordinator (`transactions.rs`).

use std::sync::Arc;

use kafka_protocol::messages::add_partitions_to_txn_response::{
    AddPartitionsToTxnPartitionResult, AddPartitionsToTxnTopicResult,
};
use kafka_protocol::messages::txn_offset_commit_response::{
    TxnOffsetCommitResponsePartition, TxnOffsetCommitResponseTopic,
};
use kafka_protocol::messages::{
    AddOffsetsToTxnRequest, AddOffsetsToTxnResponse, AddPartitionsToTxnRequest, AddPartitionsToTxnResponse,
    EndTxnRequest, EndTxnResponse, InitProducerIdRequest, InitProducerIdResponse, ProducerId,
    TxnOffsetCommitRequest, TxnOffsetCommitResponse,
};

use super::cluster::Cluster;
use super::dispatch::Call;
use super::fault::Fault;
use super::group::{Caller, NAME_BYTES_MAX};
use super::metadata::Committed;
use super::offsets::OFFSET_METADATA_BYTES_MAX;
use super::transaction::PendingOffset;

/// Older versions know no PRODUCER_FENCED; `since` is the first that does.
fn fault_of<T>(outcome: &Result<T, Fault>, version: i16, since: i16) -> i16 {
    match outcome {
        Err(Fault::ProducerFenced) if version < since => Fault::InvalidProducerEpoch as i16,
        Err(fault) => fault.of_coordinator() as i16,
        Ok(_) => 0,
    }
}

pub fn init_producer_id(
    cluster: &Arc<Cluster>,
    call: &Call,
    request: InitProducerIdRequest,
) -> InitProducerIdResponse {
    let current = (request.producer_id.0 >= 0).then_some((request.producer_id.0, request.producer_epoch));
    let outcome = match &request.transactional_id {
        Some(id) => cluster.init_transactions(id, request.transaction_timeout_ms, current),
        None => cluster.new_producer_id().map(|id| (id, 0)),
    };
    let (producer_id, epoch) = outcome.unwrap_or((-1, -1));
    InitProducerIdResponse::default()
        .with_error_code(fault_of(&outcome, call.version, 4))
        .with_producer_id(ProducerId(producer_id))
        .with_producer_epoch(epoch)
}

pub fn add_partitions(
    cluster: &Arc<Cluster>,
    call: &Call,
    request: AddPartitionsToTxnRequest,
) -> AddPartitionsToTxnResponse {
    let wanted: Vec<(String, i32)> = request
        .v3_and_below_topics
        .iter()
        .flat_map(|topic| topic.partitions.iter().map(|index| (topic.name.to_string(), *index)))
        .collect();
    let missing = |(topic, index): &(String, i32)| cluster.partition(topic, *index).is_none();
    // All or nothing: where a partition is missing, the others are told so.
    let outcome = match wanted.iter().any(missing) {
        true => Err(Fault::OperationNotAttempted),
        false => cluster.add_partitions(
            &request.v3_and_below_transactional_id,
            request.v3_and_below_producer_id.0,
            request.v3_and_below_producer_epoch,
            &wanted,
        ),
    };
    let mut topics = Vec::with_capacity(request.v3_and_below_topics.len());
    for topic in request.v3_and_below_topics {
        let mut partitions = Vec::with_capacity(topic.partitions.len());
        for index in topic.partitions {
            let fault = match missing(&(topic.name.to_string(), index)) {
                true => Fault::UnknownTopicOrPartition as i16,
                false => fault_of(&outcome, call.version, 2),
            };
            partitions.push(
                AddPartitionsToTxnPartitionResult::default()
                    .with_partition_index(index)
                    .with_partition_error_code(fault),
            );
        }
        topics.push(
            AddPartitionsToTxnTopicResult::default()
                .with_name(topic.name)
                .with_results_by_partition(partitions),
        );
    }
    AddPartitionsToTxnResponse::default().with_results_by_topic_v3_and_below(topics)
}

/// Opens the transaction; which group it is for comes again with the offsets.
pub fn add_offsets(
    cluster: &Arc<Cluster>,
    call: &Call,
    request: AddOffsetsToTxnRequest,
) -> AddOffsetsToTxnResponse {
    let outcome =
        cluster.add_partitions(&request.transactional_id, request.producer_id.0, request.producer_epoch, &[]);
    AddOffsetsToTxnResponse::default().with_error_code(fault_of(&outcome, call.version, 2))
}

pub fn commit_offsets(
    cluster: &Arc<Cluster>,
    _: &Call,
    request: TxnOffsetCommitRequest,
) -> TxnOffsetCommitResponse {
    let group = request.group_id.to_string();
    let caller = Caller {
        member: &request.member_id,
        instance: request.group_instance_id.as_deref(),
        generation: request.generation_id,
    };
    let mut offsets = Vec::new();
    for topic in &request.topics {
        for partition in &topic.partitions {
            offsets.push(PendingOffset {
                group: group.clone(),
                topic: topic.name.to_string(),
                partition: partition.partition_index,
                committed: Committed {
                    offset: partition.committed_offset,
                    leader_epoch: partition.committed_leader_epoch,
                    metadata: partition.committed_metadata.as_deref().unwrap_or_default().to_owned(),
                },
            });
        }
    }
    let too_large = |offset: &PendingOffset| offset.committed.metadata.len() > OFFSET_METADATA_BYTES_MAX;
    let checked = match offsets.iter().any(too_large) || group.len() > NAME_BYTES_MAX {
        true => Err(Fault::OffsetMetadataTooLarge),
        false if cluster.metadata.read(|image| image.is_full_for(&group)) => Err(Fault::PolicyViolation),
        false => Ok(()),
    };
    let outcome = checked.and_then(|()| {
        let (id, epoch) = (request.producer_id.0, request.producer_epoch);
        cluster.groups.commit(&group, &caller, true, || {
            cluster.add_offsets(&request.transactional_id, id, epoch, offsets)
        })
    });
    // This request never learned of PRODUCER_FENCED.
    let fault = fault_of(&outcome, 0, 1);
    let mut topics = Vec::with_capacity(request.topics.len());
    for topic in request.topics {
        let result = |index: i32| {
            TxnOffsetCommitResponsePartition::default().with_partition_index(index).with_error_code(fault)
        };
        let partitions = topic.partitions.iter().map(|partition| result(partition.partition_index)).collect();
        topics
            .push(TxnOffsetCommitResponseTopic::default().with_name(topic.name).with_partitions(partitions));
    }
    TxnOffsetCommitResponse::default().with_topics(topics)
}

pub fn end(cluster: &Arc<Cluster>, call: &Call, request: EndTxnRequest) -> EndTxnResponse {
    let outcome = cluster.end_transaction(
        &request.transactional_id,
        request.producer_id.0,
        request.producer_epoch,
        request.committed,
    );
    EndTxnResponse::default().with_error_code(fault_of(&outcome, call.version, 2))
}
