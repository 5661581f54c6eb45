//! NEON: a vector is four registers. Bytes are multiplied in one of two ways.

mod dots;

use super::{Op, Simd};
pub(crate) use dots::{Dotprod, Dots, Widening};
use std::arch::aarch64::*;
use std::arch::{asm, is_aarch64_feature_detected};
use std::marker::PhantomData;

/// Proof that the processor has NEON and what `D` needs.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Neon<D>(PhantomData<D>);

type F = [float32x4_t; 4];
type I = [int32x4_t; 4];
type Bytes = [uint8x16_t; 4];

impl<D: Dots> Neon<D> {
    /// The proof, if it does.
    #[inline]
    pub(crate) fn detect() -> Option<Self> {
        let all = is_aarch64_feature_detected!("neon") && D::detect();
        all.then_some(Self(PhantomData))
    }
}

/// One expression for each of the four registers, with a constant index.
macro_rules! quarters {
    ($q:ident => $body:expr) => {
        [
            quarters!($q = 0, $body),
            quarters!($q = 1, $body),
            quarters!($q = 2, $body),
            quarters!($q = 3, $body),
        ]
    };
    ($q:ident = $index:literal, $body:expr) => {{
        #[allow(non_upper_case_globals)]
        const $q: usize = $index;
        $body
    }};
}
use quarters;

/// `a > b ? a : b`.
#[inline(always)]
fn max4(a: float32x4_t, b: float32x4_t) -> float32x4_t {
    // SAFETY: this architecture always has NEON.
    unsafe { vbslq_f32(vcgtq_f32(a, b), a, b) }
}

/// The upper half on the lower one.
#[inline(always)]
fn swap(a: float32x4_t) -> float32x4_t {
    // SAFETY: this architecture always has NEON.
    unsafe { vextq_f32::<2>(a, a) }
}

/// The nearest bf16 in the upper halves, ties to even, zero below the smallest one that is kept.
#[inline(always)]
fn nearest(a: float32x4_t) -> uint32x4_t {
    // SAFETY: this architecture always has NEON.
    unsafe {
        let bits = vreinterpretq_u32_f32(a);
        let last = vandq_u32(vshrq_n_u32::<16>(bits), vdupq_n_u32(1));
        let up = vaddq_u32(vaddq_u32(bits, vdupq_n_u32(0x7fff)), last);
        let up = vbslq_u32(vceqq_f32(a, a), up, vdupq_n_u32(f32::NAN.to_bits()));
        let smallest = vdupq_n_f32(tangor_device::rounding::SMALLEST_BF16);
        odd(vbicq_u32(up, vcltq_f32(vabsq_f32(a), smallest)))
    }
}

/// The upper halves of all lanes.
#[inline(always)]
fn odd(a: uint32x4_t) -> uint32x4_t {
    // SAFETY: this architecture always has NEON.
    unsafe { vandq_u32(a, vdupq_n_u32(0xffff_0000)) }
}

/// The lower halves of all lanes.
#[inline(always)]
fn even(a: uint32x4_t) -> uint32x4_t {
    // SAFETY: this architecture always has NEON.
    unsafe { vshlq_n_u32::<16>(a) }
}

#[allow(clippy::cast_possible_truncation, clippy::cast_possible_wrap)]
impl<D: Dots> Simd for Neon<D> {
    type F32 = F;
    type I32 = I;
    type Codes = Bytes;
    /// The even elements and the odd ones.
    type Pairs = [F; 2];
    type Acc4 = D::Acc4;
    type Acc8 = D::Acc8;
    const WIDE: bool = false;
    const LONG_SUMS: bool = D::LONG_SUMS;
    const SHIFT8: i32 = 128;
    const ROWS: usize = 5;
    const DOT_ROWS: usize = D::ROWS;

    #[inline]
    fn run<O: Op>(self, op: O) -> O::Output {
        // SAFETY: `self` proves that the processor has the instructions.
        unsafe { D::enabled(self, op) }
    }

