//! `headwater connect` as users run it: files become topics, and `kill -9` changes nothing.

use std::collections::BTreeSet;
use std::io::Write;
use std::time::Duration;

use serde_json::Value;

use crate::kill::{Dice, Seed};
use crate::project::Project;
use crate::support::within;

const FILES: usize = 6;
const PARTS: usize = 24;
const LINES: usize = 500;
const LIMIT: Duration = Duration::from_secs(120);

fn project(connector: &str) -> Project {
    let project = Project::new();
    for folder in ["data", "connectors"] {
        std::fs::create_dir(project.path().join(folder)).unwrap();
    }
    project.write("connectors/trips.yaml", connector);
    project
}

/// Values of a topic, as `tail` prints them.
fn tail(project: &Project, topic: &str) -> Vec<Value> {
    let text = project.ok(&["topic", "tail", topic, "--from-beginning"]);
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn a_newcomers_csv_becomes_a_topic_and_bad_lines_are_told() {
    let project = project("connector: files\npath: data/\nmatch: '*.csv'\n");
    project.write("data/trips.csv", "id,city,km\n1,Wien,2.5\n2,\"Bad Ischl, Stadt\",10\n3,Linz\n");
    let checked = project.ok(&["connect", "check", "connectors/trips.yaml"]);
    assert!(checked.contains("the connector 'trips' is right"), "{checked}");
    assert!(checked.contains("format: {csv: {types: {id: bigint, km: double}}}"), "{checked}");
    assert!(checked.contains("trips.csv:4: 2 cells, and the header has 3"), "{checked}");

    let _server = project.broker();
    let run = ["connect", "run", "connectors/trips.yaml", "--until-caught-up"];
    let ran = project.ok(&run);
    assert!(ran.contains("trips  2 records  1 dead letter  caught up"), "{ran}");
    let records = tail(&project, "trips");
    assert_eq!(records[1]["city"], "Bad Ischl, Stadt");
    assert_eq!(records[0]["km"], "2.5", "text, as long as no type is declared");
    let dead = project.ok(&["topic", "tail", "trips.connect.dead", "--from-beginning", "--json"]);
    assert!(dead.contains("data/trips.csv:4: 2 cells") && dead.contains("3,Linz"), "{dead}");

    project.write("data/more.csv", "id,city,km\n4,Graz,1\n");
    assert!(project.ok(&run).contains("trips  3 records  1 dead letter  caught up"));
    let status: Value = serde_json::from_str(&project.ok(&["connect", "status", "trips", "--json"])).unwrap();
    assert_eq!((&status["records"], &status["phase"]), (&3.into(), &"caught up".into()), "{status}");
    assert!(project.ok(&["connect", "status"]).contains("trips"));
    assert!(project.ok(&["connect", "pause", "trips"]).contains("paused when it starts"));
    let paused = project.run(&run);
    assert!(paused.code == 2 && paused.err.contains("headwater connect resume trips"), "{}", paused.err);
    project.ok(&["connect", "resume", "trips"]);
    project.ok(&run);
    let unknown = project.run(&["connect", "status", "trip"]);
    assert_eq!(unknown.code, 2, "{}", unknown.err);
}

#[test]
fn what_is_wrong_with_a_connector_ends_with_its_place_and_a_remedy() {
    let project = project("connector: files\npath: data/\nformt: csv\n");
    let outcome = project.run(&["connect", "run", "connectors/trips.yaml"]);
    assert_eq!(outcome.code, 2);
    assert!(outcome.err.contains("connectors/trips.yaml:3:1: there is no key 'formt'"), "{}", outcome.err);
    assert!(outcome.err.contains("did you mean 'format'?"), "{}", outcome.err);

    project.write("connectors/trips.yaml", "connector: files\npath: data/\nkey: [idd]\n");
    project.write("data/trips.csv", "id,km\n1,2\n");
    let outcome = project.run(&["connect", "run", "connectors/trips.yaml"]);
    assert_eq!(outcome.code, 2);
    assert!(
        outcome.err.contains("the key 'idd' is no column") && outcome.err.contains("'id'"),
        "{}",
        outcome.err
    );

    project.write("connectors/trips.yaml", "connector: files\npath: data/\n");
    project.write("data/bad.jsonl", &"no json\n".repeat(200));
    let outcome = project.run(&["connect", "run", "connectors/trips.yaml", "--until-caught-up"]);
    assert_eq!(outcome.code, 1, "{}", outcome.err);
    assert!(outcome.err.contains("can't be read, which is more than max_reject_ratio"), "{}", outcome.err);
}

#[test]
fn killed_again_and_again_each_line_of_growing_and_rotated_files_is_there_once() {
    let seed = Seed::new();
    let mut dice = Dice(seed.0);
    let project = project("connector: files\npath: data/\nmatch: '*.log*'\nformat: jsonl\nevery: 20ms\n");
    let _server = project.broker();
    let mut running = project.start(&["connect", "run", "connectors/trips.yaml"]);
    for part in 0..PARTS {
        let file = dice.below(FILES as u64);
        let path = project.path().join(format!("data/{file}.log"));
        if dice.below(4) == 0 && path.exists() {
            std::fs::rename(&path, project.path().join(format!("data/{file}.log.{part}"))).unwrap();
        }
        let mut log = std::fs::OpenOptions::new().create(true).append(true).open(&path).unwrap();
        for line in 0..LINES {
            // In two writes, so that a look may find half a line.
            write!(log, "{{\"n\":{}", part * LINES + line).unwrap();
            log.write_all(b"}\n").unwrap();
        }
        std::thread::sleep(Duration::from_millis(dice.below(150)));
        if dice.below(2) == 0 {
            running.kill();
            running = project.start(&["connect", "run", "connectors/trips.yaml"]);
        }
    }
    let all = (PARTS * LINES) as u64;
    within(LIMIT, "all records", || {
        std::thread::sleep(Duration::from_millis(100));
        let status = project.run(&["connect", "status", "trips", "--json"]);
        let status: Value = serde_json::from_str(&status.out).ok()?;
        (status["records"] == all).then_some(())
    });
    running.signal("-TERM");
    assert_eq!(running.wait(LIMIT).0, 0);
    let numbers: Vec<u64> =
        tail(&project, "trips").iter().map(|value| value["n"].as_u64().unwrap()).collect();
    assert_eq!(numbers.len() as u64, all);
    assert_eq!(numbers.into_iter().collect::<BTreeSet<u64>>(), (0..all).collect());
}
