//! `genai_config.json`: how an ONNX Runtime GenAI folder describes its model.
//!
//! The keys are those of onnxruntime-genai 0.18 (`src/config.cpp`). What Tangor uses is read with
//! its type checked, and every error names the key by its whole path. Everything else is for other
//! runtimes (sessions, providers, AMD's `hybrid_opt_*` options, …): it is accepted as it is and
//! kept in [`GenaiConfig::raw`].

use crate::{ErrorKind, FormatError, Limits, Result, check_file_name, json};
use serde_json::{Map, Value};

/// The file's name in its folder.
pub const FILE: &str = "genai_config.json";

/// Longest context that a configuration may ask for, in tokens: several times that of any published
/// model, and sizes derived from it stay far from overflowing.
pub const MAX_CONTEXT: usize = 1 << 26;

/// A parsed `genai_config.json`.
#[derive(Clone, Debug, PartialEq)]
pub struct GenaiConfig {
    /// `llama`, `phi3`, ….
    pub model_type: String,
    /// Longest sequence, prompt and answer, in tokens.
    pub context_length: usize,
    /// Width of the logits.
    pub vocab_size: usize,
    /// Begins every sequence, where the model has such a token.
    pub bos_token_id: Option<u32>,
    /// Each of them ends an answer.
    pub eos_token_ids: Vec<u32>,
    /// Fills rows of batches.
    pub pad_token_id: Option<u32>,
    /// The model's own graph.
    pub decoder: Decoder,
    /// Defaults of the sampler.
    pub search: Search,
    /// The whole file.
    pub raw: Value,
}

/// `model.decoder`: the graph and how it is called.
#[derive(Clone, Debug, PartialEq)]
pub struct Decoder {
    /// The ONNX file, a plain name in the folder.
    pub filename: String,
    /// Width of the residual stream.
    pub hidden_size: Option<usize>,
    /// Query heads.
    pub num_attention_heads: Option<usize>,
    /// Key and value heads.
    pub num_key_value_heads: Option<usize>,
    /// Layers with a KV cache.
    pub num_hidden_layers: Option<usize>,
    /// Elements per head.
    pub head_size: Option<usize>,
    /// Names of the graph's inputs.
    pub inputs: Inputs,
    /// Name of the output that holds the logits.
    pub logits: String,
    /// Attention window, where the layers have one.
    pub sliding_window: Option<SlidingWindow>,
    /// Execution providers the folder was made for, in order of preference, as it spells them
    /// (`dml`, `RyzenAI`, …); none: CPU.
    pub providers: Vec<String>,
}

/// `model.decoder.inputs`: what the graph calls the values that it is fed with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inputs {
    /// Token ids, `(batch, tokens)`.
    pub input_ids: String,
    /// Ones for every token so far, `(batch, all tokens)`.
    pub attention_mask: String,
    /// Positions, `(batch, tokens)`.
    pub position_ids: String,
    /// Cached keys of layer `%d`.
    pub past_key_names: String,
    /// Cached values of layer `%d`.
    pub past_value_names: String,
}

/// `model.decoder.sliding_window`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SlidingWindow {
    /// Tokens that a token sees, itself included.
    pub window_size: usize,
    /// Layers that have the window; empty: all.
    pub layers: Vec<usize>,
}

/// `search`: how tokens are chosen unless a request says otherwise.
#[derive(Clone, Debug, PartialEq)]
pub struct Search {
    /// Whether to sample; otherwise the likeliest token is taken.
    pub do_sample: bool,
    /// No end of sequence before so many tokens, prompt included.
    pub min_length: usize,
    /// No more than so many tokens, prompt included; 0: the context.
    pub max_length: usize,
    /// Sample among so many of the likeliest tokens; 0: all.
    pub top_k: usize,
    /// Sample among the likeliest tokens that together are so likely; 0 or 1: all.
    pub top_p: f64,
    /// Divides the logits.
    pub temperature: f64,
    /// Divides positive and multiplies negative logits of tokens that have occurred.
    pub repetition_penalty: f64,
    /// Forbids runs of so many tokens to occur twice; 0: none.
    pub no_repeat_ngram_size: usize,
    /// Beams; 1: none.
    pub num_beams: usize,
    /// Negative: a new seed every time.
    pub random_seed: i64,
}

