//! An open adapter: buffers that are counted, pipelines that are made once, and waiting that ends.

use crate::adapter::AdapterFacts;
use crate::kernels::Kernels;
use crate::shader::{Constants, Inputs, Kernel};
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::time::Duration;
use tangor_device::DeviceError;
use wgpu::{BufferUsages, ErrorFilter};

/// The device's name in errors.
pub(crate) const NAME: &str = "gpu";

/// What the driver reported.
#[derive(Debug, Default)]
pub(crate) struct Reports {
    /// Why the device is lost.
    lost: Mutex<Option<String>>,
    /// The first error that no scope caught since it was last asked for.
    error: Mutex<Option<wgpu::Error>>,
}

/// Whatever a panicking thread left is still a whole value.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Reports {
    pub(crate) fn lose(&self, why: String) {
        lock(&self.lost).get_or_insert(why);
    }
}

/// Which of an adapter's abilities kernels use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Abilities {
    pub(crate) inputs: Inputs,
    pub(crate) timestamps: bool,
    /// Whether rounded inputs are multiplied with codes as integers.
    pub(crate) integer_dots: bool,
    /// Workgroups of one linear that split its inputs among groups of 64 lanes: more than that many
    /// do not.
    pub(crate) split_below: u32,
}

/// An open adapter.
#[derive(Debug)]
pub(crate) struct Context {
    pub(crate) device: wgpu::Device,
    pub(crate) queue: wgpu::Queue,
    pub(crate) facts: AdapterFacts,
    pub(crate) abilities: Abilities,
    /// Bytes of the largest buffer.
    pub(crate) max_buffer: u64,
    /// Bytes of the largest buffer of weights.
    pub(crate) max_weights: u64,
    /// Bytes that all buffers may take.
    pub(crate) memory_limit: u64,
    pub(crate) time_limit: Duration,
    reports: Arc<Reports>,
    used: AtomicU64,
    layouts: Mutex<HashMap<&'static str, Layouts>>,
    pipelines: Mutex<HashMap<Key, Arc<wgpu::ComputePipeline>>>,
    /// What was compiled at earlier starts, if it is kept.
    kernels: Option<Arc<Kernels>>,
}

/// Address of a kernel, and its constants.
type Key = (usize, Constants);

#[derive(Clone, Debug)]
struct Layouts {
    group: wgpu::BindGroupLayout,
    pipeline: wgpu::PipelineLayout,
}

/// Hands bytes to a new buffer, piece by piece.
pub(crate) type Fill<'a> = &'a mut dyn FnMut(&mut dyn FnMut(&[u8]));

/// A buffer whose bytes are counted while it lives.
#[derive(Debug)]
pub(crate) struct Block {
    pub(crate) buffer: wgpu::Buffer,
    bytes: u64,
    context: Arc<Context>,
}

impl Drop for Block {
    fn drop(&mut self) {
        self.context.used.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

impl Block {
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }
}

/// Bytes of a buffer for so many: some, and a multiple of 16.
pub(crate) fn buffer_bytes(bytes: u64) -> u64 {
    bytes.max(16).next_multiple_of(16)
}

impl Context {
    pub(crate) fn new(
        (device, queue): (wgpu::Device, wgpu::Queue),
        facts: AdapterFacts,
        abilities: Abilities,
        ([max_buffer, max_weights, memory_limit], time_limit): ([u64; 3], Duration),
        kernels: Option<Arc<Kernels>>,
    ) -> Self {
        let reports = Arc::new(Reports::default());
        let errors = Arc::clone(&reports);
        device.on_uncaptured_error(Arc::new(move |error| {
            lock(&errors.error).get_or_insert(error);
        }));
        let losses = Arc::clone(&reports);
        device.set_device_lost_callback(move |reason, why| {
            losses.lose(if why.is_empty() { format!("{reason:?}") } else { why });
        });
        Self {
            device,
            queue,
            facts,
            abilities,
            max_buffer,
            max_weights,
            memory_limit,
            time_limit,
            reports,
            used: AtomicU64::new(0),
            layouts: Mutex::default(),
            pipelines: Mutex::default(),
            kernels,
        }
    }

    /// Why the device is lost, if it is.
    pub(crate) fn lost(&self) -> Option<String> {
        lock(&self.reports.lost).clone()
    }

