//! One row: the kernel of decode, whose limit is memory.
//!
//! It reads a panel from beginning to end and keeps the sums in registers. What it computes is what
//! a tile of one row computes, in the same order.

use super::tile::{Codes, Eight, Four, MIN, UNIFORM, ZERO, offset, scale};
use super::{GROUP, put_row, tile};
use crate::buffer::Shared;
use crate::kernels::quantise::Rows8;
use crate::pack::{Offsets, PANEL, PackedCodes};
use crate::simd::{LANES, Op, Simd, unroll};
use std::ops::Range;

/// Outputs that threads share work by: half a panel.
pub(crate) const HALF: usize = PANEL / 2;
/// Halves of a panel.
pub(crate) const HALVES: usize = 2;

/// How far ahead of the kernel its weights are asked for: beyond what processors fetch by
/// themselves, above all across the borders of pages.
const AHEAD: usize = 4096;

/// Some outputs of one row.
#[derive(Debug)]
pub(crate) struct Row8<'a> {
    pub(crate) weight: &'a PackedCodes,
    pub(crate) bias: Option<&'a [f32]>,
    /// One row.
    pub(crate) x: &'a Rows8,
    /// Outputs in halves of panels.
    pub(crate) halves: Range<usize>,
    /// `(outputs)`; nobody else writes these.
    pub(crate) y: Shared<'a, f32>,
}

impl Op for Row8<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let (w, x) = (self.weight, self.x);
        assert!(x.rows() == 1 && x.groups() == w.inputs.div_ceil(x.group()), "not one fitting row");
        assert!(self.bias.is_none_or(|bias| bias.len() == w.outputs));
        let short = w.step(x.group()) < GROUP;
        match (w.bits, w.offsets, short) {
            (4, Offsets::Uniform(_), false) => self.outputs::<S, Four, UNIFORM, false>(s),
            (4, Offsets::Zero, false) => self.outputs::<S, Four, ZERO, false>(s),
            (4, Offsets::Min, false) => self.outputs::<S, Four, MIN, false>(s),
            (4, Offsets::Uniform(_), true) => self.outputs::<S, Four, UNIFORM, true>(s),
            (4, Offsets::Zero, true) => self.outputs::<S, Four, ZERO, true>(s),
            (4, Offsets::Min, true) => self.outputs::<S, Four, MIN, true>(s),
            (_, Offsets::Uniform(_), false) => self.outputs::<S, Eight, UNIFORM, false>(s),
            (_, Offsets::Zero, false) => self.outputs::<S, Eight, ZERO, false>(s),
            (_, Offsets::Min, false) => self.outputs::<S, Eight, MIN, false>(s),
            (_, Offsets::Uniform(_), true) => self.outputs::<S, Eight, UNIFORM, true>(s),
            (_, Offsets::Zero, true) => self.outputs::<S, Eight, ZERO, true>(s),
            (_, Offsets::Min, true) => self.outputs::<S, Eight, MIN, true>(s),
        }
    }
}

