//! Runs a GGUF file on a graphics adapter and says how fast that is: for a look at a new adapter.
//!
//! `cargo run --release -p tangor-device-gpu --example speed -- MODEL.gguf [ROWS] [f32] [profile]
//! [dots | nodots]`
#![allow(clippy::print_stdout, clippy::expect_used, reason = "a program to look at")]

use std::time::Instant;
use tangor_device::model::formats::{Checkpoint, Limits, MemorySource};
use tangor_device::model::import;
use tangor_device::{Activations, KvType};
use tangor_device_gpu::{GpuDevice, GpuOptions, adapters, limits};
use tangor_testkit::drive::Driver;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let has = |word: &str| arguments.iter().any(|argument| argument == word);
    let path = arguments.first().expect("a GGUF file");
    let rows = arguments.iter().find_map(|argument| argument.parse().ok()).unwrap_or(128);
    for adapter in adapters() {
        println!("{adapter}\n{adapter:?}");
    }
    let integer_dots = has("dots").then_some(true).or(has("nodots").then_some(false));
    let profile = has("profile");
    let options = GpuOptions { profile, integer_dots, ..GpuOptions::default() };
    let device = GpuDevice::open(&options).expect("an adapter");
    println!(
        "limits: {:.3e} ops/s, {:.3e} bytes/s, {:.1e} s per run, dots at {:.2}: {}",
        limits::matrix_ops_per_s(&device).expect("a measurement"),
        limits::read_bytes_per_s(&device).expect("a measurement"),
        limits::seconds_per_run(&device).expect("a measurement"),
        limits::dot_cost(&device).expect("a measurement"),
        device.uses_integer_dots(),
    );
    let bytes = std::fs::read(path).expect("the file");
    let source = MemorySource::new("model").with("model.gguf", bytes);
    let checkpoint = Checkpoint::open(&source, None, &Limits::default()).expect("a checkpoint");
    let graph = import::import(&checkpoint).expect("a graph");
    let activations = if has("f32") { Activations::F32 } else { Activations::Int8 };
    let start = Instant::now();
    let mut driver = Driver::new(&device, &graph, activations, KvType::F16);
    println!("prepared in {:.2} s, {} bytes", start.elapsed().as_secs_f64(), device.used_bytes());
    let tokens: Vec<u32> = (0..rows).map(|i| 1000 + i * 37 % 5000).collect();
    for round in 0..3 {
        let mut sequence = driver.sequence(rows as usize + 8);
        let start = Instant::now();
        let mut logits = driver.feed_for(&mut [(&mut sequence, &tokens)], &[tokens.len() - 1]);
        let prefill = start.elapsed().as_secs_f64();
        let start = Instant::now();
        for _ in 0..8 {
            let best = logits.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1));
            let token = u32::try_from(best.map_or(0, |best| best.0)).expect("a token");
            logits = driver.feed_for(&mut [(&mut sequence, &[token])], &[0]);
        }
        let decode = start.elapsed().as_secs_f64() / 8.0;
        println!(
            "round {round}: prefill {:.1} tokens/s, decode {:.2} tokens/s",
            f64::from(rows) / prefill,
            1.0 / decode
        );
        let profile = device.take_profile();
        for (name, spent) in profile.operations {
            println!("    {name:<14} {:>9.2} ms {:>6}", spent.seconds * 1e3, spent.count);
        }
    }
}
