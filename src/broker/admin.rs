//! Topics and the cluster, as clients and tools see and change them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use kafka_protocol::messages::create_partitions_response::CreatePartitionsTopicResult;
use kafka_protocol::messages::create_topics_response::CreatableTopicResult;
use kafka_protocol::messages::delete_records_response::{
    DeleteRecordsPartitionResult, DeleteRecordsTopicResult,
};
use kafka_protocol::messages::delete_topics_response::DeletableTopicResult;
use kafka_protocol::messages::describe_cluster_response::DescribeClusterBroker;
use kafka_protocol::messages::metadata_response::{
    MetadataResponseBroker, MetadataResponsePartition, MetadataResponseTopic,
};
use kafka_protocol::messages::{
    BrokerId, CreatePartitionsRequest, CreatePartitionsResponse, CreateTopicsRequest, CreateTopicsResponse,
    DeleteRecordsRequest, DeleteRecordsResponse, DeleteTopicsRequest, DeleteTopicsResponse,
    DescribeClusterRequest, DescribeClusterResponse, FindCoordinatorRequest, FindCoordinatorResponse,
    MetadataRequest, MetadataResponse, TopicName,
};

use uuid::Uuid;

use super::cluster::{Cluster, PARTITIONS_MAX};
use super::dispatch::{Call, text};
use super::fault::{Fault, code};

/// The one node.
const NODE: BrokerId = BrokerId(1);

pub fn metadata(cluster: &Arc<Cluster>, call: &Call, request: MetadataRequest) -> MetadataResponse {
    let all = || cluster.topics().into_iter().map(|(name, _)| name).collect();
    // Each once, however often it is asked for: a short request must not have a long answer.
    let names: BTreeSet<String> = match request.topics {
        None => all(),
        // Version 0 says "all" by naming none.
        Some(topics) if topics.is_empty() && call.version == 0 => all(),
        Some(topics) => topics.into_iter().filter_map(|t| t.name.map(|name| name.to_string())).collect(),
    };
    let partition = |index: i32| {
        MetadataResponsePartition::default()
            .with_partition_index(index)
            .with_leader_id(NODE)
            .with_leader_epoch(0)
            .with_replica_nodes(vec![NODE])
            .with_isr_nodes(vec![NODE])
    };
    let describe = |name: String| {
        let response = MetadataResponseTopic::default().with_name(Some(TopicName(text(&name))));
        match cluster.topic(&name) {
            None => response.with_error_code(Fault::UnknownTopicOrPartition as i16),
            Some(topic) => {
                // Older versions leave the id out.
                let response = response.with_topic_id(Uuid::parse_str(&topic.id).unwrap_or_default());
                response.with_partitions((0..topic.partitions.len() as i32).map(partition).collect())
            }
        }
    };
    MetadataResponse::default()
        .with_brokers(vec![
            MetadataResponseBroker::default()
                .with_node_id(NODE)
                .with_host(text(&call.ends.local.ip().to_string()))
                .with_port(i32::from(call.ends.local.port())),
        ])
        .with_cluster_id(Some(text(&cluster.metadata.read(|image| image.cluster_id.clone()))))
        .with_controller_id(NODE)
        .with_topics(names.into_iter().map(describe).collect())
}

pub fn describe_cluster(
    cluster: &Arc<Cluster>,
    call: &Call,
    _: DescribeClusterRequest,
) -> DescribeClusterResponse {
    DescribeClusterResponse::default()
        .with_cluster_id(text(&cluster.metadata.read(|image| image.cluster_id.clone())))
        .with_controller_id(NODE)
        .with_brokers(vec![
            DescribeClusterBroker::default()
                .with_broker_id(NODE)
                .with_host(text(&call.ends.local.ip().to_string()))
                .with_port(i32::from(call.ends.local.port())),
        ])
}