impl Row8<'_> {
    /// Panel by panel; `SHORT`: 16 inputs are summed as integers, else those of a group.
    #[inline(always)]
    fn outputs<S: Simd, C: Codes<S>, const KIND: u8, const SHORT: bool>(&self, s: S) {
        let mut at = self.halves.start;
        while at < self.halves.end {
            let (panel, half) = (at / HALVES, at % HALVES);
            let whole = half == 0 && at + HALVES <= self.halves.end;
            let mut sums = [0.0; PANEL];
            let count = if whole { PANEL } else { HALF };
            let first = half * HALF / LANES;
            // SAFETY: the panel has four vectors of outputs, and the sums have room for them.
            unsafe {
                match (S::WIDE, whole) {
                    (true, true) => {
                        self.vectors::<S, C, KIND, SHORT, 4>(s, panel, 0, sums.as_mut_ptr());
                    }
                    (true, false) => {
                        self.vectors::<S, C, KIND, SHORT, 2>(s, panel, first, sums.as_mut_ptr());
                    }
                    (false, _) => {
                        for vector in (0..count / LANES).step_by(2) {
                            let sums = sums.as_mut_ptr().add(vector * LANES);
                            self.vectors::<S, C, KIND, SHORT, 2>(s, panel, first + vector, sums);
                        }
                    }
                }
            }
            let start = at * HALF;
            let count = count.min(self.weight.outputs - start);
            // SAFETY: whoever makes a `Row8` has these outputs to itself.
            let y = unsafe { self.y.part(start..start + count) };
            put_row(s, &sums, self.bias.map(|bias| &bias[start..start + count]), y);
            at += if whole { HALVES } else { 1 };
        }
    }

    /// `V` vectors of a panel's outputs, from vector `first`.
    ///
    /// # Safety
    /// They are there, and `out` has room for them.
    #[inline(always)]
    unsafe fn vectors<S: Simd, C: Codes<S>, const KIND: u8, const SHORT: bool, const V: usize>(
        &self,
        s: S,
        panel: usize,
        first: usize,
        out: *mut f32,
    ) {
        let (w, x) = (self.weight, self.x);
        let width = if SHORT { GROUP / 2 } else { x.group() };
        let zero = w.offsets.zero() - C::SHIFT;
        let mut y = [s.splat(0.0); V];
        // The step's number in the row.
        let mut step = 0;
        for record in w.panel(panel).chunks_exact(w.record_bytes()) {
            ask_ahead(s, record, first * 64, V * 64);
            // SAFETY: all pointers stay within the record and the row.
            unsafe {
                let scales = record.as_ptr().add(w.code_bytes());
                for index in 0..w.group / width {
                    let part = Part {
                        codes: record.as_ptr().add(index * width / 8 * C::EIGHT + first * 64),
                        width,
                        scales,
                        offsets: scales.add(PANEL * w.scale_bytes()),
                        half: w.half,
                        column: first * LANES,
                    };
                    let (group, input) = (if SHORT { step / 2 } else { step }, step * width);
                    let scale = *x.scales().as_ptr().add(group);
                    let sum = sum_of::<SHORT>(*x.sums().as_ptr().add(group), step);
                    let offset = self::offset::<KIND>(zero, scale, sum);
                    let digits = x.codes().as_ptr().add(input);
                    part.add::<S, C, KIND, SHORT, V>(s, (digits, scale, offset), &mut y);
                    if *x.wide().as_ptr().add(group) != 0 {
                        let scale = 128.0 * scale;
                        let sum = sum_of::<SHORT>(*x.high_sums().as_ptr().add(group), step);
                        let offset = self::offset::<KIND>(zero, scale, sum);
                        let digits = x.high().as_ptr().add(input);
                        part.add::<S, C, KIND, SHORT, V>(s, (digits, scale, offset), &mut y);
                    }
                    step += 1;
                }
            }
        }
        unroll!(v < V, {
            // SAFETY: as the caller's.
            unsafe { s.store(out.add(v * LANES), y[v]) };
        });
    }
}

/// The sum of a step's digits, given those of the halves of its 32.
#[inline(always)]
fn sum_of<const SHORT: bool>(halves: [i32; 2], step: usize) -> i32 {
    if SHORT { halves[step % 2] } else { halves[0] + halves[1] }
}

/// One step of some vectors of a panel's outputs.
struct Part {
    /// At the first of the vectors.
    codes: *const u8,
    /// Inputs.
    width: usize,
    /// Of the whole panel; likewise offsets.
    scales: *const u8,
    offsets: *const u8,
    half: bool,
    /// The first output.
    column: usize,
}

