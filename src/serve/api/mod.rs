//! `/api/v1`: what the page shows, for programs. It only reads.
//!
//! ```text
//! model.rs     what is answered
//! describe.rs  a topology as its file has it
//! status.rs    how it does
//! records.rs   the last records of its topics
//! openapi.rs   the documentation, made of the model; docs/openapi.json holds it
//! ```
//! Invariant: an answer is made of memory and waits for no broker, but for that of records.rs.
//! Invariant: a field is never renamed or taken away within `v1`.

use std::sync::Arc;

use axum::Router;
use axum::extract::{Path, State};
use axum::http::{StatusCode, header::CONTENT_TYPE};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use serde::Serialize;

use super::Metrics;

mod describe;
pub mod model;
mod openapi;
mod records;
mod status;
#[cfg(test)]
mod tests;

use model::ApiFailure;
pub use openapi::document;

const JSON: &str = "application/json";
/// As it is documented; a test compares it with [`document`].
const DOCUMENT: &str = include_str!("../../../docs/openapi.json");

pub fn routes() -> Router<Arc<Metrics>> {
    Router::new()
        .route("/api/v1/openapi.json", get(|| async { ([(CONTENT_TYPE, JSON)], DOCUMENT) }))
        .route("/api/v1/topologies", get(list))
        .route("/api/v1/topologies/{name}", get(description))
        .route("/api/v1/topologies/{name}/status", get(current))
        .route("/api/v1/topologies/{name}/history", get(past))
        .route("/api/v1/topologies/{name}/records", get(records::records))
        .route("/api/{*rest}", get(unknown))
}

async fn list(State(metrics): State<Arc<Metrics>>) -> Response {
    metrics.page_asked();
    json(StatusCode::OK, &status::list(&metrics))
}

async fn description(State(metrics): State<Arc<Metrics>>, Path(name): Path<String>) -> Response {
    of(&metrics, &name, |metrics| describe::describe(&metrics.watched.plan))
}

async fn current(State(metrics): State<Arc<Metrics>>, Path(name): Path<String>) -> Response {
    metrics.page_asked();
    of(&metrics, &name, status::status)
}

async fn past(State(metrics): State<Arc<Metrics>>, Path(name): Path<String>) -> Response {
    of(&metrics, &name, status::history)
}

async fn unknown() -> Response {
    failed(StatusCode::NOT_FOUND, "there is no such path", "GET /api/v1/openapi.json says which there are")
}

fn of<T: Serialize>(metrics: &Metrics, name: &str, answer: impl FnOnce(&Metrics) -> T) -> Response {
    match *metrics.watched.plan.name == *name {
        true => json(StatusCode::OK, &answer(metrics)),
        false => no_topology(),
    }
}

fn no_topology() -> Response {
    let help = "GET /api/v1/topologies lists them";
    failed(StatusCode::NOT_FOUND, "this process runs no topology of that name", help)
}

fn failed(status: StatusCode, error: &str, help: &str) -> Response {
    json(status, &ApiFailure { error: error.to_owned(), help: help.to_owned() })
}

fn json<T: Serialize>(status: StatusCode, answer: &T) -> Response {
    match serde_json::to_string(answer) {
        Ok(text) => (status, [(CONTENT_TYPE, JSON)], text).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")).into_response(),
    }
}
