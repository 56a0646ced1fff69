//! What the API answers, as JSON. The comments are its documentation: `docs/openapi.json` is made of them.
//!
//! Times are ISO 8601 in UTC, durations seconds. What is not known is null.

use std::sync::Arc;

use schemars::JsonSchema;
use serde::Serialize;

use crate::engine::Counters;

/// The topologies that this process knows.
#[derive(Serialize, JsonSchema)]
pub struct TopologyList {
    pub process: ProcessInfo,
    pub topologies: Vec<TopologySummary>,
}

/// The process that answers.
#[derive(Serialize, JsonSchema)]
pub struct ProcessInfo {
    pub version: &'static str,
    pub started_at: String,
    pub uptime_seconds: f64,
}

/// A topology in one line.
#[derive(Serialize, JsonSchema)]
pub struct TopologySummary {
    pub name: Arc<str>,
    pub state: TopologyState,
    /// The state in a sentence.
    pub reason: String,
    /// Records that the group read a second, over about ten seconds.
    pub read_per_second: Option<f64>,
    pub lag_records: Option<i64>,
    /// Age of the oldest unread record.
    pub lag_seconds: Option<f64>,
    /// The least watermark of the sources' partitions.
    pub watermark: Option<String>,
    pub counters: OutcomeCounts,
    pub last_error: Option<Incident>,
}

/// How a topology does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum TopologyState {
    /// This process has no partition yet, or nothing is known of the topics.
    Starting,
    /// It reads and commits.
    Running,
    /// This process has partitions that are behind, and has not committed for 30 s.
    Stalled,
    /// The brokers do not answer; the numbers are old.
    Unreachable,
    /// A partition can't go on.
    Failing,
}

/// Something that went wrong.
#[derive(Clone, Serialize, JsonSchema)]
pub struct Incident {
    pub at: String,
    pub what: String,
}

/// Records of a source by their one outcome, since the topology began: read = refined + filtered + late + dead.
#[derive(Clone, Copy, Default, Serialize, JsonSchema)]
pub struct OutcomeCounts {
    pub read: u64,
    pub refined: u64,
    pub filtered: u64,
    pub late: u64,
    pub dead: u64,
}

impl From<Counters> for OutcomeCounts {
    fn from(Counters { read, refined, filtered, late, dead }: Counters) -> Self {
        Self { read, refined, filtered, late, dead }
    }
}

/// Records of a source a second, by their outcome.
#[derive(Clone, Copy, Serialize, JsonSchema)]
pub struct OutcomeRates {
    pub read: f64,
    pub refined: f64,
    pub filtered: f64,
    pub late: f64,
    pub dead: f64,
}

impl From<[f64; 5]> for OutcomeRates {
    fn from([read, refined, filtered, late, dead]: [f64; 5]) -> Self {
        Self { read, refined, filtered, late, dead }
    }
}

/// What a topology is: its file, and what is made of it. It does not change while the process runs.
#[derive(Serialize, JsonSchema)]
pub struct TopologyDescription {
    pub name: Arc<str>,
    /// Of all that decides what the state holds.
    pub fingerprint: String,
    /// Of all that decides which records are written.
    pub version: String,
    pub group: String,
    pub dead_topic: Arc<str>,
    pub late_topic: Arc<str>,
    pub max_drift_seconds: f64,
    pub sources: Vec<SourceDescription>,
    pub views: Vec<ViewDescription>,
    pub stages: Vec<StageDescription>,
    pub sinks: Vec<SinkDescription>,
    pub graph: Graph,
}

#[derive(Serialize, JsonSchema)]
pub struct ColumnDescription {
    pub name: String,
    #[serde(rename = "type")]
    pub ty: String,
}

/// A topic that is read.
#[derive(Serialize, JsonSchema)]
pub struct SourceDescription {
    pub name: Arc<str>,
    pub topic: Arc<str>,
    /// The columns that views and checks read, or all with `strict`.
    pub columns: Vec<ColumnDescription>,
    /// Null: the timestamp of the record in the log.
    pub event_time: Option<String>,
    pub out_of_orderness_seconds: f64,
    pub idle_after_seconds: f64,
    pub max_ahead_seconds: f64,
    /// The names of its checks.
    pub checks: Vec<Arc<str>>,
}

