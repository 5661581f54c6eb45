//! The device: an adapter that is open, and the two ways to make something with it.

use crate::adapter::{self, AdapterChoice, AdapterFacts, AdapterKind};
use crate::context::{Abilities, Context, NAME, lock};
use crate::error::GpuError;
use crate::kernels::Kernels;
use crate::kv::GpuKv;
use crate::limits::dot_cost_of;
use crate::memory::{Bindings, Memory};
use crate::profile::Profile;
use crate::program::{self, Compiler, Program, refuses};
use crate::run::GpuRunnable;
use crate::shader::{self, Inputs};
use crate::weights::{self, Weights};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tangor_device::model::{Graph, WeightId};
use tangor_device::{
    Descriptor, Device, DeviceError, DeviceKind, Health, HostMemory, KvCache, KvSpec, MemoryKind,
    PackedCache, Prepare, Runnable, Segment,
};
use wgpu::{BufferUsages, Features};

/// How to use an adapter.
#[derive(Clone, Debug)]
pub struct GpuOptions {
    /// Which one.
    pub adapter: AdapterChoice,
    /// Bytes that weights, KV and activations may take; `None`: half of the host's memory where
    /// the adapter shares it, else as much as its largest buffer may have.
    pub memory_bytes: Option<u64>,
    /// Bytes of the largest buffer of weights, where that should be less than the adapter's limit:
    /// greater matrices are cut.
    pub max_weight_bytes: Option<u64>,
    /// How long a run may take.
    pub time_limit: Duration,
    /// Whether kernels may exchange values within subgroups, where the adapter has them.
    pub subgroups: bool,
    /// Fewest workgroups for which a linear does not share its inputs among groups of lanes;
    /// `None`: what suits the adapter. Results do not depend on it.
    pub split_below: Option<u32>,
    /// Whether linears multiply rounded activations and codes as integers, four at a time; `None`:
    /// where the adapter has an instruction for it. Results depend on it, within their rounding.
    pub integer_dots: Option<bool>,
    /// Whether to time every kernel, which makes runs slower; see [`GpuDevice::take_profile`].
    pub profile: bool,
    /// Where compiled kernels are kept, where the driver hands them over.
    pub kernels: Option<Arc<dyn PackedCache>>,
}

impl Default for GpuOptions {
    fn default() -> Self {
        Self {
            adapter: AdapterChoice::Best,
            memory_bytes: None,
            max_weight_bytes: None,
            time_limit: Duration::from_secs(60),
            subgroups: true,
            split_below: None,
            integer_dots: None,
            profile: false,
            kernels: None,
        }
    }
}

/// Workgroups below which a linear leaves processors idle.
const SPLIT_BELOW: u32 = 256;

/// What four products of integers may take for integers to be worth it, in times of one of `f32`.
/// An instruction takes about as long as one, and doing without it many times as long.
const DOT_COST: f64 = 2.0;

/// A graphics processor.
#[derive(Debug)]
pub struct GpuDevice {
    descriptor: Descriptor,
    context: Arc<Context>,
    profile: Option<Arc<Mutex<Profile>>>,
}

