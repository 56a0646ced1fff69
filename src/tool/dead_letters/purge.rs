//! `headwater dlq purge`: dead letters are deleted, for good.
//!
//! Invariant: a topic can only be cut from its start. Where that would take letters that do not match as well, or
//! leave some that do, nothing at all is deleted.

use std::ops::ControlFlow;

use serde::Serialize;

use super::{DeadLetter, DeadLetterError, Filters, visit};
use crate::engine::Redriven;
use crate::log::{Log, Span};
use crate::record::TopicPartition;
use crate::serve::text;
use crate::tool::{Printer, Result, ToolError};

#[derive(Clone, Debug, Default)]
pub struct PurgeOptions {
    pub filters: Filters,
    /// Only says what would be done.
    pub dry_run: bool,
}

/// What is deleted of one partition.
#[derive(Serialize)]
struct Cut {
    topic: String,
    partition: i32,
    /// Everything before it goes.
    before: i64,
    letters: u64,
    /// Of these letters those that were redriven.
    redriven: u64,
    deleted: bool,
    /// The first letter that does not match.
    #[serde(skip)]
    kept: Option<DeadLetter>,
    /// Letters behind that one which do match.
    #[serde(skip)]
    behind: u64,
}

/// Deletes the dead letters that match, once `confirm` says yes to the question it is asked.
pub fn purge(
    log: &dyn Log,
    topology: &str,
    options: &PurgeOptions,
    confirm: &mut dyn FnMut(&str) -> Result<bool>,
    out: &mut Printer,
) -> Result<()> {
    let mut cuts = cuts(log, topology, &options.filters)?;
    if let Some(blocked) = cuts.iter().find(|cut| cut.behind > 0) {
        return Err(refusal(blocked));
    }
    cuts.retain(|cut| cut.letters > 0);
    let letters: u64 = cuts.iter().map(|cut| cut.letters).sum();
    let redriven: u64 = cuts.iter().map(|cut| cut.redriven).sum();
    let all = text::count(letters, "dead letter");
    if letters > 0 && !options.dry_run {
        let lost = match letters - redriven {
            0 => "all of them were redriven".to_owned(),
            lost => format!("{} of them never redriven", text::number(lost)),
        };
        if !confirm(&format!("delete {all} of topology '{topology}' for good, {lost}?"))? {
            return Err(ToolError::Failed { message: "nothing was deleted".to_owned(), help: None });
        }
        let offsets: Vec<_> = cuts
            .iter()
            .map(|cut| (TopicPartition::new(cut.topic.as_str(), cut.partition), cut.before))
            .collect();
        log.delete_before(&offsets)?;
        cuts.iter_mut().for_each(|cut| cut.deleted = true);
    }
    if out.json() {
        cuts.iter().try_for_each(|cut| out.object(cut))?;
    } else {
        let done = if options.dry_run { "would be deleted" } else { "deleted" };
        for cut in &cuts {
            let count = text::count(cut.letters, "dead letter");
            out.line(&format!(
                "{}/{}: {count} {done}, up to offset {}",
                cut.topic, cut.partition, cut.before
            ))?;
        }
        out.line(&format!("{all} {done}"))?;
    }
    out.flush()
}

fn cuts(log: &dyn Log, topology: &str, filters: &Filters) -> Result<Vec<Cut>> {
    let topic = format!("{topology}.dead");
    let redriven = Redriven::read(topology, log)?;
    let mut cuts: Vec<Cut> = Span::of_topic(log, &topic)?
        .unwrap_or_default()
        .into_iter()
        .map(|span| Cut {
            topic: topic.clone(),
            partition: span.partition.partition,
            before: span.to,
            letters: 0,
            redriven: 0,
            deleted: false,
            kept: None,
            behind: 0,
        })
        .collect();
    // All letters of these partitions: those that do not match decide as well.
    let everything = Filters { partition: filters.partition, ..Filters::default() };
    visit(log, topology, &everything, &mut |letter| {
        let Some(cut) = cuts.get_mut(letter.position.partition as usize) else {
            return Ok(ControlFlow::Continue(()));
        };
        match (filters.keeps(&letter), &cut.kept) {
            (true, None) if letter.offset < cut.before => {
                cut.letters += 1;
                cut.redriven += u64::from(letter.is_in(&redriven));
            }
            (true, Some(_)) => cut.behind += 1,
            (false, None) if letter.offset < cut.before => {
                cut.before = letter.offset;
                cut.kept = Some(letter);
            }
            // Died after the ends were taken, or not the first that stays.
            _ => {}
        }
        Ok::<_, DeadLetterError>(ControlFlow::Continue(()))
    })?;
    Ok(cuts)
}

fn refusal(blocked: &Cut) -> ToolError {
    let Cut { topic, partition, behind, kept, letters, .. } = blocked;
    let place = format!("{topic}/{partition}");
    let behind = match behind {
        1 => "1 letter that matches stands".to_owned(),
        more => format!("{} that match stand", text::count(*more, "letter")),
    };
    let (first, until) = kept.as_ref().map_or_else(Default::default, |letter| {
        let reason = text::printable(&letter.reason);
        (format!("offset {} ({reason})", letter.offset), text::time_ms(letter.timestamp_ms))
    });
    let before = match letters {
        0 => String::new(),
        _ => format!("delete what stands before it with --before {until}; or "),
    };
    ToolError::input_with_help(
        format!(
            "{place}: a topic can only be cut from its start, but {behind} behind {first}, which does \
             not match; nothing was deleted"
        ),
        format!(
            "{before}delete that one as well, by filters that it matches (--partition {partition} alone takes all of \
             them), or send it back first with: headwater dlq redrive; what is to stay can be copied with: headwater \
             topic tail {topic} --from-beginning --json"
        ),
    )
}
