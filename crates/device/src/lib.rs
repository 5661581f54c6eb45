//! The contract between the engine and whatever runs a graph, the oracle that defines what is
//! correct, and the conformance suite that every device passes.

#![forbid(unsafe_code)]

pub mod conformance;
mod contract;
mod host;
pub mod kept;
pub mod oracle;
mod packed;
pub mod rounding;

pub use contract::{
    Activations, Arithmetic, Batch, Descriptor, Device, DeviceError, DeviceKind, Health, KvCache,
    KvSpec, KvType, Logits, MemoryKind, PageId, Prepare, Products, Rounding, Runnable, Segment,
    Span,
};
pub use host::HostMemory;
pub use packed::{PackedBytes, PackedCache, PackedKey, PackedWriter};
pub use tangor_model as model;
pub use tangor_tensor as tensor;
