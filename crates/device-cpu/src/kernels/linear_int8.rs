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
//! what is left is listed: the last rows, and the high digits. For many rows codes and numbers are
//! unpacked once per block into a buffer, in the one form that tiles read; for few, where memory is
//! the limit, tiles read codes of 4 and 8 bits as they are stored. Gates and what they gate are two
//! panels of one task, so that neither goes to memory.

use crate::buffer::Shared;
use crate::kernels::quantise::Rows8;
use crate::kernels::rows::gate_row;
use crate::pack::{Offsets, PANEL, PackedCodes, Record, Scales};
use crate::simd::{LANES, Op, Simd, Uses};
use std::mem::MaybeUninit;
use std::ops::Range;
use tangor_device::model::ir::Activation;
use tangor_device::rounding::GROUP;

mod ahead;
mod codes;
mod row;
mod tile;
use ahead::ask;
use codes::{Bits4, Bits4InBytes, Bits8, Stored};
pub(super) use codes::{FOUR, Unpacked};
pub(crate) use row::{HALF, HALVES, Row8};
use tile::{Line, Lines, MIN, Neighbours, Step, UNIFORM, ZERO, neighbours, offset};

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
    /// `act(gate) * up` instead, where the first half of the outputs are gates, in whole panels, of
    /// which the panel is one.
    pub(crate) gated: Option<Activation>,
    /// `(rows, outputs)`, gated half of them; nobody else writes these rows and outputs.
    pub(crate) y: Shared<'a, f32>,
}

impl Op for Linear8<'_> {
    type Output = ();
    const USES: Uses = Uses::Dots;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let (w, x) = (self.weight, self.x);
        assert_eq!(x.groups(), w.inputs.div_ceil(x.group()), "activations do not fit the weight");
        assert!(self.rows.end <= x.rows() && self.rows.len() <= BLOCK);
        assert!(self.bias.is_none_or(|bias| bias.len() == w.outputs));
        assert!(self.gated.is_none() || w.outputs.is_multiple_of(2 * PANEL), "no whole panels");
        let few = self.rows.len() < UNPACK;
        match (w.bits == 4, few) {
            (true, true) => s.run(Panel { linear: &self, few, codes: Bits4 }),
            (true, false) if !S::LONG_SUMS || S::SHIFT8 != 0 => {
                s.run(Panel { linear: &self, few, codes: Bits4InBytes });
            }
            _ => s.run(Panel { linear: &self, few, codes: Bits8 }),
        }
    }
}

/// A [`Linear8`] over codes of one form: a function of its own, since compilers take far more than
/// twice as long for one that is twice as long.
struct Panel<'a, 'b, C> {
    linear: &'a Linear8<'b>,
    few: bool,
    #[allow(dead_code, reason = "for its type")]
    codes: C,
}

impl<C: Stored> Op for Panel<'_, '_, C> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        self.linear.panel::<S, C>(s, self.few);
    }
}

