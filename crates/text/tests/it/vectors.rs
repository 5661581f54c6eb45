//! llama.cpp's token vectors: for each vocabulary, texts and the ids they must become.

use crate::gguf;
use std::path::{Path, PathBuf};
use tangor_text::{Specials, Tokenizer};

/// Folder with `ggml-vocab-*.gguf`, `.inp` and `.out`, where it is set.
pub(crate) fn models() -> Option<PathBuf> {
    std::env::var_os("TANGOR_LLAMA_CPP_MODELS").map(PathBuf::from)
}

/// Vocabularies of which every vector must hold.
const VOCABULARIES: &[&str] = &[
    "llama-bpe",
    "llama-spm",
    "phi-3",
    "qwen2",
    "gpt-2",
    "deepseek-llm",
    "deepseek-coder",
    "starcoder",
    "refact",
    "mpt",
    "falcon",
    "command-r",
    "qwen35",
    "gemma-4",
];

/// Texts with their ids. The format's last text has no separator after it.
pub(crate) fn read(vocab: &Path) -> Vec<(String, Vec<u32>)> {
    let with = |suffix: &str| {
        let mut name = vocab.as_os_str().to_owned();
        name.push(suffix);
        std::fs::read_to_string(PathBuf::from(name)).unwrap()
    };
    let (inputs, outputs) = (with(".inp"), with(".out"));
    let mut inputs: Vec<&str> = inputs.split("\n__ggml_vocab_test__\n").collect();
    if inputs.last() == Some(&"") {
        inputs.pop();
    }
    let outputs: Vec<Vec<u32>> = outputs
        .lines()
        .map(|line| line.split_whitespace().map(|id| id.parse().unwrap()).collect())
        .collect();
    assert_eq!(inputs.len(), outputs.len(), "{}", vocab.display());
    inputs.into_iter().map(str::to_owned).zip(outputs).collect()
}

/// Lines that differ.
fn failures(tokenizer: &Tokenizer, cases: &[(String, Vec<u32>)]) -> Vec<String> {
    let mut failures = Vec::new();
    for (text, expected) in cases {
        let ids = tokenizer.encode(text, Specials::AsText).unwrap();
        if &ids != expected {
            failures.push(format!("{text:?}\n  is  {ids:?}\n  not {expected:?}"));
        }
    }
    failures
}

#[test]
fn every_vocabulary_of_llama_cpp_gives_its_vectors() {
    let Some(models) = models() else { return };
    let mut failed = Vec::new();
    for name in VOCABULARIES {
        let path = models.join(format!("ggml-vocab-{name}.gguf"));
        let tokenizer = Tokenizer::from_gguf(gguf::read(&path)).unwrap();
        let cases = read(&path);
        let failures = failures(&tokenizer, &cases);
        println!("{name}: {} of {}", cases.len() - failures.len(), cases.len());
        if !failures.is_empty() {
            failed.push(format!("{name}:\n{}", failures.join("\n")));
        }
    }
    assert!(failed.is_empty(), "{}", failed.join("\n\n"));
}
