//! Mistral 7B: Llama with a sliding attention window in every layer (v0.1) or none (v0.2, v0.3).

use super::{Arch, llama, window_or};
use crate::config::Config;
use crate::error::ImportError;
use tangor_formats::hf::HfConfig;

pub(super) static ARCH: Arch =
    Arch { name: "mistral", config, graph: llama::graph, gguf_pairs: true };

fn config(hf: &HfConfig) -> Result<Config, ImportError> {
    let mut config = Config::common(hf)?;
    config.windows.fill(window_or(hf, 4096));
    Ok(config)
}
