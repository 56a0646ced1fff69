//! The log: what every source, exchange and refined topic is kept in.
//!
//! [`Log`] is a handle to one cluster; [`Reader`] reads partitions that it is told to, without a group;
//! [`Member`] is a worker's side of the commit protocol: one consumer in a group and one transactional
//! producer. Two implementations pass one conformance suite (`tests/it/log_conformance.rs`): `kafka`
//! (librdkafka, against the embedded broker or any Kafka) and `memory` (seeded and faulty, for simulation).
//!
//! # A member's life
//! ```text
//! poll ─► Assigned(partitions, fence) ─► start(partition, offset) for each ─► poll ─► Run … End …
//!   ▲                                                                           │
//!   │        begin ─► produce* ─► commit(fence, offsets) ── Ok ─────────────────┤
//!   │                                   └─ Aborted ─► abort, start again at the committed offset
//!   └── Revoked(partitions): commit the epoch, then release ◄───────────────────┘
//! ```
//! Invariant: reads are read-committed; an aborted or open transaction is never seen.
//! Invariant: the fence is captured when an assignment is served and carried by the epoch; `commit` never
//! reads the group's state itself (rule R1).

pub mod kafka;
pub mod memory;
mod span;

use std::any::Any;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::record::{Header, Run, TopicPartition};

pub use span::{Span, read_spans};

pub type Result<T, E = LogError> = std::result::Result<T, E>;

/// How long brokers may be gone before a wait for them fails.
pub const OUTAGE_MAX: Duration = Duration::from_secs(60);

/// A topic to create.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TopicSpec {
    pub name: String,
    pub partitions: i32,
    /// Topic configuration by Kafka's names, e.g. `cleanup.policy`.
    pub config: BTreeMap<String, String>,
}

/// A topic that exists.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TopicInfo {
    pub name: String,
    pub partitions: i32,
}

/// What a partition holds: offsets `start..end`; `end` is the last stable offset (read-committed).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    pub start: i64,
    pub end: i64,
}

/// A group's committed position in one partition, with the text committed beside it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Position {
    pub offset: i64,
    pub metadata: String,
}

/// A record to produce. `timestamp_ms: None` lets the producer stamp it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Outgoing<'a> {
    pub key: Option<&'a [u8]>,
    pub value: Option<&'a [u8]>,
    pub headers: &'a [Header],
    pub timestamp_ms: Option<i64>,
}

/// The group metadata of one assignment; opaque to all but the log that made it.
#[derive(Clone)]
pub struct Fence(pub Arc<dyn Any + Send + Sync>);

impl fmt::Debug for Fence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Fence")
    }
}

/// What a poll yields.
pub enum Event {
    /// Records of one partition, in order.
    Run(Run),
    /// The reader stands at the last stable end of the partition. `position` is past any transaction
    /// markers. Reported once each time the end is reached.
    End { partition: TopicPartition, position: i64 },
    /// The member owns these partitions as well (cooperative: only the added ones, perhaps none) under this
    /// fence, which replaces any earlier one. Nothing of a partition is read before `start` is called for it.
    Assigned { partitions: Vec<TopicPartition>, fence: Fence },
    /// The member is asked to give these up: commit, then call `release`. Preceded, in the same poll, by an
    /// empty `Assigned` with the fence to commit under: a cooperative group is at its new generation by now.
    Revoked(Vec<TopicPartition>),
    /// The member has lost these already: abort; do not commit.
    Lost(Vec<TopicPartition>),
}

/// How a member joins.
#[derive(Clone, Debug)]
pub struct MemberOptions {
    pub group: String,
    /// `group.instance.id` and `transactional.id`: stable over restarts, so that a restart fences its
    /// predecessor at once.
    pub instance: String,
    pub topics: Vec<String>,
    pub session_timeout: Duration,
    pub transaction_timeout: Duration,
}

