//! What is wrong with a GGUF file is said in the file's own words.

use tangor_model::formats::{Gguf, Limits};
use tangor_model::rope::Angles;
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
        ("token_embd.weight", "token_embe.weight", "llama3-rope: has no tensor \"token_embd.we"),
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

/// A metadata value as stored: its type and its bytes.
type Stored<'a> = (u32, &'a [u8]);

const F32: u32 = 6;

/// A recorded file with one more metadata entry.
fn and(name: &str, key: &str, value: Stored<'_>) -> Gguf {
    let mut bytes = std::fs::read(tiny::folder(name).join("model.gguf")).unwrap();
    let entry = |key: &str, (kind, value): Stored<'_>| {
        let len = (key.len() as u64).to_le_bytes();
        [&len[..], key.as_bytes(), &kind.to_le_bytes(), value].concat()
    };
    let mut new = entry(key, value);
    // The tensors stay aligned if the entries have as many bytes as their alignment, or twice.
    let text = (32 - (new.len() + entry("pad", (8, &[0; 8])).len()) % 32) as u64;
    let text = [text.to_le_bytes().to_vec(), vec![b'x'; text.try_into().unwrap()]].concat();
    new.extend(entry("pad", (8, &text)));
    let entries = u64::from_le_bytes(bytes[16..24].try_into().unwrap()) + 2;
    bytes[16..24].copy_from_slice(&entries.to_le_bytes());
    bytes.splice(24..24, new);
    Gguf::parse(name, bytes.into(), &Limits::default()).unwrap()
}

/// A recorded file with other numbers of keys that it has.
fn with_u32(name: &str, pairs: &[(&str, u32)]) -> Gguf {
    let mut bytes = std::fs::read(tiny::folder(name).join("model.gguf")).unwrap();
    for (key, value) in pairs {
        let pattern = [key.as_bytes(), &4u32.to_le_bytes()].concat();
        let found = bytes.windows(pattern.len()).position(|window| window == pattern);
        let start = found.unwrap_or_else(|| panic!("no {key} in {name}")) + pattern.len();
        bytes[start..start + 4].copy_from_slice(&value.to_le_bytes());
    }
    Gguf::parse(name, bytes.into(), &Limits::default()).unwrap()
}

fn refusal(gguf: &Gguf) -> String {
    import::gguf::graph(gguf).map(drop).expect_err("must be refused").to_string()
}

#[test]
fn scaling_by_a_factor_and_by_tensors_excludes_each_other() {
    let factor = |name: &str, arch: &str, factor: f32| {
        and(name, &format!("{arch}.rope.scaling.factor"), (F32, &factor.to_le_bytes()))
    };
    import::gguf::graph(&factor("llama3-rope", "llama", 1.0)).unwrap();
    let said = refusal(&factor("llama3-rope", "llama", 4.0));
    assert!(said.contains("by 4 beside the tensor \"rope_freqs.weight\""), "{said}");
    let said = refusal(&factor("phi3-longrope", "phi3", 4.0));
    assert!(said.contains("beside the tensor \"rope_factors_short.weight\""), "{said}");
    let yarn = [&4u64.to_le_bytes()[..], b"yarn"].concat();
    let said = refusal(&and("llama3-rope", "llama.rope.scaling.type", (8, &yarn)));
    assert!(said.contains("RoPE scaling \"yarn\""), "{said}");
}

#[test]
fn the_attention_factor_is_not_only_that_of_longrope() {
    let factor = |factor: f32| {
        let gguf = and("qwen2", "qwen2.rope.scaling.attn_factor", (F32, &factor.to_le_bytes()));
        import::gguf::config(&gguf).map(|config| match config.rope.short {
            Angles::Frequencies { factor, .. } => factor,
            Angles::Table { .. } => panic!("frequencies expected"),
        })
    };
    assert_eq!(factor(1.25).unwrap(), 1.25);
    let said = factor(-1.0).unwrap_err().to_string();
    assert!(said.contains("qwen2.rope.scaling.attn_factor"), "{said}");
}

#[test]
fn refuses_attention_that_is_not_causal() {
    let causal = |causal: u8| and("qwen2", "qwen2.attention.causal", (7, &[causal]));
    import::gguf::graph(&causal(1)).unwrap();
    let said = refusal(&causal(0));
    assert!(said.contains("qwen2.attention.causal must be true"), "{said}");
}

#[test]
fn refuses_parts_of_heads_that_are_stored_in_pairs() {
    let said = refusal(&with_u32("llama3-rope", &[("llama.rope.dimension_count", 8)]));
    assert!(said.contains("8 of the 16 elements is not supported"), "{said}");
    assert!(said.contains("llama.rope.dimension_count"), "{said}");
    import::gguf::graph(&with_u32("llama3-rope", &[("llama.rope.dimension_count", 16)])).unwrap();
}

#[test]
fn joint_projections_have_no_rows_to_spare() {
    // Heads of half the size need fewer rows than are there.
    let pairs = [("llama.attention.head_count", 8), ("llama.rope.dimension_count", 8)];
    let said = refusal(&with_u32("llama-biases", &pairs));
    assert!(said.contains("tensor \"blk.0.attn_qkv.weight\" is"), "{said}");
}

#[test]
fn impossible_numbers_are_said_of_the_file_that_has_them() {
    let said = refusal(&with_u32("llama3-rope", &[("llama.embedding_length", 1 << 25)]));
    assert_eq!(
        said,
        "llama3-rope: metadata as a config.json: hidden_size is not a whole number from 1 to \
         16777216"
    );
}