/// Every group's and every transactional id's coordinator is this node.
pub fn find_coordinator(_: &Arc<Cluster>, call: &Call, _: FindCoordinatorRequest) -> FindCoordinatorResponse {
    FindCoordinatorResponse::default()
        .with_node_id(NODE)
        .with_host(text(&call.ends.local.ip().to_string()))
        .with_port(i32::from(call.ends.local.port()))
}

pub fn create_topics(cluster: &Arc<Cluster>, _: &Call, request: CreateTopicsRequest) -> CreateTopicsResponse {
    let mut results = Vec::with_capacity(request.topics.len());
    for topic in request.topics {
        let value = |value: Option<&str>| value.unwrap_or_default().to_owned();
        let config: BTreeMap<String, String> =
            topic.configs.iter().map(|c| (c.name.to_string(), value(c.value.as_deref()))).collect();
        // -1 leaves the number to the broker; a tool that assigns replicas itself says it by their count.
        let partitions = match topic.num_partitions {
            -1 if !topic.assignments.is_empty() => topic.assignments.len() as i32,
            -1 => 1,
            count => count,
        };
        let outcome = cluster.create_topic(&topic.name, partitions, config, request.validate_only);
        let result = CreatableTopicResult::default()
            .with_name(topic.name)
            .with_num_partitions(partitions)
            .with_replication_factor(1)
            .with_configs(Some(Vec::new()));
        results.push(match outcome {
            Ok(()) => result,
            Err((fault, why)) => result.with_error_code(fault as i16).with_error_message(Some(text(&why))),
        });
    }
    CreateTopicsResponse::default().with_topics(results)
}

pub fn create_partitions(
    cluster: &Arc<Cluster>,
    _: &Call,
    request: CreatePartitionsRequest,
) -> CreatePartitionsResponse {
    let mut results = Vec::with_capacity(request.topics.len());
    for topic in request.topics {
        let outcome = cluster.change_topic(&topic.name, request.validate_only, |record| {
            if topic.count <= record.partitions || topic.count > PARTITIONS_MAX {
                let why = format!(
                    "topic '{}' has {} partitions; the number can grow up to {PARTITIONS_MAX}, not shrink",
                    topic.name.as_str(),
                    record.partitions
                );
                return Err((Fault::InvalidPartitions, why));
            }
            record.partitions = topic.count;
            Ok(())
        });
        let result = CreatePartitionsTopicResult::default().with_name(topic.name);
        results.push(match outcome {
            Ok(()) => result,
            Err((fault, why)) => result.with_error_code(fault as i16).with_error_message(Some(text(&why))),
        });
    }
    CreatePartitionsResponse::default().with_results(results)
}

pub fn delete_topics(cluster: &Arc<Cluster>, _: &Call, request: DeleteTopicsRequest) -> DeleteTopicsResponse {
    let delete = |name: TopicName| {
        let outcome = cluster.delete_topic(&name);
        DeletableTopicResult::default().with_name(Some(name)).with_error_code(code(&outcome))
    };
    DeleteTopicsResponse::default().with_responses(request.topic_names.into_iter().map(delete).collect())
}

pub fn delete_records(
    cluster: &Arc<Cluster>,
    _: &Call,
    request: DeleteRecordsRequest,
) -> DeleteRecordsResponse {
    let mut topics = Vec::with_capacity(request.topics.len());
    for topic in request.topics {
        let mut partitions = Vec::with_capacity(topic.partitions.len());
        for wanted in topic.partitions {
            let index = wanted.partition_index;
            let outcome = cluster.locate(&topic.name, index).and_then(|(_, partition)| {
                let start = partition.delete_before(wanted.offset)?;
                cluster.move_start(&topic.name, index, &partition, start)?;
                Ok(start)
            });
            partitions.push(
                DeleteRecordsPartitionResult::default()
                    .with_partition_index(index)
                    .with_error_code(code(&outcome))
                    .with_low_watermark(outcome.unwrap_or(-1)),
            );
        }
        topics.push(DeleteRecordsTopicResult::default().with_name(topic.name).with_partitions(partitions));
    }
    DeleteRecordsResponse::default().with_topics(topics)
}