impl Default for Search {
    /// What onnxruntime-genai takes where the file says nothing.
    fn default() -> Self {
        Self {
            do_sample: false,
            min_length: 0,
            max_length: 0,
            top_k: 50,
            top_p: 0.0,
            temperature: 1.0,
            repetition_penalty: 1.0,
            no_repeat_ngram_size: 0,
            num_beams: 1,
            random_seed: -1,
        }
    }
}

impl GenaiConfig {
    /// Reads the file's bytes.
    ///
    /// # Errors
    /// [`FormatError`] that names the file and the key: not JSON, a key that has to be there is
    /// not, a value of the wrong type or out of range, or a path that leaves the folder.
    pub fn parse(bytes: &[u8], limits: &Limits) -> Result<Self> {
        let raw = json::parse(FILE, bytes, limits)?;
        let root = Keys::root(&raw)?;
        let model = root.required_object("model")?;
        let search = root.object("search")?.map(|keys| search(&keys)).transpose()?;
        if let Some(path) = model.path_key("tokenizer_dir")? {
            check_relative(&model, "tokenizer_dir", path)?;
        }
        let pad_token_id = model.token("pad_token_id")?;
        let mut eos_token_ids = model.tokens("eos_token_id")?;
        if eos_token_ids.is_empty() {
            eos_token_ids.extend(pad_token_id);
        }
        let vocab_size = model.required_size("vocab_size")?;
        if vocab_size > limits.vocab {
            return Err(model.limit("vocab_size", vocab_size, limits.vocab));
        }
        let context_length = model.required_size("context_length")?;
        if context_length > MAX_CONTEXT {
            return Err(model.limit("context_length", context_length, MAX_CONTEXT));
        }
        Ok(Self {
            model_type: model.required_text("type")?.to_owned(),
            context_length,
            vocab_size,
            bos_token_id: model.token("bos_token_id")?,
            eos_token_ids,
            pad_token_id,
            decoder: decoder(&model.required_object("decoder")?, limits)?,
            search: search.unwrap_or_default(),
            raw,
        })
    }
}

fn decoder(keys: &Keys<'_>, limits: &Limits) -> Result<Decoder> {
    if keys.get("pipeline").is_some() {
        return Err(FormatError::unsupported(
            keys.subject("pipeline"),
            "splits the model over several graphs",
        )
        .with_hint("use the folder that was made for the CPU, DirectML or hybrid execution"));
    }
    let filename = keys.required_text("filename")?;
    check_file_name(&keys.subject("filename"), filename)?;
    let num_hidden_layers = keys.size("num_hidden_layers")?;
    if let Some(layers) = num_hidden_layers.filter(|&layers| layers > limits.layers) {
        return Err(keys.limit("num_hidden_layers", layers, limits.layers));
    }
    let none = Map::new();
    let inputs = keys.object("inputs")?.unwrap_or(Keys { path: String::new(), map: &none });
    let outputs = keys.object("outputs")?.unwrap_or(Keys { path: String::new(), map: &none });
    let name = |keys: &Keys<'_>, key: &str, default: &str| -> Result<String> {
        Ok(keys.text(key)?.unwrap_or(default).to_owned())
    };
    Ok(Decoder {
        filename: filename.to_owned(),
        hidden_size: keys.size("hidden_size")?,
        num_attention_heads: keys.size("num_attention_heads")?,
        num_key_value_heads: keys.size("num_key_value_heads")?,
        num_hidden_layers,
        head_size: keys.size("head_size")?,
        inputs: Inputs {
            input_ids: name(&inputs, "input_ids", "input_ids")?,
            attention_mask: name(&inputs, "attention_mask", "attention_mask")?,
            position_ids: name(&inputs, "position_ids", "position_ids")?,
            past_key_names: name(&inputs, "past_key_names", "past_key_values.%d.key")?,
            past_value_names: name(&inputs, "past_value_names", "past_key_values.%d.value")?,
        },
        logits: name(&outputs, "logits", "logits")?,
        sliding_window: match keys.object("sliding_window")? {
            Some(window) => sliding_window(&window)?,
            None => None,
        },
        providers: match keys.object("session_options")? {
            Some(session) => providers(&session)?,
            None => Vec::new(),
        },
    })
}

