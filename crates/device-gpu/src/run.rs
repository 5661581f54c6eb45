//! Runs a program over batches: one upload, one list of dispatches, one wait.

use crate::context::{Context, NAME, lock};
use crate::kv::{GpuKv, HeadShape};
use crate::memory::{Bindings, Memory};
use crate::profile::Profile;
use crate::program::{Program, Step, Work};
use crate::shader::{Constants, Inputs};
use crate::tiles::{Upload, rows_of_tile};
use std::sync::{Arc, Mutex};
use tangor_device::model::ir::Attention;
use tangor_device::model::rope::Rope;
use tangor_device::{Batch, DeviceError, KvCache, KvSpec, Runnable};

/// Workgroups that a dispatch may have along one of its sides, on every adapter.
const MOST_GROUPS: u32 = 65_535;
/// Groups of 64 lanes that share the inputs of a linear.
const SPLIT: u32 = 4;
/// Queries of a profile: two for every dispatch.
const MOST_QUERIES: usize = 4096;

/// A prepared segment with its memory.
#[derive(Debug)]
pub(crate) struct GpuRunnable {
    pub(crate) program: Program,
    pub(crate) context: Arc<Context>,
    pub(crate) vocab: usize,
    pub(crate) rope: Rope,
    /// One for all segments that were prepared together, the first of which counts it.
    pub(crate) memory: Arc<Mutex<Memory>>,
    pub(crate) counts_memory: bool,
    pub(crate) bindings: Bindings,
    /// Where to add what kernels took, if they are timed.
    pub(crate) profile: Option<Arc<Mutex<Profile>>>,
}

/// A step of a run: its pipeline and how many workgroups it has.
type Dispatch = (Arc<wgpu::ComputePipeline>, [u32; 3]);

impl Runnable for GpuRunnable {
    fn run(
        &mut self,
        batch: &Batch<'_>,
        kv: &mut dyn KvCache,
        inputs: &[&[f32]],
        outputs: &mut [Vec<f32>],
    ) -> Result<(), DeviceError> {
        self.context.check()?;
        batch.check(self.vocab, kv.spec())?;
        let Some(kv) = kv.as_any_mut().downcast_mut::<GpuKv>() else {
            return Err(fail("the KV cache is another device's".into()));
        };
        self.check(batch, kv.spec(), inputs, outputs)?;
        if batch.tokens.is_empty() {
            outputs.iter_mut().for_each(Vec::clear);
            return Ok(());
        }
        kv.written();
        let shared = Arc::clone(&self.memory);
        let memory = &mut *lock(&shared);
        let done = self.start(memory, batch, kv, inputs).and_then(|(encoder, upload, timed)| {
            self.finish(memory, encoder, (&upload, timed), outputs)
        });
        match done {
            Err(_) => memory.staging = None,
            // Runs of new shapes compile more.
            Ok(()) => self.context.keep_kernels(),
        }
        done
    }

    fn memory_bytes(&self) -> u64 {
        let memory = if self.counts_memory { lock(&self.memory).bytes() } else { 0 };
        self.program.weight_bytes + memory
    }
}

fn fail(why: String) -> DeviceError {
    DeviceError::Batch { why }
}

