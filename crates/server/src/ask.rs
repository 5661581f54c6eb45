//! What every dialect's request becomes: one type for what is asked.

use crate::error::{ApiError, Result};
use crate::limits::Limits;
use serde_json::{Map, Value};
use tangor_engine::SamplingParams;
use tangor_engine::text::Message;

/// A request for answers, whatever dialect it came in.
#[derive(Clone, Debug, Default)]
pub(crate) struct Ask {
    /// Name of the model; `None`: the one that was used last.
    pub(crate) model: Option<String>,
    pub(crate) prompt: Prompt,
    pub(crate) knobs: Knobs,
    /// Most tokens of the answer; `None`: until the context is full.
    pub(crate) max_tokens: Option<usize>,
    pub(crate) stop: Vec<String>,
    /// Answers per prompt.
    pub(crate) choices: usize,
    /// Log-probabilities, and of how many most likely tokens.
    pub(crate) logprobs: Option<usize>,
    /// Log-probabilities of the prompt too.
    pub(crate) score_prompt: bool,
    pub(crate) format: Format,
    /// For whom the client asks, if it says so.
    pub(crate) user: Option<String>,
}

/// What is to be continued.
#[derive(Clone, Debug)]
pub(crate) enum Prompt {
    /// A conversation, in the model's own template.
    Chat(Box<Chat>),
    /// Texts or tokens as they are, each answered on its own.
    Plain(Vec<Source>),
    /// Texts whose answers each stand between one of them and what comes after.
    Gaps { before: Vec<String>, after: String },
}

/// A conversation.
#[derive(Clone, Debug, Default)]
pub(crate) struct Chat {
    pub(crate) messages: Vec<Message>,
    /// Tools in OpenAI's shape.
    pub(crate) tools: Vec<Value>,
    pub(crate) tool_choice: ToolChoice,
    /// Whether an answer may call several tools at once.
    pub(crate) parallel: bool,
    /// More variables of the template, as `enable_thinking`.
    pub(crate) variables: Map<String, Value>,
}

/// A prompt as it is.
#[derive(Clone, Debug)]
pub(crate) enum Source {
    /// With whatever the model expects around a plain text.
    Text(String),
    Tokens(Vec<u32>),
}

/// Whether tools are called.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) enum ToolChoice {
    /// As the model finds right.
    #[default]
    Auto,
    /// Never.
    Never,
    /// At least one.
    Required,
    /// This one.
    Named(String),
}

/// What form the answer has.
#[derive(Clone, Debug, Default)]
pub(crate) enum Format {
    #[default]
    Text,
    /// Any JSON object.
    Json,
    /// JSON that this schema accepts.
    Schema(Value),
    /// A text of this grammar, in Lark's notation.
    Grammar(String),
}

/// How tokens are chosen, as far as the client says.
#[derive(Clone, Debug, Default)]
pub(crate) struct Knobs {
    pub(crate) temperature: Option<f32>,
    pub(crate) top_p: Option<f32>,
    pub(crate) top_k: Option<i64>,
    pub(crate) min_p: Option<f32>,
    pub(crate) repetition_penalty: Option<f32>,
    pub(crate) presence_penalty: Option<f32>,
    pub(crate) frequency_penalty: Option<f32>,
    pub(crate) seed: Option<i64>,
    pub(crate) logit_bias: Vec<(u32, f32)>,
    /// Goes on after end-of-text tokens: for benchmarks.
    pub(crate) ignore_eos: bool,
}

/// Refuses tools of other types than `own`, whose calls the client answers.
///
/// # Errors
/// The first of them.
pub(crate) fn only_functions(tools: Option<&[Value]>, own: &str) -> Result<()> {
    let kinds = tools.into_iter().flatten().map(|tool| tool["type"].as_str());
    match kinds.flatten().find(|kind| *kind != own) {
        Some(kind) => Err(hosted("tools", kind)),
        None => Ok(()),
    }
}

/// A tool that only the API's own provider runs.
pub(crate) fn hosted(field: &str, kind: &str) -> ApiError {
    let message = format!(
        "{kind:?} is a tool of a provider's own, which this server does not run: leave it out, or \
         offer a function that your program answers"
    );
    ApiError::field(field, message)
}

impl Default for Prompt {
    fn default() -> Self {
        Self::Plain(Vec::new())
    }
}

