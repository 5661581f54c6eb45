//! How fast a model is, by the path that every request takes.
//!
//! Each run sends requests of random tokens and notes what the engine itself says about them: the
//! time to the first token and the time from there to the last. Runs share no prompts, so that
//! nothing comes out of the prefix cache but what is put there on purpose ([`BenchSpec::depth`]).

use crate::EvalError;
use crate::logits::median;
use serde::Serialize;
use std::sync::Arc;
use std::time::Instant;
use tangor_engine::{Completion, EngineError, Model, Request};

/// What to measure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BenchSpec {
    /// Tokens of each prompt.
    pub prompt_tokens: usize,
    /// Tokens of each answer.
    pub new_tokens: usize,
    /// Measured runs; one more goes before them and is not counted.
    pub runs: usize,
    /// Tokens that are in the cache already when the prompt comes.
    pub depth: usize,
    /// Requests at the same time.
    pub streams: usize,
}

impl Default for BenchSpec {
    fn default() -> Self {
        Self { prompt_tokens: 1024, new_tokens: 64, runs: 5, depth: 0, streams: 1 }
    }
}

/// One run. Rates are of all streams together.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct BenchRun {
    /// Seconds from sending the prompts to the first token of the last stream that got one.
    pub ttft_s: f64,
    /// Prompt tokens per second until then.
    pub prefill_tps: f64,
    /// Tokens per second after the first one; none for answers of one token.
    pub decode_tps: Option<f64>,
    /// Tokens that were proposed and run.
    pub drafted: usize,
    /// Of these, tokens of the answers.
    pub accepted: usize,
}

/// The outcome: the median of each number, and every run.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct BenchReport {
    /// Median of [`BenchRun::ttft_s`].
    pub ttft_s: f64,
    /// Median of [`BenchRun::prefill_tps`].
    pub prefill_tps: f64,
    /// Median of [`BenchRun::decode_tps`].
    pub decode_tps: Option<f64>,
    /// Every measured run, in order.
    pub runs: Vec<BenchRun>,
}

/// Measures a model. `watch` is told the runs done and all runs; breaking ends the measurement.
///
/// # Errors
/// [`EvalError::Option`] if the prompt and the answer do not fit the context or a number is 0,
/// [`EvalError::Engine`] if the model fails, [`EvalError::Stopped`].
pub fn bench(
    model: &Arc<Model>,
    spec: &BenchSpec,
    watch: crate::Watch<'_>,
) -> Result<BenchReport, EvalError> {
    check(spec, model.context())?;
    let mut random = Random::new(0x7461_6e67_6f72);
    let vocab = model.hyper().vocab;
    let mut runs = Vec::with_capacity(spec.runs);
    // The first run warms caches and clocks, and is not counted.
    for run in 0..=spec.runs {
        let prompts: Vec<Vec<u32>> = (0..spec.streams)
            .map(|_| random.tokens(spec.depth + spec.prompt_tokens, vocab))
            .collect();
        let measured = one_run(model, spec, &prompts)?;
        if run > 0 {
            runs.push(measured);
        }
        if watch(run + 1, spec.runs + 1).is_break() {
            return Err(EvalError::Stopped);
        }
    }
    Ok(report(runs))
}

fn check(spec: &BenchSpec, context: usize) -> Result<(), EvalError> {
    let least = [
        ("prompt tokens", spec.prompt_tokens),
        ("new tokens", spec.new_tokens),
        ("runs", spec.runs),
        ("streams", spec.streams),
    ];
    if let Some((name, value)) = least.into_iter().find(|(_, value)| *value == 0) {
        return Err(EvalError::option(name, value, "1 or more".into()));
    }
    let whole = spec.depth.saturating_add(spec.prompt_tokens).saturating_add(spec.new_tokens);
    if whole > context {
        let allowed = format!("at most {context}, the context");
        return Err(EvalError::option("depth + prompt + new tokens", whole, allowed));
    }
    Ok(())
}

/// Sends one prompt per stream at the same time and waits for all answers.
fn one_run(
    model: &Arc<Model>,
    spec: &BenchSpec,
    prompts: &[Vec<u32>],
) -> Result<BenchRun, EngineError> {
    if spec.depth > 0 {
        for prompt in prompts {
            let past = prompt[..spec.depth].to_vec();
            model.generate(request(past, 1))?.wait()?;
        }
    }
    let begin = Instant::now();
    let generations: Vec<_> = prompts
        .iter()
        .map(|prompt| model.generate(request(prompt.clone(), spec.new_tokens)))
        .collect::<Result<_, _>>()?;
    let answers: Vec<Completion> =
        generations.into_iter().map(tangor_engine::Generation::wait).collect::<Result<_, _>>()?;
    Ok(summarise(&answers, begin.elapsed().as_secs_f64()))
}

fn request(prompt: Vec<u32>, new_tokens: usize) -> Request {
    Request { prompt, max_tokens: Some(new_tokens), ignore_eos: true, ..Request::default() }
}

