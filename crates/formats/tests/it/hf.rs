//! What good Hugging Face folders say.

use crate::build::{arrays, config, f32s, llama_arrays};
use std::path::PathBuf;
use tangor_formats::{
    Checkpoint, ErrorKind, HfCheckpoint, HfConfig, Limits, MemorySource, Result, json,
};
use tangor_tensor::{Layout, Offset};

fn open(source: &MemorySource) -> Result<HfCheckpoint> {
    HfCheckpoint::open(source, &Limits::default())
}

fn llama(changes: &str) -> MemorySource {
    MemorySource::new("m")
        .with("config.json", config(changes))
        .with("model.safetensors", llama_arrays())
}

fn config_of(changes: &str) -> HfConfig {
    let limits = Limits::default();
    let raw = json::parse("config.json", &config(changes), &limits).unwrap();
    HfConfig::from_json(raw, &limits).unwrap()
}

fn matrix(hf: &HfCheckpoint, name: &str) -> (usize, usize, Vec<f32>) {
    let weight = hf.tensor(name).unwrap();
    let mut out = vec![0.0; weight.rows() * weight.cols()];
    for (row, out) in out.chunks_mut(weight.cols()).enumerate() {
        weight.row_f32(row, out);
    }
    (weight.rows(), weight.cols(), out)
}

#[test]
fn the_configuration_reads_as_it_was_written() {
    let config = config_of("");
    assert_eq!(config.model_type, "llama");
    assert_eq!(config.architectures, ["LlamaForCausalLM"]);
    assert_eq!((config.num_attention_heads, config.num_key_value_heads), (4, 2));
    assert_eq!((config.hidden_size, config.head_dim, config.vocab_size), (32, 8, 4));
    assert!((config.rms_norm_eps - 1e-5).abs() < 1e-12);
    assert!(config.tie_word_embeddings);
    assert_eq!(config.eos_token_ids, [2, 3]);
    assert_eq!(config.rope_scaling, None);
    assert_eq!(config.raw["max_position_embeddings"], 128);
}

#[test]
fn what_is_left_out_has_the_architecture_s_default() {
    let config = config_of(
        r#""num_key_value_heads":null,"head_dim":16,"rope_theta":null,"eos_token_id":7,"#,
    );
    assert_eq!((config.num_key_value_heads, config.head_dim), (4, 16));
    assert!((config.rope_theta - 10_000.0).abs() < 1e-9);
    assert_eq!((config.hidden_act.as_str(), config.eos_token_ids), ("silu", vec![7]));
}

