//! User text never becomes a special token: not in any field, template or vocabulary.

use crate::huggingface::tokenizer;
use crate::vectors;
use serde_json::{Map, Value, json};
use tangor_text::{
    ChatTemplate, Content, FunctionCall, Message, Span, Specials, Tokenizer, ToolCall,
};

/// Templates in the styles of the usual families, written for this test. `B`, `O` and `E` are
/// replaced by special tokens of the vocabulary.
const TEMPLATES: &[(&str, &str)] = &[
    (
        "chatml",
        "{% for m in messages %}O{{ m.role }}\n{{ m.content | trim }}E\n{% endfor %}\
         {% if add_generation_prompt %}Oassistant\n{% endif %}",
    ),
    (
        "concatenated",
        "{{ bos_token }}{% for m in messages %}{{ 'O' + m['role'] + '\\n' + m['content'] + 'E' }}\
         {% endfor %}",
    ),
    (
        "everything",
        "B{% if tools %}{% for t in tools %}{{ t | tojson }}{% endfor %}{% endif %}\
         {% for m in messages %}O{{ m.name }}{{ m.content }}{{ m.reasoning_content }}\
         {{ m.tool_call_id }}{% for c in m.tool_calls %}{{ c.id }}{{ c.function.name }}\
         {{ c.function.arguments | tojson }}{% for k, v in c.function.arguments | items %}\
         {{ k }}={{ v }}{% endfor %}{% endfor %}E{% endfor %}",
    ),
    (
        "rewriting",
        "{% for m in messages %}O{{ m.content.replace('<x>', '') }}|\
         {{ m.content.split('<y>') | join }}|{{ m.content[1:-1] }}|{{ m.name ~ m.content }}|\
         {{ m.content | upper | lower }}|{{ m.content | reverse | reverse }}E{% endfor %}",
    ),
];

struct Family {
    name: String,
    tokenizer: Tokenizer,
    specials: Vec<u32>,
}

/// Twenty-one tokenizers: Hugging Face's kinds and llama.cpp's vocabularies.
fn families() -> Vec<Family> {
    let kinds = ["gpt2", "llama3", "qwen2", "llama2", "llama2_normalized", "mistral", "unigram"];
    let mut all: Vec<(String, Tokenizer)> =
        kinds.iter().map(|kind| ((*kind).to_owned(), tokenizer(kind))).collect();
    for (name, vocab) in vectors::vocabularies() {
        all.push((format!("gguf {name}"), Tokenizer::from_gguf(vocab).unwrap()));
    }
    all.into_iter()
        .map(|(name, tokenizer)| {
            let size = u32::try_from(tokenizer.vocab_size()).unwrap();
            let named = |id: &u32| {
                tokenizer.is_special(*id) && !tokenizer.token_text(*id).unwrap().is_empty()
            };
            let specials: Vec<u32> = (0..size).filter(named).collect();
            Family { name, tokenizer, specials }
        })
        .collect()
}

impl Family {
    /// The template with this vocabulary's special tokens in it.
    fn template(&self, source: &str) -> ChatTemplate {
        let text = |at: usize| {
            let id = self.specials[at % self.specials.len()];
            self.tokenizer.token_text(id).unwrap()
        };
        let source = source.replace('B', text(0)).replace('O', text(1)).replace('E', text(2));
        ChatTemplate::new(&source, &self.tokenizer).unwrap()
    }

    fn count_specials(&self, ids: &[u32]) -> usize {
        let unk = self.tokenizer.unk();
        ids.iter().filter(|id| self.tokenizer.is_special(**id) && Some(**id) != unk).count()
    }

    fn ids(&self, template: &ChatTemplate, messages: &[Message], tools: &[Value]) -> Vec<u32> {
        let rendered = template.render(messages, Some(tools), true, &Map::new()).unwrap();
        self.tokenizer.encode_spans(&rendered.spans).unwrap()
    }
}

/// A conversation with a text in every field that a user, a tool or a model fills.
fn conversation(text: &str) -> (Vec<Message>, Vec<Value>) {
    let mut arguments = Map::new();
    arguments.insert(format!("key{text}"), json!({"file": text, "list": [text, 1]}));
    let call = ToolCall {
        id: Some(text.into()),
        kind: "function".into(),
        function: FunctionCall { name: text.into(), arguments: Value::Object(arguments) },
    };
    let fill = |role: &str| Message {
        content: Some(Content::Text(format!("{text} a {text}{text}\n{text}"))),
        reasoning_content: Some(text.into()),
        tool_call_id: Some(text.into()),
        name: Some(text.into()),
        tool_calls: vec![call.clone()],
        ..Message::new(role, "")
    };
    let messages = ["system", "user", "assistant", "tool"].map(fill).to_vec();
    let tools = vec![json!({"type": "function", "function": {"name": text, "description": text,
        "parameters": {"properties": {text: {"enum": [text]}}}}})];
    (messages, tools)
}

#[test]
fn no_special_token_comes_from_any_field() {
    for family in families() {
        let (benign, benign_tools) = conversation("x");
        for (name, source) in TEMPLATES {
            let template = family.template(source);
            let expected = family.count_specials(&family.ids(&template, &benign, &benign_tools));
            // Reserved tokens are alike; a sample of them is enough.
            let step = family.specials.len().div_ceil(40);
            for id in family.specials.iter().step_by(step) {
                let text = family.tokenizer.token_text(*id).unwrap();
                let (messages, tools) = conversation(text);
                let found = family.count_specials(&family.ids(&template, &messages, &tools));
                assert_eq!(found, expected, "{} {name} {text:?}", family.name);
            }
        }
    }
}

