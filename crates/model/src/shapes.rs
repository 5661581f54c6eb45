//! Published models by their shapes alone, with random weights: for measuring speed, which does not
//! depend on what the weights say, and for planning without a download.
//!
//! The shapes are the models' own `config.json`, in `configs/`.

use crate::build::Tensors;
use crate::config::Config;
use crate::error::ImportError;
use crate::ir::Graph;
use crate::mixture::{Form, Mixture};
use crate::{arch, pass};
use half::{bf16, f16};
use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use tangor_formats::Limits;
use tangor_formats::hf::HfConfig;
use tangor_tensor::quant::BlockFormat;
use tangor_tensor::{Bytes, DType, Layout, Offset, Scales, Weight, WeightError, Zeros};

macro_rules! published {
    ($($name:literal),* $(,)?) => {
        &[$(($name, include_str!(concat!("../configs/", $name, ".json")))),*]
    };
}

/// Names and `config.json`s.
static PUBLISHED: &[(&str, &str)] = published![
    "deepseek-r1-distill-llama-8b",
    "deepseek-r1-distill-qwen-1.5b",
    "deepseek-r1-distill-qwen-7b",
    "llama-2-7b",
    "llama-2-7b-chat",
    "llama-3-8b",
    "llama-3.1-8b",
    "llama-3.2-1b",
    "llama-3.2-3b",
    "mistral-7b",
    "phi-3-mini",
    "phi-3.5-mini",
    "qwen1.5-7b",
    "smollm2-135m",
];

/// The names that [`config()`] knows, in alphabetical order.
pub fn names() -> impl Iterator<Item = &'static str> {
    PUBLISHED.iter().map(|(name, _)| *name)
}

/// The configuration of a published model.
///
/// # Errors
/// [`ImportError::UnknownShape`], with the names that are known.
pub fn config(name: &str) -> Result<Config, ImportError> {
    let published = PUBLISHED.iter().find(|(known, _)| *known == name);
    let (_, json) = published.ok_or_else(|| ImportError::UnknownShape {
        name: name.to_owned(),
        known: names().collect::<Vec<_>>().join(", "),
    })?;
    let limits = Limits::default();
    let json = tangor_formats::json::parse(name, json.as_bytes(), &limits)?;
    Config::from_hf(&HfConfig::from_json(json, &limits)?)
}

/// A graph of a configuration whose matrices, embedding and head included, are random codes in
/// `layout`, and whose vectors are `f32`; the values are of a size that keeps activations near one.
///
/// Large matrices repeat their first rows, and all share one run of codes, so that a graph of
/// billions of weights takes little memory. Speed is only measured on a device that copies weights
/// into a layout of its own: one that reads them in place would read its cache.
///
/// # Errors
/// If `layout` is not 4 or 8 bits in even groups, or the configuration's architecture is unknown.
pub fn random_graph(config: &Config, layout: Layout, seed: u64) -> Result<Graph, ImportError> {
    random(config, &format!("{layout:?}"), &|_, _| Form::Layout(layout), seed)
}

/// The same with the matrices stored as a file format has them, which may differ from one another.
///
/// # Errors
/// If the configuration's architecture is unknown.
pub fn random_mixture(config: &Config, mixture: Mixture, seed: u64) -> Result<Graph, ImportError> {
    random(config, &format!("{mixture:?}"), &|name, cols| mixture.form(config, name, cols), seed)
}

fn random(
    config: &Config,
    weights: &str,
    form: FormOf<'_>,
    seed: u64,
) -> Result<Graph, ImportError> {
    let random = Random {
        form,
        state: Cell::new(seed),
        codes: RefCell::default(),
        blocks: RefCell::default(),
    };
    let mut graph = arch::graph(config, &random)?;
    graph.identity = Some(format!("random {VERSION}, seed {seed}, {weights}, {config:?}"));
    Ok(pass::run_all(graph)?)
}

