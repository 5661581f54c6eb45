//! What runs a model, with one of a few thousand random weights.

use crate::{Place, Written, keys};

const RUN_KEYS: [&str; 10] = [
    "text",
    "token_ids",
    "prompt_tokens",
    "completion_tokens",
    "drafted",
    "accepted",
    "finish_reason",
    "ttft_s",
    "decode_tps",
    "devices",
];

#[test]
fn an_answer_is_all_that_stdout_gets() {
    let place = Place::new();
    let tiny = place.tiny();
    let tiny = tiny.to_str().unwrap();
    let args = ["run", tiny, "-p", "hello", "-n", "8"];
    let plain = Written::of(place.tangor(&args));
    let cut = "the answer was cut at 8 tokens (-n)\n";
    assert_eq!((plain.code, plain.stderr.as_str()), (0, cut));
    let quiet = Written::of(place.tangor(&[&args[..], &["--quiet"]].concat()));
    assert_eq!((&quiet.stdout, quiet.stderr.as_str()), (&plain.stdout, ""));
    let json = Written::of(place.tangor(&[&args[..], &["--json"]].concat())).json();
    assert_eq!(plain.stdout, format!("{}\n", json["text"].as_str().unwrap()));
    let stats = Written::of(place.tangor(&[&args[..], &["--stats"]].concat()));
    assert_eq!(stats.stdout, plain.stdout);
    assert!(stats.stderr.contains("tokens"), "{}", stats.stderr);
}

#[test]
fn run_json_has_the_promised_keys() {
    let place = Place::new();
    let tiny = place.tiny();
    let tiny = tiny.to_str().unwrap();
    let json = Written::of(place.tangor(&["run", tiny, "-p", "abc", "--raw", "-n", "5", "--json"]));
    let json = json.json();
    assert_eq!(keys(&json), RUN_KEYS);
    assert_eq!(keys(&json["devices"]), ["prefill", "decode", "segments"]);
    let segments = json["devices"]["segments"].as_array().unwrap();
    let ran = segments.iter().filter(|segment| segment["stage"] == "decode");
    assert!(ran.clone().count() > 0);
    assert!(ran.into_iter().all(|segment| segment["measured_s"].as_f64().unwrap() > 0.0));
    assert_eq!(json["prompt_tokens"], 3);
    assert_eq!(json["completion_tokens"], 5);
    assert_eq!(json["token_ids"].as_array().unwrap().len(), 5);
    assert_eq!(json["finish_reason"], "length");
    assert!(json["ttft_s"].as_f64().unwrap() > 0.0);
    assert!(json["decode_tps"].as_f64().unwrap() > 0.0);
}

#[test]
fn proposals_change_the_speed_and_nothing_else() {
    let place = Place::new();
    let tiny = place.tiny();
    let tiny = tiny.to_str().unwrap();
    let base = ["run", tiny, "-p", "abcabcabcabc", "--raw", "-n", "40", "--json"];
    let asked = |more: &[&str]| Written::of(place.tangor(&[&base[..], more].concat())).json();
    let plain = asked(&["--speculate", "off"]);
    assert_eq!((&plain["drafted"], &plain["accepted"]), (&0.into(), &0.into()));
    for more in [&[][..], &["--speculate", "ngram"], &["--draft", tiny]] {
        let json = asked(more);
        assert_eq!(json["token_ids"], plain["token_ids"], "{more:?}");
        assert!(json["accepted"].as_u64() <= json["drafted"].as_u64(), "{more:?}");
    }
    let both = place.tangor(&[&base[..], &["--draft", tiny, "--speculate", "auto"]].concat());
    assert_eq!(Written::of(both).code, 2);
}

#[test]
fn the_prompt_may_come_from_a_file_or_a_pipe() {
    let place = Place::new();
    let tiny = place.tiny();
    let tiny = tiny.to_str().unwrap();
    std::fs::write(place.folder.path().join("prompt.txt"), "hello there\n").unwrap();
    let base = ["run", tiny, "-n", "6", "--json"];
    let ids = |written: Written| written.json()["token_ids"].clone();
    let given = ids(Written::of(place.tangor(&[&base[..], &["-p", "hello there"]].concat())));
    let file = ids(Written::of(place.tangor(&[&base[..], &["-f", "prompt.txt"]].concat())));
    let mut piped = place.tangor(&base);
    piped.write_stdin("hello there\n");
    let mut dash = place.tangor(&[&base[..], &["-f", "-"]].concat());
    dash.write_stdin("hello there\n");
    assert_eq!(
        [file, ids(Written::of(piped)), ids(Written::of(dash))],
        [(); 3].map(|()| given.clone())
    );
    let raw =
        ids(Written::of(place.tangor(&[&base[..], &["--raw", "-p", "hello there"]].concat())));
    assert_ne!(raw, given, "the template must matter");
}

#[test]
fn sampling_is_reproducible_by_its_seed() {
    let place = Place::new();
    let tiny = place.tiny();
    let tiny = tiny.to_str().unwrap();
    let run = |seed: &str| {
        let args = ["run", tiny, "-p", "x", "-n", "24", "--temperature", "2", "--seed", seed];
        Written::of(place.tangor(&[&args[..], &["--json"]].concat())).json()["token_ids"].clone()
    };
    assert_eq!(run("7"), run("7"));
    assert_ne!(run("7"), run("8"));
}

