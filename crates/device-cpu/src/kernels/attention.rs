//! Grouped-query causal attention over paged keys and values.
//!
//! Every page that a query sees gives a partial result, with the page's own maximum:
//!
//! ```text
//! m = max score    p = exp(score - m)    l = sum p    o = p V
//! ```
//!
//! and partial results are merged page after page, in order:
//!
//! ```text
//! M' = max(M, m)   a = exp(M - M')   b = exp(m - M')   L' = L a + l b   O' = O a + o b
//! ```
//!
//! So it does not matter which thread computes a page, or how many queries are computed together:
//! decode spreads the pages of one query over threads and merges at the end, prefill merges as it
//! goes, and the bits are the same.
//!
//! All query heads of a KV head are computed together; their page is widened to `f32` once.

use crate::buffer::{Aligned, Shared};
use crate::kernels::tile::{Matrix, multiply_add};
use crate::kv::BlockShape;
use crate::simd::{LANES, Op, Simd, math};
use std::ops::Range;
use tangor_device::model::ir::Attention;

/// Query rows (positions times heads of a group) that one task computes together.
pub(crate) const QUERIES: usize = 96;

/// Scores of one sequence's rows against its pages, for one KV head.
#[derive(Debug)]
pub(crate) struct Attend<'a> {
    pub(crate) op: &'a Attention,
    pub(crate) shape: BlockShape,
    /// Blocks of the sequence's pages, in order; see [`BlockShape`].
    pub(crate) cache: &'a [u8],
    /// Where in the cache each page's block of this head starts.
    pub(crate) pages: PageBlocks<'a>,
    /// Rotated and scaled queries of the task's positions, `(positions, group, head_dim)`.
    pub(crate) queries: &'a [f32],
    /// Position of the first of them in the sequence.
    pub(crate) first: usize,
    pub(crate) positions: usize,
    /// Pages to look at, of those that the sequence has.
    pub(crate) range: Range<usize>,
    pub(crate) scratch: &'a mut AttendScratch,
    pub(crate) out: Out<'a>,
}

/// The blocks of one layer and head, page by page.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PageBlocks<'a> {
    pub(crate) pages: &'a [u32],
    /// Byte of page 0.
    pub(crate) base: usize,
    /// Bytes between pages.
    pub(crate) stride: usize,
}

