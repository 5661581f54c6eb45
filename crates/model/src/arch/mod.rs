//! One page per architecture, named as its Hugging Face `model_type`.
//!
//! A new architecture is one new file here and one row in [`ALL`].

mod llama;
mod mistral;
mod phi3;
mod qwen2;

use crate::build::{Builder, Tensors};
use crate::config::Config;
use crate::error::ImportError;
use crate::ir::Graph;
use tangor_formats::hf::HfConfig;

/// An architecture.
#[derive(Debug)]
pub struct Arch {
    /// Its Hugging Face `model_type`.
    pub name: &'static str,
    /// Reads what is particular about its configuration.
    pub(crate) config: fn(&HfConfig) -> Result<Config, ImportError>,
    /// Writes its graph.
    pub(crate) graph: fn(Builder<'_>) -> Result<Graph, ImportError>,
    /// Whether llama.cpp rotates neighbours, so that its converter reorders the rows of q and k
    /// ([`tangor_tensor::RowOrder::RopePairs`]).
    pub(crate) gguf_pairs: bool,
}

/// Every known architecture.
pub static ALL: &[&Arch] = &[&llama::ARCH, &mistral::ARCH, &phi3::ARCH, &qwen2::ARCH];

/// The architecture of a `model_type`.
///
/// # Errors
/// [`ImportError::UnknownArch`], with the names that are known.
pub fn find(model_type: &str) -> Result<&'static Arch, ImportError> {
    let unknown = || ImportError::UnknownArch {
        arch: model_type.to_owned(),
        known: ALL.iter().map(|arch| arch.name).collect::<Vec<_>>().join(", "),
    };
    ALL.iter().copied().find(|arch| arch.name == model_type).ok_or_else(unknown)
}

/// The attention window that a file says, or the one that its class takes where the file does not
/// mention the key.
fn window_or(hf: &HfConfig, default: usize) -> Option<usize> {
    if hf.raw.get("sliding_window").is_some() { hf.sliding_window } else { Some(default) }
}

/// The graph of a configuration, as its architecture's page writes it down: nothing fused.
///
/// # Errors
/// [`ImportError`] if the architecture is unknown or a tensor is missing or has the wrong shape.
pub fn graph(config: &Config, tensors: &dyn Tensors) -> Result<Graph, ImportError> {
    (find(&config.hyper.arch)?.graph)(Builder::new(config, tensors))
}
