//! Runs a program over batches.
//!
//! Every step is one or two loops over the pool. Memory grows to the largest batch seen and is then
//! used again: decode allocates nothing.

use crate::buffer::{Aligned, Shared};
use crate::isa::Isa;
use crate::kernels::attention::AttendScratch;
use crate::kernels::linear_f32::LinearF32;
use crate::kernels::linear_int8::{BLOCK, HALF, HALVES, Linear8, Row8};
use crate::kernels::quantise::{Quantise, Rows8};
use crate::kernels::rows::{RowOp, RowTask};
use crate::kv::CpuKv;
use crate::pack::{PANEL, Packed};
use crate::pool::Pool;
use crate::program::{Action, Linear, Place, Program, Step};
use crate::simd::dispatch;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tangor_device::model::ir::{Activation, Hyper, Rows};
use tangor_device::model::rope::Rope;
use tangor_device::{Batch, DeviceError, KvCache, Runnable};

mod attention;

/// Elements that are worth a parallel loop.
const WORTH_SHARING: usize = 1 << 14;

/// Rows below which a block is not worth unpacking its weights.
const SMALL_BLOCK: usize = 48;

/// A prepared segment with its memory.
#[derive(Debug)]
pub(crate) struct CpuRunnable {
    pub(crate) program: Program,
    pub(crate) hyper: Hyper,
    pub(crate) rope: Rope,
    pub(crate) pool: Arc<Pool>,
    pub(crate) isa: Isa,
    /// One for all segments that were prepared together, the first of which counts it.
    pub(crate) memory: Arc<Mutex<Memory>>,
    pub(crate) counts_memory: bool,
}

/// What steps write to and read from, in runs that take turns.
#[derive(Debug, Default)]
pub(crate) struct Memory {
    slots: Vec<Aligned>,
    rounded: Vec<Rows8>,
    /// `(rows, 2, rope.dim / 2)` cosines and sines.
    angles: Aligned,
    /// Rotated queries, `(kv_heads, rows, group, head_dim)`.
    queries: Aligned,
    /// Partial results of attention.
    partials: Aligned,
    /// One per thread.
    scratch: Vec<AttendScratch>,
    plan: attention::Plan,
}

impl Memory {
    /// For runs of any of these programs.
    pub(crate) fn new(programs: &[Program], threads: usize) -> Self {
        let most = |of: fn(&Program) -> usize| programs.iter().map(of).max().unwrap_or(0);
        let (slots, rounded) = (most(|p| p.slots), most(|p| p.rounded_slots));
        Self {
            slots: (0..slots).map(|_| Aligned::default()).collect(),
            rounded: (0..rounded).map(|_| Rows8::default()).collect(),
            scratch: (0..threads).map(|_| AttendScratch::default()).collect(),
            ..Self::default()
        }
    }

    fn bytes(&self) -> usize {
        let plain = [&self.angles, &self.queries, &self.partials];
        self.slots.iter().chain(plain).map(Aligned::len).sum::<usize>()
            + self.rounded.iter().map(Rows8::bytes).sum::<usize>()
            + self.scratch.iter().map(AttendScratch::bytes).sum::<usize>()
    }
}

impl Runnable for CpuRunnable {
    fn run(
        &mut self,
        batch: &Batch<'_>,
        kv: &mut dyn KvCache,
        inputs: &[&[f32]],
        outputs: &mut [Vec<f32>],
    ) -> Result<(), DeviceError> {
        batch.check(self.hyper.vocab, kv.spec())?;
        let fail = |why: String| DeviceError::Batch { why };
        let Some(kv) = kv.as_any_mut().downcast_mut::<CpuKv>() else {
            return Err(fail("the KV cache is another device's".into()));
        };
        let Self { program, pool, memory, isa, rope, .. } = self;
        let memory = &mut *lock(memory);
        if inputs.len() != program.inputs.len() || outputs.len() != program.outputs.len() {
            return Err(fail(format!("{} values in, {} out", inputs.len(), outputs.len())));
        }
        let run = Run { batch, pool, isa: *isa, rope };
        for (place, input) in program.inputs.iter().zip(inputs) {
            let len = run.rows(place) * place.width;
            if input.len() != len {
                return Err(fail(format!("a value of {} elements, not {len}", input.len())));
            }
            run.write(memory, place).copy_from_slice(input);
            run.round(memory, place);
        }
        run.fill_angles(memory);
        for step in &program.steps {
            run.step(step, memory, kv)?;
        }
        for (place, output) in program.outputs.iter().zip(outputs) {
            let value = run.read(memory, place);
            output.clear();
            output.extend_from_slice(value);
        }
        // Weights that are lost read as zeros.
        program.guard.check().map_err(|_| DeviceError::WeightsChanged)
    }

    fn memory_bytes(&self) -> u64 {
        let memory = if self.counts_memory { lock(&self.memory).bytes() } else { 0 };
        self.program.weight_bytes + memory as u64
    }
}

/// The memory, whatever became of the run before: every run writes what it reads.
fn lock(memory: &Mutex<Memory>) -> MutexGuard<'_, Memory> {
    memory.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One run: what all its steps share.
