//! OpenAI's interface.

pub(crate) mod chat;
pub(crate) mod completions;
pub(crate) mod embeddings;
pub(crate) mod models;
pub(crate) mod responses;

use crate::answers::{Choice, End, Reason, TokenLogprobs};
use crate::ask::Format;
use crate::error::{ApiError, Result};
use crate::reply::Frame;
use crate::shape::field;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use tangor_engine::text::Tokenizer;

/// One or several.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(untagged)]
pub(crate) enum OneOrMany {
    One(String),
    Many(Vec<String>),
}

impl OneOrMany {
    /// All of them.
    pub(crate) fn list(this: Option<Self>) -> Vec<String> {
        match this {
            None => Vec::new(),
            Some(Self::One(one)) => vec![one],
            Some(Self::Many(all)) => all,
        }
    }
}

/// Options of a stream.
#[derive(Clone, Copy, Debug, Default, Deserialize, JsonSchema)]
pub(crate) struct StreamOptions {
    /// Whether the last chunk tells what the answer took.
    #[serde(default)]
    pub(crate) include_usage: Option<bool>,
}

/// A request with the fields that say how tokens are chosen, beside its own.
macro_rules! sampled {
    ($(#[$doc:meta])* pub(crate) struct $name:ident { $($own:tt)* }) => {
        $(#[$doc])*
        #[derive(Clone, Debug, Default, serde::Deserialize, schemars::JsonSchema)]
        #[serde(default)]
        pub(crate) struct $name {
            /// Name of the model; without it, the one that was used last.
            pub(crate) model: Option<String>,
            /// 0 always takes the likeliest token; 1 samples as the model predicts.
            #[schemars(range(min = 0, max = 100))]
            pub(crate) temperature: Option<f32>,
            /// Only the likeliest tokens that together have this probability.
            #[schemars(range(min = 0, max = 1))]
            pub(crate) top_p: Option<f32>,
            /// Only so many of the likeliest tokens.
            pub(crate) top_k: Option<i64>,
            /// Only tokens with at least this share of the likeliest one's probability.
            #[schemars(range(min = 0, max = 1))]
            pub(crate) min_p: Option<f32>,
            /// Divides the score of tokens that occurred already.
            #[schemars(range(min = 0.01, max = 100))]
            pub(crate) repetition_penalty: Option<f32>,
            /// The same, as llama.cpp calls it.
            #[schemars(range(min = 0.01, max = 100))]
            pub(crate) repeat_penalty: Option<f32>,
            /// Subtracted from the score of tokens that occurred in the answer.
            #[schemars(range(min = -100, max = 100))]
            pub(crate) presence_penalty: Option<f32>,
            /// Subtracted from a token's score for each time it occurred in the answer.
            #[schemars(range(min = -100, max = 100))]
            pub(crate) frequency_penalty: Option<f32>,
            /// The same seed gives the same answer; without one it is 0.
            pub(crate) seed: Option<i64>,
            /// Added to the scores of tokens, by token id.
            #[schemars(schema_with = "crate::openai::biases_schema")]
            pub(crate) logit_bias: Option<std::collections::BTreeMap<String, f32>>,
            /// The answer ends before the first of these texts.
            pub(crate) stop: Option<$crate::openai::OneOrMany>,
            /// Answers per prompt.
            #[schemars(range(min = 1))]
            pub(crate) n: Option<usize>,
            /// Whether the answer streams.
            pub(crate) stream: Option<bool>,
            /// How it streams.
            pub(crate) stream_options: Option<$crate::openai::StreamOptions>,
            /// For whom the client asks: those who are named take turns.
            pub(crate) user: Option<String>,
            /// The same, by its newer name.
            pub(crate) safety_identifier: Option<String>,
            /// Goes on after end-of-text tokens: for benchmarks.
            pub(crate) ignore_eos: Option<bool>,
            $($own)*
        }

        impl $name {
            /// How tokens are chosen.
            fn knobs(&self) -> $crate::error::Result<$crate::ask::Knobs> {
                Ok($crate::ask::Knobs {
                    temperature: self.temperature,
                    top_p: self.top_p,
                    top_k: self.top_k,
                    min_p: self.min_p,
                    repetition_penalty: self.repetition_penalty.or(self.repeat_penalty),
                    presence_penalty: self.presence_penalty,
                    frequency_penalty: self.frequency_penalty,
                    seed: self.seed,
                    logit_bias: $crate::openai::biases(self.logit_bias.as_ref())?,
                    ignore_eos: self.ignore_eos.unwrap_or(false),
                })
            }
        }
    };
}
pub(crate) use sampled;

/// What biases look like.
fn biases_schema(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": ["object", "null"],
        "patternProperties": {"^[0-9]{1,6}$": {"type": "number", "minimum": -100, "maximum": 100}},
        "additionalProperties": false,
    })
}

