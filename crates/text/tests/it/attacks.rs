//! Hostile tokenizer files, templates and texts: each ends in a typed error or in bounded work.

use crate::counting::peak;
use crate::huggingface::{file, tokenizer};
use serde_json::{Map, Value, json};
use std::time::{Duration, Instant};
use tangor_text::{ChatTemplate, Error, GgufVocab, HfFiles, Message, Result, Specials, Tokenizer};

/// Far above what any case takes; far below what exponential or quadratic work would.
const PATIENCE: Duration = Duration::from_secs(60);

fn load(file: &Value) -> Result<Tokenizer> {
    let bytes = serde_json::to_vec(file).unwrap();
    bounded(bytes.len(), || {
        Tokenizer::from_hf(&HfFiles { tokenizer: &bytes, ..HfFiles::default() })
    })
}

/// The result of work on so many foreign bytes, which may take twice as much memory and 16 MiB.
fn bounded<T>(bytes: usize, work: impl FnOnce() -> T) -> T {
    let mut result = None;
    let found = peak(|| result = Some(work()));
    let bound = 2 * bytes + (16 << 20);
    assert!(found <= bound, "{found} bytes of memory for {bytes} read, and the bound is {bound}");
    result.unwrap()
}

/// A good file of a kind with one change.
fn changed(kind: &str, change: impl Fn(&mut Value)) -> Value {
    let mut file = file(kind);
    change(&mut file);
    file
}

#[test]
fn malformed_tokenizer_files_are_refused_by_name() {
    let set = |pointer: &'static str, value: Value| {
        move |file: &mut Value| *file.pointer_mut(pointer).unwrap() = value.clone()
    };
    let template = json!({"type": "TemplateProcessing", "pair": [], "special_tokens": {},
        "single": [{"SpecialToken": {"id": "<gone>", "type_id": 0}}]});
    let split = |regex: &str| {
        json!({"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated",
            "invert": false})
    };
    let strip = json!({"type": "Strip", "content": " ", "start": 3, "stop": 0});
    let charsmap = json!({"type": "Precompiled", "precompiled_charsmap": "AAAA"});
    let digits = json!({"type": "Digits", "individual_digits": true});
    let deep = (0..50).fold(
        digits.clone(),
        |inner, _| json!({"type": "Sequence", "pretokenizers": [inner, digits, digits]}),
    );
    let cases: Vec<(Value, &str)> = vec![
        (json!(null), "tokenizer.json"),
        (json!([]), "tokenizer.json"),
        (json!({}), "no `model`"),
        (json!({"model": 3}), "model"),
        (changed("gpt2", set("/model/type", json!("Magic"))), "`Magic`"),
        (changed("gpt2", set("/model/vocab", json!({}))), "vocab"),
        (changed("gpt2", set("/model/vocab/a", json!(-1))), "vocab"),
        (changed("gpt2", set("/model/vocab/a", json!(2_147_483_648_u32))), "highest token id"),
        (changed("gpt2", set("/model/merges/0", json!(["a", "zzzzzzzzzzzzzzzzzzz"]))), "zzz"),
        (changed("gpt2", set("/model/merges/0", json!(["a", "quick brown"]))), "quick brown"),
        (changed("gpt2", set("/model/merges", json!(["a b c"]))), "pair"),
        (changed("gpt2", set("/model/dropout", json!(0.5))), "dropout"),
        (changed("gpt2", set("/model/continuing_subword_prefix", json!("##"))), "prefix"),
        (changed("llama2", set("/model/unk_token", json!("<none>"))), "<none>"),
        (changed("gpt2", set("/post_processor", template)), "<gone>"),
        (changed("gpt2", set("/decoder", strip)), "Strip"),
        (changed("gpt2", set("/decoder", json!({"type": "WordPiece"}))), "WordPiece"),
        (changed("gpt2", set("/normalizer", charsmap)), "Precompiled"),
        (
            changed("gpt2", set("/pre_tokenizer", json!({"type": "FixedLength", "length": 0}))),
            "length of 0",
        ),
        (changed("gpt2", set("/pre_tokenizer", split("(a+)+(?!b)"))), "exponential"),
        (changed("gpt2", set("/pre_tokenizer", split("("))), "pre_tokenizer"),
        (changed("gpt2", set("/pre_tokenizer", split(&"a".repeat(20_000)))), "regex"),
        (changed("gpt2", set("/pre_tokenizer", deep)), "components"),
        (changed("gpt2", set("/added_tokens/0/id", json!("x"))), "added_tokens"),
        (changed("gpt2", set("/added_tokens/0/content", json!("x".repeat(300)))), "added token"),
        (changed("unigram", set("/model/unk_id", json!(4_000_000))), "unk_id"),
        (changed("unigram", set("/model/vocab/5/0", json!(""))), "empty piece"),
    ];
    for (file, expected) in cases {
        let error = load(&file).expect_err(expected).to_string();
        assert!(error.contains(expected), "`{error}` does not mention `{expected}`");
    }
}

