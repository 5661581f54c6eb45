//! `Q4_0`: 32 weights, one scale, zero point 8.
//!
//! `d: f16`, then 16 bytes of codes: weight `i` in the low nibble of byte `i`, weight `i + 16` in
//! its high nibble. `w = d * (code - 8)`.

use super::BlockFormat;
use super::shared::{
    code, extreme, f16_at, inverse, is_f16_finite, join_nibbles, put_f16, split_nibbles,
};
use crate::{Group, Layout, Offset};

const LEN: usize = 32;
const BYTES: usize = 2 + LEN / 2;
const _: () = assert!(BYTES == 18);

/// The format `Q4_0`.
#[derive(Debug)]
#[allow(non_camel_case_types)]
pub struct Q4_0;

impl BlockFormat for Q4_0 {
    fn name(&self) -> &'static str {
        "Q4_0"
    }

    fn block_len(&self) -> usize {
        LEN
    }

    fn block_bytes(&self) -> usize {
        BYTES
    }

    fn layout(&self) -> Layout {
        Layout::Quant { bits: 4, group: LEN, offset: Offset::Zero }
    }

    fn unpack(&self, block: &[u8], codes: &mut [u8], groups: &mut [Group]) {
        groups[0] = Group { scale: f16_at(block, 0), offset: 8.0 };
        split_nibbles(&block[2..BYTES], codes);
    }

    fn is_finite(&self, block: &[u8]) -> bool {
        is_f16_finite(block, 0)
    }

    fn pack(&self, weights: &[f32], block: &mut [u8]) {
        let d = extreme(weights) / -8.0;
        put_f16(block, 0, d);
        let inverse = inverse(d);
        let mut codes = [0; LEN];
        for (out, weight) in codes.iter_mut().zip(weights) {
            *out = code(weight * inverse, 8.5, 15);
        }
        join_nibbles(&codes, &mut block[2..BYTES]);
    }
}
