//! Topology files to plans: what they become, and what is said of those that can't.

mod compiled;
mod fingerprints;
mod grouped;
mod nested;
mod problems;
mod scalars;
mod topics;

use super::*;

pub(super) const FLIGHTS: &str = include_str!("../../../topologies/flights/flights.yaml");

/// The flights topology with some text replaced; each must stand in it once.
pub(super) fn flights_with(changes: &[(&str, &str)]) -> String {
    changes.iter().fold(FLIGHTS.to_string(), |text, (old, new)| {
        assert_eq!(text.matches(old).count(), 1, "'{old}' stands once in the flights topology");
        text.replacen(old, new, 1)
    })
}

pub(super) fn planned(text: &str) -> Plan {
    parse(text, "flights.yaml").unwrap_or_else(|error| panic!("{error}"))
}

/// The nodes of a stage, a word each.
pub(super) fn outline(stage: &Stage) -> Vec<String> {
    let name = |work: &Work| match work {
        Work::Map(_) => "map".to_string(),
        Work::Tumble(_) => "tumble".to_string(),
        Work::PartialAggregate(spec) => format!("partial {}", spec.view),
        Work::FinalAggregate(spec) => format!("final {}", spec.view),
        Work::Exchange { stage, key_columns } => format!("exchange {stage} by {key_columns:?}"),
        Work::Sink { sink, emit: Emit::Final } => format!("sink {sink}"),
        Work::Sink { sink, emit: Emit::Changes } => format!("sink {sink} of changes"),
    };
    let from = |from: Upstream| match from {
        Upstream::Input => "input".to_string(),
        Upstream::Node(node) => node.to_string(),
    };
    stage.nodes.iter().map(|node| format!("{} < {}", name(&node.work), from(node.from))).collect()
}

#[test]
fn flights_become_an_ingest_and_a_keyed_stage() {
    let plan = planned(FLIGHTS);
    let [source] = plan.sources.as_slice() else { panic!("one source") };
    let read: Vec<&str> = source.read.iter().map(|column| column.name.as_str()).collect();
    assert_eq!(read, ["carrier", "origin", "dep_delay", "sched_dep"]);
    assert_eq!(source.event_time, Some(3));
    assert_eq!(source.out_of_orderness, 3 * 3_600_000_000);
    assert_eq!(source.idle_after, 30_000_000);
    assert_eq!(source.max_ahead, 86_400_000_000);
    let checks: Vec<(&str, _)> =
        source.checks.iter().map(|check| (check.name.as_ref(), check.otherwise)).collect();
    use crate::operator::CheckedOtherwise::{Dead, Drop};
    assert_eq!(checks, [("known_origin", Dead), ("has_delay", Drop)]);

    let [ingest, keyed] = plan.stages.as_slice() else { panic!("two stages") };
    assert_eq!((ingest.name.as_ref(), keyed.name.as_ref()), ("ingest.departures", "hourly_delay"));
    assert_eq!(keyed.input, StageInput::Exchange { upstream: vec![0] });
    assert_eq!(outline(ingest), ["tumble < input", "partial hourly_delay < 0", "exchange 1 by [2, 3] < 1"]);
    assert_eq!(outline(keyed), ["final hourly_delay < input", "map < 0", "sink 0 < 1"]);

    let [sink] = plan.sinks.as_slice() else { panic!("one sink") };
    let names: Vec<&str> = sink.schema.fields().iter().map(|field| field.name().as_str()).collect();
    assert_eq!(names, ["window_start", "window_end", "origin", "carrier", "flights", "delay"]);
    assert_eq!(sink.row_key, [0, 1, 2, 3]);
    assert_eq!(sink.window_end, Some(1));
    assert_eq!(sink.topic.as_ref().map(|topic| topic.key.clone()), Some(vec![2, 3, 0]));
    let partitions = sink.lake.as_ref().map(|lake| lake.partition_by.clone());
    assert_eq!(partitions, Some(vec![LakePartition::Date("window_start".into())]));
}

#[test]
fn late_rows_and_replays_change_every_aggregate() {
    let grace = |plan: &Plan| -> Vec<(Micros, Micros)> {
        let nodes = plan.stages.iter().flat_map(|stage| &stage.nodes);
        nodes
            .filter_map(|node| match &node.work {
                Work::PartialAggregate(spec) | Work::FinalAggregate(spec) => {
                    Some((spec.grace, spec.retention))
                }
                _ => None,
            })
            .collect()
    };
    let week = 7 * 86_400_000_000;
    let plan = planned(&flights_with(&[("name: flights\n", "name: flights\ngrace: 10s\n")]));
    assert_eq!(grace(&plan), [(10_000_000, week); 2]);
    assert_eq!(plan.sinks[0].grace, 10_000_000);
    assert_eq!(grace(&plan.clone().with_late(&Late::AtLeast(5))), [(10_000_000, week); 2]);
    let late = plan.clone().with_late(&Late::All).for_replay();
    assert_eq!(grace(&late), [(Micros::MAX, 0); 2]);
    assert_eq!(late.sinks[0].grace, Micros::MAX);
    assert_eq!(late.fingerprint, plan.fingerprint);
}

#[test]
fn the_schema_describes_every_key() {
    let schema = json_schema();
    let text = schema.to_string();
    for key in ["out_of_orderness", "idle_after", "max_ahead", "partition_by", "otherwise", "max_drift"] {
        assert!(text.contains(&format!("\"{key}\"")), "{key}");
    }
    assert_eq!(schema["additionalProperties"], serde_json::json!(false));
    let undocumented: Vec<&String> = schema["properties"]
        .as_object()
        .into_iter()
        .flatten()
        .filter(|(_, property)| property.get("description").is_none())
        .map(|(key, _)| key)
        .collect();
    assert_eq!(undocumented, Vec::<&String>::new());
}
