//! The oracle: the definition of correct.
//!
//! Scalar, slow and obvious. Values are `f32`, sums are `f64`, weights are read row by row as their
//! layout defines them, and every operation is the sentence that documents it in
//! [`tangor_model::ir`]. Nobody optimises this file.

use crate::contract::{
    Activations, Batch, Descriptor, Device, DeviceError, DeviceKind, KvCache, KvSpec, KvType,
    MemoryKind, Prepare, Runnable, Segment, Span,
};
use crate::rounding::{group_before, group_of, round_factor, round_key, round_row, round_value};
use std::any::Any;
use std::ops::Range;
use tangor_model::ir::{Activation, Attention, Rows};
use tangor_model::{Graph, Node, Op, ValueId};
use tangor_tensor::Weight;

/// Logits of every one of `tokens`, `(tokens, vocab)`, as one sequence from its beginning, with
/// exact activations and an `f32` cache.
///
/// # Errors
/// If a token is not in the vocabulary.
pub fn logits(graph: &Graph, tokens: &[u32]) -> Result<Vec<f32>, DeviceError> {
    run_sequence(&OracleDevice::new(), graph, tokens, Activations::F32, KvType::F32)
}

/// Logits of every one of `tokens`, `(tokens, vocab)`, as one sequence from its beginning, on any
/// device.
///
/// # Errors
/// As [`Device::prepare`] and [`Runnable::run`].
pub fn run_sequence(
    device: &dyn Device,
    graph: &Graph,
    tokens: &[u32],
    activations: Activations,
    dtype: KvType,
) -> Result<Vec<f32>, DeviceError> {
    let page_tokens = 16;
    let pages = tokens.len().div_ceil(page_tokens);
    let hyper = &graph.hyper;
    let mut kv = device.kv_cache(&KvSpec {
        layers: hyper.layers,
        kv_heads: hyper.kv_heads,
        head_dim: hyper.head_dim,
        page_tokens,
        pages,
        dtype,
    })?;
    let options = Prepare { activations, context: tokens.len(), max_rows: tokens.len() };
    let mut runnable = device.prepare(&Segment::whole(graph), options, &mut |_| {})?;
    #[allow(clippy::cast_possible_truncation)]
    let pages: Vec<u32> = (0..pages as u32).collect();
    let rows: Vec<usize> = (0..tokens.len()).collect();
    let rope = graph.rope.variant(tokens.len());
    let spans = [Span { rows: 0..tokens.len(), start: 0, pages: &pages, rope }];
    let batch = Batch { tokens, spans: &spans, logit_rows: &rows };
    let mut outputs = [Vec::new()];
    runnable.run(&batch, kv.as_mut(), &[], &mut outputs)?;
    let [logits] = outputs;
    Ok(logits)
}

/// The device that defines what every other device computes.
///
/// With [`Activations::F32`] it computes the graph as it is written. With [`Activations::Int8`] it
/// first rounds what enters a quantised linear as [`crate::rounding`] says.
#[derive(Debug)]
pub struct OracleDevice {
    descriptor: Descriptor,
}

impl OracleDevice {
    /// The oracle.
    #[must_use]
    pub fn new() -> Self {
        Self {
            descriptor: Descriptor {
                name: "oracle".into(),
                kind: DeviceKind::Cpu,
                description: "scalar reference".into(),
                memory_bytes: u64::MAX,
                memory: MemoryKind::Host,
            },
        }
    }
}

impl Default for OracleDevice {
    fn default() -> Self {
        Self::new()
    }
}

impl Device for OracleDevice {
    fn descriptor(&self) -> &Descriptor {
        &self.descriptor
    }

    fn kv_cache(&self, spec: &KvSpec) -> Result<Box<dyn KvCache>, DeviceError> {
        let elements = spec.pages * spec.layers * spec.page_tokens * spec.kv_heads * spec.head_dim;
        Ok(Box::new(OracleKv {
            spec: *spec,
            keys: vec![0.0; elements],
            values: vec![0.0; elements],
        }))
    }

    fn prepare(
        &self,
        segment: &Segment<'_>,
        options: Prepare,
        progress: &mut dyn FnMut(f32),
    ) -> Result<Box<dyn Runnable>, DeviceError> {
        progress(1.0);
        Ok(Box::new(OracleRunnable {
            graph: segment.graph.clone(),
            nodes: segment.nodes.clone(),
            inputs: segment.inputs.clone(),
            outputs: segment.outputs.clone(),
            activations: options.activations,
        }))
    }
}

