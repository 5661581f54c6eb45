//! Devices that fail: only the guilty sequence suffers, and a lost device is said to be lost.

use crate::support::*;
use std::sync::Arc;
use tangor_engine::device::{Device, DeviceError, DeviceKind};
use tangor_engine::plan::{DeviceChoice, Kind, Rates, Stage, StagePlan};
use tangor_engine::{
    Constraint, EngineError, Event, Finish, LoadOptions, Model, OnLost, Request, SessionOptions,
    Text,
};
use tangor_testkit::faulty::{Fault, Faulty, POISON};

/// Greedy answers to these prompts never contain [`POISON`] within so many tokens.
fn harmless() -> Vec<tangor_engine::Request> {
    let sampling = tangor_engine::SamplingParams {
        logit_bias: vec![(POISON, f32::NEG_INFINITY)],
        ..Default::default()
    };
    let clean = |seed| -> Vec<u32> {
        prompt(seed, 30).into_iter().map(|t| if t == POISON { 0 } else { t }).collect()
    };
    (0..3)
        .map(|seed| tangor_engine::Request {
            sampling: sampling.clone(),
            ..greedy(&clean(seed), 12)
        })
        .collect()
}

#[test]
fn a_sequence_that_makes_a_batch_fail_fails_alone() {
    let graph = llama();
    let good = load(&graph, &oracle(), &exact());
    let expected: Vec<_> = harmless().iter().map(|request| ask(&good, request)).collect();
    for (fault, text) in [
        (Fault::Fails, "time limit"),
        (Fault::Panics, "poisoned"),
        (Fault::NotNumbers, "not numbers"),
    ] {
        let device: Vec<Arc<dyn Device>> = vec![Faulty::new("bad", DeviceKind::Cpu, fault)];
        let model = load(&graph, &device, &exact());
        let answers: Vec<_> =
            harmless().into_iter().map(|request| model.generate(request).unwrap()).collect();
        if !matches!(fault, Fault::NotNumbers) {
            let error = model.generate(greedy(&[1, POISON], 5)).unwrap().wait().unwrap_err();
            assert!(error.to_string().contains(text), "{fault:?}: {error}");
            let answers: Vec<_> = answers.into_iter().map(transcript).collect();
            assert_eq!(answers, expected, "{fault:?}");
        }
        // What is not a number is only noticed where it is sampled from.
        let error = model.generate(greedy(&[1, POISON], 5)).unwrap().wait().unwrap_err();
        assert!(error.to_string().contains(text), "{fault:?}: {error}");
        assert_eq!(ask(&model, &harmless()[0]), expected[0], "{fault:?}: the model still works");
    }
}

#[test]
fn a_lost_device_loses_the_model_and_says_so() {
    let device: Vec<Arc<dyn Device>> = vec![Faulty::new("bad", DeviceKind::Cpu, Fault::GetsLost)];
    let model = load(&llama(), &device, &exact());
    let mut session = model.session(SessionOptions::default()).unwrap();
    session.append(&[1]).unwrap();
    let error = model.generate(greedy(&[1, POISON], 5)).unwrap().wait().unwrap_err();
    assert!(error.to_string().contains("unplugged"), "{error}");
    let lost = |error: &EngineError| matches!(error, EngineError::Lost(why) if why.contains("bad"));
    assert!(lost(&session.append(&[2]).unwrap_err()));
    let later = model.generate(greedy(&[1], 1)).map(|_| ()).unwrap_err();
    assert!(lost(&later), "{later}");
}

/// Every device in turn dies in the middle: while it reads a prompt, or after `after` runs.
#[test]
fn requests_go_on_where_they_were_when_a_device_is_lost() {
    let graph = llama();
    let requests: Vec<_> =
        (0..6).map(|i| greedy(&prompt(i % 4, 20 + 9 * i as usize), 20)).collect();
    let one = load(&graph, &oracle(), &exact());
    let expected: Vec<_> = requests.iter().map(|request| ask(&one, request)).collect();
    for (dies, after) in [("npu0", 1), ("npu0", 5), ("gpu0", 1), ("gpu0", 9), ("gpu0", 30)] {
        let device = |name: &str, kind| {
            let fault = if name == dies { Fault::Dies { after } } else { Fault::Nothing };
            Faulty::new(name, kind, fault) as Arc<dyn Device>
        };
        let devices = [
            device("npu0", DeviceKind::Npu),
            device("gpu0", DeviceKind::Gpu),
            device("cpu", DeviceKind::Cpu),
        ];
        let options = LoadOptions {
            device: DeviceChoice::Hybrid,
            prefill_device: Some("npu".into()),
            decode_device: Some("gpu".into()),
            ..exact()
        };
        let model = load(&graph, &devices, &options);
        let mut session = model.session(SessionOptions::default()).unwrap();
        let generations: Vec<_> =
            requests.iter().map(|request| model.generate(request.clone()).unwrap()).collect();
        session.append(&prompt(9, 40)).unwrap();
        let answers: Vec<_> = generations.into_iter().map(transcript).collect();
        assert_eq!(answers, expected, "{dies} after {after} runs");
        // Requests that came together took fewer runs: until the device has had all of its.
        for _ in 0..after {
            if model.plan().reasons.iter().any(|why| why.contains("unplugged")) {
                break;
            }
            assert_eq!(ask_all(&model, &requests), expected, "{dies} after {after} runs");
        }
        let plan = model.plan();
        let uses =
            |stage: &StagePlan| stage.segments.iter().any(|s| plan.devices[s.device].name == dies);
        assert!(!plan.stages.iter().any(uses), "{}", plan.explain());
        assert!(plan.reasons.iter().any(|why| why.contains("unplugged")), "{:?}", plan.reasons);
        session.append(&[1]).unwrap();
        assert_eq!(ask_all(&model, &requests), expected, "afterwards");
    }
}

