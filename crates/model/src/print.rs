//! The graph as text: one node a line, `outputs = op(inputs) name, weights`.

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
        let outputs: Vec<String> = node.outputs.iter().map(|&id| self.value_text(id)).collect();
        let inputs: Vec<String> = node.inputs.iter().map(ToString::to_string).collect();
        write!(f, "{} = {}({})", outputs.join(", "), node.op.name(), inputs.join(", "))?;
        match &node.op {
            Op::Embed { table } => write!(f, " {}", self.weight_text(*table))?,
            Op::RmsNorm { gain, eps } | Op::AddRmsNorm { gain, eps } => {
                write!(f, " {} eps {eps:e}", self.weight_text(*gain))?;
            }
            Op::Linear { weight, bias } => {
                write!(f, " {}", self.weight_text(*weight))?;
                if let Some(bias) = bias {
                    write!(f, " + {}", self.weight_text(*bias))?;
                }
            }
            Op::Attention(attention) => write!(f, " {}", AttentionText(attention))?,
            Op::Gated(Activation::Silu) => f.write_str(" silu")?,
            Op::Gated(Activation::Gelu) => f.write_str(" gelu")?,
            Op::Gated(Activation::GeluTanh) => f.write_str(" gelu_tanh")?,
            Op::Scale(factor) => write!(f, " {factor}")?,
            Op::Add | Op::SelectRows => {}
        }
        writeln!(f, "  # {}", node.name)
    }

    fn value_text(&self, id: ValueId) -> String {
        let value = self.value(id);
        let rows = match value.rows {
            Rows::Tokens => "tokens",
            Rows::Logits => "logits",
        };
        format!("{id}[{rows}, {}]", value.width)
    }

    fn weight_text(&self, id: WeightId) -> String {
        let named = &self.weights[id.0];
        let layout = named.weight.layout().map_or_else(|| "mixed".to_owned(), layout_text);
        format!("{}[{} x {}, {layout}]", named.name, named.weight.rows(), named.weight.cols())
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
