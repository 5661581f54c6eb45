//! Tiny models: recorded ones with the logits that transformers computes for them, and random ones
//! of any architecture and weight layout.
//!
//! The recorded ones lie in `crates/device/tests/fixtures`, made by `tools/goldens/tiny.py`.
#![allow(clippy::expect_used, reason = "a broken fixture has to stop the test that needs it")]

use serde_json::{Value, json};
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use tangor_model::formats::{Checkpoint, HfConfig, Limits, MemorySource};
use tangor_model::ir::Node;
use tangor_model::tensor::{DType, Layout, Weight, map_file};
use tangor_model::{Config, Graph, Mixture, Op, WeightId, import, shapes};

/// The recorded models: an architecture and what is particular about it.
pub static RECORDED: &[&str] = &[
    "llama-biases",
    "llama-tied",
    "llama3-rope",
    "mistral-head-dim",
    "mistral-window",
    "phi3-longrope",
    "phi3-window",
    "qwen2",
    "qwen2-window",
];

/// Those of [`RECORDED`] that also are a GGUF file with the same weights.
pub static RECORDED_GGUF: &[&str] = &["llama-biases", "llama3-rope", "phi3-longrope", "qwen2"];

/// A prompt and what transformers computes for it, in `f32`.
#[derive(Clone, Debug)]
pub struct Recorded {
    /// The prompt.
    pub tokens: Vec<u32>,
    /// Rows whose logits are recorded, ascending.
    pub rows: Vec<usize>,
    /// `(rows.len(), vocab)`.
    pub logits: Vec<f32>,
}

/// The folder of a recorded model: `config.json`, `model.safetensors`, perhaps `model.gguf`.
#[must_use]
pub fn folder(name: &str) -> PathBuf {
    let fixtures = concat!(env!("CARGO_MANIFEST_DIR"), "/../device/tests/fixtures");
    PathBuf::from(fixtures).join(name)
}

/// The recorded prompts of a model of [`RECORDED`].
///
/// # Panics
/// If the fixture is not there or is damaged.
#[must_use]
pub fn recorded(name: &str) -> Vec<Recorded> {
    let runs: Value = serde_json::from_slice(&file(name, "golden.json")).expect("golden.json");
    let numbers = |run: &Value, key: &str| -> Vec<usize> {
        serde_json::from_value(run[key].clone()).expect("a list of numbers")
    };
    let bytes = file(name, "logits.f32");
    let mut logits = bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b));
    let vocab = config(name)["vocab_size"].as_u64().expect("a number");
    let vocab = usize::try_from(vocab).expect("a small number");
    let runs = runs.as_array().expect("a list of runs").iter().map(|run| {
        let rows = numbers(run, "rows");
        let logits: Vec<f32> = logits.by_ref().take(rows.len() * vocab).collect();
        assert_eq!(logits.len(), rows.len() * vocab, "logits of {name}");
        let token = |token: usize| u32::try_from(token).expect("a small number");
        let tokens = numbers(run, "tokens").into_iter().map(token).collect();
        Recorded { tokens, rows, logits }
    });
    runs.collect()
}

/// A recorded model from its Hugging Face folder.
///
/// # Panics
/// If the fixture is not there or is damaged.
#[must_use]
pub fn hf(name: &str) -> Checkpoint {
    let source = MemorySource::new(name)
        .with("config.json", file(name, "config.json"))
        .with("model.safetensors", file(name, "model.safetensors"));
    Checkpoint::open(&source, None, &Limits::default()).expect("a folder")
}

/// A recorded model of [`RECORDED_GGUF`] from its GGUF file.
///
/// # Panics
/// If the fixture is not there or is damaged.
#[must_use]
pub fn gguf(name: &str) -> Checkpoint {
    let source = MemorySource::new(name).with("model.gguf", file(name, "model.gguf"));
    Checkpoint::open(&source, None, &Limits::default()).expect("a GGUF file")
}

/// The chat template of [`write_with_text`]: every message behind its role, then the role that
/// answers.
pub const TEMPLATE: &str = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}\
                            {% if add_generation_prompt %}assistant: {% endif %}";

