//! The integration tests, in one binary: each further one would link everything once more.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::disallowed_methods)]

mod broker;
mod chaos;
mod cli;
mod connect;
mod deploy;
mod docs;
mod emit;
mod engine;
mod engine_faults;
mod faults;
mod formats;
mod fuzz;
mod harness;
mod kill;
mod lake;
mod log_conformance;
mod oracle;
mod project;
mod redrive;
mod s3;
mod support;
mod tidy;
mod tls;
mod versions;

#[global_allocator]
static ALLOCATOR: fuzz::memory::Counting = fuzz::memory::Counting;
