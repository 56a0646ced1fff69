//! The documentation equals the program, and the answers equal the documentation.

use std::sync::Arc;

use serde_json::{Value, json};

use super::*;
use crate::engine::Progress;
use crate::serve::tests::{Cluster, get, keyed_plan, recent_ms, until};
use crate::serve::{Server, Watched};

/// What is wrong with a value by a schema, of the words that our schemas use.
fn misfit(value: &Value, schema: &Value, root: &Value, at: &str) -> Option<String> {
    let fits = |schema: &Value| misfit(value, schema, root, at).is_none();
    for word in schema.as_object().into_iter().flat_map(|schema| schema.keys()) {
        let known = [
            "type",
            "$ref",
            "anyOf",
            "oneOf",
            "const",
            "enum",
            "properties",
            "required",
            "items",
            "format",
            "minimum",
            "maximum",
            "description",
            "title",
        ];
        assert!(known.contains(&word.as_str()), "this test does not know '{word}' at {at}");
    }
    if let Some(reference) = schema["$ref"].as_str() {
        return misfit(value, root.pointer(reference.trim_start_matches('#')).unwrap(), root, at);
    }
    if let Some(any) = schema["anyOf"].as_array().or(schema["oneOf"].as_array()) {
        return (!any.iter().any(fits)).then(|| format!("{at}: {value} is none of {any:?}"));
    }
    if schema["const"] != Value::Null {
        return (*value != schema["const"]).then(|| format!("{at}: {value}"));
    }
    if let Some(all) = schema["enum"].as_array() {
        return (!all.contains(value)).then(|| format!("{at}: {value} is none of {all:?}"));
    }
    let of_type = |name: &str| match name {
        "null" => value.is_null(),
        "string" => value.is_string(),
        "boolean" => value.is_boolean(),
        "integer" => value.is_i64() || value.is_u64(),
        "number" => value.is_number(),
        "array" => value.is_array(),
        "object" => value.is_object(),
        other => panic!("{other}"),
    };
    let types: Vec<&str> = match &schema["type"] {
        Value::String(one) => vec![one],
        Value::Array(many) => many.iter().map(|one| one.as_str().unwrap()).collect(),
        _ => return None,
    };
    if !types.iter().any(|name| of_type(name)) {
        return Some(format!("{at}: {value} is no {types:?}"));
    }
    if let Some(items) = value.as_array() {
        return items
            .iter()
            .enumerate()
            .find_map(|(index, item)| misfit(item, &schema["items"], root, &format!("{at}/{index}")));
    }
    let object = value.as_object()?;
    let properties = schema["properties"].as_object()?;
    if let Some(missing) = schema["required"]
        .as_array()
        .into_iter()
        .flatten()
        .find(|name| !object.contains_key(name.as_str().unwrap()))
    {
        return Some(format!("{at}: {missing} is missing"));
    }
    object.iter().find_map(|(name, value)| match properties.get(name) {
        None => Some(format!("{at}: '{name}' is not documented")),
        Some(schema) => misfit(value, schema, root, &format!("{at}/{name}")),
    })
}

#[test]
fn the_document_equals_the_program() {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/openapi.json");
    let text = format!("{}\n", serde_json::to_string_pretty(&document()).unwrap());
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(&path, &text).unwrap();
    }
    let found = std::fs::read_to_string(path).unwrap();
    assert!(
        found == text,
        "docs/openapi.json is another: run this test with UPDATE_GOLDEN=1 and read the change"
    );
}

