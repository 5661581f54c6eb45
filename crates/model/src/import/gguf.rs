//! GGUF: keys and tensors take their Hugging Face names, and then an architecture's page builds the
//! graph as it would from a `config.json`.
//!
//! Names are those of llama.cpp's converter (`gguf-py/gguf/constants.py`). What it changes besides
//! names is undone here: the llama family's q and k rows are permuted, Llama 3's frequencies are a
//! tensor of divisors, Phi-3's long and short factors are tensors.

use super::{Taken, vector};
use crate::build::Tensors;
use crate::config::Config;
use crate::error::ImportError;
use crate::ir::Graph;
use crate::rope::{Angles, Rope};
use crate::scaling::{self, Scaling, longrope_attention_factor};
use serde_json::{Value, json};
use tangor_formats::gguf::{Metadata, TensorInfo};
use tangor_formats::hf::HfConfig;
use tangor_formats::{FormatError, Gguf, Limits};
use tangor_tensor::{RowOrder, Weight};

/// The graph of a GGUF file, nothing fused.
///
/// # Errors
/// [`ImportError`], naming keys and tensors as the file does where it is about the file.
pub fn graph(gguf: &Gguf) -> Result<Graph, ImportError> {
    let config = config(gguf)?;
    let tensors = GgufTensors { gguf, config: &config, taken: Taken::default() };
    let graph = crate::arch::graph(&config, &tensors)?;
    let ignored = |name: &str| [DIVISORS, SHORT_FACTORS, LONG_FACTORS].contains(&name);
    tensors.taken.check(gguf.tensors().map(TensorInfo::name), ignored, |name| gguf.tensor(name))?;
    Ok(graph)
}

/// The configuration of a GGUF file.
///
/// # Errors
/// [`ImportError`] for keys that are missing or impossible and for unknown architectures.
pub fn config(gguf: &Gguf) -> Result<Config, ImportError> {
    let file = File { gguf, arch: gguf.metadata().str("general.architecture")? };
    crate::arch::find(file.arch)?;
    file.causal()?;
    let hf = HfConfig::from_json(file.hf_config()?, &Limits::default());
    let hf = hf.map_err(|error| error.of(format!("{}: metadata as a config.json", gguf.name())))?;
    let mut config = Config::from_hf(&hf)?;
    config.rope = file.rope(&config)?;
    // Files have biases in front of attention, behind it, or both; no key tells.
    config.output_bias = file.has_bias(&["attn_output"]);
    Ok(config)
}

/// Modules of a layer and what GGUF calls them.
const MODULES: &[(&str, &str)] = &[
    ("input_layernorm", "attn_norm"),
    ("self_attn.q_proj", "attn_q"),
    ("self_attn.k_proj", "attn_k"),
    ("self_attn.v_proj", "attn_v"),
    ("self_attn.qkv_proj", "attn_qkv"),
    ("self_attn.o_proj", "attn_output"),
    ("post_attention_layernorm", "ffn_norm"),
    ("mlp.gate_proj", "ffn_gate"),
    ("mlp.up_proj", "ffn_up"),
    // Phi-3's, whose file has no `ffn_gate`.
    ("mlp.gate_up_proj", "ffn_up"),
    ("mlp.down_proj", "ffn_down"),
];

/// What GGUF calls a tensor; `None` if it has no name for it.
fn gguf_name(hf: &str) -> Option<String> {
    match hf {
        "model.embed_tokens.weight" => Some(EMBEDDING.into()),
        "model.norm.weight" => Some("output_norm.weight".into()),
        "lm_head.weight" => Some("output.weight".into()),
        _ => {
            let (layer, rest) = hf.strip_prefix("model.layers.")?.split_once('.')?;
            let (module, kind) = rest.rsplit_once('.')?;
            let (_, module) = MODULES.iter().find(|(hf, _)| *hf == module)?;
            Some(format!("blk.{layer}.{module}.{kind}"))
        }
    }
}

/// A file and the prefix of its keys.
struct File<'a> {
    gguf: &'a Gguf,
    arch: &'a str,
}

