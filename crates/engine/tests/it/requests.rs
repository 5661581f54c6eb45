//! Requests: what they are refused for, how they end, and what they count.

use crate::support::*;
use std::sync::mpsc;
use tangor_engine::device::KvType;
use tangor_engine::plan::{DeviceChoice, PlanError};
use tangor_engine::{
    Constraint, EngineError, Event, Finish, LoadOptions, Model, Pooling, Request, SamplingParams,
    SessionOptions, Speculate, Text,
};

#[test]
fn what_is_wrong_with_a_request_is_said_before_it_starts() {
    let model = load(&llama(), &oracle(), &exact());
    let refused = |request: Request| model.generate(request).unwrap_err().to_string();
    assert!(refused(greedy(&[], 1)).contains("empty"));
    let error = refused(greedy(&[0; 128], 1));
    assert!(error.contains("128 tokens") && error.contains("holds 128"), "{error}");
    assert!(refused(greedy(&[7, 300], 1)).contains("300"));
    let stop = vec!["x".repeat(5000)];
    assert!(refused(Request { stop, ..greedy(&[1], 1) }).contains("4096 bytes"));
    assert!(refused(Request { logprobs: Some(65), ..greedy(&[1], 1) }).contains("at most 64"));
    let sampling = SamplingParams { top_p: 2.0, ..SamplingParams::default() };
    assert!(refused(Request { sampling, ..greedy(&[1], 1) }).contains("top_p is 2"));
}

#[test]
fn an_answer_ends_with_its_limit_or_with_the_context() {
    let model = load(&llama(), &oracle(), &exact());
    for (len, max, expected) in
        [(5, Some(7), 7), (120, None, 8), (127, Some(9), 1), (5, Some(0), 0)]
    {
        let request = Request { max_tokens: max, ..greedy(&prompt(1, len), 0) };
        let answer = model.generate(request).unwrap().wait().unwrap();
        assert_eq!((answer.tokens.len(), answer.finish), (expected, Finish::Length), "{len}");
        assert_eq!((answer.usage.prompt, answer.usage.completion), (len, expected));
    }
}

#[test]
fn events_come_in_order_and_count_the_prompt() {
    let options = LoadOptions { prefill_chunk: 10, ..exact() };
    let model = load(&llama(), &oracle(), &options);
    let events: Vec<Event> =
        model.generate(greedy(&prompt(1, 25), 3)).unwrap().map(Result::unwrap).collect();
    let prefill: Vec<_> = events
        .iter()
        .map_while(|event| match event {
            Event::Prefill { done, total } => Some((*done, *total)),
            _ => None,
        })
        .collect();
    assert_eq!(prefill, [(10, 25), (20, 25), (25, 25)]);
    let tokens = events.iter().filter(|event| matches!(event, Event::Token(_))).count();
    assert_eq!((tokens, events.len()), (3, 7));
    let Some(Event::Done(end)) = events.last() else { panic!("{events:?}") };
    assert!(end.timings.queue <= end.timings.ttft);
}

#[test]
fn a_dropped_or_cancelled_answer_leaves_others_alone_and_its_place_free() {
    let graph = llama();
    let options = LoadOptions { max_alive: 3, ..exact() };
    let model = load(&graph, &oracle(), &options);
    let mut session = model.session(SessionOptions::default()).unwrap();
    let kept = greedy(&prompt(1, 20), 60);
    let expected = ask(&model, &kept);
    for cut in [0, 1, 7] {
        let gate = Gate::default();
        let closed = gate.close();
        let answer = model.generate(gate.before(kept.clone())).unwrap();
        let mut dropped = model.generate(greedy(&prompt(2, 60), 60)).unwrap();
        let busy = model.generate(greedy(&[1], 1)).unwrap_err();
        assert_eq!(busy, EngineError::Busy { limit: 3 });
        drop(closed);
        for _ in 0..cut {
            dropped.next().unwrap().unwrap();
        }
        drop(dropped);
        // When the session hears back, the model has heard of the drop.
        session.append(&[1]).unwrap();
        assert_eq!(ask(&model, &kept), expected);
        assert_eq!(transcript(answer), expected);
    }
    let answer = model.generate(greedy(&prompt(3, 20), 100)).unwrap();
    answer.cancel();
    let answer = answer.wait().unwrap();
    assert!(matches!(answer.finish, Finish::Cancelled | Finish::Length));
}