#[test]
fn a_request_hears_that_a_device_was_lost() {
    let devices: Vec<Arc<dyn Device>> = vec![
        Faulty::new("gpu0", DeviceKind::Gpu, Fault::Dies { after: 3 }),
        Faulty::new("cpu", DeviceKind::Cpu, Fault::Nothing),
    ];
    let on_gpu = LoadOptions { device: DeviceChoice::Gpu, ..exact() };
    let model = load(&llama(), &devices, &on_gpu);
    let events: Vec<_> = model.generate(greedy(&prompt(1, 9), 9)).unwrap().collect();
    let heard = |event: &Result<Event, EngineError>| {
        matches!(event, Ok(Event::Replanned { lost, why })
            if lost == "gpu0" && why.contains("unplugged"))
    };
    assert_eq!(events.iter().filter(|event| heard(event)).count(), 1, "{events:?}");
    assert!(matches!(events.last(), Some(Ok(Event::Done(_)))), "{events:?}");
}

/// What ran before may be all that keeps the memory for what comes after.
#[test]
fn what_ran_is_let_go_before_the_model_is_prepared_anew() {
    let graph = llama();
    let options = LoadOptions {
        prefill_device: Some("cpu".into()),
        decode_device: Some("gpu".into()),
        ..exact()
    };
    let devices = |gpu| {
        let gpu = Faulty::new("gpu0", DeviceKind::Gpu, gpu);
        (Arc::clone(&gpu) as Arc<dyn Device>, Faulty::new("cpu", DeviceKind::Cpu, Fault::Nothing))
    };
    for draft in [false, true] {
        let (gpu, cpu) = devices(Fault::Dies { after: 3 });
        let both = [gpu, Arc::clone(&cpu) as Arc<dyn Device>];
        let parts = || (graph.clone(), Text::default());
        let model = match draft {
            false => load(&graph, &both, &options),
            true => Model::from_graphs(parts(), parts(), &both, &options, &mut |_| {}).unwrap(),
        };
        let most = cpu.most_prepared();
        let events: Vec<_> = model.generate(greedy(&prompt(1, 9), 20)).unwrap().collect();
        assert!(matches!(events.last(), Some(Ok(Event::Done(_)))), "{events:?}");
        let heard = |event: &_| matches!(event, Ok(Event::Replanned { .. }));
        assert!(events.iter().any(heard), "{events:?}");
        assert_eq!(cpu.most_prepared(), most, "with a draft: {draft}");
    }
}

#[test]
fn a_device_that_is_full_while_loading_is_left_out_unless_it_was_asked_for() {
    let graph = llama();
    let request = greedy(&prompt(1, 9), 9);
    let expected = ask(&load(&graph, &oracle(), &exact()), &request);
    let gpu = || Faulty::new("gpu0", DeviceKind::Gpu, Fault::Full) as Arc<dyn Device>;
    let cpu = |fault| Faulty::new("cpu", DeviceKind::Cpu, fault) as Arc<dyn Device>;
    let free = Rates { run_s: 1e-12, node_s: 1e-12, row_tile: 1, ..Rates::typical(Kind::Cpu) };
    let fast = Rates { int8_ops_per_s: 1e15, read_bytes_per_s: 1e15, ..free };
    let options = |device| LoadOptions { device, rates: vec![("gpu0".into(), fast)], ..exact() };
    let model = load(&graph, &[gpu(), cpu(Fault::Nothing)], &options(DeviceChoice::Auto));
    assert_eq!(ask(&model, &request), expected);
    let reasons = model.plan().reasons;
    assert!(reasons.iter().any(|why| why.contains("gpu0 has no room for")), "{reasons:?}");
    let asked = LoadOptions { decode_device: Some("gpu0".into()), ..options(DeviceChoice::Auto) };
    for (devices, options) in [
        (vec![gpu(), cpu(Fault::Nothing)], options(DeviceChoice::Gpu)),
        (vec![gpu(), cpu(Fault::Nothing)], options(DeviceChoice::Hybrid)),
        (vec![gpu(), cpu(Fault::Nothing)], asked),
        (vec![gpu()], options(DeviceChoice::Auto)),
        (vec![gpu(), cpu(Fault::Full)], options(DeviceChoice::Auto)),
    ] {
        let text = Text::default();
        let loaded = Model::from_graph(graph.clone(), text, &devices, &options, &mut |_| {});
        let full = |error| matches!(error, EngineError::Device(DeviceError::OutOfMemory { .. }));
        assert!(full(loaded.map(|_| ()).unwrap_err()), "{:?}", options.device);
    }
}

