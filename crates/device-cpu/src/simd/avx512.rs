//! AVX-512 with VNNI, and with BF16 or without: a vector is one register.

use super::{Op, Simd};
use std::arch::x86_64::*;

/// Proof that the processor has AVX-512 F, BW, DQ, VL and VNNI, and BF16 if that is said.
#[derive(Clone, Copy, Debug)]
pub(crate) struct With<const BF16: bool>(());

pub(crate) type Avx512 = With<false>;
pub(crate) type Avx512Bf16 = With<true>;

impl<const BF16: bool> With<BF16> {
    /// The proof, if it does.
    #[inline]
    pub(crate) fn detect() -> Option<Self> {
        let all = is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vl")
            && is_x86_feature_detected!("avx512vnni")
            && is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("fma")
            && is_x86_feature_detected!("f16c")
            && (!BF16 || is_x86_feature_detected!("avx512bf16"));
        all.then_some(Self(()))
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
#[inline(never)]
fn enabled<O: Op>(simd: Avx512, op: O) -> O::Output {
    op.run(simd)
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512bf16,avx2,fma,f16c")]
#[inline(never)]
fn enabled_bf16<O: Op>(simd: Avx512Bf16, op: O) -> O::Output {
    op.run(simd)
}

/// The smallest magnitude that [`round_bf16`](tangor_device::rounding::round_bf16) keeps.
const SMALLEST: f32 = tangor_device::rounding::SMALLEST_BF16;

/// Lanes that are not flushed to zero.
#[inline(always)]
unsafe fn kept(a: __m512) -> __mmask16 {
    // SAFETY: the caller has AVX-512.
    unsafe { _mm512_cmp_ps_mask::<_CMP_NLT_UQ>(_mm512_abs_ps(a), _mm512_set1_ps(SMALLEST)) }
}

/// The nearest bf16, ties to even, in the upper halves; the lower ones are anything.
#[inline(always)]
unsafe fn nearest(a: __m512) -> __m512i {
    // SAFETY: the caller has AVX-512.
    unsafe {
        let bits = _mm512_castps_si512(a);
        let last = _mm512_and_si512(_mm512_srli_epi32::<16>(bits), _mm512_set1_epi32(1));
        let up = _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff)), last);
        let nan = _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(a, a);
        let up = _mm512_mask_blend_epi32(nan, up, _mm512_set1_epi32(0x7fc0_0000));
        _mm512_maskz_mov_epi32(kept(a), up)
    }
}

/// The upper halves of all lanes.
#[inline(always)]
unsafe fn upper(a: __m512i) -> __m512i {
    // SAFETY: the caller has AVX-512.
    unsafe { _mm512_and_si512(a, _mm512_set1_epi32(0xffff_0000_u32.cast_signed())) }
}

/// Where the elements of pairs are, if the even ones all come first.
const INTERLEAVED: [u16; 32] = {
    let mut at = [0; 32];
    let mut lane = 0;
    while lane < 16 {
        (at[2 * lane as usize], at[2 * lane as usize + 1]) = (lane, 16 + lane);
        lane += 1;
    }
    at
};

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

#[allow(clippy::cast_possible_truncation, clippy::cast_possible_wrap)]
impl<const BF16: bool> Simd for With<BF16> {
    type F32 = __m512;
    type I32 = __m512i;
    type Codes = __m512i;
    type Pairs = __m512i;
    type Acc4 = __m512i;
    type Acc8 = __m512i;
    const WIDE: bool = true;
    const LONG_SUMS: bool = true;
    const SHIFT8: i32 = 0;
    const ROWS: usize = 6;
    const DOT_ROWS: usize = 6;

    #[inline]
    fn run<O: Op>(self, op: O) -> O::Output {
        // SAFETY: `self` proves that the processor has the instructions.
        unsafe { if BF16 { enabled_bf16(With(()), op) } else { enabled(With(()), op) } }
    }

