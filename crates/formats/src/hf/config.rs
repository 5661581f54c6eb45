//! `config.json`: the dimensions of a model, with the defaults of its architecture.

use super::CONFIG;
use crate::{ErrorKind, FormatError, Limits, Result};
use serde_json::{Map, Value};

/// No width of any model comes near this; more is a damaged file.
const MAX_WIDTH: usize = 1 << 24;

/// What `config.json` says, checked, with what it leaves out filled in as transformers does.
#[derive(Clone, Debug)]
pub struct HfConfig {
    /// `llama`, `mistral`, `qwen2`, `phi3`, …
    pub model_type: String,
    /// Class names, as `LlamaForCausalLM`.
    pub architectures: Vec<String>,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width of the gated MLP.
    pub intermediate_size: usize,
    /// Layers.
    pub num_hidden_layers: usize,
    /// Query heads.
    pub num_attention_heads: usize,
    /// Key and value heads; divides the query heads.
    pub num_key_value_heads: usize,
    /// Elements per head.
    pub head_dim: usize,
    /// Rows of the embedding.
    pub vocab_size: usize,
    /// Longest sequence that the model was made for.
    pub max_position_embeddings: usize,
    /// The context before it was stretched, where the file says so outside of `rope_scaling`.
    pub original_max_position_embeddings: Option<usize>,
    /// Added to the mean in RMS norms.
    pub rms_norm_eps: f64,
    /// Base of the rotary embedding's frequencies.
    pub rope_theta: f64,
    /// How frequencies are stretched, unless they are not.
    pub rope_scaling: Option<RopeScaling>,
    /// Part of a head that is rotated, in `(0, 1]`.
    pub partial_rotary_factor: f64,
    /// Whether the embedding is also the output projection.
    pub tie_word_embeddings: bool,
    /// Whether q, k, v and o have biases (for the llama family).
    pub attention_bias: bool,
    /// Whether the MLP has biases.
    pub mlp_bias: bool,
    /// `silu`, `gelu_pytorch_tanh`, …
    pub hidden_act: String,
    /// Tokens that a token sees, itself included; `None`: the file has no window, or says not to
    /// use it.
    pub sliding_window: Option<usize>,
    /// Layers from this one on use the window (qwen2); `None`: all of them.
    pub max_window_layers: Option<usize>,
    /// First token of every text.
    pub bos_token_id: Option<u32>,
    /// Tokens that end a text.
    pub eos_token_ids: Vec<u32>,
    /// The whole file.
    pub raw: Value,
}

/// `rope_scaling` (or `rope_parameters`): which numbers there are depends on the kind.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RopeScaling {
    /// `linear`, `dynamic`, `yarn`, `llama3`, `longrope` (older files: `su`).
    pub kind: String,
    /// How much longer the context is than what it was trained with.
    pub factor: Option<f64>,
    /// Context that the model was trained with.
    pub original_max_position_embeddings: Option<usize>,
    /// Factor on cosines and sines.
    pub attention_factor: Option<f64>,
    /// llama3: lower bound of the blend.
    pub low_freq_factor: Option<f64>,
    /// llama3: upper bound of the blend.
    pub high_freq_factor: Option<f64>,
    /// yarn: rotations above which frequencies stay.
    pub beta_fast: Option<f64>,
    /// yarn: rotations below which frequencies are stretched in full.
    pub beta_slow: Option<f64>,
    /// yarn: exponent of the attention factor.
    pub mscale: Option<f64>,
    /// yarn: its denominator.
    pub mscale_all_dim: Option<f64>,
    /// yarn: whether the bounds are rounded to whole dimensions.
    pub truncate: Option<bool>,
    /// longrope: divisors of the frequencies up to the original context.
    pub short_factor: Vec<f64>,
    /// longrope: divisors beyond it.
    pub long_factor: Vec<f64>,
}

