//! The requests of consumer groups, answered by `groups.rs`.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use kafka_protocol::messages::delete_groups_response::DeletableGroupResult;
use kafka_protocol::messages::describe_groups_response::{DescribedGroup, DescribedGroupMember};
use kafka_protocol::messages::join_group_response::JoinGroupResponseMember;
use kafka_protocol::messages::leave_group_response::MemberResponse;
use kafka_protocol::messages::list_groups_response::ListedGroup;
use kafka_protocol::messages::{
    DeleteGroupsRequest, DeleteGroupsResponse, DescribeGroupsRequest, DescribeGroupsResponse, GroupId,
    HeartbeatRequest, HeartbeatResponse, JoinGroupRequest, JoinGroupResponse, LeaveGroupRequest,
    LeaveGroupResponse, ListGroupsRequest, ListGroupsResponse, SyncGroupRequest, SyncGroupResponse,
};
use kafka_protocol::protocol::StrBytes;
use tokio::sync::oneshot;

use super::cluster::Cluster;
use super::dispatch::{Call, text};
use super::fault::{Fault, code};
use super::group::{Caller, Group, Join, Phase};
use super::metadata::Change;
use super::server::Incoming;

fn milliseconds(value: i32) -> Duration {
    Duration::from_millis(u64::try_from(value).unwrap_or(0))
}

/// What a group keeps must not keep the whole request.
fn own(bytes: &Bytes) -> Bytes {
    Bytes::copy_from_slice(bytes)
}

fn instance(id: &Option<StrBytes>) -> Option<String> {
    id.as_ref().map(|id| id.to_string())
}

/// Waits for an answer; `None` once the client has hung up, which the group sees by the dropped receiver.
async fn wait<T>(mut answer: oneshot::Receiver<T>, incoming: &mut Incoming) -> Option<T> {
    tokio::select! {
        answer = &mut answer => return answer.ok(),
        more = incoming.more() => if !more { return None },
    }
    // The next request is there already; it is served after this one, if the client still waits for it.
    tokio::select! {
        answer = answer => answer.ok(),
        () = incoming.hung_up() => None,
    }
}

pub async fn join(
    cluster: &Arc<Cluster>,
    call: &Call,
    request: JoinGroupRequest,
    incoming: &mut Incoming,
) -> JoinGroupResponse {
    let session = milliseconds(request.session_timeout_ms);
    let answer = cluster.groups.join(Join {
        group: request.group_id.to_string(),
        member: request.member_id.to_string(),
        instance: instance(&request.group_instance_id),
        client: call.client.clone(),
        host: format!("/{}", call.ends.peer.ip()),
        session,
        rebalance: if request.rebalance_timeout_ms > 0 {
            milliseconds(request.rebalance_timeout_ms)
        } else {
            session
        },
        protocol_type: request.protocol_type.to_string(),
        protocols: request.protocols.into_iter().map(|p| (p.name.to_string(), own(&p.metadata))).collect(),
        id_first: call.version >= 4,
    });
    let gone = || (Fault::UnknownMemberId, request.member_id.to_string());
    match wait(answer, incoming).await.unwrap_or_else(|| Err(gone())) {
        Err((fault, member)) => JoinGroupResponse::default()
            .with_error_code(fault as i16)
            .with_generation_id(-1)
            .with_protocol_name(Some(text("")))
            .with_member_id(text(&member)),
        Ok(joined) => {
            let member = |(id, instance, metadata): (String, Option<String>, _)| {
                let instance = instance.filter(|_| call.version >= 5);
                JoinGroupResponseMember::default()
                    .with_member_id(text(&id))
                    .with_group_instance_id(instance.as_deref().map(text))
                    .with_metadata(metadata)
            };
            JoinGroupResponse::default()
                .with_generation_id(joined.generation)
                .with_protocol_name(Some(text(&joined.protocol)))
                .with_leader(text(&joined.leader))
                .with_member_id(text(&joined.member))
                .with_members(joined.members.into_iter().map(member).collect())
        }
    }
}

pub async fn sync(
    cluster: &Arc<Cluster>,
    _: &Call,
    request: SyncGroupRequest,
    incoming: &mut Incoming,
) -> SyncGroupResponse {
    let caller = Caller {
        member: &request.member_id,
        instance: request.group_instance_id.as_deref(),
        generation: request.generation_id,
    };
    let assignments = request.assignments.iter();
    let assignments = assignments.map(|a| (a.member_id.to_string(), own(&a.assignment))).collect();
    let outcome = match cluster.groups.sync(&request.group_id, &caller, assignments) {
        Ok(answer) => wait(answer, incoming).await.unwrap_or(Err(Fault::RebalanceInProgress)),
        Err(fault) => Err(fault),
    };
    SyncGroupResponse::default().with_error_code(code(&outcome)).with_assignment(outcome.unwrap_or_default())
}

