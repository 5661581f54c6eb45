//! `POST /v1/completions`

use super::{Head, OneOrMany, closing, finish_reason, finite, sampled, timings, token_text, usage};
use crate::answers::{Choice, Delta, End, Happening, TokenLogprobs, new_id};
use crate::app::App;
use crate::ask::{Ask, Prompt, Source};
use crate::body::Json;
use crate::dialect::Dialect;
use crate::error::{ApiError, Result};
use crate::reply::{Form, Frame, Wording, stream};
use crate::residents::now;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use std::sync::Arc;
use tangor_engine::Logprobs;
use tangor_engine::text::Tokenizer;

sampled! {
    /// A text to continue.
    pub(crate) struct Request {
        /// One or several texts, or one or several lists of token ids.
        pub(crate) prompt: Option<Given>,
        /// Most tokens of the answer: 16 unless said otherwise.
        pub(crate) max_tokens: Option<usize>,
        /// Whether the answer begins with the prompt.
        pub(crate) echo: Option<bool>,
        /// Log-probabilities, of so many most likely tokens per token.
        pub(crate) logprobs: Option<usize>,
        /// A text behind the answer, for models that were made to fill gaps.
        pub(crate) suffix: Option<String>,
        /// `json_object`, `json_schema` with a schema, or `grammar`.
        #[schemars(schema_with = "super::format_schema")]
        pub(crate) response_format: Option<Value>,
    }
}

/// What OpenAI's API gives who names no length.
const MAX_TOKENS: usize = 16;

/// The ways to give prompts.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(untagged)]
pub(crate) enum Given {
    Text(String),
    Texts(Vec<String>),
    Tokens(Vec<u32>),
    ManyTokens(Vec<Vec<u32>>),
}

impl Given {
    pub(crate) fn sources(self) -> Vec<Source> {
        match self {
            Self::Text(text) => vec![Source::Text(text)],
            Self::Texts(texts) => texts.into_iter().map(Source::Text).collect(),
            Self::Tokens(tokens) => vec![Source::Tokens(tokens)],
            Self::ManyTokens(all) => all.into_iter().map(Source::Tokens).collect(),
        }
    }
}

impl Request {
    fn ask(self) -> Result<Ask> {
        let knobs = self.knobs()?;
        let sources = self.prompt.map(Given::sources).unwrap_or_default();
        let prompt = match self.suffix.filter(|suffix| !suffix.is_empty()) {
            Some(after) => gaps(sources, after)?,
            None => Prompt::Plain(sources),
        };
        Ok(Ask {
            model: self.model,
            prompt,
            knobs,
            max_tokens: Some(self.max_tokens.unwrap_or(MAX_TOKENS)),
            stop: OneOrMany::list(self.stop),
            choices: self.n.unwrap_or(1),
            logprobs: self.logprobs,
            score_prompt: self.echo.unwrap_or(false) && self.logprobs.is_some(),
            format: super::format(self.response_format.as_ref())?,
            user: self.safety_identifier.or(self.user),
        })
    }
}

/// Prompts whose answers stand in front of a text.
fn gaps(sources: Vec<Source>, after: String) -> Result<Prompt> {
    let text = |source| match source {
        Source::Text(text) => Ok(text),
        Source::Tokens(_) => {
            Err(ApiError::field("suffix", "suffix needs a prompt that is text, not token ids"))
        }
    };
    Ok(Prompt::Gaps { before: sources.into_iter().map(text).collect::<Result<_>>()?, after })
}

/// What an answer looks like.
pub(crate) fn example() -> Value {
    super::envelope_example(
        "text_completion",
        json!({
            "index": 0,
            "text": "",
            "logprobs?": {
                "tokens": [""], "token_logprobs": [], "top_logprobs": [], "text_offset": [0],
            },
            "finish_reason": "stop|length",
        }),
    )
}

