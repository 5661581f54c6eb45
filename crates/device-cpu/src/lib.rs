//! The processor as a device: SIMD kernels chosen at run time, and a pool of threads.
//!
//! [`CpuDevice`] packs a segment's weights once (`pack`) into panels that the kernels read from
//! beginning to end, turns its nodes into a program over reused memory (`program`), and runs that
//! over batches (`exec`). Kernels (`kernels`) are written once over sixteen-lane vectors (`simd`);
//! all instruction sets give the same bits, and so do all numbers of threads and all ways to cut
//! rows into batches.

mod buffer;
mod choice;
mod device;
mod exec;
mod isa;
mod kept;
mod kernels;
mod kv;
pub mod limits;
mod pack;
mod pool;
mod program;
mod simd;
mod system;
mod weights;

pub use choice::{Speed, speeds};
pub use device::{CpuDevice, CpuError, CpuOptions, MAX_THREADS};
pub use isa::{Isa, UnknownIsa};
pub use pool::Pool;
