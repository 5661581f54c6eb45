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
    insta::assert_snapshot!(text, @r"
  llama: 2 layers, hidden 64, ffn 96, heads 4/2 x 16, vocab 256, context 128
  rope: 16 elements in halves, frequencies 1 to 3.162278e-4
  embed: %0[64] = embed() model.embed_tokens.weight[256 x 64 f16]
  layers.0.input_layernorm: %1[64] = rms_norm(%0) [64 f32] eps 1e-6
  layers.0.self_attn.qkv_proj: %2[128] = linear(%1) [128 x 64 f16]
  layers.0.attention: %3[64] = attention(%2) kv 0, heads 4/2 x 16, scale 0.25, rotated
  layers.0.self_attn.o_proj: %4[64] = linear(%3) [64 x 64 f16]
  layers.0.post_attention_layernorm: %5, %6[64] = add_rms_norm(%0, %4) [64 f32] eps 1e-6
  layers.0.mlp.gate_up_proj: %7[192] = linear(%6) [192 x 64 f16]
  layers.0.gated: %8[96] = gated(%7) silu
  layers.0.mlp.down_proj: %9[64] = linear(%8) [64 x 96 f16]
  layers.1.input_layernorm: %10, %11[64] = add_rms_norm(%5, %9) [64 f32] eps 1e-6
  layers.1.self_attn.qkv_proj: %12[128] = linear(%11) [128 x 64 f16]
  layers.1.attention: %13[64] = attention(%12) kv 1, heads 4/2 x 16, scale 0.25, rotated
  layers.1.attention.select_rows: %14[logits 64] = select_rows(%13)
  layers.1.self_attn.o_proj: %15[logits 64] = linear(%14) [64 x 64 f16]
  layers.0.mlp.residual.select_rows: %16[logits 64] = select_rows(%10)
  layers.1.post_attention_layernorm: %17, %18[logits 64] = add_rms_norm(%16, %15) [64 f32] eps 1e-6
  layers.1.mlp.gate_up_proj: %19[logits 192] = linear(%18) [192 x 64 f16]
  layers.1.gated: %20[logits 96] = gated(%19) silu
  layers.1.mlp.down_proj: %21[logits 64] = linear(%20) [64 x 96 f16]
  norm: %22, %23[logits 64] = add_rms_norm(%17, %21) [64 f32] eps 1e-6
  lm_head: %24[logits 256] = linear(%23) model.embed_tokens.weight[256 x 64 f16]
  logits %24
  ");
}

#[test]
fn a_qwen2_of_one_layer_has_biases_and_a_window() {
    let text = text(
        r#"{"model_type": "qwen2", "vocab_size": 256, "hidden_size": 64, "intermediate_size": 96,
            "num_hidden_layers": 1, "num_attention_heads": 4, "num_key_value_heads": 1,
            "max_position_embeddings": 128, "use_sliding_window": true, "sliding_window": 16,
            "max_window_layers": 0}"#,
    );
    insta::assert_snapshot!(text, @r"
  qwen2: 1 layers, hidden 64, ffn 96, heads 4/1 x 16, vocab 256, context 128
  rope: 16 elements in halves, frequencies 1 to 3.162278e-4
  embed: %0[64] = embed() model.embed_tokens.weight[256 x 64 f16]
  layers.0.input_layernorm: %1[64] = rms_norm(%0) [64 f32] eps 1e-6
  layers.0.self_attn.qkv_proj: %2[96] = linear(%1) [96 x 64 f16] + [96 f32]
  layers.0.attention: %3[64] = attention(%2) kv 0, heads 4/1 x 16, scale 0.25, window 16, rotated
  layers.0.attention.select_rows: %4[logits 64] = select_rows(%3)
  layers.0.self_attn.o_proj: %5[logits 64] = linear(%4) [64 x 64 f16]
  embed.select_rows: %6[logits 64] = select_rows(%0)
  layers.0.post_attention_layernorm: %7, %8[logits 64] = add_rms_norm(%6, %5) [64 f32] eps 1e-6
  layers.0.mlp.gate_up_proj: %9[logits 192] = linear(%8) [192 x 64 f16]
  layers.0.gated: %10[logits 96] = gated(%9) silu
  layers.0.mlp.down_proj: %11[logits 64] = linear(%10) [64 x 96 f16]
  norm: %12, %13[logits 64] = add_rms_norm(%7, %11) [64 f32] eps 1e-6
  lm_head: %14[logits 256] = linear(%13) [256 x 64 f16]
  logits %14
  ");
}
