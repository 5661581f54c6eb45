//! Running a prepared segment: pieces on the provider, the rest on the host.

use crate::attention::attention;
use crate::device::Core;
use crate::emit::{Piece, value_name};
use crate::error::running;
use crate::kv::NpuKv;
use crate::session::Bound;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use tangor_device::model::ir::{Attention, Rows};
use tangor_device::model::{Graph, Op, ValueId};
use tangor_device::{Batch, DeviceError, KvCache, Runnable, Segment};

/// What is done after each other.
#[derive(Debug)]
pub(crate) enum Step {
    /// A node that the host runs.
    Host(usize),
    /// A piece that the provider runs.
    Piece(Box<Prepared>),
}

/// A compiled piece.
#[derive(Debug)]
pub(crate) struct Prepared {
    inputs: Vec<(ValueId, String, usize)>,
    outputs: Vec<(ValueId, String, usize)>,
    rows: Rows,
    /// By row count, ascending.
    sessions: Vec<Bound>,
    /// Bytes of weights: a copy that sessions share, and one that each may have packed.
    weights: usize,
}

impl Prepared {
    pub(crate) fn new(graph: &Graph, piece: Piece, sessions: Vec<Bound>) -> Self {
        let value = |id: ValueId| (id, value_name(id), graph.value(id).width);
        let weight = |node: usize| match graph.nodes[node].op {
            Op::Linear { weight, .. } => graph.weight(weight).stored_bytes(),
            _ => 0,
        };
        Self {
            rows: graph.value(graph.nodes[piece.nodes.start].outputs[0]).rows,
            weights: piece.nodes.clone().map(weight).sum::<usize>() * (sessions.len() + 1),
            inputs: piece.inputs.into_iter().map(value).collect(),
            outputs: piece.outputs.into_iter().map(value).collect(),
            sessions,
        }
    }

    /// Runs any number of rows, in several turns if need be.
    fn run(&mut self, values: &mut Values, rows: usize) -> Result<(), ort::Error> {
        let mut written: Vec<Vec<f32>> =
            self.outputs.iter().map(|(_, _, width)| vec![0.0; rows * width]).collect();
        let mut start = 0;
        while start < rows {
            let index = turn(&self.sessions, rows - start);
            let session = &mut self.sessions[index];
            let end = rows.min(start + session.rows);
            let mut reads: Vec<(&str, &[f32])> = Vec::new();
            for (id, name, width) in &self.inputs {
                let x = values.get(*id).get(start * width..end * width);
                let x = x.ok_or_else(|| ort::Error::new(format!("{name} has too few rows")))?;
                reads.push((name, x));
            }
            let mut writes: Vec<(&str, &mut [f32])> = self
                .outputs
                .iter()
                .zip(&mut written)
                .map(|((_, name, width), y)| (name.as_str(), &mut y[start * width..end * width]))
                .collect();
            session.run(&reads, &mut writes)?;
            start = end;
        }
        for ((id, _, _), y) in self.outputs.iter().zip(written) {
            values.set(*id, y);
        }
        Ok(())
    }

    fn bytes(&self) -> usize {
        self.weights + self.sessions.iter().map(Bound::bytes).sum::<usize>()
    }
}

/// Which session takes the next of `rows` rows: the smallest that takes all of them, unless more
/// than half of it would be padding and a smaller one can be filled.
fn turn(sessions: &[Bound], rows: usize) -> usize {
    let last = sessions.len() - 1;
    let cover = sessions.iter().position(|session| session.rows >= rows).unwrap_or(last);
    let fill = cover > 0 && sessions[cover].rows >= 2 * rows && sessions[cover - 1].rows > 1;
    if fill { cover - 1 } else { cover }
}

/// Values of a run by their ids.
#[derive(Debug, Default)]
struct Values(HashMap<ValueId, Vec<f32>>);

impl Values {
    fn get(&self, id: ValueId) -> &[f32] {
        self.0.get(&id).map_or(&[], Vec::as_slice)
    }

    fn set(&mut self, id: ValueId, value: Vec<f32>) {
        self.0.insert(id, value);
    }
}

/// A prepared segment.
#[derive(Debug)]
pub(crate) struct NpuRunnable {
    core: Arc<Core>,
    graph: Graph,
    inputs: Vec<ValueId>,
    outputs: Vec<ValueId>,
    steps: Vec<Step>,
    /// Values that nobody reads after a step.
    free: Vec<Vec<ValueId>>,
}

impl NpuRunnable {
    pub(crate) fn new(core: Arc<Core>, segment: &Segment<'_>, steps: Vec<Step>) -> Self {
        let (inputs, outputs) = (segment.inputs.clone(), segment.outputs.clone());
        let reads = |step: &Step| -> Vec<ValueId> {
            match step {
                Step::Host(node) => segment.graph.nodes[*node].inputs.clone(),
                Step::Piece(piece) => piece.inputs.iter().map(|input| input.0).collect(),
            }
        };
        let mut later: HashSet<ValueId> = outputs.iter().copied().collect();
        let mut free: Vec<Vec<ValueId>> = steps
            .iter()
            .rev()
            .map(|s| reads(s).into_iter().filter(|id| later.insert(*id)).collect())
            .collect();
        free.reverse();
        // Weights of pieces are the provider's; the graph is kept for what the host reads.
        let graph = host_graph(segment, &steps);
        Self { core, graph, inputs, outputs, steps, free }
    }

