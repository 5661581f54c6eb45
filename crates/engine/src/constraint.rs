//! What an answer is held to: tokens that must not come next are made impossible.

use std::fmt::Debug;
use tangor_text::Grammar;

/// Rules out tokens, knowing those that were chosen before: a grammar, for one.
///
/// It is asked once for every token of the answer, on the model's thread, so its work must be
/// bounded. What it rules out may depend on the tokens of its own answer alone: answers would not
/// be the same alone and in a batch otherwise.
pub trait Constraint: Debug + Send + Sync {
    /// Sets the logits of tokens that must not come next to minus infinity; `(vocab)`.
    ///
    /// # Errors
    /// Why that is not possible, which ends the request.
    fn restrict(&mut self, logits: &mut [f32]) -> Result<(), String>;

    /// This token was chosen.
    ///
    /// # Errors
    /// Why that is not possible, which ends the request.
    fn accept(&mut self, token: u32) -> Result<(), String>;

    /// The same constraint in the same state, for another answer.
    fn duplicate(&self) -> Box<dyn Constraint>;
}

impl Clone for Box<dyn Constraint> {
    fn clone(&self) -> Self {
        self.duplicate()
    }
}

impl Constraint for Grammar {
    fn restrict(&mut self, logits: &mut [f32]) -> Result<(), String> {
        Self::restrict(self, logits).map_err(|error| error.to_string())
    }

    fn accept(&mut self, token: u32) -> Result<(), String> {
        Self::accept(self, token).map_err(|error| error.to_string())
    }

    fn duplicate(&self) -> Box<dyn Constraint> {
        Box::new(Self::duplicate(self))
    }
}
