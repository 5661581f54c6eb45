//! Dot products of four unsigned by four signed bytes: through 16-bit sums, or with VNNI.

use super::{Avx2, Op};
use std::arch::x86_64::*;

type I = [__m256i; 2];

/// One of the two ways. See [`Simd`](crate::simd::Simd) for what its parts mean.
///
/// # Safety
/// The processor must have AVX2 and what [`Dots::detect`] looks for wherever the unsafe functions
/// are called. `a` is four `i8`, repeated.
pub(crate) trait Dots: Copy + Send + Sync + 'static {
    type Acc4: Copy;
    type Acc8: Copy;
    const LONG_SUMS: bool;
    const ROWS: usize;
    /// Whether the processor has what it needs beyond AVX2.
    fn detect() -> bool;
    /// Runs an operation with the instructions enabled.
    unsafe fn enabled<O: Op>(simd: Avx2<Self>, op: O) -> O::Output;
    unsafe fn start4(bias: i32) -> Self::Acc4;
    unsafe fn dot4(acc: Self::Acc4, w: I, a: __m256i) -> Self::Acc4;
    unsafe fn total4(acc: Self::Acc4, bias: i32) -> I;
    unsafe fn start8(bias: i32) -> Self::Acc8;
    unsafe fn dot8(acc: Self::Acc8, w: I, a: __m256i) -> Self::Acc8;
    unsafe fn total8(acc: Self::Acc8, bias: i32) -> I;
}

/// Sums of pairs of products, in 16 bits, which hold those of codes below 16: eight times at most
/// `2 * 15 * 127`. Codes of 8 bits would not fit: their nibbles are summed apart.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Maddubs;

#[target_feature(enable = "avx2,fma,f16c")]
#[inline(never)]
fn with_maddubs<O: Op>(simd: Avx2<Maddubs>, op: O) -> O::Output {
    op.run(simd)
}

impl Dots for Maddubs {
    type Acc4 = I;
    type Acc8 = [I; 2];
    const LONG_SUMS: bool = false;
    const ROWS: usize = 4;

    #[inline]
    fn detect() -> bool {
        true
    }
    #[inline]
    unsafe fn enabled<O: Op>(simd: Avx2<Self>, op: O) -> O::Output {
        // SAFETY: as the caller's.
        unsafe { with_maddubs(simd, op) }
    }
    #[inline(always)]
    unsafe fn start4(_: i32) -> I {
        // SAFETY: as the caller's.
        unsafe { [_mm256_setzero_si256(); 2] }
    }
    #[inline(always)]
    unsafe fn dot4(acc: I, w: I, a: __m256i) -> I {
        // SAFETY: as the caller's.
        unsafe {
            [
                _mm256_add_epi16(acc[0], _mm256_maddubs_epi16(w[0], a)),
                _mm256_add_epi16(acc[1], _mm256_maddubs_epi16(w[1], a)),
            ]
        }
    }
    #[inline(always)]
    unsafe fn total4(acc: I, bias: i32) -> I {
        // SAFETY: as the caller's.
        unsafe {
            let (ones, bias) = (_mm256_set1_epi16(1), _mm256_set1_epi32(bias));
            [
                _mm256_add_epi32(_mm256_madd_epi16(acc[0], ones), bias),
                _mm256_add_epi32(_mm256_madd_epi16(acc[1], ones), bias),
            ]
        }
    }
    #[inline(always)]
    unsafe fn start8(_: i32) -> [I; 2] {
        // SAFETY: as the caller's.
        unsafe { [[_mm256_setzero_si256(); 2]; 2] }
    }
    #[inline(always)]
    unsafe fn dot8(acc: [I; 2], w: I, a: __m256i) -> [I; 2] {
        // SAFETY: as the caller's.
        unsafe {
            let mask = _mm256_set1_epi8(15);
            let low = [_mm256_and_si256(w[0], mask), _mm256_and_si256(w[1], mask)];
            let high = [_mm256_srli_epi16::<4>(w[0]), _mm256_srli_epi16::<4>(w[1])];
            let high = [_mm256_and_si256(high[0], mask), _mm256_and_si256(high[1], mask)];
            [Self::dot4(acc[0], low, a), Self::dot4(acc[1], high, a)]
        }
    }
    #[inline(always)]
    unsafe fn total8(acc: [I; 2], bias: i32) -> I {
        // SAFETY: as the caller's.
        unsafe {
            let (low, high) = (Self::total4(acc[0], bias), Self::total4(acc[1], 0));
            [
                _mm256_add_epi32(low[0], _mm256_slli_epi32::<4>(high[0])),
                _mm256_add_epi32(low[1], _mm256_slli_epi32::<4>(high[1])),
            ]
        }
    }
}

/// AVX-VNNI: sums in 32 bits.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Vnni;

#[target_feature(enable = "avx2,fma,f16c,avxvnni")]
#[inline(never)]
fn with_vnni<O: Op>(simd: Avx2<Vnni>, op: O) -> O::Output {
    op.run(simd)
}

impl Dots for Vnni {
    type Acc4 = I;
    type Acc8 = I;
    const LONG_SUMS: bool = true;
    const ROWS: usize = 6;

    #[inline]
    fn detect() -> bool {
        is_x86_feature_detected!("avxvnni")
    }
    #[inline]
    unsafe fn enabled<O: Op>(simd: Avx2<Self>, op: O) -> O::Output {
        // SAFETY: as the caller's.
        unsafe { with_vnni(simd, op) }
    }
    #[inline(always)]
    unsafe fn start4(bias: i32) -> I {
        // SAFETY: as the caller's.
        unsafe { [_mm256_set1_epi32(bias); 2] }
    }
    #[inline(always)]
    unsafe fn dot4(acc: I, w: I, a: __m256i) -> I {
        // SAFETY: as the caller's.
        unsafe {
            [_mm256_dpbusd_avx_epi32(acc[0], w[0], a), _mm256_dpbusd_avx_epi32(acc[1], w[1], a)]
        }
    }
    #[inline(always)]
    unsafe fn total4(acc: I, _: i32) -> I {
        acc
    }
    #[inline(always)]
    unsafe fn start8(bias: i32) -> I {
        // SAFETY: as the caller's.
        unsafe { Self::start4(bias) }
    }
    #[inline(always)]
    unsafe fn dot8(acc: I, w: I, a: __m256i) -> I {
        // SAFETY: as the caller's.
        unsafe { Self::dot4(acc, w, a) }
    }
    #[inline(always)]
    unsafe fn total8(acc: I, _: i32) -> I {
        acc
    }
}
