//! What is read of ONNX models and `genai_config.json`.

use crate::proto::{CONFIG, bytes, decoder, folder, int, model, node, small, tensor, varint};
use tangor_formats::genai::{GenaiConfig, Search, SlidingWindow};
use tangor_formats::onnx::{Attribute, Element, OnnxModel, Tensor};
use tangor_formats::{Checkpoint, ErrorKind, FormatError, Limits, MemorySource};
use tangor_tensor::DType;

fn open(graph: &[u8]) -> Result<OnnxModel, FormatError> {
    OnnxModel::open(&folder(CONFIG, model(graph)), "model.onnx", &Limits::default())
}

fn initializer(tensor: &[u8]) -> Tensor {
    open(&bytes(5, tensor)).unwrap().graph.initializers.remove(0)
}

#[test]
fn a_folder_is_read_with_its_external_data() {
    let source = folder(CONFIG, model(&small()));
    let Checkpoint::Oga(oga) = Checkpoint::open(&source, None, &Limits::default()).unwrap() else {
        panic!("an OGA folder");
    };
    let graph = &oga.model.graph;
    assert_eq!(oga.model.opsets, [("com.microsoft".to_owned(), 1)]);
    assert_eq!(graph.inputs, ["input_ids"]);
    assert_eq!(graph.outputs, ["logits"]);
    assert_eq!(graph.nodes[0].op, "Gather");
    assert_eq!(graph.nodes[0].input(1), Some("input_ids"));
    assert_eq!(graph.nodes[0].label(), "/Gather");
    let weight = &graph.initializers[0];
    assert_eq!((&weight.dims[..], weight.element), (&[2, 1][..], Element::Float(DType::F32)));
    assert_eq!(&weight.data[..], [4, 5, 6, 7, 8, 9, 10, 11]);
}

#[test]
fn a_whole_decoder_is_read() {
    let model = open(&decoder()).unwrap();
    assert_eq!((model.graph.nodes.len(), model.graph.initializers.len()), (17, 17));
    assert!(model.graph.nodes.iter().all(|node| node.domain.is_empty() || node.op != "Gather"));
}

#[test]
fn every_place_and_type_of_elements_is_read() {
    let raw = |element, dims: &[i64], data: &[u8]| tensor("t", element, dims, &bytes(9, data));
    for (tensor, expected) in [
        (raw(7, &[1], &(-2i64).to_le_bytes()), vec![-2]),
        (raw(6, &[2], &[1, 0, 0, 0, 0xff, 0xff, 0xff, 0xff]), vec![1, -1]),
        (raw(3, &[2], &[0x80, 1]), vec![-128, 1]),
        (raw(2, &[], &[200]), vec![200]),
        (raw(9, &[2], &[0, 1]), vec![0, 1]),
        (tensor("t", 7, &[2], &[int(7, 5), int(7, -5)].concat()), vec![5, -5]),
        (tensor("t", 7, &[2], &bytes(7, [varint(5), varint(300)].concat())), vec![5, 300]),
        (tensor("t", 2, &[3], &bytes(5, [1, 2, 3])), vec![1, 2, 3]),
    ] {
        assert_eq!(initializer(&tensor).integers(), Some(expected));
    }
    let float = initializer(&tensor("t", 1, &[2], &bytes(4, [0, 0, 0x80, 0x3f, 0, 0, 0, 0x40])));
    assert_eq!(float.floats(), Some(vec![1.0, 2.0]));
    let half = initializer(&tensor("t", 10, &[1], &bytes(5, varint(0x3c00))));
    assert_eq!(half.floats(), Some(vec![1.0]));
    let bfloat = initializer(&raw(16, &[1], &[0x80, 0x3f]));
    assert_eq!(bfloat.floats(), Some(vec![1.0]));
    let nibbles = initializer(&raw(22, &[3], &[0x21, 0x03]));
    assert_eq!((nibbles.element, &nibbles.data[..]), (Element::I4, &[0x21, 3][..]));
    let text = initializer(&tensor("t", 8, &[1], &bytes(6, "ignored")));
    assert_eq!((text.element, text.data.len()), (Element::Other(8), 0));
}