    #[inline(always)]
    fn splat(self, x: f32) -> __m512 {
        // SAFETY: `self` proves that the processor has the instructions.
        unsafe { _mm512_set1_ps(x) }
    }
    #[inline(always)]
    fn add(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: `self` proves that the processor has the instructions.
        unsafe { _mm512_add_ps(a, b) }
    }
    #[inline(always)]
    fn sub(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: `self` proves that the processor has the instructions.
        unsafe { _mm512_sub_ps(a, b) }
    }
    #[inline(always)]
    fn mul(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: `self` proves that the processor has the instructions.
        unsafe { _mm512_mul_ps(a, b) }
    }
    #[inline(always)]
    fn div(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: `self` proves that the processor has the instructions.
        unsafe { _mm512_div_ps(a, b) }
    }
    #[inline(always)]
    fn max(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: `self` proves that the processor has the instructions.
        unsafe { _mm512_max_ps(a, b) }
    }
    #[inline(always)]
    fn min(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: `self` proves that the processor has the instructions.
        unsafe { _mm512_min_ps(a, b) }
    }
    #[inline(always)]
    fn abs(self, a: __m512) -> __m512 {
        // SAFETY: `self` proves that the processor has the instructions.
        unsafe { _mm512_abs_ps(a) }
    }
    #[inline(always)]
    fn fma(self, a: __m512, b: __m512, c: __m512) -> __m512 {
        // SAFETY: `self` proves that the processor has the instructions.
        unsafe { _mm512_fmadd_ps(a, b, c) }
    }
    #[inline(always)]
    fn fnma(self, a: __m512, b: __m512, c: __m512) -> __m512 {
        // SAFETY: `self` proves that the processor has the instructions.
        unsafe { _mm512_fnmadd_ps(a, b, c) }
    }
    #[inline(always)]
    fn round(self, a: __m512) -> __m512 {
        // SAFETY: `self` proves that the processor has the instructions.
        unsafe { _mm512_roundscale_ps::<0>(a) }
    }
    #[inline(always)]
    fn scale2(self, a: __m512, n: __m512) -> __m512 {
        // SAFETY: `self` proves that the processor has the instructions.
        unsafe { _mm512_scalef_ps(a, n) }
    }
    #[inline(always)]
    fn first(self, n: usize, a: __m512, b: __m512) -> __m512 {
        // SAFETY: `self` proves that the processor has the instructions.
        unsafe {
            let mask = ((1_u32 << n.min(16)) - 1) as __mmask16;
            _mm512_mask_blend_ps(mask, b, a)
        }
    }
    #[inline(always)]
    fn zero_below(self, x: __m512, limit: f32, a: __m512) -> __m512 {
        // SAFETY: `self` proves that the processor has the instructions.
        unsafe {
            let below = _mm512_cmp_ps_mask::<_CMP_LT_OQ>(x, _mm512_set1_ps(limit));
            _mm512_mask_blend_ps(below, a, _mm512_setzero_ps())
        }
    }
    #[inline(always)]
    fn copy_sign(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: `self` proves that the processor has the instructions.
        unsafe {
            let sign = _mm512_set1_ps(-0.0);
            _mm512_or_ps(_mm512_andnot_ps(sign, a), _mm512_and_ps(sign, b))
        }
    }
    #[inline(always)]
    fn sum(self, a: __m512) -> f32 {
        // SAFETY: `self` proves that the processor has the instructions.
        unsafe {
            let b = _mm256_add_ps(_mm512_castps512_ps256(a), _mm512_extractf32x8_ps::<1>(a));
            sum8(b)
        }
    }
    #[inline(always)]
    fn greatest(self, a: __m512) -> f32 {
        // SAFETY: `self` proves that the processor has the instructions.
        unsafe { _mm512_reduce_max_ps(a) }
    }
    #[inline(always)]
    fn greatest_abs(self, a: __m512, b: __m512) -> f32 {
        // SAFETY: `self` proves that the processor has the instructions.
        unsafe {
            let a = _mm512_castps_si512(_mm512_abs_ps(a));
            let b = _mm512_castps_si512(_mm512_abs_ps(b));
            f32::from_bits(_mm512_reduce_max_epi32(_mm512_max_epi32(a, b)).cast_unsigned())
        }
    }
    #[inline(always)]
    fn to_i32(self, a: __m512) -> __m512i {
        // SAFETY: `self` proves that the processor has the instructions.
        unsafe { _mm512_cvtps_epi32(a) }
    }
    #[inline(always)]
    fn to_f32(self, a: __m512i) -> __m512 {
        // SAFETY: `self` proves that the processor has the instructions.
        unsafe { _mm512_cvtepi32_ps(a) }
    }
    #[inline(always)]
    fn add_i32(self, a: __m512i, b: __m512i) -> __m512i {
        // SAFETY: `self` proves that the processor has the instructions.
        unsafe { _mm512_add_epi32(a, b) }
    }
    #[inline(always)]
    fn sum_i32(self, a: __m512i) -> i32 {
        // SAFETY: `self` proves that the processor has the instructions.
        unsafe { _mm512_reduce_add_epi32(a) }
    }
    #[inline(always)]
    unsafe fn load(self, p: *const f32) -> __m512 {
        // SAFETY: the caller vouches for the pointer, `self` for the instructions.
        unsafe { _mm512_loadu_ps(p) }
    }
    #[inline(always)]
    unsafe fn store(self, p: *mut f32, a: __m512) {
        // SAFETY: the caller vouches for the pointer, `self` for the instructions.
        unsafe { _mm512_storeu_ps(p, a) }
    }
    #[inline(always)]
    unsafe fn load_f16(self, p: *const u16) -> __m512 {
        // SAFETY: the caller vouches for the pointer, `self` for the instructions.
        unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(p.cast())) }
    }
    #[inline(always)]
    unsafe fn load_bf16(self, p: *const u16) -> __m512 {
        // SAFETY: the caller vouches for the pointer, `self` for the instructions.
        unsafe {
            let wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(p.cast()));
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(wide))
        }
    }
    #[inline(always)]
    unsafe fn store_bf16(self, p: *mut u16, a: __m512) {
        // SAFETY: the caller vouches for the pointer, `self` for the instructions.
        unsafe {
            let halves = if BF16 {
                std::mem::transmute::<__m256bh, __m256i>(_mm512_maskz_cvtneps_pbh(kept(a), a))
            } else {
                _mm512_cvtepi32_epi16(_mm512_srli_epi32::<16>(nearest(a)))
            };
            _mm256_storeu_si256(p.cast(), halves);
        }
    }
    #[inline(always)]
    unsafe fn store_kept_bf16(self, p: *mut u16, a: __m512) {
        // SAFETY: the caller vouches for the pointer, `self` for the instructions.
        unsafe {
            if BF16 {
                let halves = std::mem::transmute::<__m256bh, __m256i>(_mm512_cvtneps_pbh(a));
                _mm256_storeu_si256(p.cast(), halves);
            } else {
                self.store_bf16(p, a);
            }
        }
    }
    #[inline(always)]
    unsafe fn load_pairs(self, p: *const u16) -> __m512i {
        // SAFETY: the caller vouches for the pointer, `self` for the instructions.
        unsafe { _mm512_loadu_si512(p.cast()) }
    }
    #[inline(always)]
    unsafe fn store_pairs(self, p: *mut u16, a: __m512i) {
        // SAFETY: the caller vouches for the pointer, `self` for the instructions.
        unsafe { _mm512_storeu_si512(p.cast(), a) }
    }
    #[inline(always)]
    unsafe fn splat_pair(self, p: *const u16) -> __m512i {
        // SAFETY: the caller vouches for the pointer, `self` for the instructions.
        unsafe { _mm512_set1_epi32(p.cast::<i32>().read_unaligned()) }
    }
    #[inline(always)]
    fn pairs(self, even: __m512, odd: __m512) -> __m512i {
        // SAFETY: `self` proves that the processor has the instructions.
        unsafe {
            if BF16 {
                let kept = u32::from(kept(even)) | u32::from(kept(odd)) << 16;
                let halves = _mm512_maskz_cvtne2ps_pbh(kept, odd, even);
                let halves = std::mem::transmute::<__m512bh, __m512i>(halves);
                _mm512_permutexvar_epi16(_mm512_loadu_si512(INTERLEAVED.as_ptr().cast()), halves)
            } else {
                _mm512_or_si512(upper(nearest(odd)), _mm512_srli_epi32::<16>(nearest(even)))
            }
        }
    }
    #[inline(always)]
    fn dot_pairs(self, acc: __m512, a: __m512i, b: __m512i) -> __m512 {
        // SAFETY: `self` proves that the processor has the instructions.
        unsafe {
            if BF16 {
                let a = std::mem::transmute::<__m512i, __m512bh>(a);
                let b = std::mem::transmute::<__m512i, __m512bh>(b);
                return _mm512_dpbf16_ps(acc, a, b);
            }
            let (odd_a, odd_b) = (_mm512_castsi512_ps(upper(a)), _mm512_castsi512_ps(upper(b)));
            let (a, b) = (_mm512_slli_epi32::<16>(a), _mm512_slli_epi32::<16>(b));
            let acc = _mm512_fmadd_ps(odd_a, odd_b, acc);
            _mm512_fmadd_ps(_mm512_castsi512_ps(a), _mm512_castsi512_ps(b), acc)
        }
    }
    #[inline(always)]
    unsafe fn load_i8(self, p: *const i8) -> __m512 {
        // SAFETY: the caller vouches for the pointer, `self` for the instructions.
        unsafe { _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(p.cast()))) }
    }
    #[inline(always)]
    unsafe fn load_u8(self, p: *const u8) -> __m512 {
        // SAFETY: the caller vouches for the pointer, `self` for the instructions.
        unsafe { _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128(p.cast()))) }
    }
    #[inline(always)]
    unsafe fn store_f16(self, p: *mut u16, a: __m512) {
        // SAFETY: the caller vouches for the pointer, `self` for the instructions.
        unsafe { _mm256_storeu_si256(p.cast(), _mm512_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(a)) }
    }
    #[inline(always)]
    unsafe fn sum_i8(self, p: *const i8) -> [i32; 2] {
        // SAFETY: the caller vouches for the pointer, `self` for the instructions.
        unsafe { super::avx2::sum_i8(p) }
    }
    #[inline(always)]
    unsafe fn store_i8(self, p: *mut i8, a: __m512i) {
        // SAFETY: the caller vouches for the pointer, `self` for the instructions.
        unsafe { _mm_storeu_si128(p.cast(), _mm512_cvtepi32_epi8(a)) }
    }
    #[inline(always)]
    fn prefetch(self, p: *const u8) {
        // SAFETY: a prefetch reads nothing that the program could see, and does not fault.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(p.cast()) }
    }
    #[inline(always)]
    unsafe fn codes(self, p: *const u8) -> __m512i {
        // SAFETY: the caller vouches for the pointer, `self` for the instructions.
        unsafe { _mm512_loadu_si512(p.cast()) }
    }
    #[inline(always)]
    unsafe fn put_codes(self, p: *mut u8, w: __m512i) {
        // SAFETY: the caller vouches for the pointer, `self` for the instructions.
        unsafe { _mm512_storeu_si512(p.cast(), w) }
    }
    #[inline(always)]
    fn low(self, w: __m512i) -> __m512i {
        // SAFETY: `self` proves that the processor has the instructions.
        unsafe { _mm512_and_si512(w, _mm512_set1_epi8(15)) }
    }
    #[inline(always)]
    fn high(self, w: __m512i) -> __m512i {
        // SAFETY: `self` proves that the processor has the instructions.
        unsafe { _mm512_and_si512(_mm512_srli_epi16::<4>(w), _mm512_set1_epi8(15)) }
    }
    #[inline(always)]
    fn join(self, low: __m512i, plane: __m512i, up: i32, mask: u8) -> __m512i {
        // SAFETY: `self` proves that the processor has the instructions.
        unsafe {
            let moved = match up {
                4 => _mm512_slli_epi32::<4>(plane),
                3 => _mm512_slli_epi32::<3>(plane),
                2 => _mm512_slli_epi32::<2>(plane),
                1 => _mm512_slli_epi32::<1>(plane),
                -1 => _mm512_srli_epi32::<1>(plane),
                -2 => _mm512_srli_epi32::<2>(plane),
                -3 => _mm512_srli_epi32::<3>(plane),
                _ => plane,
            };
            let mask = _mm512_set1_epi8(mask.cast_signed());
            // `a | (b & c)`
            _mm512_ternarylogic_epi32::<0xf8>(low, moved, mask)
        }
    }
    #[inline(always)]
    fn code_f32(self, w: __m512i, index: usize) -> __m512 {
        // SAFETY: `self` proves that the processor has the instructions.
        unsafe {
            let shifted = _mm512_srlv_epi32(w, _mm512_set1_epi32(8 * index as i32));
            _mm512_cvtepi32_ps(_mm512_and_si512(shifted, _mm512_set1_epi32(255)))
        }
    }
    #[inline(always)]
    fn start4(self, bias: i32) -> __m512i {
        // SAFETY: `self` proves that the processor has the instructions.
        unsafe { _mm512_set1_epi32(bias) }
    }
    #[inline(always)]
    unsafe fn dot4(self, acc: __m512i, w: __m512i, a: *const i8) -> __m512i {
        // SAFETY: the caller vouches for the pointer, `self` for the instructions.
        unsafe { _mm512_dpbusd_epi32(acc, w, _mm512_set1_epi32(a.cast::<i32>().read_unaligned())) }
    }
    #[inline(always)]
    fn total4(self, acc: __m512i, _: i32) -> __m512i {
        acc
    }
    #[inline(always)]
    fn start8(self, bias: i32) -> __m512i {
        // SAFETY: `self` proves that the processor has the instructions.
        unsafe { _mm512_set1_epi32(bias) }
    }
    #[inline(always)]
    unsafe fn dot8(self, acc: __m512i, w: __m512i, a: *const i8) -> __m512i {
        // SAFETY: the caller vouches for the pointer, `self` for the instructions.
        unsafe { _mm512_dpbusd_epi32(acc, w, _mm512_set1_epi32(a.cast::<i32>().read_unaligned())) }
    }
    #[inline(always)]
    fn total8(self, acc: __m512i, _: i32) -> __m512i {
        acc
    }
}
