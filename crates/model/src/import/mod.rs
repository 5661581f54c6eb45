//! Checkpoints of every format to graphs, one file per format.

pub mod gguf;
