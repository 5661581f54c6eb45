//! Embeddings: one vector for a text, from the hidden states behind its tokens.
//!
//! Hidden states are what the output head reads: the last norm's rows. They come from the graph
//! without its head, as one more way through segments ([`Tail`]), so that no device needs a kernel
//! for them and no logits are computed that nobody reads.

use std::ops::Range;
use tangor_plan::model::ir::{Op, Rows};
use tangor_plan::model::{Graph, ValueId};
use tangor_plan::{Kind, Plan, Stage};

/// How the hidden states of a text become one vector, which is then scaled to length 1.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Pooling {
    /// Their mean over all tokens.
    #[default]
    Mean,
    /// That of the last token, which has seen all the others.
    Last,
}

/// Hidden states that are being pooled.
#[derive(Clone, Debug)]
pub(crate) struct Pool {
    pub(crate) how: Pooling,
    /// Added row by row, in order: the same however a prompt is cut into batches.
    sum: Vec<f64>,
}

impl Pool {
    pub(crate) fn new(how: Pooling) -> Self {
        Self { how, sum: Vec::new() }
    }

    /// Takes the hidden state of the next token.
    pub(crate) fn add(&mut self, row: &[f32]) {
        match self.how {
            Pooling::Mean if !self.sum.is_empty() => {
                self.sum.iter_mut().zip(row).for_each(|(sum, x)| *sum += f64::from(*x));
            }
            _ => self.sum = row.iter().copied().map(f64::from).collect(),
        }
    }

    /// The vector, of length 1: how many rows were added makes no difference to that. `None` if it
    /// has no direction, or is not made of numbers.
    pub(crate) fn finish(&self) -> Option<Vec<f32>> {
        let length = self.sum.iter().map(|x| x * x).sum::<f64>().sqrt();
        #[allow(clippy::cast_possible_truncation)]
        let scaled = || self.sum.iter().map(|x| (x / length) as f32).collect();
        (length.is_finite() && length > 0.0).then(scaled)
    }
}

/// The way to hidden states: segments of the plan up to the output head.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Tail {
    /// Devices, by index, and the nodes that they run.
    pub(crate) segments: Vec<(usize, Range<usize>)>,
    pub(crate) hidden: ValueId,
}

impl Tail {
    /// The way that prompts take, or else the one that answers take. Neural processors compile a
    /// segment of their own for each way, with weights of its own, and are left out.
    pub(crate) fn of(graph: &Graph, plan: &Plan) -> Option<Self> {
        let (head, hidden) = head(graph)?;
        let last = |stage| plan.stages.iter().rfind(|planned| planned.stage == stage);
        let ways = [Stage::Prefill, Stage::Decode].into_iter().filter_map(last);
        let mut ways = ways.map(|stage| {
            let segments = stage.segments.iter().filter(|segment| segment.range.start < head);
            let cut = |range: &Range<usize>| range.start..range.end.min(head);
            segments.map(|segment| (segment.device, cut(&segment.range))).collect::<Vec<_>>()
        });
        let segments = ways.find(|segments| {
            segments.iter().all(|&(device, _)| plan.devices[device].kind != Kind::Npu)
        })?;
        Some(Self { segments, hidden })
    }
}

/// The output head, by index, and what it reads.
fn head(graph: &Graph) -> Option<(usize, ValueId)> {
    let linear = |op: &Op| {
        matches!(op, Op::Linear { weight, .. }
        if graph.weight(*weight).rows() == graph.hyper.vocab)
    };
    let head = graph.nodes.iter().rposition(|node| linear(&node.op))?;
    let hidden = *graph.nodes[head].inputs.first()?;
    (graph.value(hidden).rows == Rows::Logits).then_some((head, hidden))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vector_has_length_one_and_none_is_made_of_nothing() {
        let rows: [[f32; 2]; 2] = [[3.0, 0.0], [0.0, 4.0]];
        for (how, expected) in [(Pooling::Mean, [0.6, 0.8]), (Pooling::Last, [0.0, 1.0])] {
            let mut pool = Pool::new(how);
            rows.iter().for_each(|row| pool.add(row));
            assert_eq!(pool.finish().unwrap(), expected, "{how:?}");
        }
        for row in [[0.0, 0.0], [f32::NAN, 1.0], [f32::INFINITY, 1.0]] {
            let mut pool = Pool::new(Pooling::Mean);
            pool.add(&row);
            assert_eq!(pool.finish(), None, "{row:?}");
        }
    }
}
