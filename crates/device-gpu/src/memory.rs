//! What kernels read and write beside weights: grows to the largest batch seen, and is then used
//! again.

use crate::context::{Block, Context};
use crate::kv::GpuKv;
use crate::program::{Operand, Program, Step};
use crate::tiles::Upload;
use std::sync::Arc;
use tangor_device::DeviceError;
use tangor_device::model::ir::Rows;
use wgpu::BufferUsages;

/// Buffers of a prepared segment, and the bindings of its steps.
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
    /// Rows, and wanted rows, that slots have room for.
    rows: usize,
    logits: usize,
    /// The cache that the bindings name.
    cache: Option<u64>,
    bindings: Vec<wgpu::BindGroup>,
}

const VALUE: BufferUsages =
    BufferUsages::STORAGE.union(BufferUsages::COPY_SRC).union(BufferUsages::COPY_DST);

impl Memory {
    pub(crate) fn new(program: &Program, context: &Arc<Context>) -> Result<Self, DeviceError> {
        let upload = BufferUsages::UNIFORM | BufferUsages::COPY_DST;
        let small = || context.block("activations", 16, VALUE, None);
        Ok(Self {
            run: context.block("activations", 32, upload, None)?,
            batch: small()?,
            slots: program.slots.iter().map(|_| small()).collect::<Result<_, _>>()?,
            queries: small()?,
            partials: small()?,
            nothing: small()?,
            staging: None,
            rows: 0,
            logits: 0,
            cache: None,
            bindings: Vec::new(),
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
            self.bindings.clear();
            (self.rows, self.logits) = (0, 0);
            for (slot, &(tokens, wanted)) in self.slots.iter_mut().zip(&program.slots) {
                let bytes = (4 * (tokens * rows).max(wanted * logits)) as u64;
                grow(slot, bytes, context)?;
            }
            grow(&mut self.queries, (4 * program.queries * rows) as u64, context)?;
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
                self.bindings.clear();
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

    /// The bindings of every step, with this cache.
    pub(crate) fn bind(
        &mut self,
        program: &Program,
        context: &Context,
        kv: &GpuKv,
    ) -> Result<&[wgpu::BindGroup], DeviceError> {
        if self.cache != Some(kv.id) || self.bindings.len() != program.steps.len() {
            self.bindings.clear();
            self.cache = Some(kv.id);
            let mut bindings = Vec::with_capacity(program.steps.len());
            for step in &program.steps {
                let buffers: Vec<&wgpu::Buffer> = step
                    .operands
                    .iter()
                    .map(|operand| self.buffer(operand, kv))
                    .collect::<Result<_, _>>()?;
                bindings.push(context.bind(step.kernel, &buffers));
            }
            self.bindings = bindings;
        }
        Ok(&self.bindings)
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

/// Replaces a buffer by a larger one.
fn grow(block: &mut Block, bytes: u64, context: &Arc<Context>) -> Result<(), DeviceError> {
    if bytes > block.bytes() {
        *block = context.block("activations", 16, VALUE, None)?;
        *block = context.block("activations", bytes, VALUE, None)?;
    }
    Ok(())
}
