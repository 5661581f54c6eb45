//! Weights as they lie in a panel: codes by their bits, and the numbers that scale them.

use crate::pack::{Offsets, PANEL, PackedCodes, Record, Scales, plane_of};
use crate::simd::{LANES, Simd, unroll};
use std::mem::MaybeUninit;
use tangor_device::rounding::LONGEST;

/// Bytes of four inputs of a panel's outputs, each in a byte.
pub(in crate::kernels) const FOUR: usize = 4 * PANEL;

/// Vectors of a panel's outputs.
const VECTORS: usize = PANEL / LANES;

/// Codes of some bits: how they lie in memory, and how they are multiplied.
pub(super) trait Stored: Copy {
    /// Sums of products.
    type Acc<S: Simd>: Copy;
    /// Bits that a code takes in memory.
    const BITS: usize;
    /// Whether tiles read them where weights are stored, never from a buffer.
    const FROM_MEMORY: bool = false;
    /// What [`Stored::dot`] takes every code less.
    fn shift<S: Simd>() -> i32;
    fn start<S: Simd>(s: S, bias: i32) -> Self::Acc<S>;
    /// Inputs `4 * four..4 * four + 4` of 16 outputs, whose codes begin at `at`: with nibbles whose
    /// planes follow.
    ///
    /// # Safety
    /// They are there.
    unsafe fn four<S: Simd>(s: S, at: *const u8, four: usize) -> S::Codes;
    /// # Safety
    /// 4 bytes can be read from `x`.
    unsafe fn dot<S: Simd>(s: S, acc: Self::Acc<S>, w: S::Codes, x: *const i8) -> Self::Acc<S>;
    fn total<S: Simd>(s: S, acc: Self::Acc<S>, bias: i32) -> S::I32;
}

/// 4 bits.
#[derive(Clone, Copy)]
pub(super) struct Bits4;
/// 4 bits, each in a byte: for instruction sets that sum products of small codes faster.
#[derive(Clone, Copy)]
pub(super) struct Bits4InBytes;
/// 5 bits.
#[derive(Clone, Copy)]
pub(super) struct Bits5;
/// 6 bits.
#[derive(Clone, Copy)]
pub(super) struct Bits6;
/// 8 bits, or fewer in a byte each.
#[derive(Clone, Copy)]
pub(super) struct Bits8;

/// The nibbles of a pair of fours.
///
/// # Safety
/// They are there.
#[inline(always)]
unsafe fn nibbles<S: Simd>(s: S, at: *const u8, four: usize) -> S::Codes {
    // SAFETY: as the caller's.
    let both = unsafe { s.codes(at.add(four / 2 * FOUR)) };
    if four.is_multiple_of(2) { s.low(both) } else { s.high(both) }
}

/// What codes have from the instructions that multiply them: those for codes below 16, or for all.
macro_rules! multiplied {
    ($acc:ident, $shift:expr, $start:ident, $dot:ident, $total:ident) => {
        type Acc<S: Simd> = S::$acc;
        #[inline(always)]
        fn shift<S: Simd>() -> i32 {
            $shift
        }
        #[inline(always)]
        fn start<S: Simd>(s: S, bias: i32) -> S::$acc {
            s.$start(bias)
        }
        #[inline(always)]
        unsafe fn dot<S: Simd>(s: S, acc: S::$acc, w: S::Codes, x: *const i8) -> S::$acc {
            // SAFETY: as the caller's.
            unsafe { s.$dot(acc, w, x) }
        }
        #[inline(always)]
        fn total<S: Simd>(s: S, acc: S::$acc, bias: i32) -> S::I32 {
            s.$total(acc, bias)
        }
    };
    (below 16) => {
        multiplied!(Acc4, 0, start4, dot4, total4);
    };
    (all) => {
        multiplied!(Acc8, S::SHIFT8, start8, dot8, total8);
    };
}

impl Stored for Bits4 {
    multiplied!(below 16);
    const BITS: usize = 4;
    const FROM_MEMORY: bool = true;
    #[inline(always)]
    unsafe fn four<S: Simd>(s: S, at: *const u8, four: usize) -> S::Codes {
        // SAFETY: as the caller's.
        unsafe { nibbles(s, at, four) }
    }
}