#[test]
fn attributes_are_read() {
    let attribute = |name: &str, rest: Vec<u8>| [bytes(1, name), rest].concat();
    let float = [vec![2 << 3 | 5], 0.5f32.to_le_bytes().to_vec()].concat();
    let branch = bytes(12, bytes(1, "out"));
    let graph = bytes(
        1,
        node(
            "If",
            &["c"],
            &["y"],
            &[
                attribute("f", float),
                attribute("i", int(3, -7)),
                attribute("s", bytes(4, "tanh")),
                attribute("ints", [int(8, 1), int(8, 2)].concat()),
                attribute("floats", bytes(7, 2f32.to_le_bytes())),
                attribute("then_branch", bytes(6, branch)),
                attribute("t", bytes(5, tensor("", 7, &[], &int(7, 9)))),
            ],
        ),
    );
    let model = open(&graph).unwrap();
    let node = &model.graph.nodes[0];
    assert_eq!((node.float("f"), node.int("i")), (Some(0.5), Some(-7)));
    assert_eq!((node.int("f"), node.int("nothing")), (None, None));
    assert!(matches!(node.attribute("s"), Some(Attribute::String(text)) if text == "tanh"));
    assert!(matches!(node.attribute("ints"), Some(Attribute::Ints(list)) if *list == [1, 2]));
    assert!(matches!(node.attribute("floats"), Some(Attribute::Floats(list)) if *list == [2.0]));
    assert_eq!(node.graph("then_branch").unwrap().outputs, ["out"]);
    assert_eq!(node.tensor("t").unwrap().integers(), Some(vec![9]));
}

#[test]
fn limits_of_onnx_models_hold_to_the_number() {
    let nested = |depth: usize| {
        (0..depth).fold(Vec::new(), |inner, _| {
            let branch = [bytes(1, "then_branch"), bytes(6, inner)].concat();
            bytes(1, node("If", &[], &[], &[branch]))
        })
    };
    let nodes = |count: usize| bytes(1, node("Shape", &[], &[], &[])).repeat(count);
    let rank = |count: usize| bytes(5, tensor("t", 2, &vec![1; count], &bytes(9, [0])));
    let tensors = |count: usize| -> Vec<u8> {
        (0..count).flat_map(|i| bytes(5, tensor(&i.to_string(), 2, &[0], &[]))).collect()
    };
    let limits = Limits { onnx_nodes: 10, onnx_depth: 8, dims: 8, tensors: 9, ..Limits::default() };
    for (what, graph, fits) in [
        ("nodes", nodes(9), true),
        ("nodes", nodes(10), true),
        ("nodes", nodes(11), false),
        ("depth", nested(8), true),
        ("depth", nested(9), false),
        ("dims", rank(8), true),
        ("dims", rank(9), false),
        ("tensors", tensors(9), true),
        ("tensors", tensors(10), false),
    ] {
        let source = folder(CONFIG, model(&graph));
        match OnnxModel::open(&source, "model.onnx", &limits) {
            Ok(_) => assert!(fits, "{what} over the limit"),
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::Limit, "{what}: {error}");
                assert!(!fits, "{what} within the limit: {error}");
            }
        }
    }
}

#[test]
fn a_message_of_two_gigabytes_is_refused_unread() {
    let file = tempfile::tempfile().unwrap();
    file.set_len(1 << 31).unwrap();
    let (bytes, _guard) = tangor_tensor::map_file(&file).unwrap();
    let source = MemorySource::new("m").with("model.onnx", bytes);
    let error = OnnxModel::open(&source, "model.onnx", &Limits::default()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Limit);
}

#[test]
fn a_model_cut_anywhere_is_refused_or_reads_as_less() {
    let whole = model(&small());
    for len in 0..whole.len() {
        let source = folder(CONFIG, whole[..len].to_vec());
        if let Ok(model) = OnnxModel::open(&source, "model.onnx", &Limits::default()) {
            // The message may end where its last field would begin.
            assert_eq!(model.graph.nodes.len(), 1, "cut to {len} bytes");
            assert!(model.opsets.is_empty(), "cut to {len} bytes");
        }
    }
}

fn config(changes: &str) -> Result<GenaiConfig, FormatError> {
    let text = CONFIG.replace("\"vocab_size\":2", changes);
    GenaiConfig::parse(text.as_bytes(), &Limits::default())
}

