//! What a faster configuration of a model costs: both read the same text, and after every token
//! their expectations are compared.
//!
//! The two read in turns, a few tokens at a time, so that no more than those tokens' logits are
//! ever held.

use crate::EvalError;
use crate::logits::{kl, nll, quantile, top};
use crate::reader::{CHUNK_TOKENS, Reader, Watch, check_row};
use serde::Serialize;
use std::time::Instant;

/// The outcome. Divergences are of the distribution of the reference from that of the other
/// configuration, in nats per token.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Divergence {
    /// Compared positions.
    pub tokens: usize,
    /// Mean divergence.
    pub mean_kl: f64,
    /// Divergence of the middle position.
    pub median_kl: f64,
    /// Divergence that 99 % of the positions stay below.
    pub p99_kl: f64,
    /// Largest divergence.
    pub max_kl: f64,
    /// Share of positions at which both expect the same token most.
    pub top1_agreement: f64,
    /// Mean share of the five most expected tokens that both have in common.
    pub top5_overlap: f64,
    /// Perplexity of the other configuration.
    pub perplexity: f64,
    /// Perplexity of the reference.
    pub reference_perplexity: f64,
    /// The former divided by the latter.
    pub perplexity_ratio: f64,
    /// Tokens per window.
    pub context: usize,
    /// Time that it took.
    pub seconds: f64,
}

/// Sums over positions.
#[derive(Default)]
struct Tally {
    kl: Vec<f64>,
    same_top1: usize,
    common_top5: usize,
    nll: f64,
    reference_nll: f64,
    scored: usize,
}

impl Tally {
    /// Compares two rows of logits after a token; `next` is the token that follows in the text.
    fn add(&mut self, reference: &[f32], other: &[f32], next: Option<u32>) {
        self.kl.push(kl(reference, other));
        let (a, b) = (top(reference, 5), top(other, 5));
        self.same_top1 += usize::from(a.first() == b.first());
        self.common_top5 += a.iter().filter(|token| b.contains(token)).count();
        if let Some(next) = next {
            self.nll += nll(other, next);
            self.reference_nll += nll(reference, next);
            self.scored += 1;
        }
    }

    fn finish(mut self, context: usize, vocab: usize, seconds: f64) -> Divergence {
        let tokens = self.kl.len();
        let count = tokens as f64;
        let mean_kl = self.kl.iter().sum::<f64>() / count;
        self.kl.sort_by(f64::total_cmp);
        let perplexity = (self.nll / self.scored as f64).exp();
        let reference_perplexity = (self.reference_nll / self.scored as f64).exp();
        Divergence {
            tokens,
            mean_kl,
            median_kl: quantile(&self.kl, 0.5),
            p99_kl: quantile(&self.kl, 0.99),
            max_kl: quantile(&self.kl, 1.0),
            top1_agreement: self.same_top1 as f64 / count,
            top5_overlap: self.common_top5 as f64 / (count * vocab.min(5) as f64),
            perplexity,
            reference_perplexity,
            perplexity_ratio: perplexity / reference_perplexity,
            context,
            seconds,
        }
    }
}

