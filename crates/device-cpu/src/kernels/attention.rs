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
//! All query heads of a KV head are computed together. For many queries their page is widened to
//! `f32` once, for few it is widened as it is read; the products are the same.

use crate::buffer::{Aligned, Shared};
use crate::kernels::tile::{Ahead, Elements, Matrix, Right, multiply};
use crate::kv::{BlockShape, Parts};
use crate::simd::{LANES, Op, Simd, math};
use std::ops::Range;
use tangor_device::model::ir::Attention;

/// Query rows (positions times heads of a group) that one task computes together.
pub(crate) const QUERIES: usize = 96;

/// Query rows up to which a page is widened as it is read: one tile.
const DIRECT: usize = 6;

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
    /// Of what was merged so far.
    running: Box<Stats>,
    /// Of one page.
    page: Box<Stats>,
}

impl AttendScratch {
    /// Makes room for a shape and as many query rows.
    pub(crate) fn reserve(&mut self, shape: &BlockShape, rows: usize) {
        let (tokens, dim) = (shape.padded_tokens(), shape.padded_dim());
        self.keys.reserve(shape.head_dim * tokens * 4);
        self.values.reserve(tokens * dim * 4);
        self.scores.reserve(rows * tokens * 4);
        self.partial.reserve(rows * dim * 4);
        self.total.reserve(rows.max(LANES) * dim * 4);
    }

    /// Bytes in memory.
    pub(crate) fn bytes(&self) -> usize {
        [&self.keys, &self.values, &self.scores, &self.partial, &self.total]
            .iter()
            .map(|buffer| buffer.len())
            .sum()
    }
}

/// A page that is being computed.
struct Page<'a> {
    page: usize,
    /// Its tokens that any position sees.
    seen: usize,
    buffers: &'a mut AttendScratch,
}

/// Maximum and sum per query row: running ones, and a page's.
#[derive(Clone, Copy, Debug)]
struct Stats {
    max: [f32; PADDED_ROWS],
    sum: [f32; PADDED_ROWS],
}

impl Default for Stats {
    /// Of nothing.
    fn default() -> Self {
        Self { max: [f32::NEG_INFINITY; PADDED_ROWS], sum: [0.0; PADDED_ROWS] }
    }
}

/// Rows of statistics: [`QUERIES`], or the heads of a group where those are more.
const ROWS: usize = 256;

/// So that a whole vector can be read from any row on.
const PADDED_ROWS: usize = ROWS + LANES;

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
        if let Out::Rows { .. } = self.out {
            buffers.total.get_mut::<f32>(rows * padded).fill(0.0);
            buffers.running.max[..rows].fill(f32::NEG_INFINITY);
            buffers.running.sum[..rows].fill(0.0);
        }
        for page in self.range.clone() {
            let seeing = self.rows_of(page, group);
            if seeing.is_empty() {
                continue;
            }
            // Tokens of the page that the last position sees: all that are needed.
            let last = self.first + self.positions;
            let seen = (last - page * self.shape.tokens).min(self.shape.tokens);
            let block = self.block(page);
            let distance = self.to_next(page);
            let mut page = Page { page, seen, buffers: &mut buffers };
            let wide = match self.shape.parts(block) {
                Parts::F32(keys, values, _) => Some((keys, values)),
                Parts::F16(b, values, _) if rows <= DIRECT => {
                    let values = Ahead { b: values, distance };
                    self.page(s, &mut page, Ahead { b, distance }, values);
                    None
                }
                Parts::Int8(b, values, _) if rows <= DIRECT => {
                    let values = Ahead { b: values, distance };
                    self.page(s, &mut page, Ahead { b, distance }, values);
                    None
                }
                Parts::F16(keys, values, _) => Some(self.widen(s, &mut page, keys, values)),
                Parts::Int8(keys, values, _) => Some(self.widen(s, &mut page, keys, values)),
            };
            if let Some((keys, values)) = wide {
                self.page(s, &mut page, keys, values);
            }
            let page = page.page;
            let AttendScratch { running, page: stats, total, partial, .. } = &mut buffers;
            let partial = partial.get::<f32>(rows * padded);
            match self.out {
                Out::Rows { .. } => {
                    let total = total.get_mut::<f32>(rows * padded);
                    merge(s, seeing, padded, running, total, stats, partial);
                }
                Out::Partials(out) => put_partials(out, page, group, padded, stats, partial),
            }
        }
        if let Out::Rows { y, width, row, column } = self.out {
            let total = buffers.total.get::<f32>(rows * padded);
            for position in 0..self.positions {
                let at = (row + position) * width + column;
                // SAFETY: whoever makes an `Attend` has these rows and heads to itself.
                let y = unsafe { y.part(at..at + group * dim) };
                for (head, y) in y.chunks_exact_mut(dim).enumerate() {
                    let index = position * group + head;
                    finish(&total[index * padded..][..dim], buffers.running.sum[index], y);
                }
            }
        }
        *self.scratch = buffers;
    }
}

