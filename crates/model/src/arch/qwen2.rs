//! Qwen 1.5, Qwen 2 and 2.5, DeepSeek-R1-Distill-Qwen: Llama with biases on q, k and v, and
//! windows in the upper layers where the configuration turns them on.

use super::{Arch, llama};
use crate::config::{Config, Keys};
use crate::error::ImportError;
use serde_json::Value;

pub(super) static ARCH: Arch = Arch { name: "qwen2", config, graph: llama::graph };

fn config(keys: &Keys<'_>) -> Result<Config, ImportError> {
    let mut config = Config { qkv_bias: true, ..Config::common(keys)? };
    if keys.flag("use_sliding_window")? {
        let window = keys.size_or("sliding_window", 4096)?;
        for layer in windowed_layers(keys, config.hyper.layers)? {
            config.windows[layer] = Some(window);
        }
    }
    Ok(config)
}

/// The layers that `layer_types` names, or else all from `max_window_layers` on.
fn windowed_layers(keys: &Keys<'_>, layers: usize) -> Result<Vec<usize>, ImportError> {
    let Some(types) = keys.list("layer_types")? else {
        let first = match keys.number("max_window_layers")? {
            Some(0.0) => 0,
            _ => keys.size_or("max_window_layers", 28)?,
        };
        return Ok((first..layers).collect());
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
            _ => return Err(unknown_layer_type(kind)),
        }
    }
    Ok(windowed)
}

fn unknown_layer_type(kind: &Value) -> ImportError {
    let why = format!("names {kind}; full_attention and sliding_attention are supported");
    ImportError::config("layer_types", why)
}
