//! One row: the kernel of decode, whose limit is memory.
//!
//! It reads a panel from beginning to end and keeps the sums in registers. What it computes is what
//! a tile of one row computes, in the same order.

use super::ahead::{ask, ask_line};
use super::codes::{Bits4, Bits5, Bits6, Bits8, FOUR, Stored, number};
use super::{GROUP, put_row};
use crate::buffer::Shared;
use crate::kernels::quantise::Rows8;
use crate::pack::{Offsets, PANEL, PackedCodes, Scales};
use crate::simd::{LANES, Op, Simd, Uses, unroll};
use std::ops::Range;

/// Outputs that threads share work by: half a panel.
pub(crate) const HALF: usize = PANEL / 2;
/// Halves of a panel.
pub(crate) const HALVES: usize = 2;

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
    const USES: Uses = Uses::Dots;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let (w, x) = (self.weight, self.x);
        assert!(x.rows() == 1 && x.groups() == w.inputs.div_ceil(x.group()), "not one fitting row");
        assert!(self.bias.is_none_or(|bias| bias.len() == w.outputs));
        match (w.bits, w.step(x.group()) < GROUP) {
            (4, false) => s.run(Outputs::<_, false> { row: &self, codes: Bits4 }),
            (4, true) => s.run(Outputs::<_, true> { row: &self, codes: Bits4 }),
            (5, _) => s.run(Outputs::<_, false> { row: &self, codes: Bits5 }),
            (6, _) => s.run(Outputs::<_, true> { row: &self, codes: Bits6 }),
            (_, false) => s.run(Outputs::<_, false> { row: &self, codes: Bits8 }),
            (_, true) => s.run(Outputs::<_, true> { row: &self, codes: Bits8 }),
        }
    }
}

/// A [`Row8`] over codes of one form: see [`Panel`](super::Panel).
struct Outputs<'a, 'b, C, const SHORT: bool> {
    row: &'a Row8<'b>,
    #[allow(dead_code, reason = "for its type")]
    codes: C,
}

impl<C: Stored, const SHORT: bool> Op for Outputs<'_, '_, C, SHORT> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        self.row.outputs::<S, C, SHORT>(s);
    }
}

