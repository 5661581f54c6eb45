//! `Q6_K`: 256 weights of 6 bits, zero point 32, in groups of 16 with a signed eight-bit scale.
//!
//! 128 bytes of low nibbles, 64 bytes of high pairs, 16 scales (`i8`), `d: f16`. Codes come in two
//! halves of 128 weights: 64 bytes of nibbles (weights 0–63 low, 64–127 high) and 32 bytes of pairs
//! (weight `32 j + i` at bits `2 j` of byte `i`). `w = (d * scale) * (code - 32)`.

use super::q2_k::{join_pairs, split_pairs};
use super::shared::{
    SUPER, half_at, is_f16_finite, join_nibbles, multiply, quantise_signed, split_nibbles,
};
use super::{BlockFormat, Factored, Factors, Units};
use crate::{Group, Layout, Offset};
use half::f16;

const GROUP: usize = 16;
const PAIRS: usize = SUPER / 2;
const SCALES: usize = PAIRS + SUPER / 4;
const D: usize = SCALES + SUPER / GROUP;
const BYTES: usize = D + 2;
const _: () = assert!(BYTES == 210);

/// The format `Q6_K`.
#[derive(Debug)]
pub struct Q6K;

impl BlockFormat for Q6K {
    fn name(&self) -> &'static str {
        "Q6_K"
    }

    fn block_len(&self) -> usize {
        SUPER
    }

    fn block_bytes(&self) -> usize {
        BYTES
    }

    fn layout(&self) -> Layout {
        Layout::Quant { bits: 8, group: GROUP, offset: Offset::Zero }
    }

    fn code_bits(&self) -> u8 {
        6
    }

    fn factored(&self) -> Option<&dyn Factored> {
        Some(self)
    }

    fn unpack(&self, block: &[u8], codes: &mut [u8], groups: &mut [Group]) {
        multiply(self, block, Some(32.0), groups);
        let mut pairs = [0; SUPER];
        split_pairs(&block[PAIRS..SCALES], &mut pairs);
        for (packed, codes) in block[..PAIRS].chunks(64).zip(codes.chunks_mut(128)) {
            split_nibbles(packed, codes);
        }
        for (code, pair) in codes.iter_mut().zip(pairs) {
            *code |= pair << 4;
        }
    }

    fn is_finite(&self, block: &[u8]) -> bool {
        is_f16_finite(block, D)
    }

    fn pack(&self, weights: &[f32], block: &mut [u8]) {
        let (scales, codes) = quantise_signed(weights, (-32, 31), 127, block, D);
        block[SCALES..D].copy_from_slice(&scales.map(i8::cast_unsigned));
        join_pairs(&codes.map(|code| code >> 4), &mut block[PAIRS..SCALES]);
        for (packed, codes) in block[..PAIRS].chunks_mut(64).zip(codes.chunks(128)) {
            join_nibbles(codes, packed);
        }
    }
}

impl Factored for Q6K {
    fn factors(&self, block: &[u8], units: &mut [Units]) -> Factors {
        for (unit, scale) in units.iter_mut().zip(&block[SCALES..D]) {
            *unit = Units { scale: scale.cast_signed(), min: 0 };
        }
        Factors { scale: half_at(block, D), min: f16::ZERO }
    }
}
