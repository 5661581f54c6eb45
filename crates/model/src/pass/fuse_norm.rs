//! An addition to the residual stream and the norm that follows it become one operation.

use super::{Rewrite, readers};
use crate::ir::{Graph, Op, ShapeError};

pub(super) fn run(graph: &Graph) -> Result<Graph, ShapeError> {
    let readers = readers(graph);
    let mut rewrite = Rewrite::new(graph);
    for node in &graph.nodes {
        // A norm that was fused into the addition before it is already written.
        if node.outputs.iter().all(|output| rewrite.values.contains_key(output)) {
            continue;
        }
        let inputs = rewrite.inputs(node)?;
        let norm = match (&node.op, node.outputs.as_slice()) {
            (Op::Add, &[sum]) => readers[sum.0].iter().find_map(|&reader| {
                let norm = graph.nodes.get(reader)?;
                match norm.op {
                    Op::RmsNorm { gain, eps }
                        if graph.weight(gain).cols() == graph.value(sum).width =>
                    {
                        Some((norm, gain, eps, sum))
                    }
                    _ => None,
                }
            }),
            _ => None,
        };
        let Some((norm, gain, eps, sum)) = norm else {
            rewrite.copy(node, &inputs)?;
            continue;
        };
        let op = Op::AddRmsNorm { gain: rewrite.weight(gain), eps };
        let outputs = rewrite.to.push(norm.name.clone(), op, &inputs)?;
        rewrite.values.extend([(sum, outputs[0]), (norm.outputs[0], outputs[1])]);
    }
    rewrite.finish()
}
