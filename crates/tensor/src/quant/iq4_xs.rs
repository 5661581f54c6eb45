//! `IQ4_XS`: 256 weights in groups of 32, each with a signed six-bit scale; codes as in `IQ4_NL`.
//!
//! `d: f16`, `high: u16` (bits `2 g` are the high two bits of group `g`'s scale), 4 bytes of low
//! nibbles of scales (even groups low), then 16 bytes of codes per group.
//! `w = (d * (scale - 32)) * TABLE[code]`.

use super::iq4_nl::{pack_values, scale_of, unpack_values};
use super::shared::{SUPER, half_at, is_f16_finite, multiply, quantise_scales};
use super::{BlockFormat, Factored, Factors, Units};
use crate::{Group, Layout, Offset};
use half::f16;

const GROUP: usize = 32;
const CODES: usize = 8;
const BYTES: usize = CODES + SUPER / 2;
const _: () = assert!(BYTES == 136);

/// The format `IQ4_XS`.
#[derive(Debug)]
pub struct Iq4Xs;

impl BlockFormat for Iq4Xs {
    fn name(&self) -> &'static str {
        "IQ4_XS"
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

    fn factored(&self) -> Option<&dyn Factored> {
        Some(self)
    }

    fn unpack(&self, block: &[u8], codes: &mut [u8], groups: &mut [Group]) {
        multiply(self, block, Some(128.0), groups);
        for (packed, codes) in block[CODES..BYTES].chunks(16).zip(codes.chunks_mut(GROUP)) {
            unpack_values(packed, codes);
        }
    }

    fn is_finite(&self, block: &[u8]) -> bool {
        is_f16_finite(block, 0)
    }

    fn pack(&self, weights: &[f32], block: &mut [u8]) {
        let mut scales = [0.0; SUPER / GROUP];
        for (weights, scale) in weights.chunks(GROUP).zip(&mut scales) {
            *scale = scale_of(weights);
        }
        let (d, scales) = quantise_scales(&scales, 31, block, 0);
        let mut high = 0u16;
        block[4..CODES].fill(0);
        for (index, (weights, scale)) in weights.chunks(GROUP).zip(scales).enumerate() {
            let stored = (scale + 32).cast_unsigned();
            block[4 + index / 2] |= (stored & 15) << (4 * (index % 2));
            high |= u16::from(stored >> 4) << (2 * index);
            let codes = CODES + 16 * index;
            pack_values(weights, d * f32::from(scale), &mut block[codes..codes + 16]);
        }
        block[2..4].copy_from_slice(&high.to_le_bytes());
    }
}

impl Factored for Iq4Xs {
    fn factors(&self, block: &[u8], units: &mut [Units]) -> Factors {
        let high = u16::from_le_bytes([block[2], block[3]]);
        for (index, unit) in units.iter_mut().enumerate() {
            let low = block[4 + index / 2] >> (4 * (index % 2)) & 15;
            let high = (high >> (2 * index) & 3).to_le_bytes()[0];
            *unit = Units { scale: (low | (high << 4)).cast_signed() - 32, min: 0 };
        }
        Factors { scale: half_at(block, 0), min: f16::ZERO }
    }
}
