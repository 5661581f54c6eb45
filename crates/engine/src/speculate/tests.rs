//! Speculation changes nothing but speed: equal bits whatever is proposed; and the policy stops
//! where it does not pay and begins again where it does.

use super::*;
use crate::fallback::Fallback;
use crate::propose::{DraftModel, Ngram};
use crate::{LoadOptions, Model, Request, SamplingParams, Text};
use std::sync::{Arc, Mutex};
use tangor_device::oracle::OracleDevice;
use tangor_device::tensor::{Layout, MapGuard, Offset};
use tangor_device::{Activations, Device, DeviceKind, KvType};
use tangor_device_cpu::{CpuDevice, CpuOptions};
use tangor_plan::DeviceChoice;
use tangor_plan::model::Graph;
use tangor_testkit::faulty::{Fault, Faulty};
use tangor_testkit::tiny;

const W4: Layout = Layout::Quant { bits: 4, group: 32, offset: Offset::Min };

fn options() -> LoadOptions {
    LoadOptions {
        activations: Activations::F32,
        context: Some(128),
        max_sequences: 4,
        prefill_chunk: 24,
        ..LoadOptions::default()
    }
}

fn prompt(seed: u32, len: usize) -> Vec<u32> {
    (0..len as u32).map(|i| (i * i * 31 + i * 7 + seed * 101) % 256).collect()
}

/// Every way to choose a token, over prompts of several lengths; the last three repeat themselves.
fn requests() -> Vec<Request> {
    let plain = SamplingParams { seed: Some(3), ..SamplingParams::default() };
    let warm = SamplingParams { temperature: 0.9, ..plain.clone() };
    let ways = [
        plain.clone(),
        warm.clone(),
        SamplingParams { top_k: 5, ..warm.clone() },
        SamplingParams { top_p: 0.7, min_p: 0.05, ..warm.clone() },
        SamplingParams { repetition_penalty: 1.3, ..warm.clone() },
        SamplingParams { presence_penalty: 0.5, frequency_penalty: 0.3, ..plain.clone() },
        SamplingParams { logit_bias: vec![(7, 5.0), (9, f32::NEG_INFINITY)], ..warm },
        plain.clone(),
        plain,
    ];
    let request = |(index, sampling): (usize, SamplingParams)| {
        let mut tokens = prompt(index as u32, [5, 1, 33, 16, 70, 2, 40, 20, 30][index]);
        if index > 5 {
            tokens.extend(tokens.clone());
        }
        Request { prompt: tokens, sampling, ..logged(40) }
    };
    ways.into_iter().enumerate().map(request).collect()
}

fn logged(tokens: usize) -> Request {
    Request { max_tokens: Some(tokens), logprobs: Some(3), ..Request::default() }
}

/// Tokens with the bits of their log-probabilities.
type Transcript = (Vec<u32>, Vec<u32>);

fn ask_all(model: &Model, requests: &[Request]) -> (Vec<Transcript>, [usize; 2]) {
    let running: Vec<_> = requests.iter().map(|r| model.generate(r.clone()).unwrap()).collect();
    let mut counts = [0, 0];
    let transcript = |answer: crate::Completion| {
        counts[0] += answer.usage.drafted;
        counts[1] += answer.usage.accepted;
        assert!(answer.usage.accepted <= answer.usage.drafted);
        let tops = answer.logprobs.iter().flat_map(|l| l.top.iter().map(|(_, p)| p.to_bits()));
        let bits = answer.logprobs.iter().map(|l| l.chosen.to_bits()).chain(tops).collect();
        (answer.tokens, bits)
    };
    let answers = running.into_iter().map(|r| r.wait().unwrap()).map(transcript).collect();
    (answers, counts)
}

fn ask_each(model: &Model, requests: &[Request]) -> (Vec<Transcript>, [usize; 2]) {
    let mut counts = [0, 0];
    let one = |request: &Request| {
        let (mut answer, [drafted, accepted]) = ask_all(model, std::slice::from_ref(request));
        counts = [counts[0] + drafted, counts[1] + accepted];
        answer.remove(0)
    };
    (requests.iter().map(one).collect(), counts)
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    Right,
    Wrong,
    Mixed,
    Noise,
}

