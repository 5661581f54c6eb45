//! AVX2 with FMA and F16C: a vector is two registers. Bytes are multiplied in one of two ways.

mod dots;

use super::{Op, Simd};
pub(crate) use dots::{Dots, Maddubs, Vnni};
use std::arch::x86_64::*;
use std::marker::PhantomData;

/// Proof that the processor has AVX2, FMA, F16C and what `D` needs.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Avx2<D>(PhantomData<D>);

type F = [__m256; 2];
type I = [__m256i; 2];

impl<D: Dots> Avx2<D> {
    /// The proof, if it does.
    #[inline]
    pub(crate) fn detect() -> Option<Self> {
        let all = is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("fma")
            && is_x86_feature_detected!("f16c")
            && D::detect();
        all.then_some(Self(PhantomData))
    }
}

/// Sixteen lanes onto eight, eight onto four, and so on.
#[inline(always)]
unsafe fn greatest8(a: __m256) -> f32 {
    // SAFETY: the caller has AVX.
    unsafe {
        let b = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps::<1>(a));
        let c = _mm_max_ps(b, _mm_movehl_ps(b, b));
        _mm_cvtss_f32(_mm_max_ss(c, _mm_shuffle_ps::<1>(c, c)))
    }
}

/// Halves, quarters, eighths.
#[inline(always)]
unsafe fn sum8(a: __m256) -> f32 {
    // SAFETY: the caller has AVX.
    unsafe {
        let b = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps::<1>(a));
        let c = _mm_add_ps(b, _mm_movehl_ps(b, b));
        _mm_cvtss_f32(_mm_add_ss(c, _mm_shuffle_ps::<1>(c, c)))
    }
}

/// The nearest bf16, ties to even, zero below the smallest one that is kept.
#[inline(always)]
unsafe fn nearest(a: __m256) -> __m256 {
    // SAFETY: the caller has AVX2.
    unsafe {
        let bits = _mm256_castps_si256(a);
        let last = _mm256_and_si256(_mm256_srli_epi32::<16>(bits), _mm256_set1_epi32(1));
        let up = _mm256_add_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(0x7fff)), last);
        let up = _mm256_castsi256_ps(up);
        let nan = _mm256_cmp_ps::<_CMP_UNORD_Q>(a, a);
        let up = _mm256_blendv_ps(up, _mm256_set1_ps(f32::NAN), nan);
        let size = _mm256_andnot_ps(_mm256_set1_ps(-0.0), a);
        let smallest = _mm256_set1_ps(tangor_device::rounding::SMALLEST_BF16);
        let kept = _mm256_cmp_ps::<_CMP_NLT_UQ>(size, smallest);
        odd(_mm256_castps_si256(_mm256_and_ps(up, kept)))
    }
}

/// The upper halves of all lanes.
#[inline(always)]
unsafe fn odd(a: __m256i) -> __m256 {
    // SAFETY: the caller has AVX2.
    unsafe {
        let mask = _mm256_set1_epi32(0xffff_0000_u32.cast_signed());
        _mm256_castsi256_ps(_mm256_and_si256(a, mask))
    }
}

/// Even elements in the lower halves and odd ones in the upper ones.
#[inline(always)]
unsafe fn paired(even: __m256, odd: __m256) -> __m256i {
    // SAFETY: the caller has AVX2.
    unsafe {
        let even = _mm256_srli_epi32::<16>(_mm256_castps_si256(even));
        _mm256_or_si256(even, _mm256_castps_si256(odd))
    }
}

/// The lower halves of all lanes.
#[inline(always)]
unsafe fn even(a: __m256i) -> __m256 {
    // SAFETY: the caller has AVX2.
    unsafe { _mm256_castsi256_ps(_mm256_slli_epi32::<16>(a)) }
}