    /// # Errors
    /// If the device is lost, or the driver reported an error that nothing caught.
    pub(crate) fn check(&self) -> Result<(), DeviceError> {
        if let Some(why) = self.lost() {
            return Err(DeviceError::Lost { device: NAME.into(), why });
        }
        match lock(&self.reports.error).take() {
            None => Ok(()),
            Some(wgpu::Error::OutOfMemory { .. }) => Err(self.full("activations", 0)),
            // What a kernel left is not to be believed any more, now or later.
            Some(error) => {
                self.reports.lose(error.to_string());
                Err(DeviceError::Lost { device: NAME.into(), why: error.to_string() })
            }
        }
    }

    pub(crate) fn full(&self, what: &'static str, bytes: u64) -> DeviceError {
        DeviceError::OutOfMemory { device: NAME.into(), what, bytes }
    }

    /// Bytes that all buffers take.
    pub(crate) fn used(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }

    /// Makes a buffer of at least `bytes`, a multiple of 16. With `fill` its bytes come from there,
    /// in whatever pieces, in order.
    pub(crate) fn block(
        self: &Arc<Self>,
        what: &'static str,
        bytes: u64,
        usage: BufferUsages,
        fill: Option<Fill<'_>>,
    ) -> Result<Block, DeviceError> {
        self.check()?;
        let size = buffer_bytes(bytes);
        let before = self.used.fetch_add(size, Ordering::Relaxed);
        let counted = |buffer| Block { buffer, bytes: size, context: Arc::clone(self) };
        let fits = size <= self.max_buffer && before.saturating_add(size) <= self.memory_limit;
        if !fits {
            self.used.fetch_sub(size, Ordering::Relaxed);
            return Err(self.full(what, size));
        }
        let invalid = self.device.push_error_scope(ErrorFilter::Validation);
        let full = self.device.push_error_scope(ErrorFilter::OutOfMemory);
        let buffer = self.device.create_buffer(&wgpu::BufferDescriptor {
            label: Some(what),
            size,
            usage,
            mapped_at_creation: fill.is_some(),
        });
        let block = counted(buffer);
        let failed = pollster::block_on(full.pop()).or(pollster::block_on(invalid.pop()));
        if failed.is_some() {
            self.check()?;
            return Err(self.full(what, size));
        }
        if let Some(fill) = fill {
            let mut view =
                block.buffer.get_mapped_range_mut(..).map_err(|error| self.broken(&error))?;
            let mut at = 0;
            fill(&mut |bytes: &[u8]| {
                view.slice(at..at + bytes.len()).copy_from_slice(bytes);
                at += bytes.len();
            });
            drop(view);
            block.buffer.unmap();
        }
        Ok(block)
    }

    /// A buffer with these contents for kernels to read.
    pub(crate) fn constant<T: bytemuck::NoUninit>(
        self: &Arc<Self>,
        what: &'static str,
        data: &[T],
        usage: BufferUsages,
    ) -> Result<Block, DeviceError> {
        let bytes: &[u8] = bytemuck::cast_slice(data);
        self.block(what, bytes.len() as u64, usage, Some(&mut |put| put(bytes)))
    }

    /// An error of the driver's that should not be.
    pub(crate) fn broken(&self, error: &dyn std::error::Error) -> DeviceError {
        match self.check() {
            Err(error) => error,
            Ok(()) => {
                self.reports.lose(error.to_string());
                DeviceError::Lost { device: NAME.into(), why: error.to_string() }
            }
        }
    }

    fn layouts(&self, bindings: &'static str) -> Layouts {
        let mut layouts = lock(&self.layouts);
        let made = layouts.entry(bindings).or_insert_with(|| {
            let entry = |(binding, kind): (u32, char)| wgpu::BindGroupLayoutEntry {
                binding,
                visibility: wgpu::ShaderStages::COMPUTE,
                ty: wgpu::BindingType::Buffer {
                    ty: match kind {
                        'u' => wgpu::BufferBindingType::Uniform,
                        kind => wgpu::BufferBindingType::Storage { read_only: kind == 'r' },
                    },
                    has_dynamic_offset: false,
                    min_binding_size: None,
                },
                count: None,
            };
            let entries: Vec<_> = (0..).zip(bindings.chars()).map(entry).collect();
            let group = self.device.create_bind_group_layout(&wgpu::BindGroupLayoutDescriptor {
                label: Some(bindings),
                entries: &entries,
            });
            let pipeline = self.device.create_pipeline_layout(&wgpu::PipelineLayoutDescriptor {
                label: Some(bindings),
                bind_group_layouts: &[Some(&group)],
                immediate_size: 0,
            });
            Layouts { group, pipeline }
        });
        made.clone()
    }

    /// Keeps the kernels that were compiled since this was last called, if there were any.
    pub(crate) fn keep_kernels(&self) {
        if let Some(kernels) = &self.kernels {
            kernels.keep(lock(&self.pipelines).len());
        }
    }

