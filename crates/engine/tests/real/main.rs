//! SmolLM2-135M-Instruct: the same ids, tokens and likelihoods as transformers computes, and the
//! same bits however it is run.
//!
//! `TANGOR_TEST_GGUF` names the model's file. The recorded answers are made by
//! `tools/goldens/real.py`.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test stops where it fails")]

use serde_json::{Map, Value};
use std::sync::{Arc, LazyLock};
use tangor_device_cpu::{CpuDevice, CpuOptions};
use tangor_engine::device::{Activations, Device, KvType};
use tangor_engine::plan::model::formats::{Checkpoint, Limits, MemorySource};
use tangor_engine::text::{Message, Specials};
use tangor_engine::{Finish, LoadOptions, Model, Request, SessionOptions};

static CHECKPOINT: LazyLock<Checkpoint> = LazyLock::new(|| {
    let path = std::env::var("TANGOR_TEST_GGUF")
        .expect("TANGOR_TEST_GGUF names the real model's file; `cargo xtask test` sets it");
    let bytes = std::fs::read(&path).expect("the file that TANGOR_TEST_GGUF names");
    let source = MemorySource::new("real").with("real.gguf", bytes);
    Checkpoint::open(&source, None, &Limits::default()).unwrap()
});

static RECORDED: LazyLock<Value> =
    LazyLock::new(|| serde_json::from_str(include_str!("../fixtures/real_greedy.json")).unwrap());

fn load(options: LoadOptions) -> Arc<Model> {
    let device: Arc<dyn Device> = Arc::new(CpuDevice::new(CpuOptions::default()).unwrap());
    let options = LoadOptions { context: Some(2048), ..options };
    Model::load(&CHECKPOINT, &[device], &options, &mut |_| {}).unwrap()
}

/// The exact mode.
static EXACT: LazyLock<Arc<Model>> =
    LazyLock::new(|| load(LoadOptions { activations: Activations::F32, ..LoadOptions::default() }));

fn prompts() -> &'static [Value] {
    RECORDED["prompts"].as_array().unwrap()
}

fn ids(value: &Value) -> Vec<u32> {
    serde_json::from_value(value.clone()).unwrap()
}

fn numbers(value: &Value) -> Vec<f64> {
    serde_json::from_value(value.clone()).unwrap()
}

fn request(prompt: &Value) -> Request {
    Request {
        prompt: ids(&prompt["prompt_ids"]),
        max_tokens: Some(ids(&prompt["tokens"]).len()),
        logprobs: Some(0),
        ignore_eos: true,
        ..Request::default()
    }
}

#[test]
fn texts_and_conversations_become_the_recorded_ids() {
    let text = EXACT.text();
    let tokenizer = text.tokenizer.as_ref().unwrap();
    for prompt in prompts() {
        let expected = ids(&prompt["prompt_ids"]);
        let written = prompt["text"].as_str().unwrap();
        assert_eq!(tokenizer.encode(written, Specials::Recognised).unwrap(), expected);
        if prompt["kind"] == "chat" {
            let messages: Vec<Message> =
                serde_json::from_value(prompt["messages"].clone()).unwrap();
            let template = text.template.as_ref().unwrap();
            let rendered = template.render(&messages, None, true, &Map::new()).unwrap();
            assert_eq!(rendered.text(), written);
            assert_eq!(tokenizer.encode_spans(&rendered.spans).unwrap(), expected);
        }
    }
}

