//! Quantised block formats: one file per format, each with its layout, its exact unpacking and its
//! reference packing.

use crate::{Group, Layout};

/// A format that stores `block_len` consecutive weights of one row in `block_bytes` bytes.
///
/// Unpacking is lossless: codes are unsigned, and `scale` and `offset` of each group are the exact
/// products that the format defines (they fit `f32` exactly), so that
/// `scale * code + offset` or `scale * (code - offset)` (see [`Layout`]) is the stored weight.
pub trait BlockFormat: Sync + std::fmt::Debug {
    /// The field's name, as `Q4_K`.
    fn name(&self) -> &'static str;
    /// Weights per block.
    fn block_len(&self) -> usize;
    /// Bytes per block.
    fn block_bytes(&self) -> usize;
    /// The canonical form that the format unpacks to.
    fn layout(&self) -> Layout;
    /// Unpacks one block.
    ///
    /// `block`: `block_bytes`; `codes`: `block_len`; `groups`: `block_len / layout().group`.
    fn unpack(&self, block: &[u8], codes: &mut [u8], groups: &mut [Group]);
    /// Whether the block's scales and offsets are finite, and therefore all its weights.
    fn is_finite(&self, block: &[u8]) -> bool;
    /// Rounds `block_len` weights to the format, to nearest and without looking at other blocks:
    /// the reference for tests, and the simplest quantiser.
    fn pack(&self, weights: &[f32], block: &mut [u8]);
}

/// Every block format that is known, by its field name.
#[must_use]
pub fn by_name(name: &str) -> Option<&'static dyn BlockFormat> {
    ALL.iter().copied().find(|format| format.name() == name)
}

/// Every block format that is known.
pub static ALL: &[&dyn BlockFormat] = &[];
