//! Linear with activations as they are: `y = x W^T + bias`.
//!
//! Each output is one chain of fused multiply-adds over the inputs in order, whatever rows are
//! beside it. Weights are widened, or computed from their codes exactly as
//! [`Weight::row_f32`](tangor_device::tensor::Weight::row_f32) does, a few inputs at a time into a
//! buffer in the first-level cache, from which all rows of a block read.

use crate::buffer::Shared;
use crate::kernels::linear_int8::{BLOCK, FOUR, Unpacked, put_row};
use crate::kernels::tile::{Elements, Matrix, multiply};
use crate::pack::{Offsets, PANEL, Packed, PackedCodes, PackedDense};
use crate::simd::{LANES, Op, Simd};
use std::mem::MaybeUninit;
use std::ops::Range;
use tangor_device::rounding::GROUP;
use tangor_device::tensor::DType;

/// Inputs per buffer of widened weights.
const CHUNK: usize = 32;

/// Vectors per panel.
const VECTORS: usize = PANEL / LANES;

/// Weights of one input, once they are widened.
type Wide = MaybeUninit<[f32; PANEL]>;

/// One panel of outputs for a block of at most [`BLOCK`] rows.
#[derive(Debug)]
pub(crate) struct LinearF32<'a> {
    pub(crate) weight: &'a Packed,
    pub(crate) bias: Option<&'a [f32]>,
    /// `(rows, inputs)` of the whole batch.
    pub(crate) x: &'a [f32],
    pub(crate) panel: usize,
    pub(crate) rows: Range<usize>,
    /// `(rows, outputs)`; nobody else writes these rows and outputs.
    pub(crate) y: Shared<'a, f32>,
}

impl Op for LinearF32<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let (inputs, outputs) = match self.weight {
            Packed::Codes(w) => (w.inputs, w.outputs),
            Packed::Dense(w) => (w.inputs, w.outputs),
        };
        assert!(self.rows.end * inputs <= self.x.len() && self.rows.len() <= BLOCK);
        assert!(self.bias.is_none_or(|bias| bias.len() == outputs));
        // `(rows, 64)` sums; only the rows that there are get written.
        let mut block = MaybeUninit::<[[f32; PANEL]; BLOCK]>::uninit();
        let sums = block.as_mut_ptr().cast::<f32>();
        let mut wide = [const { Wide::uninit() }; CHUNK];
        let chunk = match self.weight {
            Packed::Codes(w) => w.step(GROUP),
            Packed::Dense(_) => CHUNK,
        };
        for first in (0..inputs).step_by(chunk) {
            let count = chunk.min(inputs - first);
            // The element types' own loads, chosen outside of the loops.
            let b: *const f32 = match self.weight {
                Packed::Dense(w) if w.dtype == DType::F32 => {
                    w.panel(self.panel)[first * PANEL * 4..][..count * PANEL * 4].as_ptr().cast()
                }
                Packed::Dense(w) => {
                    widen(s, w, &w.panel(self.panel)[first * PANEL * 2..], &mut wide[..count]);
                    wide.as_ptr().cast()
                }
                Packed::Codes(w) => {
                    dequantise(s, w, self.panel, first, &mut wide);
                    wide.as_ptr().cast()
                }
            };
            let a = self.x[self.rows.start * inputs + first..].as_ptr();
            // SAFETY: `a` has the rows of the block, `b` has `count` inputs of 64 outputs.
            unsafe {
                let a = Matrix { at: a, stride: inputs };
                let b = Elements { at: b, stride: PANEL };
                let out = Matrix { at: sums, stride: PANEL };
                let shape = (self.rows.len(), count, VECTORS);
                if first == 0 {
                    multiply::<S, _, false>(s, shape, a, b, out);
                } else {
                    multiply::<S, _, true>(s, shape, a, b, out);
                }
            }
        }
        let first = self.panel * PANEL;
        let count = PANEL.min(outputs - first);
        for (index, row) in self.rows.clone().enumerate() {
            let at = row * outputs + first;
            // SAFETY: whoever makes a `LinearF32` has these rows and outputs to itself; the row of
            // the block was written by the first chunk.
            let (y, sums) = unsafe {
                let sums = std::slice::from_raw_parts(sums.add(index * PANEL), count);
                (self.y.part(at..at + count), sums)
            };
            put_row(s, sums, self.bias.map(|bias| &bias[first..first + count]), y);
        }
    }
}

/// Widens 16-bit elements from the beginning of `panel`.
#[inline(always)]
fn widen<S: Simd>(s: S, w: &PackedDense, panel: &[u8], out: &mut [Wide]) {
    assert!(panel.len() >= out.len() * PANEL * 2);
    let from = panel.as_ptr().cast::<u16>();
    for (k, out) in out.iter_mut().enumerate() {
        for v in 0..VECTORS {
            // SAFETY: the panel holds as many elements as `out`.
            unsafe {
                let at = from.add(k * PANEL + v * LANES);
                let x = match w.dtype {
                    DType::F16 => s.load_f16(at),
                    _ => s.load_bf16(at),
                };
                s.store(out.as_mut_ptr().cast::<f32>().add(v * LANES), x);
            }
        }
    }
}

/// Computes the weights of the step that starts at input `first`.
#[inline(always)]
fn dequantise<S: Simd>(s: S, w: &PackedCodes, panel: usize, first: usize, out: &mut [Wide; CHUNK]) {
    let (record, inputs) = (w.record(panel, first / w.group), w.step(GROUP));
    let mut unpacked = Unpacked::uninit();
    unpacked.fill_codes(s, w, &record, first % w.group, inputs);
    unpacked.fill_numbers(s, w, &record);
    let minima = w.offsets == Offsets::Min;
    for column in (0..PANEL).step_by(LANES) {
        // SAFETY: `unpacked` holds 64 scales, 64 offsets and so many codes; a row of `out` has 64
        // elements.
        unsafe {
            let scale = s.load(unpacked.scales().add(column));
            let offset = s.load(unpacked.offsets().add(column));
            for (input, out) in out[..inputs].iter_mut().enumerate() {
                let codes = s.codes(unpacked.codes().add(input / 4 * FOUR + 4 * column));
                let code = s.code_f32(codes, input % 4);
                let x = match minima {
                    true => s.add(s.mul(scale, code), offset),
                    false => s.mul(scale, s.sub(code, offset)),
                };
                s.store(out.as_mut_ptr().cast::<f32>().add(column), x);
            }
        }
    }
}
