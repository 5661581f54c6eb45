//! Anthropic's interface: `POST /v1/messages`, and counting tokens.

use crate::answers::{Happening, Reason, new_id};
use crate::app::App;
use crate::ask::{Ask, Chat, Knobs, Prompt, ToolChoice, only_functions};
use crate::blocks::{Block, BlockKind, Blocks, Change, blocks};
use crate::body::Json;
use crate::dialect::Dialect;
use crate::error::{ApiError, Result};
use crate::reply::{Form, Frame, Wording, stream};
use crate::shape::field;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use std::sync::Arc;
use tangor_engine::Usage;
use tangor_engine::text::{Content, FunctionCall, Message, ToolCall};

/// A conversation to answer.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(default)]
pub(crate) struct Request {
    /// Name of the model.
    pub(crate) model: Option<String>,
    /// The conversation: a role and a text or blocks each.
    pub(crate) messages: Vec<Said>,
    /// Most tokens of the answer.
    pub(crate) max_tokens: Option<usize>,
    /// The system message: a text or blocks.
    #[schemars(schema_with = "text_schema")]
    pub(crate) system: Option<Value>,
    /// 0 always takes the likeliest token.
    #[schemars(range(min = 0, max = 100))]
    pub(crate) temperature: Option<f32>,
    /// Only the likeliest tokens that together have this probability.
    #[schemars(range(min = 0, max = 1))]
    pub(crate) top_p: Option<f32>,
    /// Only so many of the likeliest tokens.
    pub(crate) top_k: Option<i64>,
    /// The answer ends before the first of these texts.
    pub(crate) stop_sequences: Option<Vec<String>>,
    /// Whether the answer streams.
    pub(crate) stream: Option<bool>,
    /// Tools that the answer may use.
    #[schemars(schema_with = "tools_schema")]
    pub(crate) tools: Option<Vec<Value>>,
    /// Whether it uses them.
    #[schemars(schema_with = "tool_choice_schema")]
    pub(crate) tool_choice: Option<Value>,
    /// Whether a model that thinks does so.
    #[schemars(schema_with = "thinking_schema")]
    pub(crate) thinking: Option<Value>,
    /// What the client says of the request: `user_id`, for whom it asks.
    #[schemars(schema_with = "metadata_schema")]
    pub(crate) metadata: Option<Value>,
}

/// A message.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
pub(crate) struct Said {
    pub(crate) role: String,
    #[schemars(schema_with = "text_schema")]
    pub(crate) content: Value,
}

/// What a text looks like: one, or blocks, of which some are calls and their results.
fn text_schema(_: &mut SchemaGenerator) -> Schema {
    field(&json!({"|": ["", [{"type": "text", "text": ""}]]}))
}

/// What tools look like.
fn tools_schema(_: &mut SchemaGenerator) -> Schema {
    field(&json!([{"name": "", "description?": "", "input_schema": {}}]))
}

/// What a choice of tools looks like.
fn tool_choice_schema(_: &mut SchemaGenerator) -> Schema {
    field(&json!({"|": [{"type": "auto|any|none"}, {"type": "tool", "name": ""}]}))
}

/// What is said of thinking.
fn thinking_schema(_: &mut SchemaGenerator) -> Schema {
    field(&json!({"type": "enabled|disabled|adaptive", "budget_tokens?": 0}))
}

/// What is said of a request.
fn metadata_schema(_: &mut SchemaGenerator) -> Schema {
    field(&json!({"user_id?": ""}))
}

impl Request {
    fn ask(&self) -> Result<Ask> {
        let mut messages = Vec::new();
        if let Some(system) = self.system.as_ref().filter(|system| !system.is_null()) {
            messages.push(Message::new("system", text_of(system, "system")?));
        }
        for (index, said) in self.messages.iter().enumerate() {
            take(said, &format!("messages[{index}].content"), &mut messages)?;
        }
        only_functions(self.tools.as_deref(), "custom")?;
        let (tool_choice, parallel) = choice(self.tool_choice.as_ref())?;
        let mut variables = Map::new();
        if let Some(thinking) = &self.thinking {
            variables.insert("enable_thinking".into(), (thinking["type"] != "disabled").into());
        }
        let chat = Chat {
            messages,
            tools: self.tools.iter().flatten().map(tool).collect(),
            tool_choice,
            parallel,
            variables,
        };
        Ok(Ask {
            model: self.model.clone(),
            prompt: Prompt::Chat(Box::new(chat)),
            knobs: Knobs {
                temperature: self.temperature,
                top_p: self.top_p,
                top_k: self.top_k,
                ..Knobs::default()
            },
            max_tokens: self.max_tokens,
            stop: self.stop_sequences.clone().unwrap_or_default(),
            choices: 1,
            user: self.user(),
            ..Ask::default()
        })
    }

