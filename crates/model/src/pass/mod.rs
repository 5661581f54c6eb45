//! Rewrites of the graph that leave its meaning as it is, one per file.
//!
//! A pass reads one graph and writes another: nodes are copied in order, some of them replaced.

mod fuse_gate_up;
mod fuse_norm;
mod fuse_qkv;
mod select_early;

use crate::ir::{Graph, NamedWeight, Node, Op, ShapeError, ValueId, WeightId, free_name};
use std::collections::{HashMap, HashSet};
use tangor_tensor::Weight;

/// A rewrite.
#[derive(Clone, Copy, Debug)]
pub struct Pass {
    /// Its name, for logs.
    pub name: &'static str,
    /// The rewrite; fails only on a graph whose shapes do not fit.
    pub run: fn(&Graph) -> Result<Graph, ShapeError>,
}

/// All passes, in the order in which they run.
pub static ALL: &[Pass] = &[
    Pass { name: "select_early", run: select_early::run },
    Pass { name: "fuse_qkv", run: fuse_qkv::run },
    Pass { name: "fuse_gate_up", run: fuse_gate_up::run },
    Pass { name: "fuse_norm", run: fuse_norm::run },
];

/// Runs every pass.
///
/// # Errors
/// [`ShapeError`] if the graph's shapes do not fit, which a graph built by [`Graph::push`] never
/// meets.
pub fn run_all(graph: Graph) -> Result<Graph, ShapeError> {
    ALL.iter().try_fold(graph, |graph, pass| (pass.run)(&graph))
}

/// A graph that is being copied from another.
struct Rewrite<'a> {
    from: &'a Graph,
    to: Graph,
    values: HashMap<ValueId, ValueId>,
    weights: HashMap<WeightId, WeightId>,
    /// Names of the weights and nodes of both graphs, which no new one may have.
    taken: HashSet<String>,
}

impl<'a> Rewrite<'a> {
    fn new(from: &'a Graph) -> Self {
        let mut to = Graph::new(from.hyper.clone(), from.rope.clone());
        to.identity.clone_from(&from.identity);
        let weights = from.weights.iter().map(|named| &named.name);
        let taken = weights.chain(from.nodes.iter().map(|node| &node.name)).cloned().collect();
        Self { from, to, values: HashMap::new(), weights: HashMap::new(), taken }
    }

    /// What a value of the old graph is in the new one.
    fn value(&self, old: ValueId) -> Result<ValueId, ShapeError> {
        self.values.get(&old).copied().ok_or_else(|| ShapeError {
            node: format!("value {}", old.0),
            why: "is read before it is written".into(),
        })
    }

    fn inputs(&self, node: &Node) -> Result<Vec<ValueId>, ShapeError> {
        node.inputs.iter().map(|&old| self.value(old)).collect()
    }

    /// Copies a weight, or gives its copy.
    fn weight(&mut self, old: WeightId) -> WeightId {
        if let Some(&copy) = self.weights.get(&old) {
            return copy;
        }
        self.to.weights.push(self.from.weights[old.0].clone());
        let copy = WeightId(self.to.weights.len() - 1);
        self.weights.insert(old, copy);
        copy
    }

    /// Adds a weight that the old graph does not have, under `name` or a free one like it: where a
    /// file's names do not say which layer they are of, one name would be that of every layer.
    fn new_weight(&mut self, name: &str, weight: Weight) -> WeightId {
        let name = free_name(&mut self.taken, name);
        self.to.weights.push(NamedWeight { name, weight });
        WeightId(self.to.weights.len() - 1)
    }

    fn op(&mut self, op: &Op) -> Op {
        match *op {
            Op::Embed { table } => Op::Embed { table: self.weight(table) },
            Op::RmsNorm { gain, eps } => Op::RmsNorm { gain: self.weight(gain), eps },
            Op::AddRmsNorm { gain, eps } => Op::AddRmsNorm { gain: self.weight(gain), eps },
            Op::Linear { weight, bias } => {
                let weight = self.weight(weight);
                Op::Linear { weight, bias: bias.map(|bias| self.weight(bias)) }
            }
            Op::Attention(_) | Op::Gated(_) | Op::Add | Op::Scale(_) | Op::SelectRows => op.clone(),
        }
    }

    /// Copies a node that reads `inputs` of the new graph.
    fn copy(&mut self, node: &Node, inputs: &[ValueId]) -> Result<(), ShapeError> {
        let op = self.op(&node.op);
        let outputs = self.to.push(node.name.clone(), op, inputs)?;
        self.values.extend(node.outputs.iter().copied().zip(outputs));
        Ok(())
    }

    fn finish(mut self) -> Result<Graph, ShapeError> {
        self.to.logits = self.value(self.from.logits)?;
        Ok(self.to)
    }
}

