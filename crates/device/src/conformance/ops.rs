//! Every operation against the oracle.

use super::random::{Form, Kind, Random, graph, vector};
use super::{Checker, Line, difference};
use crate::contract::{
    Activations, Batch, Device, DeviceError, KvSpec, KvType, PageId, Prepare, Products, Rounding,
    Segment, Span,
};
use crate::oracle::OracleDevice;
use tangor_model::ir::{Activation, Attention, Rows, Value};
use tangor_model::{Graph, Op, ValueId};
use tangor_tensor::DType;

/// What results may differ by, as a share of a row's greatest element. Exact sums differ by the
/// rounding of `f32` sums alone. A cache of fewer bits may round a key that was rotated in `f32` to
/// the neighbouring step.
mod tolerance {
    pub(super) const EXACT: f64 = 0.0;
    pub(super) const LINEAR: f64 = 2e-5;
    pub(super) const NORM: f64 = 1e-6;
    pub(super) const GATED: f64 = 2e-6;
    pub(super) const ATTENTION: f64 = 1e-5;
    pub(super) const ATTENTION_F16: f64 = 1e-3;
    /// The exponentials of scores are rounded to bf16, too.
    pub(super) const ATTENTION_BF16: f64 = 2e-2;
    pub(super) const ATTENTION_INT8: f64 = 2e-2;
    /// Products, or results, of 8 significant bits.
    pub(super) const BF16: f64 = 2e-2;
}

/// Tolerances of operations that the device computes in products of its own.
struct Allowed<'a>(&'a dyn Device);

impl Allowed<'_> {
    /// `exact` where the device multiplies in `f32`.
    fn of(&self, exact: f64) -> f64 {
        match self.0.arithmetic().products {
            Products::F32 => exact,
            Products::Bf16 => exact.max(tolerance::BF16),
        }
    }
}

/// Rows per batch: one, every remainder of a tile, and more than a block.
const ROWS: [usize; 12] = [1, 2, 3, 4, 5, 6, 7, 13, 16, 17, 64, 97];

/// Operations of one node between its inputs and outputs.
pub(super) struct Case {
    pub(super) graph: Graph,
    pub(super) inputs: Vec<ValueId>,
    pub(super) outputs: Vec<ValueId>,
    pub(super) rows: usize,
    activations: Activations,
    kv: KvType,
}

impl Case {
    /// One operation over inputs of the given widths.
    pub(super) fn of(mut graph: Graph, op: Op, widths: &[usize], rows: usize) -> Option<Self> {
        let value = |width| Value { width, rows: Rows::Tokens };
        graph.values = widths.iter().copied().map(value).collect();
        let inputs: Vec<ValueId> = (0..widths.len()).map(ValueId).collect();
        let outputs = graph.push("op", op, &inputs).ok()?;
        let (activations, kv) = (Activations::F32, KvType::F32);
        Some(Self { graph, inputs, outputs, rows, activations, kv })
    }

    /// The outputs of `device`, and of how many elements a row has.
    pub(super) fn outputs(
        &self,
        device: &dyn Device,
        inputs: &[Vec<f32>],
        chunks: &[usize],
    ) -> Result<Vec<Vec<f32>>, DeviceError> {
        let (nodes, page_tokens) = (0..self.graph.nodes.len(), 16);
        let segment = Segment {
            graph: &self.graph,
            nodes,
            inputs: self.inputs.clone(),
            outputs: self.outputs.clone(),
            packed: None,
        };
        let options = Prepare { activations: self.activations, context: 256, max_rows: self.rows };
        let mut runnable = device.prepare(&segment, options, &mut |_| {})?;
        let hyper = &self.graph.hyper;
        let pages = self.rows.div_ceil(page_tokens);
        let mut kv = device.kv_cache(&KvSpec {
            layers: hyper.layers,
            kv_heads: hyper.kv_heads,
            head_dim: hyper.head_dim,
            page_tokens,
            pages,
            dtype: self.kv,
        })?;
        #[allow(clippy::cast_possible_truncation)]
        let pages: Vec<PageId> = (0..pages as PageId).rev().collect();
        let mut all: Vec<Vec<f32>> = vec![Vec::new(); self.outputs.len()];
        let mut start = 0;
        for &rows in chunks {
            #[allow(clippy::cast_possible_truncation)]
            let tokens: Vec<u32> =
                (start..start + rows).map(|i| (i * 7 % hyper.vocab) as u32).collect();
            let rope = self.graph.rope.variant(self.rows);
            let spans = [Span { rows: 0..rows, start, pages: &pages, rope }];
            let wanted: Vec<usize> = (0..rows).step_by(2).collect();
            let batch = Batch { tokens: &tokens, spans: &spans, logit_rows: &wanted };
            let inputs: Vec<&[f32]> = inputs
                .iter()
                .zip(&self.inputs)
                .map(|(x, &id)| {
                    let width = self.graph.value(id).width;
                    &x[start * width..(start + rows) * width]
                })
                .collect();
            // What was in the output before must not matter.
            let mut outputs = vec![vec![f32::NAN; 3]; self.outputs.len()];
            runnable.run(&batch, kv.as_mut(), &inputs, &mut outputs)?;
            for (all, output) in all.iter_mut().zip(outputs) {
                all.extend(output);
            }
            start += rows;
        }
        Ok(all)
    }

