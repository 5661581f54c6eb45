//! What the passes fuse, and what they must leave alone. That they change no bit of the logits is
//! tested where the oracle is, in the device crate.

use tangor_model::formats::{HfConfig, Limits};
use tangor_model::tensor::{DType, Weight};
use tangor_model::{Config, Graph, ImportError, Op, Tensors, arch, pass};

/// Weights of zeros, each with the type that `dtype` says for its name.
struct Zeros(fn(&str) -> DType);

impl Tensors for Zeros {
    fn weight(&self, name: &str, rows: usize, cols: usize) -> Result<Weight, ImportError> {
        let dtype = (self.0)(name);
        let bytes = vec![0; rows * cols * dtype.size()];
        Weight::dense(dtype, rows, cols, bytes.into())
            .map_err(|source| ImportError::Weight { name: name.to_owned(), source })
    }
}

fn fused(model_type: &str, dtype: fn(&str) -> DType) -> Graph {
    let config = serde_json::json!({
        "model_type": model_type, "vocab_size": 32, "hidden_size": 16, "intermediate_size": 24,
        "num_hidden_layers": 2, "num_attention_heads": 2,
    });
    let config = HfConfig::from_json(config, &Limits::default()).unwrap();
    let config = Config::from_hf(&config).unwrap();
    pass::run_all(arch::graph(&config, &Zeros(dtype)).unwrap()).unwrap()
}

/// How many inputs the nodes of this kind have.
fn inputs(graph: &Graph, kind: &str) -> Vec<usize> {
    graph.nodes.iter().filter(|n| n.op.name() == kind).map(|n| n.inputs.len()).collect()
}

#[test]
fn projections_of_one_layout_are_one_linear() {
    for model_type in ["llama", "mistral", "qwen2", "phi3"] {
        let graph = fused(model_type, |_| DType::F16);
        assert_eq!(inputs(&graph, "attention"), [1, 1], "{model_type}");
        assert_eq!(inputs(&graph, "gated"), [1, 1], "{model_type}");
        // qkv, o, gate_up and down of each layer, and the head.
        assert_eq!(inputs(&graph, "linear").len(), 2 * 4 + 1, "{model_type}");
        assert_eq!(inputs(&graph, "rms_norm").len(), 1, "{model_type}: all norms but the first");
    }
}

#[test]
fn projections_of_different_layouts_stay_apart() {
    let mixed = |name: &str| match name.contains("layers.1.self_attn.v_proj.weight") {
        true => DType::F32,
        false => DType::F16,
    };
    let graph = fused("qwen2", mixed);
    assert_eq!(inputs(&graph, "attention"), [1, 3]);
    assert_eq!(inputs(&graph, "gated"), [1, 1]);
    for named in &graph.weights {
        assert!(named.weight.layout().is_some(), "{} has two layouts", named.name);
    }
}

#[test]
fn stacked_biases_hold_all_biases_in_order() {
    let graph = fused("qwen2", |_| DType::F16);
    let qkv = graph.nodes.iter().find(|node| node.name == "layers.0.self_attn.qkv_proj").unwrap();
    let Op::Linear { weight, bias: Some(bias) } = qkv.op else { panic!("a linear with a bias") };
    assert_eq!(graph.weight(weight).rows(), 3 * 16);
    assert_eq!((graph.weight(bias).rows(), graph.weight(bias).cols()), (1, 3 * 16));
}

#[test]
fn weights_that_nothing_reads_any_more_are_dropped() {
    let graph = fused("llama", |_| DType::F16);
    let names: Vec<&str> = graph.weights.iter().map(|named| named.name.as_str()).collect();
    assert!(names.contains(&"model.layers.0.self_attn.qkv_proj.weight"), "{names:?}");
    assert!(!names.iter().any(|name| name.contains("q_proj.") || name.contains("up_proj.bias")));
}

/// Exporters that know no modules number their constants (`onnx::MatMul_7`).
#[test]
fn stacks_of_weights_whose_names_have_no_layer_stay_apart() {
    let config = serde_json::json!({
        "model_type": "llama", "vocab_size": 32, "hidden_size": 16, "intermediate_size": 24,
        "num_hidden_layers": 3, "num_attention_heads": 2,
    });
    let config = Config::from_hf(&HfConfig::from_json(config, &Limits::default()).unwrap());
    let mut graph = arch::graph(&config.unwrap(), &Zeros(|_| DType::F32)).unwrap();
    for (index, named) in graph.weights.iter_mut().enumerate() {
        let (rows, cols) = (named.weight.rows(), named.weight.cols());
        let bytes = (index as f32).to_le_bytes().repeat(rows * cols);
        named.weight = Weight::dense(DType::F32, rows, cols, bytes.into()).unwrap();
        named.name = format!("onnx::MatMul_{index}");
    }
    for (index, node) in graph.nodes.iter_mut().enumerate() {
        node.name = format!("node_{index}");
    }
    // Of each layer's q, k and v, the numbers that their weights are full of.
    let before: Vec<f32> = graph
        .nodes
        .iter()
        .filter(|node| node.op.name() == "attention")
        .flat_map(|node| node.inputs.clone())
        .map(|input| filling(&graph, input, 0))
        .collect();
    let fused = pass::run_all(graph).unwrap();
    let after: Vec<f32> = fused
        .nodes
        .iter()
        .filter(|node| node.op.name() == "attention")
        .flat_map(|node| [0, 16, 32].map(|row| filling(&fused, node.inputs[0], row)))
        .collect();
    assert_eq!(before.len(), 3 * 3);
    assert_eq!(before, after);
    for names in [
        fused.nodes.iter().map(|node| &node.name).collect::<Vec<_>>(),
        fused.weights.iter().map(|named| &named.name).collect(),
    ] {
        let different: std::collections::HashSet<_> = names.iter().collect();
        assert_eq!(different.len(), names.len(), "{names:?}");
    }
}

/// The first element of a row of the linear that writes a value.
fn filling(graph: &Graph, value: tangor_model::ValueId, row: usize) -> f32 {
    let writer = graph.nodes.iter().find(|node| node.outputs.contains(&value)).unwrap();
    let Op::Linear { weight, .. } = writer.op else { panic!("{} is no linear", writer.name) };
    let mut values = vec![0.0; graph.weight(weight).cols()];
    graph.weight(weight).row_f32(row, &mut values);
    values[0]
}
