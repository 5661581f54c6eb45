//! `GET /v1/models`, with what lemonade's clients look for beside OpenAI's fields.

use crate::app::App;
use crate::catalog::Entry;
use crate::error::{ApiError, Kind, Result};
use axum::Json;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use serde_json::{Value, json};
use std::sync::Arc;
use tangor_store::Origin;

/// Every model on this machine.
pub(crate) async fn list(State(app): State<Arc<App>>) -> Result<Json<Value>> {
    let entries = app.blocking(|app| app.catalog.list()).await?;
    let models: Vec<Value> = entries.iter().map(|entry| describe(&app, entry)).collect();
    Ok(Json(json!({"object": "list", "data": models})))
}

/// One model.
pub(crate) async fn one(
    State(app): State<Arc<App>>,
    id: Result<Path<String>, PathRejection>,
) -> Result<Json<Value>> {
    let no_text = |_| ApiError::new(Kind::NotFound, "the model's name is no text");
    let Path(id) = id.map_err(no_text)?;
    let entry = app.blocking(move |app| app.catalog.find(&id)).await?;
    Ok(Json(describe(&app, &entry)))
}

/// What a model looks like.
pub(crate) fn example() -> Value {
    json!({
        "id": "", "object": "model", "created": 0, "owned_by": "", "checkpoint": "", "recipe": "",
        "size": 0.5, "downloaded": true, "suggested": true, "labels": [""],
        "context_length?": 0, "max_context_window?": 0,
    })
}

/// What a list of models looks like.
pub(crate) fn list_example() -> Value {
    json!({"object": "list", "data": [example()]})
}

/// A model as OpenAI and lemonade list it.
fn describe(app: &App, entry: &Entry) -> Value {
    let installed = &entry.installed;
    let context = app.in_memory(&entry.id).map(|resident| resident.model().context());
    json!({
        "id": entry.id,
        "object": "model",
        "created": installed.pulled_at.unwrap_or(0),
        "owned_by": "tangor",
        "checkpoint": checkpoint(entry),
        "recipe": "tangor",
        "size": installed.bytes as f64 / 1e9,
        "downloaded": true,
        "suggested": true,
        "labels": ["chat"],
        "context_length": context,
        "max_context_window": context,
    })
}

/// Where a model came from; of the user's own files, their name alone.
pub(crate) fn checkpoint(entry: &Entry) -> String {
    match &entry.installed.origin {
        Origin::Package { requirement } => requirement.clone(),
        Origin::Hub { repo, .. } => repo.clone(),
        Origin::Local => entry.id.clone(),
    }
}
