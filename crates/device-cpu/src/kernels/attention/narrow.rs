//! Attention over caches of bf16 and of 8 bits.
//!
//! Queries, keys, values and the exponentials of scores are bf16, sums are `f32`. A block is as
//! many pages as make about [`BLOCK`] tokens. A tile of query rows meets a whole block, and what it
//! needs of that stays in the nearest cache:
//!
//! ```text
//! t = q K c          c: the scale, times log2 e
//! m = max t          p = bf16(2^(t - m))     l = sum 2^(t - m)      o = p V
//! ```
//!
//! and is merged into the rows' totals as the module above this one says, with powers of 2.

use super::{AttendScratch, Look, Out, PADDED_ROWS, ROWS, merge_stats, put_rows};
use crate::kernels::pairs::{Codes, Pairs, Rows16, Source, add_products, products, widen};
use crate::kv::BlockShape;
use crate::simd::{LANES, Op, Simd, Uses, math, unroll};
use half::bf16;
use std::hint::black_box;
use std::ops::Range;

/// Tokens that are reduced together, about.
const BLOCK: usize = 128;

/// Query rows up to which 8-bit pages are widened as they are read: one tile.
const DIRECT: usize = 6;

/// Rows of a tile, at the most.
const TILE: usize = 6;

/// Pages that are reduced together.
#[inline(always)]
pub(crate) fn block_pages(shape: &BlockShape) -> usize {
    if shape.narrow() { (BLOCK / shape.tokens).max(1) } else { 1 }
}

/// Elements of a query in memory.
#[inline(always)]
pub(crate) fn query_len(head_dim: usize) -> usize {
    head_dim.next_multiple_of(2)
}

/// Attention of some positions.
#[derive(Debug)]
pub(crate) struct AttendNarrow<'a> {
    pub(crate) look: Look<'a>,
    /// Rotated, in bf16, `(positions, group, query_len)`.
    pub(crate) queries: &'a [u16],
    /// Blocks of pages to look at, of those that the sequence has.
    pub(crate) range: Range<usize>,
    pub(crate) scratch: &'a mut AttendScratch,
    pub(crate) out: Out<'a>,
}

impl AttendScratch {
    pub(super) fn reserve_narrow(&mut self, shape: &BlockShape, rows: usize) {
        let pages = block_pages(shape);
        let slots = pages * shape.padded_tokens();
        if shape.dtype == tangor_device::KvType::Int8 {
            self.keys.reserve(slots * query_len(shape.head_dim) * 2);
            self.values.reserve(slots * shape.padded_dim() * 2);
        }
        self.scores.reserve(TILE * slots * 4);
        self.weights.reserve(TILE * slots * 2);
        self.total.reserve(rows.max(LANES) * shape.padded_dim() * 4);
    }
}

/// The pages of a block, in a form that can be multiplied.
trait Blocks: Copy {
    type Keys: Source;
    type Values: Source;
    /// Of the page `index` of the block.
    fn keys(&self, index: usize) -> Self::Keys;
    fn values(&self, index: usize) -> Self::Values;
}

/// bf16: as the cache has it, from a page on, or widened.
#[derive(Clone, Copy)]
enum Plain<'a> {
    Cached(&'a Look<'a>, usize),
    Widened(Wide),
}

/// 8 bits as the cache has them; the first page.
#[derive(Clone, Copy)]
struct Coded<'a>(&'a Look<'a>, usize);

/// 8 bits widened to bf16: every page's keys and values, and their distances in pairs.
#[derive(Clone, Copy)]
struct Wide {
    keys: (Pairs, usize),
    values: (Pairs, usize),
}

impl Blocks for Plain<'_> {
    type Keys = Pairs;
    type Values = Pairs;
    #[inline(always)]
    fn keys(&self, index: usize) -> Pairs {
        match self {
            Self::Cached(look, first) => look.shape.pairs(look.block(first + index)).0,
            Self::Widened(wide) => wide.keys(index),
        }
    }
    #[inline(always)]
    fn values(&self, index: usize) -> Pairs {
        match self {
            Self::Cached(look, first) => look.shape.pairs(look.block(first + index)).1,
            Self::Widened(wide) => wide.values(index),
        }
    }
}

