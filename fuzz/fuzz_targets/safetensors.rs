//! A Hugging Face folder in which one file is any bytes; the first byte says which.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tangor_formats::{Checkpoint, Limits, MemorySource};

/// A configuration with these fields before the usual ones.
fn config(fields: &str) -> Vec<u8> {
    format!(
        r#"{{{fields}"hidden_size":32,"intermediate_size":64,"num_hidden_layers":1,
        "num_attention_heads":4,"num_key_value_heads":2,"vocab_size":4}}"#
    )
    .into_bytes()
}

/// The smallest file there is.
fn one_tensor() -> Vec<u8> {
    let header = br#"{"x":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}"#;
    [&(header.len() as u64).to_le_bytes()[..], header, &[0; 4]].concat()
}

const AWQ: &str = r#""quantization_config":{"quant_method":"awq","group_size":16},"#;
const GPTQ: &str = r#""quantization_config":{"quant_method":"gptq","group_size":16},"#;
const GPTQ8: &str = r#""quantization_config":{"quant_method":"gptq","bits":8,"group_size":-1},"#;
const QUARK: &str = r#""quantization_config":{"quant_method":"quark","global_quant_config":
    {"weight":{"dtype":"int4","group_size":16}}},"#;

fuzz_target!(|data: &[u8]| {
    let Some((&kind, rest)) = data.split_first() else { return };
    let file = |name: &str| MemorySource::new("m").with(name, rest.to_vec());
    let weights = |fields| file("model.safetensors").with("config.json", config(fields));
    let source = match kind {
        b'i' => file("model.safetensors.index.json")
            .with("config.json", config(""))
            .with("a.safetensors", one_tensor()),
        b'c' => file("config.json").with("model.safetensors", one_tensor()),
        b'a' => weights(AWQ),
        b'g' => weights(GPTQ),
        b'8' => weights(GPTQ8),
        b'q' => weights(QUARK),
        _ => weights(""),
    };
    let Ok(Checkpoint::Hf(hf)) = Checkpoint::open(&source, None, &Limits::default()) else {
        return;
    };
    for name in hf.tensor_names() {
        let Ok(weight) = hf.tensor(&name) else { continue };
        let mut row = vec![0.0; weight.cols()];
        weight.row_f32(0, &mut row);
        weight.row_f32(weight.rows() - 1, &mut row);
        assert!(row.iter().all(|w| !w.is_nan()), "a weight that passed is a number");
    }
});
