//! What a node costs: a roofline over arithmetic and memory traffic.

use crate::{KvType, Rates};
use std::ops::Range;
use tangor_model::ir::Rows;
use tangor_model::{Graph, Node, Op};

/// A batch as the cost model sees it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Shape {
    /// Rows of the batch.
    pub rows: usize,
    /// Rows whose logits are wanted.
    pub logit_rows: usize,
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
    /// Bytes read and written.
    pub bytes: f64,
}

/// What `node` does for a batch.
#[must_use]
pub fn work(graph: &Graph, node: &Node, shape: &Shape) -> Work {
    let rows_of = |rows| match rows {
        Rows::Tokens => shape.rows as f64,
        Rows::Logits => shape.logit_rows as f64,
    };
    let elements: f64 = node
        .inputs
        .iter()
        .chain(&node.outputs)
        .map(|&id| graph.value(id))
        .map(|value| value.width as f64 * rows_of(value.rows))
        .sum();
    let traffic = 4.0 * elements;
    match &node.op {
        Op::Linear { weight, .. } => {
            let weight = graph.weight(*weight);
            let rows = node.inputs.first().map_or(0.0, |&id| rows_of(graph.value(id).rows));
            if rows == 0.0 {
                return Work::default();
            }
            Work {
                ops: 2.0 * rows * weight.rows() as f64 * weight.cols() as f64,
                bytes: weight.stored_bytes() as f64 + traffic,
            }
        }
        Op::Embed { table } => {
            let table = graph.weight(*table);
            let row = table.stored_bytes() as f64 / table.rows() as f64;
            Work { ops: 0.0, bytes: shape.rows as f64 * row + traffic }
        }
        Op::Attention(a) => {
            let seen = a.window.map_or(shape.context, |window| shape.context.min(window as f64));
            let pairs = shape.rows as f64 * seen * (a.heads * a.head_dim) as f64;
            let cached = seen * (a.kv_heads * a.head_dim) as f64 * 2.0 * kv_bytes(shape.kv);
            Work { ops: 4.0 * pairs, bytes: shape.sequences as f64 * cached + traffic }
        }
        _ => Work { ops: elements, bytes: traffic },
    }
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
pub fn seconds(graph: &Graph, range: Range<usize>, rates: &Rates, shape: &Shape) -> f64 {
    let tile = rates.row_tile.max(1);
    let padded = Shape { rows: shape.rows.next_multiple_of(tile), ..*shape };
    let nodes = graph.nodes.get(range).unwrap_or_default();
    let of_nodes: f64 = nodes.iter().map(|node| node_seconds(graph, node, rates, &padded)).sum();
    rates.run_s + of_nodes
}

/// Seconds that one node takes.
pub(crate) fn node_seconds(graph: &Graph, node: &Node, rates: &Rates, shape: &Shape) -> f64 {
    let work = work(graph, node, shape);
    (work.ops / rates.int8_ops_per_s).max(work.bytes / rates.read_bytes_per_s) + rates.node_s
}

/// Bytes of all weights, each counted once.
#[must_use]
pub fn weights_bytes(graph: &Graph) -> u64 {
    graph.weights.iter().map(|named| named.weight.stored_bytes() as u64).sum()
}
