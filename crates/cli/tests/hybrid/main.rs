//! Every pair of processors, one that reads prompts and one that writes answers, answers as the
//! central processor alone does.
//!
//! The graphics processor is what Vulkan offers, in software where there is nothing else; the
//! neural one is ONNX Runtime's own provider. In the exact mode, two devices may choose different
//! tokens only where the likeliest two are as close as [`CLOSE`]: both are right there, and what
//! follows is not compared.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test stops where it fails")]

use std::sync::{Arc, LazyLock};
use std::time::Duration;
use tangor_device_cpu::{CpuDevice, CpuOptions};
use tangor_device_gpu::{GpuDevice, GpuOptions};
use tangor_device_npu::{Hardware, NpuDevice, NpuOptions};
use tangor_engine::device::tensor::{DType, Layout, Offset};
use tangor_engine::device::{Activations, Device, KvType, conformance};
use tangor_engine::plan::model::formats::{Checkpoint, Limits, MemorySource};
use tangor_engine::plan::model::{Graph, Mixture, shapes};
use tangor_engine::plan::{DeviceChoice, Stage, scratch_bytes};
use tangor_engine::{Completion, Event, LoadOptions, Model, OnLost, Request, Text};
use tangor_testkit::tiny;

/// Difference of log-probabilities below which two tokens are equally likely: sums of a few hundred
/// products in another order differ by less.
const CLOSE: f32 = 2e-3;

const NAMES: [&str; 3] = ["cpu", "gpu", "npu"];

fn input(variable: &str) -> String {
    let unset = "is not set: run `cargo xtask test`, or what `cargo xtask setup` prints";
    std::env::var(variable).unwrap_or_else(|_| panic!("{variable} {unset}"))
}

fn gpu() -> GpuDevice {
    // Software on a machine that is busy takes as long as it takes.
    let options = GpuOptions { time_limit: Duration::from_secs(1200), ..GpuOptions::default() };
    GpuDevice::open(&options).expect("a Vulkan driver, as mesa-vulkan-drivers is")
}

static DEVICES: LazyLock<Vec<Arc<dyn Device>>> = LazyLock::new(|| {
    let npu = NpuOptions {
        library: Some(input("TANGOR_TEST_ONNXRUNTIME").into()),
        providers: Some(Vec::new()),
        provider: Some("CPUExecutionProvider".into()),
        hardware: Some(Hardware::Cpu),
        rows: vec![1, 32],
        ..NpuOptions::default()
    };
    // Every thread takes memory of its own, which a plan does not count: not as many as there are.
    let threads = Some(std::thread::available_parallelism().map_or(1, usize::from).min(8));
    vec![
        Arc::new(CpuDevice::new(CpuOptions { threads, ..CpuOptions::default() }).unwrap()),
        Arc::new(gpu()),
        Arc::new(NpuDevice::open(npu).expect("ONNX Runtime")),
    ]
});

/// Answers may take part of the batch of others: `max_sequences` is less than there are requests.
fn options(prefill: &str, decode: &str) -> LoadOptions {
    LoadOptions {
        activations: Activations::F32,
        context: Some(160),
        max_sequences: 4,
        prefill_chunk: 32,
        prefill_device: Some(prefill.into()),
        decode_device: Some(decode.into()),
        ..LoadOptions::default()
    }
}

fn request(prompt: Vec<u32>, tokens: usize) -> Request {
    Request {
        prompt,
        max_tokens: Some(tokens),
        logprobs: Some(2),
        ignore_eos: true,
        ..Request::default()
    }
}

/// Everything at once.
fn ask(model: &Model, requests: &[Request]) -> Vec<Completion> {
    let ask = |request: &Request| model.generate(request.clone()).unwrap();
    let generations: Vec<_> = requests.iter().map(ask).collect();
    generations.into_iter().map(|generation| generation.wait().unwrap()).collect()
}

/// The next turn of every conversation: what was said, the answer, and a word more.
fn next_turn(requests: &[Request], answers: &[Completion]) -> Vec<Request> {
    let turn = |(request, answer): (&Request, &Completion)| {
        let prompt = [&request.prompt[..], &answer.tokens, &[7, 8, 9]].concat();
        Request { prompt, ..request.clone() }
    };
    requests.iter().zip(answers).map(turn).collect()
}