impl Blocks for Coded<'_> {
    type Keys = Codes<true>;
    type Values = Codes<false>;
    #[inline(always)]
    fn keys(&self, index: usize) -> Codes<true> {
        self.0.shape.codes(self.0.block(self.1 + index)).0
    }
    #[inline(always)]
    fn values(&self, index: usize) -> Codes<false> {
        self.0.shape.codes(self.0.block(self.1 + index)).1
    }
}

impl Wide {
    #[inline(always)]
    fn keys(&self, index: usize) -> Pairs {
        Pairs { at: self.keys.0.at.wrapping_add(index * self.keys.1), ..self.keys.0 }
    }
    #[inline(always)]
    fn values(&self, index: usize) -> Pairs {
        Pairs { at: self.values.0.at.wrapping_add(index * self.values.1), ..self.values.0 }
    }
}

/// A block that is being computed.
#[derive(Clone, Copy)]
struct Block {
    index: usize,
    /// Its first token.
    start: usize,
    /// Bytes to the next one, page by page.
    distance: isize,
}

/// What a tile of rows sees of a block.
#[derive(Clone, Copy)]
struct Tile {
    /// Its first row.
    row: usize,
    /// Tokens of the block that any of its rows sees, and those that all of them see.
    any: (usize, usize),
    all: (usize, usize),
}

/// A block for `R` rows: a function of its own, since compilers take far more than twice as long
/// for one that is twice as long. What it shares with other tiles is behind references: otherwise
/// it is written for each, word by word, and read by vectors, which wait for all words to arrive.
struct AttendTile<'a, 'b, B, const R: usize> {
    attend: &'a AttendNarrow<'b>,
    block: &'a Block,
    pages: &'a B,
    tile: Tile,
    buffers: &'a mut AttendScratch,
}

impl<B: Blocks, const R: usize> Op for AttendTile<'_, '_, B, R> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { attend, block, pages, tile, buffers } = self;
        attend.tile::<S, B, R>(s, *block, *pages, tile, buffers);
    }
}

impl Op for AttendNarrow<'_> {
    type Output = ();
    const USES: Uses = Uses::Pairs;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let look = self.look;
        let (shape, rows) = (look.shape, look.positions * look.group());
        assert!(rows <= ROWS && self.queries.len() == rows * query_len(shape.head_dim));
        let mut buffers = std::mem::take(self.scratch);
        if let Out::Rows { .. } = self.out {
            buffers.total.get_mut::<f32>(rows * shape.padded_dim()).fill(0.0);
            buffers.running.max[..rows].fill(f32::NEG_INFINITY);
            buffers.running.sum[..rows].fill(0.0);
        }
        let pages = block_pages(&shape);
        for index in self.range.clone() {
            let (first, start) = (index * pages, index * pages * shape.tokens);
            let seeing = look.seeing(start, pages * shape.tokens);
            if seeing.is_empty() {
                continue;
            }
            // Many rows find a block in the cache; few wait for memory.
            let few = rows <= DIRECT;
            let distance = if few { look.ahead(first, pages) } else { 0 };
            let block = Block { index, start, distance };
            let coded = shape.dtype == tangor_device::KvType::Int8;
            if coded && few {
                self.block(s, &block, &Coded(&look, first), seeing, &mut buffers);
                continue;
            }
            let plain = if coded {
                Plain::Widened(self.widen(s, first, start, &mut buffers))
            } else {
                Plain::Cached(&look, first)
            };
            self.block(s, &block, &plain, seeing, &mut buffers);
        }
        put_rows(&look, &buffers, self.out);
        *self.scratch = buffers;
    }
}

