//! Writes what the tests know of good and bad files as seeds for fuzzing: `formats_seeds DIR` makes
//! `DIR/gguf`, `DIR/safetensors`, `DIR/onnx` and `DIR/genai` (see `fuzz/README.md`).

#[path = "../tests/it/attacks/mod.rs"]
#[allow(dead_code, clippy::unwrap_used)]
mod attacks;
#[path = "../tests/it/build.rs"]
#[allow(dead_code, clippy::unwrap_used)]
mod build;
#[path = "../tests/it/proto.rs"]
#[allow(dead_code)]
mod proto;

use std::collections::BTreeSet;
use std::path::Path;
use std::{env, fs, io};

/// Longer ones only slow the fuzzer down.
const LONGEST: usize = 4096;

fn main() -> io::Result<()> {
    let Some(dir) = env::args_os().nth(1) else {
        return Err(io::Error::other("usage: formats_seeds DIR"));
    };
    let dir = Path::new(&dir);
    for target in ["gguf", "safetensors", "onnx", "genai"] {
        fs::create_dir_all(dir.join(target))?;
    }
    let write = |target: &str, number: usize, seed: &[u8]| {
        if seed.len() > LONGEST {
            return Ok(());
        }
        fs::write(dir.join(target).join(format!("seed-{number:04}")), seed)
    };
    for (number, seed) in gguf_seeds().iter().enumerate() {
        write("gguf", number, seed)?;
    }
    for (number, seed) in folder_seeds()?.iter().enumerate() {
        write("safetensors", number, seed)?;
    }
    let decoder = proto::model(&proto::decoder());
    assert!(decoder.len() <= LONGEST, "a decoder of {} bytes is no seed", decoder.len());
    let small = proto::model(&proto::small());
    for (number, seed) in [decoder, small].iter().chain(&attacked("model.onnx")).enumerate() {
        write("onnx", number, seed)?;
    }
    let config = proto::CONFIG.as_bytes().to_vec();
    for (number, seed) in [config].iter().chain(&attacked("genai_config.json")).enumerate() {
        write("genai", number, seed)?;
    }
    Ok(())
}

/// The files of this name in all attacks, each once.
fn attacked(file: &str) -> BTreeSet<Vec<u8>> {
    let files = attacks::all().into_iter().flat_map(|attack| attack.files);
    files.filter(|(name, _)| name == file).map(|(_, bytes)| bytes).collect()
}

fn gguf_seeds() -> Vec<Vec<u8>> {
    let good = build::GgufFile::llama();
    let mut seeds = vec![good.bytes(), good.clone().but(|file| file.version = 2).bytes()];
    // Type, weights and bytes of a block.
    let small = [(1, 1, 2), (30, 1, 2), (2, 32, 18), (3, 32, 20), (6, 32, 22), (7, 32, 24)];
    let large = [(10, 256, 84), (11, 256, 110), (12, 256, 144), (13, 256, 176), (14, 256, 210)];
    let others = [(8, 32, 34), (20, 32, 18), (23, 256, 136)];
    for (id, len, size) in small.into_iter().chain(large).chain(others) {
        let tensor = build::GgufTensor::new("x", id, &[len], vec![0x11; size]);
        seeds.push(good.clone().but(|file| file.tensors = vec![tensor]).bytes());
    }
    let attacks = attacks::all().into_iter().flat_map(|attack| attack.files);
    seeds.extend(attacks.filter(|(name, _)| name.ends_with(".gguf")).map(|(_, bytes)| bytes));
    seeds
}

fn folder_seeds() -> io::Result<Vec<Vec<u8>>> {
    let mut seeds = vec![
        [b"s", &build::llama_arrays()[..]].concat(),
        [b"c", &build::config("")[..]].concat(),
        br#"i{"metadata":{"total_size":4},"weight_map":{"x":"a.safetensors"}}"#.to_vec(),
    ];
    let goldens = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/goldens");
    for (golden, kind) in [
        ("awq", b"a"),
        ("gptq", b"g"),
        ("gptq_zero_16", b"g"),
        ("gptq_8bit", b"8"),
        ("quark", b"q"),
        ("quark_legacy", b"q"),
    ] {
        let weights = fs::read(goldens.join(golden).join("model.safetensors"))?;
        seeds.push([kind, &weights[..]].concat());
    }
    for attack in attacks::all() {
        for (name, bytes) in &attack.files {
            let kind: &[u8] = match name.as_str() {
                "model.safetensors" => packing(&attack.files),
                "model.safetensors.index.json" => b"i",
                "config.json" => b"c",
                _ => continue,
            };
            seeds.push([kind, &bytes[..]].concat());
        }
    }
    Ok(seeds)
}

/// The target's letter for the way in which a folder's linears are packed.
fn packing(files: &[(String, Vec<u8>)]) -> &'static [u8] {
    let config = files.iter().find(|(name, _)| name == "config.json");
    let text = config.map_or(String::new(), |(_, bytes)| String::from_utf8_lossy(bytes).into());
    match () {
        () if text.contains("\"awq\"") => b"a",
        () if text.contains("\"gptq\"") => b"g",
        () if text.contains("\"quark\"") => b"q",
        () => b"s",
    }
}