/// A handle to a cluster: topics, bounds, committed offsets; and the way to readers and members.
pub trait Log: Send + Sync {
    /// For messages: what and where, e.g. `kafka 127.0.0.1:9092`.
    fn name(&self) -> String;
    fn topics(&self) -> Result<Vec<TopicInfo>>;
    /// `None`: there is no such topic.
    fn partitions(&self, topic: &str) -> Result<Option<i32>>;
    /// Which topic has the name now: one that is deleted and made anew is another. `None`: there is none, or the cluster
    /// does not say (before Kafka 2.8).
    fn topic_id(&self, topic: &str) -> Result<Option<String>>;
    /// Topics that exist already are left as they are.
    fn create_topics(&self, topics: &[TopicSpec]) -> Result<()>;
    fn delete_topics(&self, topics: &[String]) -> Result<()>;
    /// The topic's configuration, defaults included.
    fn topic_config(&self, topic: &str) -> Result<BTreeMap<String, String>>;
    fn bounds(&self, partition: &TopicPartition) -> Result<Bounds>;
    /// The ends of all that is written, whether its transactions are decided or not: at or above [`Bounds::end`].
    fn written_ends(&self, partitions: &[TopicPartition]) -> Result<Vec<i64>>;
    /// The first offset whose timestamp is at or after `timestamp_ms`; `None` past the end.
    fn offset_at(&self, partition: &TopicPartition, timestamp_ms: i64) -> Result<Option<i64>>;
    /// What a group has committed, once it is known what becomes of every transaction that is being decided: for who
    /// goes on from there. Of a partition that others commit all the time, ask for [`Log::committed_so_far`].
    fn committed(&self, group: &str, partitions: &[TopicPartition]) -> Result<Vec<Option<Position>>>;
    /// What a group has committed by now, for who looks on. What is being decided is waited for this long, and then left
    /// out: of members that commit all the time some transaction is being decided at any time.
    fn committed_so_far(
        &self,
        group: &str,
        partitions: &[TopicPartition],
        patience: Duration,
    ) -> Result<Vec<Option<Position>>>;
    /// Deletes the records before each offset (Kafka's DeleteRecords).
    fn delete_before(&self, offsets: &[(TopicPartition, i64)]) -> Result<()>;

    fn reader(&self) -> Result<Box<dyn Reader>>;
    fn producer(&self) -> Result<Box<dyn Producer>>;
    fn member(&self, options: &MemberOptions) -> Result<Box<dyn Member>>;
    /// A transactional producer outside any group. Its predecessor under the same id is fenced, and what that one
    /// left open is decided when this returns.
    fn transactor(&self, id: &str, timeout: Duration) -> Result<Box<dyn Transactor>>;
    /// Commits offsets of a group that has no live member, outside any transaction (`reset --to`).
    fn commit_offsets(&self, group: &str, offsets: &[(TopicPartition, Position)]) -> Result<()>;
}

/// Reads partitions that it is told to. An offset that the log does not hold is an error, never a jump.
pub trait Reader: Send {
    /// Replaces the assignment.
    fn assign(&mut self, from: &[(TopicPartition, i64)]) -> Result<()>;
    /// Waits at most `timeout` for events; yields only `Run` and `End`.
    fn poll(&mut self, timeout: Duration) -> Result<Vec<Event>>;
    fn pause(&mut self, partitions: &[TopicPartition]) -> Result<()>;
    fn resume(&mut self, partitions: &[TopicPartition]) -> Result<()>;
}