#[test]
fn a_callback_hears_the_same_events() {
    let model = load(&llama(), &oracle(), &exact());
    let (sender, receiver) = mpsc::channel();
    let hear = move |event| sender.send(event).unwrap();
    let _handle = model.generate_with(greedy(&[5, 6], 4), hear).unwrap();
    let tokens: Vec<u32> = receiver
        .iter()
        .filter_map(|event| match event.unwrap() {
            Event::Token(token) => Some(token.id),
            _ => None,
        })
        .collect();
    let expected: Vec<u32> =
        ask(&model, &greedy(&[5, 6], 4)).iter().map(|(token, _)| *token).collect();
    assert_eq!(tokens, expected);
}

#[test]
fn the_seed_that_was_drawn_reproduces_the_answer() {
    let model = load(&llama(), &oracle(), &exact());
    let mut request = sampled(&prompt(1, 9), 20, 0);
    request.sampling.seed = None;
    let first = model.generate(request.clone()).unwrap().wait().unwrap();
    request.sampling.seed = Some(first.seed);
    let again = model.generate(request).unwrap().wait().unwrap();
    assert_eq!(first.tokens, again.tokens);
}

#[test]
fn options_that_cannot_be_met_are_refused_with_numbers() {
    let graph = llama();
    let refused = |options: LoadOptions| {
        Model::from_graph(graph.clone(), Text::default(), &oracle(), &options, &mut |_| {})
            .unwrap_err()
    };
    let error = refused(LoadOptions { device: DeviceChoice::Npu, ..exact() });
    assert!(error.to_string().contains("oracle (cpu)"), "{error}");
    let error = refused(LoadOptions { kv_bytes: Some(10), ..exact() });
    assert!(matches!(error, EngineError::Plan(PlanError::KvDoesNotFit { context: 128, .. })));
    let error = refused(LoadOptions { memory_limit: Some(100), ..exact() });
    assert!(matches!(error, EngineError::Plan(PlanError::WeightsDoNotFit { limit: 100, .. })));
    let error = refused(LoadOptions { max_sequences: 0, ..exact() });
    assert!(error.to_string().contains("max_sequences is 0"), "{error}");
}

#[test]
fn several_models_live_side_by_side() {
    let (one, other) = (llama(), tangor_testkit::tiny::random("qwen2", W4, 1));
    let models = [load(&one, &oracle(), &exact()), load(&other, &oracle(), &exact())];
    let alone = models.each_ref().map(|model| ask(model, &greedy(&[1, 2, 3], 9)));
    let both = models.each_ref().map(|model| model.generate(greedy(&[1, 2, 3], 9)).unwrap());
    assert_eq!(both.map(transcript), alone);
    let session = models[0].session(SessionOptions::default()).unwrap();
    drop(models);
    assert_eq!(session.max_length(), 128, "a session outlives the handle of its model");
}

#[test]
fn the_plan_and_the_devices_agree_on_the_size_of_the_cache() {
    for kv in [KvType::F32, KvType::F16, KvType::Bf16, KvType::Int8] {
        let model = load(&llama(), &oracle(), &rounded(kv));
        assert_eq!(model.memory().kv, model.plan().kv.bytes, "{kv:?}");
        // 4 sequences of 128 tokens, 2 layers of 2 x 2 heads of 16 elements.
        let elements = 4 * 128 * 2 * 2 * 2 * 16;
        let expected = match kv {
            KvType::F32 => elements * 4,
            KvType::F16 | KvType::Bf16 => elements * 2,
            KvType::Int8 => elements + elements / 32 * 2 + elements / 64 * 2,
        };
        assert_eq!(model.memory().kv, expected, "{kv:?}");
    }
}

#[test]
fn a_prompt_is_scored_as_a_session_scores_it_whatever_runs_beside_it() {
    let graph = llama();
    let tokens = prompt(4, 70);
    let mut expected = Vec::new();
    let quiet = load(&graph, &oracle(), &exact());
    let mut session = quiet.session(SessionOptions::default()).unwrap();
    session
        .score(&tokens, &mut |position, logits| {
            let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let sum: f64 = logits.iter().map(|x| f64::from(x - max).exp()).sum();
            if let Some(&next) = tokens.get(position + 1) {
                expected.push((f64::from(logits[next as usize] - max) - sum.ln()) as f32);
            }
        })
        .unwrap();
    for chunk in [3, 24] {
        let options = LoadOptions { prefill_chunk: chunk, ..exact() };
        let model = load(&graph, &oracle(), &options);
        // What the cache holds of the prompt must not keep it from being scored.
        ask(&model, &greedy(&tokens, 2));
        let others: Vec<_> =
            (0..3).map(|seed| model.generate(greedy(&prompt(seed, 30), 40)).unwrap()).collect();
        let scored = Request { score_prompt: true, ..greedy(&tokens, 2) };
        let answer = model.generate(scored).unwrap().wait().unwrap();
        let chosen: Vec<f32> = answer.prompt_logprobs.iter().map(|l| l.chosen).collect();
        assert_eq!(chosen, expected, "in chunks of {chunk}");
        assert!(answer.prompt_logprobs.iter().all(|l| l.top.len() == 3));
        assert_eq!(answer.tokens.len(), 2);
        drop(others);
    }
}

