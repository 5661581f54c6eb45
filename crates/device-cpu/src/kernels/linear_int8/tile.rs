//! The tile: up to 6 rows of 8-bit activations by 64 outputs, one step of inputs.
//!
//! Every array of sums is indexed by constants alone ([`unroll!`]): otherwise it would live in
//! memory and not in registers.

use crate::pack::{Offsets, PANEL};
use crate::simd::{LANES, Simd, unroll};
use std::ops::Range;
use tangor_device::rounding::LONGEST;

/// What a tile reads besides its place in the block: one step of one panel's record.
#[derive(Clone, Copy)]
pub(super) struct Step {
    pub(super) codes: *const u8,
    pub(super) scales: *const u8,
    pub(super) offsets: *const u8,
    pub(super) half: bool,
    pub(super) kind: Offsets,
    /// Eights of inputs: those of the activations' groups, or 2 where the weight's have 16.
    pub(super) eights: usize,
    /// `(rows, group)`, at the step's first input.
    pub(super) x: *const i8,
    /// Elements of the activations' groups: from row to row.
    pub(super) group: usize,
    /// The high digits, likewise.
    pub(super) high: *const i8,
    /// `(rows)`: 1 where the group is wide.
    pub(super) wide: *const u8,
    /// `(rows)`.
    pub(super) x_scales: *const f32,
    /// `(rows, 2)`.
    pub(super) x_sums: *const i32,
    /// Which of the two sums belong to the step.
    pub(super) sums: [bool; 2],
}

/// Eights of inputs whose products fit the accumulators of every instruction set.
pub(super) const SHORT_SUM: usize = 4;

/// The widths of codes: how they lie in memory and are multiplied.
pub(super) trait Codes<S: Simd> {
    type Acc: Copy;
    /// Bytes of eight inputs of 64 outputs.
    const EIGHT: usize;
    /// What [`Codes::dot`] takes every code less.
    const SHIFT: i32;
    fn start(s: S, bias: i32) -> Self::Acc;
    /// Inputs 0..4 (`half` 0) or 4..8 (1) of an eight, for 16 outputs.
    unsafe fn load(s: S, at: *const u8, half: usize) -> S::Codes;
    unsafe fn dot(s: S, acc: Self::Acc, w: S::Codes, x: *const i8) -> Self::Acc;
    fn total(s: S, acc: Self::Acc, bias: i32) -> S::I32;
}

/// 4 bits, packed.
pub(super) struct Four;
/// 4 bits, each in a byte.
pub(super) struct FourInBytes;
/// 8 bits.
pub(super) struct Eight;

impl<S: Simd> Codes<S> for FourInBytes {
    type Acc = S::Acc4;
    const EIGHT: usize = 8 * PANEL;
    const SHIFT: i32 = 0;
    #[inline(always)]
    fn start(s: S, bias: i32) -> S::Acc4 {
        s.start4(bias)
    }
    #[inline(always)]
    unsafe fn load(s: S, at: *const u8, half: usize) -> S::Codes {
        // SAFETY: as the caller's; the second four inputs follow the first.
        unsafe { s.codes(at.add(half * 4 * PANEL)) }
    }
    #[inline(always)]
    unsafe fn dot(s: S, acc: S::Acc4, w: S::Codes, x: *const i8) -> S::Acc4 {
        // SAFETY: as the caller's.
        unsafe { s.dot4(acc, w, x) }
    }
    #[inline(always)]
    fn total(s: S, acc: S::Acc4, bias: i32) -> S::I32 {
        s.total4(acc, bias)
    }
}

impl<S: Simd> Codes<S> for Four {
    type Acc = S::Acc4;
    const EIGHT: usize = 4 * PANEL;
    const SHIFT: i32 = 0;
    #[inline(always)]
    fn start(s: S, bias: i32) -> S::Acc4 {
        s.start4(bias)
    }
    #[inline(always)]
    unsafe fn load(s: S, at: *const u8, half: usize) -> S::Codes {
        // SAFETY: as the caller's.
        let both = unsafe { s.codes(at) };
        if half == 0 { s.low(both) } else { s.high(both) }
    }
    #[inline(always)]
    unsafe fn dot(s: S, acc: S::Acc4, w: S::Codes, x: *const i8) -> S::Acc4 {
        // SAFETY: as the caller's.
        unsafe { s.dot4(acc, w, x) }
    }
    #[inline(always)]
    fn total(s: S, acc: S::Acc4, bias: i32) -> S::I32 {
        s.total4(acc, bias)
    }
}

