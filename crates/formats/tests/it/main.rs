//! Checkpoints good and bad, seen from outside.
#![allow(clippy::unwrap_used)]

mod attacks;
mod build;
mod counting;
mod gguf;
mod hf;
mod limits;
#[cfg(unix)]
mod mapped;
mod memory;
mod onnx;
mod proto;
mod refusal;
