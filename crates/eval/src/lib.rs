//! Measurements of models: how well they expect a text ([`perplexity()`]), how far a fast
//! configuration strays from an exact one ([`divergence()`]), and how fast they are ([`bench()`]).
//!
//! Nothing here prints: reports are plain data, and whoever asks may watch the progress and end it.
#![forbid(unsafe_code)]

mod divergence;
mod error;
pub mod logits;
mod perplexity;
mod reader;
mod text;

pub use divergence::{Divergence, divergence};
pub use error::EvalError;
pub use perplexity::{Perplexity, Windows, perplexity};
pub use reader::{CHUNK_TOKENS, Reader, Watch};
pub use text::ENGLISH;
