//! Processors behind ONNX Runtime as a device: NPUs, through the plug-in execution providers that
//! their makers ship.
//!
//! [`NpuDevice`] cuts a segment into pieces between attentions, writes each as an ONNX model with
//! static shapes for a few row counts (`emit`, `weights`), and lets the provider compile it; what a
//! provider refuses is cut smaller (`prepare`). Embedding, row selection, rotation and attention
//! over the paged cache run on the host (`exec`, `attention`, `kv`). ONNX Runtime and the providers
//! are the user's: `library` finds them, `runtime` loads them, nothing of them is linked.

#![forbid(unsafe_code)]

mod attention;
mod device;
mod emit;
mod error;
mod exec;
mod kept;
mod kv;
pub mod library;
pub mod limits;
mod prepare;
mod probe;
mod proto;
mod runtime;
mod session;
mod weights;

pub use device::{Keep, NpuDevice, NpuOptions};
pub use error::NpuError;
pub use library::ProviderLibrary;
pub use runtime::{DeviceInfo, Hardware, Runtime, Survey, survey};
