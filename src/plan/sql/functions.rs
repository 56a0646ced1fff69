//! The functions that DataFusion's defaults lack, under all their names, and what to use in place of those that other
//! systems have.
//!
//! Invariant: a name that is proposed is one that is there.

use std::collections::BTreeMap;
use std::sync::Arc;

use datafusion_expr::ScalarUDF;

use super::{arrays, division, intervals, json, texts, zones};

/// Other names of functions that DataFusion has.
const ALIASES: [(&str, &str); 9] = [
    ("array_size", "cardinality"),
    ("array_to_text", "array_to_string"),
    ("len", "length"),
    ("lcase", "lower"),
    ("sign", "signum"),
    ("size", "cardinality"),
    ("startswith", "starts_with"),
    ("endswith", "ends_with"),
    ("ucase", "upper"),
];

/// Adds them.
pub(super) fn add(scalar: &mut BTreeMap<String, Arc<ScalarUDF>>) {
    for function in texts::functions().into_iter().chain(json::functions()).chain(arrays::functions()) {
        for name in function.aliases().iter().cloned().chain([function.name().to_string()]) {
            scalar.entry(name).or_insert_with(|| Arc::clone(&function));
        }
    }
    scalar.insert(zones::LOCAL.to_string(), zones::local());
    for (alias, name) in ALIASES {
        if let Some(function) = scalar.get(name).cloned() {
            scalar.entry(alias.to_string()).or_insert(function);
        }
    }
}

/// Those that stand for operators, which no user calls by name.
pub(super) fn unnamed() -> BTreeMap<String, Arc<ScalarUDF>> {
    let all = json::operators()
        .into_iter()
        .chain([texts::like_pattern(), zones::instant()])
        .chain(division::functions())
        .chain(intervals::functions());
    all.map(|function| (function.name().to_string(), function)).collect()
}

