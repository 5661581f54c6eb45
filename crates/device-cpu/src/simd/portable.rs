//! Plain Rust: what every instruction set must equal, bit by bit.

use super::{LANES, Op, Simd};
use half::{bf16, f16};
use std::array::from_fn;
use tangor_device::rounding::round_bf16;

/// Plain Rust.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Portable;

type F = [f32; LANES];
type I = [i32; LANES];

#[inline(always)]
fn map2(a: F, b: F, f: impl Fn(f32, f32) -> f32) -> F {
    from_fn(|i| f(a[i], b[i]))
}

/// Folds halves onto each other until one lane is left.
#[inline(always)]
fn fold<T: Copy>(mut a: [T; LANES], f: impl Fn(T, T) -> T) -> T {
    let mut width = LANES / 2;
    while width > 0 {
        for i in 0..width {
            a[i] = f(a[i], a[i + width]);
        }
        width /= 2;
    }
    a[0]
}

#[inline(always)]
unsafe fn dot(acc: I, w: [u8; 64], a: *const i8) -> I {
    // SAFETY: the caller has four bytes at `a`.
    let a: [i8; 4] = unsafe { a.cast::<[i8; 4]>().read_unaligned() };
    from_fn(|i| {
        let products = (0..4).map(|j| i32::from(w[4 * i + j]) * i32::from(a[j]));
        acc[i] + products.sum::<i32>()
    })
}

#[allow(clippy::cast_possible_truncation, clippy::cast_precision_loss)]
impl Simd for Portable {
    type F32 = F;
    type I32 = I;
    type Codes = [u8; 64];
    /// The even elements and the odd ones.
    type Pairs = [F; 2];
    type Acc4 = I;
    type Acc8 = I;
    const WIDE: bool = false;
    const LONG_SUMS: bool = true;
    const SHIFT8: i32 = 0;
    const ROWS: usize = 1;
    const DOT_ROWS: usize = 1;

    #[inline(never)]
    fn run<O: Op>(self, op: O) -> O::Output {
        op.run(self)
    }

    #[inline(always)]
    fn splat(self, x: f32) -> F {
        [x; LANES]
    }
    #[inline(always)]
    fn add(self, a: F, b: F) -> F {
        map2(a, b, |a, b| a + b)
    }
    #[inline(always)]
    fn sub(self, a: F, b: F) -> F {
        map2(a, b, |a, b| a - b)
    }
    #[inline(always)]
    fn mul(self, a: F, b: F) -> F {
        map2(a, b, |a, b| a * b)
    }
    #[inline(always)]
    fn div(self, a: F, b: F) -> F {
        map2(a, b, |a, b| a / b)
    }
    #[inline(always)]
    fn max(self, a: F, b: F) -> F {
        map2(a, b, |a, b| if a > b { a } else { b })
    }
    #[inline(always)]
    fn min(self, a: F, b: F) -> F {
        map2(a, b, |a, b| if a < b { a } else { b })
    }
    #[inline(always)]
    fn abs(self, a: F) -> F {
        a.map(f32::abs)
    }
    #[inline(always)]
    fn fma(self, a: F, b: F, c: F) -> F {
        from_fn(|i| a[i].mul_add(b[i], c[i]))
    }
    #[inline(always)]
    fn fnma(self, a: F, b: F, c: F) -> F {
        from_fn(|i| (-a[i]).mul_add(b[i], c[i]))
    }
    #[inline(always)]
    fn round(self, a: F) -> F {
        a.map(f32::round_ties_even)
    }
    #[inline(always)]
    fn scale2(self, a: F, n: F) -> F {
        let power = |n: f32| f32::from_bits((n as i32).wrapping_add(127).cast_unsigned() << 23);
        map2(a, n, |a, n| a * power(n))
    }
    #[inline(always)]
    fn first(self, n: usize, a: F, b: F) -> F {
        from_fn(|i| if i < n { a[i] } else { b[i] })
    }
    #[inline(always)]
    fn zero_below(self, x: F, limit: f32, a: F) -> F {
        map2(x, a, |x, a| if x < limit { 0.0 } else { a })
    }
    #[inline(always)]
    fn copy_sign(self, a: F, b: F) -> F {
        map2(a, b, f32::copysign)
    }
    #[inline(always)]
    fn sum(self, a: F) -> f32 {
        fold(a, |a, b| a + b)
    }
    #[inline(always)]
    fn greatest(self, a: F) -> f32 {
        fold(a, |a, b| if a > b { a } else { b })
    }
    #[inline(always)]
    fn greatest_abs(self, a: F, b: F) -> f32 {
        let bits = |x: F| x.map(|x| x.abs().to_bits());
        f32::from_bits(fold(bits(a), u32::max).max(fold(bits(b), u32::max)))
    }

    #[inline(always)]
    fn to_i32(self, a: F) -> I {
        a.map(|x| x.round_ties_even() as i32)
    }
    #[inline(always)]
    fn to_f32(self, a: I) -> F {
        a.map(|x| x as f32)
    }
    #[inline(always)]
    fn add_i32(self, a: [i32; LANES], b: [i32; LANES]) -> [i32; LANES] {
        std::array::from_fn(|i| a[i] + b[i])
    }
    #[inline(always)]
    fn sum_i32(self, a: I) -> i32 {
        a.iter().sum()
    }