/// The sums of the first and of the last 16 of 32 `i8`.
///
/// # Safety
/// They are there, and the processor has AVX2.
#[inline(always)]
pub(super) unsafe fn sum_i8(p: *const i8) -> [i32; 2] {
    // SAFETY: as the caller's.
    unsafe {
        // In halves, as they have just been written.
        let codes = _mm256_castsi128_si256(_mm_loadu_si128(p.cast()));
        let codes = _mm256_inserti128_si256::<1>(codes, _mm_loadu_si128(p.add(16).cast()));
        let pairs = _mm256_maddubs_epi16(_mm256_set1_epi8(1), codes);
        let fours = _mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
        let eights = _mm256_add_epi32(fours, _mm256_shuffle_epi32::<0b11_10_11_10>(fours));
        let all = _mm256_add_epi32(eights, _mm256_shuffle_epi32::<0b01_01_01_01>(eights));
        let high = _mm256_extracti128_si256::<1>(all);
        [_mm_cvtsi128_si32(_mm256_castsi256_si128(all)), _mm_cvtsi128_si32(high)]
    }
}

/// Bits by `up` places to the left, of `-3..=4`.
#[inline(always)]
unsafe fn moved(a: __m256i, up: i32) -> __m256i {
    // SAFETY: the caller has AVX2.
    unsafe {
        match up {
            4 => _mm256_slli_epi32::<4>(a),
            3 => _mm256_slli_epi32::<3>(a),
            2 => _mm256_slli_epi32::<2>(a),
            1 => _mm256_slli_epi32::<1>(a),
            -1 => _mm256_srli_epi32::<1>(a),
            -2 => _mm256_srli_epi32::<2>(a),
            -3 => _mm256_srli_epi32::<3>(a),
            _ => a,
        }
    }
}

#[allow(clippy::cast_possible_truncation, clippy::cast_possible_wrap)]
impl<D: Dots> Simd for Avx2<D> {
    type F32 = F;
    type I32 = I;
    type Codes = I;
    /// The even elements and the odd ones.
    type Pairs = [F; 2];
    type Acc4 = D::Acc4;
    type Acc8 = D::Acc8;
    const WIDE: bool = false;
    const LONG_SUMS: bool = D::LONG_SUMS;
    const SHIFT8: i32 = 0;
    // With 6, products of pairs run out of registers.
    const ROWS: usize = 4;
    const DOT_ROWS: usize = D::ROWS;

    #[inline]
    fn run<O: Op>(self, op: O) -> O::Output {
        // SAFETY: `self` proves that the processor has the instructions.
        unsafe { D::enabled(self, op) }
    }

