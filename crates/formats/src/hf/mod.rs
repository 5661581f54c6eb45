//! Hugging Face folders: `config.json`, safetensors and what stands beside them.

mod config;
mod packed;
mod quantization;

pub use self::config::{HfConfig, RopeScaling};
pub use self::quantization::{Quantization, Scheme};

use crate::checkpoint::check_finite;
use crate::safetensors::{ArrayInfo, ElementType, SafeTensors};
use crate::{FormatError, Limits, Result, Sidecars, Source, json};
use tangor_tensor::{DType, MapGuard, Weight};

/// The model's configuration.
pub(crate) const CONFIG: &str = "config.json";

/// A checked Hugging Face model.
#[derive(Debug)]
pub struct HfCheckpoint {
    config: HfConfig,
    arrays: SafeTensors,
    sidecars: Sidecars,
    quantization: Option<Quantization>,
    /// Whether every number is known to be finite.
    finite: bool,
}

impl HfCheckpoint {
    /// Reads the folder.
    ///
    /// # Errors
    /// If files are missing, damaged or over a limit, the configuration contradicts itself, or the
    /// weights are quantised in a way that is not known.
    pub fn open(source: &dyn Source, limits: &Limits) -> Result<Self> {
        let bytes = source
            .read(CONFIG, limits.json_bytes)?
            .ok_or_else(|| FormatError::missing(source.name(), format!("has no {CONFIG}")))?;
        let raw = json::parse(CONFIG, &bytes, limits)?;
        let quantization = Quantization::from_config(&raw)?;
        let config = HfConfig::from_json(raw, limits)?;
        let arrays = SafeTensors::open(source, limits)?;
        let sidecars = Sidecars::read(source, limits)?;
        let this = Self { config, arrays, sidecars, quantization, finite: false };
        this.check_vocab()?;
        Ok(this)
    }

    /// What `config.json` says.
    #[must_use]
    pub fn config(&self) -> &HfConfig {
        &self.config
    }

    /// Tokenizer, chat template and generation defaults.
    #[must_use]
    pub fn sidecars(&self) -> &Sidecars {
        &self.sidecars
    }

    /// How the linears are quantised, if they are.
    #[must_use]
    pub fn quantization(&self) -> Option<&Quantization> {
        self.quantization.as_ref()
    }

    /// The arrays as stored: a quantised weight is several of them.
    #[must_use]
    pub fn arrays(&self) -> &SafeTensors {
        &self.arrays
    }

    /// Names of the weights, as a model that is not quantised has them.
    pub fn tensor_names(&self) -> impl Iterator<Item = String> {
        self.arrays.arrays().filter_map(|array| {
            let name = array.name();
            match &self.quantization {
                None => Some(name.to_owned()),
                Some(quantization) => quantization.logical_name(&self.arrays, name),
            }
        })
    }

    /// Whether there is a weight of that name, quantised or not.
    #[must_use]
    pub fn has(&self, name: &str) -> bool {
        let packed = |q: &Quantization| q.codes_of(&self.arrays, name).is_some();
        self.arrays.get(name).is_some() || self.quantization.as_ref().is_some_and(packed)
    }

    /// A weight, `(outputs, inputs)`; vectors are one row, and dimensions before the last count as
    /// rows. Plain elements share the file's memory; quantised ones are rearranged, without loss,
    /// into [`Weight::grouped`].
    ///
    /// # Errors
    /// If there is no such weight, its parts do not fit together, or its scales or elements are not
    /// finite.
    pub fn tensor(&self, name: &str) -> Result<Weight> {
        let subject = || format!("{}: tensor {name:?}", self.arrays.name());
        let codes =
            self.quantization.as_ref().and_then(|q| Some((q, q.codes_of(&self.arrays, name)?)));
        let weight = match (codes, self.arrays.get(name)) {
            (Some((quantization, codes)), _) => {
                quantization.weight(&self.arrays, name, codes).map_err(|e| e.within(subject()))?
            }
            (None, Some(array)) => self.dense(array)?,
            (None, None) => {
                let message = format!("has no tensor {name:?}");
                return Err(FormatError::missing(self.arrays.name(), message));
            }
        };
        if !self.finite {
            check_finite(&weight).map_err(|error| FormatError::weight(subject(), error))?;
        }
        Ok(weight)
    }

    pub(crate) fn assume_finite(&mut self) {
        self.finite = true;
    }

    fn dense(&self, array: &ArrayInfo) -> Result<Weight> {
        let subject = || format!("{}: tensor {:?}", self.arrays.name(), array.name());
        let dtype = float_type(array.element()).ok_or_else(|| {
            let message = format!("is of type {:?}, which is not supported", array.element());
            FormatError::unsupported(subject(), message)
        })?;
        let (cols, rows) = match array.shape() {
            [] => (1, Some(1)),
            [rows @ .., cols] => {
                (*cols, rows.iter().try_fold(1usize, |product, &dim| product.checked_mul(dim)))
            }
        };
        let rows = rows.ok_or_else(|| FormatError::malformed(subject(), "has too many rows"))?;
        Weight::dense(dtype, rows, cols, self.arrays.bytes(array))
            .map_err(|error| FormatError::weight(subject(), error))
    }

    /// Tells whether the files stayed as they were.
    #[must_use]
    pub fn guard(&self) -> &MapGuard {
        self.arrays.guard()
    }

    fn check_vocab(&self) -> Result<()> {
        let shape = self.arrays.get("model.embed_tokens.weight").map(ArrayInfo::shape);
        if let Some([rows, _]) = shape
            && *rows != self.config.vocab_size
        {
            let vocab = self.config.vocab_size;
            let message = format!("says {vocab} tokens, but there are embeddings for {rows}");
            return Err(FormatError::malformed(CONFIG, message));
        }
        Ok(())
    }
}

fn float_type(element: ElementType) -> Option<DType> {
    match element {
        ElementType::F32 => Some(DType::F32),
        ElementType::F16 => Some(DType::F16),
        ElementType::BF16 => Some(DType::Bf16),
        _ => None,
    }
}
