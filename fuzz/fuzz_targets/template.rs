//! A chat template of any source on messages of any text.
//!
//! The bytes are the template and, after zero bytes, the texts of the messages.
#![no_main]

use libfuzzer_sys::fuzz_target;
use serde_json::{Map, json};
use std::sync::LazyLock;
use tangor_text::{ChatTemplate, GgufVocab, Message, Tokenizer, limits};

static TOKENIZER: LazyLock<Option<Tokenizer>> = LazyLock::new(|| {
    let special = ["<s>", "</s>", "<|im_start|>", "<|im_end|>", "[INST]"].map(String::from);
    let mut vocab = GgufVocab { model: "llama".into(), ..GgufVocab::default() };
    vocab.token_types = vec![3; special.len()];
    vocab.token_types.extend([6; 256]);
    vocab.tokens = special.into_iter().chain((0..=255u8).map(|b| format!("<0x{b:02X}>"))).collect();
    Tokenizer::from_gguf(vocab).ok()
});

fuzz_target!(|data: &[u8]| {
    let Some(tokenizer) = TOKENIZER.as_ref() else { return };
    let text = String::from_utf8_lossy(data);
    let mut parts = text.split('\0');
    let Some(source) = parts.next() else { return };
    let Ok(template) = ChatTemplate::new(source, tokenizer) else { return };
    let roles = ["user", "assistant", "tool", "system"];
    let messages: Vec<Message> =
        parts.zip(roles.iter().cycle()).map(|(text, role)| Message::new(*role, text)).collect();
    let tools = [json!({"type": "function", "function": {"name": "f", "parameters": {}}})];
    let Ok(rendered) = template.render(&messages, Some(&tools), true, &Map::new()) else { return };
    assert!(rendered.text().len() <= limits::TEMPLATE_OUTPUT);
    let _ = tokenizer.encode_spans(&rendered.spans);
});
