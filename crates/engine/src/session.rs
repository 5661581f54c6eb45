//! A sequence that its owner drives token by token: ONNX Runtime GenAI's generator.

use crate::driver::{Driver, SessionReply};
use crate::sample::{Sampler, SamplingParams};
use crate::sequence::SequenceId;
use crate::step::Command;
use crate::{EngineError, Model};
use std::sync::Arc;
use std::sync::mpsc::Receiver;

/// Tokens whose logits are handed over at once by [`Session::score`].
const SCORE_BLOCK: usize = 64;

/// How a session is to be made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SessionOptions {
    /// Longest sequence; `None`, or more than it: the model's context.
    pub max_length: Option<usize>,
}

/// A sequence of tokens with its keys and values.
///
/// Appending computes; the logits behind the last token are then pending until a token is sampled
/// from them. Sessions batch with each other and with requests; each belongs to one thread at a
/// time. While it idles, its KV pages may be taken for others; they are then computed again, with
/// equal bits.
#[derive(Debug)]
pub struct Session {
    id: SequenceId,
    driver: Arc<Driver>,
    replies: Receiver<SessionReply>,
    max_length: usize,
    vocab: usize,
    tokens: Vec<u32>,
    /// Tokens of `tokens` that the model's thread knows.
    sent: usize,
    /// Tokens that came by [`Session::append`] or [`Session::score`] up to the last such call:
    /// what penalties regard as the prompt.
    prompt: usize,
    logits: Option<Vec<f32>>,
    sampler: Sampler,
    /// Used where the parameters have no seed.
    seed: u64,
    /// Why the session is gone.
    failed: Option<EngineError>,
}

impl Session {
    pub(crate) fn new(
        model: &Model,
        driver: Arc<Driver>,
        options: SessionOptions,
    ) -> Result<Self, EngineError> {
        let (id, replies) = driver.open()?;
        let context = model.context();
        Ok(Self {
            id,
            driver,
            replies,
            max_length: options.max_length.unwrap_or(context).min(context),
            vocab: model.hyper().vocab,
            tokens: Vec::new(),
            sent: 0,
            prompt: 0,
            logits: None,
            sampler: Sampler::default(),
            seed: crate::model::random_seed(),
            failed: None,
        })
    }

    /// Appends tokens, computes them, and leaves the logits behind the last one pending.
    ///
    /// # Errors
    /// [`EngineError::EmptyPrompt`], [`EngineError::PromptTooLong`],
    /// [`EngineError::UnknownToken`]; the session is then as it was. Any error of running ends it.
    pub fn append(&mut self, tokens: &[u32]) -> Result<(), EngineError> {
        self.admissible(tokens)?;
        self.tokens.extend_from_slice(tokens);
        self.prompt = self.tokens.len();
        self.compute()
    }

    /// Appends tokens and hears the logits behind each of them: `each(position, logits)`, in order.
    /// Logits behind position `p` are those of the token at `p + 1`. Those of the last one are
    /// pending afterwards.
    ///
    /// # Errors
    /// As [`Session::append`].
    pub fn score(
        &mut self,
        tokens: &[u32],
        each: &mut dyn FnMut(usize, &[f32]),
    ) -> Result<(), EngineError> {
        self.admissible(tokens)?;
        let horizon = self.tokens.len() + tokens.len();
        for block in tokens.chunks(SCORE_BLOCK) {
            let mut next = self.tokens.len();
            self.tokens.extend_from_slice(block);
            self.prompt = self.tokens.len();
            self.extend(next, horizon)?;
            while next < self.tokens.len() {
                let (first, logits) = self.reply()?;
                for (offset, logits) in logits.chunks_exact(self.vocab).enumerate() {
                    each(first + offset, logits);
                    next = first + offset + 1;
                    if next == self.tokens.len() {
                        self.logits = Some(logits.to_vec());
                    }
                }
            }
        }
        Ok(())
    }

    /// The pending logits, `(vocab)`; `None` before the first token, after sampling and after
    /// rewinding.
    #[must_use]
    pub fn logits(&self) -> Option<&[f32]> {
        self.logits.as_deref()
    }

