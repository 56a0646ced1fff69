//! The flights topology, planned.

use headwater::plan::{self, StageInput, Upstream, Work};

const FLIGHTS: &str = include_str!("../../../topologies/flights/flights.yaml");

#[test]
fn plan_flights_into_two_stages() {
    let plan = plan::parse(FLIGHTS, "flights.yaml").unwrap_or_else(|error| panic!("{error}"));
    println!("{plan:#?}");
    let [source] = plan.sources.as_slice() else { panic!("one source") };
    let read: Vec<&str> = source.read.iter().map(|column| column.name.as_str()).collect();
    assert_eq!(read, ["carrier", "origin", "dep_delay", "sched_dep"]);
    assert_eq!(source.event_time, Some(3));
    let [ingest, keyed] = plan.stages.as_slice() else { panic!("two stages") };
    assert_eq!(ingest.input, StageInput::Source(0));
    assert_eq!(keyed.input, StageInput::Exchange { upstream: vec![0] });
    assert_eq!(keyed.nodes[0].from, Upstream::Input);
    assert!(matches!(keyed.nodes[0].work, Work::FinalAggregate(_)));
}
