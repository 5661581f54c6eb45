//! `POST /v1/chat/completions`

use super::{Head, OneOrMany, chat_logprobs, closing, finish_reason, sampled, timings, usage};
use crate::answers::{Delta, End, Happening, TokenLogprobs, new_id};
use crate::app::App;
use crate::ask::{Ask, Chat, Prompt, ToolChoice, hosted, only_functions};
use crate::body::Json;
use crate::dialect::Dialect;
use crate::error::{ApiError, Result};
use crate::reply::{Form, Frame, Wording, stream};
use crate::residents::now;
use crate::thinking::of_level;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use serde_json::{Map, Value, json};
use std::sync::Arc;
use tangor_engine::text::{Message, Tokenizer};

sampled! {
    /// A conversation to answer.
    pub(crate) struct Request {
        /// The conversation.
        #[schemars(schema_with = "super::messages_schema")]
        pub(crate) messages: Vec<Message>,
        /// Most tokens of the answer.
        pub(crate) max_tokens: Option<usize>,
        /// The same, by its newer name.
        pub(crate) max_completion_tokens: Option<usize>,
        /// Whether log-probabilities are wanted.
        pub(crate) logprobs: Option<bool>,
        /// Of how many most likely tokens per token.
        pub(crate) top_logprobs: Option<usize>,
        /// `text`, `json_object`, or `json_schema` with a schema.
        #[schemars(schema_with = "super::format_schema")]
        pub(crate) response_format: Option<Value>,
        /// Functions that the answer may call.
        #[schemars(schema_with = "super::tools_schema")]
        pub(crate) tools: Option<Vec<Value>>,
        /// `auto`, `none`, `required`, or one of the tools.
        #[schemars(schema_with = "super::tool_choice_schema")]
        pub(crate) tool_choice: Option<Value>,
        /// Whether an answer may call several tools.
        pub(crate) parallel_tool_calls: Option<bool>,
        /// More variables for the model's template.
        pub(crate) chat_template_kwargs: Option<Map<String, Value>>,
        /// Whether a model that thinks does so; for templates that can tell it.
        pub(crate) enable_thinking: Option<bool>,
        /// How much it thinks, for templates that know levels; `none`: not at all.
        #[schemars(schema_with = "crate::thinking::level_schema")]
        pub(crate) reasoning_effort: Option<Value>,
        /// Refused: the server searches nothing.
        #[schemars(schema_with = "crate::shape::refused")]
        pub(crate) web_search_options: Option<Value>,
    }
}

impl Request {
    fn ask(self) -> Result<Ask> {
        let knobs = self.knobs()?;
        let logprobs = match (self.logprobs.unwrap_or(false), self.top_logprobs) {
            (true, top) => Some(top.unwrap_or(0)),
            (false, None | Some(0)) => None,
            (false, Some(_)) => {
                let message = "top_logprobs needs logprobs to be true";
                return Err(ApiError::field("top_logprobs", message));
            }
        };
        if self.web_search_options.is_some() {
            return Err(hosted("web_search_options", "web_search"));
        }
        only_functions(self.tools.as_deref(), "function")?;
        let effort = self.reasoning_effort.unwrap_or_default();
        let mut variables = of_level(&effort, "reasoning_effort")?;
        variables.extend(self.chat_template_kwargs.unwrap_or_default());
        if let Some(thinking) = self.enable_thinking {
            variables.insert("enable_thinking".into(), thinking.into());
        }
        let chat = Chat {
            messages: self.messages,
            tools: self.tools.unwrap_or_default(),
            tool_choice: tool_choice(self.tool_choice.as_ref())?,
            parallel: self.parallel_tool_calls.unwrap_or(true),
            variables,
        };
        Ok(Ask {
            model: self.model,
            prompt: Prompt::Chat(Box::new(chat)),
            knobs,
            max_tokens: self.max_completion_tokens.or(self.max_tokens),
            stop: OneOrMany::list(self.stop),
            choices: self.n.unwrap_or(1),
            logprobs,
            score_prompt: false,
            format: super::format(self.response_format.as_ref())?,
            user: self.safety_identifier.or(self.user),
        })
    }
}

/// Whether tools are called.
///
/// # Errors
/// If it says none of what is known.
pub(crate) fn tool_choice(given: Option<&Value>) -> Result<ToolChoice> {
    match given {
        None | Some(Value::Null) => Ok(ToolChoice::Auto),
        Some(Value::String(word)) => match word.as_str() {
            "auto" => Ok(ToolChoice::Auto),
            "none" => Ok(ToolChoice::Never),
            "required" | "any" => Ok(ToolChoice::Required),
            _ => Err(unknown_choice()),
        },
        Some(object) => {
            let name = object["function"]["name"].as_str().or_else(|| object["name"].as_str());
            name.map(|name| ToolChoice::Named(name.to_owned())).ok_or_else(unknown_choice)
        }
    }
}

fn unknown_choice() -> ApiError {
    let message = "tool_choice must be auto, none, required, or name a function";
    ApiError::field("tool_choice", message)
}

