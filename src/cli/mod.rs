//! The command line: one file a command. A file holds a command's arguments and help, and one call of `tool`.
//!
//! Exit codes: 0 good, 1 failed, 2 what the user gave is wrong. An error is printed once, on stderr, as
//! `error: …` and, where there is something to do about it, `help: …`.

mod broker;
mod check;
mod connect;
mod demo;
mod dlq;
mod init;
mod lag;
mod replay;
mod reset;
mod run;
mod schema;
mod status;
mod test;
mod topic;
mod verify;

use std::io::{IsTerminal, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{ArgAction, Args, Parser, Subcommand};
use tracing_subscriber::EnvFilter;

use crate::config::{Config, LogFormat, LogLevel};
use crate::tool::cluster::{self, Cluster};
use crate::tool::{Printer, Result, ToolError};

const EXAMPLES: &str = "\
Examples:
  headwater demo                                    see it work on a month of real flights
  headwater init                                    a topology and a config to start from
  headwater topic produce orders orders.ndjson --partitions 4
  headwater topic tail orders --from-beginning -n 5

Without --brokers (or 'brokers' in the config) an embedded broker keeps its topics in .headwater/broker.";

/// A Kappa-style stream processor: one binary from a laptop to a Kafka cluster, and a replay that equals the
/// live run.
#[derive(Debug, Parser)]
#[command(name = "headwater", version, after_help = EXAMPLES, max_term_width = 110)]
struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Demo(demo::Demo),
    Init(init::Init),
    Check(check::Check),
    Connect(connect::Connect),
    Run(run::Run),
    Replay(replay::Replay),
    Verify(verify::Verify),
    Lag(lag::Lag),
    Status(status::Status),
    Dlq(dlq::Dlq),
    Reset(reset::Reset),
    Test(test::Test),
    Schema(schema::Schema),
    Topic(topic::Topic),
    Broker(broker::Broker),
}

/// What every command takes. A flag wins over the file.
#[derive(Debug, Args)]
pub(crate) struct Global {
    /// The config file [default: config/headwater.yaml, if it is there]
    #[arg(long, global = true, value_name = "FILE", help_heading = "Everywhere")]
    config: Option<PathBuf>,
    /// Kafka's addresses, host:port,…; without any, the embedded broker
    #[arg(long, global = true, value_name = "ADDRESSES", help_heading = "Everywhere")]
    brokers: Option<String>,
    /// Where Headwater keeps what is its own on this machine [default: .headwater]
    #[arg(long, global = true, value_name = "DIR", help_heading = "Everywhere")]
    data_dir: Option<PathBuf>,
    /// Print one JSON object a line
    #[arg(long, global = true, help_heading = "Everywhere")]
    json: bool,
    /// Say more on stderr about what is done; twice: all of it
    #[arg(short, long, global = true, action = ArgAction::Count, help_heading = "Everywhere")]
    verbose: u8,
    /// The log on stderr: text, or an object a line [default: text]
    #[arg(long, global = true, value_name = "text|json", help_heading = "Everywhere")]
    log_format: Option<LogFormat>,
    /// Say nothing below this level: error, warn, info, debug [default: warn]
    #[arg(long, global = true, value_name = "LEVEL", help_heading = "Everywhere")]
    log_level: Option<LogLevel>,
}

impl Global {
    pub(crate) fn printer(&self) -> Printer {
        Printer::stdout(self.json)
    }

    /// The config file with the flags over it.
    pub(crate) fn load_config(&self) -> Result<Config> {
        let mut config = Config::load(self.config.as_deref())?;
        if let Some(brokers) = &self.brokers {
            config.brokers = Some(brokers.clone());
        }
        if let Some(data_dir) = &self.data_dir {
            config.data_dir = data_dir.clone();
        }
        Ok(config)
    }

    pub(crate) fn open_cluster(&self) -> Result<Cluster> {
        cluster::open(&self.load_config()?)
    }

