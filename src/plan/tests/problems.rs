//! Every message, whole: `problems.golden` is rewritten with UPDATE_GOLDEN=1 and read in review.

use std::fmt::Write;

use super::*;

const VIEW: &str = "    select window_start, window_end, origin, carrier, count(*) as flights, avg(dep_delay) as delay\n    from tumble(departures, sched_dep, interval '1 hour')\n    group by window_start, window_end, origin, carrier\n";
const SINK: &str =
    "    topic: {name: flights.hourly_delay, format: json, key: [origin, carrier, window_start]}\n";

/// What is changed in the flights topology, and what is then wrong is in the golden file.
fn cases() -> Vec<(&'static str, Vec<(&'static str, &'static str)>)> {
    let view = |sql: &'static str| vec![(VIEW, sql)];
    vec![
        ("unknown key", vec![("    event_time: sched_dep", "    event_tme: sched_dep")]),
        ("missing key", vec![("    topic: flights.departures\n", "")]),
        ("key given twice", vec![("name: flights\n", "name: flights\nname: flights\n")]),
        ("no YAML", vec![("name: flights\n", "name: [flights\n")]),
        ("unknown check outcome", vec![("otherwise: drop", "otherwise: dropp")]),
        ("format not built", vec![("format: json\n", "format: avro\n")]),
        ("no such format", vec![("format: json\n", "format: jsn\n")]),
        (
            "table",
            vec![("    event_time: sched_dep", "    table: {key: [carrier]}\n    event_time: sched_dep")],
        ),
        ("bad type", vec![("carrier: varchar", "carrier: varchr")]),
        (
            "type cut by YAML",
            vec![("    columns:\n      flight: bigint", "    columns:\n      flight: decimal(10")],
        ),
        (
            "comma in braces",
            vec![(
                "    columns:\n      flight: bigint\n",
                "    columns: {flight: decimal(38,10)}\n    columns:\n",
            )],
        ),
        ("event time missing", vec![("event_time: sched_dep", "event_time: sched_deb")]),
        ("event time no timestamp", vec![("event_time: sched_dep", "event_time: origin")]),
        ("bad duration", vec![("out_of_orderness: 3h", "out_of_orderness: 3 moons")]),
        ("bad topic", vec![("topic: flights.departures", "topic: flights/departures")]),
        ("view named like a source", vec![("  hourly_delay: |", "  departures: |")]),
        ("name SQL cannot say", vec![("  hourly_delay: |", "  Hourly: |")]),
        ("check on no source", vec![("checks:\n  departures:", "checks:\n  departure:")]),
        ("check of a column that is not", vec![("origin in ('EWR'", "orgin in ('EWR'")]),
        ("check that is no condition", vec![("dep_delay is not null", "dep_delay + 1")]),
        ("check that aggregates", vec![("dep_delay is not null", "max(dep_delay) > 1")]),
        ("check twice", vec![("name: has_delay", "name: known_origin")]),
        ("sink on nothing", vec![("sinks:\n  hourly_delay:", "sinks:\n  hourly_dely:")]),
        ("sink on a source", vec![("sinks:\n  hourly_delay:", "sinks:\n  departures:")]),
        ("key column that is not", vec![("key: [origin, carrier,", "key: [origin, carier,")]),
        (
            "key without the row key",
            vec![("key: [origin, carrier, window_start]", "key: [origin, window_start]")],
        ),
        ("key without a window", vec![("key: [origin, carrier, window_start]", "key: [origin, carrier]")]),
        ("no such emit", vec![(SINK, "    emit: sometimes\n    topic: {name: flights.hourly_delay}\n")]),
        ("changes without a topic", vec![(SINK, "    emit: changes\n")]),
        ("no partitions", vec![(SINK, "    topic: {name: out, partitions: 0}\n")]),
        ("topic setting that is not", vec![(SINK, "    topic: {name: out, config: {retention.mss: 5}}\n")]),
        ("topic setting with a unit", vec![(SINK, "    topic: {name: out, config: {retention.ms: 7d}}\n")]),
        (
            "compacted without a key",
            vec![(SINK, "    topic: {name: out, config: {cleanup.policy: 'compact,delete'}}\n")],
        ),
        (
            "dead letters compacted",
            vec![("name: flights\n", "name: flights\ndead: {config: {cleanup.policy: compact}}\n")],
        ),
        ("late topic", vec![("name: flights\n", "name: flights\nlate: {partitions: -3, confg: {}}\n")]),
        (
            "partitioned by nothing known",
            vec![("    event_time: sched_dep", "    partitioned_by: [flght]\n    event_time: sched_dep")],
        ),
        ("partition that is not", vec![("date(window_start)", "date(window_strt)")]),
        ("partition by a timestamp", vec![("date(window_start)", "window_start")]),
        ("sink into its own source", vec![("name: flights.hourly_delay", "name: flights.departures")]),
        (
            "no sinks",
            vec![
                (SINK, ""),
                (
                    "sinks:\n  hourly_delay:\n    lake: {table: gold/hourly_delay, partition_by: [date(window_start)]}\n",
                    "",
                ),
            ],
        ),
        (
            "unknown column",
            view(
                "    select window_start,\n      carier from tumble(departures, sched_dep, interval '1 hour')\n",
            ),
        ),
        (
            "unknown column, folded",
            vec![
                ("hourly_delay: |", "hourly_delay: >"),
                (VIEW, "    select\n      window_start,\n      carier\n    from departures\n"),
            ],
        ),
        (
            "unknown column, plain",
            vec![("hourly_delay: |\n", "hourly_delay: select carier from departures\n"), (VIEW, "")],
        ),
        ("unknown table", view("    select * from departurs\n")),
        ("bad SQL", view("    select origin,, carrier from departures\n")),
        ("no SELECT", view("    delete from departures\n")),
        ("two statements", view("    select * from departures; select 1\n")),
        ("nothing read", view("    select 1 as one\n")),
        ("cycle", vec![(VIEW, "    select * from again\n  again: select * from hourly_delay\n")]),
        (
            "join",
            view("    select d.origin from departures d\n    join departures e on d.origin = e.origin\n"),
        ),
        ("order by", view("    select origin from departures\n    order by origin\n")),
        ("limit", view("    select origin from departures limit 10\n")),
        ("distinct", view("    select distinct origin from departures\n")),
        ("union", view("    select origin from departures\n    union all select dest from departures\n")),
        ("over", view("    select row_number() over (order by origin) as n from departures\n")),
        (
            "distinct star",
            view(
                "    select window_start, count(distinct *) as n\n    from tumble(departures, sched_dep, interval '1 hour') group by window_start\n",
            ),
        ),
        (
            "sum distinct",
            view(
                "    select window_start, sum(distinct dep_delay) as n\n    from tumble(departures, sched_dep, interval '1 hour') group by window_start\n",
            ),
        ),
        ("no window", view("    select origin, count(*) as n from departures\n    group by origin\n")),
        (
            "window not grouped by",
            view(
                "    select origin, count(*) as n from tumble(departures, sched_dep, interval '1 hour')\n    group by origin\n",
            ),
        ),
        ("no group by", view("    select count(*) as n from departures\n")),
        (
            "group by nothing",
            view(
                "    select window_start, count(*) as n\n    from tumble(departures, sched_dep, interval '1 hour')\n    group by (), window_start\n",
            ),
        ),
        (
            "group by with rollup",
            view(
                "    select window_start, count(*) as n\n    from tumble(departures, sched_dep, interval '1 hour')\n    group by window_start with rollup\n",
            ),
        ),
        (
            "group by an aggregate",
            view(
                "    select window_start, count(*) as n\n    from tumble(departures, sched_dep, interval '1 hour')\n    group by window_start, n\n",
            ),
        ),
        (
            "order in an aggregate",
            view(
                "    select window_start, first_value(carrier order by origin) as n\n    from tumble(departures, sched_dep, interval '1 hour') group by window_start\n",
            ),
        ),
        (
            "aggregate not built",
            view(
                "    select window_start, median(dep_delay) as n\n    from tumble(departures, sched_dep, interval '1 hour') group by window_start\n",
            ),
        ),
        ("now", view("    select origin, now() as n from departures\n")),
        ("current_date", view("    select origin,\n      current_date as n from departures\n")),
        ("random", view("    select random() as n from departures\n")),
        ("uuid", view("    select uuid() as n from departures\n")),
        ("nanoseconds", view("    select to_timestamp(origin) as n from departures\n")),
        ("unknown function", view("    select uper(origin) as n from departures\n")),
        (
            "subquery in an expression",
            view("    select origin from departures where origin in (select dest from departures)\n"),
        ),
        (
            "neither grouped by nor aggregated",
            view(
                "    select window_start, origin, count(*) as n from tumble(departures, sched_dep, interval '1 hour') group by window_start\n",
            ),
        ),
        (
            "subquery in tumble",
            view(
                "    select window_start, count(*) as n from tumble((select * from departures), sched_dep, interval '1 hour') group by window_start\n",
            ),
        ),
        (
            "window over text",
            view(
                "    select window_start, count(*) as n from tumble(departures, origin, interval '1 hour') group by window_start\n",
            ),
        ),
        (
            "window of months",
            view(
                "    select window_start, count(*) as n from tumble(departures, sched_dep, interval '1 month') group by window_start\n",
            ),
        ),
        (
            "tumble without a size",
            view(
                "    select window_start, count(*) as n from tumble(departures, sched_dep) group by window_start\n",
            ),
        ),
        ("hop", view("    select * from hop(departures, sched_dep, interval '1 hour', interval '1 day')\n")),
        ("interval out", view("    select sched_dep - dep as wait from departures\n")),
        ("same name twice", view("    select origin as a, dest as a from departures\n")),
        (
            "types that do not compare",
            view("    select origin from departures where origin + 1 > sched_dep\n"),
        ),
        (
            "sum of text",
            view(
                "    select window_start, origin, sum(carrier) as x from tumble(departures, sched_dep, interval '1 hour') group by window_start, origin\n",
            ),
        ),
        (
            "sum of conditions",
            view(
                "    select window_start, sum(flight > 3) as x from tumble(departures, sched_dep, interval '1 hour') group by window_start\n",
            ),
        ),
        ("argument of another type", view("    select origin, upper(flight + 1) as x from departures\n")),
        ("too many arguments", view("    select origin, abs(flight, 2) as x from departures\n")),
        ("no interval", view("    select origin, sched_dep + interval '1 huor' as x from departures\n")),
        ("no such type", view("    select cast(origin as int99) as x from departures\n")),
        (
            "text that is no number",
            view("    select origin from departures\n    where flight between 'a' and 7\n"),
        ),
        (
            "text that is no timestamp",
            view("    select origin from departures where sched_dep > '2013-13-45'\n"),
        ),
        (
            "typed text that is no timestamp",
            view("    select origin from departures where sched_dep > timestamp '2013-13-45'\n"),
        ),
        ("like a number", view("    select origin from departures where origin like 3\n")),
        ("minus text", view("    select -origin as x from departures\n")),
        (
            "types in a query within",
            view(
                "    with a as (select origin, flight from departures),\n    b as (select upper(flight) as x from a)\n    select x from b\n",
            ),
        ),
        ("check with types that do not fit", vec![("dep_delay is not null", "upper(flight) = 'A'")]),
        (
            "row key left out",
            view(
                "    select window_start, origin, n from (select window_start, origin, carrier, count(*) as n\n    from tumble(departures, sched_dep, interval '1 hour') group by window_start, origin, carrier)\n",
            ),
        ),
        (
            "several at once",
            vec![
                ("carrier: varchar", "carrier: varchr"),
                ("out_of_orderness: 3h", "out_of_orderness: soon"),
                ("date(window_start)", "date(nowhere)"),
            ],
        ),
    ]
}

#[test]
#[allow(clippy::disallowed_methods, reason = "UPDATE_GOLDEN=1 rewrites the golden file")]
fn messages_equal_the_golden_file() {
    let mut text = String::new();
    for (name, changes) in cases() {
        let topology = flights_with(&changes);
        match parse(&topology, "flights.yaml") {
            Ok(_) => panic!("'{name}' is refused"),
            Err(error) => writeln!(text, "== {name}\n{error}\n").unwrap(),
        }
    }
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/src/plan/tests/problems.golden");
    if std::env::var("UPDATE_GOLDEN").is_ok() {
        std::fs::write(path, &text).unwrap();
    }
    let golden = std::fs::read_to_string(path).unwrap();
    for (expected, found) in golden.split("== ").zip(text.split("== ")) {
        assert_eq!(expected, found);
    }
    assert_eq!(golden, text);
}

#[test]
fn a_carriage_return_ends_a_line_with_a_line_feed_or_without() {
    let text = "name: n\r\nsources: {}\rviews: {}\r\rsinkz: {}\r\n";
    let error = parse(text, "n.yaml").unwrap_err();
    let problem = &error.problems()[0];
    assert_eq!((problem.line, problem.column, problem.source_line.as_str()), (5, 1, "sinkz: {}"));
}