impl HfConfig {
    /// Reads a parsed `config.json`.
    ///
    /// # Errors
    /// If a field is missing, of the wrong type, out of range, or contradicts another one.
    pub fn from_json(raw: Value, limits: &Limits) -> Result<Self> {
        let Value::Object(map) = &raw else {
            return Err(FormatError::malformed(CONFIG, "is not an object"));
        };
        let fields = Fields { map, within: "" };
        let model_type = fields.text("model_type")?.unwrap_or_default();
        let required = |name: &str| {
            fields.required_size(name).map_err(|error| match error.kind() {
                ErrorKind::Missing => error.with_hint(format!(
                    "only text models whose {CONFIG} is like Llama's can be read, and this one \
                     says that it is of type {model_type:?}"
                )),
                _ => error,
            })
        };
        let hidden_size = required("hidden_size")?;
        let heads = required("num_attention_heads")?;
        let head_dim = match fields.size("head_dim")? {
            Some(head_dim) => head_dim,
            None => hidden_size.checked_div(heads).unwrap_or(0),
        };
        let rope = fields.object("rope_parameters")?;
        // Some files have all of them in the object, some none or only a few.
        let of_rope = |name| match rope.as_ref().map(|rope| rope.number(name)).transpose()? {
            Some(Some(value)) => Ok(Some(value)),
            _ => fields.number(name),
        };
        let this = Self {
            architectures: fields.texts("architectures")?,
            hidden_size,
            intermediate_size: required("intermediate_size")?,
            num_hidden_layers: required("num_hidden_layers")?,
            num_attention_heads: heads,
            num_key_value_heads: fields.size("num_key_value_heads")?.unwrap_or(heads),
            head_dim,
            vocab_size: required("vocab_size")?,
            max_position_embeddings: fields.size("max_position_embeddings")?.unwrap_or(2048),
            original_max_position_embeddings: fields.size("original_max_position_embeddings")?,
            rms_norm_eps: fields.number("rms_norm_eps")?.unwrap_or(1e-6),
            rope_theta: of_rope("rope_theta")?.unwrap_or(10_000.0),
            rope_scaling: RopeScaling::read(&fields)?,
            partial_rotary_factor: of_rope("partial_rotary_factor")?.unwrap_or(1.0),
            tie_word_embeddings: fields.flag("tie_word_embeddings")?.unwrap_or(false),
            attention_bias: fields.flag("attention_bias")?.unwrap_or(false),
            mlp_bias: fields.flag("mlp_bias")?.unwrap_or(false),
            hidden_act: fields.text("hidden_act")?.unwrap_or_else(|| "silu".to_owned()),
            // What a file that says neither means is its architecture's business.
            sliding_window: match fields.flag("use_sliding_window")? {
                Some(false) => None,
                _ => fields.size("sliding_window")?,
            },
            max_window_layers: fields.count("max_window_layers")?,
            bos_token_id: fields.token("bos_token_id")?.first().copied(),
            eos_token_ids: fields.token("eos_token_id")?,
            model_type,
            raw: Value::Null,
        };
        this.check(limits)?;
        Ok(Self { raw, ..this })
    }

    fn check(&self, limits: &Limits) -> Result<()> {
        let fail = |message: String| Err(FormatError::malformed(CONFIG, message));
        let (heads, kv) = (self.num_attention_heads, self.num_key_value_heads);
        if !heads.is_multiple_of(kv) {
            return fail(format!("{heads} attention heads cannot share {kv} key-value heads"));
        }
        if self.head_dim == 0 || !self.head_dim.is_multiple_of(2) {
            return fail(format!("heads have {} elements, which is not even", self.head_dim));
        }
        if self.num_hidden_layers > limits.layers {
            let (found, limit) = (self.num_hidden_layers, limits.layers);
            return Err(FormatError::limit(CONFIG, "num_hidden_layers", found, limit));
        }
        if self.vocab_size > limits.vocab {
            return Err(FormatError::limit(CONFIG, "vocab_size", self.vocab_size, limits.vocab));
        }
        let positive = |name: &str, value: f64, max: f64| {
            if value > 0.0 && value <= max {
                return Ok(());
            }
            fail(format!("{name} is {value}, not a number above 0 and up to {max}"))
        };
        positive("rms_norm_eps", self.rms_norm_eps, 1.0)?;
        positive("rope_theta", self.rope_theta, 1e12)?;
        positive("partial_rotary_factor", self.partial_rotary_factor, 1.0)?;
        if let Some(scaling) = &self.rope_scaling {
            scaling.check()?;
        }
        Ok(())
    }
}

impl RopeScaling {
    /// From `rope_parameters` (transformers 5) or `rope_scaling` (before); `None` for no scaling.
    fn read(fields: &Fields<'_>) -> Result<Option<Self>> {
        let found = match fields.object("rope_parameters")? {
            Some(fields) => Some(fields),
            None => fields.object("rope_scaling")?,
        };
        let Some(fields) = found else { return Ok(None) };
        let kind = match fields.text("rope_type")? {
            Some(kind) => Some(kind),
            None => fields.text("type")?,
        };
        let kind = match kind.as_deref() {
            None | Some("default") => return Ok(None),
            Some("su") => "longrope".to_owned(),
            Some(kind) => kind.to_owned(),
        };
        Ok(Some(Self {
            kind,
            factor: fields.number("factor")?,
            original_max_position_embeddings: fields.size("original_max_position_embeddings")?,
            attention_factor: fields.number("attention_factor")?,
            low_freq_factor: fields.number("low_freq_factor")?,
            high_freq_factor: fields.number("high_freq_factor")?,
            beta_fast: fields.number("beta_fast")?,
            beta_slow: fields.number("beta_slow")?,
            mscale: fields.number("mscale")?,
            mscale_all_dim: fields.number("mscale_all_dim")?,
            truncate: fields.flag("truncate")?,
            short_factor: fields.numbers("short_factor")?,
            long_factor: fields.numbers("long_factor")?,
        }))
    }

