//! `POST /api/chat`

use super::{Tuning, format, lets_go, merge, timestamp_now, totals, totals_example};
use crate::answers::{Choice, Happening};
use crate::app::App;
use crate::ask::{Ask, Chat, Prompt};
use crate::blocks::{Block, BlockKind, Blocks, Change, sound_blocks};
use crate::body::Json;
use crate::dialect::Dialect;
use crate::error::{ApiError, Result};
use crate::openai::or_default;
use crate::reply::{Form, Frame, Wording, stream};
use crate::thinking::{of_level, switch};
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tangor_engine::text::{Content, FunctionCall, Message, ToolCall};

/// A conversation to answer. Without messages, the model is loaded, or let go.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(default)]
pub(crate) struct Request {
    /// Name of the model.
    pub(crate) model: Option<String>,
    /// The conversation.
    #[serde(deserialize_with = "or_default")]
    pub(crate) messages: Vec<Said>,
    /// Whether the answer streams, which it does unless this is false.
    pub(crate) stream: Option<bool>,
    /// `json`, or a JSON schema.
    #[schemars(schema_with = "super::format_schema")]
    pub(crate) format: Option<Value>,
    /// How tokens are chosen.
    #[serde(deserialize_with = "or_default")]
    pub(crate) options: Tuning,
    /// Functions that the answer may call.
    #[schemars(schema_with = "crate::openai::tools_schema")]
    pub(crate) tools: Option<Vec<Value>>,
    /// Whether a model that thinks does so, or how much.
    #[schemars(schema_with = "super::think_schema")]
    pub(crate) think: Option<Value>,
    /// 0 lets the model go afterwards.
    pub(crate) keep_alive: Option<Value>,
}

/// A message.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(default)]
pub(crate) struct Said {
    pub(crate) role: String,
    pub(crate) content: Option<String>,
    pub(crate) thinking: Option<String>,
    /// Refused: models here read text.
    pub(crate) images: Option<Vec<String>>,
    pub(crate) tool_calls: Option<Vec<Value>>,
    pub(crate) tool_name: Option<String>,
}

impl Said {
    fn message(self, index: usize) -> Result<Message> {
        if self.images.is_some_and(|images| !images.is_empty()) {
            let field = format!("messages[{index}].images");
            return Err(ApiError::field(field, "the models that run here read no images"));
        }
        let call = |call: Value| ToolCall {
            id: call["id"].as_str().map(str::to_owned),
            kind: "function".into(),
            function: FunctionCall {
                name: call["function"]["name"].as_str().unwrap_or_default().to_owned(),
                arguments: call["function"]["arguments"].clone(),
            },
        };
        Ok(Message {
            role: self.role,
            content: Some(Content::Text(self.content.unwrap_or_default())),
            reasoning_content: self.thinking,
            tool_calls: self.tool_calls.into_iter().flatten().map(call).collect(),
            name: self.tool_name,
            ..Message::default()
        })
    }
}

/// Whether thinking is on, or how much, as templates know it.
pub(super) fn thinking(think: Option<&Value>) -> Result<Map<String, Value>> {
    match think {
        None => Ok(Map::new()),
        Some(Value::Bool(on)) => Ok(switch(*on)),
        Some(level) => of_level(level, "think"),
    }
}

/// What an answer looks like.
pub(crate) fn example() -> Value {
    let call = json!({"id": "", "function": {"name": "", "arguments": null}});
    let message =
        json!({"role": "assistant", "content": "", "thinking?": "", "tool_calls?": [call]});
    merge(totals_example(), json!({"message": message}))
}

/// Answers a conversation.
pub(crate) async fn create(
    State(app): State<Arc<App>>,
    Json(request): Json<Request>,
) -> Result<Response> {
    let begin = Instant::now();
    let goes = lets_go(request.keep_alive.as_ref());
    let lease = app.model(request.model.as_deref()).await?;
    let (loading, name) = (begin.elapsed(), lease.resident().id.clone());
    let message = json!({"role": "assistant", "content": ""});
    if request.messages.is_empty() {
        return Ok(loaded(&app, &name, goes, json!({"message": message})));
    }
    let streams = request.stream.unwrap_or(true);
    let messages = request.messages.into_iter().enumerate();
    let chat = Chat {
        messages: messages.map(|(index, said)| said.message(index)).collect::<Result<_>>()?,
        tools: request.tools.unwrap_or_default(),
        parallel: true,
        variables: thinking(request.think.as_ref())?,
        ..Chat::default()
    };
    let ask = Ask {
        model: Some(name.clone()),
        prompt: Prompt::Chat(Box::new(chat)),
        knobs: request.options.knobs(),
        max_tokens: request.options.max_tokens(),
        stop: crate::openai::OneOrMany::list(request.options.stop.clone()),
        choices: 1,
        format: format(request.format.as_ref())?,
        ..Ask::default()
    };
    let mut answers = app.answer_with(lease, ask).await?;
    if goes {
        app.residents.leave(&name);
    }
    if streams {
        let wording = Lines { name, begin, loading, blocks: Blocks::default() };
        return Ok(stream(&app, Form::Lines, answers, wording));
    }
    let choices = answers.collect().await?;
    let Some(Choice { end, .. }) = choices.first() else {
        return Err(ApiError::new(crate::error::Kind::Internal, "no answer: this is a defect"));
    };
    let message = choices.first().map(whole).unwrap_or(message);
    let body = merge(line(&name, message), totals(begin, loading, end));
    Ok(axum::Json(body).into_response())
}

