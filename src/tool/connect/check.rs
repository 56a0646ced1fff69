//! `connect check`: is a connector's file right, and what would it make of what is there?

use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::connect::ConnectError;
use crate::connect::Connector;
use crate::connect::files::{Sample, sample};
use crate::serve::text::{count, number};
use crate::tool::{Printer, Result, ToolError};

#[derive(Serialize)]
struct Checked<'a> {
    file: &'a Path,
    ok: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    connector: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    topic: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    problem: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    help: Option<String>,
}

/// Looks at every file; the first that is wrong is the error, the others are told on the way.
pub fn check(files: &[PathBuf], out: &mut Printer) -> Result<()> {
    let mut wrong: Option<ToolError> = None;
    for file in files {
        let outcome = Connector::load(file).and_then(|connector| {
            let sampled = sample(&connector.files).map_err(ConnectError::Source)?;
            Ok((connector, sampled))
        });
        match outcome {
            Ok((connector, sampled)) if out.json() => {
                let (name, topic) = (Some(connector.name.as_str()), Some(connector.topic()));
                out.object(&Checked { file, ok: true, connector: name, topic, problem: None, help: None })?;
                drop(sampled);
            }
            Ok((connector, sampled)) => describe(file, &connector, &sampled, out)?,
            Err(error) => {
                if out.json() {
                    let (problem, help) = (Some(error.to_string()), error.help());
                    out.object(&Checked { file, ok: false, connector: None, topic: None, problem, help })?;
                    wrong.get_or_insert(ToolError::Reported { exit_code: 2 });
                } else if let Some(earlier) = wrong.replace(error.into()) {
                    out.line(&format!("error: {earlier}"))?;
                }
            }
        }
    }
    wrong.map_or(Ok(()), Err)
}

fn describe(file: &Path, connector: &Connector, sampled: &Sample, out: &mut Printer) -> Result<()> {
    out.line(&format!("{}: the connector '{}' is right", file.display(), connector.name))?;
    let mebibytes = sampled.bytes as f64 / f64::from(1 << 20);
    out.line(&format!(
        "  reads {} ({mebibytes:.1} MiB) of {}",
        count(sampled.files as u64, "file"),
        connector.files.path
    ))?;
    out.line(&format!("  writes to the topic {}", connector.topic()))?;
    let Some(name) = &sampled.file else {
        return out.line("  there is no record yet to show columns of");
    };
    let read = number((sampled.records + sampled.letters_count) as u64);
    out.line(&format!("  of the first {read} records of {name}, {} can't be read", sampled.letters_count))?;
    for letter in &sampled.letters {
        out.line(&format!("    {letter}"))?;
    }
    if let Some(value) = &sampled.first_value {
        out.line(&format!("  the first: {value}"))?;
    }
    if !sampled.proposed.is_empty() {
        let types: Vec<String> =
            sampled.proposed.iter().map(|(name, ty)| format!("{}: {ty}", scalar(name))).collect();
        out.line("  Cells are text unless their type is declared. These look like more; a guess to edit:")?;
        out.line(&format!("format: {{csv: {{types: {{{}}}}}}}", types.join(", ")))?;
    }
    if sampled.columns.is_empty() {
        return Ok(());
    }
    let with = if sampled.proposed.is_empty() { "A" } else { "With them a" };
    out.line(&format!("  {with} topology reads the topic {} as:", connector.topic()))?;
    out.line("columns:")?;
    for column in &sampled.columns {
        let proposed = sampled.proposed.iter().find(|(name, _)| *name == column.name);
        let ty = proposed.map_or(&column.ty, |(_, ty)| ty);
        out.line(&format!("  {}: {ty}", scalar(&column.name)))?;
    }
    Ok(())
}

/// A name as YAML takes it.
fn scalar(name: &str) -> String {
    let plain = name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
    match plain && !name.is_empty() && !name.starts_with(|c: char| c.is_ascii_digit()) {
        true => name.to_owned(),
        false => format!("{name:?}"),
    }
}
