//! The control topic of a connector, `<name>.connect`: compacted, one partition a task. It holds positions
//! (`position/…`), what the task has done so far (`task`), and commands that wait (`command/…`), which a tombstone in the
//! transaction that does them takes away.
//!
//! Invariant: what is read is all that was committed before: an epoch number is kept both here and with the group's
//! offset, in one transaction, and the two must agree.

use std::ops::ControlFlow;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::log::{Log, LogError, Outgoing, Span, read_spans};
use crate::planted::{Fault, planted};
use crate::record::TopicPartition;

use super::progress::Tally;
use super::source::Positions;
use super::{ConnectError, Result};

pub const POSITION: &str = "position/";
pub const TASK: &str = "task";
pub const COMMAND: &str = "command/";
const VERSION: u32 = 1;
const SENT_WITHIN: Duration = Duration::from_secs(30);
/// Kafka ends a transaction that nobody ends within its timeout (15 s) and some more.
const DECIDED_WITHIN: Duration = Duration::from_secs(60);
const LOOK_EVERY: Duration = Duration::from_millis(50);

pub fn control_topic(name: &str) -> String {
    format!("{name}.connect")
}

/// Where a connector's dead letters go; a topology of the same name has a `<name>.dead` of its own.
pub fn dead_topic(name: &str) -> String {
    format!("{name}.connect.dead")
}

pub fn group(name: &str) -> String {
    format!("headwater.connect.{name}")
}

/// What a task's last commit says of it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct TaskStatus {
    pub v: u32,
    /// Commits of the task so far.
    pub epoch: u64,
    pub phase: String,
    #[serde(flatten)]
    pub tally: Tally,
    /// Known to be there and not read.
    pub lag_bytes: u64,
    /// Until it is resumed, also over restarts (rule C10).
    #[serde(default)]
    pub paused: bool,
    /// The instance that has committed it.
    pub instance: String,
}

impl TaskStatus {
    pub fn new(epoch: u64) -> Self {
        Self { v: VERSION, epoch, ..Self::default() }
    }
}

/// What goes with the group's offset.
#[derive(Serialize, Deserialize)]
pub struct OffsetMark {
    v: u32,
    epoch: u64,
}

impl OffsetMark {
    pub fn text(epoch: u64) -> String {
        format!(r#"{{"v":{VERSION},"epoch":{epoch}}}"#)
    }
}

/// What a task can be told to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Command {
    Pause,
    Resume,
}

#[derive(Serialize, Deserialize)]
struct CommandRecord {
    v: u32,
    #[serde(rename = "do")]
    what: Command,
}

impl Command {
    /// What a control record's value says; of another version nothing is done.
    pub fn read(value: &[u8]) -> Option<Self> {
        let record: CommandRecord = serde_json::from_slice(value).ok()?;
        (record.v == VERSION).then_some(record.what)
    }
}

/// Tells all tasks of a connector to do something; done once each, also if they run only later.
pub fn send(log: &dyn Log, name: &str, what: Command) -> Result<()> {
    let topic = control_topic(name);
    let value = serde_json::to_vec(&CommandRecord { v: VERSION, what }).unwrap_or_default();
    let key = format!("{COMMAND}{}", uuid::Uuid::new_v4());
    let mut producer = log.producer()?;
    for partition in 0..log.partitions(&topic)?.unwrap_or(0) {
        let record = Outgoing { key: Some(key.as_bytes()), value: Some(&value), ..Outgoing::default() };
        producer.produce(&TopicPartition::new(topic.as_str(), partition), &[record])?;
    }
    Ok(producer.flush(SENT_WITHIN)?)
}

/// What a task's partition holds.
#[derive(Debug, Default)]
pub struct Remembered {
    pub positions: Positions,
    pub status: TaskStatus,
    /// When the status was committed.
    pub at_ms: i64,
    /// Commands that are not done, by key, in their order.
    pub commands: Vec<(Vec<u8>, Command)>,
    /// Where the member reads on: behind all of this.
    pub offset: i64,
}

