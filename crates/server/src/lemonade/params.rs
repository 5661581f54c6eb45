//! Parameters that clients set and read back.

use crate::app::App;
use crate::body::Json;
use crate::error::{ApiError, Result};
use axum::extract::State;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use std::borrow::Cow;
use std::sync::Arc;

/// Parameters by name.
#[derive(Debug, Deserialize)]
pub(crate) struct Request(Map<String, Value>);

impl JsonSchema for Request {
    fn schema_name() -> Cow<'static, str> {
        "Params".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        let number = || json!({"type": ["number", "null"]});
        let properties: Map<String, Value> =
            KNOWN.iter().map(|name| ((*name).to_owned(), number())).collect();
        json_schema!({
            "type": "object", "properties": properties, "additionalProperties": false,
        })
    }
}

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

/// What parameters look like.
pub(crate) fn example() -> Value {
    json!({"status": "success", "params": {"*": 0.5}})
}

/// What is set.
pub(crate) async fn get(State(app): State<Arc<App>>) -> axum::Json<Value> {
    axum::Json(json!({"status": "success", "params": *app.params()}))
}

/// Sets parameters; `null` removes one.
pub(crate) async fn set(
    State(app): State<Arc<App>>,
    Json(Request(request)): Json<Request>,
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
