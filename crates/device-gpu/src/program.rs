//! A segment as a list of dispatches: kernels with their constants, shapes and buffers, and a slot
//! of memory for every value. Values that are never needed at the same time share a slot.

use crate::context::{Abilities, Block, Context, NAME};
use crate::pack::{CHUNK, Form, Packed, TILE};
use crate::shader::{self, Constants, Kernel};
use crate::weights::Weights;
use std::cmp::Reverse;
use std::collections::HashMap;
use std::sync::Arc;
use tangor_device::model::ir::{Activation, Attention, Node, Rows};
use tangor_device::model::{Graph, Op, ValueId, WeightId};
use tangor_device::rounding::{GROUP, group_before, group_of};
use tangor_device::{Activations, DeviceError, Prepare, Segment};
use wgpu::BufferUsages;

/// Groups of a row that are rounded at the most.
pub(crate) const MOST_GROUPS: usize = 1024;
/// Words of a chunk of digits.
const DIGITS: usize = 20;
/// Elements of a head at the most.
const MOST_HEAD: usize = 256;
/// Query heads that read one key head at the most.
const MOST_GROUP: usize = 32;

/// A buffer that a kernel uses.
#[derive(Clone, Debug)]
pub(crate) enum Operand {
    /// What all kernels of a run know.
    Run,
    /// Tokens, places in the cache, angles, tiles of attention.
    Batch,
    /// A value.
    Value(usize),
    /// Weights, shapes.
    Block(Arc<Block>),
    /// Something to be named where nothing is written.
    Nothing,
    /// Rotated queries.
    Queries,
    /// What pages add to attention.
    Partials,
    /// The cache of a layer.
    Keys(usize),
    Values(usize),
}

/// How much a kernel does, and which constants it has.
#[derive(Debug)]
pub(crate) enum Work {
    /// `tiles` times 64 outputs of all rows; of digits where these are what it reads.
    Linear { form: Form, tail: bool, digits: bool, tiles: u32, rows: Rows },
    /// `across` workgroups for every row.
    Rows { constants: Constants, across: u32, rows: Rows },
    /// Rotation; its constants depend on the cache.
    Rotate { heads: u32 },
    /// Rows that attend in one piece.
    Together { attention: Attention },
    /// Rows that attend page by page.
    Alone { attention: Attention },
    /// What adds their pages.
    Merge { attention: Attention },
}

/// One dispatch.
#[derive(Debug)]
pub(crate) struct Step {
    /// The operation's name, for profiles.
    pub(crate) name: &'static str,
    pub(crate) kernel: &'static Kernel,
    pub(crate) operands: Vec<Operand>,
    pub(crate) work: Work,
}

/// A value and where it is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place {
    pub(crate) slot: usize,
    pub(crate) width: usize,
    pub(crate) rows: Rows,
}

impl Place {
    /// Elements from one row to the next: whole vectors of four.
    pub(crate) fn stride(&self) -> usize {
        stride(self.width)
    }
}

pub(crate) fn stride(width: usize) -> usize {
    width.next_multiple_of(4)
}

/// A prepared segment, without its memory.
#[derive(Debug)]
pub(crate) struct Program {
    pub(crate) steps: Vec<Step>,
    pub(crate) inputs: Vec<Place>,
    pub(crate) outputs: Vec<Place>,
    /// Of every slot, elements per token and per wanted row at the most.
    pub(crate) slots: Vec<(usize, usize)>,
    /// Elements of a row of rotated queries at the most.
    pub(crate) queries: usize,
    /// Bytes of weights and shapes.
    pub(crate) weight_bytes: u64,
}

impl Program {
    /// Numbers slots by size, so that programs which take turns with one memory, where a slot is
    /// the largest of its number, share large ones with large ones.
    fn largest_slots_first(mut self) -> Self {
        let mut order: Vec<usize> = (0..self.slots.len()).collect();
        order.sort_by_key(|&slot| Reverse(self.slots[slot]));
        let mut number = vec![0; order.len()];
        order.iter().enumerate().for_each(|(new, &old)| number[old] = new);
        self.slots = order.iter().map(|&slot| self.slots[slot]).collect();
        for place in self.inputs.iter_mut().chain(&mut self.outputs) {
            place.slot = number[place.slot];
        }
        for operand in self.steps.iter_mut().flat_map(|step| &mut step.operands) {
            if let Operand::Value(slot) = operand {
                *slot = number[*slot];
            }
        }
        self
    }
}

