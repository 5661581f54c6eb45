//! A model's configuration, whatever file it came from.
//!
//! Keys are those of a Hugging Face `config.json`; GGUF metadata is renamed to them first. What
//! differs between architectures is read by their own pages in [`crate::arch`].

use crate::error::ImportError;
use crate::ir::{Activation, Hyper};
use crate::rope::Rope;
use crate::scaling::{self, Scaling, longrope_attention_factor};
use serde_json::{Map, Value};

/// Everything that the graph needs to know besides its weights.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// The model's dimensions and its architecture's name.
    pub hyper: Hyper,
    /// Rotary embedding of all layers.
    pub rope: Rope,
    /// Added to the mean square in every norm.
    pub eps: f32,
    /// Of the gated MLP.
    pub activation: Activation,
    /// Whether the output head is the embedding table.
    pub tied: bool,
    /// Attention window of each layer, `layers` long; see [`crate::ir::Attention::window`].
    pub windows: Vec<Option<usize>>,
    /// Whether the q, k and v projections have biases.
    pub qkv_bias: bool,
    /// Whether the attention's output projection has a bias.
    pub output_bias: bool,
    /// Whether the MLP's projections have biases.
    pub mlp_bias: bool,
}

impl Config {
    /// Reads a `config.json`, by the page of its `model_type`.
    ///
    /// # Errors
    /// [`ImportError::UnknownArch`], [`ImportError::Config`] for keys that are missing or
    /// impossible, [`ImportError::Unsupported`] for schemes that no device implements.
    pub fn from_hf(config: &Map<String, Value>) -> Result<Self, ImportError> {
        let keys = Keys::new(config);
        let model_type = keys.text("model_type")?;
        let model_type = model_type.ok_or_else(|| ImportError::config("model_type", MISSING))?;
        (crate::arch::find(model_type)?.config)(&keys)
    }

    /// What all architectures have in common: no biases, no windows.
    pub(crate) fn common(keys: &Keys<'_>) -> Result<Self, ImportError> {
        let heads = keys.size("num_attention_heads")?;
        let hidden = keys.size("hidden_size")?;
        let hyper = Hyper {
            arch: keys.text("model_type")?.unwrap_or_default().to_owned(),
            layers: keys.size("num_hidden_layers")?,
            hidden,
            ffn: keys.size("intermediate_size")?,
            heads,
            kv_heads: keys.size_or("num_key_value_heads", heads)?,
            head_dim: keys.size_or("head_dim", hidden / heads)?,
            vocab: keys.size("vocab_size")?,
            context: keys.size_or("max_position_embeddings", 2048)?,
        };
        check(&hyper)?;
        Ok(Self {
            rope: hf_rope(keys, &hyper)?,
            eps: keys.number("rms_norm_eps")?.map_or(1e-6, narrow),
            activation: activation(keys)?,
            tied: keys.flag("tie_word_embeddings")?,
            windows: vec![None; hyper.layers],
            qkv_bias: false,
            output_bias: false,
            mlp_bias: false,
            hyper,
        })
    }

    /// Width of the queries of a token.
    #[must_use]
    pub fn q_width(&self) -> usize {
        self.hyper.heads * self.hyper.head_dim
    }

    /// Width of the keys, and of the values, of a token.
    #[must_use]
    pub fn kv_width(&self) -> usize {
        self.hyper.kv_heads * self.hyper.head_dim
    }
}

/// Bounds that no real model comes near, so that products of two sizes fit and a hostile file
/// cannot make the importer work for long.
const MOST_LAYERS: usize = 4096;
const WIDEST: usize = 1 << 24;

fn check(hyper: &Hyper) -> Result<(), ImportError> {
    let Hyper { layers, hidden, ffn, heads, kv_heads, head_dim, vocab, context, .. } = *hyper;
    if layers > MOST_LAYERS {
        let why = format!("is {layers}, more than the {MOST_LAYERS} that are supported");
        return Err(ImportError::config("num_hidden_layers", why));
    }
    let sizes = [
        ("hidden_size", hidden),
        ("intermediate_size", ffn),
        ("num_attention_heads", heads.saturating_mul(head_dim)),
        ("vocab_size", vocab),
        ("max_position_embeddings", context >> 8),
    ];
    if let Some((key, _)) = sizes.iter().find(|(_, size)| *size > WIDEST) {
        return Err(ImportError::config(*key, "is larger than any model that is supported"));
    }
    if !heads.is_multiple_of(kv_heads) {
        let why = format!("is {kv_heads}, which does not divide the {heads} attention heads");
        return Err(ImportError::config("num_key_value_heads", why));
    }
    if head_dim == 0 || !head_dim.is_multiple_of(2) {
        let why = format!("is {head_dim}; heads must have an even number of elements");
        return Err(ImportError::config("head_dim", why));
    }
    Ok(())
}