impl Stored for Bits4InBytes {
    multiplied!(below 16);
    const BITS: usize = 8;
    #[inline(always)]
    unsafe fn four<S: Simd>(s: S, at: *const u8, four: usize) -> S::Codes {
        // SAFETY: as the caller's.
        unsafe { s.codes(at.add(four * FOUR)) }
    }
}

impl Stored for Bits5 {
    multiplied!(all);
    const BITS: usize = 5;
    #[inline(always)]
    #[allow(clippy::cast_possible_truncation, clippy::cast_possible_wrap)]
    unsafe fn four<S: Simd>(s: S, at: *const u8, four: usize) -> S::Codes {
        // SAFETY: as the caller's; four pairs of nibbles and a plane are 5 fours.
        unsafe {
            let at = at.add(four / 8 * 5 * FOUR);
            let (low, plane) = (nibbles(s, at, four % 8), s.codes(at.add(4 * FOUR)));
            s.join(low, plane, 4 - (four % 8) as i32, 0x10)
        }
    }
}

impl Stored for Bits6 {
    multiplied!(all);
    const BITS: usize = 6;
    #[inline(always)]
    #[allow(clippy::cast_possible_truncation, clippy::cast_possible_wrap)]
    unsafe fn four<S: Simd>(s: S, at: *const u8, four: usize) -> S::Codes {
        // SAFETY: as the caller's; two pairs of nibbles and a plane are 3 fours.
        unsafe {
            let at = at.add(four / 4 * 3 * FOUR);
            let (low, plane) = (nibbles(s, at, four % 4), s.codes(at.add(2 * FOUR)));
            s.join(low, plane, 4 - 2 * (four % 4) as i32, 0x30)
        }
    }
}

impl Stored for Bits8 {
    multiplied!(all);
    const BITS: usize = 8;
    #[inline(always)]
    unsafe fn four<S: Simd>(s: S, at: *const u8, four: usize) -> S::Codes {
        // SAFETY: as the caller's.
        unsafe { s.codes(at.add(four * FOUR)) }
    }
}

/// 16 scales or minima from `column` on, whose factors are given.
///
/// # Safety
/// They are there.
#[inline(always)]
pub(super) unsafe fn number<S: Simd>(
    s: S,
    scales: Scales,
    factors: S::F32,
    at: *const u8,
    column: usize,
) -> S::F32 {
    // SAFETY: as the caller's.
    unsafe {
        match scales {
            Scales::Units => s.mul(factors, s.load_i8(at.add(column).cast())),
            Scales::F16 | Scales::F32 => plain(s, scales == Scales::F16, at, column),
        }
    }
}

/// 16 scales or minima without factors from `column` on, IEEE halves or `f32`.
///
/// # Safety
/// They are there.
#[inline(always)]
pub(super) unsafe fn plain<S: Simd>(s: S, half: bool, at: *const u8, column: usize) -> S::F32 {
    // SAFETY: as the caller's.
    unsafe {
        if half { s.load_f16(at.add(2 * column).cast()) } else { s.load(at.add(4 * column).cast()) }
    }
}

/// Codes, each in a byte, and numbers as `f32`: what all weights are alike in.
#[repr(align(64))]
pub(in crate::kernels) struct Unpacked {
    codes: MaybeUninit<[u8; LONGEST * PANEL]>,
    numbers: MaybeUninit<[[f32; PANEL]; 2]>,
}

impl Unpacked {
    pub(in crate::kernels) fn uninit() -> Self {
        Self { codes: MaybeUninit::uninit(), numbers: MaybeUninit::uninit() }
    }

    /// `(inputs / 4, 64, 4)` of the inputs that were unpacked.
    pub(in crate::kernels) fn codes(&self) -> *const u8 {
        self.codes.as_ptr().cast()
    }

    /// 64 scales.
    pub(in crate::kernels) fn scales(&self) -> *const f32 {
        self.numbers.as_ptr().cast()
    }

    /// 64 zero points or minima.
    pub(in crate::kernels) fn offsets(&self) -> *const f32 {
        self.scales().wrapping_add(PANEL)
    }

