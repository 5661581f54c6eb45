//! What an ONNX graph may not contain is refused by the node's name; what contradicts the
//! configuration by the key's.

use std::path::Path;
use tangor_model::formats::onnx::{Attribute, Element, Graph, Node, Tensor};
use tangor_model::formats::{Checkpoint, Limits, MemorySource, OgaCheckpoint};
use tangor_model::ir::{Op, Rows};
use tangor_model::rope::Angles;
use tangor_model::tensor::{Bytes, DType, Layout, Offset};
use tangor_model::{Graph as Ir, ImportError, import};

fn open(name: &str) -> OgaCheckpoint {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/oga").join(name);
    let mut source = MemorySource::new(name);
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let file = path.file_name().unwrap().to_string_lossy().into_owned();
        source = source.with(file, std::fs::read(&path).unwrap());
    }
    match Checkpoint::open(&source, None, &Limits::default()).unwrap() {
        Checkpoint::Oga(oga) => *oga,
        other => panic!("{name} is {other:?}"),
    }
}

fn graph(oga: &OgaCheckpoint) -> Result<Ir, ImportError> {
    import::onnx::graph(&oga.model, &oga.genai)
}

/// The first node of an operator.
fn node<'a>(oga: &'a mut OgaCheckpoint, op: &str) -> &'a mut Node {
    oga.model.graph.nodes.iter_mut().find(|node| node.op == op).unwrap()
}

fn set(node: &mut Node, name: &str, value: Attribute) {
    node.attributes.retain(|(found, _)| found != name);
    node.attributes.push((name.into(), value));
}

/// The graph after a change, and what its error says.
fn refusal(name: &str, change: impl FnOnce(&mut OgaCheckpoint)) -> String {
    let mut oga = open(name);
    change(&mut oga);
    match graph(&oga) {
        Ok(_) => panic!("{name} was accepted"),
        Err(error) => error.to_string(),
    }
}

#[test]
fn refuses_operators_that_it_does_not_know() {
    for (op, domain) in [
        ("MatMulNBits", "com.example"),
        ("Conv", "com.ryzenai"),
        ("QMoE", "com.microsoft"),
        ("LayerNormalization", ""),
        ("Loop", ""),
    ] {
        let said = refusal("llama-cpu", |oga| {
            let node = node(oga, "MatMulNBits");
            (node.op, node.domain) = (op.into(), domain.into());
        });
        assert!(said.contains("/model/layers.0/attn/qkv_proj/MatMul_Q4"), "{said}");
        assert!(said.contains(op) && said.contains(domain), "{said}");
    }
}

#[test]
fn refuses_graphs_that_depend_on_themselves() {
    let said = refusal("llama-cpu", |oga| {
        let late = oga.model.graph.nodes.last().unwrap().outputs[0].clone();
        node(oga, "SimplifiedLayerNormalization").inputs[0] = late;
    });
    assert!(said.contains("depends on its own output"), "{said}");
    let said = refusal("llama-cpu", |oga| {
        let node = node(oga, "MatMulNBits");
        node.inputs[0] = node.outputs[0].clone();
    });
    assert!(said.contains("depends on its own output"), "{said}");
}

#[test]
fn refuses_values_that_nothing_writes() {
    let said = refusal("llama-cpu", |oga| node(oga, "MatMulNBits").inputs[0] = "gone".into());
    assert!(said.contains("nothing writes its input \"gone\""), "{said}");
    let said = refusal("llama-cpu", |oga| oga.genai.decoder.logits = "hidden_states".into());
    assert!(said.contains("hidden_states"), "{said}");
}

