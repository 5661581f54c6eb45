//! `Q3_K`: 256 weights of 3 bits in groups of 16, each with a signed six-bit scale, zero point 4.
//!
//! 32 bytes of third bits (bit `g` of byte `i` belongs to weight `32 g + i`), 64 bytes of low pairs
//! as in `Q2_K`, 12 bytes of scales, `d: f16`. `w = (d * (scale - 32)) * (code - 4)`.
//! The scales' low nibbles are those of bytes 0–7 (groups 0–7 low, 8–15 high); group `4 j + i` has
//! its high two bits at bits `2 j` of byte `8 + i`.

use super::q2_k::{join_pairs, split_pairs};
use super::shared::{
    SUPER, half_at, is_f16_finite, join_nibbles, multiply, quantise_signed, split_nibbles,
};
use super::{BlockFormat, Factored, Factors, Units};
use crate::{Group, Layout, Offset};
use half::f16;

const GROUP: usize = 16;
const PAIRS: usize = SUPER / 8;
const SCALES: usize = PAIRS + SUPER / 4;
const D: usize = SCALES + 12;
const BYTES: usize = D + 2;
const _: () = assert!(BYTES == 110);

/// The format `Q3_K`.
#[derive(Debug)]
pub struct Q3K;

impl BlockFormat for Q3K {
    fn name(&self) -> &'static str {
        "Q3_K"
    }

    fn block_len(&self) -> usize {
        SUPER
    }

    fn block_bytes(&self) -> usize {
        BYTES
    }

    fn layout(&self) -> Layout {
        Layout::Quant { bits: 4, group: GROUP, offset: Offset::Zero }
    }

    fn code_bits(&self) -> u8 {
        3
    }

    fn factored(&self) -> Option<&dyn Factored> {
        Some(self)
    }

    fn unpack(&self, block: &[u8], codes: &mut [u8], groups: &mut [Group]) {
        multiply(self, block, Some(4.0), groups);
        split_pairs(&block[PAIRS..SCALES], codes);
        for (bit, codes) in codes.chunks_mut(32).enumerate() {
            for (code, bits) in codes.iter_mut().zip(&block[..PAIRS]) {
                *code |= (bits >> bit & 1) << 2;
            }
        }
    }

    fn is_finite(&self, block: &[u8]) -> bool {
        is_f16_finite(block, D)
    }

    fn pack(&self, weights: &[f32], block: &mut [u8]) {
        let (scales, codes) = quantise_signed(weights, (-4, 3), 31, block, D);
        pack_scales(scales, &mut block[SCALES..D]);
        join_pairs(&codes, &mut block[PAIRS..SCALES]);
        block[..PAIRS].fill(0);
        for (bit, codes) in codes.chunks(32).enumerate() {
            for (bits, code) in block[..PAIRS].iter_mut().zip(codes) {
                *bits |= (code >> 2) << bit;
            }
        }
    }
}

impl Factored for Q3K {
    fn factors(&self, block: &[u8], units: &mut [Units]) -> Factors {
        for (unit, scale) in units.iter_mut().zip(unpack_scales(&block[SCALES..D])) {
            *unit = Units { scale, min: 0 };
        }
        Factors { scale: half_at(block, D), min: f16::ZERO }
    }
}

/// Scales in `-32..=31`.
fn unpack_scales(packed: &[u8]) -> [i8; 16] {
    let mut scales = [0; 16];
    split_nibbles(&packed[..8], &mut scales);
    std::array::from_fn(|group| {
        let high = packed[8 + group % 4] >> (2 * (group / 4)) & 3;
        (scales[group] | (high << 4)).cast_signed() - 32
    })
}

/// Undoes [`unpack_scales`].
fn pack_scales(scales: [i8; 16], packed: &mut [u8]) {
    let scales = scales.map(|scale| (scale + 32).cast_unsigned());
    join_nibbles(&scales, &mut packed[..8]);
    packed[8..].fill(0);
    for (group, scale) in scales.into_iter().enumerate() {
        packed[8 + group % 4] |= (scale >> 4) << (2 * (group / 4));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn six_bit_scales_survive_packing() {
        let scales = std::array::from_fn(|group| group as i8 * 4 - 32);
        let mut packed = [0; 12];
        pack_scales(scales, &mut packed);
        assert_eq!(unpack_scales(&packed), scales);
    }
}