impl Ask {
    /// Whether the request is within the server's limits.
    ///
    /// # Errors
    /// The first field that is not.
    pub(crate) fn check(&self, limits: &Limits) -> Result<()> {
        let at_most = |field: &str, found: usize, limit: usize, what: &str| match found > limit {
            true => {
                let message = format!("{field} is {found}: at most {limit}{what} are accepted");
                Err(ApiError::field(field, message))
            }
            false => Ok(()),
        };
        if self.choices == 0 {
            return Err(ApiError::field("n", "n is 0: ask for at least one answer"));
        }
        at_most("n", self.choices, limits.choices, "")?;
        let prompts = match &self.prompt {
            Prompt::Chat(_) => 1,
            Prompt::Plain(prompts) => prompts.len(),
            Prompt::Gaps { before, .. } => before.len(),
        };
        at_most("prompt", prompts, limits.prompts, " prompts")?;
        at_most("stop", self.stop.len(), limits.stops, " strings")?;
        let longest = self.stop.iter().map(String::len).max().unwrap_or(0);
        at_most("stop", longest, limits.stop_bytes, " bytes per string")?;
        at_most("top_logprobs", self.logprobs.unwrap_or(0), limits.top_logprobs, "")?;
        at_most("logit_bias", self.knobs.logit_bias.len(), limits.logit_bias, " tokens")?;
        // A plain prompt may be scored without an answer.
        if self.max_tokens == Some(0) && matches!(self.prompt, Prompt::Chat(_)) {
            return Err(ApiError::field("max_tokens", "max_tokens is 0: ask for at least one"));
        }
        self.knobs.check()
    }
}

impl Knobs {
    /// Whether all of it can be.
    ///
    /// # Errors
    /// The first field that cannot.
    pub(crate) fn check(&self) -> Result<()> {
        let ranges = [
            ("temperature", self.temperature, 0.0, 100.0),
            ("top_p", self.top_p, 0.0, 1.0),
            ("min_p", self.min_p, 0.0, 1.0),
            ("presence_penalty", self.presence_penalty, -100.0, 100.0),
            ("frequency_penalty", self.frequency_penalty, -100.0, 100.0),
            ("repetition_penalty", self.repetition_penalty, 0.01, 100.0),
        ];
        for (field, value, low, high) in ranges {
            if let Some(value) = value.filter(|value| !(low..=high).contains(value)) {
                let message = format!("{field} is {value} and must be from {low} to {high}");
                return Err(ApiError::field(field, message));
            }
        }
        let biases = self.logit_bias.iter();
        match biases.map(|(_, bias)| bias).find(|bias| !(-100.0..=100.0).contains(*bias)) {
            Some(bias) => {
                let message = format!("a bias of {bias} is not from -100 to 100");
                Err(ApiError::field("logit_bias", message))
            }
            None => Ok(()),
        }
    }

    /// Takes from what was set for all requests (`params`) what this one does not say.
    pub(crate) fn default_to(&mut self, params: &Map<String, Value>) {
        let number = |name: &str| params.get(name).and_then(Value::as_f64).map(|x| x as f32);
        let whole = |name: &str| params.get(name).and_then(Value::as_i64);
        let penalty = number("repetition_penalty").or(number("repeat_penalty"));
        self.temperature = self.temperature.or(number("temperature"));
        self.top_p = self.top_p.or(number("top_p"));
        self.top_k = self.top_k.or(whole("top_k"));
        self.min_p = self.min_p.or(number("min_p"));
        self.repetition_penalty = self.repetition_penalty.or(penalty);
        self.presence_penalty = self.presence_penalty.or(number("presence_penalty"));
        self.frequency_penalty = self.frequency_penalty.or(number("frequency_penalty"));
        self.seed = self.seed.or(whole("seed"));
    }

    /// These over what the model's publisher recommends, for the choice of this number.
    ///
    /// Asking for a temperature of 0 asks for the likeliest token, whatever else is recommended.
    pub(crate) fn over(&self, recommended: &SamplingParams, choice: usize) -> SamplingParams {
        let or = |mine: Option<f32>, theirs: f32| mine.unwrap_or(theirs);
        // Without a seed of the client's the same request has the same answer, too.
        let seed = self.seed.unwrap_or(0).cast_unsigned();
        SamplingParams {
            temperature: or(self.temperature, recommended.temperature),
            // 0 and -1 are what different programs call "all".
            top_k: self.top_k.map_or(recommended.top_k, |k| usize::try_from(k).unwrap_or(0)),
            top_p: or(self.top_p, recommended.top_p),
            min_p: or(self.min_p, recommended.min_p),
            repetition_penalty: or(self.repetition_penalty, recommended.repetition_penalty),
            presence_penalty: or(self.presence_penalty, recommended.presence_penalty),
            frequency_penalty: or(self.frequency_penalty, recommended.frequency_penalty),
            logit_bias: self.logit_bias.clone(),
            seed: Some(seed.wrapping_add(choice as u64)),
        }
    }
}
