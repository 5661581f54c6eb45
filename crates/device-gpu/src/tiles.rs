//! What a run uploads beside its inputs: tokens, places in the cache, angles, and the tiles into
//! which the rows that attend are cut.

use crate::program::Program;
use crate::program::Work;
use std::ops::Range;
use tangor_device::model::ir::Attention;
use tangor_device::model::rope::Rope;
use tangor_device::{Batch, KvSpec, Span};

/// Rows of a sequence that may attend page by page.
const FEW_ROWS: usize = 4;
/// Bytes of partial results that are worth it.
const MOST_PARTIALS: usize = 32 << 20;
/// Queries of a tile.
const QUERIES: usize = 16;

/// The words of a run, and how its attention is cut.
#[derive(Debug, Default)]
pub(crate) struct Upload {
    /// `Run` of `shaders/run.wgsl`.
    pub(crate) run: [u32; 8],
    /// `batch` of the shaders.
    pub(crate) batch: Vec<u32>,
    /// Tiles of rows that attend in one piece, and rows of the largest.
    pub(crate) tiles: u32,
    pub(crate) tile_rows: u32,
    /// Rows that attend page by page, and pages of the longest.
    pub(crate) singles: u32,
    pub(crate) most_pages: u32,
    /// Pages of all of them.
    pub(crate) partials: usize,
}

#[allow(clippy::cast_possible_truncation, reason = "batches are bounded by buffers")]
fn word(x: usize) -> u32 {
    x as u32
}

/// Attention of a program; all layers are cut alike.
fn attentions(program: &Program) -> impl Iterator<Item = &Attention> {
    program.steps.iter().filter_map(|step| match &step.work {
        Work::Together { attention } => Some(attention),
        _ => None,
    })
}

/// Bytes of memory that the lanes of a workgroup share, for tiles of so many queries.
fn shared_bytes(a: &Attention, spec: &KvSpec, queries: usize) -> usize {
    // Queries, scores, and twelve numbers of every query.
    queries * (a.head_dim.next_multiple_of(4) * 4 + spec.page_tokens * 4 + 48)
}

/// Most rows of a tile; 0 if not even one fits.
pub(crate) fn rows_of_tile(program: &Program, spec: &KvSpec, shared: usize) -> usize {
    let fits = |a: &Attention| {
        let group = a.heads / a.kv_heads;
        let most = (QUERIES / group).max(1);
        (1..=most).rev().find(|rows| shared_bytes(a, spec, rows * group) <= shared).unwrap_or(0)
    };
    attentions(program).map(fits).min().unwrap_or(1)
}

impl Upload {
    /// `most_rows`: what [`rows_of_tile`] says.
    pub(crate) fn new(
        batch: &Batch<'_>,
        spec: &KvSpec,
        rope: &Rope,
        program: &Program,
        most_rows: usize,
    ) -> Self {
        let mut out = Self::default();
        out.batch.extend_from_slice(batch.tokens);
        let slots_at = out.batch.len();
        for span in batch.spans {
            out.batch.extend((span.start..span.start + span.rows.len()).map(|position| {
                let page = span.pages[position / spec.page_tokens] as usize;
                word(page * spec.page_tokens + position % spec.page_tokens)
            }));
        }
        let wanted_at = out.batch.len();
        out.batch.extend(batch.logit_rows.iter().map(|&row| word(row)));
        let angles_at = out.batch.len();
        if attentions(program).any(|a| a.rotate) {
            out.angles(batch.spans, rope);
        }
        let [tiles_at, singles_at] = out.tiles(batch, spec, program, most_rows);
        let at = [slots_at, wanted_at, angles_at, tiles_at, singles_at].map(word);
        let [slots_at, wanted_at, angles_at, tiles_at, singles_at] = at;
        let (rows, logits) = (word(batch.tokens.len()), word(batch.logit_rows.len()));
        out.run = [rows, logits, slots_at, wanted_at, angles_at, tiles_at, singles_at, 0];
        out
    }

    /// Cosines and then sines of every row's position.
    fn angles(&mut self, spans: &[Span<'_>], rope: &Rope) {
        let half = rope.dim / 2;
        let (mut cos, mut sin) = (vec![0.0; half], vec![0.0; half]);
        for span in spans {
            let angles = rope.angles(span.rope);
            for position in span.start..span.start + span.rows.len() {
                angles.at(position, &mut cos, &mut sin);
                self.batch.extend(cos.iter().chain(&sin).map(|x| x.to_bits()));
            }
        }
    }

    /// Pages of every sequence and tiles over them; where both lists begin.
    fn tiles(
        &mut self,
        batch: &Batch<'_>,
        spec: &KvSpec,
        program: &Program,
        most_rows: usize,
    ) -> [usize; 2] {
        let Some(first) = attentions(program).next() else { return [0; 2] };
        // Layers with a window see fewer pages than others; all are cut for the widest.
        let windows: Option<Vec<usize>> = attentions(program).map(|a| a.window).collect();
        let window = windows.and_then(|windows| windows.into_iter().max());
        let pages_of = |span: &Span<'_>, rows: &Range<usize>| {
            let position = span.start + rows.start;
            let low = window.map_or(0, |window| (position + 1).saturating_sub(window));
            low / spec.page_tokens..(span.start + rows.end).div_ceil(spec.page_tokens)
        };
        let page_bytes = first.heads * (first.head_dim.next_multiple_of(4) + 4) * 4;
        let longest = batch.spans.iter().all(|span| span.rows.len() <= 1);
        let tile_rows = if longest { 1 } else { most_rows.max(1) };
        let (mut tiles, mut singles): (Vec<u32>, Vec<u32>) = (Vec::new(), Vec::new());
        for span in batch.spans {
            let table = self.batch.len();
            self.batch.extend_from_slice(span.pages);
            let all = 0..span.rows.len();
            let room = (self.partials + all.len() * pages_of(span, &all).len()) * page_bytes;
            let alone = all.len() <= FEW_ROWS && room <= MOST_PARTIALS;
            for start in all.clone().step_by(if alone { 1 } else { tile_rows }) {
                let rows = start..(start + if alone { 1 } else { tile_rows }).min(all.end);
                let pages = pages_of(span, &rows);
                let partial = if alone { self.partials } else { 0 };
                let (row, position) = (span.rows.start + start, span.start + start);
                let words =
                    [row, rows.len(), position, pages.start, pages.len(), table, partial, 0];
                if alone {
                    self.partials += pages.len();
                    self.most_pages = self.most_pages.max(word(pages.len()));
                    singles.extend(words.map(word));
                } else {
                    self.tile_rows = word(tile_rows);
                    tiles.extend(words.map(word));
                }
            }
        }
        (self.tiles, self.singles) = (word(tiles.len() / 8), word(singles.len() / 8));
        let tiles_at = self.batch.len();
        self.batch.extend(tiles);
        let singles_at = self.batch.len();
        self.batch.extend(singles);
        [tiles_at, singles_at]
    }
}
