//! The devices of this machine: one row per kind of processor.

use crate::args::{DeviceChoice, ModelOptions};
use crate::error::{Failure, Outcome};
use std::sync::Arc;
use tangor_device_cpu::{CpuDevice, CpuOptions, Isa};
use tangor_device_gpu::{AdapterChoice, AdapterKind, GpuDevice, GpuOptions};
use tangor_device_npu::{Hardware, NpuDevice, NpuOptions};
use tangor_engine::device::Device;

/// How a kind of device comes to be used.
struct Family {
    choice: DeviceChoice,
    /// Opens it, whatever stands in for it.
    open: fn(&ModelOptions) -> Outcome<Arc<dyn Device>>,
    /// Opens it if the machine has a real one; what is missing or broken is no error.
    find: fn(&ModelOptions) -> Option<Arc<dyn Device>>,
}

/// Every kind, in the order in which they are listed.
const FAMILIES: [Family; 3] = [
    Family {
        choice: DeviceChoice::Cpu,
        open: |options| Ok(Arc::new(cpu(options)?)),
        find: |options| Some(Arc::new(cpu(options).ok()?)),
    },
    Family { choice: DeviceChoice::Gpu, open: open_gpu, find: find_gpu },
    Family { choice: DeviceChoice::Npu, open: open_npu, find: find_npu },
];

/// The devices that the options speak of. The processor is always there, to go on with when
/// another device is lost. `auto` takes what is real; `hybrid` and a device by name also take what
/// stands in for it, as a graphics processor in software.
pub(crate) fn all(options: &ModelOptions) -> Outcome<Vec<Arc<dyn Device>>> {
    let named = [Some(options.device), options.prefill_device, options.decode_device];
    let wants = |choice| named.contains(&Some(choice));
    let explores = options.device == DeviceChoice::Auto
        && (options.prefill_device.is_none() || options.decode_device.is_none());
    let mut devices: Vec<Arc<dyn Device>> = Vec::new();
    for family in FAMILIES {
        if family.choice == DeviceChoice::Cpu || wants(family.choice) {
            devices.push((family.open)(options)?);
        } else if wants(DeviceChoice::Hybrid) || explores {
            devices.extend((family.find)(options));
        }
    }
    if wants(DeviceChoice::Hybrid) && devices.len() == 1 {
        devices.push(open_gpu(options)?);
    }
    Ok(devices)
}

/// The processor as the options want it.
pub(crate) fn cpu(options: &ModelOptions) -> Outcome<CpuDevice> {
    cpu_with(options.threads, options.isa.as_deref())
}

/// The processor with so many threads and an instruction set by name; `None`: the fastest.
pub(crate) fn cpu_with(threads: Option<usize>, isa: Option<&str>) -> Outcome<CpuDevice> {
    let isa: Option<Isa> = isa.map(str::parse).transpose()?;
    Ok(CpuDevice::new(CpuOptions { threads, isa, ..CpuOptions::default() })?)
}

fn gpu(options: &ModelOptions) -> Outcome<GpuDevice> {
    let adapter = match options.gpu.as_deref() {
        None => AdapterChoice::Best,
        Some(text) => {
            text.parse().map_or_else(|_| AdapterChoice::Name(text.to_owned()), AdapterChoice::Index)
        }
    };
    Ok(GpuDevice::open(&GpuOptions { adapter, ..GpuOptions::default() })?)
}

fn open_gpu(options: &ModelOptions) -> Outcome<Arc<dyn Device>> {
    Ok(Arc::new(gpu(options)?))
}

fn find_gpu(options: &ModelOptions) -> Option<Arc<dyn Device>> {
    let named = options.gpu.is_some();
    if !named && !may_have_gpu() {
        return None;
    }
    let gpu = gpu(options).ok()?;
    (named || gpu.facts().kind != AdapterKind::Software).then(|| Arc::new(gpu) as Arc<dyn Device>)
}

/// Whether it is worth loading the graphics driver to look: it takes a tenth of a second.
fn may_have_gpu() -> bool {
    if !cfg!(target_os = "linux") {
        return true;
    }
    let nodes = std::fs::read_dir("/dev/dri").into_iter().flatten().flatten();
    let renders = |name: std::ffi::OsString| name.to_string_lossy().starts_with("renderD");
    let nvidia = std::path::Path::new("/dev/nvidiactl").exists();
    nvidia || nodes.into_iter().any(|node| renders(node.file_name()))
}

fn npu(options: &ModelOptions) -> Outcome<NpuDevice> {
    let usual = NpuOptions { threads: options.threads, ..NpuOptions::default() };
    let Some(text) = options.npu.as_deref() else { return Ok(NpuDevice::open(usual)?) };
    let (provider, hardware) = text.split_once(':').map_or((text, None), |(p, h)| (p, Some(h)));
    let hardware = match hardware {
        None => None,
        Some("cpu") => Some(Hardware::Cpu),
        Some("gpu") => Some(Hardware::Gpu),
        Some("npu") => Some(Hardware::Npu),
        Some(other) => {
            let message = format!("--npu: {other:?} is not one of cpu, gpu, npu");
            return Err(Failure::Usage(message));
        }
    };
    let provider = Some(provider.to_owned());
    Ok(NpuDevice::open(NpuOptions { provider, hardware, ..usual })?)
}

fn open_npu(options: &ModelOptions) -> Outcome<Arc<dyn Device>> {
    Ok(Arc::new(npu(options)?))
}

fn find_npu(options: &ModelOptions) -> Option<Arc<dyn Device>> {
    if options.npu.is_none() && !may_have_npu() {
        return None;
    }
    npu(options).ok().map(|npu| Arc::new(npu) as Arc<dyn Device>)
}

/// Whether it is worth loading ONNX Runtime to look: somebody has named it, or the system has a
/// driver of neural processors.
fn may_have_npu() -> bool {
    let named = ["TANGOR_ONNXRUNTIME", "ORT_DYLIB_PATH", "RYZENAI_EP_PATH"];
    named.iter().any(|name| std::env::var_os(name).is_some_and(|value| !value.is_empty()))
        || std::env::var_os("RYZEN_AI_INSTALLATION_PATH").is_some()
        || std::path::Path::new("/dev/accel").exists()
}
