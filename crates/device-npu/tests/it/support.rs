//! The libraries that tests use, and devices made with them.

use std::path::PathBuf;
use tangor_device_npu::{Hardware, NpuDevice, NpuOptions};

/// What `cargo xtask setup` fetched.
pub(crate) fn input(variable: &str) -> PathBuf {
    let path = std::env::var_os(variable).unwrap_or_else(|| {
        panic!("{variable} is not set: run `cargo xtask test`, or what `cargo xtask setup` prints")
    });
    let path = PathBuf::from(path);
    assert!(path.exists(), "{variable} names {}, which is not there", path.display());
    path
}

/// ONNX Runtime with no provider but its own.
pub(crate) fn options() -> NpuOptions {
    NpuOptions {
        library: Some(input("TANGOR_TEST_ONNXRUNTIME")),
        providers: Some(Vec::new()),
        threads: Some(2),
        ..NpuOptions::default()
    }
}

/// ONNX Runtime's own provider on the processor.
pub(crate) fn cpu_options() -> NpuOptions {
    NpuOptions {
        provider: Some("CPUExecutionProvider".into()),
        hardware: Some(Hardware::Cpu),
        ..options()
    }
}

/// A device on the processor.
pub(crate) fn cpu() -> NpuDevice {
    NpuDevice::open(cpu_options()).expect("a device")
}
