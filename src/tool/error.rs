//! What can go wrong in a command, and with which exit code it ends.

use crate::broker::BrokerError;
use crate::config::ConfigError;
use crate::connect::ConnectError;
use crate::engine::EngineError;
use crate::lake::LakeError;
use crate::log::LogError;
use crate::plan::PlanError;

use super::replay::ReplayError;
use super::verify::VerifyError;

pub type Result<T, E = ToolError> = std::result::Result<T, E>;

/// Why a command failed. `Display` is what stands after `error:`; [`ToolError::help`] what stands after `help:`.
#[derive(Debug, thiserror::Error)]
pub enum ToolError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Log(#[from] LogError),
    #[error(transparent)]
    Broker(#[from] BrokerError),
    #[error(transparent)]
    Engine(#[from] EngineError),
    #[error(transparent)]
    Connect(ConnectError),
    #[error(transparent)]
    Replay(#[from] ReplayError),
    #[error(transparent)]
    Verify(#[from] VerifyError),
    /// Topology files with all that is wrong with them.
    #[error("{}", .0.iter().map(PlanError::to_string).collect::<Vec<_>>().join("\n"))]
    Topology(Vec<PlanError>),
    /// What the user gave is wrong: an argument, a file, a record.
    #[error("{message}")]
    Input { message: String, help: Option<String> },
    #[error("{what}: {source}")]
    Io { what: String, source: std::io::Error },
    /// The work itself failed, with everything that was given being right.
    #[error("{message}")]
    Failed { message: String, help: Option<String> },
    /// What is wrong stands in the output already.
    #[error("see the output")]
    Reported { exit_code: u8 },
    /// Whoever read our output has gone (`| head`): no error, only the end.
    #[error("the output was closed")]
    ClosedPipe,
}

impl ToolError {
    pub fn input(message: impl Into<String>) -> Self {
        Self::Input { message: message.into(), help: None }
    }
    pub fn input_with_help(message: impl Into<String>, help: impl Into<String>) -> Self {
        Self::Input { message: message.into(), help: Some(help.into()) }
    }
    /// An I/O error while doing `what`, e.g. `cannot read x.json`.
    pub fn io(what: impl Into<String>) -> impl FnOnce(std::io::Error) -> Self {
        let what = what.into();
        move |source| Self::Io { what, source }
    }

    /// What to print on stderr, each after `error:`.
    pub fn messages(&self) -> Vec<String> {
        match self {
            Self::ClosedPipe | Self::Reported { .. } => Vec::new(),
            Self::Topology(errors) => {
                errors.iter().flat_map(PlanError::problems).map(ToString::to_string).collect()
            }
            other => vec![other.to_string()],
        }
    }

    pub fn help(&self) -> Option<String> {
        match self {
            Self::Config(error) => error.help(),
            Self::Log(LogError::Unreachable { .. })
            | Self::Engine(EngineError::Log(LogError::Unreachable { .. })) => Some(
                "is the broker running, and is --brokers (or 'brokers' in the config) right? Without brokers the \
                 embedded one is used"
                    .to_owned(),
            ),
            Self::Log(LogError::Stalled { .. }) | Self::Engine(EngineError::Log(LogError::Stalled { .. })) => {
                Some("is the broker still there? The same command may be run again".to_owned())
            }
            Self::Log(LogError::Undecided { .. })
            | Self::Engine(EngineError::Log(LogError::Undecided { .. })) => Some(
                "Kafka ends one whose producer is gone within its timeout of 15 s and 10 s more; one that is left after \
                 that hangs for good. `kafka-transactions.sh find-hanging` names it: see 'A transaction that hangs' in \
                 docs/operating.md"
                    .to_owned(),
            ),
            Self::Connect(error) => error.help(),
            Self::Input { help, .. } | Self::Failed { help, .. } => help.clone(),
            Self::Log(_)
            | Self::Broker(_)
            | Self::Engine(_)
            | Self::Replay(_)
            | Self::Verify(_)
            | Self::Topology(_)
            | Self::Io { .. }
            | Self::Reported { .. }
            | Self::ClosedPipe => None,
        }
    }

    /// 0 good, 1 failed, 2 the user's input is wrong.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::ClosedPipe => 0,
            Self::Reported { exit_code } => *exit_code,
            Self::Connect(error) => 1 + u8::from(error.is_input()),
            Self::Config(_)
            | Self::Topology(_)
            | Self::Input { .. }
            | Self::Log(LogError::NoTopic { .. }) => 2,
            Self::Engine(error)
            | Self::Replay(ReplayError::Engine(error))
            | Self::Verify(VerifyError::Engine(error)) => engine_code(error),
            Self::Replay(ReplayError::NoTable(_) | ReplayError::Lake(LakeError::Url { .. })) => 2,
            Self::Verify(VerifyError::NothingCommitted(_)) => 2,
            Self::Log(_)
            | Self::Broker(_)
            | Self::Io { .. }
            | Self::Replay(_)
            | Self::Verify(_)
            | Self::Failed { .. } => 1,
        }
    }
}

/// What a user can put right by another file, argument or topic is input; the rest has failed.
fn engine_code(error: &EngineError) -> u8 {
    match error {
        EngineError::NoSourceTopic { .. }
        | EngineError::TopicMadeAnew { .. }
        | EngineError::ManyOrigins { .. }
        | EngineError::FingerprintChanged { .. }
        | EngineError::Closed(_)
        | EngineError::Log(LogError::NoTopic { .. }) => 2,
        _ => 1,
    }
}

impl From<ConnectError> for ToolError {
    fn from(error: ConnectError) -> Self {
        match error {
            ConnectError::Log(error) => Self::Log(error),
            ConnectError::Config(error) => Self::Config(error),
            error => Self::Connect(error),
        }
    }
}

impl From<PlanError> for ToolError {
    fn from(error: PlanError) -> Self {
        Self::Topology(vec![error])
    }
}
