//! The tile: up to 6 lines of 8-bit digits by 64 outputs, one step of inputs. A line is a row, or
//! the high digits of a wide row.
//!
//! Every array of sums is indexed by constants alone ([`unroll!`]): otherwise it would live in
//! memory and not in registers.

use super::ahead::ask_line;
use super::codes::{FOUR, Stored, plain};
use crate::pack::PANEL;
use crate::simd::{LANES, Simd, unroll};

/// One step of one panel's record: the inputs whose products are summed as integers.
#[derive(Clone, Copy)]
pub(super) struct Step {
    pub(super) codes: *const u8,
    pub(super) scales: *const u8,
    pub(super) offsets: *const u8,
    /// Whether scales and minima are IEEE halves, else `f32`.
    pub(super) half: bool,
    /// [`UNIFORM`], [`ZERO`] or [`MIN`].
    pub(super) kind: u8,
    /// Eights of inputs: those of the activations' groups, or 2 where the weight's have 16.
    pub(super) eights: usize,
}

/// What a weight's offsets are, for constants and for what is decided once per tile: see
/// [`Offsets`](crate::pack::Offsets).
pub(super) const UNIFORM: u8 = 0;
/// A zero point per group and output.
pub(super) const ZERO: u8 = 1;
/// A minimum per group and output.
pub(super) const MIN: u8 = 2;

/// What the digits of one row and step, whose `sum` is given, add beside their products: for
/// [`UNIFORM`] the bits of an `i32` that sums of products start at, for [`ZERO`] the sum, for
/// [`MIN`] what minima are multiplied with. `zero` is the weight's zero point, if it has one for
/// all, less [`Stored::shift`].
#[inline(always)]
#[allow(clippy::cast_precision_loss)]
pub(super) fn offset(kind: u8, zero: i32, scale: f32, sum: i32) -> f32 {
    match kind {
        UNIFORM => f32::from_bits((-zero * sum).cast_unsigned()),
        ZERO => sum as f32,
        _ => scale * sum as f32,
    }
}

/// What the sum of a line's products starts at, so that what [`Stored::shift`] takes off the codes
/// does not show; `x` are the step's `inputs` digits.
///
/// # Safety
/// They are there.
#[inline(always)]
#[allow(clippy::cast_possible_truncation)]
pub(super) unsafe fn bias<S: Simd, C: Stored>(
    kind: u8,
    offset: f32,
    x: *const i8,
    inputs: usize,
) -> i32 {
    match kind {
        UNIFORM => offset.to_bits().cast_signed(),
        _ if C::shift::<S>() == 0 => 0,
        // A sum of so few digits is exact.
        ZERO => C::shift::<S>() * offset as i32,
        _ => {
            // SAFETY: as the caller's.
            let x = unsafe { std::slice::from_raw_parts(x, inputs) };
            C::shift::<S>() * x.iter().map(|&x| i32::from(x)).sum::<i32>()
        }
    }
}

/// Digits that are multiplied with a step of weights, and where the products go.
pub(super) trait Lines: Copy {
    /// The step's digits of line `r`.
    ///
    /// # Safety
    /// It is there; likewise below.
    unsafe fn x(self, r: usize) -> *const i8;
    /// What a unit of its digits is worth.
    unsafe fn scale(self, r: usize) -> f32;
    /// See [`offset`].
    unsafe fn offset(self, r: usize) -> f32;
    /// Its 64 sums.
    unsafe fn y(self, r: usize) -> *mut f32;
}

/// The low digits of neighbouring rows.
#[derive(Clone, Copy)]
pub(super) struct Neighbours {
    /// `(rows, group)`, at the step's first input.
    pub(super) x: *const i8,
    /// From row to row.
    pub(super) group: usize,
    /// `(rows)`.
    pub(super) scales: *const f32,
    /// `(rows)`.
    pub(super) offsets: *const f32,
    /// `(rows, 64)`.
    pub(super) y: *mut f32,
}

impl Neighbours {
    /// From row `row` on.
    ///
    /// # Safety
    /// It is there.
    #[inline(always)]
    pub(super) unsafe fn from(self, row: usize) -> Self {
        // SAFETY: as the caller's.
        unsafe {
            Self {
                x: self.x.add(row * self.group),
                scales: self.scales.add(row),
                offsets: self.offsets.add(row),
                y: self.y.add(row * PANEL),
                ..self
            }
        }
    }
}

