//! The device: a provider's device, and what it has said about shapes so far.

use crate::emit::{Emitted, Form, forms};
use crate::error::NpuError;
use crate::kv::NpuKv;
use crate::library::{self, ProviderLibrary};
use crate::prepare::{Compiler, form_of};
use crate::runtime::{DeviceInfo, Hardware, Runtime};
use crate::session::Provider;
use crate::weights::Packed;
use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tangor_device::model::{Graph, Op, WeightId};
use tangor_device::{
    Arithmetic, Descriptor, Device, DeviceError, DeviceKind, Health, HostMemory, KvCache, KvSpec,
    MemoryKind, Prepare, Products, Rounding, Runnable, Segment,
};

/// Row counts that pieces are compiled for, if nothing else is said.
const ROWS: [usize; 4] = [1, 16, 64, 256];

/// Most rows of a batch that a piece is compiled for.
const MOST_ROWS: usize = 4096;

/// Which compiled pieces are kept in a segment's [`PackedCache`](tangor_device::PackedCache).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Keep {
    /// Those that the provider compiled into a form of its own (`EPContext` in ONNX's terms).
    #[default]
    Compiled,
    /// Also what ONNX Runtime alone made of them.
    Always,
    /// None.
    Never,
}

/// Which device to use, and how.
#[derive(Clone, Debug)]
pub struct NpuOptions {
    /// ONNX Runtime's library; `None`: looked for, see [`library::find`].
    pub library: Option<PathBuf>,
    /// Providers' libraries to register; `None`: those that [`library::providers`] finds.
    pub providers: Option<Vec<ProviderLibrary>>,
    /// The provider whose device is wanted, as `VitisAIExecutionProvider`; `None`: any.
    pub provider: Option<String>,
    /// The hardware wanted; `None`: any.
    pub hardware: Option<Hardware>,
    /// Which of the devices that fit, in ONNX Runtime's order.
    pub nth: usize,
    /// Row counts to compile pieces for: 1 to 8 of them, each 1 to 4096.
    pub rows: Vec<usize>,
    /// The provider's own options.
    pub provider_options: Vec<(String, String)>,
    /// Entries of ONNX Runtime's session configuration, as `model_root`.
    pub session_entries: Vec<(String, String)>,
    /// ONNX operators that are never handed to the provider, as for one that computes them wrongly.
    pub set_aside: Vec<String>,
    /// Threads of what the provider runs on the host; `None`: as ONNX Runtime likes.
    pub threads: Option<usize>,
    /// Bytes of memory that weights and KV may take; `None`: all that the machine has.
    pub memory_bytes: Option<u64>,
    /// Which compiled pieces are kept.
    pub keep: Keep,
}

impl Default for NpuOptions {
    /// The first NPU.
    fn default() -> Self {
        Self {
            library: None,
            providers: None,
            provider: None,
            hardware: Some(Hardware::Npu),
            nth: 0,
            rows: ROWS.to_vec(),
            provider_options: Vec::new(),
            session_entries: Vec::new(),
            set_aside: Vec::new(),
            threads: None,
            memory_bytes: None,
            keep: Keep::default(),
        }
    }
}

/// What the provider said about a piece's shape.
#[derive(Clone, Debug)]
pub(crate) enum Verdict {
    Refused(String),
    /// It is compiled for these row counts, which compute a row alike.
    Rows(Vec<usize>),
}

/// What runnables share with their device.
#[derive(Debug)]
pub(crate) struct Core {
    pub(crate) name: String,
    pub(crate) provider: Provider,
    /// Ascending.
    pub(crate) rows: Vec<usize>,
    pub(crate) keep: Keep,
    known: Mutex<Known>,
}

#[derive(Debug, Default)]
struct Known {
    forms: HashMap<String, Result<Form, String>>,
    pieces: HashMap<String, Verdict>,
    /// The provider has no compiled form.
    keeps_nothing: bool,
    /// Why the device was lost.
    lost: Option<String>,
}