#[derive(Serialize, JsonSchema)]
pub struct ViewDescription {
    pub name: Arc<str>,
    /// The sources and views that its SQL names.
    pub reads: Vec<Arc<str>>,
    pub sql: Arc<str>,
    pub columns: Vec<ColumnDescription>,
}

/// What the tasks of one input do.
#[derive(Serialize, JsonSchema)]
pub struct StageDescription {
    pub name: Arc<str>,
    /// `ingest`: reads a source. `keyed`: reads an exchange.
    pub kind: &'static str,
    /// The topic that it reads.
    pub reads: Arc<str>,
    /// The views that it makes rows of, wholly or in part.
    pub views: Vec<Arc<str>>,
    /// Its operators, in order.
    pub operators: Vec<String>,
}

/// Where a view's rows go.
#[derive(Serialize, JsonSchema)]
pub struct SinkDescription {
    pub view: Arc<str>,
    pub topic: Option<Arc<str>>,
    /// The columns of the record key.
    pub key: Vec<String>,
    /// `final`: once the window is closed. `changes`: as windows change.
    pub emit: &'static str,
    /// The table that a replay writes.
    pub lake_table: Option<String>,
    /// How long after its end a window's rows are final, by the watermark; null: never.
    pub grace_seconds: Option<f64>,
}

/// The way of the rows.
#[derive(Serialize, JsonSchema)]
pub struct Graph {
    pub nodes: Vec<GraphNode>,
    pub edges: Vec<GraphEdge>,
}

