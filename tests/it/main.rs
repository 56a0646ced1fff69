//! The integration tests, in one binary: each further one would link everything once more.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::disallowed_methods)]

mod broker;
mod cli;
mod engine;
mod lake;
mod faults;
mod kill;
mod log_conformance;
mod project;
mod support;
mod tidy;
