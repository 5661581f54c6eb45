//! Tiny models, and what they must answer.

use std::sync::{Arc, Mutex, MutexGuard};
use tangor_engine::device::oracle::OracleDevice;
use tangor_engine::device::tensor::{Layout, Offset};
use tangor_engine::device::{Activations, Batch, Device, KvSpec, KvType, Prepare, Segment, Span};
use tangor_engine::plan::PAGE_TOKENS;
use tangor_engine::plan::model::Graph;
use tangor_engine::{Constraint, Generation, LoadOptions, Model, Request, SamplingParams, Text};
use tangor_testkit::tiny;

/// 4-bit weights in groups of 32 with a minimum each.
pub(crate) const W4: Layout = Layout::Quant { bits: 4, group: 32, offset: Offset::Min };

/// Two layers, 256 tokens.
pub(crate) fn llama() -> Graph {
    tiny::random("llama", W4, 7)
}

pub(crate) fn oracle() -> Vec<Arc<dyn Device>> {
    vec![Arc::new(OracleDevice::new())]
}

/// Exact activations and an `f32` cache.
pub(crate) fn exact() -> LoadOptions {
    LoadOptions {
        activations: Activations::F32,
        context: Some(128),
        max_sequences: 4,
        prefill_chunk: 24,
        ..LoadOptions::default()
    }
}

/// 8-bit activations and a cache of `kv`.
pub(crate) fn rounded(kv: KvType) -> LoadOptions {
    LoadOptions { activations: Activations::Int8, kv: Some(kv), ..exact() }
}

pub(crate) fn load(
    graph: &Graph,
    devices: &[Arc<dyn Device>],
    options: &LoadOptions,
) -> Arc<Model> {
    Model::from_graph(graph.clone(), Text::default(), devices, options, &mut |_| {}).unwrap()
}

/// Tokens that differ from seed to seed, all below 256.
pub(crate) fn prompt(seed: u32, len: usize) -> Vec<u32> {
    (0..len as u32).map(|i| (i * i * 31 + i * 7 + seed * 101) % 256).collect()
}

pub(crate) fn greedy(prompt: &[u32], tokens: usize) -> Request {
    Request {
        prompt: prompt.to_vec(),
        max_tokens: Some(tokens),
        logprobs: Some(3),
        ..Request::default()
    }
}

pub(crate) fn sampled(prompt: &[u32], tokens: usize, seed: u64) -> Request {
    let sampling = SamplingParams {
        temperature: 0.8,
        top_p: 0.95,
        repetition_penalty: 1.1,
        seed: Some(seed),
        ..SamplingParams::default()
    };
    Request { sampling, ..greedy(prompt, tokens) }
}

/// A request with which the engine stops before its first token, and everything else with it, while
/// a test holds this: however slow the test is, the answer has not ended yet.
#[derive(Clone, Debug, Default)]
pub(crate) struct Gate(Arc<Mutex<()>>);

impl Gate {
    pub(crate) fn close(&self) -> MutexGuard<'_, ()> {
        self.0.lock().unwrap()
    }

    pub(crate) fn before(&self, request: Request) -> Request {
        Request { constraint: Some(Box::new(self.clone())), ..request }
    }
}

impl Constraint for Gate {
    /// Rules nothing out.
    fn restrict(&mut self, _: &mut [f32]) -> Result<(), String> {
        // A test that has failed holds nobody up.
        drop(self.0.lock());
        Ok(())
    }

    fn accept(&mut self, _: u32) -> Result<(), String> {
        Ok(())
    }

    fn duplicate(&self) -> Box<dyn Constraint> {
        Box::new(self.clone())
    }
}

/// Tokens, each with the bits of its log-probability and of the most likely ones': equal only if
/// the logits are.
pub(crate) type Transcript = Vec<(u32, Vec<u32>)>;

pub(crate) fn transcript(generation: Generation) -> Transcript {
    let answer = generation.wait().unwrap();
    let bits = answer.logprobs.iter().map(|l| {
        let top = l.top.iter().flat_map(|(token, logprob)| [*token, logprob.to_bits()]);
        [l.chosen.to_bits()].into_iter().chain(top).collect()
    });
    answer.tokens.iter().copied().zip(bits).collect()
}

pub(crate) fn ask(model: &Model, request: &Request) -> Transcript {
    transcript(model.generate(request.clone()).unwrap())
}

/// Asks everything at once.
pub(crate) fn ask_all(model: &Model, requests: &[Request]) -> Vec<Transcript> {
    let generations: Vec<_> =
        requests.iter().map(|request| model.generate(request.clone()).unwrap()).collect();
    generations.into_iter().map(transcript).collect()
}

/// Logits of every one of `tokens` in a single run of a device, without the engine.
pub(crate) fn straight(
    device: &dyn Device,
    graph: &Graph,
    tokens: &[u32],
    options: &LoadOptions,
) -> Vec<f32> {
    let (hyper, rows) = (&graph.hyper, tokens.len());
    let spec = KvSpec {
        layers: hyper.layers,
        kv_heads: hyper.kv_heads,
        head_dim: hyper.head_dim,
        page_tokens: PAGE_TOKENS,
        pages: rows.div_ceil(PAGE_TOKENS),
        dtype: options.kv.unwrap_or(KvType::F32),
    };
    let prepare = Prepare { activations: options.activations, context: rows, max_rows: rows };
    let mut kv = device.kv_cache(&spec).unwrap();
    let mut runnable = device.prepare(&Segment::whole(graph), prepare, &mut |_| {}).unwrap();
    let pages: Vec<u32> = (0..spec.pages as u32).collect();
    let rope = graph.rope.variant(rows);
    let spans = [Span { rows: 0..rows, start: 0, pages: &pages, rope }];
    let wanted: Vec<usize> = (0..rows).collect();
    let batch = Batch { tokens, spans: &spans, logit_rows: &wanted };
    let mut outputs = [Vec::new()];
    runnable.run(&batch, kv.as_mut(), &[], &mut outputs).unwrap();
    let [logits] = outputs;
    logits
}

pub(crate) fn bits(logits: &[f32]) -> Vec<u32> {
    logits.iter().map(|x| x.to_bits()).collect()
}
