//! Activations in 8 bits: `x = scale * code`, one scale per row and group of 32 elements or a
//! multiple, as [`tangor_device::rounding`] defines it. Codes of wide groups have a second digit:
//! `128 * high + code`.
//!
//! Everything is stored group by group, `(groups, stride, …)`: a linear works through one group of
//! its inputs for many rows at a time.

use crate::buffer::{Aligned, Shared};
use crate::simd::{LANES, Op, Simd};
use std::ops::Range;
use tangor_device::rounding::{GROUP, TINY, WIDE_STEPS, wide_limit};

/// Rows from which on groups lie further apart than there are rows.
const MANY: usize = 32;
/// By so many: groups of 32 elements, their scales and their sums then all move on by a line or
/// more where rows are a power of two.
const APART: usize = 18;

/// Rows in 8 bits.
#[derive(Debug, Default)]
pub(crate) struct Rows8 {
    rows: usize,
    groups: usize,
    /// Elements per group, a multiple of 32; the last one of a row is filled up with zeros.
    group: usize,
    /// Rows from group to group: a few more than there are, if they are many, so that the groups of
    /// a row do not all fall into one set of the cache.
    stride: usize,
    /// `(groups, stride, group)` `i8`.
    codes: Aligned,
    /// `(groups, stride, group)` `i8`: the high digits where a group is wide, else anything.
    high: Aligned,
    /// `(groups, stride)` `u8`: 1 where a group is wide.
    wide: Aligned,
    /// `(groups, stride)` `f32`; NaN for a group that holds something that is not finite.
    scales: Aligned,
    /// `(groups, stride, 2)` `i32`: sums of the first and the last 16 codes of every 32.
    sums: Aligned,
    /// `(groups, stride, 2)` `i32`: of the high digits where a group is wide, else anything.
    high_sums: Aligned,
    /// `(groups, rows)` `u32`: the rows whose group is wide, in order.
    wide_rows: Aligned,
    /// `(groups)` `u32`: how many they are.
    wide_counts: Aligned,
}

impl Rows8 {
    /// Makes room for `rows` rows of `width` elements in groups of `group`; what was there is lost.
    pub(crate) fn resize(&mut self, rows: usize, width: usize, group: usize) {
        assert!(group.is_multiple_of(GROUP) && group > 0, "groups of {group}");
        (self.rows, self.groups, self.group) = (rows, width.div_ceil(group), group);
        self.stride = if rows < MANY { rows } else { rows + APART };
        let count = self.stride * self.groups;
        self.codes.reserve(count * group);
        self.high.reserve(count * group);
        self.wide.reserve(count);
        self.scales.reserve(count * 4);
        self.sums.reserve(count * 8);
        self.high_sums.reserve(count * 8);
        self.wide_rows.reserve(self.groups * rows * 4);
        self.wide_counts.reserve(self.groups * 4);
    }

    /// Rows.
    #[inline(always)]
    pub(crate) fn rows(&self) -> usize {
        self.rows
    }

    /// Groups per row.
    #[inline(always)]
    pub(crate) fn groups(&self) -> usize {
        self.groups
    }

    /// Rows from group to group.
    #[inline(always)]
    pub(crate) fn stride(&self) -> usize {
        self.stride
    }

    /// Elements per group.
    #[inline(always)]
    pub(crate) fn group(&self) -> usize {
        self.group
    }

    /// `(groups, stride, group)`.
    #[inline(always)]
    pub(crate) fn codes(&self) -> &[i8] {
        self.codes.get(self.stride * self.groups * self.group)
    }

    /// `(groups, stride, group)`.
    #[inline(always)]
    pub(crate) fn high(&self) -> &[i8] {
        self.high.get(self.stride * self.groups * self.group)
    }

    /// `(groups, stride)`.
    #[inline(always)]
    pub(crate) fn wide(&self) -> &[u8] {
        self.wide.get(self.stride * self.groups)
    }

    /// `(groups, stride)`.
    #[inline(always)]
    pub(crate) fn scales(&self) -> &[f32] {
        self.scales.get(self.stride * self.groups)
    }

    /// `(groups, stride, 2)`.
    #[inline(always)]
    pub(crate) fn sums(&self) -> &[[i32; 2]] {
        self.sums.get(self.stride * self.groups)
    }

    /// `(groups, stride, 2)`.
    #[inline(always)]
    pub(crate) fn high_sums(&self) -> &[[i32; 2]] {
        self.high_sums.get(self.stride * self.groups)
    }

    /// Those of `rows` whose group `group` is wide, in order; they must have been listed.
    #[inline(always)]
    pub(crate) fn wide_rows(&self, group: usize, rows: &Range<usize>) -> &[u32] {
        let all = self.wide_rows.get::<u32>(self.groups * self.rows);
        let count = self.wide_counts.get::<u32>(self.groups)[group] as usize;
        let all = &all[group * self.rows..][..count];
        if rows.len() == self.rows {
            return all;
        }
        let before = |end: usize| all.partition_point(|&row| (row as usize) < end);
        &all[before(rows.start)..before(rows.end)]
    }

