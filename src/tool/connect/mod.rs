//! `connect`: source connectors, run, checked and looked at.

mod check;
mod command;
mod run;
mod status;

pub use check::check;
pub use command::{Command, command};
pub use run::run;
pub use status::status;