impl File<'_> {
    fn metadata(&self) -> &Metadata {
        self.gguf.metadata()
    }

    fn key(&self, name: &str) -> String {
        format!("{}.{name}", self.arch)
    }

    fn has(&self, tensor: &str) -> bool {
        self.gguf.tensor_info(tensor).is_some()
    }

    /// Whether the first layer has a bias in one of these modules.
    fn has_bias(&self, modules: &[&str]) -> bool {
        modules.iter().any(|module| self.has(&format!("blk.0.{module}.bias")))
    }

    /// Models that make vectors of whole texts let a token see the ones after it.
    fn causal(&self) -> Result<(), ImportError> {
        let key = self.key("attention.causal");
        match self.metadata().opt_bool(&key)? {
            Some(false) => Err(ImportError::Unsupported {
                what: "attention to the tokens that follow".into(),
                why: format!("{key} must be true; such models make vectors, not text"),
            }),
            _ => Ok(()),
        }
    }

    /// The metadata as a `config.json` would have it, except for the rotary embedding's scaling.
    fn hf_config(&self) -> Result<Value, ImportError> {
        let metadata = self.metadata();
        if let Some(experts) = metadata.opt_usize(&self.key("expert_count"))?.filter(|&n| n > 0) {
            return Err(ImportError::Unsupported {
                what: format!("a mixture of {experts} experts"),
                why: "every layer must have one MLP".into(),
            });
        }
        let required = |name: &str| metadata.usize(&self.key(name));
        let optional = |name: &str| metadata.opt_usize(&self.key(name));
        let window = optional("attention.sliding_window")?.filter(|&window| window > 0);
        // Mistral's files say that they are llama.
        let mistral = self.arch == "llama" && window.is_some();
        let table = self.gguf.tensor_info(EMBEDDING).ok_or_else(|| {
            FormatError::missing(self.gguf.name(), format!("has no tensor {EMBEDDING:?}"))
        })?;
        let vocab = table.dims().get(1).copied();
        Ok(json!({
            "model_type": if mistral { "mistral" } else { self.arch },
            "num_hidden_layers": required("block_count")?,
            "hidden_size": required("embedding_length")?,
            "intermediate_size": required("feed_forward_length")?,
            "num_attention_heads": required("attention.head_count")?,
            "num_key_value_heads": optional("attention.head_count_kv")?,
            "head_dim": optional("attention.key_length")?,
            "vocab_size": vocab,
            "max_position_embeddings": required("context_length")?,
            "rms_norm_eps": metadata.f32(&self.key("attention.layer_norm_rms_epsilon"))?,
            "sliding_window": window,
            "tie_word_embeddings": !self.has("output.weight"),
            "attention_bias": self.has_bias(&["attn_q", "attn_k", "attn_v", "attn_qkv"]),
            "mlp_bias": self.has_bias(&["ffn_gate", "ffn_up", "ffn_down"]),
        }))
    }

    fn rope(&self, config: &Config) -> Result<Rope, ImportError> {
        let (metadata, hyper) = (self.metadata(), &config.hyper);
        let key = self.key("rope.dimension_count");
        let dim = metadata.opt_usize(&key)?.unwrap_or(hyper.head_dim);
        if dim == 0 || dim > hyper.head_dim || !dim.is_multiple_of(2) {
            let why = format!("is {dim}, not an even part of heads of {}", hyper.head_dim);
            return Err(ImportError::config(key, why));
        }
        // Where a file has its pairs next to each other, they are those of whole heads.
        if dim != hyper.head_dim && crate::arch::find(&hyper.arch)?.gguf_pairs {
            return Err(ImportError::Unsupported {
                what: format!("a rotary embedding of {dim} of the {} elements", hyper.head_dim),
                why: format!("{key} must be all of a head where heads are stored in pairs"),
            });
        }
        let theta = metadata.opt_f32(&self.key("rope.freq_base"))?.unwrap_or(10_000.0);
        let scaling = self.scaling(hyper.context, dim)?;
        let mut rope = scaling::rope(dim, f64::from(theta), &scaling);
        // LongRoPE's variants have it already.
        if let (Angles::Frequencies { factor, .. }, None) = (&mut rope.short, &rope.long) {
            *factor = self.attention_factor()?.unwrap_or(1.0);
        }
        Ok(rope)
    }

    /// The factor on cosines and sines.
    fn attention_factor(&self) -> Result<Option<f32>, ImportError> {
        let key = self.key("rope.scaling.attn_factor");
        match self.metadata().opt_f32(&key)? {
            Some(factor) if factor <= 0.0 => {
                Err(ImportError::config(key, format!("is {factor}, not a positive number")))
            }
            factor => Ok(factor),
        }
    }

    fn scaling(&self, context: usize, dim: usize) -> Result<Scaling, ImportError> {
        let factor = self.factor()?;
        let tensor = [SHORT_FACTORS, LONG_FACTORS, DIVISORS].into_iter().find(|t| self.has(t));
        match (tensor, factor) {
            (None, None) => Ok(Scaling::None),
            (None, Some(factor)) => Ok(Scaling::Linear { factor }),
            (Some(tensor), Some(factor)) => Err(ImportError::Unsupported {
                what: format!("RoPE scaling by {factor} beside the tensor \"{tensor}\""),
                why: format!("only one of {} and the tensor may be there", self.key(FACTOR)),
            }),
            (Some(DIVISORS), None) => Ok(Scaling::Divisors(self.divisors(DIVISORS, dim)?)),
            (Some(_), None) => self.longrope(context, dim),
        }
    }

    /// What all frequencies are divided by, unless that changes nothing.
    fn factor(&self) -> Result<Option<f32>, ImportError> {
        let metadata = self.metadata();
        let factor = metadata.opt_f32(&self.key(FACTOR))?;
        let factor = factor.or(metadata.opt_f32(&self.key("rope.scale_linear"))?);
        let name = metadata.opt_str(&self.key("rope.scaling.type"))?;
        let longrope = self.has(SHORT_FACTORS) || self.has(LONG_FACTORS);
        match (name, factor) {
            (None | Some("none"), None) | (Some("none"), _) => Ok(None),
            (Some("longrope"), None) if longrope => Ok(None),
            (None | Some("linear"), Some(factor)) if factor > 0.0 => {
                Ok(Some(factor).filter(|factor| factor.to_bits() != 1f32.to_bits()))
            }
            (None | Some("linear"), _) => {
                Err(ImportError::config(self.key(FACTOR), "is missing, or not a positive number"))
            }
            (Some(other), _) => Err(ImportError::Unsupported {
                what: format!("RoPE scaling \"{other}\""),
                why: format!("{} must be none or linear", self.key("rope.scaling.type")),
            }),
        }
    }

    #[allow(clippy::cast_precision_loss)]
    fn longrope(&self, context: usize, dim: usize) -> Result<Scaling, ImportError> {
        let metadata = self.metadata();
        let key = self.key("rope.scaling.original_context_length");
        let original = metadata.opt_usize(&key)?.unwrap_or(context);
        if original == 0 {
            return Err(ImportError::config(key, "is 0"));
        }
        let attention = self.attention_factor()?;
        let scale = context as f64 / original as f64;
        Ok(Scaling::LongRope {
            short: self.divisors(SHORT_FACTORS, dim)?,
            long: self.divisors(LONG_FACTORS, dim)?,
            original,
            attention: attention.unwrap_or_else(|| longrope_attention_factor(scale, original)),
        })
    }

    /// A vector of `dim / 2` positive numbers.
    fn divisors(&self, name: &str, dim: usize) -> Result<Vec<f32>, ImportError> {
        let weight = self.gguf.tensor(name)?;
        let (rows, cols) = (1, dim / 2);
        if (weight.rows(), weight.cols()) != (rows, cols) {
            let (found_rows, found_cols) = (weight.rows(), weight.cols());
            let name = name.to_owned();
            return Err(ImportError::TensorShape { name, rows, cols, found_rows, found_cols });
        }
        let divisors = vector(&weight);
        match divisors.iter().find(|divisor| **divisor <= 0.0) {
            Some(divisor) => Err(ImportError::Unsupported {
                what: format!("a RoPE divisor of {divisor} in tensor \"{name}\""),
                why: "divisors must be positive".into(),
            }),
            None => Ok(divisors),
        }
    }
}

