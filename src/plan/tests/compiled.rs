//! Compiled expressions, evaluated on the columns that are really read.

use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, AsArray, Float64Array, RecordBatch, StringArray, TimestampMicrosecondArray,
};
use arrow::datatypes::{Int64Type, TimestampMicrosecondType};
use chrono::{DateTime, TimeDelta};

use super::*;
use crate::operator::MapSpec;

fn micros(text: &str) -> i64 {
    DateTime::parse_from_rfc3339(text).unwrap().timestamp_micros()
}

/// A row each for departures at these times, in the columns that the plan reads.
fn departures(plan: &Plan, times: &[&str]) -> RecordBatch {
    let columns = plan.sources[0].read.iter().map(|column| -> ArrayRef {
        match column.name.as_str() {
            "dep_delay" => Arc::new(Float64Array::from_iter_values((0..times.len()).map(|row| row as f64))),
            "sched_dep" | "dep" => {
                Arc::new(TimestampMicrosecondArray::from_iter_values(times.iter().map(|time| micros(time))))
            }
            name => {
                Arc::new(StringArray::from_iter_values((0..times.len()).map(|row| format!("{name}{row}"))))
            }
        }
    });
    let columns = columns.collect();
    RecordBatch::try_new(Arc::clone(&plan.sources[0].schema), columns).unwrap()
}

fn map(spec: &MapSpec, batch: &RecordBatch) -> RecordBatch {
    let evaluate = |expr: &Arc<dyn datafusion_physical_expr::PhysicalExpr>, batch: &RecordBatch| {
        expr.evaluate(batch).and_then(|value| value.into_array(batch.num_rows())).unwrap()
    };
    let batch = match &spec.filter {
        Some(filter) => {
            let keep = evaluate(filter, batch);
            arrow::compute::filter_record_batch(batch, keep.as_boolean()).unwrap()
        }
        None => batch.clone(),
    };
    let columns = spec.project.iter().flatten().map(|expr| evaluate(expr, &batch)).collect();
    RecordBatch::try_new(Arc::clone(&spec.output), columns).unwrap()
}

/// Plans a view without windows and runs its one map.
fn run(sql: &str, times: &[&str]) -> RecordBatch {
    let text = flights_with(&[(
        "sinks:\n  hourly_delay:\n",
        "  probe: >-\n    PROBE\nsinks:\n  probe: {topic: {name: probe}}\n  hourly_delay:\n",
    )]);
    let plan = planned(&text.replace("PROBE", sql));
    let ingest = &plan.stages[0];
    let sink = ingest.nodes.iter().find_map(|node| match (&node.work, node.from) {
        (Work::Sink { sink, .. }, Upstream::Node(from)) if &*plan.sinks[*sink].view == "probe" => Some(from),
        _ => None,
    });
    let Work::Map(spec) = &ingest.nodes[sink.unwrap()].work else { panic!("a map") };
    map(spec, &departures(&plan, times))
}

#[test]
fn filters_and_projections_find_their_columns_after_pruning() {
    let out = run(
        "select dep_delay * 2 as twice, upper(carrier) as carrier, case when dep_delay > 1 then 'late' else 'good' end as mark from departures d where d.dep_delay >= 1 and d.origin like 'origin%'",
        &["2013-01-01T05:00:00Z"; 3],
    );
    assert_eq!(out.column(0).as_primitive::<arrow::datatypes::Float64Type>().values(), &[2.0, 4.0]);
    let text = |column: usize| out.column(column).as_string::<i32>().iter().flatten().collect::<Vec<_>>();
    assert_eq!(text(1), ["CARRIER1", "CARRIER2"]);
    assert_eq!(text(2), ["good", "late"]);
}

