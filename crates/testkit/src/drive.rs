//! Runs sequences on any device: whole, in chunks, or several at once.
#![allow(clippy::expect_used, reason = "a device that fails has to stop its test")]

use tangor_device::{
    Activations, Batch, Device, DeviceError, KvCache, KvSpec, KvType, PageId, Prepare, Runnable,
    Segment, Span,
};
use tangor_model::Graph;
use tangor_model::rope::Variant;

/// Tokens per page: small, so that short prompts cross pages.
const PAGE_TOKENS: usize = 16;
/// Pages in the cache.
const PAGES: u32 = 64;

/// A whole graph on a device, with a cache.
#[derive(Debug)]
pub struct Driver {
    runnable: Box<dyn Runnable>,
    kv: Box<dyn KvCache>,
    graph: Graph,
    taken: u32,
}

/// A sequence in a driver's cache.
#[derive(Clone, Debug)]
pub struct Sequence {
    pages: Vec<PageId>,
    rope: Variant,
    cached: usize,
}

impl Driver {
    /// Prepares the graph.
    ///
    /// # Panics
    /// If the device refuses it.
    #[must_use]
    pub fn new(device: &dyn Device, graph: &Graph, activations: Activations, kv: KvType) -> Self {
        Self::of(device, &Segment::whole(graph), activations, kv)
    }

    /// Prepares a segment that is a whole graph.
    ///
    /// # Panics
    /// If the device refuses it.
    #[must_use]
    pub fn of(
        device: &dyn Device,
        segment: &Segment<'_>,
        activations: Activations,
        kv: KvType,
    ) -> Self {
        let graph = segment.graph;
        let hyper = &graph.hyper;
        let spec = KvSpec {
            layers: hyper.layers,
            kv_heads: hyper.kv_heads,
            head_dim: hyper.head_dim,
            page_tokens: PAGE_TOKENS,
            pages: PAGES as usize,
            dtype: kv,
        };
        let context = PAGES as usize * PAGE_TOKENS;
        let options = Prepare { activations, context, max_rows: context };
        let runnable =
            device.prepare(segment, options, &mut |_| {}).expect("the device prepares the graph");
        let kv = device.kv_cache(&spec).expect("the device makes a cache");
        Self { runnable, kv, graph: graph.clone(), taken: 0 }
    }

    /// An empty sequence that will be `tokens` long in the end. Its pages lie apart, in falling
    /// order, between those of other sequences.
    ///
    /// # Panics
    /// If the cache is full.
    pub fn sequence(&mut self, tokens: usize) -> Sequence {
        let pages = (0..tokens.div_ceil(PAGE_TOKENS)).map(|_| {
            self.taken += 1;
            assert!(self.taken <= PAGES, "no page is left");
            // 37 and 64 have no common divisor.
            (PAGES - self.taken) * 37 % PAGES
        });
        Sequence { pages: pages.collect(), rope: self.graph.rope.variant(tokens), cached: 0 }
    }

    /// Feeds the next tokens of each sequence in one batch; logits of all of them,
    /// `(tokens, vocab)` per sequence.
    ///
    /// # Panics
    /// If the device fails.
    pub fn feed(&mut self, parts: &mut [(&mut Sequence, &[u32])]) -> Vec<Vec<f32>> {
        let rows: usize = parts.iter().map(|(_, tokens)| tokens.len()).sum();
        let logits = self.feed_for(parts, &(0..rows).collect::<Vec<_>>());
        let mut logits = logits.into_iter();
        let mut next =
            |tokens: usize| logits.by_ref().take(tokens * self.graph.hyper.vocab).collect();
        parts.iter().map(|(_, tokens)| next(tokens.len())).collect()
    }

    /// As [`Driver::feed`], but only for these rows of the batch, `(rows, vocab)`.
    ///
    /// # Panics
    /// If the device fails.
    pub fn feed_for(
        &mut self,
        parts: &mut [(&mut Sequence, &[u32])],
        logit_rows: &[usize],
    ) -> Vec<f32> {
        self.try_feed_for(parts, logit_rows).expect("the device runs the batch")
    }

    /// As [`Driver::feed_for`], where the device may fail.
    ///
    /// # Errors
    /// The device's.
    pub fn try_feed_for(
        &mut self,
        parts: &mut [(&mut Sequence, &[u32])],
        logit_rows: &[usize],
    ) -> Result<Vec<f32>, DeviceError> {
        let mut tokens = Vec::new();
        let mut spans = Vec::new();
        for (sequence, fed) in parts.iter() {
            let rows = tokens.len()..tokens.len() + fed.len();
            let (pages, start, rope) = (&sequence.pages[..], sequence.cached, sequence.rope);
            spans.push(Span { rows, start, pages, rope });
            tokens.extend_from_slice(fed);
        }
        let batch = Batch { tokens: &tokens, spans: &spans, logit_rows };
        let mut outputs = [Vec::new()];
        self.runnable.run(&batch, self.kv.as_mut(), &[], &mut outputs)?;
        for (sequence, fed) in parts.iter_mut() {
            sequence.cached += fed.len();
        }
        let [logits] = outputs;
        Ok(logits)
    }

