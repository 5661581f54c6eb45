//! What the adapter could do at most, measured: what a planner needs to know.

use crate::context::Context;
use crate::device::GpuDevice;
use crate::shader::{self, Kernel};
use std::sync::Arc;
use std::time::Instant;
use tangor_device::DeviceError;
use wgpu::BufferUsages;

/// Bytes that are streamed: more than caches hold, and no more than any adapter lets kernels see.
const STREAM: u64 = 128 << 20;
/// Bytes that a workgroup of `stream.wgsl` reads.
const GROUP_BYTES: u64 = 64 << 10;
/// Chains of multiplications of a lane of `compute.wgsl`.
const CHAINS: u32 = 8;

/// Multiplications and additions of `f32` per second: the best of a few runs in registers.
///
/// # Errors
/// If the device is lost or full.
pub fn matrix_ops_per_s(device: &GpuDevice) -> Result<f64, DeviceError> {
    let context = device.context();
    let (groups, rounds) = (256, 4096);
    let usage = BufferUsages::STORAGE;
    let data = context.constant("activations", &[0.5_f32; 128], usage)?;
    let out = context.block("activations", u64::from(groups) * 256, usage, None)?;
    let constants = vec![("ROUNDS", rounds), ("CHAINS", CHAINS)];
    let group = context.bind(&shader::COMPUTE, &[&data.buffer, &out.buffer]);
    let seconds = best_of(5, context, (&shader::COMPUTE, constants), &group, groups)?;
    Ok(2.0 * f64::from(groups) * 64.0 * f64::from(rounds) * f64::from(CHAINS) / seconds)
}

/// How long multiplying and adding four integers of 8 bits takes, in times of what one `f32` takes:
/// about 1 where there is an instruction for it.
///
/// # Errors
/// If the device is lost or full.
pub fn dot_cost(device: &GpuDevice) -> Result<f64, DeviceError> {
    dot_cost_of(device.context())
}

pub(crate) fn dot_cost_of(context: &Arc<Context>) -> Result<f64, DeviceError> {
    let groups = 256;
    let data = context.constant("activations", &[0.5_f32; 128], BufferUsages::STORAGE)?;
    let out = context.block("activations", u64::from(groups) * 256, BufferUsages::STORAGE, None)?;
    // Enough work that the time of a submission does not hide the difference.
    let constants = vec![("ROUNDS", 8192), ("CHAINS", CHAINS)];
    let seconds = |kernel: &'static Kernel| {
        let group = context.bind(kernel, &[&data.buffer, &out.buffer]);
        best_of(3, context, (kernel, constants.clone()), &group, groups)
    };
    Ok(seconds(&shader::DOTS)? / seconds(&shader::COMPUTE)?)
}

/// Bytes per second that kernels read from memory: the best of a few passes over 128 MiB.
///
/// # Errors
/// If the device is lost or full.
pub fn read_bytes_per_s(device: &GpuDevice) -> Result<f64, DeviceError> {
    let context = device.context();
    let bytes = STREAM.min(context.max_buffer) / GROUP_BYTES * GROUP_BYTES;
    let usage = BufferUsages::STORAGE;
    let ones = vec![1_u8; usize::try_from(GROUP_BYTES).unwrap_or(0)];
    let data = context.block(
        "activations",
        bytes,
        usage,
        Some(&mut |put| {
            (0..bytes / GROUP_BYTES).for_each(|_| put(&ones));
        }),
    )?;
    let groups = u32::try_from(bytes / GROUP_BYTES).unwrap_or(1);
    let out = context.block("activations", u64::from(groups) * 256, usage, None)?;
    let group = context.bind(&shader::STREAM, &[&data.buffer, &out.buffer]);
    let seconds = best_of(7, context, (&shader::STREAM, Vec::new()), &group, groups)?;
    #[allow(clippy::cast_precision_loss)]
    let bytes = bytes as f64;
    Ok(bytes / seconds)
}

/// Seconds that a run of one tiny kernel takes, from its submission until its end is known: the
/// median of a few.
///
/// # Errors
/// If the device is lost or full.
pub fn seconds_per_run(device: &GpuDevice) -> Result<f64, DeviceError> {
    let context = device.context();
    let data = context.constant("activations", &[0.5_f32; 128], BufferUsages::STORAGE)?;
    let out = context.block("activations", 256, BufferUsages::STORAGE, None)?;
    let group = context.bind(&shader::COMPUTE, &[&data.buffer, &out.buffer]);
    let constants = vec![("ROUNDS", 1), ("CHAINS", 1)];
    let mut times = Vec::new();
    for _ in 0..15 {
        let kernel = (&shader::COMPUTE, constants.clone());
        times.push(best_of(1, context, kernel, &group, 1)?);
    }
    times.sort_by(f64::total_cmp);
    Ok(times[times.len() / 2])
}

/// Seconds of the fastest of `runs` dispatches.
fn best_of(
    runs: usize,
    context: &Arc<Context>,
    (kernel, constants): (&'static Kernel, shader::Constants),
    group: &wgpu::BindGroup,
    groups: u32,
) -> Result<f64, DeviceError> {
    let pipeline = context.pipeline(kernel, constants)?;
    let mut best = f64::INFINITY;
    // The first run compiles.
    for run in 0..=runs {
        let start = Instant::now();
        let mut encoder = context.encoder();
        {
            let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor::default());
            pass.set_pipeline(&pipeline);
            pass.set_bind_group(0, group, &[]);
            pass.dispatch_workgroups(groups, 1, 1);
        }
        context.finish(encoder)?;
        if run > 0 {
            best = best.min(start.elapsed().as_secs_f64());
        }
    }
    Ok(best)
}
