//! The devices of this machine: one row per kind of processor.

use crate::args::{DeviceChoice, Global, ModelOptions};
use crate::error::{Failure, Outcome};
use crate::packed::Packed;
use std::sync::Arc;
use tangor_device_cpu::{CpuDevice, CpuOptions, Isa};
use tangor_device_gpu::{AdapterChoice, AdapterKind, GpuDevice, GpuOptions};
use tangor_device_npu::{Hardware, NpuDevice, NpuOptions};
use tangor_engine::device::Device;
use tangor_engine::plan::{Kind, Rates};

/// How a kind of device comes to be used.
struct Family {
    choice: DeviceChoice,
    /// Opens it, whatever stands in for it.
    open: fn(&ModelOptions, &Global) -> Outcome<Opened>,
    /// Opens it if the machine has a real one; what is missing or broken is no error.
    find: fn(&ModelOptions, &Global) -> Option<Opened>,
}

/// A device, and what measures it for the planner.
pub(crate) struct Opened {
    pub(crate) device: Arc<dyn Device>,
    /// What its speed depends on: the processor, its driver or instruction set.
    pub(crate) identity: String,
    /// Takes seconds.
    pub(crate) measure: Box<dyn Fn() -> Outcome<Rates>>,
}

/// Every kind, in the order in which they are listed.
const FAMILIES: [Family; 3] = [
    Family { choice: DeviceChoice::Cpu, open: open_cpu, find: find_cpu },
    Family { choice: DeviceChoice::Gpu, open: open_gpu, find: find_gpu },
    Family { choice: DeviceChoice::Npu, open: open_npu, find: find_npu },
];

/// The devices that the options speak of, with what measures them. The processor is always there,
/// to go on with when another device is lost. `auto` takes what is real; `hybrid` and a device by
/// name also take what stands in for it, as a graphics processor in software.
pub(crate) fn opened(options: &ModelOptions, global: &Global) -> Outcome<Vec<Opened>> {
    let named = [Some(options.device), options.prefill_device, options.decode_device];
    let wants = |choice| named.contains(&Some(choice));
    let explores = options.device == DeviceChoice::Auto
        && (options.prefill_device.is_none() || options.decode_device.is_none());
    let mut devices: Vec<Opened> = Vec::new();
    for family in FAMILIES {
        if family.choice == DeviceChoice::Cpu || wants(family.choice) {
            let opened = (family.open)(options, global);
            devices.push(opened.map_err(|failure| failure.about(name(family.choice)))?);
        } else if wants(DeviceChoice::Hybrid) || explores {
            devices.extend((family.find)(options, global));
        }
    }
    if wants(DeviceChoice::Hybrid) && devices.len() == 1 {
        devices.push(open_gpu(options, global)?);
    }
    Ok(devices)
}

/// What messages call a kind of device.
fn name(choice: DeviceChoice) -> &'static str {
    match choice {
        DeviceChoice::Gpu => "device gpu",
        DeviceChoice::Npu => "device npu",
        _ => "device cpu",
    }
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

fn open_cpu(options: &ModelOptions, _: &Global) -> Outcome<Opened> {
    let device = Arc::new(cpu(options)?);
    let measured = Arc::clone(&device);
    let measure = move || Ok(tangor_eval::calibrate(&*measured, Kind::Cpu)?);
    let identity = device.descriptor().description.clone();
    Ok(Opened { device, identity, measure: Box::new(measure) })
}

fn find_cpu(options: &ModelOptions, global: &Global) -> Option<Opened> {
    open_cpu(options, global).ok()
}

fn gpu(options: &ModelOptions, global: &Global) -> Outcome<GpuDevice> {
    let adapter = match options.gpu.as_deref() {
        None => AdapterChoice::Best,
        Some(text) => {
            text.parse().map_or_else(|_| AdapterChoice::Name(text.to_owned()), AdapterChoice::Index)
        }
    };
    // Without a store, everything is compiled again.
    let kernels = Packed::new(global).ok().map(|packed| packed as _);
    Ok(GpuDevice::open(&GpuOptions { adapter, kernels, ..GpuOptions::default() })?)
}

fn open_gpu(options: &ModelOptions, global: &Global) -> Outcome<Opened> {
    Ok(opened_gpu(gpu(options, global)?))
}

fn opened_gpu(gpu: GpuDevice) -> Opened {
    let device = Arc::new(gpu);
    let measured = Arc::clone(&device);
    let measure = move || {
        if measured.facts().kind != AdapterKind::Software {
            return Ok(tangor_eval::calibrate(&*measured, Kind::Gpu)?);
        }
        // A few layers would take minutes there: what it reaches at most has to do.
        use tangor_device_gpu::limits;
        Ok(Rates {
            int8_ops_per_s: limits::matrix_ops_per_s(&measured)?,
            read_bytes_per_s: limits::read_bytes_per_s(&measured)?,
            run_s: limits::seconds_per_run(&measured)?,
            measured: true,
            ..Rates::typical(Kind::Gpu)
        })
    };
    let identity = device.descriptor().description.clone();
    Opened { device, identity, measure: Box::new(measure) }
}

fn find_gpu(options: &ModelOptions, global: &Global) -> Option<Opened> {
    let named = options.gpu.is_some();
    if !named && !may_have_gpu() {
        return None;
    }
    let gpu = gpu(options, global).ok()?;
    (named || gpu.facts().kind != AdapterKind::Software).then(|| opened_gpu(gpu))
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

fn open_npu(options: &ModelOptions, _: &Global) -> Outcome<Opened> {
    let device = Arc::new(npu(options)?);
    let measured = Arc::clone(&device);
    let measure = move || {
        let found = tangor_device_npu::limits::measure(&measured)?;
        Ok(Rates {
            int8_ops_per_s: found.int8_ops_per_s,
            read_bytes_per_s: found.read_bytes_per_s,
            run_s: found.run_s,
            node_s: found.node_s,
            node_row_s: found.node_s,
            row_tile: found.row_tile,
            measured: true,
            ..Rates::typical(Kind::Npu)
        })
    };
    let identity = device.identity();
    Ok(Opened { device, identity, measure: Box::new(measure) })
}

fn find_npu(options: &ModelOptions, global: &Global) -> Option<Opened> {
    let worth_it = options.npu.is_some() || may_have_npu();
    worth_it.then(|| open_npu(options, global).ok())?
}

/// Whether it is worth loading ONNX Runtime to look: somebody has named it, or the system has a
/// driver of neural processors.
fn may_have_npu() -> bool {
    let named = ["TANGOR_ONNXRUNTIME", "ORT_DYLIB_PATH", "RYZENAI_EP_PATH"];
    named.iter().any(|name| std::env::var_os(name).is_some_and(|value| !value.is_empty()))
        || std::env::var_os("RYZEN_AI_INSTALLATION_PATH").is_some()
        || std::path::Path::new("/dev/accel").exists()
}
