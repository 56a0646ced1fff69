//! `check`: is a topology file right, and what is made of it?

use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::plan::{self, Correction, Emit, Plan, PlanError, Problem, SinkPlan, StageInput};

use super::{Printer, Result, ToolError, topology_file};

#[derive(Serialize)]
struct Checked<'a> {
    file: &'a Path,
    ok: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    topology: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    fingerprint: Option<&'a str>,
    problems: Vec<Found<'a>>,
}

#[derive(Serialize)]
struct Found<'a> {
    line: usize,
    column: usize,
    message: &'a str,
    help: Option<&'a str>,
}

/// Validates every file and says what each reads and writes; all problems of all files are one error.
pub fn check(files: &[PathBuf], out: &mut Printer) -> Result<()> {
    let mut wrong: Vec<PlanError> = Vec::new();
    for file in files {
        let outcome = topology_file::load(file);
        if out.json() {
            out.object(&checked(file, &outcome))?;
        } else if let Ok(plan) = &outcome {
            describe(file, plan, out)?;
        }
        wrong.extend(outcome.err());
    }
    match wrong.is_empty() {
        true => Ok(()),
        false if out.json() => Err(ToolError::Reported { exit_code: 2 }),
        false => Err(ToolError::Topology(wrong)),
    }
}

/// Prints the JSON Schema of topology files, or of their tests.
pub fn print_schema(tests: bool, out: &mut Printer) -> Result<()> {
    let schema = if tests { super::topology_test::json_schema() } else { plan::json_schema() };
    out.line(&format!("{schema:#}"))
}

fn checked<'a>(file: &'a Path, outcome: &'a Result<Plan, PlanError>) -> Checked<'a> {
    let problems = outcome.as_ref().err().map(PlanError::problems).unwrap_or_default();
    let found = |problem: &'a Problem| Found {
        line: problem.line,
        column: problem.column,
        message: &problem.message,
        help: problem.help.as_deref(),
    };
    Checked {
        file,
        ok: outcome.is_ok(),
        topology: outcome.as_ref().ok().map(|plan| &*plan.name),
        fingerprint: outcome.as_ref().ok().map(|plan| plan.fingerprint.as_str()),
        problems: problems.iter().map(found).collect(),
    }
}

/// What readers of a sink's topic must know.
fn how(sink: &SinkPlan) -> &'static str {
    if sink.topic.as_ref().is_some_and(|topic| !topic.one_origin) {
        return ", as long as its source has one partition, or says by which columns of the key it is `partitioned_by`";
    }
    match (sink.correction(), sink.emit) {
        (Correction::Never, _) | (Correction::Upsert, Emit::Final) => "",
        (Correction::Upsert, Emit::Changes) => ", whenever its windows change",
        (Correction::Retract, Emit::Final) => {
            ", without a key: a correction first takes the old row back (header headwater.op: retract)"
        }
        (Correction::Retract, Emit::Changes) => {
            ", whenever its windows change; without a key: each change first takes the old row back (header \
             headwater.op: retract)"
        }
    }
}

fn describe(file: &Path, plan: &Plan, out: &mut Printer) -> Result<()> {
    out.line(&format!("{}: the topology '{}' is valid ({})", file.display(), plan.name, plan.fingerprint))?;
    for source in &plan.sources {
        let columns: Vec<&str> = source.read.iter().map(|column| column.name.as_str()).collect();
        out.line(&format!("  source {} reads {}: {}", source.name, source.topic, columns.join(", ")))?;
    }
    for stage in plan.stages.iter().filter(|stage| matches!(stage.input, StageInput::Exchange { .. })) {
        out.line(&format!("  stage  {} meets by key in {}.exchange.{}", stage.name, plan.name, stage.name))?;
    }
    for sink in &plan.sinks {
        if let Some(topic) = &sink.topic {
            let how = how(sink);
            out.line(&format!("  sink   {} goes to the topic {}{how}", sink.view, topic.topic))?;
        }
        if let Some(lake) = &sink.lake {
            out.line(&format!("  sink   {} goes to the lake as {}", sink.view, lake.table))?;
        }
    }
    for note in &plan.notes {
        out.line(&format!("help: {note}"))?;
    }
    Ok(())
}
