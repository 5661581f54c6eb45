//! From logits to a token: a pure function of the logits, the sequence, the parameters and a seed.

mod filters;
mod rng;

use crate::constraint::Constraint;
use crate::{EngineError, Logprobs};
use filters::{by_likelihood, nucleus};
use std::collections::HashMap;

/// Most alternatives that [`Logprobs::top`] can have.
pub const MAX_LOGPROBS: usize = 64;

/// How a token is chosen. The default is greedy.
///
/// In order: logit bias, repetition, presence and frequency penalties, what a constraint rules out,
/// then (unless greedy) temperature, top-k, top-p, min-p, and a draw. Ties go to the smaller id.
/// Logits that are not numbers are never chosen.
#[derive(Clone, Debug, PartialEq)]
pub struct SamplingParams {
    /// Divides the logits; 0 is greedy: the most likely token.
    pub temperature: f32,
    /// Only this many most likely tokens; 0: all.
    pub top_k: usize,
    /// Only the most likely tokens that together have this probability; 1: all.
    pub top_p: f32,
    /// Only tokens with at least this share of the most likely one's probability; 0: all.
    pub min_p: f32,
    /// Divides positive and multiplies negative logits of tokens that the sequence contains,
    /// prompt included; 1: off.
    pub repetition_penalty: f32,
    /// Subtracted once from tokens that the answer contains; 0: off.
    pub presence_penalty: f32,
    /// Subtracted from tokens as often as the answer contains them; 0: off.
    pub frequency_penalty: f32,
    /// Added to logits, by token id.
    pub logit_bias: Vec<(u32, f32)>,
    /// Same seed, same answer; `None`: one is drawn.
    pub seed: Option<u64>,
}

impl Default for SamplingParams {
    fn default() -> Self {
        Self {
            temperature: 0.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            logit_bias: Vec::new(),
            seed: None,
        }
    }
}

impl SamplingParams {
    /// Whether every number is in its range, for a vocabulary of `vocab` tokens.
    ///
    /// # Errors
    /// [`EngineError::Parameter`] with the first one that is not, or
    /// [`EngineError::UnknownToken`].
    pub fn check(&self, vocab: usize) -> Result<(), EngineError> {
        let unit = |x: f32| (0.0..=1.0).contains(&x);
        let fields: [(&'static str, f32, bool, &'static str); 6] = [
            (
                "temperature",
                self.temperature,
                self.temperature.is_finite() && self.temperature >= 0.0,
                "0 or more",
            ),
            ("top_p", self.top_p, unit(self.top_p), "between 0 and 1"),
            ("min_p", self.min_p, unit(self.min_p), "between 0 and 1"),
            (
                "repetition_penalty",
                self.repetition_penalty,
                self.repetition_penalty.is_finite() && self.repetition_penalty > 0.0,
                "more than 0",
            ),
            ("presence_penalty", self.presence_penalty, self.presence_penalty.is_finite(), FINITE),
            (
                "frequency_penalty",
                self.frequency_penalty,
                self.frequency_penalty.is_finite(),
                FINITE,
            ),
        ];
        for (field, value, ok, allowed) in fields {
            if !ok {
                return Err(EngineError::Parameter { field, value: value.to_string(), allowed });
            }
        }
        for &(token, bias) in &self.logit_bias {
            if token as usize >= vocab {
                return Err(EngineError::UnknownToken { token, vocab });
            }
            if bias.is_nan() {
                let value = bias.to_string();
                return Err(EngineError::Parameter { field: "logit_bias", value, allowed: FINITE });
            }
        }
        Ok(())
    }

    fn changes_logits(&self) -> bool {
        !self.logit_bias.is_empty()
            || self.repetition_penalty != 1.0
            || self.presence_penalty != 0.0
            || self.frequency_penalty != 0.0
    }
}

const FINITE: &str = "a finite number";

/// A token and how likely it was.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Candidate {
    pub(crate) token: u32,
    /// Logit, later probability.
    pub(crate) weight: f32,
}

/// Buffers that sampling reuses.
#[derive(Debug, Default)]
pub(crate) struct Sampler {
    logits: Vec<f32>,
    candidates: Vec<Candidate>,
}

impl Sampler {
    /// The token at position `tokens.len()`, which the constraint then knows.
    ///
    /// `logits`: `(vocab)`. `tokens`: the whole sequence, the first `prompt` of them the prompt.
    ///
    /// # Errors
    /// [`EngineError::NotNumbers`] if no logit is a number; [`EngineError::Constraint`].
    pub(crate) fn sample(
        &mut self,
        (params, constraint): (&SamplingParams, Option<&mut dyn Constraint>),
        seed: u64,
        logits: &[f32],
        tokens: &[u32],
        prompt: usize,
    ) -> Result<u32, EngineError> {
        if constraint.is_none() && !params.changes_logits() {
            return self.choose(params, seed, logits, tokens.len()).ok_or(EngineError::NotNumbers);
        }
        let mut own = std::mem::take(&mut self.logits);
        own.clear();
        own.extend_from_slice(logits);
        penalise(params, &mut own, tokens, prompt);
        let chosen = match constraint {
            None => self.choose(params, seed, &own, tokens.len()).ok_or(EngineError::NotNumbers),
            Some(constraint) => {
                // What a file's broken weights are to blame for is not the constraint's doing.
                let broken = most_likely(&own).is_none();
                constraint.restrict(&mut own).map_err(EngineError::Constraint).and_then(|()| {
                    let token = self.choose(params, seed, &own, tokens.len());
                    let token = token.ok_or_else(|| match broken {
                        true => EngineError::NotNumbers,
                        false => EngineError::Constraint("it leaves no token to choose".into()),
                    })?;
                    constraint.accept(token).map_err(EngineError::Constraint)?;
                    Ok(token)
                })
            }
        };
        self.logits = own;
        chosen
    }

