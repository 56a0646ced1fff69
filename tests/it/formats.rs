//! What another version of headwater has written is refused by name, with what to do; or, where the log has all of
//! it, left aside with a word. Nothing is guessed, and nothing is changed.

use headwater::log::{Log, Position};
use headwater::record::TopicPartition;
use serde_json::{Value, json};

use crate::project::{Outcome, Project};
use crate::support::connect;

const FILE: &str = "topologies/example/example.yaml";
const EXCHANGE: &str = "example.exchange.hourly_revenue";

/// The example, run to the ends of its first records, with checkpoints; then `change` makes something newer.
fn run_after(change: impl FnOnce(&Project, &dyn Log)) -> Outcome {
    let project = Project::new();
    let server = project.broker();
    project.ok(&["init"]);
    project.write(
        "config/headwater.yaml",
        "http: {listen: '127.0.0.1:0'}\nworker: {checkpoint_interval: 1ms, epoch: 20ms}\n",
    );
    let orders = "topologies/example/orders.ndjson";
    project.ok(&["topic", "produce", "example.orders", orders, "--partitions", "1"]);
    project.ok(&["run", FILE, "--until-end"]);
    project.ok(&["topic", "produce", "example.orders", orders]);
    change(&project, &*connect(&server.address));
    project.run(&["run", FILE, "--until-end"])
}

/// Produces one record.
fn put(project: &Project, topic: &str, record: &Value) {
    let line = format!("{record}\n");
    let count: &[&str] = if topic == EXCHANGE { &[] } else { &["--partitions", "1"] };
    let outcome = project.run_with(&[&["topic", "produce", topic, "--envelope"], count].concat(), &line);
    assert_eq!(outcome.code, 0, "{}", outcome.err);
}

fn assert_refused(outcome: &Outcome, parts: &[&str]) {
    assert_eq!(outcome.code, 1, "{}\n{}", outcome.out, outcome.err);
    for part in parts {
        assert!(outcome.err.contains(part), "no '{part}' in: {}", outcome.err);
    }
}

#[test]
fn offsets_of_another_format() {
    let outcome = run_after(|_, log| {
        let partition = TopicPartition::new("example.orders", 0);
        let position = Position { offset: 8, metadata: r#"{"v":2,"new":true}"#.into() };
        log.commit_offsets("headwater.example", &[(partition, position)]).unwrap();
    });
    let what = "the committed offset of example.orders/0 is of format 2, and this program reads 1";
    assert_refused(&outcome, &[what, "Go on with that version"]);
}

#[test]
fn a_topology_s_memory_of_another_format() {
    let outcome = run_after(|project, _| {
        put(project, "example.meta", &json!({"key": "topology", "value": {"version": 2, "new": 1}}));
    });
    assert_refused(&outcome, &["the topology's record in example.meta/0 is of format 2"]);
}

#[test]
fn an_entry_of_a_redrive_of_another_format() {
    let outcome = run_after(|project, _| {
        let key = json!({"topic": "example.orders", "partition": 0, "offset": 3});
        put(project, "example.redriven", &json!({"key": key, "value": {"version": 2}}));
    });
    assert_refused(&outcome, &["the entry in example.redriven/0 at offset 0 is of format 2"]);
}

#[test]
fn an_exchange_of_another_format() {
    let outcome = run_after(|project, _| {
        // The first byte is the format.
        put(project, EXCHANGE, &json!({"partition": 1, "value": "AwAA", "encoding": "base64"}));
    });
    assert_refused(
        &outcome,
        &[EXCHANGE, "/1 at offset ", "it has format version 3, this program reads 1 and 2"],
    );
}

/// Makes the copies of checkpoints at offsets that `keep` says ones of format 3, whole by their checksums, and
/// deletes the others.
fn make_copies_newer(project: &Project, keep: fn(i64) -> bool) {
    fn walk(folder: &std::path::Path, keep: fn(i64) -> bool, changed: &mut usize) {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                walk(&path, keep, changed);
            } else if path.extension().is_some_and(|ending| ending == "json") {
                if !keep(path.file_stem().unwrap().to_str().unwrap().parse().unwrap()) {
                    std::fs::remove_file(&path).unwrap();
                    continue;
                }
                let text = std::fs::read_to_string(&path).unwrap();
                let (_, manifest) = text.trim_end_matches('}').split_once("\"manifest\":").unwrap();
                let manifest = format!("{manifest}}}").replacen("\"version\":2", "\"version\":3", 1);
                let checksum = format!("{:016x}", xxhash_rust::xxh3::xxh3_64(manifest.as_bytes()));
                std::fs::write(&path, format!("{{\"checksum\":\"{checksum}\",\"manifest\":{manifest}}}"))
                    .unwrap();
                *changed += 1;
            }
        }
    }
    let mut changed = 0;
    walk(&project.path().join(".headwater/checkpoints"), keep, &mut changed);
    assert!(changed > 0, "there are copies");
    // Another machine, which has but the copies.
    std::fs::remove_dir_all(project.path().join(".headwater/state")).unwrap();
}

#[test]
fn checkpoints_of_another_format() {
    let said = "is of format 3, and this program reads 2";
    // The one at offset 0 may be what a replay has left: without it the log may not be all.
    let outcome = run_after(|project, _| make_copies_newer(project, |_| true));
    assert_refused(&outcome, &[said, EXCHANGE, "what it began with may not be in the log"]);

    let outcome = run_after(|project, _| make_copies_newer(project, |offset| offset > 0));
    assert_eq!(outcome.code, 0, "the exchange has all of it: {}", outcome.err);
    assert!(outcome.err.contains(said), "{}", outcome.err);
}
