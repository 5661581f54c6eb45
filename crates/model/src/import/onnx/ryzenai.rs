//! Fused operators of AMD's hybrid tool chain (domain `com.ryzenai`).
//!
//! Each stands for a few nodes of the graph it was made from; the plain 4-bit weights are still
//! there, beside the copies that are packed for the NPU and that nothing here reads. The operators
//! are defined by the passes that write them: `quark/contrib/onnx_utils` in `amd/Quark`.

use super::basic::epsilon;
use super::weights::Quantized;
use super::{Importer, refuse};
use crate::error::ImportError;
use crate::ir::Activation;
use tangor_formats::onnx::Node;

impl<'a> Importer<'a> {
    /// Norm of a sum, gated MLP, norm of the sum with its result: (x, skip, gain, gate: codes,
    /// scales, zeros, up: …, down: …, last gain, packed copies) -> (norm, sum).
    pub(super) fn ssmlp(&mut self, node: &'a Node) -> Result<(), ImportError> {
        let (x, skip) = (self.rows(node, 0)?, self.rows(node, 1)?);
        let (first, last) = (self.constant(node, 2)?.clone(), self.constant(node, 12)?.clone());
        let eps = epsilon(node)?;
        let [sum, normed] = self.add_norm(node, x, skip, &first, eps)?;
        let project = |this: &mut Self, name: &str, input, first| {
            let form = Quantized::attributes(node, name)?;
            this.quantized_linear(node, input, form, [first, first + 1, first + 2, usize::MAX])
        };
        let gate = project(self, "gate_", normed, 3)?;
        let up = project(self, "up_", normed, 6)?;
        let gated = self.push_gated(Activation::Silu, &[gate, up])?;
        let down = project(self, "down_", gated, 9)?;
        let [sum, normed] = self.add_norm(node, sum, down, &last, eps)?;
        self.set_rows(node, 0, normed);
        self.set_rows(node, 1, sum);
        Ok(())
    }

    /// Attention and its output projection: inputs 0 to 11 of `GroupQueryAttention`, then codes,
    /// scales, zeros and bias of the projection, and a packed copy. Of its outputs, the one that is
    /// not a cache is the result.
    pub(super) fn gqo(&mut self, node: &'a Node) -> Result<(), ImportError> {
        self.left_out(node, &[(10, "attention bias"), (11, "head sink")])?;
        let attended = self.attention(node)?;
        let form = Quantized::attributes(node, "o_proj_")?;
        let y = self.quantized_linear(node, attended, form, [12, 13, 14, 15])?;
        let is_result =
            |index: &usize| node.output(*index).is_some_and(|name| !self.outputs.contains(name));
        let results: Vec<usize> = (0..node.outputs.len()).filter(is_result).collect();
        let &[result] = &results[..] else {
            return Err(refuse(node, "one of its outputs must be the result, the others caches"));
        };
        self.set_rows(node, result, y);
        Ok(())
    }
}
