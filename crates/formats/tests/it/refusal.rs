//! Every attack is refused for the reason that it should be, and nothing panics on the way.

use crate::attacks::{all, load};
use crate::build::{GgufFile, config, llama_arrays};
use proptest::prelude::*;
use std::collections::BTreeMap;
use tangor_formats::{ErrorKind, MemorySource};

fn gguf(bytes: Vec<u8>) -> MemorySource {
    MemorySource::new("m").with("m.gguf", bytes)
}

fn hf(weights: Vec<u8>) -> MemorySource {
    MemorySource::new("m").with("config.json", config("")).with("model.safetensors", weights)
}

#[test]
fn every_attack_is_refused_for_the_right_reason() {
    let mut wrong = Vec::new();
    for attack in all() {
        match load(&attack.source()) {
            Err(error) if error.kind() == attack.kind => {
                let text = error.to_string();
                assert!(text.len() < 2000 && !error.subject().is_empty(), "{text}");
                assert!(!text.contains(['\n', '\0']), "{text:?}");
            }
            other => wrong.push(format!("{}: {:?}, not {other:?}", attack.name, attack.kind)),
        }
    }
    assert!(wrong.is_empty(), "{} wrong:\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn every_class_of_bad_input_has_several_attacks_on_each_format() {
    let mut counts = BTreeMap::new();
    for attack in all() {
        let format = attack.name.split([':', ' ']).next().unwrap().to_owned();
        *counts.entry((format, attack.class)).or_insert(0) += 1;
    }
    let shared = ["F01", "F02", "F03", "F04", "F05", "F06", "F07"];
    let wanted = ["gguf", "hf"].into_iter().flat_map(|format| shared.map(|class| (format, class)));
    let oga = ["F01", "F02", "F03", "F04", "F05", "F07", "F08", "F12"].map(|class| ("oga", class));
    for (format, class) in wanted.chain([("hf", "F08"), ("hf", "F09")]).chain(oga) {
        let key = (format.to_owned(), class);
        assert!(counts.get(&key).is_some_and(|&count| count >= 3), "{key:?}: {counts:?}");
    }
}

#[test]
fn the_files_that_attacks_start_from_are_good() {
    load(&gguf(GgufFile::llama().bytes())).unwrap();
    load(&hf(llama_arrays())).unwrap();
}

#[test]
fn a_gguf_file_cut_anywhere_is_refused() {
    let bytes = GgufFile::llama().bytes();
    for len in 0..bytes.len() {
        let error = load(&gguf(bytes[..len].to_vec())).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Truncated, "cut to {len} bytes: {error:?}");
    }
}

#[test]
fn a_safetensors_file_cut_anywhere_is_refused() {
    let bytes = llama_arrays();
    for len in 0..bytes.len() {
        let error = load(&hf(bytes[..len].to_vec())).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Truncated, "cut to {len} bytes: {error:?}");
    }
}

#[test]
fn no_changed_byte_of_a_header_makes_a_reader_panic() {
    let file = GgufFile::llama();
    let (bytes, weights) = (file.bytes(), llama_arrays());
    let mut refused = 0;
    for value in [0, 1, 0x7f, 0x80, 0xff] {
        for at in 0..file.header().len() {
            let mut changed = bytes.clone();
            changed[at] = value;
            refused += usize::from(load(&gguf(changed)).is_err());
        }
        for at in 0..weights.len() - 512 {
            let mut changed = weights.clone();
            changed[at] = value;
            refused += usize::from(load(&hf(changed)).is_err());
        }
    }
    assert!(refused > 1000, "{refused}");
}

proptest! {
    #[test]
    fn no_splice_of_random_bytes_makes_a_reader_panic(
        at in 0usize..600,
        len in 0usize..40,
        bytes in prop::collection::vec(any::<u8>(), 0..40),
    ) {
        for (mut file, source) in [
            (GgufFile::llama().bytes(), gguf as fn(Vec<u8>) -> MemorySource),
            (llama_arrays(), hf),
        ] {
            let at = at.min(file.len());
            let end = (at + len).min(file.len());
            file.splice(at..end, bytes.iter().copied());
            let _ = load(&source(file));
        }
    }
}