/// Names of timed dispatches, and their queries.
type Timed = Option<(Vec<&'static str>, wgpu::QuerySet)>;

impl GpuRunnable {
    fn check(
        &self,
        batch: &Batch<'_>,
        spec: &KvSpec,
        inputs: &[&[f32]],
        outputs: &[Vec<f32>],
    ) -> Result<(), DeviceError> {
        let Program { inputs: ins, outputs: outs, steps, .. } = &self.program;
        if inputs.len() != ins.len() || outputs.len() != outs.len() {
            return Err(fail(format!("{} values in, {} out", inputs.len(), outputs.len())));
        }
        let rows = batch.tokens.len();
        if rows > MOST_GROUPS as usize {
            return Err(fail(format!("{rows} rows: {MOST_GROUPS} are the most")));
        }
        for (place, input) in ins.iter().zip(inputs) {
            let rows = match place.rows {
                tangor_device::model::ir::Rows::Tokens => rows,
                tangor_device::model::ir::Rows::Logits => batch.logit_rows.len(),
            };
            let len = rows * place.width;
            if input.len() != len {
                return Err(fail(format!("a value of {} elements, not {len}", input.len())));
            }
        }
        for step in steps {
            let Work::Together { attention: a } = &step.work else { continue };
            if (spec.kv_heads, spec.head_dim) != (a.kv_heads, a.head_dim) || a.layer >= spec.layers
            {
                let (heads, dim, layer) = (a.kv_heads, a.head_dim, a.layer);
                let why = format!("the KV cache has no layer {layer} with {heads} heads of {dim}");
                return Err(fail(why));
            }
        }
        if rows_of_tile(&self.program, spec, self.shared_bytes()) == 0 {
            return Err(fail(format!("pages of {} tokens do not fit", spec.page_tokens)));
        }
        Ok(())
    }

    fn shared_bytes(&self) -> usize {
        self.context.facts.max_shared_bytes as usize
    }

    /// Uploads what the run needs and records its dispatches.
    fn start(
        &mut self,
        memory: &mut Memory,
        batch: &Batch<'_>,
        kv: &GpuKv,
        inputs: &[&[f32]],
    ) -> Result<(wgpu::CommandEncoder, Upload, Timed), DeviceError> {
        let spec = kv.spec();
        let most = rows_of_tile(&self.program, spec, self.shared_bytes());
        let upload = Upload::new(batch, spec, &self.rope, &self.program, most);
        memory.reserve(&self.program, &self.context, &upload)?;
        let dispatches = self.dispatches(&upload, spec)?;
        let queue = &self.context.queue;
        queue.write_buffer(&memory.run.buffer, 0, bytemuck::cast_slice(&upload.run));
        queue.write_buffer(&memory.batch.buffer, 0, bytemuck::cast_slice(&upload.batch));
        for (place, input) in self.program.inputs.iter().zip(inputs) {
            let to = &memory.slots[place.slot].buffer;
            if place.stride() == place.width {
                queue.write_buffer(to, 0, bytemuck::cast_slice(input));
                continue;
            }
            let mut padded = Vec::with_capacity(input.len() / place.width * place.stride());
            for row in input.chunks_exact(place.width) {
                padded.extend_from_slice(row);
                padded.resize(padded.len() + place.stride() - place.width, 0.0);
            }
            queue.write_buffer(to, 0, bytemuck::cast_slice(&padded));
        }
        let bindings = self.bindings.of(&self.program, &self.context, memory, kv)?;
        let mut encoder = self.context.encoder();
        let timed = if self.profile.is_some() {
            let steps = &self.program.steps;
            Some(record_timed(&self.context, &mut encoder, steps, &dispatches, bindings))
        } else {
            let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor::default());
            for (dispatch, group) in dispatches.iter().zip(bindings) {
                record(&mut pass, dispatch.as_ref(), group);
            }
            None
        };
        Ok((encoder, upload, timed))
    }

    /// Submits, waits, and takes the outputs.
    fn finish(
        &self,
        memory: &mut Memory,
        mut encoder: wgpu::CommandEncoder,
        (upload, timed): (&Upload, Timed),
        outputs: &mut [Vec<f32>],
    ) -> Result<(), DeviceError> {
        let mut places = Vec::new();
        let mut bytes = 0;
        for place in &self.program.outputs {
            let rows = Memory::rows_of(upload, place.rows) as usize;
            let len = (rows * place.stride() * 4) as u64;
            places.push((*place, bytes, len));
            bytes += len;
        }
        let times = timed.as_ref().map_or(0, |(names, _)| names.len() as u64 * 16);
        if bytes + times == 0 {
            outputs.iter_mut().for_each(Vec::clear);
            return self.context.finish(encoder);
        }
        memory.stage(bytes + times, &self.context)?;
        let Some(staging) = &memory.staging else { return Ok(()) };
        for (place, at, len) in places.iter().filter(|place| place.2 > 0) {
            let from = &memory.slots[place.slot].buffer;
            encoder.copy_buffer_to_buffer(from, 0, &staging.buffer, *at, *len);
        }
        let resolved = match &timed {
            Some((_, queries)) if times > 0 => {
                let usage = wgpu::BufferUsages::QUERY_RESOLVE | wgpu::BufferUsages::COPY_SRC;
                let block = self.context.block("activations", times, usage, None)?;
                #[allow(clippy::cast_possible_truncation)]
                encoder.resolve_query_set(queries, 0..(times / 8) as u32, &block.buffer, 0);
                encoder.copy_buffer_to_buffer(&block.buffer, 0, &staging.buffer, bytes, times);
                Some(block)
            }
            _ => None,
        };
        self.context.finish_and_read(encoder, &staging.buffer, bytes + times, &mut |data| {
            for ((place, at, len), output) in places.iter().zip(outputs.iter_mut()) {
                #[allow(clippy::cast_possible_truncation)]
                let data = &data[*at as usize..(at + len) as usize];
                output.clear();
                for row in data.chunks_exact(place.stride() * 4) {
                    let row = row.as_chunks::<4>().0[..place.width].iter();
                    output.extend(row.map(|x| f32::from_le_bytes(*x)));
                }
            }
            if let (Some((names, _)), Some(profile)) = (&timed, &self.profile) {
                #[allow(clippy::cast_possible_truncation)]
                let ticks = data[bytes as usize..].as_chunks::<8>().0;
                add_times(names, ticks, self.context.queue.get_timestamp_period(), profile);
            }
        })?;
        drop(resolved);
        Ok(())
    }

    /// Compiles what up to `most` rows need, except where the cache decides.
    pub(crate) fn warm(&self, most: u32) -> Result<(), DeviceError> {
        for step in &self.program.steps {
            match &step.work {
                Work::Rows { constants, .. } => {
                    self.context.pipeline(step.kernel, constants.clone())?;
                }
                Work::Linear { form, tail, digits, tiles, .. } => {
                    let inputs = self.inputs(*digits);
                    for rows in SHAPES.into_iter().chain([most]).filter(|&rows| rows <= most) {
                        let below = self.context.abilities.split_below;
                        let shape = linear_shape(rows, *tiles, below);
                        let constants = linear_constants(&form.constants(), *tail, shape, inputs);
                        self.context.pipeline(step.kernel, constants)?;
                    }
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// How lanes come by the inputs of a linear: digits are few, and each lane reads them.
    fn inputs(&self, digits: bool) -> Inputs {
        let inputs = self.context.abilities.inputs;
        if digits && inputs == Inputs::Broadcast { Inputs::Subgroup } else { inputs }
    }

    /// Pipelines and sizes of all steps; `None` for those that have nothing to do.
    fn dispatches(
        &self,
        upload: &Upload,
        spec: &KvSpec,
    ) -> Result<Vec<Option<Dispatch>>, DeviceError> {
        let steps = self.program.steps.iter();
        steps.map(|step| self.dispatch(step, upload, spec)).collect()
    }

    fn dispatch(
        &self,
        step: &Step,
        upload: &Upload,
        spec: &KvSpec,
    ) -> Result<Option<Dispatch>, DeviceError> {
        let (constants, size) = match &step.work {
            Work::Rows { constants, across, rows } => {
                (constants.clone(), [*across, Memory::rows_of(upload, *rows), 1])
            }
            Work::Linear { form, tail, digits, tiles, rows } => {
                let rows = Memory::rows_of(upload, *rows);
                let inputs = self.inputs(*digits);
                let (m, split) = linear_shape(rows, *tiles, self.context.abilities.split_below);
                let constants = linear_constants(&form.constants(), *tail, (m, split), inputs);
                (constants, [*tiles, rows.div_ceil(m), 1])
            }
            Work::Rotate { heads } => (cache_constants(spec), [*heads, upload.run[0], 1]),
            Work::Together { attention } => {
                let constants = attention_constants(attention, spec, upload.tile_rows, false);
                (constants, [word(attention.kv_heads), upload.tiles, 1])
            }
            Work::Alone { attention } => {
                let constants = attention_constants(attention, spec, 1, true);
                (constants, [word(attention.kv_heads), upload.singles, upload.most_pages])
            }
            Work::Merge { attention } => {
                let dim4 = word(attention.head_dim.div_ceil(4));
                let constants = vec![("DIM", word(attention.head_dim)), ("DIM4", dim4)];
                let across = (word(attention.heads) * dim4).div_ceil(64);
                (constants, [across, upload.singles, 1])
            }
        };
        if size.contains(&0) {
            return Ok(None);
        }
        if size.iter().any(|&side| side > MOST_GROUPS) {
            let (device, node) = (NAME.to_owned(), step.name.to_owned());
            let why = format!("{size:?} workgroups: {MOST_GROUPS} are the most");
            return Err(DeviceError::Refused { device, node, why });
        }
        Ok(Some((self.context.pipeline(step.kernel, constants)?, size)))
    }
}

/// Fewest rows of each kind of workgroup that [`linear_shape`] knows: beyond the last, only how
/// inputs are shared changes, once.
const SHAPES: [u32; 4] = [1, 2, 5, 9];

/// Rows of a workgroup of a linear, and groups of lanes that share its inputs.
pub(crate) fn linear_shape(rows: u32, tiles: u32, split_below: u32) -> (u32, u32) {
    let m = match rows {
        0..=1 => 1,
        2..=4 => 4,
        5..=8 => 8,
        _ => 16,
    };
    let groups = tiles * rows.div_ceil(m);
    (m, if groups < split_below { SPLIT } else { 1 })
}

/// Constants of `linear.wgsl`.
pub(crate) fn linear_constants(
    form: &Constants,
    tail: bool,
    (m, split): (u32, u32),
    inputs: Inputs,
) -> Constants {
    let (own, one) = if split == 1 { (m, m) } else { (m.div_ceil(split), 0) };
    let mut out = form.clone();
    out.extend([
        ("TAIL", u32::from(tail)),
        ("BROADCAST", u32::from(inputs == Inputs::Broadcast)),
        ("M", m),
        ("SPLIT", split),
        ("LANES", 64 * split),
        ("SHARED", if split == 1 { 1 } else { split * m * 64 }),
        ("OWN", own),
        ("ONE", one),
        ("PARTS", if split == 1 { 0 } else { m }),
        ("SHARES", if split == 1 { 0 } else { own }),
    ]);
    out
}

/// Constants of kernels that know the cache.
fn cache_constants(spec: &KvSpec) -> Constants {
    use tangor_device::KvType;
    let kind = match spec.dtype {
        KvType::F32 => 0,
        KvType::F16 => 1,
        KvType::Bf16 => 2,
        KvType::Int8 => 3,
    };
    let [keys, values] = HeadShape::both(spec.dtype, spec.head_dim);
    vec![
        ("KV", kind),
        ("DIM", word(spec.head_dim)),
        ("DIM4", word(spec.head_dim.div_ceil(4))),
        ("PAGE", word(spec.page_tokens)),
        ("KEY_WORDS", word(keys.words())),
        ("VALUE_WORDS", word(values.words())),
    ]
}

fn attention_constants(a: &Attention, spec: &KvSpec, rows: u32, alone: bool) -> Constants {
    let group = word(a.heads / a.kv_heads);
    let queries = rows * group;
    let mut out = cache_constants(spec);
    out.extend([
        ("GROUP", group),
        ("QUERIES", queries),
        ("ITEMS", (queries * word(spec.head_dim.div_ceil(4))).div_ceil(64)),
        ("ALONE", u32::from(alone)),
    ]);
    out
}

#[allow(clippy::cast_possible_truncation, reason = "shapes are checked against buffers' sizes")]
fn word(x: usize) -> u32 {
    x as u32
}

fn record(pass: &mut wgpu::ComputePass<'_>, dispatch: Option<&Dispatch>, group: &wgpu::BindGroup) {
    let Some((pipeline, [x, y, z])) = dispatch else { return };
    pass.set_pipeline(pipeline);
    pass.set_bind_group(0, group, &[]);
    pass.dispatch_workgroups(*x, *y, *z);
}

/// Records every dispatch in a pass of its own, with the clock before and after; those for which
/// there are no queries left are not timed.
fn record_timed(
    context: &Context,
    encoder: &mut wgpu::CommandEncoder,
    steps: &[Step],
    dispatches: &[Option<Dispatch>],
    groups: &[wgpu::BindGroup],
) -> (Vec<&'static str>, wgpu::QuerySet) {
    let count = (2 * dispatches.iter().flatten().count()).clamp(2, MOST_QUERIES);
    let queries = context.device.create_query_set(&wgpu::QuerySetDescriptor {
        label: None,
        ty: wgpu::QueryType::Timestamp,
        count: word(count),
    });
    let mut names = Vec::new();
    for ((step, dispatch), group) in steps.iter().zip(dispatches).zip(groups) {
        if dispatch.is_none() {
            continue;
        }
        let at = word(2 * names.len());
        let timestamp_writes =
            (2 * names.len() < count).then(|| wgpu::ComputePassTimestampWrites {
                query_set: &queries,
                beginning_of_pass_write_index: Some(at),
                end_of_pass_write_index: Some(at + 1),
            });
        names.extend(timestamp_writes.is_some().then_some(step.name));
        let mut pass = encoder
            .begin_compute_pass(&wgpu::ComputePassDescriptor { label: None, timestamp_writes });
        record(&mut pass, dispatch.as_ref(), group);
    }
    (names, queries)
}

/// Adds the times of a run; `period`: nanoseconds of a tick.
fn add_times(names: &[&'static str], ticks: &[[u8; 8]], period: f32, to: &Mutex<Profile>) {
    let mut profile = lock(to);
    profile.runs += 1;
    for (name, pair) in names.iter().zip(ticks.chunks_exact(2)) {
        let [start, end] = [pair[0], pair[1]].map(u64::from_le_bytes);
        let spent = profile.operations.entry(name).or_default();
        #[allow(clippy::cast_precision_loss)]
        let ticks = end.saturating_sub(start) as f64;
        spent.seconds += ticks * f64::from(period) * 1e-9;
        spent.count += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_shape_of_a_linear_is_compiled_ahead() {
        for (tiles, below) in [(1, 256), (9, 256), (40, 256), (300, 256), (9, 0), (9, u32::MAX)] {
            for most in [1, 2, 3, 4, 5, 8, 9, 17, 256, 600] {
                let rows = SHAPES.into_iter().chain([most]).filter(|&rows| rows <= most);
                let shapes: Vec<_> = rows.map(|rows| linear_shape(rows, tiles, below)).collect();
                for rows in 1..=most {
                    let shape = linear_shape(rows, tiles, below);
                    assert!(shapes.contains(&shape), "{rows} of {most} rows, {tiles}, {below}");
                }
            }
        }
    }
}
