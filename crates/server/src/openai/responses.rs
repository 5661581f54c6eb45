//! `POST /v1/responses`

use super::OneOrMany;
use super::chat::tool_choice;
use crate::answers::{End, Happening, new_id};
use crate::app::App;
use crate::ask::{Ask, Chat, Knobs, Prompt, only_functions};
use crate::blocks::{Block, BlockKind, Blocks, Change, blocks};
use crate::body::Json;
use crate::dialect::Dialect;
use crate::error::{ApiError, Result};
use crate::reply::{Form, Frame, Wording, stream};
use crate::residents::now;
use crate::shape::field;
use crate::thinking::{LEVELS, of_level};
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::Deserialize;
use serde_json::{Value, json};
use std::sync::Arc;
use tangor_engine::text::{Content, FunctionCall, Message, ToolCall};

/// A conversation to answer.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(default)]
pub(crate) struct Request {
    /// Name of the model.
    pub(crate) model: Option<String>,
    /// What the user says, or the items of the conversation so far.
    pub(crate) input: Option<Input>,
    /// The system message.
    pub(crate) instructions: Option<String>,
    /// Most tokens of the answer.
    pub(crate) max_output_tokens: Option<usize>,
    /// 0 always takes the likeliest token.
    #[schemars(range(min = 0, max = 100))]
    pub(crate) temperature: Option<f32>,
    /// Only the likeliest tokens that together have this probability.
    #[schemars(range(min = 0, max = 1))]
    pub(crate) top_p: Option<f32>,
    /// Only so many of the likeliest tokens.
    pub(crate) top_k: Option<i64>,
    /// Divides the score of tokens that occurred already.
    #[schemars(range(min = 0.01, max = 100))]
    pub(crate) repeat_penalty: Option<f32>,
    /// The same seed gives the same answer.
    pub(crate) seed: Option<i64>,
    /// The answer ends before the first of these texts.
    pub(crate) stop: Option<OneOrMany>,
    /// Whether the answer streams.
    pub(crate) stream: Option<bool>,
    /// Functions that the answer may call.
    #[schemars(schema_with = "tools_schema")]
    pub(crate) tools: Option<Vec<Value>>,
    /// `auto`, `none`, `required`, or one of the tools.
    #[schemars(schema_with = "super::tool_choice_schema")]
    pub(crate) tool_choice: Option<Value>,
    /// Whether an answer may call several tools.
    pub(crate) parallel_tool_calls: Option<bool>,
    /// The form of the answer.
    #[schemars(schema_with = "text_schema")]
    pub(crate) text: Option<Value>,
    /// For whom the client asks: those who are named take turns.
    pub(crate) user: Option<String>,
    /// The same, by its newer name.
    pub(crate) safety_identifier: Option<String>,
    /// How much a model thinks, for templates that know levels; `none`: not at all.
    #[schemars(schema_with = "reasoning_schema")]
    pub(crate) reasoning: Option<Value>,
    /// Refused: the server keeps no answers.
    #[schemars(schema_with = "crate::shape::refused")]
    pub(crate) previous_response_id: Option<String>,
    /// Refused: the server keeps no conversations.
    #[schemars(schema_with = "crate::shape::refused")]
    pub(crate) conversation: Option<Value>,
    /// Returned as it is.
    #[schemars(schema_with = "metadata_schema")]
    pub(crate) metadata: Option<Value>,
}

/// What the form of an answer looks like.
fn text_schema(_: &mut SchemaGenerator) -> Schema {
    field(&json!({"format?": {"|": [
        {"type": "text|json_object"}, {"type": "json_schema", "name?": "", "schema": {}},
    ]}}))
}

/// What tools look like.
fn tools_schema(_: &mut SchemaGenerator) -> Schema {
    field(&json!([{"type": "function", "name": "", "description?": "", "parameters?": {}}]))
}

/// What is said of thinking.
fn reasoning_schema(_: &mut SchemaGenerator) -> Schema {
    field(&json!({"effort?": LEVELS, "summary?": ""}))
}

/// What is returned as it is.
fn metadata_schema(_: &mut SchemaGenerator) -> Schema {
    field(&json!({"*": ""}))
}

/// What is answered.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(untagged)]
pub(crate) enum Input {
    Text(String),
    Items(Vec<Value>),
}

