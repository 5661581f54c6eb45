//! Products of bf16, two by two, added in `f32`: the inner loops of attention over caches of bf16
//! and of 8 bits.
//!
//! Every sum is one chain over pairs in order, and [`Simd::dot_pairs`] fixes the order within a
//! pair: a row's results are the same whatever tile it falls into.

use crate::simd::{LANES, Simd, unroll};
use half::bf16;
use std::ops::Range;
use std::sync::atomic::{Ordering, compiler_fence};
use tangor_device::rounding::{KEY_GROUP, VALUE_GROUP};

/// A matrix of pairs, `(pairs, columns, 2)`, in any form that can be made bf16 as it is read.
pub(crate) trait Source: Copy {
    /// Pairs `column..column + 16` of row `pair`.
    ///
    /// # Safety
    /// They are there.
    unsafe fn load<S: Simd>(&self, s: S, pair: usize, column: usize) -> S::Pairs;
    /// Where they are.
    fn place(&self, pair: usize, column: usize) -> *const u8;
    /// Whether a NaN or an infinity may be among the first `columns` of row `pair`.
    ///
    /// # Safety
    /// They are there.
    unsafe fn finite(&self, pair: usize, columns: usize) -> bool;
    /// One element: `half` is 0 or 1.
    ///
    /// # Safety
    /// It is there.
    unsafe fn element(&self, pair: usize, column: usize, half: usize) -> f32;
}

/// bf16 in pairs, as instructions take them.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pairs {
    pub(crate) at: *const [u16; 2],
    /// Pairs from row to row.
    pub(crate) stride: usize,
}

impl Source for Pairs {
    #[inline(always)]
    unsafe fn load<S: Simd>(&self, s: S, pair: usize, column: usize) -> S::Pairs {
        // SAFETY: as the caller's.
        unsafe { s.load_pairs(self.at.add(pair * self.stride + column).cast()) }
    }
    #[inline(always)]
    fn place(&self, pair: usize, column: usize) -> *const u8 {
        self.at.wrapping_add(pair * self.stride + column).cast()
    }
    #[inline(always)]
    unsafe fn finite(&self, pair: usize, columns: usize) -> bool {
        // SAFETY: as the caller's.
        let row = unsafe {
            std::slice::from_raw_parts(self.at.add(pair * self.stride).cast::<u16>(), 2 * columns)
        };
        row.iter().fold(true, |finite, x| finite & (x & 0x7f80 != 0x7f80))
    }
    #[inline(always)]
    unsafe fn element(&self, pair: usize, column: usize, half: usize) -> f32 {
        // SAFETY: as the caller's.
        bf16::from_bits(unsafe { (*self.at.add(pair * self.stride + column))[half] }).to_f32()
    }
}

/// 8-bit codes, `(2 * pairs, columns)`, with scales in bf16: of every 16 rows in a column if they
/// are `KEYS`, else of every 32 columns in a row.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Codes<const KEYS: bool> {
    pub(crate) codes: *const i8,
    /// Codes from row to row.
    pub(crate) stride: usize,
    pub(crate) scales: *const u16,
    /// Scales from row to row of theirs.
    pub(crate) groups: usize,
}

impl<const KEYS: bool> Codes<KEYS> {
    /// Where the scale of an element is.
    #[inline(always)]
    fn scale_at(&self, row: usize, column: usize) -> *const u16 {
        let at = if KEYS {
            row / KEY_GROUP * self.groups + column
        } else {
            row * self.groups + column / VALUE_GROUP
        };
        self.scales.wrapping_add(at)
    }
}

impl<const KEYS: bool> Source for Codes<KEYS> {
    #[inline(always)]
    unsafe fn load<S: Simd>(&self, s: S, pair: usize, column: usize) -> S::Pairs {
        let row = 2 * pair;
        // SAFETY: as the caller's; the two rows of a pair of keys share their scales.
        unsafe {
            let codes = self.codes.add(row * self.stride + column);
            let (even, odd) = (s.load_i8(codes), s.load_i8(codes.add(self.stride)));
            let (scale, other) = if KEYS {
                let scale = s.load_bf16(self.scale_at(row, column));
                (scale, scale)
            } else {
                let scale = |row| bf16::from_bits(*self.scale_at(row, column)).to_f32();
                (s.splat(scale(row)), s.splat(scale(row + 1)))
            };
            s.pairs(s.mul(even, scale), s.mul(odd, other))
        }
    }
    #[inline(always)]
    fn place(&self, pair: usize, column: usize) -> *const u8 {
        self.codes.wrapping_add(2 * pair * self.stride + column).cast()
    }
    #[inline(always)]
    unsafe fn finite(&self, pair: usize, columns: usize) -> bool {
        let rows = [2 * pair, 2 * pair + 1];
        // SAFETY: as the caller's.
        let scale = |row, column| unsafe { *self.scale_at(row, column) };
        // Scales of keys are not asked for.
        !KEYS
            && rows.iter().all(|&row| {
                (0..columns).step_by(VALUE_GROUP).all(|c| scale(row, c) & 0x7f80 != 0x7f80)
            })
    }
    #[inline(always)]
    unsafe fn element(&self, pair: usize, column: usize, half: usize) -> f32 {
        let row = 2 * pair + half;
        // SAFETY: as the caller's.
        unsafe {
            let code = f32::from(*self.codes.add(row * self.stride + column));
            let scale = bf16::from_bits(*self.scale_at(row, column)).to_f32();
            tangor_device::rounding::round_bf16(code * scale)
        }
    }
}

