//! Configurations are read as transformers reads them, and refused with the key's name.

use serde_json::{Map, Value, json};
use tangor_model::formats::{HfConfig, Limits};
use tangor_model::rope::{Angles, Variant};
use tangor_model::{Config, ImportError};

fn base() -> Map<String, Value> {
    let config = json!({
        "model_type": "llama",
        "vocab_size": 256,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 128,
        "rms_norm_eps": 1e-5,
    });
    config.as_object().unwrap().clone()
}

/// The configuration with some keys replaced.
fn with(changes: Value) -> Result<Config, ImportError> {
    let mut config = base();
    config.extend(changes.as_object().unwrap().clone());
    Config::from_hf(&HfConfig::from_json(Value::Object(config), &Limits::default())?)
}

fn frequencies(config: &Config) -> Vec<f32> {
    match &config.rope.short {
        Angles::Frequencies { inv_freq, .. } => inv_freq.clone(),
        Angles::Table { .. } => panic!("frequencies expected"),
    }
}

#[test]
fn names_the_key_that_is_missing_or_impossible() {
    for (changes, expected) in [
        (json!({"hidden_size": null}), "has no hidden_size"),
        (json!({"num_key_value_heads": 3}), "4 attention heads cannot share 3 key-value heads"),
        (json!({"rope_theta": 0}), "rope_theta is 0"),
        (json!({"partial_rotary_factor": 0.01}), "\"partial_rotary_factor\" is 0.01"),
        (json!({"hidden_act": "relu"}), "activation \"relu\" is not supported"),
        (json!({"rope_scaling": {"type": "yarn"}}), "RoPE scaling \"yarn\" is not supported"),
        (json!({"rope_scaling": {"type": "dynamic"}}), "RoPE scaling \"dynamic\""),
        (json!({"rope_scaling": {"type": "linear"}}), "\"rope_scaling.factor\" is missing"),
        (
            json!({"rope_scaling": {"type": "longrope", "short_factor": [1.0], "long_factor": []}}),
            "\"rope_scaling.short_factor\" has 1 numbers for 8 frequencies",
        ),
        (json!({"model_type": "mamba"}), "unknown architecture \"mamba\" (known: llama, mistral"),
        (
            json!({"model_type": "qwen2", "use_sliding_window": true, "sliding_window": 8,
                   "layer_types": ["x"]}),
            "\"layer_types\" has 1 entries for 4 layers",
        ),
    ] {
        let error = with(changes.clone()).expect_err("must be refused").to_string();
        assert!(error.contains(expected), "{changes}: {error}");
    }
}

#[test]
fn windows_are_those_of_transformers() {
    let none = vec![None; 4];
    for (changes, expected) in [
        (json!({"sliding_window": 8}), none.clone()),
        (json!({"model_type": "mistral", "sliding_window": 8}), vec![Some(8); 4]),
        (json!({"model_type": "mistral", "sliding_window": null}), none.clone()),
        (json!({"model_type": "mistral"}), vec![Some(4096); 4]),
        (
            json!({"model_type": "qwen2", "use_sliding_window": true, "max_window_layers": 0}),
            vec![Some(4096); 4],
        ),
        (
            json!({"model_type": "qwen2", "use_sliding_window": false, "sliding_window": 8,
                   "max_window_layers": 0}),
            none.clone(),
        ),
        (json!({"model_type": "phi3", "sliding_window": 8}), vec![Some(8); 4]),
        (json!({"model_type": "phi3"}), none.clone()),
        (json!({"model_type": "qwen2", "sliding_window": 8, "max_window_layers": 0}), none.clone()),
        (
            json!({"model_type": "qwen2", "use_sliding_window": true, "sliding_window": 8,
                   "max_window_layers": 3}),
            vec![None, None, None, Some(8)],
        ),
        (
            json!({"model_type": "qwen2", "use_sliding_window": true, "sliding_window": 8,
                   "max_window_layers": 0}),
            vec![Some(8); 4],
        ),
        (
            json!({"model_type": "qwen2", "use_sliding_window": true, "sliding_window": 8,
                   "layer_types": ["sliding_attention", "full_attention",
                                   "sliding_attention", "full_attention"]}),
            vec![Some(8), None, Some(8), None],
        ),
        (json!({"model_type": "qwen2", "use_sliding_window": true, "sliding_window": 8}), none),
    ] {
        assert_eq!(with(changes.clone()).unwrap().windows, expected, "{changes}");
    }
}

#[test]
fn both_spellings_of_rope_parameters_mean_the_same() {
    let old = with(json!({
        "rope_theta": 500000.0,
        "rope_scaling": {"type": "linear", "factor": 2.0},
    }));
    let new = with(json!({
        "rope_parameters": {"rope_theta": 500000.0, "rope_type": "linear", "factor": 2.0},
    }));
    assert_eq!(old.unwrap().rope, new.unwrap().rope);
}

#[test]
fn a_partial_rotary_factor_rotates_the_first_elements_of_a_head() {
    let config = with(json!({"model_type": "phi3", "partial_rotary_factor": 0.75})).unwrap();
    assert_eq!((config.rope.dim, frequencies(&config).len()), (12, 6));
}

#[test]
fn longrope_takes_a_given_attention_factor_and_switches_beyond_the_original_context() {
    let factors = vec![2.0; 8];
    let scaling = json!({"type": "su", "short_factor": vec![1.0; 8], "long_factor": factors,
                         "attention_factor": 1.5});
    let config = with(json!({
        "model_type": "phi3",
        "original_max_position_embeddings": 32,
        "rope_scaling": scaling,
    }))
    .unwrap();
    assert_eq!(config.rope.variant(32), Variant::Short);
    assert_eq!(config.rope.variant(33), Variant::Long);
    let Angles::Frequencies { inv_freq, factor } = config.rope.angles(Variant::Long) else {
        panic!("frequencies expected")
    };
    assert_eq!((inv_freq[0], *factor), (0.5, 1.5));
}

#[test]
fn biases_are_where_the_configuration_says() {
    let biases = |changes| {
        let config = with(changes).unwrap();
        (config.qkv_bias, config.output_bias, config.mlp_bias)
    };
    assert_eq!(biases(json!({})), (false, false, false));
    assert_eq!(biases(json!({"attention_bias": true})), (true, true, false));
    assert_eq!(biases(json!({"mlp_bias": true})), (false, false, true));
    assert_eq!(biases(json!({"model_type": "qwen2"})), (true, false, false));
}
