//! The models of this machine, as Ollama lists them.

use super::timestamp;
use crate::app::App;
use crate::body::Json;
use crate::card::Card;
use crate::catalog::{Catalog, Entry};
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
use tangor_engine::text::Reasoning;
use tangor_store::Sha256Digest;

/// The Ollama whose answers these are. Clients refuse older ones, as Visual Studio Code those
/// before 0.6.4, and many compare whole numbers between dots: any other word breaks them.
const VERSION: &str = "0.11.0";

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
    json!({"version": "", "tangor": ""})
}

/// Every model on this machine.
pub(crate) async fn tags(State(app): State<Arc<App>>) -> Result<axum::Json<Value>> {
    let list = |app: &Arc<App>| {
        let entries = app.catalog.list()?;
        Ok(entries.iter().map(|entry| describe(&app.catalog, entry)).collect::<Vec<_>>())
    };
    Ok(axum::Json(json!({"models": app.blocking(list).await?})))
}

/// A model as Ollama lists it. Reads the disk.
fn describe(catalog: &Catalog, entry: &Entry) -> Value {
    let (installed, digest) = (&entry.installed, entry.digest());
    let name = tagged(&entry.id);
    json!({
        "name": name,
        "model": name,
        "modified_at": timestamp(installed.pulled_at.unwrap_or(0), 0),
        "size": installed.bytes,
        "digest": digest.to_string(),
        "details": details(&catalog.card(entry, digest), entry),
    })
}

/// A name with its tag, which clients take for granted: they look for models with it.
fn tagged(id: &str) -> String {
    if id.contains(':') { id.to_owned() } else { format!("{id}:latest") }
}

fn details(card: &Card, entry: &Entry) -> Value {
    json!({
        "parent_model": "",
        "format": format(entry),
        "family": card.family,
        "families": [card.family],
        "parameter_size": card.size(),
        "quantization_level": card.quantization,
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
pub(crate) async fn running(State(app): State<Arc<App>>) -> Result<axum::Json<Value>> {
    /// Models stay until others need the room: far away, for clients that expect a moment.
    const NEVER: u64 = 4_102_444_800;
    let list = |app: &Arc<App>| {
        let models = app.residents.list().into_iter().map(|listed| {
            let resident = listed.resident;
            let entry = Entry { id: resident.id.clone(), installed: resident.installed.clone() };
            let mut value = describe(&app.catalog, &entry);
            value["size"] = resident.memory().into();
            value["size_vram"] = 0.into();
            value["expires_at"] = timestamp(NEVER, 0).into();
            value["context_length"] = resident.model().context().into();
            value
        });
        Ok(models.collect::<Vec<_>>())
    };
    Ok(axum::Json(json!({"models": app.blocking(list).await?})))
}

/// Describes a model.
pub(crate) async fn show(
    State(app): State<Arc<App>>,
    Json(named): Json<Named>,
) -> Result<axum::Json<Value>> {
    let name = named.name()?;
    let shown = app.blocking(move |app| {
        let entry = app.catalog.find(&name)?;
        let (text, card) = (text(app, &entry)?, app.catalog.card(&entry, entry.digest()));
        let resident = app.in_memory(&entry.id);
        let context = resident.map_or(card.context, |resident| resident.model().context());
        let fills = fills_gaps(&text);
        Ok(json!({
            "modelfile": format!("FROM {}", entry.id),
            "parameters": "",
            "template": template(&text, fills),
            "details": details(&card, &entry),
            "model_info": card.metadata(&entry.id, context),
            "capabilities": capabilities(&text, fills),
            "modified_at": timestamp(entry.installed.pulled_at.unwrap_or(0), 0),
        }))
    });
    Ok(axum::Json(shown.await?))
}

/// What a model says about text, which is read from its files unless it is in memory.
fn text(app: &App, entry: &Entry) -> Result<Text> {
    if let Some(resident) = app.in_memory(&entry.id) {
        return Ok(resident.model().text().clone());
    }
    let checkpoint = app.catalog.store().open_checkpoint(&entry.installed, &Limits::default())?;
    Ok(Text::of(&checkpoint)?)
}

/// Whether a model was made to fill gaps.
fn fills_gaps(text: &Text) -> bool {
    let infill = text.tokenizer.as_ref().map(|tokenizer| tokenizer.infill("", ""));
    matches!(infill, Some(Ok(Some(_))))
}

/// A model's template. Clients look in it for Ollama's word for what stands behind a gap.
fn template(text: &Text, fills_gaps: bool) -> String {
    let source = text.template.as_ref().map(|template| template.source()).unwrap_or_default();
    let gaps = if fills_gaps { "{#- gaps: .Prompt, .Suffix -#}" } else { "" };
    format!("{source}{gaps}")
}

/// What a model can do, in Ollama's words.
fn capabilities(text: &Text, fills_gaps: bool) -> Vec<&'static str> {
    let source = text.template.as_ref().map(|template| template.source()).unwrap_or_default();
    let can = [
        ("completion", true),
        ("tools", text.template.as_ref().is_some_and(|template| template.takes_tools())),
        ("thinking", Reasoning::of(source, "").is_some()),
        ("insert", fills_gaps),
    ];
    can.into_iter().filter(|(_, can)| *can).map(|(word, _)| word).collect()
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
        Arrival::More { file, done, total } => Frame::data(&progress(file, done, total)),
        Arrival::Complete => Frame::data(&json!({"status": "success"})),
        Arrival::Failed(error) => Frame::data(&crate::dialect::Dialect::Ollama.error(error)),
    });
    Ok(response)
}

