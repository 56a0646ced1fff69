//! How topics are created, and of which the order of a key's records is known.

use super::*;

fn topology(source: &str, views: &str, sinks: &str, more: &str) -> Plan {
    planned(&format!(
        "name: shop\n{more}sources:\n  orders:\n    topic: orders\n    format: json\n    columns: {{id: bigint, part: \
         integer, shop: varchar, at: timestamp}}\n    event_time: at\n{source}views:\n{views}sinks:\n{sinks}"
    ))
}

fn shape(partitions: Option<i32>, config: &[(&str, &str)]) -> TopicShape {
    let config = config.iter().map(|&(name, value)| (name.to_owned(), value.to_owned())).collect();
    TopicShape { partitions, config }
}

/// How each sink's topic is created, in the order of the views' names.
fn shapes(plan: &Plan) -> Vec<TopicShape> {
    plan.sinks.iter().filter_map(|sink| Some(sink.topic.as_ref()?.shape.clone())).collect()
}

#[test]
fn topics_with_a_key_are_compacted_and_the_file_says_more_or_otherwise() {
    let views = "  a: select id from orders\n  b: select id from orders\n  c: select id from orders\n";
    let sinks = "  a: {topic: {name: a, key: [id]}}\n  b: {topic: {name: b}}\n  \
                 c: {topic: {name: c, key: [id], partitions: 6, config: {cleanup.policy: delete, retention.ms: 86400000}}}\n";
    let plan = topology("", views, sinks, "");
    assert_eq!(
        shapes(&plan),
        [
            shape(None, &[("cleanup.policy", "compact")]),
            shape(None, &[]),
            shape(Some(6), &[("cleanup.policy", "delete"), ("retention.ms", "86400000")]),
        ]
    );
    assert_eq!((&plan.dead, &plan.late), (&TopicShape::default(), &TopicShape::default()));
    let letters = "dead: {config: {retention.ms: -1, preallocate: false}}\nlate: {partitions: 1}\n";
    let plain = plan;
    let plan = topology("", views, sinks, letters);
    assert_eq!(plan.dead, shape(None, &[("preallocate", "false"), ("retention.ms", "-1")]));
    assert_eq!(plan.late, shape(Some(1), &[]));
    assert_eq!((plan.fingerprint, plan.version), (plain.fingerprint, plain.version));
}

/// By view, whether all records of a key come from one partition, for a source that is partitioned by `id` and `part`.
fn one_origin(views: &str, sinks: &str) -> Vec<(String, bool)> {
    let plan = topology("    partitioned_by: [id, part]\n", views, sinks, "");
    let of = |sink: &SinkPlan| Some((sink.view.to_string(), sink.topic.as_ref()?.one_origin));
    plan.sinks.iter().filter_map(of).collect()
}

#[test]
fn the_order_of_a_keys_records_is_known_where_the_key_holds_the_sources_partitioning_or_windows_decide() {
    let views = "  plain: select * from orders
  renamed: select part as p, x as number, shop from (select id as x, part, shop from orders where shop <> '')
  over: select number, p from renamed
  computed: select id + 0 as id, part from orders
  swapped: select shop as id, part, id as other from orders
  windowed: select window_start, shop, count(*) as n from tumble(orders, at, interval '1 hour') group by window_start, shop
  over_window: select window_start, shop, n + 1 as n from windowed
";
    let sink = |view: &str, key: &str| format!("  {view}: {{topic: {{name: out.{view}, key: [{key}]}}}}\n");
    let keys = [
        ("plain", "shop, part, id", true),
        ("renamed", "number, p", true),
        ("over", "p, number", true),
        ("computed", "id, part", false),
        ("swapped", "id, part", false),
        ("windowed", "shop, window_start", true),
        ("over_window", "shop, window_start", true),
    ];
    for (view, key, expected) in keys {
        assert_eq!(one_origin(views, &sink(view, key)), [(view.to_owned(), expected)]);
    }
    assert_eq!(one_origin(views, &sink("plain", "id")), [("plain".to_owned(), false)], "a part of it");
    assert_eq!(one_origin(views, "  plain: {topic: {name: out}}\n"), [("plain".to_owned(), true)], "no key");
    let unknown = topology("", views, &sink("plain", "id, part"), "");
    assert!(!unknown.sinks[0].topic.as_ref().unwrap().one_origin);
}