#[test]
fn every_truncation_of_a_tokenizer_file_is_an_error() {
    let whole = serde_json::to_vec(&file("llama2")).unwrap();
    for len in (0..whole.len()).step_by(101) {
        let files = HfFiles { tokenizer: &whole[..len], ..HfFiles::default() };
        let loaded = bounded(len, || Tokenizer::from_hf(&files));
        assert!(matches!(loaded, Err(Error::Invalid { .. })), "{len}");
    }
}

#[test]
fn a_file_over_the_limit_is_refused_unread() {
    let big = vec![b' '; tangor_text::limits::TOKENIZER_BYTES + 1];
    let files = HfFiles { tokenizer: &big, ..HfFiles::default() };
    let loaded = bounded(0, || Tokenizer::from_hf(&files));
    assert!(matches!(loaded, Err(Error::Limit { .. })));
}

#[test]
fn odd_but_harmless_files_load_and_encode() {
    let truncation = json!({"direction": "Right", "max_length": 2, "strategy": "LongestFirst",
        "stride": 9});
    let again = json!({"id": 7, "content": "<s>", "special": true, "normalized": false,
        "single_word": false, "lstrip": false, "rstrip": false});
    let no_bytes = changed("gpt2", |file| {
        let vocab = file.pointer_mut("/model/vocab").unwrap().as_object_mut().unwrap();
        vocab.retain(|text, _| text.chars().count() > 1);
        file["model"]["merges"] = json!([]);
    });
    let cases = [
        changed("gpt2", |file| file["truncation"] = truncation.clone()),
        changed("gpt2", |file| {
            file["added_tokens"].as_array_mut().unwrap().push(again.clone());
        }),
        no_bytes,
    ];
    for file in cases {
        let tokenizer = load(&file).unwrap();
        let ids = tokenizer.encode("Hello <s> wörld", Specials::Recognised).unwrap();
        tokenizer.decode(&ids, false);
    }
}

#[test]
fn malformed_gguf_vocabularies_are_refused_by_name() {
    let good = || GgufVocab {
        model: "gpt2".into(),
        pre: Some("gpt-2".into()),
        tokens: ["a", "b", "ab"].map(String::from).to_vec(),
        merges: vec!["a b".into()],
        ..GgufVocab::default()
    };
    assert!(Tokenizer::from_gguf(good()).is_ok());
    let cases: Vec<(GgufVocab, &str)> = vec![
        (GgufVocab { model: "bert".into(), ..good() }, "`bert`"),
        (GgufVocab { pre: Some("new".into()), ..good() }, "`new`"),
        (GgufVocab { tokens: vec![], ..good() }, "tokens"),
        (GgufVocab { merges: vec![], ..good() }, "merges"),
        (GgufVocab { scores: vec![1.0], ..good() }, "scores"),
        (GgufVocab { token_types: vec![1; 9], ..good() }, "token_type"),
    ];
    for (vocab, expected) in cases {
        let error = bounded(0, || Tokenizer::from_gguf(vocab)).expect_err(expected).to_string();
        assert!(error.contains(expected), "`{error}` does not mention `{expected}`");
    }
    // What llama.cpp tolerates is tolerated: ids past the end, merges of no tokens, odd scores.
    let odd = GgufVocab {
        bos: Some(99),
        merges: ["a b", "x y", "", " ", "a", "é é é"].map(String::from).to_vec(),
        scores: vec![f32::NAN, f32::INFINITY, 0.0],
        ..good()
    };
    for model in ["gpt2", "llama"] {
        let tokenizer = Tokenizer::from_gguf(GgufVocab { model: model.into(), ..odd.clone() });
        assert_eq!(tokenizer.unwrap().decode(&[2, 99], false), "ab");
    }
}

fn render(source: &str, messages: &[Message]) -> Result<String> {
    let template = ChatTemplate::new(source, &tokenizer("gpt2"))?;
    template.render(messages, None, true, &Map::new()).map(|r| r.text())
}

