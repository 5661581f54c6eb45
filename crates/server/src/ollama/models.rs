//! The models of this machine, as Ollama lists them.

use super::timestamp;
use crate::app::App;
use crate::body::Json;
use crate::catalog::Entry;
use crate::error::{ApiError, Result};
use crate::pulling::{self, Arrival};
use crate::reply::{Form, Frame, channel};
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Value, json};
use std::sync::Arc;
use tangor_engine::Text;
use tangor_engine::plan::model::formats::Limits;

/// A model by name.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(default)]
pub(crate) struct Named {
    pub(crate) model: Option<String>,
    /// The same, as older clients call it.
    pub(crate) name: Option<String>,
}

impl Named {
    fn name(self) -> Result<String> {
        let name = self.model.or(self.name).filter(|name| !name.is_empty());
        name.ok_or_else(|| ApiError::field("model", "model is required"))
    }
}

/// A model to fetch.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(default)]
pub(crate) struct Pull {
    pub(crate) model: Option<String>,
    pub(crate) name: Option<String>,
    /// Whether progress streams, which it does unless this is false.
    pub(crate) stream: Option<bool>,
}

/// What a model looks like.
fn example() -> Value {
    json!({
        "name": "", "model": "", "modified_at": "", "size": 0, "digest": "",
        "details": details_example(),
    })
}

fn details_example() -> Value {
    json!({
        "parent_model": "", "format": "gguf|onnx|safetensors", "family": "", "families?": [""],
        "parameter_size": "", "quantization_level": "",
    })
}

/// What the models of this machine look like.
pub(crate) fn tags_example() -> Value {
    json!({"models": [example()]})
}

/// What the models in memory look like.
pub(crate) fn running_example() -> Value {
    let mut model = example();
    model["size_vram"] = 0.into();
    model["expires_at"] = "".into();
    model["context_length"] = 0.into();
    json!({"models": [model]})
}

/// What a description looks like.
pub(crate) fn show_example() -> Value {
    json!({
        "modelfile": "", "parameters": "", "template": "", "details": details_example(),
        "model_info": {"*": null}, "capabilities": [""], "modified_at": "",
    })
}

/// What a model that has been fetched looks like.
pub(crate) fn pull_example() -> Value {
    json!({"status": "success"})
}

/// What the version looks like.
pub(crate) fn version_example() -> Value {
    json!({"version": ""})
}

/// Every model on this machine.
pub(crate) async fn tags(State(app): State<Arc<App>>) -> Result<axum::Json<Value>> {
    let entries = app.blocking(|app| app.catalog.list()).await?;
    let models: Vec<Value> = entries.iter().map(describe).collect();
    Ok(axum::Json(json!({"models": models})))
}

fn describe(entry: &Entry) -> Value {
    let installed = &entry.installed;
    let digest = installed.digest.map(|digest| digest.to_string()).unwrap_or_default();
    json!({
        "name": entry.id,
        "model": entry.id,
        "modified_at": timestamp(installed.pulled_at.unwrap_or(0), 0),
        "size": installed.bytes,
        "digest": digest,
        "details": {
            "parent_model": "",
            "format": format(entry),
            "family": "",
            "families": null,
            "parameter_size": "",
            "quantization_level": "",
        },
    })
}

/// What kind of files a model has.
fn format(entry: &Entry) -> &'static str {
    let has = |ending: &str| entry.installed.files.iter().any(|file| file.path.ends_with(ending));
    match () {
        () if has(".gguf") => "gguf",
        () if has(".onnx") => "onnx",
        () => "safetensors",
    }
}

