//! The graph: coarse operations on activations of shape `(rows, width)`, one row per token.
//!
//! Values are written once and nodes stand in an order in which they can run. The inputs that are
//! not values (token ids, positions, KV pages) come with each run as a batch.

use crate::rope::Rope;
use std::collections::HashSet;
use std::fmt;
use tangor_tensor::Weight;

/// Index of a value in [`Graph::values`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ValueId(pub usize);

/// Index of a weight in [`Graph::weights`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct WeightId(pub usize);

/// Index of a node in [`Graph::nodes`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NodeId(pub usize);

/// An activation: `f32`, `(rows, width)`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Value {
    /// Elements per row.
    pub width: usize,
    /// Which rows of the batch it has.
    pub rows: Rows,
}

/// Which rows of a batch a value has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rows {
    /// One per token.
    Tokens,
    /// One per token whose logits are wanted (after [`Op::SelectRows`]).
    Logits,
}

/// A named weight.
#[derive(Clone, Debug)]
pub struct NamedWeight {
    /// The Hugging Face name, whatever the file calls it.
    pub name: String,
    /// The matrix; vectors are one row.
    pub weight: Weight,
}

/// An operation with its inputs and outputs.
#[derive(Clone, Debug)]
pub struct Node {
    /// Unique, as `layers.3.attention`.
    pub name: String,
    /// What it computes.
    pub op: Op,
    /// Values read, in the order that the operation documents.
    pub inputs: Vec<ValueId>,
    /// Values written, in the order that the operation documents.
    pub outputs: Vec<ValueId>,
}

/// Activation function of a gated MLP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// `x * sigmoid(x)`.
    Silu,
    /// Exact GELU (erf).
    Gelu,
    /// GELU by its tanh approximation.
    GeluTanh,
}

/// Grouped-query causal attention over a paged KV cache.
#[derive(Clone, Debug, PartialEq)]
pub struct Attention {
    /// Index of the layer's KV cache.
    pub layer: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; divides `heads`.
    pub kv_heads: usize,
    /// Elements per head.
    pub head_dim: usize,
    /// Factor on `q k^T`, as a rule `1 / sqrt(head_dim)`.
    pub scale: f32,
    /// A token sees itself and the `window - 1` tokens before it; `None`: all before it.
    pub window: Option<usize>,
    /// `softcap * tanh(score / softcap)`, where the architecture has it.
    pub softcap: Option<f32>,
    /// Whether q and k are rotated here, by [`Graph::rope`], before k is cached.
    pub rotate: bool,
}

/// The operations. `x` is `(rows, width)`; weights are `(outputs, inputs)`.
#[derive(Clone, Debug)]
pub enum Op {
    /// `() -> x`: row `token` of the table, for each token of the batch.
    Embed {
        /// `(vocab, hidden)`.
        table: WeightId,
    },
    /// `x -> y`: `gain * x / sqrt(mean(x^2) + eps)`, over each run of `gain.cols()` elements: the
    /// whole row, or each head of it.
    RmsNorm {
        /// `(1, width)` or `(1, head_dim)`.
        gain: WeightId,
        /// Added to the mean.
        eps: f32,
    },
    /// `(x, delta) -> (sum, y)`: `sum = x + delta`, `y = rms_norm(sum)`.
    AddRmsNorm {
        /// `(1, width)`.
        gain: WeightId,
        /// Added to the mean.
        eps: f32,
    },
    /// `x -> x W^T + bias`.
    Linear {
        /// `(outputs, inputs)`.
        weight: WeightId,
        /// `(1, outputs)`.
        bias: Option<WeightId>,
    },
    /// `qkv -> y` or `(q, k, v) -> y`: rotates q and k, appends k and v to the cache, attends.
    /// `qkv` is `[q | k | v]` along a row, `(heads + 2 kv_heads) * head_dim` wide.
    Attention(Attention),
    /// `gate_up -> y` or `(gate, up) -> y`: `act(gate) * up`; `gate_up` is `[gate | up]` along a
    /// row.
    Gated(Activation),
    /// `(a, b) -> a + b`.
    Add,
    /// `x -> y`: `x * factor`.
    Scale(f32),
    /// `x -> y`: only the rows whose logits are wanted.
    SelectRows,
}