impl Core {
    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn verdict(&self, piece: &str) -> Option<Verdict> {
        self.known().pieces.get(piece).cloned()
    }

    pub(crate) fn remember(&self, piece: &str, verdict: Verdict) {
        self.known().pieces.insert(piece.to_owned(), verdict);
    }

    pub(crate) fn form(&self, node: &str) -> Option<Result<Form, String>> {
        self.known().forms.get(node).cloned()
    }

    pub(crate) fn remember_form(
        &self,
        node: &str,
        form: Result<Form, String>,
    ) -> Result<Form, String> {
        self.known().forms.insert(node.to_owned(), form.clone());
        form
    }

    /// Whether compiled pieces may be worth keeping.
    pub(crate) fn keeps(&self) -> bool {
        self.keep != Keep::Never && !self.known().keeps_nothing
    }

    pub(crate) fn keeps_nothing(&self) {
        self.known().keeps_nothing = true;
    }

    /// The first operator of a piece that is not to be handed over.
    pub(crate) fn set_aside(&self, emitted: &Emitted) -> Option<&'static str> {
        let aside = |operator: &&&str| self.provider.refused.iter().any(|name| name == *operator);
        emitted.operators.iter().find(|operator| aside(operator)).copied()
    }

    /// What compiled pieces depend on beside the segment.
    pub(crate) fn identity(&self) -> String {
        let Provider { runtime, info, options, entries, refused, .. } = &self.provider;
        let library = runtime.library_of(&info.provider);
        let size = library.and_then(|path| std::fs::metadata(path).ok()).map(|meta| meta.len());
        format!(
            "{info}, {options:?}, {entries:?}, {refused:?}, rows {:?}, library of {size:?} bytes, {}",
            self.rows,
            runtime.version()
        )
    }

    /// Notes that the device cannot be used any more.
    pub(crate) fn lose(&self, why: String) -> DeviceError {
        self.known().lost = Some(why.clone());
        DeviceError::Lost { device: self.name.clone(), why }
    }

    pub(crate) fn lost(&self) -> Option<String> {
        self.known().lost.clone()
    }
}

/// A device behind ONNX Runtime.
#[derive(Debug)]
pub struct NpuDevice {
    descriptor: Descriptor,
    core: Arc<Core>,
}

impl NpuDevice {
    /// Loads ONNX Runtime and the providers, and picks a device.
    ///
    /// # Errors
    /// As [`Runtime::load`] and [`Runtime::register`]; [`NpuError::NoDevice`] if none is as wanted.
    /// Providers that were found, rather than named, may fail to load.
    pub fn open(options: NpuOptions) -> Result<Self, NpuError> {
        let mut rows = options.rows.clone();
        rows.sort_unstable();
        rows.dedup();
        let sensible = rows.iter().all(|rows| (1..=MOST_ROWS).contains(rows));
        if !sensible || !(1..=8).contains(&rows.len()) {
            return Err(NpuError::Rows { rows: options.rows });
        }
        let runtime = Runtime::load(options.library.as_deref())?;
        match &options.providers {
            Some(named) => named.iter().try_for_each(|provider| runtime.register(provider))?,
            None => {
                for provider in library::providers(runtime.path()) {
                    // What was merely found need not work.
                    let _ = runtime.register(&provider);
                }
            }
        }
        let (info, nth) = pick(runtime, &options)?;
        let provider = Provider {
            runtime,
            info,
            nth,
            options: options.provider_options,
            entries: options.session_entries,
            threads: options.threads,
            refused: options.set_aside,
        };
        let memory = options.memory_bytes.or_else(|| HostMemory::now().size_bytes());
        let descriptor = Descriptor {
            name: "npu".into(),
            kind: DeviceKind::Npu,
            description: provider.description(),
            memory_bytes: memory.unwrap_or(u64::MAX),
            memory: MemoryKind::Host,
        };
        let core = Core {
            name: descriptor.name.clone(),
            provider,
            rows,
            keep: options.keep,
            known: Mutex::default(),
        };
        Ok(Self { descriptor, core: Arc::new(core) })
    }