    #[inline(always)]
    fn splat(self, x: f32) -> F {
        // SAFETY: `self` proves that the processor has the instructions.
        unsafe { [_mm256_set1_ps(x); 2] }
    }
    #[inline(always)]
    fn add(self, a: F, b: F) -> F {
        // SAFETY: `self` proves that the processor has the instructions.
        unsafe { [_mm256_add_ps(a[0], b[0]), _mm256_add_ps(a[1], b[1])] }
    }
    #[inline(always)]
    fn sub(self, a: F, b: F) -> F {
        // SAFETY: `self` proves that the processor has the instructions.
        unsafe { [_mm256_sub_ps(a[0], b[0]), _mm256_sub_ps(a[1], b[1])] }
    }
    #[inline(always)]
    fn mul(self, a: F, b: F) -> F {
        // SAFETY: `self` proves that the processor has the instructions.
        unsafe { [_mm256_mul_ps(a[0], b[0]), _mm256_mul_ps(a[1], b[1])] }
    }
    #[inline(always)]
    fn div(self, a: F, b: F) -> F {
        // SAFETY: `self` proves that the processor has the instructions.
        unsafe { [_mm256_div_ps(a[0], b[0]), _mm256_div_ps(a[1], b[1])] }
    }
    #[inline(always)]
    fn max(self, a: F, b: F) -> F {
        // SAFETY: `self` proves that the processor has the instructions.
        unsafe { [_mm256_max_ps(a[0], b[0]), _mm256_max_ps(a[1], b[1])] }
    }
    #[inline(always)]
    fn min(self, a: F, b: F) -> F {
        // SAFETY: `self` proves that the processor has the instructions.
        unsafe { [_mm256_min_ps(a[0], b[0]), _mm256_min_ps(a[1], b[1])] }
    }
    #[inline(always)]
    fn abs(self, a: F) -> F {
        // SAFETY: `self` proves that the processor has the instructions.
        unsafe {
            let sign = _mm256_set1_ps(-0.0);
            [_mm256_andnot_ps(sign, a[0]), _mm256_andnot_ps(sign, a[1])]
        }
    }
    #[inline(always)]
    fn fma(self, a: F, b: F, c: F) -> F {
        // SAFETY: `self` proves that the processor has the instructions.
        unsafe { [_mm256_fmadd_ps(a[0], b[0], c[0]), _mm256_fmadd_ps(a[1], b[1], c[1])] }
    }
    #[inline(always)]
    fn fnma(self, a: F, b: F, c: F) -> F {
        // SAFETY: `self` proves that the processor has the instructions.
        unsafe { [_mm256_fnmadd_ps(a[0], b[0], c[0]), _mm256_fnmadd_ps(a[1], b[1], c[1])] }
    }
    #[inline(always)]
    fn round(self, a: F) -> F {
        // SAFETY: `self` proves that the processor has the instructions.
        unsafe { [_mm256_round_ps::<8>(a[0]), _mm256_round_ps::<8>(a[1])] }
    }
    #[inline(always)]
    fn scale2(self, a: F, n: F) -> F {
        // SAFETY: `self` proves that the processor has the instructions.
        unsafe {
            let bias = _mm256_set1_epi32(127);
            let low = _mm256_add_epi32(_mm256_cvtps_epi32(n[0]), bias);
            let high = _mm256_add_epi32(_mm256_cvtps_epi32(n[1]), bias);
            [
                _mm256_mul_ps(a[0], _mm256_castsi256_ps(_mm256_slli_epi32::<23>(low))),
                _mm256_mul_ps(a[1], _mm256_castsi256_ps(_mm256_slli_epi32::<23>(high))),
            ]
        }
    }
    #[inline(always)]
    fn first(self, n: usize, a: F, b: F) -> F {
        // SAFETY: `self` proves that the processor has the instructions.
        unsafe {
            let n = _mm256_set1_epi32(n.min(16) as i32);
            let lanes = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
            let low = _mm256_cmpgt_epi32(n, lanes);
            let high = _mm256_cmpgt_epi32(n, _mm256_add_epi32(lanes, _mm256_set1_epi32(8)));
            [
                _mm256_blendv_ps(b[0], a[0], _mm256_castsi256_ps(low)),
                _mm256_blendv_ps(b[1], a[1], _mm256_castsi256_ps(high)),
            ]
        }
    }
    #[inline(always)]
    fn zero_below(self, x: F, limit: f32, a: F) -> F {
        // SAFETY: `self` proves that the processor has the instructions.
        unsafe {
            let limit = _mm256_set1_ps(limit);
            [
                _mm256_andnot_ps(_mm256_cmp_ps::<_CMP_LT_OQ>(x[0], limit), a[0]),
                _mm256_andnot_ps(_mm256_cmp_ps::<_CMP_LT_OQ>(x[1], limit), a[1]),
            ]
        }
    }
    #[inline(always)]
    fn copy_sign(self, a: F, b: F) -> F {
        // SAFETY: `self` proves that the processor has the instructions.
        unsafe {
            let sign = _mm256_set1_ps(-0.0);
            [
                _mm256_or_ps(_mm256_andnot_ps(sign, a[0]), _mm256_and_ps(sign, b[0])),
                _mm256_or_ps(_mm256_andnot_ps(sign, a[1]), _mm256_and_ps(sign, b[1])),
            ]
        }
    }
    #[inline(always)]
    fn sum(self, a: F) -> f32 {
        // SAFETY: `self` proves that the processor has the instructions.
        unsafe { sum8(_mm256_add_ps(a[0], a[1])) }
    }
    #[inline(always)]
    fn greatest(self, a: F) -> f32 {
        // SAFETY: `self` proves that the processor has the instructions.
        unsafe { greatest8(_mm256_max_ps(a[0], a[1])) }
    }
    #[inline(always)]
    fn greatest_abs(self, a: F, b: F) -> f32 {
        // SAFETY: `self` proves that the processor has the instructions.
        unsafe {
            let (a, b) = (self.abs(a), self.abs(b));
            let a = _mm256_max_epi32(_mm256_castps_si256(a[0]), _mm256_castps_si256(a[1]));
            let b = _mm256_max_epi32(_mm256_castps_si256(b[0]), _mm256_castps_si256(b[1]));
            let a = _mm256_max_epi32(a, b);
            let b = _mm_max_epi32(_mm256_castsi256_si128(a), _mm256_extracti128_si256::<1>(a));
            let c = _mm_max_epi32(b, _mm_shuffle_epi32::<0b01_00_11_10>(b));
            let d = _mm_max_epi32(c, _mm_shuffle_epi32::<0b10_11_00_01>(c));
            f32::from_bits(_mm_cvtsi128_si32(d).cast_unsigned())
        }
    }
    #[inline(always)]
    fn to_i32(self, a: F) -> I {
        // SAFETY: `self` proves that the processor has the instructions.
        unsafe { [_mm256_cvtps_epi32(a[0]), _mm256_cvtps_epi32(a[1])] }
    }
    #[inline(always)]
    fn to_f32(self, a: I) -> F {
        // SAFETY: `self` proves that the processor has the instructions.
        unsafe { [_mm256_cvtepi32_ps(a[0]), _mm256_cvtepi32_ps(a[1])] }
    }
    #[inline(always)]
    fn add_i32(self, a: I, b: I) -> I {
        // SAFETY: `self` proves that the processor has the instructions.
        unsafe { [_mm256_add_epi32(a[0], b[0]), _mm256_add_epi32(a[1], b[1])] }
    }
    #[inline(always)]
    fn sum_i32(self, a: I) -> i32 {
        // SAFETY: `self` proves that the processor has the instructions.
        unsafe {
            let a = _mm256_add_epi32(a[0], a[1]);
            let b = _mm_add_epi32(_mm256_castsi256_si128(a), _mm256_extracti128_si256::<1>(a));
            let c = _mm_add_epi32(b, _mm_shuffle_epi32::<0b01_00_11_10>(b));
            _mm_cvtsi128_si32(_mm_add_epi32(c, _mm_shuffle_epi32::<0b10_11_00_01>(c)))
        }
    }
    #[inline(always)]
    unsafe fn load(self, p: *const f32) -> F {
        // SAFETY: the caller vouches for the pointer, `self` for the instructions.
        unsafe { [_mm256_loadu_ps(p), _mm256_loadu_ps(p.add(8))] }
    }
    #[inline(always)]
    unsafe fn store(self, p: *mut f32, a: F) {
        // SAFETY: the caller vouches for the pointer, `self` for the instructions.
        unsafe {
            _mm256_storeu_ps(p, a[0]);
            _mm256_storeu_ps(p.add(8), a[1]);
        }
    }
    #[inline(always)]
    unsafe fn load_f16(self, p: *const u16) -> F {
        // SAFETY: the caller vouches for the pointer, `self` for the instructions.
        unsafe {
            let (low, high) = (_mm_loadu_si128(p.cast()), _mm_loadu_si128(p.add(8).cast()));
            [_mm256_cvtph_ps(low), _mm256_cvtph_ps(high)]
        }
    }
    #[inline(always)]
    unsafe fn load_bf16(self, p: *const u16) -> F {
        // SAFETY: the caller vouches for the pointer, `self` for the instructions.
        unsafe {
            let low = _mm256_cvtepu16_epi32(_mm_loadu_si128(p.cast()));
            let high = _mm256_cvtepu16_epi32(_mm_loadu_si128(p.add(8).cast()));
            [
                _mm256_castsi256_ps(_mm256_slli_epi32::<16>(low)),
                _mm256_castsi256_ps(_mm256_slli_epi32::<16>(high)),
            ]
        }
    }
    #[inline(always)]
    unsafe fn store_bf16(self, p: *mut u16, a: F) {
        // SAFETY: the caller vouches for the pointer, `self` for the instructions.
        unsafe {
            let low = _mm256_srli_epi32::<16>(_mm256_castps_si256(nearest(a[0])));
            let high = _mm256_srli_epi32::<16>(_mm256_castps_si256(nearest(a[1])));
            // Words pack within 128-bit halves: put the four quarters back in order.
            let words = _mm256_packus_epi32(low, high);
            _mm256_storeu_si256(p.cast(), _mm256_permute4x64_epi64::<0b11_01_10_00>(words));
        }
    }
    #[inline(always)]
    unsafe fn load_pairs(self, p: *const u16) -> [F; 2] {
        // SAFETY: the caller vouches for the pointer, `self` for the instructions.
        unsafe {
            let low = _mm256_loadu_si256(p.cast());
            let high = _mm256_loadu_si256(p.add(16).cast());
            [[even(low), even(high)], [odd(low), odd(high)]]
        }
    }
    #[inline(always)]
    unsafe fn store_pairs(self, p: *mut u16, a: [F; 2]) {
        // SAFETY: the caller vouches for the pointer, `self` for the instructions.
        unsafe {
            _mm256_storeu_si256(p.cast(), paired(a[0][0], a[1][0]));
            _mm256_storeu_si256(p.add(16).cast(), paired(a[0][1], a[1][1]));
        }
    }
    #[inline(always)]
    unsafe fn splat_pair(self, p: *const u16) -> [F; 2] {
        // SAFETY: the caller vouches for the pointer, `self` for the instructions.
        unsafe {
            let both = _mm256_set1_epi32(p.cast::<i32>().read_unaligned());
            [[even(both); 2], [odd(both); 2]]
        }
    }
    #[inline(always)]
    fn pairs(self, even: F, odd: F) -> [F; 2] {
        // SAFETY: `self` proves that the processor has the instructions.
        unsafe { [[nearest(even[0]), nearest(even[1])], [nearest(odd[0]), nearest(odd[1])]] }
    }
    #[inline(always)]
    fn dot_pairs(self, acc: F, a: [F; 2], b: [F; 2]) -> F {
        self.fma(a[0], b[0], self.fma(a[1], b[1], acc))
    }
    #[inline(always)]
    unsafe fn load_i8(self, p: *const i8) -> F {
        // SAFETY: the caller vouches for the pointer, `self` for the instructions.
        unsafe {
            let low = _mm256_cvtepi8_epi32(_mm_loadl_epi64(p.cast()));
            let high = _mm256_cvtepi8_epi32(_mm_loadl_epi64(p.add(8).cast()));
            [_mm256_cvtepi32_ps(low), _mm256_cvtepi32_ps(high)]
        }
    }
    #[inline(always)]
    unsafe fn load_u8(self, p: *const u8) -> F {
        // SAFETY: the caller vouches for the pointer, `self` for the instructions.
        unsafe {
            let low = _mm256_cvtepu8_epi32(_mm_loadl_epi64(p.cast()));
            let high = _mm256_cvtepu8_epi32(_mm_loadl_epi64(p.add(8).cast()));
            [_mm256_cvtepi32_ps(low), _mm256_cvtepi32_ps(high)]
        }
    }
    #[inline(always)]
    unsafe fn store_f16(self, p: *mut u16, a: F) {
        // SAFETY: the caller vouches for the pointer, `self` for the instructions.
        unsafe {
            _mm_storeu_si128(p.cast(), _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(a[0]));
            _mm_storeu_si128(p.add(8).cast(), _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(a[1]));
        }
    }
    #[inline(always)]
    unsafe fn sum_i8(self, p: *const i8) -> [i32; 2] {
        // SAFETY: the caller vouches for the pointer, `self` for the instructions.
        unsafe { sum_i8(p) }
    }
    #[inline(always)]
    unsafe fn store_i8(self, p: *mut i8, a: I) {
        // SAFETY: the caller vouches for the pointer, `self` for the instructions.
        unsafe {
            // Words and bytes pack within 128-bit halves: put the four quarters back in order.
            let words = _mm256_permute4x64_epi64::<0b11_01_10_00>(_mm256_packs_epi32(a[0], a[1]));
            let (low, high) = (_mm256_castsi256_si128(words), _mm256_extracti128_si256::<1>(words));
            _mm_storeu_si128(p.cast(), _mm_packs_epi16(low, high));
        }
    }
    #[inline(always)]
    fn prefetch(self, p: *const u8) {
        // SAFETY: a prefetch reads nothing that the program could see, and does not fault.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(p.cast()) }
    }
    #[inline(always)]
    unsafe fn codes(self, p: *const u8) -> I {
        // SAFETY: the caller vouches for the pointer, `self` for the instructions.
        unsafe { [_mm256_loadu_si256(p.cast()), _mm256_loadu_si256(p.add(32).cast())] }
    }
    #[inline(always)]
    unsafe fn put_codes(self, p: *mut u8, w: I) {
        // SAFETY: the caller vouches for the pointer, `self` for the instructions.
        unsafe {
            _mm256_storeu_si256(p.cast(), w[0]);
            _mm256_storeu_si256(p.add(32).cast(), w[1]);
        }
    }
    #[inline(always)]
    fn low(self, w: I) -> I {
        // SAFETY: `self` proves that the processor has the instructions.
        unsafe {
            let mask = _mm256_set1_epi8(15);
            [_mm256_and_si256(w[0], mask), _mm256_and_si256(w[1], mask)]
        }
    }
    #[inline(always)]
    fn high(self, w: I) -> I {
        // SAFETY: `self` proves that the processor has the instructions.
        unsafe {
            let mask = _mm256_set1_epi8(15);
            [
                _mm256_and_si256(_mm256_srli_epi16::<4>(w[0]), mask),
                _mm256_and_si256(_mm256_srli_epi16::<4>(w[1]), mask),
            ]
        }
    }
    #[inline(always)]
    fn join(self, low: I, plane: I, up: i32, mask: u8) -> I {
        // SAFETY: `self` proves that the processor has the instructions.
        unsafe {
            let mask = _mm256_set1_epi8(mask.cast_signed());
            [
                _mm256_or_si256(low[0], _mm256_and_si256(moved(plane[0], up), mask)),
                _mm256_or_si256(low[1], _mm256_and_si256(moved(plane[1], up), mask)),
            ]
        }
    }
    #[inline(always)]
    fn code_f32(self, w: I, index: usize) -> F {
        // SAFETY: `self` proves that the processor has the instructions.
        unsafe {
            let by = _mm256_set1_epi32(8 * index as i32);
            let byte = _mm256_set1_epi32(255);
            [
                _mm256_cvtepi32_ps(_mm256_and_si256(_mm256_srlv_epi32(w[0], by), byte)),
                _mm256_cvtepi32_ps(_mm256_and_si256(_mm256_srlv_epi32(w[1], by), byte)),
            ]
        }
    }
    #[inline(always)]
    fn start4(self, bias: i32) -> D::Acc4 {
        // SAFETY: `self` proves that the processor has the instructions.
        unsafe { D::start4(bias) }
    }
    #[inline(always)]
    unsafe fn dot4(self, acc: D::Acc4, w: I, a: *const i8) -> D::Acc4 {
        // SAFETY: the caller vouches for the pointer, `self` for the instructions.
        unsafe { D::dot4(acc, w, _mm256_set1_epi32(a.cast::<i32>().read_unaligned())) }
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
    unsafe fn dot8(self, acc: D::Acc8, w: I, a: *const i8) -> D::Acc8 {
        // SAFETY: the caller vouches for the pointer, `self` for the instructions.
        unsafe { D::dot8(acc, w, _mm256_set1_epi32(a.cast::<i32>().read_unaligned())) }
    }
    #[inline(always)]
    fn total8(self, acc: D::Acc8, bias: i32) -> I {
        // SAFETY: `self` proves that the processor has the instructions.
        unsafe { D::total8(acc, bias) }
    }
}
