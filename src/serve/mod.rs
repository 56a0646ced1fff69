//! What those who watch a topology see: lag, metrics, health.
//!
//! ```text
//! lag.rs      how far behind: from the group's committed offsets, so it works with no process running
//! pace.rs     how fast that changes, and when it will be caught up
//! text.rs     tables, durations and times as people read them
//! metrics.rs  the same numbers by Prometheus' names, for the partitions that this process has
//! history.rs  looks at the lag, and what happens a second between them
//! http.rs     the page, its API, /metrics, /healthz, /readyz
//! guard.rs    who is answered
//! assets.rs   the page's files
//! api/        what the page asks for: /api/v1, documented in docs/openapi.json
//! ```
//! Invariant: watching changes nothing: no group is joined, nothing is committed.
//! Invariant: a key of a record is never a label.

use std::io;

use crate::engine::EngineError;
use crate::log::LogError;

pub mod api;
mod assets;
mod guard;
mod history;
mod http;
mod lag;
mod metrics;
mod pace;
#[cfg(test)]
mod page_tests;
#[cfg(test)]
pub(crate) mod tests;
pub mod text;

pub use http::Server;
pub use lag::{Hold, HoldReason, LagReport, PartitionLag, lag, lag_at};
pub use metrics::{Metrics, Watched};
pub use pace::{Pace, PaceMeter};

pub type Result<T, E = ServeError> = std::result::Result<T, E>;

/// What can go wrong while watching.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    #[error(transparent)]
    Engine(#[from] EngineError),
    #[error(transparent)]
    Log(#[from] LogError),
    #[error(
        "cannot listen at {listen}: {source}; set http.listen in the config to a free address (port 0 takes any)"
    )]
    Listen { listen: String, source: io::Error },
    #[error("cannot serve HTTP: {0}")]
    Http(io::Error),
    #[error("cannot write the output: {0}")]
    Output(#[from] io::Error),
}
