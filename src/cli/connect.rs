//! `headwater connect`.

use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

use clap::{Args, Subcommand};

use super::Global;
use crate::tool::{Result, connect};

/// Source connectors: files become topics, each line exactly once
#[derive(Debug, Args)]
pub struct Connect {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Run(Run),
    Check(Check),
    Status(Status),
    Pause(Pause),
    Resume(Resume),
}

/// Run connectors: what comes into their sources goes to their topics, exactly once
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  headwater connect run connectors/*.yaml                        until Ctrl-C: it commits and leaves the group
  headwater connect run connectors/weather.yaml --until-caught-up

A process that is killed goes on where its last commit ended. One that is started on a second machine stands by.")]
struct Run {
    /// The connectors' files
    #[arg(value_name = "CONNECTOR", required = true)]
    files: Vec<PathBuf>,
    /// Stop, committed, once all that is there is read
    #[arg(long)]
    until_caught_up: bool,
}

/// Validate connectors' files, and show what they would make of what is there
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  headwater connect check connectors/*.yaml")]
struct Check {
    /// The connectors' files
    #[arg(value_name = "CONNECTOR", required = true)]
    files: Vec<PathBuf>,
}

/// How far connectors are: what their last commit says
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  headwater connect status
  headwater connect status weather --json")]
struct Status {
    /// A connector's name [default: all]
    #[arg(value_name = "NAME")]
    name: Option<String>,
}

/// Let a connector read nothing until it is resumed, also over restarts
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  headwater connect pause weather")]
struct Pause {
    /// The connector's name
    #[arg(value_name = "NAME")]
    name: String,
}

/// Let a connector that was paused go on where it stands
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  headwater connect resume weather")]
struct Resume {
    /// The connector's name
    #[arg(value_name = "NAME")]
    name: String,
}

fn tell(global: &Global, name: &str, what: connect::Command) -> Result<()> {
    let cluster = global.open_cluster()?;
    let mut out = global.printer();
    connect::command(&*cluster.log, name, what, &mut out)?;
    out.flush()
}

impl Connect {
    pub fn run(self, global: &Global) -> Result<()> {
        let mut out = global.printer();
        match self.command {
            Command::Run(run) => {
                connect::run(&global.load_config()?, &run.files, run.until_caught_up, &mut out)
            }
            Command::Check(check) => {
                let outcome = connect::check(&check.files, &mut out);
                out.flush()?;
                outcome
            }
            Command::Pause(pause) => tell(global, &pause.name, connect::Command::Pause),
            Command::Resume(resume) => tell(global, &resume.name, connect::Command::Resume),
            Command::Status(status) => {
                let cluster = global.open_cluster()?;
                let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
                let now_ms = i64::try_from(now.as_millis()).unwrap_or(i64::MAX);
                connect::status(&*cluster.log, status.name.as_deref(), now_ms, &mut out)?;
                out.flush()
            }
        }
    }
}
