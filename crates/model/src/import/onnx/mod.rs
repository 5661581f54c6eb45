//! ONNX graphs of decoder-only models, as the model builder of onnxruntime-genai and AMD's hybrid
//! tool chain write them, to the graph of [`crate::ir`].
//!
//! Nodes are read one by one in an order in which they can run. What a node writes is noted as a
//! [`Val`]: an activation, a constant, an integer that follows from the inputs (masks, lengths,
//! positions: the engine knows these itself), or half of something that only becomes an operation
//! with the next node (`Sigmoid`, `RotaryEmbedding`). A node that fits no such reading is refused
//! by its name and operator; nothing is approximated.

mod attention;
mod basic;
mod names;
mod order;
mod parts;
mod ryzenai;
mod weights;

use crate::error::ImportError;
use crate::ir::{
    Activation, Attention, Graph, Hyper, NamedWeight, Op, Rows, ValueId, WeightId, free_name,
};
use crate::rope::{Angles, Rope};
use std::collections::{HashMap, HashSet};
use tangor_formats::genai::GenaiConfig;
use tangor_formats::onnx::{Node, OnnxModel, Tensor};

/// The graph of an OGA folder: `model` as its `config` describes it.
///
/// # Errors
/// [`ImportError::Unsupported`] that names the first node with no counterpart,
/// [`ImportError::Config`] where the configuration contradicts the graph, and whatever is wrong
/// with a weight.
pub fn graph(model: &OnnxModel, config: &GenaiConfig) -> Result<Graph, ImportError> {
    let mut importer = Importer::new(model, config);
    for index in order::order(&model.graph, &config.decoder.logits)? {
        importer.node(&model.graph.nodes[index])?;
    }
    importer.finish()
}

/// Columns `start..start + width` of an activation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Columns {
    of: ValueId,
    start: usize,
    width: usize,
}

/// An integer tensor that the graph computes from its inputs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ints {
    /// The token ids.
    Tokens,
    /// Ones for every token so far.
    Mask,
    /// Its shape.
    MaskShape,
    /// Length of the sequence so far, this run's tokens included.
    Total,
    /// The tokens' positions.
    Positions,
    /// The largest of them.
    LastPosition,
    /// Whether the sequence is longer than this.
    LongerThan(usize),
    /// `rows` if the sequence is longer than `limit`, else 0.
    Offset { limit: usize, rows: usize },
    /// Positions plus such an offset: rows of a cache of two parts.
    OffsetPositions { limit: usize, rows: usize },
    /// Something else that only masks or shapes depend on.
    Other,
}

/// Which rows of the caches of cosines and sines a node takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum RowsOf {
    Positions,
    OffsetPositions { limit: usize, rows: usize },
}

/// What a name of the ONNX graph stands for.
#[derive(Clone, Debug)]
enum Val {
    /// Rows of numbers, one row per token.
    Rows(Columns),
    /// Rows seen as heads of so many elements, on the way to a norm of each head.
    Heads(Columns, usize),
    /// `sigmoid(x)`.
    Sigmoid(Columns),
    /// An activation function that is still to be multiplied.
    Activated(Activation, Columns),
    /// q or k after its rotary embedding.
    Rotated(Columns),
    /// An integer tensor.
    Ints(Ints),
    /// A constant.
    Const(Tensor),
    /// The transpose of a matrix.
    Transposed(Tensor),
    /// A quantised matrix that is to be multiplied from the right.
    Dequantized(WeightId),
    /// A cache of cosines or sines that depends on the length: the second beyond the limit.
    ByLength(Tensor, usize, Tensor),
    /// A graph input that only operations with a cache may read.
    Input,
}

impl Val {
    /// For messages.
    fn kind(&self) -> &'static str {
        match self {
            Self::Rows(_) => "activations",
            Self::Heads(..) => "activations by heads",
            Self::Sigmoid(_) => "an unfinished SiLU",
            Self::Activated(..) => "an unfinished gated activation",
            Self::Rotated(_) => "rotated queries or keys",
            Self::Ints(_) => "integers that depend on the inputs",
            Self::Const(_) => "a constant",
            Self::Transposed(_) => "a transposed constant",
            Self::Dequantized(_) => "a dequantised weight",
            Self::ByLength(..) => "a cache that depends on the length",
            Self::Input => "a graph input",
        }
    }
}