#[test]
fn refuses_what_would_change_the_meaning_of_an_operator() {
    type Change = fn(&mut OgaCheckpoint);
    let cases: [(&str, Change, &str); 14] = [
        ("llama-cpu", |o| set(node(o, "MatMulNBits"), "bits", Attribute::Int(2)), "2 bits"),
        ("llama-cpu", |o| set(node(o, "MatMulNBits"), "N", Attribute::Int(127)), "127 x 64"),
        ("llama-cpu", |o| set(node(o, "MatMulNBits"), "K", Attribute::Int(-1)), "\"K\""),
        (
            "llama-cpu",
            |o| set(node(o, "MatMulNBits"), "block_size", Attribute::Int(i64::MAX)),
            "blocks",
        ),
        (
            "llama-cpu",
            |o| set(node(o, "GroupQueryAttention"), "num_heads", Attribute::Int(3)),
            "kv",
        ),
        (
            "llama-cpu",
            |o| set(node(o, "GroupQueryAttention"), "smooth_softmax", Attribute::Int(1)),
            "smooth",
        ),
        ("llama-cpu", |o| node(o, "GroupQueryAttention").inputs[10] = "cos_cache".into(), "bias"),
        (
            "llama-cpu",
            |o| node(o, "GroupQueryAttention").inputs[7] = "attention_mask".into(),
            "caches",
        ),
        ("llama-cpu", |o| node(o, "Mul").inputs[1] = "cos_cache".into(), "multiplies"),
        (
            "llama-cpu",
            |o| set(node(o, "SimplifiedLayerNormalization"), "axis", Attribute::Int(1)),
            "axis",
        ),
        (
            "llama-dml",
            |o| node(o, "RotaryEmbedding").inputs[1] = "attention_mask".into(),
            "positions",
        ),
        ("phi3-cpu", |o| set(node(o, "Split"), "axis", Attribute::Int(1)), "split"),
        (
            "llama-cpu-qdq",
            |o| set(node(o, "DequantizeLinear"), "axis", Attribute::Int(1)),
            "axis 0",
        ),
        ("phi3-cpu-long", |o| node(o, "If").inputs[0] = "attention_mask".into(), "length"),
    ];
    for (name, change, expected) in cases {
        let said = refusal(name, change);
        assert!(said.contains(expected), "{name}: {said:?} does not say {expected:?}");
    }
}

#[test]
fn refuses_configurations_that_contradict_the_graph() {
    type Change = fn(&mut OgaCheckpoint);
    let cases: [(Change, &str); 7] = [
        (|o| o.genai.decoder.num_hidden_layers = Some(3), "model.decoder.num_hidden_layers"),
        (|o| o.genai.decoder.hidden_size = Some(65), "model.decoder.hidden_size"),
        (|o| o.genai.decoder.num_attention_heads = Some(8), "model.decoder.num_attention_heads"),
        (|o| o.genai.decoder.num_key_value_heads = Some(4), "model.decoder.num_key_value_heads"),
        (|o| o.genai.decoder.head_size = Some(8), "model.decoder.head_size"),
        (|o| o.genai.vocab_size = 81, "model.vocab_size"),
        (|o| o.genai.decoder.inputs.input_ids = "ids".into(), "not token ids"),
    ];
    for (change, key) in cases {
        let said = refusal("llama-cpu", change);
        assert!(said.contains(key), "{said:?} does not say {key:?}");
    }
}

#[test]
fn the_context_ends_where_the_caches_end() {
    let mut oga = open("llama-cpu");
    oga.genai.context_length = 1000;
    assert_eq!(graph(&oga).unwrap().hyper.context, 64);
    oga.genai.context_length = 20;
    assert_eq!(graph(&oga).unwrap().hyper.context, 20);
    assert_eq!(graph(&open("phi3-dml-long")).unwrap().hyper.context, 64);
}

#[test]
fn a_padded_head_loses_its_padding() {
    let mut oga = open("llama-cpu");
    oga.genai.vocab_size = 77;
    let graph = graph(&oga).unwrap();
    assert_eq!((graph.hyper.vocab, graph.value(graph.logits).width), (77, 77));
}

#[test]
fn long_rope_is_read_from_branches_and_from_two_caches_in_one() {
    let (branches, joined) = (graph(&open("phi3-cpu-long")), graph(&open("phi3-dml-long")));
    let (branches, joined) = (branches.unwrap().rope, joined.unwrap().rope);
    for rope in [&branches, &joined] {
        let Some((16, Angles::Table { cos, sin })) = &rope.long else { panic!("{rope:?}") };
        assert_eq!((rope.dim, cos.len(), sin.len()), (16, 64 * 8, 64 * 8));
        let Angles::Table { cos, .. } = &rope.short else { panic!("{rope:?}") };
        assert!(cos.len() >= 16 * 8);
    }
    let (mut exact, mut half) = ([[0.0; 8]; 2], [[0.0; 8]; 2]);
    let [cos, sin] = &mut exact;
    branches.short.at(5, cos, sin);
    let [cos, sin] = &mut half;
    joined.short.at(5, cos, sin);
    let close = |(a, b): (&f32, &f32)| (a - b).abs() < 1e-3;
    assert!(exact.as_flattened().iter().zip(half.as_flattened()).all(close));
}

