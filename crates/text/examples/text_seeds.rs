//! Writes seeds for the fuzz targets `tokenizer` and `template` into a corpus folder.
//!
//! `cargo run -p tangor-text --example text_seeds -- fuzz/corpus`

use serde_json::{Value, json};
use std::io;
use std::path::Path;

/// A tiny `tokenizer.json` with the given model and stages.
fn tokenizer(model: Value, stages: Value) -> Value {
    let token = |id: u32, content: &str, special: bool| {
        json!({"id": id, "content": content, "special": special, "normalized": !special,
            "lstrip": !special, "rstrip": special, "single_word": false})
    };
    let mut file = json!({"added_tokens": [token(90, "<s>", true), token(91, "<t>", false)],
        "model": model});
    if let (Some(file), Value::Object(stages)) = (file.as_object_mut(), stages) {
        file.extend(stages);
    }
    file
}

fn tokenizers() -> Vec<Value> {
    let bpe = json!({"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2, "Ġ": 3, "Ġab": 4, "▁": 5,
        "<0x41>": 6, "<unk>": 7}, "merges": [["a", "b"], ["Ġ", "ab"]], "unk_token": "<unk>",
        "byte_fallback": true, "ignore_merges": true});
    let unigram = json!({"type": "Unigram", "unk_id": 0,
        "vocab": [["<unk>", 0.0], ["a", -1.0], ["▁a", -2.5], ["ab", -1.5]]});
    let words = json!({"type": "WordLevel", "vocab": {"a": 0, "<unk>": 1}, "unk_token": "<unk>"});
    let split = json!({"type": "Split", "pattern": {"Regex": "\\p{L}+|\\s+(?!\\S)"},
        "behavior": "Isolated", "invert": false});
    let bytes = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true,
        "use_regex": false});
    let metaspace = json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first",
        "split": false});
    let template = json!({"type": "TemplateProcessing", "pair": [], "single": [
        {"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "special_tokens": {"<s>": {"id": "<s>", "ids": [90], "tokens": ["<s>"]}}});
    let replace = json!({"type": "Replace", "pattern": {"String": " "}, "content": "▁"});
    let back = json!({"type": "Replace", "pattern": {"String": "▁"}, "content": " "});
    let prepend = json!({"type": "Prepend", "prepend": "▁"});
    let strip = json!({"type": "Strip", "content": " ", "start": 1, "stop": 0});
    let normalizer = json!({"type": "Sequence", "normalizers": [prepend, replace]});
    let decoder = json!({"type": "Sequence", "decoders": [back, {"type": "ByteFallback"},
        {"type": "Fuse"}, strip]});
    vec![
        tokenizer(
            bpe.clone(),
            json!({"pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, bytes]},
                "decoder": bytes, "post_processor": template}),
        ),
        tokenizer(bpe, json!({"normalizer": normalizer, "decoder": decoder})),
        tokenizer(
            unigram,
            json!({"normalizer": {"type": "NFKC"}, "pre_tokenizer": metaspace,
                "decoder": metaspace}),
        ),
        tokenizer(words, json!({"pre_tokenizer": {"type": "Whitespace"}})),
    ]
}

const TEMPLATES: &[&str] = &[
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content | trim }}<|im_end|>\n{% endfor %}",
    "{{ bos_token }}{% set ns = namespace(x=0) %}{% for m in messages %}{% set ns.x = ns.x + 1 %}\
     {{ '[INST] ' + m['content'] + ns.x|string }}{% endfor %}",
    "{% macro f(x) %}{{ x | upper }}{% endmacro %}{% if tools %}{{ tools | tojson(indent=2) }}\
     {% endif %}{{ f(messages[0].content) }}",
    "{% generation %}{{ messages[-1].content.split('<s>')[::-1] | join(',') }}{% endgeneration %}",
    "{{ strftime_now('%d %b %Y') }}{% if messages|length > 9 %}{{ raise_exception('no') }}{% endif %}\
     {{ range(3, 0, -1) | list }}{{ messages[0].content.replace('<', '') | e }}",
];

fn main() -> io::Result<()> {
    let corpus = std::env::args().nth(1).unwrap_or_else(|| "fuzz/corpus".to_owned());
    let texts = "\0ab <s> ab\u{e9}<t>  \u{301}";
    let write = |target: &str, number: usize, bytes: &[u8]| {
        let folder = Path::new(&corpus).join(target);
        std::fs::create_dir_all(&folder)?;
        std::fs::write(folder.join(format!("seed{number}")), bytes)
    };
    for (number, file) in tokenizers().iter().enumerate() {
        write("tokenizer", number, format!("\0{file}{texts}").as_bytes())?;
    }
    for kind in 0..4u8 {
        let seed = [&[5 + 8 * kind], "<|im|> aa<s> <think>  \u{e9}".as_bytes()].concat();
        write("tokenizer", 100 + usize::from(kind), &seed)?;
    }
    for (number, template) in TEMPLATES.iter().enumerate() {
        let seed = format!("{template}\0hello <|im_start|>\0<s>x</s>");
        write("template", number, seed.as_bytes())?;
    }
    Ok(())
}
