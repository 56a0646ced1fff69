//! The alert rules and the dashboard ask for metrics, and labels of them, that a running topology really exports;
//! and each metric has a place in one of them.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::Command;
use std::time::Duration;

use serde_json::Value;

use crate::project::Project;
use crate::support::within;

const RULES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/deploy/prometheus/headwater.yml");
const DASHBOARD: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/deploy/grafana/headwater.json");

const TOPOLOGY: &str = "\
name: shop
sources:
  orders:
    topic: shop.orders
    format: json
    columns: {id: bigint, country: varchar, at: timestamp}
    event_time: at
checks:
  orders:
    - {name: positive, expect: id > 0, otherwise: warn}
views:
  hourly: |
    select window_start, window_end, country, count(*) as orders
    from tumble(orders, at, interval '1 hour')
    group by window_start, window_end, country
sinks:
  hourly: {topic: {name: shop.hourly, format: json, key: [country, window_start]}}
";

/// The series of a running topology: label names by metric name.
fn exported() -> BTreeMap<String, BTreeSet<String>> {
    let project = Project::new();
    let _server = project.broker();
    std::fs::create_dir(project.path().join("config")).unwrap();
    project.write(
        "config/headwater.yaml",
        "http: {listen: '127.0.0.1:0'}\nworker: {checkpoint_interval: 10ms, epoch: 20ms}\n",
    );
    project.write("shop.yaml", TOPOLOGY);
    let lines = "{\"id\":0,\"country\":\"DE\",\"at\":\"2026-01-01T10:00:00Z\"}\n";
    assert_eq!(project.run_with(&["topic", "produce", "shop.orders", "--partitions", "1"], lines).code, 0);
    let running = project.start(&["run", "shop.yaml", "-v"]);
    let minute = Duration::from_secs(60);
    let address = within(minute, "the address of the metrics", || {
        let (_, err) = project.printed();
        let (_, rest) = err.split_once("http://")?;
        Some(rest.split_once("/metrics")?.0.to_owned())
    });
    let text = within(minute, "all metrics", || {
        let mut stream = TcpStream::connect(&address).unwrap();
        write!(stream, "GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        // The last ones to come: they need a second look at the lag, a warning, and a checkpoint.
        let last = [
            "headwater_catch_up_seconds{",
            "headwater_check_warnings_total{",
            "headwater_checkpoint_offset{",
        ];
        last.iter().all(|name| answer.contains(name)).then_some(answer)
    });
    running.signal("-TERM");
    assert_eq!(running.wait(minute).0, 0);
    let mut series: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for line in text.lines().filter(|line| line.starts_with("headwater_")) {
        let (name, rest) = line.split_once('{').unwrap();
        let labels = rest
            .split('}')
            .next()
            .unwrap()
            .split(',')
            .map(|label| label.split('=').next().unwrap().to_owned());
        series.entry(name.to_owned()).or_default().extend(labels);
    }
    series
}

/// What a PromQL expression names: metrics with the labels that select among them, and labels that it groups by.
fn named(expression: &str) -> (BTreeMap<String, BTreeSet<String>>, BTreeSet<String>) {
    let word = |text: &str| -> String {
        text.chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '_').collect()
    };
    let mut metrics: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for (at, _) in expression.match_indices("headwater_") {
        let name = word(&expression[at..]);
        let rest = &expression[at + name.len()..];
        let labels = metrics.entry(name).or_default();
        if let Some(selector) = rest.strip_prefix('{') {
            let selector = selector.split('}').next().unwrap();
            labels.extend(selector.split(',').map(|label| word(label.trim())));
        }
    }
    let mut grouped = BTreeSet::new();
    for key in [" by (", " on ("] {
        for (at, _) in expression.match_indices(key) {
            let inside = expression[at + key.len()..].split(')').next().unwrap();
            grouped.extend(inside.split(',').map(|label| label.trim().to_owned()));
        }
    }
    (metrics, grouped)
}

#[test]
fn expressions_are_taken_apart() {
    let (metrics, grouped) =
        named("max by (a, b) (headwater_x{c=\"d\",e=~\"f\"}) > on (g) headwater_y_bucket[5m]");
    let set = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<BTreeSet<_>>();
    assert_eq!(metrics["headwater_x"], set(&["c", "e"]));
    assert_eq!(metrics["headwater_y_bucket"], set(&[]));
    assert_eq!(grouped, set(&["a", "b", "g"]));
}

