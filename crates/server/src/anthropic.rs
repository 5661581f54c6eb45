//! Anthropic's interface: `POST /v1/messages`, and counting tokens.

use crate::answers::{Delta, Happening, Reason, new_id};
use crate::app::App;
use crate::ask::{Ask, Chat, Knobs, Prompt, ToolChoice, only_functions};
use crate::blocks::{Block, BlockKind, Blocks, Change, sound_blocks};
use crate::body::Json;
use crate::dialect::Dialect;
use crate::error::{ApiError, Result};
use crate::prepare;
use crate::reply::{Form, Frame, Wording, stream};
use crate::shape::field;
use crate::thinking::switch;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::Deserialize;
use serde_json::{Value, json};
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
    /// Whether a model that thinks does so, which it does not unless this says so.
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
        let chat = Chat {
            messages,
            tools: self.tools.iter().flatten().map(tool).collect(),
            tool_choice,
            parallel,
            variables: switch(self.thinks()),
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

    /// Whether the client wants the model to think, and to see what.
    fn thinks(&self) -> bool {
        let thinking = self.thinking.as_ref().filter(|thinking| !thinking.is_null());
        thinking.is_some_and(|thinking| thinking["type"] != "disabled")
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
    let thinks = request.thinks();
    let mut answers = app.answer(request.ask()?).await?;
    let (id, model) = (new_id("msg_"), answers.resident().id.clone());
    if request.stream.unwrap_or(false) {
        let prompt = answers.prompts().first().map_or(0, Vec::len);
        let blocks = Blocks::default();
        let wording = Events { id, model, prompt, thinks, blocks, called: false };
        return Ok(stream(&app, Form::Events, answers, wording));
    }
    let mut choices = answers.collect().await?;
    choices.iter_mut().filter(|_| !thinks).for_each(|choice| choice.reasoning.clear());
    let content = choices.first().map(sound_blocks).unwrap_or_default();
    let called = content.iter().any(is_call);
    let content: Vec<Value> = content.iter().map(block).collect();
    let end = choices.first().map(|choice| &choice.end);
    let (reason, stop) = end.map_or((None, None), |end| stop_reason(&end.reason, called));
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

/// Counts the tokens that a conversation has, whether or not it fits: clients count in order to
/// make it fit.
pub(crate) async fn count(
    State(app): State<Arc<App>>,
    Json(request): Json<Request>,
) -> Result<axum::Json<Value>> {
    let ask = request.ask()?;
    let lease = app.model(ask.model.as_deref()).await?;
    let resident = Arc::clone(lease.resident());
    let prompts = app.preparing(move |_| prepare::prompts(&resident, &ask)).await?;
    Ok(axum::Json(json!({"input_tokens": prompts.first().map_or(0, Vec::len)})))
}

/// Why an answer ended; `called`: whether a call in it is whole.
fn stop_reason(reason: &Reason, called: bool) -> (Option<&'static str>, Option<&str>) {
    match reason {
        Reason::ToolCalls if !called => (Some("end_turn"), None),
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
            json!({"type": "thinking", "thinking": block.text, "signature": SIGNATURE})
        }
        BlockKind::Call { id, name } => {
            json!({"type": "tool_use", "id": id, "name": name, "input": block.arguments()})
        }
    }
}

/// A block that begins: without what it says.
fn begun(of: &Block) -> Value {
    let mut begun = block(&Block { text: String::new(), ..of.clone() });
    if of.kind == BlockKind::Reasoning {
        begun["signature"] = "".into();
    }
    begun
}

/// Stands where Anthropic signs what was thought. Nothing is signed here, and what comes back is
/// not checked; but clients send no thinking back that has none.
const SIGNATURE: &str = "dGFuZ29y";

/// Words an answer as events.
struct Events {
    id: String,
    model: String,
    /// Tokens of the prompt.
    prompt: usize,
    /// Whether the client sees what the model thinks.
    thinks: bool,
    blocks: Blocks,
    /// Whether there was a call.
    called: bool,
}

impl Events {
    fn changed(&mut self, change: Change) -> Vec<Frame> {
        match change {
            // Whether a call is one is known at its end.
            Change::Open(block) | Change::More(block) if is_call(&block) => Vec::new(),
            Change::Close(block) if is_call(&block) => {
                let Some(block) = block.sound(self.blocks.is_cut()) else { return Vec::new() };
                self.called |= is_call(&block);
                vec![Self::start(&block), Self::more(&block), Self::stop(&block)]
            }
            Change::Open(block) => vec![Self::start(&block)],
            Change::More(block) => vec![Self::more(&block)],
            Change::Close(block) if block.kind == BlockKind::Reasoning => {
                let signature = json!({"type": "signature_delta", "signature": SIGNATURE});
                vec![Self::delta(&block, &signature), Self::stop(&block)]
            }
            Change::Close(block) => vec![Self::stop(&block)],
        }
    }

    fn start(block: &Block) -> Frame {
        let data = json!({
            "type": "content_block_start",
            "index": block.index,
            "content_block": begun(block),
        });
        Frame::named("content_block_start", &data)
    }

    fn more(block: &Block) -> Frame {
        let text = &block.text;
        let delta = match block.kind {
            BlockKind::Text => json!({"type": "text_delta", "text": text}),
            BlockKind::Reasoning => json!({"type": "thinking_delta", "thinking": text}),
            BlockKind::Call { .. } => {
                let input = block.arguments().unwrap_or_default().to_string();
                json!({"type": "input_json_delta", "partial_json": input})
            }
        };
        Self::delta(block, &delta)
    }

    fn delta(block: &Block, delta: &Value) -> Frame {
        let data = json!({"type": "content_block_delta", "index": block.index, "delta": delta});
        Frame::named("content_block_delta", &data)
    }

    fn stop(block: &Block) -> Frame {
        let data = json!({"type": "content_block_stop", "index": block.index});
        Frame::named("content_block_stop", &data)
    }
}

fn is_call(block: &Block) -> bool {
    matches!(block.kind, BlockKind::Call { .. })
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
        let thought = matches!(happening, Happening::Delta { delta: Delta::Reasoning(_), .. });
        if thought && !self.thinks {
            return Vec::new();
        }
        let changes = self.blocks.happened(happening);
        changes.into_iter().flat_map(|change| self.changed(change)).collect()
    }

    fn end(&mut self) -> Vec<Frame> {
        let end = self.blocks.end();
        let (reason, stop) = end.map_or((None, None), |end| stop_reason(&end.reason, self.called));
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