/// Why this device cannot run a node, if it cannot.
pub(crate) fn refuses(graph: &Graph, node: &Node) -> Option<String> {
    match &node.op {
        Op::Attention(a) if a.head_dim > MOST_HEAD => {
            Some(format!("heads of {} elements: {MOST_HEAD} are the most", a.head_dim))
        }
        Op::Attention(a) if a.heads / a.kv_heads.max(1) > MOST_GROUP => {
            let group = a.heads / a.kv_heads.max(1);
            Some(format!("{group} heads over one: {MOST_GROUP} are the most"))
        }
        Op::Linear { weight, .. } => {
            let cols = graph.weight(*weight).cols();
            let most = MOST_GROUPS * GROUP;
            (cols > most).then(|| format!("rows of {cols} inputs: {most} are the most"))
        }
        _ => None,
    }
}

/// Whether this device can run a segment.
///
/// # Errors
/// [`DeviceError::Refused`] with the first node that it cannot.
pub(crate) fn check(segment: &Segment<'_>) -> Result<(), DeviceError> {
    let refused = |node: &Node| Some((node.name.clone(), refuses(segment.graph, node)?));
    match segment.graph.nodes[segment.nodes.clone()].iter().find_map(refused) {
        Some((node, why)) => Err(DeviceError::Refused { device: NAME.to_owned(), node, why }),
        None => Ok(()),
    }
}

/// Compiles a segment.
pub(crate) struct Compiler<'a> {
    segment: &'a Segment<'a>,
    options: Prepare,
    context: &'a Arc<Context>,
    steps: Vec<Step>,
    places: HashMap<ValueId, Place>,
    /// Values rounded to 8 bits, as digits or as the numbers that these stand for.
    rounded: HashMap<(ValueId, bool), Place>,
    slots: Vec<(usize, usize)>,
    free: Vec<usize>,
    weights: &'a mut Weights,
    vectors: HashMap<WeightId, Arc<Block>>,
    bytes: u64,
    queries: usize,
}

impl<'a> Compiler<'a> {
    pub(crate) fn new(
        segment: &'a Segment<'a>,
        options: Prepare,
        context: &'a Arc<Context>,
        weights: &'a mut Weights,
    ) -> Self {
        Self {
            segment,
            options,
            context,
            steps: Vec::new(),
            places: HashMap::new(),
            rounded: HashMap::new(),
            slots: Vec::new(),
            free: Vec::new(),
            weights,
            vectors: HashMap::new(),
            bytes: 0,
            queries: 0,
        }
    }

    pub(crate) fn compile(mut self) -> Result<Program, DeviceError> {
        let nodes = &self.segment.graph.nodes[self.segment.nodes.clone()];
        let (last, last_rounded) = self.last_uses(nodes);
        for &id in &self.segment.inputs {
            self.place(id);
        }
        for (index, node) in nodes.iter().enumerate() {
            for &id in &node.outputs {
                self.place(id);
            }
            self.node(node)?;
            let free = &mut self.free;
            self.places.retain(|id, place| {
                let over = last.get(id).is_none_or(|&last| last <= index);
                free.extend(over.then_some(place.slot));
                !over
            });
            self.rounded.retain(|(id, _), place| {
                let over = last_rounded.get(id).is_none_or(|&last| last <= index);
                free.extend(over.then_some(place.slot));
                !over
            });
        }
        let at = |ids: &[ValueId]| -> Result<Vec<Place>, DeviceError> {
            let place = |id: &ValueId| self.places.get(id).copied();
            ids.iter().map(place).collect::<Option<_>>().ok_or_else(|| DeviceError::Batch {
                why: "an output that no node of the segment writes".into(),
            })
        };
        Ok(Program {
            inputs: at(&self.segment.inputs)?,
            outputs: at(&self.segment.outputs)?,
            steps: self.steps,
            slots: self.slots,
            queries: self.queries,
            weight_bytes: self.bytes,
        }
        .largest_slots_first())
    }

    /// For each value the last node that reads it, and the last that reads it rounded. What comes
    /// in and what goes out stays.
    fn last_uses(&self, nodes: &[Node]) -> (HashMap<ValueId, usize>, HashMap<ValueId, usize>) {
        let (mut last, mut rounded) = (HashMap::new(), HashMap::new());
        for (index, node) in nodes.iter().enumerate() {
            for &id in &node.inputs {
                last.insert(id, index);
                if self.rounds(&node.op) {
                    rounded.insert(id, index);
                }
            }
        }
        for &id in self.segment.outputs.iter().chain(&self.segment.inputs) {
            last.insert(id, usize::MAX);
        }
        (last, rounded)
    }

