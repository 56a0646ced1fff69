//! Settings as data: where the brokers, the state and the lake are, and how a worker paces itself.
//!
//! The file (`config/headwater.yaml`) describes the environment that a topology runs in, never the topology.
//! Every key has a default, so that no file at all means: one machine, the embedded broker, `.headwater/`.
//! A scalar may hold `${NAME}` or `${NAME:-default}`; a key whose text is empty after that counts as not set,
//! so that one file serves a laptop and a cluster.
//!
//! Invariant: this is the only room that reads the environment, and it knows no component.
//! Invariant: a key that is not known is an error with its line, never ignored.

mod error;
mod load;
pub mod scalar;

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use serde::Deserialize;

pub use error::{ConfigError, nearest};
pub use load::read;

/// Where the config is read from when no file is named.
pub const DEFAULT_PATH: &str = "config/headwater.yaml";

/// Everything that a config file can say.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// `host:port,…`; `None`: the embedded broker.
    #[serde(deserialize_with = "scalar::optional_text")]
    pub brokers: Option<String>,
    /// librdkafka properties that are passed through, e.g. `security.protocol`.
    #[serde(deserialize_with = "scalar::text_map")]
    pub kafka: BTreeMap<String, String>,
    /// How long `run` waits for brokers that cannot be reached; `None`: as long as it takes.
    #[serde(deserialize_with = "scalar::optional_duration")]
    pub kafka_outage: Option<Duration>,
    pub registry: Registry,
    /// What Headwater keeps on this machine: the embedded broker's log, state, checkpoints.
    #[serde(deserialize_with = "scalar::path")]
    pub data_dir: PathBuf,
    pub state: State,
    pub lake: Lake,
    pub s3: S3,
    pub http: Http,
    pub log: Log,
    pub worker: Worker,
}

/// What is said on stderr of what is done.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Log {
    #[serde(deserialize_with = "scalar::word")]
    pub format: LogFormat,
    /// `None`: what `-v` says, and warnings without.
    #[serde(deserialize_with = "scalar::optional_word")]
    pub level: Option<LogLevel>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LogFormat {
    /// A line with time and level.
    #[default]
    Text,
    /// An object a line.
    Json,
}

impl FromStr for LogFormat {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "text" => Ok(LogFormat::Text),
            "json" => Ok(LogFormat::Json),
            other => Err(format!("'{other}' is no format of the log: it is text or json")),
        }
    }
}

/// From what level on the log says something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogLevel {
    Error,
    Warn,
    Info,
    Debug,
}

impl FromStr for LogLevel {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "error" => Ok(LogLevel::Error),
            "warn" => Ok(LogLevel::Warn),
            "info" => Ok(LogLevel::Info),
            "debug" => Ok(LogLevel::Debug),
            other => Err(format!("'{other}' is no level of the log: it is error, warn, info or debug")),
        }
    }
}

/// The schema registry.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Registry {
    #[serde(deserialize_with = "scalar::optional_text")]
    pub url: Option<String>,
}

/// What operators remember.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct State {
    /// Where checkpoints are copied to; `None`: they stay in `data_dir`, on this machine only.
    #[serde(deserialize_with = "scalar::optional_text")]
    pub url: Option<String>,
    /// Bytes of memory for uncommitted and committed layers of state, all tasks together.
    #[serde(deserialize_with = "scalar::budget")]
    pub budget: u64,
}

/// Where tables lie.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Lake {
    /// `None`: `lake/` in `data_dir`.
    #[serde(deserialize_with = "scalar::optional_text")]
    pub url: Option<String>,
}

/// How `s3://` URLs are reached, whichever key they stand under.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct S3 {
    /// `http(s)://host:port` of another S3 than Amazon's.
    #[serde(deserialize_with = "scalar::optional_text")]
    pub endpoint: Option<String>,
    #[serde(deserialize_with = "scalar::text")]
    pub region: String,
    #[serde(deserialize_with = "scalar::optional_text")]
    pub access_key_id: Option<String>,
    #[serde(deserialize_with = "scalar::optional_secret")]
    pub secret_access_key: Option<Secret>,
    /// Of temporary credentials.
    #[serde(deserialize_with = "scalar::optional_secret")]
    pub session_token: Option<Secret>,
    /// The bucket is part of the path, not of the host's name.
    #[serde(deserialize_with = "scalar::flag")]
    pub path_style: bool,
}

/// A text that is never shown.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(secret)")
    }
}

/// Metrics and health.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Http {
    /// `host:port`; port 0 takes a free one.
    #[serde(deserialize_with = "scalar::text")]
    pub listen: String,
}

/// How the workers of one process pace themselves. An epoch ends by time, rows or bytes, whichever is first.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Worker {
    /// `None`: one per core.
    #[serde(deserialize_with = "scalar::optional_count")]
    pub threads: Option<usize>,
    #[serde(deserialize_with = "scalar::duration")]
    pub epoch: Duration,
    #[serde(deserialize_with = "scalar::count")]
    pub epoch_rows: usize,
    #[serde(deserialize_with = "scalar::size")]
    pub epoch_bytes: u64,
    #[serde(deserialize_with = "scalar::duration")]
    pub checkpoint_interval: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            brokers: None,
            kafka: BTreeMap::new(),
            kafka_outage: None,
            registry: Registry::default(),
            data_dir: PathBuf::from(".headwater"),
            state: State::default(),
            lake: Lake::default(),
            s3: S3::default(),
            http: Http::default(),
            log: Log::default(),
            worker: Worker::default(),
        }
    }
}

impl Default for State {
    fn default() -> Self {
        Self { url: None, budget: 256 << 20 }
    }
}

impl Default for S3 {
    fn default() -> Self {
        Self {
            endpoint: None,
            region: "us-east-1".to_owned(),
            access_key_id: None,
            secret_access_key: None,
            session_token: None,
            path_style: true,
        }
    }
}

impl Default for Http {
    fn default() -> Self {
        Self { listen: "127.0.0.1:9464".to_owned() }
    }
}

impl Default for Worker {
    fn default() -> Self {
        Self {
            threads: None,
            epoch: Duration::from_millis(200),
            epoch_rows: 500_000,
            epoch_bytes: 64 << 20,
            checkpoint_interval: Duration::from_secs(30),
        }
    }
}

impl Worker {
    /// The threads to start: the number set, or one per core.
    pub fn thread_count(&self) -> usize {
        self.threads.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from))
    }
}
