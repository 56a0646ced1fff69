//! Headwater: a Kappa-style stream processor whose batch replay equals its live run.
//!
//! # The flow
//! ```text
//! source ──► raw topics ──► ingest task ──► exchange ──► keyed task ──► refined topics
//!                │          decode, check,   (Arrow)      window aggregate
//!                │          project, partial              ──► Parquet (replay)
//!                │          aggregate ─► dead letters, late
//!                └──► replay from offset zero
//! ```
//! A **connector** fills raw topics from what lies outside of Kafka: its records and its position are one transaction.
//! A **task** reads exactly one topic partition, so its state and output are a deterministic function of
//! that partition's records. Rows that must meet by key meet in an **exchange**, an internal topic written
//! in the same transaction. The Kafka transaction is the only commit. A **checkpoint** only shortens the
//! fold over the log: recovery loads one at offset S, folds S..C with its output muted, and goes on from C.
//!
//! What people see of it comes from `serve`: metrics, and the page with its API, whose files are built from `web/`.
//!
//! # The rooms, in reading order
//! A room imports only rooms above it; `tests/it/tidy.rs` holds that order.
//!
//! Architecture invariant: `record`, `time`, `state`, `operator` and `plan` see no clock, no randomness, no
//! environment. A lint (`clippy.toml`, `disallowed-methods`) holds it; the rooms at the border opt out below.

#[cfg(feature = "planted-faults")]
pub mod planted;
#[cfg(not(feature = "planted-faults"))]
mod planted;

#[allow(clippy::disallowed_methods, reason = "config is the one room that reads the environment")]
pub mod config;

pub mod record;

pub mod time;

#[allow(clippy::disallowed_methods, reason = "a broker stamps records and times sessions out")]
pub mod broker;

#[allow(clippy::disallowed_methods, reason = "clients of a broker time out")]
pub mod log;

#[allow(clippy::disallowed_methods, reason = "what lies across a network is not waited for without end")]
pub mod objects;

pub mod codec;

pub mod state;

pub mod operator;

pub mod plan;

#[allow(clippy::disallowed_methods, reason = "manifests carry the time they were written")]
pub mod lake;

#[allow(clippy::disallowed_methods, reason = "epochs and idleness are measured by the wall clock")]
pub mod engine;

#[allow(clippy::disallowed_methods, reason = "what lies outside is looked at by the clock")]
pub mod connect;

#[allow(clippy::disallowed_methods, reason = "HTTP and rates need a clock")]
pub mod serve;

#[allow(clippy::disallowed_methods, reason = "progress and rates need a clock")]
pub mod tool;

#[allow(clippy::disallowed_methods, reason = "the terminal's side of the program")]
pub mod cli;
