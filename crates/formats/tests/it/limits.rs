//! Every limit holds: what is just within it is read, what is just over it is refused.

use crate::build::{GgufFile, arrays, config, f32s, llama_arrays, strv};
use tangor_formats::{Checkpoint, ErrorKind, Limits, MemorySource};

fn gguf(file: &GgufFile) -> MemorySource {
    MemorySource::new("m").with("m.gguf", file.bytes())
}

fn hf() -> MemorySource {
    MemorySource::new("m").with("config.json", config("")).with("model.safetensors", llama_arrays())
}

/// `set` puts a number into the limits; `most` is how much of it `source` needs.
fn holds(name: &str, source: &MemorySource, most: u64, set: impl Fn(&mut Limits, u64)) {
    for (limit, fits) in [(most + 1, true), (most, true), (most - 1, false)] {
        let mut limits = Limits::default();
        set(&mut limits, limit);
        match Checkpoint::open(source, None, &limits) {
            Ok(_) => assert!(fits, "{name}: {most} fit into {limit}"),
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::Limit, "{name}: {error:?}");
                assert!(!fits, "{name}: {most} did not fit into {limit}: {error}");
            }
        }
    }
}

#[test]
fn limits_of_gguf_files_hold_to_the_number() {
    let file = GgufFile::llama();
    let long = file.clone().with("x", strv(&"x".repeat(1000)));
    holds("string bytes", &gguf(&long), 1000, |l, n| l.gguf_string_bytes = n);
    holds("array elements", &gguf(&file), 4, |l, n| l.gguf_array_elements = n);
    holds("entries", &gguf(&file), 13, |l, n| l.gguf_metadata_entries = n);
    holds("tensors", &gguf(&file), 2, |l, n| l.tensors = n);
    holds("dims", &gguf(&file), 2, |l, n| l.gguf_dims = n as u32);
    holds("vocab", &gguf(&file), 4, |l, n| l.vocab = n as usize);
    let deep = file.with("llama.block_count", crate::build::u32v(7));
    holds("layers", &gguf(&deep), 7, |l, n| l.layers = n as usize);
}

#[test]
fn limits_of_hugging_face_folders_hold_to_the_number() {
    let len = |file: &[u8]| file.len() as u64;
    let weights = llama_arrays();
    let header = u64::from_le_bytes(weights[..8].try_into().unwrap());
    holds("header bytes", &hf(), header, |l, n| l.safetensors_header_bytes = n);
    holds("json bytes", &hf(), len(&config("")), |l, n| l.json_bytes = n);
    holds("layers", &hf().with("config.json", config(r#""num_hidden_layers":9,"#)), 9, |l, n| {
        l.layers = n as usize;
    });
    holds("vocab", &hf(), 4, |l, n| l.vocab = n as usize);
    let two = arrays(&[("a", "F32", &[1, 1, 1], f32s(&[1.0])), ("b", "F32", &[1], f32s(&[1.0]))]);
    let two = hf().with("model.safetensors", two);
    holds("tensors", &two, 2, |l, n| l.tensors = n);
    holds("dims", &two, 3, |l, n| l.dims = n as usize);
    let tokenizer = hf().with("tokenizer.json", vec![b' '; 1000]);
    holds("tokenizer bytes", &tokenizer, 1000, |l, n| l.tokenizer_bytes = n);
    let tokenizer = hf().with("tokenizer.model", vec![b' '; 1000]);
    holds("tokenizer bytes", &tokenizer, 1000, |l, n| l.tokenizer_bytes = n);
    let template = hf().with("chat_template.jinja", vec![b' '; 1000]);
    holds("template bytes", &template, 1000, |l, n| l.template_bytes = n);
    let inline = format!("{{\"chat_template\":\"{}\"}}", "x".repeat(1000));
    let template = hf().with("tokenizer_config.json", inline.into_bytes());
    holds("template bytes", &template, 1000, |l, n| l.template_bytes = n);
}

#[test]
fn the_number_of_files_is_bounded() {
    let index =
        br#"{"weight_map":{"model.embed_tokens.weight":"a.safetensors","x":"b.safetensors"}}"#;
    let source = MemorySource::new("m")
        .with("config.json", config(""))
        .with("model.safetensors.index.json", &index[..])
        .with("a.safetensors", llama_arrays())
        .with("b.safetensors", arrays(&[("x", "F32", &[1], f32s(&[1.0]))]));
    holds("shards", &source, 2, |l, n| l.shards = n as usize);
}
