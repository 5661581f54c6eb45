//! Sessions: a model on a provider's device, with tensors bound to it.

use crate::error::one_line;
use crate::runtime::{DeviceInfo, Hardware, Runtime};
use crate::weights::{Data, Tensor};
use ort::compiler::ModelCompiler;
use ort::memory::Allocator;
use ort::session::builder::{AutoDevicePolicy, SessionBuilder};
use ort::session::{IoBinding, Session};
use ort::value::{DynValue, Tensor as OrtTensor};
use std::fmt;
use std::sync::Arc;

/// A device of a provider, and how its sessions are to be set up.
#[derive(Debug)]
pub(crate) struct Provider {
    pub(crate) runtime: &'static Runtime,
    pub(crate) info: DeviceInfo,
    /// Which of several devices that look alike.
    pub(crate) nth: usize,
    /// The provider's own options.
    pub(crate) options: Vec<(String, String)>,
    /// Entries of the session's configuration.
    pub(crate) entries: Vec<(String, String)>,
    /// Threads for what runs on the host; `None`: as ONNX Runtime likes.
    pub(crate) threads: Option<usize>,
    /// Operators that are never handed over.
    pub(crate) refused: Vec<String>,
}

/// Large initializers, shared between sessions.
pub(crate) type Shared = Vec<(String, Arc<DynValue>)>;

/// Moves the large tensors of a piece to where sessions share them; the small ones stay in models.
pub(crate) fn share(tensors: &mut [(String, Tensor)]) -> Result<Shared, ort::Error> {
    let mut shared = Shared::new();
    for (name, tensor) in tensors.iter_mut().filter(|(_, tensor)| tensor.outside()) {
        let dims = tensor.dims.clone();
        let value = match &mut tensor.data {
            Data::F32(values) => OrtTensor::from_array((dims, std::mem::take(values)))?.into_dyn(),
            Data::U8(values) => OrtTensor::from_array((dims, std::mem::take(values)))?.into_dyn(),
            Data::U4(_) | Data::I64(_) => continue,
        };
        shared.push((name.clone(), Arc::new(value)));
    }
    Ok(shared)
}

/// What stands for a context that a provider compiled, in models that have one.
const CONTEXT_OPERATOR: &[u8] = b"EPContext";

impl Provider {
    /// Whether this is ONNX Runtime's own provider, which runs every operator.
    pub(crate) fn runs_everything(&self) -> bool {
        self.info.provider == "CPUExecutionProvider"
    }

    fn builder(&self, shared: &Shared) -> Result<SessionBuilder, ort::Error> {
        let device = self.runtime.device(&self.info, self.nth);
        let device = device.ok_or_else(|| ort::Error::new("the device is not listed any more"))?;
        // Without a policy of its own the binding lets ONNX Runtime pick any registered provider.
        let mut builder = Session::builder(self.runtime.environment())?
            .with_auto_device(AutoDevicePolicy::PreferCPU)?
            .with_intra_op_spinning(false)?
            .with_inter_op_spinning(false)?
            .with_deterministic_compute(true)?;
        if let Some(threads) = self.threads {
            builder = builder.with_intra_threads(threads)?;
        }
        if !self.runs_everything() {
            builder = builder.with_disable_cpu_fallback()?;
        }
        let name = &self.info.provider;
        if let Some(library) = self.runtime.library_of(name).filter(|_| name.starts_with("RyzenAI"))
        {
            // AMD's provider brings the operators of its domain in the same file.
            builder = builder.with_operator_library(library)?;
        }
        for (key, value) in &self.entries {
            builder = builder.with_config_entry(key, value)?;
        }
        for (name, value) in shared {
            builder = builder.with_external_initializer(name, Arc::clone(value))?;
        }
        let options: Vec<(String, String)> = self
            .options
            .iter()
            .map(|(key, value)| (format!("{name}.{key}"), value.clone()))
            .collect();
        Ok(builder.with_devices([device], Some(&options))?)
    }

    /// A session of a model; an error is the provider's refusal.
    pub(crate) fn session(
        &self,
        model: &[u8],
        shared: &Shared,
        rows: usize,
    ) -> Result<Bound, ort::Error> {
        Bound::new(self.builder(shared)?.commit_from_memory(model)?, rows)
    }

    /// The model as the provider compiled it, if it has a form of its own that can be kept, or if
    /// what ONNX Runtime alone made of it is to be kept `anyway`.
    pub(crate) fn compile(
        &self,
        model: &[u8],
        shared: &Shared,
        anyway: bool,
    ) -> Result<Option<Vec<u8>>, ort::Error> {
        let compiler = ModelCompiler::new(self.builder(shared)?)?.with_embed_ep_context()?;
        let compiled = compiler.with_model_from_memory(model)?.compile_to_buffer()?;
        let own = compiled.windows(CONTEXT_OPERATOR.len()).any(|bytes| bytes == CONTEXT_OPERATOR);
        Ok((own || anyway).then(|| compiled.to_vec()))
    }