/// Proposes what it knows will come, what it knows will not come, or anything.
struct Prophet {
    kind: Kind,
    /// Whole sequences.
    known: Arc<Mutex<Vec<Vec<u32>>>>,
    random: u32,
}

impl Propose for Prophet {
    fn propose(&mut self, asks: &[Ask<'_>]) -> Vec<Guess> {
        let known = self.known.lock().unwrap();
        let mut guess = |ask: &Ask<'_>| {
            let whole = known.iter().find(|whole| whole.starts_with(ask.tokens));
            let rest = whole.map(|whole| &whole[ask.tokens.len()..]).unwrap_or_default();
            let tokens = (0..ask.most).map(|at| {
                self.random = self.random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                let noise = self.random >> 24;
                let right = rest.get(at).copied().unwrap_or(noise);
                match self.kind {
                    Kind::Right => right,
                    Kind::Wrong => (right + 1) % 256,
                    Kind::Mixed if noise < 60 => noise,
                    Kind::Mixed => right,
                    Kind::Noise => noise,
                }
            });
            Guess { tokens: tokens.collect(), matched: 0 }
        };
        asks.iter().map(&mut guess).collect()
    }
}

fn load(
    graph: &Graph,
    device: &Arc<dyn Device>,
    options: &LoadOptions,
    proposer: Option<Box<dyn Propose>>,
) -> Arc<Model> {
    let speculator = proposer.map(|proposer| Speculator::new(proposer, true));
    let devices = [Arc::clone(device)];
    let (graph, text) = (graph.clone(), Text::default());
    Model::with_speculator(
        (graph, text, MapGuard::default()),
        &devices,
        options,
        speculator,
        &mut |_| {},
    )
    .unwrap()
}

/// Whatever is proposed, alone and together, with a full cache and a roomy one.
fn check(name: &str, graph: &Graph, device: &Arc<dyn Device>, options: &LoadOptions) {
    let requests: Vec<Request> = requests()
        .into_iter()
        .map(|mut request| {
            let vocab = graph.hyper.vocab as u32;
            request.prompt.iter_mut().for_each(|token| *token %= vocab);
            request
        })
        .collect();
    let cold = LoadOptions { prefix_cache: false, ..options.clone() };
    let plain = load(graph, device, &cold, None);
    let (expected, drafted) = ask_each(&plain, &requests);
    assert_eq!(drafted, [0, 0]);
    let known = requests.iter().zip(&expected).map(|(r, (t, _))| [&r.prompt[..], t].concat());
    let known = Arc::new(Mutex::new(known.collect::<Vec<_>>()));
    for kind in [Kind::Right, Kind::Wrong, Kind::Mixed, Kind::Noise] {
        let prophet = || Box::new(Prophet { kind, known: Arc::clone(&known), random: 9 });
        let model = load(graph, device, options, Some(prophet()));
        let (alone, [drafted, accepted]) = ask_each(&model, &requests);
        assert!(alone == expected, "{name}: {kind:?}");
        assert!(drafted > 300, "{name}: {kind:?} drafted {drafted}");
        match kind {
            Kind::Right => assert!(accepted > 300, "{name}: {accepted} of {drafted}"),
            Kind::Wrong => assert_eq!(accepted, 0, "{name}"),
            Kind::Mixed | Kind::Noise => assert!(accepted < drafted, "{name}: {kind:?}"),
        }
        assert!(ask_all(&model, &requests).0 == expected, "{name}: {kind:?}, together, warm");
        if kind != Kind::Mixed {
            continue;
        }
        let pages = plain.plan().kv.page_bytes * 6;
        let tight = LoadOptions { kv_bytes: Some(pages), ..options.clone() };
        let model = load(graph, device, &tight, Some(prophet()));
        assert!(ask_all(&model, &requests).0 == expected, "{name}: {kind:?}, in a full cache");
    }
    let model = load(graph, device, options, Some(Box::new(Ngram)));
    assert!(ask_all(&model, &requests).0 == expected, "{name}: looked up");
}

