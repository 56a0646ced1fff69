//! The engine: tasks that are stepped, the worker that commits what they did, recovery, and replay.
//!
//! ```text
//! ingest.rs, keyed.rs   the two kinds of task: step(run) → Outputs
//! pipeline.rs           a stage's graph of operators
//! exchange.rs           what lies in an exchange topic
//! publish.rs            Outputs → produced records
//! letters.rs            what dead and late letters say of themselves
//! retraction.rs         how a topic without a key is told that a row is no longer right
//! worker.rs             the commit protocol: one consumer, one transactional producer, its tasks
//! assignment.rs         partitions come to a worker and go
//! watch.rs              what a worker looks after between records
//! slot.rs               a task of either kind in its worker
//! start.rs              how a process came to work, and what that took
//! checkpointing.rs      checkpoints beside the epochs
//! recovery.rs           checkpoint at S, muted fold S..C
//! run.rs                a topology live: topics, workers, until-end
//! drift.rs              origins are read in step, whichever process reads them
//! machine.rs            what a process takes from its machine: time, threads, a state directory
//! replay.rs             the same tasks on bounded offsets with the exchange in memory
//! simulation/           (tests) the engine in a world that one seed decides
//! expired.rs            windows that rows came too late for
//! sources.rs            source topics that are deleted and made anew
//! offsets.rs, meta.rs   what rides with offsets; what the topology remembers of itself
//! rejects.rs            the share of rejects among the last records
//! redriven.rs           which originals were redriven, and are not to be counted again
//! ```
//! Invariant: `run` and `replay` step the same tasks; they differ in where input comes from and outputs go.
//! Invariant: nothing is checkpointed before it is committed.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};

use crate::log::LogError;
use crate::operator::{Expired, OperatorError};
use crate::record::{Batch, Micros, Origin, OwnedRecord, TopicPartition};
use crate::state::StateError;

mod assignment;
mod checkpointing;
mod drift;
pub mod exchange;
mod expired;
mod ingest;
mod keyed;
pub mod letters;
mod machine;
mod meta;
mod offsets;
mod pipeline;
mod progress;
mod publish;
mod recovery;
mod redriven;
mod rejects;
mod replay;
mod retraction;
mod run;
#[cfg(test)]
pub(crate) mod simulation;
mod slot;
mod sources;
mod start;
mod topics;
mod until_end;
mod versions;
mod watch;
mod worker;

pub use expired::{ExpiredWindow, ExpiredWindows};
pub use ingest::{DeadRecord, LateRecord};
pub use meta::{Meta, MetaRecord};
pub use offsets::{Counters, OffsetMetadata};
pub use progress::{Progress, TaskProgress, TaskRole};
pub use publish::{Refined, SinkEncoder};
pub use redriven::{RedriveEntry, Redriven};
pub use rejects::RejectWindow;
pub use replay::{ReplayOptions, ReplayReport, ReplaySink, SinkWriter, replay};
pub use retraction::{is_retraction, settle};
pub use run::{RunOptions, RunReport, run};
pub use sources::accept_sources;
pub use start::{RecoveryTook, StartStep};
pub use topics::{TopicNames, redriven_topic};
pub use versions::{Since, TopologyVersion, VersionStart, refined_ends, since};

use pipeline::Passed;

pub type Result<T, E = EngineError> = std::result::Result<T, E>;

/// What a task hands over; a driver publishes it, writes it to Parquet, or (in a muted fold) drops it.
#[derive(Default)]
pub struct Outputs {
    /// (index into `Plan::sinks`, rows).
    pub sinks: Vec<(usize, Batch)>,
    /// (index into the task's exchange ports, rows).
    pub exchanges: Vec<(usize, Batch)>,
    pub dead: Vec<DeadRecord>,
    pub late: Vec<LateRecord>,
    pub expired: Vec<(Origin, Expired)>,
    pub warned: BTreeMap<Arc<str>, u64>,
    /// The task's watermark, to be told to its exchanges behind the rows.
    pub watermark: Option<Micros>,
    /// The task's origin has gone idle.
    pub idle: bool,
}

impl Outputs {
    fn take_rows(&mut self, passed: &mut Passed) {
        self.sinks.append(&mut passed.sinks);
        self.exchanges.append(&mut passed.exchanges);
    }

    /// Derived rows that failed an expression: dead letters too, though no record of a source.
    fn take_rejected(&mut self, passed: &mut Passed, partition: &TopicPartition, offset: i64) {
        for rejected in passed.rejected.drain(..) {
            self.dead.push(DeadRecord {
                source: partition.clone(),
                record: OwnedRecord {
                    offset,
                    timestamp_ms: -1,
                    value: rejected.row.map(String::into_bytes),
                    ..OwnedRecord::default()
                },
                stage: rejected.place.to_string(),
                reason: rejected.reason,
                message: rejected.message,
            });
        }
    }

    fn clear(&mut self) {
        *self = Self::default();
    }
}