const EMBEDDING: &str = "token_embd.weight";
const FACTOR: &str = "rope.scaling.factor";
const DIVISORS: &str = "rope_freqs.weight";
const SHORT_FACTORS: &str = "rope_factors_short.weight";
const LONG_FACTORS: &str = "rope_factors_long.weight";

/// A file's tensors by their Hugging Face names.
struct GgufTensors<'a> {
    gguf: &'a Gguf,
    config: &'a Config,
    taken: Taken,
}

impl Tensors for GgufTensors<'_> {
    fn weight(&self, name: &str, rows: usize, cols: usize) -> Result<Weight, ImportError> {
        let own_name = gguf_name(name).unwrap_or_else(|| name.to_owned());
        let wrong = |source| ImportError::Weight { name: name.to_owned(), source };
        let found = match self.gguf.tensor_info(&own_name) {
            Some(_) => Some(self.take(&own_name)?),
            None => self.part_of_qkv(name)?,
        };
        let Some(weight) = found else {
            let stored_as = format!(" (in {} it is \"{own_name}\")", self.gguf.name());
            return Err(ImportError::MissingTensor { name: name.into(), stored_as, rows, cols });
        };
        if !self.permuted(name) {
            return Ok(weight);
        }
        let head_dim = self.config.hyper.head_dim;
        let order = RowOrder::RopePairs { head_dim };
        match name.ends_with(".bias") {
            true => unpermuted(&weight, head_dim).map_err(wrong),
            false => weight.reordered(order).map_err(wrong),
        }
    }
}

