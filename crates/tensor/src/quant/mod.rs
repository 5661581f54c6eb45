//! Quantised block formats: one file per format, each with its layout, its exact unpacking and its
//! reference packing. The formats are those of ggml (`ggml-common.h`, `ggml-quants.c`).

mod iq4_nl;
mod iq4_xs;
mod q2_k;
mod q3_k;
mod q4_0;
mod q4_1;
mod q4_k;
mod q5_0;
mod q5_1;
mod q5_k;
mod q6_k;
mod q8_0;
mod shared;

pub use self::iq4_nl::Iq4Nl;
pub use self::iq4_xs::Iq4Xs;
pub use self::q2_k::Q2K;
pub use self::q3_k::Q3K;
pub use self::q4_0::Q4_0;
pub use self::q4_1::Q4_1;
pub use self::q4_k::Q4K;
pub use self::q5_0::Q5_0;
pub use self::q5_1::Q5_1;
pub use self::q5_k::Q5K;
pub use self::q6_k::Q6K;
pub use self::q8_0::Q8_0;

use crate::{Group, Layout};
use half::f16;

/// A format that stores `block_len` consecutive weights of one row in `block_bytes` bytes.
///
/// Unpacking is lossless: codes are unsigned, and `scale` and `offset` of each group are the exact
/// products that the format defines (they fit `f32` exactly), so that
/// `scale * code + offset` or `scale * (code - offset)` (see [`Layout`]) is the stored weight.
///
/// # Panics
/// Methods that take slices panic if their lengths are not the ones that they document.
pub trait BlockFormat: Sync + std::fmt::Debug {
    /// The field's name, as `Q4_K`.
    fn name(&self) -> &'static str;
    /// Weights per block.
    fn block_len(&self) -> usize;
    /// Bytes per block.
    fn block_bytes(&self) -> usize;
    /// The canonical form that the format unpacks to.
    fn layout(&self) -> Layout;
    /// Bits that a code needs at the most: those of the layout, or fewer.
    fn code_bits(&self) -> u8 {
        let Layout::Quant { bits, .. } = self.layout() else { return 8 };
        bits
    }
    /// How scales and minima come, if a block has factors of all of its groups in common.
    fn factored(&self) -> Option<&dyn Factored> {
        None
    }
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

/// A format whose scales and minima are whole numbers times factors of the whole block: a device
/// that stores them so spends a byte on each. Products of the two are exact in `f32`.
pub trait Factored {
    /// The factors of a block, and of each of its groups the whole numbers.
    fn factors(&self, block: &[u8], units: &mut [Units]) -> Factors;
}

/// What a block's whole numbers are multiplied with.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Factors {
    /// `Group::scale` is this times [`Units::scale`].
    pub scale: f16,
    /// `Group::offset` is this times [`Units::min`] if it is a minimum; else 0.
    pub min: f16,
}

/// The whole numbers of a group.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Units {
    /// Of its scale.
    pub scale: i8,
    /// Of its minimum, if it has one; else 0.
    pub min: i8,
}

/// Every block format that is known, by its field name.
#[must_use]
pub fn by_name(name: &str) -> Option<&'static dyn BlockFormat> {
    ALL.iter().copied().find(|format| format.name() == name)
}

/// Every block format that is known.
pub static ALL: &[&dyn BlockFormat] =
    &[&Q4_0, &Q4_1, &Q5_0, &Q5_1, &Q8_0, &Q2K, &Q3K, &Q4K, &Q5K, &Q6K, &Iq4Nl, &Iq4Xs];