/// Continues texts.
pub(crate) async fn create(
    State(app): State<Arc<App>>,
    Json(request): Json<Request>,
) -> Result<Response> {
    let streams = request.stream.unwrap_or(false);
    let with_usage = request.stream_options.and_then(|options| options.include_usage);
    let (per_prompt, scored) = (request.n.unwrap_or(1), request.logprobs.is_some());
    let echo = request.echo.unwrap_or(false);
    let mut answers = app.answer(request.ask()?).await?;
    let resident = Arc::clone(answers.resident());
    let words = Words {
        head: Head { id: new_id("cmpl-"), created: now(), model: resident.id.clone() },
        tokenizer: Arc::clone(resident.tokenizer()?),
        per_prompt,
        echo: if echo { answers.prompts().to_vec() } else { Vec::new() },
        scored,
    };
    if streams {
        let count = answers.choices();
        let wording = Chunks {
            words,
            with_usage: with_usage.unwrap_or(false),
            offsets: vec![0; count],
            prompts: vec![Vec::new(); count],
            ends: vec![None; count],
        };
        return Ok(stream(&app, Form::Events, answers, wording));
    }
    let choices = answers.collect().await?;
    let ends: Vec<End> = choices.iter().map(|choice| choice.end.clone()).collect();
    let worded: Vec<Value> =
        choices.iter().enumerate().map(|(index, choice)| words.choice(index, choice)).collect();
    let mut body = words.envelope(&worded);
    body["usage"] = usage(&ends, per_prompt);
    body["timings"] = ends.first().map(timings).into();
    Ok(axum::Json(body).into_response())
}

/// What all answers to a request share.
struct Words {
    head: Head,
    tokenizer: Arc<Tokenizer>,
    per_prompt: usize,
    /// The prompts that answers begin with.
    echo: Vec<Vec<u32>>,
    /// Whether log-probabilities are wanted.
    scored: bool,
}

impl Words {
    fn envelope(&self, choices: &[Value]) -> Value {
        self.head.envelope("text_completion", choices)
    }

    /// The prompt that an answer begins with.
    fn echoed(&self, index: usize) -> &[u32] {
        self.echo.get(index / self.per_prompt).map(Vec::as_slice).unwrap_or_default()
    }

    fn choice(&self, index: usize, choice: &Choice) -> Value {
        let prompt = self.echoed(index);
        let text = self.tokenizer.decode(prompt, true) + &choice.text;
        let logprobs = self.scored.then(|| {
            let mut table = Table::new(&self.tokenizer, 0);
            table.prompt(prompt, &choice.scored);
            table.answer(&choice.logprobs);
            table.finish()
        });
        json!({
            "index": index,
            "text": text,
            "logprobs": logprobs,
            "finish_reason": finish_reason(&choice.end.reason),
        })
    }
}

/// Log-probabilities in the completion API's shape: four lists.
struct Table<'a> {
    tokenizer: &'a Tokenizer,
    tokens: Vec<String>,
    logprobs: Vec<Option<f32>>,
    top: Vec<Option<Map<String, Value>>>,
    offsets: Vec<usize>,
    at: usize,
}

impl<'a> Table<'a> {
    /// For tokens from this character of the text on.
    fn new(tokenizer: &'a Tokenizer, at: usize) -> Self {
        let (tokens, logprobs, top, offsets) = Default::default();
        Self { tokenizer, tokens, logprobs, top, offsets, at }
    }

    /// The first token has nothing before it to be predicted from.
    fn prompt(&mut self, tokens: &[u32], scored: &[Logprobs]) {
        let scores = std::iter::once(None).chain(scored.iter().map(Some));
        for (id, logprobs) in tokens.iter().zip(scores) {
            self.push(*id, logprobs);
        }
    }

    fn answer(&mut self, tokens: &[TokenLogprobs]) {
        tokens.iter().for_each(|token| self.push(token.id, Some(&token.logprobs)));
    }

