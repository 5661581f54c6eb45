//! The device: a pool of threads, an instruction set, and the two ways to make something with them.

use crate::exec::{CpuRunnable, Memory};
use crate::isa::Isa;
use crate::kv::CpuKv;
use crate::pool::Pool;
use crate::program::{Compiler, Program, refuses};
use crate::system;
use crate::weights::{self, Weights};
use std::sync::{Arc, Mutex};
use tangor_device::model::{Graph, WeightId};
use tangor_device::{
    Descriptor, Device, DeviceError, DeviceKind, HostMemory, KvCache, KvSpec, MemoryKind, Prepare,
    Runnable, Segment,
};

/// How to use the processor.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CpuOptions {
    /// Threads; `None`: as many as the system lets this process use at a time.
    pub threads: Option<usize>,
    /// Instruction set; `None`: the fastest that the processor has, measured once per process.
    pub isa: Option<Isa>,
    /// Whether every thread stays on one processor. Helps on a machine that has nothing else to do.
    pub pin: bool,
}

/// What the options ask for cannot be had.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CpuError {
    /// The processor lacks the instructions.
    #[error("this processor cannot run {wanted} (it can run {available})")]
    Isa {
        /// The instruction set asked for.
        wanted: Isa,
        /// Those that there are, separated by commas.
        available: String,
    },
    /// No threads, or far more than make sense.
    #[error("{0} threads asked for: 1 to {MAX_THREADS} are possible")]
    Threads(usize),
}

/// Most threads of a pool.
pub const MAX_THREADS: usize = 1024;

/// The processor.
#[derive(Debug)]
pub struct CpuDevice {
    descriptor: Descriptor,
    pool: Arc<Pool>,
    isa: Isa,
}

impl CpuDevice {
    /// Starts the threads.
    ///
    /// # Errors
    /// If the processor lacks the instruction set, or the number of threads is out of range.
    pub fn new(options: CpuOptions) -> Result<Self, CpuError> {
        let isa = options.isa.unwrap_or_else(Isa::best);
        if !isa.is_available() {
            let names: Vec<&str> = Isa::available().into_iter().map(Isa::name).collect();
            return Err(CpuError::Isa { wanted: isa, available: names.join(", ") });
        }
        let threads = options.threads.unwrap_or_else(system::parallelism);
        if threads == 0 || threads > MAX_THREADS {
            return Err(CpuError::Threads(threads));
        }
        let pool = Arc::new(Pool::new(threads, options.pin));
        let name = system::processor_name().unwrap_or_else(|| std::env::consts::ARCH.to_owned());
        let descriptor = Descriptor {
            name: "cpu".into(),
            kind: DeviceKind::Cpu,
            description: format!("{name}, {isa}, {} threads", pool.threads()),
            memory_bytes: HostMemory::now().size_bytes().unwrap_or(u64::MAX),
            memory: MemoryKind::Host,
        };
        Ok(Self { descriptor, pool, isa })
    }

    /// The instruction set in use.
    #[must_use]
    pub fn isa(&self) -> Isa {
        self.isa
    }

    /// Its threads, for measuring.
    #[must_use]
    pub fn pool(&self) -> &Pool {
        &self.pool
    }

    fn compile(
        &self,
        segment: &Segment<'_>,
        options: Prepare,
        weights: &mut Weights,
    ) -> Result<Program, DeviceError> {
        let program = Compiler { segment, options, device: &self.descriptor.name };
        let program = program.compile(weights)?;
        segment.check_weights()?;
        Ok(program)
    }

    /// A program with the memory of its runs.
    fn runnable(
        &self,
        segment: &Segment<'_>,
        program: Program,
        (memory, counts_memory): (Arc<Mutex<Memory>>, bool),
    ) -> Box<dyn Runnable> {
        Box::new(CpuRunnable {
            program,
            hyper: segment.graph.hyper.clone(),
            rope: segment.graph.rope.clone(),
            pool: Arc::clone(&self.pool),
            isa: self.isa,
            memory,
            counts_memory,
        })
    }

    /// Memory in which runs of these programs take turns.
    fn memory(&self, programs: &[Program]) -> Arc<Mutex<Memory>> {
        Arc::new(Mutex::new(Memory::new(programs, self.pool.threads())))
    }
}

impl Device for CpuDevice {
    fn descriptor(&self) -> &Descriptor {
        &self.descriptor
    }

    fn refuses(&self, graph: &Graph, node: usize) -> Option<String> {
        graph.nodes.get(node).and_then(|node| refuses(&node.op))
    }

    fn packed_bytes(&self, graph: &Graph, weight: WeightId) -> u64 {
        weights::packed_bytes(graph, weight)
    }

    fn kv_cache(&self, spec: &KvSpec) -> Result<Box<dyn KvCache>, DeviceError> {
        Ok(Box::new(CpuKv::new(spec, &self.descriptor.name)?))
    }

    fn prepare(
        &self,
        segment: &Segment<'_>,
        options: Prepare,
        progress: &mut dyn FnMut(f32),
    ) -> Result<Box<dyn Runnable>, DeviceError> {
        let mut weights = Weights::pack(
            std::slice::from_ref(segment),
            &self.pool,
            &self.descriptor.name,
            progress,
        )?;
        let program = self.compile(segment, options, &mut weights)?;
        let memory = self.memory(std::slice::from_ref(&program));
        Ok(self.runnable(segment, program, (memory, true)))
    }

    fn prepare_all(
        &self,
        segments: &[Segment<'_>],
        options: Prepare,
        progress: &mut dyn FnMut(f32),
    ) -> Result<Vec<Box<dyn Runnable>>, DeviceError> {
        let name = &self.descriptor.name;
        let mut weights = Weights::pack(segments, &self.pool, name, progress)?;
        let compile = |segment| self.compile(segment, options, &mut weights);
        let programs = segments.iter().map(compile).collect::<Result<Vec<_>, _>>()?;
        let memory = self.memory(&programs);
        let runnable = |(index, (segment, program))| {
            self.runnable(segment, program, (Arc::clone(&memory), index == 0))
        };
        Ok(segments.iter().zip(programs).enumerate().map(runnable).collect())
    }
}