/// The form of a matrix by its name and columns.
type FormOf<'a> = &'a dyn Fn(&str, usize) -> Form;

/// Makes up whatever weight is asked for.
struct Random<'a> {
    form: FormOf<'a>,
    /// Of the generator.
    state: Cell<u64>,
    /// The longest run of codes so far.
    codes: RefCell<Bytes>,
    /// The longest run of blocks so far, by their format and the columns that they are for.
    blocks: RefCell<HashMap<(&'static str, usize), Bytes>>,
}

/// Raised whenever the same seed makes other weights.
const VERSION: u32 = 1;

/// Bytes of the random pattern that long arrays repeat.
const PATTERN: usize = 1 << 16;

/// Elements from which on a matrix repeats its first rows.
const LARGE: usize = 1 << 18;

impl Tensors for Random<'_> {
    fn weight(&self, name: &str, rows: usize, cols: usize) -> Result<Weight, ImportError> {
        let made = match rows {
            1 => self.vector(name, cols),
            _ => self.matrix((self.form)(name, cols), rows, cols),
        };
        made.map_err(|source| ImportError::Weight { name: name.to_owned(), source })
    }
}

impl Random<'_> {
    /// Gains near one, biases near zero.
    fn vector(&self, name: &str, cols: usize) -> Result<Weight, WeightError> {
        let middle = if name.ends_with("bias") { 0.0 } else { 1.0 };
        let values: Vec<f32> = (0..cols).map(|_| middle + 0.1 * self.unit()).collect();
        Weight::vector(&values)
    }

    fn matrix(&self, form: Form, rows: usize, cols: usize) -> Result<Weight, WeightError> {
        let first = rows.min((LARGE / cols.max(1)).max(1));
        let made = match form {
            Form::Layout(Layout::Dense(dtype)) => self.dense(dtype, first, cols)?,
            Form::Layout(Layout::Quant { bits, group, offset }) => {
                let groups = first.saturating_mul(cols.div_ceil(group.max(1)));
                let zeros = self.zeros(bits, offset, groups);
                self.quantised((bits, group), first, cols, zeros)?
            }
            Form::ZeroPoints(group) => {
                let bytes = first.saturating_mul(cols.div_ceil(group).div_ceil(2));
                let zeros = Zeros::Packed(self.zero_points(bytes));
                self.quantised((4, group), first, cols, zeros)?
            }
            Form::Blocks(format) => self.blocks(format, first, cols)?,
        };
        if first == rows {
            return Ok(made);
        }
        let repeated = Weight::stack(&vec![&made; rows.div_ceil(first)])?;
        repeated.slice_rows(0..rows)
    }

    fn dense(&self, dtype: DType, rows: usize, cols: usize) -> Result<Weight, WeightError> {
        let bytes = self.floats(dtype, spread(cols), rows.saturating_mul(cols), true);
        Weight::dense(dtype, rows, cols, bytes)
    }

    fn quantised(
        &self,
        (bits, group): (u8, usize),
        rows: usize,
        cols: usize,
        zeros: Zeros,
    ) -> Result<Weight, WeightError> {
        if bits != 4 && bits != 8 {
            return Err(WeightError::Bits(bits));
        }
        if group == 0 || !group.is_multiple_of(2) {
            return Err(WeightError::Ragged { what: "groups", cols, unit: group });
        }
        let groups = rows.saturating_mul(cols.div_ceil(group));
        let codes = self.codes(groups.saturating_mul(group * usize::from(bits) / 8));
        // Uniform codes deviate from their middle by 0.29 of their range.
        let scale = spread(cols) / if bits == 4 { 4.6 } else { 74.0 };
        let scales =
            Scales { dtype: DType::F16, bytes: self.floats(DType::F16, scale, groups, false) };
        Weight::grouped((bits, group), (rows, cols), codes, scales, zeros)
    }

    fn zeros(&self, bits: u8, offset: Offset, groups: usize) -> Zeros {
        let middle = if bits == 4 { 7.5 } else { 127.5 };
        match offset {
            Offset::Zero => Zeros::Middle,
            Offset::Min => Zeros::Float(DType::F16, self.floats(DType::F16, middle, groups, false)),
        }
    }

    /// Pairs of 4-bit zero points near the middle: 7 or 8.
    fn zero_points(&self, bytes: usize) -> Bytes {
        let pair = |random: u8| 0x77 + (random & 0x11);
        let pattern: Vec<u8> = (0..(PATTERN / 8).min(bytes))
            .flat_map(|_| self.next().to_le_bytes().map(pair))
            .collect();
        repeat(&pattern, bytes)
    }

    /// Blocks of a format, packed from random weights.
    fn blocks(
        &self,
        format: &'static dyn BlockFormat,
        rows: usize,
        cols: usize,
    ) -> Result<Weight, WeightError> {
        let block_bytes = format.block_bytes();
        let len = rows.saturating_mul(cols / format.block_len()).saturating_mul(block_bytes);
        let mut runs = self.blocks.borrow_mut();
        let run = runs.entry((format.name(), cols)).or_default();
        if run.len() < len {
            let mut pattern = vec![0; PATTERN / block_bytes * block_bytes];
            let mut weights = vec![0.0; format.block_len()];
            for block in pattern.chunks_exact_mut(block_bytes) {
                weights.fill_with(|| 1.7 * self.unit() * spread(cols));
                format.pack(&weights, block);
            }
            *run = repeat(&pattern, len);
        }
        Weight::blocks(format, rows, cols, run.slice(..len))
    }

    /// A run of `len` random bytes, shared with the other matrices.
    fn codes(&self, len: usize) -> Bytes {
        if self.codes.borrow().len() < len {
            let pattern: Vec<u8> =
                (0..PATTERN / 8).flat_map(|_| self.next().to_le_bytes()).collect();
            self.codes.replace(repeat(&pattern, len));
        }
        self.codes.borrow().slice(..len)
    }

    /// `len` floats of magnitude `size`, within a tenth of it or, if `signed`, of either sign.
    fn floats(&self, dtype: DType, size: f32, len: usize, signed: bool) -> Bytes {
        let count = (PATTERN / dtype.size()).min(len);
        let mut pattern = Vec::with_capacity(count * dtype.size());
        for _ in 0..count {
            let unit = self.unit();
            let value = if signed { 1.7 * unit * size } else { (1.0 + 0.1 * unit) * size };
            match dtype {
                DType::F32 => pattern.extend(value.to_le_bytes()),
                DType::F16 => pattern.extend(f16::from_f32(value).to_le_bytes()),
                DType::Bf16 => pattern.extend(bf16::from_f32(value).to_le_bytes()),
            }
        }
        repeat(&pattern, len.saturating_mul(dtype.size()))
    }

    /// Uniform in -1..1.
    #[allow(clippy::cast_precision_loss)]
    fn unit(&self) -> f32 {
        (self.next() >> 40) as f32 / (1_u64 << 23) as f32 - 1.0
    }

    /// splitmix64 (Steele, Lea and Flood 2014).
    fn next(&self) -> u64 {
        self.state.set(self.state.get().wrapping_add(0x9e37_79b9_7f4a_7c15));
        let z = self.state.get();
        let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

fn repeat(pattern: &[u8], len: usize) -> Bytes {
    let mut bytes = Vec::with_capacity(len);
    while bytes.len() < len {
        bytes.extend_from_slice(&pattern[..pattern.len().min(len - bytes.len())]);
    }
    bytes.into()
}

/// Standard deviation of weights over `cols` inputs that keeps the size of what they are fed.
#[allow(clippy::cast_precision_loss)]
fn spread(cols: usize) -> f32 {
    1.0 / (cols as f32).sqrt()
}
