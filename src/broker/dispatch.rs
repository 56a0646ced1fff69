//! From a frame to a handler and back: the versions that are served, and one line for each request type.

use std::sync::Arc;

use bytes::{BufMut, Bytes, BytesMut};
use kafka_protocol::messages::api_versions_response::ApiVersion;
use kafka_protocol::messages::*;
use kafka_protocol::protocol::{Decodable, Encodable, HeaderVersion, StrBytes};
use tokio::task::block_in_place;

use super::cluster::Cluster;
use super::fault::Fault;
use super::server::{ConnectionError, Ends, Incoming};
use super::shape;
use super::{admin, configs, fetch, group_requests, offsets, produce, transaction_requests};

/// Every request type with its lowest and highest version.
pub const SERVED: &[(ApiKey, i16, i16)] = &[
    (ApiKey::Produce, 3, 9),
    (ApiKey::Fetch, 4, 11),
    (ApiKey::ListOffsets, 1, 6),
    (ApiKey::Metadata, 0, 10),
    (ApiKey::OffsetCommit, 2, 8),
    (ApiKey::OffsetFetch, 1, 7),
    (ApiKey::FindCoordinator, 0, 3),
    (ApiKey::JoinGroup, 0, 6),
    (ApiKey::Heartbeat, 0, 4),
    (ApiKey::LeaveGroup, 0, 4),
    (ApiKey::SyncGroup, 0, 4),
    (ApiKey::DescribeGroups, 0, 4),
    (ApiKey::ListGroups, 0, 4),
    (ApiKey::ApiVersions, 0, 3),
    (ApiKey::CreateTopics, 2, 5),
    (ApiKey::DeleteTopics, 1, 5),
    (ApiKey::DeleteRecords, 0, 2),
    (ApiKey::InitProducerId, 0, 4),
    (ApiKey::AddPartitionsToTxn, 0, 3),
    (ApiKey::AddOffsetsToTxn, 0, 3),
    (ApiKey::EndTxn, 0, 3),
    (ApiKey::TxnOffsetCommit, 0, 3),
    (ApiKey::DescribeConfigs, 1, 4),
    (ApiKey::AlterConfigs, 0, 2),
    (ApiKey::IncrementalAlterConfigs, 0, 1),
    (ApiKey::CreatePartitions, 0, 3),
    (ApiKey::DeleteGroups, 0, 2),
    (ApiKey::DescribeCluster, 0, 1),
];

/// A request's envelope.
pub struct Call {
    pub key: ApiKey,
    pub version: i16,
    pub correlation: i32,
    pub client: String,
    pub ends: Ends,
}

pub fn text(text: &str) -> StrBytes {
    StrBytes::from_string(text.to_owned())
}

fn malformed(error: impl std::fmt::Display) -> ConnectionError {
    ConnectionError::Malformed(error.to_string())
}

fn decode<Q: Decodable>(call: &Call, mut body: Bytes) -> Result<Q, ConnectionError> {
    Q::decode(&mut body, call.version).map_err(malformed)
}

fn encode<R: Encodable + HeaderVersion>(
    correlation: i32,
    version: i16,
    response: &R,
) -> Result<Option<BytesMut>, ConnectionError> {
    let failed = |error: &dyn std::fmt::Display| ConnectionError::Answer(error.to_string());
    let size = response.compute_size(version).map_err(|error| failed(&error))?;
    let mut frame = BytesMut::with_capacity(size + 16);
    frame.put_i32(0);
    let header = ResponseHeader::default().with_correlation_id(correlation);
    header.encode(&mut frame, R::header_version(version)).map_err(|error| failed(&error))?;
    response.encode(&mut frame, version).map_err(|error| failed(&error))?;
    let length = i32::try_from(frame.len() - 4).map_err(|error| failed(&error))?;
    frame[..4].copy_from_slice(&length.to_be_bytes());
    Ok(Some(frame))
}

fn versions(fault: Option<Fault>) -> ApiVersionsResponse {
    let served = |(key, lowest, highest): &(ApiKey, i16, i16)| {
        ApiVersion::default().with_api_key(*key as i16).with_min_version(*lowest).with_max_version(*highest)
    };
    ApiVersionsResponse::default()
        .with_error_code(fault.map_or(0, |fault| fault as i16))
        .with_api_keys(SERVED.iter().map(served).collect())
}