    /// What a person would call it.
    pub(crate) fn description(&self) -> String {
        let DeviceInfo { provider, hardware, hardware_vendor, .. } = &self.info;
        let name = match provider.strip_suffix("ExecutionProvider") {
            Some("CPU") => "CPU",
            Some(name) => name,
            None => provider,
        };
        let stands_in = match hardware {
            Hardware::Npu => "",
            Hardware::Cpu | Hardware::Gpu => ", standing in for an NPU",
        };
        format!("ONNX Runtime {name} provider on {hardware_vendor} {hardware}{stands_in}")
    }
}

/// A session for batches of a fixed number of rows, with the tensors bound to it.
pub(crate) struct Bound {
    session: Session,
    binding: IoBinding,
    inputs: Vec<(String, OrtTensor<f32>)>,
    outputs: Vec<(String, OrtTensor<f32>)>,
    pub(crate) rows: usize,
    bytes: usize,
}

impl fmt::Debug for Bound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Bound").field("rows", &self.rows).finish_non_exhaustive()
    }
}

impl Bound {
    fn new(session: Session, rows: usize) -> Result<Self, ort::Error> {
        let mut binding = session.create_binding()?;
        let tensors = |outlets: &[ort::value::Outlet]| {
            let tensor = |outlet: &ort::value::Outlet| {
                let shape = outlet.dtype().tensor_shape().map(|shape| shape.to_vec());
                let shape = shape.filter(|shape| {
                    shape.len() == 2 && shape[0] == i64::try_from(rows).unwrap_or(0) && shape[1] > 0
                });
                let shape = shape.ok_or_else(|| {
                    ort::Error::new(format!("{} is not (rows, width)", outlet.name()))
                })?;
                let tensor = OrtTensor::<f32>::new(&Allocator::default(), shape)?;
                Ok((outlet.name().to_owned(), tensor))
            };
            outlets.iter().map(tensor).collect::<Result<Vec<_>, ort::Error>>()
        };
        let inputs = tensors(session.inputs())?;
        let mut outputs = tensors(session.outputs())?;
        for (name, tensor) in &mut outputs {
            binding.bind_output(name.clone(), tensor)?;
        }
        let elements = |tensors: &[(String, OrtTensor<f32>)]| -> usize {
            tensors.iter().map(|(_, tensor)| tensor.shape().num_elements()).sum()
        };
        let bytes = 4 * (elements(&inputs) + elements(&outputs));
        Ok(Self { session, binding, inputs, outputs, rows, bytes })
    }

    /// Bytes of the bound tensors.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Whether it reads and writes the values of these names and widths.
    pub(crate) fn fits(&self, inputs: &[(String, usize)], outputs: &[(String, usize)]) -> bool {
        let same = |bound: &[(String, OrtTensor<f32>)], want: &[(String, usize)]| {
            bound.len() == want.len()
                && want.iter().all(|(name, width)| {
                    let width = i64::try_from(*width).unwrap_or(0);
                    bound.iter().any(|(bound, t)| bound == name && t.shape()[1] == width)
                })
        };
        same(&self.inputs, inputs) && same(&self.outputs, outputs)
    }

    /// Runs up to `self.rows` rows; the rest of the batch is zeros.
    ///
    /// `inputs`: `(rows, width)` by name. `outputs`: the same by name, overwritten.
    pub(crate) fn run(
        &mut self,
        inputs: &[(&str, &[f32])],
        outputs: &mut [(&str, &mut [f32])],
    ) -> Result<(), ort::Error> {
        let missing = |name: &str| ort::Error::new(format!("no value {name}"));
        for (name, tensor) in &mut self.inputs {
            let (_, x) = inputs.iter().find(|(n, _)| n == name).ok_or_else(|| missing(name))?;
            let (_, data) = tensor.extract_tensor_mut();
            if x.len() > data.len() {
                return Err(ort::Error::new(format!("too many rows for {name}")));
            }
            data[..x.len()].copy_from_slice(x);
            data[x.len()..].fill(0.0);
            self.binding.bind_input(name.clone(), tensor)?;
        }
        let written = self.session.run_binding(&self.binding)?;
        for (name, y) in outputs {
            let value = written.get(*name).ok_or_else(|| missing(name))?;
            let (_, data) = value.try_extract_tensor::<f32>()?;
            let data = data.get(..y.len()).ok_or_else(|| missing(name))?;
            y.copy_from_slice(data);
        }
        Ok(())
    }
}

/// A provider's refusal in one line.
pub(crate) fn refusal(error: &ort::Error) -> String {
    one_line(error.message())
}