/// The rates of the streams of one run that took `seconds`.
fn summarise(answers: &[Completion], seconds: f64) -> BenchRun {
    let ttft_s = answers.iter().map(|a| a.timings.ttft.as_secs_f64()).fold(0.0, f64::max);
    let read: usize = answers.iter().map(|a| a.usage.prompt.saturating_sub(a.usage.cached)).sum();
    let decode_tps = match answers {
        // The engine's own clock, free of this thread's wake-up.
        [only] => only.timings.decode_tps(&only.usage),
        _ => {
            let written: usize = answers.iter().map(|a| a.usage.completion.saturating_sub(1)).sum();
            let first =
                answers.iter().map(|a| a.timings.ttft.as_secs_f64()).fold(seconds, f64::min);
            (written > 0 && seconds > first).then(|| written as f64 / (seconds - first))
        }
    };
    BenchRun {
        ttft_s,
        prefill_tps: read as f64 / ttft_s,
        decode_tps,
        drafted: answers.iter().map(|a| a.usage.drafted).sum(),
        accepted: answers.iter().map(|a| a.usage.accepted).sum(),
    }
}

fn report(runs: Vec<BenchRun>) -> BenchReport {
    let middle = |of: fn(&BenchRun) -> f64| median(&runs.iter().map(of).collect::<Vec<_>>());
    let decode: Vec<f64> = runs.iter().filter_map(|run| run.decode_tps).collect();
    BenchReport {
        ttft_s: middle(|run| run.ttft_s),
        prefill_tps: middle(|run| run.prefill_tps),
        decode_tps: (!decode.is_empty()).then(|| median(&decode)),
        runs,
    }
}

/// splitmix64 (Steele, Lea and Flood 2014): the same tokens in every bench.
struct Random(u64);

impl Random {
    fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn tokens(&mut self, count: usize, vocab: usize) -> Vec<u32> {
        let vocab = vocab.max(1) as u64;
        (0..count).map(|_| (self.next() % vocab) as u32).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;
    use tangor_engine::{Finish, Timings, Usage};

    fn answer(cached: usize, ttft_ms: u64, decode_ms: u64) -> Completion {
        Completion {
            embedding: Vec::new(),
            tokens: vec![0; 11],
            text: String::new(),
            logprobs: Vec::new(),
            prompt_logprobs: Vec::new(),
            finish: Finish::Length,
            usage: Usage { prompt: 100, cached, completion: 11, ..Usage::default() },
            timings: Timings {
                queue: Duration::ZERO,
                ttft: Duration::from_millis(ttft_ms),
                decode: Duration::from_millis(decode_ms),
            },
            seed: 0,
        }
    }

    #[test]
    fn cached_tokens_do_not_count_as_read() {
        let run = summarise(&[answer(60, 200, 500)], 0.9);
        assert_eq!((run.ttft_s, run.prefill_tps, run.decode_tps), (0.2, 200.0, Some(20.0)));
    }

    #[test]
    fn streams_count_together() {
        let run = summarise(&[answer(0, 200, 800), answer(0, 400, 600)], 1.2);
        assert_eq!((run.ttft_s, run.prefill_tps), (0.4, 500.0));
        // 20 tokens from the first stream's first token, after 0.2 s, to the end.
        assert!(run.decode_tps.is_some_and(|tps| (tps - 20.0).abs() < 1e-9), "{run:?}");
    }

    #[test]
    fn the_report_holds_the_median_of_each_number() {
        let run = |ttft_s: f64| BenchRun {
            ttft_s,
            prefill_tps: 1.0 / ttft_s,
            decode_tps: None,
            drafted: 0,
            accepted: 0,
        };
        let report = report(vec![run(4.0), run(1.0), run(2.0)]);
        assert_eq!((report.ttft_s, report.prefill_tps, report.decode_tps), (2.0, 0.5, None));
        assert_eq!(report.runs.len(), 3);
    }

    #[test]
    fn what_does_not_fit_the_context_is_refused() {
        let fits = BenchSpec { prompt_tokens: 60, new_tokens: 4, ..BenchSpec::default() };
        assert!(check(&fits, 64).is_ok());
        for spec in [
            BenchSpec { depth: 1, ..fits },
            BenchSpec { runs: 0, ..fits },
            BenchSpec { streams: 0, ..fits },
            BenchSpec { depth: usize::MAX, ..fits },
        ] {
            assert!(matches!(check(&spec, 64), Err(EvalError::Option { .. })), "{spec:?}");
        }
    }

    #[test]
    fn random_tokens_are_in_the_vocabulary() {
        let (mut a, mut b) = (Random::new(1), Random::new(1));
        let tokens = a.tokens(1000, 7);
        assert!(tokens.iter().all(|&token| token < 7));
        assert_eq!(tokens, b.tokens(1000, 7));
    }
}
