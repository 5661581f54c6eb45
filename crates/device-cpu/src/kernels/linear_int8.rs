//! Linear over codes and 8-bit activations: `y = x W^T + bias`.
//!
//! For each row and output, over the activations' groups of inputs in order:
//!
//! ```text
//! dot = sum code * activation                          exact, i32
//! y  += scale_w * (dot - zero * sum activation) * scale_x       one zero point, or one per group
//! y  += scale_w * dot * scale_x + min * (scale_x * sum activation)   minima
//! ```
//!
//! where `dot` is `128 * dot(high) + dot(low)` for rows whose group is wide. There is one rounding
//! for `scale_w * (…)` and one fused multiply-add per term. The order does not depend on how rows
//! are tiled, so a row's result does not depend on the rows beside it.
//!
//! A tile is up to 6 rows x 64 outputs: 24 accumulators, 4 registers of weights, and activations
//! broadcast from memory. Groups are the outer loop over a block of rows: a group's weights stay in
//! the first-level cache, the block's sums in the second. Codes of 4 bits are unpacked in registers
//! for few rows, where memory is the limit, and once per block into a buffer for many.

use crate::buffer::Shared;
use crate::kernels::quantise::Rows8;
use crate::pack::{PANEL, PackedCodes};
use crate::simd::{LANES, Op, Simd};
use std::mem::MaybeUninit;
use std::ops::Range;
use tangor_device::rounding::{GROUP, LONGEST};

mod row;
mod tile;
pub(crate) use row::{HALF, HALVES, Row8};
pub(super) use tile::scale;
use tile::{Eight, Four, FourInBytes, Step, Unpacked, tiles, unpack};

/// Rows that are computed together at the most, with codes that are unpacked once: their sums stay
/// in the second-level cache. Whole tiles.
pub(crate) const BLOCK: usize = 43 * 6;

/// Rows from which on it pays to unpack codes into a buffer.
const UNPACK: usize = 18;

/// One panel of outputs for a block of at most [`BLOCK`] rows. A single row is better off with
/// [`Row8`], which gives the same bits.
#[derive(Debug)]
pub(crate) struct Linear8<'a> {
    pub(crate) weight: &'a PackedCodes,
    pub(crate) bias: Option<&'a [f32]>,
    pub(crate) x: &'a Rows8,
    pub(crate) panel: usize,
    pub(crate) rows: Range<usize>,
    /// `(rows, outputs)`; nobody else writes these rows and outputs.
    pub(crate) y: Shared<'a, f32>,
}

impl Op for Linear8<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let (w, x) = (self.weight, self.x);
        assert_eq!(x.groups(), w.inputs.div_ceil(x.group()), "activations do not fit the weight");
        assert!(self.rows.end <= x.rows() && self.rows.len() <= BLOCK);
        assert!(self.bias.is_none_or(|bias| bias.len() == w.outputs));
        // `(rows, 64)` sums; only the rows that there are get written, zeros included.
        let mut block = MaybeUninit::<[[f32; PANEL]; BLOCK]>::uninit();
        let sums = block.as_mut_ptr().cast::<f32>();
        // SAFETY: the block has room for more rows.
        unsafe { sums.write_bytes(0, self.rows.len() * PANEL) };
        let panel = w.panel(self.panel);
        let mut bytes = Unpacked([0; LONGEST * PANEL]);
        for (index, record) in panel.chunks_exact(w.record_bytes()).enumerate() {
            for start in (0..w.group).step_by(w.step(x.group())) {
                let mut step = self.step(record, index * w.group + start, start);
                // SAFETY: `step` points at the group's activations of `rows`, of which the block
                // holds as many.
                unsafe {
                    if w.bits == 4 && self.rows.len() >= UNPACK {
                        unpack(s, step.codes, step.eights, &mut bytes);
                        step.codes = bytes.0.as_ptr();
                        tiles::<S, FourInBytes>(s, &step, self.rows.len(), sums);
                    } else if w.bits == 4 {
                        tiles::<S, Four>(s, &step, self.rows.len(), sums);
                    } else {
                        tiles::<S, Eight>(s, &step, self.rows.len(), sums);
                    }
                }
            }
        }
        // SAFETY: these rows were zeroed, and then summed up.
        self.finish(s, unsafe { std::slice::from_raw_parts(sums.cast(), self.rows.len()) });
    }
}

impl Linear8<'_> {
    /// The step that starts at input `input` of the weight and `start` of the record.
    #[inline(always)]
    fn step(&self, record: &[u8], input: usize, start: usize) -> Step {
        let (w, x) = (self.weight, self.x);
        let codes = &record[start * PANEL * usize::from(w.bits) / 8..];
        let scales = &record[w.code_bytes()..];
        let offsets = &scales[PANEL * w.scale_bytes()..];
        let (group, width) = (x.group(), w.step(x.group()));
        let at = input / group * x.stride() + self.rows.start;
        let first_half = input.is_multiple_of(GROUP);
        Step {
            codes: codes.as_ptr(),
            scales: scales.as_ptr(),
            offsets: offsets.as_ptr(),
            half: w.half,
            kind: w.offsets,
            eights: width / 8,
            x: x.codes()[at * group + input % group..].as_ptr(),
            group,
            high: x.high()[at * group + input % group..].as_ptr(),
            wide: x.wide()[at..].as_ptr(),
            x_scales: x.scales()[at..].as_ptr(),
            x_sums: x.sums()[2 * at..].as_ptr(),
            sums: [first_half, width >= GROUP || !first_half],
        }
    }

    /// Adds the bias and writes the block where it belongs.
    #[inline(always)]
    fn finish<S: Simd>(&self, s: S, block: &[[f32; PANEL]]) {
        let outputs = self.weight.outputs;
        let first = self.panel * PANEL;
        let count = PANEL.min(outputs - first);
        for (row, sums) in self.rows.clone().zip(block) {
            let at = row * outputs + first;
            // SAFETY: whoever makes a `Linear8` has these rows and outputs to itself.
            let y = unsafe { self.y.part(at..at + count) };
            let bias = self.bias.map(|bias| &bias[first..first + count]);
            put_row(s, sums, bias, y);
        }
    }
}

/// `y = sums + bias`, for as many as `y` has.
#[inline(always)]
pub(super) fn put_row<S: Simd>(s: S, sums: &[f32], bias: Option<&[f32]>, y: &mut [f32]) {
    assert!(sums.len() >= y.len() && bias.is_none_or(|bias| bias.len() == y.len()));
    let whole = y.len() / LANES * LANES;
    let mut at = 0;
    while at < whole {
        // SAFETY: all three have 16 elements from here on.
        unsafe {
            let mut x = s.load(sums.as_ptr().add(at));
            if let Some(bias) = bias {
                x = s.add(x, s.load(bias.as_ptr().add(at)));
            }
            s.store(y.as_mut_ptr().add(at), x);
        }
        at += LANES;
    }
    for at in whole..y.len() {
        y[at] = bias.map_or(sums[at], |bias| sums[at] + bias[at]);
    }
}