impl Attend<'_> {
    /// A page's keys and values.
    #[inline(always)]
    fn block(&self, page: usize) -> &[u8] {
        let at = self.pages.base + self.pages.pages[page] as usize * self.pages.stride;
        &self.cache[at..at + self.shape.bytes()]
    }

    /// Bytes from a page's block to that of the next one, if that is seen.
    #[inline(always)]
    fn to_next(&self, page: usize) -> isize {
        let last = (self.first + self.positions - 1) / self.shape.tokens;
        let next = (page + 1).min(last);
        let at = |page: usize| self.block(page).as_ptr().addr().cast_signed();
        at(next).wrapping_sub(at(page))
    }

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

    /// Widens a page into the thread's buffers.
    #[inline(always)]
    fn widen<S: Simd>(
        &self,
        s: S,
        page: &mut Page<'_>,
        keys: impl Right<S>,
        values: impl Right<S>,
    ) -> (Elements<f32>, Elements<f32>) {
        let (tokens, padded) = (self.shape.padded_tokens(), self.shape.padded_dim());
        let wide_keys = page.buffers.keys.get_mut::<f32>(self.op.head_dim * tokens);
        let wide_values = page.buffers.values.get_mut::<f32>(tokens * padded);
        let seen = page.seen.next_multiple_of(LANES);
        // SAFETY: blocks have keys and values of all tokens, and the buffers as many.
        unsafe {
            for d in 0..self.op.head_dim {
                for t in (0..seen).step_by(LANES) {
                    let at = wide_keys.as_mut_ptr().add(d * tokens + t);
                    s.store(at, keys.load(s, d, t));
                }
            }
            for t in 0..page.seen {
                for d in (0..padded).step_by(LANES) {
                    let at = wide_values.as_mut_ptr().add(t * padded + d);
                    s.store(at, values.load(s, t, d));
                }
            }
        }
        let keys = Elements { at: wide_keys.as_ptr(), stride: tokens };
        let values = Elements { at: wide_values.as_ptr(), stride: padded };
        (keys, values)
    }

    /// Scores, their exponentials, and the values weighted by them.
    #[inline(always)]
    fn page<S: Simd>(&self, s: S, page: &mut Page<'_>, keys: impl Right<S>, values: impl Right<S>) {
        let (dim, tokens) = (self.op.head_dim, self.shape.padded_tokens());
        let rows = self.queries.len() / dim;
        let scores = page.buffers.scores.get_mut::<f32>(rows * tokens);
        // SAFETY: the matrices are as long as their shapes say.
        unsafe {
            multiply::<S, _, false>(
                s,
                (rows, dim, page.seen.div_ceil(LANES)),
                Matrix { at: self.queries.as_ptr(), stride: dim },
                keys,
                Matrix { at: scores.as_mut_ptr(), stride: tokens },
            );
        }
        self.soften(s, page.page, page.seen, scores, &mut page.buffers.page);
        let partial = page.buffers.partial.get_mut::<f32>(rows * self.shape.padded_dim());
        self.weigh(s, page.page, scores, values, partial);
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
            let (mut max, mut at) = (nothing, 0);
            while at < scores.len() {
                // SAFETY: 16 elements follow.
                unsafe {
                    let chunk = scores.as_mut_ptr().add(at);
                    let mut x = s.load(chunk);
                    if let Some(cap) = self.op.softcap {
                        let scaled = s.mul(x, s.splat(1.0 / cap));
                        x = s.mul(s.splat(cap), math::tanh(s, scaled));
                    }
                    if visible.end < at + LANES || visible.start > at {
                        x = s.first(visible.end.saturating_sub(at), x, nothing);
                        x = s.first(visible.start.saturating_sub(at), nothing, x);
                    }
                    max = s.max(x, max);
                    s.store(chunk, x);
                }
                at += LANES;
            }
            let max = s.greatest(max);
            let (mut sum, mut at) = (s.splat(0.0), 0);
            while at < scores.len() {
                // SAFETY: 16 elements follow.
                unsafe {
                    let chunk = scores.as_mut_ptr().add(at);
                    let p = math::exp(s, s.sub(s.load(chunk), s.splat(max)));
                    sum = s.add(sum, p);
                    s.store(chunk, p);
                }
                at += LANES;
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
        values: impl Right<S>,
        partial: &mut [f32],
    ) {
        let (tokens, padded) = (self.shape.padded_tokens(), self.shape.padded_dim());
        let group = self.op.heads / self.op.kv_heads;
        let rows = self.positions * group;
        assert!(scores.len() == rows * tokens && partial.len() == rows * padded);
        let together = self.visible(page, 0) == self.visible(page, self.positions - 1);
        let step = if together { self.positions } else { 1 };
        for position in (0..self.positions).step_by(step) {
            let visible = self.visible(page, position);
            let row = position * group;
            // SAFETY: the matrices are as long as asserted, and `visible` lies within the page.
            unsafe {
                multiply::<S, _, false>(
                    s,
                    (step * group, visible.len(), padded / LANES),
                    Matrix {
                        at: scores.as_ptr().add(row * tokens + visible.start),
                        stride: tokens,
                    },
                    From { b: values, k: visible.start },
                    Matrix { at: partial.as_mut_ptr().add(row * padded), stride: padded },
                );
            }
        }
    }
}

