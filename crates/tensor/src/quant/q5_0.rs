//! `Q5_0`: 32 weights of 5 bits, one scale, zero point 16.
//!
//! `d: f16`, `high: u32` (bit `i` is the fifth bit of weight `i`), then 16 bytes of low nibbles:
//! weight `i` in the low half of byte `i`, weight `i + 16` in the high half.
//! `w = d * (code - 16)`.

use super::BlockFormat;
use super::shared::{
    code, extreme, f16_at, inverse, is_f16_finite, join_nibbles, put_f16, split_nibbles,
};
use crate::{Group, Layout, Offset};

const LEN: usize = 32;
const BYTES: usize = 6 + LEN / 2;
const _: () = assert!(BYTES == 22);

/// The format `Q5_0`.
#[derive(Debug)]
#[allow(non_camel_case_types)]
pub struct Q5_0;

impl BlockFormat for Q5_0 {
    fn name(&self) -> &'static str {
        "Q5_0"
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

    fn code_bits(&self) -> u8 {
        5
    }

    fn unpack(&self, block: &[u8], codes: &mut [u8], groups: &mut [Group]) {
        groups[0] = Group { scale: f16_at(block, 0), offset: 16.0 };
        split_nibbles(&block[6..BYTES], codes);
        add_fifth_bits(&block[2..6], codes);
    }

    fn is_finite(&self, block: &[u8]) -> bool {
        is_f16_finite(block, 0)
    }

    fn pack(&self, weights: &[f32], block: &mut [u8]) {
        let d = extreme(weights) / -16.0;
        put_f16(block, 0, d);
        let inverse = inverse(d);
        let mut codes = [0; LEN];
        for (out, weight) in codes.iter_mut().zip(weights) {
            *out = code(weight * inverse, 16.5, 31);
        }
        take_fifth_bits(&codes, &mut block[2..6]);
        join_nibbles(&codes, &mut block[6..BYTES]);
    }
}

/// Bit `i` of the four bytes becomes bit 4 of code `i`.
pub(super) fn add_fifth_bits(bits: &[u8], codes: &mut [u8]) {
    for (codes, bits) in codes.chunks_mut(8).zip(bits) {
        for (bit, code) in codes.iter_mut().enumerate() {
            *code |= (bits >> bit & 1) << 4;
        }
    }
}

/// Undoes [`add_fifth_bits`].
pub(super) fn take_fifth_bits(codes: &[u8], bits: &mut [u8]) {
    for (codes, bits) in codes.chunks(8).zip(bits) {
        *bits = codes.iter().enumerate().fold(0, |bits, (bit, code)| bits | (code >> 4 & 1) << bit);
    }
}
