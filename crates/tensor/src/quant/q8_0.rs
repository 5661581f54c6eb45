//! `Q8_0`: 32 weights of 8 bits, one scale.
//!
//! `d: f16`, then 32 signed bytes. `w = d * q`; the canonical code is `q + 128`.

use super::BlockFormat;
use super::shared::{extreme, f16_at, inverse, is_f16_finite, nearest, put_f16};
use crate::{Group, Layout, Offset};

const LEN: usize = 32;
const BYTES: usize = 2 + LEN;
const _: () = assert!(BYTES == 34);

/// The format `Q8_0`.
#[derive(Debug)]
#[allow(non_camel_case_types)]
pub struct Q8_0;

impl BlockFormat for Q8_0 {
    fn name(&self) -> &'static str {
        "Q8_0"
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
        for (code, q) in codes.iter_mut().zip(&block[2..BYTES]) {
            *code = q ^ 0x80;
        }
    }

    fn is_finite(&self, block: &[u8]) -> bool {
        is_f16_finite(block, 0)
    }

    fn pack(&self, weights: &[f32], block: &mut [u8]) {
        let d = extreme(weights).abs() / 127.0;
        put_f16(block, 0, d);
        let inverse = inverse(d);
        for (q, weight) in block[2..BYTES].iter_mut().zip(weights) {
            *q = nearest(weight * inverse, -128, 127).to_le_bytes()[0];
        }
    }
}