impl Row8<'_> {
    /// Panel by panel; `SHORT`: 16 inputs are summed as integers, else those of a group.
    #[inline(always)]
    fn outputs<S: Simd, C: Stored, const SHORT: bool>(&self, s: S) {
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
                        self.vectors::<S, C, SHORT, 4>(s, panel, 0, sums.as_mut_ptr());
                    }
                    (true, false) => {
                        self.vectors::<S, C, SHORT, 2>(s, panel, first, sums.as_mut_ptr());
                    }
                    (false, _) => {
                        for vector in (0..count / LANES).step_by(2) {
                            let sums = sums.as_mut_ptr().add(vector * LANES);
                            self.vectors::<S, C, SHORT, 2>(s, panel, first + vector, sums);
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
    unsafe fn vectors<S: Simd, C: Stored, const SHORT: bool, const V: usize>(
        &self,
        s: S,
        panel: usize,
        first: usize,
        out: *mut f32,
    ) {
        let (w, x) = (self.weight, self.x);
        let width = if SHORT { GROUP / 2 } else { x.group() };
        let mut y = [s.splat(0.0); V];
        // The step's number in the row.
        let mut step = 0;
        for block in w.panel(panel).chunks_exact(w.block_bytes()) {
            let (header, records) = block.split_at(w.header_bytes());
            // SAFETY: a header that is not empty holds as many factors as outputs.
            let factors = unsafe { Factors::load(s, header, first * LANES) };
            for record in records.chunks_exact(w.record_bytes()) {
                ask(s, &record[w.code_bytes()..]);
                // SAFETY: all pointers stay within the record and the row.
                unsafe {
                    let scales = record.as_ptr().add(w.code_bytes());
                    let mut part = Part {
                        codes: record.as_ptr().add(first * 64),
                        width,
                        scales,
                        offsets: scales.add(PANEL * w.scale_bytes()),
                        kinds: (w.scales, w.offsets),
                        column: first * LANES,
                    };
                    for _ in 0..w.group / width {
                        let (group, input) = (if SHORT { step / 2 } else { step }, step * width);
                        let scale = *x.scales().as_ptr().add(group);
                        let sum = sum_of::<SHORT>(*x.sums().as_ptr().add(group), step);
                        let line = (x.codes().as_ptr().add(input), scale, sum);
                        part.add::<S, C, SHORT, V>(s, line, &factors, &mut y);
                        if *x.wide().as_ptr().add(group) != 0 {
                            let sum = sum_of::<SHORT>(*x.high_sums().as_ptr().add(group), step);
                            let line = (x.high().as_ptr().add(input), 128.0 * scale, sum);
                            part.add::<S, C, SHORT, V>(s, line, &factors, &mut y);
                        }
                        part.codes = part.codes.add(width * PANEL * C::BITS / 8);
                        step += 1;
                    }
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

/// What the scales and minima of a block are multiplied with, if they have factors.
struct Factors<S: Simd, const V: usize> {
    scales: [S::F32; V],
    minima: [S::F32; V],
}

impl<S: Simd, const V: usize> Factors<S, V> {
    /// Those of outputs `column..` of a block's header: for scales, then for minima.
    ///
    /// # Safety
    /// What there is of them is whole.
    #[inline(always)]
    unsafe fn load(s: S, header: &[u8], column: usize) -> Self {
        let (scales, minima) = header.split_at(header.len().min(2 * PANEL));
        let mut factors = Self { scales: [s.splat(1.0); V], minima: [s.splat(1.0); V] };
        for (factors, at) in [(&mut factors.scales, scales), (&mut factors.minima, minima)] {
            if !at.is_empty() {
                unroll!(v < V, {
                    // SAFETY: as the caller's.
                    factors[v] =
                        unsafe { s.load_f16(at.as_ptr().add(2 * (column + v * LANES)).cast()) };
                });
            }
        }
        factors
    }
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
    kinds: (Scales, Offsets),
    /// The first output.
    column: usize,
}

impl Part {
    /// Adds the products with a line of digits, of which a unit is worth `scale`, and whose `sum`
    /// is known.
    ///
    /// # Safety
    /// The part and the digits are there.
    #[inline(always)]
    #[allow(clippy::cast_precision_loss)]
    unsafe fn add<S: Simd, C: Stored, const SHORT: bool, const V: usize>(
        &self,
        s: S,
        (digits, scale, sum): (*const i8, f32, i32),
        factors: &Factors<S, V>,
        y: &mut [S::F32; V],
    ) {
        let (scales, offsets) = self.kinds;
        // SAFETY: as the caller's.
        unsafe {
            let bias = (C::shift::<S>() - offsets.zero()) * sum;
            let dots = dots::<S, C, SHORT, V>(s, self.codes, digits, self.width, bias);
            let mut sums = [s.splat(0.0); V];
            unroll!(v < V, {
                sums[v] = s.to_f32(dots[v]);
            });
            if offsets == Offsets::Zero {
                unroll!(v < V, {
                    let zero = s.load_u8(self.offsets.add(self.column + v * LANES));
                    sums[v] = s.fnma(zero, s.splat(sum as f32), sums[v]);
                });
            }
            unroll!(v < V, {
                let column = self.column + v * LANES;
                let weights = number(s, scales, factors.scales[v], self.scales, column);
                y[v] = s.fma(s.mul(sums[v], weights), s.splat(scale), y[v]);
            });
            if offsets == Offsets::Min {
                unroll!(v < V, {
                    let column = self.column + v * LANES;
                    let min = number(s, scales, factors.minima[v], self.offsets, column);
                    y[v] = s.fma(min, s.splat(scale * sum as f32), y[v]);
                });
            }
        }
    }
}

/// Dot products of one step of `width` inputs with `V` vectors of outputs, from `bias` on.
///
/// # Safety
/// The step's codes and digits are there.
#[inline(always)]
unsafe fn dots<S: Simd, C: Stored, const SHORT: bool, const V: usize>(
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
            (codes, x) = (codes.add(GROUP * PANEL * C::BITS / 8), x.add(GROUP));
        }
    }
}

/// Adds the products of `N` times eight inputs.
///
/// # Safety
/// As [`dots`].
#[inline(always)]
unsafe fn eights<S: Simd, C: Stored, const N: usize, const V: usize>(
    s: S,
    codes: *const u8,
    x: *const i8,
    acc: &mut [C::Acc<S>; V],
) {
    // SAFETY: as the caller's.
    unsafe {
        unroll!(eight < N, {
            let x = x.add(eight * 8);
            unroll!(v < V, {
                let at = codes.add(v * 64);
                for line in eight * C::BITS / 4..(eight + 1) * C::BITS / 4 {
                    ask_line(s, at.wrapping_add(line * FOUR));
                }
                acc[v] = C::dot(s, acc[v], C::four(s, at, 2 * eight), x);
                acc[v] = C::dot(s, acc[v], C::four(s, at, 2 * eight + 1), x.add(4));
            });
        });
    }
}
