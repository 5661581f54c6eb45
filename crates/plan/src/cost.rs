//! What a node costs: a roofline over arithmetic and memory traffic, with the padding and the fixed
//! costs of a device.

use crate::{DeviceProfile, KvType, Rates};
use std::ops::Range;
use tangor_model::ir::Rows;
use tangor_model::tensor::Layout;
use tangor_model::{Graph, Node, Op};

/// A batch as the cost model sees it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Shape {
    /// Rows of the batch.
    pub rows: usize,
    /// Rows whose logits are wanted.
    pub logit_rows: usize,
    /// Whether these rows are picked right before the head instead of as early as possible.
    pub picked_late: bool,
    /// Tokens that a row attends to, on average.
    pub context: f64,
    /// Sequences of the batch: each reads its own keys and values once.
    pub sequences: usize,
    /// Element type of the KV cache.
    pub kv: KvType,
}

/// What a node does.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Work {
    /// Multiplications and additions.
    pub ops: f64,
    /// Bytes of weights, or of keys and values, that are read.
    pub bytes: f64,
    /// Activations that are read and written.
    pub elements: f64,
}

/// What a node's weight is on a device: worked out once, as weights may be stacks of many parts.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Held {
    /// Bytes of it as it is packed.
    bytes: f64,
    /// Which of [`Rates::group_share`] counts.
    class: usize,
    /// Arithmetic that is padded to tiles, over what it is without.
    padding: f64,
}

impl Held {
    pub(crate) fn on(device: &DeviceProfile, graph: &Graph, node: &Node) -> Self {
        let (Op::Linear { weight: id, .. } | Op::Embed { table: id }) = node.op else {
            return Self { bytes: 0.0, class: 0, padding: 1.0 };
        };
        let class = match graph.weight(id).layout() {
            Some(Layout::Quant { group, .. }) if group >= 128 => 2,
            Some(Layout::Quant { group, .. }) if group >= 64 => 1,
            _ => 0,
        };
        let padding = matrix_padding(graph, node, device.rates.matrix_tile);
        Self { bytes: device.packed.bytes(graph, id), class, padding }
    }
}

/// What `node` does for a batch where its weight takes `held` bytes.
#[must_use]
pub fn work(graph: &Graph, node: &Node, held: f64, shape: &Shape) -> Work {
    let elements = elements(graph, node, shape);
    match &node.op {
        Op::Linear { weight, .. } => {
            let weight = graph.weight(*weight);
            let rows = rows_of(graph, node, shape);
            if rows == 0.0 {
                return Work::default();
            }
            let ops = 2.0 * rows * weight.rows() as f64 * weight.cols() as f64;
            Work { ops, bytes: held, elements }
        }
        Op::Embed { table } => {
            let table = graph.weight(*table);
            let row = held / table.rows() as f64;
            Work { ops: 0.0, bytes: shape.rows as f64 * row, elements }
        }
        Op::Attention(a) => {
            let seen = a.window.map_or(shape.context, |window| shape.context.min(window as f64));
            let pairs = shape.rows as f64 * seen * (a.heads * a.head_dim) as f64;
            let cached = seen * (a.kv_heads * a.head_dim) as f64 * 2.0 * kv_bytes(shape.kv);
            Work { ops: 4.0 * pairs, bytes: shape.sequences as f64 * cached, elements }
        }
        _ => Work { ops: elements, bytes: 0.0, elements },
    }
}

/// Rows that a node computes.
fn rows_of(graph: &Graph, node: &Node, shape: &Shape) -> f64 {
    let rows = node.inputs.first().or(node.outputs.first()).map(|&id| graph.value(id).rows);
    let head = node.outputs.contains(&graph.logits);
    match rows {
        Some(Rows::Logits) if head || !shape.picked_late => shape.logit_rows as f64,
        _ => shape.rows as f64,
    }
}

fn elements(graph: &Graph, node: &Node, shape: &Shape) -> f64 {
    let values = node.inputs.iter().chain(&node.outputs);
    let width: usize = values.map(|&id| graph.value(id).width).sum();
    width as f64 * rows_of(graph, node, shape)
}

/// Bytes per element of a KV cache, scales included.
#[must_use]
pub fn kv_bytes(kv: KvType) -> f64 {
    match kv {
        KvType::F32 => 4.0,
        KvType::F16 | KvType::Bf16 => 2.0,
        KvType::Int8 => 1.0 + (2.0 / 16.0 + 2.0 / 32.0) / 2.0,
    }
}

/// Seconds that the nodes `range` take on a device, its fixed costs included.
#[must_use]
pub fn seconds(graph: &Graph, range: Range<usize>, device: &DeviceProfile, shape: &Shape) -> f64 {
    let nodes = graph.nodes.get(range).unwrap_or_default();
    let of_node =
        |node: &Node| node_seconds(graph, node, device, shape, Held::on(device, graph, node));
    device.rates.run_s + nodes.iter().map(of_node).sum::<f64>()
}

/// Seconds that one node takes.
pub(crate) fn node_seconds(
    graph: &Graph,
    node: &Node,
    device: &DeviceProfile,
    shape: &Shape,
    held: Held,
) -> f64 {
    // Each count is padded by itself: the last row alone is a batch of one row.
    let padded = Shape {
        rows: device.padded_rows(shape.rows),
        logit_rows: if shape.logit_rows == 0 { 0 } else { device.padded_rows(shape.logit_rows) },
        ..*shape
    };
    let rates = &device.rates;
    let work = work(graph, node, held.bytes, &padded);
    let arithmetic = match &node.op {
        Op::Linear { .. } => {
            work.ops * held.padding / (rates.int8_ops_per_s * rates.group_share[held.class])
        }
        Op::Attention(_) if padded.rows < Rates::FEW_ROWS => {
            work.ops / rates.attention_row_ops_per_s
        }
        Op::Attention(_) => work.ops / rates.attention_ops_per_s,
        _ => 0.0,
    };
    let few = rows_of(graph, node, &padded) < Rates::FEW_ROWS as f64;
    let fixed = if few { rates.node_row_s } else { rates.node_s };
    arithmetic.max(work.bytes / rates.read_bytes_per_s) + work.elements * rates.element_s + fixed
}

/// Arithmetic of a linear that is padded to tiles, over what it is without. What is stored as one
/// matrix but is several, q, k and v or gates and ups, is padded one by one.
fn matrix_padding(graph: &Graph, node: &Node, [inputs, outputs]: [usize; 2]) -> f64 {
    let (Op::Linear { weight, .. }, true) = (&node.op, inputs > 1 || outputs > 1) else {
        return 1.0;
    };
    let weight = graph.weight(*weight);
    let (rows, cols) = (weight.rows(), weight.cols());
    let reads = |n: &&Node| n.inputs.as_slice() == node.outputs.as_slice();
    let parts = match graph.nodes.iter().find(reads).map(|reader| &reader.op) {
        Some(Op::Attention(a)) => {
            vec![a.heads * a.head_dim, a.kv_heads * a.head_dim, a.kv_heads * a.head_dim]
        }
        Some(Op::Gated(_)) => vec![rows / 2, rows / 2],
        _ => vec![rows],
    };
    let padded: usize = parts.iter().map(|part| part.next_multiple_of(outputs.max(1))).sum();
    let cols_padded = cols.next_multiple_of(inputs.max(1));
    (padded as f64 * cols_padded as f64) / (rows as f64 * cols as f64)
}
