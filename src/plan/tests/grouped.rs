//! What GROUP BY may say, and what of it decides nothing.

use super::*;

const COLUMNS: &str = "group by window_start, window_end, origin, carrier";

fn grouped(group_by: &str) -> String {
    flights_with(&[(COLUMNS, group_by)])
}

#[test]
fn columns_that_are_grouped_by_twice_count_once() {
    let plan = planned(FLIGHTS);
    for group_by in [
        "group by window_start, window_start, window_end, origin, carrier",
        "group by window_start, window_end, origin, carrier, carrier, origin, window_end, window_start",
        "group by window_start, window_end, origin, carrier, (origin), departures.carrier",
        "group by 1, 2, 3, 4, 1, window_end, origin",
        "group by all",
    ] {
        let again = planned(&grouped(group_by));
        assert_eq!(again.fingerprint, plan.fingerprint, "{group_by}");
        assert_eq!(again.sinks[0].lineage, plan.sinks[0].lineage, "{group_by}");
        assert_eq!(again.sinks[0].row_key, plan.sinks[0].row_key, "{group_by}");
    }
    // By the alias of an expression, and by the expression.
    let upper = planned(&flights_with(&[
        (" origin, carrier, count", " upper(origin) as origin_, carrier, count"),
        (COLUMNS, "group by window_start, window_end, origin_, carrier, upper(origin), 3"),
        ("key: [origin,", "key: [origin_,"),
    ]));
    assert_eq!(upper.sinks[0].row_key, [0, 1, 2, 3]);
}

#[test]
fn a_constant_tells_no_rows_apart() {
    for constant in ["1 + 1", "'x', 'x'", "null", "true", "interval '1 hour'", "upper('x')"] {
        let plan = planned(&grouped(&format!("{COLUMNS}, {constant}")));
        assert_eq!(plan.sinks[0].row_key, [0, 1, 2, 3], "{constant}");
    }
    let shown = planned(&flights_with(&[
        (" origin, carrier, count", " 'all' as what, origin, carrier, count"),
        (COLUMNS, "group by what, window_start, window_end, origin, carrier"),
    ]));
    assert_eq!(shown.sinks[0].row_key, [0, 1, 3, 4]);
}

#[test]
fn what_does_not_group_is_refused() {
    let refused = |group_by: &str| parse(&grouped(group_by), "flights.yaml").unwrap_err().to_string();
    for group_by in [
        "group by 1 + 1",
        "group by 'x'",
        "group by 0",
        "group by 7",
        "group by -1",
        "group by (window_start, window_end, origin, carrier)",
    ] {
        let text = refused(group_by);
        assert!(text.contains("GROUP BY") || text.contains("position"), "{text}");
    }
    for group_by in [
        "group by rollup(window_start)",
        "group by cube(window_start)",
        "group by grouping sets ((window_start), ())",
        "group by all with rollup",
        "group by window_start, window_end, origin, carrier with cube",
        "group by window_start, window_end, origin, carrier grouping sets ((origin))",
    ] {
        assert!(refused(group_by).contains("grouping sets are not built yet"), "{group_by}");
    }
}