/// What the form of an answer looks like.
pub(crate) fn format_schema(_: &mut SchemaGenerator) -> Schema {
    let schema = json!({"name?": "", "schema": {}});
    field(&json!({"|": [
        {"type": "text|json_object"},
        {"type": "json_schema", "json_schema": schema},
        {"type": "grammar", "grammar": ""},
    ]}))
}

/// What tools look like.
pub(crate) fn tools_schema(_: &mut SchemaGenerator) -> Schema {
    let function = json!({"name": "", "description?": "", "parameters?": {}});
    field(&json!([{"type": "function", "function": function}]))
}

/// What a choice of tools looks like.
pub(crate) fn tool_choice_schema(_: &mut SchemaGenerator) -> Schema {
    let named = json!({"type": "function", "function": {"name": ""}});
    field(&json!({"|": ["auto|none|required", named]}))
}

/// What a conversation looks like.
pub(crate) fn messages_schema(_: &mut SchemaGenerator) -> Schema {
    let call = json!({"id?": "", "type?": "function", "function": {"name": "", "arguments": null}});
    let mut schema = field(&json!([{
        "role": "system|developer|user|assistant|tool",
        "content?": {"|": ["", [{"type": "text", "text": ""}]]},
        "reasoning_content?": "", "name?": "", "tool_calls?": [call], "tool_call_id?": "",
    }]));
    schema.insert("minItems".into(), 1.into());
    schema
}

/// Biases by token id.
///
/// # Errors
/// If a key is no token id.
fn biases(given: Option<&BTreeMap<String, f32>>) -> Result<Vec<(u32, f32)>> {
    let entry = |(key, bias): (&String, &f32)| {
        let id = key.trim().parse().map_err(|_| {
            ApiError::field(
                "logit_bias",
                format!("logit_bias has the key {key:?}: a token id is expected"),
            )
        })?;
        Ok((id, *bias))
    };
    given.into_iter().flatten().map(entry).collect()
}

/// The form that `response_format` (or its like in other dialects) asks for.
///
/// # Errors
/// If it is of no known type, or lacks its schema.
pub(crate) fn format(given: Option<&Value>) -> Result<Format> {
    let Some(given) = given.filter(|given| !given.is_null()) else { return Ok(Format::Text) };
    let bad = |message: &str| Err(ApiError::field("response_format", message));
    match given["type"].as_str() {
        Some("text") => Ok(Format::Text),
        Some("json_object") => Ok(match &given["schema"] {
            Value::Null => Format::Json,
            schema => Format::Schema(schema.clone()),
        }),
        Some("json_schema") => {
            // The Responses API has the schema one level higher.
            let inner = &given["json_schema"]["schema"];
            let schema = if inner.is_null() { &given["schema"] } else { inner };
            match schema {
                Value::Object(_) | Value::Bool(_) => Ok(Format::Schema(schema.clone())),
                _ => bad("response_format has no json_schema.schema"),
            }
        }
        Some("grammar") => match given["grammar"].as_str() {
            Some(text) => Ok(Format::Grammar(text.to_owned())),
            None => bad("response_format has no grammar"),
        },
        _ => bad("response_format.type must be text, json_object, json_schema or grammar"),
    }
}

/// What OpenAI calls the end of an answer.
pub(crate) fn finish_reason(reason: &Reason) -> &'static str {
    match reason {
        Reason::Stop | Reason::StopText(_) => "stop",
        Reason::Length => "length",
        Reason::ToolCalls => "tool_calls",
    }
}

/// Sums of what all choices took. Choices share their prompt, which counts once.
pub(crate) fn usage(ends: &[End], per_prompt: usize) -> Value {
    let per_prompt = per_prompt.max(1);
    let firsts = || ends.iter().step_by(per_prompt).map(|end| end.usage);
    let prompt: usize = firsts().map(|usage| usage.prompt).sum();
    let cached: usize = firsts().map(|usage| usage.cached).sum();
    let completion: usize = ends.iter().map(|end| end.usage.completion).sum();
    let thought: usize = ends.iter().map(|end| end.thought).sum();
    let first = ends.first();
    json!({
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": cached},
        "completion_tokens_details": {"reasoning_tokens": thought},
        // What lemonade's benchmarks read.
        "prefill_duration_ttft": first.map(|end| end.timings.ttft.as_secs_f64()),
        "decoding_speed_tps": first.and_then(|end| end.timings.decode_tps(&end.usage)),
    })
}

/// What [`usage`] looks like.
pub(crate) fn usage_example() -> Value {
    json!({
        "prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0,
        "prompt_tokens_details": {"cached_tokens": 0},
        "completion_tokens_details?": {"reasoning_tokens": 0},
        "prefill_duration_ttft?": 0.5, "decoding_speed_tps?": 0.5,
    })
}

