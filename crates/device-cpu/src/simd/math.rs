//! Functions of vectors, the same bits on every instruction set.

use super::Simd;

/// `e^x` to about 2 units in the last place; 0 below -87.3, at most `e^88`; NaN stays NaN.
///
/// `x = n ln 2 + r`, and a polynomial of degree 6 for `e^r` on `|r| <= ln 2 / 2` (Cephes `expf`).
#[inline(always)]
pub(crate) fn exp<S: Simd>(s: S, x: S::F32) -> S::F32 {
    const LOW: f32 = -87.3;
    let clamped = s.min(s.splat(88.0), s.max(s.splat(LOW), x));
    let n = s.round(s.mul(clamped, s.splat(std::f32::consts::LOG2_E)));
    let r = s.fnma(n, s.splat(0.693_359_4), clamped);
    let r = s.fnma(n, s.splat(-2.121_944_4e-4), r);
    let mut p = s.splat(1.987_569_1e-4);
    for c in [1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5, 1.0, 1.0] {
        p = s.fma(p, r, s.splat(c));
    }
    let y = s.scale2(p, s.min(s.splat(127.0), n));
    s.zero_below(x, LOW, y)
}

/// `2^x` for `x` of at most about 0, to 4 in a million; 0 below `2^-50`, as what becomes bf16; NaN
/// stays NaN.
///
/// `x = n + r`, and a polynomial of degree 4 for `2^r` on `|r| <= 1/2` that meets it at 0.
#[inline(always)]
pub(crate) fn exp2<S: Simd>(s: S, x: S::F32) -> S::F32 {
    let n = s.round(x);
    let r = s.sub(x, n);
    let mut p = s.splat(9.666_368e-3);
    for c in [5.592_197_6e-2, 2.402_235e-1, 6.931_21e-1, 1.0] {
        p = s.fma(p, r, s.splat(c));
    }
    s.zero_below(x, -50.0, s.scale2(p, n))
}

/// `tanh x` as `1 - 2 / (e^2x + 1)`: absolute error below 2e-7.
#[inline(always)]
pub(crate) fn tanh<S: Simd>(s: S, x: S::F32) -> S::F32 {
    let one = s.splat(1.0);
    let e = exp(s, s.add(x, x));
    s.sub(one, s.div(s.splat(2.0), s.add(e, one)))
}

/// The error function (Abramowitz and Stegun 7.1.26): absolute error below 2e-7.
#[inline(always)]
pub(crate) fn erf<S: Simd>(s: S, x: S::F32) -> S::F32 {
    let one = s.splat(1.0);
    let z = s.abs(x);
    let t = s.div(one, s.fma(s.splat(0.327_591_1), z, one));
    let mut p = s.splat(1.061_405_4);
    for c in [-1.453_152, 1.421_413_7, -0.284_496_74, 0.254_829_6, 0.0] {
        p = s.fma(p, t, s.splat(c));
    }
    let y = s.fnma(p, exp(s, s.sub(s.splat(0.0), s.mul(z, z))), one);
    s.copy_sign(y, x)
}
