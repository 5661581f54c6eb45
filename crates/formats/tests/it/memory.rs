//! Reading never costs more memory than twice the files and 16 MiB, whatever they declare.

use crate::attacks::{all, load};
use crate::build::{GgufFile, STR, array, config, llama_arrays, safetensors};
use crate::counting::peak;
use tangor_formats::{Gguf, Limits, MemorySource};
use tangor_tensor::Bytes;

fn bound(files: usize) -> usize {
    2 * files + (16 << 20)
}

#[test]
fn the_allocator_counts() {
    let found = peak(|| drop(vec![0u8; 1 << 20]));
    assert!((1 << 20..2 << 20).contains(&found), "{found}");
}

#[test]
fn no_attack_costs_more_memory_than_promised() {
    for attack in all() {
        let source = attack.source();
        let found = peak(|| drop(load(&source)));
        let bound = bound(attack.len());
        assert!(found <= bound, "{}: {found} bytes, and the bound is {bound}", attack.name);
    }
}

fn gguf_peak(bytes: Vec<u8>) -> usize {
    let bytes = Bytes::from(bytes);
    let limits = Limits::default();
    let mut opened = false;
    let found = peak(|| opened = Gguf::parse("m.gguf", bytes.clone(), &limits).is_ok());
    assert!(opened);
    found
}

#[test]
fn a_vocabulary_of_four_million_tokens_costs_next_to_nothing() {
    let count = 4 << 20;
    let texts = vec![0; 8 * count];
    let file = GgufFile::llama().with("x", array(STR, count as u64, &texts)).bytes();
    let found = gguf_peak(file);
    assert!(found < 1 << 16, "{found}");
}

#[test]
fn as_many_keys_and_tensors_as_allowed_stay_within_the_bound() {
    let keys = GgufFile::llama().but(|f| {
        for index in f.entries.len()..65_536 {
            f.entries.push((format!("{index:x}"), (0, vec![1])));
        }
    });
    let bytes = keys.bytes();
    let bound_keys = bound(bytes.len());
    let found = gguf_peak(bytes);
    assert!(found <= bound_keys, "{found}, and the bound is {bound_keys}");

    let tensors = GgufFile::llama().but(|f| {
        f.entries.truncate(9);
        let one = crate::build::GgufTensor::new("", 0, &[1], vec![0; 4]);
        f.tensors = (0..65_536)
            .map(|index| crate::build::GgufTensor { name: format!("{index:x}"), ..one.clone() })
            .collect();
    });
    let bytes = tensors.bytes();
    let bound_tensors = bound(bytes.len());
    let found = gguf_peak(bytes);
    assert!(found <= bound_tensors, "{found}, and the bound is {bound_tensors}");
}

fn folder_peak(source: &MemorySource) -> usize {
    peak(|| drop(load(source)))
}

#[test]
fn json_that_unfolds_stays_within_the_bound() {
    for unit in ["[],", "0,", "{},", "\"\",", "[[]],", "{\"\":{}},"] {
        let text = format!("[{}0]", unit.repeat((8 << 20) / unit.len() - 1));
        let source = MemorySource::new("m")
            .with("config.json", text.into_bytes())
            .with("model.safetensors", llama_arrays());
        let found = folder_peak(&source);
        let bound = bound(8 << 20);
        assert!(found <= bound, "{unit}: {found} bytes, and the bound is {bound}");
    }
}

#[test]
fn headers_that_unfold_stay_within_the_bound() {
    let entries = |unit: fn(usize) -> String, count: usize| {
        let list: Vec<String> = (0..count).map(unit).collect();
        safetensors(&format!("{{{}}}", list.join(",")), &[])
    };
    let empty = |i| format!("\"{i:x}\":{{\"dtype\":\"U8\",\"shape\":[0],\"data_offsets\":[0,0]}}");
    let deep = |i| {
        let shape = "0,".repeat(63);
        format!("\"{i:x}\":{{\"dtype\":\"U8\",\"shape\":[{shape}0],\"data_offsets\":[0,0]}}")
    };
    for bytes in [entries(empty, 65_536), entries(deep, 40_000)] {
        let len = bytes.len();
        let source =
            MemorySource::new("m").with("config.json", config("")).with("model.safetensors", bytes);
        let found = folder_peak(&source);
        assert!(found <= bound(len), "{found} bytes, and the bound is {}", bound(len));
    }
}

#[test]
fn repacking_costs_no_more_than_the_weight_itself() {
    let (inputs, outputs) = (1024, 4096);
    let groups = inputs / 64;
    let quantization = r#""quantization_config":{"quant_method":"awq","bits":4,"group_size":64},"#;
    let parts: [(&str, &str, &[usize], Vec<u8>); 3] = [
        ("l.qweight", "I32", &[inputs, outputs / 8], vec![0x5a; inputs * outputs / 2]),
        ("l.qzeros", "I32", &[groups, outputs / 8], vec![0x77; groups * outputs / 2]),
        ("l.scales", "F16", &[groups, outputs], vec![0x2c; groups * outputs * 2]),
    ];
    let weights = crate::build::arrays(&parts);
    let len = weights.len();
    let source = MemorySource::new("m")
        .with("config.json", config(quantization))
        .with("model.safetensors", weights);
    let found = folder_peak(&source);
    assert!(found <= len + (1 << 16), "{found} bytes for {len}");
}