/// Where results go.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Out<'a> {
    /// Finished: `(rows, width)`, from row `row` and column `column` on.
    Rows { y: Shared<'a, f32>, width: usize, row: usize, column: usize },
    /// Each page's partial results, `(pages, group, partial_len)`: maximum, sum, and weighted
    /// values. Only for one position.
    Partials(Shared<'a, f32>),
}

/// Elements of a partial result.
pub(crate) fn partial_len(head_dim: usize) -> usize {
    head_dim.next_multiple_of(LANES) + LANES
}

/// One thread's working memory.
#[derive(Debug, Default)]
pub(crate) struct AttendScratch {
    keys: Aligned,
    values: Aligned,
    /// `(QUERIES, padded_tokens)`.
    scores: Aligned,
    /// `(QUERIES, padded_dim)`.
    partial: Aligned,
    /// `(QUERIES, padded_dim)`.
    total: Aligned,
}

impl AttendScratch {
    /// Makes room for a shape and as many query rows.
    pub(crate) fn reserve(&mut self, shape: &BlockShape, rows: usize) {
        let (tokens, dim) = (shape.padded_tokens(), shape.padded_dim());
        self.keys.reserve(shape.head_dim * tokens * 4);
        self.values.reserve(tokens * dim * 4);
        self.scores.reserve(rows * tokens * 4);
        self.partial.reserve(rows * dim * 4);
        self.total.reserve(rows * dim * 4);
    }

    /// Bytes in memory.
    pub(crate) fn bytes(&self) -> usize {
        [&self.keys, &self.values, &self.scores, &self.partial, &self.total]
            .iter()
            .map(|buffer| buffer.len())
            .sum()
    }
}

/// Maximum and sum per query row: running ones, and a page's.
#[derive(Clone, Copy, Debug)]
struct Stats {
    max: [f32; ROWS],
    sum: [f32; ROWS],
}

/// Rows of statistics: [`QUERIES`], or the heads of a group where those are more.
const ROWS: usize = 256;

/// Most query heads per KV head.
pub(crate) const MAX_GROUP: usize = ROWS;

impl Op for Attend<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let (group, dim) = (self.op.heads / self.op.kv_heads, self.op.head_dim);
        let rows = self.positions * group;
        assert!(rows <= ROWS && self.queries.len() == rows * dim);
        let mut buffers = std::mem::take(self.scratch);
        let padded = self.shape.padded_dim();
        let total = buffers.total.get_mut::<f32>(rows * padded);
        total.fill(0.0);
        let mut running = Stats { max: [f32::NEG_INFINITY; ROWS], sum: [0.0; ROWS] };
        let mut page_stats = running;
        for page in self.range.clone() {
            let seeing = self.rows_of(page, group);
            if seeing.is_empty() {
                continue;
            }
            // Tokens of the page that the last position sees: all that are needed.
            let last = self.first + self.positions;
            let seen = (last - page * self.shape.tokens).min(self.shape.tokens);
            let at = self.pages.base + self.pages.pages[page] as usize * self.pages.stride;
            let block = &self.cache[at..at + self.shape.bytes()];
            let (tokens, keys) = (self.shape.padded_tokens(), dim * self.shape.padded_tokens());
            let keys = buffers.keys.get_mut::<f32>(keys);
            let values = buffers.values.get_mut::<f32>(tokens * padded);
            self.shape.widen(s, block, seen, keys, values);
            let scores = buffers.scores.get_mut::<f32>(rows * tokens);
            self.scores(s, seen, keys, scores);
            self.soften(s, page, seen, scores, &mut page_stats);
            let partial = buffers.partial.get_mut::<f32>(rows * padded);
            self.weigh(s, page, scores, values, partial);
            match self.out {
                Out::Rows { .. } => {
                    merge(s, seeing, padded, &mut running, total, &page_stats, partial);
                }
                Out::Partials(out) => {
                    put_partials(out, page, group, padded, &page_stats, partial);
                }
            }
        }
        if let Out::Rows { y, width, row, column } = self.out {
            for position in 0..self.positions {
                let at = (row + position) * width + column;
                // SAFETY: whoever makes an `Attend` has these rows and heads to itself.
                let y = unsafe { y.part(at..at + group * dim) };
                for (head, y) in y.chunks_exact_mut(dim).enumerate() {
                    let index = position * group + head;
                    finish(&total[index * padded..][..dim], running.sum[index], y);
                }
            }
        }
        *self.scratch = buffers;
    }
}

