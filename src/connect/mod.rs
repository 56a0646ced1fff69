//! Source connectors: what lies outside of Kafka becomes records, each exactly once.
//!
//! ```text
//! settings.rs  a connector's file: keys, defaults, what is wrong with it and where
//! source.rs    the contract: a source fills batches with whole steps and their positions
//! control.rs   the control topic `<name>.connect`: what is remembered, and reading it back
//! task.rs      one task: a source, what it has committed, what its open epoch adds
//! runner.rs    the commit protocol, on the member that workers use
//! run.rs       a connector live: its topics, its instance, joining anew
//! progress.rs  how far it is, for who looks on
//! files/       the connector for files of a folder
//! ```
//! A connector is a task whose input partition is its own control topic. Its records, its positions and the offset of
//! the last command that it handled are one Kafka transaction, so that the group's fencing (rules R1 and R4) holds for
//! positions, too: whoever is no longer the partition's owner can commit neither records nor positions.
//!
//! Invariant: a transaction holds whole steps (rule C1).
//! Invariant: a source is opened only after the predecessor's transaction is decided and the control topic is read to
//! its end (rule C2).
//! Invariant: a source hears of committed positions only (rule C3).

mod control;
pub mod files;
mod progress;
mod run;
mod runner;
mod settings;
#[cfg(test)]
mod simulation;
mod source;
mod task;

use crate::config::ConfigError;
use crate::log::LogError;

pub use control::{Command, TaskStatus, control_topic, dead_topic, group, read_status, send};
pub use progress::{Progress, Tally, TaskProgress};
pub use run::{Options, Report, run};
pub use settings::Connector;
pub use source::{Class, SourceError};

pub type Result<T, E = ConnectError> = std::result::Result<T, E>;

/// What can go wrong with a connector.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Log(#[from] LogError),
    /// The source can't go on by itself.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// A record that the connector's topic does not take.
    #[error(
        "{error}. The record is of the connector '{connector}'; nothing after its last commit is written, and the same \
         command goes on from there"
    )]
    TooLarge { connector: String, error: LogError },
    #[error(
        "{rejected} of the last {of} records of the connector '{connector}' can't be read, which is more than \
         max_reject_ratio allows; nothing of them was written. The last: {last}"
    )]
    TooManyRejects { connector: String, rejected: usize, of: usize, last: String },
    #[error("the connector '{connector}' was replaced by another process again and again: {why}")]
    Fenced { connector: String, why: String },
    #[error(
        "the connector '{0}' is run by another process, which holds all of its tasks: there is nothing to do here; its \
         progress is told by: headwater connect status {0}"
    )]
    Elsewhere(String),
    #[error("the connector '{0}' is paused, and reads nothing")]
    Paused(String),
    #[error("another process on this machine runs the connector '{name}' with the same data folder ({path})")]
    Running { name: String, path: String },
    #[error("{what}: {source}")]
    Io { what: String, source: std::io::Error },
    /// The control topic does not hold what was committed.
    #[error("{topic}: {detail}")]
    Control { topic: String, detail: String },
}

impl ConnectError {
    /// What to do about it, where there is something.
    pub fn help(&self) -> Option<String> {
        match self {
            Self::Config(error) => error.help(),
            Self::Source(error) => error.remedy.clone(),
            Self::TooManyRejects { .. } => Some(
                "is the connector's format right? `headwater connect check FILE` shows what it makes of the first \
                 lines; max_reject_ratio: 1 takes all of them as dead letters"
                    .to_owned(),
            ),
            Self::Paused(name) => Some(format!("headwater connect resume {name}")),
            Self::Running { .. } => Some("stop it, or name another folder with --data-dir".to_owned()),
            Self::Fenced { .. } => Some(
                "two processes have the same data folder's copy: each process needs its own, with its own \
                 connect/NAME/instance"
                    .to_owned(),
            ),
            Self::Log(_) | Self::TooLarge { .. } | Self::Elsewhere(_) | Self::Io { .. } => None,
            Self::Control { .. } => Some(
                "was the topic deleted, made anew, or written by another program? Positions that are lost are not \
                 guessed"
                    .to_owned(),
            ),
        }
    }

    /// Whether what the user gave is wrong.
    pub fn is_input(&self) -> bool {
        match self {
            Self::Config(_) | Self::Running { .. } | Self::Elsewhere(_) | Self::Paused(_) => true,
            Self::Source(error) => error.class == Class::Input,
            _ => false,
        }
    }
}
