//! Where activations live: values whose lives do not overlap share memory.

use serde::{Deserialize, Serialize};
use tangor_model::Graph;
use tangor_model::ir::Rows;

/// Alignment of every value: a cache line, and the widest vector register.
const ALIGN: u64 = 64;

/// A scratch buffer with a place for every value of the graph.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Arena {
    /// Bytes of the buffer.
    pub bytes: u64,
    /// Offset of each value, by its id.
    pub offsets: Vec<u64>,
}

/// A value's life: from the node that writes it to the last one that reads it.
struct Life {
    value: usize,
    bytes: u64,
    first: usize,
    last: usize,
}

impl Arena {
    /// Lays out the values of a batch of `rows` rows, `logit_rows` of which go on to the logits:
    /// largest first, each at the lowest offset that is free for its whole life.
    #[must_use]
    pub fn new(graph: &Graph, rows: usize, logit_rows: usize) -> Self {
        let mut lives = lives(graph, rows, logit_rows);
        lives.sort_by(|a, b| b.bytes.cmp(&a.bytes).then(a.value.cmp(&b.value)));
        let mut arena = Self { bytes: 0, offsets: vec![0; graph.values.len()] };
        let mut placed: Vec<(u64, &Life)> = Vec::new();
        for life in &lives {
            let mut busy: Vec<(u64, u64)> = placed
                .iter()
                .filter(|(_, other)| life.first <= other.last && other.first <= life.last)
                .map(|(offset, other)| (*offset, offset.saturating_add(other.bytes)))
                .collect();
            busy.sort_unstable();
            let mut offset = 0_u64;
            for (start, end) in busy {
                if offset.saturating_add(life.bytes) <= start {
                    break;
                }
                offset = offset.max(end);
            }
            arena.offsets[life.value] = offset;
            arena.bytes = arena.bytes.max(offset.saturating_add(life.bytes));
            placed.push((offset, life));
        }
        arena
    }
}

fn lives(graph: &Graph, rows: usize, logit_rows: usize) -> Vec<Life> {
    let mut lives: Vec<Life> = graph
        .values
        .iter()
        .enumerate()
        .map(|(value, shape)| {
            let rows = match shape.rows {
                Rows::Tokens => rows,
                Rows::Logits => logit_rows,
            };
            let bytes = (rows as u64).saturating_mul(shape.width as u64).saturating_mul(4);
            let bytes = bytes.checked_next_multiple_of(ALIGN).unwrap_or(u64::MAX);
            Life { value, bytes, first: 0, last: 0 }
        })
        .collect();
    for (index, node) in graph.nodes.iter().enumerate() {
        for id in &node.outputs {
            (lives[id.0].first, lives[id.0].last) = (index, index);
        }
        for id in &node.inputs {
            lives[id.0].last = index;
        }
    }
    if let Some(logits) = lives.get_mut(graph.logits.0) {
        logits.last = graph.nodes.len();
    }
    lives
}