struct Importer<'a> {
    model: &'a OnnxModel,
    config: &'a GenaiConfig,
    graph: Graph,
    values: HashMap<&'a str, Val>,
    /// Index of the node that writes each value of `graph`.
    writers: Vec<usize>,
    /// How often each name is read.
    reads: HashMap<&'a str, usize>,
    /// The name under which each value was written first; nodes that change nothing give it others.
    first_names: HashMap<ValueId, &'a str>,
    /// Names of the graph's outputs.
    outputs: HashSet<&'a str>,
    /// Bytes that weights in another layout than the file's may still take.
    allowance: usize,
    weights: HashMap<weights::Key, WeightId>,
    /// Linears that stand for a part of a fused one's output.
    parts: HashMap<Columns, ValueId>,
    taken: HashSet<String>,
    /// The rotary embedding, and the caches and rows that it was read from.
    rope: Option<(attention::RopeKey, Rope)>,
    attentions: Vec<Attention>,
    ffn: usize,
}

impl<'a> Importer<'a> {
    fn new(model: &'a OnnxModel, config: &'a GenaiConfig) -> Self {
        let hyper = Hyper {
            arch: config.model_type.clone(),
            layers: 0,
            hidden: 0,
            ffn: 0,
            heads: 0,
            kv_heads: 0,
            head_dim: 0,
            vocab: 0,
            context: config.context_length,
        };
        let mut values = HashMap::new();
        let names = &config.decoder.inputs;
        for input in &model.graph.inputs {
            let val = match input.as_str() {
                name if name == names.input_ids => Val::Ints(Ints::Tokens),
                name if name == names.attention_mask => Val::Ints(Ints::Mask),
                name if name == names.position_ids => Val::Ints(Ints::Positions),
                _ => Val::Input,
            };
            values.insert(input.as_str(), val);
        }
        for tensor in &model.graph.initializers {
            values.insert(tensor.name.as_str(), Val::Const(tensor.clone()));
        }
        let mut reads = HashMap::new();
        let inputs = model.graph.nodes.iter().flat_map(|node| &node.inputs);
        for name in inputs.chain(&model.graph.outputs) {
            *reads.entry(name.as_str()).or_insert(0) += 1;
        }
        Self {
            model,
            config,
            graph: Graph::new(hyper, Rope::none()),
            values,
            writers: Vec::new(),
            reads,
            first_names: HashMap::new(),
            outputs: model.graph.outputs.iter().map(String::as_str).collect(),
            allowance: usize::try_from(model.bytes).unwrap_or(usize::MAX).saturating_mul(2),
            weights: HashMap::new(),
            parts: HashMap::new(),
            taken: HashSet::new(),
            rope: None,
            attentions: Vec::new(),
            ffn: 0,
        }
    }

    fn node(&mut self, node: &'a Node) -> Result<(), ImportError> {
        match (node.domain.as_str(), node.op.as_str()) {
            (_, "SimplifiedLayerNormalization" | "SLRN") => self.rms_norm(node),
            ("com.microsoft" | "com.ryzenai", "SkipSimplifiedLayerNormalization") => {
                self.skip_rms_norm(node)
            }
            ("com.microsoft" | "com.ryzenai", "MatMulNBits") => self.matmul_nbits(node),
            ("com.microsoft" | "com.ryzenai", "RotaryEmbedding") => self.rotary_embedding(node),
            ("com.microsoft", "GroupQueryAttention") => self.group_query_attention(node),
            ("com.microsoft", "GatherBlockQuantized") => self.gather_block_quantized(node),
            ("com.microsoft", "QuickGelu" | "Gelu" | "FastGelu") => self.activation(node),
            ("com.ryzenai", "SSMLP") => self.ssmlp(node),
            ("com.ryzenai", "GQO") => self.gqo(node),
            ("com.ryzenai", "Cast" | "Gather" | "MatMul") | ("", _) => self.basic(node),
            _ => Err(refuse(node, "no device of this program has such an operator")),
        }
    }

    /// What input `index` of a node stands for; `None` if it is left out.
    fn optional(&self, node: &Node, index: usize) -> Result<Option<&Val>, ImportError> {
        let Some(name) = node.input(index) else { return Ok(None) };
        let val = self.values.get(name);
        val.map(Some).ok_or_else(|| refuse(node, format!("nothing writes its input {name:?}")))
    }

    fn val(&self, node: &Node, index: usize) -> Result<&Val, ImportError> {
        let val = self.optional(node, index)?;
        val.ok_or_else(|| refuse(node, format!("its input {index} is left out")))
    }

    /// Refuses a node with an optional input that would change its meaning.
    fn left_out(&self, node: &Node, inputs: &[(usize, &str)]) -> Result<(), ImportError> {
        match inputs.iter().find(|(index, _)| node.input(*index).is_some()) {
            Some((_, what)) => Err(refuse(node, format!("its {what} is not supported"))),
            None => Ok(()),
        }
    }

