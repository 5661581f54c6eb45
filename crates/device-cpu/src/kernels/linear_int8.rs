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
//! There is one rounding for `scale_w * (…)` and one fused multiply-add per term. A row whose group
//! is wide has a second line for its high digits, right after the one for its low ones, whose
//! `scale_x` is 128 times as much. The order does not depend on how rows are tiled, so a row's
//! result does not depend on the rows beside it.
//!
//! A tile is up to 6 lines x 64 outputs: 24 accumulators, 4 registers of weights, and activations
//! broadcast from memory. Groups are the outer loop over a block of rows: a group's weights stay in
//! the first-level cache, the block's sums in the second. Tiles of neighbouring rows go first, then
//! what is left is listed: the last rows, and the high digits. Codes of 4 bits are unpacked in
//! registers for few rows, where memory is the limit, and once per block into a buffer for many.

use crate::buffer::Shared;
use crate::kernels::quantise::Rows8;
use crate::pack::{Offsets, PANEL, PackedCodes, Record, Scales};
use crate::simd::{LANES, Op, Simd};
use std::mem::MaybeUninit;
use std::ops::Range;
use tangor_device::rounding::GROUP;

mod codes;
mod row;
mod tile;
pub(super) use codes::{FOUR, Unpacked};
use row::ask_ahead;
pub(crate) use row::{HALF, HALVES, Row8};
use tile::{
    Codes, Eight, Four, FourInBytes, Line, Lines, MIN, Neighbours, Step, UNIFORM, ZERO, neighbours,
    offset,
};

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
        match (w.bits == 4, self.rows.len() < UNPACK) {
            (true, true) => self.of_codes::<S, Four>(s),
            (true, false) => self.of_codes::<S, FourInBytes>(s),
            (false, _) => self.of_codes::<S, Eight>(s),
        }
    }
}

