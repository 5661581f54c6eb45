//! What can go wrong in an evaluation.

use tangor_engine::EngineError;

/// An error of an evaluation.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EvalError {
    /// There is nothing to predict.
    #[error("the text has {tokens} tokens and needs at least {needed}: give a longer one")]
    TextTooShort {
        /// Tokens that it has.
        tokens: usize,
        /// Tokens that it needs.
        needed: usize,
    },
    /// A number outside its range.
    #[error("{name} is {value} and must be {allowed}")]
    Option {
        /// Its name.
        name: &'static str,
        /// What it was.
        value: usize,
        /// What it may be.
        allowed: String,
    },
    /// Two models that do not speak of the same tokens.
    #[error("models with vocabularies of {0} and {1} tokens cannot be compared")]
    Vocabulary(usize, usize),
    /// A model computed a logit that is no number.
    #[error(
        "the model's logits after token {position} are not finite: \
         its weights are damaged, or this is a defect of a device"
    )]
    NotFinite {
        /// Position in the text.
        position: usize,
    },
    /// Nothing that could be measured is called so.
    #[error("no operation's name contains {name:?}")]
    Name {
        /// What was asked for.
        name: String,
    },
    /// A device does not run an operation that was to be measured.
    #[error("{name}: {why}")]
    Kernel {
        /// The operation.
        name: String,
        /// What the device said.
        why: String,
    },
    /// Another program, which reads the text too, failed.
    #[error("{name}: {why}")]
    Program {
        /// The program.
        name: &'static str,
        /// What it said.
        why: String,
    },
    /// A server that was to be measured does not answer.
    #[error("the server does not answer ({0}): check its URL, and that it has /v1/completions")]
    Server(String),
    /// Whoever watched ended it.
    #[error("stopped")]
    Stopped,
    /// The model failed.
    #[error(transparent)]
    Engine(#[from] EngineError),
}

impl EvalError {
    pub(crate) fn option(name: &'static str, value: usize, allowed: String) -> Self {
        Self::Option { name, value, allowed }
    }
}
