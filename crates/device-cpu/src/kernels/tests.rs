//! Every kernel on every instruction set against plain Rust: equal bits, outputs that were NaN
//! before and are all written, and nothing written beside them.

use crate::buffer::Shared;
use crate::isa::Isa;
use crate::kernels::attention::narrow::{AttendNarrow, block_pages, query_len};
use crate::kernels::attention::{
    Attend, AttendScratch, Look, Merge, Out, PageBlocks, QUERIES, partial_len,
};
use crate::kernels::linear_f32::LinearF32;
use crate::kernels::quantise::{Quantise, Rows8};
use crate::kernels::rope::{Angles, Projected, Queries, Rotate};
use crate::kernels::rows::{RowOp, RowTask};
use crate::kv::BlockShape;
use crate::pack::{PANEL, Packed};
use crate::pool::Pool;
use crate::simd::{LANES, Op, Simd, Uses, dispatch};
use tangor_device::KvType;
use tangor_device::model::ir::{Activation, Attention};
use tangor_device::rounding::GROUP;
use tangor_device::tensor::{Bytes, DType, Weight};

mod linear;

/// An output between canaries.
struct Guarded {
    memory: Vec<f32>,
}

impl Guarded {
    const GUARD: usize = 48;
    /// A NaN that no arithmetic makes.
    const CANARY: u32 = 0x7fab_cdef;

    fn new(len: usize) -> Self {
        Self { memory: vec![f32::from_bits(Self::CANARY); len + 2 * Self::GUARD] }
    }

    fn slice(&mut self) -> &mut [f32] {
        let end = self.memory.len() - Self::GUARD;
        &mut self.memory[Self::GUARD..end]
    }

    /// The bits, if all were written and nothing else was.
    fn bits(&self) -> Vec<u32> {
        let bits: Vec<u32> = self.memory.iter().map(|x| x.to_bits()).collect();
        let (before, rest) = bits.split_at(Self::GUARD);
        let (inside, after) = rest.split_at(rest.len() - Self::GUARD);
        assert!(before.iter().chain(after).all(|&x| x == Self::CANARY), "written beyond the end");
        assert!(inside.iter().all(|&x| x != Self::CANARY), "not all was written");
        // One NaN is as good as another.
        inside.iter().map(|&x| if f32::from_bits(x).is_nan() { 0x7fc0_0000 } else { x }).collect()
    }
}

/// Runs a kernel on every instruction set and compares with plain Rust.
fn same_on_all(what: &str, run: impl Fn(Isa) -> Vec<u32>) {
    let want = run(Isa::Portable);
    for isa in Isa::available() {
        assert!(run(isa) == want, "{what} on {isa}");
    }
}

/// Something like activations, with a few large ones.
fn values(count: usize, seed: usize) -> Vec<f32> {
    #[allow(clippy::cast_precision_loss)]
    let one = |i: usize| {
        let x = ((i * 7919 + seed * 104_729 + 13) % 2003) as f32 / 1001.5 - 1.0;
        if i % 53 == 7 { x * 20.0 } else { x }
    };
    (0..count).map(one).collect()
}

fn quantised(isa: Isa, x: &[f32], rows: usize, width: usize, group: usize) -> Rows8 {
    let mut out = Rows8::default();
    out.resize(rows, width, group);
    dispatch(isa, Quantise { x, width, first: 0, out: out.writer() });
    out.list_wide();
    out
}

#[test]
fn activations_are_rounded_the_same() {
    for (rows, width) in [(1, 1), (3, 31), (2, 32), (5, 100), (4, 576)] {
        let mut x = values(rows * width, 1);
        x[width / 2] = if rows == 5 { f32::NAN } else { 0.0 };
        for group in [GROUP, 2 * GROUP, 4 * GROUP] {
            same_on_all(&format!("{rows} rows of {width} in groups of {group}"), |isa| {
                let out = quantised(isa, &x, rows, width, group);
                let scales = out.scales().iter().map(|x| if x.is_nan() { 1 } else { x.to_bits() });
                let sums = out.sums().iter().flatten().map(|x| x.cast_unsigned());
                let digits =
                    out.codes().iter().chain(out.high()).map(|&x| i32::from(x).cast_unsigned());
                scales
                    .chain(sums)
                    .chain(digits)
                    .chain(out.wide().iter().map(|&x| x.into()))
                    .collect()
            });
        }
    }
}

