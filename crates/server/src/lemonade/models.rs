//! Loading models and letting them go, fetching and removing them.

use crate::app::App;
use crate::body::Json;
use crate::catalog::Entry;
use crate::dialect::Dialect;
use crate::error::{ApiError, Kind, Result};
use crate::loader::LoadAsk;
use crate::openai::models::checkpoint;
use crate::pulling::{self, Arrival};
use crate::reply::{Form, Frame, channel};
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Value, json};
use std::sync::Arc;

/// A model to load.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(default)]
pub(crate) struct Load {
    pub(crate) model_name: Option<String>,
    /// The same, as older clients call it.
    pub(crate) checkpoint: Option<String>,
    /// Whether it stays in memory when others need the room.
    pub(crate) pinned: Option<bool>,
    /// Longest sequence; -1: what the server was started with.
    pub(crate) ctx_size: Option<i64>,
}

/// A model by name.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(default)]
pub(crate) struct Named {
    pub(crate) model_name: Option<String>,
    pub(crate) model: Option<String>,
}

/// A model to fetch.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(default)]
pub(crate) struct Pull {
    /// What it is to be called: its checkpoint, and nothing else.
    pub(crate) model_name: Option<String>,
    pub(crate) model: Option<String>,
    pub(crate) checkpoint: Option<String>,
    /// Whether progress streams.
    pub(crate) stream: Option<bool>,
}

impl Pull {
    /// What to fetch: a model is called by its checkpoint, and by no second name.
    fn asked(&self) -> Result<String> {
        let given = |name: &Option<String>| name.clone().filter(|name| !name.is_empty());
        let (name, checkpoint) = (given(&self.model_name), given(&self.checkpoint));
        if let (Some(name), Some(checkpoint)) = (&name, &checkpoint)
            && name != checkpoint
        {
            let message = format!(
                "a model is called by its checkpoint here: leave model_name out, and ask for \
                 {checkpoint:?}"
            );
            return Err(ApiError::field("model_name", message));
        }
        required(checkpoint.or(name).or_else(|| given(&self.model)))
    }
}

/// What a model that is loaded looks like.
pub(crate) fn load_example() -> Value {
    json!({
        "status": "success", "message": "", "model_name": "", "checkpoint": "", "recipe": "",
    })
}

/// What is said when something is done.
pub(crate) fn done_example() -> Value {
    json!({"status": "success", "message": ""})
}

fn required(name: Option<String>) -> Result<String> {
    let name = name.filter(|name| !name.is_empty());
    name.ok_or_else(|| ApiError::field("model_name", "model_name is missing"))
}

/// Loads a model.
pub(crate) async fn load(
    State(app): State<Arc<App>>,
    Json(load): Json<Load>,
) -> Result<axum::Json<Value>> {
    let name = required(load.model_name.or(load.checkpoint))?;
    let how = LoadAsk { context: load.ctx_size.and_then(|size| usize::try_from(size).ok()) };
    let most = app.limits().context;
    if how.context.is_some_and(|context| !(1..=most).contains(&context)) {
        let message = format!("ctx_size must be from 1 to {most} tokens, or -1");
        return Err(ApiError::field("ctx_size", message));
    }
    let how = load.ctx_size.map(|_| how);
    let lease = app.model_as(Some(&name), how.as_ref()).await?;
    let resident = lease.resident();
    if let Some(pinned) = load.pinned {
        app.residents.pin(&resident.id, pinned);
    }
    let entry = Entry { id: resident.id.clone(), installed: resident.installed.clone() };
    Ok(axum::Json(json!({
        "status": "success",
        "message": format!("Loaded model: {}", entry.id),
        "model_name": entry.id,
        "checkpoint": checkpoint(&entry),
        "recipe": "tangor",
    })))
}

/// Lets a model go, or all of them.
pub(crate) async fn unload(
    State(app): State<Arc<App>>,
    Json(named): Json<Named>,
) -> Result<axum::Json<Value>> {
    let message = match named.model_name.or(named.model) {
        None => {
            app.residents.clear();
            "Unloaded all models".to_owned()
        }
        Some(name) => {
            let id = app.in_memory(&name).map(|resident| resident.id.clone());
            let unloaded = id.filter(|id| app.residents.unload(id)).ok_or_else(|| {
                let message = format!("the model {name:?} is not in memory");
                ApiError::new(Kind::NotFound, message).code("model_not_loaded")
            })?;
            format!("Unloaded model: {unloaded}")
        }
    };
    Ok(axum::Json(json!({"status": "success", "message": message})))
}

/// Fetches a model.
pub(crate) async fn pull(State(app): State<Arc<App>>, Json(pull): Json<Pull>) -> Result<Response> {
    let name = app.catalog.pullable(&pull.asked()?)?;
    if !pull.stream.unwrap_or(false) {
        let installed = pulling::pull(&app, name).await?;
        let message = format!("Installed model: {}", installed.name);
        return Ok(axum::Json(json!({"status": "success", "message": message})).into_response());
    }
    let (frames, response) = channel(&app, Form::Events);
    pulling::stream(&app, name, frames, |arrival| match arrival {
        Arrival::Begun => Frame::named("progress", &json!({"percent": 0})),
        Arrival::More { file, done, total } => {
            let percent = total.filter(|total| *total > 0).map(|total| done * 100 / total);
            let data = json!({
                "file": file,
                "file_index": 1,
                "total_files": 1,
                "bytes_downloaded": done,
                "bytes_total": total,
                "percent": percent.unwrap_or(0),
            });
            Frame::named("progress", &data)
        }
        Arrival::Complete => Frame::named("complete", &json!({"percent": 100})),
        Arrival::Failed(error) => Frame::named("error", &Dialect::Lemonade.error(error)),
    });
    Ok(response)
}

/// Removes a model.
pub(crate) async fn delete(
    State(app): State<Arc<App>>,
    Json(named): Json<Named>,
) -> Result<axum::Json<Value>> {
    let name = required(named.model_name.or(named.model))?;
    pulling::remove(&app, &name).await?;
    Ok(axum::Json(json!({"status": "success", "message": format!("Deleted model: {name}")})))
}
