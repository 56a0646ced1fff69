//! On the embedded broker, with dead letters as the engine writes them.

use super::*;
use crate::serve::tests::{Cluster, recent_ms};

fn letter(offset: i64, reason: &str, message: &str) -> Vec<Header> {
    vec![
        Header::text("trace", "abc"),
        Header::text(DEAD_TOPIC, "orders"),
        Header::text(DEAD_PARTITION, "1"),
        Header::text(DEAD_OFFSET, offset.to_string()),
        Header::text(DEAD_STAGE, "decode"),
        Header::text(DEAD_MESSAGE, message),
        Header::text(REASON, reason),
        Header::text(ATTEMPT, "1"),
    ]
}

/// Three dead letters, an hour, half an hour, and a minute old as of the answer.
fn cluster() -> (Cluster, i64) {
    let (cluster, base) = (Cluster::start(), recent_ms());
    cluster.create("orders.dead", 2);
    let dead = |partition, after, value: &[u8], headers| {
        cluster.produce_with("orders.dead", partition, base + after, &[(value.to_vec(), headers)]);
    };
    dead(0, 0, b"{\"a\":\n1", letter(7, "syntax", "no end\nof it"));
    dead(1, 1_800_000, b"\xff\x00", letter(8, "check:known_shop", "shop in ('a')"));
    let mut again = letter(9, "check:known_shop", "once");
    again.extend(letter(9, "check:positive", "twice").into_iter().skip(1));
    again.push(Header::text(ATTEMPT, "2"));
    dead(1, 3_540_000, b"{}", again);
    (cluster, base + 3_600_000)
}

fn listed(cluster: &Cluster, filters: &Filters, json: bool) -> String {
    let mut out = Vec::new();
    list(&*cluster.log, "orders", filters, &mut out, json).unwrap();
    String::from_utf8(out).unwrap()
}

#[test]
fn a_line_each_with_where_it_came_from_and_a_count_by_reason() {
    let (cluster, _) = cluster();
    let text = listed(&cluster, &Filters::default(), false);
    let lines: Vec<_> = text.lines().collect();
    assert_eq!(lines.len(), 4, "{text}");
    assert!(lines[0].starts_with("orders.dead/0@0  20"), "{text}");
    assert!(lines[0].ends_with("from orders/1@7  decode  syntax  no end\\nof it"), "{text}");
    // The newest headers count.
    assert!(lines[2].ends_with("check:positive  attempt 2  twice"), "{text}");
    assert_eq!(lines[3], "3 dead letters: 1 check:known_shop, 1 check:positive, 1 syntax");
}

#[test]
fn filters_hold_together() {
    let (cluster, now_ms) = cluster();
    let found = |filters: Filters| -> Vec<String> {
        let mut found = Vec::new();
        visit(&*cluster.log, "orders", &filters, &mut |letter| {
            found.push(letter.place());
            Ok::<_, DeadLetterError>(ControlFlow::Continue(()))
        })
        .unwrap();
        found
    };
    let reason = |reason: &str| Filters { reason: Some(reason.into()), ..Filters::default() };
    assert_eq!(found(reason("check")), ["orders.dead/1@0", "orders.dead/1@1"]);
    assert_eq!(found(reason("check:positive")), ["orders.dead/1@1"]);
    assert!(found(reason("chec")).is_empty());
    let since =
        |text: &str| Filters { since_ms: Some(Filters::since(text, now_ms).unwrap()), ..Filters::default() };
    assert_eq!(found(since("45m")), ["orders.dead/1@0", "orders.dead/1@1"]);
    assert_eq!(found(Filters { reason: Some("check".into()), ..since("10m") }), ["orders.dead/1@1"]);
    assert!(found(since("1s")).is_empty());
    assert_eq!(
        found(Filters { offset: Some(0), ..Filters::default() }),
        ["orders.dead/0@0", "orders.dead/1@0"]
    );
    let one = Filters { partition: Some(1), offset: Some(1), ..Filters::default() };
    assert_eq!(found(one), ["orders.dead/1@1"]);
    assert!(found(Filters { partition: Some(5), ..Filters::default() }).is_empty());
}

#[test]
fn since_is_a_duration_or_a_time() {
    let day = 1_769_817_600_000;
    assert_eq!(Filters::since("2h", day).unwrap(), day - 7_200_000);
    for text in ["2026-01-31", "2026-01-31T00:00:00Z", "2026-01-31T01:00:00+01:00", "2026-01-31 00:00:00"] {
        assert_eq!(Filters::since(text, 0).unwrap(), day, "{text}");
    }
    assert!(Filters::since("yesterday", 0).unwrap_err().to_string().contains("yesterday"));
}

#[test]
fn json_keeps_every_byte_and_show_prints_all_of_it() {
    let (cluster, _) = cluster();
    let json = listed(&cluster, &Filters::default(), true);
    let lines: Vec<serde_json::Value> =
        json.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.len(), 3);
    assert_eq!(lines[0]["value"], "{\"a\":\n1");
    assert_eq!(lines[0]["source"], serde_json::json!({"topic": "orders", "partition": 1, "offset": 7}));
    assert_eq!((&lines[1]["value"], &lines[1]["value_encoding"]), (&"/wA=".into(), &"base64".into()));
    assert_eq!(lines[2]["attempt"], 2);
    let mut out = Vec::new();
    let filters = Filters { partition: Some(0), ..Filters::default() };
    show(&*cluster.log, "orders", &filters, &mut out, false).unwrap();
    let text = String::from_utf8(out).unwrap();
    assert!(text.contains("header       trace: abc\n") && text.ends_with("value\n{\"a\":\n1\n"), "{text}");
    let none = Filters { reason: Some("none".into()), ..Filters::default() };
    let error = show(&*cluster.log, "orders", &none, &mut Vec::new(), false).unwrap_err();
    assert!(matches!(error, DeadLetterError::NoMatch(_)));
}

#[test]
fn a_topology_without_dead_letters_says_so() {
    let cluster = Cluster::start();
    let error = list(&*cluster.log, "orders", &Filters::default(), &mut Vec::new(), false).unwrap_err();
    let text = error.to_string();
    assert!(
        text.starts_with("topology 'orders' has no dead letters yet (there is no topic 'orders.dead'"),
        "{text}"
    );
    assert_eq!(ToolError::from(error).exit_code(), 2);
    cluster.create("orders.dead", 1);
    assert_eq!(listed(&cluster, &Filters::default(), false), "0 dead letters\n");
}