    /// A token of those whose logits are numbers; `None` if there are none.
    fn choose(
        &mut self,
        params: &SamplingParams,
        seed: u64,
        logits: &[f32],
        position: usize,
    ) -> Option<u32> {
        let best = most_likely(logits)?;
        if params.temperature == 0.0 || params.top_k == 1 {
            return Some(best.token);
        }
        self.candidates.clear();
        self.candidates.extend(numbers(logits));
        if params.top_k > 0 && params.top_k < self.candidates.len() {
            self.candidates.select_nth_unstable_by(params.top_k - 1, by_likelihood);
            self.candidates.truncate(params.top_k);
        }
        let candidates = &mut self.candidates;
        // Tempered probabilities relative to the most likely token, whose own is exactly 1.
        for candidate in candidates.iter_mut() {
            candidate.weight = ((candidate.weight - best.weight) / params.temperature).exp();
        }
        if params.top_k > 0 {
            // Selection leaves an arbitrary order, and sums depend on it.
            candidates.sort_unstable_by(by_likelihood);
        }
        if params.top_p < 1.0 {
            let kept = nucleus(candidates, f64::from(params.top_p));
            candidates.truncate(kept);
        }
        if params.min_p > 0.0 {
            candidates.retain(|candidate| candidate.weight >= params.min_p);
        }
        Some(draw(candidates, rng::uniform(seed, position as u64)).unwrap_or(best.token))
    }
}

/// Every token whose logit is a number; infinities are the largest numbers.
fn numbers(logits: &[f32]) -> impl Iterator<Item = Candidate> {
    let of_token = |(token, &logit): (usize, &f32)| {
        let token = u32::try_from(token).ok()?;
        let weight = logit.clamp(f32::MIN, f32::MAX);
        (!logit.is_nan() && logit != f32::NEG_INFINITY).then_some(Candidate { token, weight })
    };
    logits.iter().enumerate().filter_map(of_token)
}

/// The most likely token, the first of equals.
fn most_likely(logits: &[f32]) -> Option<Candidate> {
    const LANES: usize = 16;
    // Comparisons with what is not a number are false, so that it never becomes the maximum.
    let larger = |a: f32, b: f32| if b > a { b } else { a };
    let (chunks, rest) = logits.as_chunks::<LANES>();
    let mut lanes = [f32::NEG_INFINITY; LANES];
    for chunk in chunks {
        for (lane, &logit) in lanes.iter_mut().zip(chunk) {
            *lane = larger(*lane, logit);
        }
    }
    let max = lanes.iter().chain(rest).copied().fold(f32::NEG_INFINITY, larger);
    if max == f32::NEG_INFINITY {
        return None;
    }
    let token = u32::try_from(logits.iter().position(|&logit| logit == max)?).ok()?;
    Some(Candidate { token, weight: max.min(f32::MAX) })
}

/// Applies bias and penalties.
fn penalise(params: &SamplingParams, logits: &mut [f32], tokens: &[u32], prompt: usize) {
    for &(token, bias) in &params.logit_bias {
        if let Some(logit) = logits.get_mut(token as usize) {
            *logit += bias;
        }
    }
    // How often each token occurs in the answer; tokens of the prompt alone: 0.
    let mut counts: HashMap<u32, u32> = HashMap::new();
    for (position, &token) in tokens.iter().enumerate() {
        *counts.entry(token).or_default() += u32::from(position >= prompt);
    }
    for (&token, &count) in &counts {
        let Some(logit) = logits.get_mut(token as usize) else { continue };
        if *logit > 0.0 {
            *logit /= params.repetition_penalty;
        } else {
            *logit *= params.repetition_penalty;
        }
        if count > 0 {
            *logit -= params.presence_penalty + params.frequency_penalty * count as f32;
        }
    }
}

/// The candidate at `uniform` (0 to 1) of the cumulative distribution.
fn draw(candidates: &[Candidate], uniform: f64) -> Option<u32> {
    let total: f64 = candidates.iter().map(|c| f64::from(c.weight)).sum();
    let mut left = uniform * total;
    for candidate in candidates {
        left -= f64::from(candidate.weight);
        if left < 0.0 {
            return Some(candidate.token);
        }
    }
    // Rounding may leave a hair after the last one.
    candidates.iter().rev().find(|c| c.weight > 0.0).map(|c| c.token)
}

/// Log-probabilities of `chosen` and of the `top` most likely tokens under `logits`.
pub(crate) fn logprobs(logits: &[f32], chosen: u32, top: usize) -> Logprobs {
    let max = most_likely(logits).map_or(0.0, |best| best.weight);
    let sum: f64 = numbers(logits).map(|c| f64::from(c.weight - max).exp()).sum();
    let log_sum = sum.ln();
    let of = |logit: f32| (f64::from(logit - max) - log_sum) as f32;
    let chosen = logits.get(chosen as usize).map_or(f32::NEG_INFINITY, |&logit| of(logit));
    let mut all: Vec<Candidate> = if top > 0 { numbers(logits).collect() } else { Vec::new() };
    let top = top.min(all.len()).min(MAX_LOGPROBS);
    if top > 0 {
        all.select_nth_unstable_by(top - 1, by_likelihood);
        all.truncate(top);
        all.sort_unstable_by(by_likelihood);
    }
    Logprobs { chosen, top: all.iter().map(|c| (c.token, of(c.weight))).collect() }
}

#[cfg(test)]
mod tests;
