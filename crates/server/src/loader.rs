//! How a model comes into memory: whoever starts the server knows the devices, the server does not.

use std::fmt::Debug;
use std::sync::Arc;
use tangor_engine::plan::PlanError;
use tangor_engine::{EngineError, Model, SamplingParams};
use tangor_store::{Installed, StoreError};

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

/// Why a model cannot be loaded.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LoadError {
    /// Its files cannot be had. Clients learn what was tried, and no path.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// No plan fits, or a device refuses.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// Anything else, in one line that clients may read.
    #[error("{0}")]
    Other(String),
}

impl LoadError {
    /// Bytes that it would have needed more, at the least, if that is why.
    pub(crate) fn lacked(&self) -> Option<u64> {
        let Self::Engine(EngineError::Plan(why)) = self else { return None };
        match why {
            PlanError::WeightsDoNotFit { needed, limit, .. }
            | PlanError::KvDoesNotFit { needed, limit, .. } => {
                Some(needed.saturating_sub(*limit).max(1))
            }
            _ => None,
        }
    }
}

/// Loads models.
pub trait Loader: Debug + Send + Sync {
    /// Loads a model, to take at most `memory` bytes where that is said; called on a thread that
    /// may block.
    ///
    /// # Errors
    /// Why not.
    fn load(
        &self,
        installed: &Installed,
        ask: &LoadAsk,
        memory: Option<u64>,
    ) -> Result<Loaded, LoadError>;
}