/// A `window_size` that is negative or 0 means that there is no window.
fn sliding_window(keys: &Keys<'_>) -> Result<Option<SlidingWindow>> {
    let window = keys.integer("window_size")?.unwrap_or(0);
    let Some(window_size) = usize::try_from(window).ok().filter(|&size| size > 0) else {
        return Ok(None);
    };
    let mut layers = Vec::new();
    for value in keys.list("layers")?.unwrap_or_default() {
        let layer = value.as_u64().and_then(|layer| usize::try_from(layer).ok());
        layers.push(layer.ok_or_else(|| keys.wrong("layers", value, "a list of layers"))?);
    }
    Ok(Some(SlidingWindow { window_size, layers }))
}

/// `[{"name": {options}}, …]`. Unknown providers are as good as known ones: devices are our own.
fn providers(session: &Keys<'_>) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for provider in session.list("provider_options")?.unwrap_or_default() {
        let object = provider
            .as_object()
            .ok_or_else(|| session.wrong("provider_options", provider, "a list of objects"))?;
        names.extend(object.keys().cloned());
    }
    Ok(names)
}

fn search(keys: &Keys<'_>) -> Result<Search> {
    let default = Search::default();
    let count = |key, default| Ok::<_, FormatError>(keys.count(key)?.unwrap_or(default));
    let number = |key, default| Ok::<_, FormatError>(keys.number(key)?.unwrap_or(default));
    Ok(Search {
        do_sample: keys.flag("do_sample")?.unwrap_or(default.do_sample),
        min_length: count("min_length", default.min_length)?,
        max_length: count("max_length", default.max_length)?,
        top_k: count("top_k", default.top_k)?,
        top_p: number("top_p", default.top_p)?,
        temperature: number("temperature", default.temperature)?,
        repetition_penalty: number("repetition_penalty", default.repetition_penalty)?,
        no_repeat_ngram_size: count("no_repeat_ngram_size", default.no_repeat_ngram_size)?,
        num_beams: count("num_beams", default.num_beams)?,
        random_seed: keys.integer("random_seed")?.unwrap_or(default.random_seed),
    })
}

/// Refuses paths that leave the folder; `.` and folders within are fine.
fn check_relative(keys: &Keys<'_>, key: &str, path: &str) -> Result<()> {
    for part in path.split('/').filter(|&part| part != ".") {
        check_file_name(&keys.subject(key), part)?;
    }
    Ok(())
}

/// A JSON object with the path that leads to it.
struct Keys<'a> {
    path: String,
    map: &'a Map<String, Value>,
}

impl<'a> Keys<'a> {
    fn root(raw: &'a Value) -> Result<Self> {
        match raw {
            Value::Object(map) => Ok(Self { path: String::new(), map }),
            other => {
                Err(FormatError::malformed(FILE, format!("is {}, not an object", kind(other))))
            }
        }
    }

    /// The file and the whole path of `key`.
    fn subject(&self, key: &str) -> String {
        let dot = if self.path.is_empty() { "" } else { "." };
        format!("{FILE}: {}{dot}{key}", self.path)
    }

