//! Texts to tokens and back, as llama.cpp's server has it.

use crate::app::App;
use crate::body::Json;
use crate::error::{ApiError, Result};
use axum::extract::State;
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Value, json};
use std::sync::Arc;
use tangor_engine::text::Specials;

/// A text to tokenise.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(default)]
pub(crate) struct Tokenize {
    pub(crate) model: Option<String>,
    pub(crate) content: Option<String>,
    /// Whether to put around the text what the model expects there.
    pub(crate) add_special: Option<bool>,
    /// Whether names of special tokens mean the tokens, which they do unless this is false.
    pub(crate) parse_special: Option<bool>,
    /// Whether every token comes with its text.
    pub(crate) with_pieces: Option<bool>,
}

/// Tokens to turn into text.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(default)]
pub(crate) struct Detokenize {
    pub(crate) model: Option<String>,
    pub(crate) tokens: Option<Vec<u32>>,
}

/// What tokens look like: numbers, or numbers with their texts.
pub(crate) fn tokens_example() -> Value {
    json!({"tokens": []})
}

/// What a text looks like.
pub(crate) fn text_example() -> Value {
    json!({"content": ""})
}

/// A text's tokens.
pub(crate) async fn tokenize(
    State(app): State<Arc<App>>,
    Json(request): Json<Tokenize>,
) -> Result<axum::Json<Value>> {
    let content =
        request.content.ok_or_else(|| ApiError::field("content", "content is missing"))?;
    let lease = app.model(request.model.as_deref()).await?;
    let tokenizer = Arc::clone(lease.resident().tokenizer()?);
    let specials = match request.parse_special.unwrap_or(true) {
        true => Specials::Recognised,
        false => Specials::AsText,
    };
    let framed = request.add_special.unwrap_or(false);
    let pieces = request.with_pieces.unwrap_or(false);
    let tokens = app.blocking(move |_| {
        let tokens = tokenizer.encode(&content, specials)?;
        let tokens = if framed { tokenizer.frame(tokens) } else { tokens };
        Ok(match pieces {
            false => json!(tokens),
            true => tokens.iter().map(|id| piece(*id, tokenizer.token_bytes(*id))).collect(),
        })
    });
    Ok(axum::Json(json!({"tokens": tokens.await?})))
}

/// A token and its text; its bytes where they are none.
fn piece(id: u32, bytes: Option<&[u8]>) -> Value {
    let bytes = bytes.unwrap_or_default();
    let text = std::str::from_utf8(bytes).map_or_else(|_| json!(bytes), |text| json!(text));
    json!({"id": id, "piece": text})
}

/// The text of tokens.
pub(crate) async fn detokenize(
    State(app): State<Arc<App>>,
    Json(request): Json<Detokenize>,
) -> Result<axum::Json<Value>> {
    let tokens = request.tokens.ok_or_else(|| ApiError::field("tokens", "tokens is missing"))?;
    let lease = app.model(request.model.as_deref()).await?;
    let content = lease.resident().tokenizer()?.decode(&tokens, false);
    Ok(axum::Json(json!({"content": content})))
}