/// For each value of a graph, the nodes that read it; the logits count as read once more.
fn readers(graph: &Graph) -> Vec<Vec<usize>> {
    let mut readers = vec![Vec::new(); graph.values.len()];
    for (index, node) in graph.nodes.iter().enumerate() {
        for input in &node.inputs {
            readers[input.0].push(index);
        }
    }
    readers[graph.logits.0].push(graph.nodes.len());
    readers
}

/// Runs of linears with one input and weights of one layout whose outputs only `reader` reads, in
/// the order in which it reads them: these can be one.
fn stackable<'a>(graph: &'a Graph, readers: &[Vec<usize>], reader: usize) -> Option<Vec<&'a Node>> {
    let linears: Option<Vec<&Node>> = graph.nodes[reader]
        .inputs
        .iter()
        .map(|input| {
            let written = |node: &&Node| node.outputs.contains(input);
            let node = graph.nodes[..reader].iter().rev().find(written)?;
            let linear = matches!(node.op, Op::Linear { .. });
            (linear && readers[input.0] == [reader]).then_some(node)
        })
        .collect();
    let linears = linears?;
    let parts = || linears.iter().filter_map(|node| linear_parts(node));
    let layout = parts().next().map(|(weight, _)| graph.weight(weight).layout())??;
    let same_layout = parts().all(|(weight, _)| graph.weight(weight).layout() == Some(layout));
    let same_bias = parts().all(|(_, bias)| bias.is_some()) || parts().all(|(_, b)| b.is_none());
    let same_input = linears.iter().all(|node| node.inputs == linears[0].inputs);
    (linears.len() > 1 && same_layout && same_bias && same_input).then_some(linears)
}

fn linear_parts(node: &Node) -> Option<(WeightId, Option<WeightId>)> {
    match node.op {
        Op::Linear { weight, bias } => Some((weight, bias)),
        _ => None,
    }
}

/// Fuses the linears before every reader that `wanted` picks into one named
/// `layers.N.{module}`, where they can be.
fn stack_before(graph: &Graph, wanted: fn(&Op) -> bool, module: &str) -> Result<Graph, ShapeError> {
    let readers = readers(graph);
    let stacks: HashMap<usize, Vec<&Node>> = (0..graph.nodes.len())
        .filter(|&index| wanted(&graph.nodes[index].op))
        .filter_map(|index| Some((index, stackable(graph, &readers, index)?)))
        .collect();
    let absorbed: Vec<ValueId> =
        stacks.values().flatten().flat_map(|node| node.outputs.iter().copied()).collect();
    let mut rewrite = Rewrite::new(graph);
    for (index, node) in graph.nodes.iter().enumerate() {
        if node.outputs.iter().any(|output| absorbed.contains(output)) {
            continue;
        }
        let inputs = match stacks.get(&index) {
            Some(linears) => vec![push_stack(&mut rewrite, linears, module)?],
            None => rewrite.inputs(node)?,
        };
        rewrite.copy(node, &inputs)?;
    }
    rewrite.finish()
}

fn push_stack(
    rewrite: &mut Rewrite<'_>,
    linears: &[&Node],
    module: &str,
) -> Result<ValueId, ShapeError> {
    let graph = rewrite.from;
    let name = free_name(&mut rewrite.taken, &stacked_name(&linears[0].name, module));
    let (mut weights, mut biases) = (Vec::new(), Vec::new());
    let mut first_name = "";
    for (weight, bias) in linears.iter().filter_map(|node| linear_parts(node)) {
        if weights.is_empty() {
            first_name = &graph.weights[weight.0].name;
        }
        weights.push(graph.weight(weight));
        biases.extend(bias.map(|bias| graph.weight(bias)));
    }
    let fail = |why: String| ShapeError { node: name.clone(), why };
    let stacked = Weight::stack(&weights).map_err(|error| fail(error.to_string()))?;
    let module_name = stacked_name(first_name.trim_end_matches(".weight"), module);
    let weight = rewrite.new_weight(&format!("{module_name}.weight"), stacked);
    let bias = match biases.as_slice() {
        [] => None,
        biases => {
            let joined = join_vectors(biases).map_err(|error| fail(error.to_string()))?;
            Some(rewrite.new_weight(&format!("{module_name}.bias"), joined))
        }
    };
    let inputs = rewrite.inputs(linears[0])?;
    rewrite.to.push1(name, Op::Linear { weight, bias }, &inputs)
}

/// `layers.0.self_attn.qkv_proj` for `layers.0.self_attn.q_proj`.
fn stacked_name(first: &str, module: &str) -> String {
    match first.rsplit_once('.') {
        Some((parent, _)) => format!("{parent}.{module}"),
        None => module.to_owned(),
    }
}

fn join_vectors(vectors: &[&Weight]) -> Result<Weight, tangor_tensor::WeightError> {
    let mut joined = Vec::new();
    for vector in vectors {
        let start = joined.len();
        joined.resize(start + vector.cols(), 0.0);
        vector.row_f32(0, &mut joined[start..]);
    }
    Weight::vector(&joined)
}
