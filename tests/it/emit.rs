//! What consumers see of windows that change: `emit: changes`, and topics without a key, through the program.

use serde_json::{Value, json};

use crate::project::Project;

const TOPOLOGY: &str = "
name: shop
sources:
  orders:
    topic: orders
    format: json
    columns: {k: varchar, v: bigint, at: timestamp}
    event_time: at
    watermark: {idle_after: 1000d}
views:
  hourly: |
    select window_start, k, count(*) as n, sum(v) as v from tumble(orders, at, interval '1 hour')
    group by window_start, k having sum(v) > 0
  log: select * from hourly
  closed: select * from hourly
sinks:
  hourly: {emit: changes, topic: {name: shop.hourly, key: [k, window_start]}}
  log: {emit: changes, topic: {name: shop.log}}
  closed: {topic: {name: shop.closed, key: [k, window_start]}}
";

struct Shop(Project);

impl Shop {
    fn new() -> Self {
        let project = Project::new();
        std::fs::write(project.path().join("shop.yaml"), TOPOLOGY).unwrap();
        Self(project)
    }

    /// An order comes, and is worked on.
    fn order(&self, k: &str, v: i64, at: &str) {
        let line = json!({"k": k, "v": v, "at": format!("2026-01-01T{at}:00Z")}).to_string();
        let produced = self.0.run_with(&["topic", "produce", "orders", "--partitions", "1"], &line);
        assert_eq!(produced.code, 0, "{}", produced.err);
        self.0.ok(&["run", "shop.yaml", "--until-end"]);
    }

    fn records(&self, topic: &str) -> Vec<Value> {
        let text = self.0.ok(&["topic", "tail", topic, "--from-beginning", "--json"]);
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// Rows of a, in the order in which they were written: `+n v`, `-n v` taken back, `gone` deleted.
    fn told(&self, topic: &str) -> Vec<String> {
        let of_a = |record: &&Value| record["key"]["k"] == "a" || record["value"]["k"] == "a";
        let line = |record: &Value| match (&record["value"], record["headers"][0]["value"].as_str()) {
            (Value::Null, _) => "gone".to_owned(),
            (row, None) => format!("+{} {}", row["n"], row["v"]),
            (row, Some("retract")) => format!("-{} {}", row["n"], row["v"]),
            (_, Some(other)) => panic!("{other}"),
        };
        self.records(topic).iter().filter(of_a).map(line).collect()
    }
}

#[test]
fn a_consumer_sees_windows_change_and_nothing_more_when_they_close() {
    let shop = Shop::new();
    let _broker = shop.0.broker();
    shop.order("a", 5, "10:05");
    assert_eq!((shop.told("shop.hourly"), shop.told("shop.log")), (vec!["+1 5".into()], vec!["+1 5".into()]));
    assert_eq!(shop.told("shop.closed"), [""; 0], "its window is open");
    shop.order("a", -5, "10:10");
    shop.order("b", 1, "10:15");
    shop.order("a", 7, "10:20");
    shop.order("a", 1, "10:25");
    let before = shop.told("shop.log");
    assert_eq!(before, ["+1 5", "-1 5", "+3 7", "-3 7", "+4 8"]);
    assert_eq!(shop.told("shop.hourly"), ["+1 5", "gone", "+3 7", "+4 8"]);
    let printed = shop.0.ok(&["topic", "tail", "shop.log", "--from-beginning"]);
    let retracted = r#"retract {"window_start":"2026-01-01T10:00:00Z","k":"a","n":1,"v":5}"#;
    assert!(printed.lines().any(|line| line == retracted), "{printed}");

    // The hour closes: only the next one's row is new to those who know.
    shop.order("a", 2, "11:05");
    assert_eq!(shop.told("shop.log")[before.len()..], ["+1 2"]);
    assert_eq!(shop.told("shop.hourly")[4..], ["+1 2"]);
    assert_eq!(shop.told("shop.closed"), ["+4 8"]);

    // All of a row, one after the other, is in one partition.
    let log = shop.records("shop.log");
    let hour: Vec<&Value> = log
        .iter()
        .filter(|record| {
            record["value"]["k"] == "a" && record["value"]["window_start"] == "2026-01-01T10:00:00Z"
        })
        .collect();
    assert!(hour.iter().all(|record| record["partition"] == hour[0]["partition"] && record["key"].is_null()));
    assert_eq!(hour[4]["offset"].as_i64(), hour[3]["offset"].as_i64().map(|offset| offset + 1), "{log:?}");

    let verified = shop.0.ok(&["verify", "shop.yaml"]);
    for (topic, equal, open) in [("shop.hourly", 2, 1), ("shop.log", 2, 1)] {
        let line = format!(
            "EQUAL  {topic}: {equal} rows equal, 0 differ, 0 pending (their windows are open), {open} not compared"
        );
        assert!(verified.contains(&line), "{line}\n{verified}");
    }
    assert!(verified.contains("EQUAL  shop.closed: 2 rows equal, 0 differ, 1 pending"), "{verified}");
}

#[test]
fn verify_finds_rows_that_were_never_taken_back_and_retractions_of_nothing() {
    let shop = Shop::new();
    let _broker = shop.0.broker();
    shop.order("a", 5, "10:05");
    shop.order("a", 2, "11:05");
    assert!(shop.0.ok(&["verify", "shop.yaml"]).contains("EQUAL  shop.log: 1 rows equal"));
    let produce = |record: &str| {
        let produced = shop.0.run_with(&["topic", "produce", "shop.log", "--envelope"], record);
        assert_eq!(produced.code, 0, "{}", produced.err);
    };
    let found = || {
        let outcome = shop.0.run(&["verify", "shop.yaml"]);
        assert_eq!(outcome.code, 1, "{}", outcome.out);
        outcome.out
    };
    let row = r#"{"window_start":"2026-01-01T10:00:00Z","k":"a","n":1,"v":5}"#;
    let back = format!(r#"{{"value":{row},"headers":[{{"name":"headwater.op","value":"retract"}}]}}"#);
    produce(&format!(r#"{{"value":{row}}}"#));
    let twice = found();
    assert!(twice.contains("DIFFERENT  shop.log") && twice.contains("live   2\n  replay 1"), "{twice}");
    produce(&back);
    produce(&back);
    let gone = found();
    assert!(gone.contains("live   no row\n  replay 1"), "{gone}");
    produce(&back);
    let below = found();
    assert!(below.contains("live   -1: taken back more often than written\n  replay 1"), "{below}");
}

/// What the topic was told of open windows is known by their state, so another way of telling does not fit to it.
#[test]
fn another_emit_is_refused_and_says_what_to_do() {
    let shop = Shop::new();
    let _broker = shop.0.broker();
    shop.order("a", 5, "10:05");
    let changed = TOPOLOGY.replace("hourly: {emit: changes, topic", "hourly: {emit: final, topic");
    std::fs::write(shop.0.path().join("shop.yaml"), changed).unwrap();
    let refused = shop.0.run(&["run", "shop.yaml", "--until-end"]);
    assert_ne!(refused.code, 0, "{}", refused.out);
    assert!(
        refused.err.contains("- sink hourly\n") && refused.err.contains("-   emit changes\n"),
        "{}",
        refused.err
    );
    assert!(refused.err.contains("headwater reset"), "{}", refused.err);
    let checked = shop.0.ok(&["check", "shop.yaml"]);
    assert!(
        checked.contains("shop.log, whenever its windows change; without a key: each change first"),
        "{checked}"
    );
}
