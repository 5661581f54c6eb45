//! How close single operations come to the machine's limits: linears of many shapes and weight
//! layouts over few and many rows, and attention after few and many tokens.
//!
//! Everything goes through the contract of devices, so that any device can be measured.

use crate::logits::median;
use crate::{EvalError, MachineLimits, Watch};
use serde::Serialize;
use tangor_engine::device::{
    Activations, Batch, Device, DeviceError, KvSpec, KvType, PageId, Prepare, Segment, Span,
};
use tangor_engine::plan::PAGE_TOKENS;
use tangor_engine::plan::model::ir::{Attention, Hyper, Rows, ShapeError, Value};
use tangor_engine::plan::model::rope::{Rope, Variant};
use tangor_engine::plan::model::tensor::quant::{BlockFormat, Q4K, Q5_0, Q6K};
use tangor_engine::plan::model::tensor::{
    DType, Layout, Offset, Scales, Weight, WeightError, Zeros,
};
use tangor_engine::plan::model::{Graph, Op, ValueId};

/// Rows of a batch below which weights are streamed from memory; above, arithmetic counts.
pub const FEW_ROWS: usize = 16;

/// Bytes of weights that calls of few rows go through: more than caches hold.
const STREAM_BYTES: usize = 128 << 20;

/// Linears that calls of many rows go through, one after the other: what else a call does, to copy
/// its input and to round it to 8 bits, is not the linear's.
const MANY_COPIES: usize = 4;

/// Inputs and outputs of the linears: Llama 3.2 1B's, an 8B model's, SmolLM2's.
const SHAPES: &[(usize, usize)] =
    &[(2048, 8192), (8192, 2048), (4096, 4096), (576, 960), (576, 3072), (1536, 576)];

/// How weights are stored, by the names that reports have. Blocks of more inputs than a shape has
/// are left out.
const FORMS: &[(&str, Form)] = &[
    ("w4 g32", quant(4, 32, Offset::Zero)),
    ("w4 g32 min", quant(4, 32, Offset::Min)),
    ("w4 g64", quant(4, 64, Offset::Zero)),
    ("w4 g128", quant(4, 128, Offset::Zero)),
    ("w8 g32", quant(8, 32, Offset::Zero)),
    ("q4_k", Form::Blocks(&Q4K)),
    ("q5_0", Form::Blocks(&Q5_0)),
    ("q6_k", Form::Blocks(&Q6K)),
    ("bf16", Form::Layout(Layout::Dense(DType::Bf16))),
];

/// Rows of the linears' batches.
const ROWS: &[usize] = &[1, 2, 4, 8, 16, 64, 128, 512];

/// Heads, key and value heads, elements per head: Llama 3.2 1B's, an 8B model's, SmolLM2's.
const HEADS: &[(usize, usize, usize)] = &[(32, 8, 64), (32, 8, 128), (9, 3, 64)];

/// Rows of attention's batches, and tokens that are cached before them.
const ATTENTION: &[(usize, usize)] = &[(1, 256), (1, 1024), (1, 4096), (512, 0), (512, 3584)];

/// How a weight is stored.
#[derive(Clone, Copy, Debug)]
enum Form {
    /// As canonical arrays.
    Layout(Layout),
    /// As blocks of a GGUF file.
    Blocks(&'static dyn BlockFormat),
}

impl Form {
    fn fits(self, inputs: usize) -> bool {
        match self {
            Self::Layout(_) => true,
            Self::Blocks(format) => inputs.is_multiple_of(format.block_len()),
        }
    }
}

const fn quant(bits: u8, group: usize, offset: Offset) -> Form {
    Form::Layout(Layout::Quant { bits, group, offset })
}

/// What to measure, and how.
#[derive(Clone, Copy)]
pub struct KernelSpec<'a> {
    /// Only operations whose name contains this.
    pub only: &'a str,
    /// Measured calls of each; one more goes before them and is not counted.
    pub runs: usize,
    /// Seconds since some point in time: of a wall clock, or of this thread's processor time.
    pub clock: &'a dyn Fn() -> f64,
}