/// Keys and values as `f32`, rounded to what the cache's type can hold:
/// `(pages, layers, page_tokens, kv_heads, head_dim)`.
#[derive(Debug)]
struct OracleKv {
    spec: KvSpec,
    keys: Vec<f32>,
    values: Vec<f32>,
}

impl OracleKv {
    /// Where the first `tokens` tokens of a page and layer lie.
    fn tokens(&self, page: u32, layer: usize, tokens: Range<usize>) -> Range<usize> {
        let KvSpec { layers, page_tokens, kv_heads, head_dim, .. } = self.spec;
        let row = kv_heads * head_dim;
        let first = (page as usize * layers + layer) * page_tokens;
        (first + tokens.start) * row..(first + tokens.end) * row
    }

    fn write(&mut self, at: Range<usize>, keys: &[f32], values: &[f32]) {
        self.keys[at.clone()].copy_from_slice(keys);
        self.values[at.clone()].copy_from_slice(values);
        for head in self.keys[at.clone()].chunks_mut(self.spec.head_dim) {
            round_key(self.spec.dtype, head);
        }
        for head in self.values[at].chunks_mut(self.spec.head_dim) {
            round_value(self.spec.dtype, head);
        }
    }
}

impl KvCache for OracleKv {
    fn spec(&self) -> &KvSpec {
        &self.spec
    }

    fn copy_page(&mut self, from: u32, to: u32, tokens: usize) {
        for layer in 0..self.spec.layers {
            let source = self.tokens(from, layer, 0..tokens);
            let target = self.tokens(to, layer, 0..tokens).start;
            self.keys.copy_within(source.clone(), target);
            self.values.copy_within(source, target);
        }
    }

    fn read_page(
        &self,
        page: u32,
        layer: usize,
        tokens: usize,
        keys: &mut [f32],
        values: &mut [f32],
    ) {
        let at = self.tokens(page, layer, 0..tokens);
        keys.copy_from_slice(&self.keys[at.clone()]);
        values.copy_from_slice(&self.values[at]);
    }

    fn write_page(&mut self, page: u32, layer: usize, tokens: usize, keys: &[f32], values: &[f32]) {
        self.write(self.tokens(page, layer, 0..tokens), keys, values);
    }

    fn as_any(&self) -> &dyn Any {
        self
    }

    fn as_any_mut(&mut self) -> &mut dyn Any {
        self
    }
}

#[derive(Debug)]
struct OracleRunnable {
    graph: Graph,
    nodes: Range<usize>,
    inputs: Vec<ValueId>,
    outputs: Vec<ValueId>,
    activations: Activations,
}

impl Runnable for OracleRunnable {
    fn run(
        &mut self,
        batch: &Batch<'_>,
        kv: &mut dyn KvCache,
        inputs: &[&[f32]],
        outputs: &mut [Vec<f32>],
    ) -> Result<(), DeviceError> {
        batch.check(self.graph.hyper.vocab, kv.spec())?;
        let Some(kv) = kv.as_any_mut().downcast_mut::<OracleKv>() else {
            return Err(DeviceError::Batch { why: "the KV cache is another device's".into() });
        };
        let mut values: Vec<Vec<f32>> = vec![Vec::new(); self.graph.values.len()];
        for (id, input) in self.inputs.iter().zip(inputs) {
            values[id.0] = input.to_vec();
        }
        for node in &self.graph.nodes[self.nodes.clone()] {
            let read: Vec<&[f32]> = node.inputs.iter().map(|id| &values[id.0][..]).collect();
            let written = self.node(node, &read, batch, kv);
            for (id, value) in node.outputs.iter().zip(written) {
                values[id.0] = value;
            }
        }
        for (id, output) in self.outputs.iter().zip(outputs) {
            output.clone_from(&values[id.0]);
        }
        Ok(())
    }

    fn memory_bytes(&self) -> u64 {
        0
    }
}

