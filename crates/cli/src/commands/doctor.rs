//! `tangor doctor`: what this machine offers, and whether everything is in order.

use super::list;
use crate::args::Global;
use crate::error::{Failure, Outcome};
use crate::hardware::{self, Chip, Finding, State};
use crate::progress::Progress;
use crate::{devices, load, sys, terminal};
use clap::Args;
use serde::Serialize;
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;
use tangor_device_cpu::Isa;
use tangor_device_npu::{DeviceInfo, NpuError};
use tangor_engine::device::{Device, HostMemory};
use tangor_eval::MachineLimits;
use tangor_store::{ModelName, Store, StoreError};

/// Say what this machine offers and whether everything is in order
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Measure what the processor and its memory can do (a second or two)
    #[arg(long)]
    measure: bool,

    /// Read every byte of the models and of packed weights, to see whether they are what they were:
    /// a failure if they are not
    #[arg(long)]
    verify: bool,

    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// Everything that there is to say.
#[derive(Debug, Serialize)]
struct Report {
    version: &'static str,
    processor: sys::Processor,
    isa: &'static str,
    isas: Vec<&'static str>,
    isa_ops_per_s: load::IsaSpeeds,
    memory: HostMemory,
    python: Option<String>,
    pip: Option<String>,
    chip: Chip,
    /// What can run models, by kind.
    devices: Vec<DeviceLine>,
    /// Drivers and providers.
    hardware: Vec<Finding>,
    store: StoreReport,
    measured: Option<MachineLimits>,
    limits: Vec<Limit>,
    problems: Vec<Problem>,
    /// How many of them are files that are not what they were; `None` if none were read.
    #[serde(skip)]
    damaged: Option<usize>,
}

/// The model store.
#[derive(Debug, Serialize)]
struct StoreReport {
    path: PathBuf,
    models: usize,
    bytes: u64,
    /// Entries with packed weights.
    packed: usize,
    packed_bytes: u64,
    disk_free_bytes: Option<u64>,
}

/// A device that models can run on.
#[derive(Debug, Serialize)]
struct DeviceLine {
    kind: &'static str,
    description: String,
}

/// Kinds of devices that are built in, each with what lists those that are there.
const KINDS: &[(&str, ListDevices)] = &[("cpu", cpus), ("gpu", gpus), ("npu", npus)];

/// Describes the devices of a kind.
type ListDevices = fn() -> Outcome<Vec<String>>;

fn cpus() -> Outcome<Vec<String>> {
    Ok(vec![devices::cpu_with(None, None)?.descriptor().description.clone()])
}

/// Adapters by number, as `--gpu` takes it.
fn gpus() -> Outcome<Vec<String>> {
    let adapters = tangor_device_gpu::adapters();
    Ok(adapters.iter().enumerate().map(|(index, facts)| format!("{index}: {facts}")).collect())
}

/// What ONNX Runtime lists, as `--npu` takes it; nothing where no such library is.
fn npus() -> Outcome<Vec<String>> {
    let survey = match tangor_device_npu::survey(None) {
        Err(NpuError::NoLibrary { .. }) => return Ok(Vec::new()),
        survey => survey?,
    };
    let with = format!("ONNX Runtime {}", survey.version);
    let line = |info: &DeviceInfo| {
        let hardware = info.hardware.to_string().to_lowercase();
        format!("{}:{hardware}: {info}, by {with}", info.provider)
    };
    Ok(survey.devices.iter().map(line).collect())
}

/// The devices of all kinds; a kind whose devices cannot be listed is a problem.
fn device_lines(problems: &mut Vec<Problem>) -> Vec<DeviceLine> {
    let mut lines = Vec::new();
    for (kind, list) in KINDS {
        match list() {
            Ok(found) => {
                lines.extend(found.into_iter().map(|description| DeviceLine { kind, description }))
            }
            Err(error) => problems.push(Problem {
                what: format!("{kind}: {}", error.message()),
                todo: "see what is missing for it above".into(),
            }),
        }
    }
    lines
}

/// A bound that the program keeps to.
#[derive(Debug, Serialize)]
struct Limit {
    name: &'static str,
    value: u64,
    what: &'static str,
}

/// Something that is not in order, and what to do.
#[derive(Debug, Serialize)]
struct Problem {
    what: String,
    todo: String,
}

