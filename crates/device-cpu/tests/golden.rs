//! Every instruction set computes what transformers computes, and what it computes for a row
//! depends on nothing but that row's sequence.
#![allow(clippy::expect_used, reason = "tests stop at what is unexpected")]

use tangor_device::model::import;
use tangor_device::tensor::{DType, Layout, Offset};
use tangor_device::{Activations, KvType};
use tangor_device_cpu::{CpuDevice, CpuOptions, Isa};
use tangor_testkit::drive;
use tangor_testkit::tiny;

fn devices() -> impl Iterator<Item = CpuDevice> {
    let options = |isa| CpuOptions { isa: Some(isa), threads: Some(2), pin: false };
    Isa::available().into_iter().map(move |isa| CpuDevice::new(options(isa)).expect("a device"))
}

#[test]
fn the_exact_mode_gives_the_logits_of_transformers() {
    for device in devices() {
        for name in tiny::RECORDED {
            let off = drive::off_recorded(&device, name, &tiny::graph(name));
            assert!(off < 1e-5, "{device:?}: {name} is {off:e} off");
        }
        for name in tiny::RECORDED_GGUF {
            let graph = import::import(&tiny::gguf(name)).expect("a graph");
            let off = drive::off_recorded(&device, name, &graph);
            assert!(off < 1e-5, "{device:?}: {name} as GGUF is {off:e} off");
        }
    }
}

#[test]
fn rows_do_not_depend_on_chunks_or_neighbours() {
    for device in devices() {
        for name in tiny::RECORDED {
            let graph = tiny::graph(name);
            for run in tiny::recorded(name) {
                for kv in [KvType::F32, KvType::F16, KvType::Int8] {
                    let mode = (Activations::F32, kv);
                    drive::check_row_independence(&device, &graph, &run.tokens, mode);
                }
            }
        }
    }
}

#[test]
fn rows_of_quantised_models_do_not_depend_on_chunks_or_neighbours() {
    let layouts = [
        Layout::Quant { bits: 4, group: 32, offset: Offset::Zero },
        Layout::Quant { bits: 4, group: 64, offset: Offset::Min },
        Layout::Quant { bits: 8, group: 16, offset: Offset::Zero },
        Layout::Dense(DType::F16),
    ];
    let tokens: Vec<u32> = (0..70).map(|i| i * 89 % 256).collect();
    let modes = [
        (Activations::F32, KvType::F32),
        (Activations::Int8, KvType::F16),
        (Activations::Int8, KvType::Int8),
    ];
    for device in devices() {
        for (seed, arch) in ["llama", "mistral", "qwen2", "phi3"].into_iter().enumerate() {
            let graph = tiny::random(arch, layouts[seed], seed as u64);
            for mode in modes {
                drive::check_row_independence(&device, &graph, &tokens, mode);
            }
        }
    }
}
