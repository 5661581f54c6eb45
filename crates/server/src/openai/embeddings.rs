//! `POST /v1/embeddings`, which is refused: the engine computes what comes next, not what a text
//! means, and a number that only looks like an embedding helps nobody.

use crate::app::App;
use crate::body::Json;
use crate::error::{ApiError, Kind, Result};
use axum::extract::State;
use axum::response::Response;
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::Value;
use std::sync::Arc;

/// Texts to embed.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(default)]
pub(crate) struct Request {
    /// Name of the model.
    pub(crate) model: Option<String>,
    /// One or several texts.
    pub(crate) input: Option<Value>,
}

/// Refuses.
pub(crate) async fn create(
    State(app): State<Arc<App>>,
    Json(request): Json<Request>,
) -> Result<Response> {
    if request.input.is_none() {
        return Err(ApiError::field("input", "input is missing"));
    }
    drop(app.model(request.model.as_deref()).await?);
    refuse().await
}

/// Refuses, whatever is asked.
pub(crate) async fn refuse() -> Result<Response> {
    let message = "the models that run here write text: they make no embeddings";
    Err(ApiError::new(Kind::Unsupported, message).code("model_not_supported"))
}