pub(crate) fn run(options: &Options, global: &Global) -> Outcome {
    let store = load::store(global)?;
    let report = report(&store, options)?;
    if options.json {
        terminal::json(&report)?
    } else {
        print(&report)?
    }
    match report.damaged {
        None | Some(0) => Ok(()),
        Some(count) => {
            let places = terminal::things(count, "place");
            let message = format!("the store is damaged in {places}: the report says where");
            Err(Failure::new(message))
        }
    }
}

fn report(store: &Store, options: &Options) -> Outcome<Report> {
    let mut problems = Vec::new();
    let damaged = options.verify.then(|| {
        verify(store, &mut problems);
        problems.len()
    });
    let python = sys::python();
    let pip = python.as_ref().and_then(|(command, _)| sys::pip(command));
    if pip.is_none() {
        problems.push(Problem {
            what: "no pip was found, and built-in models are fetched with it".into(),
            todo: "install Python 3 with pip, or use model files and org/repo names".into(),
        });
    }
    let store_report = store_report(store, &mut problems);
    let isas: Vec<&str> = Isa::available().into_iter().map(Isa::name).collect();
    if isas.len() == 1 {
        problems.push(Problem {
            what: "this processor has none of the instructions that fast kernels use".into(),
            todo: "models run, slowly; a processor with AVX2 is several times faster".into(),
        });
    }
    let devices = device_lines(&mut problems);
    let facts = hardware::facts();
    let measured = options.measure.then(load::measure_default).transpose()?;
    Ok(Report {
        version: env!("CARGO_PKG_VERSION"),
        processor: sys::processor(),
        isa: Isa::best().name(),
        isas,
        isa_ops_per_s: load::isa_speeds(),
        memory: HostMemory::now(),
        python: python.map(|(command, version)| format!("{command} {version}")),
        pip,
        chip: Chip::of(facts.processor.as_deref().unwrap_or_default()),
        devices,
        hardware: hardware::advise(&facts),
        store: store_report,
        measured,
        limits: limits(store),
        problems,
        damaged,
    })
}

fn store_report(store: &Store, problems: &mut Vec<Problem>) -> StoreReport {
    let path = store.root().to_path_buf();
    let models = store.list().unwrap_or_else(|error| {
        let todo = error.hint().unwrap_or_else(|| "set TANGOR_HOME to another folder".into());
        problems.push(Problem { what: error.to_string(), todo });
        Vec::new()
    });
    for model in &models {
        if let Some(damage) = &model.damage {
            problems.push(Problem {
                what: format!("{} is damaged: {damage}", model.name),
                todo: format!("repair it: tangor pull {}", model.name),
            });
        }
    }
    for left in store.unfinished().unwrap_or_default() {
        let (what, todo) = list::unfinished_pull(&left);
        problems.push(Problem { what, todo });
    }
    let disk_free_bytes = sys::disk_free_bytes(&path);
    if disk_free_bytes.is_some_and(|free| free < 1 << 30) {
        problems.push(Problem {
            what: format!("the disk of {} is nearly full", path.display()),
            todo: "make room, or set TANGOR_HOME to a folder on another disk".into(),
        });
    }
    let bytes = models.iter().map(|model| model.bytes).sum();
    let packed = store.packed();
    let packed_bytes = packed.iter().map(|entry| entry.bytes).sum();
    let (models, packed) = (models.len(), packed.len());
    StoreReport { path, models, bytes, packed, packed_bytes, disk_free_bytes }
}

/// Reads all that the store holds.
fn verify(store: &Store, problems: &mut Vec<Problem>) {
    let problem = |error: &StoreError, todo: &str| Problem {
        what: error.to_string(),
        todo: error.hint().unwrap_or_else(|| todo.to_owned()),
    };
    for model in store.list().unwrap_or_default() {
        let mut progress = Progress::transfer(format!("verifying {}", model.name));
        let mut watch = |step: &tangor_store::Progress<'_>| {
            progress.set(step.done, step.total.unwrap_or(0));
        };
        let checked = ModelName::parse(&model.name)
            .and_then(|name| store.verify(&name, &mut watch, &AtomicBool::new(false)));
        problems.extend(checked.err().map(|error| problem(&error, "fetch it again")));
    }
    let _progress = Progress::spinner("verifying packed weights");
    for entry in store.packed() {
        if let Err(error) = store.verify_packed(&entry) {
            let what = error.to_string();
            let todo = "nothing: the next start packs the weights again".into();
            problems.push(Problem { what, todo });
        }
    }
}