    /// The activation that input `index` is, whole.
    fn rows(&self, node: &Node, index: usize) -> Result<ValueId, ImportError> {
        match self.val(node, index)? {
            Val::Rows(columns) if self.is_whole(*columns) => Ok(columns.of),
            Val::Rows(_) => Err(refuse(node, "it reads a part of an activation")),
            other => Err(refuse(node, format!("its input {index} is {}", other.kind()))),
        }
    }

    fn constant(&self, node: &Node, index: usize) -> Result<&Tensor, ImportError> {
        match self.val(node, index)? {
            Val::Const(tensor) => Ok(tensor),
            other => {
                let why = format!("its input {index} must be a constant and is {}", other.kind());
                Err(refuse(node, why))
            }
        }
    }

    fn optional_constant(&self, node: &Node, index: usize) -> Result<Option<&Tensor>, ImportError> {
        if node.input(index).is_none() { Ok(None) } else { self.constant(node, index).map(Some) }
    }

    fn width(&self, value: ValueId) -> usize {
        self.graph.value(value).width
    }

    fn is_whole(&self, columns: Columns) -> bool {
        columns.width == self.width(columns.of)
    }

    fn whole(&self, of: ValueId) -> Columns {
        Columns { of, start: 0, width: self.width(of) }
    }

    /// Notes what output `index` of a node stands for.
    fn set(&mut self, node: &'a Node, index: usize, val: Val) {
        if let Some(name) = node.output(index) {
            self.values.insert(name, val);
        }
    }

    fn set_rows(&mut self, node: &'a Node, index: usize, value: ValueId) {
        let columns = self.whole(value);
        if let Some(name) = node.output(index) {
            self.first_names.entry(value).or_insert(name);
        }
        self.set(node, index, Val::Rows(columns));
    }

    /// Appends an operation under `name`, or a free one like it.
    fn push(
        &mut self,
        name: &str,
        op: Op,
        inputs: &[ValueId],
    ) -> Result<Vec<ValueId>, ImportError> {
        let name = free_name(&mut self.taken, name);
        let outputs = self.graph.push(name, op, inputs)?;
        self.writers.resize(self.graph.values.len(), self.graph.nodes.len() - 1);
        Ok(outputs)
    }

    fn push1(&mut self, name: &str, op: Op, inputs: &[ValueId]) -> Result<ValueId, ImportError> {
        Ok(self.push(name, op, inputs)?[0])
    }

    /// The node name for the module whose weight this is.
    fn module(&self, weight: WeightId) -> String {
        let name = &self.graph.weights[weight.0].name;
        let name = name.strip_suffix(".weight").unwrap_or(name);
        name.strip_prefix("model.").unwrap_or(name).to_owned()
    }

    /// Completes the graph: selects the rows whose logits are wanted, and compares the graph's
    /// dimensions with the configuration's.
    fn finish(mut self) -> Result<Graph, ImportError> {
        let name = self.config.decoder.logits.as_str();
        let logits = match self.values.get(name) {
            Some(Val::Rows(columns)) if self.is_whole(*columns) => columns.of,
            _ => return Err(self.no_logits()),
        };
        self.graph.logits = self.select_rows(logits)?;
        self.drop_unread();
        self.hyper()?;
        self.graph.rope = self.rope.map_or_else(Rope::none, |(_, rope)| rope);
        Ok(self.graph)
    }

    fn no_logits(&self) -> ImportError {
        ImportError::Unsupported {
            what: format!("{}: the output {:?}", self.model.file, self.config.decoder.logits),
            why: "it must be the output of the language model's head".into(),
        }
    }

    /// Puts [`Op::SelectRows`] before the output head, which is the last node, and leaves out
    /// outputs of the head that are no tokens.
    fn select_rows(&mut self, logits: ValueId) -> Result<ValueId, ImportError> {
        let last = self.writers[logits.0];
        let head = &self.graph.nodes[last];
        let (Op::Linear { weight, bias }, 1) = (&head.op, self.graph.nodes.len() - last) else {
            return Err(self.no_logits());
        };
        let (weight, bias, mut input) = (*weight, *bias, head.inputs[0]);
        self.graph.nodes.pop();
        self.graph.values.truncate(logits.0);
        if self.graph.value(input).rows == Rows::Tokens {
            input = self.graph.push1("select_rows", Op::SelectRows, &[input])?;
        }
        let (weight, bias) = self.trim_head(weight, bias)?;
        Ok(self.graph.push1("lm_head", Op::Linear { weight, bias }, &[input])?)
    }

