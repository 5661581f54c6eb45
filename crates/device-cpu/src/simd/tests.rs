//! Every operation of every instruction set against plain Rust, bit by bit, where kernels rarely
//! go: infinities, NaNs, zeros of both signs, the greatest products.

use super::{LANES, Op, Simd, Uses, dispatch, math};
use crate::isa::Isa;

/// What sixteen lanes are made of; shifted against each other in every way.
const SPECIAL: [f32; 19] = [
    0.0,
    -0.0,
    1.0,
    -1.0,
    0.5,
    -2.5,
    3.5,
    1e-3,
    -1e-20,
    1e-40,
    127.0,
    -126.0,
    65504.0,
    -70000.0,
    1e9,
    -3e38,
    f32::INFINITY,
    f32::NEG_INFINITY,
    f32::NAN,
];

fn same_on_all<O: Op<Output = Vec<u32>>>(op: impl Fn() -> O) {
    let want = dispatch(Isa::Portable, op());
    for isa in Isa::available() {
        let got = dispatch(isa, op());
        let differs = got.iter().zip(&want).position(|(a, b)| a != b);
        assert!(differs.is_none() && got.len() == want.len(), "{isa}: value {differs:?}");
    }
}

/// One NaN is as good as another.
fn bits(x: f32) -> u32 {
    if x.is_nan() { f32::NAN.to_bits() } else { x.to_bits() }
}

#[inline(always)]
fn put<S: Simd>(s: S, out: &mut Vec<u32>, a: S::F32) {
    let mut lanes = [0.0; LANES];
    // SAFETY: there is room for 16 elements.
    unsafe { s.store(lanes.as_mut_ptr(), a) };
    out.extend(lanes.map(bits));
}

#[inline(always)]
fn put_i32<S: Simd>(s: S, out: &mut Vec<u32>, a: S::I32) {
    // All of them are small enough to be exact.
    put(s, out, s.to_f32(a));
}

/// Arithmetic on all shifts of the special values.
struct Floats;

impl Op for Floats {
    type Output = Vec<u32>;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> Vec<u32> {
        let mut out = Vec::new();
        let lanes = |shift: usize| -> [f32; LANES] {
            std::array::from_fn(|lane| SPECIAL[(lane + shift) % SPECIAL.len()])
        };
        for shift in 0..SPECIAL.len() * SPECIAL.len() {
            let (first, second) = (lanes(shift), lanes(shift / SPECIAL.len()));
            // SAFETY: both have 16 elements.
            let (a, b) = unsafe { (s.load(first.as_ptr()), s.load(second.as_ptr())) };
            let half = s.splat(0.3);
            for result in [
                s.add(a, b),
                s.sub(a, b),
                s.mul(a, b),
                s.div(a, b),
                s.max(a, b),
                s.min(a, b),
                s.abs(a),
                s.fma(a, b, half),
                s.fnma(a, half, b),
                s.round(a),
                s.first(shift % 18, a, b),
                s.zero_below(a, -1.0, b),
                s.copy_sign(a, b),
            ] {
                put(s, &mut out, result);
            }
            out.push(bits(s.sum(a)));
            let finite = |lanes: [f32; LANES]| lanes.iter().all(|x| x.is_finite());
            let greatest = s.greatest_abs(a, b);
            if finite(first) && finite(second) {
                out.push(bits(greatest));
                // Zeros of either sign are as good as each other.
                out.push(bits(s.greatest(a) + 0.0));
            } else {
                out.push(greatest.is_finite().into());
            }
            let small = s.max(s.min(a, s.splat(127.0)), s.splat(-126.0));
            put(s, &mut out, s.scale2(s.splat(1.25), s.round(small)));
            put_i32(s, &mut out, s.to_i32(small));
        }
        out
    }
}

#[test]
fn arithmetic_is_the_same() {
    same_on_all(|| Floats);
}

/// 2 to these powers.
struct Powers<'a>(&'a [[f32; LANES]]);