/// The models in memory.
pub(crate) async fn running(State(app): State<Arc<App>>) -> axum::Json<Value> {
    /// Models stay until others need the room: far away, for clients that expect a moment.
    const NEVER: u64 = 4_102_444_800;
    let models = app.residents.list().into_iter().map(|listed| {
        let resident = listed.resident;
        let entry = Entry { id: resident.id.clone(), installed: resident.installed.clone() };
        let mut value = describe(&entry);
        value["size"] = resident.memory().into();
        value["size_vram"] = 0.into();
        value["expires_at"] = timestamp(NEVER, 0).into();
        value["context_length"] = resident.model().context().into();
        value
    });
    axum::Json(json!({"models": models.collect::<Vec<_>>()}))
}

/// Describes a model.
pub(crate) async fn show(
    State(app): State<Arc<App>>,
    Json(named): Json<Named>,
) -> Result<axum::Json<Value>> {
    let name = named.name()?;
    let (entry, template) = app
        .blocking(move |app| {
            let entry = app.catalog.find(&name)?;
            let template = template(app, &entry)?;
            Ok((entry, template))
        })
        .await?;
    let resident = app.in_memory(&entry.id);
    let tools = template.as_deref().is_some_and(|source| source.contains("tools"));
    let mut capabilities = vec!["completion"];
    capabilities.extend(tools.then_some("tools"));
    let info = resident.as_ref().map(|resident| {
        let hyper = resident.model().hyper();
        json!({
            "general.architecture": "tangor",
            "tangor.context_length": resident.model().context(),
            "tangor.block_count": hyper.layers,
            "tangor.embedding_length": hyper.hidden,
            "tangor.attention.head_count": hyper.heads,
            "tangor.attention.head_count_kv": hyper.kv_heads,
            "tangor.vocab_size": hyper.vocab,
        })
    });
    Ok(axum::Json(json!({
        "modelfile": format!("FROM {}", entry.id),
        "parameters": "",
        "template": template.unwrap_or_default(),
        "details": describe(&entry)["details"],
        "model_info": info.unwrap_or_else(|| json!({})),
        "capabilities": capabilities,
        "modified_at": timestamp(entry.installed.pulled_at.unwrap_or(0), 0),
    })))
}

/// A model's template, which is read from its files unless it is in memory.
fn template(app: &App, entry: &Entry) -> Result<Option<String>> {
    let source = |text: &Text| text.template.as_ref().map(|template| template.source().to_owned());
    if let Some(resident) = app.in_memory(&entry.id) {
        return Ok(source(resident.model().text()));
    }
    let checkpoint = app.catalog.store().open_checkpoint(&entry.installed, &Limits::default())?;
    Ok(source(&Text::of(&checkpoint)?))
}

/// Fetches a model.
pub(crate) async fn pull(State(app): State<Arc<App>>, Json(pull): Json<Pull>) -> Result<Response> {
    let name = Named { model: pull.model, name: pull.name }.name()?;
    let name = app.catalog.pullable(&name)?;
    if pull.stream == Some(false) {
        pulling::pull(&app, name).await?;
        return Ok(axum::Json(json!({"status": "success"})).into_response());
    }
    let (frames, response) = channel(&app, Form::Lines);
    pulling::stream(&app, name, frames, |arrival| match arrival {
        Arrival::Begun => Frame::data(&json!({"status": "pulling manifest"})),
        Arrival::More { file, done, total } => Frame::data(&json!({
            "status": format!("pulling {file}"), "digest": file, "total": total, "completed": done,
        })),
        Arrival::Complete => Frame::data(&json!({"status": "success"})),
        Arrival::Failed(error) => Frame::data(&crate::dialect::Dialect::Ollama.error(error)),
    });
    Ok(response)
}

/// Removes a model.
pub(crate) async fn delete(
    State(app): State<Arc<App>>,
    Json(named): Json<Named>,
) -> Result<StatusCode> {
    pulling::remove(&app, &named.name()?).await?;
    Ok(StatusCode::OK)
}

/// The version, in Ollama's shape.
pub(crate) async fn version() -> axum::Json<Value> {
    axum::Json(json!({"version": env!("CARGO_PKG_VERSION")}))
}