    fn push(&mut self, id: u32, logprobs: Option<&Logprobs>) {
        let text = token_text(self.tokenizer, id);
        self.offsets.push(self.at);
        self.at += text.chars().count();
        self.logprobs.push(logprobs.map(|logprobs| finite(logprobs.chosen)));
        self.top.push(logprobs.map(|logprobs| {
            // The chosen token is listed, too, as OpenAI does. Of tokens that read alike, the
            // likelier one stays.
            let all = logprobs.top.iter().copied().chain([(id, logprobs.chosen)]);
            let mut top = Map::new();
            for (id, logprob) in all {
                let text = token_text(self.tokenizer, id);
                top.entry(text).or_insert_with(|| json!(finite(logprob)));
            }
            top
        }));
        self.tokens.push(text);
    }

    fn finish(self) -> Value {
        json!({
            "tokens": self.tokens,
            "token_logprobs": self.logprobs,
            "top_logprobs": self.top,
            "text_offset": self.offsets,
        })
    }
}

/// Words answers as chunks.
struct Chunks {
    words: Words,
    with_usage: bool,
    /// Characters that every answer has so far.
    offsets: Vec<usize>,
    /// Log-probabilities of every answer's prompt, as far as they have come.
    prompts: Vec<Vec<Logprobs>>,
    ends: Vec<Option<End>>,
}

impl Chunks {
    fn chunk(&self, choice: Value) -> Frame {
        let mut chunk = self.words.envelope(&[choice]);
        if self.with_usage {
            chunk["usage"] = Value::Null;
        }
        Frame::data(&chunk)
    }

    /// The prompt that an answer begins with, once all that is to be said of it is known.
    fn echo(&mut self, index: usize) -> Option<Frame> {
        let prompt = self.words.echoed(index).to_vec();
        let complete = !self.words.scored || self.prompts[index].len() + 1 >= prompt.len();
        if prompt.is_empty() || !complete {
            return None;
        }
        let table = self.words.scored.then(|| {
            let mut table = Table::new(&self.words.tokenizer, 0);
            table.prompt(&prompt, &self.prompts[index]);
            table.finish()
        });
        let text = self.words.tokenizer.decode(&prompt, true);
        Some(self.piece(index, &text, table))
    }

    fn piece(&mut self, index: usize, text: &str, logprobs: Option<Value>) -> Frame {
        self.offsets[index] += text.chars().count();
        self.chunk(json!({
            "index": index, "text": text, "logprobs": logprobs, "finish_reason": null,
        }))
    }
}

impl Wording for Chunks {
    fn begin(&mut self) -> Vec<Frame> {
        (0..self.ends.len()).filter_map(|index| self.echo(index)).collect()
    }

    fn happened(&mut self, happening: Happening) -> Vec<Frame> {
        match happening {
            Happening::Scored { choice, logprobs } => {
                self.prompts[choice].extend(logprobs);
                self.echo(choice).into_iter().collect()
            }
            Happening::Delta { choice, delta, logprobs } => {
                let (Delta::Text(text) | Delta::Reasoning(text)) = delta else { return Vec::new() };
                let at = self.offsets[choice];
                let table = self.words.scored.then(|| {
                    let mut table = Table::new(&self.words.tokenizer, at);
                    table.answer(&logprobs);
                    table.finish()
                });
                vec![self.piece(choice, &text, table)]
            }
            Happening::End { choice, end } => {
                let frame = self.chunk(json!({
                    "index": choice,
                    "text": "",
                    "logprobs": null,
                    "finish_reason": finish_reason(&end.reason),
                }));
                self.ends[choice] = Some(end);
                vec![frame]
            }
        }
    }

    fn end(&mut self) -> Vec<Frame> {
        closing(self.with_usage.then(|| {
            let ends: Vec<End> = self.ends.iter().flatten().cloned().collect();
            let mut chunk = self.words.envelope(&[]);
            chunk["usage"] = usage(&ends, self.words.per_prompt);
            chunk
        }))
    }

    fn failed(&mut self, error: &ApiError) -> Vec<Frame> {
        vec![Frame::data(&Dialect::OpenAi.error(error))]
    }
}