#[test]
fn dates_hold_from_year_1_to_9999() {
    let times = [
        "0001-02-03T04:05:06.789012Z",
        "1677-01-01T00:00:01Z",
        "2262-12-31T23:59:59.999999Z",
        "9999-12-31T22:30:00Z",
    ];
    let out = run(
        "select date_trunc('hour', sched_dep) as h, date_trunc('month', sched_dep) as m, extract(year from sched_dep) as y, date_part('minute', sched_dep) as mi, date_bin(interval '15 minutes', sched_dep) as b, cast(cast(sched_dep as varchar) as timestamp) as again, sched_dep + interval '1 minute' as next, to_char(sched_dep, '%Y-%m-%d') as day, cast(sched_dep as date) as d, timestamp '0001-01-01T00:00:00' as first from departures",
        &times,
    );
    let time =
        |column: usize| out.column(column).as_primitive::<TimestampMicrosecondType>().values().to_vec();
    let at: Vec<i64> = times.iter().map(|time| micros(time)).collect();
    let floor = |size: i64| at.iter().map(|time| time - time.rem_euclid(size)).collect::<Vec<_>>();
    assert_eq!(time(0), floor(3_600_000_000));
    let months =
        ["0001-02-01T00:00:00Z", "1677-01-01T00:00:00Z", "2262-12-01T00:00:00Z", "9999-12-01T00:00:00Z"];
    assert_eq!(time(1), months.map(micros));
    let numbers = |column: usize| {
        let cast = arrow::compute::cast(out.column(column), &arrow::datatypes::DataType::Int64).unwrap();
        cast.as_primitive::<Int64Type>().values().to_vec()
    };
    assert_eq!(numbers(2), [1, 1677, 2262, 9999]);
    assert_eq!(numbers(3), [5, 0, 59, 30]);
    assert_eq!(time(4), floor(900_000_000));
    assert_eq!(time(5), at);
    let minute = TimeDelta::minutes(1).num_microseconds().unwrap();
    assert_eq!(time(6), at.iter().map(|time| time + minute).collect::<Vec<_>>());
    let days: Vec<&str> = out.column(7).as_string::<i32>().iter().flatten().collect();
    assert_eq!(days, ["0001-02-03", "1677-01-01", "2262-12-31", "9999-12-31"]);
    assert_eq!(out.column(8).null_count(), 0);
    assert_eq!(time(9), [micros("0001-01-01T00:00:00Z"); 4]);
}

#[test]
fn no_column_has_a_type_that_files_lack() {
    let out = run(
        "select substr(carrier, 1, 2) as s, strpos(carrier, 'r') as p, cast(1 as tinyint) as t, 'x' || carrier as j, length(carrier) as l, arrow_cast(carrier, 'Utf8View') as v, regexp_replace(carrier, 'c', 'k') as r, to_timestamp_millis(1000) as m, split_part(carrier, 'r', 1) as sp from departures",
        &["2013-01-01T05:00:00Z"],
    );
    use arrow::datatypes::DataType::{Int16, Int32, Int64, Timestamp, Utf8};
    for field in out.schema().fields() {
        let plain = matches!(
            field.data_type(),
            Utf8 | Int16 | Int32 | Int64 | Timestamp(arrow::datatypes::TimeUnit::Microsecond, None)
        );
        assert!(plain, "{field}");
    }
    assert_eq!(out.column(0).as_string::<i32>().value(0), "ca");
    assert_eq!(out.column(7).as_primitive::<TimestampMicrosecondType>().value(0), 1_000_000);
}

/// What is wrong with a check.
fn refused(check: &str) -> String {
    let text = flights_with(&[("expect: dep_delay is not null", &format!("expect: \"{check}\""))]);
    let error = parse(&text, "flights.yaml").unwrap_err();
    let [problem] = error.problems() else { panic!("{error}") };
    assert_eq!(problem.line, 20, "{error}");
    problem.message.clone()
}

