//! Perplexity: how well a model expects a text, `exp` of its mean negative log-likelihood.
//!
//! The text is read in windows of `context` tokens that start `stride` tokens apart; every token is
//! scored once, in the first window that it is in, from what stands before it there:
//!
//! ```text
//! tokens   0 1 2 3 4 5 6 7 8 9
//! window 1 |. s s s s s|               context 6, stride 3
//! window 2       |. . . s s s|         . read, s read and scored
//! window 3             |. . . s|
//! ```
//!
//! This is the sliding window of the Hugging Face documentation ("Perplexity of fixed-length
//! models"): a smaller stride gives every token a longer past, and takes longer.

use crate::EvalError;
use crate::logits::nll;
use crate::reader::{CHUNK_TOKENS, Reader, Watch, check_row};
use serde::Serialize;
use std::time::Instant;

/// How a text is cut into windows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Windows {
    /// Tokens per window; at most the model's context.
    pub context: usize,
    /// Tokens between the starts of windows, 1 to `context`.
    pub stride: usize,
}

/// The outcome.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Perplexity {
    /// `exp(nll)`.
    pub perplexity: f64,
    /// Mean negative log-likelihood per scored token, in nats.
    pub nll: f64,
    /// Scored tokens.
    pub tokens: usize,
    /// Tokens per window.
    pub context: usize,
    /// Tokens between the starts of windows.
    pub stride: usize,
    /// Time that it took.
    pub seconds: f64,
    /// Tokens read per second, those included that only served as past.
    pub tokens_per_s: f64,
}

/// One window of a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Window {
    /// First token.
    pub(crate) start: usize,
    /// Past the last token.
    pub(crate) end: usize,
    /// First token that is scored here.
    pub(crate) scored: usize,
}

impl Windows {
    /// The windows of a text of `tokens` tokens.
    ///
    /// # Errors
    /// If a number is out of its range, or the text is too short to score anything.
    pub(crate) fn of(self, tokens: usize, context: usize) -> Result<Vec<Window>, EvalError> {
        if self.context < 2 || self.context > context {
            let allowed = format!("2 to {context}, the model's context");
            return Err(EvalError::option("context", self.context, allowed));
        }
        if self.stride == 0 || self.stride > self.context {
            let allowed = format!("1 to {}, the window", self.context);
            return Err(EvalError::option("stride", self.stride, allowed));
        }
        if tokens < 2 {
            return Err(EvalError::TextTooShort { tokens, needed: 2 });
        }
        let mut windows = Vec::new();
        let mut scored = 1;
        for start in (0..).step_by(self.stride) {
            let end = (start + self.context).min(tokens);
            // The first token of a window has no past there.
            let first = scored.max(start + 1);
            if first < end {
                windows.push(Window { start, end, scored: first });
            }
            scored = end;
            if end == tokens {
                break;
            }
        }
        Ok(windows)
    }
}

