//! Two devices at work on one batch at the same time: a wavefront over pieces of the graph.
//!
//! Which device computes a row follows from its position in its sequence alone, so that it does not
//! depend on what else is in the batch. A device runs its rows piece by piece (a piece has one
//! layer's attention). Keys and values go to the other device as soon as a piece has written them,
//! and a device waits for those of earlier rows before it runs the same piece: whoever is behind
//! runs one layer after the one ahead. At the end both caches hold everything.
//!
//! Where all rows belong to the first device, the second one only receives: that is the hand-over
//! of keys and values, layer by layer, while the next layers are computed.

use crate::EngineError;
use crate::executor::{Piece, Values};
use std::ops::Range;
use std::sync::mpsc::{self, Receiver, Sender};
use std::{panic, thread};
use tangor_device::{Batch, KvCache, PageId, Span};
use tangor_plan::model::ValueId;

/// Two devices and how they share rows.
#[derive(Debug)]
pub(crate) struct Together {
    pub(crate) lanes: [Lane; 2],
    /// Rows of a sequence in turns: so many for the first lane, then so many for the second.
    pub(crate) rows: [usize; 2],
}

/// One of the two.
#[derive(Debug)]
pub(crate) struct Lane {
    /// Index of its cache.
    pub(crate) cache: usize,
    /// The graph, cut into pieces in the same places on both lanes.
    pub(crate) pieces: Vec<Piece>,
}

/// Rows that one device runs in one go.
#[derive(Debug)]
struct Chunk<'a> {
    lane: usize,
    tokens: &'a [u32],
    spans: Vec<Span<'a>>,
    /// Of the chunk, ascending.
    logit_rows: Vec<usize>,
}

/// Keys and values that a piece wrote, for the other device.
struct Written {
    /// Index of the chunk, then of the piece.
    at: (usize, usize),
    rows: Vec<Rows>,
}

/// The first rows of a page in one layer.
struct Rows {
    page: PageId,
    layer: usize,
    tokens: usize,
    /// `(tokens, kv_heads, head_dim)`.
    keys: Vec<f32>,
    /// As the keys.
    values: Vec<f32>,
}

impl Together {
    /// Runs a batch. The caches must hold all rows before it; afterwards both hold its rows too.
    /// Returns the logits, `(logit rows, vocab)`.
    ///
    /// # Errors
    /// Whatever a device says; the batch's rows of both caches are then undefined.
    pub(crate) fn run(
        &mut self,
        batch: &Batch<'_>,
        caches: &mut [Box<dyn KvCache>],
        logits: ValueId,
    ) -> Result<Vec<f32>, EngineError> {
        let chunks = cut(batch, self.rows);
        let [first, second] = &mut self.lanes;
        let [cache_a, cache_b] = both(caches, (first.cache, second.cache));
        let (to_b, from_a) = mpsc::channel();
        let (to_a, from_b) = mpsc::channel();
        let (a, b) = thread::scope(|scope| {
            let chunks = &chunks;
            let ends = (to_b, from_b);
            let ahead = scope.spawn(move || first.run((chunks, 0), cache_a, ends, logits));
            let behind = second.run((chunks, 1), cache_b, (to_a, from_a), logits);
            (ahead.join().unwrap_or_else(|panic| panic::resume_unwind(panic)), behind)
        });
        let (mut a, mut b) = (a?.into_iter(), b?.into_iter());
        let parts = chunks.iter().filter_map(|chunk| [&mut a, &mut b][chunk.lane].next());
        Ok(parts.flatten().collect())
    }

    /// Whether the second device only receives what the first one writes.
    pub(crate) fn streams(&self) -> bool {
        self.rows[1] == 0
    }

    /// Whether a batch is better run so than on one device: it has rows for both, or the second one
    /// is to have what the first one writes.
    pub(crate) fn wants(&self, batch: &Batch<'_>) -> bool {
        self.streams() || cut(batch, self.rows).iter().any(|chunk| chunk.lane == 1)
    }
}