/// Writes a recorded model with a tokenizer of 256 bytes and a chat template, as a folder.
///
/// # Panics
/// If the folder cannot be written.
pub fn write_with_text(to: &Path) {
    std::fs::create_dir_all(to).expect("a folder");
    for name in ["config.json", "model.safetensors"] {
        std::fs::write(to.join(name), file("llama-tied", name)).expect("a file");
    }
    let config = json!({ "chat_template": TEMPLATE });
    for (name, json) in [("tokenizer.json", byte_tokenizer()), ("tokenizer_config.json", config)] {
        std::fs::write(to.join(name), json.to_string()).expect("a file");
    }
}

/// A byte-level BPE without merges: one token per byte.
fn byte_tokenizer() -> Value {
    // The printable stand-ins for bytes of GPT-2's encoder.
    let printable = |byte: u32| matches!(byte, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
    let mut others = 0x100..;
    let mut vocab = serde_json::Map::new();
    for byte in 0..256_u32 {
        let stand_in = if printable(byte) { byte } else { others.next().expect("no end") };
        let stand_in = char::from_u32(stand_in).expect("a character");
        vocab.insert(stand_in.to_string(), byte.into());
    }
    let bytes = json!({
        "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true
    });
    json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": [],
        "normalizer": null,
        "pre_tokenizer": bytes,
        "post_processor": null,
        "decoder": bytes,
        "model": {
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false,
            "vocab": vocab, "merges": []
        }
    })
}

/// The graph of a recorded model, after every pass.
///
/// # Panics
/// If the fixture is not there or is damaged.
#[must_use]
pub fn graph(name: &str) -> Graph {
    import(&hf(name)).expect("a graph")
}

/// A model of two layers with random weights in `layout`, of the architecture `arch`: `llama`,
/// `mistral` (with a window of 16), `qwen2` or `phi3`. 64 wide, 4 heads over 2, 256 tokens.
///
/// # Panics
/// If there is no such architecture, or it cannot have such weights.
#[must_use]
pub fn random(arch: &str, layout: Layout, seed: u64) -> Graph {
    let config = random_config(json!({
        "model_type": arch,
        "vocab_size": 256,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "sliding_window": if arch == "mistral" { json!(16) } else { Value::Null },
    }));
    shapes::random_graph(&config, layout, seed).expect("a graph")
}

/// A llama of one layer with random weights in blocks of `Q4_K` and `Q6_K`, for which it is as
/// narrow as can be: 256 wide, 4 heads over 2, 256 tokens.
///
/// # Panics
/// Never: there are such models.
#[must_use]
pub fn random_k_quants(seed: u64) -> Graph {
    let config = random_config(json!({
        "model_type": "llama",
        "vocab_size": 256,
        "hidden_size": 256,
        "intermediate_size": 256,
        "num_hidden_layers": 1,
    }));
    shapes::random_mixture(&config, Mixture::Q4KM, seed).expect("a graph")
}

/// A configuration with what all random models have in common.
fn random_config(mut own: Value) -> Config {
    own["num_attention_heads"] = json!(4);
    own["num_key_value_heads"] = json!(2);
    own["max_position_embeddings"] = json!(512);
    let config = HfConfig::from_json(own, &Limits::default()).expect("a configuration");
    Config::from_hf(&config).expect("a known architecture")
}

fn config(name: &str) -> Value {
    serde_json::from_slice(&file(name, "config.json")).expect("config.json")
}

fn file(name: &str, file: &str) -> Vec<u8> {
    let path = folder(name).join(file);
    std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Puts a weight's rows, in `f32`, into a file that is mapped from then on.
///
/// # Panics
/// If the file cannot be written or mapped.
pub fn map_weight(graph: &mut Graph, id: WeightId, mut file: &File) {
    let weight = graph.weight(id);
    let (rows, cols) = (weight.rows(), weight.cols());
    let mut row = vec![0.0_f32; cols];
    for index in 0..rows {
        weight.row_f32(index, &mut row);
        let bytes: Vec<u8> = row.iter().flat_map(|x| x.to_le_bytes()).collect();
        file.write_all(&bytes).expect("room for a weight");
    }
    let (bytes, _) = map_file(file).expect("a map");
    graph.weights[id.0].weight =
        Weight::dense(DType::F32, rows, cols, bytes).expect("a weight of that shape");
}

/// The table of a graph's tokens.
///
/// # Panics
/// If it has none.
#[must_use]
pub fn table(graph: &Graph) -> WeightId {
    let table = |node: &Node| match node.op {
        Op::Embed { table } => Some(table),
        _ => None,
    };
    graph.nodes.iter().find_map(table).expect("a table")
}