impl AttendNarrow<'_> {
    /// Widens the tokens of a block that the last position sees.
    #[inline(always)]
    fn widen<S: Simd>(
        &self,
        s: S,
        first: usize,
        start: usize,
        buffers: &mut AttendScratch,
    ) -> Wide {
        let Look { shape, .. } = self.look;
        let (stride, padded) = (shape.padded_tokens(), shape.padded_dim());
        let (key_pairs, value_pairs) = (query_len(shape.head_dim) / 2, stride / 2);
        let pages = block_pages(&shape);
        let keys = buffers.keys.get_mut::<[u16; 2]>(pages * key_pairs * stride).as_ptr();
        let values = buffers.values.get_mut::<[u16; 2]>(pages * value_pairs * padded).as_ptr();
        let wide = Wide {
            keys: (Pairs { at: keys, stride }, key_pairs * stride),
            values: (Pairs { at: values, stride: padded }, value_pairs * padded),
        };
        let seen = self.look.first + self.look.positions - start;
        for page in 0..pages.min(seen.div_ceil(shape.tokens)) {
            let seen = (seen - page * shape.tokens).min(shape.tokens);
            let (k, v) = shape.codes(self.look.block(first + page));
            // SAFETY: blocks have keys and values of all tokens, and the buffers as many.
            unsafe {
                widen(s, k, 0..key_pairs, seen.next_multiple_of(LANES), wide.keys(page));
                widen(s, v, 0..seen.div_ceil(2), padded, wide.values(page));
            }
        }
        wide
    }

    /// Computes a block for all positions that see any of it.
    #[inline(always)]
    fn block<S: Simd, B: Blocks>(
        &self,
        s: S,
        block: &Block,
        pages: &B,
        seeing: Range<usize>,
        buffers: &mut AttendScratch,
    ) {
        let group = self.look.group();
        let (mut row, last) = (seeing.start * group, seeing.end * group);
        while row < last {
            // Tiles of about equal height.
            let tiles = (last - row).div_ceil(S::ROWS.min(TILE));
            let count = (last - row).div_ceil(tiles);
            let tile = self.tile_of(block, row, count);
            let attend = self;
            match count {
                6 if S::ROWS >= 6 => {
                    s.run(AttendTile::<B, 6> { attend, block, pages, tile, buffers })
                }
                5 if S::ROWS >= 5 => {
                    s.run(AttendTile::<B, 5> { attend, block, pages, tile, buffers })
                }
                4 if S::ROWS >= 4 => {
                    s.run(AttendTile::<B, 4> { attend, block, pages, tile, buffers })
                }
                3 if S::ROWS >= 3 => {
                    s.run(AttendTile::<B, 3> { attend, block, pages, tile, buffers })
                }
                2 if S::ROWS >= 2 => {
                    s.run(AttendTile::<B, 2> { attend, block, pages, tile, buffers })
                }
                _ => s.run(AttendTile::<B, 1> { attend, block, pages, tile, buffers }),
            }
            row += count;
        }
    }

    #[inline(always)]
    fn tile_of(&self, block: &Block, row: usize, count: usize) -> Tile {
        let (group, tokens) = (self.look.group(), self.block_tokens());
        let first = self.look.visible(block.start, tokens, row / group);
        let last = self.look.visible(block.start, tokens, (row + count - 1) / group);
        Tile { row, any: (first.start, last.end), all: (last.start, first.end) }
    }

    #[inline(always)]
    fn block_tokens(&self) -> usize {
        block_pages(&self.look.shape) * self.look.shape.tokens
    }

    /// Computes a block for `R` rows and merges it into their totals, or puts it out.
    #[inline(always)]
    fn tile<S: Simd, B: Blocks, const R: usize>(
        &self,
        s: S,
        block: Block,
        pages: B,
        tile: Tile,
        buffers: &mut AttendScratch,
    ) {
        let shape = self.look.shape;
        let slots = block_pages(&shape) * shape.padded_tokens();
        let AttendScratch { scores, weights, running, total, .. } = buffers;
        let scores = scores.get_mut::<f32>(R * slots);
        let weights = weights.get_mut::<u16>(R * slots);
        let vectors = self.vectors(tile);
        self.scores::<S, B, R>(s, block, pages, (tile.row, vectors.clone()), scores);
        self.mask(s, block, tile, vectors.clone(), scores);
        let (max, sum) = self.soften::<S, R>(s, vectors, scores, weights);
        let factors;
        let out = match self.out {
            Out::Rows { .. } => {
                let (to_max, to_sum) = (&mut running.max, &mut running.sum);
                assert!(tile.row + R <= ROWS && ROWS + LANES <= PADDED_ROWS);
                // SAFETY: statistics are padded by a vector.
                factors = unsafe {
                    let stats = (s.load(max.as_ptr()), s.load(sum.as_ptr()));
                    let max = to_max.as_mut_ptr().add(tile.row);
                    let sum = to_sum.as_mut_ptr().add(tile.row);
                    merge_stats(s, true, R, max, sum, stats)
                };
                let stride = shape.padded_dim();
                let total = total.get_mut::<f32>((tile.row + R) * stride);
                let at = total[tile.row * stride..].as_mut_ptr();
                // From memory, where they are written and read as wholes: the compiler would move
                // them by parts that stores and loads do not share.
                Target { at, stride, factors: Some(black_box(&factors)) }
            }
            Out::Partials(out) => {
                let len = shape.padded_dim() + LANES;
                let at = (block.index * self.look.group() + tile.row) * len;
                // SAFETY: whoever attends has these blocks to itself.
                let out = unsafe { out.part(at..at + R * len) };
                for (row, out) in out.chunks_exact_mut(len).enumerate() {
                    (out[0], out[1]) = (max[row], sum[row]);
                }
                Target { at: out[LANES..].as_mut_ptr(), stride: len, factors: None }
            }
        };
        self.weigh::<S, B, R>(s, block, pages, tile, weights, out);
    }

    /// Vectors of scores that any row of a tile needs, pages following each other.
    #[inline(always)]
    fn vectors(&self, tile: Tile) -> Range<usize> {
        let (tokens, per_page) = (self.look.shape.tokens, self.look.shape.padded_tokens() / LANES);
        let at = |token: usize| token / tokens * per_page + token % tokens / LANES;
        at(tile.any.0)..at(tile.any.1 - 1) + 1
    }

    /// `q K`, `(R, slots)`.
    #[inline(always)]
    fn scores<S: Simd, B: Blocks, const R: usize>(
        &self,
        s: S,
        block: Block,
        pages: B,
        (row, vectors): (usize, Range<usize>),
        scores: &mut [f32],
    ) {
        let len = query_len(self.look.shape.head_dim);
        let queries = Rows16 { at: self.queries[row * len..][..R * len].as_ptr(), stride: len };
        let mut at = vectors.start;
        while at < vectors.end {
            let task = (block, queries, at);
            let left = vectors.end - at;
            at += if S::WIDE && left >= 4 {
                self.some_scores::<S, B, R, 4>(s, pages, task, scores)
            } else if S::WIDE && left >= 2 {
                self.some_scores::<S, B, R, 2>(s, pages, task, scores)
            } else {
                self.some_scores::<S, B, R, 1>(s, pages, task, scores)
            };
        }
    }

    /// `V` vectors of scores from a vector on; gives `V`.
    #[inline(always)]
    fn some_scores<S: Simd, B: Blocks, const R: usize, const V: usize>(
        &self,
        s: S,
        pages: B,
        (block, queries, at): (Block, Rows16, usize),
        scores: &mut [f32],
    ) -> usize {
        let per_page = self.look.shape.padded_tokens() / LANES;
        let slots = scores.len() / R;
        assert!((at + V) * LANES <= slots);
        let mut from = [(pages.keys(at / per_page), at % per_page * LANES); V];
        unroll!(v < V, {
            let at = at + v;
            from[v] = (pages.keys(at / per_page), at % per_page * LANES);
        });
        let pairs = query_len(self.look.shape.head_dim) / 2;
        // SAFETY: pages have keys of all tokens, and `scores` rows of `slots`.
        unsafe {
            let sums = products::<S, B::Keys, R, V>(s, pairs, queries, from, block.distance);
            unroll!(r < R, {
                unroll!(v < V, {
                    s.store(scores.as_mut_ptr().add(r * slots + (at + v) * LANES), sums[r][v]);
                });
            });
        }
        V
    }

    /// Caps scores, and makes those of tokens that a row does not see minus infinity.
    #[inline(always)]
    fn mask<S: Simd>(
        &self,
        s: S,
        block: Block,
        tile: Tile,
        vectors: Range<usize>,
        scores: &mut [f32],
    ) {
        let Look { op, shape, .. } = self.look;
        let (tokens, per_page) = (shape.tokens, shape.padded_tokens() / LANES);
        let slots = block_pages(&shape) * shape.padded_tokens();
        let whole = tile.all == (0, self.block_tokens()) && tokens.is_multiple_of(LANES);
        if whole && op.softcap.is_none() {
            return;
        }
        let nothing = s.splat(f32::NEG_INFINITY);
        for (row, scores) in scores.chunks_exact_mut(slots).enumerate() {
            let position = (tile.row + row) / self.look.group();
            let visible = self.look.visible(block.start, self.block_tokens(), position);
            for vector in vectors.clone() {
                let first = vector / per_page * tokens;
                let at = vector % per_page * LANES;
                let low = visible.start.saturating_sub(first).min(tokens);
                let high = visible.end.saturating_sub(first).min(tokens);
                let chunk = &mut scores[vector * LANES..][..LANES];
                // SAFETY: 16 elements.
                unsafe {
                    let mut x = s.load(chunk.as_ptr());
                    if let Some(cap) = op.softcap {
                        let scaled = s.mul(x, s.splat(op.scale.abs() / cap));
                        x = s.mul(s.splat(cap), math::tanh(s, scaled));
                    }
                    x = s.first(high.saturating_sub(at), x, nothing);
                    x = s.first(low.saturating_sub(at), nothing, x);
                    s.store(chunk.as_mut_ptr(), x);
                }
            }
        }
    }

    /// What scores are multiplied by to be exponents of 2.
    #[inline(always)]
    fn exponent(&self) -> f32 {
        let scale = if self.look.op.softcap.is_some() { 1.0 } else { self.look.op.scale.abs() };
        (scale * std::f32::consts::LOG2_E).max(f32::MIN_POSITIVE)
    }

    /// Exponentials of scores in bf16; gives every row's maximum, as an exponent, and sum.
    #[inline(always)]
    fn soften<S: Simd, const R: usize>(
        &self,
        s: S,
        vectors: Range<usize>,
        scores: &[f32],
        weights: &mut [u16],
    ) -> ([f32; LANES], [f32; LANES]) {
        let slots = scores.len() / R;
        assert!(weights.len() == scores.len() && vectors.end * LANES <= slots);
        let (mut maxima, mut sums) = ([f32::NEG_INFINITY; LANES], [0.0; LANES]);
        let (exponent, scores, weights) = (self.exponent(), scores.as_ptr(), weights.as_mut_ptr());
        let factor = s.splat(exponent);
        // Row beside row: what one waits for, the others have.
        let mut max = [s.splat(f32::NEG_INFINITY); R];
        let (mut down, mut sum) = ([s.splat(0.0); R], [s.splat(0.0); R]);
        // SAFETY: rows have `slots` elements, and vectors lie within them.
        unsafe {
            for vector in vectors.clone() {
                unroll!(r < R, {
                    max[r] = s.max(s.load(scores.add(r * slots + vector * LANES)), max[r]);
                });
            }
            unroll!(r < R, {
                maxima[r] = s.greatest(max[r]) * exponent;
                down[r] = s.splat(-maxima[r]);
            });
            for vector in vectors {
                unroll!(r < R, {
                    let at = r * slots + vector * LANES;
                    let p = math::exp2(s, s.fma(s.load(scores.add(at)), factor, down[r]));
                    sum[r] = s.add(sum[r], p);
                    s.store_kept_bf16(weights.add(at), p);
                });
            }
        }
        unroll!(r < R, {
            sums[r] = s.sum(sum[r]);
        });
        (maxima, sums)
    }

    /// `p V`, to where it goes.
    #[inline(always)]
    fn weigh<S: Simd, B: Blocks, const R: usize>(
        &self,
        s: S,
        block: Block,
        pages: B,
        tile: Tile,
        weights: &[u16],
        out: Target<'_>,
    ) {
        if !self.finite(pages, tile) {
            self.weigh_apart(s, (block, tile, R), pages, weights, out);
            return;
        }
        let vectors = self.look.shape.padded_dim() / LANES;
        let mut vector = 0;
        while vector < vectors {
            let task = (block, tile, vector * LANES);
            let left = vectors - vector;
            vector += if S::WIDE && left >= 4 {
                self.some_weighed::<S, B, R, 4>(s, pages, task, weights, out)
            } else if S::WIDE && left >= 2 {
                self.some_weighed::<S, B, R, 2>(s, pages, task, weights, out)
            } else {
                self.some_weighed::<S, B, R, 1>(s, pages, task, weights, out)
            };
        }
    }

    /// `V` vectors of [`Self::weigh`] from a column on; gives `V`.
    #[inline(always)]
    fn some_weighed<S: Simd, B: Blocks, const R: usize, const V: usize>(
        &self,
        s: S,
        pages: B,
        (block, tile, column): (Block, Tile, usize),
        weights: &[u16],
        out: Target<'_>,
    ) -> usize {
        let (tokens, padded) = (self.look.shape.tokens, self.look.shape.padded_tokens());
        let slots = weights.len() / R;
        // From page to page sums go through memory that the compiler cannot see through: registers
        // for all of them over two nested loops are more than it manages without copies.
        let mut sums = [[[0.0_f32; LANES]; V]; R];
        let sums = black_box(&mut sums).as_mut_ptr().cast::<f32>();
        for page in tile.any.0 / tokens..tile.any.1.div_ceil(tokens) {
            let low = tile.any.0.saturating_sub(page * tokens);
            let high = (tile.any.1 - page * tokens).min(tokens);
            let weights = &weights[page * padded..][..(R - 1) * slots + padded];
            let weights = Rows16 { at: weights.as_ptr(), stride: slots };
            let (pairs, from) = (low / 2..high.div_ceil(2), (pages.values(page), column));
            // SAFETY: pages have values of all tokens, in whole pairs; there are sums of `R` rows.
            unsafe {
                let distance = block.distance;
                add_products::<S, B::Values, R, V>(s, sums, pairs, weights, from, distance);
            }
        }
        for row in 0..R {
            for v in 0..V {
                // SAFETY: the target has `R` rows of all columns, and the sums as many.
                unsafe {
                    let x = s.load(sums.add((row * V + v) * LANES));
                    out.put(s, row, column + v * LANES, x);
                }
            }
        }
        V
    }

    /// Whether the values that only some rows of a tile see are all finite, and those that share a
    /// pair with them: only then can a weight of 0 hide them.
    #[inline(always)]
    fn finite<B: Blocks>(&self, pages: B, tile: Tile) -> bool {
        let tokens = self.look.shape.tokens;
        let ends = [(tile.any.0, tile.all.0), (tile.all.1, tile.any.1)];
        ends.iter().all(|&(low, high)| {
            (low / tokens..(high + 1).div_ceil(tokens)).all(|page| {
                let low = low.saturating_sub(page * tokens).min(tokens);
                let high = high.saturating_sub(page * tokens).min(tokens);
                (low / 2..high.div_ceil(2)).all(|pair| {
                    // SAFETY: pages have values of all tokens, in whole pairs.
                    unsafe { pages.values(page).finite(pair, self.look.shape.head_dim) }
                })
            })
        })
    }

    /// [`Self::weigh`] row by row and element by element, the same bits: no token that a row does
    /// not see is touched.
    #[inline(never)]
    fn weigh_apart<S: Simd, B: Blocks>(
        &self,
        s: S,
        (block, tile, rows): (Block, Tile, usize),
        pages: B,
        weights: &[u16],
        out: Target<'_>,
    ) {
        let shape = self.look.shape;
        let slots = weights.len() / rows;
        for row in 0..rows {
            let position = (tile.row + row) / self.look.group();
            let visible = self.look.visible(block.start, self.block_tokens(), position);
            for column in (0..shape.padded_dim()).step_by(LANES) {
                let mut sums = [0.0_f32; LANES];
                for (lane, sum) in sums.iter_mut().enumerate() {
                    for pair in visible.start / 2..visible.end.div_ceil(2) {
                        // The odd token first.
                        for token in [2 * pair + 1, 2 * pair] {
                            let (page, at) = (token / shape.tokens, token % shape.tokens);
                            if !visible.contains(&token) || column + lane >= shape.head_dim {
                                continue;
                            }
                            let weight = weights[row * slots + page * shape.padded_tokens() + at];
                            let weight = bf16::from_bits(weight).to_f32();
                            // SAFETY: pages have values of all tokens.
                            let value = unsafe {
                                pages.values(page).element(at / 2, column + lane, at % 2)
                            };
                            *sum = weight.mul_add(value, *sum);
                        }
                    }
                }
                // SAFETY: the target has `R` rows of all columns.
                unsafe { out.put(s, row, column, s.load(sums.as_ptr())) }
            }
        }
    }
}

/// Where the weighted values of a tile go.
#[derive(Clone, Copy)]
struct Target<'a> {
    /// `(rows, stride)`.
    at: *mut f32,
    stride: usize,
    /// What is there and what comes are multiplied by these and added, row by row; without, what
    /// was there is lost.
    factors: Option<&'a ([f32; LANES], [f32; LANES])>,
}

impl Target<'_> {
    /// # Safety
    /// The row is there, and 16 elements from `column` on.
    #[inline(always)]
    unsafe fn put<S: Simd>(&self, s: S, row: usize, column: usize, x: S::F32) {
        // SAFETY: as the caller's.
        unsafe {
            let to = self.at.add(row * self.stride + column);
            let y = match self.factors {
                Some((old, new)) => {
                    s.fma(x, s.splat(new[row]), s.mul(s.load(to), s.splat(old[row])))
                }
                None => x,
            };
            s.store(to, y);
        }
    }
}