pub fn heartbeat(cluster: &Arc<Cluster>, _: &Call, request: HeartbeatRequest) -> HeartbeatResponse {
    let caller = Caller {
        member: &request.member_id,
        instance: request.group_instance_id.as_deref(),
        generation: request.generation_id,
    };
    HeartbeatResponse::default().with_error_code(code(&cluster.groups.heartbeat(&request.group_id, &caller)))
}

pub fn leave(cluster: &Arc<Cluster>, call: &Call, request: LeaveGroupRequest) -> LeaveGroupResponse {
    if call.version < 3 {
        let outcome = cluster.groups.leave(&request.group_id, &request.member_id, None);
        return LeaveGroupResponse::default().with_error_code(code(&outcome));
    }
    let mut members = Vec::with_capacity(request.members.len());
    for member in request.members {
        let instance = member.group_instance_id.as_deref();
        let outcome = cluster.groups.leave(&request.group_id, &member.member_id, instance);
        members.push(
            MemberResponse::default()
                .with_member_id(member.member_id)
                .with_group_instance_id(member.group_instance_id)
                .with_error_code(code(&outcome)),
        );
    }
    LeaveGroupResponse::default().with_members(members)
}

/// Groups with members, and those that have only offsets.
pub fn list(cluster: &Arc<Cluster>, call: &Call, request: ListGroupsRequest) -> ListGroupsResponse {
    let mut groups = cluster.groups.list();
    let stored: Vec<String> = cluster.metadata.read(|image| image.offsets.keys().cloned().collect());
    for name in stored {
        if !groups.iter().any(|(known, ..)| *known == name) {
            groups.push((name, "consumer".to_owned(), Phase::Empty));
        }
    }
    let asked = |phase: Phase| {
        request.states_filter.is_empty() || request.states_filter.iter().any(|s| s.as_str() == phase.name())
    };
    let listed = |(name, protocol_type, phase): (String, String, Phase)| {
        let group = ListedGroup::default()
            .with_group_id(GroupId(text(&name)))
            .with_protocol_type(text(&protocol_type));
        if call.version >= 4 { group.with_group_state(text(phase.name())) } else { group }
    };
    let groups = groups.into_iter().filter(|(.., phase)| asked(*phase)).map(listed);
    ListGroupsResponse::default().with_groups(groups.collect())
}

pub fn describe(
    cluster: &Arc<Cluster>,
    call: &Call,
    request: DescribeGroupsRequest,
) -> DescribeGroupsResponse {
    let describe = |id: GroupId| {
        let described = cluster.groups.look(&id, |group| describe_group(group, call.version));
        let stored = cluster.metadata.read(|image| image.offsets.contains_key(id.as_str()));
        let state = if stored { Phase::Empty.name() } else { "Dead" };
        described.unwrap_or_else(|| DescribedGroup::default().with_group_state(text(state))).with_group_id(id)
    };
    // Each once: a short request must not have a long answer.
    let groups: BTreeSet<GroupId> = request.groups.into_iter().collect();
    DescribeGroupsResponse::default().with_groups(groups.into_iter().map(describe).collect())
}

fn describe_group(group: &Group, version: i16) -> DescribedGroup {
    let members = group.members.iter().map(|(id, member)| {
        let instance = member.instance.as_deref().filter(|_| version >= 4);
        DescribedGroupMember::default()
            .with_member_id(text(id))
            .with_group_instance_id(instance.map(text))
            .with_client_id(text(&member.client))
            .with_client_host(text(&member.host))
            .with_member_metadata(member.metadata(&group.protocol))
            .with_member_assignment(member.assignment.clone())
    });
    DescribedGroup::default()
        .with_group_state(text(group.phase.name()))
        .with_protocol_type(text(&group.protocol_type))
        .with_protocol_data(text(&group.protocol))
        .with_members(members.collect())
}

pub fn delete(cluster: &Arc<Cluster>, _: &Call, request: DeleteGroupsRequest) -> DeleteGroupsResponse {
    let delete = |id: GroupId| {
        let stored = cluster.metadata.read(|image| image.offsets.contains_key(id.as_str()));
        let outcome = cluster.groups.delete(&id).and_then(|held| match held || stored {
            true => Ok(cluster.metadata.write(vec![Change::GroupDeleted { group: id.to_string() }])?),
            false => Err(Fault::GroupIdNotFound),
        });
        DeletableGroupResult::default().with_group_id(id).with_error_code(code(&outcome))
    };
    DeleteGroupsResponse::default().with_results(request.groups_names.into_iter().map(delete).collect())
}