/// Compares `other` with `reference` over `tokens`, in windows of `context` tokens that do not
/// overlap.
///
/// # Errors
/// If the two do not have the same vocabulary, the window does not fit either of them, a model
/// fails, or `watch` ends it.
pub fn divergence(
    reference: &mut dyn Reader,
    other: &mut dyn Reader,
    tokens: &[u32],
    context: usize,
    watch: Watch<'_>,
) -> Result<Divergence, EvalError> {
    let begin = Instant::now();
    let vocab = reference.vocab();
    if vocab != other.vocab() {
        return Err(EvalError::Vocabulary(vocab, other.vocab()));
    }
    let longest = reference.context().min(other.context());
    if context < 2 || context > longest {
        let allowed = format!("2 to {longest}, the model's context");
        return Err(EvalError::option("context", context, allowed));
    }
    if tokens.len() < 2 {
        return Err(EvalError::TextTooShort { tokens: tokens.len(), needed: 2 });
    }
    let mut tally = Tally::default();
    let (mut rows, mut reference_rows) = (Vec::new(), Vec::new());
    let mut done = 0;
    for window in tokens.chunks(context) {
        reference.start()?;
        other.start()?;
        let mut position = 0;
        for chunk in window.chunks(CHUNK_TOKENS) {
            reference.read(chunk, &mut reference_rows)?;
            other.read(chunk, &mut rows)?;
            let pairs = reference_rows.chunks_exact(vocab).zip(rows.chunks_exact(vocab));
            for (row, (a, b)) in pairs.enumerate() {
                check_row(a, done + row)?;
                check_row(b, done + row)?;
                tally.add(a, b, window.get(position + row + 1).copied());
            }
            position += chunk.len();
            done += chunk.len();
            if watch(done, tokens.len()).is_break() {
                return Err(EvalError::Stopped);
            }
        }
    }
    Ok(tally.finish(context, vocab, begin.elapsed().as_secs_f64()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reader::tests::Counter;
    use std::ops::ControlFlow;

    fn go(_: usize, _: usize) -> ControlFlow<()> {
        ControlFlow::Continue(())
    }

    #[test]
    fn a_model_does_not_diverge_from_itself() {
        let (mut a, mut b) = (Counter::new(20, 64, 3.0), Counter::new(20, 64, 3.0));
        let tokens: Vec<u32> = (0..150).map(|i| i % 20).collect();
        let report = divergence(&mut a, &mut b, &tokens, 64, &mut go).unwrap();
        assert_eq!((report.tokens, report.mean_kl, report.max_kl), (150, 0.0, 0.0));
        assert_eq!((report.top1_agreement, report.top5_overlap), (1.0, 1.0));
        assert_eq!(report.perplexity_ratio, 1.0);
    }

    #[test]
    fn divergence_is_that_of_the_reference_from_the_other() {
        let (mut a, mut b) = (Counter::new(20, 64, 3.0), Counter::new(20, 64, 0.0));
        let tokens: Vec<u32> = (0..100).map(|i| i % 20).collect();
        let report = divergence(&mut a, &mut b, &tokens, 50, &mut go).unwrap();
        // p: one token of weight e^3, nineteen of weight 1; q: one in twenty.
        let norm = 3f64.exp() + 19.0;
        let (high, low) = (3f64.exp() / norm, 1.0 / norm);
        let expected = high * (high * 20.0).ln() + 19.0 * low * (low * 20.0).ln();
        for kl in [report.mean_kl, report.median_kl, report.p99_kl, report.max_kl] {
            assert!((kl - expected).abs() < 1e-9, "{kl} {expected}");
        }
        assert!((report.perplexity - 20.0).abs() < 1e-9);
        assert!((report.reference_perplexity - 1.0 / high).abs() < 1e-9);
        // All logits of the other are equal, so that it names token 0, right once in twenty.
        assert!((report.top1_agreement - 0.05).abs() < 1e-12);
    }

    #[test]
    fn models_that_cannot_be_compared_are_refused() {
        let (mut a, mut b) = (Counter::new(20, 64, 3.0), Counter::new(21, 64, 3.0));
        let error = divergence(&mut a, &mut b, &[1, 2, 3], 8, &mut go).unwrap_err();
        assert!(matches!(error, EvalError::Vocabulary(20, 21)), "{error}");
        let (mut a, mut b) = (Counter::new(20, 64, 3.0), Counter::new(20, 32, 3.0));
        let error = divergence(&mut a, &mut b, &[1, 2, 3], 64, &mut go).unwrap_err();
        assert!(matches!(error, EvalError::Option { .. }), "{error}");
        let error = divergence(&mut a, &mut b, &[1], 32, &mut go).unwrap_err();
        assert!(matches!(error, EvalError::TextTooShort { .. }), "{error}");
    }
}
