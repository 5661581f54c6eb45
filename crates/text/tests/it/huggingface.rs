//! Tokenizers of every usual kind: ids and texts must be those of Hugging Face's `tokenizers`.
//!
//! The goldens are recorded by `tools/goldens/text_tokenizers.py`.

use serde::Deserialize;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use tangor_text::{ChatTemplate, DecodeStream, HfFiles, Specials, Tokenizer};

#[derive(Deserialize)]
struct Golden {
    tokenizer: Value,
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    text: String,
    ids: Vec<u32>,
    plain: Vec<u32>,
    framed: Vec<u32>,
    decoded: String,
    skipped: String,
}

fn goldens() -> BTreeMap<String, Golden> {
    serde_json::from_str(include_str!("../goldens/tokenizers.json")).unwrap()
}

/// A tokenizer of the goldens.
pub(crate) fn tokenizer(kind: &str) -> Tokenizer {
    build(&goldens()[kind])
}

/// The `tokenizer.json` of one.
pub(crate) fn file(kind: &str) -> Value {
    goldens()[kind].tokenizer.clone()
}

fn build(golden: &Golden) -> Tokenizer {
    let file = serde_json::to_vec(&golden.tokenizer).unwrap();
    Tokenizer::from_hf(&HfFiles { tokenizer: &file, ..HfFiles::default() }).unwrap()
}

#[test]
fn ids_and_texts_are_those_of_hugging_face() {
    let mut wrong = Vec::new();
    for (kind, golden) in goldens() {
        let tokenizer = build(&golden);
        for case in &golden.cases {
            let text = &case.text;
            let ids = tokenizer.encode(text, Specials::Recognised).unwrap();
            let plain = tokenizer.encode(text, Specials::AsText).unwrap();
            let framed = tokenizer.frame(ids.clone());
            let mut compare = |what: &str, is: &dyn std::fmt::Debug, not: &dyn std::fmt::Debug| {
                let (is, not) = (format!("{is:?}"), format!("{not:?}"));
                if is != not {
                    wrong.push(format!("{kind} {what} of {text:?}\n  is  {is}\n  not {not}"));
                }
            };
            compare("ids", &ids, &case.ids);
            compare("plain ids", &plain, &case.plain);
            compare("framed ids", &framed, &case.framed);
            // Whoever writes a whole prompt may write its beginning, too.
            let prompt = tokenizer.prompt(text).unwrap();
            let begun = framed.len() > ids.len() && ids.first() == framed.first();
            compare("prompt", &prompt, if begun { &case.ids } else { &case.framed });
            // Tokens matched in normalized text decode to that there, and are not skipped.
            if kind == "llama2_normalized" {
                continue;
            }
            compare("decoded", &tokenizer.decode(&case.framed, false), &case.decoded);
            compare("skipped", &tokenizer.decode(&case.framed, true), &case.skipped);
        }
    }
    assert!(wrong.is_empty(), "{} wrong:\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn text_that_goes_on_keeps_the_space_before_its_first_word() {
    for kind in ["llama2", "mistral", "unigram"] {
        let tokenizer = tokenizer(kind);
        let ids = tokenizer.encode("time", Specials::AsText).unwrap();
        let text = |mut stream: DecodeStream| -> String {
            ids.iter().filter_map(|id| stream.push(*id)).collect()
        };
        assert_eq!(text(tokenizer.stream(true)), "time", "{kind}");
        assert_eq!(text(tokenizer.stream(true).continuing()), " time", "{kind}");
    }
}

#[test]
fn a_template_of_its_own_for_tools_is_taken() {
    let of = |list: Value| {
        let config = json!({ "chat_template": list }).to_string().into_bytes();
        let (tokenizer, config) = (file("gpt2").to_string().into_bytes(), Some(&config[..]));
        let files =
            HfFiles { tokenizer: &tokenizer, tokenizer_config: config, ..HfFiles::default() };
        ChatTemplate::of(&Tokenizer::from_hf(&files).unwrap()).unwrap()
    };
    let named = |name: &str, template: &str| json!({"name": name, "template": template});
    let template = of([named("tool_use", "for tools"), named("default", "usual")].into());
    assert!(template.takes_tools());
    assert_eq!((template.source(), template.source_with_tools()), ("usual", "for tools"));
    let text =
        |tools: Option<&[Value]>| template.render(&[], tools, true, &Map::new()).unwrap().text();
    assert_eq!((text(None).as_str(), text(Some(&["t".into()])).as_str()), ("usual", "for tools"));
    let template = of([named("one", "first"), named("two", "second")].into());
    assert_eq!((template.source(), template.source_with_tools()), ("first", "first"));
}

#[test]
fn characters_that_normalize_to_a_special_token_stay_text() {
    let tokenizer = tokenizer("unigram");
    let special = tokenizer.token_id("<s>").unwrap();
    let encode = |text: &str| tokenizer.encode(text, Specials::Recognised).unwrap();
    assert!(encode("a<s>b").contains(&special));
    assert!(!encode("a＜s＞b").contains(&special));
}