fn exact(
    isa: Isa,
    weight: &Packed,
    bias: Option<&[f32]>,
    x: &[f32],
    rows: usize,
    outputs: usize,
) -> Vec<u32> {
    let mut out = Guarded::new(rows * outputs);
    let y = Shared::new(out.slice());
    for panel in 0..outputs.div_ceil(PANEL) {
        dispatch(isa, LinearF32 { weight, bias, x, panel, rows: 0..rows, y });
    }
    out.bits()
}

#[test]
fn dense_linears_are_the_same_and_stay_in_their_rows() {
    let pool = Pool::new(1, false);
    for dtype in [DType::F32, DType::F16, DType::Bf16] {
        for (outputs, inputs, rows) in [(1, 1, 1), (65, 33, 5), (64, 70, 13)] {
            // Finite in all three types: bytes below the exponents of infinities.
            let bytes: Bytes = (0..outputs * inputs * dtype.size())
                .map(|i| (i * 89 % 59) as u8)
                .collect::<Vec<u8>>()
                .into();
            let weight = Weight::dense(dtype, outputs, inputs, bytes).unwrap();
            let weight = Packed::new(&weight, &pool).unwrap();
            let x = values(rows * inputs, 4);
            same_on_all(&format!("{dtype:?}"), |isa| exact(isa, &weight, None, &x, rows, outputs));
        }
    }
}

#[test]
fn row_operations_are_the_same_and_stay_in_their_rows() {
    for (rows, width) in [(1, 1), (2, 17), (3, 64), (2, 100), (1, 1536)] {
        let (a, b) = (values(2 * rows * width, 6), values(rows * width, 7));
        let gain = values(width, 8);
        let ops = [
            RowOp::RmsNorm { x: &b, gain: &gain, eps: 1e-5 },
            RowOp::Gated { gate: &a, up: &a[width..], stride: 2 * width, act: Activation::Silu },
            RowOp::Gated { gate: &a, up: &b, stride: width, act: Activation::Gelu },
            RowOp::Gated { gate: &a, up: &b, stride: width, act: Activation::GeluTanh },
            RowOp::Add { a: &a[..rows * width], b: &b },
            RowOp::Scale { x: &b, factor: 0.37 },
        ];
        for op in ops {
            same_on_all(&format!("{op:?}"), |isa| {
                let mut out = Guarded::new(rows * width);
                let out_rows = Shared::new(out.slice());
                let task =
                    RowTask { op, width, rows: 0..rows, out: out_rows, rounded: None, plain: true };
                dispatch(isa, task);
                let bits = out.bits();
                // In 8 bits alone: what the plain result rounds to.
                let want = quantised(isa, out.slice(), rows, width, GROUP);
                let mut row = vec![0.0; rows * width];
                let mut found = Rows8::default();
                found.resize(rows, width, GROUP);
                let (out, rounded) = (Shared::new(&mut row), Some(found.writer()));
                dispatch(isa, RowTask { op, width, rows: 0..rows, out, rounded, plain: false });
                assert!(want.codes() == found.codes() && want.sums() == found.sums(), "{isa}");
                bits
            });
        }
        same_on_all("sum and norm", |isa| {
            let (mut sum, mut out) = (Guarded::new(rows * width), Guarded::new(rows * width));
            let (x, delta) = (&a[..rows * width], &b[..]);
            let op = RowOp::AddRmsNorm {
                x,
                delta,
                sum: Shared::new(sum.slice()),
                gain: &gain,
                eps: 0.1,
            };
            let out_rows = Shared::new(out.slice());
            dispatch(
                isa,
                RowTask { op, width, rows: 0..rows, out: out_rows, rounded: None, plain: true },
            );
            [sum.bits(), out.bits()].concat()
        });
    }
}