/// What an object of an answer looks like.
pub(crate) fn envelope_example(object: &str, choice: Value) -> Value {
    json!({
        "id": "", "object": object, "created": 0, "model": "", "system_fingerprint": "",
        "choices": [choice], "usage": usage_example(), "timings?": timings_example(),
    })
}

/// What [`timings`] look like.
fn timings_example() -> Value {
    json!({
        "cache_n": 0, "prompt_n": 0, "prompt_ms": 0.5, "prompt_per_second?": 0.5,
        "predicted_n": 0, "predicted_ms": 0.5, "predicted_per_second?": 0.5,
        "queue_ms": 0.5, "ttft_ms": 0.5, "draft_n": 0, "draft_n_accepted": 0,
    })
}

/// Where the time went, under llama.cpp's names.
pub(crate) fn timings(end: &End) -> Value {
    let ms = |duration: std::time::Duration| duration.as_secs_f64() * 1e3;
    let (usage, times) = (&end.usage, &end.timings);
    let read = usage.prompt.saturating_sub(usage.cached);
    let prompt_ms = ms(times.ttft.saturating_sub(times.queue));
    let rate = |count: usize, ms: f64| (ms > 0.0).then(|| count as f64 * 1e3 / ms);
    let predicted_ms = ms(times.decode);
    json!({
        "cache_n": usage.cached,
        "prompt_n": read,
        "prompt_ms": prompt_ms,
        "prompt_per_second": rate(read, prompt_ms),
        "predicted_n": usage.completion,
        "predicted_ms": predicted_ms,
        "predicted_per_second": times.decode_tps(usage),
        "queue_ms": ms(times.queue),
        "ttft_ms": ms(times.ttft),
        "draft_n": usage.drafted,
        "draft_n_accepted": usage.accepted,
    })
}

/// A token's text; bytes that are no UTF-8 become U+FFFD.
pub(crate) fn token_text(tokenizer: &Tokenizer, id: u32) -> String {
    let bytes = tokenizer.token_bytes(id).unwrap_or_default();
    String::from_utf8_lossy(bytes).into_owned()
}

/// Log-probabilities in the chat API's shape.
pub(crate) fn chat_logprobs(tokenizer: &Tokenizer, tokens: &[TokenLogprobs]) -> Value {
    let entry = |id: u32, logprob: f32| {
        let bytes = tokenizer.token_bytes(id).unwrap_or_default();
        json!({"token": token_text(tokenizer, id), "logprob": finite(logprob), "bytes": bytes})
    };
    let of_token = |token: &TokenLogprobs| {
        let mut value = entry(token.id, token.logprobs.chosen);
        let top = token.logprobs.top.iter().map(|(id, logprob)| entry(*id, *logprob));
        value["top_logprobs"] = top.collect();
        value
    };
    json!({"content": tokens.iter().map(of_token).collect::<Vec<_>>(), "refusal": null})
}

/// JSON has no infinities: OpenAI writes this for a probability of 0.
pub(crate) fn finite(logprob: f32) -> f32 {
    if logprob.is_finite() { logprob } else { -9999.0 }
}

/// A message with everything that an answer said.
pub(crate) fn message(choice: &Choice) -> Value {
    let calls: Vec<Value> = choice
        .calls
        .iter()
        .map(|call| {
            let function = json!({"name": call.name, "arguments": call.arguments});
            json!({"id": call.id, "type": "function", "function": function})
        })
        .collect();
    let silent = choice.text.is_empty() && !calls.is_empty();
    let mut message = Map::new();
    message.insert("role".into(), "assistant".into());
    message.insert("content".into(), if silent { Value::Null } else { choice.text.clone().into() });
    message.insert("refusal".into(), Value::Null);
    if !choice.reasoning.is_empty() {
        message.insert("reasoning_content".into(), choice.reasoning.clone().into());
    }
    if !calls.is_empty() {
        message.insert("tool_calls".into(), calls.into());
    }
    message.into()
}

/// A field that clients send as `null`, too.
pub(crate) fn or_default<'de, D, T>(value: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    Ok(Option::deserialize(value)?.unwrap_or_default())
}

/// The parameters that a stream and its request share.
#[derive(Clone, Debug)]
pub(crate) struct Head {
    pub(crate) id: String,
    pub(crate) created: u64,
    pub(crate) model: String,
}

impl Head {
    /// What every object of an answer says of it.
    pub(crate) fn envelope(&self, object: &str, choices: &[Value]) -> Value {
        json!({
            "id": self.id,
            "object": object,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": fingerprint(),
            "choices": choices,
        })
    }
}

/// What a stream ends with, after a chunk with its usage where that is wanted.
pub(crate) fn closing(usage: Option<Value>) -> Vec<Frame> {
    usage.iter().map(Frame::data).chain([Frame::done()]).collect()
}

/// Names the build, so that answers can be told to come from the same one.
fn fingerprint() -> String {
    format!("tangor-{}", env!("CARGO_PKG_VERSION"))
}
