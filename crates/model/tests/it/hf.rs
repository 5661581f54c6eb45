//! What is wrong with a Hugging Face folder is said with the tensor's name.

use tangor_model::formats::{Checkpoint, Limits, MemorySource};
use tangor_model::{Graph, ImportError, import};
use tangor_testkit::tiny;

/// A recorded folder with its `config.json` changed, and its tensors' names.
fn changed(
    name: &str,
    config: impl Fn(&mut serde_json::Value),
    (from, to): (&str, &str),
) -> Result<Graph, ImportError> {
    let read = |file: &str| std::fs::read(tiny::folder(name).join(file)).unwrap();
    let mut json = serde_json::from_slice(&read("config.json")).unwrap();
    config(&mut json);
    let mut tensors = read("model.safetensors");
    assert_eq!(from.len(), to.len(), "offsets must stay");
    let found = tensors.windows(from.len()).position(|window| window == from.as_bytes());
    let start = found.unwrap();
    tensors[start..start + to.len()].copy_from_slice(to.as_bytes());
    let source = MemorySource::new(name)
        .with("config.json", json.to_string().into_bytes())
        .with("model.safetensors", tensors);
    import(&Checkpoint::open(&source, None, &Limits::default())?)
}

fn message(result: Result<Graph, ImportError>) -> String {
    result.expect_err("must be refused").to_string()
}

const SAME: (&str, &str) = ("model.norm.weight", "model.norm.weight");

#[test]
fn names_the_tensor_that_is_missing() {
    let renamed = ("layers.1.mlp.up_proj.weight", "layers.1.mlp.xx_proj.weight");
    let expected = "tensor \"model.layers.1.mlp.up_proj.weight\" is missing (expected 96 x 64)";
    assert_eq!(message(changed("llama-tied", |_| {}, renamed)), expected);
}

#[test]
fn names_the_tensor_whose_shape_contradicts_the_configuration() {
    let wider = |config: &mut serde_json::Value| config["intermediate_size"] = 128.into();
    let expected = "tensor \"model.layers.0.mlp.gate_proj.weight\" is 96 x 64, not 128 x 64 as \
                    configured";
    assert_eq!(message(changed("llama-tied", wider, SAME)), expected);
}

#[test]
fn names_the_tensor_that_the_architecture_does_not_use() {
    // Biases that a llama only has if its configuration says so.
    let no_bias = |config: &mut serde_json::Value| config["attention_bias"] = false.into();
    let error = message(changed("llama-biases", no_bias, SAME));
    assert!(error.contains(".bias\" is no part of the architecture"), "{error}");
    let one_layer = |config: &mut serde_json::Value| config["num_hidden_layers"] = 1.into();
    let error = message(changed("llama-tied", one_layer, SAME));
    assert!(error.contains("model.layers.1."), "{error}");
}

#[test]
fn lists_the_known_architectures() {
    let other = |config: &mut serde_json::Value| config["model_type"] = "mixtral".into();
    let error = message(changed("mistral-window", other, SAME));
    assert!(error.contains("\"mixtral\" (known: llama, mistral, phi3, qwen2)"), "{error}");
}
