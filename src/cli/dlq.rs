//! `headwater dlq list|show`.

use std::path::Path;

use clap::{Args, Subcommand};

use super::Global;
use crate::plan;
use crate::tool::Result;
use crate::tool::dead_letters::{self, Filters};

/// Look at dead letters: records that could not be processed, with where and why
#[derive(Debug, Args)]
pub struct Dlq {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// A line for each dead letter, and how many there are for each reason
    #[command(after_help = "\
Examples:
  headwater dlq list topologies/flights/flights.yaml
  headwater dlq list flights --reason check --since 2h --json")]
    List(Select),
    /// Dead letters whole: headers, key and value
    #[command(after_help = "Example:\n  headwater dlq show flights --partition 0 --offset 2")]
    Show(Select),
}

#[derive(Debug, Args)]
struct Select {
    /// A topology's file, or its name
    #[arg(value_name = "TOPOLOGY")]
    topology: String,
    /// Only this reason; `check` is every check:NAME
    #[arg(long)]
    reason: Option<String>,
    /// Only what died since: a duration back (2h) or a time (2026-01-31T12:00:00Z)
    #[arg(long, value_name = "WHEN")]
    since: Option<String>,
    /// Only this partition of the dead letter topic
    #[arg(long)]
    partition: Option<i32>,
    /// Only this offset of the dead letter topic
    #[arg(long)]
    offset: Option<i64>,
}

impl Select {
    fn topology(&self) -> Result<String> {
        let path = Path::new(&self.topology);
        let is_file = path.extension().is_some_and(|ending| ending == "yaml" || ending == "yml");
        Ok(if is_file { plan::load(path)?.name.to_string() } else { self.topology.clone() })
    }

    fn filters(&self) -> Result<Filters> {
        let now_ms = chrono::Utc::now().timestamp_millis();
        let since = self.since.as_deref().map(|since| Filters::since(since, now_ms)).transpose()?;
        Ok(Filters {
            reason: self.reason.clone(),
            since_ms: since,
            partition: self.partition,
            offset: self.offset,
        })
    }
}

impl Dlq {
    pub fn run(self, global: &Global) -> Result<()> {
        let (Command::List(select) | Command::Show(select)) = &self.command;
        let (topology, filters) = (select.topology()?, select.filters()?);
        let cluster = global.open_cluster()?;
        let mut out = global.printer();
        let json = out.json();
        match self.command {
            Command::List(_) => {
                dead_letters::list(&*cluster.log, &topology, &filters, &mut out, json)?;
            }
            Command::Show(_) => {
                dead_letters::show(&*cluster.log, &topology, &filters, &mut out, json)?;
            }
        }
        out.flush()
    }
}
