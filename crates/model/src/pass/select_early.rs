//! Rows whose logits nobody wants stop at the last attention: what follows it works row by row, so
//! the selection moves up to its inputs. In a prefill the last layer's MLP then costs nothing.

use super::Rewrite;
use crate::ir::{Graph, Op, Rows, ShapeError, ValueId};
use std::collections::HashMap;

pub(super) fn run(graph: &Graph) -> Result<Graph, ShapeError> {
    let full = needed_in_full(graph);
    let mut rewrite = Rewrite::new(graph);
    // Old values, after selection, for those that are written in full.
    let mut selected: HashMap<ValueId, ValueId> = HashMap::new();
    for node in &graph.nodes {
        let in_full = node.outputs.iter().any(|output| full[output.0])
            || matches!(node.op, Op::Attention(_) | Op::Embed { .. });
        if in_full {
            let inputs = rewrite.inputs(node)?;
            rewrite.copy(node, &inputs)?;
            continue;
        }
        let mut inputs = Vec::new();
        for &input in &node.inputs {
            inputs.push(select(&mut rewrite, &mut selected, input)?);
        }
        match (&node.op, node.outputs.as_slice()) {
            (Op::SelectRows, &[output]) => {
                rewrite.values.insert(output, inputs[0]);
            }
            _ => rewrite.copy(node, &inputs)?,
        }
    }
    rewrite.finish()
}

/// The new value's selected rows: itself if it has no others.
fn select(
    rewrite: &mut Rewrite<'_>,
    selected: &mut HashMap<ValueId, ValueId>,
    old: ValueId,
) -> Result<ValueId, ShapeError> {
    let new = rewrite.value(old)?;
    if rewrite.to.value(new).rows == Rows::Logits {
        return Ok(new);
    }
    if let Some(&done) = selected.get(&old) {
        return Ok(done);
    }
    let writer = rewrite.from.nodes.iter().find(|node| node.outputs.contains(&old));
    let name = writer.map_or("value", |node| node.name.as_str());
    let rows = rewrite.to.push1(format!("{name}.select_rows"), Op::SelectRows, &[new])?;
    selected.insert(old, rows);
    Ok(rows)
}

/// Whether all rows of each value are needed: because attention reads them, at once or through
/// other operations.
fn needed_in_full(graph: &Graph) -> Vec<bool> {
    let mut full = vec![false; graph.values.len()];
    for node in graph.nodes.iter().rev() {
        let reads_full =
            matches!(node.op, Op::Attention(_)) || node.outputs.iter().any(|output| full[output.0]);
        if reads_full {
            for input in &node.inputs {
                full[input.0] = true;
            }
        }
    }
    full
}