impl Linear8<'_> {
    /// All steps of the panel, and of the one whose outputs it gates.
    #[inline(always)]
    fn panel<S: Simd, C: Stored>(&self, s: S, few: bool) {
        let w = self.weight;
        let panels = [self.panel, self.panel + w.outputs / PANEL / 2];
        let panels = if self.gated.is_some() { &panels[..] } else { &panels[..1] };
        let mut blocks = MaybeUninit::<[Block; 2]>::uninit();
        let mut unpacked = Unpacked::uninit();
        let mut offsets = MaybeUninit::<[f32; BLOCK]>::uninit();
        let mut list = MaybeUninit::<[Line; 2 * BLOCK]>::uninit();
        let (offsets, list) = (offsets.as_mut_ptr().cast(), list.as_mut_ptr().cast::<Line>());
        let mut sums = blocks.as_mut_ptr().cast::<Block>();
        for &panel in panels {
            // Only the rows that there are get written, zeros included.
            // SAFETY: the block has room for more rows.
            unsafe { sums.cast::<f32>().write_bytes(0, self.rows.len() * PANEL) };
            let mut scratch = Scratch { sums: sums.cast(), offsets, list, unpacked: &mut unpacked };
            let mut first = 0;
            for block in w.panel(panel).chunks_exact(w.block_bytes()) {
                for index in 0..w.records {
                    let record = w.record_of(block, index);
                    ask(s, record.numbers);
                    if !C::FROM_MEMORY {
                        ask(s, record.codes);
                    }
                    self.record::<S, C>(s, few, &record, first, &mut scratch);
                    first += w.group;
                }
            }
            // SAFETY: there are two blocks, and at most two panels.
            sums = unsafe { sums.add(1) };
        }
        let first: *const Block = blocks.as_ptr().cast();
        // SAFETY: the rows of as many blocks as there are panels were zeroed, and then summed up.
        unsafe {
            let rows = |block: *const Block| {
                std::slice::from_raw_parts(block.cast::<[f32; PANEL]>(), self.rows.len())
            };
            match self.gated {
                None => self.finish(s, rows(first)),
                Some(act) => self.finish_gated(s, act, rows(first), rows(first.add(1))),
            }
        }
    }

    /// All steps of the record whose inputs are `first..` of the weight.
    #[inline(always)]
    fn record<S: Simd, C: Stored>(
        &self,
        s: S,
        few: bool,
        record: &Record<'_>,
        first: usize,
        Scratch { sums, offsets, list, unpacked }: &mut Scratch<'_>,
    ) {
        let w = self.weight;
        // Tiles read codes of 8 bits, and of 4 if they are few, as they are; and numbers as they
        // are if they are few and have no factors.
        let as_stored = w.bits == 8 || (w.bits == 4 && few);
        let widened = !few || w.scales == Scales::Units;
        if widened {
            unpacked.fill_numbers(s, w, record);
        }
        for start in (0..w.group).step_by(w.step(self.x.group())) {
            let mut step = self.step(record, widened.then_some(&**unpacked), start);
            if !as_stored {
                unpacked.fill_codes(s, w, record, start, step.eights * 8);
                step.codes = unpacked.codes();
            }
            let digits = self.digits::<S, C>(first + start);
            // SAFETY: `digits` are those of `rows`, of which the sums, the offsets and the list
            // hold as many; a list has no more than two lines of a row.
            unsafe {
                let lines = digits.low(step.kind, *offsets, *sums);
                let mut whole = 0;
                if !few {
                    whole = neighbours::<S, C>(s, &step, lines, digits.rows);
                }
                let count = digits.list(step.kind, lines, whole, *list);
                tile::list::<S, C>(s, &step, *list, count);
            }
        }
    }

    /// The step that starts at input `start` of a record, whose numbers may have been widened.
    #[inline(always)]
    fn step(&self, record: &Record<'_>, widened: Option<&Unpacked>, start: usize) -> Step {
        let w = self.weight;
        let codes = &record.codes[start * PANEL * usize::from(w.bits) / 8..];
        let (mut scales, mut offsets) = (record.scales.as_ptr(), record.offsets.as_ptr());
        if let Some(widened) = widened {
            scales = widened.scales().cast();
            if w.offsets == Offsets::Min {
                offsets = widened.offsets().cast();
            }
        }
        Step {
            codes: codes.as_ptr(),
            scales,
            offsets,
            half: widened.is_none() && w.scales == Scales::F16,
            kind: match w.offsets {
                Offsets::Uniform(_) => UNIFORM,
                Offsets::Zero => ZERO,
                Offsets::Min => MIN,
            },
            eights: w.step(self.x.group()) / 8,
        }
    }

    /// The activations of the step that starts at input `input` of the weight.
    #[inline(always)]
    fn digits<S: Simd, C: Stored>(&self, input: usize) -> Digits<'_> {
        let (w, x) = (self.weight, self.x);
        let (group, width) = (x.group(), w.step(x.group()));
        let at = input / group * x.stride() + self.rows.start;
        let codes = at * group + input % group;
        Digits {
            rows: self.rows.len(),
            group,
            zero: w.offsets.zero() - C::shift::<S>(),
            low: x.codes()[codes..].as_ptr(),
            high: x.high()[codes..].as_ptr(),
            wide: x.wide_rows(input / group, &self.rows),
            first: self.rows.start,
            scales: x.scales()[at..].as_ptr(),
            sums: x.sums()[at..].as_ptr(),
            high_sums: x.high_sums()[at..].as_ptr(),
            half: (width < GROUP).then_some(input / width % 2),
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

    /// Adds the biases and writes the gated block where it belongs.
    #[inline(always)]
    fn finish_gated<S: Simd>(
        &self,
        s: S,
        act: Activation,
        gates: &[[f32; PANEL]],
        ups: &[[f32; PANEL]],
    ) {
        let outputs = self.weight.outputs / 2;
        let first = self.panel * PANEL;
        for (row, (gate, up)) in self.rows.clone().zip(gates.iter().zip(ups)) {
            let at = row * outputs + first;
            // SAFETY: whoever makes a `Linear8` has these rows and outputs to itself.
            let y = unsafe { self.y.part(at..at + PANEL) };
            let Some(bias) = self.bias else {
                gate_row(s, act, gate, up, y);
                continue;
            };
            let mut sums = [[0.0; PANEL]; 2];
            put_row(s, gate, Some(&bias[first..first + PANEL]), &mut sums[0]);
            put_row(s, up, Some(&bias[outputs + first..][..PANEL]), &mut sums[1]);
            gate_row(s, act, &sums[0], &sums[1], y);
        }
    }
}

