//! What each type takes and refuses, and what is said of it.

use arrow::array::AsArray;
use arrow::datatypes::Int64Type;

use super::super::RowEncoder;
use super::*;

fn decoder(columns: &[(&str, &str)]) -> JsonDecoder {
    let columns: Vec<Column> =
        columns.iter().map(|(name, ty)| Column::new(*name, ty.parse().unwrap())).collect();
    JsonDecoder::new(&columns)
}

/// The batch's rows as refined values.
fn rows(decoder: &mut JsonDecoder) -> Vec<String> {
    let batch = decoder.finish();
    let encoder = RowEncoder::new(&batch.schema(), None).unwrap();
    let (mut out, mut ends) = (Vec::new(), Vec::new());
    encoder.encode(&batch, 0..batch.num_rows(), &mut out, &mut ends);
    let starts = [0].into_iter().chain(ends.iter().copied());
    starts.zip(&ends).map(|(start, &end)| String::from_utf8(out[start..end].to_vec()).unwrap()).collect()
}

/// Decodes a one-column value; the good ones as JSON, the rejected as `reason: message`.
fn value(ty: &str, json: &str) -> String {
    let mut decoder = decoder(&[("x", ty)]);
    match decoder.push(format!("{{\"x\": {json}}}").as_bytes()) {
        Ok(()) => rows(&mut decoder).remove(0)[5..].trim_end_matches('}').to_string(),
        Err(reject) => format!("{}: {}", reject.reason, reject.message),
    }
}

fn reason_of(ty: &str, json: &str) -> String {
    value(ty, json).split(':').next().unwrap().to_string()
}

#[test]
fn integers() {
    assert_eq!(value("bigint", "9223372036854775807"), "9223372036854775807");
    assert_eq!(value("bigint", "-9223372036854775808"), "-9223372036854775808");
    assert_eq!(value("bigint", "-0"), "0");
    assert_eq!(value("smallint", "-32768"), "-32768");
    assert_eq!(value("integer", "2147483647"), "2147483647");
    for (ty, json) in [
        ("bigint", "9223372036854775808"),
        ("bigint", "18446744073709551616"),
        ("bigint", "-9223372036854775809"),
        ("bigint", "1e400"),
        ("integer", "2147483648"),
        ("smallint", "32768"),
    ] {
        assert_eq!(reason_of(ty, json), "out_of_range", "{ty} {json}");
    }
    for json in ["1.7", "1.0", "1e2", "\"1\"", "true", "[1]", "{}", "\"\""] {
        assert_eq!(reason_of("bigint", json), "type_mismatch", "{json}");
    }
}

