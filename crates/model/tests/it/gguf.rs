//! What is wrong with a GGUF file is said in the file's own words.

use tangor_model::formats::{Gguf, Limits};
use tangor_model::{ImportError, import};
use tangor_testkit::tiny;

/// A recorded file with texts (of the same length) in place of others, wherever they occur.
fn with(name: &str, pairs: &[(String, String)]) -> Result<Gguf, ImportError> {
    let mut bytes = std::fs::read(tiny::folder(name).join("model.gguf")).unwrap();
    for (from, to) in pairs {
        assert_eq!(from.len(), to.len(), "offsets must stay");
        let mut changes = 0;
        for start in 0..bytes.len() - from.len() {
            if bytes[start..].starts_with(from.as_bytes()) {
                bytes[start..start + to.len()].copy_from_slice(to.as_bytes());
                changes += 1;
            }
        }
        assert!(changes > 0, "{from} is not in {name}");
    }
    Ok(Gguf::parse(name, bytes.into(), &Limits::default())?)
}

/// The graph of a recorded file with one text in place of another.
fn changed(name: &str, from: &str, to: &str) -> Result<tangor_model::Graph, ImportError> {
    import::gguf::graph(&with(name, &[(from.into(), to.into())])?)
}

#[test]
fn names_what_is_missing() {
    for (from, to, expected) in [
        (
            "blk.1.attn_q.weight",
            "blk.1.attn_x.weight",
            "tensor \"model.layers.1.self_attn.q_proj.weight\" is missing \
             (in llama3-rope it is \"blk.1.attn_q.weight\") (expected 64 x 64)",
        ),
        ("llama.block_count", "llama.block_cants", "llama.block_count"),
        ("output_norm.weight", "output_form.weight", "\"model.norm.weight\" is missing"),
    ] {
        let Err(error) = changed("llama3-rope", &from[..to.len()], to) else {
            panic!("{from} is needed")
        };
        assert!(error.to_string().contains(expected), "{error}");
    }
}

#[test]
fn refuses_scaling_that_no_device_has() {
    let result = changed("llama-biases", "linear", "yarnyy");
    let error = result.expect_err("must be refused").to_string();
    assert!(error.contains("RoPE scaling \"yarnyy\" is not supported"), "{error}");
    assert!(error.contains("llama.rope.scaling.type must be none or linear"), "{error}");
}

#[test]
fn biases_are_where_the_tensors_are() {
    let biases = |gone: &[&str]| {
        let names = gone.iter().map(|module| (format!("{module}.bias"), format!("{module}.baas")));
        let pairs: Vec<_> = names.collect();
        let config = import::gguf::config(&with("llama-biases", &pairs).unwrap()).unwrap();
        (config.qkv_bias, config.output_bias, config.mlp_bias)
    };
    assert_eq!(biases(&[]), (true, true, true));
    assert_eq!(biases(&["attn_output"]), (true, false, true));
    assert_eq!(biases(&["attn_qkv"]), (false, true, true));
    assert_eq!(biases(&["attn_output", "ffn_gate", "ffn_up", "ffn_down"]), (true, false, false));
}

#[test]
fn half_of_the_biases_or_of_the_factors_is_not_enough() {
    let result = changed("llama-biases", "blk.1.ffn_down.bias", "blk.1.ffn_down.baas");
    let error = result.expect_err("must be refused").to_string();
    assert!(error.contains("\"model.layers.1.mlp.down_proj.bias\" is missing"), "{error}");
    let result = changed("phi3-longrope", "rope_factors_long.weight", "rope_factors_lang.weight");
    let error = result.expect_err("must be refused").to_string();
    assert!(error.contains("rope_factors_long.weight"), "{error}");
}
