//! What can be wrong before anything runs, and what a provider's errors mean.

use std::path::PathBuf;
use tangor_device::DeviceError;

/// ONNX Runtime, a provider or a device cannot be had.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NpuError {
    /// No library of ONNX Runtime was found.
    #[error(
        "ONNX Runtime was not found: install it (`pip install onnxruntime`, or the NPU maker's \
         package) and name its library in TANGOR_ONNXRUNTIME"
    )]
    NoLibrary {
        /// Where it was looked for.
        looked: Vec<PathBuf>,
    },
    /// The library that was named is not there.
    #[error("{given_by} names {path}, which is not there: name the library of ONNX Runtime")]
    Missing {
        /// The option or variable.
        given_by: &'static str,
        /// What it names.
        path: PathBuf,
    },
    /// The library does not load, or is too old.
    #[error("{path} cannot be used as ONNX Runtime (1.22 or newer is needed): {why}")]
    Library {
        /// The library.
        path: PathBuf,
        /// What the system or the library said.
        why: String,
    },
    /// A process has one ONNX Runtime.
    #[error("this process uses the ONNX Runtime in {loaded} and cannot load {wanted} too")]
    Loaded {
        /// In use.
        loaded: PathBuf,
        /// Asked for.
        wanted: PathBuf,
    },
    /// A provider's library does not load.
    #[error("the execution provider {name} in {path} does not load: {why}")]
    Provider {
        /// The name to register it under.
        name: String,
        /// Its library.
        path: PathBuf,
        /// What ONNX Runtime said.
        why: String,
    },
    /// No device is as asked for.
    #[error("no {wanted} among the devices of ONNX Runtime ({found}): {hint}")]
    NoDevice {
        /// The kind and provider asked for.
        wanted: String,
        /// Those that there are.
        found: String,
        /// What to do.
        hint: &'static str,
    },
    /// Row counts that make no sense.
    #[error("row counts {rows:?}: name 1 to 8 of them, each 1 to 4096")]
    Rows {
        /// Those asked for.
        rows: Vec<usize>,
    },
    /// The environment could not be made.
    #[error("ONNX Runtime does not start: {0}")]
    Start(String),
}

/// What a provider's error means to whoever runs a segment.
pub(crate) fn running(device: &str, error: &ort::Error) -> DeviceError {
    let why = one_line(error.message());
    if is_memory(&why) {
        return DeviceError::OutOfMemory {
            device: device.to_owned(),
            what: "activations",
            bytes: 0,
        };
    }
    DeviceError::Lost { device: device.to_owned(), why }
}

/// Whether a message of ONNX Runtime speaks of memory: it has no code for that.
pub(crate) fn is_memory(message: &str) -> bool {
    let message = message.to_lowercase();
    ["failed to allocate", "bad_alloc", "bad allocation", "out of memory", "out_of_memory"]
        .iter()
        .any(|words| message.contains(words))
}

/// A message without line ends, and not longer than a line or two of a terminal.
pub(crate) fn one_line(message: &str) -> String {
    let mut line = message.split_whitespace().collect::<Vec<_>>().join(" ");
    if let Some((at, _)) = line.char_indices().nth(300) {
        line.truncate(at);
        line.push('…');
    }
    line
}