    fn check(&self) -> Result<()> {
        let singles = [
            ("factor", self.factor),
            ("attention_factor", self.attention_factor),
            ("low_freq_factor", self.low_freq_factor),
            ("high_freq_factor", self.high_freq_factor),
            ("beta_fast", self.beta_fast),
            ("beta_slow", self.beta_slow),
        ];
        let lists = self.short_factor.iter().map(|&value| ("short_factor", value));
        let lists = lists.chain(self.long_factor.iter().map(|&value| ("long_factor", value)));
        let present = singles.into_iter().filter_map(|(name, value)| Some((name, value?)));
        for (name, value) in present.chain(lists) {
            if !(value > 0.0 && value < 1e9) {
                let message = format!("rope scaling: {name} is {value}");
                return Err(FormatError::malformed(CONFIG, message));
            }
        }
        Ok(())
    }
}

/// Typed reading of an object's fields; null counts as missing.
pub(super) struct Fields<'a> {
    pub(super) map: &'a Map<String, Value>,
    /// Name of the object within the file, with a dot after it.
    pub(super) within: &'static str,
}

impl<'a> Fields<'a> {
    fn get(&self, name: &str) -> Option<&'a Value> {
        self.map.get(name).filter(|value| !value.is_null())
    }

    fn wrong(&self, name: &str, what: &str) -> FormatError {
        FormatError::malformed(CONFIG, format!("{}{name} is not {what}", self.within))
    }

    fn typed<T>(
        &self,
        name: &str,
        what: &str,
        read: impl Fn(&'a Value) -> Option<T>,
    ) -> Result<Option<T>> {
        match self.get(name) {
            None => Ok(None),
            Some(value) => read(value).map(Some).ok_or_else(|| self.wrong(name, what)),
        }
    }

    pub(super) fn object(&self, name: &'static str) -> Result<Option<Self>> {
        let within = match name {
            "rope_parameters" => "rope_parameters.",
            "rope_scaling" => "rope_scaling.",
            "quantization_config" => "quantization_config.",
            _ => "",
        };
        let map = self.typed(name, "an object", Value::as_object)?;
        Ok(map.map(|map| Self { map, within }))
    }

    pub(super) fn text(&self, name: &str) -> Result<Option<String>> {
        self.typed(name, "text", |value| value.as_str().map(str::to_owned))
    }

    fn texts(&self, name: &str) -> Result<Vec<String>> {
        let list = self.typed(name, "a list of texts", |value| {
            value.as_array()?.iter().map(|v| v.as_str().map(str::to_owned)).collect()
        })?;
        Ok(list.unwrap_or_default())
    }

    pub(super) fn flag(&self, name: &str) -> Result<Option<bool>> {
        self.typed(name, "true or false", Value::as_bool)
    }

    pub(super) fn number(&self, name: &str) -> Result<Option<f64>> {
        self.typed(name, "a number", |value| value.as_f64().filter(|value| value.is_finite()))
    }

    fn numbers(&self, name: &str) -> Result<Vec<f64>> {
        let list = self.typed(name, "a list of numbers", |value| {
            value.as_array()?.iter().map(Value::as_f64).collect()
        })?;
        Ok(list.unwrap_or_default())
    }

    /// A whole number that may be 0.
    fn count(&self, name: &str) -> Result<Option<usize>> {
        self.typed(name, "a whole number", |value| {
            usize::try_from(value.as_u64()?).ok().filter(|&value| value <= MAX_WIDTH)
        })
    }

    /// A whole number above 0.
    fn size(&self, name: &str) -> Result<Option<usize>> {
        self.typed(name, "a whole number from 1 to 16777216", |value| {
            usize::try_from(value.as_u64()?).ok().filter(|&value| (1..=MAX_WIDTH).contains(&value))
        })
    }

    fn required_size(&self, name: &str) -> Result<usize> {
        self.size(name)?.ok_or_else(|| FormatError::missing(CONFIG, format!("has no {name}")))
    }

    /// A token or a list of them.
    fn token(&self, name: &str) -> Result<Vec<u32>> {
        let token = |value: &Value| u32::try_from(value.as_u64()?).ok();
        let read = |value: &'a Value| match value {
            Value::Array(list) => list.iter().map(token).collect(),
            value => token(value).map(|token| vec![token]),
        };
        Ok(self.typed(name, "a token or a list of tokens", read)?.unwrap_or_default())
    }
}
