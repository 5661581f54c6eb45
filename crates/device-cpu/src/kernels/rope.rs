//! Between the projections and attention: rotates q and k by their positions, scales q, and writes
//! k and v into the cache.
//!
//! ```text
//! q' = scale * rotate(q)          (kv_heads, rows, group, head_dim): as attention reads it
//! q' = sign(scale) * rotate(q)    (kv_heads, rows, group, query_len), in bf16, if it reads that
//! ```

use crate::buffer::Shared;
use crate::kernels::attention::narrow::query_len;
use crate::kv::BlockShape;
use crate::simd::{LANES, Op, Simd};
use std::ops::Range;
use tangor_device::model::ir::Attention;

/// Where q, k and v of a row are.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Projected<'a> {
    /// `(rows, stride)` from their first column on.
    pub(crate) q: &'a [f32],
    pub(crate) k: &'a [f32],
    pub(crate) v: &'a [f32],
    /// Distances of the rows of q, and of k and v.
    pub(crate) strides: [usize; 3],
}

/// Cosines and sines of every row of the batch.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Angles<'a> {
    /// `(rows, 2, dim / 2)`.
    pub(crate) table: &'a [f32],
    /// Elements of a head that are rotated.
    pub(crate) dim: usize,
    pub(crate) interleaved: bool,
}

/// Where queries go.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Queries<'a> {
    F32(Shared<'a, f32>),
    Bf16(Shared<'a, u16>),
}

/// The rows of one sequence that go into one page, and one KV head.
#[derive(Debug)]
pub(crate) struct Rotate<'a> {
    pub(crate) op: &'a Attention,
    pub(crate) from: Projected<'a>,
    pub(crate) angles: Angles<'a>,
    pub(crate) kv_head: usize,
    pub(crate) rows: Range<usize>,
    /// Rows of the batch.
    pub(crate) all_rows: usize,
    /// Nobody else writes these rows and heads.
    pub(crate) queries: Queries<'a>,
    pub(crate) shape: BlockShape,
    /// The page's block; nobody else touches it.
    pub(crate) block: &'a mut [u8],
    /// Token of the page that the first row goes to.
    pub(crate) token: usize,
}

/// Longest head that is supported.
pub(crate) const MAX_HEAD: usize = 1024;

impl Op for Rotate<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let (group, dim) = (self.op.heads / self.op.kv_heads, self.op.head_dim);
        assert!(dim <= MAX_HEAD);
        // Zeros follow a head up to a whole vector.
        let (mut key, mut query) = ([0.0; MAX_HEAD], [0.0; MAX_HEAD]);
        for (index, row) in self.rows.clone().enumerate() {
            let [q, k, v] = self.from.strides.map(|stride| stride * row);
            let angles = &self.angles.table[row * self.angles.dim..][..self.angles.dim];
            let heads = self.from.q[q + self.kv_head * group * dim..].chunks_exact(dim);
            let at = (self.kv_head * self.all_rows + row) * group;
            for (head, x) in heads.take(group).enumerate() {
                self.query(s, at + head, angles, x, &mut query);
            }
            let at = self.kv_head * dim;
            let key = &mut key[..dim];
            self.rotate(angles, &self.from.k[k + at..][..dim], key);
            let value = &self.from.v[v + at..][..dim];
            self.shape.put(s, &mut *self.block, self.token + index, key, value);
        }
    }
}

impl Rotate<'_> {
    /// Rotates and puts one head of a query, the `index`th.
    #[inline(always)]
    fn query<S: Simd>(
        &self,
        s: S,
        index: usize,
        angles: &[f32],
        x: &[f32],
        rotated: &mut [f32; MAX_HEAD],
    ) {
        let dim = x.len();
        match self.queries {
            Queries::F32(queries) => {
                // SAFETY: whoever makes a `Rotate` has these rows and heads to itself.
                let out = unsafe { queries.part(index * dim..(index + 1) * dim) };
                self.rotate(angles, x, out);
                for x in out {
                    *x *= self.op.scale;
                }
            }
            Queries::Bf16(queries) => {
                let len = query_len(dim);
                self.rotate(angles, x, &mut rotated[..dim]);
                if self.op.scale < 0.0 {
                    rotated[..dim].iter_mut().for_each(|x| *x = -*x);
                }
                // SAFETY: as above.
                let out = unsafe { queries.part(index * len..(index + 1) * len) };
                for (out, x) in out.chunks_mut(LANES).zip(rotated.chunks_exact(LANES)) {
                    let mut halves = [0; LANES];
                    // SAFETY: both have 16 elements.
                    unsafe { s.store_bf16(halves.as_mut_ptr(), s.load(x.as_ptr())) };
                    out.copy_from_slice(&halves[..out.len()]);
                }
            }
        }
    }

    /// `x` rotated, if the operation asks for it.
    #[inline(always)]
    fn rotate(&self, angles: &[f32], x: &[f32], out: &mut [f32]) {
        out.copy_from_slice(x);
        if !self.op.rotate {
            return;
        }
        let half = self.angles.dim / 2;
        let (cos, sin) = angles.split_at(half);
        if self.angles.interleaved {
            for (i, pair) in out[..2 * half].chunks_exact_mut(2).enumerate() {
                (pair[0], pair[1]) = turn(pair[0], pair[1], cos[i], sin[i]);
            }
        } else {
            let (low, high) = out[..2 * half].split_at_mut(half);
            for (((low, high), &cos), &sin) in low.iter_mut().zip(high).zip(cos).zip(sin) {
                (*low, *high) = turn(*low, *high, cos, sin);
            }
        }
    }
}

#[inline(always)]
fn turn(x: f32, y: f32, cos: f32, sin: f32) -> (f32, f32) {
    ((-y).mul_add(sin, x * cos), x.mul_add(sin, y * cos))
}