impl Op {
    /// The operation's name in text and JSON.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Embed { .. } => "embed",
            Self::RmsNorm { .. } => "rms_norm",
            Self::AddRmsNorm { .. } => "add_rms_norm",
            Self::Linear { .. } => "linear",
            Self::Attention(_) => "attention",
            Self::Gated(_) => "gated",
            Self::Add => "add",
            Self::Scale(_) => "scale",
            Self::SelectRows => "select_rows",
        }
    }
}

/// What is true of the model as a whole.
#[derive(Clone, Debug, PartialEq)]
pub struct Hyper {
    /// `llama`, `mistral`, `qwen2`, `phi3`.
    pub arch: String,
    /// Layers with a KV cache.
    pub layers: usize,
    /// Width of the residual stream.
    pub hidden: usize,
    /// Width of the gated MLP.
    pub ffn: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads.
    pub kv_heads: usize,
    /// Elements per head.
    pub head_dim: usize,
    /// Rows of the embedding and width of the logits.
    pub vocab: usize,
    /// Longest sequence that the model was made for.
    pub context: usize,
}

/// A model: operations in running order over named weights.
#[derive(Clone, Debug)]
pub struct Graph {
    /// The model's dimensions.
    pub hyper: Hyper,
    /// Rotary embedding of all layers.
    pub rope: Rope,
    /// Names the content of the weights: graphs of one identity have equal bytes behind equal names
    /// and shapes. `None` where nothing is known that would tell.
    pub identity: Option<String>,
    /// Weights by [`WeightId`].
    pub weights: Vec<NamedWeight>,
    /// Values by [`ValueId`].
    pub values: Vec<Value>,
    /// Operations, each after the ones whose values it reads.
    pub nodes: Vec<Node>,
    /// The last value: `(wanted rows, vocab)`.
    pub logits: ValueId,
}

impl Graph {
    /// An empty graph to be filled by [`Graph::push`].
    #[must_use]
    pub fn new(hyper: Hyper, rope: Rope) -> Self {
        Self {
            hyper,
            rope,
            identity: None,
            weights: Vec::new(),
            values: Vec::new(),
            nodes: Vec::new(),
            logits: ValueId(0),
        }
    }

    /// The weight behind an id.
    #[must_use]
    pub fn weight(&self, id: WeightId) -> &Weight {
        &self.weights[id.0].weight
    }

    /// The value behind an id.
    #[must_use]
    pub fn value(&self, id: ValueId) -> &Value {
        &self.values[id.0]
    }

    /// Adds a weight under its Hugging Face name; the same name twice is the same weight.
    pub fn add_weight(&mut self, name: &str, weight: Weight) -> WeightId {
        if let Some(index) = self.weights.iter().position(|w| w.name == name) {
            return WeightId(index);
        }
        self.weights.push(NamedWeight { name: name.to_owned(), weight });
        WeightId(self.weights.len() - 1)
    }

    /// Appends a node; its outputs' shapes follow from its inputs.
    ///
    /// # Errors
    /// [`ShapeError`] if the inputs do not fit the operation or its weights.
    pub fn push(
        &mut self,
        name: impl Into<String>,
        op: Op,
        inputs: &[ValueId],
    ) -> Result<Vec<ValueId>, ShapeError> {
        let name = name.into();
        let outputs = self.output_values(&name, &op, inputs)?;
        let ids: Vec<ValueId> = (self.values.len()..).map(ValueId).take(outputs.len()).collect();
        self.values.extend(outputs);
        self.nodes.push(Node { name, op, inputs: inputs.to_vec(), outputs: ids.clone() });
        Ok(ids)
    }

    /// [`Graph::push`] for operations with one output.
    ///
    /// # Errors
    /// As [`Graph::push`].
    pub fn push1(
        &mut self,
        name: impl Into<String>,
        op: Op,
        inputs: &[ValueId],
    ) -> Result<ValueId, ShapeError> {
        Ok(self.push(name, op, inputs)?[0])
    }