#[test]
fn alerts_and_dashboard_ask_for_what_is_exported() {
    let rules: Value = serde_saphyr::from_str(&std::fs::read_to_string(RULES).unwrap()).unwrap();
    let dashboard: Value = serde_json::from_str(&std::fs::read_to_string(DASHBOARD).unwrap()).unwrap();
    // By where it stands: an expression, and the labels that a text beside it shows.
    let mut asked: Vec<(String, String, BTreeSet<String>)> = Vec::new();
    let shown = |text: &str, open: &str| -> BTreeSet<String> {
        let each = text.split(open).skip(1);
        each.map(|rest| {
            rest.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').next().unwrap().to_owned()
        })
        .collect()
    };
    for group in rules["groups"].as_array().unwrap() {
        for rule in group["rules"].as_array().unwrap() {
            let name = rule["alert"].as_str().unwrap().to_owned();
            assert!(
                ["warning", "critical"].contains(&rule["labels"]["severity"].as_str().unwrap()),
                "{name}"
            );
            let texts = ["summary", "description"].map(|text| rule["annotations"][text].as_str().unwrap());
            let labels = shown(&texts.concat(), "$labels.");
            asked.push((name, rule["expr"].as_str().unwrap().to_owned(), labels));
        }
    }
    let mut ids = BTreeSet::new();
    for panel in dashboard["panels"].as_array().unwrap() {
        let title = panel["title"].as_str().unwrap();
        assert!(ids.insert(panel["id"].as_u64().unwrap()), "two panels with the id of '{title}'");
        for target in panel["targets"].as_array().unwrap() {
            let labels = shown(target["legendFormat"].as_str().unwrap(), "{{");
            asked.push((title.to_owned(), target["expr"].as_str().unwrap().to_owned(), labels));
        }
    }
    for variable in dashboard["templating"]["list"].as_array().unwrap() {
        let query = variable["query"]["query"].as_str().unwrap_or_default();
        if let Some((metric, label)) =
            query.trim_start_matches("label_values(").trim_end_matches(')').split_once(", ")
        {
            asked.push((query.to_owned(), metric.to_owned(), BTreeSet::from([label.to_owned()])));
        }
    }
    assert!(asked.len() > 25, "{}", asked.len());

    let exported = exported();
    let mut used = BTreeSet::new();
    for (place, expression, labels) in asked {
        let (metrics, grouped) = named(&expression);
        assert!(!metrics.is_empty(), "{place}: {expression}");
        let mut known = BTreeSet::new();
        for (metric, selected) in &metrics {
            let there = exported.get(metric).unwrap_or_else(|| panic!("{place}: nobody exports {metric}"));
            assert!(selected.is_subset(there), "{place}: {metric} has no {selected:?}, but {there:?}");
            known.extend(there.iter().cloned());
        }
        let named: BTreeSet<_> = grouped.union(&labels).cloned().collect();
        assert!(named.is_subset(&known), "{place}: {named:?} in {expression}, which has {known:?}");
        used.extend(metrics.into_keys());
    }
    let family = |name: &String| {
        ["_bucket", "_sum", "_count"].iter().find_map(|end| name.strip_suffix(end)).unwrap_or(name).to_owned()
    };
    let used: BTreeSet<String> = used.iter().map(family).collect();
    assert_eq!(used, exported.keys().map(family).collect(), "asked for, and exported");
}

#[test]
fn prometheus_takes_the_rules() {
    let promtool = std::env::var("HEADWATER_TEST_PROMTOOL").unwrap_or_else(|_| "promtool".to_owned());
    match Command::new(&promtool).args(["check", "rules", RULES]).output() {
        Err(_) => eprintln!("SKIPPED: no promtool; HEADWATER_TEST_PROMTOOL names one"),
        Ok(output) => assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr)),
    }
}

/// A block scalar of the manifest's ConfigMap, without its indentation.
fn configured(manifest: &str, name: &str) -> String {
    let begins = format!("  {name}: |");
    let lines = manifest.lines().skip_while(|line| !line.starts_with(&begins)).skip(1);
    let block = lines.take_while(|line| line.starts_with("    ") || line.is_empty());
    block.map(|line| line.get(4..).unwrap_or_default().to_owned() + "\n").collect()
}

#[test]
fn the_manifest_holds_a_config_and_a_topology_that_are_valid() {
    let manifest = concat!(env!("CARGO_MANIFEST_DIR"), "/deploy/kubernetes/headwater.yaml");
    let manifest = std::fs::read_to_string(manifest).unwrap();
    let folder = tempfile::tempdir().unwrap();
    for name in ["headwater.yaml", "topology.yaml"] {
        let text = configured(&manifest, name);
        assert!(text.lines().count() > 3, "{name}: {text}");
        std::fs::write(folder.path().join(name), text).unwrap();
    }
    headwater::config::Config::load(Some(&folder.path().join("headwater.yaml"))).unwrap();
    let check = Command::new(env!("CARGO_BIN_EXE_headwater"))
        .arg("check")
        .arg(folder.path().join("topology.yaml"))
        .output()
        .unwrap();
    assert!(check.status.success(), "{}", String::from_utf8_lossy(&check.stderr));
}