/// Rows of bf16 by the first element and the distance of rows, in elements.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rows16 {
    pub(crate) at: *const u16,
    pub(crate) stride: usize,
}

impl Rows16 {
    /// A pair of row `row` for all lanes.
    ///
    /// # Safety
    /// It is there.
    #[inline(always)]
    unsafe fn pair<S: Simd>(&self, s: S, row: usize, pair: usize) -> S::Pairs {
        // SAFETY: as the caller's.
        unsafe { s.splat_pair(self.at.add(row * self.stride + 2 * pair)) }
    }
}

/// `R` rows of `a` times `V` vectors of columns, each with a source and a column of its own: the
/// sums over `pairs`. What lies `distance` bytes behind is asked for.
///
/// # Safety
/// All is there.
#[inline(always)]
pub(crate) unsafe fn products<S: Simd, B: Source, const R: usize, const V: usize>(
    s: S,
    pairs: usize,
    a: Rows16,
    b: [(B, usize); V],
    distance: isize,
) -> [[S::F32; V]; R] {
    let mut acc = [[s.splat(0.0); V]; R];
    // SAFETY: as the caller's.
    unsafe {
        for pair in 0..pairs {
            accumulate::<S, B, R, V>(s, &mut acc, (a, pair), (b, pair), distance);
        }
    }
    acc
}

/// Adds to `sums`, `(R, V, 16)`, `R` rows of `a` times `V` vectors of columns of `b` from a column
/// on, over some pairs of `b`; the first of `a` is that of pair 0.
///
/// # Safety
/// All is there.
#[inline(always)]
pub(crate) unsafe fn add_products<S: Simd, B: Source, const R: usize, const V: usize>(
    s: S,
    sums: *mut f32,
    pairs: Range<usize>,
    a: Rows16,
    (b, column): (B, usize),
    distance: isize,
) {
    let mut columns = [(b, column); V];
    let mut acc = [[s.splat(0.0); V]; R];
    // SAFETY: as the caller's.
    unsafe {
        unroll!(v < V, {
            columns[v].1 += v * LANES;
        });
        unroll!(r < R, {
            unroll!(v < V, {
                acc[r][v] = s.load(sums.add((r * V + v) * LANES));
            });
        });
        for pair in pairs {
            accumulate::<S, B, R, V>(s, &mut acc, (a, pair), (columns, pair), distance);
        }
        unroll!(r < R, {
            unroll!(v < V, {
                s.store(sums.add((r * V + v) * LANES), acc[r][v]);
            });
        });
    }
}

/// One pair of [`products`]. All indices of `acc` are constants: it stays in registers.
#[inline(always)]
unsafe fn accumulate<S: Simd, B: Source, const R: usize, const V: usize>(
    s: S,
    acc: &mut [[S::F32; V]; R],
    (a, a_pair): (Rows16, usize),
    (b, pair): ([(B, usize); V], usize),
    distance: isize,
) {
    // SAFETY: as the caller's.
    unsafe {
        let zero = [0_u16; 2];
        let mut columns = [s.splat_pair(zero.as_ptr()); V];
        unroll!(v < V, {
            let (b, column) = b[v];
            s.prefetch(b.place(pair, column).wrapping_offset(distance));
            columns[v] = b.load(s, pair, column);
        });
        unroll!(r < R, {
            // One row after the other: the compiler would load all their pairs first, and run out
            // of registers for the sums.
            compiler_fence(Ordering::SeqCst);
            let x = a.pair(s, r, a_pair);
            unroll!(v < V, {
                acc[r][v] = s.dot_pairs(acc[r][v], x, columns[v]);
            });
        });
    }
}

/// Turns `(2 * pairs, columns)` of 8 bits into pairs of bf16.
///
/// # Safety
/// `out` has room for `pairs` rows of `stride` pairs, and `columns` of those are there in `from`,
/// in whole vectors.
#[inline(always)]
pub(crate) unsafe fn widen<S: Simd>(
    s: S,
    from: impl Source,
    pairs: Range<usize>,
    columns: usize,
    out: Pairs,
) {
    for pair in pairs {
        for column in (0..columns).step_by(LANES) {
            // SAFETY: as the caller's.
            unsafe {
                let to = out.at.add(pair * out.stride + column).cast_mut();
                s.store_pairs(to.cast(), from.load(s, pair, column));
            }
        }
    }
}