#[test]
fn requests_fail_when_a_device_is_lost_if_that_is_wanted_or_none_is_left() {
    let dying =
        || Faulty::new("gpu0", DeviceKind::Gpu, Fault::Dies { after: 3 }) as Arc<dyn Device>;
    let other = |fault| Faulty::new("cpu", DeviceKind::Cpu, fault) as Arc<dyn Device>;
    let on_gpu = || LoadOptions { device: DeviceChoice::Gpu, ..exact() };
    let fail = LoadOptions { on_lost: OnLost::Fail, ..on_gpu() };
    for (devices, options) in [
        (vec![dying(), other(Fault::Nothing)], fail),
        (vec![dying(), other(Fault::Dies { after: 1 })], on_gpu()),
        (vec![dying()], on_gpu()),
    ] {
        let model = load(&llama(), &devices, &options);
        let error = model.generate(greedy(&prompt(1, 9), 9)).unwrap().wait().unwrap_err();
        assert!(error.to_string().contains("unplugged"), "{error}");
        let later = model.generate(greedy(&[1], 1)).map(|_| ()).unwrap_err();
        assert!(matches!(later, EngineError::Lost(_)), "{later}");
    }
}

#[test]
fn three_panics_in_a_minute_lose_the_model() {
    let device: Vec<Arc<dyn Device>> = vec![Faulty::new("bad", DeviceKind::Cpu, Fault::Panics)];
    let model = load(&llama(), &device, &exact());
    for _ in 0..3 {
        model.generate(greedy(&[POISON], 5)).unwrap().wait().unwrap_err();
    }
    let later = model.session(SessionOptions::default()).map(|_| ());
    assert!(matches!(later, Err(EngineError::Lost(_))), "{later:?}");
    assert_eq!(model.lost(), later.err().as_ref());
}

/// Panics where no device runs: while a token is chosen.
#[derive(Debug)]
struct Panics;

impl Constraint for Panics {
    fn restrict(&mut self, _: &mut [f32]) -> Result<(), String> {
        panic!("a constraint panics")
    }

    fn accept(&mut self, _: u32) -> Result<(), String> {
        Ok(())
    }

    fn duplicate(&self) -> Box<dyn Constraint> {
        Box::new(Self)
    }
}

#[test]
fn a_panic_between_runs_loses_the_model_and_leaves_nobody_waiting() {
    let constrained = || Request { constraint: Some(Box::new(Panics)), ..greedy(&[1], 2) };
    let deaf = |_: Result<Event, EngineError>| panic!("an owner panics");
    for by_owner in [false, true] {
        let model = load(&llama(), &oracle(), &LoadOptions { max_alive: 4, ..exact() });
        assert!(model.lost().is_none());
        let mut session = model.session(SessionOptions::default()).unwrap();
        session.append(&[1]).unwrap();
        let gate = Gate::default();
        let closed = gate.close();
        let other = model.generate(gate.before(greedy(&[1, 2], 100))).unwrap();
        let culprit = match by_owner {
            true => model.generate_with(greedy(&[1], 2), deaf),
            false => model.generate_with(constrained(), drop),
        };
        drop(closed);
        let lost =
            |error: &EngineError| matches!(error, EngineError::Lost(why) if why.contains("defect"));
        assert!(lost(&other.wait().unwrap_err()));
        assert!(lost(&session.append(&[2]).unwrap_err()));
        assert!(model.lost().is_some_and(lost));
        // Places of those that failed are free, and the reason stays.
        for _ in 0..9 {
            let later = model.generate(greedy(&[1], 1)).map(|_| ()).unwrap_err();
            assert!(lost(&later), "{later}");
        }
        drop(culprit);
    }
}

