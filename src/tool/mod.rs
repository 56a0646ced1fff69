//! What commands do, without the command line: each function takes the cluster and its options, and prints
//! through a [`Printer`], so that tests call what users call.
//!
//! Invariant: nothing here parses arguments or ends the process; [`ToolError`] says with which code to end.

pub mod broker;
pub mod check;
pub mod cluster;
pub mod connect;
pub mod dead_letters;
pub mod demo;
mod error;
pub mod init;
mod input;
pub mod lag;
mod outage;
mod printer;
pub mod replay;
pub mod reset;
pub mod run;
pub mod status;
mod stop;
pub mod topic;
pub mod topology_file;
pub mod topology_test;
pub mod verify;
pub mod watch;

pub use error::{Result, ToolError};
pub use input::StoppableInput;
pub use printer::Printer;
pub use stop::Stop;
