//! An ONNX model of any bytes, and the graph that is made of it.
#![no_main]

use libfuzzer_sys::fuzz_target;
use std::sync::LazyLock;
use tangor_formats::genai::GenaiConfig;
use tangor_formats::onnx::OnnxModel;
use tangor_formats::{Limits, MemorySource};
use tangor_model::import;

static CONFIG: LazyLock<Option<GenaiConfig>> = LazyLock::new(|| {
    let text = br#"{"model":{"type":"llama","context_length":8,"vocab_size":2,"eos_token_id":1,
        "decoder":{"filename":"model.onnx"}}}"#;
    GenaiConfig::parse(text, &Limits::default()).ok()
});

fuzz_target!(|data: &[u8]| {
    let source =
        MemorySource::new("m").with("model.onnx", data.to_vec()).with("w.data", vec![7; 64]);
    let Ok(model) = OnnxModel::open(&source, "model.onnx", &Limits::default()) else { return };
    for tensor in &model.graph.initializers {
        let _ = (tensor.integers(), tensor.floats());
    }
    let Some(config) = CONFIG.as_ref() else { return };
    let Ok(graph) = import::onnx::graph(&model, config) else { return };
    for named in &graph.weights {
        let mut row = vec![0.0; named.weight.cols()];
        named.weight.row_f32(named.weight.rows() - 1, &mut row);
    }
    tangor_model::pass::run_all(graph).expect("a graph whose shapes fit");
});