impl<S: Simd> Codes<S> for Eight {
    type Acc = S::Acc8;
    const EIGHT: usize = 8 * PANEL;
    const SHIFT: i32 = S::SHIFT8;
    #[inline(always)]
    fn start(s: S, bias: i32) -> S::Acc8 {
        s.start8(bias)
    }
    #[inline(always)]
    unsafe fn load(s: S, at: *const u8, half: usize) -> S::Codes {
        // SAFETY: as the caller's; the second four inputs follow the first.
        unsafe { s.codes(at.add(half * 4 * PANEL)) }
    }
    #[inline(always)]
    unsafe fn dot(s: S, acc: S::Acc8, w: S::Codes, x: *const i8) -> S::Acc8 {
        // SAFETY: as the caller's.
        unsafe { s.dot8(acc, w, x) }
    }
    #[inline(always)]
    fn total(s: S, acc: S::Acc8, bias: i32) -> S::I32 {
        s.total8(acc, bias)
    }
}

/// One step's codes, each in a byte: `(inputs / 4, 64, 4)`.
#[repr(align(64))]
pub(super) struct Unpacked(pub(super) [u8; LONGEST * PANEL]);

/// Unpacks `eights` times eight inputs.
///
/// # Safety
/// They are there.
#[inline(always)]
pub(super) unsafe fn unpack<S: Simd>(s: S, codes: *const u8, eights: usize, out: &mut Unpacked) {
    assert!(eights * 8 <= LONGEST);
    for eight in 0..eights {
        for vector in 0..PANEL / LANES {
            // SAFETY: within the step's codes, and within the buffer.
            unsafe {
                let both = s.codes(codes.add((eight * 4 + vector) * 64));
                let out = out.0.as_mut_ptr().add((eight * 8 + vector) * 64);
                s.put_codes(out, s.low(both));
                s.put_codes(out.add(4 * 64), s.high(both));
            }
        }
    }
}

/// Adds one step to `rows` rows of the block.
///
/// # Safety
/// `step` points at `rows` rows, and `block` at as many of 64.
#[inline(always)]
pub(super) unsafe fn tiles<S: Simd, C: Codes<S>>(s: S, step: &Step, rows: usize, block: *mut f32) {
    /// # Safety
    /// As [`tiles`].
    #[inline(always)]
    unsafe fn tile_of<S: Simd, C: Codes<S>, const R: usize>(
        s: S,
        step: &Step,
        row: usize,
        block: *mut f32,
    ) {
        // SAFETY: the rows are there, as the caller says.
        unsafe {
            let mut step = *step;
            step.x = step.x.add(row * step.group);
            step.high = step.high.add(row * step.group);
            step.wide = step.wide.add(row);
            step.x_scales = step.x_scales.add(row);
            step.x_sums = step.x_sums.add(2 * row);
            let block = block.add(row * PANEL);
            let rows = Rows::<R>::new::<S, C>(&step);
            if S::WIDE {
                tile::<S, C, R, 4>(s, &step, &rows, 0, block);
            } else {
                for column in 0..4 {
                    tile::<S, C, R, 1>(s, &step, &rows, column, block);
                }
            }
        }
    }
    let mut row = 0;
    while row < rows {
        let count = (rows - row).min(S::ROWS);
        // SAFETY: every tile lies within `rows`.
        unsafe {
            match count {
                6 if S::ROWS >= 6 => tile_of::<S, C, 6>(s, step, row, block),
                5 if S::ROWS >= 5 => tile_of::<S, C, 5>(s, step, row, block),
                4 if S::ROWS >= 4 => tile_of::<S, C, 4>(s, step, row, block),
                3 if S::ROWS >= 3 => tile_of::<S, C, 3>(s, step, row, block),
                2 if S::ROWS >= 2 => tile_of::<S, C, 2>(s, step, row, block),
                _ => tile_of::<S, C, 1>(s, step, row, block),
            }
        }
        row += count;
    }
}

/// What a tile's rows have in common for all outputs.
struct Rows<const R: usize> {
    /// What their integer sums start at.
    bias: [i32; R],
    scales: [f32; R],
    /// What zero points or minima are multiplied by: sums of activations, for minima scaled.
    sums: [f32; R],
    /// Whether any of them has a second digit.
    wide: bool,
}