/// What an answer looks like.
pub(crate) fn example() -> Value {
    let function = json!({"name": "", "arguments": ""});
    let token =
        |more: Value| json!({"token": "", "logprob": 0.5, "bytes": [0], "top_logprobs?": more});
    super::envelope_example(
        "chat.completion",
        json!({
            "index": 0,
            "message": {
                "role": "assistant", "content?": "", "refusal?": "", "reasoning_content?": "",
                "tool_calls?": [{"id": "", "type": "function", "function": function}],
            },
            "logprobs?": {"content": [token(json!([token(Value::Null)]))], "refusal?": ""},
            "finish_reason": "stop|length|tool_calls",
        }),
    )
}

/// Answers a conversation.
pub(crate) async fn create(
    State(app): State<Arc<App>>,
    Json(request): Json<Request>,
) -> Result<Response> {
    let streams = request.stream.unwrap_or(false);
    let with_usage = request.stream_options.and_then(|options| options.include_usage);
    let mut answers = app.answer(request.ask()?).await?;
    let resident = Arc::clone(answers.resident());
    let head = Head { id: new_id("chatcmpl-"), created: now(), model: resident.id.clone() };
    let tokenizer = Arc::clone(resident.tokenizer()?);
    if streams {
        let choices = answers.choices();
        let wording = Chunks {
            head,
            tokenizer,
            with_usage: with_usage.unwrap_or(false),
            ends: vec![None; choices],
        };
        return Ok(stream(&app, Form::Events, answers, wording));
    }
    let choices = answers.collect().await?;
    let ends: Vec<End> = choices.iter().map(|choice| choice.end.clone()).collect();
    let choice = |(index, choice): (usize, &crate::answers::Choice)| {
        let logprobs =
            (!choice.logprobs.is_empty()).then(|| chat_logprobs(&tokenizer, &choice.logprobs));
        json!({
            "index": index,
            "message": super::message(choice),
            "logprobs": logprobs,
            "finish_reason": finish_reason(&choice.end.reason),
        })
    };
    let worded: Vec<Value> = choices.iter().enumerate().map(choice).collect();
    let mut body = head.envelope("chat.completion", &worded);
    body["usage"] = usage(&ends, ends.len());
    body["timings"] = ends.first().map(timings).into();
    Ok(axum::Json(body).into_response())
}

/// Words an answer as chunks.
struct Chunks {
    head: Head,
    tokenizer: Arc<Tokenizer>,
    with_usage: bool,
    ends: Vec<Option<End>>,
}

impl Chunks {
    fn chunk(&self, choices: &[Value]) -> Value {
        let mut chunk = self.head.envelope("chat.completion.chunk", choices);
        if self.with_usage {
            chunk["usage"] = Value::Null;
        }
        chunk
    }

    fn delta(&self, choice: usize, delta: Value, logprobs: &[TokenLogprobs]) -> Frame {
        let logprobs = (!logprobs.is_empty()).then(|| chat_logprobs(&self.tokenizer, logprobs));
        let choice = json!({
            "index": choice, "delta": delta, "logprobs": logprobs, "finish_reason": null,
        });
        Frame::data(&self.chunk(&[choice]))
    }
}

impl Wording for Chunks {
    fn begin(&mut self) -> Vec<Frame> {
        let first = |choice| self.delta(choice, json!({"role": "assistant", "content": ""}), &[]);
        (0..self.ends.len()).map(first).collect()
    }

    fn happened(&mut self, happening: Happening) -> Vec<Frame> {
        match happening {
            Happening::Scored { .. } => Vec::new(),
            Happening::Delta { choice, delta, logprobs } => {
                vec![self.delta(choice, worded(delta), &logprobs)]
            }
            Happening::End { choice, end } => {
                let last = json!({
                    "index": choice,
                    "delta": {},
                    "logprobs": null,
                    "finish_reason": finish_reason(&end.reason),
                });
                let mut chunk = self.chunk(&[last]);
                chunk["timings"] = timings(&end);
                self.ends[choice] = Some(end);
                vec![Frame::data(&chunk)]
            }
        }
    }

    fn end(&mut self) -> Vec<Frame> {
        closing(self.with_usage.then(|| {
            let ends: Vec<End> = self.ends.iter().flatten().cloned().collect();
            let mut chunk = self.chunk(&[]);
            chunk["usage"] = usage(&ends, ends.len());
            chunk
        }))
    }

    fn failed(&mut self, error: &ApiError) -> Vec<Frame> {
        vec![Frame::data(&Dialect::OpenAi.error(error))]
    }
}

fn worded(delta: Delta) -> Value {
    match delta {
        Delta::Text(text) => json!({"content": text}),
        Delta::Reasoning(text) => json!({"reasoning_content": text}),
        Delta::Call { index, id, name } => {
            let function = json!({"name": name, "arguments": ""});
            let call = json!({"index": index, "id": id, "type": "function", "function": function});
            json!({"tool_calls": [call]})
        }
        Delta::Arguments { index, text } => {
            json!({"tool_calls": [{"index": index, "function": {"arguments": text}}]})
        }
    }
}