impl OracleRunnable {
    /// The outputs of one node.
    fn node(
        &self,
        node: &Node,
        read: &[&[f32]],
        batch: &Batch<'_>,
        kv: &mut OracleKv,
    ) -> Vec<Vec<f32>> {
        let graph = &self.graph;
        let weight = |id| graph.weight(id);
        match (&node.op, read) {
            (Op::Embed { table }, _) => vec![embed(weight(*table), batch.tokens)],
            (Op::RmsNorm { gain, eps }, &[x]) => vec![rms_norm(x, &row(weight(*gain)), *eps)],
            (Op::AddRmsNorm { gain, eps }, &[x, delta]) => {
                let sum = add(x, delta);
                let normed = rms_norm(&sum, &row(weight(*gain)), *eps);
                vec![sum, normed]
            }
            (Op::Linear { weight: w, bias }, &[x]) => {
                let bias = bias.map(|bias| row(weight(bias)));
                // Nothing is rounded in front of plain weights.
                let rounds =
                    self.activations == Activations::Int8 && group_of(weight(*w)).is_some();
                let group = group_before(graph, node.inputs[0]).filter(|_| rounds);
                vec![linear(x, weight(*w), bias.as_deref(), group)]
            }
            (Op::Attention(a), read) => vec![self.attention(a, read, batch, kv)],
            (Op::Gated(act), &[gate_up]) => {
                let width = graph.value(node.inputs[0]).width;
                let (gate, up) = split(gate_up, width, width / 2);
                vec![gated(*act, &gate, &up)]
            }
            (Op::Gated(act), &[gate, up]) => vec![gated(*act, gate, up)],
            (Op::Add, &[a, b]) => vec![add(a, b)],
            (Op::Scale(factor), &[x]) => vec![x.iter().map(|x| x * factor).collect()],
            (Op::SelectRows, &[x]) => {
                let value = graph.value(node.inputs[0]);
                if value.rows == Rows::Logits {
                    return vec![x.to_vec()];
                }
                let rows = batch.logit_rows.iter();
                vec![rows.flat_map(|row| &x[row * value.width..][..value.width]).copied().collect()]
            }
            (op, read) => {
                unreachable!("graphs check that {} reads {} values", op.name(), read.len())
            }
        }
    }

    /// Rotates, caches and attends, one token after the other.
    fn attention(
        &self,
        a: &Attention,
        read: &[&[f32]],
        batch: &Batch<'_>,
        kv: &mut OracleKv,
    ) -> Vec<f32> {
        let (q_width, kv_width) = (a.heads * a.head_dim, a.kv_heads * a.head_dim);
        let (mut q, mut k, v) = match *read {
            [qkv] => {
                let width = q_width + 2 * kv_width;
                let (q, rest) = split(qkv, width, q_width);
                let (k, v) = split(&rest, 2 * kv_width, kv_width);
                (q, k, v)
            }
            [q, k, v] => (q.to_vec(), k.to_vec(), v.to_vec()),
            _ => unreachable!("graphs check that attention reads one or three values"),
        };
        let mut out = vec![0.0; q.len()];
        for span in batch.spans {
            for (index, row) in span.rows.clone().enumerate() {
                let position = span.start + index;
                let q = &mut q[row * q_width..][..q_width];
                let k = &mut k[row * kv_width..][..kv_width];
                if a.rotate {
                    self.rotate(q, a.head_dim, position, span);
                    self.rotate(k, a.head_dim, position, span);
                }
                let at = cache_row(kv, a.layer, position, span);
                kv.write(at, k, &v[row * kv_width..][..kv_width]);
                attend(a, q, position, span, kv, &mut out[row * q_width..][..q_width]);
            }
        }
        out
    }

    fn rotate(&self, heads: &mut [f32], head_dim: usize, position: usize, span: &Span<'_>) {
        let rope = &self.graph.rope;
        let half = rope.dim / 2;
        let (mut cos, mut sin) = (vec![0.0; half], vec![0.0; half]);
        rope.angles(span.rope).at(position, &mut cos, &mut sin);
        for head in heads.chunks_mut(head_dim) {
            for i in 0..half {
                let (i0, i1) = if rope.interleaved { (2 * i, 2 * i + 1) } else { (i, i + half) };
                let (x0, x1) = (f64::from(head[i0]), f64::from(head[i1]));
                let (c, s) = (f64::from(cos[i]), f64::from(sin[i]));
                head[i0] = narrow(x0 * c - x1 * s);
                head[i1] = narrow(x0 * s + x1 * c);
            }
        }
    }
}