#[test]
fn answers_are_equal_bits_whatever_is_proposed() {
    let oracle: Arc<dyn Device> = Arc::new(OracleDevice::new());
    let cpu = CpuOptions { threads: Some(2), ..CpuOptions::default() };
    let cpu: Arc<dyn Device> = Arc::new(CpuDevice::new(cpu).unwrap());
    check("oracle", &tiny::random("llama", W4, 7), &oracle, &options());
    for arch in ["llama", "mistral", "qwen2", "phi3"] {
        let graph = tiny::random(arch, W4, 7);
        for kv in [KvType::Bf16, KvType::Int8].into_iter().take(1 + usize::from(arch == "llama")) {
            let rounded = LoadOptions { activations: Activations::Int8, kv: Some(kv), ..options() };
            check(&format!("cpu {arch} {kv:?}"), &graph, &cpu, &rounded);
        }
    }
    check("cpu exact", &tiny::random("mistral", W4, 7), &cpu, &options());
}

#[test]
fn a_sequence_may_grow_past_the_border_of_long_rope_within_a_proposal() {
    let graph = tiny::graph("phi3-longrope");
    let limit = graph.rope.long.as_ref().unwrap().0;
    let device: Arc<dyn Device> = Arc::new(OracleDevice::new());
    let options = LoadOptions { context: Some(limit + 40), ..options() };
    let requests: Vec<Request> = (1..6)
        .map(|before| {
            let vocab = graph.hyper.vocab as u32;
            let prompt = prompt(2, limit - before).iter().map(|token| token % vocab).collect();
            Request { prompt, ..logged(12) }
        })
        .collect();
    let (expected, _) = ask_each(&load(&graph, &device, &options, None), &requests);
    let known = requests.iter().zip(&expected).map(|(r, (t, _))| [&r.prompt[..], t].concat());
    let known = Arc::new(Mutex::new(known.collect::<Vec<_>>()));
    for kind in [Kind::Right, Kind::Mixed] {
        let prophet = Prophet { kind, known: Arc::clone(&known), random: 1 };
        let model = load(&graph, &device, &options, Some(Box::new(prophet)));
        let (answers, [_, accepted]) = ask_each(&model, &requests);
        assert!(answers == expected, "{kind:?}");
        assert!(accepted > 0);
        assert!(ask_all(&model, &requests).0 == expected, "{kind:?}, together");
    }
}

/// A draft model on the same device, every proposal of which is run.
fn drafting(graph: &Graph, device: &Arc<dyn Device>, options: &LoadOptions) -> DraftModel {
    let devices = [Arc::clone(device)];
    let prepared = Model::prepare(graph, (&devices, &[]), options, &mut |_| {}).unwrap();
    DraftModel::new(Core::new(prepared.limits), prepared.executor, None)
}

#[test]
fn a_draft_model_changes_nothing_but_speed() {
    let graph = tiny::random("llama", W4, 7);
    let cpu = CpuOptions { threads: Some(2), ..CpuOptions::default() };
    let device: Arc<dyn Device> = Arc::new(CpuDevice::new(cpu).unwrap());
    let options = LoadOptions { activations: Activations::Int8, ..options() };
    let (expected, _) = ask_each(&load(&graph, &device, &options, None), &requests());
    let same = drafting(&graph, &device, &options);
    let other = drafting(&tiny::random("qwen2", W4, 1), &device, &options);
    let short = LoadOptions { context: Some(60), max_sequences: 2, ..options.clone() };
    let short = drafting(&graph, &device, &short);
    let mut failed = drafting(&graph, &device, &options);
    failed.fail();
    for (name, draft, right) in [
        ("the same model", same, true),
        ("another model", other, false),
        ("a shorter context", short, false),
        ("a failed one", failed, false),
    ] {
        let model = load(&graph, &device, &options, Some(Box::new(draft)));
        let (answers, [drafted, accepted]) = ask_each(&model, &requests());
        assert!(answers == expected, "{name}");
        assert_eq!(drafted == 0, name == "a failed one", "{name}");
        if right {
            let greedy = ask_each(&model, &requests()[..1]);
            assert_eq!(greedy.1[0], greedy.1[1], "it proposes what the model chooses");
            assert!(accepted > 100, "{accepted} of {drafted}");
        }
        assert!(ask_all(&model, &requests()).0 == expected, "{name}, together");
    }
}

