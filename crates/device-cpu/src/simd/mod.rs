//! Vectors of sixteen `f32` on every instruction set.
//!
//! A [`Simd`] value proves that the processor has its instructions, so what it does with vectors is
//! safe; only loads and stores through pointers are not. A kernel is an [`Op`], written once over
//! any `Simd` and compiled once per instruction set by [`dispatch`].
//!
//! All instruction sets compute the same bits: every vector has sixteen lanes (two registers on
//! AVX2, four on NEON, an array in plain Rust), every operation rounds once, and horizontal sums
//! add in one order.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
pub(crate) mod math;
#[cfg(target_arch = "aarch64")]
mod neon;
mod portable;
#[cfg(test)]
mod tests;

#[cfg(target_arch = "x86_64")]
pub(crate) use avx2::{Avx2, Maddubs, Vnni};
#[cfg(target_arch = "x86_64")]
pub(crate) use avx512::{Avx512, Avx512Bf16};
#[cfg(target_arch = "aarch64")]
pub(crate) use neon::{Dotprod, Neon, Widening};
pub(crate) use portable::Portable;

use crate::isa::Isa;

/// Lanes of a vector.
pub(crate) const LANES: usize = 16;

/// The instructions of one instruction set.
///
/// `max` and `min` give their second operand if one is a NaN, as x86 does. `Codes` are 64 unsigned
/// bytes: four consecutive inputs of each of sixteen outputs.
pub(crate) trait Simd: Copy + Send + Sync + 'static {
    /// Sixteen `f32`.
    type F32: Copy;
    /// Sixteen `i32`.
    type I32: Copy;
    /// 64 `u8`.
    type Codes: Copy;
    /// Sixteen pairs of bf16: two consecutive elements of each of sixteen outputs.
    type Pairs: Copy;
    /// Sixteen sums of at most 8 dot products of codes below 16.
    type Acc4: Copy;
    /// Sixteen sums of at most 8 dot products of codes below 256.
    type Acc8: Copy;
    /// Whether there are 32 registers that hold a whole vector (else 16 that hold half a one).
    const WIDE: bool;
    /// Whether [`Self::Acc4`] and [`Self::Acc8`] hold any number of dot products.
    const LONG_SUMS: bool;
    /// What [`Simd::dot8`] takes every code less: 128 where only signed bytes multiply, else 0.
    const SHIFT8: i32;
    /// Rows of a tile that registers hold the sums of: 1 to 6.
    const ROWS: usize;
    /// The same for sums of dot products of bytes.
    const DOT_ROWS: usize;

    /// Runs an operation with these instructions enabled.
    fn run<O: Op>(self, op: O) -> O::Output;

    fn splat(self, x: f32) -> Self::F32;
    fn add(self, a: Self::F32, b: Self::F32) -> Self::F32;
    fn sub(self, a: Self::F32, b: Self::F32) -> Self::F32;
    fn mul(self, a: Self::F32, b: Self::F32) -> Self::F32;
    fn div(self, a: Self::F32, b: Self::F32) -> Self::F32;
    /// `a > b ? a : b`.
    fn max(self, a: Self::F32, b: Self::F32) -> Self::F32;
    /// `a < b ? a : b`.
    fn min(self, a: Self::F32, b: Self::F32) -> Self::F32;
    fn abs(self, a: Self::F32) -> Self::F32;
    /// `a * b + c`, rounded once.
    fn fma(self, a: Self::F32, b: Self::F32, c: Self::F32) -> Self::F32;
    /// `c - a * b`, rounded once.
    fn fnma(self, a: Self::F32, b: Self::F32, c: Self::F32) -> Self::F32;
    /// The nearest integers, ties to even.
    fn round(self, a: Self::F32) -> Self::F32;
    /// `a * 2^n` for integers in `-126..=127` and products that are normal numbers.
    fn scale2(self, a: Self::F32, n: Self::F32) -> Self::F32;
    /// Lanes of `a` below `n`, of `b` from there.
    fn first(self, n: usize, a: Self::F32, b: Self::F32) -> Self::F32;
    /// 0 where `x < limit`, else `a`.
    fn zero_below(self, x: Self::F32, limit: f32, a: Self::F32) -> Self::F32;
    /// `a` with the signs of `b`.
    fn copy_sign(self, a: Self::F32, b: Self::F32) -> Self::F32;
    /// The sum of all lanes: halves, quarters, eighths, sixteenths.
    fn sum(self, a: Self::F32) -> f32;
    /// The greatest lane; any of them if one is a NaN.
    fn greatest(self, a: Self::F32) -> f32;
    /// The greatest magnitude of any lane; not finite if one is not.
    fn greatest_abs(self, a: Self::F32, b: Self::F32) -> f32;

    /// The nearest integers, ties to even, of lanes that fit.
    fn to_i32(self, a: Self::F32) -> Self::I32;
    fn to_f32(self, a: Self::I32) -> Self::F32;
    fn sum_i32(self, a: Self::I32) -> i32;
    fn add_i32(self, a: Self::I32, b: Self::I32) -> Self::I32;

    /// # Safety
    /// 16 `f32` can be read from `p`.
    unsafe fn load(self, p: *const f32) -> Self::F32;
    /// # Safety
    /// 16 `f32` can be written to `p`.
    unsafe fn store(self, p: *mut f32, a: Self::F32);
    /// # Safety
    /// 16 IEEE halves can be read from `p`.
    unsafe fn load_f16(self, p: *const u16) -> Self::F32;
    /// # Safety
    /// 16 upper halves of `f32` can be read from `p`.
    unsafe fn load_bf16(self, p: *const u16) -> Self::F32;
    /// # Safety
    /// 16 `bf16` can be written to `p`; they are rounded as
    /// [`round_bf16`](tangor_device::rounding::round_bf16) does.
    unsafe fn store_bf16(self, p: *mut u16, a: Self::F32);
    /// [`Self::store_bf16`] of lanes that it does not flush to zero.
    ///
    /// # Safety
    /// 16 `bf16` can be written to `p`.
    #[inline(always)]
    unsafe fn store_kept_bf16(self, p: *mut u16, a: Self::F32) {
        // SAFETY: as the caller's.
        unsafe { self.store_bf16(p, a) }
    }
    /// # Safety
    /// 16 `i8` can be read from `p`.
    unsafe fn load_i8(self, p: *const i8) -> Self::F32;
    /// # Safety
    /// 16 `u8` can be read from `p`.
    unsafe fn load_u8(self, p: *const u8) -> Self::F32;
    /// # Safety
    /// 16 IEEE halves can be written to `p`.
    unsafe fn store_f16(self, p: *mut u16, a: Self::F32);
    /// The sums of the first and of the last 16 of 32 `i8`.
    ///
    /// # Safety
    /// 32 `i8` can be read from `p`.
    unsafe fn sum_i8(self, p: *const i8) -> [i32; 2] {
        // SAFETY: as the caller's.
        let halves = unsafe { p.cast::<[[i8; LANES]; 2]>().read_unaligned() };
        halves.map(|half| half.iter().map(|&x| i32::from(x)).sum())
    }
    /// # Safety
    /// 16 `i8` can be written to `p`; the lanes fit.
    unsafe fn store_i8(self, p: *mut i8, a: Self::I32);

    /// # Safety
    /// 32 bf16 can be read from `p`.
    unsafe fn load_pairs(self, p: *const u16) -> Self::Pairs;
    /// # Safety
    /// 32 bf16 can be written to `p`.
    unsafe fn store_pairs(self, p: *mut u16, a: Self::Pairs);
    /// One pair for all lanes.
    ///
    /// # Safety
    /// 2 bf16 can be read from `p`.
    unsafe fn splat_pair(self, p: *const u16) -> Self::Pairs;
    /// Pairs of an even and an odd element, rounded as
    /// [`round_bf16`](tangor_device::rounding::round_bf16) does.
    fn pairs(self, even: Self::F32, odd: Self::F32) -> Self::Pairs;
    /// Adds the products of the odd elements and then those of the even ones, each rounded once:
    /// `fma(a.even, b.even, fma(a.odd, b.odd, acc))`. Elements are zero or at least 2^-50, so
    /// that whether tiny results are flushed to zero cannot matter.
    fn dot_pairs(self, acc: Self::F32, a: Self::Pairs, b: Self::Pairs) -> Self::F32;

    /// Asks for the cache line at `p`, which need not exist, to come into the second-level cache:
    /// the first level has a short list of lines under way, and what is asked for would fill it.
    fn prefetch(self, p: *const u8);
    /// # Safety
    /// 64 bytes can be read from `p`.
    unsafe fn codes(self, p: *const u8) -> Self::Codes;
    /// # Safety
    /// 64 bytes can be written to `p`.
    unsafe fn put_codes(self, p: *mut u8, w: Self::Codes);
    /// Their low nibbles.
    fn low(self, w: Self::Codes) -> Self::Codes;
    /// Their high nibbles.
    fn high(self, w: Self::Codes) -> Self::Codes;
    /// `low | (plane << up & mask)` in every byte, for `up` in `-3..=4`; less than nothing is to
    /// the right. What the mask keeps comes from the byte itself. Inlined with a known `up`.
    fn join(self, low: Self::Codes, plane: Self::Codes, up: i32, mask: u8) -> Self::Codes;
    /// Byte `index` (0..4) of every output's four, as `f32`.
    fn code_f32(self, w: Self::Codes, index: usize) -> Self::F32;
    /// Sums that start at `bias`; hand the same `bias` to [`Simd::total4`].
    fn start4(self, bias: i32) -> Self::Acc4;
    /// Adds the dot products of codes below 16 with the four `i8` at `a`.
    ///
    /// # Safety
    /// 4 bytes can be read from `a`.
    unsafe fn dot4(self, acc: Self::Acc4, w: Self::Codes, a: *const i8) -> Self::Acc4;
    /// The sums.
    fn total4(self, acc: Self::Acc4, bias: i32) -> Self::I32;
    /// Sums that start at `bias`; hand the same `bias` to [`Simd::total8`].
    fn start8(self, bias: i32) -> Self::Acc8;
    /// Adds the dot products of codes, less [`Self::SHIFT8`], with the four `i8` at `a`.
    ///
    /// # Safety
    /// 4 bytes can be read from `a`.
    unsafe fn dot8(self, acc: Self::Acc8, w: Self::Codes, a: *const i8) -> Self::Acc8;
    /// The sums.
    fn total8(self, acc: Self::Acc8, bias: i32) -> Self::I32;
}