#[test]
fn a_prompt_that_does_not_fit_is_refused() {
    let place = Place::new();
    let tiny = place.tiny();
    let args = ["run", tiny.to_str().unwrap(), "--context", "16", "-p", &"x".repeat(100)];
    let written = Written::of(place.tangor(&args));
    assert_eq!((written.code, written.stdout.as_str()), (1, ""));
    assert!(written.stderr.contains("16"), "{}", written.stderr);
}

#[test]
fn a_broken_template_is_not_a_missing_one() {
    let place = Place::new();
    let tiny = place.tiny();
    let config = tiny.join("tokenizer_config.json");
    let (tiny, broken) = (tiny.to_str().unwrap(), r#"{"chat_template": "{% for m in %}"}"#);
    for (text, expected) in [(broken, "template is broken: "), ("{}", "has no chat template")] {
        std::fs::write(&config, text).unwrap();
        for args in [&["run", tiny, "-p", "x"][..], &["chat", tiny]] {
            let written = Written::of(place.tangor(args));
            assert_eq!(written.code, 1);
            let said = &written.stderr;
            assert!(said.contains(expected) && said.contains("--raw"), "{args:?}: {said}");
        }
    }
}

#[test]
fn an_answer_that_a_full_context_cuts_is_said_to_be_cut() {
    let place = Place::new();
    let tiny = place.tiny();
    let tiny = tiny.to_str().unwrap();
    let full = "the answer was cut: the context of 48 tokens is full";
    let run = Written::of(place.tangor(&["run", tiny, "--context", "48", "-p", "hello"]));
    assert_eq!(run.code, 0);
    assert!(run.stderr.contains(full) && run.stderr.contains("--context"), "{}", run.stderr);
    let mut chat = place.tangor(&["chat", tiny, "--context", "48"]);
    chat.write_stdin("hello\nagain\n");
    let chat = Written::of(chat);
    assert_eq!(chat.code, 1, "there is no room for a second question");
    assert!(chat.stderr.contains(full), "{}", chat.stderr);
    assert!(chat.stderr.contains("hint: a longer --context"), "{}", chat.stderr);
}

/// What was said in the conversation of this file, in order.
fn said(place: &Place, file: &str) -> Vec<String> {
    let saved = std::fs::read_to_string(place.folder.path().join(file)).unwrap();
    let saved: serde_json::Value = serde_json::from_str(&saved).unwrap();
    let messages = saved["messages"].as_array().unwrap();
    messages.iter().map(|m| m["content"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn a_conversation_needs_no_terminal() {
    let place = Place::new();
    let tiny = place.tiny();
    let mut chat =
        place.tangor(&["chat", tiny.to_str().unwrap(), "-n", "4", "--save", "talk.json"]);
    chat.write_stdin("one\\\ntwo\n\"\"\"\nthree\nfour\n\"\"\"\n");
    let written = Written::of(chat);
    assert_eq!(written.code, 0, "{}", written.stderr);
    let talk = said(&place, "talk.json");
    assert_eq!((talk.len(), &*talk[0], &*talk[2]), (4, "one\ntwo", "three\nfour"));
    assert_eq!(written.stdout, format!("{}\n{}\n", talk[1], talk[3]));
    let more = ["chat", "tiny/", "-n", "4", "--context", "160", "--load", "talk.json"];
    let mut more = place.tangor(&[&more[..], &["--save", "talk.json"]].concat());
    more.write_stdin(format!("five\n{}\nsix\n", "x".repeat(200)));
    let written = Written::of(more);
    assert_eq!(written.code, 1, "a script must not run on after a failure");
    assert!(written.stderr.contains("160"), "{}", written.stderr);
    let talk = said(&place, "talk.json");
    assert_eq!((talk.len(), &*talk[4]), (6, "five"));
}

#[test]
fn what_is_piped_in_commands_nothing() {
    let place = Place::new();
    let tiny = place.tiny();
    std::fs::write(place.folder.path().join("mine.txt"), "mine").unwrap();
    let lines = ["/save mine.txt", "/etc is what?", "/exit", "/load mine.txt", "hello"];
    let args = ["chat", tiny.to_str().unwrap(), "-n", "2", "--context", "400"];
    let mut chat = place.tangor(&[&args[..], &["--save", "talk.json"]].concat());
    chat.write_stdin(lines.join("\n"));
    let written = Written::of(chat);
    assert_eq!(written.code, 0, "{}", written.stderr);
    let asked: Vec<String> = said(&place, "talk.json").into_iter().step_by(2).collect();
    assert_eq!(asked, lines);
    assert_eq!(std::fs::read_to_string(place.folder.path().join("mine.txt")).unwrap(), "mine");
}

#[test]
fn bench_json_has_the_promised_keys() {
    let place = Place::new();
    let tiny = place.tiny();
    let tiny = tiny.to_str().unwrap();
    let args = ["bench", tiny, "-p", "16", "-n", "8", "-r", "3", "--json", "--depth", "8"];
    let json = Written::of(place.tangor(&args)).json();
    for key in ["ttft_s", "prefill_tps", "decode_tps", "load_s"] {
        assert!(json[key].as_f64().is_some_and(|value| value > 0.0), "{key}: {json}");
    }
    assert_eq!(keys(&json["limits"]), ["int8_ops_per_s", "read_bytes_per_s"]);
    assert_eq!(keys(&json["of_limit"]), ["prefill", "decode"]);
    assert_eq!(json["runs"].as_array().unwrap().len(), 3);
    assert_eq!(json["model"], tiny);
    assert!(json["device"].is_string());
    assert_eq!(json["peak_rss_bytes"].is_u64(), cfg!(target_os = "linux"));
    let mut decode: Vec<f64> = json["runs"]
        .as_array()
        .unwrap()
        .iter()
        .map(|r| r["decode_tps"].as_f64().unwrap())
        .collect();
    decode.sort_by(f64::total_cmp);
    assert_eq!(json["decode_tps"], decode[1]);
}

#[test]
fn evaluations_report_what_they_measured() {
    let place = Place::new();
    let tiny = place.tiny();
    let tiny = tiny.to_str().unwrap();
    let common = ["--tokens", "200", "--window", "50", "--json"];
    let perplexity = [&["eval", "perplexity", tiny][..], &common].concat();
    let perplexity = Written::of(place.tangor(&perplexity)).json();
    assert_eq!(perplexity["tokens"], 199);
    assert!(perplexity["perplexity"].as_f64().unwrap() > 1.0);
    let kl = [&["eval", "kl", tiny][..], &common].concat();
    let kl = Written::of(place.tangor(&kl)).json();
    assert_eq!(kl["tokens"], 200);
    for key in ["mean_kl", "median_kl", "p99_kl", "max_kl", "top1_agreement", "top5_overlap"] {
        assert!(kl[key].as_f64().is_some_and(|value| value >= 0.0), "{key}: {kl}");
    }
    let itself = ["eval", "kl", tiny, "--activations", "f32", "--tokens", "64", "--json"];
    let itself = Written::of(place.tangor(&itself)).json();
    assert_eq!((&itself["max_kl"], &itself["top1_agreement"]), (&0.0.into(), &1.0.into()));
}

#[test]
fn a_comparison_goes_on_without_the_peers_that_it_cannot_have() {
    let place = Place::new();
    let tiny = place.tiny();
    let (png, svg) = (tiny.with_file_name("speed.png"), tiny.with_file_name("speed.svg"));
    let [tiny, png_name, svg_name] = [&tiny, &png, &svg].map(|path| path.to_str().unwrap());
    let compare =
        ["--offline", "compare", tiny, "--peers", "llama.cpp,mistral.rs", "--rounds", "1"];
    let rest = ["-p", "16", "-n", "4", "--json", "--chart", png_name, "--chart", svg_name];
    let written = Written::of(place.tangor(&[&compare[..], &rest].concat()));
    let report = written.json();
    let contenders = report["contenders"].as_array().unwrap();
    assert_eq!((contenders.len(), &contenders[0]["name"]), (1, &"tangor".into()));
    assert!(contenders[0]["medians"]["decode_tps"]["median"].as_f64() > Some(0.0), "{report}");
    let left_out = report["left_out"].as_array().unwrap();
    assert_eq!((left_out.len(), &left_out[0]["reason"]), (2, &"failed".into()));
    for name in ["llama.cpp", "mistral.rs"] {
        let line = format!("{name} is left out: ");
        assert_eq!(written.stderr.matches(&line).count(), 1, "{}", written.stderr);
    }
    assert!(std::fs::read(png).unwrap().starts_with(b"\x89PNG"));
    assert!(std::fs::read_to_string(svg).unwrap().starts_with("<svg"));
}

#[test]
fn a_model_shows_what_it_is() {
    let place = Place::new();
    let tiny = place.tiny();
    let tiny = tiny.to_str().unwrap();
    let show = Written::of(place.tangor(&["show", tiny, "--json"])).json();
    assert_eq!((&show["architecture"], &show["vocab"]), (&"llama".into(), &256.into()));
    assert!(show["parameters"].as_u64().unwrap() > 1000);
    let template = Written::of(place.tangor(&["show", tiny, "--template"]));
    assert_eq!(template.stdout.trim_end(), tangor_testkit::tiny::TEMPLATE);
    let inspect = Written::of(place.tangor(&["inspect", tiny, "--json", "--graph"])).json();
    assert_eq!(keys(&inspect), ["format", "metadata", "tensors", "graph"]);
    assert_eq!(keys(&inspect["tensors"][0]), ["name", "shape", "type", "bytes"]);
    let graph = Written::of(place.tangor(&["inspect", tiny, "--graph"]));
    assert!(graph.stdout.contains("attention"), "{}", graph.stdout);
    let text = Written::of(place.tangor(&["inspect", tiny]));
    assert!(text.stdout.contains("model.embed_tokens.weight"), "{}", text.stdout);
}