struct Run<'a> {
    batch: &'a Batch<'a>,
    pool: &'a Pool,
    isa: Isa,
    rope: &'a Rope,
}

impl Run<'_> {
    fn rows(&self, place: &Place) -> usize {
        match place.rows {
            Rows::Tokens => self.batch.tokens.len(),
            Rows::Logits => self.batch.logit_rows.len(),
        }
    }

    /// A value, `(rows, width)`.
    fn read<'m>(&self, memory: &'m Memory, place: &Place) -> &'m [f32] {
        memory.slots[place.slot].get(self.rows(place) * place.width)
    }

    /// A value to be written, `(rows, width)`.
    fn write<'m>(&self, memory: &'m mut Memory, place: &Place) -> &'m mut [f32] {
        let len = self.rows(place) * place.width;
        memory.slots[place.slot].reserve(len * 4);
        memory.slots[place.slot].get_mut(len)
    }

    /// A loop over rows in blocks, in parallel if it is worth it.
    fn over_rows(&self, rows: usize, width: usize, body: impl Fn(Range<usize>) + Sync) {
        if rows * width < WORTH_SHARING || self.pool.threads() == 1 {
            body(0..rows);
            return;
        }
        let block = rows.div_ceil(4 * self.pool.threads()).max(1);
        self.pool.run(rows.div_ceil(block), |tile, _| {
            body(tile * block..((tile + 1) * block).min(rows));
        });
    }

    /// Writes a value's 8-bit form, if a linear reads it.
    fn round(&self, memory: &mut Memory, place: &Place) {
        let Some(slot) = place.rounded else { return };
        let (rows, width) = (self.rows(place), place.width);
        memory.rounded[slot].resize(rows, width, place.group);
        let Memory { slots, rounded, .. } = memory;
        let x: &[f32] = slots[place.slot].get(rows * width);
        let out = rounded[slot].writer();
        self.over_rows(rows, width, |rows| {
            let x = &x[rows.start * width..rows.end * width];
            dispatch(self.isa, Quantise { x, width, first: rows.start, out });
        });
        self.list_wide(&mut rounded[slot]);
    }

    /// Lists the wide rows of a value that is written: tiles of several rows ask for them.
    fn list_wide(&self, x: &mut Rows8) {
        let (rows, groups) = (x.rows(), x.groups());
        if rows < 2 {
            return;
        }
        let lister = x.lister();
        // SAFETY: every group is listed once.
        self.over_rows(groups, rows, |range| range.for_each(|at| unsafe { lister.group(at) }));
    }

    fn step(&self, step: &Step, memory: &mut Memory, kv: &mut CpuKv) -> Result<(), DeviceError> {
        match &step.action {
            Action::Embed { table } => {
                let place = &step.writes[0];
                let tokens = self.batch.tokens;
                let out = Shared::new(self.write(memory, place));
                self.over_rows(tokens.len(), place.width, |rows| {
                    for row in rows {
                        let at = row * place.width..(row + 1) * place.width;
                        // SAFETY: every row belongs to one block.
                        table.row_f32(tokens[row] as usize, unsafe { out.part(at) });
                    }
                });
                self.round(memory, place);
                table.check()?;
            }
            Action::Linear(linear) => {
                let (from, to) = (&step.reads[0], &step.writes[0]);
                match &linear.gate {
                    Some((act, gate)) if self.rows(to) > 1 => {
                        self.linear(from, &gate.writes[0], memory, linear, Some(*act));
                        self.round(memory, &gate.writes[0]);
                    }
                    gate => {
                        self.linear(from, to, memory, linear, None);
                        self.round(memory, to);
                        gate.iter().for_each(|(_, gate)| self.row_step(gate, memory));
                    }
                }
            }
            Action::Attention(op) => {
                self.attention(op, step, memory, kv)?;
                self.round(memory, &step.writes[0]);
            }
            Action::SelectRows => {
                let (from, to) = (&step.reads[0], &step.writes[0]);
                let rows: Vec<usize> = match from.rows {
                    Rows::Tokens => self.batch.logit_rows.to_vec(),
                    Rows::Logits => (0..self.rows(from)).collect(),
                };
                self.write(memory, to);
                let (x, out) = self.pair(memory, from, to);
                for (row, out) in rows.into_iter().zip(out.chunks_exact_mut(to.width)) {
                    out.copy_from_slice(&x[row * to.width..][..to.width]);
                }
                self.round(memory, to);
            }
            Action::RmsNorm { .. }
            | Action::AddRmsNorm { .. }
            | Action::Gated(_)
            | Action::Add
            | Action::Scale(_) => self.row_step(step, memory),
        }
        Ok(())
    }

    /// A value to read and another to write.
    fn pair<'m>(
        &self,
        memory: &'m mut Memory,
        from: &Place,
        to: &Place,
    ) -> (&'m [f32], &'m mut [f32]) {
        let (from_len, to_len) = (self.rows(from) * from.width, self.rows(to) * to.width);
        // Values that are live at the same time have slots of their own.
        match memory.slots.get_disjoint_mut([from.slot, to.slot]) {
            Ok([x, y]) => (x.get(from_len), y.get_mut(to_len)),
            Err(_) => (&[], &mut []),
        }
    }

    /// Steps that look at one row at a time.
    fn row_step(&self, step: &Step, memory: &mut Memory) {
        // The last value written is the one that was normed, gated or summed.
        let Some(place) = step.writes.last() else { return };
        let (rows, width) = (self.rows(place), place.width);
        for place in &step.writes {
            self.write(memory, place);
            if let Some(slot) = place.rounded {
                memory.rounded[slot].resize(rows, place.width, place.group);
            }
        }
        // The slots written leave the memory while the others are read.
        let mut taken: Vec<Aligned> = Vec::with_capacity(step.writes.len());
        for place in &step.writes {
            taken.push(std::mem::take(&mut memory.slots[place.slot]));
        }
        let (rounded_slot, plain) = (place.rounded, place.plain);
        let mut rounded = rounded_slot.map(|slot| std::mem::take(&mut memory.rounded[slot]));
        {
            let read = |index: usize| self.read(memory, &step.reads[index]);
            let mut written = taken.iter_mut().map(|slot| Shared::new(slot.get_mut(rows * width)));
            let op =
                match &step.action {
                    Action::RmsNorm { gain, eps } => {
                        Some(RowOp::RmsNorm { x: read(0), gain, eps: *eps })
                    }
                    Action::AddRmsNorm { gain, eps } => written.next().map(|sum| {
                        RowOp::AddRmsNorm { x: read(0), delta: read(1), sum, gain, eps: *eps }
                    }),
                    Action::Gated(act) => {
                        let (gate, act) = (read(0), *act);
                        let (up, stride) = match step.reads.len() {
                            1 => (gate.get(width..).unwrap_or_default(), 2 * width),
                            _ => (read(1), width),
                        };
                        Some(RowOp::Gated { gate, up, stride, act })
                    }
                    Action::Add => Some(RowOp::Add { a: read(0), b: read(1) }),
                    Action::Scale(factor) => Some(RowOp::Scale { x: read(0), factor: *factor }),
                    _ => None,
                };
            let rounded = rounded.as_mut().map(Rows8::writer);
            if let (Some(op), Some(out)) = (op, written.next()) {
                self.over_rows(rows, width, |rows| {
                    dispatch(self.isa, RowTask { op, width, rows, out, rounded, plain });
                });
            }
        }
        if let (Some(slot), Some(mut rounded)) = (rounded_slot, rounded) {
            self.list_wide(&mut rounded);
            memory.rounded[slot] = rounded;
        }
        for (place, slot) in step.writes.iter().zip(taken) {
            memory.slots[place.slot] = slot;
        }
        if let [sum, _] = step.writes[..] {
            self.round(memory, &sum);
        }
    }

    /// Rows that a task of a linear computes together: blocks of equal size in whole tiles, so
    /// small that there are tasks enough to keep all threads busy until the end.
    fn block(&self, rows: usize, panels: usize) -> usize {
        let wanted = (8 * self.pool.threads()).div_ceil(panels.max(1));
        let blocks = wanted.min(rows / SMALL_BLOCK).max(rows.div_ceil(BLOCK)).max(1);
        rows.div_ceil(blocks).next_multiple_of(6).clamp(6, BLOCK)
    }

    /// A linear, gated or as it is: a single row is gated afterwards.
    fn linear(
        &self,
        from: &Place,
        to: &Place,
        memory: &mut Memory,
        linear: &Linear,
        gated: Option<Activation>,
    ) {
        let (weight, bias) = (&*linear.weight, linear.bias.as_deref());
        let rows = self.rows(to);
        self.write(memory, to);
        let mut out = std::mem::take(&mut memory.slots[to.slot]);
        let y = Shared::new(out.get_mut(rows * to.width));
        let x = self.read(memory, from);
        let rounded = from.rounded.filter(|_| linear.rounded).map(|slot| &memory.rounded[slot]);
        if let (Packed::Codes(weight), Some(x), 1) = (weight, rounded, rows) {
            self.pool.run_grains(to.width.div_ceil(HALF), HALVES, |halves, _| {
                dispatch(self.isa, Row8 { weight, bias, x, halves, y });
            });
            memory.slots[to.slot] = out;
            return;
        }
        let panels = to.width.div_ceil(PANEL);
        let block = self.block(rows, panels);
        let blocks = rows.div_ceil(block);
        // A thread's share is neighbouring tiles: panel by panel through rows of its own.
        self.pool.run(panels * blocks, |tile, _| {
            let (panel, first) = (tile % panels, tile / panels * block);
            let rows = first..(first + block).min(rows);
            match (weight, rounded) {
                (Packed::Codes(weight), Some(x)) => {
                    dispatch(self.isa, Linear8 { weight, bias, x, panel, rows, gated, y });
                }
                _ => dispatch(self.isa, LinearF32 { weight, bias, x, panel, rows, y }),
            }
        });
        memory.slots[to.slot] = out;
    }
}
