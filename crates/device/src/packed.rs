//! Packed weights that outlive a process.
//!
//! Packing a model's weights takes seconds. A device hands what it packed to a [`PackedCache`], if
//! there is one, and finds it there the next time. Devices know no files: whoever keeps them says
//! where the bytes are, and only promises that they are the ones that were written.

use std::fmt;
use tangor_tensor::{Bytes, MapGuard};

/// Keeps packed weights from one load to the next.
///
/// Keeping is optional at every point: what is not found is packed again, and what cannot be kept
/// is used all the same.
pub trait PackedCache: Send + Sync + fmt::Debug {
    /// What was kept under `key`; `None` if nothing was, or not everything of it is left.
    fn find(&self, key: &PackedKey) -> Option<PackedBytes>;
    /// Begins to keep about `bytes` bytes under `key`; `None` if they will not be kept.
    fn create(&self, key: &PackedKey, bytes: u64) -> Option<Box<dyn PackedWriter>>;
    /// Forgets what is kept under `key`, as the device found it to be something else.
    fn discard(&self, key: &PackedKey);
}

/// What tells packed weights apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PackedKey {
    /// The content of the weights: [`Graph::identity`](tangor_model::Graph::identity).
    pub model: String,
    /// What the device made of them: its name, the version of its layout, and the name and shape of
    /// every weight.
    pub form: String,
}

/// Packed weights that were kept.
#[derive(Clone, Debug)]
pub struct PackedBytes {
    /// What the device wrote about the data.
    pub index: String,
    /// All that it had written, from a multiple of 64 bytes in memory.
    pub data: Bytes,
    /// Fails once part of the data is lost: results since then are not to be used.
    pub guard: MapGuard,
}

/// Takes packed weights to be kept. Dropping it keeps nothing.
pub trait PackedWriter: fmt::Debug {
    /// Appends to the data. Says whether it is worth going on: what fails is not kept, and no error
    /// of the device.
    fn write(&mut self, bytes: &[u8]) -> bool;
    /// Keeps what was written, with an index.
    fn finish(self: Box<Self>, index: String);
}
