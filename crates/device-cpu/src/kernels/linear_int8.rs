//! Linear over codes and 8-bit activations: `y = x W^T + bias`.
//!
//! For each row and output, over the groups of 32 inputs in order:
//!
//! ```text
//! dot = sum code * activation                          exact, i32
//! y  += scale_w * (dot - zero * sum activation) * scale_x       one zero point, or one per group
//! y  += scale_w * dot * scale_x + min * (scale_x * sum activation)   minima
//! ```
//!
//! where `dot` is `128 * dot(high) + dot(low)` if any row of the tile has a wide group there (high
//! digits of the others are zero, which changes no bit). There is one rounding for `scale_w * (…)`
//! and one fused multiply-add per term. The order does not depend on how rows are tiled, so a row's
//! result does not depend on the rows beside it.
//!
//! A tile is up to 6 rows x 64 outputs: 24 accumulators, 4 registers of weights, and activations
//! broadcast from memory. Groups are the outer loop over a block of rows: a group's weights and the
//! block's sums stay in the first-level cache. Codes of 4 bits are unpacked in registers for few
//! rows, where memory is the limit, and once per block into a buffer for many.

use crate::buffer::Shared;
use crate::kernels::quantise::Rows8;
use crate::pack::{Offsets, PANEL, PackedCodes};
use crate::simd::{LANES, Op, Simd, unroll};
use std::mem::MaybeUninit;
use std::ops::Range;
use tangor_device::rounding::GROUP;

/// Rows whose sums stay in the first-level cache.
pub(crate) const BLOCK: usize = 96;

/// How far ahead of a single row's kernel its weights are asked for: beyond what processors fetch
/// by themselves, above all across the borders of pages.
const AHEAD: usize = 4096;

/// Rows from which on it pays to unpack codes into a buffer.
const UNPACK: usize = 18;

/// One panel of outputs for a block of at most [`BLOCK`] rows.
#[derive(Debug)]
pub(crate) struct Linear8<'a> {
    pub(crate) weight: &'a PackedCodes,
    pub(crate) bias: Option<&'a [f32]>,
    pub(crate) x: &'a Rows8,
    pub(crate) panel: usize,
    /// All of the panel, or half of it where there are few panels for many threads.
    pub(crate) part: Part,
    pub(crate) rows: Range<usize>,
    /// `(rows, outputs)`; nobody else writes these rows and outputs.
    pub(crate) y: Shared<'a, f32>,
}

/// Which of a panel's four vectors of outputs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    All,
    /// The first or the last two, of one row.
    Half(usize),
}

impl Part {
    /// Outputs of the panel.
    fn columns(self) -> Range<usize> {
        match self {
            Self::All => 0..PANEL,
            Self::Half(half) => half * PANEL / 2..(half + 1) * PANEL / 2,
        }
    }
}

/// What a tile reads besides its place in the block: one step of one panel's record.
#[derive(Clone, Copy)]
struct Step {
    codes: *const u8,
    scales: *const u8,
    offsets: *const u8,
    half: bool,
    kind: Offsets,
    /// Eights of inputs: 4, or 2 where groups have 16.
    eights: usize,
    /// `(rows, 32)`, at the step's first input.
    x: *const i8,
    /// The high digits, likewise.
    high: *const i8,
    /// `(rows)`: 1 where the group is wide.
    wide: *const u8,
    /// `(rows)`.
    x_scales: *const f32,
    /// `(rows, 2)`.
    x_sums: *const i32,
    /// Which of the two sums belong to the step.
    sums: [bool; 2],
}

/// The widths of codes: how they lie in memory and are multiplied.
trait Codes<S: Simd> {
    type Acc: Copy;
    /// Bytes of eight inputs of 64 outputs.
    const EIGHT: usize;
    fn start(s: S, bias: i32) -> Self::Acc;
    /// Inputs 0..4 (`half` 0) or 4..8 (1) of an eight, for 16 outputs.
    unsafe fn load(s: S, at: *const u8, half: usize) -> S::Codes;
    unsafe fn dot(s: S, acc: Self::Acc, w: S::Codes, x: *const i8) -> Self::Acc;
    fn total(s: S, acc: Self::Acc, bias: i32) -> S::I32;
}