    /// To be listed group by group, by several threads, once all rows are written.
    pub(crate) fn lister(&mut self) -> Lister<'_> {
        let (count, rows) = (self.stride * self.groups, self.rows);
        Lister {
            rows,
            stride: self.stride,
            wide: self.wide.get(count),
            wide_rows: Shared::new(self.wide_rows.get_mut(self.groups * rows)),
            wide_counts: Shared::new(self.wide_counts.get_mut(self.groups)),
        }
    }

    /// Lists the wide rows of all groups on this thread.
    pub(crate) fn list_wide(&mut self) {
        let groups = self.groups;
        let lister = self.lister();
        // SAFETY: every group is listed once.
        (0..groups).for_each(|group| unsafe { lister.group(group) });
    }

    /// To be written row by row, by several threads.
    pub(crate) fn writer(&mut self) -> Writer<'_> {
        let count = self.stride * self.groups;
        Writer {
            rows: self.rows,
            groups: self.groups,
            group: self.group,
            stride: self.stride,
            codes: Shared::new(self.codes.get_mut(count * self.group)),
            high: Shared::new(self.high.get_mut(count * self.group)),
            wide: Shared::new(self.wide.get_mut(count)),
            scales: Shared::new(self.scales.get_mut(count)),
            sums: Shared::new(self.sums.get_mut(count)),
            high_sums: Shared::new(self.high_sums.get_mut(count)),
        }
    }

    /// Bytes in memory.
    pub(crate) fn bytes(&self) -> usize {
        let digits = [&self.codes, &self.high, &self.scales, &self.sums, &self.high_sums];
        let wide = [&self.wide, &self.wide_rows, &self.wide_counts];
        digits.into_iter().chain(wide).map(Aligned::len).sum()
    }
}

/// Lists which rows of a [`Rows8`] are wide: looked up once, and not by every panel of a linear.
#[derive(Debug)]
pub(crate) struct Lister<'a> {
    rows: usize,
    stride: usize,
    wide: &'a [u8],
    wide_rows: Shared<'a, u32>,
    wide_counts: Shared<'a, u32>,
}

impl Lister<'_> {
    /// Lists those of one group.
    ///
    /// # Safety
    /// Nobody else lists the same group at the same time.
    #[allow(clippy::cast_possible_truncation)]
    pub(crate) unsafe fn group(&self, group: usize) {
        let wide = &self.wide[group * self.stride..][..self.rows];
        // SAFETY: the caller has this group to itself.
        let (list, count) = unsafe {
            (
                self.wide_rows.part(group * self.rows..(group + 1) * self.rows),
                self.wide_counts.part(group..group + 1),
            )
        };
        // Every row is written, and stays if it counts: no branch depends on what is wide.
        let mut listed = 0;
        for (row, &wide) in wide.iter().enumerate() {
            list[listed] = row as u32;
            listed += usize::from(wide);
        }
        count[0] = listed as u32;
    }
}

/// Writes rows of a [`Rows8`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct Writer<'a> {
    rows: usize,
    groups: usize,
    group: usize,
    stride: usize,
    codes: Shared<'a, i8>,
    high: Shared<'a, i8>,
    wide: Shared<'a, u8>,
    scales: Shared<'a, f32>,
    sums: Shared<'a, [i32; 2]>,
    high_sums: Shared<'a, [i32; 2]>,
}

