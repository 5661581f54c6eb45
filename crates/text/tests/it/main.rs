//! Integration tests of the text crate.
//!
//! Those on real vocabularies and templates read llama.cpp's `models` folder, named by the
//! variable `TANGOR_LLAMA_CPP_MODELS`; with `TANGOR_REQUIRE_ORACLES` set, its absence is a failure.
#![allow(clippy::unwrap_used, clippy::expect_used)] // A helper's failure is the test's.

mod attacks;
#[path = "../../../formats/tests/it/counting.rs"]
mod counting;
mod forgery;
mod gguf;
mod huggingface;
mod properties;
mod templates;
mod tools;
mod vectors;

#[test]
fn oracles_are_there_where_they_are_required() {
    if std::env::var_os("TANGOR_REQUIRE_ORACLES").is_some() {
        let folder = vectors::models().expect("set TANGOR_LLAMA_CPP_MODELS");
        assert!(folder.join("ggml-vocab-llama-spm.gguf").is_file(), "{}", folder.display());
    }
}