/// Measures the perplexity of `tokens`.
///
/// # Errors
/// If the windows do not fit the model or the text, the model fails, or `watch` ends it.
pub fn perplexity(
    reader: &mut dyn Reader,
    tokens: &[u32],
    windows: Windows,
    watch: Watch<'_>,
) -> Result<Perplexity, EvalError> {
    let begin = Instant::now();
    let list = windows.of(tokens.len(), reader.context())?;
    let total: usize = list.iter().map(|window| window.end - window.start).sum();
    let (mut sum, mut scored, mut done) = (0.0, 0, 0);
    let mut logits = Vec::new();
    for window in list {
        reader.start()?;
        let mut position = window.start;
        while position < window.end {
            let chunk = position..(position + CHUNK_TOKENS).min(window.end);
            reader.read(&tokens[chunk.clone()], &mut logits)?;
            for (row, at) in logits.chunks_exact(reader.vocab().max(1)).zip(chunk.clone()) {
                // The row after a token says what is expected next.
                if at + 1 >= window.scored && at + 1 < window.end {
                    check_row(row, at)?;
                    sum += nll(row, tokens[at + 1]);
                    scored += 1;
                }
            }
            done += chunk.len();
            position = chunk.end;
            if watch(done, total).is_break() {
                return Err(EvalError::Stopped);
            }
        }
    }
    let (nll, seconds) = (sum / scored as f64, begin.elapsed().as_secs_f64());
    Ok(Perplexity {
        perplexity: nll.exp(),
        nll,
        tokens: scored,
        context: windows.context,
        stride: windows.stride,
        seconds,
        tokens_per_s: total as f64 / seconds,
    })
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
    fn every_token_but_the_first_is_scored_once() {
        for (tokens, context, stride) in
            [(10, 6, 3), (10, 6, 6), (10, 10, 1), (7, 100, 50), (100, 8, 5), (2, 2, 2), (9, 2, 1)]
        {
            let windows = Windows { context, stride }.of(tokens, 100).unwrap();
            let mut seen = vec![0; tokens];
            for window in &windows {
                assert!(window.end - window.start <= context);
                (window.scored..window.end).for_each(|token| seen[token] += 1);
            }
            assert!(seen.iter().all(|&times| times <= 1), "{tokens} {context} {stride}");
            // Where windows do not overlap, the first token of each has no past.
            let missed = if stride == context { tokens.div_ceil(stride) } else { 1 };
            assert_eq!(seen.iter().filter(|&&times| times == 0).count(), missed);
        }
    }

    #[test]
    fn a_model_that_knows_nothing_is_as_perplexed_as_its_vocabulary_is_large() {
        let mut reader = Counter::new(50, 64, 0.0);
        let tokens: Vec<u32> = (0..200).map(|i| i * 7 % 50).collect();
        let windows = Windows { context: 64, stride: 32 };
        let report = perplexity(&mut reader, &tokens, windows, &mut go).unwrap();
        assert!((report.perplexity - 50.0).abs() < 1e-9, "{report:?}");
        assert_eq!((report.tokens, reader.longest), (199, 64));
    }

    #[test]
    fn a_model_that_knows_the_text_is_hardly_perplexed() {
        let mut reader = Counter::new(10, 1000, 20.0);
        let tokens: Vec<u32> = (0..150).map(|i| i % 10).collect();
        let windows = Windows { context: 150, stride: 150 };
        let report = perplexity(&mut reader, &tokens, windows, &mut go).unwrap();
        let expected = (1.0 + 9.0 * (-20f64).exp()).ln();
        assert!((report.nll - expected).abs() < 1e-12, "{report:?}");
    }

    #[test]
    fn windows_that_do_not_fit_are_refused() {
        let mut reader = Counter::new(10, 32, 0.0);
        for (context, stride) in [(33, 1), (1, 1), (8, 0), (8, 9)] {
            let windows = Windows { context, stride };
            let error = perplexity(&mut reader, &[1, 2, 3], windows, &mut go).unwrap_err();
            assert!(matches!(error, EvalError::Option { .. }), "{error}");
        }
        let error =
            perplexity(&mut reader, &[1], Windows { context: 8, stride: 8 }, &mut go).unwrap_err();
        assert!(matches!(error, EvalError::TextTooShort { .. }), "{error}");
    }

    #[test]
    fn the_watcher_can_stop_it() {
        let mut reader = Counter::new(10, 1000, 0.0);
        let mut stop = |done: usize, total: usize| {
            assert_eq!(total, 500);
            if done >= 128 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        };
        let windows = Windows { context: 1000, stride: 500 };
        let error = perplexity(&mut reader, &[1; 500], windows, &mut stop).unwrap_err();
        assert!(matches!(error, EvalError::Stopped));
        assert_eq!(reader.read, 128);
    }

    #[test]
    fn a_model_that_computes_nonsense_is_an_error() {
        let mut reader = Counter::new(10, 1000, f32::NAN);
        let windows = Windows { context: 10, stride: 10 };
        let error = perplexity(&mut reader, &[1; 10], windows, &mut go).unwrap_err();
        assert!(matches!(error, EvalError::NotFinite { position: 0 }), "{error}");
    }
}
