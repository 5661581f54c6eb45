//! Bytes to checked descriptions: GGUF, safetensors with Hugging Face configurations, and ONNX
//! Runtime GenAI folders.
//!
//! [`Checkpoint::open`] reads any of them from a [`Source`]. No number from a file is trusted:
//! whatever a description hands out has been proven to lie inside its file, and what does not hold
//! together is a [`FormatError`] that says what, where and what to do. Nothing here opens files,
//! panics on input, or reserves memory because a file says so ([`Limits`]).
#![forbid(unsafe_code)]

mod cursor;
mod error;
pub mod genai;
pub mod gguf;
mod limits;
pub mod onnx;
mod source;
mod table;

pub use crate::error::{ErrorKind, FormatError, Result};
pub use crate::gguf::Gguf;
pub use crate::limits::Limits;
pub use crate::source::{MemorySource, Source, check_file_name};