    fn host(
        &self,
        node: usize,
        values: &Values,
        batch: &Batch<'_>,
        kv: &mut NpuKv,
    ) -> Result<Vec<f32>, DeviceError> {
        let node = &self.graph.nodes[node];
        let input = |index: usize| values.get(node.inputs[index]);
        match &node.op {
            Op::Embed { table } => {
                let table = self.graph.weight(*table);
                let mut out = vec![0.0; batch.tokens.len() * table.cols()];
                for (out, &token) in out.chunks_mut(table.cols()).zip(batch.tokens) {
                    table.row_f32(token as usize, out);
                }
                table.check_unchanged().map_err(|_| DeviceError::WeightsChanged)?;
                Ok(out)
            }
            Op::SelectRows => {
                let value = self.graph.value(node.inputs[0]);
                let x = input(0);
                if value.rows == Rows::Logits {
                    return Ok(x.to_vec());
                }
                let rows = batch.logit_rows.iter();
                Ok(rows.flat_map(|row| &x[row * value.width..][..value.width]).copied().collect())
            }
            Op::Attention(a) => Ok(self.attend(a, &node.inputs, values, batch, kv)),
            op => Err(DeviceError::Refused {
                device: self.core.name.clone(),
                node: node.name.clone(),
                why: format!("{} does not run on the host", op.name()),
            }),
        }
    }

    fn attend(
        &self,
        a: &Attention,
        inputs: &[ValueId],
        values: &Values,
        batch: &Batch<'_>,
        kv: &mut NpuKv,
    ) -> Vec<f32> {
        let reads: Vec<&[f32]> = inputs.iter().map(|&id| values.get(id)).collect();
        let mut out = vec![0.0; batch.tokens.len() * a.heads * a.head_dim];
        attention(&self.graph, a, &reads, batch, kv, &mut out);
        out
    }

    /// Whether the inputs have the batch's rows, and the cache fits the graph.
    fn check(&self, batch: &Batch<'_>, kv: &NpuKv, inputs: &[&[f32]]) -> Result<(), DeviceError> {
        batch.check(self.graph.hyper.vocab, kv.spec())?;
        let wanted = self.inputs.iter().map(|&id| {
            let value = self.graph.value(id);
            value.width * rows_of(value.rows, batch)
        });
        let found = inputs.iter().map(|input| input.len());
        if !wanted.eq(found) {
            return Err(DeviceError::Batch { why: "inputs do not have the batch's rows".into() });
        }
        for step in &self.steps {
            if let Step::Host(node) = step
                && let Op::Attention(a) = &self.graph.nodes[*node].op
            {
                let spec = kv.spec();
                if (a.kv_heads, a.head_dim) != (spec.kv_heads, spec.head_dim)
                    || a.layer >= spec.layers
                {
                    let why = "the KV cache has another shape than the graph".into();
                    return Err(DeviceError::Batch { why });
                }
            }
        }
        Ok(())
    }
}

/// Rows of a value in a batch.
fn rows_of(rows: Rows, batch: &Batch<'_>) -> usize {
    match rows {
        Rows::Tokens => batch.tokens.len(),
        Rows::Logits => batch.logit_rows.len(),
    }
}

/// The graph without the weights that only pieces read.
fn host_graph(segment: &Segment<'_>, steps: &[Step]) -> Graph {
    let mut graph = segment.graph.clone();
    let read: HashSet<usize> = steps
        .iter()
        .filter_map(|step| match step {
            Step::Host(node) => match graph.nodes[*node].op {
                Op::Embed { table } => Some(table.0),
                _ => None,
            },
            Step::Piece(_) => None,
        })
        .collect();
    for (index, named) in graph.weights.iter_mut().enumerate() {
        if !read.contains(&index)
            && let Ok(nothing) = tangor_device::tensor::Weight::vector(&[0.0])
        {
            named.weight = nothing;
        }
    }
    graph
}

impl Runnable for NpuRunnable {
    fn run(
        &mut self,
        batch: &Batch<'_>,
        kv: &mut dyn KvCache,
        inputs: &[&[f32]],
        outputs: &mut [Vec<f32>],
    ) -> Result<(), DeviceError> {
        if let Some(why) = self.core.lost() {
            return Err(DeviceError::Lost { device: self.core.name.clone(), why });
        }
        let Some(kv) = kv.as_any_mut().downcast_mut::<NpuKv>() else {
            return Err(DeviceError::Batch { why: "the KV cache is another device's".into() });
        };
        self.check(batch, kv, inputs)?;
        let mut values = Values::default();
        for (&id, input) in self.inputs.iter().zip(inputs) {
            values.set(id, input.to_vec());
        }
        let mut steps = std::mem::take(&mut self.steps);
        let ran = steps.iter_mut().zip(&self.free).try_for_each(|(step, free)| {
            match step {
                Step::Host(node) => {
                    let written = self.host(*node, &values, batch, kv)?;
                    values.set(self.graph.nodes[*node].outputs[0], written);
                }
                Step::Piece(piece) => {
                    let rows = rows_of(piece.rows, batch);
                    piece.run(&mut values, rows).map_err(|error| {
                        match running(&self.core.name, &error) {
                            DeviceError::Lost { why, .. } => self.core.lose(why),
                            error => error,
                        }
                    })?;
                }
            }
            for id in free {
                values.0.remove(id);
            }
            Ok(())
        });
        self.steps = steps;
        ran?;
        for (&id, output) in self.outputs.iter().zip(outputs) {
            output.clear();
            output.extend_from_slice(values.get(id));
        }
        Ok(())
    }

    fn memory_bytes(&self) -> u64 {
        let bytes = |step: &Step| match step {
            Step::Host(_) => 0,
            Step::Piece(piece) => piece.bytes(),
        };
        self.steps.iter().map(bytes).sum::<usize>() as u64
    }
}