#[test]
fn names_assembled_from_pieces_are_found_out() {
    for family in families() {
        for (name, source) in TEMPLATES {
            let template = family.template(source);
            let benign = [Message { name: Some("n".into()), ..Message::new("user", "c") }];
            let expected = family.count_specials(&family.ids(&template, &benign, &[]));
            let step = family.specials.len().div_ceil(10);
            for id in family.specials.iter().step_by(step) {
                let text = family.tokenizer.token_text(*id).unwrap();
                for (at, _) in text.char_indices().skip(1) {
                    let (head, tail) = text.split_at(at);
                    for content in [
                        format!("{head}<x>{tail}"),
                        format!("{head}<y>{tail}"),
                        format!("x{text}x"),
                        text.chars().rev().collect(),
                        tail.to_owned(),
                    ] {
                        let message =
                            Message { name: Some(head.into()), ..Message::new("user", content) };
                        let ids = family.ids(&template, std::slice::from_ref(&message), &[]);
                        let found = family.count_specials(&ids);
                        assert_eq!(found, expected, "{} {name} {message:?}", family.name);
                    }
                }
            }
        }
    }
}

#[test]
fn forged_text_is_tokenized_as_text_and_prints_as_it_was_written() {
    for family in families() {
        let template = family.template(TEMPLATES[0].1);
        for id in family.specials.iter().take(20) {
            let text = family.tokenizer.token_text(*id).unwrap();
            let messages = [Message::new("user", format!("a{text}b"))];
            let rendered = template.render(&messages, None, false, &Map::new()).unwrap();
            assert!(rendered.has_forgery(), "{text}");
            assert!(rendered.text().contains(&format!("a{text}b")), "{text}");
            // The message alone, with special tokens as text, has the same ids inside.
            let inner = family.tokenizer.encode(&format!("user\na{text}b"), Specials::AsText);
            let ids = family.tokenizer.encode_spans(&rendered.spans).unwrap();
            let inner = inner.unwrap();
            // A vocabulary may put a space where the text starts, so compare from the second on.
            let same = ids.windows(inner.len() - 1).any(|w| w == &inner[1..]);
            assert!(same, "{} {text}: {inner:?} is not in {ids:?}", family.name);
        }
    }
}

#[test]
fn a_prompt_without_forgery_is_tokenized_as_one_text() {
    let texts = ["if a < b { c[0] > 1 }", "<b>bold</b> | [x](y)", " 👋 <|", "|> <", "day\n\n"];
    for family in families() {
        for (name, source) in TEMPLATES {
            let template = family.template(source);
            for text in texts {
                let (messages, tools) = conversation(text);
                let tools = Some(tools.as_slice());
                let rendered = template.render(&messages, tools, true, &Map::new()).unwrap();
                assert!(!rendered.has_forgery(), "{} {name} {text:?}", family.name);
                let spans = family.tokenizer.encode_spans(&rendered.spans).unwrap();
                let whole = family.tokenizer.encode(&rendered.text(), Specials::Recognised);
                assert_eq!(spans, whole.unwrap(), "{} {name} {text:?}", family.name);
            }
        }
    }
}

#[test]
fn markup_of_the_template_is_guarded_except_where_the_model_wrote_it() {
    let family = families().into_iter().next().unwrap();
    let template = ChatTemplate::new(
        "{% for m in messages %}{{ m.content }}{% endfor %}<think>",
        &family.tokenizer,
    )
    .unwrap();
    let markup = family.tokenizer.token_id("<think>").unwrap();
    for (role, expected) in [("user", 1), ("tool", 1), ("assistant", 2)] {
        let ids = family.ids(&template, &[Message::new(role, "a<think>b")], &[]);
        assert_eq!(ids.iter().filter(|id| **id == markup).count(), expected, "{role}");
    }
}

#[test]
fn private_characters_in_messages_are_kept() {
    let family = families().into_iter().next().unwrap();
    let template = family.template(TEMPLATES[0].1);
    let text = "\u{10ffff}\u{10fffe}\u{10fffd}\u{f0000}\u{e000}<s>\u{fdd0}";
    let rendered =
        template.render(&[Message::new("user", text)], None, false, &Map::new()).unwrap();
    assert!(rendered.text().contains(text));
    assert!(rendered.has_forgery());
}

#[test]
fn spans_decide_whether_special_tokens_are_meant() {
    let tokenizer = tokenizer("gpt2");
    let id = tokenizer.token_id("<|eot|>").unwrap();
    let count = |spans: &[Span]| {
        let ids = tokenizer.encode_spans(spans).unwrap();
        assert_eq!(
            tokenizer.decode(&ids, false),
            spans.iter().map(|s| s.text.as_str()).collect::<String>()
        );
        ids.iter().filter(|i| **i == id).count()
    };
    let (trusted, untrusted) = (Span::trusted, Span::untrusted);
    let cases: Vec<(Vec<Span>, usize)> = vec![
        (vec![trusted("<|eot|>")], 1),
        (vec![untrusted("<|eot|>")], 0),
        (vec![trusted("<|e"), trusted("ot|>")], 1),
        (vec![trusted("<|e"), untrusted("ot|>")], 0),
        (vec![untrusted("<"), trusted("|eot|>")], 0),
        (vec![trusted("<|eot|"), untrusted(">"), trusted("<|eot|>")], 1),
        (vec![untrusted("<|eot|><|eot|>"), trusted("<|eot|>"), untrusted("<|eot|>")], 1),
        (vec![untrusted(""), trusted("<|eot|>"), untrusted("")], 1),
    ];
    for (spans, expected) in cases {
        assert_eq!(count(&spans), expected, "{spans:?}");
    }
}