/// 4 bits, packed.
struct Four;
/// 4 bits, each in a byte.
struct FourWide;
/// 8 bits.
struct Eight;

impl<S: Simd> Codes<S> for FourWide {
    type Acc = S::Acc4;
    const EIGHT: usize = 8 * PANEL;
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

impl Op for Linear8<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let (w, x) = (self.weight, self.x);
        assert_eq!(x.groups(), w.inputs.div_ceil(GROUP), "activations do not fit the weight");
        assert!(self.rows.end <= x.rows() && self.rows.len() <= BLOCK);
        assert!(self.bias.is_none_or(|bias| bias.len() == w.outputs));
        // `(rows, 64)` sums; only the rows that there are get written, zeros included.
        let mut block = MaybeUninit::<[[f32; PANEL]; BLOCK]>::uninit();
        let sums = block.as_mut_ptr().cast::<f32>();
        // SAFETY: the block has room for more rows.
        unsafe { sums.write_bytes(0, self.rows.len() * PANEL) };
        let panel = w.panel(self.panel);
        let mut wide = Wide([0; GROUP * PANEL]);
        for (index, record) in panel.chunks_exact(w.record_bytes()).enumerate() {
            if self.rows.len() == 1 {
                for line in (0..record.len()).step_by(64) {
                    s.prefetch(record.as_ptr().wrapping_add(AHEAD + line));
                }
            }
            for start in (0..w.group).step_by(w.step()) {
                let mut step = self.step(record, index * w.group + start, start);
                // SAFETY: `step` points at the group's activations of `rows`, of which the block
                // holds as many.
                unsafe {
                    if self.part != Part::All {
                        half_tiles(s, w.bits, &step, self.part.columns().start / LANES, sums);
                    } else if w.bits == 4 && self.rows.len() >= UNPACK {
                        unpack(s, step.codes, step.eights, &mut wide);
                        step.codes = wide.0.as_ptr();
                        tiles::<S, FourWide>(s, &step, self.rows.len(), sums);
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
        let at = input / GROUP * x.rows() + self.rows.start;
        let first_half = input.is_multiple_of(GROUP);
        Step {
            codes: codes.as_ptr(),
            scales: scales.as_ptr(),
            offsets: offsets.as_ptr(),
            half: w.half,
            kind: w.offsets,
            eights: w.step() / 8,
            x: x.codes()[at * GROUP + input % GROUP..].as_ptr(),
            high: x.high()[at * GROUP + input % GROUP..].as_ptr(),
            wide: x.wide()[at..].as_ptr(),
            x_scales: x.scales()[at..].as_ptr(),
            x_sums: x.sums()[2 * at..].as_ptr(),
            sums: [first_half, w.step() == GROUP || !first_half],
        }
    }

    /// Adds the bias and writes the block where it belongs.
    #[inline(always)]
    fn finish<S: Simd>(&self, s: S, block: &[[f32; PANEL]]) {
        let outputs = self.weight.outputs;
        let columns = self.part.columns();
        let first = self.panel * PANEL + columns.start;
        let count = columns.len().min(outputs - first);
        for (row, sums) in self.rows.clone().zip(block) {
            let at = row * outputs + first;
            // SAFETY: whoever makes a `Linear8` has these rows and outputs to itself.
            let y = unsafe { self.y.part(at..at + count) };
            let bias = self.bias.map(|bias| &bias[first..first + count]);
            put_row(s, &sums[columns.clone()], bias, y);
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

/// One step's codes, each in a byte: `(inputs / 4, 64, 4)`.
#[repr(align(64))]
struct Wide([u8; GROUP * PANEL]);

/// Unpacks `eights` times eight inputs.
///
/// # Safety
/// They are there.
#[inline(always)]
unsafe fn unpack<S: Simd>(s: S, codes: *const u8, eights: usize, out: &mut Wide) {
    assert!(eights * 8 <= GROUP);
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

/// Adds one step to two vectors of one row.
///
/// # Safety
/// `step` points at a row, and `block` at 64 sums.
#[inline(always)]
unsafe fn half_tiles<S: Simd>(s: S, bits: u8, step: &Step, first: usize, block: *mut f32) {
    // SAFETY: as the caller's.
    unsafe {
        match (bits, S::WIDE) {
            (4, true) => tile::<S, Four, 1, 2>(s, step, first, block),
            (4, false) => {
                tile::<S, Four, 1, 1>(s, step, first, block);
                tile::<S, Four, 1, 1>(s, step, first + 1, block);
            }
            (_, true) => tile::<S, Eight, 1, 2>(s, step, first, block),
            (_, false) => {
                tile::<S, Eight, 1, 1>(s, step, first, block);
                tile::<S, Eight, 1, 1>(s, step, first + 1, block);
            }
        }
    }
}

/// Adds one step to `rows` rows of the block.
///
/// # Safety
/// `step` points at `rows` rows, and `block` at as many of 64.
#[inline(always)]
unsafe fn tiles<S: Simd, C: Codes<S>>(s: S, step: &Step, rows: usize, block: *mut f32) {
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
            step.x = step.x.add(row * GROUP);
            step.high = step.high.add(row * GROUP);
            step.wide = step.wide.add(row);
            step.x_scales = step.x_scales.add(row);
            step.x_sums = step.x_sums.add(2 * row);
            let block = block.add(row * PANEL);
            if S::WIDE {
                tile::<S, C, R, 4>(s, &step, 0, block);
            } else {
                for column in 0..4 {
                    tile::<S, C, R, 1>(s, &step, column, block);
                }
            }
        }
    }
    let most = if S::WIDE { 6 } else { 4 };
    let mut row = 0;
    // SAFETY: every tile lies within `rows`.
    unsafe {
        while row + most <= rows {
            if S::WIDE {
                tile_of::<S, C, 6>(s, step, row, block);
            } else {
                tile_of::<S, C, 4>(s, step, row, block);
            }
            row += most;
        }
        match rows - row {
            1 => tile_of::<S, C, 1>(s, step, row, block),
            2 => tile_of::<S, C, 2>(s, step, row, block),
            3 => tile_of::<S, C, 3>(s, step, row, block),
            4 if S::WIDE => tile_of::<S, C, 4>(s, step, row, block),
            5 if S::WIDE => tile_of::<S, C, 5>(s, step, row, block),
            _ => {}
        }
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
    first: usize,
    block: *mut f32,
) {
    // SAFETY: as the caller's.
    unsafe {
        let wide: [u8; R] = *step.wide.cast();
        if wide == [0; R] {
            tile_of_digits::<S, C, R, V, false>(s, step, first, block);
        } else {
            tile_of_digits::<S, C, R, V, true>(s, step, first, block);
        }
    }
}

/// Dot products of `R` rows of activations with `V` vectors of outputs, from `acc` on.
///
/// # Safety
/// As [`tile`]; `x` points at `R` rows.
#[inline(always)]
unsafe fn dots<S: Simd, C: Codes<S>, const R: usize, const V: usize>(
    s: S,
    step: &Step,
    first: usize,
    x: *const i8,
    mut acc: [[C::Acc; V]; R],
) -> [[C::Acc; V]; R] {
    // SAFETY: all pointers stay within the step's record and rows.
    unsafe {
        for eight in 0..step.eights {
            let codes = step.codes.add(eight * C::EIGHT + first * 64);
            for half in 0..2 {
                let mut w = [C::load(s, codes, half); V];
                unroll!(v < V, {
                    w[v] = C::load(s, codes.add(v * 64), half);
                });
                unroll!(r < R, {
                    let x = x.add(r * GROUP + eight * 8 + half * 4);
                    unroll!(v < V, {
                        acc[r][v] = C::dot(s, acc[r][v], w[v], x);
                    });
                });
            }
        }
    }
    acc
}

/// [`tile`] of activations with one digit, or two (`WIDE`).
///
/// # Safety
/// As [`tile`].
#[inline(always)]
#[allow(clippy::cast_precision_loss)]
unsafe fn tile_of_digits<S: Simd, C: Codes<S>, const R: usize, const V: usize, const WIDE: bool>(
    s: S,
    step: &Step,
    first: usize,
    block: *mut f32,
) {
    // SAFETY: all pointers stay within the step's record, rows and block.
    unsafe {
        let mut sums = [0_i32; R];
        let mut bias = [0_i32; R];
        for r in 0..R {
            for (half, wanted) in step.sums.into_iter().enumerate() {
                if wanted {
                    sums[r] += *step.x_sums.add(2 * r + half);
                }
            }
            if let Offsets::Uniform(zero) = step.kind {
                bias[r] = -i32::from(zero) * sums[r];
            }
        }
        // 128 times the dot products of the high digits.
        let mut high = [[s.zero_i32(); V]; R];
        if WIDE {
            let acc = dots::<S, C, R, V>(s, step, first, step.high, [[C::start(s, 0); V]; R]);
            unroll!(v < V, {
                unroll!(r < R, {
                    high[r][v] = s.times_128(C::total(s, acc[r][v], 0));
                });
            });
        }
        let mut acc = [[C::start(s, 0); V]; R];
        for r in 0..R {
            acc[r] = [C::start(s, bias[r]); V];
        }
        let acc = dots::<S, C, R, V>(s, step, first, step.x, acc);
        let total = |low, high| if WIDE { s.add_i32(low, high) } else { low };
        // Sums are addressed by constants alone, or they would not stay in registers.
        let x_scales: [f32; R] = *step.x_scales.cast();
        unroll!(v < V, {
            let column = (first + v) * LANES;
            let scale = scale(s, step.half, step.scales, column);
            let block = block.add(column);
            match step.kind {
                Offsets::Uniform(_) => unroll!(r < R, {
                    let y = block.add(r * PANEL);
                    let dot =
                        s.mul(s.to_f32(total(C::total(s, acc[r][v], bias[r]), high[r][v])), scale);
                    s.store(y, s.fma(dot, s.splat(x_scales[r]), s.load(y)));
                }),
                Offsets::Zero => {
                    let zero = s.load_u8(step.offsets.add(column));
                    unroll!(r < R, {
                        let y = block.add(r * PANEL);
                        let dot = s.to_f32(total(C::total(s, acc[r][v], bias[r]), high[r][v]));
                        let dot = s.mul(s.fnma(zero, s.splat(sums[r] as f32), dot), scale);
                        s.store(y, s.fma(dot, s.splat(x_scales[r]), s.load(y)));
                    });
                }
                Offsets::Min => {
                    let min = self::scale(s, step.half, step.offsets, column);
                    unroll!(r < R, {
                        let y = block.add(r * PANEL);
                        let dot = s.mul(
                            s.to_f32(total(C::total(s, acc[r][v], bias[r]), high[r][v])),
                            scale,
                        );
                        let out = s.fma(dot, s.splat(x_scales[r]), s.load(y));
                        let sum = x_scales[r] * sums[r] as f32;
                        s.store(y, s.fma(min, s.splat(sum), out));
                    });
                }
            }
        });
    }
}

/// 16 scales or minima from `column` on.
///
/// # Safety
/// They are there.
#[inline(always)]
pub(super) unsafe fn scale<S: Simd>(s: S, half: bool, at: *const u8, column: usize) -> S::F32 {
    // SAFETY: as the caller's.
    unsafe {
        if half { s.load_f16(at.add(2 * column).cast()) } else { s.load(at.add(4 * column).cast()) }
    }
}