impl Op for Powers<'_> {
    type Output = Vec<u32>;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> Vec<u32> {
        let mut out = Vec::new();
        for x in self.0 {
            // SAFETY: 16 elements.
            put(s, &mut out, math::exp2(s, unsafe { s.load(x.as_ptr()) }));
        }
        out
    }
}

#[test]
fn powers_of_two_are_the_same_and_right() {
    let special = [-50.0, -50.000_004, -49.5, -126.0, -200.0, -3e38, f32::NEG_INFINITY, -0.0, 0.0];
    let mut all: Vec<f32> = (0_u16..=60_000).map(|i| f32::from(i) * -1e-3).collect();
    all.extend(special);
    all.push(f32::NAN);
    all.resize(all.len().next_multiple_of(LANES), -1e-30);
    let (x, _) = all.as_chunks::<LANES>();
    same_on_all(|| Powers(x));
    for (x, y) in all.iter().zip(dispatch(Isa::Portable, Powers(x))) {
        let (y, want) = (f64::from(f32::from_bits(y)), f64::from(*x).exp2());
        let right = match *x {
            x if x.is_nan() => y.is_nan(),
            x if x < -50.0 => y == 0.0,
            _ => ((y - want) / want).abs() < 4e-6,
        };
        assert!(right, "2^{x} is {want}, not {y}");
    }
}

/// All halves to `f32`, and `f32` around all halves to halves.
struct Halves;

impl Op for Halves {
    type Output = Vec<u32>;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> Vec<u32> {
        let mut out = Vec::new();
        let mut halves = [0_u16; LANES];
        for first in (0..=u16::MAX).step_by(LANES) {
            let numbers: [u16; LANES] = std::array::from_fn(|lane| first + lane as u16);
            // SAFETY: all arrays have 16 elements.
            unsafe {
                let wide = s.load_f16(numbers.as_ptr());
                put(s, &mut out, wide);
                put(s, &mut out, s.load_bf16(numbers.as_ptr()));
                for factor in [1.0, 1.000_244, 1.000_488_3, 0.999_7] {
                    s.store_f16(halves.as_mut_ptr(), s.mul(wide, s.splat(factor)));
                    // One NaN is as good as another.
                    let nan = |half: u16| half & 0x7fff > 0x7c00;
                    out.extend(halves.map(|x| if nan(x) { 0x7e00 } else { u32::from(x) }));
                }
            }
        }
        out
    }
}

#[test]
fn halves_are_the_same() {
    same_on_all(|| Halves);
}

/// Pairs of the special values: rounded, stored, read again and multiplied; with `PAIRS` as
/// [`Uses::Pairs`] has it.
struct Paired<const PAIRS: bool>;

impl<const PAIRS: bool> Op for Paired<PAIRS> {
    type Output = Vec<u32>;
    const USES: Uses = if PAIRS { Uses::Pairs } else { Uses::Floats };

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> Vec<u32> {
        let mut out = Vec::new();
        let mut halves = [0_u16; 2 * LANES];
        // One NaN is as good as another.
        let half = |half: u16| u32::from(if half & 0x7fff > 0x7f80 { 0x7fc0 } else { half });
        let lanes = |shift: usize, factor: f32| -> [f32; LANES] {
            std::array::from_fn(|lane| SPECIAL[(lane + shift) % SPECIAL.len()] * factor)
        };
        for shift in 0..SPECIAL.len() * SPECIAL.len() {
            for factor in [1.0, 1.003_906_3, 1.011_718_8, 0.996] {
                let even = lanes(shift, factor);
                let odd = lanes(shift / SPECIAL.len(), factor);
                // SAFETY: all arrays have 16 elements, or 32 halves.
                unsafe {
                    let (even, odd) = (s.load(even.as_ptr()), s.load(odd.as_ptr()));
                    s.store_bf16(halves.as_mut_ptr(), even);
                    s.store_bf16(halves.as_mut_ptr().add(LANES), odd);
                    out.extend(halves.map(half));
                    let pairs = s.pairs(even, odd);
                    s.store_pairs(halves.as_mut_ptr(), pairs);
                    out.extend(halves.map(half));
                    let again = s.load_pairs(halves.as_ptr());
                    let one = s.splat_pair(halves.as_ptr().add(2 * (shift % LANES)));
                    let sum = s.dot_pairs(s.splat(0.0), pairs, again);
                    put(s, &mut out, sum);
                    put(s, &mut out, s.dot_pairs(sum, pairs, one));
                    put(s, &mut out, s.dot_pairs(s.splat(-3.0), again, one));
                }
            }
        }
        out
    }
}

