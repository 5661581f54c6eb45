//! Ollama's interface, under `/api`.

pub(crate) mod chat;
pub(crate) mod embed;
pub(crate) mod generate;
pub(crate) mod models;
pub(crate) mod refused;

use crate::answers::{End, Reason};
use crate::ask::{Format, Knobs};
use crate::error::{ApiError, Result};
use crate::openai::OneOrMany;
use crate::shape::field;
use crate::thinking::LEVELS;
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::Deserialize;
use serde_json::{Value, json};
use std::time::{Instant, SystemTime, UNIX_EPOCH};
use tangor_engine::text::strftime;

/// How tokens are chosen, in Ollama's words.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(default)]
pub(crate) struct Tuning {
    #[schemars(range(min = 0, max = 100))]
    pub(crate) temperature: Option<f32>,
    #[schemars(range(min = 0, max = 1))]
    pub(crate) top_p: Option<f32>,
    pub(crate) top_k: Option<i64>,
    #[schemars(range(min = 0, max = 1))]
    pub(crate) min_p: Option<f32>,
    pub(crate) seed: Option<i64>,
    #[schemars(range(min = 0.01, max = 100))]
    pub(crate) repeat_penalty: Option<f32>,
    #[schemars(range(min = -100, max = 100))]
    pub(crate) presence_penalty: Option<f32>,
    #[schemars(range(min = -100, max = 100))]
    pub(crate) frequency_penalty: Option<f32>,
    pub(crate) stop: Option<OneOrMany>,
    /// Most tokens of the answer; 0 and less: until the context is full.
    pub(crate) num_predict: Option<i64>,
}

impl Tuning {
    fn knobs(&self) -> Knobs {
        Knobs {
            temperature: self.temperature,
            top_p: self.top_p,
            top_k: self.top_k,
            min_p: self.min_p,
            repetition_penalty: self.repeat_penalty,
            presence_penalty: self.presence_penalty,
            frequency_penalty: self.frequency_penalty,
            seed: self.seed,
            ..Knobs::default()
        }
    }

    fn max_tokens(&self) -> Option<usize> {
        self.num_predict.and_then(|most| usize::try_from(most).ok()).filter(|most| *most > 0)
    }
}

/// What the form of an answer looks like.
pub(crate) fn format_schema(_: &mut SchemaGenerator) -> Schema {
    field(&json!({"|": ["json", {}]}))
}

/// What is said of thinking.
fn think_schema(_: &mut SchemaGenerator) -> Schema {
    field(&json!({"|": [true, LEVELS]}))
}

/// The form of an answer: `json`, or a schema.
fn format(given: Option<&Value>) -> Result<Format> {
    match given {
        None | Some(Value::Null) => Ok(Format::Text),
        Some(Value::String(word)) if word.is_empty() => Ok(Format::Text),
        Some(Value::String(word)) if word == "json" => Ok(Format::Json),
        Some(schema @ Value::Object(_)) => Ok(Format::Schema(schema.clone())),
        Some(_) => Err(ApiError::field("format", "format must be \"json\" or a JSON schema")),
    }
}

/// Whether a client wants the model to be let go: a `keep_alive` of 0.
fn lets_go(keep_alive: Option<&Value>) -> bool {
    match keep_alive {
        Some(Value::Number(seconds)) => seconds.as_f64() == Some(0.0),
        Some(Value::String(text)) => {
            let number: String = text.chars().take_while(char::is_ascii_digit).collect();
            !number.is_empty() && number.bytes().all(|digit| digit == b'0') && !text.contains('.')
        }
        _ => false,
    }
}

/// A moment in the form that Ollama writes it.
fn timestamp(seconds: u64, nanos: u32) -> String {
    let seconds = i64::try_from(seconds).unwrap_or(i64::MAX);
    format!("{}.{nanos:09}Z", strftime("%Y-%m-%dT%H:%M:%S", seconds))
}

/// The present moment.
fn timestamp_now() -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    timestamp(now.as_secs(), now.subsec_nanos())
}

/// What the last message of an answer tells.
fn totals(begin: Instant, loading: std::time::Duration, end: &End) -> Value {
    let nanos = |duration: std::time::Duration| u64::try_from(duration.as_nanos()).unwrap_or(0);
    let reason = match end.reason {
        Reason::Length => "length",
        _ => "stop",
    };
    json!({
        "done": true,
        "done_reason": reason,
        "total_duration": nanos(begin.elapsed()),
        "load_duration": nanos(loading),
        "prompt_eval_count": end.usage.prompt,
        "prompt_eval_duration": nanos(end.timings.ttft.saturating_sub(end.timings.queue)),
        "eval_count": end.usage.completion,
        "eval_duration": nanos(end.timings.decode),
    })
}

/// What [`totals`] look like, with what a request for nothing leaves out.
fn totals_example() -> Value {
    json!({
        "model": "", "created_at": "", "done": true, "done_reason": "stop|length|load|unload",
        "total_duration?": 0, "load_duration?": 0, "prompt_eval_count?": 0,
        "prompt_eval_duration?": 0, "eval_count?": 0, "eval_duration?": 0,
    })
}

/// Adds the members of one object to another.
fn merge(mut into: Value, more: Value) -> Value {
    if let (Value::Object(into), Value::Object(more)) = (&mut into, more) {
        into.extend(more);
    }
    into
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_keep_alive_of_nothing_lets_the_model_go() {
        for (value, expected) in [
            (json!(0), true),
            (json!("0"), true),
            (json!("0s"), true),
            (json!("5m"), false),
            (json!("0.5s"), false),
            (json!(-1), false),
            (json!(300), false),
            (Value::Null, false),
        ] {
            assert_eq!(lets_go(Some(&value)), expected, "{value}");
        }
    }

    #[test]
    fn only_a_number_of_tokens_ends_an_answer() {
        for (most, expected) in
            [(Some(3), Some(3)), (Some(0), None), (Some(-1), None), (None, None)]
        {
            let tuning = Tuning { num_predict: most, ..Tuning::default() };
            assert_eq!(tuning.max_tokens(), expected);
        }
    }

    #[test]
    fn moments_are_written_in_utc() {
        assert_eq!(timestamp(1_700_000_000, 5), "2023-11-14T22:13:20.000000005Z");
    }
}