/// Where the cache holds `position` of a sequence.
fn cache_row(kv: &OracleKv, layer: usize, position: usize, span: &Span<'_>) -> Range<usize> {
    let page_tokens = kv.spec.page_tokens;
    let slot = position % page_tokens;
    kv.tokens(span.pages[position / page_tokens], layer, slot..slot + 1)
}

/// One token's attention: `q` and `out` are `(heads, head_dim)`.
fn attend(
    a: &Attention,
    q: &[f32],
    position: usize,
    span: &Span<'_>,
    kv: &OracleKv,
    out: &mut [f32],
) {
    let first = a.window.map_or(0, |window| (position + 1).saturating_sub(window));
    let rows: Vec<Range<usize>> =
        (first..=position).map(|p| cache_row(kv, a.layer, p, span)).collect();
    let group = a.heads / a.kv_heads;
    let factors = |x: &[f32]| {
        let mut x = x.to_vec();
        round_factor(kv.spec.dtype, &mut x);
        x
    };
    for (head, (q, out)) in q.chunks(a.head_dim).zip(out.chunks_mut(a.head_dim)).enumerate() {
        let at = head / group * a.head_dim;
        let q = factors(q);
        let values: Vec<Vec<f32>> =
            rows.iter().map(|row| factors(&kv.values[row.start + at..][..a.head_dim])).collect();
        let scores = rows.iter().map(|row| {
            let k = factors(&kv.keys[row.start + at..][..a.head_dim]);
            let score = dot(&q, &k) * f64::from(a.scale);
            match a.softcap.map(f64::from) {
                Some(cap) => cap * (score / cap).tanh(),
                None => score,
            }
        });
        let mut scores: Vec<f64> = scores.collect();
        softmax(&mut scores);
        for (d, out) in out.iter_mut().enumerate() {
            let sum = values.iter().zip(&scores).map(|(v, score)| score * f64::from(v[d]));
            *out = narrow(sum.sum());
        }
    }
}

/// Subtracts the greatest, exponentiates, normalises. A NaN makes all of them NaN.
fn softmax(scores: &mut [f64]) {
    let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let mut sum = 0.0;
    for score in &mut *scores {
        *score = (*score - max).exp();
        sum += *score;
    }
    for score in scores {
        *score /= sum;
    }
}

fn embed(table: &Weight, tokens: &[u32]) -> Vec<f32> {
    let width = table.cols();
    let mut out = vec![0.0; tokens.len() * width];
    for (out, &token) in out.chunks_mut(width).zip(tokens) {
        table.row_f32(token as usize, out);
    }
    out
}

fn rms_norm(x: &[f32], gain: &[f32], eps: f32) -> Vec<f32> {
    let mut out = Vec::with_capacity(x.len());
    for run in x.chunks(gain.len()) {
        #[allow(clippy::cast_precision_loss)]
        let mean = dot(run, run) / run.len() as f64;
        let root = (mean + f64::from(eps)).sqrt();
        out.extend(run.iter().zip(gain).map(|(&x, &g)| narrow(f64::from(g) * f64::from(x) / root)));
    }
    out
}

/// `x`: `(rows, weight.cols())`; gives `(rows, weight.rows())`.
/// `group`: elements of `x` that share a scale, if it is to be rounded.
fn linear(x: &[f32], weight: &Weight, bias: Option<&[f32]>, group: Option<usize>) -> Vec<f32> {
    let (outputs, inputs) = (weight.rows(), weight.cols());
    let mut x = x.to_vec();
    if let Some(group) = group {
        x.chunks_mut(inputs).for_each(|row| round_row(row, group));
    }
    let rows = x.len() / inputs;
    let mut out = vec![0.0; rows * outputs];
    let mut w = vec![0.0; inputs];
    for n in 0..outputs {
        weight.row_f32(n, &mut w);
        let bias = bias.map_or(0.0, |bias| f64::from(bias[n]));
        for (m, x) in x.chunks(inputs).enumerate() {
            out[m * outputs + n] = narrow(dot(x, &w) + bias);
        }
    }
    out
}

fn gated(act: Activation, gate: &[f32], up: &[f32]) -> Vec<f32> {
    gate.iter()
        .zip(up)
        .map(|(&gate, &up)| {
            let x = f64::from(gate);
            let y = match act {
                Activation::Silu => x / (1.0 + (-x).exp()),
                Activation::Gelu => 0.5 * x * (1.0 + erf(x / std::f64::consts::SQRT_2)),
                Activation::GeluTanh => {
                    let inner = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044_715 * x.powi(3));
                    0.5 * x * (1.0 + inner.tanh())
                }
            };
            narrow(y * f64::from(up))
        })
        .collect()
}