    /// The same with activations as they are.
    fn exact(&self) -> Self {
        Self {
            graph: self.graph.clone(),
            inputs: self.inputs.clone(),
            outputs: self.outputs.clone(),
            activations: Activations::F32,
            ..*self
        }
    }

    /// The worst error of the device over all outputs.
    pub(super) fn error(&self, device: &dyn Device, inputs: &[Vec<f32>]) -> Result<f64, String> {
        let run = |case: &Self, device: &dyn Device| {
            case.outputs(device, inputs, &[case.rows]).map_err(|error| error.to_string())
        };
        let got = run(self, device)?;
        let want = match device.arithmetic().rounding {
            Rounding::Defined => run(self, &OracleDevice::new())?,
            Rounding::None => run(&self.exact(), &OracleDevice::new())?,
        };
        let mut worst = 0.0_f64;
        for ((got, want), &id) in got.iter().zip(&want).zip(&self.outputs) {
            worst = worst.max(difference(got, want, self.graph.value(id).width)?);
        }
        Ok(worst)
    }
}

/// Records a case that could be built, if it is one that runs.
fn record(
    checker: &mut Checker,
    device: &dyn Device,
    name: &str,
    case: Option<Case>,
    inputs: &[Vec<f32>],
) {
    if !checker.wants() {
        return;
    }
    let result = match case {
        Some(case) => case.error(device, inputs),
        None => Err("the case could not be built".into()),
    };
    checker.record(name, result);
}

/// One of every `every` cases of every operation.
pub(super) fn check(device: &dyn Device, every: usize) -> Vec<Line> {
    let mut lines = vec![];
    let allowed = Allowed(device);
    for (what, varied, forms, activations) in linear_lines() {
        let mut checker = Checker::new(what, varied, allowed.of(tolerance::LINEAR)).every(every);
        for form in forms {
            for &activations in &activations {
                linears(&mut checker, device, form, activations);
            }
        }
        lines.push(checker.line);
    }
    let mut simple = |what, varied, allowed, cases: &dyn Fn(&mut Random) -> Cases| {
        let mut checker = Checker::new(what, varied, allowed).every(every);
        for (name, case, inputs) in cases(&mut Random(5)) {
            record(&mut checker, device, &name, case, &inputs);
        }
        lines.push(checker.line);
    };
    let special = "rows of zeros, tiny and huge numbers, NaN, infinity";
    simple("embed", "tables in f32, bf16 and 4 bits".into(), tolerance::EXACT, &embeds);
    let varied = format!("widths 7 to 2048, norms of heads, sums before; {special}");
    simple("rms_norm", varied, allowed.of(tolerance::NORM), &norms);
    let varied = format!("SiLU, GELU and its tanh form; gate and up apart and fused; {special}");
    simple("gated", varied, allowed.of(tolerance::GATED), &gates);
    let sums_allowed = allowed.of(tolerance::EXACT);
    simple("add, scale, select_rows", "widths 9 to 1000".into(), sums_allowed, &sums);
    for (what, kv, allowed) in [
        ("attention, f32 cache", KvType::F32, tolerance::ATTENTION),
        ("attention, f16 cache", KvType::F16, tolerance::ATTENTION_F16),
        ("attention, bf16 cache", KvType::Bf16, tolerance::ATTENTION_BF16),
        ("attention, int8 cache", KvType::Int8, tolerance::ATTENTION_INT8),
    ] {
        let heads = HEADS.map(|(heads, kv, dim)| format!("{heads}/{kv} of {dim}")).join(", ");
        let varied =
            format!("heads {heads}; rows {ATTENTION_ROWS:?}; windows, caps, both rotations");
        let mut checker = Checker::new(what, varied, allowed).every(every);
        attentions(&mut checker, device, kv);
        lines.push(checker.line);
    }
    lines
}

/// A name, what varies, layouts and modes of linears that share a line.
type LinearLine = (String, String, Vec<Form>, Vec<Activations>);

