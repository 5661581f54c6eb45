//! How a model comes into memory: whoever starts the server knows the devices, the server does not.

use std::fmt::Debug;
use std::sync::Arc;
use tangor_engine::{Model, SamplingParams};
use tangor_store::Installed;

/// What a client may say about how a model is loaded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LoadAsk {
    /// Longest sequence; `None`: what the server was started with.
    pub context: Option<usize>,
}

/// A model that is ready.
#[derive(Debug)]
pub struct Loaded {
    /// The model.
    pub model: Arc<Model>,
    /// How its publisher wants tokens to be chosen.
    pub recommended: SamplingParams,
}

/// Loads models.
pub trait Loader: Debug + Send + Sync {
    /// Loads a model; called on a thread that may block.
    ///
    /// # Errors
    /// Why not, in one line that clients may read.
    fn load(&self, installed: &Installed, ask: &LoadAsk) -> Result<Loaded, String>;
}
