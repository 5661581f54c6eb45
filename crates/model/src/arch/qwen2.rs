//! Qwen 1.5, Qwen 2 and 2.5, DeepSeek-R1-Distill-Qwen: Llama with biases on q, k and v, and
//! windows in the upper layers where the configuration turns them on.

use super::{Arch, llama, window_or};
use crate::config::Config;
use crate::error::ImportError;
use serde_json::Value;
use tangor_formats::hf::HfConfig;

pub(super) static ARCH: Arch =
    Arch { name: "qwen2", config, graph: llama::graph, gguf_pairs: false };

fn config(hf: &HfConfig) -> Result<Config, ImportError> {
    let mut config = Config { qkv_bias: true, ..Config::common(hf)? };
    if hf.raw.get("use_sliding_window").and_then(Value::as_bool) == Some(true) {
        let window = window_or(hf, 4096);
        for layer in windowed_layers(hf)? {
            config.windows[layer] = window;
        }
    }
    Ok(config)
}

/// The layers that `layer_types` names, or else all from `max_window_layers` on.
fn windowed_layers(hf: &HfConfig) -> Result<Vec<usize>, ImportError> {
    let layers = hf.num_hidden_layers;
    let Some(types) = hf.raw.get("layer_types").and_then(Value::as_array) else {
        // The class's default, for files that do not mention the key.
        return Ok((hf.max_window_layers.unwrap_or(28)..layers).collect());
    };
    if types.len() != layers {
        let why = format!("has {} entries for {layers} layers", types.len());
        return Err(ImportError::config("layer_types", why));
    }
    let mut windowed = Vec::new();
    for (layer, kind) in types.iter().enumerate() {
        match kind.as_str() {
            Some("sliding_attention") => windowed.push(layer),
            Some("full_attention") => {}
            _ => {
                let why = format!("names {kind}, not full_attention or sliding_attention");
                return Err(ImportError::config("layer_types", why));
            }
        }
    }
    Ok(windowed)
}
