//! Golden files: a topology, its input, and what must come of it.
//!
//! `input` and `later` are written as in the files of `headwater test`; records under `later` come once the rest
//! is refined, which needs origins that go idle. `expect` stands last and is generated.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::PathBuf;
use std::sync::Arc;

use headwater::plan::{self, Plan};
use headwater::tool::topology_test::{SourceInput, TestRecord, isolated};
use serde::Deserialize;
use serde_json::Value;

use super::ways::Outcome;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    topology: String,
    #[serde(default)]
    partitions: BTreeMap<String, i32>,
    input: BTreeMap<String, Vec<Value>>,
    #[serde(default)]
    later: BTreeMap<String, Vec<Value>>,
    expect: Value,
}

pub struct Golden {
    pub name: String,
    pub plan: Arc<Plan>,
    file: File,
}

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/it/golden")
}

pub fn names() -> Vec<String> {
    let files = std::fs::read_dir(folder()).unwrap();
    let names = files.map(|file| file.unwrap().path().file_stem().unwrap().to_string_lossy().into_owned());
    names.collect()
}

impl Golden {
    pub fn load(name: &str) -> Self {
        let path = folder().join(format!("{name}.yaml"));
        let file: File = serde_saphyr::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
        let plan = plan::parse(&file.topology, name).unwrap_or_else(|error| panic!("{error}"));
        Self { name: name.into(), plan: Arc::new(isolated(plan)), file }
    }

    /// Records that come when the others are refined and the origins idle.
    pub fn has_later(&self) -> bool {
        !self.file.later.is_empty()
    }

    pub fn input(&self) -> Vec<SourceInput> {
        self.records(&self.file.input)
    }

    pub fn later(&self) -> Vec<SourceInput> {
        self.records(&self.file.later)
    }

    fn records(&self, of: &BTreeMap<String, Vec<Value>>) -> Vec<SourceInput> {
        let each = self.plan.sources.iter().map(|source| {
            let records = of.get(&*source.name).into_iter().flatten();
            SourceInput {
                topic: Arc::clone(&source.topic),
                partitions: self.file.partitions.get(&*source.name).copied().unwrap_or(1),
                records: records.map(|value| TestRecord::from_value(value).unwrap()).collect(),
                has_event_time: source.event_time.is_some(),
            }
        });
        each.collect()
    }

    /// Compares with what the file expects, or writes it there.
    pub fn expect(&self, outcome: &Outcome) {
        let path = folder().join(format!("{}.yaml", self.name));
        if std::env::var_os("UPDATE_GOLDEN").is_some() {
            let text = std::fs::read_to_string(&path).unwrap();
            let head = text.split_once("\nexpect:").unwrap().0;
            std::fs::write(&path, format!("{head}\n{}", yaml(outcome))).unwrap();
            return;
        }
        let expected: Value = serde_saphyr::from_str(&yaml(outcome)).unwrap();
        assert_eq!(
            serde_json::to_string_pretty(&self.file.expect).unwrap(),
            serde_json::to_string_pretty(&expected["expect"]).unwrap(),
            "{}: what came is below; if it is right, write it with UPDATE_GOLDEN=1",
            self.name
        );
    }
}

/// One record a line, as JSON, which YAML is a superset of.
fn yaml(outcome: &Outcome) -> String {
    let mut text = String::from("expect:\n  refined:\n");
    let list = |text: &mut String, name: &str, indent: &str, lines: &[String]| {
        let empty = if lines.is_empty() { " []" } else { "" };
        writeln!(text, "{indent}{name}:{empty}").unwrap();
        for line in lines {
            writeln!(text, "{indent}  - {line}").unwrap();
        }
    };
    for (view, rows) in &outcome.refined {
        list(&mut text, view, "    ", rows);
    }
    list(&mut text, "late", "  ", &outcome.late);
    list(&mut text, "dead", "  ", &outcome.dead);
    let counters = serde_json::to_string(&outcome.counters).unwrap();
    writeln!(text, "  counters: {counters}").unwrap();
    text
}