/// Rotates, caches and attends `rows` positions on one page and the next, for one KV head.
fn attention(isa: Isa, op: &Attention, dtype: KvType, tokens: usize, rows: usize) -> Vec<u32> {
    let (group, dim) = (op.heads, op.head_dim);
    let shape = BlockShape { dtype, head_dim: dim, tokens };
    let pages: Vec<u32> = (0..rows.div_ceil(tokens) as u32).collect();
    // As `f32`, so that blocks are aligned.
    let mut memory = vec![0.0_f32; pages.len() * shape.bytes() / 4];
    let cache: &mut [u8] = bytemuck::cast_slice_mut(&mut memory);
    let (q, k, v) = (values(rows * group * dim, 1), values(rows * dim, 2), values(rows * dim, 3));
    let table = values(rows * dim, 4);
    let narrow = shape.narrow();
    // Two bf16 in the place of one `f32`.
    let query_len = if narrow { query_len(dim) / 2 } else { dim };
    let mut queries = Guarded::new(rows * group * query_len);
    for (page, block) in cache.chunks_exact_mut(shape.bytes()).enumerate() {
        dispatch(
            isa,
            Rotate {
                op,
                from: Projected { q: &q, k: &k, v: &v, strides: [group * dim, dim, dim] },
                angles: Angles {
                    table: &table,
                    dim: dim / 2 * 2,
                    interleaved: rows.is_multiple_of(2),
                },
                kv_head: 0,
                rows: page * tokens..((page + 1) * tokens).min(rows),
                all_rows: rows,
                queries: if narrow {
                    Queries::Bf16(Shared::new(bytemuck::cast_slice_mut(queries.slice())))
                } else {
                    Queries::F32(Shared::new(queries.slice()))
                },
                shape,
                block,
                token: 0,
            },
        );
    }
    let mut bits = queries.bits();
    let blocks = PageBlocks { pages: &pages, base: 0, stride: shape.bytes() };
    let mut scratch = AttendScratch::default();
    scratch.reserve(&shape, QUERIES.max(group));
    let mut out = Guarded::new(rows * group * dim);
    let range = 0..pages.len().div_ceil(block_pages(&shape));
    let mut attend = |first: usize, positions: usize, out: Out<'_>| {
        let at = first * group * query_len;
        let queries = &queries.slice()[at..at + positions * group * query_len];
        let look = Look { op, shape, cache, pages: blocks, first, positions };
        let (range, scratch) = (range.clone(), &mut scratch);
        if narrow {
            let queries = bytemuck::cast_slice(queries);
            dispatch(isa, AttendNarrow { look, queries, range, scratch, out });
        } else {
            dispatch(isa, Attend { look, queries, range, scratch, out });
        }
    };
    let y = Shared::new(out.slice());
    let width = group * dim;
    for first in (0..rows).step_by(QUERIES / group) {
        let positions = (rows - first).min(QUERIES / group);
        attend(first, positions, Out::Rows { y, width, row: first, column: 0 });
    }
    // The last position again, block by block: the same bits.
    let mut partials = vec![f32::NAN; range.len() * group * partial_len(dim)];
    attend(rows - 1, 1, Out::Partials(Shared::new(&mut partials)));
    let mut last = Guarded::new(width);
    let first = op.window.map_or(0, |window| rows.saturating_sub(window)) / tokens;
    let range = first / block_pages(&shape)..range.end;
    let (y, partials, scratch) = (last.slice(), &partials, &mut scratch);
    dispatch(isa, Merge { partials, narrow, group, head_dim: dim, range, scratch, y });
    bits.extend(out.bits());
    assert_eq!(bits[bits.len() - width..], last.bits(), "{dtype:?}, {rows} rows, {isa}");
    bits
}