    fn start_log(&self) {
        // What is wrong with the config is said by the command that needs it.
        let log = Config::load(self.config.as_deref()).map(|config| config.log).unwrap_or_default();
        let level = self.log_level.or(match self.verbose {
            0 => log.level,
            1 => Some(LogLevel::Info),
            _ => Some(LogLevel::Debug),
        });
        // What the client library says of a broken connection it says each time; our own error says it once.
        let filter = match level.unwrap_or(LogLevel::Warn) {
            LogLevel::Error => "error",
            LogLevel::Warn => "warn,librdkafka=error",
            LogLevel::Info => "info",
            LogLevel::Debug => "debug",
        };
        let lines = tracing_subscriber::fmt()
            .with_env_filter(EnvFilter::new(filter))
            .with_writer(std::io::stderr)
            .with_target(false)
            // It would be told on stderr, with a panic where that is closed.
            .log_internal_errors(false);
        // A second start in one process keeps the first: nothing is lost by that.
        let _ = match self.log_format.unwrap_or(log.format) {
            LogFormat::Text => lines.with_ansi(std::io::stderr().is_terminal()).try_init(),
            LogFormat::Json => lines.json().flatten_event(true).try_init(),
        };
    }
}

/// Has all threads allocate from a few heaps. By glibc's defaults each thread that writes a checkpoint may have another
/// one, and each keeps what was freed in it: twice the memory, at a million keys of state, for no time saved.
#[cfg(target_env = "gnu")]
fn share_heaps() {
    const HEAPS_MAX: libc::c_int = 2;
    // SAFETY: sets a parameter of the allocator, before there is a second thread. A refusal changes nothing.
    unsafe { libc::mallopt(libc::M_ARENA_MAX, HEAPS_MAX) };
}

/// Parses the arguments, does what they say, and prints the error if there is one.
pub fn main() -> ExitCode {
    #[cfg(target_env = "gnu")]
    share_heaps();
    let Cli { global, command } = Cli::parse();
    global.start_log();
    let outcome = match command {
        Command::Demo(demo) => demo.run(&global),
        Command::Run(run) => run.run(&global),
        Command::Replay(replay) => replay.run(&global),
        Command::Verify(verify) => verify.run(&global),
        Command::Lag(lag) => lag.run(&global),
        Command::Status(status) => status.run(&global),
        Command::Dlq(dlq) => dlq.run(&global),
        Command::Reset(reset) => reset.run(&global),
        Command::Init(init) => init.run(&global),
        Command::Check(check) => check.run(&global),
        Command::Connect(connect) => connect.run(&global),
        Command::Test(test) => test.run(&global),
        Command::Schema(schema) => schema.run(&global),
        Command::Broker(broker) => broker.run(&global),
        Command::Topic(topic) => topic.run(&global),
    };
    let Err(error) = outcome else { return ExitCode::SUCCESS };
    // Nobody may be reading that either.
    let mut stderr = std::io::stderr();
    for message in error.messages() {
        let _ = writeln!(stderr, "error: {message}");
    }
    if let Some(help) = error.help() {
        let _ = writeln!(stderr, "help: {help}");
    }
    ExitCode::from(error.exit_code())
}

/// Asks on the terminal; where nobody sits there, an option has to say it, which `help` names.
fn ask(question: &str, help: &str) -> Result<bool> {
    if !std::io::stdin().is_terminal() {
        return Err(ToolError::input_with_help(format!("{question} Nobody can be asked here"), help));
    }
    let mut stderr = std::io::stderr();
    let mut answer = String::new();
    write!(stderr, "{question} [y/N] ")
        .and_then(|()| stderr.flush())
        .and_then(|()| std::io::stdin().read_line(&mut answer))
        .map_err(ToolError::io("cannot ask on the terminal"))?;
    Ok(matches!(answer.trim().to_lowercase().as_str(), "y" | "yes"))
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_arguments_are_consistent_and_every_command_has_an_example() {
        let command = Cli::command();
        command.clone().debug_assert();
        fn check(command: &clap::Command) {
            if command.has_subcommands() {
                command.get_subcommands().for_each(check);
            } else {
                let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
                assert!(help.contains("headwater "), "{} has no example", command.get_name());
            }
        }
        check(&command);
    }
}
