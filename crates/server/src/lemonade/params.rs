//! Parameters that clients set and read back.

use crate::app::App;
use crate::body::Json;
use crate::error::{ApiError, Result};
use axum::extract::State;
use serde_json::{Map, Value, json};
use std::sync::Arc;

/// Parameters by name.
pub(crate) type Request = Map<String, Value>;

/// Names that can be set, which are those of sampling.
const KNOWN: &[&str] = &[
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "repeat_penalty",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
    "seed",
];

/// What is set.
pub(crate) async fn get(State(app): State<Arc<App>>) -> axum::Json<Value> {
    axum::Json(json!({"status": "success", "params": *app.params()}))
}

/// Sets parameters; `null` removes one.
pub(crate) async fn set(
    State(app): State<Arc<App>>,
    Json(request): Json<Request>,
) -> Result<axum::Json<Value>> {
    for (name, value) in &request {
        if !KNOWN.contains(&name.as_str()) {
            let message = format!("{name:?} is no parameter: there are {}", KNOWN.join(", "));
            return Err(ApiError::field(name, message));
        }
        if !(value.is_number() || value.is_null()) {
            return Err(ApiError::field(name, format!("{name} must be a number")));
        }
    }
    let mut params = app.params();
    for (name, value) in request {
        match value {
            Value::Null => drop(params.remove(&name)),
            value => drop(params.insert(name, value)),
        }
    }
    Ok(axum::Json(json!({"status": "success", "params": *params})))
}