#[test]
fn windows_come_from_the_configuration_and_from_the_node() {
    let windows = |oga: &OgaCheckpoint| -> Vec<Option<usize>> {
        let graph = graph(oga).unwrap();
        let attention = |op: &Op| match op {
            Op::Attention(attention) => Some(attention.window),
            _ => None,
        };
        graph.nodes.iter().filter_map(|node| attention(&node.op)).collect()
    };
    let mut oga = open("mistral-cpu");
    assert_eq!(windows(&oga), [Some(8), Some(8)]);
    set(node(&mut oga, "GroupQueryAttention"), "local_window_size", Attribute::Int(5));
    assert_eq!(windows(&oga), [Some(5), Some(8)]);
    oga.genai.decoder.sliding_window.as_mut().unwrap().layers = vec![0];
    assert_eq!(windows(&oga), [Some(5), None]);
}

#[test]
fn weights_keep_their_layout_and_take_their_hugging_face_names() {
    let names = |name: &str| -> Vec<String> {
        graph(&open(name)).unwrap().weights.into_iter().map(|named| named.name).collect()
    };
    let cpu = names("llama-cpu");
    for name in [
        "model.embed_tokens.weight",
        "model.layers.0.input_layernorm.weight",
        "model.layers.1.self_attn.qkv_proj.weight",
        "model.layers.1.mlp.down_proj.weight",
        "model.norm.weight",
        "lm_head.weight",
    ] {
        assert!(cpu.iter().any(|found| found == name), "{name} is not in {cpu:?}");
    }
    assert!(names("qwen2-dml").iter().any(|name| name == "model.layers.0.self_attn.k_proj.bias"));
    let tied = graph(&open("llama-cpu-tied")).unwrap();
    let (mut table, mut head) = (None, None);
    for node in &tied.nodes {
        match node.op {
            Op::Embed { table: id } => table = Some(id),
            Op::Linear { weight, .. } => head = Some(weight),
            _ => {}
        }
    }
    assert_eq!(table, head, "tied weights are one weight");
    let layout = |name: &str, weight: &str| {
        let graph = graph(&open(name)).unwrap();
        graph.weights.iter().find(|named| named.name == weight).unwrap().weight.layout().unwrap()
    };
    let quant = |bits, group| Layout::Quant { bits, group, offset: Offset::Zero };
    let qkv = "model.layers.0.self_attn.qkv_proj.weight";
    assert_eq!(layout("llama-cpu", qkv), quant(4, 32));
    assert_eq!(layout("llama-cpu-asym128", qkv), quant(4, 128));
    assert_eq!(layout("llama-cpu-kquant", "lm_head.weight"), quant(8, 32));
    assert_eq!(layout("llama-cpu-qdq", qkv), quant(4, 32));
    assert_eq!(layout("llama-cpu-f32", qkv), Layout::Dense(DType::F32));
    assert_eq!(layout("llama-dml-f16", "lm_head.weight"), Layout::Dense(DType::F16));
}

#[test]
fn only_the_rows_whose_logits_are_wanted_reach_the_head() {
    for name in ["llama-cpu", "mistral-cpu", "ryzenai-hybrid"] {
        let graph = graph(&open(name)).unwrap();
        let selects = graph.nodes.iter().filter(|node| matches!(node.op, Op::SelectRows)).count();
        assert_eq!(selects, 1, "{name}");
        assert_eq!(graph.value(graph.logits).rows, Rows::Logits, "{name}");
        assert_eq!(graph.nodes.last().unwrap().name, "lm_head", "{name}");
    }
}