fn linear_lines() -> Vec<LinearLine> {
    let modes = [("int8", Activations::Int8), ("f32", Activations::F32)];
    let (first, last) = (ROWS[0], ROWS[ROWS.len() - 1]);
    let shapes = format!("{} shapes, {first} to {last} rows, biases, special rows", SHAPES.len());
    let mut lines = Vec::new();
    for dtype in [DType::F32, DType::F16, DType::Bf16] {
        let what = format!("linear {dtype:?}").to_lowercase();
        let modes = modes.map(|mode| mode.1).to_vec();
        lines.push((what, format!("both modes; {shapes}"), vec![Form::Dense(dtype)], modes));
    }
    for bits in [4, 8] {
        for (mode, activations) in modes {
            for group in GROUPS {
                let what = format!("linear w{bits} g{group}, {mode}");
                let forms = forms(bits, group);
                let name = |form: &Form| match form {
                    Form::Grouped { scales, zeros, .. } => format!("{scales:?} {zeros:?}"),
                    Form::Dense(_) => String::new(),
                };
                let names = forms.iter().map(name).collect::<Vec<_>>().join(", ").to_lowercase();
                let varied = format!("scales and zero points {names}; {shapes}");
                lines.push((what, varied, forms, vec![activations]));
            }
        }
    }
    lines
}

/// Weights that share a scale.
const GROUPS: [usize; 5] = [16, 32, 64, 128, 256];

fn forms(bits: u8, group: usize) -> Vec<Form> {
    let grouped = |scales, zeros| Form::Grouped { bits, group, scales, zeros };
    let zeros = [Kind::Middle, Kind::Packed, Kind::Float];
    let mut out: Vec<Form> = zeros
        .into_iter()
        .map(|zeros| match (group, zeros) {
            // Half scales where they are usual, and the others where they are not.
            (32, _) | (_, Kind::Middle) => grouped(DType::F16, zeros),
            (64, _) => grouped(DType::Bf16, zeros),
            _ => grouped(DType::F32, zeros),
        })
        .collect();
    if group == 32 {
        out.push(grouped(DType::F32, Kind::Middle));
    }
    out
}

/// Outputs around the size of a panel, inputs around the size of a group.
const SHAPES: [(usize, usize); 7] =
    [(1, 32), (64, 64), (65, 96), (130, 100), (40, 7), (64, 288), (200, 136)];

/// Shapes at the edges, and rows that hold zeros, huge values and NaN.
fn linears(checker: &mut Checker, device: &dyn Device, form: Form, activations: Activations) {
    let mut random = Random(11);
    for (index, (outputs, inputs)) in SHAPES.into_iter().enumerate() {
        let few = [ROWS[index % ROWS.len()], ROWS[(index + 5) % ROWS.len()]];
        let rows: &[usize] = if (outputs, inputs) == (65, 96) { &ROWS } else { &few };
        for &rows in rows {
            let mut g = graph(5, 8, false);
            let Some(weight) = form.weight(&mut random, outputs, inputs) else { continue };
            let weight = g.add_weight("w", weight);
            let bias =
                if index % 2 == 0 { vector(&mut g, &mut random, "b", outputs) } else { None };
            let case = Case::of(g, Op::Linear { weight, bias }, &[inputs], rows)
                .map(|case| Case { activations, ..case });
            let mut x = random.activations(rows * inputs);
            special_rows(&mut x, inputs);
            let name = format!("{form:?} {activations:?} {rows} rows of {inputs} to {outputs}");
            record(checker, device, &name, case, &[x]);
        }
    }
}

/// Makes some of the rows zero, tiny, huge, NaN, infinite.
fn special_rows(x: &mut [f32], width: usize) {
    for (row, x) in x.chunks_mut(width).enumerate() {
        match row % 9 {
            3 => x.fill(0.0),
            4 => x[width / 2] = f32::NAN,
            5 => x.iter_mut().for_each(|x| *x *= 1e-20),
            6 => x[width - 1] = f32::INFINITY,
            7 => x.iter_mut().for_each(|x| *x *= 1e15),
            _ => {}
        }
    }
}

/// A list of named cases with their inputs.
type Cases = Vec<(String, Option<Case>, Vec<Vec<f32>>)>;

fn embeds(random: &mut Random) -> Cases {
    let grouped = Form::Grouped { bits: 4, group: 32, scales: DType::F16, zeros: Kind::Packed };
    let forms = [Form::Dense(DType::F32), Form::Dense(DType::Bf16), grouped];
    let case = |form: Form| {
        let mut g = graph(50, 8, false);
        let table = g.add_weight("w", form.weight(random, 50, 70)?);
        Case::of(g, Op::Embed { table }, &[], 33)
    };
    forms.map(case).into_iter().map(|case| ("table".into(), case, vec![])).collect()
}

