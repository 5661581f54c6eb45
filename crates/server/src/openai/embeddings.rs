//! `POST /v1/embeddings`

use super::completions::Given;
use crate::app::App;
use crate::body::Json;
use crate::embed::{Texts, embed};
use crate::error::{ApiError, Result};
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Value, json};
use std::sync::Arc;
use tangor_engine::Pooling;

/// Texts to embed.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(default)]
pub(crate) struct Request {
    /// Name of the model.
    pub(crate) model: Option<String>,
    /// One or several texts, or one or several lists of token ids.
    pub(crate) input: Option<Given>,
    /// `float`, or `base64`: of the numbers as 32-bit floats, the lowest byte first.
    pub(crate) encoding_format: Option<Encoding>,
    /// Numbers per vector: only as many as the model is wide.
    pub(crate) dimensions: Option<usize>,
    /// `mean` of all tokens, which is what happens unless this says otherwise, or the `last` one.
    pub(crate) pooling: Option<Pooled>,
}

/// How vectors are written.
#[derive(Clone, Copy, Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Encoding {
    #[default]
    Float,
    Base64,
}

/// How tokens become one vector.
#[derive(Clone, Copy, Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Pooled {
    #[default]
    Mean,
    Last,
}

impl Encoding {
    fn write(self, vector: &[f32]) -> Value {
        match self {
            Self::Float => json!(vector),
            Self::Base64 => {
                let bytes: Vec<u8> = vector.iter().flat_map(|x| x.to_le_bytes()).collect();
                STANDARD.encode(bytes).into()
            }
        }
    }
}

/// What the answer looks like.
pub(crate) fn example() -> Value {
    json!({
        "object": "list",
        "data": [{"object": "embedding", "index": 0, "embedding": {"|": [[0.5], ""]}}],
        "model": "",
        "usage": {"prompt_tokens": 0, "total_tokens": 0},
    })
}

/// Embeds texts.
pub(crate) async fn create(
    State(app): State<Arc<App>>,
    Json(request): Json<Request>,
) -> Result<Response> {
    let sources = request.input.map(Given::sources).unwrap_or_default();
    if sources.is_empty() {
        return Err(ApiError::field("input", "input is missing: give at least one text"));
    }
    let lease = app.model(request.model.as_deref()).await?;
    let texts = Texts {
        sources,
        pooling: match request.pooling.unwrap_or_default() {
            Pooled::Mean => Pooling::Mean,
            Pooled::Last => Pooling::Last,
        },
        truncate: false,
        dimensions: request.dimensions,
    };
    let embedded = embed(&app, &lease, texts).await?;
    let encoding = request.encoding_format.unwrap_or_default();
    let data = embedded.vectors.iter().enumerate().map(|(index, vector)| {
        json!({"object": "embedding", "index": index, "embedding": encoding.write(vector)})
    });
    Ok(axum::Json(json!({
        "object": "list",
        "data": data.collect::<Vec<_>>(),
        "model": lease.resident().id,
        "usage": {"prompt_tokens": embedded.tokens, "total_tokens": embedded.tokens},
    }))
    .into_response())
}
