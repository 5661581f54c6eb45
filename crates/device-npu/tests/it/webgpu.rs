//! A real plug-in: the WebGPU provider's library on a Vulkan that runs in software. Which Vulkan it
//! sees is a matter of the environment, so these run in processes of their own.

use crate::support::{input, options};
use std::process::Command;
use std::time::Instant;
use tangor_device::tensor::{Layout, Offset};
use tangor_device::{Activations, Device, KvType, conformance};
use tangor_device_npu::{Hardware, NpuDevice, NpuOptions, ProviderLibrary};
use tangor_testkit::{drive, page, tiny};

/// Set in the process where the plug-in finds its Vulkan.
const ALONE: &str = "TANGOR_TEST_ALONE";

/// Whether this is the process where the plug-in finds its Vulkan. If it is not, runs the test
/// there and fails if that fails.
fn alone(test: &str) -> bool {
    if std::env::var_os(ALONE).is_some() {
        return true;
    }
    let icd = input("TANGOR_TEST_VULKAN_ICD");
    let run = Command::new(std::env::current_exe().expect("this program"))
        .args([test, "--exact", "--nocapture"])
        .env(ALONE, "1")
        .env("VK_ICD_FILENAMES", &icd)
        .env("VK_DRIVER_FILES", &icd)
        .env("ORT_WEBGPU_EP_ALLOW_SOFTWARE_ADAPTER", "1")
        .output()
        .expect("a process");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let (out, error) = (text(&run.stdout), text(&run.stderr));
    println!("{out}");
    let passed = run.status.success() && out.contains("1 passed");
    assert!(passed, "{test} failed ({}):\n{out}\n{error}", run.status);
    false
}

fn device(rows: &[usize]) -> NpuDevice {
    let path = input("TANGOR_TEST_EP_WEBGPU");
    let provider = ProviderLibrary { name: "WebGpuExecutionProvider".into(), path };
    NpuDevice::open(NpuOptions {
        providers: Some(vec![provider]),
        provider: Some("WebGpuExecutionProvider".into()),
        hardware: Some(Hardware::Cpu),
        rows: rows.to_vec(),
        ..options()
    })
    .expect("a device")
}

#[test]
fn a_plug_in_runs_every_architecture() {
    if !alone("webgpu::a_plug_in_runs_every_architecture") {
        return;
    }
    let device = device(&[16]);
    println!("{}", device.descriptor().description);
    for name in tiny::RECORDED {
        let start = Instant::now();
        let off = drive::off_recorded(&device, name, &tiny::graph(name));
        println!("{name}: {off:.1e} off, {:.1} s", start.elapsed().as_secs_f32());
        assert!(off < 1e-4, "{name} is {off:e} off");
    }
}

/// Each case is compiled for seconds: one of a few dozen runs, and only in the long ring.
#[test]
fn a_plug_in_conforms() {
    if std::env::var_os("TANGOR_TEST_LONG").is_none() || !alone("webgpu::a_plug_in_conforms") {
        return;
    }
    let report = conformance::run_some(&device(&[16]), 24);
    println!("{report}");
    assert!(report.passed(), "{report}");
    page::check("npu-webgpu", &format!("{}.", report.device), &report.markdown());
}

#[test]
fn a_plug_in_gives_rows_the_same_bits() {
    if !alone("webgpu::a_plug_in_gives_rows_the_same_bits") {
        return;
    }
    let device = device(&[1, 16]);
    let tokens: Vec<u32> = (0..21).map(|i| i * 89 % 256).collect();
    let layouts = [
        Layout::Quant { bits: 4, group: 32, offset: Offset::Zero },
        Layout::Quant { bits: 8, group: 16, offset: Offset::Zero },
    ];
    for (layout, arch) in layouts.into_iter().zip(["llama", "qwen2"]) {
        let start = Instant::now();
        let graph = tiny::random(arch, layout, 5);
        let mode = (Activations::Int8, KvType::F16);
        drive::check_row_independence(&device, &graph, &tokens, mode);
        println!("{arch}, {layout:?}: {:.1} s", start.elapsed().as_secs_f32());
    }
}
