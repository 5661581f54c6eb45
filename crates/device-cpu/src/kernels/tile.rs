//! `out = a b` and `out += a b` in `f32`: the inner loop of exact linears and of attention.
//!
//! Every element of `out` is one chain of fused multiply-adds over `k` in order, whatever tile it
//! falls into.

use crate::simd::{LANES, Simd, unroll};

/// A matrix by its first element and the distance of its rows, in elements.
#[derive(Clone, Copy)]
pub(crate) struct Matrix<P> {
    pub(crate) at: P,
    pub(crate) stride: usize,
}

/// The right factor, `(k, columns)`, in any form that can be widened as it is read.
pub(crate) trait Right<S: Simd>: Copy {
    /// Elements `column..column + 16` of row `k`.
    ///
    /// # Safety
    /// They are there.
    unsafe fn load(&self, s: S, k: usize, column: usize) -> S::F32;
    /// Where they are.
    fn place(&self, k: usize, column: usize) -> *const u8;
}

/// A factor that asks for another one, so many bytes further, while it is read.
#[derive(Clone, Copy)]
pub(crate) struct Ahead<B> {
    pub(crate) b: B,
    pub(crate) distance: isize,
}

impl<S: Simd, B: Right<S>> Right<S> for Ahead<B> {
    #[inline(always)]
    unsafe fn load(&self, s: S, k: usize, column: usize) -> S::F32 {
        s.prefetch(self.b.place(k, column).wrapping_offset(self.distance));
        // SAFETY: as the caller's.
        unsafe { self.b.load(s, k, column) }
    }
    #[inline(always)]
    fn place(&self, k: usize, column: usize) -> *const u8 {
        self.b.place(k, column)
    }
}

/// Elements of one type, and the distance of their rows.
#[derive(Clone, Copy)]
pub(crate) struct Elements<T> {
    pub(crate) at: *const T,
    pub(crate) stride: usize,
}

/// IEEE halves.
#[derive(Clone, Copy)]
pub(crate) struct Half(#[allow(dead_code)] u16);

impl<S: Simd> Right<S> for Elements<f32> {
    #[inline(always)]
    unsafe fn load(&self, s: S, k: usize, column: usize) -> S::F32 {
        // SAFETY: as the caller's.
        unsafe { s.load(self.at.add(k * self.stride + column)) }
    }
    #[inline(always)]
    fn place(&self, k: usize, column: usize) -> *const u8 {
        self.at.wrapping_add(k * self.stride + column).cast()
    }
}

impl<S: Simd> Right<S> for Elements<Half> {
    #[inline(always)]
    unsafe fn load(&self, s: S, k: usize, column: usize) -> S::F32 {
        // SAFETY: as the caller's.
        unsafe { s.load_f16(self.at.add(k * self.stride + column).cast()) }
    }
    #[inline(always)]
    fn place(&self, k: usize, column: usize) -> *const u8 {
        self.at.wrapping_add(k * self.stride + column).cast()
    }
}

/// `out = a b` or, if `ADD`, `out += a b`, with `a` of `(rows, k)`, `b` of `(k, 16 * vectors)` and
/// `out` of `(rows, 16 * vectors)`.
///
/// # Safety
/// The matrices are there, and `out` overlaps none of the others.
#[inline(always)]
pub(crate) unsafe fn multiply<S: Simd, B: Right<S>, const ADD: bool>(
    s: S,
    (rows, k, vectors): (usize, usize, usize),
    a: Matrix<*const f32>,
    b: B,
    out: Matrix<*mut f32>,
) {
    let mut row = 0;
    while row < rows {
        let count = (rows - row).min(S::ROWS);
        // SAFETY: rows `row..row + count` are there.
        unsafe {
            let a = Matrix { at: a.at.add(row * a.stride), ..a };
            let out = Matrix { at: out.at.add(row * out.stride), ..out };
            match count {
                6 if S::ROWS >= 6 => columns::<S, B, 6, ADD>(s, (k, vectors), a, b, out),
                5 if S::ROWS >= 5 => columns::<S, B, 5, ADD>(s, (k, vectors), a, b, out),
                4 if S::ROWS >= 4 => columns::<S, B, 4, ADD>(s, (k, vectors), a, b, out),
                3 if S::ROWS >= 3 => columns::<S, B, 3, ADD>(s, (k, vectors), a, b, out),
                2 if S::ROWS >= 2 => columns::<S, B, 2, ADD>(s, (k, vectors), a, b, out),
                _ => columns::<S, B, 1, ADD>(s, (k, vectors), a, b, out),
            }
        }
        row += count;
    }
}

/// `R` rows of [`multiply`].
///
/// # Safety
/// As [`multiply`].
#[inline(always)]
unsafe fn columns<S: Simd, B: Right<S>, const R: usize, const ADD: bool>(
    s: S,
    (k, vectors): (usize, usize),
    a: Matrix<*const f32>,
    b: B,
    out: Matrix<*mut f32>,
) {
    let mut vector = 0;
    // SAFETY: every tile lies within `vectors`.
    unsafe {
        while vector < vectors {
            let column = vector * LANES;
            if S::WIDE && vectors - vector >= 4 {
                tile::<S, B, R, 4, ADD>(s, k, a, (b, column), out);
                vector += 4;
            } else if S::WIDE && vectors - vector >= 2 {
                tile::<S, B, R, 2, ADD>(s, k, a, (b, column), out);
                vector += 2;
            } else {
                tile::<S, B, R, 1, ADD>(s, k, a, (b, column), out);
                vector += 1;
            }
        }
    }
}

/// `R` rows by `V` vectors of [`multiply`] from a column on, kept in registers: all indices of
/// `acc` are constants.
///
/// # Safety
/// As [`multiply`].
#[inline(always)]
unsafe fn tile<S: Simd, B: Right<S>, const R: usize, const V: usize, const ADD: bool>(
    s: S,
    k: usize,
    a: Matrix<*const f32>,
    (b, column): (B, usize),
    out: Matrix<*mut f32>,
) {
    // SAFETY: as the caller's.
    unsafe {
        let mut acc = [[s.splat(0.0); V]; R];
        let out = Matrix { at: out.at.add(column), ..out };
        if ADD {
            unroll!(r < R, {
                unroll!(v < V, {
                    acc[r][v] = s.load(out.at.add(r * out.stride + v * LANES));
                });
            });
        }
        for k in 0..k {
            let mut columns = [s.splat(0.0); V];
            unroll!(v < V, {
                columns[v] = b.load(s, k, column + v * LANES);
            });
            unroll!(r < R, {
                let x = s.splat(*a.at.add(r * a.stride + k));
                unroll!(v < V, {
                    acc[r][v] = s.fma(x, columns[v], acc[r][v]);
                });
            });
        }
        unroll!(r < R, {
            unroll!(v < V, {
                s.store(out.at.add(r * out.stride + v * LANES), acc[r][v]);
            });
        });
    }
}
