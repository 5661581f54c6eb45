//! Hugging Face folders: configuration and names are as the architectures' pages want them.

use super::Taken;
use crate::build::Tensors;
use crate::config::Config;
use crate::error::ImportError;
use crate::ir::Graph;
use tangor_formats::HfCheckpoint;
use tangor_tensor::Weight;

/// The graph of a folder, nothing fused.
///
/// # Errors
/// [`ImportError`], naming the key or tensor.
pub fn graph(checkpoint: &HfCheckpoint) -> Result<Graph, ImportError> {
    let config = Config::from_hf(checkpoint.config())?;
    let tensors = HfTensors { checkpoint, taken: Taken::default() };
    let graph = crate::arch::graph(&config, &tensors)?;
    let ignored = |name: &str| {
        // Computed from the configuration; and the copy of a tied embedding.
        name.ends_with("rotary_emb.inv_freq") || (config.tied && name == "lm_head.weight")
    };
    tensors.taken.check(checkpoint.tensor_names(), ignored, |name| checkpoint.tensor(name))?;
    Ok(graph)
}

struct HfTensors<'a> {
    checkpoint: &'a HfCheckpoint,
    taken: Taken,
}

impl Tensors for HfTensors<'_> {
    fn weight(&self, name: &str, rows: usize, cols: usize) -> Result<Weight, ImportError> {
        if !self.checkpoint.has(name) {
            let (name, stored_as) = (name.to_owned(), String::new());
            return Err(ImportError::MissingTensor { name, stored_as, rows, cols });
        }
        self.taken.take(name);
        Ok(self.checkpoint.tensor(name)?)
    }
}