#[derive(Serialize, JsonSchema)]
pub struct GraphNode {
    pub id: String,
    pub kind: NodeKind,
    /// Of the source, the stage, or the view of the sink.
    pub name: Arc<str>,
    /// The topic or table that it stands for, or that the stage reads.
    pub resource: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum NodeKind {
    Source,
    Stage,
    Sink,
    Lake,
}

#[derive(Serialize, JsonSchema)]
pub struct GraphEdge {
    pub from: String,
    pub to: String,
    /// The exchange topic that the rows go through, between stages.
    pub exchange: Option<Arc<str>>,
}

/// How a topology does now: what the whole group has committed, and what this process does.
#[derive(Serialize, JsonSchema)]
pub struct TopologyStatus {
    pub name: Arc<str>,
    pub state: TopologyState,
    pub reason: String,
    pub process: ProcessInfo,
    /// When the brokers were last asked; null: not yet.
    pub looked_at: Option<String>,
    pub counters: OutcomeCounts,
    pub lag_records: Option<i64>,
    /// Age of the oldest unread record.
    pub lag_seconds: Option<f64>,
    /// Until everything is read, at the pace of the last minute; null: it does not get less.
    pub catch_up_seconds: Option<f64>,
    pub sources: Vec<SourceStatus>,
    pub stages: Vec<StageStatus>,
    pub sinks: Vec<SinkStatus>,
    pub partitions: Vec<PartitionStatus>,
    pub commits: CommitStatus,
    pub checkpoints: CheckpointStatus,
    pub incidents: Vec<Incident>,
}

#[derive(Serialize, JsonSchema)]
pub struct SourceStatus {
    pub name: Arc<str>,
    pub topic: Arc<str>,
    pub counters: OutcomeCounts,
    pub per_second: Option<OutcomeRates>,
    /// Records that producers appended a second.
    pub arriving_per_second: Option<f64>,
    pub lag_records: i64,
    pub lag_seconds: Option<f64>,
    /// The least of its partitions; null while one has none.
    pub watermark: Option<String>,
    pub partitions: usize,
    pub idle_partitions: usize,
}

#[derive(Serialize, JsonSchema)]
pub struct StageStatus {
    pub name: Arc<str>,
    pub partitions: usize,
    /// Partitions that this process has.
    pub partitions_here: usize,
    /// Offsets of its input that were committed a second: records, or an exchange's messages of many rows, and
    /// transaction markers.
    pub offsets_per_second: Option<f64>,
    pub lag_records: i64,
    /// The least of its partitions; null while one has none.
    pub watermark: Option<String>,
    /// State in memory above the last checkpoints, of the partitions that this process has.
    pub state_bytes_here: u64,
    /// As of the last commits that counted them.
    pub open_windows: u64,
    /// Rows that came after their window's retention.
    pub state_expired: u64,
    /// Rows made of several records that a view failed on.
    pub derived_dead: u64,
    /// Which partition of a source the watermark waits for.
    pub held_by: Option<WatermarkHold>,
}

/// The partition of a source that holds a stage's watermark back.
#[derive(Serialize, JsonSchema)]
pub struct WatermarkHold {
    pub topic: Arc<str>,
    pub partition: i32,
    /// `nothing_read`, `lowest` or `all_idle`.
    pub reason: &'static str,
    /// The same in a sentence.
    pub text: String,
    /// Behind the furthest partition.
    pub behind_seconds: Option<f64>,
}

#[derive(Serialize, JsonSchema)]
pub struct SinkStatus {
    pub view: Arc<str>,
    pub topic: Option<Arc<str>>,
    /// The sum of the partitions' ends; null until somebody has looked at the page for a moment.
    pub end_offsets: Option<i64>,
    /// Offsets that were appended a second: records and transaction markers.
    pub offsets_per_second: Option<f64>,
}

#[derive(Serialize, JsonSchema)]
pub struct PartitionStatus {
    pub stage: Arc<str>,
    pub topic: Arc<str>,
    pub partition: i32,
    /// This process has it.
    pub here: bool,
    pub committed: Option<i64>,
    /// The last stable offset.
    pub end: i64,
    pub lag_records: i64,
    /// Age of its oldest unread record.
    pub lag_seconds: Option<f64>,
    pub watermark: Option<String>,
    /// Behind the furthest partition of the sources.
    pub behind_seconds: Option<f64>,
    pub idle: bool,
    /// It has come to the end for good: the topology was closed.
    pub ended: bool,
    /// Of a source's partition.
    pub counters: Option<OutcomeCounts>,
    pub state_bytes: Option<u64>,
    /// The offset that the last checkpoint of this process stands at.
    pub checkpoint_offset: Option<i64>,
    pub problem: Option<String>,
}

/// The transactions of this process.
#[derive(Serialize, JsonSchema)]
pub struct CommitStatus {
    pub commits: u64,
    /// Epochs that were aborted and done again.
    pub aborts: u64,
    /// How long ago the last commit was.
    pub age_seconds: Option<f64>,
    /// How long the last commits took, up to 200 of them.
    pub median_seconds: Option<f64>,
    pub slowest_seconds: Option<f64>,
}

/// The checkpoints of this process.
#[derive(Serialize, JsonSchema)]
pub struct CheckpointStatus {
    pub written: u64,
    /// Of each task's last one.
    pub last_bytes: u64,
    pub slowest_seconds: Option<f64>,
}

/// What the charts show, the oldest first: a point each time the brokers were asked, for up to half an hour.
#[derive(Serialize, JsonSchema)]
pub struct TopologyHistory {
    pub name: Arc<str>,
    pub points: Vec<HistoryPoint>,
}

#[derive(Serialize, JsonSchema)]
pub struct HistoryPoint {
    pub at: String,
    pub read_per_second: Option<f64>,
    pub lag_records: i64,
    pub lag_seconds: Option<f64>,
}

/// The last records of a topic, the latest first, as committed.
#[derive(Debug, Serialize, JsonSchema)]
pub struct RecordList {
    pub topic: String,
    /// False: there is no such topic yet.
    pub exists: bool,
    pub looked_at: String,
    /// False: the brokers were slow, and these are not all of the last records.
    pub complete: bool,
    pub records: Vec<RecordShown>,
}

#[derive(Debug, Serialize, JsonSchema)]
pub struct RecordShown {
    pub partition: i32,
    pub offset: i64,
    /// When the log took it.
    pub timestamp: Option<String>,
    pub key: Option<Payload>,
    /// Null: a tombstone.
    pub value: Option<Payload>,
    /// The first 50.
    pub headers: Vec<RecordHeader>,
}

#[derive(Debug, Serialize, JsonSchema)]
pub struct RecordHeader {
    pub name: String,
    pub value: Option<Payload>,
}

/// Bytes as text.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Payload {
    pub text: String,
    /// `utf8`, or `base64` where the bytes are no text.
    pub encoding: &'static str,
    /// How many there are.
    pub bytes: usize,
    /// Not all of them are shown: at most 8 KiB of a key or a value, 1 KiB of a header.
    pub is_cut: bool,
}

/// Why there is no answer.
#[derive(Serialize, JsonSchema)]
pub struct ApiFailure {
    pub error: String,
    /// What to do about it.
    pub help: String,
}
