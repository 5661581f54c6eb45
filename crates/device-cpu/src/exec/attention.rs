//! The steps of attention: angles, rotation and caching, scores page by page, merging.

use super::{Memory, Run};
use crate::buffer::Shared;
use crate::kernels::attention::narrow::{AttendNarrow, block_pages, query_len};
use crate::kernels::attention::{
    Attend, AttendScratch, Look, Merge, Out, PageBlocks, QUERIES, partial_len,
};
use crate::kernels::rope::{Angles, Projected, Queries, Rotate};
use crate::kv::{BlockShape, CpuKv};
use crate::program::{Place, Step};
use crate::simd::dispatch;
use std::ops::Range;
use tangor_device::model::ir::Attention;
use tangor_device::{DeviceError, KvCache, Span};

/// How one step's attention is cut into tasks; kept for its memory.
#[derive(Debug, Default)]
pub(crate) struct Plan {
    /// Rows of a sequence that go into one page.
    pages: Vec<PageTask>,
    tasks: Vec<Task>,
    /// Queries whose partial results are to be merged.
    merges: Vec<MergeTask>,
}

#[derive(Clone, Debug)]
struct PageTask {
    /// Rows of the batch.
    rows: Range<usize>,
    page: u32,
    /// Token of the page that the first row goes to.
    token: usize,
}

/// Some positions of one sequence against some blocks of its pages, for one KV head.
#[derive(Clone, Debug)]
struct Task {
    span: usize,
    kv_head: usize,
    /// Positions, from the span's first row on.
    positions: Range<usize>,
    blocks: Range<usize>,
    /// Where the partial results of the query's block 0 go; `None`: finish here.
    partials: Option<usize>,
}

/// All heads of one position.
#[derive(Clone, Debug)]
struct MergeTask {
    row: usize,
    blocks: Range<usize>,
    partials: usize,
}

/// Blocks of one position and head that a task takes at the most: so few that all threads are busy
/// until the end.
const BLOCKS: usize = 4;

/// Query rows that make a task worth its while: two tiles.
const WORTH_WHILE: usize = 12;

