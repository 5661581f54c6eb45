//! One door for every kind of checkpoint.

use crate::genai::FILE as GENAI_CONFIG;
use crate::gguf::split_set;
use crate::hf::{CONFIG, HfCheckpoint};
use crate::safetensors::INDEX;
use crate::{ErrorKind, FormatError, Gguf, Limits, OgaCheckpoint, Result, Sidecars, Source};
use tangor_tensor::{MapGuard, Weight, WeightError};

/// A checked model of any format.
#[derive(Debug)]
pub enum Checkpoint {
    /// A GGUF file or split set.
    Gguf(Gguf),
    /// A Hugging Face folder with safetensors.
    Hf(Box<HfCheckpoint>),
    /// An ONNX Runtime GenAI folder.
    Oga(Box<OgaCheckpoint>),
}

/// What a folder's files could be.
#[derive(Debug, PartialEq, Eq)]
enum Guess {
    /// The (first) file.
    Gguf(String),
    Hf,
    Oga,
}

impl Guess {
    fn describe(&self) -> String {
        match self {
            Self::Gguf(file) => format!("the GGUF model {file}"),
            Self::Hf => format!("the Hugging Face model of {CONFIG}"),
            Self::Oga => format!("the ONNX Runtime GenAI model of {GENAI_CONFIG}"),
        }
    }
}

impl Checkpoint {
    /// Reads `file` of `source` (a GGUF file, or one part of a split one), or, without a file,
    /// whatever model the folder holds.
    ///
    /// # Errors
    /// [`ErrorKind::Missing`] if there is no model, [`ErrorKind::Ambiguous`] if there are several,
    /// and whatever is wrong with the one that there is.
    pub fn open(source: &dyn Source, file: Option<&str>, limits: &Limits) -> Result<Self> {
        if let Some(file) = file {
            return Gguf::open(source, file, limits).map(Self::Gguf);
        }
        let mut guesses = guesses(source.list()?, limits)?;
        match (guesses.pop(), guesses.as_slice()) {
            (Some(Guess::Gguf(file)), []) => Gguf::open(source, &file, limits).map(Self::Gguf),
            (Some(Guess::Hf), []) => HfCheckpoint::open(source, limits).map(Box::new).map(Self::Hf),
            (Some(Guess::Oga), []) => {
                OgaCheckpoint::open(source, limits).map(Box::new).map(Self::Oga)
            }
            (Some(last), _) => {
                guesses.push(last);
                let list: Vec<String> = guesses.iter().map(Guess::describe).collect();
                let message = format!("holds several models: {}", list.join(", "));
                Err(FormatError::new(ErrorKind::Ambiguous, source.name(), message)
                    .with_hint("name one of the files"))
            }
            (None, _) => Err(FormatError::missing(source.name(), "holds no model").with_hint(
                format!("a model is a .gguf file, {CONFIG} with .safetensors, or {GENAI_CONFIG}"),
            )),
        }
    }

    /// Fails if a file changed since it was opened. Weights that were read before a success are
    /// what the file held.
    ///
    /// # Errors
    /// [`ErrorKind::Changed`].
    pub fn check_unchanged(&self) -> Result<()> {
        let name = match self {
            Self::Gguf(gguf) => gguf.name(),
            Self::Hf(hf) => hf.arrays().name(),
            Self::Oga(oga) => &oga.name,
        };
        self.guard().check().map_err(|error| FormatError::changed(name, error))
    }

    /// Spares reading every weight to see that it is a number: for files of which [`MapGuard`]'s
    /// identity says that they are the ones whose weights were all read before.
    pub fn assume_finite(&mut self) {
        match self {
            Self::Gguf(gguf) => gguf.assume_finite(),
            Self::Hf(hf) => hf.assume_finite(),
            Self::Oga(oga) => oga.model.finite = true,
        }
    }

    /// Tokenizer, chat template and generation defaults of a folder; GGUF files have theirs in
    /// their metadata.
    #[must_use]
    pub fn sidecars(&self) -> Option<&Sidecars> {
        match self {
            Self::Gguf(_) => None,
            Self::Hf(hf) => Some(hf.sidecars()),
            Self::Oga(oga) => Some(&oga.sidecars),
        }
    }

    /// Tells whether the files stayed as they were.
    #[must_use]
    pub fn guard(&self) -> &MapGuard {
        match self {
            Self::Gguf(gguf) => gguf.guard(),
            Self::Hf(hf) => hf.guard(),
            Self::Oga(oga) => oga.guard(),
        }
    }
}

/// Reads a weight to see that it is a number, and leaves none of it in memory: whoever runs it will
/// read it again, piece by piece.
///
/// # Errors
/// [`WeightError::NotFinite`].
pub fn check_finite(weight: &Weight) -> std::result::Result<(), WeightError> {
    let checked = weight.check_finite();
    if weight.rows() > 1 {
        weight.release_rows(0..weight.rows());
    }
    checked
}

fn guesses(mut files: Vec<String>, limits: &Limits) -> Result<Vec<Guess>> {
    files.sort_unstable();
    let has = |name: &str| files.iter().any(|file| file == name);
    let mut guesses = Vec::new();
    if has(GENAI_CONFIG) {
        guesses.push(Guess::Oga);
    }
    if has(CONFIG) && (has(INDEX) || files.iter().any(|file| file.ends_with(".safetensors"))) {
        guesses.push(Guess::Hf);
    }
    for file in files.iter().filter(|file| file.ends_with(".gguf")) {
        let first = split_set(file, limits)?.and_then(|set| set.into_iter().next());
        let guess = Guess::Gguf(first.unwrap_or_else(|| file.clone()));
        if !guesses.contains(&guess) {
            guesses.push(guess);
        }
    }
    Ok(guesses)
}