/// What other systems call it, and what to write here.
const ELSEWHERE: [(&[&str], &str); 44] = [
    (
        &["to_base64", "from_base64", "base64", "unbase64", "hex", "unhex"],
        "use encode(x, 'base64'), decode(x, 'hex') and the like; to_hex(n) for integers",
    ),
    (
        &["sha", "sha1", "sha2", "digest", "hash", "xxhash64", "crc32", "murmur_hash", "farm_fingerprint"],
        "use md5(x), sha224(x), sha256(x), sha384(x) or sha512(x)",
    ),
    (
        &["regexp", "rlike", "regexp_matches", "regexp_contains", "regexp_like_any"],
        "use regexp_like(x, 'pattern'), or x ~ 'pattern'",
    ),
    (
        &["regexp_split", "split", "regexp_split_to_array", "str_split"],
        "use split_part(x, ',', 1) for a part, string_to_array(x, ',') for all",
    ),
    (
        &["regexp_extract_all", "regexp_find_all"],
        "use regexp_substr(x, 'pattern') for the first, regexp_count(x, 'pattern') for how many",
    ),
    (
        &["date_diff", "datediff", "timestampdiff", "timediff", "months_between"],
        "subtract: date_part('epoch', b - a) is the seconds between two timestamps",
    ),
    (
        &["date_add", "dateadd", "timestampadd", "date_sub", "add_months", "adddate", "subdate"],
        "add an interval: x + interval '1 day', x - interval '2 months'",
    ),
    (&["last_day"], "use date_trunc('month', x) + interval '1 month' - interval '1 day'"),
    (
        &[
            "year",
            "month",
            "day",
            "hour",
            "minute",
            "second",
            "dayofmonth",
            "dayofweek",
            "dayofyear",
            "week",
            "weekofyear",
            "quarter",
            "weekday",
        ],
        "use date_part('year', x), or extract(year from x)",
    ),
    (
        &["strftime", "format_timestamp", "timestamptostring", "datetostring", "to_varchar", "format_date"],
        "use to_char(x, '%Y-%m-%d')",
    ),
    (
        &[
            "to_timestamp_ltz",
            "str_to_date",
            "strptime",
            "parse_timestamp",
            "stringtotimestamp",
            "try_to_timestamp",
        ],
        "use cast(x as timestamp) for ISO text, to_timestamp_micros(x), to_timestamp_millis(x) or to_timestamp_seconds(x) for integers",
    ),
    (
        &["unix_timestamp", "epoch", "epoch_ms", "to_epoch", "unix_millis", "unix_seconds"],
        "use date_part('epoch', x) for seconds",
    ),
    (
        &["from_unixtime_ms", "timestamp_millis", "timestamp_micros", "timestamp_seconds", "fromtimestamp"],
        "use to_timestamp_millis(x), to_timestamp_micros(x) or to_timestamp_seconds(x)",
    ),
    (
        &["timestamp_trunc", "datetime_trunc", "time_slice", "time_truncate"],
        "use date_trunc('hour', x), or time_bucket(interval '15 minutes', x)",
    ),
    (
        &["tumble_start", "window_start_time", "windowstart", "hop_start", "session_start"],
        "select window_start, which tumble(…) in FROM adds to each row",
    ),
    (
        &["tumble_end", "windowend", "hop_end", "session_end", "tumble_rowtime"],
        "select window_end, which tumble(…) in FROM adds to each row",
    ),
    (
        &["tumble", "hop", "session", "cumulate"],
        "it stands in FROM: from tumble(departures, sched_dep, interval '1 hour')",
    ),
    (
        &["rowtime", "proctime", "watermark", "current_watermark"],
        "use the column that is the source's event_time",
    ),
    (&["decode_case", "case_when", "choose", "nvl_if"], "use case when … then … else … end"),
    (&["isnull", "zeroifnull", "nullifzero"], "use coalesce(x, 0), or nullif(x, 0)"),
    (
        &[
            "try_to_number",
            "to_number",
            "to_decimal",
            "to_integer",
            "to_double",
            "toint",
            "to_bigint",
            "number",
        ],
        "use cast(x as bigint), or try_cast(x as bigint), which gives null for what is no number",
    ),
    (&["to_string", "tostring", "str", "text", "to_text", "varchar", "string"], "use cast(x as varchar)"),
    (&["safe_cast"], "use try_cast(x as bigint)"),
    (&["pow_", "exponent"], "use power(x, 2)"),
    (&["rint", "bround", "round_half_even"], "use round(x)"),
    (&["div", "integer_divide", "intdiv"], "use /, which is whole for integers"),
    (&["locate", "charindex", "indexof", "strpos_"], "use strpos(text, part), or position(part in text)"),
    (&["mid", "substring_", "sub_string"], "use substr(text, from, length)"),
    (&["strlen", "string_length", "char_count"], "use length(text)"),
    (&["bit_and", "bit_or", "bit_xor", "bitand", "bitor", "bitxor"], "use the operators &, | and #"),
    (
        &["concat_agg", "listagg", "string_join", "group_concat"],
        "aggregates of text are not built yet: first, last, min and max are",
    ),
    (
        &["collect_list", "collect_set", "array_agg_distinct"],
        "aggregates that make arrays are not built yet: count(distinct x) counts",
    ),
    (
        &[
            "max_by",
            "min_by",
            "argmax",
            "argmin",
            "arg_max",
            "arg_min",
            "latest_by_offset",
            "earliest_by_offset",
            "any",
            "mode",
        ],
        "it is not built yet: first(x) and last(x) go by event time, min(x) and max(x) by value",
    ),
    (&["count_if", "countif", "sum_if", "sumif"], "use count(*) filter (where …)"),
    (
        &["approx_count_distinct", "ndv", "uniq", "hll", "count_distinct", "topk"],
        "use count(distinct x), which is exact",
    ),
    (
        &["percentile", "percentile_cont", "quantile", "approx_percentile"],
        "percentiles are not built yet: min, max and avg are",
    ),
    (
        &["unnest", "explode", "flatten_outer", "posexplode"],
        "a row stays one row: take elements, x[1], or array_to_string(x, ',')",
    ),
    (
        &["element_at", "list_value", "array_get", "get", "item"],
        "use x[1] for an array, x['field'] for a struct, x->'field' for JSON",
    ),
    (
        &[
            "json_array",
            "json_object",
            "to_json",
            "as_map",
            "map",
            "map_keys",
            "map_values",
            "object_construct",
        ],
        "select the fields as columns: a refined record is a JSON object of them",
    ),
    (&["json_parse", "from_json", "json", "try_parse_json"], "use parse_json(x)"),
    (
        &[
            "json_query_text",
            "json_path_query",
            "jsonb_path_query",
            "json_path_value",
            "jsonb_extract_path_text",
            "jsonb_extract_path",
        ],
        "use json_value(x, '$.a.b') for text, json_query(x, '$.a') for JSON, or x->'a'->>'b'",
    ),
    (
        &["jsonb_array_length", "json_size", "array_count"],
        "use json_length(x) for JSON, cardinality(x) for an array",
    ),
    (
        &["array_filter", "array_transform", "transform", "filter", "reduce", "aggregate", "array_reduce"],
        "functions of functions are not built: array_remove, array_distinct, array_max and the like are",
    ),
    (
        &["range", "generate_series", "sequence", "array_repeat", "array_fill", "array_resize"],
        "it is not built, since a record could ask for all memory with it; write the elements: [1, 2, 3]",
    ),
];