impl Linear8<'_> {
    #[inline(always)]
    fn of_codes<S: Simd, C: Codes<S>>(&self, s: S) {
        match self.weight.offsets {
            Offsets::Uniform(_) => self.panel::<S, C, UNIFORM>(s),
            Offsets::Zero => self.panel::<S, C, ZERO>(s),
            Offsets::Min => self.panel::<S, C, MIN>(s),
        }
    }

    /// All steps of the panel.
    #[inline(always)]
    fn panel<S: Simd, C: Codes<S>, const KIND: u8>(&self, s: S) {
        let (w, x) = (self.weight, self.x);
        // Only the rows that there are get written, zeros included.
        let mut block = MaybeUninit::<Block>::uninit();
        let sums = block.as_mut_ptr().cast::<f32>();
        // SAFETY: the block has room for more rows.
        unsafe { sums.write_bytes(0, self.rows.len() * PANEL) };
        let mut unpacked = Unpacked::uninit();
        let mut offsets = MaybeUninit::<[f32; BLOCK]>::uninit();
        let mut list = MaybeUninit::<[Line; 2 * BLOCK]>::uninit();
        let (offsets, list) = (offsets.as_mut_ptr().cast(), list.as_mut_ptr().cast::<Line>());
        let few = self.rows.len() < UNPACK;
        let as_stored = w.bits == 8 || (w.bits == 4 && few);
        for index in 0..w.blocks() * w.records {
            let record = w.record(self.panel, index);
            if few {
                ask_ahead(s, record.codes, 0, PANEL * 4);
            }
            if w.scales == Scales::Units {
                unpacked.fill_numbers(s, w, &record);
            }
            for start in (0..w.group).step_by(w.step(x.group())) {
                let mut step = self.step(&record, &unpacked, start);
                let digits = self.digits(index * w.group + start);
                // SAFETY: `digits` are those of `rows`, of which the block, the offsets and the
                // list hold as many; a list has no more than two lines of a row.
                unsafe {
                    let lines = digits.low::<KIND>(offsets, sums);
                    if !as_stored {
                        unpacked.fill_codes(s, w, &record, start, step.eights * 8);
                        step.codes = unpacked.codes();
                    }
                    let whole = match few {
                        true => 0,
                        false => neighbours::<S, C, KIND>(s, &step, lines, digits.rows),
                    };
                    let count = digits.list::<KIND>(lines, whole, list);
                    tile::list::<S, C, KIND>(s, &step, list, count);
                }
            }
        }
        // SAFETY: these rows were zeroed, and then summed up.
        self.finish(s, unsafe { std::slice::from_raw_parts(sums.cast(), self.rows.len()) });
    }

    /// The step that starts at input `start` of a record.
    #[inline(always)]
    fn step(&self, record: &Record<'_>, unpacked: &Unpacked, start: usize) -> Step {
        let w = self.weight;
        let codes = &record.codes[start * PANEL * usize::from(w.bits) / 8..];
        let units = w.scales == Scales::Units;
        let minima = units && w.offsets == Offsets::Min;
        Step {
            codes: codes.as_ptr(),
            scales: if units { unpacked.scales().cast() } else { record.scales.as_ptr() },
            offsets: if minima { unpacked.offsets().cast() } else { record.offsets.as_ptr() },
            half: w.scales == Scales::F16,
            eights: w.step(self.x.group()) / 8,
        }
    }

    /// The activations of the step that starts at input `input` of the weight.
    #[inline(always)]
    fn digits(&self, input: usize) -> Digits {
        let (w, x) = (self.weight, self.x);
        let (group, width) = (x.group(), w.step(x.group()));
        let at = input / group * x.stride() + self.rows.start;
        let first_half = input.is_multiple_of(GROUP);
        let wanted = |half: bool| if half { -1 } else { 0 };
        let codes = at * group + input % group;
        Digits {
            rows: self.rows.len(),
            group,
            zero: w.offsets.zero(),
            low: x.codes()[codes..].as_ptr(),
            high: x.high()[codes..].as_ptr(),
            wide: x.wide()[at..].as_ptr(),
            scales: x.scales()[at..].as_ptr(),
            sums: x.sums()[at..].as_ptr(),
            high_sums: x.high_sums()[at..].as_ptr(),
            halves: [wanted(first_half), wanted(width >= GROUP || !first_half)],
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

/// `(rows, 64)` sums. Vectors that lie across two lines of the cache would take twice as long.
#[repr(align(64))]
struct Block(#[allow(dead_code)] [[f32; PANEL]; BLOCK]);

/// The activations of one step, row by row.
struct Digits {
    rows: usize,
    /// From row to row.
    group: usize,
    /// The weight's zero point, if it has one for all.
    zero: i32,
    /// `(rows, group)`, at the step's first input.
    low: *const i8,
    /// Likewise.
    high: *const i8,
    /// `(rows)`: 1 where the group is wide.
    wide: *const u8,
    /// `(rows)`.
    scales: *const f32,
    /// `(rows)`: of the low digits, both halves.
    sums: *const [i32; 2],
    /// Of the high ones, where the group is wide.
    high_sums: *const [i32; 2],
    /// All ones for the halves that belong to the step, else zeros.
    halves: [i32; 2],
}

impl Digits {
    #[inline(always)]
    fn sum(&self, halves: [i32; 2]) -> i32 {
        (halves[0] & self.halves[0]) + (halves[1] & self.halves[1])
    }

    /// The low digits of all rows; writes their `offsets`.
    ///
    /// # Safety
    /// The rows are there, and room for their offsets.
    #[inline(always)]
    unsafe fn low<const KIND: u8>(&self, offsets: *mut f32, y: *mut f32) -> Neighbours {
        for row in 0..self.rows {
            // SAFETY: as the caller's.
            unsafe {
                let (scale, sum) = (*self.scales.add(row), self.sum(*self.sums.add(row)));
                *offsets.add(row) = offset::<KIND>(self.zero, scale, sum);
            }
        }
        Neighbours { x: self.low, group: self.group, scales: self.scales, offsets, y }
    }

    /// Lists the low digits of rows `from..`, then the high digits of all rows that have some.
    ///
    /// # Safety
    /// The rows are there, and room for twice as many lines.
    #[inline(always)]
    unsafe fn list<const KIND: u8>(&self, low: Neighbours, from: usize, list: *mut Line) -> usize {
        let mut count = 0;
        // SAFETY: as the caller's.
        unsafe {
            for row in from..self.rows {
                let (x, y) = (low.x(row), low.y(row));
                let (scale, offset) = (low.scale(row), low.offset(row));
                list.add(count).write(Line { x, y, scale, offset });
                count += 1;
            }
            let mut row = 0;
            while row < self.rows {
                // Most rows have none.
                let eight = self.wide.add(row).cast::<[u8; 8]>();
                if row + 8 <= self.rows && *eight == [0; 8] {
                    row += 8;
                    continue;
                }
                let end = self.rows.min(row + 8);
                while row < end {
                    if *self.wide.add(row) != 0 {
                        let (scale, sum) = (128.0 * low.scale(row), *self.high_sums.add(row));
                        let offset = offset::<KIND>(self.zero, scale, self.sum(sum));
                        let (x, y) = (self.high.add(row * self.group), low.y(row));
                        list.add(count).write(Line { x, y, scale, offset });
                        count += 1;
                    }
                    row += 1;
                }
            }
        }
        count
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
