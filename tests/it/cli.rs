//! The program as users run it: commands, what they print, and their exit codes, on the embedded broker.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::Value;

use crate::project::Project;
use crate::support::within;

fn objects(text: &str) -> Vec<Value> {
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn the_tour_that_init_proposes_works_and_the_topics_outlive_the_broker() {
    let project = Project::new();
    assert!(project.ok(&["init"]).contains("wrote config/headwater.yaml"));
    assert!(project.ok(&["check", "topologies/example/example.yaml"]).contains("'example' is valid"));
    let server = project.broker();
    let orders = "topologies/example/orders.ndjson";
    let sent = project.ok(&["topic", "produce", "example.orders", orders, "--partitions", "1"]);
    assert_eq!(sent, "sent 8 records to example.orders\n");
    let wanted = std::fs::read_to_string(project.path().join(orders)).unwrap();
    assert_eq!(project.ok(&["topic", "tail", "example.orders", "--from-beginning"]), wanted);
    assert_eq!(server.stop(), Some(0), "SIGTERM is a good end");

    // Now the command serves it by itself.
    let listed = objects(&project.ok(&["topic", "list", "--json"]));
    assert_eq!(listed.len(), 1);
    assert_eq!(listed[0]["topic"], "example.orders");
    assert_eq!(listed[0]["records"], 8);
    let columns = project.ok(&["topic", "infer", "example.orders"]);
    assert!(columns.contains("\ncolumns:\n  order_id: bigint "), "{columns}");
}

#[test]
fn records_go_from_topic_to_topic_as_they_are_and_the_last_ones_are_found() {
    let project = Project::new();
    let _server = project.broker();
    let lines: String = (0..25).map(|n| format!("{{\"n\": {n}, \"k\": \"k{}\"}}\n", n % 4)).collect();
    let produce = ["topic", "produce", "a", "--partitions", "3", "--key", "k,n"];
    assert_eq!(project.run_with(&produce, &lines).code, 0);
    let all = project.ok(&["topic", "tail", "a", "--from-beginning", "--json"]);
    let copied = project.run_with(&["topic", "produce", "b", "--envelope", "--partitions", "3"], &all);
    assert_eq!(copied.out, "sent 25 records to b\n", "{}", copied.err);

    let comparable = |text: &str| {
        let mut records: Vec<String> = objects(text)
            .into_iter()
            .map(|record| {
                format!("{} {} {} {}", record["partition"], record["offset"], record["key"], record["value"])
            })
            .collect();
        records.sort();
        records
    };
    let copies = project.ok(&["topic", "tail", "b", "--from-beginning", "--json"]);
    assert_eq!(comparable(&copies), comparable(&all));
    assert!(all.contains(r#""key":{"k":"k0","n":0},"value":{"n": 0, "k": "k0"}"#), "{all}");

    assert_eq!(project.ok(&["topic", "tail", "a"]).lines().count(), 10);
    assert_eq!(project.ok(&["topic", "tail", "a", "-n", "99"]).lines().count(), 25);
    assert_eq!(project.ok(&["topic", "tail", "a", "-n", "0"]), "");
    assert_eq!(project.ok(&["topic", "tail", "a", "--from-beginning", "-n", "4"]).lines().count(), 4);
    let keyed = project.ok(&["topic", "tail", "a", "--key", "-n", "1"]);
    assert!(keyed.starts_with(r#"{"k":"k"#) && keyed.contains("}\t{\"n\": "), "{keyed}");
}

#[test]
fn a_line_that_is_no_record_ends_it_and_says_what_was_sent() {
    let project = Project::new();
    let _server = project.broker();
    let produce = ["topic", "produce", "t", "--partitions", "1"];
    let outcome = project.run_with(&produce, "{\"a\": 1}\n\n{\"a\": 2}\n{\"a\": oops}\n{\"a\": 3}\n");
    assert_eq!(outcome.code, 2);
    assert!(outcome.err.starts_with("error: line 4 of standard input"), "{}", outcome.err);
    assert!(outcome.err.contains("the 2 records before it were sent, nothing after it"), "{}", outcome.err);
    assert_eq!(project.ok(&["topic", "tail", "t"]), "{\"a\": 1}\n{\"a\": 2}\n");

    let outcome = project.run_with(&["topic", "produce", "t", "--key", "b"], "{\"a\": 1}\n");
    assert!(outcome.err.contains("no field 'b'"), "{}", outcome.err);
    let outcome =
        project.run_with(&["topic", "produce", "t", "--envelope"], "{\"value\": 1, \"partition\": 7}\n");
    assert!(outcome.err.contains("no partition 7"), "{}", outcome.err);
    assert_eq!(project.ok(&["topic", "tail", "t"]).lines().count(), 2);
}

#[test]
fn followers_see_what_comes_and_end_well_when_interrupted_or_unread() {
    let project = Project::new();
    let _server = project.broker();
    assert_eq!(project.run_with(&["topic", "produce", "t", "--partitions", "1"], "1\n2\n").code, 0);
    let mut follower = project
        .command(&["topic", "tail", "t", "-n", "1", "--follow"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(follower.stdout.take().unwrap()).lines();
    assert_eq!(lines.next().unwrap().unwrap(), "2");
    assert_eq!(project.run_with(&["topic", "produce", "t"], "3\n").code, 0);
    assert_eq!(lines.next().unwrap().unwrap(), "3");
    let interrupt = Command::new("kill").args(["-INT", &follower.id().to_string()]).status().unwrap();
    assert!(interrupt.success());
    assert_eq!(follower.wait().unwrap().code(), Some(0));

    // More than a pipe holds, so that the reader's going away is noticed.
    let many = "\"0123456789012345678901234567890123456789\"\n".repeat(10_000);
    assert_eq!(project.run_with(&["topic", "produce", "many", "--partitions", "1"], &many).code, 0);
    let mut tail = project
        .command(&["topic", "tail", "many", "--from-beginning"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut head = BufReader::new(tail.stdout.take().unwrap());
    head.read_line(&mut String::new()).unwrap();
    drop(head);
    let ended = tail.wait_with_output().unwrap();
    assert_eq!((ended.status.code(), String::from_utf8(ended.stderr).unwrap()), (Some(0), String::new()));
}

#[test]
fn lag_is_watched_until_it_is_interrupted() {
    let project = Project::new();
    let _server = project.broker();
    project.ok(&["init"]);
    let orders = "topologies/example/orders.ndjson";
    project.ok(&["topic", "produce", "example.orders", orders, "--partitions", "1"]);
    let file = "topologies/example/example.yaml";
    let watch = |more: &[&str]| {
        let arguments = [&["lag", file, "--watch", "20ms"], more].concat();
        let mut child = project.command(&arguments).stdout(Stdio::piped()).spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
        (child, lines)
    };
    let interrupt = |mut child: std::process::Child| {
        assert!(Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success());
        assert_eq!(child.wait().unwrap().code(), Some(0));
    };
    let (child, lines) = watch(&["--json"]);
    let summaries = lines
        .map(|line| serde_json::from_str::<Value>(&line).unwrap())
        .filter(|object| object["type"] == "summary");
    let two: Vec<Value> = summaries.take(2).collect();
    assert_eq!((&two[0]["lag_records"], &two[0]["eta_seconds"]), (&8.into(), &Value::Null));
    assert_eq!(two[1]["committed_per_second"], 0.0);
    interrupt(child);

    let (child, mut lines) = watch(&[]);
    assert!(lines.next().unwrap().starts_with("example: nothing committed yet, 8 records to read"));
    assert!(lines.any(|line| line == "reads 0/s, 0/s arrive; caught up in -"));
    interrupt(child);
    let misplaced = project.run(&["lag", "--watch", file]);
    assert!(misplaced.code == 2 && misplaced.err.contains("before --watch"), "{}", misplaced.err);
}

#[test]
fn a_topic_is_deleted_once_that_is_confirmed() {
    let project = Project::new();
    assert_eq!(project.run_with(&["topic", "produce", "t", "--partitions", "2"], "1\n2\n3\n").code, 0);
    let unasked = project.run(&["topic", "delete", "t"]);
    assert!(unasked.code == 2 && unasked.err.contains("Nobody can be asked here"), "{}", unasked.err);
    assert_eq!(project.ok(&["topic", "tail", "t"]).lines().count(), 3);
    let deleted = project.ok(&["topic", "delete", "t", "--yes"]);
    assert_eq!(deleted, "deleted t with 2 partitions and 3 offsets\n");
    let again = project.run(&["topic", "delete", "t", "--yes"]);
    assert!(again.code == 2 && again.err.contains("there is no topic 't'"), "{}", again.err);
    assert_eq!(project.ok(&["topic", "list", "--json"]), "");
    let own = project.run(&["topic", "delete", "__consumer_offsets", "--yes"]);
    assert!(own.code == 2 && own.err.contains("is the cluster's own"), "{}", own.err);
    assert_eq!(project.run_with(&["topic", "produce", "t", "--partitions", "1"], "4\n").code, 0);
    assert_eq!(project.ok(&["topic", "tail", "t", "--from-beginning"]), "4\n");
}

#[test]
fn what_is_wrong_with_the_input_is_exit_code_2_and_told_once() {
    let project = Project::new();
    let cases: [(&[&str], &str); 8] = [
        (&["topic", "tale"], "a similar subcommand exists: 'tail'"),
        (&["--config", "none.yaml", "topic", "list"], "error: there is no config file none.yaml\nhelp: "),
        (&["topic", "tail", "nope"], "error: there is no topic 'nope'"),
        (&["topic", "create", "a b"], "error: 'a b' is not a topic name\nhelp: "),
        (&["topic", "create", "a", "--partitions", "0"], "0 is not in 1.."),
        (&["topic", "create", "a", "-c", "x"], "write NAME=VALUE"),
        (&["topic", "produce", "a", "no.ndjson"], "error: cannot read no.ndjson"),
        (&["check", "none.yaml"], "error: none.yaml: cannot read the topology"),
    ];
    for (arguments, wanted) in cases {
        let outcome = project.run(arguments);
        assert_eq!(outcome.code, 2, "{arguments:?}: {}", outcome.err);
        assert!(outcome.err.contains(wanted), "{arguments:?}: {}", outcome.err);
        assert_eq!(outcome.err.matches("error:").count(), 1, "{}", outcome.err);
        assert_eq!(outcome.out, "", "{arguments:?}");
    }
    let outcome = project.run(&["--brokers", "127.0.0.1:1", "topic", "list"]);
    assert_eq!(outcome.code, 1, "{}", outcome.err);
    assert!(outcome.err.starts_with("error: cannot reach 127.0.0.1:1"), "{}", outcome.err);
}

#[test]
fn topologies_are_tested_without_a_broker() {
    let project = Project::new();
    let topologies = concat!(env!("CARGO_MANIFEST_DIR"), "/topologies/flights/");
    let copy = |from: &str, to: &str, change: &dyn Fn(String) -> String| {
        let text = std::fs::read_to_string(format!("{topologies}{from}")).unwrap();
        std::fs::write(project.path().join(to), change(text)).unwrap();
    };
    copy("flights.yaml", "flights.yaml", &|text| text);
    copy("flights_test.yaml", "flights_test.yaml", &|text| text);
    let out = project.ok(&["test", "."]);
    assert!(out.ends_with("7 passed, 0 failed\n"), "{out}");
    assert!(!project.path().join(".headwater").exists(), "it leaves nothing behind");

    copy("flights_test.yaml", "flights_test.yaml", &|text| text.replacen("flights: 2,", "flights: 3,", 1));
    let failed = project.run(&["test", "flights.yaml"]);
    assert_eq!(failed.code, 1, "{}", failed.err);
    assert!(failed.out.contains("flights: expected 3, got 2"), "{}", failed.out);
    assert!(failed.out.ends_with("6 passed, 1 failed\n"), "{}", failed.out);
    let lines = project.run(&["test", "flights_test.yaml", "--json"]).out;
    let first: Value = serde_json::from_str(lines.lines().next().unwrap()).unwrap();
    assert_eq!((&first["passed"], &first["line"]), (&Value::Bool(false), &Value::from(3)));
    assert_eq!(first["differences"][0]["got"]["flights"], Value::from(2));

    copy("flights_test.yaml", "flights_test.yaml", &|text| text.replacen("departures:", "departurs:", 1));
    let wrong = project.run(&["test", "flights_test.yaml"]);
    assert_eq!(wrong.code, 2);
    assert!(wrong.err.contains("flights_test.yaml:5:7: 'departurs' is no source"), "{}", wrong.err);
    assert!(wrong.err.contains("help: did you mean 'departures'?"), "{}", wrong.err);
    assert_eq!(project.run(&["test", "nothing.yaml"]).code, 2);
}

const COUNTED: &str = "
name: counted
sources:
  numbers:
    topic: numbers
    format: json
    columns: {v: bigint, at: timestamp_s}
    event_time: at
    watermark: {out_of_orderness: 0s}
views:
  minutely: |
    select window_start, v, count(*) as n from tumble(numbers, at, interval '1 minute') group by window_start, v
  hourly: |
    select window_start, sum(n) as n from tumble(minutely, window_start, interval '1 hour') group by window_start
sinks:
  minutely: {topic: {name: counted.minutely, key: [window_start, v]}}
  hourly: {topic: {name: counted.hourly, key: [window_start]}}
";

fn counted() -> Project {
    let project = Project::new();
    project.write("counted.yaml", COUNTED);
    project.write("c.yaml", "worker: {threads: 3}\n");
    project
}

/// Records that are not read, of all partitions; `None` while there is no lag to tell.
fn behind(project: &Project) -> Option<u64> {
    let lag = objects(&project.run(&["lag", "counted.yaml", "--json"]).out);
    let partitions = lag.iter().filter(|line| line["type"] == "partition");
    let each: Vec<Option<u64>> = partitions.map(|line| line["lag_records"].as_u64()).collect();
    each.into_iter().reduce(|sum, lag| Some(sum? + lag?)).flatten()
}

fn produce_numbers(project: &Project) {
    let lines: String =
        (0..200).map(|number| format!("{{\"v\":{},\"at\":{}}}\n", number % 7, number * 10)).collect();
    let produced = project.run_with(&["topic", "produce", "numbers", "--partitions", "4"], &lines);
    assert_eq!(produced.code, 0, "{}", produced.err);
}

#[test]
fn a_topology_that_was_closed_can_be_closed_again_and_stays_as_it_is() {
    let project = counted();
    let _broker = project.broker();
    produce_numbers(&project);
    let close = ["run", "counted.yaml", "--until-end", "--close", "--config", "c.yaml"];
    let mut rows = None;
    for _ in 0..6 {
        assert!(project.ok(&close).contains("reached the ends"));
        assert_eq!(behind(&project), Some(0));
        let tail = project.ok(&["topic", "tail", "counted.hourly", "--from-beginning"]);
        assert_eq!(rows.get_or_insert_with(|| tail.clone()), &tail);
    }
    let verified = project.ok(&["verify", "counted.yaml"]);
    assert!(verified.contains("to the live run's end"), "{verified}");
    assert!(verified.contains("counted.hourly: 1 rows equal, 0 differ, 0 pending"), "{verified}");
    assert!(!verified.contains("NOTHING") && !verified.contains("8 not compared"), "{verified}");
    let lag = project.ok(&["lag", "counted.yaml"]);
    assert!(lag.contains("ended") && !lag.contains("waits for"), "{lag}");
}

#[test]
fn a_run_to_the_end_that_is_interrupted_says_that_it_did_not_get_there() {
    let project = counted();
    let broker = project.broker();
    produce_numbers(&project);
    // Another process has all partitions, and stands still.
    project.write("holder.yaml", "data_dir: holder\nhttp: {listen: 127.0.0.1:0}\n");
    let brokers = ["--brokers", &broker.address];
    let holder =
        project.start(&[&["run", "counted.yaml", "--config", "holder.yaml"][..], &brokers[..]].concat());
    within(Duration::from_secs(30), "it has read all", || (behind(&project) == Some(0)).then_some(()));
    holder.signal("-STOP");
    produce_numbers(&project);
    let mut command = project.command(&["run", "counted.yaml", "--until-end"]);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut out = BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    out.read_line(&mut line).unwrap();
    assert!(line.contains("'counted' runs on"), "{line}");
    assert!(Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success());
    let printed = child.wait_with_output().unwrap();
    let said: Vec<String> = out.lines().map(Result::unwrap).collect();
    let error = String::from_utf8(printed.stderr).unwrap();
    let last = said.last().map_or("", String::as_str);
    assert!(last.starts_with("stopped and committed after 0 commits"), "{said:?}\n{error}");
    assert!(error.contains("error: stopped before the ends that the sources had at the start"), "{error}");
    assert_eq!(printed.status.code(), Some(1));
}