    /// For whom the client asks.
    fn user(&self) -> Option<String> {
        Some(self.metadata.as_ref()?["user_id"].as_str()?.to_owned())
    }
}

/// A tool in OpenAI's shape.
fn tool(tool: &Value) -> Value {
    json!({"type": "function", "function": {
        "name": tool["name"],
        "description": tool["description"],
        "parameters": tool["input_schema"],
    }})
}

/// Whether tools are used, and whether several at once.
fn choice(given: Option<&Value>) -> Result<(ToolChoice, bool)> {
    let Some(given) = given.filter(|given| !given.is_null()) else {
        return Ok((ToolChoice::Auto, true));
    };
    let choice = match (given["type"].as_str(), given["name"].as_str()) {
        (Some("auto"), _) => ToolChoice::Auto,
        (Some("any"), _) => ToolChoice::Required,
        (Some("none"), _) => ToolChoice::Never,
        (Some("tool"), Some(name)) => ToolChoice::Named(name.to_owned()),
        _ => {
            let message = "tool_choice.type must be auto, any, none, or tool with a name";
            return Err(ApiError::field("tool_choice", message));
        }
    };
    Ok((choice, given["disable_parallel_tool_use"] != true))
}

/// The text of a string or of blocks.
fn text_of(value: &Value, field: &str) -> Result<String> {
    let bad = || ApiError::field(field, format!("{field}: a text or blocks of text are expected"));
    match value {
        Value::String(text) => Ok(text.clone()),
        Value::Array(blocks) => {
            let texts = blocks.iter().map(|block| block["text"].as_str().ok_or_else(bad));
            Ok(texts.collect::<Result<Vec<_>>>()?.join("\n"))
        }
        _ => Err(bad()),
    }
}

/// Adds a message, and the results of tools in it, to the conversation.
fn take(said: &Said, field: &str, messages: &mut Vec<Message>) -> Result<()> {
    let Value::Array(blocks) = &said.content else {
        messages.push(Message::new(said.role.clone(), text_of(&said.content, field)?));
        return Ok(());
    };
    let mut message = Message { role: said.role.clone(), ..Message::default() };
    let mut texts = Vec::new();
    for block in blocks {
        let text = |key: &str| block[key].as_str().unwrap_or_default().to_owned();
        match block["type"].as_str() {
            Some("text") => texts.push(text("text")),
            Some("thinking") => message.reasoning_content = Some(text("thinking")),
            Some("redacted_thinking") => {}
            Some("tool_use") => message.tool_calls.push(ToolCall {
                id: Some(text("id")),
                kind: "function".into(),
                function: FunctionCall { name: text("name"), arguments: block["input"].clone() },
            }),
            Some("tool_result") => {
                let result = match &block["content"] {
                    Value::Null => String::new(),
                    content => text_of(content, field)?,
                };
                messages.push(Message {
                    tool_call_id: Some(text("tool_use_id")),
                    ..Message::new("tool", result)
                });
            }
            other => {
                let kind = other.unwrap_or("unknown");
                let message = format!("{field}: blocks of type {kind} are not read by this model");
                return Err(ApiError::field(field, message));
            }
        }
    }
    if !texts.is_empty() || !message.tool_calls.is_empty() {
        message.content = (!texts.is_empty()).then(|| Content::Text(texts.join("\n")));
        messages.push(message);
    }
    Ok(())
}

/// What an answer looks like.
pub(crate) fn example() -> Value {
    json!({
        "id": "", "type": "message", "role": "assistant", "model": "",
        "content": [{
            "type": "text|thinking|tool_use", "text?": "", "thinking?": "", "signature?": "",
            "id?": "", "name?": "", "input?": null,
        }],
        "stop_reason": "end_turn|stop_sequence|max_tokens|tool_use", "stop_sequence?": "",
        "usage": {
            "input_tokens": 0, "cache_creation_input_tokens": 0, "cache_read_input_tokens": 0,
            "output_tokens": 0,
        },
    })
}

/// What a count looks like.
pub(crate) fn count_example() -> Value {
    json!({"input_tokens": 0})
}

/// Answers a conversation.
pub(crate) async fn create(
    State(app): State<Arc<App>>,
    Json(request): Json<Request>,
) -> Result<Response> {
    if request.max_tokens.is_none() {
        return Err(ApiError::field("max_tokens", "max_tokens: field required"));
    }
    let mut answers = app.answer(request.ask()?).await?;
    let (id, model) = (new_id("msg_"), answers.resident().id.clone());
    if request.stream.unwrap_or(false) {
        let prompt = answers.prompts().first().map_or(0, Vec::len);
        let wording = Events { id, model, prompt, blocks: Blocks::default() };
        return Ok(stream(&app, Form::Events, answers, wording));
    }
    let choices = answers.collect().await?;
    let content = choices.first().map(blocks).unwrap_or_default();
    let content: Vec<Value> = content.iter().map(block).collect();
    let end = choices.first().map(|choice| &choice.end);
    let (reason, stop) = end.map_or((None, None), |end| stop_reason(&end.reason));
    let body = json!({
        "id": id,
        "type": "message",
        "role": "assistant",
        "model": model,
        "content": content,
        "stop_reason": reason,
        "stop_sequence": stop,
        "usage": usage(end.map(|end| end.usage).unwrap_or_default()),
    });
    Ok(axum::Json(body).into_response())
}