    /// Whether an operation reads its input in 8 bits.
    fn rounds(&self, op: &Op) -> bool {
        let Op::Linear { weight, .. } = op else { return false };
        self.options.activations == Activations::Int8
            && group_of(self.segment.graph.weight(*weight)).is_some()
    }

    /// A slot for a new value: the smallest free one with room for it, or else the largest, which
    /// grows. In whatever order slots became free, the same one is taken.
    fn slot(&mut self, width: usize, rows: Rows) -> Place {
        let needed = stride(width);
        let room = |(tokens, logits): (usize, usize)| match rows {
            Rows::Tokens => tokens,
            Rows::Logits => logits,
        };
        let fit = |&at: &usize| {
            let room = room(self.slots[self.free[at]]);
            (room < needed, room.abs_diff(needed), self.free[at])
        };
        let slot = match (0..self.free.len()).min_by_key(fit) {
            Some(at) => self.free.swap_remove(at),
            None => {
                self.slots.push((0, 0));
                self.slots.len() - 1
            }
        };
        let (tokens, logits) = &mut self.slots[slot];
        let most = if rows == Rows::Tokens { tokens } else { logits };
        *most = (*most).max(needed);
        Place { slot, width, rows }
    }

    fn place(&mut self, id: ValueId) {
        let value = self.segment.graph.value(id);
        let place = self.slot(value.width, value.rows);
        self.places.insert(id, place);
    }

    fn at(&self, id: ValueId) -> Result<Place, DeviceError> {
        self.places.get(&id).copied().ok_or_else(|| DeviceError::Batch {
            why: format!("value {} is read before it is written", id.0),
        })
    }

    fn constant<T: bytemuck::NoUninit>(
        &mut self,
        data: &[T],
        usage: BufferUsages,
    ) -> Result<Arc<Block>, DeviceError> {
        let block = Arc::new(self.context.constant("weights", data, usage)?);
        self.bytes += block.bytes();
        Ok(block)
    }

    fn shape(&mut self, words: &[u32]) -> Result<Operand, DeviceError> {
        let mut words = words.to_vec();
        words.resize(words.len().next_multiple_of(4), 0);
        Ok(Operand::Block(self.constant(&words, BufferUsages::UNIFORM)?))
    }

    fn vector(&mut self, id: WeightId) -> Result<Operand, DeviceError> {
        if let Some(block) = self.vectors.get(&id) {
            return Ok(Operand::Block(Arc::clone(block)));
        }
        let weight = self.segment.graph.weight(id);
        let mut values = vec![0.0_f32; weight.cols()];
        weight.row_f32(0, &mut values);
        let block = self.constant(&values, BufferUsages::STORAGE)?;
        self.vectors.insert(id, Arc::clone(&block));
        Ok(Operand::Block(block))
    }

    fn packed(&mut self, id: WeightId) -> Result<Arc<Packed>, DeviceError> {
        self.bytes += self.weights.count(id);
        self.weights.get(id).ok_or_else(|| DeviceError::Batch {
            why: format!("weight {} is read by a node of no segment", id.0),
        })
    }

    fn push(
        &mut self,
        name: &'static str,
        kernel: &'static Kernel,
        operands: Vec<Operand>,
        work: Work,
    ) {
        self.steps.push(Step { name, kernel, operands, work });
    }

    fn node(&mut self, node: &Node) -> Result<(), DeviceError> {
        let name = node.op.name();
        let read = node.inputs.iter().map(|&id| self.at(id)).collect::<Result<Vec<_>, _>>()?;
        let write = node.outputs.iter().map(|&id| self.at(id)).collect::<Result<Vec<_>, _>>()?;
        match (&node.op, &read[..], &write[..]) {
            (Op::Embed { table }, _, &[y]) => self.embed(*table, y),
            (Op::RmsNorm { gain, eps }, &[x], &[y]) => self.norm(name, (*gain, *eps), x, None, y),
            (Op::AddRmsNorm { gain, eps }, &[x, delta], &[sum, y]) => {
                self.norm(name, (*gain, *eps), x, Some((delta, sum)), y)
            }
            (Op::Linear { weight, bias }, &[_], &[y]) => {
                self.linear(&node.op, node.inputs[0], *weight, *bias, y)
            }
            (Op::Attention(a), read, &[y]) => self.attention(a, read, y),
            (Op::Gated(act), read, &[y]) => {
                let op = match act {
                    Activation::Silu => 3,
                    Activation::Gelu => 4,
                    Activation::GeluTanh => 5,
                };
                match *read {
                    [both] => self.rows(name, op, (both, both, y.width), y, 0.0),
                    [gate, up] => self.rows(name, op, (gate, up, 0), y, 0.0),
                    _ => Ok(()),
                }
            }
            (Op::Add, &[a, b], &[y]) => self.rows(name, 0, (a, b, 0), y, 0.0),
            (Op::Scale(factor), &[a], &[y]) => self.rows(name, 1, (a, a, 0), y, *factor),
            (Op::SelectRows, &[a], &[y]) => self.rows(name, 2, (a, a, 0), y, 0.0),
            // Graphs check what operations read.
            _ => Ok(()),
        }
    }