impl<const R: usize> Rows<R> {
    /// # Safety
    /// `step` points at `R` rows.
    #[inline(always)]
    #[allow(clippy::cast_precision_loss)]
    unsafe fn new<S: Simd, C: Codes<S>>(step: &Step) -> Self {
        let zero = if let Offsets::Uniform(zero) = step.kind { i32::from(zero) } else { 0 };
        // SAFETY: as the caller's.
        let (scales, wide): ([f32; R], [u8; R]) =
            unsafe { (*step.x_scales.cast(), *step.wide.cast()) };
        let mut rows = Self { bias: [0; R], scales, sums: [0.0; R], wide: wide != [0; R] };
        for (r, scale) in scales.into_iter().enumerate() {
            let mut sum = 0;
            for (half, wanted) in step.sums.into_iter().enumerate() {
                if wanted {
                    // SAFETY: as the caller's.
                    sum += unsafe { *step.x_sums.add(2 * r + half) };
                }
            }
            rows.bias[r] = (C::SHIFT - zero) * sum;
            let scaled = step.kind == Offsets::Min;
            rows.sums[r] = if scaled { scale * sum as f32 } else { sum as f32 };
        }
        rows
    }
}

/// `R` rows by `V` vectors of outputs, from vector `first`.
///
/// # Safety
/// As [`tiles`], for `R` rows.
#[inline(always)]
unsafe fn tile<S: Simd, C: Codes<S>, const R: usize, const V: usize>(
    s: S,
    step: &Step,
    rows: &Rows<R>,
    first: usize,
    block: *mut f32,
) {
    // SAFETY: as the caller's; `high` has room for `R` rows of `V` vectors.
    unsafe {
        if !rows.wide {
            let high = std::ptr::null();
            return tile_of_digits::<S, C, R, V, false>(s, step, rows, first, high, block);
        }
        // 128 times the dot products of the high digits. Only the rows that have some: most have
        // none.
        let mut high = [[[0_i32; LANES]; V]; R];
        for (r, high) in high.iter_mut().enumerate() {
            if *step.wide.add(r) != 0 {
                let x = step.high.add(r * step.group);
                let dots = dots::<S, C, 1, V>(s, step, first, x, [0]);
                unroll!(v < V, {
                    s.store_i32(high[v].as_mut_ptr(), s.times_128(dots[0][v]));
                });
            }
        }
        let high = high.as_ptr().cast();
        tile_of_digits::<S, C, R, V, true>(s, step, rows, first, high, block);
    }
}

/// Dot products of `R` rows of activations with `V` vectors of outputs, each from its `bias` on.
///
/// # Safety
/// As [`tile`]; `x` points at `R` rows.
#[inline(always)]
unsafe fn dots<S: Simd, C: Codes<S>, const R: usize, const V: usize>(
    s: S,
    step: &Step,
    first: usize,
    x: *const i8,
    bias: [i32; R],
) -> [[S::I32; V]; R] {
    let at_once = if S::LONG_SUMS { step.eights } else { SHORT_SUM };
    // SAFETY: as the caller's.
    unsafe {
        let mut totals = sums::<S, C, R, V>(s, step, first, x, 0..step.eights.min(at_once), bias);
        let mut from = at_once;
        while from < step.eights {
            let eights = from..from + at_once;
            let more = sums::<S, C, R, V>(s, step, first, x, eights, [0; R]);
            unroll!(r < R, {
                unroll!(v < V, {
                    totals[r][v] = s.add_i32(totals[r][v], more[r][v]);
                });
            });
            from += at_once;
        }
        totals
    }
}

/// [`dots`] of so many eights of inputs as accumulators hold: an even number.
///
/// # Safety
/// As [`dots`].
#[inline(always)]
unsafe fn sums<S: Simd, C: Codes<S>, const R: usize, const V: usize>(
    s: S,
    step: &Step,
    first: usize,
    x: *const i8,
    eights: Range<usize>,
    bias: [i32; R],
) -> [[S::I32; V]; R] {
    let mut acc = [[C::start(s, 0); V]; R];
    for r in 0..R {
        acc[r] = [C::start(s, bias[r]); V];
    }
    let mut eight = eights.start;
    while eight < eights.end {
        // SAFETY: all pointers stay within the step's record and rows.
        unsafe {
            add_eight::<S, C, R, V>(s, step, first, x, eight, &mut acc);
            if !S::WIDE {
                add_eight::<S, C, R, V>(s, step, first, x, eight + 1, &mut acc);
            }
        }
        eight += if S::WIDE { 1 } else { 2 };
    }
    let mut totals = [[s.to_i32(s.splat(0.0)); V]; R];
    unroll!(r < R, {
        unroll!(v < V, {
            totals[r][v] = C::total(s, acc[r][v], bias[r]);
        });
    });
    totals
}