impl std::fmt::Debug for KernelSpec<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("KernelSpec").field("only", &self.only).finish_non_exhaustive()
    }
}

/// One operation at one size of batch.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct KernelTime {
    /// As `2048 -> 8192 w4 g32` or `attention 32/8 x 64 after 1024`.
    pub name: String,
    /// Rows of the batch.
    pub rows: usize,
    /// Seconds of a call: the median.
    pub seconds: f64,
    /// Seconds of the fastest call.
    pub best_s: f64,
    /// Multiplications and additions of a call.
    pub ops: f64,
    /// Bytes of weights, or of keys and values, that a call reads.
    pub bytes: f64,
    /// Share of the 8-bit arithmetic that the processor could have done in the median time.
    pub of_int8: f64,
    /// Share of the bytes that memory could have delivered in the median time.
    pub of_read: f64,
}

/// Measures a device's operations one by one. `watch` is told the batches done and all of them.
///
/// # Errors
/// [`EvalError::Kernel`] if the device refuses an operation, [`EvalError::Option`] if nothing has
/// such a name, [`EvalError::Stopped`].
pub fn kernels(
    device: &dyn Device,
    limits: &MachineLimits,
    spec: &KernelSpec<'_>,
    watch: Watch<'_>,
) -> Result<Vec<KernelTime>, EvalError> {
    let cases: Vec<Case> =
        cases().into_iter().filter(|case| case.name().contains(spec.only)).collect();
    let total: usize = cases.iter().map(Case::batches).sum();
    if total == 0 {
        return Err(EvalError::Name { name: spec.only.to_owned() });
    }
    let mut times = Vec::new();
    for case in cases {
        let mut done = |time: KernelTime| {
            times.push(time);
            if watch(times.len(), total).is_break() { Err(EvalError::Stopped) } else { Ok(()) }
        };
        let bench = Bench { device, limits, spec, name: case.name() };
        match case {
            Case::Linear { shape, form, .. } => bench.linear(shape, form, &mut done)?,
            Case::Attention { heads, rows, depth } => {
                done(bench.attention(heads, rows, depth)?)?;
            }
        }
    }
    Ok(times)
}

/// A row or a few of the report.
enum Case {
    Linear { shape: (usize, usize), form: Form, label: &'static str },
    Attention { heads: (usize, usize, usize), rows: usize, depth: usize },
}

fn cases() -> Vec<Case> {
    let linears = SHAPES.iter().flat_map(|&shape| {
        let forms = FORMS.iter().filter(move |(_, form)| form.fits(shape.0));
        forms.map(move |&(label, form)| Case::Linear { shape, form, label })
    });
    let attention = HEADS.iter().flat_map(|&heads| {
        ATTENTION.iter().map(move |&(rows, depth)| Case::Attention { heads, rows, depth })
    });
    linears.chain(attention).collect()
}

impl Case {
    fn name(&self) -> String {
        match self {
            Self::Linear { shape: (inputs, outputs), label, .. } => {
                format!("{inputs} -> {outputs} {label}")
            }
            Self::Attention { heads: (heads, kv_heads, dim), depth, .. } => {
                format!("attention {heads}/{kv_heads} x {dim} after {depth}")
            }
        }
    }

