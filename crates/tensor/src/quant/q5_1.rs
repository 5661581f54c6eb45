//! `Q5_1`: 32 weights of 5 bits, one scale, one minimum.
//!
//! `d: f16`, `m: f16`, then the fifth bits and the nibbles as in `Q5_0`. `w = d * code + m`.

use super::BlockFormat;
use super::q5_0::{add_fifth_bits, take_fifth_bits};
use super::shared::{
    code, f16_at, inverse, is_f16_finite, join_nibbles, put_f16, range, split_nibbles,
};
use crate::{Group, Layout, Offset};

const LEN: usize = 32;
const BYTES: usize = 8 + LEN / 2;
const _: () = assert!(BYTES == 24);

/// The format `Q5_1`.
#[derive(Debug)]
#[allow(non_camel_case_types)]
pub struct Q5_1;

impl BlockFormat for Q5_1 {
    fn name(&self) -> &'static str {
        "Q5_1"
    }

    fn block_len(&self) -> usize {
        LEN
    }

    fn block_bytes(&self) -> usize {
        BYTES
    }

    fn layout(&self) -> Layout {
        Layout::Quant { bits: 8, group: LEN, offset: Offset::Min }
    }

    fn code_bits(&self) -> u8 {
        5
    }

    fn unpack(&self, block: &[u8], codes: &mut [u8], groups: &mut [Group]) {
        groups[0] = Group { scale: f16_at(block, 0), offset: f16_at(block, 2) };
        split_nibbles(&block[8..BYTES], codes);
        add_fifth_bits(&block[4..8], codes);
    }

    fn is_finite(&self, block: &[u8]) -> bool {
        is_f16_finite(block, 0) && is_f16_finite(block, 2)
    }

    fn pack(&self, weights: &[f32], block: &mut [u8]) {
        let (min, max) = range(weights);
        let d = (max - min) / 31.0;
        put_f16(block, 0, d);
        put_f16(block, 2, min);
        let inverse = inverse(d);
        let mut codes = [0; LEN];
        for (out, weight) in codes.iter_mut().zip(weights) {
            *out = code((weight - min) * inverse, 0.5, 31);
        }
        take_fifth_bits(&codes, &mut block[4..8]);
        join_nibbles(&codes, &mut block[8..BYTES]);
    }
}