#[test]
fn a_draft_model_whose_device_is_lost_goes_on_with_another() {
    let graph = tiny::random("llama", W4, 7);
    let oracle: Arc<dyn Device> = Arc::new(OracleDevice::new());
    let expected = ask_each(&load(&graph, &oracle, &options(), None), &requests()).0;
    for (after, others) in [(0, true), (1, true), (40, true), (40, false)] {
        let dying = Faulty::new("gpu0", DeviceKind::Gpu, Fault::Dies { after });
        let mut devices: Vec<Arc<dyn Device>> = vec![Arc::clone(&dying) as Arc<dyn Device>];
        devices.extend(others.then(|| Arc::clone(&oracle)));
        let on_it = LoadOptions { device: DeviceChoice::Gpu, ..options() };
        let small = Model::prepare(&graph, (&devices, &[]), &on_it, &mut |_| {}).unwrap();
        let fallback = Fallback::if_wanted(graph.clone(), &devices, &on_it, MapGuard::default());
        let draft = DraftModel::new(Core::new(small.limits), small.executor, fallback);
        let model = load(&graph, &oracle, &options(), Some(Box::new(draft)));
        let (answers, [drafted, _]) = ask_each(&model, &requests());
        assert!(answers == expected, "lost after {after} runs");
        assert!(dying.runs() > after, "it was never lost");
        let (_, [later, _]) = ask_each(&model, &requests());
        let drafts = (drafted > 0, later > 0);
        assert_eq!(drafts, (others || after > 0, others), "lost after {after} runs");
    }
}

#[test]
fn a_draft_model_of_another_vocabulary_is_refused() {
    let graph = tiny::random("llama", W4, 7);
    let device: Arc<dyn Device> = Arc::new(OracleDevice::new());
    let with = |draft: Graph| {
        let (model, draft) = ((graph.clone(), Text::default()), (draft, Text::default()));
        let devices = [Arc::clone(&device)];
        Model::from_graphs(model, draft, &devices, &options(), &mut |step| {
            assert!((0.0..=1.0).contains(&step.share));
        })
    };
    let mut other = graph.clone();
    other.hyper.vocab = 200;
    let error = with(other).unwrap_err();
    assert!(matches!(&error, crate::EngineError::DraftVocabulary(why) if why.contains("256")));
    let model = with(tiny::random("qwen2", W4, 1)).unwrap();
    let plain = load(&graph, &device, &options(), None);
    assert!(ask_each(&model, &requests()).0 == ask_each(&plain, &requests()).0);
}

/// A machine on which a step of so many rows takes so long.
fn seconds(rows: usize) -> f64 {
    0.01 * (1.0 + 0.3 * (rows - 1) as f64)
}

/// Writes `tokens[from..]` with the policy; seconds that it takes, and proposals that ran.
fn write(speculator: &mut Speculator, tokens: &[u32], from: usize) -> (f64, usize) {
    let mut state = Speculation::default();
    let (mut at, mut time, mut drafted) = (from, 0.0, 0);
    while at < tokens.len() {
        let ask = Ask { id: SequenceId(0), tokens: &tokens[..at], most: MAX_DRAFT };
        state.guess = speculator.proposer.propose(&[ask]).remove(0);
        state.heard = 0;
        let guess = state.guess.tokens.clone();
        let chances = state.acceptance.chances(state.guess.matched, guess.len()).collect();
        let run = speculator.choose(&[chances], MAX_DRAFT)[0];
        time += seconds(1 + run);
        speculator.measured(1 + run, seconds(1 + run));
        drafted += run;
        let accepted = guess[..run].iter().zip(&tokens[at..]).take_while(|(a, b)| a == b).count();
        let end = (at + accepted + 1).min(tokens.len());
        tokens[at..end].iter().for_each(|token| state.hear(*token));
        at = end;
    }
    (time, drafted)
}

