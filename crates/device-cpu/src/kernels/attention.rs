//! Grouped-query causal attention over paged keys and values.
//!
//! Every block of pages that a query sees gives a partial result, with the block's own maximum:
//!
//! ```text
//! m = max score    p = exp(score - m)    l = sum p    o = p V
//! ```
//!
//! and partial results are merged block after block, in order:
//!
//! ```text
//! M' = max(M, m)   a = exp(M - M')   b = exp(m - M')   L' = L a + l b   O' = O a + o b
//! ```
//!
//! So it does not matter which thread computes a block, or how many queries are computed together:
//! decode spreads the blocks of one query over threads and merges at the end, prefill merges as it
//! goes, and the bits are the same. All query heads of a KV head are computed together.
//!
//! Caches of IEEE numbers, `f32` and halves, are computed here: in `f32`, a block being one page.
//! For many queries their page is widened to `f32` once, for few it is widened as it is read; the
//! products are the same. Caches of fewer bits are computed in [`narrow`].

use crate::buffer::{Aligned, Shared};
use crate::kernels::tile::{Ahead, Elements, Matrix, Right, multiply};
use crate::kv::{BlockShape, Parts};
use crate::simd::{LANES, Op, Simd, math};
use std::ops::Range;
use tangor_device::model::ir::Attention;

pub(crate) mod narrow;

/// Query rows (positions times heads of a group) that one task computes together.
pub(crate) const QUERIES: usize = 96;

/// Query rows up to which a page is widened as it is read: one tile.
const DIRECT: usize = 6;

/// Positions of one sequence and the keys and values of one KV head that they may see.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Look<'a> {
    pub(crate) op: &'a Attention,
    pub(crate) shape: BlockShape,
    pub(crate) cache: &'a [u8],
    /// Where in the cache each page's block of this head starts.
    pub(crate) pages: PageBlocks<'a>,
    /// The first position in the sequence.
    pub(crate) first: usize,
    pub(crate) positions: usize,
}

/// Attention of some positions, over caches of IEEE numbers.
#[derive(Debug)]
pub(crate) struct Attend<'a> {
    pub(crate) look: Look<'a>,
    /// Rotated and scaled, `(positions, group, head_dim)`.
    pub(crate) queries: &'a [f32],
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
    /// The partial results of each block of pages, `(blocks, group, partial_len)`: maximum, sum,
    /// and weighted values. Only for one position.
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
    /// Exponentials in bf16, of one tile.
    weights: Aligned,
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
        if shape.narrow() {
            self.reserve_narrow(shape, rows);
            return;
        }
        self.keys.reserve(shape.head_dim * tokens * 4);
        self.values.reserve(tokens * dim * 4);
        self.scores.reserve(rows * tokens * 4);
        self.partial.reserve(rows * dim * 4);
        self.total.reserve(rows.max(LANES) * dim * 4);
    }

    /// Bytes in memory.
    pub(crate) fn bytes(&self) -> usize {
        [&self.keys, &self.values, &self.scores, &self.weights, &self.partial, &self.total]
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
        let Look { op, shape, first, positions, .. } = self.look;
        let (group, dim) = (self.look.group(), op.head_dim);
        let rows = positions * group;
        assert!(rows <= ROWS && self.queries.len() == rows * dim);
        let mut buffers = std::mem::take(self.scratch);
        let padded = shape.padded_dim();
        if let Out::Rows { .. } = self.out {
            buffers.total.get_mut::<f32>(rows * padded).fill(0.0);
            buffers.running.max[..rows].fill(f32::NEG_INFINITY);
            buffers.running.sum[..rows].fill(0.0);
        }
        for page in self.range.clone() {
            let seeing = self.look.seeing(page * shape.tokens, shape.tokens);
            let seeing = seeing.start * group..seeing.end * group;
            if seeing.is_empty() {
                continue;
            }
            // Tokens of the page that the last position sees: all that are needed.
            let seen = (first + positions - page * shape.tokens).min(shape.tokens);
            let block = self.look.block(page);
            let distance = self.look.ahead(page, 1);
            let mut page = Page { page, seen, buffers: &mut buffers };
            let wide = match shape.parts(block) {
                Parts::F32(keys, values, _) => Some((keys, values)),
                Parts::F16(b, values, _) if rows <= DIRECT => {
                    let values = Ahead { b: values, distance };
                    self.page(s, &mut page, Ahead { b, distance }, values);
                    None
                }
                Parts::F16(keys, values, _) => Some(self.widen(s, &mut page, keys, values)),
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
        put_rows(&self.look, &buffers, self.out);
        *self.scratch = buffers;
    }
}

/// Writes finished rows.
#[inline(always)]
fn put_rows(look: &Look<'_>, buffers: &AttendScratch, out: Out<'_>) {
    let Out::Rows { y, width, row, column } = out else { return };
    let (group, dim, padded) = (look.group(), look.op.head_dim, look.shape.padded_dim());
    let total = buffers.total.get::<f32>(look.positions * group * padded);
    for position in 0..look.positions {
        let at = (row + position) * width + column;
        // SAFETY: whoever attends has these rows and heads to itself.
        let y = unsafe { y.part(at..at + group * dim) };
        for (head, y) in y.chunks_exact_mut(dim).enumerate() {
            let index = position * group + head;
            finish(&total[index * padded..][..dim], buffers.running.sum[index], y);
        }
    }
}

impl<'a> Look<'a> {
    /// Query heads per KV head.
    #[inline(always)]
    fn group(&self) -> usize {
        self.op.heads / self.op.kv_heads
    }

    /// A page's keys and values.
    #[inline(always)]
    fn block(&self, page: usize) -> &'a [u8] {
        let at = self.pages.base + self.pages.pages[page] as usize * self.pages.stride;
        &self.cache[at..at + self.shape.bytes()]
    }

    /// Bytes from a page's block to that of the page `count` pages later, or of the last one seen.
    #[inline(always)]
    fn ahead(&self, page: usize, count: usize) -> isize {
        let last = (self.first + self.positions - 1) / self.shape.tokens;
        let next = (page + count).min(last);
        let at = |page: usize| self.block(page).as_ptr().addr().cast_signed();
        at(next).wrapping_sub(at(page))
    }

    /// Of `count` tokens from `start` on, those that a position sees.
    #[inline(always)]
    fn visible(&self, start: usize, count: usize, position: usize) -> Range<usize> {
        let position = self.first + position;
        let first = self.op.window.map_or(0, |window| (position + 1).saturating_sub(window));
        let low = first.saturating_sub(start).min(count);
        let high = (position + 1).saturating_sub(start).min(count);
        low..high.max(low)
    }

    /// Positions that see any of `count` tokens from `start` on. Positions see later tokens than
    /// those before them do, and lose earlier ones.
    #[inline(always)]
    fn seeing(&self, start: usize, count: usize) -> Range<usize> {
        let sees = |position: &usize| !self.visible(start, count, *position).is_empty();
        let first = (0..self.positions).find(sees).unwrap_or(0);
        let last = (0..self.positions).rev().find(sees).map_or(0, |last| last + 1);
        first..last
    }
}