    /// Logits of all tokens of one new sequence, fed in chunks of `chunk` tokens.
    ///
    /// # Panics
    /// If the device fails or the cache is full.
    pub fn chunked(&mut self, tokens: &[u32], chunk: usize) -> Vec<f32> {
        let mut sequence = self.sequence(tokens.len());
        let parts = tokens.chunks(chunk);
        parts.flat_map(|part| self.feed(&mut [(&mut sequence, part)]).concat()).collect()
    }
}

/// Fails if the device's logits for a row depend, in any bit, on how the prompt was cut into
/// chunks, on the sequences that run beside it, or on which other logits were wanted.
///
/// # Panics
/// Then.
pub fn check_row_independence(
    device: &dyn Device,
    graph: &Graph,
    tokens: &[u32],
    (activations, kv): (Activations, KvType),
) {
    let case = format!("{} {activations:?} {kv:?}", device.descriptor().name);
    let new = || Driver::new(device, graph, activations, kv);
    let whole = new().chunked(tokens, tokens.len());
    for chunk in [1, 5, 16, 17] {
        let chunked = new().chunked(tokens, chunk);
        assert_same_bits(&chunked, &whole, &format!("{case}: chunks of {chunk}"));
    }

    let mut driver = new();
    let [mut one, mut other, mut third] = [(); 3].map(|()| driver.sequence(tokens.len()));
    let (start, rest) = tokens.split_at(tokens.len() / 3);
    let first = driver.feed(&mut [(&mut other, rest), (&mut one, start)]);
    let mut parts = [(&mut third, tokens), (&mut one, rest), (&mut other, &start[..1])];
    let second = driver.feed(&mut parts);
    let batched: Vec<f32> = [first[1].as_slice(), &second[1]].concat();
    assert_same_bits(&batched, &whole, &format!("{case}: beside two sequences"));
    assert_same_bits(&second[0], &whole, &format!("{case}: first of three sequences"));

    let mut driver = new();
    let mut sequence = driver.sequence(tokens.len());
    let last = tokens.len() - 1;
    let logits = driver.feed_for(&mut [(&mut sequence, tokens)], &[last]);
    let vocab = graph.hyper.vocab;
    assert_same_bits(&logits, &whole[last * vocab..], &format!("{case}: only the last row"));
    let mut sequence = driver.sequence(tokens.len());
    let none = driver.feed_for(&mut [(&mut sequence, &tokens[..last])], &[]);
    assert!(none.is_empty(), "{case}: logits that nobody wanted");
    let logits = driver.feed_for(&mut [(&mut sequence, &tokens[last..])], &[0]);
    assert_same_bits(&logits, &whole[last * vocab..], &format!("{case}: after a silent prefill"));
}

/// The largest difference of a device in the exact mode from the logits that transformers computed
/// for the recorded model `name`, relative to the largest of those; `graph` is the model as read
/// from one of its files.
///
/// # Panics
/// If the device fails, or nothing is recorded under that name.
#[must_use]
pub fn off_recorded(device: &dyn Device, name: &str, graph: &Graph) -> f32 {
    let vocab = graph.hyper.vocab;
    let mut worst = 0_f32;
    for run in crate::tiny::recorded(name) {
        let mut driver = Driver::new(device, graph, Activations::F32, KvType::F32);
        let all = driver.chunked(&run.tokens, run.tokens.len());
        let scale = run.logits.iter().fold(0_f32, |most, x| most.max(x.abs()));
        for (row, expected) in run.rows.iter().zip(run.logits.chunks(vocab)) {
            let found = &all[row * vocab..(row + 1) * vocab];
            for (a, b) in found.iter().zip(expected) {
                let off = (a - b).abs() / scale;
                // A NaN is as far off as can be; `max` would pass over it.
                worst = if off.is_nan() { f32::INFINITY } else { worst.max(off) };
            }
        }
    }
    worst
}

fn assert_same_bits(found: &[f32], expected: &[f32], case: &str) {
    assert_eq!(found.len(), expected.len(), "{case}");
    let differs = |(a, b): (&f32, &f32)| a.to_bits() != b.to_bits();
    if let Some(index) = found.iter().zip(expected).position(differs) {
        panic!("{case}: logit {index} is {:e}, not {:e}", found[index], expected[index]);
    }
}