/// All that was committed for a task before now. The caller owns the partition: whoever had it before is fenced once the
/// group's committed offset is known, and an open transaction of theirs, which would hide what came behind it, is
/// waited for. A group that was empty for long has no offset any more; the positions are here all the same.
pub fn recall(
    log: &dyn Log,
    name: &str,
    partition: &TopicPartition,
    pause: &dyn Fn(Duration),
) -> Result<Remembered> {
    let committed =
        log.committed(&group(name), std::slice::from_ref(partition))?.into_iter().next().flatten();
    let written = log.written_ends(std::slice::from_ref(partition))?.first().copied().unwrap_or(0);
    if !planted(Fault::PositionBeforeFence) {
        await_decided(log, name, partition, written, pause)?;
    }
    let remembered = read(log, partition)?;
    if let Some(committed) = committed {
        let mark: OffsetMark =
            serde_json::from_str(&committed.metadata).map_err(|error| ConnectError::Control {
                topic: partition.to_string(),
                detail: format!("the group's offset was committed by another program: {error}"),
            })?;
        if mark.epoch != remembered.status.epoch {
            return Err(ConnectError::Control {
                topic: partition.to_string(),
                detail: format!(
                    "the connector '{name}' has committed {} epochs, but its control topic holds the positions of {}",
                    mark.epoch, remembered.status.epoch
                ),
            });
        }
    }
    Ok(remembered)
}

fn await_decided(
    log: &dyn Log,
    name: &str,
    partition: &TopicPartition,
    written: i64,
    pause: &dyn Fn(Duration),
) -> Result<()> {
    let mut waited = Duration::ZERO;
    while log.bounds(partition)?.end < written {
        if waited > DECIDED_WITHIN {
            let (group, seconds) = (group(name), DECIDED_WITHIN.as_secs());
            return Err(LogError::Undecided { group, partition: partition.clone(), seconds }.into());
        }
        pause(LOOK_EVERY);
        waited += LOOK_EVERY;
    }
    Ok(())
}

fn read(log: &dyn Log, partition: &TopicPartition) -> Result<Remembered> {
    let span = Span::of(log, partition.clone())?;
    let mut remembered = Remembered { offset: span.to, ..Remembered::default() };
    read_spans(log, &[span], &|| false, &mut |run| {
        for index in 0..run.records.len() {
            let record = run.records.get(index);
            let Some(key) = record.key.and_then(|key| std::str::from_utf8(key).ok()) else { continue };
            if let Some(key) = key.strip_prefix(POSITION) {
                match record.value {
                    Some(value) => remembered.positions.insert(key.to_owned(), value.to_vec()),
                    None => remembered.positions.remove(key),
                };
            } else if key.starts_with(COMMAND) {
                remembered.commands.retain(|(known, _)| known != key.as_bytes());
                let command = record.value.and_then(Command::read);
                remembered.commands.extend(command.map(|command| (key.as_bytes().to_vec(), command)));
            } else if let (TASK, Some(value)) = (key, record.value) {
                remembered.status = serde_json::from_slice(value).map_err(|error| ConnectError::Control {
                    topic: run.partition.to_string(),
                    detail: format!("the record at offset {} can't be read: {error}", record.offset),
                })?;
                remembered.at_ms = record.timestamp_ms;
            }
        }
        Ok::<_, ConnectError>(ControlFlow::Continue(()))
    })?;
    if remembered.status.v > VERSION {
        return Err(ConnectError::Control {
            topic: partition.to_string(),
            detail: format!(
                "its positions are of format {}, and this program reads {VERSION}: a newer Headwater ran it",
                remembered.status.v
            ),
        });
    }
    Ok(remembered)
}

/// What each task's last commit says, and when it was: for who looks on. `None`: the connector has never run here.
pub fn read_status(log: &dyn Log, name: &str) -> Result<Option<Vec<(TaskStatus, i64)>>> {
    let topic = control_topic(name);
    let Some(partitions) = log.partitions(&topic)? else { return Ok(None) };
    let each = (0..partitions).map(|partition| {
        let remembered = read(log, &TopicPartition::new(topic.as_str(), partition))?;
        Ok((remembered.status, remembered.at_ms))
    });
    each.collect::<Result<Vec<_>>>().map(Some)
}
