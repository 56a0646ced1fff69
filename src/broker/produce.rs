//! Produce: an acknowledged batch has been written, so it survives the process; it is on the disk at the next
//! tick, or when its transaction commits.

use bytes::Bytes;
use kafka_protocol::messages::produce_response::{PartitionProduceResponse, TopicProduceResponse};
use kafka_protocol::messages::{ProduceRequest, ProduceResponse};

use super::cluster::Cluster;
use super::fault::{Fault, code};
use super::partition::Appended;

pub fn produce(cluster: &Cluster, request: ProduceRequest) -> ProduceResponse {
    let mut responses = Vec::with_capacity(request.topic_data.len());
    for topic in request.topic_data {
        let mut partitions = Vec::with_capacity(topic.partition_data.len());
        for partition in topic.partition_data {
            let outcome = append(cluster, &topic.name, partition.index, partition.records);
            let response = PartitionProduceResponse::default()
                .with_index(partition.index)
                .with_error_code(code(&outcome));
            partitions.push(match outcome {
                Ok(appended) => response
                    .with_base_offset(appended.base_offset)
                    .with_log_append_time_ms(appended.append_time_ms.unwrap_or(-1))
                    .with_log_start_offset(appended.start),
                Err(_) => response.with_base_offset(-1).with_log_append_time_ms(-1).with_log_start_offset(-1),
            });
        }
        responses
            .push(TopicProduceResponse::default().with_name(topic.name).with_partition_responses(partitions));
    }
    ProduceResponse::default().with_responses(responses)
}

fn append(cluster: &Cluster, topic: &str, index: i32, records: Option<Bytes>) -> Result<Appended, Fault> {
    let (topic, partition) = cluster.locate(topic, index)?;
    partition.append(records.ok_or(Fault::InvalidRecord)?, &topic.config)
}