impl Lane {
    /// Runs the chunks of lane `mine`; their logits, chunk by chunk. A lane whose partner is gone
    /// stops: the partner knows why.
    fn run(
        &mut self,
        (chunks, mine): (&[Chunk<'_>], usize),
        cache: &mut dyn KvCache,
        (to_other, from_other): (Sender<Written>, Receiver<Written>),
        logits: ValueId,
    ) -> Result<Vec<Vec<f32>>, EngineError> {
        let mut outputs = Vec::new();
        let mut received = None;
        for (index, chunk) in chunks.iter().enumerate().filter(|(_, chunk)| chunk.lane == mine) {
            let batch =
                Batch { tokens: chunk.tokens, spans: &chunk.spans, logit_rows: &chunk.logit_rows };
            let earlier = chunks[..index].iter().rposition(|chunk| chunk.lane != mine);
            let mut values = Values::new();
            for (step, piece) in self.pieces.iter_mut().enumerate() {
                let needed = earlier.map(|earlier| (earlier, step));
                while received < needed {
                    let Ok(written) = from_other.recv() else { return Ok(outputs) };
                    received = Some(written.at);
                    written.apply(cache);
                }
                piece.run(&batch, cache, &mut values)?;
                let rows = written_rows(&chunk.spans, &piece.ends.layers, cache);
                // A partner that is gone has failed, and says so itself.
                let _ = to_other.send(Written { at: (index, step), rows });
            }
            outputs.push(values.remove(&logits).unwrap_or_default());
        }
        drop(to_other);
        from_other.iter().for_each(|written| written.apply(cache));
        Ok(outputs)
    }
}

impl Written {
    fn apply(self, cache: &mut dyn KvCache) {
        for Rows { page, layer, tokens, keys, values } in self.rows {
            cache.write_page(page, layer, tokens, &keys, &values);
        }
    }
}

/// What a cache holds of the pages that `spans` wrote to.
fn written_rows(spans: &[Span<'_>], layers: &[usize], cache: &dyn KvCache) -> Vec<Rows> {
    let spec = *cache.spec();
    let (size, width) = (spec.page_tokens, spec.kv_heads * spec.head_dim);
    let mut all = Vec::new();
    for span in spans.iter().filter(|span| !span.rows.is_empty()) {
        let end = span.start + span.rows.len();
        let indices = span.start / size..end.div_ceil(size);
        cache.prefetch(&span.pages[indices.clone()], layers);
        for index in indices {
            let (page, tokens) = (span.pages[index], (end - index * size).min(size));
            for &layer in layers {
                let (mut keys, mut values) = (vec![0.0; tokens * width], vec![0.0; tokens * width]);
                cache.read_page(page, layer, tokens, &mut keys, &mut values);
                all.push(Rows { page, layer, tokens, keys, values });
            }
        }
    }
    all
}

/// Two different caches.
fn both(caches: &mut [Box<dyn KvCache>], (a, b): (usize, usize)) -> [&mut dyn KvCache; 2] {
    let (low, high) = caches.split_at_mut(a.max(b));
    let (first, last) = (low[a.min(b)].as_mut(), high[0].as_mut());
    if a < b { [first, last] } else { [last, first] }
}

/// Cuts a batch where the device changes: at positions of the sequences, and between rows of
/// different devices.
fn cut<'a>(batch: &Batch<'a>, turns: [usize; 2]) -> Vec<Chunk<'a>> {
    let mut chunks: Vec<Chunk<'a>> = Vec::new();
    for span in batch.spans {
        let mut row = span.rows.start;
        while row < span.rows.end {
            let start = span.start + (row - span.rows.start);
            let (lane, left) = turn(start, turns);
            let rows = row..span.rows.end.min(row.saturating_add(left));
            push(&mut chunks, batch, lane, (rows.clone(), start), span);
            row = rows.end;
        }
    }
    chunks
}

/// Appends rows to the last chunk, if it is of the same lane, or as a new one.
fn push<'a>(
    chunks: &mut Vec<Chunk<'a>>,
    batch: &Batch<'a>,
    lane: usize,
    (rows, start): (Range<usize>, usize),
    span: &Span<'a>,
) {
    if chunks.last().is_none_or(|chunk| chunk.lane != lane) {
        let tokens = &batch.tokens[rows.start..rows.start];
        chunks.push(Chunk { lane, tokens, spans: Vec::new(), logit_rows: Vec::new() });
    }
    let Some(chunk) = chunks.last_mut() else { return };
    let first = rows.start - chunk.tokens.len();
    chunk.tokens = &batch.tokens[first..rows.end];
    let wanted = batch.logit_rows.iter().filter(|row| rows.contains(row));
    chunk.logit_rows.extend(wanted.map(|row| row - first));
    let rows = rows.start - first..rows.end - first;
    chunk.spans.push(Span { rows, start, pages: span.pages, rope: span.rope });
}

/// The lane of a position, and how many positions from there on are the same lane's.
fn turn(position: usize, [a, b]: [usize; 2]) -> (usize, usize) {
    if b == 0 {
        return (0, usize::MAX);
    }
    let at = position % (a + b);
    if at < a { (0, a - at) } else { (1, a + b - at) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tangor_plan::model::rope::Variant;

    #[test]
    fn rows_go_to_the_device_that_their_position_names() {
        let tokens: Vec<u32> = (0..20).collect();
        let pages = [0, 1];
        let span = |rows, start| Span { rows, start, pages: &pages, rope: Variant::Short };
        // Positions 2..12 of one sequence and 0..10 of another, in turns of 4 and 3.
        let spans = [span(0..10, 2), span(10..20, 0)];
        let batch = Batch { tokens: &tokens, spans: &spans, logit_rows: &[9, 19] };
        let cuts: Vec<_> = cut(&batch, [4, 3])
            .into_iter()
            .map(|c| (c.lane, c.tokens.len(), c.spans.len(), c.logit_rows))
            .collect();
        // 2..4 | 4..7 | 7..11 | 11..12 | 0..4 | 4..7 | 7..10
        let expected = [
            (0, 2, 1, vec![]),
            (1, 3, 1, vec![]),
            (0, 4, 1, vec![]),
            (1, 1, 1, vec![0]),
            (0, 4, 1, vec![]),
            (1, 3, 1, vec![]),
            (0, 3, 1, vec![2]),
        ];
        assert_eq!(cuts, expected);
        let all = cut(&batch, [1, 0]);
        assert_eq!(all.len(), 1);
        assert_eq!((all[0].spans.len(), &all[0].logit_rows), (2, &vec![9, 19]));
        assert_eq!(all[0].spans[1].rows, 10..20);
    }
}