#[test]
fn a_graph_that_repeats_one_name_gets_free_ones_quickly() {
    let mut oga = open("llama-cpu");
    let template = Node {
        op: "Add".into(),
        name: "same".into(),
        inputs: vec![String::new(); 2],
        ..Node::default()
    };
    let Graph { nodes, .. } = &mut oga.model.graph;
    let at = nodes.iter().position(|node| node.op == "SimplifiedLayerNormalization").unwrap();
    let mut x = nodes[at].inputs[0].clone();
    for index in 0..2000 {
        let y = format!("sum {index}");
        let (inputs, outputs) = (vec![x.clone(), x], vec![y.clone()]);
        let copy = Node { op: template.op.clone(), name: template.name.clone(), ..Node::default() };
        nodes.push(Node { inputs, outputs, ..copy });
        x = y;
    }
    let norm = nodes.iter_mut().find(|node| node.op == "SimplifiedLayerNormalization").unwrap();
    norm.inputs[0] = x;
    let graph = graph(&oga).unwrap();
    let mut names: Vec<&str> = graph.nodes.iter().map(|node| node.name.as_str()).collect();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), graph.nodes.len());
}

#[test]
fn copies_of_overlapping_weights_cannot_exceed_the_files() {
    let mut oga = open("llama-cpu-qdq");
    let graph = &mut oga.model.graph;
    let at = graph.nodes.iter().position(|node| node.op == "DequantizeLinear").unwrap();
    let named = |name: &str| graph.initializers.iter().find(|t| t.name == name).unwrap().clone();
    let codes = named(&graph.nodes[at].inputs[0]);
    // A thousand names for the same bytes, all of them read on the way to the logits.
    for index in 0..1000 {
        let name = format!("alias {index}");
        let attributes = [("axis", 0), ("block_size", 32)];
        let attributes =
            attributes.map(|(name, value)| (name.into(), Attribute::Int(value))).into();
        let inputs = vec![name.clone(), graph.nodes[at].inputs[1].clone()];
        let outputs = vec![format!("{name} out")];
        let op = "DequantizeLinear".to_owned();
        graph.nodes.push(Node { op, inputs, outputs, attributes, ..Node::default() });
        graph.nodes[at + 1].inputs.push(format!("{name} out"));
        let mut alias = codes.clone();
        alias.name = name;
        graph.initializers.push(alias);
    }
    let error = import::onnx::graph(&oga.model, &oga.genai).unwrap_err();
    assert!(error.to_string().contains("overlap too much"), "{error}");
}

#[test]
fn names_from_the_file_are_cut_in_messages() {
    let long = "x\n\0".repeat(10_000);
    for change in [0, 1, 2, 3] {
        let said = refusal("llama-cpu", |oga| {
            let node = node(oga, "MatMulNBits");
            match change {
                0 => (node.name, node.op) = (long.clone(), "Conv".into()),
                1 => node.op = long.clone(),
                2 => node.domain = long.clone(),
                _ => node.inputs[1] = long.clone(),
            }
        });
        assert!(said.len() < 1000 && !said.contains(['\n', '\0']), "{said:?}");
    }
}

#[test]
fn group_indices_must_be_those_of_the_columns() {
    let with = |groups: Vec<i32>| {
        let mut oga = open("llama-cpu");
        let data: Vec<u8> = groups.iter().flat_map(|group| group.to_le_bytes()).collect();
        let mut index = oga.model.graph.initializers[0].clone();
        (index.name, index.element, index.dims) = ("g".into(), Element::I32, vec![groups.len()]);
        index.data = Bytes::from(data);
        oga.model.graph.initializers.push(index);
        node(&mut oga, "MatMulNBits").inputs.extend([String::new(), "g".into()]);
        graph(&oga).map(drop)
    };
    with((0..64).map(|column| column / 32).collect()).unwrap();
    for wrong in [(0..64).map(|column| column % 2).collect(), vec![0; 64], vec![0; 32]] {
        assert!(with(wrong).unwrap_err().to_string().contains("another order"));
    }
}

/// The constant that the first node of an operator that has one reads as input `index`.
fn constant<'a>(oga: &'a mut OgaCheckpoint, op: &str, index: usize) -> &'a mut Tensor {
    let Graph { nodes, initializers, .. } = &mut oga.model.graph;
    let mut inputs = nodes.iter().filter(|node| node.op == op).map(|node| &node.inputs[index]);
    let position =
        inputs.find_map(|name| initializers.iter().position(|tensor| tensor.name == *name));
    &mut initializers[position.unwrap_or_else(|| panic!("no constant of {op}"))]
}

