//! `headwater topic list|create|tail|produce|infer|delete`.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::{Global, ask};
use crate::tool::topic::{
    CreateOptions, InferOptions, ListOptions, ProduceOptions, TailOptions, create, delete, infer, list,
    produce, tail,
};
use crate::tool::{Result, Stop, StoppableInput, ToolError};

/// Look into topics, create and delete them, and put records into them
#[derive(Debug, Args)]
pub struct Topic {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    List(List),
    Create(Create),
    Tail(Tail),
    Produce(Produce),
    Infer(Infer),
    Delete(Delete),
}

/// List topics with their partitions and the offsets they hold
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  headwater topic list --json | jq .topic")]
struct List {
    /// Also the cluster's own topics, whose names begin with __
    #[arg(long)]
    internal: bool,
}

/// Create a topic, its records stamped when they arrive (message.timestamp.type=LogAppendTime)
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  headwater topic create orders --partitions 4 -c retention.ms=604800000")]
struct Create {
    #[arg(value_name = "TOPIC")]
    topic: String,
    /// How many partitions: how far reading it can be spread
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(i32).range(1..))]
    partitions: i32,
    /// A topic setting by Kafka's name, NAME=VALUE; may be given more than once
    #[arg(short = 'c', long = "topic-config", value_name = "NAME=VALUE", value_parser = setting)]
    settings: Vec<(String, String)>,
}

/// Print a topic's records: value lines, or whole records with --json
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  headwater topic tail orders                       the last ten
  headwater topic tail orders --from-beginning -n 3 --key
  headwater topic tail orders --follow --json | jq .value")]
struct Tail {
    #[arg(value_name = "TOPIC")]
    topic: String,
    /// From the first record on, instead of the last ones
    #[arg(long)]
    from_beginning: bool,
    /// How many records at most [default: the last 10; with --from-beginning all]
    #[arg(short = 'n', long, value_name = "COUNT")]
    count: Option<usize>,
    /// Go on with what comes, until Ctrl-C
    #[arg(short, long)]
    follow: bool,
    /// Print the key, too: KEY, a tab, VALUE
    #[arg(long)]
    key: bool,
}

/// Send a record for each line of JSON
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  headwater topic produce orders orders.ndjson --key order_id --partitions 4
  echo '{\"order_id\": 9}' | headwater topic produce orders
  headwater topic tail a --from-beginning --json | headwater topic produce b --envelope --partitions 1

A line that is no record ends it: an error names the line and says how many records were sent before it.")]
struct Produce {
    #[arg(value_name = "TOPIC")]
    topic: String,
    /// One JSON value a line; - is standard input
    #[arg(value_name = "FILE", default_value = "-")]
    file: PathBuf,
    /// Fields that make the record's key; records with equal keys go to one partition
    #[arg(long, value_name = "FIELD,…", value_delimiter = ',')]
    key: Vec<String>,
    /// Lines are {key, value, headers, partition, timestamp}; all but the value may be left out
    #[arg(long, conflicts_with = "key")]
    envelope: bool,
    /// Create the topic with so many partitions if it is not there
    #[arg(long, value_parser = clap::value_parser!(i32).range(1..))]
    partitions: Option<i32>,
}

/// Guess a topology's columns from a topic's records
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  headwater topic infer orders -n 100")]
struct Infer {
    #[arg(value_name = "TOPIC")]
    topic: String,
    /// How many records to look at
    #[arg(short = 'n', long, value_name = "COUNT", default_value_t = 1000)]
    count: usize,
}

/// Delete a topic with all that is in it
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  headwater topic delete orders --yes")]
struct Delete {
    #[arg(value_name = "TOPIC")]
    topic: String,
    /// Do not ask
    #[arg(long)]
    yes: bool,
}

impl Topic {
    pub fn run(self, global: &Global) -> Result<()> {
        match self.command {
            Command::List(arguments) => arguments.run(global),
            Command::Create(arguments) => arguments.run(global),
            Command::Tail(arguments) => arguments.run(global),
            Command::Produce(arguments) => arguments.run(global),
            Command::Infer(arguments) => arguments.run(global),
            Command::Delete(arguments) => arguments.run(global),
        }
    }
}

impl List {
    fn run(self, global: &Global) -> Result<()> {
        let mut out = global.printer();
        list(&*global.open_cluster()?.log, &ListOptions { internal: self.internal }, &mut out)?;
        out.flush()
    }
}

impl Create {
    fn run(self, global: &Global) -> Result<()> {
        let mut out = global.printer();
        let options = CreateOptions {
            topic: self.topic,
            partitions: self.partitions,
            config: self.settings.into_iter().collect(),
        };
        create(&*global.open_cluster()?.log, &options, &mut out)?;
        out.flush()
    }
}

impl Tail {
    fn run(self, global: &Global) -> Result<()> {
        let mut out = global.printer();
        let stop = Stop::on_signals()?;
        const LAST: usize = 10;
        let options = TailOptions {
            topic: self.topic,
            from_beginning: self.from_beginning,
            count: self.count.or((!self.from_beginning).then_some(LAST)),
            follow: self.follow,
            key: self.key,
        };
        tail(&*global.open_cluster()?.log, &options, &stop, &mut out)?;
        out.flush()
    }
}

impl Produce {
    fn run(self, global: &Global) -> Result<()> {
        let mut out = global.printer();
        let stop = Stop::on_signals()?;
        let name = if self.file.as_os_str() == "-" {
            "standard input".to_owned()
        } else {
            self.file.display().to_string()
        };
        let mut input: Box<dyn BufRead> = if self.file.as_os_str() == "-" {
            Box::new(BufReader::new(StoppableInput::new(std::io::stdin(), stop.clone())))
        } else {
            let file = File::open(&self.file)
                .map_err(|error| ToolError::input(format!("cannot read {name}: {error}")))?;
            Box::new(BufReader::new(file))
        };
        let options = ProduceOptions {
            topic: self.topic,
            key: self.key,
            envelope: self.envelope,
            partitions: self.partitions,
        };
        produce(&*global.open_cluster()?.log, &options, &mut *input, &name, &stop, &mut out)?;
        out.flush()
    }
}

impl Infer {
    fn run(self, global: &Global) -> Result<()> {
        let mut out = global.printer();
        let stop = Stop::on_signals()?;
        let options = InferOptions { topic: self.topic, count: self.count };
        infer(&*global.open_cluster()?.log, &options, &stop, &mut out)?;
        out.flush()
    }
}

impl Delete {
    fn run(self, global: &Global) -> Result<()> {
        let mut out = global.printer();
        let help = "say so with --yes";
        let mut confirm = |question: &str| if self.yes { Ok(true) } else { ask(question, help) };
        delete(&*global.open_cluster()?.log, &self.topic, &mut confirm, &mut out)?;
        out.flush()
    }
}

fn setting(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err("write NAME=VALUE, e.g. retention.ms=604800000".to_owned()),
    }
}
