//! Parts of a fused linear's output, where a graph reads them one by one: each becomes a linear of
//! its own over some rows of the weight (Qwen 3 splits q, k and v to norm the heads of q and k).

use super::{Columns, Importer, refuse};
use crate::error::ImportError;
use crate::ir::{NamedWeight, Op, ValueId, WeightId, free_name};
use std::collections::HashSet;
use tangor_formats::onnx::Node;
use tangor_tensor::{Weight, WeightError};

impl Importer<'_> {
    /// The activation that is exactly these columns.
    pub(super) fn part(&mut self, node: &Node, columns: Columns) -> Result<ValueId, ImportError> {
        if self.is_whole(columns) {
            return Ok(columns.of);
        }
        if let Some(&known) = self.parts.get(&columns) {
            return Ok(known);
        }
        let writer = &self.graph.nodes[self.writers[columns.of.0]];
        let Op::Linear { weight, bias } = writer.op else {
            return Err(refuse(node, "it reads a part of what is not a linear's output"));
        };
        let (input, suffix) = (writer.inputs.clone(), self.part_name(columns));
        let rows = columns.start..columns.start + columns.width;
        let part = self.graph.weight(weight).slice_rows(rows.clone());
        let weight = self.add_part(weight, part, suffix)?;
        let bias = match bias {
            Some(bias) => {
                let mut values = vec![0.0; self.graph.weight(bias).cols()];
                self.graph.weight(bias).row_f32(0, &mut values);
                Some(self.add_part(bias, Weight::vector(&values[rows]), suffix)?)
            }
            None => None,
        };
        let name = self.module(weight);
        let value = self.push1(&name, Op::Linear { weight, bias }, &input)?;
        self.parts.insert(columns, value);
        Ok(value)
    }

    /// What to call a part: by its place in q, k and v, which come in this order.
    fn part_name(&self, columns: Columns) -> &'static str {
        match columns.start {
            0 => "q_proj",
            start if start + columns.width == self.width(columns.of) => "v_proj",
            _ => "k_proj",
        }
    }

    fn add_part(
        &mut self,
        whole: WeightId,
        part: Result<Weight, WeightError>,
        suffix: &str,
    ) -> Result<WeightId, ImportError> {
        let whole = &self.graph.weights[whole.0].name;
        let (module, kind) = whole.rsplit_once('.').unwrap_or((whole, "weight"));
        let name = match module.strip_suffix("qkv_proj") {
            Some(module) => format!("{module}{suffix}.{kind}"),
            None => format!("{module}.{suffix}.{kind}"),
        };
        let weight = part.map_err(|source| ImportError::Weight { name: name.clone(), source })?;
        let name = free_name(&mut self.taken, &name);
        self.graph.weights.push(NamedWeight { name, weight });
        Ok(WeightId(self.graph.weights.len() - 1))
    }

    /// Takes out the fused linears that only their parts are left of.
    pub(super) fn drop_unread(&mut self) {
        let fused: HashSet<ValueId> = self.parts.keys().map(|columns| columns.of).collect();
        let read: HashSet<ValueId> =
            self.graph.nodes.iter().flat_map(|node| node.inputs.iter().copied()).collect();
        self.graph.nodes.retain(|node| {
            let dead = |value| fused.contains(value) && !read.contains(value);
            !node.outputs.iter().all(dead)
        });
    }
}
