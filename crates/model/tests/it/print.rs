//! The text form of graphs.

use tangor_model::formats::{HfConfig, Limits};
use tangor_model::tensor::{DType, Layout};
use tangor_model::{Config, shapes};

fn text(json: &str) -> String {
    let json = serde_json::from_str(json).unwrap();
    let config = HfConfig::from_json(json, &Limits::default()).unwrap();
    let config = Config::from_hf(&config).unwrap();
    shapes::random_graph(&config, Layout::Dense(DType::F16), 0).unwrap().to_string()
}

#[test]
fn a_fused_llama_of_two_layers() {
    let text = text(
        r#"{"model_type": "llama", "vocab_size": 256, "hidden_size": 64, "intermediate_size": 96,
            "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
            "max_position_embeddings": 128, "tie_word_embeddings": true}"#,
    );
    insta::assert_snapshot!(text, @"");
}

#[test]
fn a_qwen2_of_one_layer_has_biases_and_a_window() {
    let text = text(
        r#"{"model_type": "qwen2", "vocab_size": 256, "hidden_size": 64, "intermediate_size": 96,
            "num_hidden_layers": 1, "num_attention_heads": 4, "num_key_value_heads": 1,
            "max_position_embeddings": 128, "use_sliding_window": true, "sliding_window": 16,
            "max_window_layers": 0}"#,
    );
    insta::assert_snapshot!(text, @"");
}