fn norms(random: &mut Random) -> Cases {
    let mut out = Cases::new();
    for (width, gain) in [(64, 64), (96, 24), (100, 100), (7, 7), (2048, 2048)] {
        for rows in [1, 5, 40] {
            let mut x = random.activations(rows * width);
            special_rows(&mut x, width);
            let mut g = graph(5, 8, false);
            let norm = vector(&mut g, random, "g", gain)
                .and_then(|gain| Case::of(g, Op::RmsNorm { gain, eps: 1e-5 }, &[width], rows));
            out.push((format!("{rows} rows of {width} by {gain}"), norm, vec![x.clone()]));
            if width == gain {
                let mut g = graph(5, 8, false);
                let norm = vector(&mut g, random, "g", gain).and_then(|gain| {
                    Case::of(g, Op::AddRmsNorm { gain, eps: 1e-6 }, &[width, width], rows)
                });
                let delta = random.activations(rows * width);
                out.push((format!("{rows} rows of {width}, sum"), norm, vec![x, delta]));
            }
        }
    }
    out
}

fn gates(random: &mut Random) -> Cases {
    let mut out = Cases::new();
    for act in [Activation::Silu, Activation::Gelu, Activation::GeluTanh] {
        for (width, rows) in [(64, 3), (200, 40), (9, 2)] {
            let name = format!("{act:?}, {rows} rows of {width}");
            let mut x = random.activations(2 * rows * width);
            special_rows(&mut x, 2 * width);
            let case = Case::of(graph(5, 8, false), Op::Gated(act), &[2 * width], rows);
            out.push((format!("{name}, fused"), case, vec![x.clone()]));
            let case = Case::of(graph(5, 8, false), Op::Gated(act), &[width, width], rows);
            let (gate, up) = x.split_at(rows * width);
            out.push((name, case, vec![gate.to_vec(), up.to_vec()]));
        }
    }
    out
}

fn sums(random: &mut Random) -> Cases {
    let mut out = Cases::new();
    for (width, rows) in [(64, 3), (1000, 40), (9, 2)] {
        let (a, b) = (random.activations(rows * width), random.activations(rows * width));
        let name = |what: &str| format!("{what}, {rows} rows of {width}");
        let case = Case::of(graph(5, 8, false), Op::Add, &[width, width], rows);
        out.push((name("add"), case, vec![a.clone(), b]));
        let case = Case::of(graph(5, 8, false), Op::Scale(0.3), &[width], rows);
        out.push((name("scale"), case, vec![a.clone()]));
        let case = Case::of(graph(5, 8, false), Op::SelectRows, &[width], rows);
        out.push((name("select_rows"), case, vec![a]));
    }
    out
}

/// Query heads, key heads and elements of each.
const HEADS: [(usize, usize, usize); 5] =
    [(4, 4, 16), (6, 2, 24), (9, 3, 64), (5, 1, 40), (8, 2, 128)];
/// Rows of attention: one, less than a page and more.
const ATTENTION_ROWS: [usize; 4] = [1, 7, 17, 70];

fn attentions(checker: &mut Checker, device: &dyn Device, kv: KvType) {
    let mut random = Random(23);
    for (heads, kv_heads, head_dim) in HEADS {
        for rows in ATTENTION_ROWS {
            for (window, softcap, interleaved) in
                [(None, None, false), (Some(5), None, true), (Some(33), Some(20.0), false)]
            {
                let mut g = graph(5, head_dim / 4 * 2, interleaved);
                (g.hyper.heads, g.hyper.kv_heads, g.hyper.head_dim) = (heads, kv_heads, head_dim);
                let (q, k) = (heads * head_dim, kv_heads * head_dim);
                let op = Attention {
                    layer: 1,
                    heads,
                    kv_heads,
                    head_dim,
                    scale: 0.3,
                    window,
                    softcap,
                    rotate: rows != 17,
                };
                let name =
                    format!("{rows} rows, {heads}/{kv_heads} heads of {head_dim}, {window:?}");
                let mut x: Vec<f32> =
                    (0..rows * (q + 2 * k)).map(|_| random.unit() * 2.0).collect();
                // A NaN in the last value row: earlier rows must not see it.
                if let Some(last) = x.last_mut() {
                    *last = f32::NAN;
                }
                let (widths, inputs): (Vec<usize>, Vec<Vec<f32>>) = if rows == 7 {
                    let (a, b) = x.split_at(rows * q);
                    let (b, c) = b.split_at(rows * k);
                    (vec![q, k, k], vec![a.to_vec(), b.to_vec(), c.to_vec()])
                } else {
                    (vec![q + 2 * k], vec![x])
                };
                let case =
                    Case::of(g, Op::Attention(op), &widths, rows).map(|case| Case { kv, ..case });
                record(checker, device, &name, case, &inputs);
            }
        }
    }
}