impl Attend<'_> {
    /// Tokens of a page that a position of the task sees.
    #[inline(always)]
    fn visible(&self, page: usize, position: usize) -> Range<usize> {
        let tokens = self.look.shape.tokens;
        self.look.visible(page * tokens, tokens, position)
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
        let (tokens, padded) = (self.look.shape.padded_tokens(), self.look.shape.padded_dim());
        let wide_keys = page.buffers.keys.get_mut::<f32>(self.look.op.head_dim * tokens);
        let wide_values = page.buffers.values.get_mut::<f32>(tokens * padded);
        let seen = page.seen.next_multiple_of(LANES);
        // SAFETY: blocks have keys and values of all tokens, and the buffers as many.
        unsafe {
            for d in 0..self.look.op.head_dim {
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
        let (dim, tokens) = (self.look.op.head_dim, self.look.shape.padded_tokens());
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
        let partial = page.buffers.partial.get_mut::<f32>(rows * self.look.shape.padded_dim());
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
        let tokens = self.look.shape.padded_tokens();
        let group = self.look.op.heads / self.look.op.kv_heads;
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
                    if let Some(cap) = self.look.op.softcap {
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
        let (tokens, padded) = (self.look.shape.padded_tokens(), self.look.shape.padded_dim());
        let group = self.look.op.heads / self.look.op.kv_heads;
        let rows = self.look.positions * group;
        assert!(scores.len() == rows * tokens && partial.len() == rows * padded);
        let together = self.visible(page, 0) == self.visible(page, self.look.positions - 1);
        let step = if together { self.look.positions } else { 1 };
        for position in (0..self.look.positions).step_by(step) {
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
            let (max, sum) = (max.as_mut_ptr(), sum.as_mut_ptr());
            let factors = merge_stats(s, false, count, max, sum, of_page);
            for row in 0..count {
                let at = (first + row) * padded;
                let (total, partial) = (total.as_mut_ptr().add(at), partial.as_ptr().add(at));
                merge_row(s, padded, total, partial, (factors.0[row], factors.1[row]));
            }
        }
    }
}

/// Merges the maxima and sums of up to 16 rows of a page into the running ones; gives what those
/// and the page are to be multiplied by. `narrow`: maxima are logarithms to base 2.
///
/// # Safety
/// 16 elements are at `max` and at `sum`.
#[inline(always)]
unsafe fn merge_stats<S: Simd>(
    s: S,
    narrow: bool,
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
        let (a, b) = (s.sub(was, most), s.sub(page_max, most));
        let (a, b) = if narrow {
            (math::exp2(s, a), math::exp2(s, b))
        } else {
            (math::exp(s, a), math::exp(s, b))
        };
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

/// Merges the partial results of one query row's blocks of pages, in order: up to 16 heads
/// together, one in every lane.
#[derive(Debug)]
pub(crate) struct Merge<'a> {
    /// `(kv_heads, blocks, group, partial_len)`.
    pub(crate) partials: &'a [f32],
    /// Whether they come from [`narrow`].
    pub(crate) narrow: bool,
    /// Query heads per KV head.
    pub(crate) group: usize,
    pub(crate) head_dim: usize,
    /// Blocks that the query sees, up to the last one.
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
                    let factors = merge_stats(s, self.narrow, count, max, sum, of_page);
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
