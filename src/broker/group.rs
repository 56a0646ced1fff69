//! One consumer group: the classic protocol's states, and how a member comes into a generation.
//!
//! ```text
//! Empty ─ join ─► Joining ─ everyone is in, or the wait is over ─► Syncing ─ the leader's assignment ─► Stable
//!                    ▲                                                │                                   │
//!                    └──────── a member joins, leaves or dies ────────┴───────────────────────────────────┘
//! ```
//! Invariant: a static member (`group.instance.id`) that comes back takes over its predecessor's place and
//! assignment at once, and the predecessor is fenced.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use bytes::Bytes;
use uuid::Uuid;

use super::fault::Fault;
use super::membership::{Member, said_bytes, subscribed_topics};

/// A new group waits this long for more first members, so that they need not rebalance at once, …
const FIRST_JOIN_WAIT: Duration = Duration::from_millis(200);
/// … and again for each that comes, up to so long in all.
const FIRST_JOIN_WAIT_MAX: Duration = Duration::from_millis(800);
/// A group has at most so many members, and promises of ids (Kafka's `group.max.size` is unlimited by default).
const MEMBERS_MAX: usize = 1_000;
/// What a member may say of itself: its subscriptions in all protocols together.
const SUBSCRIPTION_BYTES_MAX: usize = 1 << 20;
/// As long as a string of the protocol could be before its flexible versions.
pub const NAME_BYTES_MAX: usize = i16::MAX as usize;
const SESSION_MAX: Duration = Duration::from_secs(30 * 60);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    Empty,
    Joining,
    Syncing,
    Stable,
}

impl Phase {
    /// Kafka's name for it.
    pub fn name(self) -> &'static str {
        match self {
            Phase::Empty => "Empty",
            Phase::Joining => "PreparingRebalance",
            Phase::Syncing => "CompletingRebalance",
            Phase::Stable => "Stable",
        }
    }
}

pub struct Join {
    pub group: String,
    /// Empty: a new member.
    pub member: String,
    pub instance: Option<String>,
    pub client: String,
    pub host: String,
    pub session: Duration,
    pub rebalance: Duration,
    pub protocol_type: String,
    pub protocols: Vec<(String, Bytes)>,
    /// The client's version of the protocol wants its member id before it joins (KIP-394).
    pub id_first: bool,
}

impl Join {
    /// What it says of the member.
    pub fn bytes(&self) -> usize {
        said_bytes(&self.protocols, &self.client, self.instance.as_deref())
    }
}

/// A member's place in a new generation; `members` (id, instance, subscription) is for the leader only.
pub struct Joined {
    pub generation: i32,
    pub protocol: String,
    pub leader: String,
    pub member: String,
    pub members: Vec<(String, Option<String>, Bytes)>,
}

/// The fault, and the member id that the client should use or used.
pub type JoinAnswer = Result<Joined, (Fault, String)>;
pub type SyncAnswer = Result<Bytes, Fault>;

/// Who a request says that it comes from.
pub struct Caller<'a> {
    pub member: &'a str,
    pub instance: Option<&'a str>,
    pub generation: i32,
}

pub struct Group {
    pub phase: Phase,
    pub generation: i32,
    pub protocol_type: String,
    pub protocol: String,
    pub leader: String,
    pub members: BTreeMap<String, Member>,
    /// Ids given out to members that have not joined yet, and until when they may.
    pub promised: BTreeMap<String, Instant>,
    join_from: Instant,
    /// Since when it waits for its first members.
    forming: Option<Instant>,
    join_until: Instant,
}

impl Group {
    pub fn new(now: Instant) -> Group {
        Group {
            phase: Phase::Empty,
            generation: 0,
            protocol_type: String::new(),
            protocol: String::new(),
            leader: String::new(),
            members: BTreeMap::new(),
            promised: BTreeMap::new(),
            join_from: now,
            forming: None,
            join_until: now,
        }
    }

    /// Whether nobody is in it, or about to be: what it has committed is remembered elsewhere.
    pub fn is_over(&self) -> bool {
        self.members.is_empty() && self.promised.is_empty()
    }

    /// What its members say, are assigned, or will be called.
    pub fn bytes(&self) -> usize {
        let promised: usize = self.promised.keys().map(String::len).sum();
        self.members.values().map(Member::bytes).sum::<usize>() + promised
    }

