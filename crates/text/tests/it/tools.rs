//! What a grammar of calls allows is a call: answers that follow it at random are read as calls of
//! tools that there are, with arguments that fit, in every family's own way of writing them.

use proptest::prelude::*;
use serde_json::{Value, json};
use std::sync::{Arc, LazyLock};
use tangor_text::{GgufVocab, Grammars, Reasoning, Tokenizer, ToolDelta, ToolFormat, ToolParser};

/// What tells a template of each family.
const FAMILIES: [&str; 5] =
    ["ipython", "<tool_call>", "<|tool|>", "[TOOL_CALLS]", "<｜tool▁calls▁begin｜>"];

/// What vocabularies have a token for.
const MARKS: [&str; 11] = [
    "<tool_call>",
    "</tool_call>",
    "<|tool_call|>",
    "<|/tool_call|>",
    "[TOOL_CALLS]",
    "<|python_tag|>",
    "<｜tool▁calls▁begin｜>",
    "<｜tool▁calls▁end｜>",
    "<｜tool▁call▁begin｜>",
    "<｜tool▁call▁end｜>",
    "<｜tool▁sep｜>",
];

/// A vocabulary of single bytes, some words, the marks as tokens of this type, and the end.
struct Vocabulary {
    tokenizer: Arc<Tokenizer>,
    grammars: Grammars,
    size: usize,
}

impl Vocabulary {
    fn new(mark_type: i32) -> Self {
        // As GPT-2 spells bytes: those that are no visible character follow behind all that are.
        let visible = |byte: u32| matches!(byte, 33..=126 | 161..=172 | 174..=255);
        let mut beyond = 255;
        let spelt = |byte: u32| match visible(byte) {
            true => byte,
            false => {
                beyond += 1;
                beyond
            }
        };
        let bytes = (0..256).map(spelt).map(|code| char::from_u32(code).unwrap().to_string());
        let mut tokens: Vec<String> = bytes.collect();
        tokens.extend(["{\"", "\":", "\"}", "</think>"].map(String::from));
        let mut token_types = vec![1; tokens.len()];
        tokens.extend(MARKS.map(String::from));
        token_types.resize(tokens.len(), mark_type);
        tokens.push("<|endoftext|>".into());
        token_types.push(3);
        let eos = u32::try_from(tokens.len() - 1).ok();
        let merges = ["{ \"", "\" :", "\" }"].map(String::from).to_vec();
        let size = tokens.len();
        let model = "gpt2".into();
        let vocab = GgufVocab { model, tokens, token_types, merges, eos, ..GgufVocab::default() };
        let tokenizer = Arc::new(Tokenizer::from_gguf(vocab).unwrap());
        let grammars = Grammars::new(Arc::clone(&tokenizer), size).unwrap();
        Self { tokenizer, grammars, size }
    }

    /// An answer that follows a grammar to its end, by tokens that are drawn from a seed. Those
    /// that end something come twice as often as all others.
    fn answer(&self, grammar: &str, mut seed: u64) -> String {
        let mut grammar = self.grammars.lark(grammar).unwrap().with_short_numbers();
        let (mut ids, eos) = (Vec::new(), self.tokenizer.eos()[0]);
        let mut draw = |count: usize| {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963);
            usize::try_from(seed >> 33).unwrap() % count
        };
        for _ in 0..4000 {
            let mut logits = vec![0.0; self.size];
            grammar.restrict(&mut logits).unwrap();
            let allowed = |id: &u32| logits[*id as usize] == 0.0;
            let mut choices: Vec<u32> = (0..).take(self.size).filter(allowed).collect();
            let ends = |id: &u32| {
                let text = self.tokenizer.token_text(*id).unwrap_or_default();
                *id == eos || ["\"", "\"}", "}", "]", "</think>"].contains(&text)
            };
            if choices.iter().any(ends) && draw(3) > 0 {
                choices.retain(ends);
            }
            let id = choices[draw(choices.len())];
            if id == eos {
                return self.tokenizer.decode(&ids, false);
            }
            grammar.accept(id).unwrap();
            ids.push(id);
        }
        panic!("it does not end: {}", self.tokenizer.decode(&ids, false));
    }
}

