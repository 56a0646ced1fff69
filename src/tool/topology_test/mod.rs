//! `headwater test`: unit tests of topologies, without a cluster.
//!
//! - `file`: the format of `*_test.yaml`
//! - `case`: a case's records through the engine, on a log in memory
//! - `compare`: expected against got

mod case;
mod compare;
mod file;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Serialize;
use serde_json::Value;
use serde_saphyr::Spanned;

pub use case::{Observed, Row, SourceInput, isolated, publish, read, run};
pub use compare::{Difference, dead_letter, header, value};
pub use file::{TestRecord, json_schema};

use file::{Case, Loaded};

use super::replay::parse_late;
use super::{Printer, Result, ToolError, topology_file};
use crate::engine::TopicNames;
use crate::engine::letters::LATE_TOPIC;
use crate::plan::{Late, Plan, PlanError, SourceFile, suggest};

const SUFFIXES: [&str; 2] = ["_test.yaml", "_test.yml"];

#[derive(Serialize)]
struct Outcome<'a> {
    file: String,
    line: u64,
    case: &'a str,
    passed: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
    differences: Vec<Difference>,
}

/// Runs the tests of files, and of all files below folders. A failed case is exit code 1, a wrong file 2.
pub fn test(paths: &[PathBuf], scratch: &Path, out: &mut Printer) -> Result<()> {
    let mut files = BTreeSet::new();
    for path in paths {
        find(path, &mut files)?;
    }
    if files.is_empty() {
        let folders: Vec<String> = paths.iter().map(|path| path.display().to_string()).collect();
        return Err(ToolError::input_with_help(
            format!("there is no *_test.yaml below {}", folders.join(", ")),
            "write one beside the topology: flights_test.yaml for flights.yaml",
        ));
    }
    let (mut passed, mut failed) = (0_u64, 0_u64);
    let mut wrong = Vec::new();
    for path in &files {
        match test_file(path, scratch, out) {
            Ok(counts) => {
                passed += counts.0;
                failed += counts.1;
            }
            Err(ToolError::Topology(errors)) => wrong.extend(errors),
            Err(error) => return Err(error),
        }
    }
    if !out.json() && passed + failed > 0 {
        out.line(&format!("{passed} passed, {failed} failed"))?;
    }
    out.flush()?;
    match (wrong.is_empty(), failed) {
        (false, _) => Err(ToolError::Topology(wrong)),
        (true, 0) => Ok(()),
        (true, _) => Err(ToolError::Reported { exit_code: 1 }),
    }
}

fn find(path: &Path, files: &mut BTreeSet<PathBuf>) -> Result<()> {
    let is_test = |path: &Path| SUFFIXES.iter().any(|suffix| path.to_string_lossy().ends_with(suffix));
    if !path.is_dir() {
        if is_test(path) {
            files.insert(path.to_path_buf());
            return Ok(());
        }
        let beside = path
            .with_file_name(format!("{}_test.yaml", path.file_stem().unwrap_or_default().to_string_lossy()));
        if !beside.is_file() {
            return Err(ToolError::input_with_help(
                format!("{} holds no tests", path.display()),
                format!("a topology's tests stand beside it: {}", beside.display()),
            ));
        }
        files.insert(beside);
        return Ok(());
    }
    let failed = |error| ToolError::io(format!("cannot read {}", path.display()))(error);
    for entry in std::fs::read_dir(path).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        let hidden = path.file_name().is_some_and(|name| name.to_string_lossy().starts_with('.'));
        if path.is_dir() && !hidden || is_test(&path) {
            find(&path, files)?;
        }
    }
    Ok(())
}

/// How many cases of a file passed and failed.
fn test_file(path: &Path, scratch: &Path, out: &mut Printer) -> Result<(u64, u64)> {
    let loaded = file::load(path)?;
    let plan = isolated(topology_file::load(&loaded.topology())?);
    let prepared = loaded.prepare(&plan)?;
    let (mut passed, mut failed) = (0, 0);
    for (number, (case, prepared)) in loaded.file.cases.iter().zip(prepared).enumerate() {
        let folder = scratch.join(number.to_string());
        let observed = run(
            plan.clone().with_late(&prepared.late),
            &prepared.inputs,
            case.close.unwrap_or(true),
            &folder,
        );
        let removed = std::fs::remove_dir_all(&folder);
        let (differences, error) = match observed {
            Ok(observed) => (differences(&plan, case, &observed), None),
            Err(error) => (Vec::new(), Some(error.to_string())),
        };
        if error.is_none() {
            removed.map_err(ToolError::io(format!("cannot remove {}", folder.display())))?;
        }
        let outcome = Outcome {
            file: path.display().to_string(),
            line: case.name.referenced.line(),
            case: &case.name.value,
            passed: differences.is_empty() && error.is_none(),
            error,
            differences,
        };
        if outcome.passed {
            passed += 1
        } else {
            failed += 1
        }
        if out.json() { out.object(&outcome)? } else { print(&outcome, out)? }
    }
    Ok((passed, failed))
}