/// The error function by its series of positive terms,
/// `2 / sqrt(pi) * exp(-x^2) * sum 2^n x^(2n+1) / (2n+1)!!`.
fn erf(x: f64) -> f64 {
    if x.abs() > 6.0 {
        return x.signum();
    }
    let (mut term, mut sum, mut n) = (x, x, 1.0);
    while term.abs() > 1e-18 * sum.abs() {
        term *= 2.0 * x * x / (2.0 * n + 1.0);
        sum += term;
        n += 1.0;
    }
    std::f64::consts::FRAC_2_SQRT_PI * (-x * x).exp() * sum
}

fn add(a: &[f32], b: &[f32]) -> Vec<f32> {
    a.iter().zip(b).map(|(a, b)| a + b).collect()
}

fn dot(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum()
}

/// The columns before and from `at` of `(rows, width)`.
fn split(x: &[f32], width: usize, at: usize) -> (Vec<f32>, Vec<f32>) {
    let rows = || x.chunks(width);
    (
        rows().flat_map(|r| &r[..at]).copied().collect(),
        rows().flat_map(|r| &r[at..]).copied().collect(),
    )
}

fn row(weight: &Weight) -> Vec<f32> {
    let mut out = vec![0.0; weight.cols()];
    weight.row_f32(0, &mut out);
    out
}

#[allow(clippy::cast_possible_truncation)]
fn narrow(x: f64) -> f32 {
    x as f32
}

#[cfg(test)]
mod tests {
    use super::*;
    use tangor_model::ir::Hyper;
    use tangor_model::rope::Rope;

    fn vector(graph: &mut Graph, name: &str, values: &[f32]) -> tangor_model::WeightId {
        graph.add_weight(name, Weight::vector(values).unwrap())
    }

    #[test]
    fn erf_matches_published_values() {
        for (x, want) in [(0.5, 0.520_499_877_813_046_5), (2.0, 0.995_322_265_018_952_7)] {
            assert!((erf(x) - want).abs() < 1e-15, "erf({x}) = {}", erf(x));
            assert_eq!(erf(-x), -erf(x));
        }
    }

    /// Hidden 2, one head: the numbers can be followed by hand.
    #[test]
    fn attention_averages_the_values_of_equal_keys() {
        let hyper = Hyper {
            arch: "test".into(),
            layers: 1,
            hidden: 2,
            ffn: 2,
            heads: 1,
            kv_heads: 1,
            head_dim: 2,
            vocab: 2,
            context: 8,
        };
        let mut graph = Graph::new(hyper, Rope::none());
        let bytes: Vec<u8> =
            [1.0_f32, 0.0, 0.0, 3.0].iter().flat_map(|x| x.to_le_bytes()).collect();
        let table = Weight::dense(tangor_tensor::DType::F32, 2, 2, bytes.into()).unwrap();
        let table = graph.add_weight("table", table);
        let gain = vector(&mut graph, "gain", &[0.0, 0.0]);
        let x = graph.push1("embed", Op::Embed { table }, &[]).unwrap();
        let zero = graph.push1("zero", Op::RmsNorm { gain, eps: 1e-5 }, &[x]).unwrap();
        let attention = Attention {
            layer: 0,
            heads: 1,
            kv_heads: 1,
            head_dim: 2,
            scale: 1.0,
            window: Some(2),
            softcap: None,
            rotate: true,
        };
        graph.logits = graph.push1("attend", Op::Attention(attention), &[zero, zero, x]).unwrap();
        let got = logits(&graph, &[0, 1, 1]).unwrap();
        assert_eq!(got, [1.0, 0.0, 0.5, 1.5, 0.0, 3.0]);
    }

    #[test]
    fn refuses_tokens_outside_the_vocabulary() {
        let batch = Batch { tokens: &[7], spans: &[], logit_rows: &[] };
        let dtype = KvType::F32;
        let kv = KvSpec { layers: 0, kv_heads: 1, head_dim: 1, page_tokens: 1, pages: 1, dtype };
        let error = batch.check(7, &kv).unwrap_err();
        assert_eq!(
            error.to_string(),
            "this batch cannot run: token 7 is not in the vocabulary of 7"
        );
    }
}