/// With marks that are special, and with marks that are text.
static VOCABULARIES: LazyLock<[Vocabulary; 2]> = LazyLock::new(|| [3, 4].map(Vocabulary::new));

fn tools() -> Vec<Value> {
    let closed = |properties: Value| {
        let required: Vec<&String> = properties.as_object().unwrap().keys().collect();
        json!({"type": "object", "required": required, "properties": properties,
               "additionalProperties": false})
    };
    let weather = closed(json!({
        "city": {"type": "string", "maxLength": 12},
        "days": {"type": "integer", "minimum": 1, "maximum": 7},
    }));
    let lights = closed(json!({
        "on": {"type": "array", "items": {"type": "boolean"}, "maxItems": 3},
    }));
    vec![
        json!({"type": "function", "function": {"name": "get-weather_2", "parameters": weather}}),
        json!({"type": "function", "function": {"name": "lights", "parameters": lights}}),
        json!({"type": "function", "function": {"name": "anything"}}),
    ]
}

/// Whether arguments are what [`tools`] asks for.
fn fits(name: &str, arguments: &Value) -> bool {
    let members = arguments.as_object().unwrap();
    match name {
        "get-weather_2" => {
            let days = arguments["days"].as_i64();
            members.len() == 2
                && arguments["city"].as_str().is_some_and(|city| city.chars().count() <= 12)
                && days.is_some_and(|days| (1..=7).contains(&days))
        }
        "lights" => {
            let on = arguments["on"].as_array();
            members.len() == 1
                && on.is_some_and(|on| on.len() <= 3 && on.iter().all(Value::is_boolean))
        }
        "anything" => true,
        _ => false,
    }
}

/// Calls in a text that arrives in pieces of so many characters, and what is none.
fn read(format: &'static ToolFormat, text: &str, piece: usize) -> (String, Vec<(String, String)>) {
    let chars: Vec<char> = text.chars().collect();
    let mut parser = ToolParser::new(format);
    let pieces = chars.chunks(piece).map(String::from_iter);
    let mut deltas: Vec<ToolDelta> = pieces.flat_map(|piece| parser.push(&piece)).collect();
    deltas.extend(parser.finish());
    let (mut said, mut calls) = (String::new(), Vec::new());
    for delta in deltas {
        match delta {
            ToolDelta::Text(text) => said.push_str(&text),
            ToolDelta::Call { name, .. } => calls.push((name, String::new())),
            ToolDelta::Arguments { index, text } => calls[index].1.push_str(&text),
        }
    }
    (said, calls)
}

proptest! {
    #[test]
    fn what_the_grammar_of_calls_allows_is_read_as_calls(
        seed in any::<u64>(),
        family in 0..FAMILIES.len(),
        special in 0..2_usize,
        (several, thinks) in any::<(bool, bool)>(),
        piece in 1..9_usize,
    ) {
        let vocabulary = &VOCABULARIES[special];
        let format = ToolFormat::of(FAMILIES[family]);
        let tools = tools();
        let grammar = format.grammar(&tools, several, &vocabulary.tokenizer);
        let prompt = if thinks { "<think>" } else { "" };
        let mut reasoning = Reasoning::of("<think>", prompt).unwrap();
        let grammar = reasoning.grammar(&grammar);
        let text = vocabulary.answer(&grammar, seed);
        let (now, rest) = (reasoning.push(&text), reasoning.finish());
        let answer = now.answer + &rest.answer;
        prop_assert!(rest.reasoning.is_empty(), "{text}");
        prop_assert!(!thinks || text.contains("</think>"), "{text}");
        let (said, calls) = read(format, &answer, piece);
        prop_assert!(said.trim().is_empty(), "{} says {said:?} in {text}", format.name);
        prop_assert!(!calls.is_empty() && (several || calls.len() == 1), "{}: {text}", format.name);
        for (name, arguments) in calls {
            let value: Value = serde_json::from_str(&arguments)
                .map_err(|error| TestCaseError::fail(format!("{error}: {arguments} in {text}")))?;
            prop_assert!(fits(&name, &value), "{name}: {arguments}");
        }
    }
}
