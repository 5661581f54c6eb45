//! A tokenizer from any bytes, and a text through it and back.
//!
//! The first byte says what the rest is: a `tokenizer.json` or a `tokenizer.model` before the
//! last zero byte, or a built-in vocabulary; what follows is the text. Long texts cost time and
//! show little that short ones do not, so only a first byte of 240 and more has them whole.
#![no_main]

use libfuzzer_sys::fuzz_target;
use std::sync::LazyLock;
use tangor_text::{GgufVocab, HfFiles, Span, Specials, Tokenizer};

/// A vocabulary with pieces of special tokens in it, of either kind.
fn built_in(model: &str, pre: &str) -> Option<Tokenizer> {
    let bytes = (0..=255u8).map(|b| format!("<0x{b:02X}>"));
    let printable = ('!'..='~').chain(['Ġ', 'Ċ', 'Ã', '©', '▁']).map(String::from);
    let pieces = ["<|", "|>", "im", "<|im", "▁a", "aa", "Ġa"].map(String::from);
    let special = ["<|im|>", "<s>", "<|im|><s>", "</s>"].map(String::from);
    let (model, pre) = (model.into(), Some(pre.into()));
    let mut vocab = GgufVocab { model, pre, ..GgufVocab::default() };
    let mut add = |texts: Vec<String>, kind: i32| {
        vocab.token_types.extend(texts.iter().map(|_| kind));
        vocab.tokens.extend(texts);
    };
    add(special.to_vec(), 3);
    add(bytes.collect(), 6);
    add(printable.chain(pieces).collect(), 1);
    add(vec!["<think>".into(), "  ".into()], 4);
    vocab.merges = ["< |", "| >", "i m", "<| im", "a a", "Ġ a"].map(String::from).to_vec();
    Tokenizer::from_gguf(vocab).ok()
}

static BUILT_IN: LazyLock<Vec<Tokenizer>> = LazyLock::new(|| {
    let kinds = [("llama", ""), ("gpt2", "llama-bpe"), ("gpt2", "qwen2"), ("gpt2", "smollm")];
    kinds.iter().filter_map(|(model, pre)| built_in(model, pre)).collect()
});

fn exercise(tokenizer: &Tokenizer, text: &str) {
    let Ok(ids) = tokenizer.encode(text, Specials::AsText) else { return };
    for id in &ids {
        assert!(!tokenizer.is_special(*id) || tokenizer.unk() == Some(*id), "a forged token");
    }
    let decoded = tokenizer.decode(&ids, false);
    let mut stream = tokenizer.stream(false);
    let mut streamed = String::new();
    ids.iter().for_each(|id| streamed.extend(stream.push(*id)));
    streamed.extend(stream.finish());
    assert_eq!(decoded, streamed);
    let Ok(whole) = tokenizer.encode(text, Specials::Recognised) else { return };
    let middle = (0..=text.len() / 2).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
    let (head, tail) = text.split_at(middle);
    let joined = tokenizer.encode_spans(&[Span::trusted(head), Span::trusted(tail)]);
    assert_eq!(joined.ok(), Some(whole));
    let _ = tokenizer.encode_spans(&[Span::trusted(head), Span::untrusted(tail)]);
}

fuzz_target!(|data: &[u8]| {
    let Some((kind, data)) = data.split_first() else { return };
    let at = data.iter().rposition(|b| *b == 0);
    let (file, text) = data.split_at(at.unwrap_or(0));
    let longest = if *kind < 240 { 64 } else { usize::MAX };
    let line = |text: &[u8]| String::from_utf8_lossy(&text[..text.len().min(longest)]).into_owned();
    let text = line(text);
    match kind % 8 {
        0..=3 => {
            let files = HfFiles { tokenizer: file, ..HfFiles::default() };
            if let Ok(tokenizer) = Tokenizer::from_hf(&files) {
                exercise(&tokenizer, &text);
            }
        }
        4 => {
            if let Ok(tokenizer) = Tokenizer::from_sentencepiece(file) {
                exercise(&tokenizer, &text);
            }
        }
        _ => {
            if let Some(tokenizer) = BUILT_IN.get(usize::from(kind / 8) % 4) {
                exercise(tokenizer, &line(data));
            }
        }
    }
});