impl GgufTensors<'_> {
    fn take(&self, name: &str) -> Result<Weight, ImportError> {
        self.taken.take(name);
        Ok(self.gguf.tensor(name)?)
    }

    /// Whether rows of q and k stand in the order of llama.cpp's rotary embedding.
    fn permuted(&self, name: &str) -> bool {
        let pairs = crate::arch::find(&self.config.hyper.arch).is_ok_and(|arch| arch.gguf_pairs);
        pairs && (name.contains(".q_proj.") || name.contains(".k_proj."))
    }

    /// Rows of `attn_qkv`, which some converters write for every architecture.
    fn part_of_qkv(&self, name: &str) -> Result<Option<Weight>, ImportError> {
        let (q, kv) = (self.config.q_width(), self.config.kv_width());
        let parts = [("q_proj", 0..q), ("k_proj", q..q + kv), ("v_proj", q + kv..q + 2 * kv)];
        let Some((part, rows)) = parts.into_iter().find(|(part, _)| name.contains(part)) else {
            return Ok(None);
        };
        let Some(fused) = gguf_name(&name.replace(part, "qkv_proj")) else { return Ok(None) };
        if self.gguf.tensor_info(&fused).is_none() {
            return Ok(None);
        }
        let weight = self.take(&fused)?;
        let (bias, whole) = (name.ends_with(".bias"), q + 2 * kv);
        let (found_rows, found_cols) = (weight.rows(), weight.cols());
        let (rows_of_all, cols) = if bias { (1, whole) } else { (whole, found_cols) };
        if (found_rows, found_cols) != (rows_of_all, cols) {
            let (name, rows) = (fused, rows_of_all);
            return Err(ImportError::TensorShape { name, rows, cols, found_rows, found_cols });
        }
        let wrong = |source| ImportError::Weight { name: fused.clone(), source };
        let part =
            if bias { Weight::vector(&vector(&weight)[rows]) } else { weight.slice_rows(rows) };
        part.map(Some).map_err(wrong)
    }
}

/// A bias whose elements stand in the order of [`RowOrder::RopePairs`], as it was.
fn unpermuted(bias: &Weight, head_dim: usize) -> Result<Weight, tangor_tensor::WeightError> {
    let column: Vec<u8> = vector(bias).iter().flat_map(|v| v.to_le_bytes()).collect();
    let column = Weight::dense(tangor_tensor::DType::F32, bias.cols(), 1, column.into())?
        .reordered(RowOrder::RopePairs { head_dim })?;
    let mut values = vec![0.0; bias.cols()];
    for (row, value) in values.iter_mut().enumerate() {
        column.row_f32(row, std::slice::from_mut(value));
    }
    Weight::vector(&values)
}