impl Lines for Neighbours {
    #[inline(always)]
    unsafe fn x(self, r: usize) -> *const i8 {
        // SAFETY: as the caller's.
        unsafe { self.x.add(r * self.group) }
    }
    #[inline(always)]
    unsafe fn scale(self, r: usize) -> f32 {
        // SAFETY: as the caller's.
        unsafe { *self.scales.add(r) }
    }
    #[inline(always)]
    unsafe fn offset(self, r: usize) -> f32 {
        // SAFETY: as the caller's.
        unsafe { *self.offsets.add(r) }
    }
    #[inline(always)]
    unsafe fn y(self, r: usize) -> *mut f32 {
        // SAFETY: as the caller's.
        unsafe { self.y.add(r * PANEL) }
    }
}

/// One line of a list: a digit of any row.
#[derive(Clone, Copy)]
pub(super) struct Line {
    pub(super) x: *const i8,
    pub(super) y: *mut f32,
    pub(super) scale: f32,
    pub(super) offset: f32,
}

impl Lines for *const Line {
    #[inline(always)]
    unsafe fn x(self, r: usize) -> *const i8 {
        // SAFETY: as the caller's.
        unsafe { (*self.add(r)).x }
    }
    #[inline(always)]
    unsafe fn scale(self, r: usize) -> f32 {
        // SAFETY: as the caller's.
        unsafe { (*self.add(r)).scale }
    }
    #[inline(always)]
    unsafe fn offset(self, r: usize) -> f32 {
        // SAFETY: as the caller's.
        unsafe { (*self.add(r)).offset }
    }
    #[inline(always)]
    unsafe fn y(self, r: usize) -> *mut f32 {
        // SAFETY: as the caller's.
        unsafe { (*self.add(r)).y }
    }
}

/// Eights of inputs whose products fit the accumulators of every instruction set.
pub(super) const SHORT_SUM: usize = 4;

/// Adds one step to `count` lines of a list, in order: a row may have several.
///
/// # Safety
/// They are there, and so is the step.
#[inline(always)]
pub(super) unsafe fn list<S: Simd, C: Stored>(s: S, step: &Step, lines: *const Line, count: usize) {
    let mut done = 0;
    while done < count {
        let left = count - done;
        // Tiles of about the same size.
        let rows = left.div_ceil(left.div_ceil(S::DOT_ROWS));
        // SAFETY: every tile lies within the list.
        unsafe {
            let lines = lines.add(done);
            match rows {
                6 if S::DOT_ROWS >= 6 => panel::<S, C, _, 6>(s, step, lines),
                5 if S::DOT_ROWS >= 5 => panel::<S, C, _, 5>(s, step, lines),
                4 if S::DOT_ROWS >= 4 => panel::<S, C, _, 4>(s, step, lines),
                3 if S::DOT_ROWS >= 3 => panel::<S, C, _, 3>(s, step, lines),
                2 if S::DOT_ROWS >= 2 => panel::<S, C, _, 2>(s, step, lines),
                _ => panel::<S, C, _, 1>(s, step, lines),
            }
        }
        done += rows;
    }
}

/// Adds one step to whole tiles of neighbouring rows, as many as `rows` has; returns their rows.
///
/// # Safety
/// The rows are there, and so is the step.
#[inline(always)]
pub(super) unsafe fn neighbours<S: Simd, C: Stored>(
    s: S,
    step: &Step,
    lines: Neighbours,
    rows: usize,
) -> usize {
    let mut row = 0;
    while row + S::DOT_ROWS <= rows {
        // SAFETY: every tile lies within `rows`.
        unsafe {
            let lines = lines.from(row);
            match S::DOT_ROWS {
                6 => panel::<S, C, _, 6>(s, step, lines),
                5 => panel::<S, C, _, 5>(s, step, lines),
                4 => panel::<S, C, _, 4>(s, step, lines),
                3 => panel::<S, C, _, 3>(s, step, lines),
                2 => panel::<S, C, _, 2>(s, step, lines),
                _ => panel::<S, C, _, 1>(s, step, lines),
            }
        }
        row += S::DOT_ROWS;
    }
    row
}