/// Compares up to the first place where the likeliest two tokens are close; returns the tokens that
/// were compared.
fn compare(what: &str, found: &[Completion], expected: &[Completion]) -> usize {
    let mut compared = 0;
    for (index, (found, expected)) in found.iter().zip(expected).enumerate() {
        let same = found.tokens.iter().zip(&expected.tokens).take_while(|(a, b)| a == b).count();
        compared += same;
        if same == expected.tokens.len() {
            continue;
        }
        let top = &expected.logprobs[same].top;
        let gap = top[0].1 - top[1].1;
        assert!(gap < CLOSE, "{what}, answer {index}, token {same}: the gap is {gap}");
    }
    compared
}

/// The CPU and the GPU. What an NPU's provider takes is its own business.
#[test]
fn a_plan_counts_the_activations_that_devices_take_and_pieces_share_them() {
    let mut config = shapes::config("smollm2-135m").unwrap();
    (config.hyper.layers, config.hyper.vocab) = (6, 512);
    config.windows.truncate(6);
    let graph = shapes::random_mixture(&config, Mixture::Q4_0, 1).unwrap();
    let tokens: Vec<u32> = (0..128).collect();
    let counted = scratch_bytes(&graph, tokens.len(), tokens.len());
    for device in &DEVICES[..2] {
        let take = |pieces| {
            let mode = (Activations::Int8, KvType::Bf16);
            let run = conformance::in_pieces(&**device, &graph, pieces, &tokens, mode);
            run.unwrap().scratch_bytes
        };
        let taken = [1, 6].map(take);
        let name = &device.descriptor().name;
        println!("{name} takes {taken:?} bytes whole and in pieces, the plan counts {counted}");
        assert!(taken.iter().all(|&bytes| bytes <= counted && counted < 4 * bytes), "{name}");
        assert!(taken[1] < 2 * taken[0], "{name}: pieces share");
        assert_eq!(taken[1], take(6), "{name}: the same every time");
    }
}

/// Answers of every pair, beside those of the processor alone: cold, from a warm cache, and a
/// second turn, for which what one device wrote in the middle is handed to the other.
fn check_pairs(name: &str, load: &dyn Fn(&LoadOptions) -> Arc<Model>, requests: &[Request]) {
    let alone = load(&options("cpu", "cpu"));
    let expected = ask(&alone, requests);
    let turn = next_turn(requests, &expected);
    let expected_turn = ask(&alone, &turn);
    let all: usize = expected.iter().chain(&expected_turn).map(|answer| answer.tokens.len()).sum();
    for (prefill, decode) in NAMES.iter().flat_map(|a| NAMES.map(|b| (*a, b))) {
        let what = format!("{name}, {prefill} then {decode}");
        let model = load(&options(prefill, decode));
        let plan = model.plan();
        for (stage, device) in [(Stage::Prefill, prefill), (Stage::Decode, decode)] {
            let stage = plan.stage(stage, 1).unwrap();
            let mut devices = stage.segments.iter().map(|s| &*plan.devices[s.device].name);
            assert!(devices.all(|name| name == device), "{what}: {}", plan.explain());
        }
        let compared = compare(&what, &ask(&model, requests), &expected)
            + compare(&format!("{what}, second turn"), &ask(&model, &turn), &expected_turn);
        compare(&format!("{what}, warm"), &ask(&model, requests), &expected);
        assert!(compared * 10 > all * 8, "{what}: only {compared} of {all} tokens were compared");
    }
}

fn prompt(seed: u32, len: usize) -> Vec<u32> {
    (0..len as u32).map(|i| (i * i * 31 + i * 7 + seed * 101) % 256).collect()
}

fn check_graph(name: &str, graph: &Graph) {
    let load = |options: &LoadOptions| {
        Model::from_graph(graph.clone(), Text::default(), &DEVICES, options, &mut |_| {}).unwrap()
    };
    let lengths = [3, 17, 40, 33, 50, 8];
    let requests: Vec<_> =
        (0..6).zip(lengths).map(|(seed, len)| request(prompt(seed, len), 12)).collect();
    check_pairs(name, &load, &requests);
}

#[test]
fn every_pair_answers_alike_for_a_tiny_model_of_every_architecture() {
    let quant = |group, offset| Layout::Quant { bits: 4, group, offset };
    for (arch, layout) in [
        ("llama", quant(32, Offset::Min)),
        ("mistral", quant(32, Offset::Zero)),
        ("qwen2", Layout::Dense(DType::Bf16)),
        ("phi3", quant(16, Offset::Zero)),
    ] {
        check_graph(arch, &tiny::random(arch, layout, 11));
    }
}

