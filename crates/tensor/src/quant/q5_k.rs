//! `Q5_K`: 256 weights of 5 bits in groups of 32, each with a six-bit scale and minimum.
//!
//! `d: f16`, `dmin: f16`, 12 bytes of scales and minima, 32 bytes of fifth bits (bit `g` of byte
//! `i` belongs to weight `i` of group `g`), then 128 bytes of low nibbles as in `Q4_K`.
//! `w = (d * scale) * code - dmin * min`.

use super::shared::{
    SUPER, is_f16_finite, join_nibbles, multiply, quantise_scale_mins, scale_min_factors,
    split_nibbles,
};
use super::{BlockFormat, Factored, Factors, Units};
use crate::{Group, Layout, Offset};

const BYTES: usize = 16 + SUPER / 8 + SUPER / 2;
const _: () = assert!(BYTES == 176);

/// The format `Q5_K`.
#[derive(Debug)]
pub struct Q5K;

impl BlockFormat for Q5K {
    fn name(&self) -> &'static str {
        "Q5_K"
    }

    fn block_len(&self) -> usize {
        SUPER
    }

    fn block_bytes(&self) -> usize {
        BYTES
    }

    fn layout(&self) -> Layout {
        Layout::Quant { bits: 8, group: 32, offset: Offset::Min }
    }

    fn code_bits(&self) -> u8 {
        5
    }

    fn factored(&self) -> Option<&dyn Factored> {
        Some(self)
    }

    fn unpack(&self, block: &[u8], codes: &mut [u8], groups: &mut [Group]) {
        multiply(self, block, None, groups);
        let (high, low) = block[16..BYTES].split_at(32);
        for (packed, codes) in low.chunks(32).zip(codes.chunks_mut(64)) {
            split_nibbles(packed, codes);
        }
        for (group, codes) in codes.chunks_mut(32).enumerate() {
            for (code, bits) in codes.iter_mut().zip(high) {
                *code |= (bits >> group & 1) << 4;
            }
        }
    }

    fn is_finite(&self, block: &[u8]) -> bool {
        is_f16_finite(block, 0) && is_f16_finite(block, 2)
    }

    fn pack(&self, weights: &[f32], block: &mut [u8]) {
        let codes = quantise_scale_mins(weights, 31, block);
        let (high, low) = block[16..BYTES].split_at_mut(32);
        high.fill(0);
        for (group, codes) in codes.chunks(32).enumerate() {
            for (bits, code) in high.iter_mut().zip(codes) {
                *bits |= (code >> 4) << group;
            }
        }
        for (packed, codes) in low.chunks_mut(32).zip(codes.chunks(64)) {
            join_nibbles(codes, packed);
        }
    }
}

impl Factored for Q5K {
    fn factors(&self, block: &[u8], units: &mut [Units]) -> Factors {
        scale_min_factors(block, units)
    }
}