    fn embed(&mut self, table: WeightId, y: Place) -> Result<(), DeviceError> {
        let packed = self.packed(table)?;
        for (index, part) in packed.parts.iter().enumerate() {
            let [chunks, ..] = part.shape;
            let (first, rows) = (part.rows.start, part.rows.len());
            let mut words = part.shape.to_vec();
            words.extend([packed.cols, y.stride(), first, rows].map(word));
            let operands = vec![
                Operand::Run,
                self.shape(&words)?,
                Operand::Block(part_block(&packed, index, true)),
                Operand::Block(part_block(&packed, index, false)),
                Operand::Batch,
                Operand::Value(y.slot),
            ];
            let across = chunks.div_ceil(64);
            let work = Work::Rows { constants: part.form.constants(), across, rows: y.rows };
            self.push("embed", &shader::EMBED, operands, work);
        }
        Ok(())
    }

    fn norm(
        &mut self,
        name: &'static str,
        (gain, eps): (WeightId, f32),
        x: Place,
        add: Option<(Place, Place)>,
        y: Place,
    ) -> Result<(), DeviceError> {
        let width = self.segment.graph.weight(gain).cols();
        let runs = x.width / width;
        let (delta, sum) = add.unzip();
        let words = [
            word(width),
            word(runs),
            word(x.stride()),
            word(delta.map_or(0, |p| p.stride())),
            word(y.stride()),
            word(sum.map_or(0, |p| p.stride())),
            eps.to_bits(),
            tokens(y.rows),
        ];
        let operands = vec![
            Operand::Run,
            self.shape(&words)?,
            self.vector(gain)?,
            Operand::Value(x.slot),
            Operand::Value(delta.unwrap_or(x).slot),
            sum.map_or(Operand::Nothing, |place| Operand::Value(place.slot)),
            Operand::Value(y.slot),
        ];
        let constants = vec![("ADD", u32::from(add.is_some()))];
        let work = Work::Rows { constants, across: word(runs), rows: y.rows };
        self.push(name, &shader::NORM, operands, work);
        Ok(())
    }

    /// The value as quantised linears read it.
    fn round(&mut self, id: ValueId, digits: bool) -> Result<Place, DeviceError> {
        if let Some(&place) = self.rounded.get(&(id, digits)) {
            return Ok(place);
        }
        let from = self.at(id)?;
        let width = if digits { from.width.div_ceil(CHUNK) * DIGITS } else { from.width };
        let to = self.slot(width, from.rows);
        self.rounded.insert((id, digits), to);
        let len = group_before(self.segment.graph, id).unwrap_or(GROUP);
        let groups = from.width.div_ceil(len);
        let mut words = [from.width, len, groups, from.stride()].map(word).to_vec();
        words.extend([tokens(from.rows), 0, 0, 0]);
        let operands = vec![
            Operand::Run,
            self.shape(&words)?,
            Operand::Value(from.slot),
            Operand::Value(to.slot),
        ];
        let constants = vec![
            ("MOST_GROUPS", word(groups.next_multiple_of(64))),
            ("DIGITS", u32::from(digits)),
            ("WORDS", word(CHUNK / 4)),
        ];
        let work = Work::Rows { constants, across: 1, rows: from.rows };
        self.push("round", &shader::ROUND, operands, work);
        Ok(to)
    }

    fn linear(
        &mut self,
        op: &Op,
        x: ValueId,
        weight: WeightId,
        bias: Option<WeightId>,
        y: Place,
    ) -> Result<(), DeviceError> {
        let rounds = self.rounds(op);
        let packed = self.packed(weight)?;
        let bias_at = bias.map(|bias| self.vector(bias)).transpose()?;
        let Abilities { inputs, integer_dots, .. } = self.context.abilities;
        for (index, part) in packed.parts.iter().enumerate() {
            let digits = rounds && integer_dots && part.form.has_codes();
            let x = if rounds { self.round(x, digits)? } else { self.at(x)? };
            let mut words = part.shape.to_vec();
            let rows = part.rows.len();
            words
                .extend([packed.cols, rows, x.stride() / 4, y.stride(), part.rows.start].map(word));
            words.extend([tokens(y.rows), u32::from(bias.is_some()), 0]);
            let operands = vec![
                Operand::Run,
                self.shape(&words)?,
                Operand::Block(part_block(&packed, index, true)),
                Operand::Block(part_block(&packed, index, false)),
                Operand::Value(x.slot),
                bias_at.clone().unwrap_or(Operand::Value(x.slot)),
                Operand::Value(y.slot),
            ];
            let work = Work::Linear {
                form: part.form,
                tail: !packed.cols.is_multiple_of(CHUNK),
                digits,
                tiles: word(rows.div_ceil(TILE)),
                rows: y.rows,
            };
            self.push("linear", inputs.linear(digits), operands, work);
        }
        Ok(())
    }