impl GpuDevice {
    /// Opens an adapter.
    ///
    /// # Errors
    /// [`GpuError`] if there is none, none that was asked for, or its driver refuses.
    pub fn open(options: &GpuOptions) -> Result<Self, GpuError> {
        let (adapter, facts) = adapter::choose(&options.adapter)?;
        let unfit = |why: &str| GpuError::Unfit { adapter: facts.name.clone(), why: why.into() };
        let limits = adapter.limits();
        if limits.max_storage_buffers_per_shader_stage < 7
            || limits.max_compute_invocations_per_workgroup < 256
            || limits.max_compute_workgroup_storage_size < 16 << 10
        {
            return Err(unfit("it has too few buffers, lanes or too little shared memory"));
        }
        let wanted = [
            (Features::SUBGROUP, options.subgroups),
            (Features::TIMESTAMP_QUERY, options.profile),
            (Features::PIPELINE_CACHE, true),
        ];
        let features = wanted.into_iter().filter(|wanted| wanted.1).map(|wanted| wanted.0);
        let features = features.fold(Features::empty(), Features::union) & adapter.features();
        let opened = pollster::block_on(adapter.request_device(&wgpu::DeviceDescriptor {
            label: Some(NAME),
            required_features: features,
            required_limits: limits.clone(),
            ..Default::default()
        }));
        let driver = |why: String| GpuError::Driver { adapter: facts.name.clone(), why };
        let opened = opened.map_err(|error| driver(error.to_string()))?;
        let software = facts.kind == AdapterKind::Software;
        let plain = Abilities {
            inputs: Inputs::Plain,
            timestamps: features.contains(Features::TIMESTAMP_QUERY),
            integer_dots: options.integer_dots.unwrap_or(false),
            split_below: options.split_below.unwrap_or(if software { 0 } else { SPLIT_BELOW }),
        };
        let largest = limits.max_buffer_size.min(limits.max_storage_buffer_binding_size);
        let weights = options.max_weight_bytes.map_or(largest, |bytes| bytes.min(largest));
        let memory = options.memory_bytes.unwrap_or_else(|| memory_bytes(&facts));
        let sizes = ([largest, weights, memory], options.time_limit);
        let kernels = options.kernels.as_ref();
        let kernels = kernels.and_then(|cache| Kernels::open(cache, &opened.0, &facts));
        let kernels = kernels.map(Arc::new);
        let context = |abilities| {
            let context =
                Context::new(opened.clone(), facts.clone(), abilities, sizes, kernels.clone());
            Arc::new(context)
        };
        let plain = context(plain);
        let found = abilities(&plain, options, features).map_err(|e| driver(e.to_string()))?;
        let context = if found == plain.abilities { plain } else { context(found) };
        let descriptor = Descriptor {
            name: NAME.into(),
            kind: DeviceKind::Gpu,
            description: facts.to_string(),
            memory_bytes: memory,
            memory: facts.kind.memory(),
        };
        let profile = (options.profile && found.timestamps).then(Arc::default);
        Ok(Self { descriptor, context, profile })
    }

    /// What the adapter can do.
    #[must_use]
    pub fn facts(&self) -> &AdapterFacts {
        &self.context.facts
    }

    /// Whether kernels exchange values within subgroups.
    #[must_use]
    pub fn uses_subgroups(&self) -> bool {
        self.context.abilities.inputs != Inputs::Plain
    }

    /// Whether linears multiply rounded activations and codes as integers.
    #[must_use]
    pub fn uses_integer_dots(&self) -> bool {
        self.context.abilities.integer_dots
    }

    /// Bytes that all its buffers take now.
    #[must_use]
    pub fn used_bytes(&self) -> u64 {
        self.context.used()
    }

    /// What kernels took since this was last asked; empty unless the device was opened with
    /// [`GpuOptions::profile`] and its adapter has a clock.
    #[must_use]
    pub fn take_profile(&self) -> Profile {
        self.profile.as_ref().map(|profile| std::mem::take(&mut *lock(profile))).unwrap_or_default()
    }

    /// Gives the adapter up, as if it had been unplugged: for tests of what happens then.
    pub fn lose(&self) {
        self.context.device.destroy();
        // The driver's report comes with the next look at it.
        let _ = self.context.device.poll(wgpu::PollType::Poll);
    }

    pub(crate) fn context(&self) -> &Arc<Context> {
        &self.context
    }
}

/// What kernels will use, found out with a context that uses little of it. Software is not tried:
/// it has no such instructions, and its times depend on what else the processor does.
fn abilities(
    context: &Arc<Context>,
    options: &GpuOptions,
    features: Features,
) -> Result<Abilities, DeviceError> {
    let facts = &context.facts;
    let software = facts.kind == AdapterKind::Software;
    let (fewest, most) = facts.subgroup_lanes;
    let tries_subgroups = features.contains(Features::SUBGROUP) && most <= 64 && fewest > 1;
    let inputs = match tries_subgroups && probe(context)? {
        true if software && fewest >= 8 => Inputs::Broadcast,
        true => Inputs::Subgroup,
        false => Inputs::Plain,
    };
    let integer_dots = match options.integer_dots {
        Some(wanted) => wanted,
        None => facts.integer_dot && !software && dot_cost_of(context)? < DOT_COST,
    };
    Ok(Abilities { inputs, integer_dots, ..context.abilities })
}

