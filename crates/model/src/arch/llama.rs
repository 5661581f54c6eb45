//! Llama: Llama 2, 3, 3.1 and 3.2, SmolLM2, DeepSeek-R1-Distill-Llama and everything else that
//! calls itself `llama`.
//!
//! A pre-norm decoder: RMS norm, grouped-query attention with rotary embedding, gated MLP.

use super::Arch;
use crate::build::Builder;
use crate::config::Config;
use crate::error::ImportError;
use crate::ir::Graph;
use tangor_formats::hf::HfConfig;

pub(super) static ARCH: Arch = Arch { name: "llama", config, graph, gguf_pairs: true };

fn config(hf: &HfConfig) -> Result<Config, ImportError> {
    Ok(Config {
        qkv_bias: hf.attention_bias,
        output_bias: hf.attention_bias,
        mlp_bias: hf.mlp_bias,
        ..Config::common(hf)?
    })
}

/// Also the graph of the architectures that only add biases or windows.
pub(super) fn graph(mut b: Builder<'_>) -> Result<Graph, ImportError> {
    let mut x = b.embed()?;
    for layer in 0..b.config.hyper.layers {
        let normed = b.norm(&format!("model.layers.{layer}.input_layernorm"), x)?;
        let attended = b.separate_attention(layer, normed)?;
        x = b.add(layer, "self_attn", x, attended)?;
        let normed = b.norm(&format!("model.layers.{layer}.post_attention_layernorm"), x)?;
        let mlp = b.separate_mlp(layer, normed)?;
        x = b.add(layer, "mlp", x, mlp)?;
    }
    b.head(x)
}
