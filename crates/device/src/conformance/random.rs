//! Numbers, weights and graphs that look random and are always the same.

use half::{bf16, f16};
use tangor_model::ir::{Activation, Attention, Hyper};
use tangor_model::rope::{Angles, Rope};
use tangor_model::{Graph, Op, WeightId};
use tangor_tensor::{Bytes, DType, Scales, Weight, Zeros};

/// Splitmix64.
pub(super) struct Random(pub(super) u64);

impl Random {
    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(super) fn below(&mut self, n: usize) -> usize {
        usize::try_from(self.next() % n as u64).unwrap_or(0)
    }

    /// Evenly in -1..1.
    #[allow(clippy::cast_precision_loss)]
    pub(super) fn unit(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1 << 23) as f32 - 1.0
    }

    /// Mostly below 1, now and then much larger, as activations are.
    pub(super) fn activations(&mut self, count: usize) -> Vec<f32> {
        let mut one = || {
            let x = self.unit();
            if self.below(40) == 0 { x * 30.0 } else { x }
        };
        (0..count).map(|_| one()).collect()
    }

    fn bytes(&mut self, count: usize) -> Bytes {
        (0..count).map(|_| self.next().to_le_bytes()[0]).collect::<Vec<u8>>().into()
    }

    fn elements(
        &mut self,
        dtype: DType,
        count: usize,
        mut one: impl FnMut(&mut Self) -> f32,
    ) -> Bytes {
        let mut out = Vec::with_capacity(count * dtype.size());
        for _ in 0..count {
            let x = one(self);
            match dtype {
                DType::F32 => out.extend(x.to_le_bytes()),
                DType::F16 => out.extend(f16::from_f32(x).to_le_bytes()),
                DType::Bf16 => out.extend(bf16::from_f32(x).to_le_bytes()),
            }
        }
        out.into()
    }
}

/// Zero points of a weight to be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Middle,
    Packed,
    Float,
}

/// How a weight is to be stored.
#[derive(Clone, Copy, Debug)]
pub(super) enum Form {
    Dense(DType),
    Grouped { bits: u8, group: usize, scales: DType, zeros: Kind },
}

impl Form {
    /// A weight of this form. One in twenty scales is zero.
    pub(super) fn weight(self, random: &mut Random, rows: usize, cols: usize) -> Option<Weight> {
        match self {
            Self::Dense(dtype) => {
                let bytes = random.elements(dtype, rows * cols, Random::unit);
                Weight::dense(dtype, rows, cols, bytes).ok()
            }
            Self::Grouped { bits, group, scales: dtype, zeros } => {
                let groups = cols.div_ceil(group);
                let codes = random.bytes(rows * groups * group * usize::from(bits) / 8);
                let step = if bits == 4 { 0.1 } else { 0.006 };
                let bytes = random.elements(dtype, rows * groups, |random| {
                    if random.below(20) == 0 { 0.0 } else { random.unit() * step }
                });
                let zeros = match zeros {
                    Kind::Middle => Zeros::Middle,
                    Kind::Packed if bits == 4 => {
                        Zeros::Packed(random.bytes(rows * groups.div_ceil(2)))
                    }
                    Kind::Packed => Zeros::Packed(random.bytes(rows * groups)),
                    Kind::Float => {
                        let middle = if bits == 4 { 7.5 } else { 127.5 };
                        let bytes = random.elements(dtype, rows * groups, |r| r.unit() + middle);
                        Zeros::Float(dtype, bytes)
                    }
                };
                let scales = Scales { dtype, bytes };
                Weight::grouped((bits, group), (rows, cols), codes, scales, zeros).ok()
            }
        }
    }
}

/// An empty graph over a vocabulary of `vocab`, with rotary embedding over `dim` elements.
pub(super) fn graph(vocab: usize, dim: usize, interleaved: bool) -> Graph {
    let hyper = Hyper {
        arch: "test".into(),
        layers: 2,
        hidden: 96,
        ffn: 200,
        heads: 6,
        kv_heads: 2,
        head_dim: 24,
        vocab,
        context: 256,
    };
    #[allow(clippy::cast_precision_loss)]
    let inv_freq = |base: f32| -> Vec<f32> {
        (0..dim / 2).map(|i| base.powf(-2.0 * i as f32 / dim as f32)).collect()
    };
    let angles = |base: f32, factor: f32| Angles::Frequencies { inv_freq: inv_freq(base), factor };
    let long = Some((64, angles(90_000.0, 1.1)));
    Graph::new(hyper, Rope { dim, interleaved, short: angles(10_000.0, 1.0), long })
}

