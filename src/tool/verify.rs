//! `headwater verify`: the live run's refined topics against a replay to the same cut, bit for bit.
//!
//! The cut R is what the group has committed of the sources. A window is compared if it is closed by the
//! watermark of every origin at R, idleness ignored: no record after R can change it, so it does not matter
//! whether the topology is running meanwhile. Compared is the last value of each key, and without keys how often
//! each row stands there once retractions have taken theirs away (protocol rule R8).
//!
//! A window whose `retention` was over in the live run when rows came for it, because their origin had been idle, lacks
//! them: its rows are listed, and are no difference.
//!
//! Records of before a version of the topology are another version's doing; where each version begins, the
//! meta topic says (protocol rule R12).

mod collect;
mod compare;
mod cut;
#[cfg(test)]
#[cfg(feature = "planted-faults")]
mod tests;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use serde::Serialize;

use crate::config::Config;
use crate::engine::{EngineError, ExpiredWindows, Meta, Progress, ReplayOptions, replay};
use crate::log::{Log, LogError};
use crate::plan::{Late, Plan, StageInput};
use crate::record::{Micros, TopicPartition};
use crate::serve::text;
use crate::time::{WATERMARK_MAX, WATERMARK_MIN};

use super::cluster;
use super::{Printer, Stop, ToolError, topology_file};

use collect::Collected;
use compare::{Live, Windows, compare};
use cut::Cut;

/// How a view compares.
#[derive(Debug, Default, Serialize)]
pub struct ViewReport {
    pub view: String,
    pub topic: String,
    /// Rows that were compared and are equal.
    pub equal: u64,
    pub differing: u64,
    /// Rows that the replay has and the live run will have once their window closes.
    pub pending: u64,
    /// Live rows of windows that are not closed for every origin at the cut; of a view without windows, all,
    /// where the live run has gone on meanwhile.
    pub not_compared: u64,
    /// Rows that an earlier version of the topology wrote, where this one would have written others.
    pub earlier_version: u64,
    /// Rows that differ because some came to the live run after the `retention` of their window.
    pub expired: u64,
    /// The first differing rows.
    pub differences: Vec<Difference>,
    /// The first expired ones.
    pub expired_rows: Vec<Difference>,
}

#[derive(Debug, Serialize)]
pub struct Difference {
    pub key: String,
    pub live: Option<String>,
    pub replay: Option<String>,
}

#[derive(Debug, Serialize)]
pub struct VerifyReport {
    /// Records read by the replay, up to the cut.
    pub records: u64,
    /// The least watermark of all origins at the cut, in microseconds; `None` before the first.
    pub watermark: Option<Micros>,
    /// The topology was closed: all of its windows are compared.
    pub ended: bool,
    /// It has windows; without, every row is compared, however far the run is.
    pub windowed: bool,
    pub views: Vec<ViewReport>,
    /// Rows that the live run could not apply because their window was past retention; a replay has them.
    pub state_expired: u64,
}

impl VerifyReport {
    pub fn is_equal(&self) -> bool {
        self.views.iter().all(|view| view.differing == 0)
    }
}

/// How to verify. Sizes in bytes.
pub struct VerifyOptions {
    pub threads: usize,
    pub state_budget: usize,
    pub scratch: Option<std::path::PathBuf>,
    /// How long to wait for the keyed tasks to come past the cut.
    pub patience: Duration,
    /// Differences that are kept whole, for each view.
    pub differences_max: usize,
}

