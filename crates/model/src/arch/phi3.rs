//! Phi-3 and Phi-3.5 mini: q, k and v in one projection, gate and up in another, `LongRoPE`, and a
//! sliding window in every layer.

use super::Arch;
use crate::build::Builder;
use crate::config::Config;
use crate::error::ImportError;
use crate::ir::Graph;
use tangor_formats::hf::HfConfig;

pub(super) static ARCH: Arch = Arch { name: "phi3", config, graph, gguf_pairs: false };

fn config(hf: &HfConfig) -> Result<Config, ImportError> {
    let mut config = Config::common(hf)?;
    config.windows.fill(hf.sliding_window);
    Ok(config)
}

fn graph(mut b: Builder<'_>) -> Result<Graph, ImportError> {
    let qkv_width = b.config.q_width() + 2 * b.config.kv_width();
    let gate_up_width = 2 * b.config.hyper.ffn;
    let mut x = b.embed()?;
    for layer in 0..b.config.hyper.layers {
        let module = |part| format!("model.layers.{layer}.{part}");
        let normed = b.norm(&module("input_layernorm"), x)?;
        let qkv = b.linear(&module("self_attn.qkv_proj"), normed, qkv_width, false)?;
        let attended = b.attention(layer, &[qkv])?;
        x = b.add(layer, "self_attn", x, attended)?;
        let normed = b.norm(&module("post_attention_layernorm"), x)?;
        let gate_up = b.linear(&module("mlp.gate_up_proj"), normed, gate_up_width, false)?;
        let mlp = b.gated(layer, &[gate_up])?;
        x = b.add(layer, "mlp", x, mlp)?;
    }
    b.head(x)
}
