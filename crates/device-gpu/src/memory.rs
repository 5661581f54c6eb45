//! What kernels read and write beside weights: grows to the largest batch seen, and is then used
//! again. Segments that are prepared together take turns with one.

use crate::context::{Block, Context};
use crate::kv::GpuKv;
use crate::program::{Operand, Program, Step};
use crate::tiles::Upload;
use std::sync::Arc;
use tangor_device::DeviceError;
use tangor_device::model::ir::Rows;
use wgpu::BufferUsages;

/// Buffers of the runs of one segment or several.
#[derive(Debug)]
pub(crate) struct Memory {
    pub(crate) run: Block,
    pub(crate) batch: Block,
    pub(crate) slots: Vec<Block>,
    queries: Block,
    partials: Block,
    nothing: Block,
    /// Where outputs are mapped; made anew after a failure.
    pub(crate) staging: Option<Block>,
    /// Of every slot, elements per token and per wanted row, and of rotated queries per token: of
    /// the segment that needs most.
    sizes: (Vec<(usize, usize)>, usize),
    /// Rows, and wanted rows, that slots have room for.
    rows: usize,
    logits: usize,
    /// How often buffers were replaced, which bindings name.
    version: u64,
}

/// What the steps of one segment are bound to.
#[derive(Debug, Default)]
pub(crate) struct Bindings {
    /// The cache, and the version of the memory.
    of: Option<(u64, u64)>,
    groups: Vec<wgpu::BindGroup>,
}

const VALUE: BufferUsages =
    BufferUsages::STORAGE.union(BufferUsages::COPY_SRC).union(BufferUsages::COPY_DST);

impl Memory {
    /// For runs of these programs, one at a time.
    pub(crate) fn new(programs: &[Program], context: &Arc<Context>) -> Result<Self, DeviceError> {
        let upload = BufferUsages::UNIFORM | BufferUsages::COPY_DST;
        let small = || context.block("activations", 16, VALUE, None);
        let mut slots: Vec<(usize, usize)> = Vec::new();
        for program in programs {
            slots.resize(slots.len().max(program.slots.len()), (0, 0));
            for (most, slot) in slots.iter_mut().zip(&program.slots) {
                *most = (most.0.max(slot.0), most.1.max(slot.1));
            }
        }
        let queries = programs.iter().map(|program| program.queries).max().unwrap_or(0);
        Ok(Self {
            run: context.block("activations", 32, upload, None)?,
            batch: small()?,
            slots: slots.iter().map(|_| small()).collect::<Result<_, _>>()?,
            queries: small()?,
            partials: small()?,
            nothing: small()?,
            staging: None,
            sizes: (slots, queries),
            rows: 0,
            logits: 0,
            version: 0,
        })
    }

    pub(crate) fn bytes(&self) -> u64 {
        let own = [&self.run, &self.batch, &self.queries, &self.partials, &self.nothing];
        self.slots.iter().chain(own).chain(&self.staging).map(Block::bytes).sum()
    }

    /// Makes room for a run.
    pub(crate) fn reserve(
        &mut self,
        program: &Program,
        context: &Arc<Context>,
        upload: &Upload,
    ) -> Result<(), DeviceError> {
        let [rows, logits, ..] = upload.run.map(|x| x as usize);
        if rows > self.rows || logits > self.logits {
            // Twice as much at a time, so that growing batches do not make it anew every time; the
            // old buffers go first.
            let grown = |now: usize, needed: usize| {
                if needed > now { needed.max((2 * now).min(needed + 64)) } else { now }
            };
            let (rows, logits) = (grown(self.rows, rows), grown(self.logits, logits));
            self.version += 1;
            (self.rows, self.logits) = (0, 0);
            let (sizes, queries) = &self.sizes;
            for (slot, &(tokens, wanted)) in self.slots.iter_mut().zip(sizes) {
                let bytes = (4 * (tokens * rows).max(wanted * logits)) as u64;
                grow(slot, bytes, context)?;
            }
            grow(&mut self.queries, (4 * queries * rows) as u64, context)?;
            (self.rows, self.logits) = (rows, logits);
        }
        let head = |step: &Step| match &step.work {
            crate::program::Work::Merge { attention: a } => {
                a.heads * (a.head_dim.next_multiple_of(4) + 4)
            }
            _ => 0,
        };
        let page = program.steps.iter().map(head).max().unwrap_or(0);
        for (block, words) in
            [(&mut self.batch, upload.batch.len()), (&mut self.partials, page * upload.partials)]
        {
            let bytes = 4 * words as u64;
            if bytes > block.bytes() {
                self.version += 1;
                grow(block, bytes + bytes / 2, context)?;
            }
        }
        Ok(())
    }

    /// A buffer of at least `bytes` that can be mapped.
    pub(crate) fn stage(&mut self, bytes: u64, context: &Arc<Context>) -> Result<(), DeviceError> {
        if self.staging.as_ref().is_none_or(|block| block.bytes() < bytes) {
            self.staging = None;
            let usage = BufferUsages::MAP_READ | BufferUsages::COPY_DST;
            self.staging = Some(context.block("activations", bytes, usage, None)?);
        }
        Ok(())
    }

    fn buffer<'a>(
        &'a self,
        operand: &'a Operand,
        kv: &'a GpuKv,
    ) -> Result<&'a wgpu::Buffer, DeviceError> {
        let cached = |layer: usize, which: usize| {
            let why = || format!("the KV cache has no layer {layer}");
            let layer = kv.layer(layer).ok_or_else(|| DeviceError::Batch { why: why() })?;
            Ok(layer[which])
        };
        Ok(match operand {
            Operand::Run => &self.run.buffer,
            Operand::Batch => &self.batch.buffer,
            Operand::Value(slot) => &self.slots[*slot].buffer,
            Operand::Block(block) => &block.buffer,
            Operand::Nothing => &self.nothing.buffer,
            Operand::Queries => &self.queries.buffer,
            Operand::Partials => &self.partials.buffer,
            Operand::Keys(layer) => cached(*layer, 0)?,
            Operand::Values(layer) => cached(*layer, 1)?,
        })
    }

    /// Rows of a kind in a run.
    pub(crate) fn rows_of(upload: &Upload, rows: Rows) -> u32 {
        upload.run[usize::from(rows == Rows::Logits)]
    }
}

impl Bindings {
    /// The bindings of every step, with this memory and this cache.
    pub(crate) fn of(
        &mut self,
        program: &Program,
        context: &Context,
        memory: &Memory,
        kv: &GpuKv,
    ) -> Result<&[wgpu::BindGroup], DeviceError> {
        let now = (kv.id, memory.version);
        if self.of != Some(now) {
            self.of = None;
            self.groups.clear();
            for step in &program.steps {
                let buffers = step.operands.iter().map(|operand| memory.buffer(operand, kv));
                let buffers: Vec<&wgpu::Buffer> = buffers.collect::<Result<_, _>>()?;
                self.groups.push(context.bind(step.kernel, &buffers));
            }
            self.of = Some(now);
        }
        Ok(&self.groups)
    }
}

/// Replaces a buffer by a larger one.
fn grow(block: &mut Block, bytes: u64, context: &Arc<Context>) -> Result<(), DeviceError> {
    if bytes > block.bytes() {
        *block = context.block("activations", 16, VALUE, None)?;
        *block = context.block("activations", bytes, VALUE, None)?;
    }
    Ok(())
}
