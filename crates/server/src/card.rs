//! What a model's files say of its shape, read without loading it: clients choose models by it, and
//! how much they send them.

use serde_json::{Map, Value, json};
use std::collections::{BTreeMap, HashSet};
use tangor_engine::plan::model::formats::onnx::{Element, Node};
use tangor_engine::plan::model::formats::{Checkpoint, Gguf, HfCheckpoint, OgaCheckpoint};
use tangor_engine::plan::model::ir::Hyper;
use tangor_engine::plan::model::{Config, import};

/// A model's shape.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Card {
    /// Its architecture, as `llama`; empty where that is unknown.
    pub(crate) family: String,
    /// Longest sequence that it was made for.
    pub(crate) context: usize,
    /// How most of its weights are stored, as `Q4_0` or `INT4`.
    pub(crate) quantization: String,
    /// Its weights, each counted once.
    parameters: u64,
    /// Names and sizes of its other dimensions; 0 where a file does not tell.
    dimensions: [(&'static str, usize); 6],
}

impl Card {
    /// Reads it; what the files do not say, or say of an architecture that is not known, stays out.
    pub(crate) fn of(checkpoint: &Checkpoint) -> Self {
        match checkpoint {
            Checkpoint::Gguf(gguf) => Self::of_gguf(gguf),
            Checkpoint::Hf(hf) => Self::of_hf(hf),
            Checkpoint::Oga(oga) => Self::of_oga(oga),
        }
    }

    fn of_gguf(gguf: &Gguf) -> Self {
        let kinds = || gguf.tensors().map(|info| (info.encoding().name(), count(info.dims())));
        Self {
            quantization: most(kinds()),
            parameters: kinds().map(|(_, elements)| elements).fold(0, u64::saturating_add),
            ..import::gguf::config(gguf).map_or_else(|_| Self::default(), |c| Self::new(&c.hyper))
        }
    }

    fn of_hf(hf: &HfCheckpoint) -> Self {
        let config = Config::from_hf(hf.config()).ok();
        let shape = config.as_ref().map_or_else(Self::default, |config| Self::new(&config.hyper));
        match (hf.quantization(), config) {
            // Codes are packed into arrays of other shapes.
            (Some(quantization), config) => Self {
                quantization: format!("INT{}", quantization.bits),
                parameters: config.map_or(0, |config| dense(&config)),
                ..shape
            },
            (None, _) => {
                let name = |element| format!("{element:?}");
                let arrays = || hf.arrays().arrays();
                let kinds = || arrays().map(|array| (name(array.element()), count(array.shape())));
                Self {
                    quantization: most(kinds()),
                    parameters: kinds().map(|(_, elements)| elements).fold(0, u64::saturating_add),
                    ..shape
                }
            }
        }
    }

    fn of_oga(oga: &OgaCheckpoint) -> Self {
        let (genai, decoder) = (&oga.genai, &oga.genai.decoder);
        let hyper = Hyper {
            arch: genai.model_type.clone(),
            layers: decoder.num_hidden_layers.unwrap_or(0),
            hidden: decoder.hidden_size.unwrap_or(0),
            ffn: 0,
            heads: decoder.num_attention_heads.unwrap_or(0),
            kv_heads: decoder.num_key_value_heads.unwrap_or(0),
            head_dim: decoder.head_size.unwrap_or(0),
            vocab: genai.vocab_size,
            context: genai.context_length,
        };
        let (parameters, quantization) = of_graph(oga, hyper.vocab as u64 * hyper.hidden as u64);
        Self { parameters, quantization, ..Self::new(&hyper) }
    }

    fn new(hyper: &Hyper) -> Self {
        Self {
            family: hyper.arch.clone(),
            context: hyper.context,
            dimensions: [
                ("block_count", hyper.layers),
                ("embedding_length", hyper.hidden),
                ("feed_forward_length", hyper.ffn),
                ("attention.head_count", hyper.heads),
                ("attention.head_count_kv", hyper.kv_heads),
                ("vocab_size", hyper.vocab),
            ],
            ..Self::default()
        }
    }

    /// How many weights it has, as people say it: `135M`, `1.5B`; empty where that is unknown.
    pub(crate) fn size(&self) -> String {
        let count = self.parameters as f64;
        let (scaled, unit) = match count {
            0.0 => return String::new(),
            _ if count < 1e6 => (count / 1e3, "K"),
            _ if count < 1e9 => (count / 1e6, "M"),
            _ => (count / 1e9, "B"),
        };
        let digits = usize::from(scaled < 99.5);
        format!("{scaled:.digits$}{unit}")
    }

    /// All of it under the names that GGUF has, for a model that now has this context.
    pub(crate) fn metadata(&self, name: &str, context: usize) -> Value {
        let mut all = Map::new();
        all.insert("general.basename".into(), name.into());
        if self.parameters > 0 {
            all.insert("general.parameter_count".into(), self.parameters.into());
        }
        if self.family.is_empty() {
            return all.into();
        }
        all.insert("general.architecture".into(), self.family.clone().into());
        let known = self.dimensions.iter().filter(|(_, size)| *size > 0);
        for (key, size) in known.chain([&("context_length", context)]) {
            all.insert(format!("{}.{key}", self.family), json!(size));
        }
        all.into()
    }
}

fn count(shape: &[usize]) -> u64 {
    shape.iter().fold(1, |all, size| all.saturating_mul(*size as u64))
}

/// The kind that most elements are of.
fn most<K: Into<String>>(kinds: impl Iterator<Item = (K, u64)>) -> String {
    let mut sums: BTreeMap<String, u64> = BTreeMap::new();
    for (kind, elements) in kinds {
        let sum = sums.entry(kind.into()).or_default();
        *sum = sum.saturating_add(elements);
    }
    let most = sums.into_iter().max_by_key(|(_, elements)| *elements);
    most.map(|(kind, _)| kind).unwrap_or_default()
}

/// Weights of a model that has no others than its dimensions say.
fn dense(config: &Config) -> u64 {
    let hyper = &config.hyper;
    let size = |rows: usize, cols: usize| (rows as u64).saturating_mul(cols as u64);
    let width = |heads: usize| heads.saturating_mul(hyper.head_dim);
    let attention = size(hyper.hidden, 2 * width(hyper.heads) + 2 * width(hyper.kv_heads));
    let layer = attention.saturating_add(size(3 * hyper.hidden, hyper.ffn));
    let tables = if config.tied { 1 } else { 2 };
    let layers = layer.saturating_mul(hyper.layers as u64);
    layers.saturating_add(size(hyper.vocab, hyper.hidden).saturating_mul(tables))
}

/// Weights of an ONNX graph, and how most of its matrices are stored; `table` is the size of an
/// embedding that is quantised.
fn of_graph(oga: &OgaCheckpoint, table: u64) -> (u64, String) {
    let graph = &oga.model.graph;
    let matrices = graph.nodes.iter().flat_map(packed);
    // What these read beside their matrices are scales.
    let quantised = |node: &&Node| node.op == TABLE || packed(node).next().is_some();
    let read = graph.nodes.iter().filter(quantised).flat_map(|node| &node.inputs);
    let read: HashSet<&str> = read.map(String::as_str).collect();
    let own = graph.initializers.iter().filter(|tensor| !read.contains(tensor.name.as_str()));
    let floats = own.filter_map(|tensor| match tensor.element {
        Element::Float(dtype) => Some((dtype.name().to_uppercase(), tensor.elements() as u64)),
        _ => None,
    });
    let (matrices, floats): (Vec<_>, Vec<_>) = (matrices.collect(), floats.collect());
    let tables = graph.nodes.iter().any(|node| node.op == TABLE);
    let parameters = matrices.iter().chain(&floats).map(|(_, elements)| *elements);
    let parameters = parameters.chain(tables.then_some(table)).fold(0, u64::saturating_add);
    (parameters, most(if matrices.is_empty() { floats } else { matrices }.into_iter()))
}

/// The operator that looks rows up in packed weights.
const TABLE: &str = "GatherBlockQuantized";

/// The packed matrices of a node, of which `MatMulNBits` has one and AMD's fused operators have
/// several: how they are stored, and their elements.
fn packed(node: &Node) -> impl Iterator<Item = (String, u64)> {
    ["", "o_proj_", "gate_", "up_", "down_"].into_iter().filter_map(|prefix| {
        let int = |name: &str| u64::try_from(node.int(&format!("{prefix}{name}"))?).ok();
        let elements = int("K")?.saturating_mul(int("N")?);
        Some((format!("INT{}", int("bits").unwrap_or(4)), elements))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;
    use tangor_engine::plan::model::formats::Limits;
    use tangor_testkit::tiny;

    #[test]
    fn sizes_are_said_as_people_say_them() {
        for (parameters, said) in
            [(0, ""), (12_345, "12.3K"), (134_515_008, "135M"), (1_543_714_304, "1.5B")]
        {
            assert_eq!(Card { parameters, ..Card::default() }.size(), said);
        }
    }

    #[test]
    fn a_card_says_what_the_graph_has_whatever_the_file() {
        let folder = |name: &str| {
            let fixtures = concat!(env!("CARGO_MANIFEST_DIR"), "/../model/tests/fixtures/oga");
            let source = tangor_store::DirSource::open(&Path::new(fixtures).join(name)).unwrap();
            Checkpoint::open(&source, None, &Limits::default()).unwrap()
        };
        for (checkpoint, quantization) in [
            (tiny::gguf("qwen2"), "BF16"),
            (tiny::hf("qwen2"), "BF16"),
            (folder("llama-cpu"), "INT4"),
            (folder("qwen3-cpu"), "INT4"),
            (folder("ryzenai-hybrid"), "INT4"),
        ] {
            let card = Card::of(&checkpoint);
            let graph = import::import(&checkpoint).unwrap();
            let hyper = &graph.hyper;
            let weights = graph.weights.iter().map(|named| &named.weight);
            let all: usize = weights.map(|weight| weight.rows() * weight.cols()).sum();
            let share = card.parameters as f64 / all as f64;
            assert!((0.9..1.1).contains(&share), "{hyper:?}: {} of {all}", card.parameters);
            assert_eq!((&card.family, card.quantization.as_str()), (&hyper.arch, quantization));
            let metadata = card.metadata("name", card.context);
            for (key, size) in [
                ("context_length", hyper.context),
                ("block_count", hyper.layers),
                ("embedding_length", hyper.hidden),
                ("attention.head_count_kv", hyper.kv_heads),
            ] {
                assert_eq!(metadata[format!("{}.{key}", hyper.arch)], size, "{key}");
            }
        }
    }
}