/// How far a file is. Clients cut pieces out of its digest, by which they tell files apart: that of
/// its name does, and is known from the beginning.
fn progress(file: &str, done: u64, total: Option<u64>) -> Value {
    let digest = format!("sha256:{}", Sha256Digest::of(file.as_bytes()));
    let mut word = json!({"status": format!("pulling {file}"), "digest": digest});
    // Their whole is a number, and unknown where it is missing.
    if let Some(total) = total {
        word["total"] = total.into();
    }
    word["completed"] = done.into();
    word
}

/// Removes a model.
pub(crate) async fn delete(
    State(app): State<Arc<App>>,
    Json(named): Json<Named>,
) -> Result<StatusCode> {
    pulling::remove(&app, &named.name()?).await?;
    Ok(StatusCode::OK)
}

/// The version that clients of Ollama may count on, and whose it is.
pub(crate) async fn version() -> axum::Json<Value> {
    axum::Json(json!({"version": VERSION, "tangor": env!("CARGO_PKG_VERSION")}))
}

#[cfg(test)]
mod tests {
    use super::*;
    use tangor_engine::text::{ChatTemplate, GgufVocab, Tokenizer};

    fn text(specials: &[&str], template: &str) -> Text {
        let mut vocab = GgufVocab { model: "gpt2".into(), ..GgufVocab::default() };
        let plain = ["a", "b", "ab"];
        vocab.tokens = plain.iter().chain(specials).map(|text| (*text).to_owned()).collect();
        vocab.merges = vec!["a b".into()];
        vocab.token_types = [vec![1; plain.len()], vec![3; specials.len()]].concat();
        let tokenizer = Tokenizer::from_gguf(vocab).unwrap();
        let template = ChatTemplate::new(template, &tokenizer).unwrap();
        Text {
            tokenizer: Some(Arc::new(tokenizer)),
            template: Some(Arc::new(template)),
            template_error: None,
        }
    }

    #[test]
    fn what_a_model_can_do_is_told_in_words_that_clients_look_for() {
        let plain = text(&[], "{{ messages }}");
        assert_eq!(capabilities(&plain, fills_gaps(&plain)), ["completion"]);
        assert_eq!(template(&plain, fills_gaps(&plain)), "{{ messages }}");
        let gaps = ["<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"];
        let able = text(&gaps, "{{ tools }}<think></think>");
        let fills = fills_gaps(&able);
        assert_eq!(capabilities(&able, fills), ["completion", "tools", "thinking", "insert"]);
        assert!(template(&able, fills).contains(".Suffix"));
    }

    #[test]
    fn progress_has_a_digest_that_can_be_cut_and_no_whole_that_is_unknown() {
        let known = progress("model.gguf", 5, Some(10));
        let digest = known["digest"].as_str().unwrap();
        assert_eq!((&digest[..7], digest.len()), ("sha256:", 7 + 64));
        assert_eq!((&known["completed"], &known["total"]), (&json!(5), &json!(10)));
        let unknown = progress("other.gguf", 5, None);
        assert_ne!(unknown["digest"], known["digest"]);
        assert_eq!(unknown.get("total"), None);
    }

    #[test]
    fn every_name_has_a_tag() {
        for (id, name) in [("smollm2", "smollm2:latest"), ("a/b:c.gguf", "a/b:c.gguf")] {
            assert_eq!(tagged(id), name);
        }
    }
}