/// What can stop a topology.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    #[error(transparent)]
    Log(#[from] LogError),
    #[error(transparent)]
    State(#[from] StateError),
    #[error(transparent)]
    Operator(#[from] OperatorError),
    #[error("arrow: {0}")]
    Arrow(#[from] arrow::error::ArrowError),
    #[error(
        "source '{source_name}': there is no topic '{topic}' at {log}; create it with: headwater topic create {topic} --partitions N"
    )]
    NoSourceTopic { source_name: String, topic: String, log: String },
    #[error(
        "view '{view}' has no windows, and its topic '{topic}' has the key ({key}), but source '{source_name}' ({source_topic}) \
         has {partitions} partitions: which record of a key is the last would depend on the order in which they are read. If \
         the producers of '{source_topic}' place records by columns that the key holds, say so under the source, as in \
         `partitioned_by: [{key}]`; else leave the `key` out (rows are then appended), read a topic of one partition, or \
         aggregate by the key in windows"
    )]
    ManyOrigins {
        view: Box<str>,
        topic: Box<str>,
        key: Box<str>,
        source_name: Box<str>,
        source_topic: Box<str>,
        partitions: i32,
    },
    #[error(
        "topic '{topic}' was deleted and made anew since topology '{topology}' began to read it, so the offsets that are \
         committed mean other records now, and some of the new ones may be read already. Stop every process of the \
         topology, then decide where to go on with: headwater reset FILE --to earliest (all that the new topic holds), \
         or, without windows, --to latest"
    )]
    TopicMadeAnew { topology: Box<str>, topic: Box<str> },
    #[error("topic '{topic}' has {found} partitions, but this topology began with {expected}: {remedy}")]
    PartitionsChanged { topic: String, found: i32, expected: i32, remedy: &'static str },
    #[error(
        "{partition}: {rejected} of the last {of} records are rejects, more than max_reject_ratio {ratio_max}; \
         nothing of this epoch is committed. The last of them: {}. Look at the records with: headwater topic tail \
         {topic}; if they are as they should be, correct format or columns of the source", reasons.join("; "), topic = partition.topic
    )]
    TooManyRejects {
        partition: TopicPartition,
        rejected: usize,
        of: usize,
        ratio_max: f64,
        /// Of the last of them: offset and reason.
        reasons: Vec<String>,
    },
    #[error("an exchange message is damaged: {detail}")]
    Exchange { detail: String },
    #[error("{partition} at offset {offset} holds no message of this topology's exchange: {detail}")]
    ForeignExchange { partition: TopicPartition, offset: i64, detail: String },
    #[error(
        "{what} is of format {found}, and this program reads {reads}: another version of headwater has written it. Go on \
         with that version; nothing was changed"
    )]
    OtherFormat { what: String, found: u64, reads: u32 },
    #[error("{partition} at offset {offset} holds no entry of a redrive: {detail}")]
    ForeignRedriven { partition: TopicPartition, offset: i64, detail: String },
    #[error(
        "{partition}: the committed offset was moved by another tool ({detail}); set it with: headwater reset"
    )]
    ForeignOffset { partition: TopicPartition, detail: String },
    #[error(
        "{partition}: the group stands at offset {committed}, but the log holds {start}..{end}: {why}; decide where to \
         go on with: headwater reset --to earliest|latest, or rebuild with: headwater replay"
    )]
    OffsetGone { partition: TopicPartition, committed: i64, start: i64, end: i64, why: &'static str },
    #[error(
        "topology '{topology}' has changed in what its state holds; it runs with another fingerprint:\n{changes}\nUndo \
         the change, give the topology a new name (it then reads its sources from the first record on, into topics of \
         its own), or let it begin anew with: headwater reset FILE --to earliest"
    )]
    FingerprintChanged { topology: String, changes: String },
    #[error(
        "topology '{0}' was ended for good with: headwater run --until-end --close; run it under a new name, or replay it"
    )]
    Closed(String),
    #[error(
        "group '{group}' has no offsets any more, though topology '{topology}' has committed some: Kafka drops those of \
         a group that was empty for offsets.retention.minutes. Where to go on is not known, and everything would be \
         counted twice: let it begin anew with: headwater reset FILE --to earliest, or run it under a new name"
    )]
    OffsetsExpired { topology: String, group: String },
    #[error(
        "{source_partition} at offset {offset} is to be kept in a topic that does not take it: {error}; nothing of this \
         epoch is committed, and nothing is skipped: the topology goes on there once the topic takes it"
    )]
    LetterTooLarge { source_partition: TopicPartition, offset: i64, error: LogError },
    #[error("another process runs as the same instance of this topology on this state directory ({0})")]
    Fenced(String),
    #[error("{0}")]
    Sink(String),
    #[error("stopped before it was done")]
    Cancelled,
    #[error("internal error: {0}; please report it")]
    Internal(String),
}

impl EngineError {
    pub(crate) fn internal(what: String) -> Self {
        Self::Internal(what)
    }
}

/// Refuses what says of itself, in `field`, that it is of another format; before it is read, as its other fields
/// may be others, too.
fn check_format(json: &[u8], field: &str, reads: u32, what: impl FnOnce() -> String) -> Result<()> {
    let value: serde_json::Value = serde_json::from_slice(json).unwrap_or_default();
    match value.get(field).and_then(serde_json::Value::as_u64) {
        Some(found) if found != u64::from(reads) => {
            Err(EngineError::OtherFormat { what: what(), found, reads })
        }
        _ => Ok(()),
    }
}

/// Locks what a task shares with its operators. Poisoned means that a thread of this process has panicked.
fn lock<T>(mutex: &Mutex<T>) -> Result<MutexGuard<'_, T>> {
    mutex.lock().map_err(|_| EngineError::internal("a task panicked while it held its state".into()))
}
