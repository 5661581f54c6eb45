//! The graphics processor as a device, by wgpu: Vulkan, Direct3D 12 or Metal.
//!
//! [`GpuDevice`] packs a segment's weights once (`pack`, `weights`) into a form that few and many
//! rows read alike, or finds them packed (`kept`), turns its nodes into a list of dispatches over
//! reused buffers (`program`), and runs that over batches with one upload, one submission and one
//! wait (`run`). Kernels are texts in WGSL (`shaders`), put together from pieces (`shader`) and
//! compiled once (`kernels`); they need nothing that an adapter might lack.
//!
//! Every sum is cut along the inner dimension alone (blocks of 128 inputs of a linear, pages of
//! keys in attention), and its parts are added in order, so that a row's result does not depend on
//! what else is in the batch. Activations in 8 bits are multiplied as the numbers that they stand
//! for, or, where the adapter has an instruction for it, as integers: exact within 32 inputs, which
//! are then scaled. A device does one or the other, for one row and for many.

#![deny(unsafe_code)]

mod adapter;
mod context;
mod device;
mod error;
mod kept;
mod kernels;
mod kv;
pub mod limits;
mod memory;
mod pack;
mod profile;
mod program;
mod run;
mod shader;
mod tiles;
mod weights;

pub use adapter::{AdapterChoice, AdapterFacts, AdapterKind, adapters};
pub use device::{GpuDevice, GpuOptions};
pub use error::GpuError;
pub use profile::{Profile, Spent};