impl Part {
    /// Adds the products with a line of digits, of which a unit is worth `scale`.
    ///
    /// # Safety
    /// The part and the digits are there.
    #[inline(always)]
    unsafe fn add<S: Simd, C: Codes<S>, const KIND: u8, const SHORT: bool, const V: usize>(
        &self,
        s: S,
        (digits, scale, offset): (*const i8, f32, f32),
        y: &mut [S::F32; V],
    ) {
        // SAFETY: as the caller's.
        unsafe {
            let bias = tile::bias::<S, C>(KIND, offset, digits, self.width);
            let dots = dots::<S, C, SHORT, V>(s, self.codes, digits, self.width, bias);
            unroll!(v < V, {
                let column = self.column + v * LANES;
                let mut dot = s.to_f32(dots[v]);
                if KIND == ZERO {
                    dot = s.fnma(s.load_u8(self.offsets.add(column)), s.splat(offset), dot);
                }
                let weights = self::scale(s, self.half, self.scales, column);
                y[v] = s.fma(s.mul(dot, weights), s.splat(scale), y[v]);
                if KIND == MIN {
                    let min = self::scale(s, self.half, self.offsets, column);
                    y[v] = s.fma(min, s.splat(offset), y[v]);
                }
            });
        }
    }
}

/// Dot products of one step of `width` inputs with `V` vectors of outputs, from `bias` on.
///
/// # Safety
/// The step's codes and digits are there.
#[inline(always)]
unsafe fn dots<S: Simd, C: Codes<S>, const SHORT: bool, const V: usize>(
    s: S,
    mut codes: *const u8,
    mut x: *const i8,
    width: usize,
    bias: i32,
) -> [S::I32; V] {
    let mut total = [s.to_i32(s.splat(0.0)); V];
    let mut acc = [C::start(s, bias); V];
    let mut left = width;
    loop {
        // SAFETY: as the caller's; a step that is not short is a multiple of 32.
        unsafe {
            if SHORT {
                eights::<S, C, 2, V>(s, codes, x, &mut acc);
            } else {
                eights::<S, C, 4, V>(s, codes, x, &mut acc);
            }
            left = left.saturating_sub(GROUP);
            let last = left == 0;
            if last || !S::LONG_SUMS {
                let first = left + GROUP >= width;
                unroll!(v < V, {
                    let sum = C::total(s, acc[v], if first || S::LONG_SUMS { bias } else { 0 });
                    total[v] = if first || S::LONG_SUMS { sum } else { s.add_i32(total[v], sum) };
                });
                acc = [C::start(s, 0); V];
            }
            if last {
                return total;
            }
            (codes, x) = (codes.add(4 * C::EIGHT), x.add(GROUP));
        }
    }
}

/// Adds the products of `N` times eight inputs.
///
/// # Safety
/// As [`dots`].
#[inline(always)]
unsafe fn eights<S: Simd, C: Codes<S>, const N: usize, const V: usize>(
    s: S,
    codes: *const u8,
    x: *const i8,
    acc: &mut [C::Acc; V],
) {
    // SAFETY: as the caller's.
    unsafe {
        unroll!(eight < N, {
            let codes = codes.add(eight * C::EIGHT);
            let x = x.add(eight * 8);
            unroll!(v < V, {
                let at = codes.add(v * 64);
                acc[v] = C::dot(s, acc[v], C::load(s, at, 0), x);
                acc[v] = C::dot(s, acc[v], C::load(s, at, 1), x.add(4));
            });
        });
    }
}

/// Asks for what follows a record, `bytes` of every 256 from `first` on: those of the vectors in
/// question.
#[inline(always)]
pub(super) fn ask_ahead<S: Simd>(s: S, record: &[u8], first: usize, bytes: usize) {
    let ahead = record.as_ptr().wrapping_add(AHEAD);
    let mut at = first;
    while at < record.len() {
        let mut line = 0;
        while line < bytes {
            s.prefetch(ahead.wrapping_add(at + line));
            line += 64;
        }
        at += 4 * LANES * 4;
    }
}
