//! `topic infer`: a topic's records become a `columns:` block to paste into a topology, and to edit.

use std::ops::ControlFlow;

use serde::Serialize;

use crate::codec::json::{Inferred, infer as infer_columns};
use crate::log::Log;
use crate::tool::{Printer, Result, Stop, ToolError};

use super::scan::{scan, spans};

#[derive(Clone, Debug)]
pub struct InferOptions {
    pub topic: String,
    /// How many records to look at, an equal share from the start of each partition.
    pub count: usize,
}

#[derive(Serialize)]
struct Column<'a> {
    name: &'a str,
    r#type: String,
    nullable: bool,
    example: Option<&'a str>,
}

/// Prints the columns that the topic's first records show, each with an example.
pub fn infer(log: &dyn Log, options: &InferOptions, stop: &Stop, out: &mut Printer) -> Result<()> {
    let (values, tombstones) = sample(log, options, stop)?;
    if values.is_empty() {
        let why = if tombstones > 0 { "only tombstones" } else { "no records" };
        return Err(ToolError::input(format!("the topic '{}' holds {why} to infer from", options.topic)));
    }
    let columns = infer_columns(values.iter().map(Vec::as_slice));
    if columns.is_empty() {
        return Err(ToolError::input_with_help(
            format!("none of the {} records of '{}' is a JSON object", values.len(), options.topic),
            format!("look at them with: headwater topic tail {} -n 3", options.topic),
        ));
    }
    if out.json() {
        return columns.iter().try_for_each(|column| {
            let Inferred { name, ty, nullable, example } = column;
            let example = example.as_deref();
            out.object(&Column { name, r#type: ty.to_string(), nullable: *nullable, example })
        });
    }
    out.line(&format!("# Inferred from {} records of {}: a guess to edit.", values.len(), options.topic))?;
    block(&columns).iter().try_for_each(|line| out.line(line))
}

/// The values of up to `count` records, and how many of them were tombstones.
fn sample(log: &dyn Log, options: &InferOptions, stop: &Stop) -> Result<(Vec<Vec<u8>>, usize)> {
    let mut held = spans(log, &options.topic)?;
    let filled = held.iter().filter(|span| span.from < span.to).count().max(1);
    let share = i64::try_from(options.count.div_ceil(filled)).unwrap_or(i64::MAX);
    for span in &mut held {
        span.to = span.to.min(span.from.saturating_add(share));
    }
    let mut values = Vec::new();
    let mut tombstones = 0;
    scan(log, &held, stop, &mut |_, record| {
        match record.value {
            Some(value) => values.push(value),
            None => tombstones += 1,
        }
        Ok(if values.len() < options.count { ControlFlow::Continue(()) } else { ControlFlow::Break(()) })
    })?;
    Ok((values, tombstones))
}

/// YAML, one column a line, the comments under each other.
fn block(columns: &[Inferred]) -> Vec<String> {
    let entries: Vec<String> =
        columns.iter().map(|column| format!("  {}: {}", yaml_key(&column.name), column.ty)).collect();
    let width = entries.iter().map(|entry| entry.chars().count()).max().unwrap_or(0);
    let lines = columns.iter().zip(&entries).map(|(column, entry)| {
        let mut notes = Vec::new();
        if let Some(example) = &column.example {
            notes.push(format!("e.g. {}", shortened(example)));
        }
        if column.nullable {
            notes.push(if column.example.is_some() { "sometimes null" } else { "always null" }.to_owned());
        }
        if notes.is_empty() { entry.clone() } else { format!("{entry:<width$}  # {}", notes.join("; ")) }
    });
    std::iter::once("columns:".to_owned()).chain(lines).collect()
}

/// A name as a YAML key: in quotes unless it is a plain word.
fn yaml_key(name: &str) -> String {
    let plain = name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
        && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
        && !matches!(
            name.to_lowercase().as_str(),
            "y" | "n" | "yes" | "no" | "on" | "off" | "true" | "false" | "null"
        );
    // A JSON string is a YAML double-quoted one.
    if plain { name.to_owned() } else { serde_json::Value::from(name).to_string() }
}

fn shortened(example: &str) -> String {
    const LONGEST: usize = 40;
    let mut text: String = example.chars().take(LONGEST).collect();
    if text.len() < example.len() {
        text.push('…');
    }
    text
}