    pub fn instance(&self, instance: &str) -> Option<String> {
        let holder = self.members.iter().find(|(_, member)| member.instance.as_deref() == Some(instance));
        holder.map(|(id, _)| id.clone())
    }

    /// Whether the caller is a member, by id and, if it names one, by instance.
    pub fn admit(&self, member: &str, instance: Option<&str>) -> Result<(), Fault> {
        if let Some(instance) = instance {
            return match self.instance(instance) {
                None => Err(Fault::UnknownMemberId),
                Some(holder) if holder != member => Err(Fault::FencedInstanceId),
                Some(_) => Ok(()),
            };
        }
        if self.members.contains_key(member) { Ok(()) } else { Err(Fault::UnknownMemberId) }
    }

    pub fn joined(&self, member: &str, leader: &str) -> Joined {
        let members = match member == leader {
            true => self
                .members
                .iter()
                .map(|(id, m)| (id.clone(), m.instance.clone(), m.metadata(&self.protocol))),
            false => return self.place(member, leader, Vec::new()),
        };
        self.place(member, leader, members.collect())
    }

    fn place(&self, member: &str, leader: &str, members: Vec<(String, Option<String>, Bytes)>) -> Joined {
        Joined {
            generation: self.generation,
            protocol: self.protocol.clone(),
            leader: leader.to_owned(),
            member: member.to_owned(),
            members,
        }
    }

    /// A protocol that all members speak, by the first member's preference.
    fn common_protocol(&self) -> Option<String> {
        let first = self.members.values().next()?;
        let spoken = |name: &&String| self.members.values().all(|member| member.speaks(name));
        first.protocols.iter().map(|(name, _)| name).find(spoken).cloned()
    }

    pub fn rebalance(&mut self, now: Instant) {
        if self.phase == Phase::Joining {
            if let Some(began) = self.forming {
                let longer = (now + FIRST_JOIN_WAIT).min(began + FIRST_JOIN_WAIT_MAX);
                self.join_from = self.join_from.max(longer);
            }
            return;
        }
        self.forming = (self.phase == Phase::Empty).then_some(now);
        self.join_from = if self.forming.is_some() { now + FIRST_JOIN_WAIT } else { now };
        self.phase = Phase::Joining;
        let longest = self.members.values().map(|member| member.rebalance).max();
        self.join_until = now + longest.unwrap_or(FIRST_JOIN_WAIT);
        for member in self.members.values_mut() {
            member.answer_sync(Err(Fault::RebalanceInProgress));
        }
    }

    /// Ends the joining once everyone is in, or the wait is over.
    pub fn complete_join(&mut self, now: Instant) {
        if self.phase != Phase::Joining || now < self.join_from {
            return;
        }
        let everyone = self.members.values().all(Member::is_joining);
        if (!everyone || !self.promised.is_empty()) && now < self.join_until {
            return;
        }
        // A static member keeps its place until its session ends.
        self.members.retain(|_, member| member.is_joining() || member.instance.is_some());
        if self.members.is_empty() {
            self.become_empty();
            return;
        }
        if !self.members.values().any(Member::is_joining) {
            let longest = self.members.values().map(|member| member.rebalance).max();
            self.join_until = now + longest.unwrap_or(FIRST_JOIN_WAIT);
            return;
        }
        self.generation += 1;
        self.forming = None;
        self.phase = Phase::Syncing;
        if !self.members.get(&self.leader).is_some_and(Member::is_joining) {
            let first = self.members.iter().find(|(_, member)| member.is_joining());
            self.leader = first.map(|(id, _)| id.clone()).unwrap_or_default();
        }
        self.protocol = self.common_protocol().unwrap_or_default();
        let answers: Vec<Joined> = self.members.keys().map(|id| self.joined(id, &self.leader)).collect();
        for (member, joined) in self.members.values_mut().zip(answers) {
            member.seen = now;
            member.answer_join(Ok(joined));
        }
    }

    fn become_empty(&mut self) {
        self.phase = Phase::Empty;
        self.generation += 1;
        self.leader.clear();
        self.protocol.clear();
    }

    pub fn remove(&mut self, member: &str, now: Instant) -> bool {
        let Some(mut gone) = self.members.remove(member) else { return false };
        gone.answer_join(Err((Fault::UnknownMemberId, member.to_owned())));
        gone.answer_sync(Err(Fault::UnknownMemberId));
        if self.members.is_empty() {
            self.become_empty();
        } else {
            self.rebalance(now);
            self.complete_join(now);
        }
        true
    }