impl Attend<'_> {
    /// Tokens of a page that a position of the task sees.
    #[inline(always)]
    fn visible(&self, page: usize, position: usize) -> Range<usize> {
        let start = page * self.shape.tokens;
        let position = self.first + position;
        let first = self.op.window.map_or(0, |window| (position + 1).saturating_sub(window));
        let low = first.saturating_sub(start).min(self.shape.tokens);
        let high = (position + 1).saturating_sub(start).min(self.shape.tokens);
        low..high.max(low)
    }

    /// Query rows that see anything of a page. Positions see later pages than those before them
    /// do, and lose earlier ones.
    #[inline(always)]
    fn rows_of(&self, page: usize, group: usize) -> Range<usize> {
        let sees = |position: &usize| !self.visible(page, *position).is_empty();
        let first = (0..self.positions).find(sees).unwrap_or(0);
        let last = (0..self.positions).rev().find(sees).map_or(0, |last| last + 1);
        first * group..last * group
    }

    /// `scores = queries keys`, for whole vectors of tokens.
    #[inline(always)]
    fn scores<S: Simd>(&self, s: S, seen: usize, keys: &[f32], scores: &mut [f32]) {
        let (dim, tokens) = (self.op.head_dim, self.shape.padded_tokens());
        let rows = self.queries.len() / dim;
        assert!(keys.len() == dim * tokens && scores.len() == rows * tokens);
        scores.fill(0.0);
        // SAFETY: the matrices are as long as asserted.
        unsafe {
            multiply_add(
                s,
                (rows, dim, seen.div_ceil(LANES)),
                Matrix { at: self.queries.as_ptr(), stride: dim },
                Matrix { at: keys.as_ptr(), stride: tokens },
                Matrix { at: scores.as_mut_ptr(), stride: tokens },
            );
        }
    }

    /// Turns scores into `exp(score - max)`, zero where a query does not see a token.
    #[inline(always)]
    fn soften<S: Simd>(
        &self,
        s: S,
        page: usize,
        seen: usize,
        scores: &mut [f32],
        stats: &mut Stats,
    ) {
        let tokens = self.shape.padded_tokens();
        let group = self.op.heads / self.op.kv_heads;
        let nothing = s.splat(f32::NEG_INFINITY);
        for (row, scores) in scores.chunks_exact_mut(tokens).enumerate() {
            let visible = self.visible(page, row / group);
            let scores = &mut scores[..seen.next_multiple_of(LANES)];
            let mut max = nothing;
            for (index, chunk) in scores.chunks_exact_mut(LANES).enumerate() {
                // SAFETY: a chunk has 16 elements.
                unsafe {
                    let mut x = s.load(chunk.as_ptr());
                    if let Some(cap) = self.op.softcap {
                        let scaled = s.mul(x, s.splat(1.0 / cap));
                        x = s.mul(s.splat(cap), math::tanh(s, scaled));
                    }
                    x = s.first(visible.end.saturating_sub(index * LANES), x, nothing);
                    x = s.first(visible.start.saturating_sub(index * LANES), nothing, x);
                    max = s.max(x, max);
                    s.store(chunk.as_mut_ptr(), x);
                }
            }
            let max = s.greatest(max);
            let mut sum = s.splat(0.0);
            for chunk in scores.chunks_exact_mut(LANES) {
                // SAFETY: a chunk has 16 elements.
                unsafe {
                    let p = math::exp(s, s.sub(s.load(chunk.as_ptr()), s.splat(max)));
                    sum = s.add(sum, p);
                    s.store(chunk.as_mut_ptr(), p);
                }
            }
            stats.max[row] = max;
            stats.sum[row] = s.sum(sum);
        }
    }

    /// `partial = scores values`. Where not all positions see all of the page, each position is
    /// computed for itself: a token that it does not see cannot touch it, even if it is NaN.
    #[inline(always)]
    fn weigh<S: Simd>(
        &self,
        s: S,
        page: usize,
        scores: &[f32],
        values: &[f32],
        partial: &mut [f32],
    ) {
        let (tokens, padded) = (self.shape.padded_tokens(), self.shape.padded_dim());
        let group = self.op.heads / self.op.kv_heads;
        let rows = self.positions * group;
        assert!(scores.len() == rows * tokens && values.len() == tokens * padded);
        assert_eq!(partial.len(), rows * padded);
        partial.fill(0.0);
        let (first, last) = (self.visible(page, 0), self.visible(page, self.positions - 1));
        let together = first == last;
        let step = if together { self.positions } else { 1 };
        for position in (0..self.positions).step_by(step) {
            let visible = self.visible(page, position);
            let row = position * group;
            // SAFETY: the matrices are as long as asserted, and `visible` lies within the page.
            unsafe {
                multiply_add(
                    s,
                    (step * group, visible.len(), padded / LANES),
                    Matrix {
                        at: scores.as_ptr().add(row * tokens + visible.start),
                        stride: tokens,
                    },
                    Matrix { at: values.as_ptr().add(visible.start * padded), stride: padded },
                    Matrix { at: partial.as_mut_ptr().add(row * padded), stride: padded },
                );
            }
        }
    }
}

