//! Views that read views.

use super::*;
use crate::operator::Order;

const TWO: &str = "
name: nested
grace: 5m
sources:
  clicks:
    topic: clicks
    format: json
    columns: {at: timestamp_ms, site: varchar, unused: varchar, weight: bigint}
    event_time: at
views:
  heavy: select at, upper(site) as site, weight from clicks where weight > 1
  hourly: |
    select window_start, window_end, site, sum(weight) as weight, count(*) as n
    from tumble(TABLE heavy, DESCRIPTOR(at), interval '1 hour')
    group by window_start, window_end, site
    having count(*) > 1
  daily: |
    select window_start, site, max(weight) as most, last(n) as n
    from tumble(hourly, window_start, interval '1 day')
    group by window_start, site
  unsunk: select * from clicks
sinks:
  heavy: {topic: {name: heavy}}
  daily: {topic: {name: daily, key: [site, window_start]}}
  hourly: {topic: {name: hourly, key: [window_end, site]}}
";

fn aggregate<'a>(plan: &'a Plan, stage: &str) -> &'a AggregateSpec {
    let stage = plan.stages.iter().find(|other| *other.name == *stage).expect("the stage");
    match &stage.nodes[0].work {
        Work::FinalAggregate(spec) => spec,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_view_is_planned_once_and_fans_out() {
    let plan = planned(TWO);
    let read: Vec<&str> = plan.sources[0].read.iter().map(|column| column.name.as_str()).collect();
    assert_eq!(read, ["at", "site", "weight"]);
    let names: Vec<&str> = plan.stages.iter().map(|stage| stage.name.as_ref()).collect();
    assert_eq!(names, ["ingest.clicks", "hourly", "daily"]);
    assert_eq!(
        outline(&plan.stages[0]),
        ["map < input", "tumble < 0", "partial hourly < 1", "exchange 1 by [2] < 2", "sink 1 < 0"]
    );
    assert_eq!(
        outline(&plan.stages[1]),
        [
            "final hourly < input",
            "map < 0",
            "tumble < 1",
            "partial daily < 2",
            "exchange 2 by [1] < 3",
            "sink 2 < 1"
        ]
    );
    assert_eq!(outline(&plan.stages[2]), ["final daily < input", "map < 0", "sink 0 < 1"]);
    assert_eq!(plan.stages[2].input, StageInput::Exchange { upstream: vec![1] });
    assert!(plan.sinks[1].row_key.is_empty(), "a view without windows only appends");
    assert_eq!(plan.sinks[2].window_end, Some(1));
    assert_eq!(plan.sinks[0].window_end, None);
}

#[test]
fn sinks_of_changes_are_told_apart_and_a_replay_has_none() {
    let text = TWO
        .replace("hourly: {topic", "hourly: {emit: changes, topic")
        .replace("heavy: {topic", "heavy: {emit: changes, topic");
    let plan = planned(&text);
    assert_eq!(outline(&plan.stages[1])[5], "sink 2 of changes < 1");
    assert_eq!(outline(&plan.stages[0])[4], "sink 1 < 0", "rows without a window leave as they come");
    assert_eq!((plan.sinks[1].emit, plan.sinks[2].emit), (Emit::Final, Emit::Changes));
    assert_eq!(outline(&plan.for_replay().stages[1]), outline(&planned(TWO).stages[1]));
}

#[test]
fn the_second_aggregate_takes_changes_and_adds_no_grace() {
    let plan = planned(TWO);
    let (hourly, daily) = (aggregate(&plan, "hourly"), aggregate(&plan, "daily"));
    assert_eq!((hourly.grace, hourly.changes, &hourly.order), (300_000_000, false, &Order::Source));
    assert_eq!(daily.order, Order::RowKey(vec![0, 1, 2]));
    assert_eq!((daily.grace, daily.changes), (0, true), "hours end with their days");
    assert_eq!(plan.sinks[0].grace, 300_000_000);
    assert_ne!(hourly.state_id, daily.state_id);
    let names: Vec<&str> = daily.input.fields().iter().map(|field| field.name().as_str()).collect();
    assert_eq!(
        names,
        ["hourly_window_start", "hourly_window_end", "site", "weight", "n", "window_start", "window_end"]
    );
}

#[test]
fn windows_that_do_not_end_together_wait_for_the_last() {
    let plan = planned(&TWO.replace("interval '1 day'", "interval '90 minutes'"));
    assert_eq!(aggregate(&plan, "daily").grace, 3_600_000_000);
    assert_eq!(plan.sinks[0].grace, 3_900_000_000);
    let plan = planned(&TWO.replace(
        "tumble(hourly, window_start, interval '1 day')",
        "tumble(hourly, window_end, interval '90 minutes')",
    ));
    assert_eq!(aggregate(&plan, "daily").grace, 0);
}

#[test]
fn a_derived_row_has_only_its_windows_time() {
    let text = TWO
        .replace("tumble(hourly, window_start,", "tumble(x, t,")
        .replace(
            "    select window_start, site, max(weight)",
            "    with x as (select window_start + interval '1 hour' as t, site, weight, n from hourly)\n    select window_start, site, max(weight)",
        );
    let error = parse(&text, "nested.yaml").unwrap_err();
    assert!(error.to_string().contains("no watermark follows it"), "{error}");
}

#[test]
fn the_same_windows_can_be_grouped_again() {
    let text = TWO.replace("tumble(hourly, window_start, interval '1 day')", "hourly");
    let plan = planned(&text);
    assert_eq!(outline(&plan.stages[1])[2], "partial daily < 1");
    assert_eq!(aggregate(&plan, "daily").size, 3_600_000_000);
}

#[test]
fn subqueries_and_with_are_inlined() {
    let text = TWO.replace(
        "    select window_start, site, max(weight) as most, last(n) as n\n    from tumble(hourly, window_start, interval '1 day')\n    group by window_start, site\n",
        "    with h as (select window_start as s, site, avg(weight) as w from tumble(heavy, at, interval '1 hour') group by window_start, site)\n    select window_start, site, max(t.w) as most from (select * from tumble(h, s, interval '1 day')) t group by window_start, site\n",
    );
    let plan = planned(&text);
    let names: Vec<&str> = plan.stages.iter().map(|stage| stage.name.as_ref()).collect();
    assert_eq!(names, ["ingest.clicks", "daily.1", "daily", "hourly"]);
}

#[test]
fn a_new_sink_moves_no_stage() {
    let before = planned(&TWO.replace("  hourly: {topic: {name: hourly, key: [window_end, site]}}\n", ""));
    let after = planned(TWO);
    let stages = |plan: &Plan| -> Vec<(Arc<str>, usize)> {
        let keyed = plan.stages.iter().filter_map(|stage| match &stage.nodes[0].work {
            Work::FinalAggregate(spec) => Some((Arc::clone(&stage.name), usize::from(spec.state_id))),
            _ => None,
        });
        keyed.collect()
    };
    assert_eq!(stages(&before), stages(&after));
    assert_eq!(before.fingerprint, after.fingerprint);
}

#[test]
fn calls_keep_their_arguments_and_filters() {
    use crate::operator::Function::{Avg, Count, First, Last, Max, Min, Sum};
    let select = "select window_end, count(*) as a, count(site) as b, sum(weight * 2) as c, avg(weight) filter (where site <> 'x') as d, min(at) as e, max(upper(site)) as f, first(site) as g, last_value(weight) as h\n    from tumble(clicks, at, interval '10 minutes', interval '2 minutes')\n    where weight is not null\n    group by window_end";
    let text = TWO.replace("  unsunk: select * from clicks\n", &format!("  unsunk: |\n    {select}\n"));
    let plan =
        planned(&text.replace("sinks:\n", "sinks:\n  unsunk: {topic: {name: unsunk, key: [window_end]}}\n"));
    let spec = aggregate(&plan, "unsunk");
    let functions: Vec<_> = spec.calls.iter().map(|call| call.function).collect();
    assert_eq!(functions, [Count, Count, Sum, Avg, Min, Max, First, Last]);
    let arguments: Vec<bool> = spec.calls.iter().map(|call| call.argument.is_some()).collect();
    assert_eq!(arguments, [false, true, true, true, true, true, true, true]);
    assert!(spec.calls[3].filter.is_some() && spec.calls[0].filter.is_none());
    assert_eq!((spec.window_start, spec.window_end, spec.size), (None, Some(0), 600_000_000));
    let exchange = plan.stages[0].nodes.iter().find_map(|node| match &node.work {
        Work::Exchange { stage, key_columns } if *plan.stages[*stage].name == *"unsunk" => {
            Some(key_columns.clone())
        }
        _ => None,
    });
    assert_eq!(exchange, Some(vec![0]), "with no other group column, the window's");
    let sink = plan.sinks.iter().find(|sink| &*sink.view == "unsunk").expect("the sink");
    let types: Vec<String> = sink.schema.fields().iter().map(|field| field.data_type().to_string()).collect();
    assert_eq!(
        types,
        ["Timestamp(µs)", "Int64", "Int64", "Int64", "Float64", "Timestamp(µs)", "Utf8", "Utf8", "Int64"]
    );
}

#[test]
fn a_file_cut_anywhere_gives_problems_and_no_panic() {
    for (cut, _) in FLIGHTS.char_indices() {
        if let Err(error) = parse(&FLIGHTS[..cut], "cut.yaml") {
            assert!(!error.problems().is_empty());
            assert!(error.problems().iter().all(|problem| problem.line > 0 && problem.column > 0), "{error}");
        }
    }
}

#[test]
fn a_topic_is_read_by_one_source() {
    let again = "  again: {topic: clicks, format: json, columns: {site: varchar}}\nviews:\n  heavy:";
    let error = parse(&TWO.replace("views:\n  heavy:", again), "nested.yaml").unwrap_err();
    assert!(error.to_string().contains("'clicks' and 'again' read the same topic"), "{error}");
    assert!(error.to_string().contains("nested.yaml:10:18"), "{error}");
}
