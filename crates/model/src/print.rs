//! The graph as text: one node a line, `name: outputs = op(inputs) weights`.
//!
//! A value is `%3[64]`, 64 wide with a row per token, or `%3[logits 64]` with only the wanted rows;
//! a node's outputs are all of one shape.
//! A weight is `[256 x 64 f16]`, after its name where that is not the node's.

use crate::ir::{Activation, Attention, Graph, Node, Op, Rows, ValueId, WeightId};
use crate::rope::{Angles, Rope};
use std::fmt;
use tangor_tensor::{Layout, Offset};

impl fmt::Display for Graph {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let h = &self.hyper;
        writeln!(
            f,
            "{}: {} layers, hidden {}, ffn {}, heads {}/{} x {}, vocab {}, context {}",
            h.arch, h.layers, h.hidden, h.ffn, h.heads, h.kv_heads, h.head_dim, h.vocab, h.context
        )?;
        writeln!(f, "{}", RopeText(&self.rope))?;
        for node in &self.nodes {
            self.write_node(f, node)?;
        }
        writeln!(f, "logits {}", self.logits)
    }
}

impl Graph {
    fn write_node(&self, f: &mut fmt::Formatter<'_>, node: &Node) -> fmt::Result {
        let outputs: Vec<String> = node.outputs.iter().map(ToString::to_string).collect();
        let inputs: Vec<String> = node.inputs.iter().map(ToString::to_string).collect();
        let (op, outputs, inputs) = (node.op.name(), outputs.join(", "), inputs.join(", "));
        let shape = node.outputs.first().map_or_else(String::new, |&id| self.value_text(id));
        write!(f, "{}: {outputs}{shape} = {op}({inputs})", node.name)?;
        let weight = |id| self.weight_text(node, id);
        match &node.op {
            Op::Embed { table } => write!(f, " {}", weight(*table))?,
            Op::RmsNorm { gain, eps } | Op::AddRmsNorm { gain, eps } => {
                write!(f, " {} eps {eps:e}", weight(*gain))?;
            }
            Op::Linear { weight: matrix, bias: None } => write!(f, " {}", weight(*matrix))?,
            Op::Linear { weight: matrix, bias: Some(bias) } => {
                write!(f, " {} + {}", weight(*matrix), weight(*bias))?;
            }
            Op::Attention(attention) => write!(f, " {}", AttentionText(attention))?,
            Op::Gated(Activation::Silu) => f.write_str(" silu")?,
            Op::Gated(Activation::Gelu) => f.write_str(" gelu")?,
            Op::Gated(Activation::GeluTanh) => f.write_str(" gelu_tanh")?,
            Op::Scale(factor) => write!(f, " {factor}")?,
            Op::Add | Op::SelectRows => {}
        }
        writeln!(f)
    }

    fn value_text(&self, id: ValueId) -> String {
        let value = self.value(id);
        match value.rows {
            Rows::Tokens => format!("[{}]", value.width),
            Rows::Logits => format!("[logits {}]", value.width),
        }
    }

    fn weight_text(&self, node: &Node, id: WeightId) -> String {
        let named = &self.weights[id.0];
        let module = named.name.rsplit_once('.').map_or("", |(module, _)| module);
        let own = module.strip_prefix("model.").unwrap_or(module) == node.name;
        let name = if own { "" } else { &named.name };
        let layout = named.weight.layout().map_or_else(|| "mixed".to_owned(), layout_text);
        match (named.weight.rows(), named.weight.cols()) {
            (1, cols) => format!("{name}[{cols} {layout}]"),
            (rows, cols) => format!("{name}[{rows} x {cols} {layout}]"),
        }
    }
}

/// `f32`, or `w4g32z` for 4-bit codes in groups of 32 with zero points (`m`: minima).
fn layout_text(layout: Layout) -> String {
    match layout {
        Layout::Dense(dtype) => dtype.name().to_owned(),
        Layout::Quant { bits, group, offset } => {
            let offset = match offset {
                Offset::Zero => 'z',
                Offset::Min => 'm',
            };
            format!("w{bits}g{group}{offset}")
        }
    }
}

struct AttentionText<'a>(&'a Attention);

impl fmt::Display for AttentionText<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let a = self.0;
        let Attention { layer, heads, kv_heads, head_dim, scale, .. } = a;
        write!(f, "kv {layer}, heads {heads}/{kv_heads} x {head_dim}, scale {scale}")?;
        if let Some(window) = a.window {
            write!(f, ", window {window}")?;
        }
        if let Some(softcap) = a.softcap {
            write!(f, ", softcap {softcap}")?;
        }
        f.write_str(if a.rotate { ", rotated" } else { "" })
    }
}

struct RopeText<'a>(&'a Rope);

impl fmt::Display for RopeText<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Rope { dim, interleaved, short, long } = self.0;
        let order = if *interleaved { "pairs" } else { "halves" };
        write!(f, "rope: {dim} elements in {order}, {}", AnglesText(short))?;
        match long {
            Some((limit, angles)) => write!(f, "; beyond {limit} tokens {}", AnglesText(angles)),
            None => Ok(()),
        }
    }
}

struct AnglesText<'a>(&'a Angles);

impl fmt::Display for AnglesText<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Angles::Frequencies { inv_freq, factor } => {
                let (first, last) = (inv_freq.first(), inv_freq.last());
                write!(f, "frequencies {} to {:e}", first.unwrap_or(&0.0), last.unwrap_or(&0.0))?;
                if *factor == 1.0 { Ok(()) } else { write!(f, " x {factor}") }
            }
            Angles::Table { cos, .. } => write!(f, "a table of {} cosines", cos.len()),
        }
    }
}
