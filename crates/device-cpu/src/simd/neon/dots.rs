//! Dot products of four by four signed bytes: with the instructions for them, or through products
//! of 16 bits.

use super::{Neon, Op, quarters};
use std::arch::aarch64::*;
use std::arch::{asm, is_aarch64_feature_detected};

type I = [int32x4_t; 4];
type Signed = [int8x16_t; 4];

/// One of the two ways. See [`Simd`](crate::simd::Simd) for what its parts mean.
///
/// # Safety
/// The processor must have NEON and what [`Dots::detect`] looks for wherever the unsafe functions
/// are called. Four bytes can be read from `a`.
pub(crate) trait Dots: Copy + Send + Sync + 'static {
    type Acc4: Copy;
    type Acc8: Copy;
    const LONG_SUMS: bool;
    const ROWS: usize;
    /// Whether the processor has what it needs beyond NEON.
    fn detect() -> bool;
    /// Runs an operation with the instructions enabled.
    unsafe fn enabled<O: Op>(simd: Neon<Self>, op: O) -> O::Output;
    unsafe fn start4(bias: i32) -> Self::Acc4;
    unsafe fn dot4(acc: Self::Acc4, w: Signed, a: *const i8) -> Self::Acc4;
    unsafe fn total4(acc: Self::Acc4, bias: i32) -> I;
    unsafe fn start8(bias: i32) -> Self::Acc8;
    unsafe fn dot8(acc: Self::Acc8, w: Signed, a: *const i8) -> Self::Acc8;
    unsafe fn total8(acc: Self::Acc8, bias: i32) -> I;
}

/// `sdot`: sums in 32 bits. Five rows take 20 of 32 registers, codes 4, activations the others.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Dotprod;

#[target_feature(enable = "neon,dotprod")]
#[inline(never)]
fn with_dotprod<O: Op>(simd: Neon<Dotprod>, op: O) -> O::Output {
    op.run(simd)
}

/// Four dot products, with the four bytes of `a`. Its type is what a load without a broadcast
/// gives; the standard library's function is not stable.
#[target_feature(enable = "neon,dotprod")]
#[inline]
fn sdot(mut acc: int32x4_t, w: int8x16_t, a: f32) -> int32x4_t {
    // SAFETY: the instruction exists where this function is enabled, and touches registers alone.
    unsafe {
        asm!(
            "sdot {acc:v}.4s, {w:v}.16b, {a:v}.4b[0]",
            acc = inout(vreg) acc,
            w = in(vreg) w,
            a = in(vreg) a,
            options(pure, nomem, nostack, preserves_flags),
        );
    }
    acc
}

impl Dots for Dotprod {
    type Acc4 = I;
    type Acc8 = I;
    const LONG_SUMS: bool = true;
    const ROWS: usize = 5;

    #[inline]
    fn detect() -> bool {
        is_aarch64_feature_detected!("dotprod")
    }
    #[inline]
    unsafe fn enabled<O: Op>(simd: Neon<Self>, op: O) -> O::Output {
        // SAFETY: as the caller's.
        unsafe { with_dotprod(simd, op) }
    }
    #[inline(always)]
    unsafe fn start4(bias: i32) -> I {
        // SAFETY: as the caller's.
        unsafe { [vdupq_n_s32(bias); 4] }
    }
    #[inline(always)]
    unsafe fn dot4(acc: I, w: Signed, a: *const i8) -> I {
        // SAFETY: as the caller's.
        unsafe {
            let a = a.cast::<f32>().read_unaligned();
            quarters!(q => sdot(acc[q], w[q], a))
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
    unsafe fn dot8(acc: I, w: Signed, a: *const i8) -> I {
        // SAFETY: as the caller's.
        unsafe { Self::dot4(acc, w, a) }
    }
    #[inline(always)]
    unsafe fn total8(acc: I, _: i32) -> I {
        acc
    }
}

/// Products in 16 bits. Those of codes below 16 are summed there, eight times at most `15 * 127`;
/// those of 8 bits in 32, pair by pair. Three rows take 24 of 32 registers.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Widening;

#[target_feature(enable = "neon")]
#[inline(never)]
fn with_neon<O: Op>(simd: Neon<Widening>, op: O) -> O::Output {
    op.run(simd)
}

/// Neighbours' sums: two registers onto one.
#[inline(always)]
unsafe fn pairs(a: int32x4_t, b: int32x4_t, bias: int32x4_t) -> int32x4_t {
    // SAFETY: as the caller's.
    unsafe { vaddq_s32(vpaddq_s32(a, b), bias) }
}

impl Dots for Widening {
    /// Two registers for every four outputs: a lane per input.
    type Acc4 = [[int16x8_t; 2]; 4];
    /// Likewise, a lane per two inputs.
    type Acc8 = [[int32x4_t; 2]; 4];
    const LONG_SUMS: bool = false;
    const ROWS: usize = 3;

    #[inline]
    fn detect() -> bool {
        true
    }
    #[inline]
    unsafe fn enabled<O: Op>(simd: Neon<Self>, op: O) -> O::Output {
        // SAFETY: as the caller's.
        unsafe { with_neon(simd, op) }
    }
    #[inline(always)]
    unsafe fn start4(_: i32) -> Self::Acc4 {
        // SAFETY: as the caller's.
        unsafe { [[vdupq_n_s16(0); 2]; 4] }
    }
    #[inline(always)]
    unsafe fn dot4(acc: Self::Acc4, w: Signed, a: *const i8) -> Self::Acc4 {
        // SAFETY: as the caller's.
        unsafe {
            let a = vreinterpretq_s8_s32(vdupq_n_s32(a.cast::<i32>().read_unaligned()));
            quarters!(q => {
                let low = vmlal_s8(acc[q][0], vget_low_s8(w[q]), vget_low_s8(a));
                [low, vmlal_high_s8(acc[q][1], w[q], a)]
            })
        }
    }
    #[inline(always)]
    unsafe fn total4(acc: Self::Acc4, bias: i32) -> I {
        // SAFETY: as the caller's.
        unsafe {
            let bias = vdupq_n_s32(bias);
            quarters!(q => pairs(vpaddlq_s16(acc[q][0]), vpaddlq_s16(acc[q][1]), bias))
        }
    }
    #[inline(always)]
    unsafe fn start8(_: i32) -> Self::Acc8 {
        // SAFETY: as the caller's.
        unsafe { [[vdupq_n_s32(0); 2]; 4] }
    }
    #[inline(always)]
    unsafe fn dot8(acc: Self::Acc8, w: Signed, a: *const i8) -> Self::Acc8 {
        // SAFETY: as the caller's.
        unsafe {
            let a = vreinterpretq_s8_s32(vdupq_n_s32(a.cast::<i32>().read_unaligned()));
            quarters!(q => {
                let low = vmull_s8(vget_low_s8(w[q]), vget_low_s8(a));
                let high = vmull_high_s8(w[q], a);
                [vpadalq_s16(acc[q][0], low), vpadalq_s16(acc[q][1], high)]
            })
        }
    }
    #[inline(always)]
    unsafe fn total8(acc: Self::Acc8, bias: i32) -> I {
        // SAFETY: as the caller's.
        unsafe {
            let bias = vdupq_n_s32(bias);
            quarters!(q => pairs(acc[q][0], acc[q][1], bias))
        }
    }
}
