//! Tests of sampling.

use super::*;
use proptest::prelude::*;

fn sample(params: &SamplingParams, seed: u64, logits: &[f32], tokens: &[u32]) -> Option<u32> {
    Sampler::default().sample((params, None), seed, logits, tokens, 0).ok()
}

fn greedy() -> SamplingParams {
    SamplingParams::default()
}

fn warm() -> SamplingParams {
    SamplingParams { temperature: 1.0, ..greedy() }
}

/// How often each of `vocab` tokens is drawn in `draws` positions.
fn histogram(params: &SamplingParams, logits: &[f32], draws: u32) -> Vec<f64> {
    let mut counts = vec![0.0; logits.len()];
    let mut sampler = Sampler::default();
    let sequence = vec![0; draws as usize];
    for position in 0..draws as usize {
        let tokens = &sequence[..position];
        let token = sampler.sample((params, None), 3, logits, tokens, position).unwrap();
        counts[token as usize] += 1.0 / f64::from(draws);
    }
    counts
}

#[test]
fn greedy_takes_the_largest_and_the_first_of_equals() {
    for (logits, expected) in [
        (&[0.0, 3.0, 3.0][..], Some(1)),
        (&[f32::NAN, -1.0, f32::NAN], Some(1)),
        (&[f32::NEG_INFINITY, f32::INFINITY, 2.0], Some(1)),
        (&[f32::NAN, f32::NEG_INFINITY], None),
        (&[], None),
    ] {
        assert_eq!(sample(&greedy(), 0, logits, &[]), expected, "{logits:?}");
        assert_eq!(sample(&warm(), 0, logits, &[]).is_some(), expected.is_some(), "{logits:?}");
    }
}

#[test]
fn draws_follow_the_tempered_distribution() {
    let logits = [0.0, 1.0, 2.0, 3.0];
    for temperature in [0.5, 1.0, 2.0] {
        let params = SamplingParams { temperature, ..greedy() };
        let weights = logits.map(|x| f64::from(x / temperature).exp());
        let total: f64 = weights.iter().sum();
        for (drawn, weight) in histogram(&params, &logits, 20_000).iter().zip(weights) {
            assert!((drawn - weight / total).abs() < 0.015, "{temperature}: {drawn}");
        }
    }
}

#[test]
fn filters_keep_exactly_what_they_say() {
    // Probabilities 0.4, 0.3, 0.2, 0.1, by id 3, 1, 0, 2.
    let logits = [0.2_f32.ln(), 0.3_f32.ln(), 0.1_f32.ln(), 0.4_f32.ln()];
    for (params, kept) in [
        (SamplingParams { top_k: 2, ..warm() }, &[1, 3][..]),
        (SamplingParams { top_p: 0.65, ..warm() }, &[1, 3]),
        (SamplingParams { top_p: 0.75, ..warm() }, &[0, 1, 3]),
        (SamplingParams { top_p: 0.0, ..warm() }, &[3]),
        (SamplingParams { min_p: 0.6, ..warm() }, &[1, 3]),
        (SamplingParams { min_p: 1.0, ..warm() }, &[3]),
        // Of the two that top-k keeps, the first has 4/7.
        (SamplingParams { top_k: 2, top_p: 0.5, ..warm() }, &[3]),
        (SamplingParams { top_k: 9, ..warm() }, &[0, 1, 2, 3]),
    ] {
        let drawn = histogram(&params, &logits, 2_000);
        let seen: Vec<usize> = (0..4).filter(|&i| drawn[i] > 0.0).collect();
        assert_eq!(seen, kept, "{params:?}");
    }
}