    /// Element by element; `b` begins at `first` of its rows.
    fn rows(
        &mut self,
        name: &'static str,
        op: u32,
        (a, b, first): (Place, Place, usize),
        y: Place,
        factor: f32,
    ) -> Result<(), DeviceError> {
        let mut words = [y.width, a.stride(), b.stride(), y.stride(), first].map(word).to_vec();
        words.extend([factor.to_bits(), tokens(y.rows), u32::from(a.rows == y.rows)]);
        let operands = vec![
            Operand::Run,
            self.shape(&words)?,
            Operand::Batch,
            Operand::Value(a.slot),
            Operand::Value(b.slot),
            Operand::Value(y.slot),
        ];
        let across = word(y.width.div_ceil(64));
        let work = Work::Rows { constants: vec![("OP", op)], across, rows: y.rows };
        self.push(name, &shader::ROWS, operands, work);
        Ok(())
    }

    fn attention(&mut self, a: &Attention, read: &[Place], y: Place) -> Result<(), DeviceError> {
        let (q_width, kv_width) = (a.heads * a.head_dim, a.kv_heads * a.head_dim);
        let (q, k, v, k_first, v_first) = match *read {
            [qkv] => (qkv, qkv, qkv, q_width, q_width + kv_width),
            [q, k, v] => (q, k, v, 0, 0),
            _ => return Ok(()),
        };
        let rope = &self.segment.graph.rope;
        let angles = rope.dim / 2;
        let half = if a.rotate { angles } else { 0 };
        let interleaved = usize::from(rope.interleaved);
        let strides = [q.stride(), k.stride(), v.stride()];
        let mut words = [a.heads, a.kv_heads, half, interleaved].map(word).to_vec();
        words.extend(strides.map(word));
        words.extend([0, k_first, v_first, angles].map(word));
        let operands = vec![
            Operand::Run,
            self.shape(&words)?,
            Operand::Batch,
            Operand::Value(q.slot),
            Operand::Value(k.slot),
            Operand::Value(v.slot),
            Operand::Queries,
            Operand::Keys(a.layer),
            Operand::Values(a.layer),
        ];
        let heads = word(a.heads + 2 * a.kv_heads);
        self.push("rotate", &shader::ROTATE, operands, Work::Rotate { heads });
        self.queries = self.queries.max(a.heads * stride(a.head_dim));
        let window = a.window.unwrap_or(0);
        let mut words = [a.heads, a.kv_heads, window, y.stride()].map(word).to_vec();
        words.extend([a.scale, a.softcap.unwrap_or(0.0)].map(f32::to_bits));
        let shape = self.shape(&words)?;
        let y = Operand::Value(y.slot);
        let cache = [Operand::Keys(a.layer), Operand::Values(a.layer)];
        for alone in [false, true] {
            let [keys, values] = cache.clone();
            let operands = vec![
                Operand::Run,
                shape.clone(),
                Operand::Batch,
                Operand::Queries,
                keys,
                values,
                Operand::Partials,
                y.clone(),
            ];
            let attention = a.clone();
            let work = if alone { Work::Alone { attention } } else { Work::Together { attention } };
            self.push("attention", &shader::ATTENTION, operands, work);
        }
        let operands = vec![Operand::Run, shape, Operand::Batch, Operand::Partials, y];
        self.push("attention", &shader::MERGE, operands, Work::Merge { attention: a.clone() });
        Ok(())
    }
}

/// The codes or the scales of a part.
fn part_block(packed: &Arc<Packed>, index: usize, codes: bool) -> Arc<Block> {
    let part = &packed.parts[index];
    Arc::clone(if codes { &part.codes } else { &part.scales })
}

#[allow(clippy::cast_possible_truncation, reason = "shapes are checked against buffers' sizes")]
fn word(x: usize) -> u32 {
    x as u32
}

fn tokens(rows: Rows) -> u32 {
    u32::from(rows == Rows::Tokens)
}