/// Merges a page's partial results of some rows into the running ones.
#[inline(always)]
fn merge<S: Simd>(
    s: S,
    rows: Range<usize>,
    padded: usize,
    running: &mut Stats,
    total: &mut [f32],
    page: &Stats,
    partial: &[f32],
) {
    for row in rows {
        let at = row * padded..(row + 1) * padded;
        let (max, sum) = merge_row(
            s,
            (running.max[row], running.sum[row], &mut total[at.clone()]),
            (page.max[row], page.sum[row], &partial[at]),
        );
        running.max[row] = max;
        running.sum[row] = sum;
    }
}

/// Merges one row's partial result (maximum, sum, weighted values) into the running one; gives the
/// new maximum and sum.
#[inline(always)]
fn merge_row<S: Simd>(
    s: S,
    (max, sum, total): (f32, f32, &mut [f32]),
    (page_max, page_sum, partial): (f32, f32, &[f32]),
) -> (f32, f32) {
    let most = if page_max > max { page_max } else { max };
    let old = math::exp(s, s.splat(max - most));
    let new = math::exp(s, s.splat(page_max - most));
    for (total, partial) in total.chunks_exact_mut(LANES).zip(partial.chunks_exact(LANES)) {
        // SAFETY: chunks have 16 elements.
        unsafe {
            let scaled = s.mul(s.load(total.as_ptr()), old);
            s.store(total.as_mut_ptr(), s.fma(s.load(partial.as_ptr()), new, scaled));
        }
    }
    let sum = s.fma(s.splat(page_sum), new, s.mul(s.splat(sum), old));
    (most, s.greatest(sum))
}

#[inline(always)]
fn finish(total: &[f32], sum: f32, y: &mut [f32]) {
    for (y, total) in y.iter_mut().zip(total) {
        *y = total / sum;
    }
}

/// Writes the partial results of one page: see [`Out::Partials`].
#[inline(always)]
fn put_partials(
    out: Shared<'_, f32>,
    page: usize,
    group: usize,
    padded: usize,
    stats: &Stats,
    partial: &[f32],
) {
    let len = padded + LANES;
    for head in 0..group {
        let at = (page * group + head) * len;
        // SAFETY: whoever makes an `Attend` has these pages to itself.
        let out = unsafe { out.part(at..at + len) };
        out[0] = stats.max[head];
        out[1] = stats.sum[head];
        out[LANES..].copy_from_slice(&partial[head * padded..][..padded]);
    }
}

/// Merges the partial results of one query row's pages, in order.
#[derive(Debug)]
pub(crate) struct Merge<'a> {
    /// `(pages, group, partial_len)`.
    pub(crate) partials: &'a [f32],
    pub(crate) group: usize,
    pub(crate) head_dim: usize,
    /// Pages that the query sees.
    pub(crate) range: Range<usize>,
    /// `(group, head_dim)`.
    pub(crate) y: &'a mut [f32],
}

impl Op for Merge<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let len = partial_len(self.head_dim);
        let mut total = [0.0_f32; 1024];
        for (head, y) in self.y.chunks_exact_mut(self.head_dim).enumerate() {
            let total = &mut total[..len - LANES];
            total.fill(0.0);
            let (mut max, mut sum) = (f32::NEG_INFINITY, 0.0);
            for page in self.range.clone() {
                let partial = &self.partials[(page * self.group + head) * len..][..len];
                let page = (partial[0], partial[1], &partial[LANES..]);
                (max, sum) = merge_row(s, (max, sum, total), page);
            }
            finish(total, sum, y);
        }
    }
}