/// The answer to a request that only loads a model, or lets it go.
pub(super) fn loaded(app: &App, name: &str, goes: bool, own: Value) -> Response {
    if goes {
        app.residents.leave(name);
    }
    let reason = if goes { "unload" } else { "load" };
    let body = json!({
        "model": name, "created_at": timestamp_now(), "done": true, "done_reason": reason,
    });
    axum::Json(merge(body, own)).into_response()
}

/// A message with everything that an answer said.
fn whole(choice: &Choice) -> Value {
    let mut message = json!({"role": "assistant", "content": ""});
    let (mut text, mut calls) = (String::new(), Vec::new());
    for block in sound_blocks(choice) {
        match block.kind {
            BlockKind::Text => text.push_str(&block.text),
            BlockKind::Reasoning => message["thinking"] = block.text.into(),
            BlockKind::Call { .. } => calls.extend(call(&block)),
        }
    }
    message["content"] = text.into();
    if !calls.is_empty() {
        message["tool_calls"] = calls.into();
    }
    message
}

/// A call that is whole.
fn call(block: &Block) -> Option<Value> {
    let BlockKind::Call { id, name } = &block.kind else { return None };
    Some(json!({"id": id, "function": {"name": name, "arguments": block.arguments()?}}))
}

fn line(name: &str, message: Value) -> Value {
    json!({"model": name, "created_at": timestamp_now(), "message": message, "done": false})
}

/// Words an answer as lines.
struct Lines {
    name: String,
    begin: Instant,
    loading: Duration,
    blocks: Blocks,
}

impl Lines {
    fn changed(&self, change: Change) -> Option<Frame> {
        let message = match change {
            Change::More(Block { kind: BlockKind::Text, text, .. }) => {
                json!({"role": "assistant", "content": text})
            }
            Change::More(Block { kind: BlockKind::Reasoning, text, .. }) => {
                json!({"role": "assistant", "content": "", "thinking": text})
            }
            Change::Close(block) if matches!(block.kind, BlockKind::Call { .. }) => {
                let block = block.sound(self.blocks.is_cut())?;
                match call(&block) {
                    Some(call) => json!({"role": "assistant", "content": "", "tool_calls": [call]}),
                    None => json!({"role": "assistant", "content": block.text}),
                }
            }
            _ => return None,
        };
        Some(Frame::data(&line(&self.name, message)))
    }
}

impl Wording for Lines {
    fn happened(&mut self, happening: Happening) -> Vec<Frame> {
        let changes = self.blocks.happened(happening);
        changes.into_iter().filter_map(|change| self.changed(change)).collect()
    }

    fn end(&mut self) -> Vec<Frame> {
        let last = line(&self.name, json!({"role": "assistant", "content": ""}));
        let end = self.blocks.end().into_iter();
        end.map(|end| Frame::data(&merge(last.clone(), totals(self.begin, self.loading, end))))
            .collect()
    }

    fn failed(&mut self, error: &ApiError) -> Vec<Frame> {
        vec![Frame::data(&Dialect::Ollama.error(error))]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::answers::{Delta, End, Reason};

    /// Lines of an answer that is one call with these arguments.
    fn lines(arguments: &str, reason: Reason) -> Vec<String> {
        let (begin, loading) = (Instant::now(), Duration::ZERO);
        let mut lines = Lines { name: "m".into(), begin, loading, blocks: Blocks::default() };
        let delta = |delta| Happening::Delta { choice: 0, delta, logprobs: Vec::new() };
        let (usage, timings) = Default::default();
        let end = End { reason, usage, thought: 0, timings };
        let all = [
            delta(Delta::Call { index: 0, id: "1".into(), name: "f".into() }),
            delta(Delta::Arguments { index: 0, text: arguments.into() }),
            Happening::End { choice: 0, end },
        ];
        let frames = all.into_iter().flat_map(|happening| lines.happened(happening));
        frames.map(|frame| format!("{frame:?}")).collect()
    }

    #[test]
    fn a_call_that_is_cut_is_left_out_and_a_broken_one_is_text() {
        let whole = lines("{\"a\": 1}", Reason::ToolCalls).concat();
        assert!(whole.contains("tool_calls"), "{whole}");
        let broken = lines("{\"a\": 1", Reason::ToolCalls).concat();
        assert!(!broken.contains("tool_calls") && broken.contains("arguments"), "{broken}");
        assert!(lines("{\"a\": 1", Reason::Length).is_empty());
    }
}