/// `R` lines by all outputs of the panel.
///
/// # Safety
/// As [`list`], for `R` lines.
#[inline(always)]
unsafe fn panel<S: Simd, C: Stored, L: Lines, const R: usize>(s: S, step: &Step, lines: L) {
    // SAFETY: as the caller's; a panel has four vectors.
    unsafe {
        if S::WIDE {
            tile::<S, C, L, R, 4>(s, step, 0, lines);
        } else {
            for column in 0..4 {
                tile::<S, C, L, R, 1>(s, step, column, lines);
            }
        }
    }
}

/// `R` lines by `V` vectors of outputs, from vector `first`.
///
/// # Safety
/// As [`list`], for `R` lines.
#[inline(always)]
unsafe fn tile<S, C, L, const R: usize, const V: usize>(s: S, step: &Step, first: usize, lines: L)
where
    S: Simd,
    C: Stored,
    L: Lines,
{
    // SAFETY: all pointers stay within the step's record and lines.
    unsafe {
        let mut bias = [0_i32; R];
        for (r, bias) in bias.iter_mut().enumerate() {
            *bias = self::bias::<S, C>(step.kind, lines.offset(r), lines.x(r), 8 * step.eights);
        }
        let dots = dots::<S, C, L, R, V>(s, step, first, lines, bias);
        unroll!(v < V, {
            let column = (first + v) * LANES;
            let scale = plain(s, step.half, step.scales, column);
            // What it takes to get from one dot product to its sum differs, and is decided once.
            match step.kind {
                UNIFORM => unroll!(r < R, {
                    let y = lines.y(r).add(column);
                    let dot = s.mul(s.to_f32(dots[r][v]), scale);
                    s.store(y, s.fma(dot, s.splat(lines.scale(r)), s.load(y)));
                }),
                ZERO => {
                    let zero = s.load_u8(step.offsets.add(column));
                    unroll!(r < R, {
                        let y = lines.y(r).add(column);
                        let dot = s.fnma(zero, s.splat(lines.offset(r)), s.to_f32(dots[r][v]));
                        let dot = s.mul(dot, scale);
                        s.store(y, s.fma(dot, s.splat(lines.scale(r)), s.load(y)));
                    });
                }
                _ => {
                    let min = plain(s, step.half, step.offsets, column);
                    unroll!(r < R, {
                        let y = lines.y(r).add(column);
                        let dot = s.mul(s.to_f32(dots[r][v]), scale);
                        let sum = s.fma(dot, s.splat(lines.scale(r)), s.load(y));
                        s.store(y, s.fma(min, s.splat(lines.offset(r)), sum));
                    });
                }
            }
        });
    }
}

/// Dot products of `R` lines with `V` vectors of outputs, each from its `bias` on.
///
/// # Safety
/// As [`tile`].
#[inline(always)]
unsafe fn dots<S: Simd, C: Stored, L: Lines, const R: usize, const V: usize>(
    s: S,
    step: &Step,
    first: usize,
    lines: L,
    bias: [i32; R],
) -> [[S::I32; V]; R] {
    let mut totals = [[s.to_i32(s.splat(0.0)); V]; R];
    let mut from = 0;
    loop {
        let bias = if from == 0 { bias } else { [0; R] };
        let to = if S::LONG_SUMS { step.eights } else { step.eights.min(from + SHORT_SUM) };
        let mut acc = [[C::start(s, 0); V]; R];
        for r in 0..R {
            acc[r] = [C::start(s, bias[r]); V];
        }
        for eight in from..to {
            // SAFETY: all pointers stay within the step's record and lines.
            unsafe {
                let codes = step.codes.add(eight * C::BITS * PANEL + first * 64);
                for half in 0..2 {
                    let mut w = [C::four(s, codes, half); V];
                    unroll!(v < V, {
                        w[v] = C::four(s, codes.add(v * 64), half);
                        if C::FROM_MEMORY && half < C::BITS / 4 {
                            ask_line(s, codes.add(half * FOUR + v * 64));
                        }
                    });
                    unroll!(r < R, {
                        let x = lines.x(r).add(eight * 8 + half * 4);
                        unroll!(v < V, {
                            acc[r][v] = C::dot(s, acc[r][v], w[v], x);
                        });
                    });
                }
            }
        }
        unroll!(r < R, {
            unroll!(v < V, {
                let sum = C::total(s, acc[r][v], bias[r]);
                let more = !S::LONG_SUMS && from > 0;
                totals[r][v] = if more { s.add_i32(totals[r][v], sum) } else { sum };
            });
        });
        if to == step.eights {
            return totals;
        }
        from = to;
    }
}