    #[inline(always)]
    unsafe fn load(self, p: *const f32) -> F {
        // SAFETY: the caller has 16 elements at `p`.
        unsafe { p.cast::<F>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn store(self, p: *mut f32, a: F) {
        // SAFETY: the caller has room for 16 elements at `p`.
        unsafe { p.cast::<F>().write_unaligned(a) }
    }
    #[inline(always)]
    unsafe fn load_f16(self, p: *const u16) -> F {
        // SAFETY: the caller has 16 elements at `p`.
        let bits = unsafe { p.cast::<[u16; LANES]>().read_unaligned() };
        bits.map(|x| f16::from_bits(x).to_f32())
    }
    #[inline(always)]
    unsafe fn load_bf16(self, p: *const u16) -> F {
        // SAFETY: the caller has 16 elements at `p`.
        let bits = unsafe { p.cast::<[u16; LANES]>().read_unaligned() };
        bits.map(|x| bf16::from_bits(x).to_f32())
    }
    #[inline(always)]
    unsafe fn store_bf16(self, p: *mut u16, a: F) {
        let halves = a.map(|x| bf16::from_f32(round_bf16(x)).to_bits());
        // SAFETY: the caller has room for 16 elements at `p`.
        unsafe { p.cast::<[u16; LANES]>().write_unaligned(halves) }
    }
    #[inline(always)]
    unsafe fn load_pairs(self, p: *const u16) -> [F; 2] {
        // SAFETY: the caller has 32 elements at `p`.
        let pairs = unsafe { p.cast::<[[u16; 2]; LANES]>().read_unaligned() };
        [0, 1].map(|half| pairs.map(|pair| bf16::from_bits(pair[half]).to_f32()))
    }
    #[inline(always)]
    unsafe fn store_pairs(self, p: *mut u16, a: [F; 2]) {
        let half = |x: f32| bf16::from_f32(x).to_bits();
        let pairs: [[u16; 2]; LANES] = from_fn(|i| [half(a[0][i]), half(a[1][i])]);
        // SAFETY: the caller has room for 32 elements at `p`.
        unsafe { p.cast::<[[u16; 2]; LANES]>().write_unaligned(pairs) }
    }
    #[inline(always)]
    unsafe fn splat_pair(self, p: *const u16) -> [F; 2] {
        // SAFETY: the caller has 2 elements at `p`.
        let pair = unsafe { p.cast::<[u16; 2]>().read_unaligned() };
        pair.map(|x| [bf16::from_bits(x).to_f32(); LANES])
    }
    #[inline(always)]
    fn pairs(self, even: F, odd: F) -> [F; 2] {
        [even.map(round_bf16), odd.map(round_bf16)]
    }
    #[inline(always)]
    fn dot_pairs(self, acc: F, a: [F; 2], b: [F; 2]) -> F {
        self.fma(a[0], b[0], self.fma(a[1], b[1], acc))
    }
    #[inline(always)]
    unsafe fn load_i8(self, p: *const i8) -> F {
        // SAFETY: the caller has 16 elements at `p`.
        unsafe { p.cast::<[i8; LANES]>().read_unaligned() }.map(f32::from)
    }
    #[inline(always)]
    unsafe fn load_u8(self, p: *const u8) -> F {
        // SAFETY: the caller has 16 elements at `p`.
        unsafe { p.cast::<[u8; LANES]>().read_unaligned() }.map(f32::from)
    }
    #[inline(always)]
    unsafe fn store_f16(self, p: *mut u16, a: F) {
        // SAFETY: the caller has room for 16 elements at `p`.
        unsafe { p.cast::<[u16; LANES]>().write_unaligned(a.map(|x| f16::from_f32(x).to_bits())) }
    }
    #[inline(always)]
    unsafe fn store_i8(self, p: *mut i8, a: I) {
        // SAFETY: the caller has room for 16 elements at `p`.
        unsafe { p.cast::<[i8; LANES]>().write_unaligned(a.map(|x| x as i8)) }
    }

    #[inline(always)]
    fn prefetch(self, _: *const u8) {}
    #[inline(always)]
    unsafe fn codes(self, p: *const u8) -> [u8; 64] {
        // SAFETY: the caller has 64 bytes at `p`.
        unsafe { p.cast::<[u8; 64]>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn put_codes(self, p: *mut u8, w: [u8; 64]) {
        // SAFETY: the caller has room for 64 bytes at `p`.
        unsafe { p.cast::<[u8; 64]>().write_unaligned(w) }
    }
    #[inline(always)]
    fn low(self, w: [u8; 64]) -> [u8; 64] {
        w.map(|w| w & 15)
    }
    #[inline(always)]
    fn high(self, w: [u8; 64]) -> [u8; 64] {
        w.map(|w| w >> 4)
    }
    #[inline(always)]
    fn join(self, low: [u8; 64], plane: [u8; 64], up: i32, mask: u8) -> [u8; 64] {
        let moved = |x: u8| if up < 0 { x >> -up } else { x << up };
        from_fn(|i| low[i] | (moved(plane[i]) & mask))
    }
    #[inline(always)]
    fn code_f32(self, w: [u8; 64], index: usize) -> F {
        from_fn(|i| f32::from(w[4 * i + index]))
    }
    #[inline(always)]
    fn start4(self, bias: i32) -> I {
        [bias; LANES]
    }
    #[inline(always)]
    unsafe fn dot4(self, acc: I, w: [u8; 64], a: *const i8) -> I {
        // SAFETY: the caller has four bytes at `a`.
        unsafe { dot(acc, w, a) }
    }
    #[inline(always)]
    fn total4(self, acc: I, _: i32) -> I {
        acc
    }
    #[inline(always)]
    fn start8(self, bias: i32) -> I {
        [bias; LANES]
    }
    #[inline(always)]
    unsafe fn dot8(self, acc: I, w: [u8; 64], a: *const i8) -> I {
        // SAFETY: the caller has four bytes at `a`.
        unsafe { dot(acc, w, a) }
    }
    #[inline(always)]
    fn total8(self, acc: I, _: i32) -> I {
        acc
    }
}
