//! Texts to tokens and back, as llama.cpp's and vLLM's servers have it: lm-eval needs no tokenizer
//! of its own where it finds this.

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
    /// The same, as vLLM calls it.
    pub(crate) prompt: Option<String>,
    /// Whether to put around the text what the model expects there.
    pub(crate) add_special: Option<bool>,
    /// The same, as vLLM calls it.
    pub(crate) add_special_tokens: Option<bool>,
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
    json!({"tokens": [], "count": 0, "max_model_len": 0})
}

/// What a text looks like.
pub(crate) fn text_example() -> Value {
    json!({"content": "", "prompt": ""})
}

/// What a tokenizer looks like.
pub(crate) fn info_example() -> Value {
    json!({
        "tokenizer_class": "", "vocab_size": 0, "model_max_length": 0, "add_bos_token": true,
        "bos_token?": "", "eos_token?": "", "unk_token?": "", "pad_token?": "",
        "chat_template?": "",
    })
}

/// A text's tokens.
pub(crate) async fn tokenize(
    State(app): State<Arc<App>>,
    Json(request): Json<Tokenize>,
) -> Result<axum::Json<Value>> {
    let content = request.content.or(request.prompt);
    let content = content.ok_or_else(|| ApiError::field("content", "content is missing"))?;
    let lease = app.model(request.model.as_deref()).await?;
    let tokenizer = Arc::clone(lease.resident().tokenizer()?);
    let specials = match request.parse_special.unwrap_or(true) {
        true => Specials::Recognised,
        false => Specials::AsText,
    };
    let framed = request.add_special.or(request.add_special_tokens).unwrap_or(false);
    let pieces = request.with_pieces.unwrap_or(false);
    let tokens = app.blocking(move |_| {
        let tokens = tokenizer.encode(&content, specials)?;
        let tokens = if framed { tokenizer.frame(tokens) } else { tokens };
        let told: Value = match pieces {
            false => json!(tokens),
            true => tokens.iter().map(|id| piece(*id, tokenizer.token_bytes(*id))).collect(),
        };
        Ok((tokens.len(), told))
    });
    let (count, tokens) = tokens.await?;
    let context = lease.resident().model().context();
    Ok(axum::Json(json!({"tokens": tokens, "count": count, "max_model_len": context})))
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
    Ok(axum::Json(json!({"content": content, "prompt": content})))
}

/// What is to be known of the tokenizer of the model that was used last.
pub(crate) async fn info(State(app): State<Arc<App>>) -> Result<axum::Json<Value>> {
    let lease = app.model(None).await?;
    let (resident, tokenizer) = (lease.resident(), lease.resident().tokenizer()?);
    let text = |id: Option<u32>| id.and_then(|id| tokenizer.token_text(id));
    // Models that only continue texts have none.
    let template = resident.template().ok().map(|template| template.source().to_owned());
    Ok(axum::Json(json!({
        "tokenizer_class": "tangor",
        "vocab_size": tokenizer.vocab_size(),
        "model_max_length": resident.model().context(),
        "add_bos_token": tokenizer.adds_bos(),
        "bos_token": text(tokenizer.bos()),
        "eos_token": text(tokenizer.eos().first().copied()),
        "unk_token": text(tokenizer.unk()),
        "pad_token": text(tokenizer.pad()),
        "chat_template": template,
    })))
}