#[test]
fn windows_are_what_the_file_says_of_them() {
    let window = |changes: &str| config_of(changes).sliding_window;
    assert_eq!(window(""), None);
    assert_eq!(window(r#""sliding_window":64,"#), Some(64));
    assert_eq!(window(r#""sliding_window":null,"#), None);
    assert_eq!(window(r#""sliding_window":64,"use_sliding_window":true,"#), Some(64));
    assert_eq!(window(r#""sliding_window":64,"use_sliding_window":false,"#), None);
}

#[test]
fn rope_scaling_reads_in_the_old_and_the_new_spelling() {
    let old = config_of(
        r#""rope_theta":500000.0,"rope_scaling":{"rope_type":"llama3","factor":32.0,
        "low_freq_factor":1.0,"high_freq_factor":4.0,"original_max_position_embeddings":8192},"#,
    );
    let new = config_of(
        r#""rope_theta":null,"rope_parameters":{"rope_theta":500000.0,"rope_type":"llama3",
        "factor":32.0,"low_freq_factor":1.0,"high_freq_factor":4.0,
        "original_max_position_embeddings":8192},"#,
    );
    assert_eq!(old.rope_scaling, new.rope_scaling);
    assert!((old.rope_theta - new.rope_theta).abs() < 1e-9);
    let scaling = old.rope_scaling.unwrap();
    assert_eq!((scaling.kind.as_str(), scaling.factor), ("llama3", Some(32.0)));
    assert_eq!(scaling.original_max_position_embeddings, Some(8192));

    let mixed = config_of(
        r#""rope_theta":500000.0,"partial_rotary_factor":0.5,
        "rope_parameters":{"rope_type":"default"},"#,
    );
    assert!((mixed.rope_theta - 500_000.0).abs() < 1e-9, "{}", mixed.rope_theta);
    assert!((mixed.partial_rotary_factor - 0.5).abs() < 1e-9);
    let plain = config_of(r#""rope_parameters":{"rope_theta":1.0,"rope_type":"default"},"#);
    assert_eq!(plain.rope_scaling, None);
    let long = config_of(
        r#""original_max_position_embeddings":64,"rope_scaling":{"type":"su",
        "short_factor":[1.0,1.5],"long_factor":[2,4]},"#,
    );
    assert_eq!(long.original_max_position_embeddings, Some(64));
    let scaling = long.rope_scaling.unwrap();
    assert_eq!((scaling.kind.as_str(), scaling.long_factor), ("longrope", vec![2.0, 4.0]));
}

#[test]
fn arrays_of_every_rank_and_float_type_are_weights() {
    let weights = arrays(&[
        ("model.embed_tokens.weight", "F32", &[4, 32], f32s(&[0.5; 128])),
        ("vector", "BF16", &[2], vec![0x80, 0x3f, 0x00, 0xc0]),
        ("scalar", "F32", &[], f32s(&[7.0])),
        ("cube", "F16", &[2, 2, 1], [0x00, 0x3c].repeat(4)),
    ]);
    let hf = open(&llama("").with("model.safetensors", weights)).unwrap();
    assert_eq!(matrix(&hf, "vector"), (1, 2, vec![1.0, -2.0]));
    assert_eq!(matrix(&hf, "scalar"), (1, 1, vec![7.0]));
    assert_eq!(matrix(&hf, "cube"), (4, 1, vec![1.0; 4]));
    assert_eq!(hf.tensor_names().count(), 4);
    assert!(hf.has("cube") && !hf.has("no.such"));
    assert!(hf.tensor("no.such").is_err());
}

#[test]
fn a_sharded_checkpoint_is_one_checkpoint() {
    let index = br#"{"metadata":{"total_size":520},"weight_map":{
        "model.embed_tokens.weight":"a.safetensors","norm":"b.safetensors"}}"#;
    let source = MemorySource::new("m")
        .with("config.json", config(""))
        .with("model.safetensors.index.json", &index[..])
        .with("a.safetensors", llama_arrays())
        .with("b.safetensors", arrays(&[("norm", "F32", &[2], f32s(&[1.0, 2.0]))]));
    let hf = open(&source).unwrap();
    assert_eq!(matrix(&hf, "norm"), (1, 2, vec![1.0, 2.0]));
    assert_eq!(hf.tensor("model.embed_tokens.weight").unwrap().rows(), 4);
}

#[test]
fn the_only_file_may_have_any_name_and_the_usual_one_wins() {
    let other = arrays(&[("model.embed_tokens.weight", "F32", &[4, 32], f32s(&[2.0; 128]))]);
    let alone = MemorySource::new("m")
        .with("config.json", config(""))
        .with("weights.safetensors", other.clone());
    let name = "model.embed_tokens.weight";
    assert_eq!(matrix(&open(&alone).unwrap(), name).2[0], 2.0);
    let both = llama("").with("consolidated.safetensors", other);
    assert_eq!(matrix(&open(&both).unwrap(), name).2[0], 0.5);
}

#[test]
fn a_folder_is_opened_by_what_it_holds() {
    let source = llama("").with("tokenizer.json", &b"{}"[..]).with("README.md", &b"x"[..]);
    let checkpoint = Checkpoint::open(&source, None, &Limits::default()).unwrap();
    let Checkpoint::Hf(hf) = &checkpoint else { panic!("not a Hugging Face model") };
    assert!(hf.sidecars().tokenizer_json.is_some());
    assert!(checkpoint.sidecars().unwrap().chat_template.is_none());
    checkpoint.check_unchanged().unwrap();
}

/// The layout of each golden checkpoint's linear.
const PACKED: [(&str, Layout); 12] = {
    const fn layout(bits: u8, group: usize, offset: Offset) -> Layout {
        Layout::Quant { bits, group, offset }
    }
    [
        ("awq", layout(4, 32, Offset::Zero)),
        ("awq_per_output", layout(4, 64, Offset::Zero)),
        ("gptq", layout(4, 32, Offset::Zero)),
        ("gptq_zero_16", layout(4, 16, Offset::Min)),
        ("gptq_middle", layout(4, 64, Offset::Zero)),
        ("gptq_v2", layout(4, 32, Offset::Zero)),
        ("gptq_8bit", layout(8, 32, Offset::Zero)),
        ("quark", layout(4, 32, Offset::Zero)),
        ("quark_order", layout(4, 32, Offset::Zero)),
        ("quark_int4", layout(4, 32, Offset::Zero)),
        ("quark_symmetric", layout(4, 32, Offset::Zero)),
        ("quark_legacy", layout(4, 32, Offset::Zero)),
    ]
};

#[test]
fn packed_linears_are_the_weights_that_their_tools_meant() {
    for (name, layout) in PACKED {
        let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/goldens").join(name);
        let read = |file: &str| std::fs::read(folder.join(file)).unwrap();
        let source = ["config.json", "model.safetensors"]
            .iter()
            .fold(MemorySource::new(name), |source, file| source.with(*file, read(file)));
        let hf = open(&source).unwrap();
        let expected: Vec<f32> =
            read("expected.f32").as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
        let (rows, cols, found) = matrix(&hf, "l.weight");
        assert_eq!((rows, cols), (24, 64), "{name}");
        let wrong = (0..expected.len()).find(|&at| found[at].to_bits() != expected[at].to_bits());
        assert_eq!(wrong, None, "{name}");
        assert_eq!(hf.tensor("l.weight").unwrap().layout(), Some(layout), "{name}");
        assert_eq!(matrix(&hf, "plain.weight").2, [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]);
        let mut names: Vec<String> = hf.tensor_names().collect();
        names.retain(|name| name != "l.bias");
        names.sort_unstable();
        assert_eq!(names, ["l.weight", "plain.weight"], "{name}");
        assert!(hf.has("l.weight") && hf.quantization().is_some());
    }
}

#[test]
fn quark_layers_that_are_quantised_in_a_way_of_their_own_are_refused() {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/goldens/quark");
    let read = |file: &str| std::fs::read(folder.join(file)).unwrap();
    let with = |layers: serde_json::Value| {
        let mut config: serde_json::Value = serde_json::from_slice(&read("config.json")).unwrap();
        config["quantization_config"]["layer_quant_config"] = layers;
        let source = MemorySource::new("m")
            .with("config.json", config.to_string().into_bytes())
            .with("model.safetensors", read("model.safetensors"));
        open(&source)
    };
    let config: serde_json::Value = serde_json::from_slice(&read("config.json")).unwrap();
    let weight = &config["quantization_config"]["global_quant_config"]["weight"];
    let mut other = weight.clone();
    other["dtype"] = "int4".into();
    with(serde_json::json!({})).unwrap();
    with(serde_json::json!({"lm_head": {"weight": null}, "l": {"weight": weight}})).unwrap();
    let error = with(serde_json::json!({"*.v_proj": {"weight": other}})).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    assert!(error.to_string().contains("\"*.v_proj\""), "{error}");
}

#[test]
fn a_configuration_of_another_kind_of_model_is_called_by_its_type() {
    let json = serde_json::json!({"model_type": "gemma3", "text_config": {"hidden_size": 640}});
    let error = HfConfig::from_json(json, &Limits::default()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Missing);
    assert!(error.hint().unwrap().contains("of type \"gemma3\""), "{:?}", error.hint());
}