/// The bounds that somebody may run into.
fn limits(store: &Store) -> Vec<Limit> {
    let load = tangor_engine::LoadOptions::default();
    let limit = |name, value: usize, what| Limit { name, value: value as u64, what };
    let packed = store.packed_limit();
    vec![
        Limit { name: "packed_bytes", value: packed, what: "bytes of packed weights on the disk" },
        limit("max_sequences", load.max_sequences, "sequences that run at once"),
        limit("max_alive", load.max_alive, "sequences that may be alive at once"),
        limit("prefill_chunk", load.prefill_chunk, "rows of prompts per step"),
        limit("text_bytes", tangor_engine::text::limits::TEXT_BYTES, "bytes of a prompt"),
        limit("messages", tangor_engine::text::limits::MESSAGES, "messages of a conversation"),
    ]
}

/// The instruction set in use, and what each of this processor's does per thread.
fn kernels(report: &Report) -> String {
    let measured = |isa: &&str| match report.isa_ops_per_s.get(isa) {
        Some(ops) => format!("{isa} {:.2} T int8 operations/s", ops / 1e12),
        None => (*isa).to_owned(),
    };
    let isas: Vec<String> = report.isas.iter().map(measured).collect();
    format!("{} (this processor can run {})", report.isa, isas.join(", "))
}

fn print(report: &Report) -> Outcome {
    let unknown = || "unknown".to_owned();
    let bytes = |value: Option<u64>| value.map_or_else(unknown, terminal::bytes);
    let (processor, memory) = (&report.processor, &report.memory);
    let mut threads = format!("{} usable", processor.usable_threads);
    if let Some(all) = processor.threads {
        threads.push_str(&format!(" of {all}"));
    }
    if let Some(quota) = processor.quota {
        threads.push_str(&format!(", limited to {quota} by the control group"));
    }
    let mut ram =
        format!("{}, {} available", bytes(memory.total_bytes), bytes(memory.available_bytes));
    if let Some(limit) = memory.limit_bytes {
        ram.push_str(&format!(", limited to {} by the control group", terminal::bytes(limit)));
    }
    let store = &report.store;
    let mut rows = vec![
        ("tangor", report.version.to_owned()),
        ("processor", processor.model.clone().unwrap_or_else(unknown)),
        ("kernels", kernels(report)),
        ("threads", threads),
        ("memory", ram),
        ("store", store.path.display().to_string()),
        (
            "",
            format!(
                "{}, {}",
                terminal::things(store.models, "model"),
                terminal::bytes(store.bytes)
            ),
        ),
        ("packed", format!("{}, to be made again at will", terminal::bytes(store.packed_bytes))),
        ("disk", format!("{} free", bytes(store.disk_free_bytes))),
        ("python", report.python.clone().unwrap_or_else(|| "not found".into())),
        ("pip", report.pip.clone().unwrap_or_else(|| "not found".into())),
    ];
    match &report.measured {
        Some(limits) => rows.push((
            "measured",
            format!(
                "{:.2} T int8 operations/s, {:.1} GB/s read",
                limits.int8_ops_per_s / 1e12,
                limits.read_bytes_per_s / 1e9
            ),
        )),
        None => rows.push(("measured", "not asked for (--measure)".to_owned())),
    }
    terminal::facts(rows)?;
    terminal::line("")?;
    let mut table = terminal::columns(&["DEVICE", "WHAT"], &[]);
    for device in &report.devices {
        table.add_row([device.kind, &device.description]);
    }
    terminal::table(&table)?;
    terminal::line("")?;
    let mut table = terminal::columns(&["FOR", "STATE", "WHAT"], &[]);
    for finding in &report.hardware {
        let state = match finding.state {
            State::Found => "found",
            State::Missing => "missing",
            State::Absent => "-",
        };
        table.add_row([finding.area, state, &terminal::one_line(&finding.what)]);
        if let Some(todo) = &finding.todo {
            table.add_row(["", "", &format!("to get it: {todo}")]);
        }
    }
    terminal::table(&table)?;
    terminal::line("")?;
    let mut table = terminal::columns(&["LIMIT", "VALUE", "OF"], &[1]);
    for limit in &report.limits {
        table.add_row([limit.name.to_owned(), limit.value.to_string(), limit.what.to_owned()]);
    }
    terminal::table(&table)?;
    terminal::line("")?;
    if report.problems.is_empty() {
        return terminal::line("everything is in order");
    }
    for problem in &report.problems {
        terminal::line(&format!("problem: {}", problem.what))?;
        terminal::line(&format!("   todo: {}", problem.todo))?;
    }
    Ok(())
}
