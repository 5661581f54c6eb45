//! From a checkpoint's description to the graph that every device runs.
//!
//! [`ir`] is the graph: about a dozen coarse operations over named weights, the same for GGUF,
//! safetensors and ONNX. [`arch`] holds one page per architecture, [`import`](mod@import) one file
//! per checkpoint format, [`pass`] the rewrites, [`shapes`] published models without their weights.
//! Nothing here knows that devices exist.
#![forbid(unsafe_code)]

pub mod arch;
mod build;
mod config;
mod error;
pub mod import;
pub mod ir;
mod mixture;
pub mod pass;
mod print;
pub mod rope;
pub mod scaling;
pub mod shapes;

pub use build::Tensors;
pub use config::Config;
pub use error::ImportError;
pub use import::import;
pub use ir::{Graph, Node, NodeId, Op, ValueId, WeightId};
pub use mixture::Mixture;
pub use tangor_formats as formats;
pub use tangor_tensor as tensor;