impl Run<'_> {
    /// Cosines and sines of every row's position.
    pub(super) fn fill_angles(&self, memory: &mut Memory) {
        let dim = self.rope.dim;
        let rows = self.batch.tokens.len();
        memory.angles.reserve(rows * dim * 4);
        let out = Shared::new(memory.angles.get_mut::<f32>(rows * dim));
        for span in self.batch.spans {
            let angles = self.rope.angles(span.rope);
            self.over_rows(span.rows.len(), dim * 16, |rows| {
                for index in rows {
                    let row = span.rows.start + index;
                    // SAFETY: every row belongs to one block.
                    let out = unsafe { out.part(row * dim..(row + 1) * dim) };
                    let (cos, sin) = out.split_at_mut(dim / 2);
                    angles.at(span.start + index, cos, sin);
                }
            });
        }
    }

    pub(super) fn attention(
        &self,
        op: &Attention,
        step: &Step,
        memory: &mut Memory,
        kv: &mut CpuKv,
    ) -> Result<(), DeviceError> {
        let spec = *kv.spec();
        if (spec.kv_heads, spec.head_dim) != (op.kv_heads, op.head_dim) || op.layer >= spec.layers {
            let (heads, dim, layer) = (op.kv_heads, op.head_dim, op.layer);
            let why = format!("the KV cache has no layer {layer} with {heads} heads of {dim}");
            return Err(DeviceError::Batch { why });
        }
        let shape = BlockShape::new(&spec);
        let rows = self.batch.tokens.len();
        memory.queries.reserve(rows * op.heads * query_len(op.head_dim) * 4);
        let mut plan = std::mem::take(&mut memory.plan);
        let partials = self.plan(op, &shape, &mut plan);
        memory.partials.reserve(partials * 4);
        self.rotate(op, step, memory, kv, &plan);
        self.attend(op, &step.writes[0], memory, kv, &plan);
        memory.plan = plan;
        Ok(())
    }

    /// Cuts the work into tasks; gives the elements of all partial results.
    fn plan(&self, op: &Attention, shape: &BlockShape, plan: &mut Plan) -> usize {
        let group = op.heads / op.kv_heads;
        let block_tokens = block_pages(shape) * shape.tokens;
        let wanted = 4 * self.pool.threads();
        let share = (self.batch.tokens.len() * op.kv_heads).div_ceil(wanted);
        let at_once = share.max(WORTH_WHILE.div_ceil(group)).min((QUERIES / group).max(1));
        plan.pages.clear();
        plan.tasks.clear();
        plan.merges.clear();
        let mut partials = 0;
        let singles = self.batch.spans.iter().filter(|span| span.rows.len() == 1).count();
        // Enough tasks for all threads even if a few of them are slow.
        let parts = wanted.div_ceil((singles * op.kv_heads).max(1));
        for (index, span) in self.batch.spans.iter().enumerate() {
            page_tasks(span, shape.tokens, &mut plan.pages);
            let mut last = span.rows.len();
            while last > 0 {
                // Later positions have more to do: they come first.
                let positions = last.saturating_sub(at_once)..last;
                last = positions.start;
                let blocks = blocks_seen(op, span, &positions, block_tokens);
                let step = blocks.len().div_ceil(parts).min(BLOCKS);
                let split = positions.len() == 1 && parts > 1 && blocks.len() > step;
                let row = self.batch.spans[index].rows.start + positions.start;
                if split {
                    plan.merges.push(MergeTask { row, blocks: blocks.clone(), partials });
                }
                for kv_head in 0..op.kv_heads {
                    let (positions, span) = (positions.clone(), index);
                    if !split {
                        let blocks = blocks.clone();
                        plan.tasks.push(Task { span, kv_head, positions, blocks, partials: None });
                        continue;
                    }
                    for first in blocks.clone().step_by(step) {
                        plan.tasks.push(Task {
                            span,
                            kv_head,
                            positions: positions.clone(),
                            blocks: first..(first + step).min(blocks.end),
                            partials: Some(partials),
                        });
                    }
                    partials += blocks.end * group * partial_len(op.head_dim);
                }
            }
        }
        partials
    }

    /// Rotates q into `memory.queries` and writes k and v into the cache.
    fn rotate(
        &self,
        op: &Attention,
        step: &Step,
        memory: &mut Memory,
        kv: &mut CpuKv,
        plan: &Plan,
    ) {
        let rows = self.batch.tokens.len();
        let (q_width, kv_width) = (op.heads * op.head_dim, op.kv_heads * op.head_dim);
        let mut buffer = std::mem::take(&mut memory.queries);
        let shape = BlockShape::new(kv.spec());
        let queries = if shape.narrow() {
            let len = rows * op.heads * query_len(op.head_dim);
            Queries::Bf16(Shared::new(buffer.get_mut(len)))
        } else {
            Queries::F32(Shared::new(buffer.get_mut(rows * q_width)))
        };
        let read = |index: usize| self.read(memory, &step.reads[index]);
        let from = if step.reads.len() == 1 {
            let (qkv, width) = (read(0), q_width + 2 * kv_width);
            let from = |at: usize| qkv.get(at..).unwrap_or_default();
            Projected { q: qkv, k: from(q_width), v: from(q_width + kv_width), strides: [width; 3] }
        } else {
            Projected { q: read(0), k: read(1), v: read(2), strides: [q_width, kv_width, kv_width] }
        };
        let angles = Angles {
            table: memory.angles.get(rows * self.rope.dim),
            dim: self.rope.dim,
            interleaved: self.rope.interleaved,
        };
        let base = kv.block(0, op.layer, 0).start;
        let page_bytes = shape.bytes() * kv.spec().layers * op.kv_heads;
        let cache = Shared::new(kv.bytes_mut());
        let body = |tile: usize| {
            let (task, kv_head) = (&plan.pages[tile / op.kv_heads], tile % op.kv_heads);
            let start = base + task.page as usize * page_bytes + kv_head * shape.bytes();
            // SAFETY: tasks have pages of their own: no two sequences write to the same page.
            let block = unsafe { cache.part(start..start + shape.bytes()) };
            let rows_of = task.rows.clone();
            dispatch(
                self.isa,
                Rotate {
                    op,
                    from,
                    angles,
                    kv_head,
                    rows: rows_of,
                    all_rows: rows,
                    queries,
                    shape,
                    block,
                    token: task.token,
                },
            );
        };
        let tiles = plan.pages.len() * op.kv_heads;
        if rows * (q_width + 2 * kv_width) < super::WORTH_SHARING {
            (0..tiles).for_each(body);
        } else {
            self.pool.run(tiles, |tile, _| body(tile));
        }
        memory.queries = buffer;
    }

    fn attend(&self, op: &Attention, to: &Place, memory: &mut Memory, kv: &CpuKv, plan: &Plan) {
        let rows = self.batch.tokens.len();
        let (group, width) = (op.heads / op.kv_heads, op.heads * op.head_dim);
        let shape = BlockShape::new(kv.spec());
        for scratch in &mut memory.scratch {
            scratch.reserve(&shape, QUERIES.max(group));
        }
        self.write(memory, to);
        let mut out = std::mem::take(&mut memory.slots[to.slot]);
        let y = Shared::new(out.get_mut::<f32>(rows * width));
        let len = memory.partials.len() / 4;
        let partials = Shared::new(memory.partials.get_mut::<f32>(len));
        let query_len = if shape.narrow() { query_len(op.head_dim) } else { op.head_dim };
        let scratch: Shared<'_, AttendScratch> = Shared::new(&mut memory.scratch);
        let page_bytes = shape.bytes() * kv.spec().layers * op.kv_heads;
        self.pool.run(plan.tasks.len(), |tile, thread| {
            let task = &plan.tasks[tile];
            let span = &self.batch.spans[task.span];
            let row = span.rows.start + task.positions.start;
            let at = (task.kv_head * rows + row) * group * query_len;
            let queries = at..at + task.positions.len() * group * query_len;
            let out = match task.partials {
                None => {
                    let column = task.kv_head * group * op.head_dim;
                    Out::Rows { y, width, row, column }
                }
                Some(at) => {
                    let len = task.blocks.end * group * partial_len(op.head_dim);
                    // SAFETY: tasks of the same query have blocks of their own, and touch no other.
                    Out::Partials(Shared::new(unsafe { partials.part(at..at + len) }))
                }
            };
            let look = Look {
                op,
                shape,
                cache: kv.bytes(),
                pages: PageBlocks {
                    pages: span.pages,
                    base: kv.block(0, op.layer, task.kv_head).start,
                    stride: page_bytes,
                },
                first: span.start + task.positions.start,
                positions: task.positions.len(),
            };
            let range = task.blocks.clone();
            // SAFETY: a thread runs one task at a time.
            let scratch = unsafe { &mut scratch.part(thread..thread + 1)[0] };
            if shape.narrow() {
                let queries = &memory.queries.get(queries.end)[queries];
                dispatch(self.isa, AttendNarrow { look, queries, range, scratch, out });
            } else {
                let queries = &memory.queries.get(queries.end)[queries];
                dispatch(self.isa, Attend { look, queries, range, scratch, out });
            }
        });
        let partials = memory.partials.get::<f32>(len);
        self.pool.run(plan.merges.len(), |index, thread| {
            let merge = &plan.merges[index];
            // SAFETY: every position is merged once.
            let y = unsafe { y.part(merge.row * width..(merge.row + 1) * width) };
            let (range, narrow) = (merge.blocks.clone(), shape.narrow());
            let len = op.heads * range.end * partial_len(op.head_dim);
            let partials = &partials[merge.partials..][..len];
            // SAFETY: a thread runs one task at a time.
            let scratch = unsafe { &mut scratch.part(thread..thread + 1)[0] };
            let head_dim = op.head_dim;
            dispatch(self.isa, Merge { partials, narrow, group, head_dim, range, scratch, y });
        });
        memory.slots[to.slot] = out;
    }
}

/// A sequence's rows, page by page.
fn page_tasks(span: &Span<'_>, page_tokens: usize, out: &mut Vec<PageTask>) {
    let mut row = span.rows.start;
    while row < span.rows.end {
        let position = span.start + (row - span.rows.start);
        let token = position % page_tokens;
        let end = span.rows.end.min(row + page_tokens - token);
        out.push(PageTask { rows: row..end, page: span.pages[position / page_tokens], token });
        row = end;
    }
}

/// Blocks that any of some positions of a sequence sees.
fn blocks_seen(
    op: &Attention,
    span: &Span<'_>,
    positions: &Range<usize>,
    block_tokens: usize,
) -> Range<usize> {
    let first = span.start + positions.start;
    let low = op.window.map_or(0, |window| (first + 1).saturating_sub(window));
    low / block_tokens..(span.start + positions.end).div_ceil(block_tokens)
}
