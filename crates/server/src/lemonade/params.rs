//! Parameters that clients set and read back.

use crate::app::App;
use crate::ask::Knobs;
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
        let properties: Map<String, Value> =
            KNOWN.iter().map(|name| ((*name).to_owned(), schema(name))).collect();
        json_schema!({
            "type": "object", "properties": properties, "additionalProperties": false,
        })
    }
}

/// What a parameter looks like, within the bounds that requests have for it.
fn schema(name: &str) -> Value {
    let within = |low: f64, high: f64| json!({"minimum": low, "maximum": high});
    let mut schema = match name {
        "temperature" => within(0.0, 100.0),
        "top_p" | "min_p" => within(0.0, 1.0),
        "presence_penalty" | "frequency_penalty" => within(-100.0, 100.0),
        "repeat_penalty" | "repetition_penalty" => within(0.01, 100.0),
        _ => json!({}),
    };
    let kind = if matches!(name, "top_k" | "seed") { "integer" } else { "number" };
    schema["type"] = json!([kind, "null"]);
    schema
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
        check(name, value)?;
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

/// Whether requests may say this themselves, as they do when it is set.
fn check(name: &str, value: &Value) -> Result<()> {
    let Some(known) = KNOWN.iter().find(|known| **known == name) else {
        let message = format!("{name:?} is no parameter: there are {}", KNOWN.join(", "));
        return Err(ApiError::field(name, message));
    };
    let whole = matches!(*known, "top_k" | "seed");
    if !value.is_null() && !(if whole { value.is_i64() } else { value.is_number() }) {
        let what = if whole { "a whole number" } else { "a number" };
        return Err(ApiError::field(name, format!("{name} must be {what}")));
    }
    let mut knobs = Knobs::default();
    knobs.default_to(&Map::from_iter([(name.to_owned(), value.clone())]));
    knobs.check().map_err(|error| ApiError { param: Some(name.to_owned()), ..error })
}