impl Writer<'_> {
    /// Rounds one row.
    ///
    /// # Safety
    /// Nobody else writes the same row at the same time.
    #[inline(always)]
    pub(crate) unsafe fn row<S: Simd>(&self, s: S, row: usize, x: &[f32]) {
        let len = self.group;
        assert!(row < self.rows && x.len().div_ceil(len) == self.groups);
        // The greatest elements wait where the scales will be.
        for (group, x) in x.chunks(len).enumerate() {
            let mut most = 0.0;
            for x in x.chunks(GROUP) {
                most = greater(most, greatest(s, &whole(x)));
            }
            // SAFETY: every row has a place for each of its groups.
            unsafe { *self.place(group, row).scale = most };
        }
        // SAFETY: as above; they have just been written.
        let amax = |group: usize| unsafe { *self.place(group, row).scale };
        let limit = wide_limit((0..self.groups).map(amax));
        for (group, x) in x.chunks(len).enumerate() {
            // SAFETY: the caller has this row to itself, and rows do not overlap.
            unsafe { self.group(s, self.place(group, row), x, limit) };
        }
    }

    /// Where a group of a row goes.
    ///
    /// # Safety
    /// The row and the group are there.
    #[inline(always)]
    unsafe fn place(&self, group: usize, row: usize) -> Place {
        let at = group * self.stride + row;
        // SAFETY: as the caller's.
        unsafe {
            Place {
                codes: self.codes.start().add(at * self.group),
                high: self.high.start().add(at * self.group),
                wide: self.wide.start().add(at),
                scale: self.scales.start().add(at),
                sums: self.sums.start().add(at),
                high_sums: self.high_sums.start().add(at),
            }
        }
    }

    /// Rounds one group whose greatest magnitude is where its scale will be.
    ///
    /// # Safety
    /// Nobody else uses the place at the same time.
    #[inline(always)]
    unsafe fn group<S: Simd>(&self, s: S, to: Place, x: &[f32], limit: f32) {
        // SAFETY: as the caller's.
        unsafe {
            let amax = *to.scale;
            let wide = amax.is_finite() && amax > limit && amax >= TINY;
            let (mut scale, mut sums, mut high_sums) = (0.0, [0; 2], [0; 2]);
            for first in (0..self.group).step_by(GROUP) {
                // Past the end of a row that is no multiple of the group there are zeros.
                let x = whole(x.get(first..).unwrap_or_default());
                let (high, codes) = (to.high.add(first), to.codes.add(first));
                let some;
                if wide {
                    let both = round_wide(s, &x, amax, high, codes);
                    (scale, some) = (amax / WIDE_STEPS, both[0]);
                    high_sums = [high_sums[0] + both[1][0], high_sums[1] + both[1][1]];
                } else {
                    (scale, some) = round_to(s, &x, amax, codes);
                }
                sums = [sums[0] + some[0], sums[1] + some[1]];
            }
            *to.wide = u8::from(wide);
            *to.scale = scale;
            *to.sums = sums;
            *to.high_sums = high_sums;
        }
    }
}

/// Where a group of a row is.
#[derive(Clone, Copy)]
struct Place {
    /// As many as a group has elements.
    codes: *mut i8,
    /// As many.
    high: *mut i8,
    wide: *mut u8,
    scale: *mut f32,
    sums: *mut [i32; 2],
    high_sums: *mut [i32; 2],
}

/// The greater one; not finite if one of them is not.
#[inline(always)]
fn greater(a: f32, b: f32) -> f32 {
    if b > a || !b.is_finite() { b } else { a }
}

/// The first 32 elements, filled up with zeros.
#[inline(always)]
fn whole(x: &[f32]) -> [f32; GROUP] {
    x.first_chunk::<GROUP>().copied().unwrap_or_else(|| {
        let mut padded = [0.0; GROUP];
        padded[..x.len()].copy_from_slice(x);
        padded
    })
}

/// The greatest magnitude of a group; not finite if one element is not.
#[inline(always)]
fn greatest<S: Simd>(s: S, x: &[f32; GROUP]) -> f32 {
    // SAFETY: 32 elements are two vectors.
    unsafe { s.greatest_abs(s.load(x.as_ptr()), s.load(x.as_ptr().add(LANES))) }
}

/// Rounds 32 elements of a wide group whose greatest magnitude is `amax`; gives the sums of the
/// halves, of the low digits and of the high ones.
///
/// # Safety
/// 32 digits can be written to `high` and to `low`.
#[inline(always)]
unsafe fn round_wide<S: Simd>(
    s: S,
    x: &[f32; GROUP],
    amax: f32,
    high: *mut i8,
    low: *mut i8,
) -> [[i32; 2]; 2] {
    let steps = s.splat(WIDE_STEPS / amax);
    // SAFETY: every array holds 32 elements, two vectors.
    unsafe {
        for at in [0, LANES] {
            let x = s.load(x.as_ptr().add(at));
            // Whole numbers up to 16256 and their 128ths are exact.
            let code = s.round(s.mul(x, steps));
            let digit = s.round(s.mul(code, s.splat(1.0 / 128.0)));
            let rest = s.to_i32(s.fnma(digit, s.splat(128.0), code));
            s.store_i8(high.add(at), s.to_i32(digit));
            s.store_i8(low.add(at), rest);
        }
        [s.sum_i8(low), s.sum_i8(high)]
    }
}

/// Rounds 32 elements of a group whose greatest magnitude is `amax`; gives the group's scale and
/// the sums of the halves.
///
/// # Safety
/// 32 codes can be written to `codes`.
#[inline(always)]
unsafe fn round_to<S: Simd>(s: S, x: &[f32; GROUP], amax: f32, codes: *mut i8) -> (f32, [i32; 2]) {
    // SAFETY: both hold 32 elements, two vectors.
    unsafe {
        if !amax.is_finite() || amax < TINY {
            codes.write_bytes(0, GROUP);
            return (if amax.is_finite() { 0.0 } else { f32::NAN }, [0; 2]);
        }
        let steps = s.splat(127.0 / amax);
        let (a, b) = (s.load(x.as_ptr()), s.load(x.as_ptr().add(LANES)));
        s.store_i8(codes, s.to_i32(s.mul(a, steps)));
        s.store_i8(codes.add(LANES), s.to_i32(s.mul(b, steps)));
        (amax / 127.0, s.sum_i8(codes))
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