/// Which instructions an [`Op`] is compiled for: sets that differ in others alone share what is
/// compiled, since all of it takes minutes.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Uses {
    /// No dot products.
    Floats,
    /// Those of pairs of bf16.
    Pairs,
    /// Those of bytes.
    Dots,
}

/// Something to be compiled for every instruction set.
///
/// `run` must be `#[inline(always)]`, and so must everything that it calls with vectors: otherwise
/// it is compiled without the instructions, and slow. Closures cannot be, so kernels have none.
pub(crate) trait Op {
    /// What it gives.
    type Output;
    /// What it is compiled for.
    const USES: Uses = Uses::Floats;
    /// Does it.
    fn run<S: Simd>(self, simd: S) -> Self::Output;
}

/// `for i in 0..n` for up to six rounds, with a constant `i`: arrays that are indexed by it stay in
/// registers.
macro_rules! unroll {
    ($i:ident < $n:ident, $body:expr) => {{
        const { assert!($n <= 6) };
        crate::simd::round!($i < $n, 0, $body);
        crate::simd::round!($i < $n, 1, $body);
        crate::simd::round!($i < $n, 2, $body);
        crate::simd::round!($i < $n, 3, $body);
        crate::simd::round!($i < $n, 4, $body);
        crate::simd::round!($i < $n, 5, $body);
    }};
}
/// One round of [`unroll!`].
macro_rules! round {
    ($i:ident < $n:ident, $round:literal, $body:expr) => {
        #[allow(non_upper_case_globals)]
        if $round < $n {
            const $i: usize = $round;
            $body
        }
    };
}
pub(crate) use round;
pub(crate) use unroll;

