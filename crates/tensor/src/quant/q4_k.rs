//! `Q4_K`: 256 weights in groups of 32, each with a six-bit scale and minimum.
//!
//! `d: f16`, `dmin: f16`, 12 bytes of scales and minima, then 128 bytes of codes: each run of 32
//! bytes holds one group in its low nibbles and the next one in its high nibbles.
//! `w = (d * scale) * code - dmin * min`.

use super::shared::{
    SUPER, is_f16_finite, join_nibbles, multiply, quantise_scale_mins, scale_min_factors,
    split_nibbles,
};
use super::{BlockFormat, Factored, Factors, Units};
use crate::{Group, Layout, Offset};

const BYTES: usize = 16 + SUPER / 2;
const _: () = assert!(BYTES == 144);

/// The format `Q4_K`.
#[derive(Debug)]
pub struct Q4K;

impl BlockFormat for Q4K {
    fn name(&self) -> &'static str {
        "Q4_K"
    }

    fn block_len(&self) -> usize {
        SUPER
    }

    fn block_bytes(&self) -> usize {
        BYTES
    }

    fn layout(&self) -> Layout {
        Layout::Quant { bits: 4, group: 32, offset: Offset::Min }
    }

    fn factored(&self) -> Option<&dyn Factored> {
        Some(self)
    }

    fn unpack(&self, block: &[u8], codes: &mut [u8], groups: &mut [Group]) {
        multiply(self, block, None, groups);
        for (packed, codes) in block[16..BYTES].chunks(32).zip(codes.chunks_mut(64)) {
            split_nibbles(packed, codes);
        }
    }

    fn is_finite(&self, block: &[u8]) -> bool {
        is_f16_finite(block, 0) && is_f16_finite(block, 2)
    }

    fn pack(&self, weights: &[f32], block: &mut [u8]) {
        let codes = quantise_scale_mins(weights, 15, block);
        for (packed, codes) in block[16..BYTES].chunks_mut(32).zip(codes.chunks(64)) {
            join_nibbles(codes, packed);
        }
    }
}

impl Factored for Q4K {
    fn factors(&self, block: &[u8], units: &mut [Units]) -> Factors {
        scale_min_factors(block, units)
    }
}