    /// The device as ONNX Runtime lists it.
    #[must_use]
    pub fn info(&self) -> &DeviceInfo {
        &self.core.provider.info
    }

    /// The provider, its library, options and version: what its speed and what it compiles depend
    /// on.
    #[must_use]
    pub fn identity(&self) -> String {
        self.core.identity()
    }

    /// Row counts that pieces are compiled for, ascending; a shape may use fewer.
    #[must_use]
    pub fn rows(&self) -> &[usize] {
        &self.core.rows
    }
}

/// The device wanted, and which of several that look alike it is.
fn pick(runtime: &Runtime, options: &NpuOptions) -> Result<(DeviceInfo, usize), NpuError> {
    let devices = runtime.devices();
    let fits = |device: &&DeviceInfo| {
        options.provider.as_ref().is_none_or(|name| *name == device.provider)
            && options.hardware.is_none_or(|kind| kind == device.hardware)
    };
    if let Some(device) = devices.iter().filter(fits).nth(options.nth) {
        let alike = devices.iter().filter(fits).take(options.nth).filter(|other| *other == device);
        return Ok((device.clone(), alike.count()));
    }
    let kind = options.hardware.map_or_else(|| "device".into(), |kind| kind.to_string());
    let of = options.provider.as_ref().map_or_else(String::new, |name| format!(" of {name}"));
    let names: Vec<String> = devices.iter().map(ToString::to_string).collect();
    Err(NpuError::NoDevice {
        wanted: format!("{kind}{of}"),
        found: names.join(", "),
        hint: "install the driver and the execution provider of the NPU's maker, and name the \
               provider's library (RYZENAI_EP_PATH for AMD's)",
    })
}

impl Device for NpuDevice {
    fn descriptor(&self) -> &Descriptor {
        &self.descriptor
    }

    fn arithmetic(&self) -> Arithmetic {
        let products = match self.core.provider.info.hardware {
            Hardware::Npu => Products::Bf16,
            Hardware::Cpu | Hardware::Gpu => Products::F32,
        };
        Arithmetic { rounding: Rounding::None, products }
    }

    /// Asks the provider for the node alone, once per shape.
    fn refuses(&self, graph: &Graph, node: usize) -> Option<String> {
        if forms(&graph.nodes.get(node)?.op).is_empty() {
            return None;
        }
        form_of(&self.core, graph, node).err()
    }

    /// What is handed to the provider, and the table that the host reads; what a provider makes of
    /// the one is not known.
    fn packed_bytes(&self, graph: &Graph, weight: WeightId) -> u64 {
        let stored = graph.weight(weight);
        let reads = |op: &Op| matches!(op, Op::Linear { weight: id, .. } if *id == weight);
        let linear = graph.nodes.iter().position(|node| reads(&node.op));
        match linear.map(|node| form_of(&self.core, graph, node)) {
            Some(Ok(Form::Linear(form))) => {
                let is_table = |op: &Op| matches!(op, Op::Embed { table } if *table == weight);
                let table = graph.nodes.iter().any(|node| is_table(&node.op));
                let table = if table { stored.stored_bytes() } else { 0 };
                (Packed::bytes_of(stored, form) + table) as u64
            }
            _ => stored.stored_bytes() as u64,
        }
    }

    fn kv_cache(&self, spec: &KvSpec) -> Result<Box<dyn KvCache>, DeviceError> {
        Ok(Box::new(NpuKv::new(spec, &self.descriptor.name)?))
    }

    fn prepare(
        &self,
        segment: &Segment<'_>,
        options: Prepare,
        progress: &mut dyn FnMut(f32),
    ) -> Result<Box<dyn Runnable>, DeviceError> {
        if let Some(why) = self.core.lost() {
            return Err(DeviceError::Lost { device: self.descriptor.name.clone(), why });
        }
        let compiler = Compiler { core: &self.core, segment, options };
        Ok(Box::new(compiler.compile(progress)?))
    }