/// Runs `op` with the instructions of `isa`, or with plain Rust if the processor lacks them.
#[inline]
pub(crate) fn dispatch<O: Op>(isa: Isa, op: O) -> O::Output {
    match isa {
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512Vnni => {
            if const { matches!(O::USES, Uses::Pairs) }
                && let Some(simd) = Avx512Bf16::detect()
            {
                return simd.run(op);
            }
            if let Some(simd) = Avx512::detect() {
                return simd.run(op);
            }
        }
        #[cfg(target_arch = "x86_64")]
        Isa::AvxVnni if const { matches!(O::USES, Uses::Dots) } => {
            if let Some(simd) = Avx2::<Vnni>::detect() {
                return simd.run(op);
            }
        }
        #[cfg(target_arch = "x86_64")]
        Isa::AvxVnni | Isa::Avx2 => {
            if let Some(simd) = Avx2::<Maddubs>::detect() {
                return simd.run(op);
            }
        }
        #[cfg(target_arch = "aarch64")]
        Isa::NeonDotprod if const { matches!(O::USES, Uses::Dots) } => {
            if let Some(simd) = Neon::<Dotprod>::detect() {
                return simd.run(op);
            }
        }
        #[cfg(target_arch = "aarch64")]
        Isa::NeonDotprod | Isa::Neon => {
            if let Some(simd) = Neon::<Widening>::detect() {
                return simd.run(op);
            }
        }
        _ => {}
    }
    Portable.run(op)
}
