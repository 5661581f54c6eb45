//! The nodes that the logits depend on, in an order in which they can run.

use super::refuse;
use crate::error::ImportError;
use std::collections::HashMap;
use tangor_formats::onnx::Graph;

/// Indices of the nodes that `output` depends on, each after the ones that it reads from.
///
/// Files are as a rule in such an order already, but need not be.
///
/// # Errors
/// [`ImportError::Unsupported`] if the nodes form a cycle.
pub(super) fn order(graph: &Graph, output: &str) -> Result<Vec<usize>, ImportError> {
    let mut writers = HashMap::new();
    for (index, node) in graph.nodes.iter().enumerate() {
        for name in node.outputs.iter().filter(|name| !name.is_empty()) {
            writers.insert(name.as_str(), index);
        }
    }
    let mut order = Vec::new();
    let mut state = vec![State::New; graph.nodes.len()];
    // Nodes being visited, each with the number of inputs that are done.
    let mut path: Vec<(usize, usize)> = writers.get(output).map(|&i| (i, 0)).into_iter().collect();
    while let Some((index, done)) = path.last_mut() {
        let (index, input) = (*index, *done);
        *done += 1;
        state[index] = State::Open;
        let Some(name) = graph.nodes[index].inputs.get(input) else {
            state[index] = State::Done;
            order.push(index);
            path.pop();
            continue;
        };
        match writers.get(name.as_str()) {
            Some(&writer) if state[writer] == State::New => path.push((writer, 0)),
            Some(&writer) if state[writer] == State::Open => {
                return Err(refuse(&graph.nodes[writer], "it depends on its own output"));
            }
            _ => {}
        }
    }
    Ok(order)
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    New,
    Open,
    Done,
}
