//! A model's configuration, whatever file it came from.
//!
//! It is that of a Hugging Face `config.json`; GGUF metadata is renamed to one first. What differs
//! between architectures is read by their own pages in [`crate::arch`].

use crate::error::ImportError;
use crate::ir::{Activation, Hyper};
use crate::rope::Rope;
use crate::scaling::{self, Scaling, longrope_attention_factor};
use tangor_formats::hf::{HfConfig, RopeScaling};

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
    pub fn from_hf(hf: &HfConfig) -> Result<Self, ImportError> {
        (crate::arch::find(&hf.model_type)?.config)(hf)
    }

    /// What all architectures have in common: no biases, no windows.
    pub(crate) fn common(hf: &HfConfig) -> Result<Self, ImportError> {
        let hyper = Hyper {
            arch: hf.model_type.clone(),
            layers: hf.num_hidden_layers,
            hidden: hf.hidden_size,
            ffn: hf.intermediate_size,
            heads: hf.num_attention_heads,
            kv_heads: hf.num_key_value_heads,
            head_dim: hf.head_dim,
            vocab: hf.vocab_size,
            context: hf.max_position_embeddings,
        };
        Ok(Self {
            rope: rope(hf)?,
            eps: narrow(hf.rms_norm_eps),
            activation: activation(&hf.hidden_act)?,
            tied: hf.tie_word_embeddings,
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

fn activation(name: &str) -> Result<Activation, ImportError> {
    match name {
        "silu" | "swish" => Ok(Activation::Silu),
        "gelu" => Ok(Activation::Gelu),
        "gelu_new" | "gelu_pytorch_tanh" | "gelu_fast" => Ok(Activation::GeluTanh),
        other => Err(ImportError::Unsupported {
            what: format!("activation \"{other}\""),
            why: "hidden_act must be silu, gelu or gelu_pytorch_tanh".into(),
        }),
    }
}

#[allow(clippy::cast_possible_truncation, clippy::cast_precision_loss, clippy::cast_sign_loss)]
fn rope(hf: &HfConfig) -> Result<Rope, ImportError> {
    let dim = (hf.head_dim as f64 * hf.partial_rotary_factor) as usize;
    if dim == 0 || !dim.is_multiple_of(2) {
        let share = hf.partial_rotary_factor;
        let why = format!("is {share}: it must leave an even part of {} elements", hf.head_dim);
        return Err(ImportError::config("partial_rotary_factor", why));
    }
    let scaling = match &hf.rope_scaling {
        Some(parameters) => scaling(hf, parameters, dim / 2)?,
        None => Scaling::None,
    };
    Ok(scaling::rope(dim, hf.rope_theta, &scaling))
}

#[allow(clippy::cast_precision_loss)]
fn scaling(hf: &HfConfig, rope: &RopeScaling, pairs: usize) -> Result<Scaling, ImportError> {
    let given = |key: &str, value: Option<f64>| {
        let missing = || ImportError::config(format!("rope_scaling.{key}"), "is missing");
        value.map(narrow).ok_or_else(missing)
    };
    let factor = || given("factor", rope.factor);
    let original = hf
        .original_max_position_embeddings
        .or(rope.original_max_position_embeddings)
        .unwrap_or(hf.max_position_embeddings);
    match rope.kind.as_str() {
        "linear" => Ok(Scaling::Linear { factor: factor()? }),
        "llama3" => {
            let low = given("low_freq_factor", rope.low_freq_factor)?;
            let high = given("high_freq_factor", rope.high_freq_factor)?;
            if high <= low {
                let why = format!("is {high}, not above low_freq_factor {low}");
                return Err(ImportError::config("rope_scaling.high_freq_factor", why));
            }
            Ok(Scaling::Llama3 { factor: factor()?, low, high, original })
        }
        "longrope" => {
            let context = hf.max_position_embeddings;
            let scale = rope.factor.unwrap_or(context as f64 / original as f64);
            let attention = rope.attention_factor.map(narrow);
            Ok(Scaling::LongRope {
                short: divisors("short_factor", &rope.short_factor, pairs)?,
                long: divisors("long_factor", &rope.long_factor, pairs)?,
                original,
                attention: attention.unwrap_or_else(|| longrope_attention_factor(scale, original)),
            })
        }
        other => Err(ImportError::Unsupported {
            what: format!("RoPE scaling \"{other}\""),
            why: "rope_scaling must be default, linear, llama3 or longrope".into(),
        }),
    }
}

fn divisors(key: &str, list: &[f64], pairs: usize) -> Result<Vec<f32>, ImportError> {
    if list.len() == pairs {
        return Ok(list.iter().copied().map(narrow).collect());
    }
    let why = format!("has {} numbers for {pairs} frequencies", list.len());
    Err(ImportError::config(format!("rope_scaling.{key}"), why))
}

/// To the precision that everything is computed in.
#[allow(clippy::cast_possible_truncation)]
fn narrow(value: f64) -> f32 {
    value as f32
}