/// A factor from its row `k` on.
#[derive(Clone, Copy)]
struct From<B> {
    b: B,
    k: usize,
}

impl<S: Simd, B: Right<S>> Right<S> for From<B> {
    #[inline(always)]
    unsafe fn load(&self, s: S, k: usize, column: usize) -> S::F32 {
        // SAFETY: as the caller's.
        unsafe { self.b.load(s, self.k + k, column) }
    }
    #[inline(always)]
    fn place(&self, k: usize, column: usize) -> *const u8 {
        self.b.place(self.k + k, column)
    }
}

/// The statistics of 16 rows from `first` on.
///
/// # Safety
/// `first <= ROWS`.
#[inline(always)]
unsafe fn stat<S: Simd>(s: S, of: &[f32; PADDED_ROWS], first: usize) -> S::F32 {
    // SAFETY: the array goes on for a vector after the last row.
    unsafe { s.load(of.as_ptr().add(first)) }
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
    assert!(rows.end <= ROWS && total.len() == partial.len());
    assert!(total.len() >= rows.end * padded);
    for first in rows.clone().step_by(LANES) {
        let count = (rows.end - first).min(LANES);
        // SAFETY: statistics are padded by a vector, and `total` and `partial` have these rows.
        unsafe {
            let of_page = (stat(s, &page.max, first), stat(s, &page.sum, first));
            let (max, sum) = (&mut running.max[first..], &mut running.sum[first..]);
            let factors = merge_stats(s, count, max.as_mut_ptr(), sum.as_mut_ptr(), of_page);
            for row in 0..count {
                let at = (first + row) * padded;
                let (total, partial) = (total.as_mut_ptr().add(at), partial.as_ptr().add(at));
                merge_row(s, padded, total, partial, (factors.0[row], factors.1[row]));
            }
        }
    }
}

