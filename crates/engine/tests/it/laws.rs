//! What a sequence computes depends on its tokens alone: equal bits, however it is run.

use crate::support::*;
use std::sync::Arc;
use tangor_device_cpu::{CpuDevice, CpuOptions};
use tangor_engine::device::tensor::{DType, Layout};
use tangor_engine::device::{Device, KvType, oracle};
use tangor_engine::plan::model::Graph;
use tangor_engine::{LoadOptions, Request, SessionOptions};
use tangor_testkit::tiny;

/// What is run, where, which model, and how.
type Case = (String, Vec<Arc<dyn Device>>, Graph, LoadOptions);

/// Devices, models and precisions under which every law must hold.
fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for arch in ["llama", "mistral", "qwen2", "phi3"] {
        let graph = tiny::random(arch, W4, 7);
        cases.push((format!("oracle {arch} exact"), oracle(), graph.clone(), exact()));
        for (name, options) in [
            ("exact", exact()),
            ("int8, f16 cache", rounded(KvType::F16)),
            ("int8, bf16 cache", rounded(KvType::Bf16)),
            ("int8, int8 cache", rounded(KvType::Int8)),
        ] {
            cases.push((format!("cpu {arch} {name}"), cpu(), graph.clone(), options));
        }
    }
    let dense = tiny::random("llama", Layout::Dense(DType::Bf16), 3);
    cases.push(("oracle bf16".into(), oracle(), dense, rounded(KvType::F16)));
    cases
}

fn cpu() -> Vec<Arc<dyn Device>> {
    let options = CpuOptions { threads: Some(2), ..CpuOptions::default() };
    vec![Arc::new(CpuDevice::new(options).unwrap())]
}

/// Prompts of several lengths, greedy and sampled.
fn requests() -> Vec<Request> {
    let lengths = [1, 2, 16, 33, 70, 5];
    let request = |(index, &len): (usize, &usize)| {
        let prompt = prompt(index as u32, len);
        if index % 2 == 0 { greedy(&prompt, 12) } else { sampled(&prompt, 12, 5) }
    };
    lengths.iter().enumerate().map(request).collect()
}

fn alone(options: LoadOptions) -> LoadOptions {
    LoadOptions { prefix_cache: false, ..options }
}

#[test]
fn batched_runs_equal_single_ones() {
    for (name, devices, graph, options) in cases() {
        let single = load(&graph, &devices, &alone(options.clone()));
        let expected: Vec<_> = requests().iter().map(|request| ask(&single, request)).collect();
        let batched = load(&graph, &devices, &options);
        assert_eq!(ask_all(&batched, &requests()), expected, "{name}");
        let mut reversed = requests();
        reversed.reverse();
        let mut answers = ask_all(&batched, &reversed);
        answers.reverse();
        assert_eq!(answers, expected, "{name}, in the other order, with a warm cache");
    }
}

#[test]
fn chunked_prompts_equal_whole_ones() {
    for (name, devices, graph, options) in cases() {
        let whole = LoadOptions { prefill_chunk: 128, ..alone(options.clone()) };
        let whole = load(&graph, &devices, &whole);
        let expected: Vec<_> = requests().iter().map(|request| ask(&whole, request)).collect();
        for prefill_chunk in [1, 17, 64] {
            let chunked = LoadOptions { prefill_chunk, ..alone(options.clone()) };
            let chunked = load(&graph, &devices, &chunked);
            let answers: Vec<_> = requests().iter().map(|request| ask(&chunked, request)).collect();
            assert_eq!(answers, expected, "{name} in chunks of {prefill_chunk}");
        }
    }
}

#[test]
fn cached_beginnings_equal_computed_ones() {
    for (name, devices, graph, options) in cases() {
        let cold = load(&graph, &devices, &alone(options.clone()));
        let warm = load(&graph, &devices, &options);
        let base = prompt(1, 70);
        for cut in [70, 70, 69, 64, 45, 33, 32, 31, 1] {
            let tail = prompt(cut as u32, 9);
            let request = greedy(&[&base[..cut], &tail].concat(), 6);
            let answer = warm.generate(request.clone()).unwrap().wait().unwrap();
            let expected = cold.generate(request).unwrap().wait().unwrap();
            assert_eq!(answer.tokens, expected.tokens, "{name}: {cut} shared tokens");
            assert_eq!(answer.logprobs, expected.logprobs, "{name}: {cut} shared tokens");
            assert_eq!(expected.usage.cached, 0);
        }
        let again = warm.generate(greedy(&base, 2)).unwrap().wait().unwrap();
        assert_eq!(again.usage.cached, 69, "{name}: all but the last token");
    }
}

#[test]
fn preempted_answers_equal_undisturbed_ones() {
    let graph = llama();
    let requests: Vec<_> = (0..4).map(|i| greedy(&prompt(i, 30), 90)).collect();
    let roomy = load(&graph, &oracle(), &alone(exact()));
    let expected: Vec<_> = requests.iter().map(|request| ask(&roomy, request)).collect();
    // Four sequences of 120 tokens need 16 pages; there are 5.
    let page = roomy.plan().kv.page_bytes;
    for prefix_cache in [false, true] {
        let tight = LoadOptions { kv_bytes: Some(5 * page), prefix_cache, ..exact() };
        let tight = load(&graph, &oracle(), &tight);
        assert_eq!(tight.plan().kv.pages, 5);
        assert_eq!(ask_all(&tight, &requests), expected);
    }
}