    /// The value; `null` is the same as absent.
    fn get(&self, key: &str) -> Option<&'a Value> {
        self.map.get(key).filter(|value| !value.is_null())
    }

    fn wrong(&self, key: &str, value: &Value, expected: &str) -> FormatError {
        let found = match value {
            Value::Number(_) | Value::Bool(_) => value.to_string(),
            _ => kind(value).to_owned(),
        };
        FormatError::malformed(self.subject(key), format!("is {found}, not {expected}"))
    }

    fn limit(&self, key: &str, found: usize, limit: usize) -> FormatError {
        FormatError::limit(self.subject(key), "its value", found, limit)
    }

    fn typed<T>(
        &self,
        key: &str,
        expected: &str,
        read: impl Fn(&'a Value) -> Option<T>,
    ) -> Result<Option<T>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        read(value).map(Some).ok_or_else(|| self.wrong(key, value, expected))
    }

    fn required<T>(&self, key: &str, value: Option<T>) -> Result<T> {
        value.ok_or_else(|| {
            FormatError::new(ErrorKind::Missing, self.subject(key), "is missing")
                .with_hint("this is not a whole genai_config.json; fetch the folder again")
        })
    }

    fn object(&self, key: &str) -> Result<Option<Self>> {
        let map = self.typed(key, "an object", Value::as_object)?;
        let dot = if self.path.is_empty() { "" } else { "." };
        Ok(map.map(|map| Self { path: format!("{}{dot}{key}", self.path), map }))
    }

    fn required_object(&self, key: &str) -> Result<Self> {
        self.required(key, self.object(key)?)
    }

    fn list(&self, key: &str) -> Result<Option<&'a [Value]>> {
        self.typed(key, "a list", |value| value.as_array().map(Vec::as_slice))
    }

    fn text(&self, key: &str) -> Result<Option<&'a str>> {
        self.typed(key, "a string", Value::as_str)
    }

    fn required_text(&self, key: &str) -> Result<&'a str> {
        self.required(key, self.text(key)?)
    }

    /// A path; an empty one is the same as absent.
    fn path_key(&self, key: &str) -> Result<Option<&'a str>> {
        Ok(self.text(key)?.filter(|path| !path.is_empty()))
    }

    fn flag(&self, key: &str) -> Result<Option<bool>> {
        self.typed(key, "true or false", Value::as_bool)
    }

    fn number(&self, key: &str) -> Result<Option<f64>> {
        self.typed(key, "a number", |value| value.as_f64().filter(|v| v.is_finite()))
    }

    fn integer(&self, key: &str) -> Result<Option<i64>> {
        self.typed(key, "a whole number", whole)
    }

    /// A whole number of at least zero.
    fn count(&self, key: &str) -> Result<Option<usize>> {
        self.typed(key, "a whole number of at least 0", |value| {
            whole(value).and_then(|v| usize::try_from(v).ok())
        })
    }

    /// A whole number of at least one.
    fn size(&self, key: &str) -> Result<Option<usize>> {
        self.typed(key, "a whole number of at least 1", |value| {
            whole(value).and_then(|v| usize::try_from(v).ok()).filter(|&v| v > 0)
        })
    }

    fn required_size(&self, key: &str) -> Result<usize> {
        self.required(key, self.size(key)?)
    }

    /// A token id; -1 means none.
    fn token(&self, key: &str) -> Result<Option<u32>> {
        if self.get(key).and_then(Value::as_i64) == Some(-1) {
            return Ok(None);
        }
        self.typed(key, "a token id", token)
    }

    /// One token id or a list of them.
    fn tokens(&self, key: &str) -> Result<Vec<u32>> {
        match self.get(key) {
            None => Ok(Vec::new()),
            Some(Value::Array(list)) => list
                .iter()
                .map(|value| token(value).ok_or_else(|| self.wrong(key, value, "a token id")))
                .collect(),
            Some(value) => match token(value) {
                Some(id) => Ok(vec![id]),
                None => Err(self.wrong(key, value, "a token id or a list of them")),
            },
        }
    }
}

fn token(value: &Value) -> Option<u32> {
    value.as_i64().and_then(|id| i32::try_from(id).ok()).and_then(|id| u32::try_from(id).ok())
}

/// Some writers spell whole numbers as `1.0`, which onnxruntime-genai accepts.
fn whole(value: &Value) -> Option<i64> {
    /// Beyond this not every whole number has a double of its own.
    const EXACT: f64 = 9_007_199_254_740_992.0;
    value.as_i64().or_else(|| {
        let number = value.as_f64()?;
        #[allow(clippy::cast_possible_truncation)]
        (number.fract() == 0.0 && number.abs() <= EXACT).then_some(number as i64)
    })
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}