    /// A kernel with these constants, compiled now or before.
    pub(crate) fn pipeline(
        &self,
        kernel: &'static Kernel,
        constants: Constants,
    ) -> Result<Arc<wgpu::ComputePipeline>, DeviceError> {
        let key = (std::ptr::from_ref(kernel).addr(), constants);
        if let Some(pipeline) = lock(&self.pipelines).get(&key) {
            return Ok(Arc::clone(pipeline));
        }
        let layout = self.layouts(kernel.bindings).pipeline;
        let scopes = [ErrorFilter::Validation, ErrorFilter::Internal, ErrorFilter::OutOfMemory]
            .map(|filter| self.device.push_error_scope(filter));
        let module = self.device.create_shader_module(wgpu::ShaderModuleDescriptor {
            label: Some(kernel.name),
            source: wgpu::ShaderSource::Wgsl(kernel.source(&key.1).into()),
        });
        let pipeline = self.device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
            label: Some(kernel.name),
            layout: Some(&layout),
            module: &module,
            entry_point: Some("main"),
            compilation_options: wgpu::PipelineCompilationOptions {
                // Kernels write what they read.
                zero_initialize_workgroup_memory: false,
                ..Default::default()
            },
            cache: self.kernels.as_ref().map(|kernels| &kernels.compiled),
        });
        let mut failed = None;
        for scope in scopes.into_iter().rev() {
            failed = pollster::block_on(scope.pop()).or(failed);
        }
        if let Some(error) = failed {
            self.check()?;
            return Err(DeviceError::Refused {
                device: NAME.into(),
                node: kernel.name.into(),
                why: format!("the driver does not compile its kernel: {error}"),
            });
        }
        let pipeline = Arc::new(pipeline);
        lock(&self.pipelines).insert(key, Arc::clone(&pipeline));
        Ok(pipeline)
    }

    /// Buffers as the bindings of a kernel.
    pub(crate) fn bind(&self, kernel: &Kernel, buffers: &[&wgpu::Buffer]) -> wgpu::BindGroup {
        let entries: Vec<_> = (0..)
            .zip(buffers)
            .map(|(binding, buffer)| wgpu::BindGroupEntry {
                binding,
                resource: buffer.as_entire_binding(),
            })
            .collect();
        self.device.create_bind_group(&wgpu::BindGroupDescriptor {
            label: Some(kernel.name),
            layout: &self.layouts(kernel.bindings).group,
            entries: &entries,
        })
    }

    pub(crate) fn encoder(&self) -> wgpu::CommandEncoder {
        self.device.create_command_encoder(&wgpu::CommandEncoderDescriptor { label: None })
    }

    /// Submits and waits until it is done.
    pub(crate) fn finish(&self, encoder: wgpu::CommandEncoder) -> Result<(), DeviceError> {
        self.check()?;
        self.queue.submit([encoder.finish()]);
        self.wait()
    }

    /// Waits until everything that was submitted is done.
    pub(crate) fn wait(&self) -> Result<(), DeviceError> {
        let poll = self
            .device
            .poll(wgpu::PollType::Wait { submission_index: None, timeout: Some(self.time_limit) });
        match poll {
            Ok(_) => self.check(),
            Err(wgpu::PollError::Timeout) => {
                self.check()?;
                Err(DeviceError::Timeout { device: NAME.into() })
            }
            Err(error) => Err(self.broken(&error)),
        }
    }

    /// Submits, waits, and hands over the first `bytes` of a buffer that can be mapped.
    pub(crate) fn finish_and_read(
        &self,
        encoder: wgpu::CommandEncoder,
        from: &wgpu::Buffer,
        bytes: u64,
        take: &mut dyn FnMut(&[u8]),
    ) -> Result<(), DeviceError> {
        self.check()?;
        self.queue.submit([encoder.finish()]);
        let (to, mapped) = mpsc::channel();
        // Whoever gave up has no use for it.
        from.map_async(wgpu::MapMode::Read, ..bytes, move |result| drop(to.send(result)));
        self.wait()?;
        // Another thread that waits may have been given this to call, and not have done so yet.
        match mapped.recv_timeout(self.time_limit) {
            Ok(Ok(())) => {
                let view = from.get_mapped_range(..bytes).map_err(|error| self.broken(&error))?;
                take(&view);
                drop(view);
                from.unmap();
                Ok(())
            }
            Ok(Err(error)) => Err(self.broken(&error)),
            Err(_) => Err(DeviceError::Timeout { device: NAME.into() }),
        }
    }
}
