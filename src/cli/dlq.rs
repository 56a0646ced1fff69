//! `headwater dlq list|show|redrive|purge`.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};

use super::{Global, ask};
use crate::tool::dead_letters::{self, Edits, Filters, PurgeOptions, RedriveOptions};
use crate::tool::{Result, Stop, ToolError, topology_file};

/// Dead letters, records that could not be processed: look at them, send them back, delete them
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
    /// Send their records back to where they came from, each once
    #[command(after_help = "\
Examples:
  headwater dlq redrive topologies/flights/flights.yaml --reason check --dry-run
  headwater dlq redrive flights.yaml --partition 0 --offset 2 --value fixed.json
  headwater dlq list flights.yaml --json | jq -c '.value |= (fromjson | .origin = \"JFK\")' |
    headwater dlq redrive flights.yaml --edited -

A record is read again as a new one at the end of its partition, with its key, value and headers, and with \
headwater.attempt: how often it has died. What was redriven is in TOPOLOGY.redriven; a second redrive, a replay and \
a run that begins anew leave the originals out. It may run while the topology does. Late records are not redriven, \
they would be late again: headwater replay --late all has them in their place.")]
    Redrive(Redrive),
    /// Delete them, for good
    #[command(after_help = "\
Examples:
  headwater dlq purge flights --before 30d
  headwater dlq purge flights --partition 0 --yes

A topic can only be cut from its start: where other letters stand before those that match, nothing is deleted.")]
    Purge(Purge),
}

#[derive(Debug, Args)]
struct Redrive {
    #[command(flatten)]
    select: Select,
    /// At most so many records a second
    #[arg(long, value_name = "RECORDS", value_parser = rate)]
    rate: Option<f64>,
    /// Only say what would be redriven
    #[arg(long)]
    dry_run: bool,
    /// The corrected value of the one letter at --partition and --offset; `-` is standard input
    #[arg(long, value_name = "FILE", requires_all = ["partition", "offset"], conflicts_with = "edited")]
    value: Option<PathBuf>,
    /// Redrive exactly these letters, corrected: lines of `dlq list --json`; `-` is standard input
    #[arg(long, value_name = "FILE")]
    edited: Option<PathBuf>,
}

#[derive(Debug, Args)]
struct Purge {
    #[command(flatten)]
    select: Select,
    /// Do not ask
    #[arg(long)]
    yes: bool,
    /// Only say what would be deleted
    #[arg(long)]
    dry_run: bool,
}

fn rate(text: &str) -> std::result::Result<f64, String> {
    match text.parse::<f64>() {
        Ok(rate) if rate > 0.0 && rate.is_finite() => Ok(rate),
        _ => Err("a rate is a number above 0".to_owned()),
    }
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
    /// Only what died before: a duration back (30d) or a time (2026-01-31)
    #[arg(long, value_name = "WHEN")]
    before: Option<String>,
    /// Only this partition of the dead letter topic
    #[arg(long)]
    partition: Option<i32>,
    /// Only this offset of the dead letter topic
    #[arg(long)]
    offset: Option<i64>,
}

impl Select {
    fn file(&self) -> Option<&Path> {
        let path = Path::new(&self.topology);
        path.extension().is_some_and(|ending| ending == "yaml" || ending == "yml").then_some(path)
    }

    fn topology(&self) -> Result<String> {
        Ok(match self.file() {
            Some(path) => topology_file::load(path)?.name.to_string(),
            None => self.topology.clone(),
        })
    }

    fn filters(&self) -> Result<Filters> {
        let now_ms = chrono::Utc::now().timestamp_millis();
        let when =
            |text: &Option<String>| text.as_deref().map(|text| Filters::since(text, now_ms)).transpose();
        let (since, before) = (when(&self.since)?, when(&self.before)?);
        Ok(Filters {
            reason: self.reason.clone(),
            since_ms: since,
            before_ms: before,
            partition: self.partition,
            offset: self.offset,
        })
    }
}

impl Dlq {
    pub fn run(self, global: &Global) -> Result<()> {
        let mut out = global.printer();
        let json = out.json();
        match self.command {
            Command::List(select) => {
                let (topology, filters) = (select.topology()?, select.filters()?);
                let cluster = global.open_cluster()?;
                dead_letters::list(&*cluster.log, &topology, &filters, &mut out, json)?;
            }
            Command::Show(select) => {
                let (topology, filters) = (select.topology()?, select.filters()?);
                let cluster = global.open_cluster()?;
                dead_letters::show(&*cluster.log, &topology, &filters, &mut out, json)?;
            }
            Command::Redrive(redrive) => {
                let Some(file) = redrive.select.file() else {
                    return Err(ToolError::input_with_help(
                        format!(
                            "redrive needs the topology's file, not its name ('{}')",
                            redrive.select.topology
                        ),
                        "which records may go back, and where to, depends on the sources and views in it",
                    ));
                };
                let plan = topology_file::load(file)?;
                let options = redrive.options()?;
                let stop = Stop::on_signals()?;
                let cluster = global.open_cluster()?;
                dead_letters::redrive(&plan, &*cluster.log, &options, &stop, &mut out)?;
            }
            Command::Purge(purge) => {
                let topology = purge.select.topology()?;
                let options = PurgeOptions { filters: purge.select.filters()?, dry_run: purge.dry_run };
                let cluster = global.open_cluster()?;
                let help = "say so with --yes; --dry-run shows what would be deleted";
                let mut confirm = |question: &str| if purge.yes { Ok(true) } else { ask(question, help) };
                dead_letters::purge(&*cluster.log, &topology, &options, &mut confirm, &mut out)?;
            }
        }
        out.flush()
    }
}

impl Redrive {
    fn options(&self) -> Result<RedriveOptions> {
        let open = |path: &Path| -> Result<(Box<dyn BufRead>, String)> {
            if path == Path::new("-") {
                return Ok((Box::new(std::io::stdin().lock()), "standard input".to_owned()));
            }
            let name = path.display().to_string();
            let file = std::fs::File::open(path)
                .map_err(|error| ToolError::input(format!("cannot read {name}: {error}")))?;
            Ok((Box::new(BufReader::new(file)), name))
        };
        let edits = match (&self.value, &self.edited, self.select.partition, self.select.offset) {
            (Some(path), _, Some(partition), Some(offset)) => {
                let (mut input, name) = open(path)?;
                let mut value = Vec::new();
                input.read_to_end(&mut value).map_err(ToolError::io(format!("cannot read {name}")))?;
                // An editor ends the last line; the record does not end with it.
                let end = value.trim_ascii_end().len();
                value.truncate(end);
                Some(Edits::value(partition, offset, value))
            }
            (_, Some(path), ..) => {
                let (input, name) = open(path)?;
                Some(Edits::read(input, &name)?)
            }
            _ => None,
        };
        Ok(RedriveOptions { filters: self.select.filters()?, rate: self.rate, dry_run: self.dry_run, edits })
    }
}