    /// Takes the place of the pending logits.
    ///
    /// # Errors
    /// [`EngineError::LogitsLength`].
    pub fn set_logits(&mut self, logits: &[f32]) -> Result<(), EngineError> {
        if logits.len() != self.vocab {
            return Err(EngineError::LogitsLength { found: logits.len(), vocab: self.vocab });
        }
        self.logits = Some(logits.to_vec());
        Ok(())
    }

    /// Chooses the next token and appends it. Pending logits are used up; without them the last
    /// token is computed first.
    ///
    /// # Errors
    /// [`EngineError::NoLogits`] on an empty session, [`EngineError::PromptTooLong`] at the longest
    /// length, [`EngineError::Parameter`], [`EngineError::NotNumbers`]; the session is then as it
    /// was. Any error of running ends it.
    pub fn generate_next(&mut self, sampling: &SamplingParams) -> Result<u32, EngineError> {
        sampling.check(self.vocab)?;
        self.room_for(1)?;
        if self.logits.is_none() {
            if self.tokens.is_empty() {
                return Err(EngineError::NoLogits);
            }
            self.compute()?;
        }
        let logits = self.logits.as_deref().ok_or(EngineError::NoLogits)?;
        let seed = sampling.seed.unwrap_or(self.seed);
        let token =
            self.sampler.sample((sampling, None), seed, logits, &self.tokens, self.prompt)?;
        self.tokens.push(token);
        self.logits = None;
        Ok(token)
    }

    /// Drops all tokens but the first `tokens`. What follows is as if they had never been.
    ///
    /// # Errors
    /// [`EngineError::Rewind`] if there are fewer.
    pub fn rewind(&mut self, tokens: usize) -> Result<(), EngineError> {
        if tokens > self.tokens.len() {
            return Err(EngineError::Rewind { to: tokens, tokens: self.tokens.len() });
        }
        self.tokens.truncate(tokens);
        self.sent = self.sent.min(tokens);
        self.prompt = self.prompt.min(tokens);
        self.logits = None;
        Ok(())
    }

    /// All tokens, appended and generated.
    #[must_use]
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// Longest sequence.
    #[must_use]
    pub fn max_length(&self) -> usize {
        self.max_length
    }

    fn room_for(&self, more: usize) -> Result<(), EngineError> {
        let (tokens, context) = (self.tokens.len() + more, self.max_length);
        if tokens > context {
            return Err(EngineError::PromptTooLong { tokens, context });
        }
        Ok(())
    }

    fn admissible(&self, tokens: &[u32]) -> Result<(), EngineError> {
        if tokens.is_empty() {
            return Err(EngineError::EmptyPrompt);
        }
        self.room_for(tokens.len())?;
        crate::model::check_tokens(tokens, self.vocab)
    }

    /// Computes what is not computed, and waits for the logits behind the last token.
    fn compute(&mut self) -> Result<(), EngineError> {
        let last = self.tokens.len() - 1;
        self.extend(last, self.tokens.len())?;
        let (_, logits) = self.reply()?;
        self.logits = Some(logits);
        Ok(())
    }

    /// Tells the model's thread the tokens that it does not know.
    fn extend(&mut self, logits_from: usize, horizon: usize) -> Result<(), EngineError> {
        if let Some(error) = &self.failed {
            return Err(error.clone());
        }
        self.logits = None;
        let tokens = self.tokens[self.sent..].to_vec();
        let (id, keep) = (self.id, self.sent);
        self.sent = self.tokens.len();
        self.driver.command(Command::Extend { id, keep, tokens, logits_from, horizon })
    }

    fn reply(&mut self) -> Result<(usize, Vec<f32>), EngineError> {
        let reply = self.replies.recv().unwrap_or_else(|_| Err(self.driver.ended()));
        reply.inspect_err(|error| self.failed = Some(error.clone()))
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        // A thread that has ended has no sessions.
        let _ = self.driver.command(Command::Close { id: self.id });
    }
}
