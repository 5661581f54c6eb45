//! Rotation and attention on the host, over the device's own cache.
//!
//! Providers want static shapes; a cache that grows has none. So each query row attends here, in
//! plain Rust: scores, softmax and sum run over positions in order, and a row's result depends on
//! nothing but its query and the cached rows before it.

use crate::kv::NpuKv;
use std::num::NonZero;
use tangor_device::model::Graph;
use tangor_device::model::ir::Attention;
use tangor_device::rounding::round_factor;
use tangor_device::{Batch, KvCache, Span};

/// Multiplications from which on rows are spread over threads.
const WORTH_THREADS: usize = 1 << 20;

/// Rotates, caches and attends.
///
/// `reads`: `qkv` or `q`, `k`, `v`, each `(rows, width)`; `out`: `(rows, heads * head_dim)`.
pub(crate) fn attention(
    graph: &Graph,
    a: &Attention,
    reads: &[&[f32]],
    batch: &Batch<'_>,
    kv: &mut NpuKv,
    out: &mut [f32],
) {
    let (q_width, kv_width) = (a.heads * a.head_dim, a.kv_heads * a.head_dim);
    let row_of = |row: usize| match *reads {
        [q, k, v] => {
            (&q[row * q_width..][..q_width], &k[row * kv_width..][..kv_width], &v[row * kv_width..])
        }
        _ => {
            let row = &reads[0][row * (q_width + 2 * kv_width)..][..q_width + 2 * kv_width];
            let (q, rest) = row.split_at(q_width);
            let (k, v) = rest.split_at(kv_width);
            (q, k, v)
        }
    };
    let mut queries = vec![0.0; out.len()];
    let mut key = vec![0.0; kv_width];
    let page_tokens = kv.spec().page_tokens;
    let mut angles = Angles::new(graph);
    for span in batch.spans {
        for (index, row) in span.rows.clone().enumerate() {
            let position = span.start + index;
            let (q, k, v) = row_of(row);
            let query = &mut queries[row * q_width..][..q_width];
            query.copy_from_slice(q);
            key.copy_from_slice(k);
            if a.rotate {
                angles.at(graph, position, span);
                angles.rotate(graph, query, a.head_dim);
                angles.rotate(graph, &mut key, a.head_dim);
            }
            let page = span.pages[position / page_tokens];
            let heads = key.chunks(a.head_dim).zip(v.chunks(a.head_dim)).take(a.kv_heads);
            for (head, (key, value)) in heads.enumerate() {
                kv.put((page, a.layer, head), position % page_tokens, key, value);
            }
        }
    }
    round_factor(kv.spec().dtype, &mut queries);
    for span in batch.spans {
        for head in 0..a.kv_heads {
            attend(a, head, span, kv, &queries, out);
        }
    }
}

/// Cosines and sines of one position.
struct Angles {
    cos: Vec<f32>,
    sin: Vec<f32>,
}

impl Angles {
    fn new(graph: &Graph) -> Self {
        let half = graph.rope.dim / 2;
        Self { cos: vec![0.0; half], sin: vec![0.0; half] }
    }

    fn at(&mut self, graph: &Graph, position: usize, span: &Span<'_>) {
        graph.rope.angles(span.rope).at(position, &mut self.cos, &mut self.sin);
    }

    fn rotate(&self, graph: &Graph, heads: &mut [f32], head_dim: usize) {
        let half = self.cos.len();
        for head in heads.chunks_mut(head_dim) {
            for (i, (&c, &s)) in self.cos.iter().zip(&self.sin).enumerate() {
                let (i0, i1) =
                    if graph.rope.interleaved { (2 * i, 2 * i + 1) } else { (i, i + half) };
                let (x0, x1) = (head[i0], head[i1]);
                head[i0] = x0 * c - x1 * s;
                head[i1] = x0 * s + x1 * c;
            }
        }
    }
}

/// Keys and values of one head of a sequence, from position `first` on.
struct Cached {
    first: usize,
    keys: Vec<f32>,
    values: Vec<f32>,
}