#[test]
fn a_prompt_that_nothing_is_to_follow_may_fill_the_context() {
    let model = load(&llama(), &oracle(), &exact());
    let full = prompt(3, 128);
    let scored = || Request { score_prompt: true, ..greedy(&full, 0) };
    let embedded = |how| Request { embed: Some(how), ..greedy(&full, 5) };
    let answer = model.generate(scored()).unwrap().wait().unwrap();
    assert_eq!((answer.prompt_logprobs.len(), answer.tokens.len()), (127, 0));
    for how in [Pooling::Last, Pooling::Mean] {
        let answer = model.generate(embedded(how)).unwrap().wait().unwrap();
        assert_eq!(answer.embedding.len(), model.hyper().hidden, "{how:?}");
    }
    for request in [scored(), embedded(Pooling::Last)] {
        let longer = Request { prompt: prompt(3, 129), ..request };
        let error = model.generate(longer).map(|_| ()).unwrap_err();
        assert_eq!(error, EngineError::PromptTooLong { tokens: 129, context: 128 });
    }
    let answered = Request { score_prompt: true, ..greedy(&full, 1) };
    let error = model.generate(answered).map(|_| ()).unwrap_err();
    assert_eq!(error, EngineError::PromptTooLong { tokens: 128, context: 128 });
}

/// Only even tokens, and never the same one twice in a row.
#[derive(Clone, Debug, Default)]
struct Even {
    last: Option<u32>,
    accepted: usize,
}

impl Constraint for Even {
    fn restrict(&mut self, logits: &mut [f32]) -> Result<(), String> {
        if self.accepted == 9 {
            return Err("nine are enough".into());
        }
        let ruled_out = |token: usize| token % 2 == 1 || self.last == Some(token as u32);
        let out = logits.iter_mut().enumerate().filter(|(token, _)| ruled_out(*token));
        out.for_each(|(_, logit)| *logit = f32::NEG_INFINITY);
        Ok(())
    }

    fn accept(&mut self, token: u32) -> Result<(), String> {
        (self.last, self.accepted) = (Some(token), self.accepted + 1);
        Ok(())
    }

    fn duplicate(&self) -> Box<dyn Constraint> {
        Box::new(self.clone())
    }
}

#[test]
fn a_constrained_answer_is_the_same_alone_in_a_batch_and_with_proposals() {
    let graph = llama();
    let constrained = |request: Request| Request {
        constraint: Some(Box::new(Even::default())),
        ignore_eos: true,
        ..request
    };
    let requests: Vec<Request> = (0..4)
        .map(|seed| match seed % 2 {
            0 => constrained(greedy(&prompt(seed, 20), 9)),
            _ => constrained(sampled(&prompt(seed, 20), 9, 5)),
        })
        .collect();
    let alone = LoadOptions { speculate: Speculate::Off, prefix_cache: false, ..exact() };
    let alone = load(&graph, &oracle(), &alone);
    let expected: Vec<_> = requests.iter().map(|request| ask(&alone, request)).collect();
    for answer in &expected {
        assert!(answer.len() == 9 && answer.iter().all(|(token, _)| token % 2 == 0));
        assert!(answer.windows(2).all(|pair| pair[0].0 != pair[1].0));
    }
    let proposing = LoadOptions { speculate: Speculate::Ngram, ..exact() };
    let together = load(&graph, &oracle(), &proposing);
    assert_eq!(ask_all(&together, &requests), expected);
    let error = together.generate(constrained(greedy(&prompt(1, 5), 20))).unwrap().wait();
    assert!(error.unwrap_err().to_string().contains("nine are enough"));
    // The model goes on.
    assert_eq!(ask_all(&together, &requests), expected);
}

#[test]
fn a_draft_model_gets_what_the_model_leaves() {
    let (graph, devices) = (llama(), oracle());
    let options = LoadOptions { kv_bytes: Some(1 << 20), ..exact() };
    let taken = load(&graph, &devices, &options).plan().taken_bytes(0);
    let both = |memory_limit: u64| {
        let options = LoadOptions { memory_limit: Some(memory_limit), ..options.clone() };
        let model = || (graph.clone(), Text::default());
        Model::from_graphs(model(), model(), &devices, &options, &mut |_| {})
    };
    assert!(both(2 * taken).is_ok());
    assert!(matches!(both(taken + taken / 4), Err(EngineError::Plan(_))));
}