    #[inline(always)]
    fn splat(self, x: f32) -> F {
        // SAFETY: `self` proves that the processor has the instructions.
        unsafe { [vdupq_n_f32(x); 4] }
    }
    #[inline(always)]
    fn add(self, a: F, b: F) -> F {
        // SAFETY: `self` proves that the processor has the instructions.
        unsafe { quarters!(q => vaddq_f32(a[q], b[q])) }
    }
    #[inline(always)]
    fn sub(self, a: F, b: F) -> F {
        // SAFETY: `self` proves that the processor has the instructions.
        unsafe { quarters!(q => vsubq_f32(a[q], b[q])) }
    }
    #[inline(always)]
    fn mul(self, a: F, b: F) -> F {
        // SAFETY: `self` proves that the processor has the instructions.
        unsafe { quarters!(q => vmulq_f32(a[q], b[q])) }
    }
    #[inline(always)]
    fn div(self, a: F, b: F) -> F {
        // SAFETY: `self` proves that the processor has the instructions.
        unsafe { quarters!(q => vdivq_f32(a[q], b[q])) }
    }
    #[inline(always)]
    fn max(self, a: F, b: F) -> F {
        quarters!(q => max4(a[q], b[q]))
    }
    #[inline(always)]
    fn min(self, a: F, b: F) -> F {
        // SAFETY: `self` proves that the processor has the instructions.
        unsafe { quarters!(q => vbslq_f32(vcltq_f32(a[q], b[q]), a[q], b[q])) }
    }
    #[inline(always)]
    fn abs(self, a: F) -> F {
        // SAFETY: `self` proves that the processor has the instructions.
        unsafe { quarters!(q => vabsq_f32(a[q])) }
    }
    #[inline(always)]
    fn fma(self, a: F, b: F, c: F) -> F {
        // SAFETY: `self` proves that the processor has the instructions.
        unsafe { quarters!(q => vfmaq_f32(c[q], a[q], b[q])) }
    }
    #[inline(always)]
    fn fnma(self, a: F, b: F, c: F) -> F {
        // SAFETY: `self` proves that the processor has the instructions.
        unsafe { quarters!(q => vfmsq_f32(c[q], a[q], b[q])) }
    }
    #[inline(always)]
    fn round(self, a: F) -> F {
        // SAFETY: `self` proves that the processor has the instructions.
        unsafe { quarters!(q => vrndnq_f32(a[q])) }
    }
    #[inline(always)]
    fn scale2(self, a: F, n: F) -> F {
        // SAFETY: `self` proves that the processor has the instructions.
        unsafe {
            let bias = vdupq_n_s32(127);
            quarters!(q => {
                let power = vshlq_n_s32::<23>(vaddq_s32(vcvtnq_s32_f32(n[q]), bias));
                vmulq_f32(a[q], vreinterpretq_f32_s32(power))
            })
        }
    }
    #[inline(always)]
    fn first(self, n: usize, a: F, b: F) -> F {
        const LANES: [u32; 4] = [0, 1, 2, 3];
        // SAFETY: `self` proves that the processor has the instructions; four lanes are read.
        unsafe {
            let (lanes, n) = (vld1q_u32(LANES.as_ptr()), vdupq_n_u32(n.min(16) as u32));
            quarters!(q => {
                let lanes = vaddq_u32(lanes, vdupq_n_u32(4 * q as u32));
                vbslq_f32(vcltq_u32(lanes, n), a[q], b[q])
            })
        }
    }
    #[inline(always)]
    fn zero_below(self, x: F, limit: f32, a: F) -> F {
        // SAFETY: `self` proves that the processor has the instructions.
        unsafe {
            let limit = vdupq_n_f32(limit);
            quarters!(q => {
                let kept = vbicq_u32(vreinterpretq_u32_f32(a[q]), vcltq_f32(x[q], limit));
                vreinterpretq_f32_u32(kept)
            })
        }
    }
    #[inline(always)]
    fn copy_sign(self, a: F, b: F) -> F {
        // SAFETY: `self` proves that the processor has the instructions.
        unsafe {
            let sign = vdupq_n_u32(1 << 31);
            quarters!(q => vbslq_f32(sign, b[q], a[q]))
        }
    }
    #[inline(always)]
    fn sum(self, a: F) -> f32 {
        // SAFETY: `self` proves that the processor has the instructions.
        unsafe {
            let b = vaddq_f32(vaddq_f32(a[0], a[2]), vaddq_f32(a[1], a[3]));
            let c = vaddq_f32(b, swap(b));
            vgetq_lane_f32::<0>(c) + vgetq_lane_f32::<1>(c)
        }
    }
    #[inline(always)]
    fn greatest(self, a: F) -> f32 {
        // SAFETY: `self` proves that the processor has the instructions.
        unsafe {
            let b = max4(max4(a[0], a[2]), max4(a[1], a[3]));
            let c = max4(b, swap(b));
            let (c0, c1) = (vgetq_lane_f32::<0>(c), vgetq_lane_f32::<1>(c));
            if c0 > c1 { c0 } else { c1 }
        }
    }
    #[inline(always)]
    fn greatest_abs(self, a: F, b: F) -> f32 {
        let (a, b) = (self.abs(a), self.abs(b));
        // SAFETY: `self` proves that the processor has the instructions.
        unsafe {
            let both: [uint32x4_t; 4] = quarters!(q => {
                vmaxq_u32(vreinterpretq_u32_f32(a[q]), vreinterpretq_u32_f32(b[q]))
            });
            let halves = vmaxq_u32(vmaxq_u32(both[0], both[1]), vmaxq_u32(both[2], both[3]));
            f32::from_bits(vmaxvq_u32(halves))
        }
    }
    #[inline(always)]
    fn to_i32(self, a: F) -> I {
        // SAFETY: `self` proves that the processor has the instructions.
        unsafe { quarters!(q => vcvtnq_s32_f32(a[q])) }
    }
    #[inline(always)]
    fn to_f32(self, a: I) -> F {
        // SAFETY: `self` proves that the processor has the instructions.
        unsafe { quarters!(q => vcvtq_f32_s32(a[q])) }
    }
    #[inline(always)]
    fn sum_i32(self, a: I) -> i32 {
        // SAFETY: `self` proves that the processor has the instructions.
        unsafe { vaddvq_s32(vaddq_s32(vaddq_s32(a[0], a[1]), vaddq_s32(a[2], a[3]))) }
    }
    #[inline(always)]
    fn add_i32(self, a: I, b: I) -> I {
        // SAFETY: `self` proves that the processor has the instructions.
        unsafe { quarters!(q => vaddq_s32(a[q], b[q])) }
    }
    #[inline(always)]
    unsafe fn load(self, p: *const f32) -> F {
        // SAFETY: the caller vouches for the pointer, `self` for the instructions.
        unsafe { quarters!(q => vld1q_f32(p.add(4 * q))) }
    }
    #[inline(always)]
    unsafe fn store(self, p: *mut f32, a: F) {
        // SAFETY: the caller vouches for the pointer, `self` for the instructions.
        unsafe {
            quarters!(q => vst1q_f32(p.add(4 * q), a[q]));
        }
    }
    #[inline(always)]
    unsafe fn load_f16(self, p: *const u16) -> F {
        // SAFETY: the caller vouches for the pointer, `self` for the instructions.
        unsafe { quarters!(q => vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p.add(4 * q))))) }
    }
    #[inline(always)]
    unsafe fn load_bf16(self, p: *const u16) -> F {
        // SAFETY: the caller vouches for the pointer, `self` for the instructions.
        unsafe { quarters!(q => vreinterpretq_f32_u32(vshll_n_u16::<16>(vld1_u16(p.add(4 * q))))) }
    }
    #[inline(always)]
    unsafe fn store_bf16(self, p: *mut u16, a: F) {
        // SAFETY: the caller vouches for the pointer, `self` for the instructions.
        unsafe {
            quarters!(q => vst1_u16(p.add(4 * q), vshrn_n_u32::<16>(nearest(a[q]))));
        }
    }
    #[inline(always)]
    unsafe fn load_pairs(self, p: *const u16) -> [F; 2] {
        // SAFETY: the caller vouches for the pointer, `self` for the instructions.
        unsafe {
            let both: [uint32x4_t; 4] =
                quarters!(q => vreinterpretq_u32_u16(vld1q_u16(p.add(8 * q))));
            [
                quarters!(q => vreinterpretq_f32_u32(even(both[q]))),
                quarters!(q => vreinterpretq_f32_u32(odd(both[q]))),
            ]
        }
    }
    #[inline(always)]
    unsafe fn store_pairs(self, p: *mut u16, a: [F; 2]) {
        // SAFETY: the caller vouches for the pointer, `self` for the instructions.
        unsafe {
            quarters!(q => {
                let odd = vreinterpretq_u32_f32(a[1][q]);
                let both = vsriq_n_u32::<16>(odd, vreinterpretq_u32_f32(a[0][q]));
                vst1q_u16(p.add(8 * q), vreinterpretq_u16_u32(both));
            });
        }
    }
    #[inline(always)]
    unsafe fn splat_pair(self, p: *const u16) -> [F; 2] {
        // SAFETY: the caller vouches for the pointer, `self` for the instructions.
        unsafe {
            let both = vdupq_n_u32(p.cast::<u32>().read_unaligned());
            [[vreinterpretq_f32_u32(even(both)); 4], [vreinterpretq_f32_u32(odd(both)); 4]]
        }
    }
    #[inline(always)]
    fn pairs(self, even: F, odd: F) -> [F; 2] {
        // SAFETY: `self` proves that the processor has the instructions.
        unsafe {
            [
                quarters!(q => vreinterpretq_f32_u32(nearest(even[q]))),
                quarters!(q => vreinterpretq_f32_u32(nearest(odd[q]))),
            ]
        }
    }
    #[inline(always)]
    fn dot_pairs(self, acc: F, a: [F; 2], b: [F; 2]) -> F {
        self.fma(a[0], b[0], self.fma(a[1], b[1], acc))
    }
    #[inline(always)]
    unsafe fn load_i8(self, p: *const i8) -> F {
        // SAFETY: the caller vouches for the pointer, `self` for the instructions.
        unsafe {
            let bytes = vld1q_s8(p);
            let (low, high) = (vmovl_s8(vget_low_s8(bytes)), vmovl_high_s8(bytes));
            self.to_f32([
                vmovl_s16(vget_low_s16(low)),
                vmovl_high_s16(low),
                vmovl_s16(vget_low_s16(high)),
                vmovl_high_s16(high),
            ])
        }
    }
    #[inline(always)]
    unsafe fn load_u8(self, p: *const u8) -> F {
        // SAFETY: the caller vouches for the pointer, `self` for the instructions.
        unsafe {
            let bytes = vld1q_u8(p);
            let (low, high) = (vmovl_u8(vget_low_u8(bytes)), vmovl_high_u8(bytes));
            [
                vcvtq_f32_u32(vmovl_u16(vget_low_u16(low))),
                vcvtq_f32_u32(vmovl_high_u16(low)),
                vcvtq_f32_u32(vmovl_u16(vget_low_u16(high))),
                vcvtq_f32_u32(vmovl_high_u16(high)),
            ]
        }
    }
    #[inline(always)]
    unsafe fn store_f16(self, p: *mut u16, a: F) {
        // SAFETY: the caller vouches for the pointer, `self` for the instructions.
        unsafe {
            quarters!(q => vst1_u16(p.add(4 * q), vreinterpret_u16_f16(vcvt_f16_f32(a[q]))));
        }
    }
    #[inline(always)]
    unsafe fn sum_i8(self, p: *const i8) -> [i32; 2] {
        // SAFETY: the caller vouches for the pointer, `self` for the instructions.
        unsafe { [vaddlvq_s8(vld1q_s8(p)).into(), vaddlvq_s8(vld1q_s8(p.add(16))).into()] }
    }
    #[inline(always)]
    unsafe fn store_i8(self, p: *mut i8, a: I) {
        // SAFETY: the caller vouches for the pointer, `self` for the instructions.
        unsafe {
            let low = vmovn_high_s32(vmovn_s32(a[0]), a[1]);
            let high = vmovn_high_s32(vmovn_s32(a[2]), a[3]);
            vst1q_s8(p, vmovn_high_s16(vmovn_s16(low), high));
        }
    }
    #[inline(always)]
    fn prefetch(self, p: *const u8) {
        // SAFETY: a prefetch reads nothing that the program could see, and does not fault.
        unsafe { asm!("prfm pldl2keep, [{}]", in(reg) p, options(nostack, preserves_flags)) }
    }
    #[inline(always)]
    unsafe fn codes(self, p: *const u8) -> Bytes {
        // SAFETY: the caller vouches for the pointer, `self` for the instructions.
        unsafe { quarters!(q => vld1q_u8(p.add(16 * q))) }
    }
    #[inline(always)]
    unsafe fn put_codes(self, p: *mut u8, w: Bytes) {
        // SAFETY: the caller vouches for the pointer, `self` for the instructions.
        unsafe {
            quarters!(q => vst1q_u8(p.add(16 * q), w[q]));
        }
    }
    #[inline(always)]
    fn low(self, w: Bytes) -> Bytes {
        // SAFETY: `self` proves that the processor has the instructions.
        unsafe {
            let mask = vdupq_n_u8(15);
            quarters!(q => vandq_u8(w[q], mask))
        }
    }
    #[inline(always)]
    fn high(self, w: Bytes) -> Bytes {
        // SAFETY: `self` proves that the processor has the instructions.
        unsafe { quarters!(q => vshrq_n_u8::<4>(w[q])) }
    }
    #[inline(always)]
    fn join(self, low: Bytes, plane: Bytes, up: i32, mask: u8) -> Bytes {
        // SAFETY: `self` proves that the processor has the instructions.
        unsafe {
            let (up, mask) = (vdupq_n_s8(up as i8), vdupq_n_u8(mask));
            quarters!(q => vorrq_u8(low[q], vandq_u8(vshlq_u8(plane[q], up), mask)))
        }
    }
    #[inline(always)]
    fn code_f32(self, w: Bytes, index: usize) -> F {
        // SAFETY: `self` proves that the processor has the instructions.
        unsafe {
            let (by, byte) = (vdupq_n_s32(-8 * index as i32), vdupq_n_u32(255));
            quarters!(q => {
                let shifted = vshlq_u32(vreinterpretq_u32_u8(w[q]), by);
                vcvtq_f32_u32(vandq_u32(shifted, byte))
            })
        }
    }
    #[inline(always)]
    fn start4(self, bias: i32) -> D::Acc4 {
        // SAFETY: `self` proves that the processor has the instructions.
        unsafe { D::start4(bias) }
    }
    #[inline(always)]
    unsafe fn dot4(self, acc: D::Acc4, w: Bytes, a: *const i8) -> D::Acc4 {
        // SAFETY: the caller vouches for the pointer, `self` for the instructions.
        unsafe { D::dot4(acc, quarters!(q => vreinterpretq_s8_u8(w[q])), a) }
    }
    #[inline(always)]
    fn total4(self, acc: D::Acc4, bias: i32) -> I {
        // SAFETY: `self` proves that the processor has the instructions.
        unsafe { D::total4(acc, bias) }
    }
    #[inline(always)]
    fn start8(self, bias: i32) -> D::Acc8 {
        // SAFETY: `self` proves that the processor has the instructions.
        unsafe { D::start8(bias) }
    }
    #[inline(always)]
    unsafe fn dot8(self, acc: D::Acc8, w: Bytes, a: *const i8) -> D::Acc8 {
        // SAFETY: the caller vouches for the pointer, `self` for the instructions.
        unsafe {
            let shift = vdupq_n_u8(128);
            D::dot8(acc, quarters!(q => vreinterpretq_s8_u8(veorq_u8(w[q], shift))), a)
        }
    }
    #[inline(always)]
    fn total8(self, acc: D::Acc8, bias: i32) -> I {
        // SAFETY: `self` proves that the processor has the instructions.
        unsafe { D::total8(acc, bias) }
    }
}