impl Request {
    fn ask(&self) -> Result<Ask> {
        let kept = [
            ("previous_response_id", self.previous_response_id.is_some()),
            ("conversation", self.conversation.is_some()),
        ];
        if let Some((field, _)) = kept.iter().find(|(_, given)| *given) {
            let message = "the server keeps no answers: send the conversation as input";
            return Err(ApiError::field(*field, message));
        }
        let mut messages: Vec<Message> =
            self.instructions.iter().map(|text| Message::new("system", text)).collect();
        match &self.input {
            None => return Err(ApiError::field("input", "input is missing")),
            Some(Input::Text(text)) => messages.push(Message::new("user", text)),
            Some(Input::Items(items)) => {
                for (index, item) in items.iter().enumerate() {
                    take(item, index, &mut messages)?;
                }
            }
        }
        only_functions(self.tools.as_deref(), "function")?;
        let effort = self.reasoning.as_ref().map(|reasoning| &reasoning["effort"]);
        let chat = Chat {
            messages,
            tools: self.tools.iter().flatten().map(nested).collect(),
            tool_choice: tool_choice(self.tool_choice.as_ref())?,
            parallel: self.parallel_tool_calls.unwrap_or(true),
            variables: of_level(effort.unwrap_or(&Value::Null), "reasoning.effort")?,
        };
        Ok(Ask {
            model: self.model.clone(),
            prompt: Prompt::Chat(Box::new(chat)),
            knobs: Knobs {
                temperature: self.temperature,
                top_p: self.top_p,
                top_k: self.top_k,
                repetition_penalty: self.repeat_penalty,
                seed: self.seed,
                ..Knobs::default()
            },
            max_tokens: self.max_output_tokens,
            stop: OneOrMany::list(self.stop.clone()),
            choices: 1,
            user: self.safety_identifier.clone().or_else(|| self.user.clone()),
            format: super::format(self.text.as_ref().and_then(|text| text.get("format")))?,
            ..Ask::default()
        })
    }
}

/// A tool in the chat API's shape, which has the function one level lower.
fn nested(tool: &Value) -> Value {
    if tool["function"].is_object() {
        return tool.clone();
    }
    json!({"type": "function", "function": {
        "name": tool["name"], "description": tool["description"], "parameters": tool["parameters"],
    }})
}

/// Adds an item of the input to the conversation.
fn take(item: &Value, index: usize, messages: &mut Vec<Message>) -> Result<()> {
    let text = |key: &str| item[key].as_str().unwrap_or_default().to_owned();
    match item["type"].as_str().unwrap_or("message") {
        "message" => {
            let content = serde_json::from_value::<Content>(item["content"].clone());
            let content = content.map_err(|_| {
                ApiError::field(format!("input[{index}].content"), "a text or parts are expected")
            })?;
            messages.push(Message {
                role: text("role"),
                content: Some(content),
                ..Message::default()
            });
        }
        "function_call" => {
            let function =
                FunctionCall { name: text("name"), arguments: item["arguments"].clone() };
            let call = ToolCall { id: Some(text("call_id")), kind: "function".into(), function };
            match messages.last_mut().filter(|last| last.role == "assistant") {
                Some(last) => last.tool_calls.push(call),
                None => messages.push(Message {
                    role: "assistant".into(),
                    tool_calls: vec![call],
                    ..Message::default()
                }),
            }
        }
        "function_call_output" => {
            let output = match &item["output"] {
                Value::String(output) => output.clone(),
                other => other.to_string(),
            };
            messages.push(Message {
                tool_call_id: Some(text("call_id")),
                ..Message::new("tool", output)
            });
        }
        // What a model thought before is not shown to it again.
        "reasoning" => {}
        other => {
            let message = format!("items of type {other:?} are not known here");
            return Err(ApiError::field(format!("input[{index}]"), message));
        }
    }
    Ok(())
}

/// What an answer looks like.
pub(crate) fn example() -> Value {
    json!({
        "id": "", "object": "response", "created_at": 0, "model": "",
        "status": "completed|incomplete", "error?": {}, "incomplete_details?": {"reason": ""},
        "output": [{
            "type": "reasoning|message|function_call", "id": "", "status": "",
            "role?": "assistant", "summary?": [],
            "content?": [{"type": "", "text": "", "annotations?": [], "logprobs?": []}],
            "call_id?": "", "name?": "", "arguments?": "",
        }],
        "usage": {
            "input_tokens": 0, "input_tokens_details": {"cached_tokens": 0},
            "output_tokens": 0, "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": 0,
        },
        "instructions?": "", "max_output_tokens?": 0, "metadata?": null,
        "parallel_tool_calls": true, "previous_response_id?": "", "temperature?": 0.5,
        "text": null, "tool_choice": null, "tools": [], "top_p?": 0.5, "truncation": "disabled",
    })
}