#[test]
fn pairs_and_their_dot_products_are_the_same() {
    same_on_all(|| Paired::<false>);
    same_on_all(|| Paired::<true>);
}

/// Bytes in and out, and sums of the greatest products that the accumulators have to hold.
struct Integers;

impl Op for Integers {
    type Output = Vec<u32>;
    const USES: Uses = Uses::Dots;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> Vec<u32> {
        let mut out = Vec::new();
        let codes = |of: fn(usize) -> u8| -> [u8; 64] { std::array::from_fn(of) };
        let patterns = [
            codes(|i| (i * 37 + 5) as u8),
            codes(|_| 255),
            codes(|i| if i % 4 == 1 { 0 } else { 128 }),
            codes(|i| 127 + (i % 2) as u8),
        ];
        let digits: [[i8; 4]; 5] =
            [[1, -2, 3, -4], [127; 4], [-127; 4], [127, -127, 127, -127], [0, 64, -1, 127]];
        for pattern in &patterns {
            // SAFETY: patterns have 64 bytes, digits four, and what is written 16.
            unsafe {
                let w = s.codes(pattern.as_ptr());
                for index in 0..4 {
                    put(s, &mut out, s.code_f32(w, index));
                }
                let plane = s.codes(patterns[0].as_ptr());
                let fifth_bits = (-3..=4).map(|up| (up, 0x10));
                for (up, mask) in fifth_bits.chain((-2..=4).map(|up| (up, 0x30))) {
                    let joined = s.join(s.low(w), plane, up, mask);
                    for index in 0..4 {
                        put(s, &mut out, s.code_f32(joined, index));
                    }
                }
                out.extend(s.sum_i8(pattern.as_ptr().cast()).map(i32::cast_unsigned));
                put(s, &mut out, s.load_u8(pattern.as_ptr()));
                put(s, &mut out, s.load_i8(pattern.as_ptr().cast()));
                for digits in &digits {
                    let bias = -1234;
                    let (mut low, mut high) = (s.start4(bias), s.start4(0));
                    let mut eight = s.start8(bias);
                    for _ in 0..8 {
                        low = s.dot4(low, s.low(w), digits.as_ptr());
                        high = s.dot4(high, s.high(w), digits.as_ptr());
                        eight = s.dot8(eight, w, digits.as_ptr());
                    }
                    let (low, high) = (s.total4(low, bias), s.total4(high, 0));
                    put_i32(s, &mut out, low);
                    put_i32(s, &mut out, s.add_i32(low, high));
                    out.push(s.sum_i32(high).cast_unsigned());
                    // What was taken off the codes, put back.
                    let sum: i32 = digits.iter().map(|&x| 8 * i32::from(x)).sum();
                    let total: S::I32 = s.total8(eight, bias);
                    let shift = s.to_i32(s.splat((S::SHIFT8 * sum) as f32));
                    put_i32(s, &mut out, s.add_i32(total, shift));
                    let mut bytes = [0_i8; LANES];
                    s.store_i8(bytes.as_mut_ptr(), s.to_i32(s.load_i8(pattern.as_ptr().cast())));
                    out.extend(bytes.map(|x| i32::from(x).cast_unsigned()));
                }
            }
        }
        out
    }
}

#[test]
fn bytes_and_their_dot_products_are_the_same() {
    same_on_all(|| Integers);
}