#[test]
fn prefill_and_decode_on_different_devices_equal_one_device() {
    let graph = llama();
    let requests: Vec<_> =
        (0..4).map(|i| greedy(&prompt(i % 3, 20 + 9 * i as usize), 20)).collect();
    let one = load(&graph, &oracle(), &exact());
    let expected: Vec<_> = requests.iter().map(|request| ask(&one, request)).collect();
    let npu = Faulty::new("npu0", DeviceKind::Npu, Fault::Nothing);
    let gpu = Faulty::new("gpu0", DeviceKind::Gpu, Fault::Nothing);
    let devices: Vec<Arc<dyn Device>> =
        vec![Arc::clone(&npu) as Arc<dyn Device>, Arc::clone(&gpu) as Arc<dyn Device>];
    let options = LoadOptions {
        device: DeviceChoice::Hybrid,
        prefill_device: Some("npu".into()),
        decode_device: Some("gpu0".into()),
        ..exact()
    };
    let hybrid = load(&graph, &devices, &options);
    assert_eq!(ask_all(&hybrid, &requests), expected);
    assert_eq!(ask_all(&hybrid, &requests), expected, "with a warm cache");
    let runs = [&npu, &gpu].map(|device| device.runs());
    assert!(runs.iter().all(|&runs| runs > 3), "{runs:?}");
    let answer = hybrid.generate(greedy(&prompt(9, 40), 5)).unwrap().wait().unwrap();
    assert_eq!(answer.finish, Finish::Length);
}

#[test]
fn a_stage_that_is_split_between_devices_equals_one_device() {
    let graph = llama();
    let requests: Vec<_> = (0..4).map(|i| greedy(&prompt(i, 50), 20)).collect();
    let one = load(&graph, &oracle(), &exact());
    let expected: Vec<_> = requests.iter().map(|request| ask(&one, request)).collect();
    let devices: Vec<Arc<dyn Device>> = vec![
        Faulty::new("reads", DeviceKind::Gpu, Fault::Nothing),
        Faulty::new("computes", DeviceKind::Npu, Fault::Nothing),
    ];
    // Numbers with which no device is good at everything, and borders cost nothing.
    let free = Rates { run_s: 1e-12, node_s: 1e-12, row_tile: 1, ..Rates::typical(Kind::Cpu) };
    let rates = vec![
        ("reads".into(), Rates { int8_ops_per_s: 1e6, read_bytes_per_s: 1e15, ..free }),
        ("computes".into(), Rates { int8_ops_per_s: 1e15, read_bytes_per_s: 1e6, ..free }),
    ];
    let split = load(&graph, &devices, &LoadOptions { rates, ..exact() });
    let plan = split.plan();
    let stage = plan.stage(Stage::Prefill, 24).unwrap();
    assert!(stage.segments.len() > 2, "{}", plan.explain());
    assert_eq!(ask_all(&split, &requests), expected);
    assert_eq!(ask_all(&split, &requests), expected, "with a warm cache");
}

#[test]
fn a_prompt_that_two_devices_share_is_answered_as_by_one() {
    let graph = llama();
    let requests: Vec<_> =
        [300, 9, 200, 140].map(|len| greedy(&prompt(len, len as usize), 15)).to_vec();
    let long = || LoadOptions { context: Some(400), prefill_chunk: 128, ..exact() };
    let one = load(&graph, &oracle(), &long());
    let expected: Vec<_> = requests.iter().map(|request| ask(&one, request)).collect();
    for (dies, after) in [("nobody", 0), ("npu0", 7), ("gpu0", 3)] {
        let device = |name: &str, kind| {
            let fault = if name == dies { Fault::Dies { after } } else { Fault::Nothing };
            Faulty::new(name, kind, fault) as Arc<dyn Device>
        };
        let devices = [device("npu0", DeviceKind::Npu), device("gpu0", DeviceKind::Gpu)];
        // Both are slow to compute and quick in everything else: sharing is worth it.
        let slow = Rates {
            int8_ops_per_s: 1e8,
            read_bytes_per_s: 1e12,
            run_s: 1e-9,
            node_s: 1e-9,
            sync_s: 1e-9,
            row_tile: 1,
            together: 1.0,
            ..Rates::typical(Kind::Gpu)
        };
        let rates = ["npu0", "gpu0"].map(|name| (name.to_owned(), slow)).to_vec();
        let model = load(&graph, &devices, &LoadOptions { rates, ..long() });
        assert!(model.plan().cooperative.is_some(), "{}", model.plan().explain());
        assert_eq!(ask_all(&model, &requests), expected, "{dies} dies after {after} runs");
        assert_eq!(ask_all(&model, &requests), expected, "{dies} dies: with a warm cache");
        assert_eq!(model.plan().cooperative.is_some(), dies == "nobody");
    }
}