#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    #[error("topology '{0}' has committed nothing yet; run it first: headwater run FILE --until-end")]
    NothingCommitted(String),
    #[error(
        "{partition}: the keyed task has not come past the cut within {waited} s: {behind} exchange records \
         wait; is the topology running? Finish it with: headwater run FILE --until-end"
    )]
    NotDrained { partition: TopicPartition, waited: u64, behind: u64 },
    #[error(
        "{partition}: a transaction is open in it for more than {waited} s, and hides what lies behind; Kafka ends one \
         that is left open after its transaction.timeout.ms: try again then"
    )]
    Undecided { partition: TopicPartition, waited: u64 },
    #[error(
        "{partition}: the log begins at offset {start}, but the topology began at {first}; what is gone can't be \
         replayed"
    )]
    Gone { partition: TopicPartition, start: i64, first: i64 },
    #[error(transparent)]
    Log(#[from] LogError),
    #[error(transparent)]
    Engine(#[from] EngineError),
}

/// Verifies the topology of a file and prints what was found; a difference is exit code 1.
pub fn verify_file(
    config: &Config,
    file: &Path,
    differences_max: usize,
    patience: Duration,
    out: &mut Printer,
) -> Result<(), ToolError> {
    let plan = topology_file::load(file)?;
    let stop = Stop::on_signals()?;
    let cluster = cluster::open(config)?;
    let scratch = config.data_dir.join(format!("scratch-{}", std::process::id()));
    let options = VerifyOptions {
        threads: config.worker.thread_count(),
        state_budget: config.state.budget as usize,
        scratch: Some(scratch.clone()),
        patience,
        differences_max,
    };
    let report = verify(&plan, &cluster.log, &options, &Progress::default(), &stop.flag());
    let _ = std::fs::remove_dir_all(&scratch); // emptied at the next start in any case
    let report = report?;
    print_report(&report, out)?;
    out.flush()?;
    match report.is_equal() {
        true => Ok(()),
        false => Err(ToolError::Reported { exit_code: 1 }),
    }
}

pub fn print_report(report: &VerifyReport, out: &mut Printer) -> Result<(), ToolError> {
    if out.json() {
        return report.views.iter().try_for_each(|view| out.object(view));
    }
    let cut = report.watermark.map_or("none yet".to_owned(), text::time);
    let cut = match (report.windowed, report.ended) {
        (false, _) => "where the live run stands".to_owned(),
        (true, true) => "the live run's end: it was closed, and so is every window".to_owned(),
        (true, false) => format!("the live run's cut (watermark {cut})"),
    };
    out.line(&format!("replayed {} records to {cut}", text::number(report.records)))?;
    for view in &report.views {
        let left = view.pending + view.not_compared + view.earlier_version;
        let verdict = match (view.equal, view.differing, view.expired, left) {
            (_, 1.., ..) => "DIFFERENT",
            (.., 1.., _) => "EQUAL BUT FOR EXPIRED WINDOWS",
            (0, .., 1..) => "NOTHING COMPARED YET",
            _ => "EQUAL",
        };
        let windows = if report.windowed { " (their windows are open)" } else { "" };
        out.line(&format!(
            "{verdict}  {}: {} rows equal, {} differ, {} pending{windows}, {} not compared",
            view.topic,
            text::number(view.equal),
            text::number(view.differing),
            text::number(view.pending),
            text::number(view.not_compared)
        ))?;
        if view.not_compared > 0 {
            let why = match report.ended {
                true => {
                    "the live run has gone on meanwhile, and rows without a window do not tell when they came"
                }
                false => {
                    "rows of windows that are open at the cut, and those without a window once the run goes on"
                }
            };
            out.line(&format!("  not compared: {why}"))?;
        }
        if view.earlier_version > 0 {
            out.line(&format!(
                "  {} rows are of an earlier version of the view, and stay as they were",
                text::number(view.earlier_version)
            ))?;
        }
        print_differences(&view.differences, out)?;
        if view.expired > 0 {
            out.line(&format!(
                "  {} rows differ in windows that rows came too late for, past `retention` (state_expired): the replay \
                 has them",
                text::number(view.expired)
            ))?;
            print_differences(&view.expired_rows, out)?;
        }
    }
    if report.state_expired > 0 {
        out.line(&format!(
            "{} rows came to the live run after their window's retention (state_expired); a replay has them",
            text::number(report.state_expired)
        ))?;
    }
    Ok(())
}

fn print_differences(differences: &[Difference], out: &mut Printer) -> Result<(), ToolError> {
    for difference in differences {
        out.line(&format!("  key    {}", difference.key))?;
        out.line(&format!("  live   {}", difference.live.as_deref().unwrap_or("no row")))?;
        out.line(&format!("  replay {}", difference.replay.as_deref().unwrap_or("no row")))?;
    }
    Ok(())
}

/// Replays to the cut and compares every view that has a topic.
pub fn verify(
    plan: &Plan,
    log: &Arc<dyn Log>,
    options: &VerifyOptions,
    progress: &Progress,
    stop: &AtomicBool,
) -> Result<VerifyReport, VerifyError> {
    let cut = Cut::take(plan, &**log)?;
    let drained = cut.wait_for_keyed(plan, &**log, options.patience)?;
    // Written before the offsets that were waited for.
    let Some(meta) = Meta::read(plan, &**log)? else {
        return Err(VerifyError::NothingCommitted(plan.name.to_string()));
    };
    let since = cut.since(plan, &**log, &meta)?;
    let collected = Collected::new(plan, &since);
    let bounded = ReplayOptions {
        late: Late::AsLive,
        until: cut.offsets.clone(),
        threads: options.threads,
        state_budget: options.state_budget,
        scratch: options.scratch.clone(),
    };
    let replayed = replay(plan, log, &bounded, &collected, progress, stop)?;
    let mut views = Vec::new();
    for (index, ((sink, replayed), since)) in
        plan.sinks.iter().zip(collected.into_rows()).zip(&since).enumerate()
    {
        let Some(topic) = &sink.topic else { continue };
        let live = Live::read(&**log, sink, &topic.topic, since.as_ref())?;
        // The live run has gone on: which rows without a window came before the cut, nothing tells.
        let moved = Cut::take(plan, &**log)?.offsets != cut.offsets;
        let windows = Windows {
            // Nothing comes after the end.
            watermark: if drained.ended { WATERMARK_MAX } else { cut.watermark_after(&**log)? },
            moved,
            expired: ExpiredWindows::of(plan, index, &meta.expired),
        };
        let mut view = compare(sink, live, replayed, &windows, options.differences_max);
        view.view = sink.view.to_string();
        view.topic = topic.topic.to_string();
        views.push(view);
    }
    Ok(VerifyReport {
        records: replayed.counters.read,
        watermark: (cut.watermark != WATERMARK_MIN).then_some(cut.watermark),
        ended: drained.ended,
        windowed: plan.stages.iter().any(|stage| matches!(stage.input, StageInput::Exchange { .. })),
        views,
        state_expired: drained.expired,
    })
}
