//! `out += a b` in `f32`: the inner loop of exact linears and of attention.
//!
//! Every element of `out` is one chain of fused multiply-adds over `k` in order, whatever tile it
//! falls into.

use crate::simd::{LANES, Simd};

/// A matrix by its first element and the distance of its rows, in elements.
#[derive(Clone, Copy)]
pub(crate) struct Matrix<P> {
    pub(crate) at: P,
    pub(crate) stride: usize,
}

/// `out += a b`, with `a` of `(rows, k)`, `b` of `(k, 16 * vectors)` and `out` of
/// `(rows, 16 * vectors)`.
///
/// # Safety
/// The matrices are there, and `out` overlaps none of the others.
#[inline(always)]
pub(crate) unsafe fn multiply_add<S: Simd>(
    s: S,
    (rows, k, vectors): (usize, usize, usize),
    a: Matrix<*const f32>,
    b: Matrix<*const f32>,
    out: Matrix<*mut f32>,
) {
    let mut row = 0;
    while row < rows {
        let count = (rows - row).min(6);
        // SAFETY: rows `row..row + count` are there.
        unsafe {
            let a = Matrix { at: a.at.add(row * a.stride), ..a };
            let out = Matrix { at: out.at.add(row * out.stride), ..out };
            match count {
                6 => columns::<S, 6>(s, (k, vectors), a, b, out),
                5 => columns::<S, 5>(s, (k, vectors), a, b, out),
                4 => columns::<S, 4>(s, (k, vectors), a, b, out),
                3 => columns::<S, 3>(s, (k, vectors), a, b, out),
                2 => columns::<S, 2>(s, (k, vectors), a, b, out),
                _ => columns::<S, 1>(s, (k, vectors), a, b, out),
            }
        }
        row += count;
    }
}

/// `R` rows of [`multiply_add`].
///
/// # Safety
/// As [`multiply_add`].
#[inline(always)]
unsafe fn columns<S: Simd, const R: usize>(
    s: S,
    (k, vectors): (usize, usize),
    a: Matrix<*const f32>,
    b: Matrix<*const f32>,
    out: Matrix<*mut f32>,
) {
    let mut vector = 0;
    // SAFETY: every tile lies within `vectors`.
    unsafe {
        while vector < vectors {
            let b = Matrix { at: b.at.add(vector * LANES), ..b };
            let out = Matrix { at: out.at.add(vector * LANES), ..out };
            if S::WIDE && vectors - vector >= 4 {
                tile::<S, R, 4>(s, k, a, b, out);
                vector += 4;
            } else {
                tile::<S, R, 1>(s, k, a, b, out);
                vector += 1;
            }
        }
    }
}

/// `R` rows by `V` vectors of [`multiply_add`], kept in registers.
///
/// # Safety
/// As [`multiply_add`].
#[inline(always)]
unsafe fn tile<S: Simd, const R: usize, const V: usize>(
    s: S,
    k: usize,
    a: Matrix<*const f32>,
    b: Matrix<*const f32>,
    out: Matrix<*mut f32>,
) {
    // SAFETY: as the caller's.
    unsafe {
        let mut acc = [[s.splat(0.0); V]; R];
        for r in 0..R {
            for v in 0..V {
                acc[r][v] = s.load(out.at.add(r * out.stride + v * LANES));
            }
        }
        for k in 0..k {
            let b = b.at.add(k * b.stride);
            let mut columns = [s.load(b); V];
            for v in 1..V {
                columns[v] = s.load(b.add(v * LANES));
            }
            for r in 0..R {
                let x = s.splat(*a.at.add(r * a.stride + k));
                for v in 0..V {
                    acc[r][v] = s.fma(x, columns[v], acc[r][v]);
                }
            }
        }
        for r in 0..R {
            for v in 0..V {
                s.store(out.at.add(r * out.stride + v * LANES), acc[r][v]);
            }
        }
    }
}
