//! The parts that architectures are made of.
//!
//! A [`Builder`] holds the graph while a page of [`crate::arch`] writes it down, fetches weights by
//! their Hugging Face names with the shape that the configuration asks for, and names the nodes.

use crate::config::Config;
use crate::error::ImportError;
use crate::ir::{Attention, Graph, Op, ValueId, WeightId};
use tangor_tensor::Weight;

/// Where a model's weights come from.
pub trait Tensors {
    /// The weight with this Hugging Face name (as `model.layers.0.self_attn.q_proj.weight`), of
    /// `rows x cols`; vectors are one row.
    ///
    /// # Errors
    /// [`ImportError::MissingTensor`], [`ImportError::TensorShape`], or whatever is wrong with its
    /// bytes.
    fn weight(&self, name: &str, rows: usize, cols: usize) -> Result<Weight, ImportError>;
}

/// A graph being written.
pub(crate) struct Builder<'a> {
    pub(crate) config: &'a Config,
    tensors: &'a dyn Tensors,
    graph: Graph,
}

impl<'a> Builder<'a> {
    pub(crate) fn new(config: &'a Config, tensors: &'a dyn Tensors) -> Self {
        let graph = Graph::new(config.hyper.clone(), config.rope.clone());
        Self { config, tensors, graph }
    }

    fn weight(&mut self, name: &str, rows: usize, cols: usize) -> Result<WeightId, ImportError> {
        let weight = self.tensors.weight(name, rows, cols)?;
        if (weight.rows(), weight.cols()) != (rows, cols) {
            let (found_rows, found_cols) = (weight.rows(), weight.cols());
            let name = name.to_owned();
            return Err(ImportError::TensorShape { name, rows, cols, found_rows, found_cols });
        }
        Ok(self.graph.add_weight(name, weight))
    }

    /// `() -> (tokens, hidden)`.
    pub(crate) fn embed(&mut self) -> Result<ValueId, ImportError> {
        let (vocab, hidden) = (self.config.hyper.vocab, self.config.hyper.hidden);
        let table = self.weight(EMBEDDING, vocab, hidden)?;
        Ok(self.graph.push1("embed", Op::Embed { table }, &[])?)
    }

    /// RMS norm of `(rows, hidden)` by the gain `{module}.weight`.
    pub(crate) fn norm(&mut self, module: &str, x: ValueId) -> Result<ValueId, ImportError> {
        let gain = self.weight(&format!("{module}.weight"), 1, self.config.hyper.hidden)?;
        let op = Op::RmsNorm { gain, eps: self.config.eps };
        Ok(self.graph.push1(node_name(module), op, &[x])?)
    }

    /// `{module}.weight` of `width(x)` inputs, and `{module}.bias` where there is one.
    pub(crate) fn linear(
        &mut self,
        module: &str,
        x: ValueId,
        outputs: usize,
        bias: bool,
    ) -> Result<ValueId, ImportError> {
        let inputs = self.graph.value(x).width;
        let weight = self.weight(&format!("{module}.weight"), outputs, inputs)?;
        let bias = match bias {
            true => Some(self.weight(&format!("{module}.bias"), 1, outputs)?),
            false => None,
        };
        Ok(self.graph.push1(node_name(module), Op::Linear { weight, bias }, &[x])?)
    }

    /// Causal attention of one layer with rotary embedding over the three projections, or the one
    /// that holds them all; then the output projection back to `hidden`.
    pub(crate) fn attention(
        &mut self,
        layer: usize,
        projections: &[ValueId],
    ) -> Result<ValueId, ImportError> {
        let hyper = &self.config.hyper;
        #[allow(clippy::cast_precision_loss)]
        let scale = 1.0 / (hyper.head_dim as f32).sqrt();
        let op = Op::Attention(Attention {
            layer,
            heads: hyper.heads,
            kv_heads: hyper.kv_heads,
            head_dim: hyper.head_dim,
            scale,
            window: self.config.windows[layer],
            softcap: None,
            rotate: true,
        });
        let name = format!("layers.{layer}.attention");
        let attended = self.graph.push1(name, op, projections)?;
        let module = format!("model.layers.{layer}.self_attn.o_proj");
        self.linear(&module, attended, self.config.hyper.hidden, self.config.output_bias)
    }

    /// Attention with q, k and v projections of their own.
    pub(crate) fn separate_attention(
        &mut self,
        layer: usize,
        x: ValueId,
    ) -> Result<ValueId, ImportError> {
        let module = |part| format!("model.layers.{layer}.self_attn.{part}_proj");
        let (q, kv, bias) = (self.config.q_width(), self.config.kv_width(), self.config.qkv_bias);
        let q = self.linear(&module("q"), x, q, bias)?;
        let k = self.linear(&module("k"), x, kv, bias)?;
        let v = self.linear(&module("v"), x, kv, bias)?;
        self.attention(layer, &[q, k, v])
    }

    /// `act(gate) * up`, of the two projections or the one that holds both; then down to `hidden`.
    pub(crate) fn gated(
        &mut self,
        layer: usize,
        projections: &[ValueId],
    ) -> Result<ValueId, ImportError> {
        let op = Op::Gated(self.config.activation);
        let gated = self.graph.push1(format!("layers.{layer}.gated"), op, projections)?;
        let module = format!("model.layers.{layer}.mlp.down_proj");
        self.linear(&module, gated, self.config.hyper.hidden, self.config.mlp_bias)
    }

    /// Gated MLP with gate and up projections of their own.
    pub(crate) fn separate_mlp(
        &mut self,
        layer: usize,
        x: ValueId,
    ) -> Result<ValueId, ImportError> {
        let module = |part| format!("model.layers.{layer}.mlp.{part}_proj");
        let (ffn, bias) = (self.config.hyper.ffn, self.config.mlp_bias);
        let gate = self.linear(&module("gate"), x, ffn, bias)?;
        let up = self.linear(&module("up"), x, ffn, bias)?;
        self.gated(layer, &[gate, up])
    }

    /// `x + delta` on the residual stream, after the block `name` of a layer.
    pub(crate) fn add(
        &mut self,
        layer: usize,
        name: &str,
        x: ValueId,
        delta: ValueId,
    ) -> Result<ValueId, ImportError> {
        Ok(self.graph.push1(format!("layers.{layer}.{name}.residual"), Op::Add, &[x, delta])?)
    }

    /// Final norm and output head over the rows whose logits are wanted: completes the graph.
    pub(crate) fn head(mut self, x: ValueId) -> Result<Graph, ImportError> {
        let (vocab, tied) = (self.config.hyper.vocab, self.config.tied);
        let x = self.graph.push1("select_rows", Op::SelectRows, &[x])?;
        let x = self.norm("model.norm", x)?;
        let logits = if tied {
            let weight = self.weight(EMBEDDING, vocab, self.config.hyper.hidden)?;
            self.graph.push1("lm_head", Op::Linear { weight, bias: None }, &[x])?
        } else {
            self.linear("lm_head", x, vocab, false)?
        };
        self.graph.logits = logits;
        Ok(self.graph)
    }
}

const EMBEDDING: &str = "model.embed_tokens.weight";

/// `layers.0.self_attn.q_proj` for `model.layers.0.self_attn.q_proj`.
fn node_name(module: &str) -> &str {
    module.strip_prefix("model.").unwrap_or(module)
}
