//! Activations in 8 bits: `x = scale * code`, one scale per row and 32 elements, as
//! [`tangor_device::rounding`] defines it.
//!
//! Everything is stored group by group, `(groups, rows, …)`: a linear works through one group of
//! its inputs for many rows at a time.

use crate::buffer::{Aligned, Shared};
use crate::simd::{LANES, Op, Simd};
use tangor_device::rounding::{GROUP, TINY};

/// Rows in 8 bits.
#[derive(Debug, Default)]
pub(crate) struct Rows8 {
    rows: usize,
    groups: usize,
    /// `(groups, rows, 32)` `i8`.
    codes: Aligned,
    /// `(groups, rows)` `f32`; NaN for a group that holds something that is not finite.
    scales: Aligned,
    /// `(groups, rows, 2)` `i32`: sums of the first and the last 16 codes.
    sums: Aligned,
}

impl Rows8 {
    /// Makes room for `rows` rows of `width` elements; what was there is lost.
    pub(crate) fn resize(&mut self, rows: usize, width: usize) {
        (self.rows, self.groups) = (rows, width.div_ceil(GROUP));
        let count = self.rows * self.groups;
        self.codes.reserve(count * GROUP);
        self.scales.reserve(count * 4);
        self.sums.reserve(count * 8);
    }

    /// Rows.
    pub(crate) fn rows(&self) -> usize {
        self.rows
    }

    /// Groups per row.
    pub(crate) fn groups(&self) -> usize {
        self.groups
    }

    /// `(groups, rows, 32)`.
    pub(crate) fn codes(&self) -> &[i8] {
        self.codes.get(self.rows * self.groups * GROUP)
    }

    /// `(groups, rows)`.
    pub(crate) fn scales(&self) -> &[f32] {
        self.scales.get(self.rows * self.groups)
    }

    /// `(groups, rows, 2)`.
    pub(crate) fn sums(&self) -> &[i32] {
        self.sums.get(self.rows * self.groups * 2)
    }

    /// To be written row by row, by several threads.
    pub(crate) fn writer(&mut self) -> Writer<'_> {
        let count = self.rows * self.groups;
        Writer {
            rows: self.rows,
            groups: self.groups,
            codes: Shared::new(self.codes.get_mut(count * GROUP)),
            scales: Shared::new(self.scales.get_mut(count)),
            sums: Shared::new(self.sums.get_mut(count * 2)),
        }
    }

    /// Bytes in memory.
    pub(crate) fn bytes(&self) -> usize {
        self.codes.len() + self.scales.len() + self.sums.len()
    }
}

/// Writes rows of a [`Rows8`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct Writer<'a> {
    rows: usize,
    groups: usize,
    codes: Shared<'a, i8>,
    scales: Shared<'a, f32>,
    sums: Shared<'a, i32>,
}

impl Writer<'_> {
    /// Rounds one row.
    ///
    /// # Safety
    /// Nobody else writes the same row at the same time.
    #[inline(always)]
    pub(crate) unsafe fn row<S: Simd>(&self, s: S, row: usize, x: &[f32]) {
        assert!(row < self.rows && x.len().div_ceil(GROUP) == self.groups);
        for (group, x) in x.chunks(GROUP).enumerate() {
            let mut padded = [0.0; GROUP];
            let x = if let Some(x) = x.first_chunk::<GROUP>() {
                x
            } else {
                padded[..x.len()].copy_from_slice(x);
                &padded
            };
            let at = group * self.rows + row;
            // SAFETY: the caller has this row to itself, and rows do not overlap.
            unsafe {
                let codes = self.codes.part(at * GROUP..(at + 1) * GROUP);
                let (scale, sums) = round(s, x, codes);
                self.scales.part(at..at + 1)[0] = scale;
                self.sums.part(2 * at..2 * at + 2).copy_from_slice(&sums);
            }
        }
    }
}

/// Rounds one group; gives its scale and the sums of its halves.
#[inline(always)]
pub(crate) fn round<S: Simd>(s: S, x: &[f32; GROUP], codes: &mut [i8]) -> (f32, [i32; 2]) {
    assert_eq!(codes.len(), GROUP);
    // SAFETY: both hold 32 elements, two vectors.
    unsafe {
        let (a, b) = (s.load(x.as_ptr()), s.load(x.as_ptr().add(LANES)));
        let amax = s.greatest_abs(a, b);
        let usable = amax.is_finite() && amax >= TINY;
        let steps = s.splat(if usable { 127.0 / amax } else { 0.0 });
        if !usable {
            codes.fill(0);
            return (if amax.is_finite() { 0.0 } else { f32::NAN }, [0; 2]);
        }
        let (a, b) = (s.to_i32(s.mul(a, steps)), s.to_i32(s.mul(b, steps)));
        s.store_i8(codes.as_mut_ptr(), a);
        s.store_i8(codes.as_mut_ptr().add(LANES), b);
        (amax / 127.0, [s.sum_i32(a), s.sum_i32(b)])
    }
}

/// Rounds rows `x`, `(rows, width)`, into a [`Rows8`].
#[derive(Debug)]
pub(crate) struct Quantise<'a> {
    /// `(rows, width)`.
    pub(crate) x: &'a [f32],
    /// Elements per row.
    pub(crate) width: usize,
    /// The first of the rows.
    pub(crate) first: usize,
    /// Where they go; nobody else writes these rows.
    pub(crate) out: Writer<'a>,
}

impl Op for Quantise<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for (index, x) in self.x.chunks_exact(self.width).enumerate() {
            // SAFETY: whoever makes a `Quantise` has these rows to itself.
            unsafe { self.out.row(s, self.first + index, x) };
        }
    }
}