/// Tokens of which pairs recur and are followed by something else each time.
fn teasing(count: usize) -> Vec<u32> {
    (0..count as u32).flat_map(|i| [1, 2, 100 + i * 2, 101 + i * 2]).collect()
}

#[test]
fn nothing_is_proposed_where_nothing_comes_true_and_it_begins_again_with_copying() {
    let mut speculator = Speculator::new(Box::new(Ngram), false);
    let mut tokens = teasing(300);
    let plain = |tokens: usize| tokens as f64 * seconds(1);
    let (time, _) = write(&mut speculator, &tokens, 8);
    assert!(time < plain(tokens.len() - 8) / 0.98, "{time} of {}", plain(tokens.len() - 8));
    let begin = tokens.len();
    tokens.extend(tokens[100..400].to_vec());
    let (time, drafted) = write(&mut speculator, &tokens, begin + 2);
    assert!(time < plain(298) / 2.0, "{time} of {}", plain(298));
    assert!(drafted > 200);
    let begin = tokens.len();
    tokens.extend((0..400).map(|i| 5_000 + i));
    assert_eq!(write(&mut speculator, &tokens, begin + 2).1, 0, "nothing recurs");
}

#[test]
fn a_proposer_that_costs_is_given_up_and_tried_again() {
    let mut acceptance = Acceptance::default();
    let first = |acceptance: &Acceptance| acceptance.chances(0, 1).next().unwrap();
    let before = first(&acceptance);
    (0..20).for_each(|_| acceptance.observe(0, false));
    assert!(first(&acceptance) < before / 3.0);
    (0..400).for_each(|_| acceptance.fade());
    assert!(first(&acceptance) > before * 0.9);
}

#[test]
fn the_length_follows_the_measured_costs() {
    let choose = |row: f64| {
        let mut speculator = Speculator::new(Box::new(Ngram), false);
        for rows in (1..=24).chain(1..=24) {
            speculator.measured(rows, 0.01 * (1.0 + row * (rows - 1) as f64));
        }
        let chances = (1..=20).map(|n| 0.9_f64.powi(n)).collect::<Vec<_>>();
        speculator.choose(&[chances], MAX_DRAFT)[0]
    };
    let lengths = [0.01, 0.1, 0.3, 0.6, 0.9].map(choose);
    assert!(lengths.is_sorted_by(|a, b| a >= b), "{lengths:?}");
    assert_eq!((lengths[0], lengths[4]), (20, 0), "{lengths:?}");
    let unmeasured = Speculator::new(Box::new(Ngram), false);
    assert_eq!(unmeasured.choose(&[vec![1.0; 9]], 9), [0], "nothing to compare with");
}

#[test]
fn rows_go_to_the_likeliest_proposals_of_all_sequences() {
    let always = Speculator::new(Box::new(Ngram), true);
    let chances = [vec![0.9, 0.8, 0.2], vec![], vec![0.85, 0.1, 0.1]];
    assert_eq!(always.choose(&chances, 3), [2, 0, 1]);
    assert_eq!(always.choose(&chances, 100), [3, 0, 3]);
}

#[test]
fn one_slow_step_changes_little() {
    let mut costs = Costs::default();
    (0..10).for_each(|_| costs.measured(4, 0.01));
    costs.measured(4, 3.0);
    assert!(costs.known(4).is_some_and(|seconds| seconds < 0.0125));
    assert_eq!(costs.known(3), None);
    (0..STALE).for_each(|_| costs.measured(1, 0.005));
    assert_eq!(costs.known(4), None, "an old measurement does not count");
}