#[test]
fn penalties_and_bias_change_the_choice() {
    let logits = [2.0, 1.5, -1.0];
    for (params, tokens, prompt, expected) in [
        (SamplingParams { repetition_penalty: 1.5, ..greedy() }, &[0][..], 1, 1),
        (SamplingParams { presence_penalty: 0.6, ..greedy() }, &[0], 1, 0),
        (SamplingParams { presence_penalty: 0.6, ..greedy() }, &[0], 0, 1),
        (SamplingParams { frequency_penalty: 0.3, ..greedy() }, &[0], 0, 0),
        (SamplingParams { frequency_penalty: 0.3, ..greedy() }, &[0, 0], 0, 1),
        (SamplingParams { logit_bias: vec![(2, 5.0)], ..greedy() }, &[], 0, 2),
        (SamplingParams { logit_bias: vec![(0, f32::NEG_INFINITY)], ..greedy() }, &[], 0, 1),
    ] {
        let token = Sampler::default().sample((&params, None), 0, &logits, tokens, prompt).ok();
        assert_eq!(token, Some(expected), "{params:?} after {tokens:?}");
    }
}

#[test]
fn logprobs_are_those_of_the_model() {
    let logits = [0.2_f32.ln(), 0.3_f32.ln(), 0.1_f32.ln(), 0.4_f32.ln(), f32::NAN];
    let logprobs = logprobs(&logits, 2, 2);
    assert!((logprobs.chosen - 0.1_f32.ln()).abs() < 1e-6);
    assert_eq!(logprobs.top.iter().map(|t| t.0).collect::<Vec<_>>(), [3, 1]);
    assert!((logprobs.top[1].1 - 0.3_f32.ln()).abs() < 1e-6);
}

#[test]
fn parameters_out_of_range_are_refused_by_name() {
    for (params, field) in [
        (SamplingParams { temperature: -1.0, ..greedy() }, "temperature"),
        (SamplingParams { temperature: f32::NAN, ..greedy() }, "temperature"),
        (SamplingParams { top_p: 1.5, ..greedy() }, "top_p"),
        (SamplingParams { min_p: -0.5, ..greedy() }, "min_p"),
        (SamplingParams { repetition_penalty: 0.0, ..greedy() }, "repetition_penalty"),
        (SamplingParams { frequency_penalty: f32::INFINITY, ..greedy() }, "frequency_penalty"),
        (SamplingParams { logit_bias: vec![(10, 1.0)], ..greedy() }, "token 10"),
    ] {
        let error = params.check(10).unwrap_err().to_string();
        assert!(error.starts_with(field), "{error}");
    }
    assert_eq!(warm().check(10), Ok(()));
}

proptest! {
    #[test]
    fn the_nucleus_is_the_shortest_sorted_beginning(
        logits in prop::collection::vec(-8.0_f32..8.0, 1..700),
        p in 0.0_f64..1.0,
    ) {
        let mut candidates: Vec<Candidate> =
            numbers(&logits).map(|c| Candidate { weight: c.weight.exp(), ..c }).collect();
        let mut sorted = candidates.clone();
        sorted.sort_by(by_likelihood);
        let total: f64 = candidates.iter().map(|c| f64::from(c.weight)).sum();
        let mut sum = 0.0;
        let expected = sorted.iter().position(|c| {
            sum += f64::from(c.weight);
            sum >= p * total
        });
        let expected = expected.map_or(sorted.len(), |index| index + 1);
        let kept = nucleus(&mut candidates, p);
        prop_assert_eq!(kept, expected);
        prop_assert_eq!(&candidates[..kept], &sorted[..kept]);
    }

    #[test]
    fn whatever_the_logits_a_chosen_token_is_a_number_and_repeatable(
        logits in prop::collection::vec(
            prop_oneof![
                -50.0_f32..50.0,
                Just(f32::NAN),
                Just(f32::INFINITY),
                Just(f32::NEG_INFINITY),
            ],
            1..200,
        ),
        temperature in 0.0_f32..3.0,
        top_k in 0_usize..20,
        top_p in 0.0_f32..=1.0,
        min_p in 0.0_f32..=1.0,
        seed: u64,
    ) {
        let params = SamplingParams { temperature, top_k, top_p, min_p, ..greedy() };
        match sample(&params, seed, &logits, &[1, 2, 3]) {
            Some(token) => {
                prop_assert!(logits[token as usize] > f32::NEG_INFINITY);
                prop_assert_eq!(sample(&params, seed, &logits, &[1, 2, 3]), Some(token));
            }
            None => prop_assert!(logits.iter().all(|x| x.is_nan() || *x == f32::NEG_INFINITY)),
        }
    }
}
