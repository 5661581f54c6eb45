//! What an evaluation needs of a model: read a text, and say after each token what comes next.

use crate::EvalError;
use std::ops::ControlFlow;
use tangor_engine::{Model, Session, SessionOptions};

/// Tokens that are read in one go: bounds the memory of their logits.
pub const CHUNK_TOKENS: usize = 64;

/// Hears how far an evaluation has come, as `(tokens done, tokens in all)`, and may end it.
pub type Watch<'a> = &'a mut dyn FnMut(usize, usize) -> ControlFlow<()>;

/// A model that reads a text that is given to it, whatever it would have written itself.
pub trait Reader {
    /// Logits per token.
    fn vocab(&self) -> usize;

    /// Longest text in tokens.
    fn context(&self) -> usize;

    /// Forgets all that was read.
    ///
    /// # Errors
    /// If the model cannot go on.
    fn start(&mut self) -> Result<(), EvalError>;

    /// Reads `tokens` after those read before and writes the logits after each of them into
    /// `logits`: `(tokens.len(), vocab)`.
    ///
    /// # Errors
    /// If the text grows longer than the context, or the model cannot go on.
    fn read(&mut self, tokens: &[u32], logits: &mut Vec<f32>) -> Result<(), EvalError>;
}

/// A loaded model as a reader: a session of its own, that batches with whatever else it serves.
#[derive(Debug)]
pub struct ModelReader {
    session: Session,
    vocab: usize,
    context: usize,
}

impl ModelReader {
    /// A reader of `model`.
    ///
    /// # Errors
    /// If the model serves too many sequences already.
    pub fn new(model: &Model) -> Result<Self, EvalError> {
        let session = model.session(SessionOptions::default())?;
        Ok(Self { session, vocab: model.hyper().vocab, context: model.context() })
    }
}

impl Reader for ModelReader {
    fn vocab(&self) -> usize {
        self.vocab
    }

    fn context(&self) -> usize {
        self.context
    }

    fn start(&mut self) -> Result<(), EvalError> {
        Ok(self.session.rewind(0)?)
    }

    fn read(&mut self, tokens: &[u32], logits: &mut Vec<f32>) -> Result<(), EvalError> {
        logits.clear();
        logits.reserve(tokens.len() * self.vocab);
        Ok(self.session.score(tokens, &mut |_, row| logits.extend_from_slice(row))?)
    }
}

/// Refuses logits that no probability can be computed from; minus infinity is one that can.
pub(crate) fn check_row(row: &[f32], position: usize) -> Result<(), EvalError> {
    if row.iter().any(|logit| logit.is_nan() || *logit == f32::INFINITY) {
        return Err(EvalError::NotFinite { position });
    }
    Ok(())
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Expects the token after the last one it read, by `weight` nats over all others.
    pub(crate) struct Counter {
        pub(crate) vocab: usize,
        pub(crate) context: usize,
        pub(crate) weight: f32,
        pub(crate) read: usize,
        pub(crate) longest: usize,
    }

    impl Counter {
        pub(crate) fn new(vocab: usize, context: usize, weight: f32) -> Self {
            Self { vocab, context, weight, read: 0, longest: 0 }
        }
    }

    impl Reader for Counter {
        fn vocab(&self) -> usize {
            self.vocab
        }

        fn context(&self) -> usize {
            self.context
        }

        fn start(&mut self) -> Result<(), EvalError> {
            self.read = 0;
            Ok(())
        }

        fn read(&mut self, tokens: &[u32], logits: &mut Vec<f32>) -> Result<(), EvalError> {
            self.read += tokens.len();
            self.longest = self.longest.max(self.read);
            logits.clear();
            for &token in tokens {
                let next = (token as usize + 1) % self.vocab;
                logits.extend((0..self.vocab).map(|i| if i == next { self.weight } else { 0.0 }));
            }
            Ok(())
        }
    }
}