    fn health(&self) -> Health {
        self.core.lost().map_or(Health::Ready, Health::Lost)
    }
}

// The libraries of tests are fetched for Linux.
#[cfg(all(test, target_os = "linux"))]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests stop at what is unexpected")]
    use super::*;
    use crate::error::running;
    use tangor_device::model::ValueId;
    use tangor_device::model::ir::{Hyper, Rows, Value};
    use tangor_device::model::rope::Rope;
    use tangor_device::{Batch, KvType, Span};

    fn device() -> NpuDevice {
        let library = std::env::var_os("TANGOR_TEST_ONNXRUNTIME");
        assert!(library.is_some(), "TANGOR_TEST_ONNXRUNTIME is not set: run `cargo xtask test`");
        NpuDevice::open(NpuOptions {
            library: library.map(PathBuf::from),
            providers: Some(Vec::new()),
            hardware: Some(Hardware::Cpu),
            ..NpuOptions::default()
        })
        .unwrap()
    }

    fn graph() -> Graph {
        let hyper = Hyper {
            arch: "test".into(),
            layers: 1,
            hidden: 8,
            ffn: 8,
            heads: 1,
            kv_heads: 1,
            head_dim: 8,
            vocab: 1,
            context: 1,
        };
        let mut graph = Graph::new(hyper, Rope::none());
        graph.values.push(Value { width: 8, rows: Rows::Tokens });
        graph.logits = graph.push1("scale", Op::Scale(2.0), &[ValueId(0)]).unwrap();
        graph
    }

    #[test]
    fn a_lost_device_says_so_to_everyone() {
        let (device, graph) = (device(), graph());
        let (inputs, outputs) = (vec![ValueId(0)], vec![graph.logits]);
        let segment = Segment { graph: &graph, nodes: 0..1, inputs, outputs, packed: None };
        let options =
            Prepare { activations: tangor_device::Activations::F32, context: 1, max_rows: 1 };
        let mut runnable = device.prepare(&segment, options, &mut |_| {}).unwrap();
        let spec = KvSpec {
            layers: 1,
            kv_heads: 1,
            head_dim: 8,
            page_tokens: 1,
            pages: 1,
            dtype: KvType::F32,
        };
        let mut kv = device.kv_cache(&spec).unwrap();
        let spans = [Span { rows: 0..1, start: 0, pages: &[0], rope: Default::default() }];
        let batch = Batch { tokens: &[0], spans: &spans, logit_rows: &[] };
        let mut outputs = [Vec::new()];
        runnable.run(&batch, kv.as_mut(), &[&[1.0; 8]], &mut outputs).unwrap();
        assert_eq!(outputs[0], [2.0; 8]);
        let short = runnable.run(&batch, kv.as_mut(), &[&[1.0; 7]], &mut outputs);
        assert!(matches!(short, Err(DeviceError::Batch { .. })));
        assert_eq!(device.health(), Health::Ready);

        let lost = device.core.lose("the driver was reset".into());
        assert_eq!(device.health(), Health::Lost("the driver was reset".into()));
        let again = runnable.run(&batch, kv.as_mut(), &[&[1.0; 8]], &mut outputs);
        assert_eq!(again.unwrap_err(), lost);
        let anew = device.prepare(&segment, options, &mut |_| {});
        assert_eq!(anew.map(|_| ()).unwrap_err(), lost);
    }

    #[test]
    fn errors_of_a_run_are_told_apart() {
        let _library = device();
        let error = ort::Error::new("CreateTensor: Failed to allocate memory for 1 byte");
        assert!(matches!(running("npu", &error), DeviceError::OutOfMemory { .. }));
        let error = ort::Error::new("Non-zero status code\nreturned");
        let DeviceError::Lost { device, why } = running("npu", &error) else { panic!("{error}") };
        assert_eq!((device.as_str(), why.as_str()), ("npu", "Non-zero status code returned"));
    }
}