/// What varies between whole models.
#[derive(Clone, Copy, Debug)]
pub(super) struct ModelKind {
    pub(super) form: Form,
    pub(super) window: Option<usize>,
    pub(super) softcap: Option<f32>,
    pub(super) fused: bool,
}

/// A whole small model of two layers: every operation, widths that fit no vector.
pub(super) fn model(random: &mut Random, kind: ModelKind) -> Option<Graph> {
    let (vocab, hidden, ffn, heads, kv_heads, head_dim) = (203, 96, 200, 6, 2, 24);
    let (q, kv) = (heads * head_dim, kv_heads * head_dim);
    let mut g = graph(vocab, 16, false);
    let table = Form::Dense(DType::F16).weight(random, vocab, hidden)?;
    let table = g.add_weight("table", table);
    let mut x = g.push1("embed", Op::Embed { table }, &[]).ok()?;
    x = g.push1("scale", Op::Scale(1.5), &[x]).ok()?;
    let mut normed = None;
    for layer in 0..2 {
        let name = |what: &str| format!("{layer}.{what}");
        let mut linear = |g: &mut Graph, what: &str, x, rows, cols| {
            let weight = g.add_weight(&name(what), kind.form.weight(random, rows, cols)?);
            let bias = (rows == kv).then(|| vector(g, random, &name(&format!("{what}.b")), rows));
            let bias = match bias {
                Some(bias) => Some(bias?),
                None => None,
            };
            g.push1(name(what), Op::Linear { weight, bias }, &[x]).ok()
        };
        let gain = g.add_weight(&name("gain"), Weight::vector(&[0.7; 96]).ok()?);
        let input = match normed {
            Some(normed) => normed,
            None => g.push1(name("norm"), Op::RmsNorm { gain, eps: 1e-5 }, &[x]).ok()?,
        };
        let qkv = if kind.fused {
            vec![linear(&mut g, "qkv", input, q + 2 * kv, hidden)?]
        } else {
            let queries = linear(&mut g, "q", input, q, hidden)?;
            let head = g.add_weight(&name("head"), Weight::vector(&[1.1; 24]).ok()?);
            let keys = linear(&mut g, "k", input, kv, hidden)?;
            let values = linear(&mut g, "v", input, kv, hidden)?;
            let norm = Op::RmsNorm { gain: head, eps: 1e-6 };
            vec![g.push1(name("qn"), norm, &[queries]).ok()?, keys, values]
        };
        let attention = Attention {
            layer,
            heads,
            kv_heads,
            head_dim,
            scale: 0.2,
            window: kind.window,
            softcap: kind.softcap,
            rotate: true,
        };
        let y = g.push1(name("attention"), Op::Attention(attention), &qkv).ok()?;
        let y = linear(&mut g, "o", y, hidden, q)?;
        let both = g.push(name("norm2"), Op::AddRmsNorm { gain, eps: 1e-5 }, &[x, y]).ok()?;
        let gates = if kind.fused {
            vec![linear(&mut g, "gate_up", both[1], 2 * ffn, hidden)?]
        } else {
            let gate = linear(&mut g, "gate", both[1], ffn, hidden)?;
            vec![gate, linear(&mut g, "up", both[1], ffn, hidden)?]
        };
        let y = g.push1(name("gated"), Op::Gated(Activation::Silu), &gates).ok()?;
        let y = linear(&mut g, "down", y, hidden, ffn)?;
        if layer == 0 {
            let both = g.push(name("norm3"), Op::AddRmsNorm { gain, eps: 1e-5 }, &[both[0], y]);
            let both = both.ok()?;
            (x, normed) = (both[0], Some(both[1]));
        } else {
            x = g.push1(name("add"), Op::Add, &[both[0], y]).ok()?;
        }
    }
    let x = g.push1("select", Op::SelectRows, &[x]).ok()?;
    let gain = g.add_weight("gain", Weight::vector(&[0.5; 96]).ok()?);
    let x = g.push1("norm", Op::RmsNorm { gain, eps: 1e-5 }, &[x]).ok()?;
    let weight = g.add_weight("head", kind.form.weight(random, vocab, hidden)?);
    g.logits = g.push1("logits", Op::Linear { weight, bias: None }, &[x]).ok()?;
    Some(g)
}

/// A random vector.
pub(super) fn vector(
    g: &mut Graph,
    random: &mut Random,
    name: &str,
    len: usize,
) -> Option<WeightId> {
    let values: Vec<f32> = (0..len).map(|_| random.unit()).collect();
    Some(g.add_weight(name, Weight::vector(&values).ok()?))
}