/// Counts the tokens that a conversation has.
pub(crate) async fn count(
    State(app): State<Arc<App>>,
    Json(request): Json<Request>,
) -> Result<axum::Json<Value>> {
    let ask = request.ask()?;
    let lease = app.model(ask.model.as_deref()).await?;
    let prepared = app.prepared(Arc::clone(lease.resident()), ask).await?;
    let tokens = prepared.prompts.first().map_or(0, Vec::len);
    Ok(axum::Json(json!({"input_tokens": tokens})))
}

fn stop_reason(reason: &Reason) -> (Option<&'static str>, Option<&str>) {
    match reason {
        Reason::Stop => (Some("end_turn"), None),
        Reason::StopText(text) => (Some("stop_sequence"), Some(text)),
        Reason::Length => (Some("max_tokens"), None),
        Reason::ToolCalls => (Some("tool_use"), None),
    }
}

/// Anthropic counts tokens that were in the cache apart from the others.
fn usage(usage: Usage) -> Value {
    json!({
        "input_tokens": usage.prompt.saturating_sub(usage.cached),
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": usage.cached,
        "output_tokens": usage.completion,
    })
}

/// A block that is complete.
fn block(block: &Block) -> Value {
    match &block.kind {
        BlockKind::Text => json!({"type": "text", "text": block.text}),
        BlockKind::Reasoning => {
            json!({"type": "thinking", "thinking": block.text, "signature": ""})
        }
        BlockKind::Call { id, name } => {
            let input: Value = serde_json::from_str(&block.text).unwrap_or_else(|_| json!({}));
            json!({"type": "tool_use", "id": id, "name": name, "input": input})
        }
    }
}

/// Words an answer as events.
struct Events {
    id: String,
    model: String,
    /// Tokens of the prompt.
    prompt: usize,
    blocks: Blocks,
}

impl Events {
    fn changed(change: Change) -> Frame {
        match change {
            Change::Open(opened) => {
                let data = json!({
                    "type": "content_block_start",
                    "index": opened.index,
                    "content_block": block(&opened),
                });
                Frame::named("content_block_start", &data)
            }
            Change::More(block) => {
                let text = block.text;
                let delta = match block.kind {
                    BlockKind::Text => json!({"type": "text_delta", "text": text}),
                    BlockKind::Reasoning => json!({"type": "thinking_delta", "thinking": text}),
                    BlockKind::Call { .. } => {
                        json!({"type": "input_json_delta", "partial_json": text})
                    }
                };
                let data =
                    json!({"type": "content_block_delta", "index": block.index, "delta": delta});
                Frame::named("content_block_delta", &data)
            }
            Change::Close(block) => {
                let data = json!({"type": "content_block_stop", "index": block.index});
                Frame::named("content_block_stop", &data)
            }
        }
    }
}

impl Wording for Events {
    fn begin(&mut self) -> Vec<Frame> {
        let message = json!({
            "id": self.id,
            "type": "message",
            "role": "assistant",
            "model": self.model,
            "content": [],
            "stop_reason": null,
            "stop_sequence": null,
            "usage": usage(Usage { prompt: self.prompt, ..Usage::default() }),
        });
        vec![Frame::named("message_start", &json!({"type": "message_start", "message": message}))]
    }

    fn happened(&mut self, happening: Happening) -> Vec<Frame> {
        let changes = self.blocks.happened(happening);
        changes.into_iter().map(Self::changed).collect()
    }

    fn end(&mut self) -> Vec<Frame> {
        let end = self.blocks.end();
        let (reason, stop) = end.map_or((None, None), |end| stop_reason(&end.reason));
        let data = json!({
            "type": "message_delta",
            "delta": {"stop_reason": reason, "stop_sequence": stop},
            "usage": usage(end.map(|end| end.usage).unwrap_or_default()),
        });
        let stop = json!({"type": "message_stop"});
        vec![Frame::named("message_delta", &data), Frame::named("message_stop", &stop)]
    }

    fn failed(&mut self, error: &ApiError) -> Vec<Frame> {
        vec![Frame::named("error", &Dialect::Anthropic.error(error))]
    }
}
