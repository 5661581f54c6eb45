//! A request for generated tokens and the events that answer it.

use crate::constraint::Constraint;
use crate::pool::Pooling;
use crate::sample::SamplingParams;
use std::time::Duration;

/// What to generate.
#[derive(Clone, Debug, Default)]
pub struct Request {
    /// Token ids of the whole prompt, template and special tokens included.
    pub prompt: Vec<u32>,
    /// How tokens are chosen.
    pub sampling: SamplingParams,
    /// Most tokens to generate; `None`: until the context is full.
    pub max_tokens: Option<usize>,
    /// The answer ends before the first of these that its text contains.
    pub stop: Vec<String>,
    /// Log-probability of every chosen token, and of this many most likely ones (up to
    /// [`MAX_LOGPROBS`](crate::MAX_LOGPROBS)).
    pub logprobs: Option<usize>,
    /// Log-probabilities of the prompt's own tokens too ([`Event::Scored`]), with as many most
    /// likely ones as `logprobs` says. No row of such a prompt is taken from the cache.
    pub score_prompt: bool,
    /// The prompt's embedding is wanted ([`Event::Embedding`]) and no answer: nothing is generated,
    /// and what is said of answers here has no effect.
    pub embed: Option<Pooling>,
    /// What the answer may be; `None`: anything.
    pub constraint: Option<Box<dyn Constraint>>,
    /// Special tokens appear in the text: some models mark what a program has to read with them.
    pub special_text: bool,
    /// The answer goes on with the prompt's text and is no text of its own: many vocabularies have
    /// a space in front of every word, which is left out where a text begins.
    pub continues: bool,
    /// Goes on after an end-of-text token: for benchmarks.
    pub ignore_eos: bool,
    /// Whose request it is, as a number that means nothing else: those of one client wait for each
    /// other, and clients take turns.
    pub client: u64,
}

/// One thing that happened to a request, in order.
///
/// The answer's text is the concatenation of every [`Token::text`] and [`Summary::text`].
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// More of the prompt is in the KV cache.
    Prefill {
        /// Tokens that are in the cache.
        done: usize,
        /// Tokens of the prompt.
        total: usize,
    },
    /// Of tokens of the prompt, in order, from its second one on: what comes first has nothing
    /// before it to be predicted from.
    Scored(Vec<Logprobs>),
    /// Of the prompt: as many numbers as the model is wide
    /// ([`Hyper::hidden`](tangor_plan::model::ir::Hyper::hidden)), of length 1.
    Embedding(Vec<f32>),
    /// A device was lost; the answer goes on with the others, from where it was.
    Replanned {
        /// The device's name.
        lost: String,
        /// What its driver said.
        why: String,
    },
    /// A token was generated.
    Token(Token),
    /// Nothing follows.
    Done(Summary),
}

/// A generated token.
#[derive(Clone, Debug, PartialEq)]
pub struct Token {
    /// Its id.
    pub id: u32,
    /// Text that is certain now. Text that may still turn out to be part of a stop string or of an
    /// unfinished character comes with a later event.
    pub text: String,
    /// On request.
    pub logprobs: Option<Logprobs>,
}

/// Log-probabilities at one position: of the model itself, before temperature, penalties and
/// filters.
#[derive(Clone, Debug, PartialEq)]
pub struct Logprobs {
    /// Of the token that was chosen.
    pub chosen: f32,
    /// The most likely tokens, most likely first, ties by id.
    pub top: Vec<(u32, f32)>,
}

/// Why a request ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Finish {
    /// The model generated this end-of-text token, which is not part of the answer.
    EndOfText(u32),
    /// The answer's text reached this stop string, which is not part of the answer.
    StopText(String),
    /// `max_tokens` tokens were generated, or the context is full. So ends, too, what generates
    /// nothing.
    Length,
    /// [`Generation::cancel`](crate::Generation::cancel).
    Cancelled,
}

impl Finish {
    /// The field's name for it: `stop`, `length` or `cancelled`.
    #[must_use]
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::EndOfText(_) | Self::StopText(_) => "stop",
            Self::Length => "length",
            Self::Cancelled => "cancelled",
        }
    }
}

/// Tokens that a request used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Tokens of the prompt.
    pub prompt: usize,
    /// Of these, tokens whose keys and values were in the cache already.
    pub cached: usize,
    /// Tokens of the answer.
    pub completion: usize,
    /// Tokens that were proposed and run.
    pub drafted: usize,
    /// Of these, tokens that became part of the answer.
    pub accepted: usize,
}

/// Where a request's time went.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Timings {
    /// From submission until its first rows ran.
    pub queue: Duration,
    /// From submission until its first token was chosen.
    pub ttft: Duration,
    /// From the first token until the last.
    pub decode: Duration,
}

impl Timings {
    /// Tokens per second after the first one; `None` for fewer than two tokens.
    #[must_use]
    pub fn decode_tps(&self, usage: &Usage) -> Option<f64> {
        let tokens = usage.completion.checked_sub(1).filter(|&n| n > 0)?;
        let seconds = self.decode.as_secs_f64();
        (seconds > 0.0).then(|| tokens as f64 / seconds)
    }
}

/// The end of a request.
#[derive(Clone, Debug, PartialEq)]
pub struct Summary {
    /// Text that was held back until the end.
    pub text: String,
    /// Why it ended.
    pub finish: Finish,
    /// Tokens used.
    pub usage: Usage,
    /// Time used.
    pub timings: Timings,
    /// Seed that reproduces the answer: the request's own, or the one that was drawn for it.
    pub seed: u64,
}

/// Everything that a request answered, collected.
#[derive(Clone, Debug, PartialEq)]
pub struct Completion {
    /// Ids of the answer.
    pub tokens: Vec<u32>,
    /// Its text.
    pub text: String,
    /// One per token, on request.
    pub logprobs: Vec<Logprobs>,
    /// Of the prompt's tokens from the second one on, on request.
    pub prompt_logprobs: Vec<Logprobs>,
    /// Of the prompt, on request; empty otherwise.
    pub embedding: Vec<f32>,
    /// Why it ended.
    pub finish: Finish,
    /// Tokens used.
    pub usage: Usage,
    /// Time used.
    pub timings: Timings,
    /// Seed that reproduces the answer.
    pub seed: u64,
}