/// Answers a conversation.
pub(crate) async fn create(
    State(app): State<Arc<App>>,
    Json(request): Json<Request>,
) -> Result<Response> {
    let mut answers = app.answer(request.ask()?).await?;
    let body = Body::new(&request, &answers.resident().id);
    if request.stream.unwrap_or(false) {
        let wording = Events { body, blocks: Blocks::default(), items: Vec::new(), sent: 0 };
        return Ok(stream(&app, Form::Events, answers, wording));
    }
    let choices = answers.collect().await?;
    let blocks = choices.first().map(blocks).unwrap_or_default();
    let end = choices.first().map(|choice| &choice.end);
    let is_cut = end.is_some_and(End::is_cut);
    let cut = |block: &Block| is_cut && block.index + 1 == blocks.len();
    let items: Vec<Value> = blocks.iter().map(|block| body.closed(block, cut(block))).collect();
    Ok(axum::Json(body.response(&items, end)).into_response())
}

/// What a response says of itself at any time.
struct Body {
    id: String,
    created: u64,
    model: String,
    request: Value,
}

impl Body {
    fn new(request: &Request, model: &str) -> Self {
        let tools = request.tools.clone().unwrap_or_default();
        Self {
            id: new_id("resp_"),
            created: now(),
            model: model.to_owned(),
            request: json!({
                "instructions": request.instructions,
                "max_output_tokens": request.max_output_tokens,
                "metadata": request.metadata.clone().unwrap_or_else(|| json!({})),
                "parallel_tool_calls": request.parallel_tool_calls.unwrap_or(true),
                "previous_response_id": null,
                "temperature": request.temperature,
                "text": request.text.clone().unwrap_or_else(|| json!({"format": {"type": "text"}})),
                "tool_choice": request.tool_choice.clone().unwrap_or_else(|| "auto".into()),
                "tools": tools,
                "top_p": request.top_p,
                "truncation": "disabled",
            }),
        }
    }

    /// The response so far; without an end, it goes on.
    fn response(&self, items: &[Value], end: Option<&End>) -> Value {
        let cut = end.is_some_and(End::is_cut);
        let status = match end {
            None => "in_progress",
            Some(_) if cut => "incomplete",
            Some(_) => "completed",
        };
        let mut body = json!({
            "id": self.id,
            "object": "response",
            "created_at": self.created,
            "status": status,
            "error": null,
            "incomplete_details": cut.then(|| json!({"reason": "max_output_tokens"})),
            "model": self.model,
            "output": items,
            "usage": end.map(usage),
        });
        for (key, value) in self.request.as_object().into_iter().flatten() {
            body[key] = value.clone();
        }
        body
    }

    /// A block to which nothing is added any more; `cut`, if the answer's end cut it off.
    fn closed(&self, block: &Block, cut: bool) -> Value {
        self.item(block, if block.is_whole(cut) { "completed" } else { "incomplete" })
    }

    /// An item's id: the response's, and its place.
    fn item_id(&self, block: &Block) -> String {
        let prefix = match block.kind {
            BlockKind::Reasoning => "rs",
            BlockKind::Text => "msg",
            BlockKind::Call { .. } => "fc",
        };
        format!("{prefix}_{}_{}", self.id.trim_start_matches("resp_"), block.index)
    }

    fn item(&self, block: &Block, status: &str) -> Value {
        let id = self.item_id(block);
        let begun = !(status == "in_progress" && block.text.is_empty());
        match &block.kind {
            BlockKind::Reasoning => {
                let part = json!({"type": "reasoning_text", "text": block.text});
                let content = if begun { json!([part]) } else { json!([]) };
                json!({"type": "reasoning", "id": id, "summary": [], "content": content,
                       "status": status})
            }
            BlockKind::Text => {
                let content = if begun { json!([part(&block.text)]) } else { json!([]) };
                json!({"type": "message", "id": id, "status": status, "role": "assistant",
                       "content": content})
            }
            BlockKind::Call { id: call, name } => {
                json!({"type": "function_call", "id": id, "call_id": call, "name": name,
                       "arguments": block.text, "status": status})
            }
        }
    }
}

fn part(text: &str) -> Value {
    json!({"type": "output_text", "text": text, "annotations": [], "logprobs": []})
}

