//! Expressions and what they give for one record: the names, operators and functions that DataFusion's defaults lack.

use arrow::array::RecordBatch;
use datafusion_physical_expr::PhysicalExpr;
use serde_json::{Value, json};

use super::*;
use crate::codec::json::{JsonDecoder, RowEncoder};

pub(super) const ORDERS: &str = r#"
name: orders
sources:
  s:
    topic: orders
    format: json
    columns:
      id: bigint
      s: varchar
      n: bigint
      b: boolean
      d: double
      m: decimal(10,2)
      ts: timestamp
      day: date
      orderId: bigint
      Mixed: varchar
      MIXED: varchar
      j: json
      a: bigint[]
      names: varchar[]
      items: struct<sku varchar, qty bigint>[]
      st: 'struct<x bigint, userId varchar, inner struct<y bigint>>'
    event_time: ts
views:
  v: |
    SQL
sinks:
  v: {topic: {name: out}}
"#;

const RECORD: &str = r#"{"id": 7, "s": "50%_off\\x", "n": -3, "b": true, "d": 1.5, "m": "2.50",
    "ts": "2024-02-29T23:47:31Z", "day": "2024-02-29", "orderId": 11, "Mixed": "m", "MIXED": "M",
    "j": {"q": "x\ny", "n": 12345678901234567890, "f": 1.50, "w": 7.0, "t": true, "z": null, "l": [10, {"k": "v"}], "o": {"p": {"r": 5}}, "a b": 1},
    "a": [4, null, 6], "names": ["x", "y"], "items": [{"sku": "k", "qty": 2}],
    "st": {"x": 1, "userId": "u", "inner": {"y": 2}}}"#;

pub(super) fn orders(sql: &str) -> Result<Plan, PlanError> {
    parse(&ORDERS.replace("SQL", sql), "orders.yaml")
}

/// The rows that a view makes of some records, as they would stand in its topic.
fn rows(sql: &str, records: &[&str]) -> Vec<Value> {
    let plan = orders(sql).unwrap_or_else(|error| panic!("{error}"));
    let mut decoder = JsonDecoder::new(&plan.sources[0].read);
    for record in records {
        decoder.push(record.as_bytes()).unwrap_or_else(|reject| panic!("{reject:?}"));
    }
    let batch = decoder.finish();
    let batch = plan.stages[0].nodes.iter().fold(batch, |batch, node| match &node.work {
        Work::Map(spec) => mapped(sql, spec, &batch),
        Work::Sink { .. } => batch,
        _ => panic!("{sql}: a map"),
    });
    let (mut out, mut ends) = (Vec::new(), Vec::new());
    RowEncoder::new(&batch.schema(), None).unwrap().encode(&batch, 0..batch.num_rows(), &mut out, &mut ends);
    let starts = std::iter::once(&0).chain(&ends);
    starts.zip(&ends).map(|(&start, &end)| serde_json::from_slice(&out[start..end]).unwrap()).collect()
}

fn mapped(sql: &str, spec: &crate::operator::MapSpec, batch: &RecordBatch) -> RecordBatch {
    let evaluate = |expr: &Arc<dyn PhysicalExpr>, batch: &RecordBatch| {
        expr.evaluate(batch)
            .and_then(|value| value.into_array(batch.num_rows()))
            .unwrap_or_else(|error| panic!("{sql}: {error}"))
    };
    let batch = match &spec.filter {
        Some(filter) => {
            let keep = evaluate(filter, batch);
            arrow::compute::filter_record_batch(batch, arrow::array::AsArray::as_boolean(&keep)).unwrap()
        }
        None => batch.clone(),
    };
    let columns = spec.project.iter().flatten().map(|expr| evaluate(expr, &batch)).collect();
    RecordBatch::try_new(Arc::clone(&spec.output), columns).unwrap()
}

/// What an expression gives for the record.
fn value(expr: &str) -> Value {
    rows(&format!("select {expr} as x from s"), &[RECORD])[0]["x"].clone()
}

/// What is wrong with an expression, and what is said to help.
fn refused(expr: &str) -> (String, String) {
    let error = orders(&format!("select {expr} as x from s")).expect_err(expr);
    let [problem] = error.problems() else { panic!("{error}") };
    (problem.message.clone(), problem.help.clone().unwrap_or_default())
}