fn activation(keys: &Keys<'_>) -> Result<Activation, ImportError> {
    match keys.text("hidden_act")?.unwrap_or("silu") {
        "silu" | "swish" => Ok(Activation::Silu),
        "gelu" => Ok(Activation::Gelu),
        "gelu_new" | "gelu_pytorch_tanh" | "gelu_fast" => Ok(Activation::GeluTanh),
        other => Err(ImportError::Unsupported {
            what: format!("activation \"{other}\""),
            why: "hidden_act must be silu, gelu or gelu_pytorch_tanh".into(),
        }),
    }
}

/// `rope_theta` and `rope_scaling`, or `rope_parameters` (transformers 5) with both.
fn hf_rope(keys: &Keys<'_>, hyper: &Hyper) -> Result<Rope, ImportError> {
    let scaling = match keys.object("rope_parameters")? {
        Some(parameters) => Some(parameters),
        None => keys.object("rope_scaling")?,
    };
    let empty = Map::new();
    let inner = Keys::within("rope_scaling", scaling.unwrap_or(&empty));
    let either = |key: &str| -> Result<Option<f64>, ImportError> {
        Ok(inner.number(key)?.or(keys.number(key)?))
    };
    let theta = either("rope_theta")?.unwrap_or(10_000.0);
    if !(theta > 0.0 && theta.is_finite()) {
        return Err(ImportError::config("rope_theta", format!("is {theta}, not a positive number")));
    }
    let share = either("partial_rotary_factor")?.unwrap_or(1.0);
    let dim = rotary_dim(hyper.head_dim, share)?;
    Ok(scaling::rope(dim, theta, &hf_scaling(keys, &inner, hyper, dim)?))
}

#[allow(clippy::cast_possible_truncation, clippy::cast_precision_loss, clippy::cast_sign_loss)]
fn rotary_dim(head_dim: usize, share: f64) -> Result<usize, ImportError> {
    let dim = if share > 0.0 && share <= 1.0 { (head_dim as f64 * share) as usize } else { 0 };
    if dim == 0 || !dim.is_multiple_of(2) {
        let why = format!("is {share}: it must leave an even part of the {head_dim} elements");
        return Err(ImportError::config("partial_rotary_factor", why));
    }
    Ok(dim)
}

#[allow(clippy::cast_precision_loss)]
fn hf_scaling(
    keys: &Keys<'_>,
    inner: &Keys<'_>,
    hyper: &Hyper,
    dim: usize,
) -> Result<Scaling, ImportError> {
    let name = match inner.text("rope_type")? {
        Some(name) => name,
        None => inner.text("type")?.unwrap_or("default"),
    };
    let positive = |key: &str| match inner.number(key)? {
        Some(value) if value > 0.0 => Ok(narrow(value)),
        Some(value) => Err(ImportError::config(inner.path(key), format!("is {value}, not above 0"))),
        None => Err(ImportError::config(inner.path(key), MISSING)),
    };
    let original = || match keys.optional_size("original_max_position_embeddings")? {
        Some(original) => Ok(original),
        None => inner.size_or("original_max_position_embeddings", hyper.context),
    };
    match name {
        "default" => Ok(Scaling::None),
        "linear" => Ok(Scaling::Linear { factor: positive("factor")? }),
        "llama3" => {
            let (low, high) = (positive("low_freq_factor")?, positive("high_freq_factor")?);
            if high <= low {
                let why = format!("is {high}, not above low_freq_factor {low}");
                return Err(ImportError::config(inner.path("high_freq_factor"), why));
            }
            Ok(Scaling::Llama3 { factor: positive("factor")?, low, high, original: original()? })
        }
        // Phi-3's first configurations call it so.
        "longrope" | "su" => {
            let original = original()?;
            let scale = inner.number("factor")?.unwrap_or(hyper.context as f64 / original as f64);
            let attention = match inner.number("attention_factor")? {
                Some(factor) => narrow(factor),
                None => longrope_attention_factor(scale, original),
            };
            let short = inner.numbers("short_factor", dim / 2)?;
            let long = inner.numbers("long_factor", dim / 2)?;
            Ok(Scaling::LongRope { short, long, original, attention })
        }
        other => Err(ImportError::Unsupported {
            what: format!("RoPE scaling \"{other}\""),
            why: "rope_scaling must be default, linear, llama3 or longrope".into(),
        }),
    }
}