/// Adds the products of eight inputs.
///
/// # Safety
/// As [`dots`].
#[inline(always)]
unsafe fn add_eight<S: Simd, C: Codes<S>, const R: usize, const V: usize>(
    s: S,
    step: &Step,
    first: usize,
    x: *const i8,
    eight: usize,
    acc: &mut [[C::Acc; V]; R],
) {
    // SAFETY: as the caller's.
    unsafe {
        let codes = step.codes.add(eight * C::EIGHT + first * 64);
        for half in 0..2 {
            let mut w = [C::load(s, codes, half); V];
            unroll!(v < V, {
                w[v] = C::load(s, codes.add(v * 64), half);
            });
            unroll!(r < R, {
                let x = x.add(r * step.group + eight * 8 + half * 4);
                unroll!(v < V, {
                    acc[r][v] = C::dot(s, acc[r][v], w[v], x);
                });
            });
        }
    }
}

/// [`tile`] of activations with one digit or, if `WIDE`, two: `high` holds what the second one
/// adds, `(R, V, 16)`.
///
/// # Safety
/// As [`tile`].
#[inline(always)]
unsafe fn tile_of_digits<S: Simd, C: Codes<S>, const R: usize, const V: usize, const WIDE: bool>(
    s: S,
    step: &Step,
    rows: &Rows<R>,
    first: usize,
    high: *const i32,
    block: *mut f32,
) {
    // SAFETY: all pointers stay within the step's record, rows and block.
    unsafe {
        let dots = dots::<S, C, R, V>(s, step, first, step.x, rows.bias);
        unroll!(v < V, {
            let column = (first + v) * LANES;
            let scale = scale(s, step.half, step.scales, column);
            let block = block.add(column);
            match step.kind {
                Offsets::Uniform(_) => unroll!(r < R, {
                    let y = block.add(r * PANEL);
                    let high = high.wrapping_add((r * V + v) * LANES);
                    let dot = s.mul(both::<S, WIDE>(s, dots[r][v], high), scale);
                    s.store(y, s.fma(dot, s.splat(rows.scales[r]), s.load(y)));
                }),
                Offsets::Zero => {
                    let zero = s.load_u8(step.offsets.add(column));
                    unroll!(r < R, {
                        let y = block.add(r * PANEL);
                        let high = high.wrapping_add((r * V + v) * LANES);
                        let dot = both::<S, WIDE>(s, dots[r][v], high);
                        let dot = s.mul(s.fnma(zero, s.splat(rows.sums[r]), dot), scale);
                        s.store(y, s.fma(dot, s.splat(rows.scales[r]), s.load(y)));
                    });
                }
                Offsets::Min => {
                    let min = self::scale(s, step.half, step.offsets, column);
                    unroll!(r < R, {
                        let y = block.add(r * PANEL);
                        let high = high.wrapping_add((r * V + v) * LANES);
                        let dot = both::<S, WIDE>(s, dots[r][v], high);
                        let dot = s.mul(dot, scale);
                        let out = s.fma(dot, s.splat(rows.scales[r]), s.load(y));
                        s.store(y, s.fma(min, s.splat(rows.sums[r]), out));
                    });
                }
            }
        });
    }
}

/// Both digits' sums together.
///
/// # Safety
/// 16 sums are at `high`, if `WIDE`.
#[inline(always)]
unsafe fn both<S: Simd, const WIDE: bool>(s: S, low: S::I32, high: *const i32) -> S::F32 {
    // SAFETY: as the caller's.
    unsafe { s.to_f32(if WIDE { s.add_i32(low, s.load_i32(high)) } else { low }) }
}

/// 16 scales or minima from `column` on.
///
/// # Safety
/// They are there.
#[inline(always)]
pub(in crate::kernels) unsafe fn scale<S: Simd>(
    s: S,
    half: bool,
    at: *const u8,
    column: usize,
) -> S::F32 {
    // SAFETY: as the caller's.
    unsafe {
        if half { s.load_f16(at.add(2 * column).cast()) } else { s.load(at.add(4 * column).cast()) }
    }
}