fn real() -> Checkpoint {
    let bytes = std::fs::read(input("TANGOR_TEST_GGUF")).expect("the real model's file");
    let source = MemorySource::new("real").with("real.gguf", bytes);
    Checkpoint::open(&source, None, &Limits::default()).unwrap()
}

/// Prompts for the real model; `TANGOR_TEST_LONG` asks for all of them and long answers.
fn real_requests(text: &Text) -> Vec<Request> {
    let tokenizer = text.tokenizer.as_ref().unwrap();
    let long = std::env::var_os("TANGOR_TEST_LONG").is_some();
    let (prompts, tokens) = if long { (10, 48) } else { (3, 10) };
    [
        "The capital of France is",
        "In the beginning there was a small village by the sea, and in it lived",
        "def fibonacci(n):\n",
        "Water boils at 100 degrees because",
        "Once upon a time, a fox and a crow met in a forest and",
        "The three laws of motion are: first,",
        "Dear Sir or Madam,\n\nI am writing to you about",
        "List of countries in Europe: Albania, Andorra, Austria,",
        "Photosynthesis is the process by which",
        "\"To be, or not to be,\" said the",
    ]
    .iter()
    .take(prompts)
    .map(|prompt| {
        let recognised = tangor_engine::text::Specials::Recognised;
        request(tokenizer.encode(prompt, recognised).unwrap(), tokens)
    })
    .collect()
}

#[test]
fn every_pair_answers_alike_for_the_real_model() {
    let checkpoint = real();
    let load =
        |options: &LoadOptions| Model::load(&checkpoint, &DEVICES, options, &mut |_| {}).unwrap();
    let requests = real_requests(load(&options("cpu", "cpu")).text());
    check_pairs("smollm2", &load, &requests);
}

#[test]
fn a_graphics_processor_that_is_lost_loses_no_request() {
    let graph = tiny::random("llama", Layout::Dense(DType::Bf16), 3);
    let requests: Vec<_> = (0..4).map(|seed| request(prompt(seed, 20), 40)).collect();
    let load = |devices: &[Arc<dyn Device>], options: &LoadOptions| {
        Model::from_graph(graph.clone(), Text::default(), devices, options, &mut |_| {}).unwrap()
    };
    let alone = load(&DEVICES, &options("cpu", "cpu"));
    let expected = ask(&alone, &requests);
    // A prompt that no cache knows.
    let afterwards = [request(prompt(9, 40), 12)];
    let expected_afterwards = ask(&alone, &afterwards);
    for (prefill, decode) in [("gpu", "gpu"), ("cpu", "gpu"), ("gpu", "cpu")] {
        for on_lost in [OnLost::Continue, OnLost::Fail] {
            let gpu = Arc::new(gpu());
            let devices = [Arc::clone(&DEVICES[0]), Arc::clone(&gpu) as Arc<dyn Device>];
            let asked =
                LoadOptions { on_lost, device: DeviceChoice::Auto, ..options(prefill, decode) };
            let model = load(&devices, &asked);
            let mut generations: Vec<_> =
                requests.iter().map(|r| model.generate(r.clone()).unwrap()).collect();
            // In the middle of the first answer.
            let mut tokens = generations[0].by_ref().filter_map(|event| match event {
                Ok(Event::Token(token)) => Some(token.id),
                _ => None,
            });
            let begun: Vec<u32> = tokens.by_ref().take(3).collect();
            gpu.lose();
            let rest: Vec<u32> = tokens.collect();
            let what = format!("{prefill} then {decode}, {on_lost:?}");
            let others = generations.split_off(1).into_iter().map(|generation| generation.wait());
            let later = model.generate(afterwards[0].clone()).and_then(|answer| answer.wait());
            let all: Result<Vec<_>, _> = others.chain([later]).collect();
            match (on_lost, all) {
                (OnLost::Continue, Ok(all)) => {
                    compare(&what, &all[..3], &expected[1..]);
                    compare(&what, &all[3..], &expected_afterwards);
                    assert_eq!(begun.len() + rest.len(), 40, "{what}");
                    let plan = model.plan();
                    assert!(
                        plan.reasons.iter().any(|why| why.contains("lost")),
                        "{}",
                        plan.explain()
                    );
                }
                (OnLost::Fail, Err(error)) => {
                    assert!(error.to_string().contains("gpu"), "{what}: {error}");
                }
                (_, Ok(_)) => panic!("{what}: nothing failed"),
                (_, Err(error)) => panic!("{what}: {error}"),
            }
        }
    }
}