    /// Unpacks `inputs` codes of a record from input `first` on, whole chunks.
    #[inline(always)]
    pub(in crate::kernels) fn fill_codes<S: Simd>(
        &mut self,
        s: S,
        w: &PackedCodes,
        record: &Record<'_>,
        first: usize,
        inputs: usize,
    ) {
        let chunk = plane_of(w.bits).unwrap_or(8);
        assert!(inputs <= LONGEST && inputs.is_multiple_of(chunk) && first.is_multiple_of(chunk));
        let byte = |input: usize| input * PANEL * usize::from(w.bits) / 8;
        let codes = record.codes[byte(first)..byte(first + inputs)].as_ptr();
        let out = self.codes.as_mut_ptr().cast();
        // SAFETY: the codes are there, and the buffer has room for them.
        unsafe {
            match w.bits {
                4 => unpack::<S, Bits4, 1>(s, codes, inputs, out),
                5 => unpack::<S, Bits5, 4>(s, codes, inputs, out),
                6 => unpack::<S, Bits6, 2>(s, codes, inputs, out),
                _ => unpack::<S, Bits8, 1>(s, codes, inputs, out),
            }
        }
    }

    /// Widens a record's scales and offsets; zero points that all have in common too.
    #[inline(always)]
    pub(in crate::kernels) fn fill_numbers<S: Simd>(
        &mut self,
        s: S,
        w: &PackedCodes,
        record: &Record<'_>,
    ) {
        let scales = self.numbers.as_mut_ptr().cast::<f32>();
        // SAFETY: a record has 64 of each, a header 64 factors of each, the buffer room for twice
        // 64.
        unsafe {
            widen(s, w.scales, record.header.as_ptr(), record.scales.as_ptr(), scales);
            let (from, offsets) = (record.offsets.as_ptr(), scales.add(PANEL));
            match w.offsets {
                Offsets::Uniform(zero) => unroll!(v < VECTORS, {
                    s.store(offsets.add(v * LANES), s.splat(f32::from(zero)));
                }),
                Offsets::Zero => unroll!(v < VECTORS, {
                    s.store(offsets.add(v * LANES), s.load_u8(from.add(v * LANES)));
                }),
                Offsets::Min => {
                    let factors = record.header.as_ptr().wrapping_add(2 * PANEL);
                    widen(s, w.scales, factors, from, offsets);
                }
            }
        }
    }
}

/// 64 scales or minima as `f32`, the products of units and their factors.
///
/// # Safety
/// They are there, and room for them.
#[inline(always)]
unsafe fn widen<S: Simd>(s: S, scales: Scales, factors: *const u8, from: *const u8, to: *mut f32) {
    // SAFETY: as the caller's.
    unsafe {
        match scales {
            Scales::F16 => unroll!(v < VECTORS, {
                s.store(to.add(v * LANES), s.load_f16(from.add(2 * v * LANES).cast()));
            }),
            Scales::F32 => unroll!(v < VECTORS, {
                s.store(to.add(v * LANES), s.load(from.add(4 * v * LANES).cast()));
            }),
            Scales::Units => unroll!(v < VECTORS, {
                let factors = s.load_f16(factors.add(2 * v * LANES).cast());
                let units = s.load_i8(from.add(v * LANES).cast());
                s.store(to.add(v * LANES), s.mul(factors, units));
            }),
        }
    }
}

/// `PAIRS`: those of fours in a chunk.
///
/// # Safety
/// So many codes are there, and room for them.
#[inline(always)]
unsafe fn unpack<S: Simd, C: Stored, const PAIRS: usize>(
    s: S,
    codes: *const u8,
    inputs: usize,
    out: *mut u8,
) {
    let chunk = 8 * PAIRS;
    for first in (0..inputs).step_by(chunk) {
        for vector in 0..VECTORS {
            // SAFETY: within the codes, and within the buffer.
            unsafe {
                let codes = codes.add(first * PANEL * C::BITS / 8 + vector * 64);
                let out = out.add(first * PANEL + vector * 64);
                unroll!(pair < PAIRS, {
                    let out = out.add(2 * pair * FOUR);
                    s.put_codes(out, C::four(s, codes, 2 * pair));
                    s.put_codes(out.add(FOUR), C::four(s, codes, 2 * pair + 1));
                });
            }
        }
    }
}