const MISSING: &str = "is missing";

/// A JSON object whose values are read with their types checked.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Keys<'a> {
    /// The object's own key, in messages; empty for the outermost.
    prefix: &'static str,
    map: &'a Map<String, Value>,
}

impl<'a> Keys<'a> {
    pub(crate) fn new(map: &'a Map<String, Value>) -> Self {
        Self { prefix: "", map }
    }

    fn within(prefix: &'static str, map: &'a Map<String, Value>) -> Self {
        Self { prefix, map }
    }

    fn path(&self, key: &str) -> String {
        if self.prefix.is_empty() { key.to_owned() } else { format!("{}.{key}", self.prefix) }
    }

    /// The value; `null` is the same as absent.
    fn get(&self, key: &str) -> Option<&'a Value> {
        self.map.get(key).filter(|value| !value.is_null())
    }

    /// Whether the key is there, even as `null`.
    pub(crate) fn has(&self, key: &str) -> bool {
        self.map.contains_key(key)
    }

    fn typed<T>(
        &self,
        key: &str,
        kind: &str,
        read: impl Fn(&'a Value) -> Option<T>,
    ) -> Result<Option<T>, ImportError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let wrong = || ImportError::config(self.path(key), format!("is {value}, not {kind}"));
        read(value).map(Some).ok_or_else(wrong)
    }

    pub(crate) fn text(&self, key: &str) -> Result<Option<&'a str>, ImportError> {
        self.typed(key, "a string", Value::as_str)
    }

    /// Absent is false.
    pub(crate) fn flag(&self, key: &str) -> Result<bool, ImportError> {
        Ok(self.typed(key, "true or false", Value::as_bool)?.unwrap_or(false))
    }

    pub(crate) fn number(&self, key: &str) -> Result<Option<f64>, ImportError> {
        self.typed(key, "a number", |value| value.as_f64().filter(|v| v.is_finite()))
    }

    /// A whole number of at least one.
    pub(crate) fn optional_size(&self, key: &str) -> Result<Option<usize>, ImportError> {
        self.typed(key, "a positive whole number", |value| {
            value.as_u64().and_then(|v| usize::try_from(v).ok()).filter(|&v| v > 0)
        })
    }

    pub(crate) fn size_or(&self, key: &str, default: usize) -> Result<usize, ImportError> {
        Ok(self.optional_size(key)?.unwrap_or(default))
    }

    pub(crate) fn size(&self, key: &str) -> Result<usize, ImportError> {
        self.optional_size(key)?.ok_or_else(|| ImportError::config(self.path(key), MISSING))
    }

    fn object(&self, key: &str) -> Result<Option<&'a Map<String, Value>>, ImportError> {
        self.typed(key, "an object", Value::as_object)
    }

    pub(crate) fn list(&self, key: &str) -> Result<Option<&'a [Value]>, ImportError> {
        self.typed(key, "a list", |value| value.as_array().map(Vec::as_slice))
    }

    /// A list of `len` positive numbers.
    fn numbers(&self, key: &str, len: usize) -> Result<Vec<f32>, ImportError> {
        let list = self.list(key)?.ok_or_else(|| ImportError::config(self.path(key), MISSING))?;
        let numbers: Vec<f32> =
            list.iter().filter_map(Value::as_f64).filter(|&v| v > 0.0).map(narrow).collect();
        if numbers.len() != len || list.len() != len {
            let why = format!("must be {len} positive numbers, and has {}", list.len());
            return Err(ImportError::config(self.path(key), why));
        }
        Ok(numbers)
    }
}

/// To the precision that everything is computed in.
#[allow(clippy::cast_possible_truncation)]
pub(crate) fn narrow(value: f64) -> f32 {
    value as f32
}