#[test]
fn a_configuration_with_everything_is_read() {
    let text = r#"{
        "model": {
            "type": "phi3", "context_length": 131072, "vocab_size": 32064,
            "bos_token_id": 1, "eos_token_id": [32007, 32001], "pad_token_id": 32000,
            "tokenizer_dir": "./tokenizer",
            "decoder": {
                "filename": "model_jit.onnx", "hidden_size": 3072, "num_attention_heads": 32,
                "num_key_value_heads": 32, "num_hidden_layers": 32, "head_size": 96,
                "session_options": {
                    "log_id": "onnxruntime-genai", "intra_op_num_threads": 4,
                    "custom_ops_library": "onnx_custom_ops.dll", "custom_allocator": "ryzen_mm",
                    "external_data_file": "model_jit.pb.bin",
                    "config_entries": {"hybrid_opt_token_backend": "npu"},
                    "amd_options": {"dd_cache": "C:\\cache", "dd_root": "..\\dd"},
                    "provider_options": [{"RyzenAI": {"hybrid_opt_free_after_prefill": "1"}},
                                         {"SomethingNew": {}}]
                },
                "inputs": {"input_ids": "ids", "past_key_names": "k%d"},
                "outputs": {"logits": "l"},
                "sliding_window": {"window_size": 262144, "layers": [0, 2],
                                   "slide_key_value_cache": false}
            }
        },
        "search": {"do_sample": true, "top_k": 5, "top_p": 0.9, "temperature": 0.6,
                   "max_length": 4096.0, "random_seed": 7, "early_stopping": true},
        "speculative": {"max_draft_tokens": 4}, "engine": {}
    }"#;
    let config = GenaiConfig::parse(text.as_bytes(), &Limits::default()).unwrap();
    assert_eq!((config.model_type.as_str(), config.context_length), ("phi3", 131_072));
    assert_eq!((config.bos_token_id, config.pad_token_id), (Some(1), Some(32000)));
    assert_eq!(config.eos_token_ids, [32007, 32001]);
    let decoder = &config.decoder;
    assert_eq!((decoder.filename.as_str(), decoder.logits.as_str()), ("model_jit.onnx", "l"));
    assert_eq!(decoder.inputs.input_ids, "ids");
    assert_eq!(decoder.inputs.past_value_names, "past_key_values.%d.value");
    assert_eq!(decoder.providers, ["RyzenAI", "SomethingNew"]);
    let window = SlidingWindow { window_size: 262_144, layers: vec![0, 2] };
    assert_eq!(decoder.sliding_window, Some(window));
    let search = Search {
        do_sample: true,
        top_k: 5,
        top_p: 0.9,
        temperature: 0.6,
        max_length: 4096,
        random_seed: 7,
        ..Search::default()
    };
    assert_eq!(config.search, search);
    assert_eq!(config.raw["engine"], serde_json::json!({}));
}

#[test]
fn what_a_configuration_leaves_out_has_the_defaults_of_the_runtime() {
    let config = config(r#""vocab_size":2,"pad_token_id":0,"bos_token_id":-1"#).unwrap();
    assert_eq!(config.search.top_k, 50);
    assert_eq!((config.bos_token_id, config.pad_token_id), (None, Some(0)));
    assert_eq!(config.decoder.sliding_window, None);
    assert_eq!(config.decoder.inputs.attention_mask, "attention_mask");
    let text = CONFIG.replace("\"eos_token_id\":1", "\"pad_token_id\":1");
    let config = GenaiConfig::parse(text.as_bytes(), &Limits::default()).unwrap();
    assert_eq!(config.eos_token_ids, [1], "the padding ends answers if nothing else does");
}

#[test]
fn errors_carry_the_path_of_the_key() {
    let path = |text: String| {
        let error = GenaiConfig::parse(text.as_bytes(), &Limits::default()).unwrap_err();
        error.subject().to_owned()
    };
    let model = |changes: &str| path(CONFIG.replace("\"vocab_size\":2", changes));
    let decoder = |changes: &str| path(CONFIG.replace("\"filename\":\"model.onnx\"", changes));
    for (found, key) in [
        (path("{}".into()), "model"),
        (path(r#"{"model":{}}"#.into()), "model.vocab_size"),
        (model(r#""vocab_size":"2""#), "model.vocab_size"),
        (
            model(r#""vocab_size":2,"eos_token_id":[1,-3]"#.replace("eos", "pad").as_str()),
            "model.pad_token_id",
        ),
        (decoder("\"hidden_size\":1"), "model.decoder.filename"),
        (decoder(r#""filename":"../x""#), "model.decoder.filename"),
        (decoder(r#""filename":"x","inputs":{"input_ids":3}"#), "model.decoder.inputs.input_ids"),
        (decoder(r#""filename":"x","pipeline":[{}]"#), "model.decoder.pipeline"),
        (
            decoder(r#""filename":"x","session_options":{"provider_options":["cpu"]}"#),
            "model.decoder.session_options.provider_options",
        ),
    ] {
        assert_eq!(found, format!("genai_config.json: {key}"));
    }
}
