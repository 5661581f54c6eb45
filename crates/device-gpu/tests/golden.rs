//! Every architecture gives what transformers computes, and rows depend on nothing but their
//! sequence.
#![allow(clippy::expect_used, reason = "tests stop at what is unexpected")]

use tangor_device::model::import;
use tangor_device::tensor::{DType, Layout, Offset};
use tangor_device::{Activations, KvType, oracle};
use tangor_device_gpu::{GpuDevice, GpuOptions};
use tangor_testkit::drive::{self, Driver};
use tangor_testkit::tiny;

fn device() -> GpuDevice {
    open(None)
}

fn open(integer_dots: Option<bool>) -> GpuDevice {
    let options = GpuOptions { integer_dots, ..GpuOptions::default() };
    GpuDevice::open(&options).unwrap_or_else(|error| panic!("{error}"))
}

#[test]
fn the_exact_mode_gives_the_logits_of_transformers() {
    let device = device();
    for name in tiny::RECORDED {
        let off = drive::off_recorded(&device, name, &tiny::graph(name));
        assert!(off < 1e-5, "{name} is {off:e} off");
    }
    for name in tiny::RECORDED_GGUF {
        let graph = import::import(&tiny::gguf(name)).expect("a graph");
        let off = drive::off_recorded(&device, name, &graph);
        assert!(off < 1e-5, "{name} as GGUF is {off:e} off");
    }
}

#[test]
fn k_quants_give_the_logits_of_the_oracle() {
    let graph = tiny::random_k_quants(5);
    let tokens: Vec<u32> = (0..19).map(|i| i * 89 % 256).collect();
    let expected = oracle::logits(&graph, &tokens).expect("logits");
    let mut driver = Driver::new(&device(), &graph, Activations::F32, KvType::F32);
    let found = driver.chunked(&tokens, 7);
    let scale = expected.iter().fold(0_f32, |most, x| most.max(x.abs()));
    for (a, b) in found.iter().zip(&expected) {
        assert!((a - b).abs() < 1e-5 * scale, "{a} instead of {b}");
    }
}

#[test]
fn rows_do_not_depend_on_chunks_or_neighbours() {
    let tokens: Vec<u32> = (0..70).map(|i| i * 89 % 256).collect();
    let devices = [open(Some(false)), open(Some(true))];
    for (arch, layout, mode) in [
        ("mistral", Layout::Dense(DType::F16), (Activations::F32, KvType::F32)),
        (
            "qwen2",
            Layout::Quant { bits: 4, group: 32, offset: Offset::Zero },
            (Activations::Int8, KvType::F16),
        ),
        (
            "phi3",
            Layout::Quant { bits: 8, group: 16, offset: Offset::Zero },
            (Activations::Int8, KvType::Int8),
        ),
        (
            "llama",
            Layout::Quant { bits: 4, group: 64, offset: Offset::Min },
            (Activations::F32, KvType::Bf16),
        ),
    ] {
        let graph = tiny::random(arch, layout, 3);
        for device in &devices {
            drive::check_row_independence(device, &graph, &tokens, mode);
        }
    }
}

/// Both compute with the same integers; one adds them up before they are scaled.
#[test]
fn integer_dots_change_logits_in_their_last_digits() {
    let tokens: Vec<u32> = (0..40).map(|i| i * 89 % 256).collect();
    let layout = |bits, group, offset| Layout::Quant { bits, group, offset };
    for (seed, layout) in [
        (1, layout(4, 32, Offset::Zero)),
        (2, layout(4, 128, Offset::Min)),
        (3, layout(8, 16, Offset::Zero)),
        (4, layout(8, 64, Offset::Min)),
    ] {
        let graph = tiny::random("llama", layout, seed);
        let [want, got] = [false, true].map(|integer_dots| {
            let device = open(Some(integer_dots));
            Driver::new(&device, &graph, Activations::Int8, KvType::F32).chunked(&tokens, 17)
        });
        let scale = want.iter().fold(0_f32, |most, x| most.max(x.abs()));
        let off = want.iter().zip(&got).map(|(a, b)| (a - b).abs()).fold(0_f32, f32::max);
        assert!(off < 1e-2 * scale && got != want, "{layout:?}: {off:e} of {scale}");
    }
}
