//! A segment made ready: its operations in order, its weights packed, and a slot of memory for
//! every value. Values that are never needed at the same time share a slot.

use crate::kernels::attention::MAX_GROUP;
use crate::kernels::rope::MAX_HEAD;
use crate::pack::{PANEL, Packed};
use crate::weights::Weights;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use tangor_device::model::ir::{Activation, Attention, Node, Rows};
use tangor_device::model::{Graph, Op, ValueId, WeightId};
use tangor_device::rounding::{GROUP, group_before, group_of};
use tangor_device::tensor::{MapGuard, Weight};
use tangor_device::{Activations, DeviceError, Prepare, Segment};

/// What a step does; see [`Op`].
#[derive(Debug)]
pub(crate) enum Action {
    Embed { table: Table },
    RmsNorm { gain: Vec<f32>, eps: f32 },
    AddRmsNorm { gain: Vec<f32>, eps: f32 },
    Linear(Linear),
    Attention(Attention),
    Gated(Activation),
    Add,
    Scale(f32),
    SelectRows,
}

/// The weights of an [`Op::Linear`], and what its step does beside multiplying.
#[derive(Debug)]
pub(crate) struct Linear {
    pub(crate) weight: Arc<Packed>,
    pub(crate) bias: Option<Vec<f32>>,
    /// Whether it reads its input in 8 bits.
    pub(crate) rounded: bool,
    /// The step that gates the outputs and alone reads them, and its function.
    pub(crate) gate: Option<(Activation, Box<Step>)>,
}

/// Where the rows of an embedding are.
#[derive(Debug)]
pub(crate) enum Table {
    /// Where the checkpoint has them.
    Stored(Weight),
    /// In the panels of the output head, whose weight is the same.
    Packed(Arc<Packed>),
}

impl Table {
    /// One row.
    pub(crate) fn row_f32(&self, row: usize, out: &mut [f32]) {
        match self {
            Self::Stored(weight) => weight.row_f32(row, out),
            Self::Packed(weight) => weight.row_f32(row, out),
        }
    }

    /// Whether all that was read of it was there; the guard of packed weights is the program's.
    pub(crate) fn check(&self) -> Result<(), DeviceError> {
        match self {
            Self::Stored(weight) => {
                weight.check_unchanged().map_err(|_| DeviceError::WeightsChanged)
            }
            Self::Packed(_) => Ok(()),
        }
    }
}

/// A value and where it is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place {
    pub(crate) slot: usize,
    pub(crate) width: usize,
    pub(crate) rows: Rows,
    /// The slot of its 8-bit form, if a linear reads that.
    pub(crate) rounded: Option<usize>,
    /// Elements that share a scale there.
    pub(crate) group: usize,
    /// Whether anything reads it as it is.
    pub(crate) plain: bool,
}

/// One operation.
#[derive(Debug)]
pub(crate) struct Step {
    pub(crate) action: Action,
    pub(crate) reads: Vec<Place>,
    pub(crate) writes: Vec<Place>,
}

/// A prepared segment, without its memory.
#[derive(Debug)]
pub(crate) struct Program {
    pub(crate) steps: Vec<Step>,
    pub(crate) inputs: Vec<Place>,
    pub(crate) outputs: Vec<Place>,
    /// Slots of `f32` values.
    pub(crate) slots: usize,
    /// Slots of 8-bit values.
    pub(crate) rounded_slots: usize,
    /// Bytes of packed weights.
    pub(crate) weight_bytes: u64,
    /// Fails once packed weights are lost.
    pub(crate) guard: MapGuard,
}

/// Why there is no kernel for an operation, if there is none.
pub(crate) fn refuses(op: &Op) -> Option<String> {
    let Op::Attention(a) = op else { return None };
    if a.head_dim > MAX_HEAD {
        return Some(format!("heads of {} elements: {MAX_HEAD} are the most", a.head_dim));
    }
    let group = a.heads / a.kv_heads.max(1);
    (group > MAX_GROUP).then(|| format!("{group} heads over one: {MAX_GROUP} are the most"))
}

/// Gives every value of a segment its place, and every step its weights.
pub(crate) struct Compiler<'a> {
    pub(crate) segment: &'a Segment<'a>,
    pub(crate) options: Prepare,
    pub(crate) device: &'a str,
}

/// Hands out slots, those that were given back first.
#[derive(Debug, Default)]
struct Slots {
    free: Vec<usize>,
    count: usize,
}

impl Slots {
    fn take(&mut self) -> usize {
        self.free.pop().unwrap_or_else(|| {
            self.count += 1;
            self.count - 1
        })
    }
}

