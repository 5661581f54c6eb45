//! `IQ4_NL`: 32 weights, one scale, codes into a table of sixteen values.
//!
//! `d: f16`, then 16 bytes of codes: weight `i` in the low nibble of byte `i`, weight `i + 16` in
//! its high nibble. `w = d * TABLE[code]`; the canonical code is `TABLE[code] + 128`.

use super::BlockFormat;
use super::shared::{
    extreme, f16_at, inverse, is_f16_finite, join_nibbles, put_f16, split_nibbles,
};
use crate::{Group, Layout, Offset};

const LEN: usize = 32;
const BYTES: usize = 2 + LEN / 2;
const _: () = assert!(BYTES == 18);

/// What the codes stand for: denser near zero, where most weights are.
const TABLE: [i8; 16] = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];

/// The format `IQ4_NL`.
#[derive(Debug)]
pub struct Iq4Nl;

impl BlockFormat for Iq4Nl {
    fn name(&self) -> &'static str {
        "IQ4_NL"
    }

    fn block_len(&self) -> usize {
        LEN
    }

    fn block_bytes(&self) -> usize {
        BYTES
    }

    fn layout(&self) -> Layout {
        Layout::Quant { bits: 8, group: LEN, offset: Offset::Zero }
    }

    fn unpack(&self, block: &[u8], codes: &mut [u8], groups: &mut [Group]) {
        groups[0] = Group { scale: f16_at(block, 0), offset: 128.0 };
        unpack_values(&block[2..BYTES], codes);
    }

    fn is_finite(&self, block: &[u8]) -> bool {
        is_f16_finite(block, 0)
    }

    fn pack(&self, weights: &[f32], block: &mut [u8]) {
        let d = put_f16(block, 0, scale_of(weights));
        pack_values(weights, d, &mut block[2..BYTES]);
    }
}

/// Canonical codes of 32 packed ones.
pub(super) fn unpack_values(packed: &[u8], codes: &mut [u8]) {
    split_nibbles(packed, codes);
    for code in codes {
        *code = TABLE[usize::from(*code & 15)].cast_unsigned() ^ 0x80;
    }
}

/// Rounds 32 weights to the nearest of the table's values times `scale`.
pub(super) fn pack_values(weights: &[f32], scale: f32, packed: &mut [u8]) {
    let inverse = inverse(scale);
    let mut codes = [0; LEN];
    for (out, weight) in codes.iter_mut().zip(weights) {
        let value = weight * inverse;
        // Values rise with the codes, so the first of equals is the one nearer to -127.
        let mut best = f32::INFINITY;
        for (code, entry) in (0u8..).zip(TABLE) {
            let distance = (value - f32::from(entry)).abs();
            if distance < best {
                (best, *out) = (distance, code);
            }
        }
    }
    join_nibbles(&codes, packed);
}

/// The scale at which the extreme of `weights` is the table's first value.
pub(super) fn scale_of(weights: &[f32]) -> f32 {
    extreme(weights) / f32::from(TABLE[0])
}