/// Whether all lanes of a subgroup are in the same 64 lanes of a workgroup.
fn probe(context: &Arc<Context>) -> Result<bool, DeviceError> {
    let Ok(pipeline) = context.pipeline(&shader::PROBE, Vec::new()) else { return Ok(false) };
    let usage = BufferUsages::STORAGE | BufferUsages::COPY_SRC;
    let found = context.block("activations", 1024, usage, None)?;
    let usage = BufferUsages::MAP_READ | BufferUsages::COPY_DST;
    let staging = context.block("activations", 1024, usage, None)?;
    let group = context.bind(&shader::PROBE, &[&found.buffer]);
    let mut encoder = context.encoder();
    {
        let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor::default());
        pass.set_pipeline(&pipeline);
        pass.set_bind_group(0, &group, &[]);
        pass.dispatch_workgroups(1, 1, 1);
    }
    encoder.copy_buffer_to_buffer(&found.buffer, 0, &staging.buffer, 0, 1024);
    let mut together = false;
    context.finish_and_read(encoder, &staging.buffer, 1024, &mut |bytes| {
        together = bytes.as_chunks::<4>().0.iter().all(|word| u32::from_le_bytes(*word) == 1);
    })?;
    Ok(together)
}

/// Half of the host's memory where the adapter's buffers take that; else what one buffer may have,
/// since drivers do not say how much there is.
fn memory_bytes(facts: &AdapterFacts) -> u64 {
    let host = HostMemory::now().size_bytes().filter(|_| facts.kind.memory() != MemoryKind::Own);
    host.map_or(facts.max_buffer_bytes.clamp(2 << 30, 16 << 30), |bytes| bytes / 2)
}

impl Device for GpuDevice {
    fn descriptor(&self) -> &Descriptor {
        &self.descriptor
    }

    fn refuses(&self, graph: &Graph, node: usize) -> Option<String> {
        graph.nodes.get(node).and_then(|node| refuses(graph, node))
    }

    fn packed_bytes(&self, graph: &Graph, weight: WeightId) -> u64 {
        weights::packed_bytes(graph, weight, self.context.max_weights)
    }

    fn kv_cache(&self, spec: &KvSpec) -> Result<Box<dyn KvCache>, DeviceError> {
        Ok(Box::new(GpuKv::new(spec, &self.context)?))
    }

    fn prepare(
        &self,
        segment: &Segment<'_>,
        options: Prepare,
        progress: &mut dyn FnMut(f32),
    ) -> Result<Box<dyn Runnable>, DeviceError> {
        let mut all = self.prepare_all(std::slice::from_ref(segment), options, progress)?;
        all.pop().ok_or_else(|| DeviceError::Batch { why: "there is no segment".into() })
    }

    fn prepare_all(
        &self,
        segments: &[Segment<'_>],
        options: Prepare,
        progress: &mut dyn FnMut(f32),
    ) -> Result<Vec<Box<dyn Runnable>>, DeviceError> {
        self.context.check()?;
        segments.iter().try_for_each(program::check)?;
        let mut weights = Weights::load(segments, &self.context, progress)?;
        let compile =
            |segment| Compiler::new(segment, options, &self.context, &mut weights).compile();
        let programs = segments.iter().map(compile).collect::<Result<_, _>>()?;
        let all = self.runnables(segments, options, programs)?;
        // From here on the adapter has a copy of everything.
        segments.iter().try_for_each(Segment::check_weights)?;
        progress(1.0);
        Ok(all)
    }

    fn health(&self) -> Health {
        self.context.lost().map_or(Health::Ready, Health::Lost)
    }
}

impl GpuDevice {
    /// Programs of segments with the memory in which they take turns.
    fn runnables(
        &self,
        segments: &[Segment<'_>],
        options: Prepare,
        programs: Vec<Program>,
    ) -> Result<Vec<Box<dyn Runnable>>, DeviceError> {
        let memory = Arc::new(Mutex::new(Memory::new(&programs, &self.context)?));
        let mut all: Vec<Box<dyn Runnable>> = Vec::with_capacity(programs.len());
        for (segment, program) in segments.iter().zip(programs) {
            let runnable = GpuRunnable {
                program,
                context: Arc::clone(&self.context),
                vocab: segment.graph.hyper.vocab,
                rope: segment.graph.rope.clone(),
                memory: Arc::clone(&memory),
                counts_memory: all.is_empty(),
                bindings: Bindings::default(),
                profile: self.profile.clone(),
            };
            runnable.warm(u32::try_from(options.max_rows.max(1)).unwrap_or(u32::MAX))?;
            all.push(Box::new(runnable));
        }
        self.context.keep_kernels();
        Ok(all)
    }
}