fn usage(end: &End) -> Value {
    let usage = &end.usage;
    json!({
        "input_tokens": usage.prompt,
        "input_tokens_details": {"cached_tokens": usage.cached},
        "output_tokens": usage.completion,
        "output_tokens_details": {"reasoning_tokens": end.thought},
        "total_tokens": usage.prompt + usage.completion,
    })
}

/// Words an answer as events.
struct Events {
    body: Body,
    blocks: Blocks,
    items: Vec<Value>,
    /// Events so far.
    sent: u64,
}

impl Events {
    fn event(&mut self, kind: &'static str, mut data: Value) -> Frame {
        data["type"] = kind.into();
        data["sequence_number"] = self.sent.into();
        self.sent += 1;
        Frame::named(kind, &data)
    }

    fn changed(&mut self, change: Change) -> Vec<Frame> {
        match change {
            Change::Open(block) => {
                let item = self.body.item(&block, "in_progress");
                let data = json!({"output_index": block.index, "item": item});
                let mut frames = vec![self.event("response.output_item.added", data)];
                if block.kind == BlockKind::Text {
                    let data = self.at(&block, json!({"content_index": 0, "part": part("")}));
                    frames.push(self.event("response.content_part.added", data));
                }
                frames
            }
            Change::More(block) => {
                let text = &block.text;
                let (kind, data) = match block.kind {
                    BlockKind::Text => {
                        let data = json!({"content_index": 0, "delta": text, "logprobs": []});
                        ("response.output_text.delta", data)
                    }
                    BlockKind::Reasoning => {
                        let data = json!({"content_index": 0, "delta": text});
                        ("response.reasoning_text.delta", data)
                    }
                    BlockKind::Call { .. } => {
                        ("response.function_call_arguments.delta", json!({"delta": text}))
                    }
                };
                let data = self.at(&block, data);
                vec![self.event(kind, data)]
            }
            Change::Close(block) => self.closed(&block),
        }
    }

    fn closed(&mut self, block: &Block) -> Vec<Frame> {
        let mut frames = Vec::new();
        let text = &block.text;
        match &block.kind {
            BlockKind::Text => {
                let data = json!({"content_index": 0, "text": text, "logprobs": []});
                let data = self.at(block, data);
                frames.push(self.event("response.output_text.done", data));
                let data = self.at(block, json!({"content_index": 0, "part": part(text)}));
                frames.push(self.event("response.content_part.done", data));
            }
            BlockKind::Reasoning => {
                let data = self.at(block, json!({"content_index": 0, "text": text}));
                frames.push(self.event("response.reasoning_text.done", data));
            }
            BlockKind::Call { name, .. } => {
                let data = self.at(block, json!({"arguments": text, "name": name}));
                frames.push(self.event("response.function_call_arguments.done", data));
            }
        }
        let item = self.body.closed(block, self.blocks.is_cut());
        self.items.push(item.clone());
        let data = json!({"output_index": block.index, "item": item});
        frames.push(self.event("response.output_item.done", data));
        frames
    }

    /// Data of an event about a block.
    fn at(&self, block: &Block, mut data: Value) -> Value {
        data["item_id"] = self.body.item_id(block).into();
        data["output_index"] = block.index.into();
        data
    }
}

impl Wording for Events {
    fn begin(&mut self) -> Vec<Frame> {
        let response = json!({"response": self.body.response(&[], None)});
        let begun = self.event("response.created", response.clone());
        vec![begun, self.event("response.in_progress", response)]
    }

    fn happened(&mut self, happening: Happening) -> Vec<Frame> {
        let changes = self.blocks.happened(happening);
        changes.into_iter().flat_map(|change| self.changed(change)).collect()
    }

    fn end(&mut self) -> Vec<Frame> {
        let response = self.body.response(&self.items, self.blocks.end());
        let cut = response["status"] == "incomplete";
        let kind = if cut { "response.incomplete" } else { "response.completed" };
        vec![self.event(kind, json!({"response": response}))]
    }

    fn failed(&mut self, error: &ApiError) -> Vec<Frame> {
        let mut response = self.body.response(&self.items, None);
        let code = error.code.unwrap_or("server_error");
        response["status"] = "failed".into();
        response["error"] = json!({"code": code, "message": error.message});
        let failed = self.event("response.failed", json!({"response": response}));
        vec![failed, Frame::data(&Dialect::OpenAi.error(error))]
    }
}