    fn batches(&self) -> usize {
        match self {
            Self::Linear { .. } => ROWS.len(),
            Self::Attention { .. } => 1,
        }
    }
}

/// What can go wrong while an operation is set up or runs.
#[derive(Debug, thiserror::Error)]
enum Trouble {
    #[error(transparent)]
    Device(#[from] DeviceError),
    #[error(transparent)]
    Shape(#[from] ShapeError),
    #[error(transparent)]
    Weight(#[from] WeightError),
}

/// One case on its device.
struct Bench<'a> {
    device: &'a dyn Device,
    limits: &'a MachineLimits,
    spec: &'a KernelSpec<'a>,
    name: String,
}

impl Bench<'_> {
    /// All batches of a linear. Those of few rows go through as many copies of the weight as do not
    /// fit a cache, those of many rows through [`MANY_COPIES`].
    fn linear(
        &self,
        (inputs, outputs): (usize, usize),
        form: Form,
        done: &mut dyn FnMut(KernelTime) -> Result<(), EvalError>,
    ) -> Result<(), EvalError> {
        let weight = weight(form, outputs, inputs).map_err(|e| self.failed(e))?;
        let copies = (STREAM_BYTES / weight.stored_bytes().max(1)).clamp(1, 512);
        let few: Vec<usize> = ROWS.iter().copied().filter(|&rows| rows < FEW_ROWS).collect();
        let many: Vec<usize> = ROWS.iter().copied().filter(|&rows| rows >= FEW_ROWS).collect();
        for (batches, copies) in [(few, copies), (many, MANY_COPIES)] {
            let graph = linears(&weight, copies).map_err(|e| self.failed(e))?;
            let seconds = self.run_linears(&graph, &batches, inputs).map_err(|e| self.failed(e))?;
            for (rows, times) in batches.into_iter().zip(seconds) {
                let times = times.into_iter().map(|time| time / copies as f64).collect();
                let ops = 2.0 * (rows * inputs * outputs) as f64;
                done(self.time(rows, times, ops, weight.stored_bytes() as f64))?;
            }
        }
        Ok(())
    }

    /// Seconds of every call of every batch.
    fn run_linears(
        &self,
        graph: &Graph,
        batches: &[usize],
        inputs: usize,
    ) -> Result<Vec<Vec<f64>>, Trouble> {
        let most = batches.iter().copied().max().unwrap_or(1);
        let nodes = 0..graph.nodes.len();
        let segment =
            Segment { graph, nodes, inputs: vec![ValueId(0)], outputs: vec![], packed: None };
        let prepare = Prepare { activations: Activations::Int8, context: most, max_rows: most };
        let mut runnable = self.device.prepare(&segment, prepare, &mut |_| {})?;
        let spec = KvSpec {
            layers: 0,
            kv_heads: 1,
            head_dim: 1,
            page_tokens: most,
            pages: 1,
            dtype: KvType::F32,
        };
        let mut kv = self.device.kv_cache(&spec)?;
        batches
            .iter()
            .map(|&rows| {
                let tokens = vec![0; rows];
                let spans =
                    [Span { rows: 0..rows, start: 0, pages: &[0], rope: Variant::default() }];
                let batch = Batch { tokens: &tokens, spans: &spans, logit_rows: &[] };
                let x = activations(rows * inputs);
                self.calls(|| Ok(runnable.run(&batch, kv.as_mut(), &[&x], &mut [])?))
            })
            .collect()
    }

    /// Attention of `rows` tokens after `depth` cached ones, over as many layers as do not fit a
    /// cache.
    fn attention(
        &self,
        heads: (usize, usize, usize),
        rows: usize,
        depth: usize,
    ) -> Result<KernelTime, EvalError> {
        self.run_attention(heads, rows, depth).map_err(|e| self.failed(e))
    }

    fn run_attention(
        &self,
        (heads, kv_heads, head_dim): (usize, usize, usize),
        rows: usize,
        depth: usize,
    ) -> Result<KernelTime, Trouble> {
        let tokens = depth + rows;
        let layer_bytes = 2 * tokens * kv_heads * head_dim * 2;
        let layers = if rows < FEW_ROWS { (STREAM_BYTES / layer_bytes).clamp(1, 64) } else { 1 };
        let width = (heads + 2 * kv_heads) * head_dim;
        let graph = attentions((heads, kv_heads, head_dim), layers, tokens)?;
        let nodes = 0..graph.nodes.len();
        let segment = Segment {
            graph: &graph,
            nodes,
            inputs: vec![ValueId(0)],
            outputs: vec![],
            packed: None,
        };
        let prepare = Prepare { activations: Activations::Int8, context: tokens, max_rows: rows };
        let mut runnable = self.device.prepare(&segment, prepare, &mut |_| {})?;
        let page_tokens = PAGE_TOKENS;
        let pages = tokens.div_ceil(page_tokens);
        let dtype = KvType::Bf16;
        let spec = KvSpec { layers, kv_heads, head_dim, page_tokens, pages, dtype };
        let mut kv = self.device.kv_cache(&spec)?;
        // Memory that nobody has written to may be one page of zeros, which comes from a cache.
        let cached = activations(page_tokens * kv_heads * head_dim);
        let ids: Vec<PageId> = (0..).take(pages).collect();
        for (&page, layer) in ids.iter().flat_map(|id| (0..layers).map(move |l| (id, l))) {
            kv.write_page(page, layer, page_tokens, &cached, &cached);
        }
        let ids_of_tokens = vec![0; rows];
        let spans = [Span { rows: 0..rows, start: depth, pages: &ids, rope: Variant::default() }];
        let batch = Batch { tokens: &ids_of_tokens, spans: &spans, logit_rows: &[] };
        let x = activations(rows * width);
        let times = self.calls(|| Ok(runnable.run(&batch, kv.as_mut(), &[&x], &mut [])?))?;
        let times = times.into_iter().map(|time| time / layers as f64).collect();
        // Each row sees what is cached, the rows before it, and itself.
        let pairs = rows as f64 * (depth as f64 + (rows as f64 + 1.0) / 2.0);
        let ops = 4.0 * pairs * (heads * head_dim) as f64;
        Ok(self.time(rows, times, ops, layer_bytes as f64))
    }

    /// Seconds of each call, after one that is not counted.
    fn calls(&self, mut call: impl FnMut() -> Result<(), Trouble>) -> Result<Vec<f64>, Trouble> {
        call()?;
        (0..self.spec.runs.max(1))
            .map(|_| {
                let start = (self.spec.clock)();
                call()?;
                Ok((self.spec.clock)() - start)
            })
            .collect()
    }

    fn time(&self, rows: usize, times: Vec<f64>, ops: f64, bytes: f64) -> KernelTime {
        let seconds = median(&times);
        KernelTime {
            name: self.name.clone(),
            rows,
            seconds,
            best_s: times.into_iter().fold(f64::INFINITY, f64::min),
            ops,
            bytes,
            of_int8: ops / seconds / self.limits.int8_ops_per_s,
            of_read: bytes / seconds / self.limits.read_bytes_per_s,
        }
    }

    fn failed(&self, trouble: impl Into<Trouble>) -> EvalError {
        EvalError::Kernel { name: self.name.clone(), why: trouble.into().to_string() }
    }
}

/// A graph around one input, of `width` elements a row.
fn graph_of(width: usize, heads: (usize, usize, usize), layers: usize, context: usize) -> Graph {
    let hyper = Hyper {
        arch: "bench".into(),
        layers,
        hidden: width,
        ffn: 1,
        heads: heads.0,
        kv_heads: heads.1,
        head_dim: heads.2,
        vocab: 1,
        context,
    };
    let mut graph = Graph::new(hyper, Rope::none());
    graph.values.push(Value { width, rows: Rows::Tokens });
    graph
}

/// `copies` linears of the same weight, each a weight of its own to the device.
fn linears(weight: &Weight, copies: usize) -> Result<Graph, ShapeError> {
    let mut graph = graph_of(weight.cols(), (1, 1, 1), 0, ROWS[ROWS.len() - 1]);
    for copy in 0..copies {
        let weight = graph.add_weight(&format!("w{copy}"), weight.clone());
        graph.push1(format!("linear.{copy}"), Op::Linear { weight, bias: None }, &[ValueId(0)])?;
    }
    Ok(graph)
}

/// Attention in `layers` layers, all of the same queries, keys and values.
fn attentions(
    (heads, kv_heads, head_dim): (usize, usize, usize),
    layers: usize,
    context: usize,
) -> Result<Graph, ShapeError> {
    let width = (heads + 2 * kv_heads) * head_dim;
    let mut graph = graph_of(width, (heads, kv_heads, head_dim), layers, context);
    for layer in 0..layers {
        let attention = Attention {
            layer,
            heads,
            kv_heads,
            head_dim,
            scale: 1.0 / (head_dim as f32).sqrt(),
            window: None,
            softcap: None,
            rotate: false,
        };
        graph.push1(format!("attention.{layer}"), Op::Attention(attention), &[ValueId(0)])?;
    }
    Ok(graph)
}

/// A weight of a form; its values are of no matter.
fn weight(form: Form, rows: usize, cols: usize) -> Result<Weight, WeightError> {
    let halves = |count: usize| [0_u8, 0x1c].repeat(count).into();
    let layout = match form {
        Form::Layout(layout) => layout,
        Form::Blocks(format) => {
            let mut block = vec![0; format.block_bytes()];
            format.pack(&activations(format.block_len()), &mut block);
            let blocks = block.repeat(rows * cols / format.block_len());
            return Weight::blocks(format, rows, cols, blocks.into());
        }
    };
    match layout {
        Layout::Dense(dtype) => {
            let bytes = [0_u8, 0x3c].repeat(rows * cols * dtype.size() / 2);
            Weight::dense(dtype, rows, cols, bytes.into())
        }
        Layout::Quant { bits, group, offset } => {
            let groups = rows * cols.div_ceil(group);
            let codes = vec![0x5a; groups * group * usize::from(bits) / 8];
            let scales = Scales { dtype: DType::F16, bytes: halves(groups) };
            let zeros = match offset {
                Offset::Zero => Zeros::Middle,
                Offset::Min => Zeros::Float(DType::F16, halves(groups)),
            };
            Weight::grouped((bits, group), (rows, cols), codes.into(), scales, zeros)
        }
    }
}

/// Numbers about as activations are: most near zero, and of some hundred one that stands out.
fn activations(count: usize) -> Vec<f32> {
    let mut state = 1_u64;
    let mut uniform = || {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..count)
        .map(|i| {
            let x = uniform() + uniform() + uniform();
            if i % 311 == 7 { 6.0 * x } else { x }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;
    use std::ops::ControlFlow;
    use tangor_engine::device::oracle::OracleDevice;

    /// Measures on the oracle with a clock that ticks once a second whenever it is read.
    fn measure(only: &str) -> Result<Vec<KernelTime>, EvalError> {
        let now = Cell::new(0.0);
        let clock = || {
            now.set(now.get() + 1.0);
            now.get()
        };
        let limits = MachineLimits { int8_ops_per_s: 1e9, read_bytes_per_s: 1e6 };
        let spec = KernelSpec { only, runs: 3, clock: &clock };
        kernels(&OracleDevice::new(), &limits, &spec, &mut |_, _| ControlFlow::Continue(()))
    }

    #[test]
    fn every_batch_of_a_case_is_timed_and_compared_with_the_limits() {
        let times = measure("attention 9/3 x 64 after 256").unwrap();
        assert_eq!(times.len(), 1);
        let time = &times[0];
        let layers = (STREAM_BYTES / (2 * 257 * 3 * 64 * 2)).min(64) as f64;
        assert_eq!((time.rows, time.seconds, time.best_s), (1, 1.0 / layers, 1.0 / layers));
        assert_eq!(time.ops, 4.0 * 257.0 * 9.0 * 64.0);
        assert!((time.of_int8 - time.ops * layers / 1e9).abs() < 1e-12, "{time:?}");
        assert!((time.of_read - time.bytes * layers / 1e6).abs() < 1e-9, "{time:?}");
    }

    #[test]
    fn a_name_that_nothing_has_is_an_error() {
        assert!(matches!(measure("abacus"), Err(EvalError::Name { .. })));
    }

    #[test]
    fn weights_of_every_form_fit_every_shape() {
        for &(inputs, outputs) in SHAPES {
            for &(name, form) in FORMS.iter().filter(|(_, form)| form.fits(inputs)) {
                let made = weight(form, outputs, inputs).unwrap();
                let layout = match form {
                    Form::Layout(layout) => layout,
                    Form::Blocks(format) => format.layout(),
                };
                assert_eq!(made.layout(), Some(layout), "{name}");
            }
        }
    }
}
