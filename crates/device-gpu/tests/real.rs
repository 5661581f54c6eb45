//! The real model gives what the processor's device gives, in both modes. `TANGOR_TEST_GGUF` names
//! its file; `cargo xtask test` sets it.
#![allow(clippy::expect_used, reason = "tests stop at what is unexpected")]

use std::time::Duration;
use tangor_device::model::formats::{Checkpoint, Limits, MemorySource};
use tangor_device::model::{Graph, import};
use tangor_device::{Activations, Device, KvType};
use tangor_device_cpu::{CpuDevice, CpuOptions};
use tangor_device_gpu::{GpuDevice, GpuOptions};
use tangor_testkit::drive::Driver;

fn graph() -> Graph {
    let path = std::env::var("TANGOR_TEST_GGUF")
        .expect("TANGOR_TEST_GGUF names the real model's file; `cargo xtask test` sets it");
    let bytes = std::fs::read(&path).expect("the file that TANGOR_TEST_GGUF names");
    let source = MemorySource::new("model").with("model.gguf", bytes);
    let checkpoint = Checkpoint::open(&source, None, &Limits::default()).expect("a checkpoint");
    import::import(&checkpoint).expect("a graph")
}

/// Logits after a prompt, and after each of a few tokens that follow it.
fn logits(device: &dyn Device, graph: &Graph, mode: (Activations, KvType)) -> Vec<Vec<f32>> {
    let tokens: Vec<u32> = (0..22).map(|i| 1000 + i * 371 % 5000).collect();
    let mut driver = Driver::new(device, graph, mode.0, mode.1);
    let mut sequence = driver.sequence(tokens.len());
    let (prompt, rest) = tokens.split_at(18);
    let mut all = vec![driver.feed_for(&mut [(&mut sequence, prompt)], &[prompt.len() - 1])];
    for token in rest {
        all.push(driver.feed_for(&mut [(&mut sequence, &[*token])], &[0]));
    }
    all
}

#[test]
fn both_processors_agree_on_the_real_model() {
    // Software on a machine that is busy takes as long as it takes.
    let options = GpuOptions { time_limit: Duration::from_secs(1200), ..GpuOptions::default() };
    let gpu = GpuDevice::open(&options).unwrap_or_else(|error| panic!("{error}"));
    let cpu = CpuDevice::new(CpuOptions::default()).expect("a device");
    let graph = graph();
    for (mode, allowed) in
        [((Activations::F32, KvType::F32), 2e-5), ((Activations::Int8, KvType::F16), 0.1)]
    {
        let (found, expected) = (logits(&gpu, &graph, mode), logits(&cpu, &graph, mode));
        for (found, expected) in found.iter().zip(&expected) {
            let scale = expected.iter().fold(0_f32, |most, x| most.max(x.abs()));
            let off = found.iter().zip(expected).map(|(a, b)| (a - b).abs() / scale);
            let worst = off.fold(0_f32, f32::max);
            assert!(worst < allowed, "{mode:?}: {worst:e} off");
        }
    }
}
