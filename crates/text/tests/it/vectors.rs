//! llama.cpp's token vectors: for each vocabulary, texts and the ids they must become.
//!
//! The vocabularies in git are cut down to what the vectors need (`tools/goldens/text_vocab.py`);
//! the whole ones are read from llama.cpp's `models` folder.

use crate::gguf;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use tangor_text::{GgufVocab, Specials, Tokenizer};

/// Folder with `ggml-vocab-*.gguf`, `.inp` and `.out`, where it is set.
pub(crate) fn models() -> Option<PathBuf> {
    std::env::var_os("TANGOR_LLAMA_CPP_MODELS").map(PathBuf::from)
}

/// A vocabulary cut down, with its vectors.
#[derive(Clone, Deserialize)]
struct Reduced {
    name: Option<String>,
    model: String,
    pre: Option<String>,
    tokens: Vec<String>,
    scores: Vec<f32>,
    types: Vec<i32>,
    merges: Vec<String>,
    bos: Option<u32>,
    eos: Option<u32>,
    unk: Option<u32>,
    add_bos: Option<bool>,
    add_space_prefix: Option<bool>,
    cases: Vec<(String, Vec<u32>)>,
}

fn reduced() -> BTreeMap<String, Reduced> {
    serde_json::from_str(include_str!("../goldens/vectors.json")).unwrap()
}

impl Reduced {
    fn vocab(&self) -> GgufVocab {
        let Self { name, model, pre, tokens, scores, types, merges, .. } = self.clone();
        GgufVocab {
            name,
            model,
            pre,
            tokens,
            scores,
            token_types: types,
            merges,
            bos: self.bos,
            eos: self.eos,
            unk: self.unk,
            add_bos: self.add_bos,
            add_space_prefix: self.add_space_prefix,
            ..GgufVocab::default()
        }
    }
}

/// Every reduced vocabulary, by name.
pub(crate) fn vocabularies() -> BTreeMap<String, GgufVocab> {
    reduced().into_iter().map(|(name, reduced)| (name, reduced.vocab())).collect()
}

/// Texts with their ids. The format's last text has no separator after it.
fn read(vocab: &Path) -> Vec<(String, Vec<u32>)> {
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

/// Fails with the vectors that do not hold.
fn check(name: &str, tokenizer: &Tokenizer, cases: &[(String, Vec<u32>)]) {
    assert!(cases.len() >= 40, "{name} has only {} vectors", cases.len());
    let mut failures = Vec::new();
    for (text, expected) in cases {
        let ids = tokenizer.encode(text, Specials::AsText).unwrap();
        if &ids != expected {
            failures.push(format!("{text:?}\n  is  {ids:?}\n  not {expected:?}"));
        }
    }
    assert!(failures.is_empty(), "{name}:\n{}", failures.join("\n"));
}

#[test]
fn reduced_vocabularies_give_llama_cpps_vectors() {
    let all = reduced();
    assert_eq!(all.len(), 14);
    for (name, reduced) in all {
        let tokenizer = Tokenizer::from_gguf(reduced.vocab()).unwrap();
        check(&name, &tokenizer, &reduced.cases);
    }
}

#[test]
fn whole_vocabularies_give_llama_cpps_vectors() {
    let Some(models) = models() else { return };
    for name in reduced().keys() {
        let path = models.join(format!("ggml-vocab-{name}.gguf"));
        let tokenizer = Tokenizer::from_gguf(gguf::read(&path)).unwrap();
        check(name, &tokenizer, &read(&path));
    }
}

#[test]
fn prompts_are_framed_as_the_files_say() {
    // BOS by the file, by the pre-tokenizer's default, or not at all.
    let cases = [("llama-spm", true), ("llama-bpe", true), ("gpt-2", false), ("qwen2", false)];
    let vocabularies = vocabularies();
    for (name, expected) in cases {
        let tokenizer = Tokenizer::from_gguf(vocabularies[name].clone()).unwrap();
        assert_eq!(tokenizer.adds_bos(), expected, "{name}");
        let framed = tokenizer.frame(vec![5]);
        let bos = tokenizer.bos().filter(|_| expected);
        assert_eq!(framed, bos.into_iter().chain([5]).collect::<Vec<_>>(), "{name}");
        assert!(!tokenizer.eos().is_empty(), "{name}");
    }
}

#[test]
fn every_vector_decodes_to_its_text() {
    for (name, reduced) in reduced() {
        let tokenizer = Tokenizer::from_gguf(reduced.vocab()).unwrap();
        for (text, ids) in &reduced.cases {
            // These two bring text into normal form C.
            if matches!(name.as_str(), "qwen2" | "mpt") && !text.is_ascii() {
                continue;
            }
            assert_eq!(&tokenizer.decode(ids, false), text, "{name}");
        }
    }
}
