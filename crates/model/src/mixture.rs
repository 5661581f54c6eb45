//! How the matrices of a model with random weights are stored: the file formats that people run,
//! some of which have another form for every matrix.

use crate::config::Config;
use std::fmt;
use std::str::FromStr;
use tangor_tensor::Layout;
use tangor_tensor::quant::{BlockFormat, Q4K, Q5_0, Q5K, Q6K, Q8_0};
use tangor_tensor::{DType, Offset};

/// What a whole model is stored as.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mixture {
    /// GGUF's `Q4_0` in every matrix.
    #[default]
    Q4_0,
    /// llama.cpp's `Q4_K_M`: `Q4_K`, and `Q6_K` for the head and half of the v and down matrices.
    Q4KM,
    /// ONNX Runtime's: unsigned 4 bits with an integer zero point and an f16 scale per group.
    Int4 {
        /// Weights that share a scale: 32, 64 or 128.
        group: usize,
    },
}

/// How one matrix is stored.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Form {
    /// As canonical arrays; zero points are the middle code.
    Layout(Layout),
    /// 4-bit codes in groups of so many, with a zero point each.
    ZeroPoints(usize),
    /// As blocks of a GGUF file.
    Blocks(&'static dyn BlockFormat),
}

impl Mixture {
    /// Every mixture, in the order of help texts.
    pub const ALL: [Self; 5] = [
        Self::Q4_0,
        Self::Q4KM,
        Self::Int4 { group: 32 },
        Self::Int4 { group: 64 },
        Self::Int4 { group: 128 },
    ];

    /// Its name on the command line, as `int4-g128`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Q4_0 => "q4_0",
            Self::Q4KM => "q4_k_m",
            Self::Int4 { group: 32 } => "int4-g32",
            Self::Int4 { group: 64 } => "int4-g64",
            Self::Int4 { .. } => "int4-g128",
        }
    }

    /// The form of the matrix `name` of `cols` columns.
    pub(crate) fn form(self, config: &Config, name: &str, cols: usize) -> Form {
        match self {
            Self::Q4_0 => Form::Layout(Layout::Quant { bits: 4, group: 32, offset: Offset::Zero }),
            Self::Q4KM => q4_k_m(config, name, cols),
            Self::Int4 { group } => Form::ZeroPoints(group),
        }
    }
}

impl fmt::Display for Mixture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Mixture {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let known = || Self::ALL.map(Self::name).join(", ");
        let found = Self::ALL.into_iter().find(|mixture| mixture.name() == name);
        found.ok_or_else(|| format!("one of {} is expected", known()))
    }
}

/// llama.cpp's choice (`llama_tensor_get_type` in `llama-quant.cpp`).
fn q4_k_m(config: &Config, name: &str, cols: usize) -> Form {
    let layers = config.hyper.layers;
    let layer = name.strip_prefix("model.layers.").and_then(|rest| rest.split('.').next());
    let layer: usize = layer.and_then(|layer| layer.parse().ok()).unwrap_or(0);
    let eighth = layers / 8;
    let more = layer < eighth
        || layer >= 7 * layers / 8
        || layer.checked_sub(eighth).is_some_and(|rest| rest % 3 == 2);
    let is = |part: &str| name.split('.').any(|word| word == part);
    let head = is("lm_head") || (config.tied && is("embed_tokens"));
    let wanted: (&dyn BlockFormat, &dyn BlockFormat) =
        if head || (more && (is("v_proj") || is("down_proj"))) {
            (&Q6K, &Q8_0)
        } else if is("qkv_proj") {
            (&Q5K, &Q5_0)
        } else {
            (&Q4K, &Q5_0)
        };
    // Rows that do not divide into blocks of 256 are stored in shorter ones.
    let (long, short) = wanted;
    match (cols.is_multiple_of(long.block_len()), cols.is_multiple_of(short.block_len())) {
        (true, _) => Form::Blocks(long),
        (false, true) => Form::Blocks(short),
        (false, false) => Form::Layout(Layout::Dense(DType::F16)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shapes;

    #[test]
    fn names_are_read_back() {
        for mixture in Mixture::ALL {
            assert_eq!(mixture.name().parse(), Ok(mixture));
        }
        let error = Mixture::from_str("q9").unwrap_err();
        assert!(error.contains("q4_k_m, int4-g32"), "{error}");
    }

    /// The formats of Llama-3.2-1B in llama.cpp's own `Q4_K_M`.
    #[test]
    fn q4_k_m_is_the_mixture_that_files_have() {
        let config = shapes::config("llama-3.2-1b").unwrap();
        let format = |name: &str, cols: usize| match q4_k_m(&config, name, cols) {
            Form::Blocks(format) => format.name(),
            other => panic!("{other:?}"),
        };
        assert_eq!(format("model.embed_tokens.weight", 2048), "Q6_K");
        let six: Vec<usize> = (0..16)
            .filter(|layer| {
                format(&format!("model.layers.{layer}.mlp.down_proj.weight"), 8192) == "Q6_K"
            })
            .collect();
        assert_eq!(six, [0, 1, 4, 7, 10, 13, 14, 15]);
        for layer in 0..16 {
            let module = format!("model.layers.{layer}.self_attn");
            let v = format(&format!("{module}.v_proj.weight"), 2048);
            assert_eq!(v == "Q6_K", six.contains(&layer));
            assert_eq!(format(&format!("{module}.q_proj.weight"), 2048), "Q4_K");
        }
        assert_eq!(format("model.layers.0.mlp.up_proj.weight", 576), "Q5_0");
        assert_eq!(format("model.layers.0.self_attn.v_proj.weight", 576), "Q8_0");
    }
}