/// Rounds to pairs, multiplies and adds them, and rounds the sums: everything about bf16. With
/// `PAIRS` by the processor's own instructions, if it has them.
struct Bf16Steps<'a, const PAIRS: bool> {
    /// `(count, 5, 16)`: a sum to begin with, and the elements of two vectors of pairs.
    x: &'a [f32],
}

impl<const P: bool> Op for Bf16Steps<'_, P> {
    type Output = Vec<u32>;
    const USES: Uses = if P { Uses::Pairs } else { Uses::Floats };

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> Vec<u32> {
        let mut out = Vec::new();
        let (mut sums, mut halves, mut pairs) = ([0.0; LANES], [0_u16; LANES], [0_u16; 2 * LANES]);
        for x in self.x.chunks_exact(5 * LANES) {
            // SAFETY: five vectors are at `x`, and the arrays have what is written.
            unsafe {
                let [acc, a, b, c, d] = [0, 1, 2, 3, 4].map(|at| x.as_ptr().add(at * LANES));
                let (a, b) = (s.pairs(s.load(a), s.load(b)), s.pairs(s.load(c), s.load(d)));
                s.store_pairs(pairs.as_mut_ptr(), a);
                let a = s.load_pairs(pairs.as_ptr());
                let y = s.dot_pairs(s.load(acc), a, b);
                let y = s.dot_pairs(y, s.splat_pair(pairs.as_ptr().add(6)), b);
                s.store(sums.as_mut_ptr(), y);
                s.store_bf16(halves.as_mut_ptr(), y);
            }
            // One NaN is as good as another.
            let whole = |x: &f32| if x.is_nan() { u32::MAX } else { x.to_bits() };
            let half = |x: &u16| if x & 0x7fff > 0x7f80 { u32::MAX } else { u32::from(*x) };
            out.extend(sums.iter().map(whole));
            out.extend(halves.iter().chain(&pairs).map(half));
        }
        out
    }
}

#[test]
fn bf16_is_rounded_multiplied_and_added_in_one_order() {
    let mut x = values(5 * LANES * 400, 6);
    for (i, x) in x.iter_mut().enumerate() {
        // Near and far from each other, and now and then nothing that can be rounded.
        *x *= 2.0_f32.powi(i32::try_from(i * 31 % 61).unwrap() - 30);
        match i % 1009 {
            1 => *x = f32::NAN,
            2 => *x = f32::INFINITY,
            3 => *x = -1e-39,
            4 => *x = 8.9e-16,
            5 => *x = f32::MAX,
            _ => {}
        }
    }
    same_on_all("bf16", |isa| dispatch(isa, Bf16Steps::<false> { x: &x }));
    let want = dispatch(Isa::Portable, Bf16Steps::<false> { x: &x });
    same_on_all("pairs of bf16", |isa| {
        let got = dispatch(isa, Bf16Steps::<true> { x: &x });
        assert!(got == want, "its own instructions on {isa}");
        got
    });
}

#[test]
fn attention_is_the_same_and_stays_in_its_rows() {
    for (heads, head_dim, tokens, rows) in [
        (1, 16, 16, 1),
        (3, 64, 64, 100),
        (2, 24, 20, 61),
        (9, 40, 5, 33),
        (1, 128, 32, 64),
        (4, 15, 3, 200),
        (1, 64, 32, 300),
    ] {
        for dtype in [KvType::F32, KvType::F16, KvType::Bf16, KvType::Int8] {
            for window in [None, Some(17)] {
                let op = Attention {
                    layer: 0,
                    heads,
                    kv_heads: 1,
                    head_dim,
                    scale: 0.2,
                    window,
                    softcap: (heads == 2).then_some(15.0),
                    rotate: true,
                };
                same_on_all(&format!("{op:?}, {dtype:?}, {rows} rows"), |isa| {
                    attention(isa, &op, dtype, tokens, rows)
                });
            }
        }
    }
}