/// Merges the maxima and sums of up to 16 rows of a page into the running ones; gives what those
/// and the page are to be multiplied by.
///
/// # Safety
/// 16 elements are at `max` and at `sum`.
#[inline(always)]
unsafe fn merge_stats<S: Simd>(
    s: S,
    count: usize,
    max: *mut f32,
    sum: *mut f32,
    (page_max, page_sum): (S::F32, S::F32),
) -> ([f32; LANES], [f32; LANES]) {
    let (mut old, mut new) = ([0.0; LANES], [0.0; LANES]);
    // SAFETY: as the caller's.
    unsafe {
        let (was, keep) = (s.load(max), s.load(sum));
        let most = s.max(page_max, was);
        let a = math::exp(s, s.sub(was, most));
        let b = math::exp(s, s.sub(page_max, most));
        s.store(max, s.first(count, most, was));
        s.store(sum, s.first(count, s.fma(page_sum, b, s.mul(keep, a)), keep));
        s.store(old.as_mut_ptr(), a);
        s.store(new.as_mut_ptr(), b);
    }
    (old, new)
}

/// `total = total a + partial b`.
///
/// # Safety
/// Both have `padded` elements.
#[inline(always)]
unsafe fn merge_row<S: Simd>(
    s: S,
    padded: usize,
    total: *mut f32,
    partial: *const f32,
    (a, b): (f32, f32),
) {
    let (a, b) = (s.splat(a), s.splat(b));
    let mut d = 0;
    while d < padded {
        // SAFETY: as the caller's.
        unsafe {
            let scaled = s.mul(s.load(total.add(d)), a);
            s.store(total.add(d), s.fma(s.load(partial.add(d)), b, scaled));
        }
        d += LANES;
    }
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

/// Merges the partial results of one query row's pages, in order: up to 16 heads together, one in
/// every lane.
#[derive(Debug)]
pub(crate) struct Merge<'a> {
    /// `(kv_heads, pages, group, partial_len)`.
    pub(crate) partials: &'a [f32],
    /// Query heads per KV head.
    pub(crate) group: usize,
    pub(crate) head_dim: usize,
    /// Pages that the query sees, up to the last one of `pages`.
    pub(crate) range: Range<usize>,
    pub(crate) scratch: &'a mut AttendScratch,
    /// `(kv_heads * group, head_dim)`.
    pub(crate) y: &'a mut [f32],
}

impl Op for Merge<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let len = partial_len(self.head_dim);
        let padded = len - LANES;
        let heads = self.y.len() / self.head_dim;
        assert_eq!(self.partials.len(), heads * self.range.end * len);
        for first in (0..heads).step_by(LANES) {
            let count = (heads - first).min(LANES);
            let total = self.scratch.total.get_mut::<f32>(count * padded);
            total.fill(0.0);
            let (mut max, mut sum) = ([f32::NEG_INFINITY; LANES], [0.0; LANES]);
            for page in self.range.clone() {
                // Of this page and head; all heads' are there, as asserted.
                let partial = |head: usize| {
                    let (kv_head, head) = (head / self.group, head % self.group);
                    ((kv_head * self.range.end + page) * self.group + head) * len
                };
                let (mut page_max, mut page_sum) = ([0.0; LANES], [0.0; LANES]);
                for lane in 0..count {
                    let at = partial(first + lane);
                    (page_max[lane], page_sum[lane]) = (self.partials[at], self.partials[at + 1]);
                }
                // SAFETY: arrays of 16, and rows of `padded`.
                unsafe {
                    let of_page = (s.load(page_max.as_ptr()), s.load(page_sum.as_ptr()));
                    let (max, sum) = (max.as_mut_ptr(), sum.as_mut_ptr());
                    let factors = merge_stats(s, count, max, sum, of_page);
                    for (lane, total) in total.chunks_exact_mut(padded).enumerate() {
                        let partial = self.partials.as_ptr().add(partial(first + lane) + LANES);
                        let factors = (factors.0[lane], factors.1[lane]);
                        merge_row(s, padded, total.as_mut_ptr(), partial, factors);
                    }
                }
            }
            let y = self.y[first * self.head_dim..].chunks_exact_mut(self.head_dim);
            for (lane, (y, total)) in y.zip(total.chunks_exact(padded)).enumerate() {
                finish(&total[..self.head_dim], sum[lane], y);
            }
        }
    }
}
