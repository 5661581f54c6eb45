//! ONNX Runtime GenAI folders: `genai_config.json`, an ONNX model and what stands beside them.

use crate::genai::{self, GenaiConfig};
use crate::onnx::OnnxModel;
use crate::{FormatError, Limits, Result, Sidecars, Source};
use tangor_tensor::MapGuard;

/// A checked ONNX Runtime GenAI model.
#[derive(Debug)]
pub struct OgaCheckpoint {
    /// What to call the checkpoint in messages.
    pub name: String,
    /// What `genai_config.json` says.
    pub genai: GenaiConfig,
    /// The decoder's graph with its weights.
    pub model: OnnxModel,
    /// Tokenizer, chat template and generation defaults.
    pub sidecars: Sidecars,
    guard: MapGuard,
}

impl OgaCheckpoint {
    /// Reads the folder.
    ///
    /// # Errors
    /// If files are missing, damaged or over a limit, or the configuration contradicts itself.
    pub fn open(source: &dyn Source, limits: &Limits) -> Result<Self> {
        let config = source.read(genai::FILE, limits.json_bytes)?.ok_or_else(|| {
            FormatError::missing(source.name(), format!("has no {}", genai::FILE))
        })?;
        let genai = GenaiConfig::parse(&config, limits)?;
        let model = OnnxModel::open(source, &genai.decoder.filename, limits)?;
        let guard = MapGuard::join(model.guards.iter().map(|(_, guard)| guard));
        let sidecars = Sidecars::read(source, limits)?;
        Ok(Self { name: source.name().to_owned(), genai, model, sidecars, guard })
    }

    /// Tells whether the files stayed as they were.
    #[must_use]
    pub fn guard(&self) -> &MapGuard {
        &self.guard
    }
}
