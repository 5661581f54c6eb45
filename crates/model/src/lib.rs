//! From a checkpoint's description to the graph that every device runs.
//!
//! [`ir`] is the graph: about a dozen coarse operations over named weights, the same for GGUF,
//! safetensors and ONNX. [`arch`] holds one page per architecture, [`import`] one file per checkpoint
//! format, [`pass`] the rewrites. Nothing here knows that devices exist.

pub mod ir;
pub mod rope;

pub use ir::{Graph, Node, NodeId, Op, ValueId, WeightId};
pub use tangor_formats as formats;
pub use tangor_tensor as tensor;
