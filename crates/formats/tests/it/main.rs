//! Checkpoints good and bad, seen from outside.
#![allow(clippy::unwrap_used)]

mod attacks;
mod build;
mod gguf;
mod hf;
mod limits;
mod memory;
mod onnx;
mod proto;
mod refusal;