fn give(cases: &[(&str, Value)]) {
    let wrong: Vec<String> = cases
        .iter()
        .filter_map(|(expr, expected)| {
            let found = value(expr);
            (found != *expected).then(|| format!("{expr}: {found}, not {expected}"))
        })
        .collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn a_column_that_simplification_removes_is_known_and_not_decoded() {
    let read = |sql: &str| -> Vec<String> {
        let plan = orders(sql).unwrap_or_else(|error| panic!("{sql}: {error}"));
        plan.sources[0].read.iter().map(|column| column.name.clone()).collect()
    };
    assert_eq!(read("select id, n = null as x from s"), ["id", "ts"]);
    assert_eq!(read("select s || null as x from s"), ["ts"]);
    assert_eq!(read("select id from s where b or true"), ["id", "ts"]);
    assert_eq!(read("select coalesce('x', s) as x from s"), ["ts"]);
    assert_eq!(
        read("select 1 as one from (select n, s, b from s) where b is null or true is not null").len(),
        4
    );
    let windowed = "select window_end, count(*) filter (where n = n or true) as c, max(d) as d from tumble(s, ts, interval '1 hour') where coalesce('x', s) = 'x' group by window_end";
    assert_eq!(read(windowed), ["d", "ts"]);
    let rows = rows(
        "select n = null as x, s || null as y, coalesce('x', s) as z, orderId as o from s where b or true",
        &[RECORD],
    );
    assert_eq!(rows, [json!({"x": null, "y": null, "z": "x", "o": 11})]);
    let check =
        ORDERS.replace("views:", "checks:\n  s: [{name: c, expect: \"n = null or b or true\"}]\nviews:");
    assert!(planned(&check.replace("SQL", "select id from s")).sources[0].checks.len() == 1);
}

#[test]
fn letters_in_another_case_name_the_one_column_that_has_them() {
    give(&[
        ("orderId + 1", json!(12)),
        ("ORDERID", json!(11)),
        ("\"orderId\"", json!(11)),
        ("st.userId", json!("u")),
        ("st.inner.Y", json!(2)),
    ]);
    let only = |sql: &str| rows(sql, &[RECORD]).remove(0);
    assert_eq!(only("select T.orderId, t.st.USERID as u from s as t"), json!({"orderId": 11, "u": "u"}));
    assert_eq!(only("select orderId from s where OrderId > 1"), json!({"orderId": 11}));
    assert_eq!(
        only("select orderid as x from (select orderId as orderid, n as \"orderId\" from s)"),
        json!({"x": 11})
    );
    assert_eq!(only("with t as (select orderId from s) select orderId * 2 as x from t"), json!({"x": 22}));
    let (message, help) = refused("mixed");
    assert_eq!(message, "unknown column 'mixed'");
    assert!(
        help.starts_with(
            "\"Mixed\" and \"MIXED\" have its letters: write the one that is meant in double quotes"
        ),
        "{help}"
    );
    let (_, help) = refused("s.s = \"off\"");
    assert!(help.starts_with("text stands in single quotes: 'off'"), "{help}");
    let grouped = "select window_end, orderId, count(*) as c from tumble(s, TS, interval '1 hour') group by window_end, orderId";
    assert_eq!(orders(grouped).unwrap().sinks[0].schema.field(1).name(), "orderId");
}

#[test]
fn like_takes_any_escape_character() {
    give(&[
        ("s like '50!%%' escape '!'", json!(true)),
        ("s like '50!%!_%' escape '!'", json!(true)),
        ("s like '50!_%' escape '!'", json!(false)),
        ("s not like '50!_%' escape '!'", json!(true)),
        ("s ilike '50$%$_OFF%' escape '$'", json!(true)),
        ("s like '%\\\\x' escape '!'", json!(false)),
        ("s like '%f\\x' escape '!'", json!(true)),
        ("s like '%f\\\\x' escape '\\'", json!(true)),
        ("s like '%f\\x' escape ''", json!(true)),
        ("s like replace('50!%%', 'q', s) escape '!'", json!(true)),
        ("s like '50é%%' escape 'é'", json!(true)),
        ("'a!b' like 'a!!b' escape '!'", json!(true)),
        ("'a%' like 'a+%' escape '+' and not 'ab' like 'a+%' escape '+'", json!(true)),
    ]);
    assert_eq!(refused("s like 'a' escape 'ab'").0, "ESCAPE takes one character, not 'ab'");
    assert_eq!(refused("s like 'a!' escape '!'").0, "the pattern ends with its escape character, '!'");
}

#[test]
fn functions_of_other_systems_give_what_they_give_there() {
    give(&[
        ("md5('abc')", json!("900150983cd24fb0d6963f7d28e17f72")),
        ("sha224('abc')", json!("23097d223405d8228642a477bda255b32aadbce4bda0b3f7e36c9da7")),
        ("sha256('abc')", json!("ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad")),
        (
            "sha384('abc')",
            json!(
                "cb00753f45a35e8bb5a03d699ac65007272c32ab0eded1631a8b605a43ff5bed8086072ba1e7cc2358baeca134c825a7"
            ),
        ),
        (
            "sha512('')",
            json!(
                "cf83e1357eefb8bdf1542850d66d8007d620e4050b5715dc83f4a921d36ce9ce47d0d13c5d85f2b0ff8318d2877eec2f63b931bd47417a81a538327af927da3e"
            ),
        ),
        ("md5(s)", json!("8f29c4347533f104095ced2b87995da8")),
        ("mod(id, 2)", json!(1)),
        ("mod(n, 2)", json!(-1)),
        ("mod(id + 1, 3 + 2)", json!(3)),
        ("sign(n)", json!(-1.0)),
        ("if(id > 6, 'big', 'small')", json!("big")),
        ("iff(n > 0, 1, null)", json!(null)),
        ("time_bucket(interval '15 minutes', ts)", json!("2024-02-29T23:45:00Z")),
        ("time_bucket(interval '7 days', ts)", json!("2024-02-26T00:00:00Z")),
        (
            "time_bucket(interval '1 hour', ts, timestamp '2024-01-01T00:20:00')",
            json!("2024-02-29T23:20:00Z"),
        ),
        ("regexp_substr(s, '[0-9]+')", json!("50")),
        ("regexp_substr(s, 'q+')", json!(null)),
        ("regexp_extract(s, '(.)%(.)', 2)", json!("_")),
        ("regexp_extract(s, 'q')", json!("")),
        ("encode(s, 'hex')", json!("3530255f6f66665c78")),
        ("len(names[1])", json!(1)),
    ]);
    assert_eq!(refused("mod(id)").1, "write mod(x, 2)");
    assert_eq!(refused("ucas(s)"), ("unknown function 'ucas'".into(), "did you mean 'ucase'?".into()));
    assert_eq!(
        refused("last_day(ts)").1,
        "use date_trunc('month', x) + interval '1 month' - interval '1 day'"
    );
    assert_eq!(refused("unhex(s)").0, "unknown function 'unhex'");
}

#[test]
fn json_is_read_as_postgresql_and_the_standard_read_it() {
    give(&[
        ("j->>'q'", json!("x\ny")),
        ("j->'q'", json!("x\ny")),
        ("j->'o'", json!({"p": {"r": 5}})),
        ("j->'o'->'p'->>'r'", json!("5")),
        ("cast(j->'o'->'p'->>'r' as bigint) + 1", json!(6)),
        ("j->'l'->0", json!(10)),
        ("j->'l'->-1->>'k'", json!("v")),
        ("j->>'n'", json!("12345678901234567890")),
        ("j->>'f'", json!("1.50")),
        ("j->>'z'", json!(null)),
        ("j->'z' is null", json!(true)),
        ("j->>'no'", json!(null)),
        ("j->>'a b'", json!("1")),
        ("j->>'l'", json!("[10, {\"k\": \"v\"}]")),
        ("j#>'{o,p}'", json!({"r": 5})),
        ("j#>>'{l,1,k}'", json!("v")),
        ("json_value(j, '$.o.p.r')", json!("5")),
        ("json_value(j, '$.o')", json!(null)),
        ("json_query(j, '$.l')", json!([10, {"k": "v"}])),
        ("json_exists(j, '$.l[1].k')", json!(true)),
        ("json_exists(j, '$.l[2]')", json!(false)),
        ("json_get(j, 'l', 1, 'k')", json!("v")),
        ("json_get_str(j, 'l', 1, 'k')", json!("v")),
        ("json_get_str(j, 'f')", json!(null)),
        ("json_get_int(j, 'o', 'p', 'r')", json!(5)),
        ("json_get_int(j, 'w')", json!(7)),
        ("json_get_int(j, 'f')", json!(null)),
        ("json_get_int(j, 'n')", json!(null)),
        ("json_get_float(j, 'f')", json!(1.5)),
        ("json_get_bool(j, 't')", json!(true)),
        ("json_as_text(j, 'f')", json!("1.50")),
        ("json_length(j->'l')", json!(2)),
        ("json_length(j, 'o')", json!(1)),
        ("json_contains(j, 'z')", json!(true)),
        ("json_typeof(j->'l')", json!("array")),
        ("json_object_keys(j->'o')", json!(["p"])),
        ("parse_json('{\"a\": [1]}')", json!({"a": [1]})),
        ("json_valid(s)", json!(false)),
        ("j->>'q' = 'x' or j->>'t' = 'true'", json!(true)),
        ("j->>'q' || '!'", json!("x\ny!")),
        ("j->>'t' in ('true') and j->>'q' like 'x%' and j->>'f' between '1' and '2'", json!(true)),
        ("'x' || j->>'f' || 'y'", json!("x1.50y")),
        ("j->>'w'::varchar", json!("7.0")),
        ("get_json_object(j, '$.o.p.r')", json!("5")),
    ]);
    assert_eq!(refused("j->'q' = 'x'").0, "JSON does not compare: its strings are in quotes");
    assert_eq!(refused("j['q']").0, "JSON has no [ ]");
}

#[test]
fn arrays_and_structs_are_read() {
    give(&[
        ("a[1]", json!(4)),
        ("a[3] + a[1]", json!(10)),
        ("a[9]", json!(null)),
        ("a[-1]", json!(6)),
        ("a[1:2]", json!([4, null])),
        ("array_length(a)", json!(3)),
        ("cardinality(a)", json!(3)),
        ("array_contains(a, 6)", json!(true)),
        ("array_has(a, 5)", json!(false)),
        ("array_to_string(names, '-')", json!("x-y")),
        ("array_to_string(a, ',', '?')", json!("4,?,6")),
        ("[1, 2]", json!([1, 2])),
        ("[n, id][2]", json!(7)),
        ("array[1, 2] || a", json!([1, 2, 4, null, 6])),
        ("array_position(names, 'y')", json!(2)),
        ("array_max(a)", json!(6)),
        ("string_to_array('a,b', ',')", json!(["a", "b"])),
        ("st['x']", json!(1)),
        ("st['userId']", json!("u")),
        ("st.inner.y", json!(2)),
        ("st['inner']['y']", json!(2)),
        ("items[1].qty", json!(2)),
        ("items[1]['sku']", json!("k")),
        ("'y' = any(names)", json!(true)),
    ]);
    assert_eq!(refused("st['z']").0, "the struct has no field 'z'");
    assert_eq!(refused("st.z").0, "the struct has no field 'z'");
    assert_eq!(refused("id[1]").0, "bigint is neither an array nor a struct");
    assert_eq!(refused("a['x']").0, "an array's elements are numbered, from 1");
}

#[test]
fn columns_are_left_out_of_a_star() {
    let names = |sql: &str| -> Vec<String> {
        let plan = orders(sql).unwrap_or_else(|error| panic!("{sql}: {error}"));
        plan.sinks[0].schema.fields().iter().map(|field| field.name().clone()).collect()
    };
    let few = "(select id, n, s from s)";
    assert_eq!(names(&format!("select * exclude (n) from {few}")), ["id", "s"]);
    assert_eq!(names(&format!("select * except (n, s) from {few}")), ["id"]);
    assert_eq!(names(&format!("select * exclude n from {few}")), ["id", "s"]);
    assert_eq!(names(&format!("select t.* except (s) from {few} t")), ["id", "n"]);
    assert_eq!(names(&format!("select * replace (n + 1 as n) from {few}")), ["id", "n", "s"]);
}

#[test]
fn numbers_that_are_written_out_are_decimals() {
    give(&[
        ("m = 2.5", json!(true)),
        ("m > 2.50", json!(false)),
        ("0.05 + 0.10 = 0.15", json!(true)),
        ("0.5 * 0.11", json!("0.055")),
        ("d * 2.0", json!(3.0)),
        ("1e3 + 1", json!(1001.0)),
        ("least(d, 999.5)", json!(1.5)),
        ("coalesce(d, 0.5)", json!(1.5)),
        ("case when b then d else 0.5 end", json!(1.5)),
        ("d * 1e300 > 1.5 and d * 1e-300 < 0.5 and d between 1.4 and 1.6 and d in (1.5, 2.5)", json!(true)),
        ("round(m, 1)", json!("2.5")),
        ("round(m)", json!("3")),
        ("round(m * 1.015, 2)", json!("2.54")),
        ("round(d, 0)", json!(2.0)),
    ]);
    let rounded = "select window_end, round(avg(m), 2) as mean, round(sum(m), 1) as total, max(round(m, 1)) as top from tumble(s, ts, interval '1 hour') group by window_end";
    let plan = orders(rounded).unwrap();
    let types: Vec<String> =
        plan.sinks[0].schema.fields().iter().map(|field| field.data_type().to_string()).collect();
    assert!(types[1].contains(", 2)") && types[2].contains(", 1)") && types[3].contains(", 1)"), "{types:?}");
    let nested = "select a + 1 as b from (select round(m, 1) as a from s)";
    assert_eq!(rows(nested, &[RECORD]), [json!({"b": "3.5"})]);
}

#[test]
fn times_have_the_parts_formats_and_zones_of_postgresql() {
    give(&[
        ("date_part('epoch', ts - timestamp '2024-02-29T23:47:28.5')", json!(2.5)),
        ("date_part('second', ts - timestamp '2024-02-29T22:35:56.1')", json!(34.9)),
        ("extract(microsecond from ts - timestamp '2024-02-29T22:35:56.1')", json!(34_900_000)),
        ("date_part('millisecond', ts - timestamp '2024-01-30T23:47:31')", json!(0.0)),
        ("date_part('day', ts - timestamp '2024-01-30T22:47:31')", json!(30)),
        ("date_part('hour', ts - timestamp '2024-01-30T22:47:31')", json!(1)),
        ("date_part('second', ts - timestamp '2024-02-29T22:35:56.1') > 34.5", json!(true)),
        ("date_part('month', interval '1 year 14 months')", json!(2)),
        ("date_part('hour', ts)", json!(23)),
        ("to_char(ts, 'YYYY-MM-DD\"T\"HH24:MI:SS.MS')", json!("2024-02-29T23:47:31.000")),
        ("to_char(ts, '%d.%m.%y')", json!("29.02.24")),
        ("ts + n * interval '1 hour'", json!("2024-02-29T20:47:31Z")),
        ("ts + interval '1 day' * 0.5", json!("2024-03-01T11:47:31Z")),
        ("ts + interval 'PT1H30M' - interval '01:30:00'", json!("2024-02-29T23:47:31Z")),
        ("ts at time zone 'UTC' at time zone 'Europe/Berlin'", json!("2024-03-01T00:47:31Z")),
        ("(ts at time zone 'UTC') at time zone '+02:00'", json!("2024-03-01T01:47:31Z")),
        ("ts at time zone 'Europe/Berlin'", json!("2024-02-29T22:47:31Z")),
        ("to_local_time(timestamp '2024-03-31T01:00:00', 'Europe/Zurich')", json!("2024-03-31T03:00:00Z")),
        // Twice in autumn, never in spring.
        ("timestamp '2024-10-27T02:30:00' at time zone 'Europe/Zurich'", json!("2024-10-27T01:30:00Z")),
        ("timestamp '2024-03-31T02:30:00' at time zone 'Europe/Zurich'", json!("2024-03-31T01:30:00Z")),
    ]);
    assert_eq!(refused("to_char(ts, 'YYYY-Month')").0, "to_char knows no pattern 'Month'");
    assert_eq!(refused("date_part('foo', ts - ts)").0, "an interval has no part 'foo'");
    let window = "select window_end, count(*) as c from tumble(s, ts, interval 'SIZE') group by window_end";
    for size in ["01:30:00", "PT1H30M", "90 minutes"] {
        assert!(orders(&window.replace("SIZE", size)).is_ok(), "{size}");
    }
    let error = orders(&window.replace("SIZE", "1:2:3:4")).unwrap_err();
    assert_eq!(error.problems()[0].message, "'1:2:3:4' is no interval");
}

#[test]
fn what_fails_for_every_record_is_refused() {
    for expr in [
        "date_trunc('decade', ts)",
        "extract(century from ts)",
        "ts at time zone 'Mars/Base'",
        "date_bin(interval '1 month', ts)",
        "to_char(ts, '%Q')",
        "make_date(2024, 2, 30)",
        "make_time(n, 61, 0)",
        "regexp_extract('abc', '(b)', 2)",
        "case when b then make_date(2024, 13, 1) end",
    ] {
        let (message, _) = refused(expr);
        assert!(!message.contains("Arrow") && !message.contains("DataFusion"), "{expr}: {message}");
    }
    for expr in ["make_date(2024, n, 1)", "cast(s as bigint)", "date_trunc('hour', ts)", "n / (id - 7)"] {
        assert!(orders(&format!("select {expr} as x from s")).is_ok(), "{expr}");
    }
}
