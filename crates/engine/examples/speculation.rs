//! What speculation brings on a real model: plain and speculative decoding in turns, in one
//! process, and what a step costs by its rows.
//!
//!     cargo run --release -p tangor-engine --example speculation -- model.gguf [rounds]
//!
//! Fails if an answer differs in a single token.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "an example says what it finds")]

use std::sync::Arc;
use std::time::Instant;
use tangor_device_cpu::{CpuDevice, CpuOptions};
use tangor_engine::device::Device;
use tangor_engine::plan::model::formats::{Checkpoint, Limits, MemorySource};
use tangor_engine::text::Message;
use tangor_engine::{
    Completion, LoadOptions, Model, Request, SamplingParams, SessionOptions, Speculate,
};

const TEXT: &str = "\
The harbour town of Eastmoor lies where the river Aller meets the grey sea. In the spring of \
1874 a surveyor named Thomas Greaves came to draw its first reliable map. He counted three \
hundred and twelve houses, four churches, two breweries and a lighthouse that had been dark for \
eleven years. The keeper, an old woman called Margaret Finch, told him that the lamp had not \
failed but that nobody had paid for its oil. Greaves wrote to the Admiralty, and in the autumn a \
barrel arrived with a letter that asked for nothing but a receipt. On the second night of \
October the lamp was lit again, and fishermen who had learned to find the channel by the smell \
of the brewery wept to see it. The map was printed the next year in Leeds. It shows every house, \
every well and the exact height of the tower, eighty-seven feet above the highest tide, but it \
gives the keeper's name as Mary French, a mistake that she is said to have framed and hung \
beside the door. When she died, the town council ordered a stone with both names on it, so that \
travellers with the map would not pass it by. The brewery closed in 1911. The lighthouse still \
stands, and its lamp, now electric, turns nine times every minute.";

const CHATS: [&str; 4] = [
    "What is the capital of France, and what is it known for?",
    "Write a short story about a dog who learns to sail.",
    "Explain to a child why the sky is blue.",
    "Give me some advice on preparing for a job interview.",
];

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn prompt(model: &Model, text: &str) -> Vec<u32> {
    let messages = [Message::new("user", text)];
    let template = model.text().template.as_ref().unwrap();
    let rendered = template.render(&messages, None, true, &serde_json::Map::new()).unwrap();
    model.text().tokenizer.as_ref().unwrap().encode_spans(&rendered.spans).unwrap()
}

fn answer(model: &Model, prompt: &[u32], temperature: f32, tokens: usize) -> Completion {
    let sampling = SamplingParams { temperature, seed: Some(7), ..SamplingParams::default() };
    let prompt = prompt.to_vec();
    let max_tokens = Some(tokens);
    let request = Request { prompt, sampling, max_tokens, ..Request::default() };
    model.generate(request).unwrap().wait().unwrap()
}

/// Seconds of a step by its rows, `depth` tokens into a sequence, and the same per row.
fn step_costs(model: &Model, rounds: usize) {
    let text = prompt(model, TEXT);
    let counts = [1, 2, 3, 4, 5, 6, 8, 12, 16, 24];
    let mut session = model.session(SessionOptions::default()).unwrap();
    let depth = text.len() - 24;
    session.append(&text[..depth]).unwrap();
    let mut seconds = vec![Vec::new(); counts.len()];
    for _ in 0..10 * rounds {
        for (rows, seconds) in counts.iter().zip(&mut seconds) {
            session.rewind(depth).unwrap();
            let begin = Instant::now();
            session.score(&text[depth..depth + rows], &mut |_, _| {}).unwrap();
            seconds.push(begin.elapsed().as_secs_f64());
        }
    }
    let medians: Vec<f64> = seconds.into_iter().map(median).collect();
    println!("rows  ms     of one row");
    for (rows, seconds) in counts.iter().zip(&medians) {
        println!("{rows:4}  {:5.2}  {:.2}", seconds * 1e3, seconds / medians[0]);
    }
}

/// Plain and speculative decoding of some prompts in turns.
fn compare(name: &str, models: [&Model; 2], prompts: &[Vec<u32>], how: (f32, usize, usize)) {
    let (temperature, tokens, rounds) = how;
    let mut decode = [Vec::new(), Vec::new()];
    let (mut written, mut drafted, mut accepted) = (0, 0, 0);
    for round in 0..rounds {
        for prompt in prompts {
            let mut answers = Vec::new();
            for turn in [round % 2, 1 - round % 2] {
                let answer = answer(models[turn], prompt, temperature, tokens);
                let per_token = answer.timings.decode.as_secs_f64()
                    / (answer.usage.completion.saturating_sub(1).max(1)) as f64;
                decode[turn].push(per_token);
                if turn == 1 {
                    written += answer.usage.completion;
                    drafted += answer.usage.drafted;
                    accepted += answer.usage.accepted;
                }
                answers.push(answer.tokens);
            }
            assert_eq!(answers[0], answers[1], "{name}");
        }
    }
    let ratios = decode[0].iter().zip(&decode[1]).map(|(plain, fast)| plain / fast);
    let ratio = median(ratios.collect());
    let [plain, fast] = decode.map(|seconds| 1.0 / median(seconds));
    println!(
        "{name:24} plain {plain:6.1}/s  speculative {fast:6.1}/s  {ratio:.3}x (median of pairs)  \
         {written} tokens, {drafted} drafted, {accepted} accepted"
    );
}

fn main() {
    let mut arguments = std::env::args().skip(1);
    let path = arguments.next().unwrap();
    let rounds = arguments.next().map_or(5, |text| text.parse().unwrap());
    let source = MemorySource::new("model").with("model.gguf", std::fs::read(path).unwrap());
    let checkpoint = Checkpoint::open(&source, None, &Limits::default()).unwrap();
    let device: Arc<dyn Device> = Arc::new(CpuDevice::new(CpuOptions::default()).unwrap());
    let load = |speculate| {
        let options = LoadOptions {
            speculate,
            context: Some(2048),
            max_sequences: 1,
            prefix_cache: false,
            ..LoadOptions::default()
        };
        Model::load(&checkpoint, &[Arc::clone(&device)], &options, &mut |_| {}).unwrap()
    };
    let (plain, fast) = (load(Speculate::Off), load(Speculate::Auto));
    step_costs(&plain, rounds);
    let models = [&*plain, &*fast];
    let tokens = plain.text().tokenizer.as_ref().unwrap();
    let repeat = format!("Repeat the following text word for word.\n\n{TEXT}");
    let edit = format!("Rewrite the following text, but call the town Westmoor.\n\n{TEXT}");
    let raw = [TEXT, "\n\n", TEXT, "\n\n"].concat();
    let raw = tokens.encode(&raw, tangor_engine::text::Specials::AsText).unwrap();
    let chats: Vec<_> = CHATS.iter().map(|chat| prompt(&plain, chat)).collect();
    compare("repeat", models, &[prompt(&plain, &repeat)], (0.0, 280, rounds));
    compare("edit", models, &[prompt(&plain, &edit)], (0.0, 280, rounds));
    compare("continue a repetition", models, &[raw], (0.0, 280, rounds));
    compare("chat", models, &chats, (0.0, 160, rounds));
    compare("chat, temperature 0.8", models, &chats, (0.8, 160, rounds));
}