#[test]
fn refuses_numbers_that_are_none() {
    let infinite = |oga: &mut OgaCheckpoint, op: &str, index: usize| {
        let tensor = constant(oga, op, index);
        let mut data = tensor.data.to_vec();
        // The last element, all ones: no number in any float type.
        let last = data.len() - 2;
        data[last..].fill(0xff);
        tensor.data = data.into();
    };
    for (name, op, index) in [
        ("llama-cpu", "MatMulNBits", 2),
        ("llama-cpu", "SimplifiedLayerNormalization", 1),
        ("llama-cpu", "Gather", 0),
        ("llama-dml-f16", "MatMul", 1),
        ("qwen2-dml", "Add", 1),
    ] {
        let mut oga = open(name);
        infinite(&mut oga, op, index);
        // Scales are named by their codes.
        let tensor = constant(&mut oga, op, index.min(1)).name.clone();
        let said = graph(&oga).map(drop).expect_err(&tensor).to_string();
        assert!(said.contains(&tensor) && said.contains("not finite"), "{name}: {said}");
        oga.model.finite = true;
        graph(&oga).expect("whoever says that all are finite has read them");
    }
    let said = refusal("llama-cpu", |oga| infinite(oga, "GroupQueryAttention", 7));
    assert!(said.contains("no numbers"), "{said}");
    for epsilon in [-1.0, f32::NAN, f32::INFINITY] {
        let said = refusal("llama-cpu", |oga| {
            set(node(oga, "SkipSimplifiedLayerNormalization"), "epsilon", Attribute::Float(epsilon))
        });
        assert!(said.contains("epsilon"), "{said}");
        if !epsilon.is_finite() {
            let said = refusal("llama-cpu", |oga| {
                set(node(oga, "GroupQueryAttention"), "scale", Attribute::Float(epsilon))
            });
            assert!(said.contains("\"scale\""), "{said}");
        }
    }
}

/// A node in front of input `index` of the first node of an operator.
fn before(oga: &mut OgaCheckpoint, op: &str, index: usize, new: &str) {
    let next = node(oga, op);
    let from = std::mem::replace(&mut next.inputs[index], "between".into());
    let (inputs, outputs) = (vec![from], vec!["between".into()]);
    oga.model.graph.nodes.push(Node { op: new.into(), inputs, outputs, ..Node::default() });
}

#[test]
fn activations_may_be_cast_to_floats_only() {
    let cast = |to: i64| {
        let mut oga = open("llama-cpu");
        before(&mut oga, "SimplifiedLayerNormalization", 0, "Cast");
        set(oga.model.graph.nodes.last_mut().unwrap(), "to", Attribute::Int(to));
        graph(&oga).map(drop)
    };
    for float in [1, 10, 16] {
        cast(float).unwrap();
    }
    for other in [3, 7, 11, 17, -1] {
        let said = cast(other).unwrap_err().to_string();
        assert!(said.contains(&format!("activations (to type {other})")), "{said}");
    }
}

#[test]
fn a_bias_is_not_added_to_what_others_read_without_it() {
    let mut oga = open("qwen2-dml");
    // The first Add is that of the bias of q; that of k comes next.
    let adds: Vec<usize> = (0..oga.model.graph.nodes.len())
        .filter(|&index| oga.model.graph.nodes[index].op == "Add")
        .collect();
    graph(&oga).unwrap();
    let nodes = &mut oga.model.graph.nodes;
    let input = nodes[adds[1]].inputs.iter().position(|name| name.contains("k_proj")).unwrap();
    let plain = std::mem::replace(&mut nodes[adds[1]].inputs[input], "alias".into());
    let (inputs, outputs) = (vec![plain.clone()], vec!["alias".to_owned()]);
    nodes.push(Node { op: "Identity".into(), inputs, outputs, ..Node::default() });
    graph(&oga).expect("another name alone changes nothing");
    node(&mut oga, "GroupQueryAttention").inputs[2] = plain;
    let said = graph(&oga).map(drop).unwrap_err().to_string();
    assert!(said.contains("as the bias of a linear"), "{said}");
}