fn print(outcome: &Outcome<'_>, out: &mut Printer) -> Result<()> {
    let verdict = if outcome.passed { "ok  " } else { "FAIL" };
    out.line(&format!("{verdict}  {}:{}  {}", outcome.file, outcome.line, outcome.case))?;
    if let Some(error) = &outcome.error {
        out.line(&format!("      {error}"))?;
    }
    let mut what = "";
    for difference in &outcome.differences {
        if difference.what != what {
            what = &difference.what;
            out.line(&format!("      {what}: - expected, + got"))?;
        }
        for line in difference.lines() {
            out.line(&format!("        {line}"))?;
        }
    }
    Ok(())
}

/// A case whose names and records are right.
struct Prepared {
    inputs: Vec<SourceInput>,
    late: Late,
}

impl Loaded {
    /// All that is wrong with the file's cases is one error.
    fn prepare(&self, plan: &Plan) -> Result<Vec<Prepared>> {
        let name = self.path.display().to_string();
        let file = SourceFile { name: &name, text: &self.text };
        let mut problems = Vec::new();
        let mut problem = |place: serde_saphyr::Location, message: String, help: Option<String>| {
            problems.push(file.problem(place, message, help));
        };
        let mut prepared = Vec::new();
        for case in &self.file.cases {
            let sources: Vec<&str> = plan.sources.iter().map(|source| &*source.name).collect();
            let views: Vec<&str> = plan.sinks.iter().map(|sink| &*sink.view).collect();
            let mut unknown = |name: &Spanned<String>, known: &[&str], what: &str, are: &str| {
                if !known.contains(&name.value.as_str()) {
                    let help = suggest(&name.value, known.iter().copied(), are);
                    problem(name.referenced, format!("'{}' is no {what}", name.value), help);
                }
            };
            let named = case.input.0.iter().map(|(name, _)| name);
            let named = named.chain(case.expect.late.0.iter().map(|(name, _)| name));
            for name in named.chain(case.partitions.0.iter().map(|(name, _)| name)) {
                unknown(name, &sources, "source that a sink needs", "the sources are");
            }
            for (name, _) in &case.expect.refined.0 {
                unknown(name, &views, "view with a sink", "the views with sinks are");
            }
            let late = match &case.late {
                None => Late::AsLive,
                Some(text) => parse_late(&text.value).unwrap_or_else(|_| {
                    let help = Some("write as-live, all, or a duration like 24h".to_owned());
                    problem(text.referenced, format!("'{}' is none of them", text.value), help);
                    Late::AsLive
                }),
            };
            let mut inputs = Vec::new();
            for source in &plan.sources {
                let mut input = SourceInput {
                    topic: Arc::clone(&source.topic),
                    partitions: 1,
                    records: Vec::new(),
                    has_event_time: source.event_time.is_some(),
                };
                for (_, count) in case.partitions.0.iter().filter(|(name, _)| *name.value == *source.name) {
                    if !(1..=1024).contains(&count.value) {
                        let help = Some("a test has 1 to 1024".to_owned());
                        problem(count.referenced, format!("{} partitions", count.value), help);
                    }
                    input.partitions = count.value;
                }
                let of_source = case.input.0.iter().filter(|(name, _)| *name.value == *source.name);
                for record in of_source.flat_map(|(_, records)| records) {
                    match TestRecord::from_value(&record.value) {
                        Ok(record) => input.records.push(record),
                        Err(error) => problem(record.referenced, format!("this is no record: {error}"), None),
                    }
                }
                inputs.push(input);
            }
            prepared.push(Prepared { inputs, late });
        }
        if problems.is_empty() { Ok(prepared) } else { Err(PlanError::new(problems).into()) }
    }
}

fn differences(plan: &Plan, case: &Case, observed: &Observed) -> Vec<Difference> {
    let mut differences = Vec::new();
    for (view, expected) in &case.expect.refined.0 {
        let got = observed.refined.get(view.value.as_str()).into_iter().flatten();
        let got: Vec<Value> = got.map(|(_, row)| value(Some(row))).collect();
        let expected = expected.iter().cloned().map(Value::Object).collect();
        differences.extend(compare::rows(&format!("refined {}", view.value), expected, got));
    }
    for source in &plan.sources {
        let of_source = case.expect.late.0.iter().filter(|(name, _)| *name.value == *source.name);
        let expected: Vec<Value> = of_source.flat_map(|(_, values)| values.iter().cloned()).collect();
        let of_source = observed
            .late
            .iter()
            .filter(|record| header(record, LATE_TOPIC).as_deref() == Some(&*source.topic));
        let got: Vec<Value> = of_source.map(|record| value(record.value.as_deref())).collect();
        differences.extend(compare::rows(&format!("late {}", source.name), expected, got));
    }
    let source_of = |topic: &str| source_name(plan, topic);
    let got = observed.dead.iter().map(|record| dead_letter(record, source_of)).collect();
    differences.extend(compare::dead(case.expect.dead.clone(), got));
    differences
}

/// The source that reads a topic; for rows that failed behind an exchange, the stage's topic without its prefix.
pub fn source_name(plan: &Plan, topic: &str) -> String {
    let source = plan.sources.iter().find(|source| *source.topic == *topic);
    let stage = TopicNames::of(plan).exchanges.iter().position(|name| name.as_deref() == Some(topic));
    match (source, stage) {
        (Some(source), _) => source.name.to_string(),
        (None, Some(stage)) => plan.stages[stage].name.to_string(),
        (None, None) => topic.to_owned(),
    }
}
