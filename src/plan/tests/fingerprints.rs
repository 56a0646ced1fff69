//! What changes a fingerprint, and what does not.

use super::*;

#[test]
fn what_decides_no_state_changes_no_fingerprint() {
    let first = planned(FLIGHTS).fingerprint;
    assert_eq!(first.len(), 32);
    let same = |changes: &[(&str, &str)]| {
        assert_eq!(planned(&flights_with(changes)).fingerprint, first, "{changes:?}");
    };
    same(&[("# Hourly departure delays", "# Something else")]);
    same(&[("      flight: bigint\n", "")]);
    same(&[(
        "      carrier: varchar\n      origin: varchar\n",
        "      origin: varchar\n      carrier: varchar\n",
    )]);
    same(&[(
        "    topic: flights.departures\n    format: json\n",
        "    format: json\n    topic: flights.departures\n",
    )]);
    same(&[("gold/hourly_delay", "silver/hourly")]);
    same(&[("partition_by: [date(window_start)]", "partition_by: []")]);
    same(&[("sinks:\n", "  all: select flight from departures\nsinks:\n  all: {topic: {name: all}}\n")]);
    same(&[("select window_start, window_end, origin,", "SELECT  window_start,  window_end, origin,")]);
    same(&[("    topic: {name: flights", "    emit: final\n    topic: {name: flights")]);
    assert_eq!(parse(FLIGHTS, "elsewhere/other.yaml").unwrap().fingerprint, first);
}

/// What a topic was told of windows is known by their state only, where a later record relies on it.
#[test]
fn a_sink_whose_records_rely_on_the_state_is_part_of_it() {
    let changes = ("    topic: {name: flights", "    emit: changes\n    topic: {name: flights");
    let no_key = (", key: [origin, carrier, window_start]", "");
    let described = |changes: &[(&str, &str)]| planned(&flights_with(changes)).description;
    let lines = diff(&described(&[]), &described(&[changes]));
    let topic = "+   topic flights.hourly_delay, key (origin, carrier, window_start)";
    assert_eq!(lines, ["+ sink hourly_delay", topic, "+   emit changes"]);
    let lines = diff(&described(&[]), &described(&[no_key]));
    assert_eq!(lines, ["+ sink hourly_delay", "+   topic flights.hourly_delay, key ()"]);
    assert_eq!(
        diff(&described(&[changes]), &described(&[changes, ("gold/hourly_delay", "silver/hourly")])),
        [""; 0]
    );

    // Also what lies between the state and the sink.
    let view = |where_: &str, sink: &str| {
        let text = format!(
            "  busy: select window_start, origin, carrier, flights from hourly_delay where {where_}\nsinks:\n  busy: {sink}\n"
        );
        planned(&flights_with(&[("sinks:\n", &text)])).description
    };
    let append = "{topic: {name: busy}}";
    let lines = diff(&view("flights > 1", append), &view("flights > 2", append));
    assert_eq!(lines.len(), 3, "{lines:?}");
    let upsert = "{topic: {name: busy, key: [window_start, origin, carrier]}}";
    assert_eq!(view("flights > 1", upsert), view("flights > 2", upsert));
}

#[test]
fn what_decides_state_changes_the_fingerprint() {
    let first = planned(FLIGHTS).fingerprint;
    for change in [
        ("topic: flights.departures", "topic: flights.arrivals"),
        ("dep_delay: double", "dep_delay: real"),
        ("event_time: sched_dep", "event_time: dep"),
        ("out_of_orderness: 3h", "out_of_orderness: 4h"),
        ("name: flights\n", "name: flights\ngrace: 1h\n"),
        ("name: flights\n", "name: flights\nretention: 1d\n"),
        ("'LGA'", "'LGB'"),
        ("otherwise: drop", "otherwise: warn"),
        ("interval '1 hour'", "interval '2 hours'"),
        ("avg(dep_delay)", "sum(dep_delay)"),
        ("count(*)", "count(dep_delay)"),
        (
            "  hourly_delay: |\n    select window_start, window_end, origin, carrier,",
            "  hourly_delay: |\n    select window_start, window_end, origin, carrier, min(dep_delay) as least,",
        ),
        ("    group by window_start", "    where dep_delay > 0\n    group by window_start"),
    ] {
        assert_ne!(planned(&flights_with(&[change])).fingerprint, first, "{change:?}");
    }
}

#[test]
fn a_diff_names_what_changed() {
    let old = planned(FLIGHTS).description;
    let changes = [("interval '1 hour'", "interval '2 hours'"), ("dep_delay: double", "dep_delay: real")];
    let new = planned(&flights_with(&changes)).description;
    let lines = diff(&old, &new);
    assert_eq!(
        lines,
        [
            "  view hourly_delay",
            "-   tumble over sched_dep, size 1h, offset 0s",
            "+   tumble over sched_dep, size 2h, offset 0s",
            "-   avg(dep_delay)",
            "+   avg(CAST(dep_delay AS Float64))",
            "  source departures",
            "-   column dep_delay double",
            "+   column dep_delay real",
        ]
    );
    assert_eq!(diff(&old, &old), Vec::<String>::new());
}