#[test]
fn sessions_equal_requests() {
    for (name, devices, graph, options) in cases() {
        let model = load(&graph, &devices, &options);
        for request in requests() {
            let expected = ask(&model, &request);
            let mut session = model.session(SessionOptions::default()).unwrap();
            session.append(&request.prompt).unwrap();
            let tokens: Vec<u32> =
                (0..12).map(|_| session.generate_next(&request.sampling).unwrap()).collect();
            let expected: Vec<u32> = expected.iter().map(|(token, _)| *token).collect();
            assert_eq!(tokens, expected, "{name}");
        }
    }
}

#[test]
fn rewinding_and_appending_equals_a_fresh_session() {
    for (name, devices, graph, options) in cases() {
        let model = load(&graph, &devices, &options);
        let fresh = load(&graph, &devices, &alone(options.clone()));
        let mut session = model.session(SessionOptions::default()).unwrap();
        session.append(&prompt(1, 75)).unwrap();
        for (to, more) in [(75, 3), (70, 5), (64, 2), (40, 30), (31, 1), (1, 10), (0, 40)] {
            session.rewind(to).unwrap();
            session.append(&prompt(more, more as usize)).unwrap();
            let mut other = fresh.session(SessionOptions::default()).unwrap();
            other.append(session.tokens()).unwrap();
            let both = [session.logits().unwrap(), other.logits().unwrap()].map(bits);
            assert!(both[0] == both[1], "{name} rewound to {to}");
        }
    }
}

#[test]
fn scores_are_the_logits_of_the_device_whatever_the_blocks() {
    let tokens = prompt(4, 110);
    for (name, devices, graph, options) in cases() {
        let expected = straight(&*devices[0], &graph, &tokens, &options);
        let model = load(&graph, &devices, &options);
        for cut in [0, 1, 40] {
            let mut session = model.session(SessionOptions::default()).unwrap();
            let mut got = Vec::new();
            let mut hear = |position: usize, logits: &[f32]| {
                assert_eq!(position * 256, got.len());
                got.extend_from_slice(logits);
            };
            if cut > 0 {
                session.score(&tokens[..cut], &mut hear).unwrap();
            }
            session.score(&tokens[cut..], &mut hear).unwrap();
            assert!(bits(&got) == bits(&expected), "{name} cut at {cut}");
            assert!(session.logits().map(bits) == Some(bits(&expected[109 * 256..])), "{name}");
        }
    }
}

#[test]
fn requests_take_the_most_likely_tokens_of_the_oracle() {
    for name in ["llama-tied", "qwen2", "phi3-longrope", "mistral-window"] {
        let graph = tiny::graph(name);
        let vocab = graph.hyper.vocab;
        let context = graph.hyper.context.min(96);
        let options = LoadOptions { context: Some(context), ..exact() };
        let model = load(&graph, &oracle(), &options);
        let recorded = &tiny::recorded(name)[0].tokens;
        let start = recorded.len().min(context / 2);
        let answer = model.generate(greedy(&recorded[..start], 16)).unwrap().wait().unwrap();
        let mut tokens = recorded[..start].to_vec();
        for token in answer.tokens {
            let logits = oracle::logits(&graph, &tokens).unwrap();
            let last = &logits[(tokens.len() - 1) * vocab..];
            let best = (0..vocab).rev().max_by(|&a, &b| last[a].total_cmp(&last[b]));
            assert_eq!(Some(token as usize), best, "{name} after {} tokens", tokens.len());
            tokens.push(token);
        }
    }
}

#[test]
fn long_rope_sequences_are_computed_as_if_they_had_always_been_long() {
    let graph = tiny::graph("phi3-longrope");
    let limit = graph.rope.long.as_ref().unwrap().0;
    let options = LoadOptions { context: Some(limit + 40), ..exact() };
    let model = load(&graph, &oracle(), &options);
    let fresh = load(&graph, &oracle(), &alone(options));
    let start = limit - 4;
    let tokens: Vec<u32> = prompt(2, start).iter().map(|t| t % graph.hyper.vocab as u32).collect();
    let answer = ask(&model, &greedy(&tokens, 12));
    let mut tokens = tokens;
    for (token, bits) in answer {
        assert_eq!(vec![(token, bits)], ask(&fresh, &greedy(&tokens, 1)), "at {}", tokens.len());
        tokens.push(token);
    }
    // And back: a session that is rewound below the border.
    let mut session = model.session(SessionOptions::default()).unwrap();
    session.append(&tokens).unwrap();
    session.rewind(limit - 2).unwrap();
    session.generate_next(&greedy(&[], 1).sampling).unwrap();
    let mut other = fresh.session(SessionOptions::default()).unwrap();
    other.append(&tokens[..limit - 2]).unwrap();
    other.generate_next(&greedy(&[], 1).sampling).unwrap();
    assert_eq!(session.tokens(), other.tokens());
}

#[test]
fn many_threads_at_once_hear_what_each_would_hear_alone() {
    let graph = llama();
    let options = LoadOptions { max_sequences: 3, ..exact() };
    let quiet = load(&graph, &oracle(), &alone(options.clone()));
    let busy = load(&graph, &oracle(), &options);
    std::thread::scope(|scope| {
        for thread in 0..6_u32 {
            let (quiet, busy) = (&quiet, &busy);
            scope.spawn(move || {
                let prompt = prompt(thread % 3, 20 + thread as usize);
                let request = sampled(&prompt, 15, u64::from(thread));
                let mut session = busy.session(SessionOptions::default()).unwrap();
                session.append(&prompt).unwrap();
                let expected = ask(quiet, &request);
                assert_eq!(ask(busy, &request), expected);
                for (token, _) in expected {
                    assert_eq!(session.generate_next(&request.sampling), Ok(token));
                }
            });
        }
    });
}