#[test]
fn no_record_and_no_file_can_ask_for_a_text_of_any_length() {
    let limit = "takes a number up to 1000, so that no record can ask for all memory";
    for (call, name) in [
        ("repeat(carrier, 2000000000)", "repeat"),
        ("repeat('x', cast(dep_delay as bigint))", "repeat"),
        ("lpad(carrier, 1001)", "lpad"),
        ("rpad(carrier, 2000000000, 'y')", "rpad"),
    ] {
        assert_eq!(refused(&format!("{call} is not null")), format!("{name} {limit}"));
    }
    assert_eq!(refused("upper(repeat(concat(repeat('x', 9)), 9)) = ''"), "a repeat of a repeat");
    let twice = "repeat(lpad(carrier, 4, '*'), 2) = repeat(carrier, 1000)";
    planned(&flights_with(&[("expect: dep_delay is not null", &format!("expect: \"{twice}\""))]));
}

#[test]
fn with_defines_so_many_tables() {
    let with = |tables: usize| {
        let tables: Vec<_> =
            (0..tables).map(|at| format!("t{at} as (select carrier from departures)")).collect();
        let sql = format!("with {} select carrier from t0", tables.join(", "));
        flights_with(&[(
            "sinks:\n  hourly_delay:\n",
            &format!("  probe: {sql}\nsinks:\n  probe: {{topic: {{name: probe}}}}\n  hourly_delay:\n"),
        )])
    };
    planned(&with(256));
    let error = parse(&with(257), "flights.yaml").unwrap_err();
    assert_eq!(error.problems()[0].message, "WITH defines more than 256 tables");
}

#[test]
fn the_deepest_expression_that_is_planned_is_evaluated_and_deeper_ones_are_refused() {
    let sum = |levels: usize| format!("dep_delay{}", " + dep_delay".repeat(levels - 1));
    // On a test's stack, which is an ordinary thread's.
    let out = run(&format!("select {} as x from departures", sum(256)), &["2013-01-01T05:00:00Z"; 3]);
    assert_eq!(out.column(0).as_primitive::<arrow::datatypes::Float64Type>().values(), &[0.0, 256.0, 512.0]);
    let any = |levels: usize| format!("dep_delay = 1{}", " or dep_delay = 0.5".repeat(levels - 2));
    let out = run(&format!("select {} as x from departures", any(256)), &["2013-01-01T05:00:00Z"; 3]);
    assert_eq!(out.column(0).as_boolean().true_count(), 1);

    for levels in [257, 2_000] {
        assert_eq!(refused(&any(levels)), "an expression of more than 256 levels");
        assert_eq!(refused(&format!("{} > 1", sum(levels))), "an expression of more than 256 levels");
    }
    assert_eq!(refused(&any(100_000)), "more than 10000 words without a comma between them");
    assert_eq!(
        refused(&"interval ".repeat(5_000)),
        "more than 10000 words without a comma between them, of which INTERVAL counts as 20"
    );
    let casts =
        |levels: usize| format!("{}dep_delay{} > 1", "cast(".repeat(levels), " as double)".repeat(levels));
    planned(&flights_with(&[("expect: dep_delay is not null", &format!("expect: {}", casts(40)))]));
    // Each of these is tried in two ways, with all that is in it, before it is known to be unfinished.
    let does_not_parse = |check: &str| {
        let message = refused(check);
        assert!(message.starts_with("the SQL does not parse: "), "{message}");
    };
    for open in
        ["cast(", "substring(", "abs(interval ", "interval interval ", "array[cast(", "(dep_delay in (cast("]
    {
        does_not_parse(&open.repeat(20));
        does_not_parse(&open.repeat(200));
    }
    let within = "the SQL does not parse: what stands here is within too much else";
    assert_eq!(refused(&casts(60)), within);
    // A list is no deeper for being long.
    let list = (0..6_000).map(|number| number.to_string()).collect::<Vec<_>>().join(", ");
    planned(&flights_with(&[(
        "expect: dep_delay is not null",
        &format!("expect: \"dep_delay in ({list})\""),
    )]));
}