/// `(rows, 64)` sums. Vectors that lie across two lines of the cache would take twice as long.
#[repr(align(64))]
struct Block(#[allow(dead_code)] [[f32; PANEL]; BLOCK]);

/// What the steps of a panel write to, with room for the block's rows.
struct Scratch<'a> {
    /// `(rows, 64)`.
    sums: *mut f32,
    /// `(rows)`.
    offsets: *mut f32,
    /// Two lines of a row at the most.
    list: *mut Line,
    unpacked: &'a mut Unpacked,
}

/// The activations of one step, row by row.
struct Digits<'a> {
    rows: usize,
    /// From row to row.
    group: usize,
    /// See [`offset`].
    zero: i32,
    /// `(rows, group)`, at the step's first input.
    low: *const i8,
    /// Likewise.
    high: *const i8,
    /// The rows whose group is wide, counted from `first` rows before these.
    wide: &'a [u32],
    first: usize,
    /// `(rows)`.
    scales: *const f32,
    /// `(rows)`: of the low digits, both halves.
    sums: *const [i32; 2],
    /// Of the high ones, where the group is wide.
    high_sums: *const [i32; 2],
    /// The half that the step is, if it is not a whole group.
    half: Option<usize>,
}

impl Digits<'_> {
    /// The low digits of all rows; writes their `offsets`.
    ///
    /// # Safety
    /// The rows are there, and room for their offsets.
    #[inline(always)]
    unsafe fn low(&self, kind: u8, offsets: *mut f32, y: *mut f32) -> Neighbours {
        // SAFETY: as the caller's.
        unsafe {
            match kind {
                UNIFORM => self.offsets::<UNIFORM>(offsets),
                ZERO => self.offsets::<ZERO>(offsets),
                _ => self.offsets::<MIN>(offsets),
            }
        }
        Neighbours { x: self.low, group: self.group, scales: self.scales, offsets, y }
    }

    /// Offsets of the low digits of all rows: loops without branches, so that they become loops
    /// over vectors.
    ///
    /// # Safety
    /// As [`Digits::low`].
    #[inline(always)]
    unsafe fn offsets<const KIND: u8>(&self, offsets: *mut f32) {
        // SAFETY: as the caller's.
        unsafe {
            if let Some(half) = self.half {
                for row in 0..self.rows {
                    let (scale, sum) = (*self.scales.add(row), (*self.sums.add(row))[half]);
                    *offsets.add(row) = offset(KIND, self.zero, scale, sum);
                }
            } else {
                for row in 0..self.rows {
                    let (scale, [a, b]) = (*self.scales.add(row), *self.sums.add(row));
                    *offsets.add(row) = offset(KIND, self.zero, scale, a + b);
                }
            }
        }
    }

    /// Lists the low digits of rows `from..`, then the high digits of all rows that have some.
    ///
    /// # Safety
    /// The rows are there, and room for twice as many lines.
    #[inline(always)]
    unsafe fn list(&self, kind: u8, low: Neighbours, from: usize, list: *mut Line) -> usize {
        let mut count = 0;
        // SAFETY: as the caller's.
        unsafe {
            for row in from..self.rows {
                let (x, y) = (low.x(row), low.y(row));
                let (scale, offset) = (low.scale(row), low.offset(row));
                list.add(count).write(Line { x, y, scale, offset });
                count += 1;
            }
            for &row in self.wide {
                let row = row as usize - self.first;
                let (scale, sums) = (128.0 * low.scale(row), *self.high_sums.add(row));
                let sum = self.half.map_or(sums[0] + sums[1], |half| sums[half]);
                let offset = offset(kind, self.zero, scale, sum);
                let (x, y) = (self.high.add(row * self.group), low.y(row));
                list.add(count).write(Line { x, y, scale, offset });
                count += 1;
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
