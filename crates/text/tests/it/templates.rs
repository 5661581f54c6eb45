//! Chat templates of real models: what they render must be what Jinja renders.
//!
//! The goldens are digests, recorded by `tools/goldens/text.py`; the templates are read from
//! llama.cpp's `models/templates`.

use crate::vectors;
use serde::Deserialize;
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;
use tangor_text::{ChatTemplate, GgufVocab, Message, Tokenizer};

#[derive(Deserialize)]
struct Goldens {
    now: i64,
    conversations: BTreeMap<String, Conversation>,
    /// Template file to conversation to digest; a `+` after the conversation's name says that the
    /// prompt ends where the answer begins.
    templates: BTreeMap<String, BTreeMap<String, Option<String>>>,
}

#[derive(Deserialize)]
struct Conversation {
    messages: Vec<Message>,
    tools: Option<Vec<Value>>,
    extra: Map<String, Value>,
}

/// Special tokens of many families, so that messages are guarded as they would be in use.
const SPECIAL: &[&str] = &[
    "<unk>",
    "<|bos|>",
    "<|eos|>",
    "<s>",
    "</s>",
    "<|im_start|>",
    "<|im_end|>",
    "<|endoftext|>",
    "<|eot_id|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|begin_of_text|>",
    "<|user|>",
    "<|assistant|>",
    "<|system|>",
    "<|end|>",
    "[INST]",
    "[/INST]",
    "[TOOL_CALLS]",
    "<｜User｜>",
    "<｜Assistant｜>",
    "<｜end▁of▁sentence｜>",
    "<start_of_turn>",
    "<end_of_turn>",
    "<|channel|>",
    "<|message|>",
    "<|start|>",
    "<|return|>",
];
const MARKUP: &[&str] = &["<think>", "</think>", "<tool_call>", "</tool_call>", "<tool_response>"];

pub(crate) fn tokenizer() -> Tokenizer {
    let mut vocab = GgufVocab { model: "llama".into(), ..GgufVocab::default() };
    for token in SPECIAL {
        vocab.tokens.push((*token).into());
        vocab.token_types.push(3);
    }
    for token in MARKUP {
        vocab.tokens.push((*token).into());
        vocab.token_types.push(4);
    }
    for byte in 0..=255u8 {
        vocab.tokens.push(format!("<0x{byte:02X}>"));
        vocab.token_types.push(6);
    }
    Tokenizer::from_gguf(vocab).unwrap()
}

fn digest(text: &str) -> String {
    let mut hex = String::new();
    for byte in &Sha256::digest(text.as_bytes())[..8] {
        write!(hex, "{byte:02x}").unwrap();
    }
    hex
}

fn goldens() -> Goldens {
    serde_json::from_str(include_str!("../goldens/templates.json")).unwrap()
}

fn render(template: &ChatTemplate, case: &Conversation, prompt: bool) -> Result<String, String> {
    let rendered = template.render(&case.messages, case.tools.as_deref(), prompt, &case.extra);
    rendered.map(|r| r.text()).map_err(|e| e.to_string())
}

/// Renderings that agree with Jinja, that differ, and that only we or only Jinja produce.
#[derive(Default)]
struct Tally {
    same: usize,
    different: Vec<String>,
    failed: Vec<String>,
}

/// Renderings that differ on purpose. This template adds JSON to a string that it marked as safe,
/// on which Jinja turns the JSON's quotes into HTML entities; here, and in llama.cpp, JSON stays.
fn is_exception(file: &str, conversation: &str) -> bool {
    file == "meetkai-functionary-medium-v3.1.jinja" && conversation.starts_with("tool")
}

#[test]
fn templates_of_real_models_render_as_in_jinja() {
    let Some(models) = vectors::models() else { return };
    let goldens = goldens();
    let tokenizer = tokenizer();
    let dump = Path::new(env!("CARGO_TARGET_TMPDIR")).join("templates");
    std::fs::create_dir_all(&dump).unwrap();
    let mut total = Tally::default();
    for (file, expected) in &goldens.templates {
        let source = std::fs::read_to_string(models.join("templates").join(file)).unwrap();
        let template = ChatTemplate::new(&source, &tokenizer)
            .unwrap_or_else(|e| panic!("{file}: {e}"))
            .with_time(goldens.now);
        for (key, digest_expected) in expected {
            let Some(digest_expected) = digest_expected else { continue };
            let name = key.trim_end_matches('+');
            if is_exception(file, name) {
                continue;
            }
            let result = render(&template, &goldens.conversations[name], key.ends_with('+'));
            let label = format!("{file} {key}");
            // Arguments of a call are brought into the form that the template can print, so the
            // same call given as a text renders as the one or the other does in Jinja.
            let other_form = key.replace("tool_call_text", "tool_call");
            let accepted = [Some(digest_expected), expected[&other_form].as_ref()];
            match result {
                Ok(text) if accepted.contains(&Some(&digest(&text))) => total.same += 1,
                Ok(text) => {
                    let stem = file.trim_end_matches(".jinja");
                    std::fs::write(dump.join(format!("{stem}.{key}")), text).unwrap();
                    total.different.push(label);
                }
                Err(error) => total.failed.push(format!("{label}: {error}")),
            }
        }
    }
    println!("{} renderings equal Jinja's", total.same);
    assert!(
        total.different.is_empty() && total.failed.is_empty(),
        "{} differ:\n{}\n{} fail:\n{}",
        total.different.len(),
        total.different.join("\n"),
        total.failed.len(),
        total.failed.join("\n")
    );
}

#[test]
fn an_answer_that_is_to_go_on_ends_the_prompt() {
    let Some(models) = vectors::models() else { return };
    let tokenizer = tokenizer();
    let unfinished = "The capital of France is ";
    let messages = [Message::new("user", "Where?"), Message::new("assistant", unfinished)];
    let (mut continued, mut not) = (0, Vec::new());
    for file in goldens().templates.keys() {
        let source = std::fs::read_to_string(models.join("templates").join(file)).unwrap();
        let template = ChatTemplate::new(&source, &tokenizer).unwrap();
        match template.render_unfinished(&messages, None, &Map::new()) {
            Ok(Some(rendered)) => {
                let text = rendered.text();
                assert!(text.ends_with(unfinished), "{file}: {text}");
                assert!(text.contains("Where?"), "{file}: {text}");
                continued += 1;
            }
            other => not.push(format!("{file}: {other:?}")),
        }
    }
    assert!(continued > 9 * not.len(), "{continued}, but not {not:#?}");
}