/// Serves one frame. `None`: the client wants no answer (acks=0).
pub async fn answer(
    cluster: &Arc<Cluster>,
    frame: Bytes,
    ends: Ends,
    incoming: &mut Incoming,
) -> Result<Option<BytesMut>, ConnectionError> {
    let [k0, k1, v0, v1, c0, c1, c2, c3, ..] = frame[..] else { return Err(malformed("too short")) };
    let (key, version) = (i16::from_be_bytes([k0, k1]), i16::from_be_bytes([v0, v1]));
    let not_served = || ConnectionError::NotServed { key, version };
    let served = SERVED.iter().find(|(served, ..)| *served as i16 == key);
    let (key, lowest, highest) = *served.ok_or_else(not_served)?;
    if !(lowest..=highest).contains(&version) {
        if key != ApiKey::ApiVersions {
            return Err(not_served());
        }
        // A client newer than this broker: told in version 0, which it understands too.
        let correlation = i32::from_be_bytes([c0, c1, c2, c3]);
        return encode(correlation, 0, &versions(Some(Fault::UnsupportedVersion)));
    }
    let mut body = frame;
    let header = RequestHeader::decode(&mut body, key.request_header_version(version)).map_err(malformed)?;
    if !shape::holds(key, version, &body) {
        return Err(malformed("it ends before its arrays do"));
    }
    let client = header.client_id.map(|client| client.to_string()).unwrap_or_default();
    let call = Call { key, version, correlation: header.correlation_id, client, ends };
    handle(cluster, &call, body, incoming).await
}

async fn handle(
    cluster: &Arc<Cluster>,
    call: &Call,
    body: Bytes,
    incoming: &mut Incoming,
) -> Result<Option<BytesMut>, ConnectionError> {
    /// Decodes, handles and encodes; handlers that may sync a file let other connections go on meanwhile.
    macro_rules! serve {
        (await $handler:path) => {{
            let response = $handler(cluster, call, decode(call, body)?, incoming).await;
            encode(call.correlation, call.version, &response)
        }};
        ($handler:path) => {{
            let request = decode(call, body)?;
            let response = block_in_place(|| $handler(cluster, call, request));
            encode(call.correlation, call.version, &response)
        }};
    }
    match call.key {
        ApiKey::ApiVersions => encode(call.correlation, call.version, &versions(None)),
        ApiKey::Produce => {
            let request: ProduceRequest = decode(call, body)?;
            let wants_answer = request.acks != 0;
            let response = produce::produce(cluster, request);
            if wants_answer { encode(call.correlation, call.version, &response) } else { Ok(None) }
        }
        ApiKey::Fetch => serve!(await fetch::fetch),
        ApiKey::ListOffsets => serve!(offsets::list),
        ApiKey::OffsetCommit => serve!(offsets::commit),
        ApiKey::OffsetFetch => serve!(offsets::fetch),
        ApiKey::Metadata => serve!(admin::metadata),
        ApiKey::DescribeCluster => serve!(admin::describe_cluster),
        ApiKey::FindCoordinator => serve!(admin::find_coordinator),
        ApiKey::CreateTopics => serve!(admin::create_topics),
        ApiKey::CreatePartitions => serve!(admin::create_partitions),
        ApiKey::DeleteTopics => serve!(admin::delete_topics),
        ApiKey::DeleteRecords => serve!(admin::delete_records),
        ApiKey::DescribeConfigs => serve!(configs::describe),
        ApiKey::AlterConfigs => serve!(configs::alter),
        ApiKey::IncrementalAlterConfigs => serve!(configs::alter_incrementally),
        ApiKey::InitProducerId => serve!(transaction_requests::init_producer_id),
        ApiKey::AddPartitionsToTxn => serve!(transaction_requests::add_partitions),
        ApiKey::AddOffsetsToTxn => serve!(transaction_requests::add_offsets),
        ApiKey::TxnOffsetCommit => serve!(transaction_requests::commit_offsets),
        ApiKey::EndTxn => serve!(transaction_requests::end),
        ApiKey::JoinGroup => serve!(await group_requests::join),
        ApiKey::SyncGroup => serve!(await group_requests::sync),
        ApiKey::Heartbeat => serve!(group_requests::heartbeat),
        ApiKey::LeaveGroup => serve!(group_requests::leave),
        ApiKey::ListGroups => serve!(group_requests::list),
        ApiKey::DescribeGroups => serve!(group_requests::describe),
        ApiKey::DeleteGroups => serve!(group_requests::delete),
        key => Err(ConnectionError::NotServed { key: key as i16, version: call.version }),
    }
}