    /// Shapes of what `op` writes given what it reads: the one place where shapes are checked.
    fn output_values(
        &self,
        name: &str,
        op: &Op,
        inputs: &[ValueId],
    ) -> Result<Vec<Value>, ShapeError> {
        let fail = |why: String| Err(ShapeError { node: name.to_owned(), why });
        if let Some(id) = inputs.iter().find(|id| id.0 >= self.values.len()) {
            return fail(format!("reads value {} before it is written", id.0));
        }
        let widths: Vec<usize> = inputs.iter().map(|&id| self.value(id).width).collect();
        let rows = inputs.first().map_or(Rows::Tokens, |&id| self.value(id).rows);
        if inputs.iter().any(|&id| self.value(id).rows != rows) {
            return fail("mixes all rows with the selected ones".into());
        }
        let value = |width| Value { width, rows };
        match (op, widths.as_slice()) {
            (Op::Embed { table }, []) => Ok(vec![value(self.weight(*table).cols())]),
            (Op::RmsNorm { gain, .. }, &[x]) => {
                let gain = self.weight(*gain);
                if gain.rows() != 1 || !x.is_multiple_of(gain.cols()) {
                    return fail(format!("a gain of {} on rows of {x}", gain.cols()));
                }
                Ok(vec![value(x)])
            }
            (Op::AddRmsNorm { gain, .. }, &[x, delta]) => {
                let gain = self.weight(*gain);
                if gain.rows() != 1 || gain.cols() != x || x != delta {
                    return fail(format!("a gain of {} on rows of {x} + {delta}", gain.cols()));
                }
                Ok(vec![value(x), value(x)])
            }
            (Op::Linear { weight, bias }, &[x]) => {
                let weight = self.weight(*weight);
                if weight.cols() != x {
                    return fail(format!("weights of {} inputs on rows of {x}", weight.cols()));
                }
                if let Some(bias) = bias.map(|bias| self.weight(bias))
                    && (bias.rows() != 1 || bias.cols() != weight.rows())
                {
                    return fail(format!("a bias of {} on {} outputs", bias.cols(), weight.rows()));
                }
                Ok(vec![value(weight.rows())])
            }
            (Op::Attention(a), widths) => {
                let (q, kv) = (a.heads * a.head_dim, a.kv_heads * a.head_dim);
                if a.kv_heads == 0 || !a.heads.is_multiple_of(a.kv_heads) {
                    return fail(format!("{} heads over {} kv heads", a.heads, a.kv_heads));
                }
                if widths != [q + 2 * kv] && widths != [q, kv, kv] {
                    return fail(format!("q, k and v are {widths:?} wide, not {q} + 2 x {kv}"));
                }
                Ok(vec![value(q)])
            }
            (Op::Gated(_), &[x]) if x.is_multiple_of(2) => Ok(vec![value(x / 2)]),
            (Op::Gated(_) | Op::Add, &[a, b]) if a == b => Ok(vec![value(a)]),
            (Op::Scale(_), &[x]) => Ok(vec![value(x)]),
            (Op::SelectRows, &[x]) => Ok(vec![Value { width: x, rows: Rows::Logits }]),
            (_, widths) => fail(format!("{} cannot read rows of {widths:?}", op.name())),
        }
    }
}

/// `name`, or the first of `name.2`, `name.3`, … that is free.
pub(crate) fn free_name(taken: &mut HashSet<String>, name: &str) -> String {
    let mut free = name.to_owned();
    let mut count = 1;
    while !taken.insert(free.clone()) {
        // Doubling keeps the search short when a file repeats one name.
        count = if count < 16 { count + 1 } else { count + taken.len() };
        free = format!("{name}.{count}");
    }
    free
}

/// An operation whose inputs or weights do not fit it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{node}: {why}")]
pub struct ShapeError {
    /// The node's name.
    pub node: String,
    /// What does not fit.
    pub why: String,
}

impl fmt::Display for ValueId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "%{}", self.0)
    }
}