#[test]
fn greedy_answers_are_those_of_transformers() {
    let tokenizer = EXACT.text().tokenizer.as_ref().unwrap();
    let answers: Vec<_> =
        prompts().iter().map(|prompt| EXACT.generate(request(prompt)).unwrap()).collect();
    assert!(answers.len() >= 10);
    for (prompt, answer) in prompts().iter().zip(answers) {
        let answer = answer.wait().unwrap();
        assert_eq!(prompt["narrow"], serde_json::json!([]), "every step is decided");
        assert_eq!(answer.tokens, ids(&prompt["tokens"]), "{}", prompt["text"]);
        let text = tokenizer.decode(&answer.tokens, false);
        assert_eq!(text, prompt["continuation"].as_str().unwrap());
        assert_eq!(answer.text, tokenizer.decode(&answer.tokens, true));
        for (ours, theirs) in answer.logprobs.iter().zip(numbers(&prompt["logprobs"])) {
            let difference = (f64::from(ours.chosen) - theirs).abs();
            assert!(difference < 1e-3, "{} is {difference} from {theirs}", ours.chosen);
        }
    }
}

#[test]
fn a_fed_text_is_as_likely_as_transformers_says() {
    let tokens = ids(&RECORDED["forced"]["prompt_ids"]);
    let losses = numbers(&RECORDED["forced"]["nll"]);
    let best = ids(&RECORDED["forced"]["argmax"]);
    let mut session = EXACT.session(SessionOptions::default()).unwrap();
    let mut heard = 0;
    session
        .score(&tokens, &mut |position, logits| {
            let Some(&next) = tokens.get(position + 1) else { return };
            let max = logits.iter().copied().fold(f32::MIN, f32::max);
            let sum: f64 = logits.iter().map(|x| f64::from(x - max).exp()).sum();
            let loss = sum.ln() - f64::from(logits[next as usize] - max);
            assert!((loss - losses[position]).abs() < 1e-3, "{loss} at {position}");
            assert!((logits[best[position] as usize] - max).abs() < f32::EPSILON, "at {position}");
            heard += 1;
        })
        .unwrap();
    assert_eq!(heard, losses.len());
}

#[test]
fn answers_end_at_the_models_own_end_and_at_stop_strings() {
    let france = &prompts()[0];
    let chat = Request { ignore_eos: false, ..request(france) };
    let answer = EXACT.generate(chat.clone()).unwrap().wait().unwrap();
    assert_eq!(answer.text, "The capital of France is Paris.");
    assert!(matches!(answer.finish, Finish::EndOfText(_)), "{:?}", answer.finish);
    assert_eq!(answer.usage.completion, 7);
    for (stop, text) in [("is Par", "The capital of France "), ("ance", "The capital of Fr")] {
        let request = Request { stop: vec!["Rome".into(), stop.into()], ..chat.clone() };
        let answer = EXACT.generate(request).unwrap().wait().unwrap();
        assert_eq!((&*answer.text, answer.finish), (text, Finish::StopText(stop.into())));
    }
}

#[test]
fn the_default_mode_gives_equal_bits_however_it_is_run() {
    let requests: Vec<Request> = prompts()
        .iter()
        .take(4)
        .map(|prompt| Request { max_tokens: Some(8), logprobs: Some(8), ..request(prompt) })
        .collect();
    for kv in [KvType::F16, KvType::Bf16, KvType::Int8] {
        let options = LoadOptions { kv: Some(kv), ..LoadOptions::default() };
        let single = load(LoadOptions { max_sequences: 1, prefix_cache: false, ..options.clone() });
        let ask = |model: &Model, request: &Request| {
            let answer = model.generate(request.clone()).unwrap().wait().unwrap();
            (answer.tokens, answer.logprobs)
        };
        let expected: Vec<_> = requests.iter().map(|request| ask(&single, request)).collect();
        for prefill_chunk in [512, 17] {
            let model = load(LoadOptions { prefill_chunk, ..options.clone() });
            let together: Vec<_> =
                requests.iter().map(|request| model.generate(request.clone()).unwrap()).collect();
            let together: Vec<_> = together
                .into_iter()
                .map(|answer| answer.wait().map(|a| (a.tokens, a.logprobs)).unwrap())
                .collect();
            assert!(together == expected, "batched, chunks of {prefill_chunk}, {kv:?}");
            let again: Vec<_> = requests.iter().map(|request| ask(&model, request)).collect();
            assert!(again == expected, "cached, chunks of {prefill_chunk}, {kv:?}");
        }
    }
}
