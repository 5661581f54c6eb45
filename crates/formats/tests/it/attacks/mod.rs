//! Checkpoints that must be refused, by the classes of bad input that the project keeps a list of
//! (F01: cut short or not the format; F02: counts; F03: products that wrap; F04: arrangement;
//! F05: types and parts of quantised weights; F06: values; F07: text and JSON; F08: ONNX; F09:
//! safetensors; F12: genai_config).

pub(crate) mod gguf;
pub(crate) mod hf;
pub(crate) mod oga;

use tangor_formats::{Checkpoint, ErrorKind, FormatError, Limits, MemorySource};

/// A folder, and why it must be refused.
#[derive(Debug)]
pub(crate) struct Attack {
    pub(crate) class: &'static str,
    pub(crate) name: String,
    pub(crate) files: Vec<(String, Vec<u8>)>,
    pub(crate) kind: ErrorKind,
}

impl Attack {
    /// Bytes of all files.
    pub(crate) fn len(&self) -> usize {
        self.files.iter().map(|(_, bytes)| bytes.len()).sum()
    }

    pub(crate) fn source(&self) -> MemorySource {
        self.files.iter().fold(MemorySource::new("attack"), |source, (name, bytes)| {
            source.with(name, bytes.clone())
        })
    }
}

/// Every attack.
pub(crate) fn all() -> Vec<Attack> {
    [gguf::attacks(), hf::attacks(), oga::attacks()].into_iter().flatten().collect()
}

/// Opens a folder and reads everything in it, as a program would that loads the model.
pub(crate) fn load(source: &MemorySource) -> Result<(), FormatError> {
    let checkpoint = Checkpoint::open(source, None, &Limits::default())?;
    match &checkpoint {
        Checkpoint::Gguf(gguf) => {
            let values = gguf.metadata().iter().map(|(_, value)| value.iter().count());
            assert!(values.sum::<usize>() < usize::MAX);
            gguf.tensors().try_for_each(|info| gguf.tensor(info.name()).map(drop))?;
        }
        Checkpoint::Hf(hf) => {
            hf.tensor_names().try_for_each(|name| hf.tensor(&name).map(drop))?;
        }
        Checkpoint::Oga(_) => {}
    }
    checkpoint.check_unchanged()
}
