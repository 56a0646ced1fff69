//! The API's documentation, made of what it answers with.
//!
//! Invariant: `docs/openapi.json` holds this document; a test compares them, and another one the answers with it.

use schemars::generate::SchemaSettings;
use schemars::{JsonSchema, SchemaGenerator};
use serde_json::{Value, json};

use super::model::{
    ApiFailure, RecordList, TopologyDescription, TopologyHistory, TopologyList, TopologyStatus,
};

const NAME: &str = "/{name}";
const RECORDS: &str = "/api/v1/topologies/{name}/records";

/// In OpenAPI 3.1, whose schemas are JSON Schema.
pub fn document() -> Value {
    let settings = SchemaSettings::draft2020_12().for_serialize().with(|settings| {
        settings.definitions_path = "/components/schemas".into();
    });
    let mut schemas = settings.into_generator();
    let failure = answer::<ApiFailure>(&mut schemas, "There is no such topology");
    let list = answer::<TopologyList>(&mut schemas, "All topologies of this process");
    let mut paths = serde_json::Map::new();
    let mut path = |path: &str, id: &str, summary: &str, answer: Value| {
        let mut operation = json!({"operationId": id, "summary": summary, "responses": {"200": answer}});
        if path.contains(NAME) {
            operation["parameters"] = json!([{
                "name": "name", "in": "path", "required": true,
                "description": "The name of the topology", "schema": {"type": "string"},
            }]);
            operation["responses"]["404"] = failure.clone();
        }
        paths.insert(path.to_owned(), json!({"get": operation}));
    };
    path("/api/v1/topologies", "listTopologies", "The topologies of this process", list);
    let described = answer::<TopologyDescription>(&mut schemas, "The topology");
    let (of, what) = ("/api/v1/topologies/{name}", "Sources, views, SQL, stages, sinks and their graph");
    path(of, "describeTopology", what, described);
    let status = answer::<TopologyStatus>(&mut schemas, "The status");
    let what = "State, rates, lag, watermarks and who holds them back, commits and checkpoints";
    path("/api/v1/topologies/{name}/status", "topologyStatus", what, status);
    let history = answer::<TopologyHistory>(&mut schemas, "The points");
    let what = "Rates and lag of up to the last half hour";
    path("/api/v1/topologies/{name}/history", "topologyHistory", what, history);
    let records = answer::<RecordList>(&mut schemas, "The records");
    path(RECORDS, "lastRecords", "The last records of a topic", records);
    let any = json!({"description": "The document", "content": {"application/json": {"schema": {"type": "object"}}}});
    path("/api/v1/openapi.json", "openapi", "This document", any);
    add_of_records(&mut paths, &failure);
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "Headwater",
            "version": "1",
            "description": "What headwater run knows of its topology. Times are ISO 8601 in UTC, durations seconds; what \
                            is not known is null. It only reads, and answers only this machine. A later version of \
                            the program may add fields.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "http://127.0.0.1:9464"}],
        "paths": paths,
        "components": {"schemas": schemas.take_definitions(true)},
    })
}

/// What only the records have: what is asked for stands behind the path, and the brokers may not answer.
fn add_of_records(paths: &mut serde_json::Map<String, Value>, failure: &Value) {
    let operation = &mut paths[RECORDS]["get"];
    if let Some(parameters) = operation["parameters"].as_array_mut() {
        parameters.push(json!({
            "name": "topic", "in": "query", "required": true, "schema": {"type": "string"},
            "description": "A source's or sink's topic, or that of the dead or late letters",
        }));
        parameters.push(json!({
            "name": "limit", "in": "query", "required": false,
            "schema": {"type": "integer", "minimum": 1, "default": 50},
            "description": "At most so many records; of more than 200, 200 are given",
        }));
    }
    for (code, why) in
        [("400", "A parameter is wrong"), ("503", "The brokers do not answer, or others are reading")]
    {
        operation["responses"][code] = failure.clone();
        operation["responses"][code]["description"] = json!(why);
    }
}

fn answer<T: JsonSchema>(schemas: &mut SchemaGenerator, description: &str) -> Value {
    let schema = schemas.subschema_for::<T>();
    json!({"description": description, "content": {"application/json": {"schema": schema}}})
}