impl Cached {
    fn read(a: &Attention, head: usize, span: &Span<'_>, kv: &NpuKv) -> Self {
        let spec = *kv.spec();
        let end = span.start + span.rows.len();
        let first = a.window.map_or(0, |window| (span.start + 1).saturating_sub(window));
        let len = (end - first) * a.head_dim;
        let (mut keys, mut values) = (vec![0.0; len], vec![0.0; len]);
        let rows = keys.chunks_mut(a.head_dim).zip(values.chunks_mut(a.head_dim));
        for (position, (key, value)) in (first..end).zip(rows) {
            let page = span.pages[position / spec.page_tokens];
            kv.get((page, a.layer, head), position % spec.page_tokens, key, value);
        }
        round_factor(spec.dtype, &mut keys);
        round_factor(spec.dtype, &mut values);
        Self { first, keys, values }
    }
}

/// The rows of one sequence with the query heads of one KV head.
fn attend(
    a: &Attention,
    kv_head: usize,
    span: &Span<'_>,
    kv: &NpuKv,
    queries: &[f32],
    out: &mut [f32],
) {
    if span.rows.is_empty() {
        return;
    }
    let cached = Cached::read(a, kv_head, span, kv);
    let width = a.heads * a.head_dim;
    let group = a.heads / a.kv_heads;
    let at = kv_head * group * a.head_dim;
    let rows = span.rows.len();
    let one = |index: usize, row: &mut [f32], scores: &mut Vec<f32>| {
        let query = &queries[(span.rows.start + index) * width + at..][..group * a.head_dim];
        let out = &mut row[at..at + group * a.head_dim];
        for (q, out) in query.chunks(a.head_dim).zip(out.chunks_mut(a.head_dim)) {
            attend_one(a, span.start + index, &cached, q, out, scores);
        }
    };
    let out = &mut out[span.rows.start * width..span.rows.end * width];
    let work = rows * group * cached.keys.len();
    let threads = match work {
        0..WORTH_THREADS => 1,
        _ => std::thread::available_parallelism().map_or(1, NonZero::get).min(rows),
    };
    if threads == 1 {
        let mut scores = Vec::new();
        for (index, row) in out.chunks_mut(width).enumerate() {
            one(index, row, &mut scores);
        }
        return;
    }
    // Neighbouring rows see about as many positions; every thread gets some of each.
    let mut shares: Vec<Vec<(usize, &mut [f32])>> = (0..threads).map(|_| Vec::new()).collect();
    for (index, row) in out.chunks_mut(width).enumerate() {
        shares[index % threads].push((index, row));
    }
    std::thread::scope(|scope| {
        for share in shares {
            scope.spawn(|| {
                let mut scores = Vec::new();
                for (index, row) in share {
                    one(index, row, &mut scores);
                }
            });
        }
    });
}

/// One query at `position`.
fn attend_one(
    a: &Attention,
    position: usize,
    cached: &Cached,
    q: &[f32],
    out: &mut [f32],
    scores: &mut Vec<f32>,
) {
    let first = a.window.map_or(0, |window| (position + 1).saturating_sub(window));
    let range = (first - cached.first) * a.head_dim..(position + 1 - cached.first) * a.head_dim;
    scores.clear();
    scores.extend(cached.keys[range.clone()].chunks(a.head_dim).map(|key| {
        let score = dot(q, key) * a.scale;
        a.softcap.map_or(score, |cap| cap * (score / cap).tanh())
    }));
    // A NaN stays one: it is greater than nothing, and no maximum.
    let max = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let mut sum = 0.0_f64;
    for score in scores.iter_mut() {
        *score = (*score - max).exp();
        sum += f64::from(*score);
    }
    #[allow(clippy::cast_possible_truncation)]
    let share = (1.0 / sum) as f32;
    out.fill(0.0);
    for (value, &score) in cached.values[range].chunks(a.head_dim).zip(scores.iter()) {
        for (out, &v) in out.iter_mut().zip(value) {
            *out += score * v;
        }
    }
    out.iter_mut().for_each(|out| *out *= share);
}

/// Sixteen sums side by side, then one after the other.
fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut sums = [0.0_f32; 16];
    let (a16, b16) = (a.as_chunks::<16>(), b.as_chunks::<16>());
    for (a, b) in a16.0.iter().zip(b16.0) {
        for ((sum, a), b) in sums.iter_mut().zip(a).zip(b) {
            *sum += a * b;
        }
    }
    let rest: f32 = a16.1.iter().zip(b16.1).map(|(a, b)| a * b).sum();
    sums.iter().sum::<f32>() + rest
}
