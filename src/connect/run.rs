//! A connector live: its topics, its instance on this machine, and joining anew.
//!
//! Invariant: one process of a machine at most runs a connector with one data folder; others of other folders stand by.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::log::{Log, TopicSpec};

use super::control::{control_topic, dead_topic};
use super::files::FilesSource;
use super::progress::{Progress, Tally};
use super::runner::{Ended, Job, Runner, Stream};
use super::settings::Connector;
use super::{ConnectError, Result};

/// Fenced this often within [`FENCED_WITHIN`]: someone else runs as this instance.
const FENCED_MAX: usize = 4;
const FENCED_WITHIN: Duration = Duration::from_secs(60);
/// Room for the headers of a letter beside its bytes.
const HEADER_BYTES: i64 = 64 * 1024;
const MESSAGE_BYTES_DEFAULT: i64 = 1_048_588;

#[derive(Clone, Debug)]
pub struct Options {
    pub data_dir: PathBuf,
    /// Return once the source has nothing more.
    pub until_caught_up: bool,
}

/// What a run has done.
#[derive(Clone, Debug)]
pub struct Report {
    /// Of the tasks that this process had at the end, since the connector began.
    pub tally: Tally,
    pub commits: u64,
    pub caught_up: bool,
}

/// Runs a connector until `stop` is set, or to the end of what its source has.
pub fn run(
    connector: &Connector,
    log: &Arc<dyn Log>,
    options: &Options,
    progress: &Progress,
    stop: &AtomicBool,
) -> Result<Report> {
    let home = Home::open(&options.data_dir, &connector.name)?;
    let job = Arc::new(prepare(connector, &**log, home.instance.clone(), options.until_caught_up)?);
    let mut fenced: Vec<Instant> = Vec::new();
    loop {
        let mut runner = Runner::join(&job, log, progress, Instant::now())?;
        let ended = loop {
            if let Some(ended) = runner.step(Instant::now(), stop.load(Ordering::Acquire))? {
                break ended;
            }
        };
        let caught_up = matches!(ended, Ended::CaughtUp);
        match ended {
            Ended::Stopped | Ended::CaughtUp => {
                let commits = progress.commits().0;
                return Ok(Report { tally: runner.tally(), commits, caught_up });
            }
            Ended::Rejoin(why) => tracing::warn!("connector '{}' joins anew: {why}", job.name),
            Ended::Fenced(why) => {
                tracing::warn!("connector '{}' joins anew: {why}", job.name);
                fenced.retain(|at| at.elapsed() < FENCED_WITHIN);
                fenced.push(Instant::now());
                if fenced.len() >= FENCED_MAX {
                    return Err(ConnectError::Fenced { connector: job.name.clone(), why });
                }
            }
        }
    }
}

/// Makes the topics that are missing, and looks up the others.
pub fn prepare(connector: &Connector, log: &dyn Log, instance: String, until_caught_up: bool) -> Result<Job> {
    let topic = connector.topic();
    let topics = &connector.files.topics;
    let stamped = ("message.timestamp.type".to_owned(), "LogAppendTime".to_owned());
    let spec = |name: &str, partitions: i32, config: &[(&str, String)]| TopicSpec {
        name: name.to_owned(),
        partitions,
        config: config
            .iter()
            .map(|(key, value)| ((*key).to_owned(), value.clone()))
            .chain([stamped.clone()])
            .collect(),
    };
    let mut data = spec(&topic, topics.partitions as i32, &[("retention.ms", "-1".to_owned())]);
    data.config.extend(topics.config.clone());
    log.create_topics(&[data])?;
    let taken =
        log.topic_config(&topic)?.get("max.message.bytes").and_then(|bytes| bytes.parse::<i64>().ok());
    let letter_bytes = taken.unwrap_or(MESSAGE_BYTES_DEFAULT).max(MESSAGE_BYTES_DEFAULT) + HEADER_BYTES;
    let dead = dead_topic(&connector.name);
    log.create_topics(&[
        spec(&control_topic(&connector.name), 1, &[("cleanup.policy", "compact".to_owned())]),
        spec(&dead, 1, &[("retention.ms", "-1".to_owned()), ("max.message.bytes", letter_bytes.to_string())]),
    ])?;
    let count = |topic: &str| -> Result<i32> {
        log.partitions(topic)?.ok_or_else(|| ConnectError::Control {
            topic: topic.to_owned(),
            detail: "the topic is missing after it was created".to_owned(),
        })
    };
    let files = connector.files.clone();
    Ok(Job {
        name: connector.name.clone(),
        streams: vec![Stream { partitions: count(&topic)?, topic: topic.into() }],
        dead_partitions: count(&dead)?,
        max_reject_ratio: files.max_reject_ratio,
        instance,
        until_caught_up,
        pause: Box::new(std::thread::sleep),
        open: Box::new(move |_, at| Ok(Box::new(FilesSource::open(&files, at)?))),
    })
}

/// What a connector has on this machine: its instance, and a lock that holds as long as this does.
struct Home {
    instance: String,
    _lock: File,
}

impl Home {
    fn open(data_dir: &Path, name: &str) -> Result<Self> {
        let folder = data_dir.join("connect").join(name);
        let failed = |what: &Path| {
            let what = what.display().to_string();
            move |source| ConnectError::Io { what, source }
        };
        std::fs::create_dir_all(&folder).map_err(failed(&folder))?;
        let path = folder.join("lock");
        let lock = File::create(&path).map_err(failed(&path))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(std::fs::TryLockError::WouldBlock) => {
                return Err(ConnectError::Running {
                    name: name.to_owned(),
                    path: folder.display().to_string(),
                });
            }
            Err(std::fs::TryLockError::Error(error)) => return Err(failed(&path)(error)),
        }
        let path = folder.join("instance");
        let instance = match std::fs::read_to_string(&path) {
            Ok(id) if !id.trim().is_empty() => id.trim().to_owned(),
            _ => {
                let id: String = uuid::Uuid::new_v4().simple().to_string().chars().take(8).collect();
                std::fs::write(&path, &id).map_err(failed(&path))?;
                id
            }
        };
        Ok(Self { instance, _lock: lock })
    }
}