/// An idempotent producer without transactions.
pub trait Producer: Send {
    /// Hands the records over in order; blocks while the send queue is full.
    fn produce(&mut self, to: &TopicPartition, records: &[Outgoing<'_>]) -> Result<()>;
    /// Waits until everything handed over is acknowledged; the first failure is the error.
    fn flush(&mut self, timeout: Duration) -> Result<()>;
}

/// A transactional producer outside any group: fenced by its id alone.
pub trait Transactor: Send {
    fn begin(&mut self) -> Result<()>;
    fn produce(&mut self, to: &TopicPartition, records: &[Outgoing<'_>]) -> Result<()>;
    fn commit(&mut self) -> Result<(), CommitError>;
    fn abort(&mut self) -> Result<()>;
}

/// A worker's member: see the diagram above. Only the worker's own thread calls it.
pub trait Member: Send {
    fn poll(&mut self, timeout: Duration) -> Result<Vec<Event>>;
    /// Starts (or moves) reading an owned partition at `offset`.
    fn start(&mut self, partition: &TopicPartition, offset: i64) -> Result<()>;
    /// Gives up partitions after `Revoked` or `Lost`.
    fn release(&mut self, partitions: &[TopicPartition]) -> Result<()>;
    fn pause(&mut self, partitions: &[TopicPartition]) -> Result<()>;
    fn resume(&mut self, partitions: &[TopicPartition]) -> Result<()>;

    fn begin(&mut self) -> Result<()>;
    fn produce(&mut self, to: &TopicPartition, records: &[Outgoing<'_>]) -> Result<()>;
    /// Sends the offsets into the transaction and commits it. `offsets` must not be empty: a transaction
    /// without offsets is not fenced (rule R4).
    fn commit(&mut self, fence: &Fence, offsets: &[(TopicPartition, Position)]) -> Result<(), CommitError>;
    fn abort(&mut self) -> Result<()>;
    /// Leaves the group, so that others need not wait for the session to time out.
    fn leave(&mut self) -> Result<()>;
}

/// How a commit failed, by what the worker must do next.
#[derive(Debug, thiserror::Error)]
pub enum CommitError {
    /// The transaction must be aborted; the work is done again from the committed offset. Also when the group
    /// has moved on past the last fence handed out: poll, and go on under the new one.
    #[error("the transaction was aborted: {0}")]
    Aborted(String),
    /// The log does not take one of the records, and would not take it a second time either: abort, and tell
    /// the user.
    #[error(transparent)]
    Refused(LogError),
    /// A newer member or producer has taken over (UNKNOWN_MEMBER, fenced, an older fence's generation): abort, drop
    /// everything, join anew.
    #[error("fenced by a newer member: {0}")]
    Fenced(String),
    /// The answer was lost: the transaction may or may not be committed. A new member must read the
    /// committed offsets again.
    #[error("the commit's outcome is unknown: {0}")]
    Unknown(String),
}

/// What can go wrong with a log, by what a caller or a user can do about it.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    #[error("cannot reach {brokers}: {detail}")]
    Unreachable { brokers: String, detail: String },
    #[error(
        "there is no topic '{topic}' at {brokers}; create it with: headwater topic create {topic} --partitions N"
    )]
    NoTopic { topic: String, brokers: String },
    #[error("{partition} has no offset {offset}: it holds {start}..{end}")]
    OutOfRange { partition: TopicPartition, offset: i64, start: i64, end: i64 },
    #[error(
        "{partition}: records from offset {offset} on are damaged, where the broker keeps them or on the way here: \
         {detail}. Look at the broker's disk, or let another replica lead; `check.crcs: false` under `kafka` reads on \
         as long as it makes any sense"
    )]
    Damaged { partition: TopicPartition, offset: i64, detail: String },
    #[error(
        "{to}: a record of {bytes} bytes is larger than the topic takes; raise max.message.bytes: {detail}"
    )]
    TooLarge { to: TopicPartition, bytes: usize, detail: String },
    /// A reader waited long for records that are there.
    #[error("nothing came from {brokers} for {seconds} s while reading {waiting}")]
    Stalled { brokers: String, seconds: u64, waiting: String },
    /// The brokers answer, but not what a group has committed: they do not end a transaction with its offsets.
    #[error(
        "after {seconds} s it is not decided which offset of {partition} group '{group}' has committed: the brokers have \
         not ended the transaction"
    )]
    Undecided { group: String, partition: TopicPartition, seconds: u64 },
    #[error("not authorized: {0}")]
    Denied(String),
    /// A newer producer with the same transactional id, or a newer member with the same instance id.
    #[error("fenced: another process runs as the same instance ({0})")]
    Fenced(String),
    /// The open transaction failed and must be aborted.
    #[error("the transaction must be aborted: {0}")]
    Abort(String),
    #[error("{what}: {detail}")]
    Other { what: String, detail: String },
}