#[test]
fn every_answer_is_as_documented_and_every_path_is_documented() {
    let (cluster, base) = (Cluster::start(), recent_ms());
    cluster.create("orders", 2);
    cluster.create("orders.exchange.hourly", 4);
    cluster.produce("orders", 0, base, &["a", "b", "c"]);
    let watched =
        Watched { plan: keyed_plan(), log: Arc::clone(&cluster.log), progress: Progress::default() };
    let server = Server::start("127.0.0.1:0", Arc::new(watched)).unwrap();
    let answer = |path: &str| -> (u16, Value) {
        let (status, text) = get(&server, path);
        (status, serde_json::from_str(&text).unwrap_or_else(|error| panic!("{path}: {error}: {text}")))
    };
    let status = || answer("/api/v1/topologies/orders/status").1;
    until("the first look", || status()["looked_at"].is_string());
    until("two looks, for rates", || status()["sources"][0]["per_second"].is_object());
    let document = document();
    let mut checked = 0;
    for (path, operations) in document["paths"].as_object().unwrap() {
        for (name, code) in [("orders", 200), ("another", 404)] {
            let Some(expected) = operations["get"]["responses"].get(code.to_string()) else { continue };
            let asked = path.replace("{name}", name);
            let asked = if path.ends_with("/records") { format!("{asked}?topic=orders") } else { asked };
            let (status, value) = answer(&asked);
            assert_eq!(status, code, "{asked}");
            let schema = &expected["content"]["application/json"]["schema"];
            assert_eq!(misfit(&value, schema, &document, &asked), None);
            checked += 1;
        }
    }
    assert_eq!(checked, 10);
    let (code, value) = answer("/api/v2/topologies");
    assert_eq!((code, &value["error"]), (404, &json!("there is no such path")));

    let now = status();
    assert_eq!((&now["state"], &now["lag_records"]), (&json!("starting"), &json!(3)));
    assert_eq!(now["stages"][1]["held_by"]["reason"], "nothing_read");
    let described = answer("/api/v1/topologies/orders").1;
    let ids: Vec<_> =
        described["graph"]["nodes"].as_array().unwrap().iter().map(|node| &node["id"]).collect();
    assert_eq!(ids, ["source:orders", "stage:ingest.orders", "stage:hourly", "sink:hourly"]);
    let edges: Vec<_> =
        described["graph"]["edges"].as_array().unwrap().iter().map(|edge| &edge["exchange"]).collect();
    assert_eq!(edges, [&Value::Null, &json!("orders.exchange.hourly"), &Value::Null]);
    let view = &described["views"][0];
    assert!(view["sql"].as_str().unwrap().starts_with("select window_start, window_end, shop"), "{view}");
    assert_eq!(
        (&view["reads"], &view["columns"][3]),
        (&json!(["orders"]), &json!({"name": "orders", "type": "bigint"}))
    );
}

#[test]
fn the_last_records_of_a_topic_are_shown_the_latest_first() {
    let (cluster, base) = (Cluster::start(), recent_ms());
    cluster.create("orders", 2);
    for second in 0..30 {
        cluster.produce(
            "orders",
            second % 2,
            base + 1_000 * i64::from(second),
            &[&format!("{{\"n\":{second}}}")],
        );
    }
    let headers = vec![crate::record::Header::text("headwater.reason", "decode")];
    cluster.create("orders.dead", 1);
    cluster.produce_with("orders.dead", 0, base, &[(vec![0xff, 0xfe], headers)]);
    let watched =
        Watched { plan: keyed_plan(), log: Arc::clone(&cluster.log), progress: Progress::default() };
    let server = Server::start("127.0.0.1:0", Arc::new(watched)).unwrap();
    let ask = |query: &str| -> (u16, Value) {
        let (status, text) = get(&server, &format!("/api/v1/topologies/orders/records?{query}"));
        (status, serde_json::from_str(&text).unwrap())
    };
    let (_, list) = ask("topic=orders&limit=3");
    let values: Vec<_> =
        list["records"].as_array().unwrap().iter().map(|record| &record["value"]["text"]).collect();
    assert_eq!(values, [r#"{"n":29}"#, r#"{"n":28}"#, r#"{"n":27}"#]);
    assert_eq!((&list["complete"], &list["exists"]), (&json!(true), &json!(true)));
    assert_eq!((&list["records"][0]["partition"], &list["records"][0]["offset"]), (&json!(1), &json!(14)));
    assert_eq!(ask("topic=orders").1["records"].as_array().unwrap().len(), 30);

    let (_, dead) = ask("topic=orders.dead");
    let letter = &dead["records"][0];
    assert_eq!(letter["value"], json!({"text": "//4=", "encoding": "base64", "bytes": 2, "is_cut": false}));
    assert_eq!(
        letter["headers"][0],
        json!({"name": "headwater.reason",
        "value": {"text": "decode", "encoding": "utf8", "bytes": 6, "is_cut": false}})
    );

    let (status, late) = ask("topic=orders.late");
    assert_eq!((status, &late["exists"], &late["records"]), (200, &json!(false), &json!([])));
    for (wrong, expected) in
        [("", 400), ("topic=another", 404), ("topic=orders&limit=0", 400), ("topic=orders&x=1", 400)]
    {
        let (status, failure) = ask(wrong);
        assert!(status == expected && failure["help"].is_string(), "{wrong}: {failure}");
    }
}

#[test]
fn a_schema_is_really_compared() {
    let root = json!({"components": {"schemas": {"T": {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}}}});
    let schema = json!({"$ref": "#/components/schemas/T"});
    let fits = |value: Value| misfit(&value, &schema, &root, "").is_none();
    assert!(fits(json!({"a": 1})));
    for wrong in [json!({}), json!({"a": "1"}), json!({"a": 1, "b": 2}), json!(1), json!({"a": null})] {
        assert!(!fits(wrong.clone()), "{wrong}");
    }
}
