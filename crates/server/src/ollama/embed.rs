//! `POST /api/embed`, and `/api/embeddings` as it was before.

use super::lets_go;
use crate::app::App;
use crate::ask::Source;
use crate::body::Json;
use crate::embed::{Embedded, Texts, embed};
use crate::error::Result;
use crate::openai::{OneOrMany, or_default};
use axum::extract::State;
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tangor_engine::Pooling;

/// Texts to embed. Without any, the model is loaded, or let go.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(default)]
pub(crate) struct Request {
    /// Name of the model.
    pub(crate) model: Option<String>,
    /// One or several texts.
    pub(crate) input: Option<OneOrMany>,
    /// Whether texts that are too long are cut at their end, which they are unless this is false.
    pub(crate) truncate: Option<bool>,
    /// Numbers per vector: only as many as the model is wide.
    pub(crate) dimensions: Option<usize>,
    /// 0 lets the model go afterwards.
    pub(crate) keep_alive: Option<Value>,
}

/// A text to embed, as it was asked for before.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(default)]
pub(crate) struct Old {
    /// Name of the model.
    pub(crate) model: Option<String>,
    /// The text.
    #[serde(deserialize_with = "or_default")]
    pub(crate) prompt: String,
    /// 0 lets the model go afterwards.
    pub(crate) keep_alive: Option<Value>,
}

/// What became of it: the model's name, how long it took to have it, and the vectors.
struct Done {
    name: String,
    loading: Duration,
    embedded: Embedded,
}

/// What the answer looks like.
pub(crate) fn example() -> Value {
    json!({
        "model": "", "embeddings": [[0.5]], "total_duration": 0, "load_duration": 0,
        "prompt_eval_count": 0,
    })
}

/// What the old answer looks like.
pub(crate) fn old_example() -> Value {
    json!({"embedding": [0.5]})
}

/// Embeds texts.
pub(crate) async fn create(
    State(app): State<Arc<App>>,
    Json(request): Json<Request>,
) -> Result<axum::Json<Value>> {
    let begin = Instant::now();
    let done = answer(&app, request).await?;
    let nanos = |duration: Duration| u64::try_from(duration.as_nanos()).unwrap_or(0);
    Ok(axum::Json(json!({
        "model": done.name,
        "embeddings": done.embedded.vectors,
        "total_duration": nanos(begin.elapsed()),
        "load_duration": nanos(done.loading),
        "prompt_eval_count": done.embedded.tokens,
    })))
}

/// Embeds one text.
pub(crate) async fn old(
    State(app): State<Arc<App>>,
    Json(request): Json<Old>,
) -> Result<axum::Json<Value>> {
    let Old { model, prompt, keep_alive } = request;
    let input = Some(OneOrMany::One(prompt));
    let request = Request { model, input, keep_alive, ..Request::default() };
    let vector = answer(&app, request).await?.embedded.vectors.pop().unwrap_or_default();
    Ok(axum::Json(json!({"embedding": vector})))
}

async fn answer(app: &Arc<App>, request: Request) -> Result<Done> {
    let begin = Instant::now();
    let lease = app.model(request.model.as_deref()).await?;
    let (name, loading) = (lease.resident().id.clone(), begin.elapsed());
    let sources: Vec<Source> =
        OneOrMany::list(request.input).into_iter().map(Source::Text).collect();
    // One empty text is no text.
    let nothing = matches!(&sources[..], [Source::Text(text)] if text.is_empty());
    let texts = Texts {
        sources: if nothing { Vec::new() } else { sources },
        pooling: Pooling::Mean,
        truncate: request.truncate.unwrap_or(true),
        dimensions: request.dimensions,
    };
    let embedded = embed(app, &lease, texts).await?;
    drop(lease);
    if lets_go(request.keep_alive.as_ref()) {
        app.residents.leave(&name);
    }
    Ok(Done { name, loading, embedded })
}