#[test]
fn hostile_templates_end_in_errors_that_name_the_line() {
    let user = [Message::new("user", "hi")];
    let too_long = format!("{{# {} #}}", "x".repeat(300_000));
    let nested = format!("{{{{ {}1{} }}}}", "(".repeat(5000), ")".repeat(5000));
    let blocks = format!("{}x{}", "{% if true %}".repeat(3000), "{% endif %}".repeat(3000));
    let cases: &[(&str, &str)] = &[
        ("\n{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}", "2"),
        ("{% for a in range(1000000000) %}x{% endfor %}", "range"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "recursion"),
        ("{{ 'x' * 1000000000 }}", "fuel"),
        (
            "{% set ns = namespace(x='y') %}{% for i in range(40) %}{% set ns.x = ns.x ~ ns.x %}\
          {% endfor %}",
            "fuel",
        ),
        ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "undefined"),
        ("{{ messages.__init__.__globals__ }}", "undefined"),
        ("{{ 'a' | wobble }}", "wobble"),
        ("{{ wobble() }}", "wobble"),
        ("{% include '/etc/passwd' %}", "passwd"),
        ("{% for m in messages %}{{ m.content", "line 1"),
        ("a\nb\n{{ raise_exception('roles must alternate') }}", "line 3: roles must alternate"),
        ("{% set x = 'ab' * 50000 %}{% for i in range(90) %}{{ x }}{% endfor %}", "fuel"),
        ("{{ messages | tojson(indent=100000) }}", "indent"),
        (&too_long, "262144"),
        (&nested, "line"),
        (&blocks, "line"),
    ];
    for (source, expected) in cases {
        let start = Instant::now();
        let rendered = bounded(source.len(), || render(source, &user));
        let error = rendered.expect_err(expected).to_string();
        assert!(error.contains(expected), "`{error}` does not mention `{expected}`");
        assert!(start.elapsed() < PATIENCE, "{expected}");
    }
}

#[test]
fn messages_over_their_limits_are_refused() {
    let echo = "{% for m in messages %}{{ m.content }}{% endfor %}";
    let many = vec![Message::new("user", "x"); tangor_text::limits::MESSAGES + 1];
    assert!(matches!(render(echo, &many), Err(Error::Limit { .. })));
    let mut deep = json!("x");
    for _ in 0..200 {
        deep = json!([deep]);
    }
    let mut message = Message::new("user", "x");
    message.extra.insert("deep".into(), deep);
    assert!(render(echo, &[message]).unwrap_err().to_string().contains("nested"));
    for role in ["", "a\nb", "<|im_start|>", &"r".repeat(100), "eot"] {
        let refused = render(echo, &[Message::new(role, "x")]);
        assert!(matches!(refused, Err(Error::Message { index: 0, .. })), "{role:?}");
    }
    assert_eq!(render(echo, &[Message::new("critic", "x")]).unwrap(), "x");
    let large =
        [Message::new("user", "x".repeat(5 << 20)), Message::new("user", "y".repeat(5 << 20))];
    assert!(matches!(render(echo, &large), Err(Error::Limit { found, .. }) if found > 8 << 20));
}

#[test]
fn long_and_odd_texts_take_no_quadratic_time() {
    let many = 250_000;
    let texts = [
        "a".repeat(many),
        " ".repeat(many),
        format!("{}x", " ".repeat(many)),
        "\n ".repeat(many / 2),
        "\u{301}".repeat(many),
        "e\u{301}".repeat(many / 2),
        "אב\u{202e}".repeat(many / 4),
        "👨\u{200d}👩\u{200d}👧".repeat(many / 20),
        "\0".repeat(many),
        "0".repeat(many),
        "<".repeat(many),
        "<|eot|".repeat(many / 6),
        "'s".repeat(many / 2),
        "▁".repeat(many / 3),
    ];
    for kind in ["gpt2", "llama3", "qwen2", "llama2", "mistral", "unigram"] {
        let tokenizer = tokenizer(kind);
        for text in &texts {
            let start = Instant::now();
            let ids = tokenizer.encode(text, Specials::AsText).unwrap();
            assert!(!ids.is_empty());
            let head: String = text.chars().take(3).collect();
            let took = start.elapsed();
            assert!(took < PATIENCE, "{kind} {head:?}: {took:?}");
        }
    }
}
