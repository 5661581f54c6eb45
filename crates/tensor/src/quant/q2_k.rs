//! `Q2_K`: 256 weights of 2 bits in groups of 16, each with a four-bit scale and minimum.
//!
//! 16 bytes (scale in the low nibble, minimum in the high one), 64 bytes of codes, `d: f16`,
//! `dmin: f16`. Codes come in two halves of 128 weights and 32 bytes: weight `32 j + i` of a half
//! is at bits `2 j` of byte `i`. `w = (d * scale) * code - dmin * min`.

use super::shared::{
    SUPER, code, half_at, inverse, is_f16_finite, multiply, quantise_scales, range,
};
use super::{BlockFormat, Factored, Factors, Units};
use crate::{Group, Layout, Offset};

const GROUP: usize = 16;
const CODES: usize = SUPER / GROUP;
const D: usize = CODES + SUPER / 4;
const BYTES: usize = D + 4;
const _: () = assert!(BYTES == 84);

/// The format `Q2_K`.
#[derive(Debug)]
pub struct Q2K;

impl BlockFormat for Q2K {
    fn name(&self) -> &'static str {
        "Q2_K"
    }

    fn block_len(&self) -> usize {
        SUPER
    }

    fn block_bytes(&self) -> usize {
        BYTES
    }

    fn layout(&self) -> Layout {
        Layout::Quant { bits: 4, group: GROUP, offset: Offset::Min }
    }

    fn code_bits(&self) -> u8 {
        2
    }

    fn factored(&self) -> Option<&dyn Factored> {
        Some(self)
    }

    fn unpack(&self, block: &[u8], codes: &mut [u8], groups: &mut [Group]) {
        multiply(self, block, None, groups);
        split_pairs(&block[CODES..D], codes);
    }

    fn is_finite(&self, block: &[u8]) -> bool {
        is_f16_finite(block, D) && is_f16_finite(block, D + 2)
    }

    fn pack(&self, weights: &[f32], block: &mut [u8]) {
        let mut scales = [0.0; CODES];
        let mut mins = [0.0; CODES];
        for ((weights, scale), min) in weights.chunks(GROUP).zip(&mut scales).zip(&mut mins) {
            let (least, greatest) = range(weights);
            *min = -least.min(0.0);
            *scale = (greatest.max(0.0) + *min) / 3.0;
        }
        let (d, scales) = quantise_scales(&scales, 15, block, D);
        let (dmin, mins) = quantise_scales(&mins, 15, block, D + 2);
        let mut codes = [0; SUPER];
        for (group, (weights, codes)) in
            weights.chunks(GROUP).zip(codes.chunks_mut(GROUP)).enumerate()
        {
            let (scale, min) = (scales[group].unsigned_abs(), mins[group].unsigned_abs());
            block[group] = scale | (min << 4);
            let inverse = inverse(d * f32::from(scale));
            let min = dmin * f32::from(min);
            for (out, weight) in codes.iter_mut().zip(weights) {
                *out = code((weight + min) * inverse, 0.5, 3);
            }
        }
        join_pairs(&codes, &mut block[CODES..D]);
    }
}

impl Factored for Q2K {
    fn factors(&self, block: &[u8], units: &mut [Units]) -> Factors {
        for (unit, packed) in units.iter_mut().zip(&block[..CODES]) {
            *unit = Units { scale: (packed & 15).cast_signed(), min: (packed >> 4).cast_signed() };
        }
        Factors { scale: half_at(block, D), min: -half_at(block, D + 2) }
    }
}

/// Weight `32 j + i` of each half of 128 comes from bits `2 j` of byte `i`.
pub(super) fn split_pairs(packed: &[u8], codes: &mut [u8]) {
    for (packed, codes) in packed.chunks(32).zip(codes.chunks_mut(128)) {
        for (pair, codes) in codes.chunks_mut(32).enumerate() {
            for (code, byte) in codes.iter_mut().zip(packed) {
                *code = byte >> (2 * pair) & 3;
            }
        }
    }
}

/// Undoes [`split_pairs`]; only the low two bits of a code are stored.
pub(super) fn join_pairs(codes: &[u8], packed: &mut [u8]) {
    packed.fill(0);
    for (packed, codes) in packed.chunks_mut(32).zip(codes.chunks(128)) {
        for (pair, codes) in codes.chunks(32).enumerate() {
            for (byte, code) in packed.iter_mut().zip(codes) {
                *byte |= (code & 3) << (2 * pair);
            }
        }
    }
}
