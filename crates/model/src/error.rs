//! What can be wrong with a checkpoint, beyond its file format.

use crate::ir::ShapeError;
use tangor_formats::FormatError;
use tangor_tensor::WeightError;

/// A checkpoint that cannot become a graph.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ImportError {
    /// No page in [`crate::arch`] has this name.
    #[error("unknown architecture \"{arch}\" (known: {known}); convert the model or pick another")]
    UnknownArch {
        /// What the file says it is.
        arch: String,
        /// Names of all known architectures, with commas.
        known: String,
    },
    /// No published model of this name is in [`crate::shapes`].
    #[error("unknown shape \"{name}\" (known: {known})")]
    UnknownShape {
        /// What was asked for.
        name: String,
        /// All known names, with commas.
        known: String,
    },
    /// A configuration key is missing or has an impossible value.
    #[error("configuration key \"{key}\" {why}")]
    Config {
        /// The key, as the file spells it.
        key: String,
        /// What is wrong with it.
        why: String,
    },
    /// The model needs something that no device has.
    #[error("{what} is not supported: {why}")]
    Unsupported {
        /// The feature.
        what: String,
        /// What would be right, or what to use instead.
        why: String,
    },
    /// A tensor that the architecture needs is not in the file.
    #[error("tensor \"{name}\" is missing{stored_as} (expected {rows} x {cols})")]
    MissingTensor {
        /// The Hugging Face name.
        name: String,
        /// ` (in the file it would be "…")`, where the file has another name for it; else empty.
        stored_as: String,
        /// Outputs that the configuration asks for.
        rows: usize,
        /// Inputs that the configuration asks for.
        cols: usize,
    },
    /// A tensor's shape contradicts the configuration.
    #[error("tensor \"{name}\" is {found_rows} x {found_cols}, not {rows} x {cols} as configured")]
    TensorShape {
        /// The Hugging Face name.
        name: String,
        /// Outputs that the configuration asks for.
        rows: usize,
        /// Inputs that the configuration asks for.
        cols: usize,
        /// Outputs in the file.
        found_rows: usize,
        /// Inputs in the file.
        found_cols: usize,
    },
    /// The file has a tensor that the architecture does not use.
    #[error("tensor \"{name}\" is no part of the architecture that the file says it has")]
    LeftOver {
        /// The tensor's name in the file.
        name: String,
    },
    /// A tensor's parts do not fit together.
    #[error("tensor \"{name}\": {source}")]
    Weight {
        /// The Hugging Face name.
        name: String,
        /// What does not fit.
        source: WeightError,
    },
    /// The file itself is wrong.
    #[error(transparent)]
    Format(#[from] FormatError),
    /// A node does not fit the values that it reads.
    #[error(transparent)]
    Shape(#[from] ShapeError),
}

impl ImportError {
    /// A complaint about a configuration key.
    pub(crate) fn config(key: impl Into<String>, why: impl Into<String>) -> Self {
        Self::Config { key: key.into(), why: why.into() }
    }
}
