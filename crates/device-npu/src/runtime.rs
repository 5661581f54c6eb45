//! The process's one ONNX Runtime: loading it, registering providers, listing devices.

use crate::error::{NpuError, one_line};
use crate::library::{self, ProviderLibrary};
use ort::environment::Environment;
use ort::logging::LogLevel;
use ort::memory::DeviceType;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, OnceLock, PoisonError};

/// Kinds of processors behind a provider.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Hardware {
    /// Central processor.
    Cpu,
    /// Graphics processor.
    Gpu,
    /// Neural processor.
    Npu,
}

impl fmt::Display for Hardware {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Cpu => "CPU",
            Self::Gpu => "GPU",
            Self::Npu => "NPU",
        })
    }
}

/// A device as ONNX Runtime lists it: a provider on a piece of hardware.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceInfo {
    /// The execution provider, as `CPUExecutionProvider`.
    pub provider: String,
    /// Who made the provider.
    pub provider_vendor: String,
    /// What it runs on.
    pub hardware: Hardware,
    /// Who made the hardware.
    pub hardware_vendor: String,
    /// The hardware's number among its maker's.
    pub hardware_id: u32,
}

impl fmt::Display for DeviceInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { provider, hardware, hardware_vendor, hardware_id, .. } = self;
        write!(f, "{provider} on {hardware_vendor} {hardware} {hardware_id:04x}")
    }
}

/// The loaded library with its environment.
#[derive(Debug)]
pub struct Runtime {
    path: PathBuf,
    version: String,
    environment: Environment,
    /// Providers' libraries by the names that they are registered under.
    registered: Mutex<Vec<ProviderLibrary>>,
}

/// ONNX Runtime allows one environment in a process, and none after that.
static RUNTIME: OnceLock<Result<Runtime, NpuError>> = OnceLock::new();

impl Runtime {
    /// Loads ONNX Runtime, or gives what is loaded already.
    ///
    /// # Errors
    /// As [`library::find`]; [`NpuError::Library`] if it does not load or is too old,
    /// [`NpuError::Loaded`] if another one is in use.
    pub fn load(given: Option<&Path>) -> Result<&'static Self, NpuError> {
        if given.is_none()
            && let Some(Ok(runtime)) = RUNTIME.get()
        {
            return Ok(runtime);
        }
        let wanted = library::find(given)?;
        let runtime =
            RUNTIME.get_or_init(|| Self::start(&wanted)).as_ref().map_err(Clone::clone)?;
        if runtime.path != wanted {
            return Err(NpuError::Loaded { loaded: runtime.path.clone(), wanted });
        }
        Ok(runtime)
    }

    fn start(path: &Path) -> Result<Self, NpuError> {
        let library = |why: String| NpuError::Library { path: path.to_path_buf(), why };
        let builder = ort::init_from(path).map_err(|error| library(error.to_string()))?;
        let builder = builder.with_name("tangor").with_telemetry(false);
        let start = |error: ort::Error| NpuError::Start(one_line(error.message()));
        let environment = builder.build().map_err(start)?;
        // Refusals are normal here, and say what they are in their errors.
        environment.set_log_level(LogLevel::Fatal);
        let version = ort::info().to_owned();
        let registered = Mutex::default();
        Ok(Self { path: path.to_path_buf(), version, environment, registered })
    }

    /// Where the library is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What the library says about its build.
    #[must_use]
    pub fn version(&self) -> &str {
        &self.version
    }

    pub(crate) fn environment(&self) -> &Environment {
        &self.environment
    }

    /// Registers a provider's library; once is enough.
    ///
    /// # Errors
    /// [`NpuError::Provider`] if it does not load.
    pub fn register(&self, provider: &ProviderLibrary) -> Result<(), NpuError> {
        let mut registered = self.registered.lock().unwrap_or_else(PoisonError::into_inner);
        if registered.contains(provider) {
            return Ok(());
        }
        let fail = |why: String| NpuError::Provider {
            name: provider.name.clone(),
            path: provider.path.clone(),
            why,
        };
        if !provider.path.is_file() {
            return Err(fail("there is no such file".into()));
        }
        self.environment
            .register_ep_library(&provider.name, &provider.path)
            .map_err(|error| fail(one_line(error.message())))?;
        registered.push(provider.clone());
        Ok(())
    }

    /// The library that a provider came from, if it is registered under the provider's own name.
    pub(crate) fn library_of(&self, provider: &str) -> Option<PathBuf> {
        let registered = self.registered.lock().unwrap_or_else(PoisonError::into_inner);
        registered.iter().find(|known| known.name == provider).map(|known| known.path.clone())
    }

    /// All devices of the providers that are registered.
    #[must_use]
    pub fn devices(&self) -> Vec<DeviceInfo> {
        self.environment.devices().filter_map(|device| info(&device)).collect()
    }

    /// The device behind an entry of [`Runtime::devices`]; of several alike the `nth`.
    pub(crate) fn device(&self, want: &DeviceInfo, nth: usize) -> Option<ort::device::Device<'_>> {
        let same = |device: &ort::device::Device<'_>| info(device).as_ref() == Some(want);
        self.environment.devices().filter(same).nth(nth)
    }
}

/// The binding copies provider names into a buffer of 128 bytes, with a dot.
const LONGEST_NAME: usize = 127;

fn info(device: &ort::device::Device<'_>) -> Option<DeviceInfo> {
    let hardware = device.hardware_device();
    let provider = device.ep().ok().filter(|name| name.len() < LONGEST_NAME)?;
    Some(DeviceInfo {
        provider: provider.to_owned(),
        provider_vendor: device.ep_vendor().unwrap_or_default().to_owned(),
        hardware: match hardware.ty() {
            DeviceType::GPU => Hardware::Gpu,
            DeviceType::NPU => Hardware::Npu,
            _ => Hardware::Cpu,
        },
        hardware_vendor: hardware.vendor().unwrap_or_default().to_owned(),
        hardware_id: hardware.id(),
    })
}

/// What was found on this machine, in plain data: for a report to a person.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Survey {
    /// The library in use.
    pub library: PathBuf,
    /// What it says about its build.
    pub version: String,
    /// Provider libraries that were found, and what went wrong with each, if anything.
    pub providers: Vec<(ProviderLibrary, Option<NpuError>)>,
    /// Devices of all providers that loaded.
    pub devices: Vec<DeviceInfo>,
}

/// Looks for everything that there is: loads ONNX Runtime and each provider that is found.
///
/// # Errors
/// As [`Runtime::load`]. A provider that does not load is part of the result.
pub fn survey(given: Option<&Path>) -> Result<Survey, NpuError> {
    let runtime = Runtime::load(given)?;
    let found = library::providers(runtime.path());
    let providers = found.into_iter().map(|provider| {
        let error = runtime.register(&provider).err();
        (provider, error)
    });
    Ok(Survey {
        library: runtime.path().to_path_buf(),
        version: runtime.version().to_owned(),
        providers: providers.collect(),
        devices: runtime.devices(),
    })
}
