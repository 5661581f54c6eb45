//! Mixed load on a real model for as long as one likes: prompts old and new, short and long, greedy
//! and sampled, read to the end, cancelled and dropped, from several threads at once.
//!
//!     cargo run --release -p tangor-engine --example soak -- model.gguf [minutes] [clients]
//!
//! Fails if an answer differs from what the model says when nothing else runs, if one is lost, or
//! if resident memory grows by more than 3 % after the first sixth of the time.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "an example says what it finds")]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use tangor_device_cpu::{CpuDevice, CpuOptions};
use tangor_engine::device::Device;
use tangor_engine::plan::model::formats::{Checkpoint, Limits, MemorySource};
use tangor_engine::text::Message;
use tangor_engine::{Completion, Event, Finish, LoadOptions, Model, Request, SamplingParams};

const SENTENCES: [&str; 6] = [
    "The harbour town of Eastmoor lies where the river Aller meets the grey sea.",
    "In the spring of 1874 a surveyor came to draw its first reliable map.",
    "He counted three hundred and twelve houses, four churches and two breweries.",
    "The lamp of the lighthouse had not failed, but nobody had paid for its oil.",
    "A barrel arrived in autumn with a letter that asked for nothing but a receipt.",
    "The map gives the keeper's name as Mary French, a mistake that she framed.",
];

/// A sequence of numbers that looks random: Knuth's multiplier, Newlib's increment.
struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (self.0 >> 33) as usize % n
    }
}

fn prompt(model: &Model, question: &str, sentences: usize) -> Vec<u32> {
    let text: Vec<&str> = SENTENCES.iter().copied().cycle().take(sentences).collect();
    let messages = [Message::new("user", format!("{question}\n\n{}", text.join(" ")))];
    let template = model.text().template.as_ref().unwrap();
    let rendered = template.render(&messages, None, true, &serde_json::Map::new()).unwrap();
    model.text().tokenizer.as_ref().unwrap().encode_spans(&rendered.spans).unwrap()
}

/// Requests and their answers while nothing else runs: prompts of very different lengths, a third
/// of them sampled.
fn known(model: &Model) -> Vec<(Request, Completion)> {
    let questions = ["What is it about?", "Continue the story.", "Repeat the text word for word."];
    let requests = (0..18).map(|index| Request {
        prompt: prompt(model, questions[index % 3], [0, 1, 4, 12, 30, 60][index / 3]),
        sampling: SamplingParams {
            temperature: if index % 3 == 1 { 0.8 } else { 0.0 },
            seed: Some(index as u64),
            ..SamplingParams::default()
        },
        max_tokens: Some([8, 40, 120][index / 2 % 3]),
        ..Request::default()
    });
    requests
        .map(|request| (request.clone(), model.generate(request).unwrap().wait().unwrap()))
        .collect()
}

#[derive(Default)]
struct Counts {
    same: AtomicUsize,
    new: AtomicUsize,
    cut: AtomicUsize,
}

/// One client, until it is told to stop.
fn client(
    model: &Model,
    known: &[(Request, Completion)],
    seed: u64,
    stop: &AtomicBool,
    n: &Counts,
) {
    let mut random = Random(seed);
    while !stop.load(Ordering::Relaxed) {
        let (request, want) = &known[random.below(known.len())];
        match random.below(8) {
            // One that the cache does not know.
            0 => {
                let question = format!("What does the number {} mean?", random.below(1 << 30));
                let prompt = prompt(model, &question, random.below(60));
                let request = Request { prompt, max_tokens: Some(24), ..Request::default() };
                let answer = model.generate(request).unwrap().wait().unwrap();
                assert!(!matches!(answer.finish, Finish::Cancelled));
                n.new.fetch_add(1, Ordering::Relaxed);
            }
            // One that is cancelled, or whose reader goes away, after some events.
            kind @ (1 | 2) => {
                let mut generation = model.generate(request.clone()).unwrap();
                for _ in 0..random.below(20) {
                    match generation.next() {
                        Some(Ok(Event::Done(_))) | None => break,
                        event => drop(event.unwrap().unwrap()),
                    }
                }
                if kind == 1 {
                    generation.cancel();
                    let last = generation.last().map(Result::unwrap);
                    assert!(last.is_none_or(|event| matches!(event, Event::Done(_))));
                }
                n.cut.fetch_add(1, Ordering::Relaxed);
            }
            _ => {
                let answer = model.generate(request.clone()).unwrap().wait().unwrap();
                assert_eq!(answer.tokens, want.tokens);
                assert_eq!((answer.text, answer.finish), (want.text.clone(), want.finish.clone()));
                n.same.fetch_add(1, Ordering::Relaxed);
            }
        }
    }
}

/// Resident memory of this process in MB.
fn resident() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<f64>().unwrap() / 1024.0
}

fn main() {
    let mut arguments = std::env::args().skip(1);
    let path = arguments.next().unwrap();
    let minutes: f64 = arguments.next().map_or(30.0, |text| text.parse().unwrap());
    let clients: u64 = arguments.next().map_or(6, |text| text.parse().unwrap());
    let source = MemorySource::new("model").with("model.gguf", std::fs::read(path).unwrap());
    let checkpoint = Checkpoint::open(&source, None, &Limits::default()).unwrap();
    let device: Arc<dyn Device> = Arc::new(CpuDevice::new(CpuOptions::default()).unwrap());
    // Fewer sequences than clients, and a cache that is soon full.
    let options = LoadOptions { context: Some(2048), max_sequences: 4, ..LoadOptions::default() };
    let model = Model::load(&checkpoint, &[device], &options, &mut |_| {}).unwrap();
    let known = known(&model);
    let (stop, counts, begin) = (AtomicBool::new(false), Counts::default(), Instant::now());
    let whole = Duration::from_secs_f64(60.0 * minutes);
    let mut sizes = Vec::new();
    std::thread::scope(|scope| {
        let run = |seed| client(&model, &known, seed, &stop, &counts);
        let clients: Vec<_> = (0..clients).map(|seed| scope.spawn(move || run(seed))).collect();
        while begin.elapsed() < whole && clients.iter().all(|client| !client.is_finished()) {
            std::thread::sleep((whole / 30).min(Duration::from_secs(60)));
            let size = resident();
            sizes.push(size);
            let [same, new, cut] =
                [&counts.same, &counts.new, &counts.cut].map(|count| count.load(Ordering::Relaxed));
            println!(
                "{:6.1} min  {size:6.1} MB  {same} answers as expected, {new} to new prompts, \
                 {cut} cut short",
                begin.elapsed().as_secs_f64() / 60.0
            );
        }
        stop.store(true, Ordering::Relaxed);
        // A client that has panicked has said why.
        clients.into_iter().for_each(|client| client.join().unwrap());
    });
    let early = sizes[..sizes.len().div_ceil(6)].iter().copied().fold(0.0, f64::max);
    let last = sizes.last().copied().unwrap();
    println!("resident memory: {early:.1} MB early, {last:.1} MB at the end");
    assert!(last <= 1.03 * early, "memory grows");
}