impl Compiler<'_> {
    pub(crate) fn compile(&self, weights: &mut Weights) -> Result<Program, DeviceError> {
        let places = self.places();
        let nodes = &self.segment.graph.nodes[self.segment.nodes.clone()];
        let at = |ids: &[ValueId]| ids.iter().map(|id| places.0[id]).collect();
        let mut steps = Vec::with_capacity(nodes.len());
        let mut weight_bytes = 0;
        for node in nodes {
            let action = self.action(&node.name, &node.op, weights)?;
            steps.push(Step { action, reads: at(&node.inputs), writes: at(&node.outputs) });
            weight_bytes += weights.count(&node.op);
        }
        let steps = self.fuse_gates(nodes, steps);
        Ok(Program {
            steps,
            inputs: at(&self.segment.inputs),
            outputs: at(&self.segment.outputs),
            slots: places.1,
            rounded_slots: places.2,
            weight_bytes,
            guard: weights.guard.clone(),
        })
    }

    /// Whether the node after node `linear` gates its outputs and alone reads them, and there is a
    /// kernel that does both.
    fn gates(&self, nodes: &[Node], linear: usize) -> bool {
        let Some([node, gate]) = nodes.get(linear..linear + 2) else { return false };
        let Op::Gated(_) = gate.op else { return false };
        let [id] = node.outputs[..] else { return false };
        let inputs = nodes.iter().flat_map(|node| &node.inputs);
        let readers = inputs.chain(&self.segment.outputs).filter(|&&input| input == id).count();
        let width = self.segment.graph.value(id).width;
        self.rounds(&node.op)
            && gate.inputs == node.outputs
            && readers == 1
            && width.is_multiple_of(2 * PANEL)
    }

    /// Moves gates into the steps of their linears. [`Compiler::places`] has kept what these read
    /// alive for it.
    fn fuse_gates(&self, nodes: &[Node], steps: Vec<Step>) -> Vec<Step> {
        let mut fused: Vec<Step> = Vec::with_capacity(steps.len());
        for (index, step) in steps.into_iter().enumerate() {
            if let Action::Gated(act) = step.action
                && index > 0
                && self.gates(nodes, index - 1)
                && let Some(Action::Linear(linear)) = fused.last_mut().map(|step| &mut step.action)
                && matches!(*linear.weight, Packed::Codes(_))
            {
                linear.gate = Some((act, Box::new(step)));
            } else {
                fused.push(step);
            }
        }
        fused
    }

    /// Every value's place, and the number of slots of both kinds. A slot is free again after the
    /// last operation that reads its value.
    fn places(&self) -> (HashMap<ValueId, Place>, usize, usize) {
        let graph = self.segment.graph;
        let nodes = &graph.nodes[self.segment.nodes.clone()];
        let mut last: HashMap<ValueId, usize> = HashMap::new();
        let mut rounded: HashMap<ValueId, usize> = HashMap::new();
        let mut plain: HashSet<ValueId> = self.segment.outputs.iter().copied().collect();
        for (index, node) in nodes.iter().enumerate() {
            for &id in &node.inputs {
                // What a linear reads it still reads while it writes what its gate writes.
                last.insert(id, index + usize::from(self.gates(nodes, index)));
                if self.rounds(&node.op) {
                    rounded.insert(id, index);
                } else {
                    plain.insert(id);
                }
            }
        }
        for &id in &self.segment.outputs {
            last.insert(id, usize::MAX);
        }
        let (mut slots, mut rounded_slots) = (Slots::default(), Slots::default());
        let mut places = HashMap::new();
        let mut place = |id: ValueId, slots: &mut Slots, rounded_slots: &mut Slots| {
            let value = graph.value(id);
            let rounded = rounded.contains_key(&id).then(|| rounded_slots.take());
            let slot = slots.take();
            let group = group_before(graph, id).unwrap_or(GROUP);
            let (width, rows, plain) = (value.width, value.rows, plain.contains(&id));
            let place = Place { slot, width, rows, rounded, group, plain };
            places.insert(id, place);
            place
        };
        let mut live: Vec<(ValueId, Place)> = Vec::new();
        for &id in &self.segment.inputs {
            live.push((id, place(id, &mut slots, &mut rounded_slots)));
        }
        for (index, node) in nodes.iter().enumerate() {
            for &id in &node.outputs {
                live.push((id, place(id, &mut slots, &mut rounded_slots)));
            }
            live.retain(|(id, place)| {
                let over = last.get(id).is_none_or(|&last| last <= index);
                if over {
                    slots.free.push(place.slot);
                    rounded_slots.free.extend(place.rounded);
                }
                !over
            });
        }
        (places, slots.count, rounded_slots.count)
    }

    /// Whether an operation reads its input in 8 bits.
    fn rounds(&self, op: &Op) -> bool {
        let Op::Linear { weight, .. } = op else { return false };
        self.options.activations == Activations::Int8
            && group_of(self.segment.graph.weight(*weight)).is_some()
    }

    fn action(&self, node: &str, op: &Op, weights: &Weights) -> Result<Action, DeviceError> {
        let graph = self.segment.graph;
        Ok(match op {
            Op::Embed { table } => Action::Embed {
                table: match weights.get(*table) {
                    Some(packed) => Table::Packed(packed),
                    None => Table::Stored(graph.weight(*table).clone()),
                },
            },
            Op::RmsNorm { gain, eps } => Action::RmsNorm { gain: vector(graph, *gain), eps: *eps },
            Op::AddRmsNorm { gain, eps } => {
                Action::AddRmsNorm { gain: vector(graph, *gain), eps: *eps }
            }
            Op::Linear { weight, bias } => Action::Linear(Linear {
                weight: weights
                    .get(*weight)
                    .ok_or_else(|| self.refuse(node, "its weights are not packed".into()))?,
                bias: bias.map(|bias| vector(graph, bias)),
                rounded: self.rounds(op),
                gate: None,
            }),
            Op::Attention(a) => match refuses(op) {
                Some(why) => return Err(self.refuse(node, why)),
                None => Action::Attention(a.clone()),
            },
            Op::Gated(act) => Action::Gated(*act),
            Op::Add => Action::Add,
            Op::Scale(factor) => Action::Scale(*factor),
            Op::SelectRows => Action::SelectRows,
        })
    }

    fn refuse(&self, node: &str, why: String) -> DeviceError {
        DeviceError::Refused { device: self.device.to_owned(), node: node.to_owned(), why }
    }
}

fn vector(graph: &Graph, id: WeightId) -> Vec<f32> {
    let weight = graph.weight(id);
    let mut out = vec![0.0; weight.cols()];
    weight.row_f32(0, &mut out);
    out
}