    /// Hands a static member's place to its new incarnation; `Some` if it may go on without a rebalance.
    fn take_over(&mut self, old: &str, new: &str, join: &Join, now: Instant) -> Option<Joined> {
        let mut member = self.members.remove(old)?;
        member.answer_join(Err((Fault::FencedInstanceId, old.to_owned())));
        member.answer_sync(Err(Fault::FencedInstanceId));
        let before = subscribed_topics(&member.metadata(&self.protocol));
        member.update(join, now);
        let unchanged = before.is_some() && before == subscribed_topics(&member.metadata(&self.protocol));
        self.members.insert(new.to_owned(), member);
        let led = self.leader == old;
        if led {
            self.leader = new.to_owned();
        }
        if self.phase == Phase::Stable && unchanged && self.common_protocol().as_ref() == Some(&self.protocol)
        {
            // Named as the leader, it would assign anew and nobody would hear of it: so the old id is named.
            let leader = if led { old.to_owned() } else { self.leader.clone() };
            return Some(self.joined(new, &leader));
        }
        None
    }
}

/// How a join begins.
pub enum Admitted {
    /// Under this id, until the generation is complete.
    Waits(String),
    Already(Joined),
}

/// What can be said of a join without its group.
pub fn check_join(join: &Join) -> Result<(), (Fault, String)> {
    let refuse = |fault: Fault| Err((fault, join.member.clone()));
    if join.group.is_empty() || join.group.len() > NAME_BYTES_MAX {
        return refuse(Fault::InvalidGroupId);
    }
    if join.bytes() > SUBSCRIPTION_BYTES_MAX {
        return refuse(Fault::InvalidRequest);
    }
    if join.session.is_zero() || join.session > SESSION_MAX {
        return refuse(Fault::InvalidSessionTimeout);
    }
    if join.protocols.is_empty() || join.protocol_type.is_empty() {
        return refuse(Fault::InconsistentGroupProtocol);
    }
    Ok(())
}

/// Takes a join into its group, or refuses it.
pub fn admit_join(group: &mut Group, join: &Join, now: Instant) -> Result<Admitted, (Fault, String)> {
    let refuse = |fault: Fault| Err((fault, join.member.clone()));
    let others = || {
        group.members.iter().filter(|(id, member)| {
            **id != join.member && (join.instance.is_none() || member.instance != join.instance)
        })
    };
    let speaks = |name: &String| others().all(|(_, member)| member.speaks(name));
    if others().next().is_some()
        && (group.protocol_type != join.protocol_type || !join.protocols.iter().any(|(name, _)| speaks(name)))
    {
        return refuse(Fault::InconsistentGroupProtocol);
    }
    if join.member.is_empty() && group.members.len() + group.promised.len() >= MEMBERS_MAX {
        return refuse(Fault::GroupMaxSizeReached);
    }
    group.protocol_type.clone_from(&join.protocol_type);
    if join.member.is_empty() {
        let name = join.instance.as_ref().unwrap_or(&join.client);
        let id = format!("{name}-{}", Uuid::new_v4());
        if let Some(old) = join.instance.as_deref().and_then(|instance| group.instance(instance)) {
            return Ok(match group.take_over(&old, &id, join, now) {
                Some(joined) => Admitted::Already(joined),
                None => Admitted::Waits(id),
            });
        }
        if join.id_first && join.instance.is_none() {
            group.promised.insert(id.clone(), now + join.session);
            return Err((Fault::MemberIdRequired, id));
        }
        return Ok(Admitted::Waits(id));
    }
    if group.promised.remove(&join.member).is_some() {
        return Ok(Admitted::Waits(join.member.clone()));
    }
    if let Err(fault) = group.admit(&join.member, join.instance.as_deref()) {
        return refuse(fault);
    }
    // A repetition with nothing new is told again what it was told; but a leader that joins a stable group
    // again wants a rebalance.
    let same = group.members.get(&join.member).is_some_and(|member| member.protocols == join.protocols);
    let repeats = match group.phase {
        Phase::Syncing => same,
        Phase::Stable => same && group.leader != join.member,
        Phase::Empty | Phase::Joining => false,
    };
    if repeats {
        return Ok(Admitted::Already(group.joined(&join.member, &group.leader)));
    }
    Ok(Admitted::Waits(join.member.clone()))
}