#[test]
fn floating_point() {
    assert_eq!(value("double", "1"), "1.0");
    assert_eq!(value("double", "18446744073709551615"), "1.8446744073709552e+19");
    assert_eq!(value("double", "0.1"), "0.1");
    assert_eq!(value("double", "1e-400"), "0.0");
    assert_eq!(value("double", "\"NaN\""), "\"NaN\"");
    assert_eq!(value("double", "\"-Infinity\""), "\"-Infinity\"");
    assert_eq!(value("real", "\"Infinity\""), "\"Infinity\"");
    assert_eq!(value("real", r#""\u004eaN""#), "\"NaN\"");
    assert_eq!(value("real", "0.1"), "0.1");
    // Rounded to f64 first, it would come out as 1.0.
    assert_eq!(value("real", "1.000000059604644775390626"), "1.0000001");
    assert_eq!(reason_of("double", "1e400"), "out_of_range");
    assert_eq!(reason_of("double", "-1e400"), "out_of_range");
    assert_eq!(reason_of("real", "1e39"), "out_of_range");
    for ty in ["double", "real"] {
        for json in ["\"1\"", "\"nan\"", "true", "[]", "{}"] {
            assert_eq!(reason_of(ty, json), "type_mismatch", "{ty} {json}");
        }
    }
}

#[test]
fn decimals_are_exact() {
    assert_eq!(value("decimal(38,2)", "123456789012345678901234567890123456.78").len(), 41);
    assert_eq!(value("decimal(10,2)", "1.5"), "\"1.50\"");
    assert_eq!(value("decimal(10,2)", "\"1.50\""), "\"1.50\"");
    assert_eq!(value("decimal(10,2)", "\"\\u0031.5\""), "\"1.50\"");
    assert_eq!(value("decimal(10,2)", "1e2"), "\"100.00\"");
    assert_eq!(value("decimal(38,20)", "0.1"), "\"0.10000000000000000000\"");
    assert_eq!(value("decimal(10,2)", "null"), "null");
    assert_eq!(reason_of("decimal(10,2)", "1.555"), "out_of_range");
    assert_eq!(reason_of("decimal(10,2)", "1e400"), "out_of_range");
    for json in ["\"abc\"", "\"\"", "\" 1\"", "true", "[1]", "{}"] {
        assert_eq!(reason_of("decimal(10,2)", json), "type_mismatch", "{json}");
    }
}

#[test]
fn times() {
    assert_eq!(value("timestamp", "\"2013-01-01 05:00:00\""), "\"2013-01-01T05:00:00Z\"");
    assert_eq!(value("timestamp_s", "1357016400"), "\"2013-01-01T05:00:00Z\"");
    assert_eq!(value("timestamp_ms", "1357016400001"), "\"2013-01-01T05:00:00.001Z\"");
    assert_eq!(value("timestamp_us", "-1"), "\"1969-12-31T23:59:59.999999Z\"");
    assert_eq!(value("date", "\"2013-01-31\""), "\"2013-01-31\"");
    assert_eq!(reason_of("timestamp", "\"0000-01-01T00:00:00Z\""), "out_of_range");
    assert_eq!(reason_of("timestamp_s", "1357016400000000"), "out_of_range");
    assert_eq!(reason_of("timestamp_ms", "9223372036854775808"), "out_of_range");
    assert_eq!(reason_of("date", "\"0000-12-31\""), "out_of_range");
    for (ty, json) in [
        ("timestamp", "1357016400"),
        ("timestamp", "\"yesterday\""),
        ("timestamp_ms", "\"1357016400000\""),
        ("timestamp_ms", "1.5"),
        ("date", "15000"),
        ("date", "\"2013-02-30\""),
    ] {
        assert_eq!(reason_of(ty, json), "type_mismatch", "{ty} {json}");
    }
}

#[test]
fn text_bytes_and_booleans() {
    assert_eq!(value("varchar", r#""a\u00e4\n\ud83d\ude00""#), "\"aä\\n😀\"");
    assert_eq!(value("boolean", "false"), "false");
    assert_eq!(value("bytea", "\"AAEC/w==\""), "\"AAEC/w==\"");
    assert_eq!(value("bytea", "\"\""), "\"\"");
    for (ty, json) in [
        ("varchar", "1"),
        ("varchar", "{}"),
        ("boolean", "0"),
        ("boolean", "\"true\""),
        ("bytea", "\"AAEC/w\""),
        ("bytea", "\"-_\""),
        ("bytea", "7"),
    ] {
        assert_eq!(reason_of(ty, json), "type_mismatch", "{ty} {json}");
    }
    assert_eq!(reason_of("varchar", r#""\ud83d""#), "malformed_json");
}

#[test]
fn json_keeps_its_text() {
    let mut decoder = decoder(&[("x", "json"), ("y", "json")]);
    decoder.push(br#"{"x":  {"b": 1.00, "a": [1e400, "\ud83d"], "a": 2}  , "y": "null"}"#).unwrap();
    let batch = decoder.finish();
    assert_eq!(batch.column(0).as_string::<i32>().value(0), r#"{"b": 1.00, "a": [1e400, "\ud83d"], "a": 2}"#);
    assert_eq!(batch.column(1).as_string::<i32>().value(0), "\"null\"");
}

#[test]
fn nested_values_and_where_they_fail() {
    let ty = "struct<a bigint, b struct<c varchar[], d json>>[]";
    assert_eq!(
        value(ty, r#"[{"b": {"c": ["x", null], "z": {}, "d": [1]}, "a": 2}, null, {}]"#),
        r#"[{"a":2,"b":{"c":["x",null],"d":[1]}},null,{"a":null,"b":null}]"#
    );
    let error = value(ty, r#"[{}, {"b": {"c": ["x", "y", 3]}}]"#);
    assert!(error.starts_with("type_mismatch: column x[1].b.c[2]: invalid type: integer `3`"), "{error}");
    assert!(error.contains("expected a string at line 1 column"), "{error}");
    let error = value(ty, r#"[{"a": 1, "a": 1}]"#);
    assert!(error.starts_with("duplicate_key: column x[0].a: "), "{error}");
}

#[test]
fn keys() {
    let mut decoder = decoder(&[("a", "bigint"), ("b", "bigint")]);
    decoder.push(br#"{"a":1,"b":2}"#).unwrap();
    decoder.push(br#"{"b":3,"other":{"a":9},"a":4,"other":5}"#).unwrap();
    decoder.push(br#"{"\u0061":5}"#).unwrap();
    decoder.push(b"{}").unwrap();
    decoder.push_null();
    assert_eq!(decoder.push(br#"{"a":1,"b":2,"a":1}"#).unwrap_err().reason, "duplicate_key");
    // A null counts as given.
    assert_eq!(decoder.push(br#"{"a":null,"\u0061":1}"#).unwrap_err().reason, "duplicate_key");
    decoder.push(br#"{"a":6,"b":7}"#).unwrap();
    assert_eq!(decoder.len(), 8);
    let batch = decoder.finish();
    let column = |index: usize| batch.column(index).as_primitive::<Int64Type>().iter().collect::<Vec<_>>();
    assert_eq!(column(0), [Some(1), Some(4), Some(5), None, None, None, None, Some(6)]);
    assert_eq!(column(1), [Some(2), Some(3), None, None, None, None, None, Some(7)]);
    assert!(decoder.is_empty());
}

#[test]
fn the_whole_value_is_checked_even_where_nothing_is_read() {
    let mut decoder = decoder(&[]);
    for good in ["{}", " {\"a\": [1, {\"b\": 1e999}]} \n"] {
        assert_eq!(decoder.push(good.as_bytes()), Ok(()), "{good}");
    }
    for bad in [
        "",
        " ",
        "{",
        "{}{}",
        "{} x",
        "{\"a\":1}{\"a\":2}",
        "{\"a\"}",
        "{\"a\":}",
        "{\"a\":01}",
        "{\"a\":1,}",
        "{a:1}",
        "{\"a\":nul}",
        "{\"a\":\"\u{1}\"}",
        "{\"a\":\"\\x\"}",
        "{\"a\":NaN}",
        "\u{feff}{}",
        "nothing",
    ] {
        let reject = decoder.push(bad.as_bytes()).expect_err(bad);
        assert_eq!(reject.reason, "malformed_json", "{bad}: {}", reject.message);
    }
    for other in ["[]", "1", "null", "\"a\"", "1e400"] {
        assert_eq!(decoder.push(other.as_bytes()).expect_err(other).reason, "not_an_object", "{other}");
    }
    for bytes in [&b"{\"a\":\"\xff\"}"[..], b"{\"\xc3\":1}", b"{\"a\":\"\xed\xa0\x80\"}", b"\xff"] {
        assert_eq!(decoder.push(bytes).unwrap_err().reason, "invalid_utf8");
    }
    assert_eq!(decoder.finish().num_rows(), 2 + 17 + 5 + 4);
}

#[test]
fn depth_does_not_overflow_the_stack() {
    let open = "[".repeat(500_000);
    let deep = format!("{open}{}", "]".repeat(500_000));
    for ty in
        ["bigint", "double", "decimal(5,2)", "real", "varchar", "timestamp", "bigint[]", "struct<a bigint>"]
    {
        assert_eq!(reason_of(ty, &deep), "type_mismatch", "{ty}");
    }
    assert_eq!(value("json", &deep).len(), 1_000_000);
    let mut decoder = decoder(&[("y", "bigint")]);
    decoder.push(format!("{{\"x\": {deep}}}").as_bytes()).unwrap();
    assert_eq!(decoder.push(format!("{{\"x\": {open}}}").as_bytes()).unwrap_err().reason, "malformed_json");
    assert_eq!(decoder.push(deep.as_bytes()).unwrap_err().reason, "not_an_object");
}

#[test]
fn messages_are_bounded_and_say_where() {
    let mut decoder = decoder(&[("größe", "bigint")]);
    let long = format!("{{\"größe\": \"{}\"}}", "ä".repeat(100_000));
    let reject = decoder.push(long.as_bytes()).unwrap_err();
    assert!(reject.message.len() < 500, "{}", reject.message.len());
    assert!(reject.message.starts_with("column größe: invalid type: string \"ä"), "{}", reject.message);
    assert!(
        reject.message.ends_with("expected an integer (bigint) at line 1 column 200014"),
        "{}",
        reject.message
    );
}

#[test]
fn a_full_batch_says_so() {
    let mut decoder = decoder(&[]);
    decoder.push(b"{}").unwrap();
    assert!(decoder.has_room(i32::MAX as usize - 2));
    assert!(!decoder.has_room(i32::MAX as usize - 1));
    decoder.finish();
    assert!(decoder.has_room(i32::MAX as usize));
}
