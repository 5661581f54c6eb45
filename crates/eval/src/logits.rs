//! Arithmetic on rows of logits, in `f64`: probabilities, divergences, ranks.

/// `ln(sum(exp(logits)))`, computed so that nothing overflows.
///
/// Minus infinity for an empty row; not a number if any logit is, or if one is plus infinity.
#[must_use]
pub fn log_sum_exp(logits: &[f32]) -> f64 {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    if max == f32::NEG_INFINITY {
        return if logits.iter().any(|l| l.is_nan()) { f64::NAN } else { f64::NEG_INFINITY };
    }
    let max = f64::from(max);
    let sum: f64 = logits.iter().map(|&logit| (f64::from(logit) - max).exp()).sum();
    max + sum.ln()
}

/// Negative log-likelihood of `token`, in nats. Infinite for a token past the end.
#[must_use]
pub fn nll(logits: &[f32], token: u32) -> f64 {
    let logit = usize::try_from(token).ok().and_then(|token| logits.get(token));
    logit.map_or(f64::INFINITY, |&logit| log_sum_exp(logits) - f64::from(logit))
}

/// Kullback-Leibler divergence `sum(p * (ln p - ln q))` in nats, of the distribution that
/// `reference` gives from the one that `other` gives.
///
/// Rows must be equally long; what one has and the other lacks is ignored.
#[must_use]
pub fn kl(reference: &[f32], other: &[f32]) -> f64 {
    let (norm_p, norm_q) = (log_sum_exp(reference), log_sum_exp(other));
    let sum: f64 = reference
        .iter()
        .zip(other)
        .map(|(&p, &q)| {
            let (ln_p, ln_q) = (f64::from(p) - norm_p, f64::from(q) - norm_q);
            let p = ln_p.exp();
            if p == 0.0 { 0.0 } else { p * (ln_p - ln_q) }
        })
        .sum();
    // Rounding may leave a tiny negative number where both are equal.
    if sum < 0.0 { 0.0 } else { sum }
}

/// Indices of the `k` largest logits, largest first, ties by index.
#[must_use]
pub fn top(logits: &[f32], k: usize) -> Vec<usize> {
    let mut best: Vec<usize> = Vec::with_capacity(k.min(logits.len()) + 1);
    for (index, &logit) in logits.iter().enumerate() {
        let full = best.len() == k;
        if k == 0 || (full && best.last().is_some_and(|&last| logits[last] >= logit)) {
            continue;
        }
        let place = best.partition_point(|&other| logits[other] >= logit);
        best.insert(place, index);
        best.truncate(k);
    }
    best
}

/// The `q` quantile (0 to 1) of values in ascending order, interpolated between neighbours; not a
/// number if there are none.
#[must_use]
pub fn quantile(sorted: &[f64], q: f64) -> f64 {
    let Some(last) = sorted.len().checked_sub(1) else { return f64::NAN };
    let place = q.clamp(0.0, 1.0) * last as f64;
    let below = (place.floor() as usize).min(last);
    let above = (below + 1).min(last);
    sorted[below] + (sorted[above] - sorted[below]) * (place - below as f64)
}

/// The middle of values in any order; not a number if there are none.
#[must_use]
pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    quantile(&sorted, 0.5)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn near(a: f64, b: f64) -> bool {
        (a - b).abs() < 1e-9
    }

    #[test]
    fn log_sum_exp_survives_large_logits() {
        assert!(near(log_sum_exp(&[1000.0, 1000.0]), 1000.0 + 2f64.ln()));
        assert!(near(log_sum_exp(&[f32::NEG_INFINITY, 0.0]), 0.0));
        assert_eq!(log_sum_exp(&[]), f64::NEG_INFINITY);
        assert!(log_sum_exp(&[0.0, f32::NAN]).is_nan());
        assert!(log_sum_exp(&[0.0, f32::INFINITY]).is_nan());
    }

    #[test]
    fn nll_of_equal_logits_is_the_log_of_their_number() {
        assert!(near(nll(&[3.0; 8], 5), 8f64.ln()));
        assert_eq!(nll(&[3.0; 8], 8), f64::INFINITY);
    }

    #[test]
    fn kl_matches_the_definition() {
        let (p, q): ([f32; 2], [f32; 2]) = ([0.0, 0.0], [0.0, 3f32.ln()]);
        // p = (1/2, 1/2), q = (1/4, 3/4).
        let expected = 0.5 * (0.5f64 / 0.25).ln() + 0.5 * (0.5f64 / 0.75).ln();
        assert!((kl(&p, &q) - expected).abs() < 1e-6);
        assert_eq!(kl(&q, &q), 0.0);
        assert_eq!(kl(&[0.0, f32::NEG_INFINITY], &[0.0, f32::NEG_INFINITY]), 0.0);
        assert!(kl(&p, &[f32::NAN, 0.0]).is_nan());
    }

    #[test]
    fn top_breaks_ties_by_index() {
        assert_eq!(top(&[1.0, 3.0, 3.0, 2.0, 3.0], 4), [1, 2, 4, 3]);
        assert_eq!(top(&[1.0, 2.0], 5), [1, 0]);
        assert!(top(&[1.0], 0).is_empty());
    }

    #[test]
    fn quantiles_interpolate() {
        let sorted = [1.0, 2.0, 3.0, 4.0];
        for (q, expected) in [(0.0, 1.0), (0.5, 2.5), (1.0, 4.0), (2.0, 4.0)] {
            assert!(near(quantile(&sorted, q), expected), "{q}");
        }
        assert!(near(median(&[9.0, 1.0, 5.0]), 5.0));
        assert!(median(&[]).is_nan());
    }
}