    /// A head padded to a round number of rows loses those that the configuration does not count.
    fn trim_head(
        &mut self,
        weight: WeightId,
        bias: Option<WeightId>,
    ) -> Result<(WeightId, Option<WeightId>), ImportError> {
        let (vocab, whole) = (self.config.vocab_size, self.graph.weight(weight));
        if whole.rows() <= vocab || bias.is_some() {
            return Ok((weight, bias));
        }
        let trimmed = whole.slice_rows(0..vocab);
        let name = format!("{}.trimmed", self.graph.weights[weight.0].name);
        let weight =
            trimmed.map_err(|source| ImportError::Weight { name: name.clone(), source })?;
        let name = free_name(&mut self.taken, &name);
        self.graph.weights.push(NamedWeight { name, weight });
        Ok((WeightId(self.graph.weights.len() - 1), None))
    }

    fn hyper(&mut self) -> Result<(), ImportError> {
        let Some(first) = self.attentions.first().cloned() else {
            return Err(ImportError::Unsupported {
                what: format!("{}: a graph without attention", self.model.file),
                why: "only decoder-only transformers can be run".into(),
            });
        };
        let embedding = self.graph.nodes.iter().find_map(|node| match node.op {
            Op::Embed { table } => Some(self.graph.weight(table)),
            _ => None,
        });
        let Some((rows, hidden)) = embedding.map(|table| (table.rows(), table.cols())) else {
            return Err(ImportError::Unsupported {
                what: format!("{}: a graph without an embedding", self.model.file),
                why: "it must start from token ids".into(),
            });
        };
        let vocab = self.width(self.graph.logits);
        if rows < vocab {
            let why = format!("is {vocab}, but the embedding has only {rows} rows");
            return Err(ImportError::config("model.vocab_size", why));
        }
        let hyper = &mut self.graph.hyper;
        hyper.layers = self.attentions.len();
        hyper.hidden = hidden;
        hyper.ffn = self.ffn;
        hyper.heads = first.heads;
        hyper.kv_heads = first.kv_heads;
        hyper.head_dim = first.head_dim;
        hyper.vocab = vocab;
        if let Some((_, rope)) = &self.rope {
            hyper.context = hyper.context.min(positions(rope));
        }
        self.check_config()
    }

    fn check_config(&self) -> Result<(), ImportError> {
        let (hyper, decoder) = (&self.graph.hyper, &self.config.decoder);
        let checks = [
            ("model.vocab_size", Some(self.config.vocab_size), hyper.vocab),
            ("model.decoder.num_hidden_layers", decoder.num_hidden_layers, hyper.layers),
            ("model.decoder.hidden_size", decoder.hidden_size, hyper.hidden),
            ("model.decoder.num_attention_heads", decoder.num_attention_heads, hyper.heads),
            ("model.decoder.num_key_value_heads", decoder.num_key_value_heads, hyper.kv_heads),
            ("model.decoder.head_size", decoder.head_size, hyper.head_dim),
        ];
        for (key, says, has) in checks {
            if let Some(says) = says.filter(|&says| says != has) {
                return Err(ImportError::config(
                    key,
                    format!("is {says}, but the graph has {has}"),
                ));
            }
        }
        Ok(())
    }
}

/// Positions that a rotary embedding has angles for.
fn positions(rope: &Rope) -> usize {
    let rows = |angles: &Angles| match angles {
        Angles::Table { cos, .. } => cos.len() / (rope.dim / 2).max(1),
        Angles::Frequencies { .. } => usize::MAX,
    };
    match &rope.long {
        Some((limit, _)) if rows(&rope.short) < *limit => rows(&rope.short),
        Some((_, long)) => rows(long),
        None => rows(&rope.short),
    }
}

/// The error for a node that has no counterpart.
fn refuse(node: &Node, why: impl Into<String>) -> ImportError {
    let domain = if node.domain.is_empty() { "ai.onnx" } else { &node.domain };
    let (name, op) = (start(node.label(), 120), start(&node.op, 60));
    let what =
        format!("node {name:?} ({} {})", start(domain, 60).escape_debug(), op.escape_debug());
    ImportError::Unsupported { what, why: start(&why.into(), 400).to_owned() }
}

/// At most so many characters of a text from a file.
fn start(text: &str, chars: usize) -> &str {
    text.char_indices().nth(chars).map_or(text, |(end, _)| &text[..end])
}