/// What to use in place of a function that is not here.
pub(super) fn instead(name: &str) -> Option<&'static str> {
    ELSEWHERE.iter().find(|(names, _)| names.contains(&name)).map(|(_, help)| *help)
}

#[cfg(test)]
mod tests {
    use super::super::context::FUNCTIONS;
    use super::*;

    #[test]
    fn a_function_that_is_here_is_not_said_to_be_elsewhere() {
        let mut there = Vec::new();
        for (names, _) in ELSEWHERE {
            for name in names {
                there.extend(FUNCTIONS.scalar.contains_key(*name).then_some(*name));
            }
        }
        assert!(there.is_empty(), "{there:?}");
        for (alias, name) in ALIASES {
            assert!(FUNCTIONS.scalar.contains_key(alias), "{alias}: there is no {name}");
        }
    }

    /// Of the engine, for its own use: users have other words for what they do.
    fn is_internal(name: &str) -> bool {
        const INTERNAL: [&str; 8] = [
            "cast_to_type",
            "file_row_index",
            "get_field",
            "input_file_name",
            "try_cast_to_type",
            "union_extract",
            "union_tag",
            "with_metadata",
        ];
        name.starts_with("arrow_") || INTERNAL.contains(&name)
    }

    #[test]
    fn the_documented_functions_are_those_that_are_there() {
        let page = include_str!("../../../docs/topology.md");
        let list =
            page.split("### Functions").nth(1).and_then(|rest| rest.split("## Refined").next()).unwrap();
        let rows = list.lines().filter(|line| line.starts_with("| ") && line.contains('`'));
        let documented: std::collections::BTreeSet<&str> =
            rows.flat_map(|row| row.split('`').skip(1).step_by(2)).collect();
        let known = super::super::context::function_names();
        let unknown: Vec<_> = documented.iter().filter(|name| !known.iter().any(|k| k == *name)).collect();
        let missing: Vec<_> = known
            .iter()
            .filter(|name| !name.starts_with("list_") && !name.ends_with("_to_list") && *name != "make_list")
            .filter(|name| super::super::context::is_deterministic(name) && !is_internal(name))
            .filter(|name| !documented.contains(name.as_str()))
            .collect();
        assert!(
            unknown.is_empty() && missing.is_empty(),
            "documented in vain: {unknown:?}; missing: {missing:?}"
        );
    }
}
