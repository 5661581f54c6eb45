//! Bytes to checked descriptions: GGUF, safetensors with Hugging Face configurations, and ONNX
//! Runtime GenAI folders.
//!
//! [`Checkpoint::open`] reads any of them from a [`Source`]. No number from a file is trusted:
//! whatever a description hands out has been proven to lie inside its file, and what does not hold
//! together is a [`FormatError`] that says what, where and what to do. Nothing here opens files,
//! panics on input, or reserves memory because a file says so ([`Limits`]).
#![forbid(unsafe_code)]
#![cfg_attr(
    not(test),
    deny(clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::panic)
)]

mod checkpoint;
mod cursor;
mod error;
pub mod genai;
pub mod gguf;
pub mod hf;
pub mod json;
mod limits;
mod oga;
pub mod onnx;
pub mod safetensors;
mod sidecars;
mod source;
mod table;

pub use crate::checkpoint::{Checkpoint, check_finite};
pub use crate::error::{ErrorKind, FormatError, Result};
pub use crate::gguf::Gguf;
pub use crate::hf::{HfCheckpoint, HfConfig};
pub use crate::limits::Limits;
pub use crate::oga::OgaCheckpoint;
pub use crate::sidecars::Sidecars;
pub use crate::source::{MemorySource, Source, check_file_name};
/// The types in [`Source`]'s signatures, for those who implement it.
pub use tangor_tensor as tensor;
